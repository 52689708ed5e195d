"""gpt2_train.py on one process: model, data, evaluation, sampling.

Each is held against an independent and slower way to get the same. Most tests run the
script inside this process and get at its names: see gpt2 in conftest.py. How it runs is
tested in tests/runs, what it knows of GPUs in tests/gpu.
"""

import csv
import functools
import json
import math
import random
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from makers import (
    PRECISIONS,
    SHORT,
    final_loss,
    huggingface_model,
    import_transformers,
    random_tokens,
    read_log,
    samples,
    stir,
    write_shard,
    write_shards,
)


# -------------------------------------------------------------------------------- Model
def write_random(vocab_size):
    """A shard of each split under tokens/, of random tokens."""
    make = functools.partial(random_tokens, vocab_size=vocab_size)
    write_shards(train=900, val=300, make=make, vocab_size=vocab_size)


def assert_same_function(ours, theirs, vocab_size, positions=16):
    """Logits equal to 1e-4 and the loss to 1e-5, on random tokens."""
    n = positions
    idx = torch.from_numpy(random_tokens(3 * (n + 1), vocab_size, seed=5))
    idx = idx.view(3, n + 1)
    x, y = idx[:, :-1], idx[:, 1:]
    ours.eval()
    with torch.no_grad():
        logits, loss = ours.logits(x), ours(x, y)
        expected = theirs(x).logits
        direct = F.cross_entropy(expected.flatten(0, 1), y.flatten())
        references = [direct]
        if theirs.config.n_positions > n:
            # HuggingFace shifts the labels itself: its loss is of the same predictions
            references.append(theirs(idx, labels=idx).loss)
    assert logits.dtype == torch.float32 and loss.shape == ()
    assert logits.shape == (3, n, math.ceil(vocab_size / 128) * 128)
    assert (logits[..., vocab_size:] == -math.inf).all()
    logits = logits[..., :vocab_size]
    assert logits.shape == expected.shape
    assert expected.std() > 0.5  # or there would be nothing to get wrong
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    for reference in references:
        assert loss.item() == pytest.approx(reference.item(), abs=1e-5)


@pytest.mark.parametrize(
    "vocab_size, n_positions, activation",
    [
        (256, 32, "gelu_new"),
        (256, 32, "gelu"),
        (50257, 32, "gelu_new"),
        (256, 9, "gelu_new"),
    ],
)
def test_import_equals_huggingface(
    gpt2, tmp_path, capsys, vocab_size, n_positions, activation
):
    """Of a model for more positions than block_size. One for fewer is refused."""
    theirs = huggingface_model(vocab_size, n_positions, activation)
    theirs.save_pretrained(tmp_path / "hf")
    write_random(vocab_size)
    if n_positions < 16:
        with pytest.raises(SystemExit, match="2"):
            gpt2("--init_from=hf")
        last = capsys.readouterr().err.splitlines()[-1]
        assert "--block_size" in last and "9" in last
        return
    g = gpt2("--init_from=hf", "--n_layer=9")  # the folder decides on the size
    ours = g["model"]
    assert g["n_layer"] == len(ours.h) == 2
    assert len(ours.wpe.weight) == 16
    assert_same_function(ours, theirs, vocab_size)


@pytest.mark.parametrize(
    "vocab_size, model", [(256, "char"), (256, "gpt2"), (50257, "gpt2")]
)
def test_export_equals_huggingface(gpt2, tmp_path, vocab_size, model):
    """The model named char has exact GELU, all others GPT-2's approximation of it."""
    transformers = import_transformers()
    write_random(vocab_size)
    g = gpt2(f"--model_size={model}")
    stir(g["model"], 1.0)
    Path("out/gpt2_train").mkdir(parents=True)
    g["save_checkpoint"]("made.pt", 0)
    made = "--init_from=out/gpt2_train/made.pt"
    g = gpt2(f"--model_size={model}", made, "--export_dir=exported")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "exported").eval()
    assert theirs.config.vocab_size == vocab_size and theirs.config.n_positions == 16
    gelu = {"char": "gelu", "gpt2": "gelu_new"}[model]
    assert theirs.config.activation_function == gelu
    assert_same_function(g["model"], theirs, vocab_size)
    assert_same_function(gpt2("--init_from=exported")["model"], theirs, vocab_size)
    other = {"char": "gpt2", "gpt2": "char"}[model]
    with pytest.raises(SystemExit, match="gelu="):
        gpt2(f"--model_size={other}", made)  # it would be another function


