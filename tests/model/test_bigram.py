"""bigram.py: the loop around the model is right, and it finds the best table."""

import math
import re
from collections import Counter

import pytest
import torch
from makers import final_loss, samples


def counted_loss(text, smoothing=0.01):
    """Validation loss of the table of counted pairs: the best that a bigram can do."""
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
    assert final_loss(done.out) == pytest.approx(counted_loss(text), abs=0.03)
    # and what it samples is made of pairs that the text has
    (sample,) = samples(done.out)
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
    assert torch.equal(model.logits(idx), next(model.parameters())[idx])


def test_loss_is_cross_entropy(load):
    names = load("bigram.py")
    V = names["vocab_size"]
    idx, targets = torch.randint(V, (2, 3, 5))
    loss = names["model"](idx, targets)
    p = names["model"].logits(idx).double().softmax(-1).tolist()
    expected = [-math.log(p[b][t][y]) for (b, t), y in _enumerate(targets)]
    assert len(expected) == 15
    assert loss.item() == pytest.approx(sum(expected) / 15, abs=1e-6)
    with torch.no_grad():  # a table of zeros knows nothing: ln V
        next(names["model"].parameters()).zero_()
    assert names["estimate_loss"]() == pytest.approx(math.log(V), abs=1e-6)


def _enumerate(matrix):
    """((row, column), value) for every value of a matrix."""
    for b, row in enumerate(matrix.tolist()):
        for t, y in enumerate(row):
            yield (b, t), y


SCRIPTS = ["bigram.py", "v2_attention.py", "gpt_char.py"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_estimate_loss_is_that_of_the_whole_split(load, direct_loss, script):
    exact = ["--no-bfloat16"] if script == "gpt_char.py" else []
    names = load(script, "--block_size=64", "--batch_size=3", *exact)
    whole = names["val_data"]
    # One window, one and almost another, two, 3 batches (the last smaller), and all
    for length in (65, 128, 129, 520, len(whole)):
        names["val_data"] = whole[:length]
        shapes = []
        hook = lambda model, args: shapes.append((args[0].shape, args[1].shape))  # noqa: E731
        handle = names["model"].register_forward_pre_hook(hook)
        loss = names["estimate_loss"]()
        handle.remove()
        assert loss == pytest.approx(direct_loss(names, whole[:length]), abs=1e-5)
        assert names["estimate_loss"]() == loss  # nothing about it is random
        assert all(x == y and x[0] <= 3 and x[1] == 64 for x, y in shapes)
        assert sum(x.numel() for x, _ in shapes) == (length - 1) // 64 * 64


@pytest.mark.parametrize("script", SCRIPTS)
def test_get_batch(load, script):
    names = load(script, "--block_size=16", "--batch_size=500")
    by_step = script == "gpt_char.py"  # the step decides what is in its batch

    def get_batch(step):
        return names["get_batch"](step) if by_step else names["get_batch"]()

    x, y = get_batch(0)
    assert x.shape == y.shape == (500, 16)
    assert torch.equal(x[:, 1:], y[:, :-1])
    train = names["decode"](names["train_data"].tolist())
    for row, target in zip(x[:50].tolist(), y[:50].tolist()):
        assert names["decode"](row + target[-1:]) in train
    assert len({tuple(row) for row in x.tolist()}) > 490  # from all over the text
    # The shortest text that works: its last sequence is reached, and nothing beyond it
    data = names["train_data"] = names["train_data"][: 33 if by_step else 18]
    rows = set()
    for step in range(200 if by_step else 1):  # by_step: one of two windows per epoch
        x, y = get_batch(step)
        rows |= {tuple(row) for row in y.tolist()}
    starts = range(1, 17) if by_step else (1, 2)
    assert rows == {tuple(data[i : i + 16].tolist()) for i in starts}


@pytest.mark.parametrize("script", SCRIPTS)
def test_generate(load, script):
    names = load(script, "--seed=3")
    model, generate, V = names["model"], names["generate"], names["vocab_size"]
    start = torch.tensor([[1, 2], [3, 4]])
    # Logits that depend on the last character alone: the result is known in advance
    table = torch.linspace(0, 5, V).repeat(V, 1)
    # The likeliest character after i is i - 1
    table = torch.stack([row.roll(i) for i, row in enumerate(table)])
    model.logits = lambda idx: table[idx]

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


@pytest.mark.parametrize("script", SCRIPTS)
def test_output(run, script, direct_loss, text):
    args = ["--max_iters=4", "--eval_interval=2", "--max_new_tokens=30"]
    args += ["--prompt=AB é", "--block_size=32", "--batch_size=5"]
    if script == "gpt_char.py":  # its runs are long: it also prints times and samples
        args += ["--log_interval=3", "--n_layer=1", "--n_head=2", "--n_embd=32"]
        train_line = r"step +(\d)/4 .*\| loss \d\.\d{4}\b.*"
        val_line = r"step +(\d)/4 .*\| val loss \d\.\d{4}\b.*"
        expected = [(["3"], train_line), (["2", "4"], val_line)]
    else:
        line = r"step +(\d) .*\| train loss \d\.\d{4} .*\| val loss \d\.\d{4}\b.*"
        expected = [(["0", "2"], line)]
    first = run(script, *args)
    assert (first.code, first.err) == (0, "")
    count = sum(p.numel() for p in first.names["model"].parameters())
    start = first.out.splitlines()[0]
    for word in (f"{count:,}", f"{len(set(text))}", "cpu"):
        assert word in start.split()
    for steps, line in expected:
        assert re.findall(f"^{line}$", first.out, flags=re.M) == steps
    (sample,) = samples(first.out)
    assert sample.startswith("AB é") and len(sample) == 4 + 30
    whole = direct_loss(first.names, first.names["val_data"])
    # Not exact where bfloat16 is on
    assert final_loss(first.out) == pytest.approx(whole, abs=2e-3)


@pytest.mark.long
@pytest.mark.parametrize("script", SCRIPTS)
def test_same_seed_same_losses(run, script, tiny):
    def losses(*more):
        done = run(script, "--max_iters=6", "--eval_interval=1", *args, *more)
        return re.findall(r"loss \d\.\d+", done.out), done.names["model"].state_dict()

    args = ["--max_new_tokens=0"]
    args += (
        [*tiny, "--init_from=scratch", "--log_interval=1"]
        if script == "gpt_char.py"
        else ["--batch_size=4"]
    )
    (a, first), (b, second) = losses(), losses()
    assert len(a) == 13 and a == b
    assert all(torch.equal(first[name], second[name]) for name in first)
    c, other = losses("--seed=5")
    assert a != c


@pytest.mark.parametrize("script", [*SCRIPTS, "prepare_shakespeare.py"])
def test_help(run_any, script):
    done = run_any(script, "--help")
    assert (done.code, done.err) == (0, "")
    assert f"usage: {script}" in done.out
    flags = re.findall(r"^  --(\w+)", done.out, flags=re.M)
    if script == "prepare_shakespeare.py":
        assert {"source", "name"} <= set(flags)
    else:
        assert {"data_dir", "seed", "learning_rate", "top_k", "max_iters"} <= set(flags)
