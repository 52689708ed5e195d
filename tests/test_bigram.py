"""bigram.py: the loop around the model is right, and the model finds the best table there is."""

import math
import re
from collections import Counter

import pytest
import torch


def counted_loss(text, smoothing=0.01):
    """Validation loss of the table of counted pairs: no bigram model can do noticeably better."""
    n = int(0.9 * len(text))
    train, val = text[:n], text[n:]
    pairs, firsts = Counter(zip(train, train[1:])), Counter(train[:-1])
    V = len(set(text))
    losses = [
        -math.log((pairs[a, b] + smoothing) / (firsts[a] + smoothing * V))
        for a, b in zip(val, val[1:])
    ]
    return sum(losses) / len(losses)


def test_reaches_the_counted_optimum(run, text):
    done = run("bigram.py", "--max_new_tokens=20")
    final = float(re.search(r"final val loss (\d+\.\d{4})\n\Z", done.out)[1])
    assert final == pytest.approx(counted_loss(text), abs=0.03)
    # and what it samples is made of pairs that the text has
    sample = done.out.split("-" * 80 + "\n")[1][:-1]
    assert len(sample) == 21 and sample[0] == text[0]
    likely = [a + b in text for a, b in zip(sample, sample[1:])]
    assert sum(likely) >= 18


def test_encode_decode(load, text):
    names = load("bigram.py")
    assert names["decode"](names["encode"](text)) == text
    assert sorted(set(names["encode"](text))) == list(range(len(set(text))))
    data = torch.cat((names["train_data"], names["val_data"]))
    assert names["decode"](data.tolist()) == text
    assert len(names["train_data"]) == int(0.9 * len(text))


def test_model_is_a_table(load):
    names = load("bigram.py")
    model, V = names["model"], names["vocab_size"]
    assert sum(p.numel() for p in model.parameters()) == V * V
    idx = torch.randint(V, (3, 5))
    logits, loss = model(idx)
    assert loss is None
    assert torch.equal(logits, next(model.parameters())[idx])


def test_loss_is_cross_entropy(load):
    names = load("bigram.py")
    V = names["vocab_size"]
    idx, targets = torch.randint(V, (2, 3, 5))
    targets[0, 2] = targets[1, 4] = -1  # do not count
    logits, loss = names["model"](idx, targets)
    p = logits.double().softmax(-1).tolist()
    expected = [-math.log(p[b][t][y]) for (b, t), y in _enumerate(targets) if y >= 0]
    assert len(expected) == 13
    assert loss.item() == pytest.approx(sum(expected) / 13, abs=1e-6)
    with torch.no_grad():  # a table of zeros knows nothing: ln V
        next(names["model"].parameters()).zero_()
    assert names["estimate_loss"](names["val_data"]) == pytest.approx(math.log(V), abs=1e-6)


def _enumerate(matrix):
    return (((b, t), y) for b, row in enumerate(matrix.tolist()) for t, y in enumerate(row))


@pytest.mark.parametrize("script", ["bigram.py", "v2_attention.py", "gpt_char.py"])
@pytest.mark.parametrize("length", [65, 64, 2, 1000])
def test_estimate_loss_is_that_of_the_whole_split(load, direct_loss, script, length):
    names = load(script, "--block_size=64", "--batch_size=3")
    if script == "gpt_char.py":
        names["bfloat16"] = False
    data = names["val_data"][:length]
    assert names["estimate_loss"](data) == pytest.approx(direct_loss(names, data), abs=1e-5)
    # parts of it: 2 batches of 3 windows of 64, evenly spaced
    if length == 1000:
        _, y = names["model"](data[None, :64], data[None, 1:65])
        assert names["estimate_loss"](data[:65], 2) == pytest.approx(y.item(), abs=1e-5)
        calls = []
        model = names["model"]
        model.register_forward_pre_hook(lambda _, args: calls.append(args[0].shape))
        names["estimate_loss"](names["val_data"], 2)
        assert [tuple(shape) for shape in calls] == [(3, 64), (3, 64)]


@pytest.mark.parametrize("script", ["bigram.py", "v2_attention.py", "gpt_char.py"])
def test_get_batch(load, script):
    names = load(script, "--block_size=16", "--batch_size=500")
    x, y = names["get_batch"]()
    assert x.shape == y.shape == (500, 16)
    assert torch.equal(x[:, 1:], y[:, :-1])
    train = names["decode"](names["train_data"].tolist())
    for row, target in zip(x[:50].tolist(), y[:50].tolist()):
        assert names["decode"](row + target[-1:]) in train
    assert len({tuple(row) for row in x.tolist()}) > 490  # from all over the text
    # the last sequence of the shortest text that goes is in reach, and nothing beyond it
    names["train_data"] = names["train_data"][:18]
    x, y = names["get_batch"]()
    assert {tuple(row) for row in y.tolist()} == {
        tuple(names["train_data"][i : i + 16].tolist()) for i in (1, 2)
    }