def test_padded_ids_are_out_of_softmax_and_sampling(gpt2, gpt2_tokens):
    g = gpt2()
    model = g["model"]
    stir(model)
    assert len(model.wte.weight) == 50304
    x = torch.from_numpy(random_tokens(32, 50257)).view(2, 16)
    before = [model.logits(x), model(x, x)]
    assert before[0].shape == (2, 16, 50304)
    assert (before[0][..., 50257:] == -math.inf).all()
    real = before[0][..., :50257]
    assert real.isfinite().all()
    direct = F.cross_entropy(real.flatten(0, 1), x.flatten())
    assert before[1].item() == pytest.approx(direct.item(), rel=1e-6)
    with torch.no_grad():  # whatever the padding holds
        model.wte.weight[50257:] = 100 * torch.randn(47, 32)
    after = [model.logits(x), model(x, x)]
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    after[1].backward()
    gradient = model.wte.weight.grad
    assert gradient[:50257].any() and not gradient[50257:].any()
    for temperature in (0, 1.0, 50.0):
        ids = g["generate"](x[:, :1], 12, temperature=temperature)
        assert ids.max() < 50257


@pytest.mark.parametrize(
    "name, expected",  # what OpenAI's models have, counted in transformers
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_parameter_counts(gpt2, gpt2_tokens, name, expected):
    g = gpt2()
    g["n_layer"], g["n_head"], g["n_embd"] = g["sizes"][name][:3]
    g["block_size"] = 1024
    with torch.device("meta"):  # shapes without memory
        model = g["GPT"]()
    assert g["n_embd"] == 64 * g["n_head"]
    padding = (50304 - 50257) * g["n_embd"]
    assert sum(p.numel() for p in model.parameters()) == expected + padding


def test_blocks_add_nothing_at_the_start(gpt2, tokens):
    model = gpt2("--n_layer=8", "--n_embd=128")["model"]
    for name, p in model.named_parameters():
        if name.endswith(("c_proj.weight", "bias")):
            assert not p.any(), name
        elif p.ndim == 2:
            assert p.std().item() == pytest.approx(0.02, rel=0.05), name
        else:
            assert (p == 1).all(), name
    assert model.lm_head.weight is model.wte.weight
    x = torch.from_numpy(random_tokens(32)).view(2, 16)
    embedded = F.layer_norm(model.wte.weight[x] + model.wpe.weight, (128,))
    torch.testing.assert_close(model.logits(x), embedded @ model.wte.weight.T)
    model(x, x).backward()  # and yet they learn
    assert all(block.mlp.c_proj.weight.grad.any() for block in model.h)


def test_learning_rate_goes_by_size(gpt2, tokens):
    """As GPT-3's did: the larger the model, the lower. A given one is kept."""
    rates = {}
    for size in gpt2()["sizes"]:
        g = gpt2(f"--model_size={size}")
        rates[size] = g["learning_rate"]
        assert g["config"]["learning_rate"] == rates[size]
    gpt3 = {"gpt2": 6e-4, "gpt2-medium": 3e-4, "gpt2-large": 2.5e-4, "gpt2-xl": 2e-4}
    gpt3 |= {"gpt3-large": 2.5e-4, "gpt3-xl": 2e-4}  # Brown et al. 2020, table 2.1
    for size, rate in gpt3.items():
        assert rates[size] / rates["gpt2"] == pytest.approx(rate / gpt3["gpt2"]), size
    assert set(rates) - set(gpt3) == {"char", "char-small"}
    g = gpt2("--model_size=gpt2-xl", "--learning_rate=0.25")
    assert g["learning_rate"] == 0.25 and g["gelu"] == "tanh"
    assert gpt2("--model_size=gpt2-xl", "--gelu=none")["gelu"] == "none"


@pytest.mark.parametrize("bfloat16", (False, True))  # True: attention is written out
@pytest.mark.parametrize("T, S", [(1, 1), (1, 9), (9, 9)])
def test_attention_against_the_formula(gpt2, tokens, bfloat16, T, S):
    """Softmax over the past, in float64; the queries are the last T of S positions."""
    g = gpt2(*PRECISIONS["bfloat16" if bfloat16 else "float32"])
    torch.manual_seed(0)
    q, k, v = qkv = [
        torch.randn(2, 3, n, 8).double().requires_grad_() for n in (T, S, S)
    ]
    weights = (q @ k.mT / math.sqrt(8)).exp() * torch.ones(T, S).tril(S - T)
    theirs = weights / weights.sum(-1, keepdim=True) @ v
    ours = g["attention"](q, k, v, 0.0)
    out = torch.randn_like(ours)
    gradients = [torch.autograd.grad(y, qkv, out) for y in (ours, theirs)]
    for a, b in zip((ours, *gradients[0]), (theirs, *gradients[1])):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    # Dropout takes weights out, and makes up for it
    even = (
        torch.zeros(500, 1, T, 8),
        torch.zeros(500, 1, S, 8),
        torch.ones(500, 1, S, 8),
    )
    kept = g["attention"](*even, 0.25)
    assert kept.std() > 0.02 and kept.mean().item() == pytest.approx(1, rel=0.1)


# --------------------------------------------------------------------------------- Data
def all_windows(shards, shift, block_size=16):
    """The windows of training shards, as (x, y) tuples of ints: cut with slices only.

    As many as fit into a shard, whatever the shift of an epoch.
    """
    found = []
    for shard in shards:
        ids = [int(i) for i in shard]
        for start in range(shift, len(ids) - 2 * block_size + shift + 1, block_size):
            window = ids[start : start + block_size + 1]
            found.append((tuple(window[:-1]), tuple(window[1:])))
    return found


def batches(g, steps, batch_size, world_size, total=8):
    """The windows of every step, in the order of the micro-steps and processes."""
    g["micro_batch_size"], g["world_size"] = batch_size, world_size
    g["accumulation"] = total // (batch_size * world_size)
    found = []
    for step in steps:
        for micro_step in range(g["accumulation"]):
            for rank in range(world_size):
                g["rank"] = rank
                x, y = g["get_batch"](step, micro_step)
                assert x.shape == y.shape == (batch_size, 16)
                found += zip(map(tuple, x.tolist()), map(tuple, y.tolist()))
    return found


def test_every_window_once_per_epoch(gpt2, tmp_path):
    # A shard of exactly whole windows, one too short for any, one with a rest
    shards = [random_tokens(n, seed=n) for n in (16 * 21 + 1, 16, 16 * 21 + 15, 16 * 3)]
    for number, shard in enumerate(shards):
        write_shard(tmp_path / f"tokens/t_train_{number:06d}.bin", shard)
    write_shard(tmp_path / "tokens/t_val_000000.bin", random_tokens(333))
    g = gpt2()
    expected = [sorted(all_windows(shards, shift)) for shift in range(16)]
    n = len(expected[0])
    for windows in expected:  # 42 / 8 is no whole number: epochs end inside a step
        assert n == len(windows) == len(set(windows)) == 42
    found = batches(g, range(3 * 42 // 8), batch_size=8, world_size=1)
    epochs = [found[i : i + n] for i in range(0, len(found) - n + 1, n)]
    assert len(epochs) == 2
    for epoch in epochs:
        assert epoch != all_windows(shards, expected.index(sorted(epoch)))  # shuffled
    assert sorted(epochs[0]) != sorted(epochs[1])  # every epoch cuts elsewhere

    # Independent of how many processes share a step, and of the micro-batch
    for batch_size, world_size in ((1, 1), (2, 1), (4, 2), (1, 8), (1, 2)):
        assert batches(g, range(15), batch_size, world_size) == found[: 15 * 8]
    # A pure function of seed and step
    assert batches(g, [13], 8, 1) == found[13 * 8 : 14 * 8]
    assert batches(gpt2("--total_batch_size=128"), [13], 8, 1) == found[13 * 8 : 14 * 8]
    other = batches(gpt2("--seed=1"), range(15), 8, 1)
    assert other != found[: 15 * 8] and sorted(other[:n]) in expected


# --------------------------------------------------------------------------- Evaluation
def summed_over_processes(g, function, world_size, count=None):
    """What a function that ends in total / count returns on world_size processes.

    It adds up both over the processes, or the total only.
    """
    parts = []
    real = g["add_up"]
    g["world_size"] = world_size
    g["add_up"] = lambda *numbers: parts.append(numbers) or (1, 1)
    for g["rank"] in range(world_size):
        g[function]()
    g["world_size"], g["rank"], g["add_up"] = 1, 0, real
    if count is None:
        count = sum(part[1] for part in parts)
    return sum(part[0] for part in parts) / count


@pytest.mark.parametrize("eval_tokens", [10**7, 100])
def test_estimate_loss_equals_direct_computation(gpt2, tmp_path, eval_tokens):
    shards = [random_tokens(n, seed=n) for n in (16 * 3 + 1, 12, 16 * 5 + 7)]
    for number, shard in enumerate(shards):
        write_shard(tmp_path / f"tokens/t_val_{number:06d}.bin", shard)
    write_shard(tmp_path / "tokens/t_train_000001.bin", random_tokens(900))
    g = gpt2(f"--eval_tokens={eval_tokens}", "--dropout=0.5", "--batch_size=2")
    model = g["model"]
    stir(model)
    losses, windows = [], 0
    model.eval()
    for shard in shards:
        ids = torch.from_numpy(shard)
        for start in range(0, len(ids) - 16, 16):  # whole ones only
            if windows == math.ceil(eval_tokens / 16):
                break
            windows += 1
            window = ids[start : start + 17]
            with torch.no_grad():
                log_probs = model.logits(window[None, :-1])[0].log_softmax(-1)
            losses += [
                -log_probs[i, token].item() for i, token in enumerate(window[1:])
            ]
    model.train()
    assert len(losses) == (48 + 80 if eval_tokens > 1000 else 112)
    expected = sum(losses) / len(losses)
    assert g["estimate_loss"]() == pytest.approx(expected, rel=1e-6)
    assert model.training
    for world_size in (2, 3, 8):  # 8: more than there are batches
        found = summed_over_processes(g, "estimate_loss", world_size)
        assert found == pytest.approx(expected, rel=1e-6)


def made_up_questions(count=21):
    """Questions with contexts and endings of all lengths; labels are still missing."""
    rng = random.Random(3)

    def words(low, high):
        return " ".join(
            rng.choice(["on", "ice", "é", "\u2028x"])
            for _ in range(rng.randint(low, high))
        )

    return [
        {"ctx": words(1, 20), "endings": [words(1, 8) for _ in range(4)], "label": 0}
        for _ in range(count)
    ]


def reference_answer(g, question, normalize=True, block_size=48):
    """Score one ending after the other, each alone."""
    scores = []
    for ending in question["endings"]:
        context, ending = list(question["ctx"].encode()), list(f" {ending}".encode())
        ids = torch.tensor(context + ending)[-block_size - 1 :]
        with torch.no_grad():
            log_probs = g["model"].logits(ids[None, :-1])[0].log_softmax(-1)
        first = len(ids) - len(ending)
        picked = [log_probs[i - 1, ids[i]].item() for i in range(first, len(ids))]
        scores.append(sum(picked) / (len(picked) if normalize else 1))
    return scores.index(max(scores))


def test_hellaswag_equals_unbatched_reference(gpt2, tokens, tmp_path, capsys):
    args = ["--block_size=48", "--total_batch_size=96", "--dropout=0.5"]
    g = gpt2(*args, "--hellaswag")
    assert g["questions"] == []  # there is no file
    stir(g["model"], 1.0)
    questions = made_up_questions()
    assert any(len(q["ctx"].encode()) > 60 for q in questions)  # longer than block_size
    g["model"].eval()
    answers = [reference_answer(g, q) for q in questions]
    sums = [reference_answer(g, q, normalize=False) for q in questions]
    assert answers != sums and len(set(answers)) == 4
    wrong = {2, 5, 11, 20}
    for i, question in enumerate(questions):
        question["label"] = (answers[i] + (i in wrong)) % 4
    file = tmp_path / "data/hellaswag/hellaswag_val.jsonl"
    file.parent.mkdir(parents=True)
    lines = [json.dumps(q, ensure_ascii=False) + "\n" for q in questions]
    file.write_text("".join(lines), encoding="utf-8")
    g = gpt2(*args, "--hellaswag")  # reads them
    assert len(g["questions"]) == 21
    stir(g["model"], 1.0)
    assert g["hellaswag_accuracy"]() == pytest.approx(17 / 21)
    assert g["model"].training
    for world_size in (2, 5):
        found = summed_over_processes(g, "hellaswag_accuracy", world_size, count=21)
        assert found == pytest.approx(17 / 21)
    # Every question counts: one more is wrong, in the first, a middle or the last batch
    for i in (0, 9, 19):
        context, endings, label = g["questions"][i]
        g["questions"][i] = context, endings, (label + 1) % 4
        assert g["hellaswag_accuracy"]() == pytest.approx(16 / 21)
        g["questions"][i] = context, endings, label
    # Without the flag the file is left alone, and in a run its share is in the log
    assert gpt2(*args)["questions"] == []
    g = gpt2(*args, *SHORT, "--hellaswag", "--max_iters=2")
    with open("out/gpt2_train/log.csv", newline="") as f:
        rows = [row for row in csv.DictReader(f) if row["val_loss"]]
    assert [int(row["step"]) for row in rows] == [1, 2]
    g["load_checkpoint"]("out/gpt2_train/last.pt")
    assert float(rows[1]["hellaswag"]) == pytest.approx(g["hellaswag_accuracy"]())
    assert f"| hellaswag {float(rows[1]['hellaswag']):.4f}\n" in capsys.readouterr().out
    # None right is an accuracy, too
    g = gpt2(*args, "--hellaswag")
    g["model"].eval()
    for i, question in enumerate(questions):
        question["label"] = (reference_answer(g, question) + 1) % 4
    g["questions"][:] = [
        (context, endings, q["label"])
        for (context, endings, _), q in zip(g["questions"], questions)
    ]
    assert g["hellaswag_accuracy"]() == 0.0


def test_hellaswag_has_few_shapes(gpt2, tokens, tmp_path):
    """Lengths are multiples of 128, or block_size, and the padding changes nothing."""
    file = tmp_path / "data/hellaswag/hellaswag_val.jsonl"
    file.parent.mkdir(parents=True)
    rng = random.Random(5)
    questions = []
    for n in (5, 60, 120, 127, 128, 140, 250, 256, 290, 299, 300, 301, 420):
        ending = [
            "".join(rng.choices("abcdef ", k=rng.randint(1, 9))) for _ in range(4)
        ]
        context = "".join(rng.choices("abcdef ", k=n - max(map(len, ending)) - 1))
        questions.append({"ctx": context or "a", "endings": ending, "label": 0})
    lines = [json.dumps(q) + "\n" for q in questions for _ in range(8)]  # whole batches
    file.write_text("".join(lines), encoding="utf-8")
    g = gpt2("--block_size=300", "--total_batch_size=300", "--hellaswag")
    stir(g["model"], 1.0)
    g["model"].eval()
    answers = [reference_answer(g, q, block_size=300) for q in questions]
    g["questions"][:] = [
        (context, endings, answers[i // 8])
        for i, (context, endings, _) in enumerate(g["questions"])
    ]
    lengths = []
    hook = g["model"].wte.register_forward_pre_hook(
        lambda _, args: lengths.append(args[0].shape[1])
    )
    assert g["hellaswag_accuracy"]() == 1.0 and len(set(answers)) > 1
    hook.remove()
    assert lengths == [128] * 5 + [256] * 3 + [300] * 5
    # A batch of short and long ones takes the longest
    x, y = g["hellaswag_batch"]([g["questions"][0], g["questions"][50]])
    assert x.shape == y.shape == (8, 256)
    assert gpt2("--block_size=48", "--total_batch_size=48", "--hellaswag")["questions"]


# ----------------------------------------------------------------------------- Sampling
def reference_generate(g, idx, max_new_tokens, temperature, top_k):
    """Sampling that computes everything anew for every token."""
    for _ in range(max_new_tokens):
        with torch.no_grad():
            logits = g["model"].logits(idx[:, -16:])[:, -1]
        if temperature == 0:
            idx_next = logits.argmax(-1, keepdim=True)
        else:
            if top_k:
                smaller = logits.argsort(descending=True)[:, top_k:]
                logits = logits.scatter(1, smaller, -math.inf)
            idx_next = torch.multinomial((logits / temperature).softmax(-1), 1)
        idx = torch.cat((idx, idx_next), 1)
    return idx


@pytest.mark.parametrize("length", [1, 5, 16, 23])  # block_size is 16
@pytest.mark.parametrize("temperature, top_k", [(0, 0), (1.0, 0), (0.7, 5)])
def test_cached_generation_equals_uncached(gpt2, tokens, length, temperature, top_k):
    g = gpt2("--dropout=0.5")
    with torch.no_grad():
        for p in g["model"].parameters():
            if p.ndim == 2:
                p.normal_(std=0.5)  # or the model would always say the same
    idx = torch.from_numpy(random_tokens(3 * length)).view(3, length)
    args = (30, temperature, top_k)
    fed = []
    hook = g["model"].wte.register_forward_pre_hook(
        lambda _, args: fed.append(args[0].shape[1])
    )
    torch.manual_seed(3)
    cached = g["generate"](idx, *args)
    hook.remove()
    assert g["model"].training
    g["model"].eval()
    torch.manual_seed(3)
    expected = reference_generate(g, idx, *args)
    torch.manual_seed(3)
    uncached = g["generate"](idx, *args, use_cache=False)
    assert cached.shape == (3, length + 30) and torch.equal(cached, expected)
    assert torch.equal(uncached, expected)
    assert len(set(expected[:, length:].flatten().tolist())) > 5
    # One token at a time while the window does not slide, or there is no cache
    grows = max(0, 16 - length)
    assert fed == [min(length, 16)] + [1] * grows + [16] * (29 - grows)


def test_samples_on_the_command_line(gpt2, tokens, capsys):
    gpt2(*SHORT)
    capsys.readouterr()
    gpt2("--prompt=To be", "--num_samples=3", "--max_new_tokens=4", "--temperature=0")
    out = capsys.readouterr().out
    first, second, third = samples(out)
    assert first == second == third and first.startswith("To be")
    assert final_loss(out) is None
    val_losses = read_log("out/gpt2_train")[1]
    best = min(val_losses, key=val_losses.get)
    said = re.search(r"^out/gpt2_train/best.pt: .*$", out, flags=re.M)[0]
    assert f"step {best}" in said and f"val loss {val_losses[best]:.4f}" in said


def test_an_empty_prompt_is_the_start_of_a_document(gpt2, gpt2_tokens, monkeypatch):
    g = gpt2()
    fed = []
    monkeypatch.setitem(g, "generate", lambda idx, *_: fed.append(idx.tolist()) or idx)
    g["sample"](2, 5)
    assert fed == [[[50256], [50256]]]
    g["tokenizer"] = None  # bytes
    g["sample"](1, 5)
    assert fed[1] == [[10]]