@pytest.mark.parametrize("script", ["bigram.py", "v2_attention.py", "gpt_char.py"])
def test_generate(load, script):
    names = load(script, "--seed=3")
    model, generate, V = names["model"], names["generate"], names["vocab_size"]
    start = torch.tensor([[1, 2], [3, 4]])
    # Scores that depend on the last character alone, so that all is known beforehand
    table = torch.linspace(0, 5, V).repeat(V, 1)
    table = torch.stack([row.roll(i) for i, row in enumerate(table)])  # likeliest after i: i - 1
    model.forward = lambda idx, targets=None: (table[idx], None)

    greedy = generate(start, 3, temperature=0)
    assert greedy.tolist() == [[1, 2, 1, 0, V - 1], [3, 4, 3, 2, 1]]
    assert torch.equal(generate(start, 3, temperature=0, top_k=2), greedy)
    assert torch.equal(generate(start, 3, top_k=1), greedy)
    assert torch.equal(generate(start, 0), start)

    many = torch.full((20_000, 1), V - 1)  # after V - 1 the scores rise up to V - 2
    for temperature, top_k in ((1.0, 0), (0.5, 0), (2.0, 3), (1.0, V + 9)):
        torch.manual_seed(0)
        idx = generate(many, 1, temperature, top_k)
        found = torch.bincount(idx[:, 1], minlength=V) / len(many)
        p = (table[V - 1].double() / temperature).exp()
        if top_k:
            p[p.argsort()[: max(0, V - top_k)]] = 0
        p /= p.sum()
        assert (found - p).abs().max() < 0.012  # 3.4 standard deviations at most
        assert (found[p == 0] == 0).all()
    torch.manual_seed(7)
    a = generate(start, 20)
    torch.manual_seed(7)
    assert torch.equal(generate(start, 20), a)


@pytest.mark.parametrize("script", ["bigram.py", "v2_attention.py", "gpt_char.py"])
def test_output(run, script, direct_loss, text):
    args = ["--max_iters=4", "--eval_interval=2", "--max_new_tokens=30", "--prompt=AB é"]
    args += ["--block_size=32", "--batch_size=5", "--eval_iters=2"]
    first = run(script, *args)
    assert (first.code, first.err) == (0, "")
    lines = first.out.splitlines()
    count = sum(p.numel() for p in first.names["model"].parameters())
    assert lines[0] == f"{count:,} parameters, {len(set(text))} different tokens, device cpu"
    for line, step in zip(lines[1:4], (0, 2, 4)):
        pattern = r"step +(\d+)/4 \| train loss \d\.\d{4} \| val loss \d\.\d{4} \| +[\d,]+ "
        assert int(re.fullmatch(pattern + r"tokens/s \| (\d:\d\d:\d\d|\?) left", line)[1]) == step
    _, sample, end = first.out.split("-" * 80 + "\n")
    assert sample.startswith("AB é") and len(sample) == 4 + 30 + 1
    assert re.fullmatch(r"final val loss \d\.\d{4}\n", end)
    first.names["bfloat16"] = False
    whole = direct_loss(first.names, first.names["val_data"])
    assert float(end.split()[-1]) == pytest.approx(whole, abs=2e-3)  # bfloat16, where it is on


@pytest.mark.parametrize("script", ["bigram.py", "v2_attention.py", "gpt_char.py"])
def test_same_seed_same_losses(run, script, tiny):
    def losses(*more):
        done = run(script, "--max_iters=6", "--eval_interval=1", "--eval_iters=1", *args, *more)
        return re.findall(r"loss \d\.\d+", done.out), done.names["model"].state_dict()

    args = ["--max_new_tokens=0"]
    args += [*tiny, "--init_from=scratch"] if script == "gpt_char.py" else ["--batch_size=4"]
    (a, first), (b, second) = losses(), losses()
    assert len(a) == 15 and a == b
    assert all(torch.equal(first[name], second[name]) for name in first)
    c, other = losses("--seed=5")
    assert a != c


@pytest.mark.parametrize(
    "script", ["bigram.py", "v2_attention.py", "gpt_char.py", "prepare_shakespeare.py"]
)
def test_help(run_any, script):
    done = run_any(script, "--help")
    assert (done.code, done.err) == (0, "")
    assert f"python {script}" in done.out
    flags = re.findall(r"^  --(\w+)", done.out, flags=re.M)
    if script == "prepare_shakespeare.py":
        assert {"source", "name"} <= set(flags)
    else:
        assert {"data_dir", "seed", "learning_rate", "top_k", "max_iters"} <= set(flags)
