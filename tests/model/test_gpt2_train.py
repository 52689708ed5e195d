"""gpt2_train.py on one process: model, data, evaluation, checkpoints, sampling.

Each is held against an independent and slower way to get the same.

Most tests run the script inside this process and get at its names: see gpt2 below.
"""

import ast
import builtins
import contextlib
import csv
import functools
import importlib.util
import itertools
import json
import math
import os
import random
import re
import runpy
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiktoken
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.torch_version import TorchVersion
from torch.utils.flop_counter import FlopCounterMode

SCRIPT = Path(__file__).parents[2] / "gpt2_train.py"
CPU = "--device=cpu --no-compile --no-float16 --no-bfloat16 --no-hellaswag".split()
TINY = (
    "--n_layer=2 --n_head=2 --n_embd=32 --block_size=16 --total_batch_size=128".split()
)
STOP_SIGNALS = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGHUP"):
    STOP_SIGNALS.append(signal.SIGHUP)
SHORT = "--max_iters=12 --log_interval=1 --eval_interval=4 --eval_tokens=512".split()
SHORT += ["--max_new_tokens=5"]


def write_shard(path, tokens, vocab_size=256):
    """A shard in the format of DESIGN.md, written without the prepare scripts."""
    header = np.zeros(256, dtype="<i4")
    header[:4] = 20240520, 1, len(tokens), vocab_size
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.tobytes() + np.asarray(tokens, dtype="<u2").tobytes())


def write_shards(vocab_size=256):
    """A shard of each split under tokens/, of random tokens."""
    for name, length in (("train_000001", 900), ("val_000000", 300)):
        tokens = random_tokens(length, vocab_size)
        write_shard(Path(f"tokens/t_{name}.bin"), tokens, vocab_size % 50257)


def random_tokens(length, vocab_size=256, seed=0):
    return np.random.default_rng(seed).integers(vocab_size, size=length)


def sentences(words, length, seed=0):
    """A text of which a tiny model can learn something: words in random order."""
    rng = random.Random(seed)
    text = " ".join(rng.choice(words.split()) for _ in range(length))
    return list(text.encode()[:length])


class FakeTokenizer:
    """Stands in for GPT-2's where a test needs its vocabulary, but no network."""

    eot_token = 50256

    def encode_ordinary(self, s):
        return list(s.encode())

    def decode(self, ids):
        return " ".join(map(str, ids))


@pytest.fixture
def gpt2(tmp_path, monkeypatch):
    """A function that runs gpt2_train.py with arguments, in tmp_path.

    It returns the script's globals: what a test assigns there, its functions see.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: FakeTokenizer())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    handlers = {s: signal.getsignal(s) for s in STOP_SIGNALS}

    def run(*args):
        args = [
            *CPU,
            *TINY,
            "--max_iters=0",
            "--max_new_tokens=0",
            "--data_dir=tokens",
            *args,
        ]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *args])
        # A signal that the script does not handle must fail the test, not end pytest
        signal.signal(signal.SIGTERM, lambda *_: pytest.fail("SIGTERM was not handled"))
        return runpy.run_path(str(SCRIPT))["get_lr"].__globals__

    yield run
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


@pytest.fixture
def tokens(tmp_path):
    """Byte shards under tokens/; returns {split: [tokens of a shard, ...]}."""
    made = {"train": [], "val": []}
    for split, number, length in (
        ("train", 1, 901),
        ("train", 2, 700),
        ("val", 0, 333),
    ):
        made[split].append(random_tokens(length, seed=length))
        write_shard(tmp_path / f"tokens/t_{split}_{number:06d}.bin", made[split][-1])
    return made


@pytest.fixture
def gpt2_tokens(tmp_path, monkeypatch):
    """Shards under tokens/ with GPT-2's 50257 tokens; the script pads to 50304."""
    monkeypatch.chdir(tmp_path)
    write_shards(50257)


@functools.cache
def statements():
    """The script's top-level statements, as (text without comments, code)."""
    body = ast.parse(SCRIPT.read_text(encoding="utf-8")).body
    return [
        (ast.unparse(n), compile(ast.Module([n], []), SCRIPT, "exec")) for n in body
    ]


def again(g, *beginnings, **changed):
    """Run again the statements of the script that begin so, with some names changed.

    For what depends on hardware that is not here; returns the names afterwards.
    """
    names = {**g, **changed}
    chosen = [code for text, code in statements() if text.startswith(beginnings)]
    assert len(chosen) >= len(beginnings)
    for code in chosen:
        exec(code, names)
    return names


def shake(model, scale=0.3):
    """Give every parameter, biases and norms too, a value that matters."""
    torch.manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            p += (
                scale
                * torch.randn_like(p)
                * (1 if p.ndim == 1 else p.shape[-1] ** -0.5)
            )


def read_log(folder):
    """{step: loss} and {step: val_loss} of a log.csv, which has each of them once."""
    with open(Path(folder, "log.csv"), newline="") as f:
        rows = list(csv.DictReader(f))
    curves = []
    for name in ("loss", "val_loss"):
        found = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        assert len(dict(found)) == len(found), "a step is there twice"
        curves.append(dict(found))
    return tuple(curves)


def flat(value, name=""):
    """A nested checkpoint as a list of (path, leaf)."""
    if isinstance(value, dict):
        return [leaf for k, v in value.items() for leaf in flat(v, f"{name}.{k}")]
    if isinstance(value, list | tuple):
        return [leaf for k, v in enumerate(value) for leaf in flat(v, f"{name}.{k}")]
    return [(name, value)]


def assert_same_checkpoint(a, b):
    """Equal to the bit, apart from the command line it was made with."""
    a, b = (torch.load(path, weights_only=True) for path in (a, b))
    del a["config"], b["config"]
    a, b = flat(a), flat(b)
    assert [name for name, _ in a] == [name for name, _ in b]
    for (name, x), (_, y) in zip(a, b):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y, name


def weights(g):
    """A copy of the model's weights."""
    return {name: p.clone() for name, p in g["model"].state_dict().items()}


# -------------------------------------------------------------------------------- Model
def import_transformers():
    return pytest.importorskip(
        "transformers", reason="transformers is not installed: nothing to compare with"
    )


def huggingface_model(vocab_size, n_positions, activation_function):
    """A GPT2LMHeadModel of random weights; its logits are far below 0, as OpenAI's."""
    transformers = import_transformers()
    names = {name: value for name, value in locals().items() if name != "transformers"}
    config = transformers.GPT2Config(**names, n_embd=32, n_layer=2, n_head=2)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    shake(theirs, 1.0)
    with torch.no_grad():
        theirs.transformer.wte.weight[:, 0] += 4
        theirs.transformer.ln_f.bias[0] -= 10
    return theirs


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
    write_shards(vocab_size)
    if n_positions < 16:
        with pytest.raises(SystemExit, match="2"):
            gpt2("--init_from=hf")
        assert capsys.readouterr().err.endswith("--block_size must be at most 9\n")
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
    write_shards(vocab_size)
    g = gpt2(f"--model_size={model}")
    shake(g["model"], 1.0)
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
    shake(model)
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
    shake(model)
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


def reference_answer(g, question, normalise=True, block_size=48):
    """Score one ending after the other, each alone."""
    scores = []
    for ending in question["endings"]:
        context, ending = list(question["ctx"].encode()), list(f" {ending}".encode())
        ids = torch.tensor(context + ending)[-block_size - 1 :]
        with torch.no_grad():
            log_probs = g["model"].logits(ids[None, :-1])[0].log_softmax(-1)
        first = len(ids) - len(ending)
        picked = [log_probs[i - 1, ids[i]].item() for i in range(first, len(ids))]
        scores.append(sum(picked) / (len(picked) if normalise else 1))
    return scores.index(max(scores))


def test_hellaswag_equals_unbatched_reference(gpt2, tokens, tmp_path, capsys):
    args = ["--block_size=48", "--total_batch_size=96", "--dropout=0.5"]
    g = gpt2(*args, "--hellaswag")
    assert g["questions"] == []  # there is no file
    shake(g["model"], 1.0)
    questions = made_up_questions()
    assert any(len(q["ctx"].encode()) > 60 for q in questions)  # longer than block_size
    g["model"].eval()
    answers = [reference_answer(g, q) for q in questions]
    sums = [reference_answer(g, q, normalise=False) for q in questions]
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
    shake(g["model"], 1.0)
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
    shake(g["model"], 1.0)
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


# ----------------------------------------------------------------------------- Training
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_accumulation_equals_one_batch(gpt2, tmp_path, optimizer):
    words = "it is one batch of eight or four of two"
    write_shard(tmp_path / "tokens/t_train_000001.bin", sentences(words, 9000))
    write_shard(tmp_path / "tokens/t_val_000000.bin", sentences(words, 900, seed=1))
    args = [
        *SHORT,
        "--max_iters=20",
        f"--optimizer={optimizer}",
        "--learning_rate=3e-3",
    ]
    gpt2(*args, "--batch_size=8", "--out_dir=one")
    gpt2(*args, "--batch_size=2", "--out_dir=four")
    (one, one_val), (four, four_val) = read_log("one"), read_log("four")
    assert list(one) == [*range(1, 21)] and one == pytest.approx(four, rel=1e-5)
    assert list(one_val) == [1, 4, 8, 12, 16, 20]
    assert one_val == pytest.approx(four_val, rel=1e-5)
    assert one[20] < one[1] - 0.3  # or the equality would say little
    norms = []  # the losses cannot tell: clipping and optimizers undo a factor of 4
    for out_dir in ("one", "four"):
        with open(Path(out_dir, "log.csv"), newline="") as f:
            norms.append(
                [float(row["grad_norm"]) for row in csv.DictReader(f) if row["loss"]]
            )
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_logged_loss_is_of_the_whole_step(gpt2, tokens):
    """Against the untrained model on the windows of the first step."""
    g = gpt2()
    windows = batches(g, [0], 8, 1)
    x, y = (torch.tensor(side) for side in zip(*windows))
    expected = g["model"](x, y).item()
    gpt2(*SHORT, "--max_iters=1", "--batch_size=2", "--out_dir=run")
    assert read_log("run")[0][1] == pytest.approx(expected, rel=1e-6)


class Killed(BaseException):
    """What no except clause of the script catches."""


def interrupt(monkeypatch, line_start, how):
    """At the first line that begins so: a signal, or an end without notice."""
    real = builtins.print

    def watching(*args, **kwargs):
        real(*args, **kwargs)
        if args and str(args[0]).startswith(line_start):
            if how == "killed":
                raise Killed
            os.kill(os.getpid(), getattr(signal, how))

    monkeypatch.setattr(builtins, "print", watching)


VARIANTS = {
    "muon": ("--optimizer=muon", "--dropout=0.2"),
    "adamw": ("--optimizer=adamw", "--batch_size=2"),
    "float16": ("--float16", "--dropout=0.2"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resume_is_exact(gpt2, tokens, monkeypatch, variant):
    args = [*SHORT, *VARIANTS[variant]]
    gpt2(*args, "--out_dir=whole")
    interruptions = [
        ("SIGTERM", 1),
        ("killed", 3),
        ("SIGTERM", 6),
        ("killed", 10),
        ("SIGINT", 9),
    ]
    for (
        how,
        step,
    ) in interruptions:  # five times on the way through one and the same run
        with monkeypatch.context() as context:
            interrupt(context, f"step {step:5d}/12 | loss", how)
            with pytest.raises((SystemExit, Killed)) as end:
                gpt2(*args, "--out_dir=parts")
        if how == "killed":
            assert end.type is Killed
        else:
            assert end.value.code == 130
            # The signal came when the step was over, so one more is made
            assert torch.load("parts/last.pt", weights_only=True)["step"] == step + 1
    gpt2(*args, "--out_dir=parts")
    assert read_log("parts") == read_log("whole")
    assert list(read_log("whole")[0]) == list(range(1, 13))
    for name in ("last.pt", "best.pt"):
        assert_same_checkpoint(f"parts/{name}", f"whole/{name}")


def loss_rows(folder):
    """The rows of log.csv that are of training, without their times."""
    timed = ("ms", "tokens_per_second")
    with open(Path(folder, "log.csv"), newline="") as f:
        rows = [row for row in csv.DictReader(f) if row["loss"]]
    return [{k: v for k, v in row.items() if k not in timed} for row in rows]


def test_log_continues_on_resume(gpt2, tokens, monkeypatch):
    with monkeypatch.context() as context:
        interrupt(context, "step     5/12 | loss", "SIGTERM")
        with pytest.raises(SystemExit):
            gpt2(*SHORT, "--out_dir=run")
    first = Path("run/log.csv").read_text()
    g = gpt2(*SHORT, "--out_dir=run")
    whole = Path("run/log.csv").read_text()
    assert whole.startswith(first) and whole.count("step,loss") == 1
    rows = list(csv.DictReader(whole.splitlines()))
    assert [int(row["step"]) for row in rows if row["loss"]] == list(range(1, 13))
    assert [int(row["step"]) for row in rows if row["val_loss"]] == [1, 4, 8, 12]
    for row in rows:
        if row["loss"]:
            ms, speed = float(row["ms"]), float(row["tokens_per_second"])
            assert speed == pytest.approx(128 / ms * 1000)
            assert float(row["grad_norm"]) > 0 and row["mfu"] == "nan"
            assert float(row["lr"]) == g["get_lr"](int(row["step"]) - 1)
        else:
            assert row["ms"] == row["lr"] == row["hellaswag"] == ""


def test_log_has_no_double_rows(gpt2, tokens, monkeypatch):
    """Killed after step 7, of which the last checkpoint, of step 4, knows nothing."""
    gpt2(*SHORT, "--out_dir=whole")
    with monkeypatch.context() as context:
        interrupt(context, "step     7/12 | loss", "killed")
        with pytest.raises(Killed):
            gpt2(*SHORT, "--out_dir=run")
    log = Path("run/log.csv")
    assert list(read_log("run")[0]) == [1, 2, 3, 4, 5, 6, 7]
    log.write_text(log.read_text() + "8,5.5,0.0")  # and in the middle of a row
    with monkeypatch.context() as context:
        interrupt(context, "run/last.pt: continuing from step 4", "killed")
        with pytest.raises(Killed):
            gpt2(*SHORT, "--out_dir=run")
    gpt2(*SHORT, "--out_dir=run")
    assert read_log("run") == read_log("whole")
    assert loss_rows("run") == loss_rows("whole")
    # Another seed begins anew, and so does its log
    gpt2(*SHORT, "--out_dir=run", "--init_from=scratch", "--max_iters=3", "--seed=7")
    losses, val_losses = read_log("run")
    assert list(losses) == [1, 2, 3] and list(val_losses) == [1, 3]
    assert losses[1] != read_log("whole")[0][1]
    assert sorted(path.name for path in Path("run").iterdir()) == [
        "best.pt",
        "last.pt",
        "log.csv",
    ]


def test_checkpoints(gpt2, tokens, monkeypatch):
    """Tensors and plain values, names without prefixes; the ones to keep are kept."""
    real = torch.compile
    eager = {"backend": "eager"}  # needs no C++ compiler
    monkeypatch.setattr(torch, "compile", lambda m, **some: real(m, **some, **eager))
    args = [*SHORT, "--keep_every=4", "--max_iters=8"]
    g = gpt2(*args, "--out_dir=run", "--compile")
    assert type(g["compiled"]).__name__ == "OptimizedModule"
    files = sorted(path.name for path in Path("run").iterdir())
    kept = ["step_000004.pt", "step_000008.pt"]
    assert files == ["best.pt", "last.pt", "log.csv", *kept]
    names = set(g["GPT"]().state_dict())
    assert "h.1.attn.c_attn.weight" in names
    for name in files[:2] + kept:
        checkpoint = torch.load(Path("run", name), weights_only=True)
        assert set(checkpoint["model"]) == names
        for path, leaf in flat(checkpoint):
            assert type(leaf) in (torch.Tensor, int, float, str, bool, type(None)), path
    steps = [torch.load(Path("run", f), weights_only=True)["step"] for f in kept]
    assert steps == [4, 8]
    val_losses = read_log("run")[1]
    best = torch.load("run/best.pt", weights_only=True)
    assert best["step"] == min(val_losses, key=val_losses.get)
    assert best["best_val_loss"] == min(val_losses.values())

    gpt2(*SHORT, "--max_iters=8", "--out_dir=plain")
    for compiled, plain in zip(read_log("run"), read_log("plain")):
        assert compiled == pytest.approx(plain, rel=1e-5)


def test_fine_tuning_lowers_the_loss(gpt2, tmp_path):
    play = "thou art my lord and I thy fool"
    recipe = "mix two eggs with warm milk; bake for hours"
    for name, words in (("play", play), ("recipe", recipe)):
        train, val = sentences(words, 20_000), sentences(words, 2_000, seed=1)
        write_shard(tmp_path / f"{name}/t_train_000001.bin", train)
        write_shard(tmp_path / f"{name}/t_val_000000.bin", val)
    args = ["--eval_interval=30", "--max_iters=60", "--batch_size=8"]
    gpt2(*args, "--data_dir=play", "--out_dir=a")
    old, old_val = read_log("a")
    assert old_val[60] < 0.6 * old_val[1]
    tune = [*args, "--data_dir=recipe", "--init_from=a/best.pt", "--learning_rate=3e-3"]
    g = gpt2(*tune, "--max_iters=0", "--out_dir=b")
    before = g["estimate_loss"]()
    assert abs(before - old_val[60]) > 0.1
    first = g["model"](*g["get_batch"](0, 0)).item()
    gpt2(*tune, "--out_dir=b")
    new, new_val = read_log("b")
    assert list(new) == list(range(1, 61))
    assert new[1] == pytest.approx(first, rel=1e-5)
    assert new_val[30] < before - 0.5 and new_val[60] < new_val[30]
    best = torch.load("a/best.pt", weights_only=True)
    assert best["step"] == 60  # the checkpoint that it began from is untouched


def last_line_says(out, out_dir):
    """What the last line wants added to the command, so that it continues."""
    line = out.splitlines()[-1]
    assert "saved" in line and out_dir in line
    return re.findall(r"--\S+", line)


def test_fine_tuning_is_continued(gpt2, tokens, monkeypatch, capsys):
    """From its own checkpoints, not again from the weights that it began with.

    Those may be of another optimizer and of other data.
    """
    gpt2(*SHORT, "--max_iters=2", "--out_dir=a", "--optimizer=muon")
    for split, number in (("train", 1), ("val", 0)):
        path = Path(f"other/t_{split}_{number:06d}.bin")
        write_shard(path, random_tokens(500, seed=number))
    tune = [*SHORT, "--data_dir=other", "--optimizer=adamw", "--init_from=a/best.pt"]
    gpt2(*tune, "--out_dir=whole")
    with monkeypatch.context() as context:
        interrupt(context, "step     5/12 | loss", "SIGINT")
        with pytest.raises(SystemExit):
            gpt2(*tune, "--out_dir=parts")
    gpt2(*tune, "--out_dir=parts", *last_line_says(capsys.readouterr().out, "parts"))
    assert "parts/last.pt: continuing from step 6" in capsys.readouterr().out
    assert read_log("parts") == read_log("whole")
    assert_same_checkpoint("parts/last.pt", "whole/last.pt")


def test_fine_tuning_of_openais_weights_is_continued(gpt2, tokens, monkeypatch, capsys):
    """They decide on the size of the model, and its GELU, so they are needed again."""
    huggingface_model(256, 16, "gelu_new").save_pretrained("hf")
    tune = [*SHORT, "--init_from=hf", "--n_layer=3", "--learning_rate=1e-3"]
    with monkeypatch.context() as context:
        interrupt(context, "step     5/12 | loss", "SIGINT")
        with pytest.raises(SystemExit):
            gpt2(*tune)
    flags = last_line_says(capsys.readouterr().out, "out/gpt2_train")
    gpt2(*tune, *flags)
    out = capsys.readouterr().out
    assert "out/gpt2_train/last.pt: continuing from step 6" in out
    assert list(read_log("out/gpt2_train")[0]) == list(range(1, 13))


def test_only_weights_are_loaded(gpt2, tokens, monkeypatch, capsys):
    """Sampling, fine-tuning and the end of a run need no optimizer's state.

    Sampling reads one file, the best, and of that only what it needs.
    """
    gpt2(*SHORT, "--max_iters=5")  # evaluated after steps 1, 4 and 5
    folder = Path("out/gpt2_train")
    best = torch.load(folder / "best.pt", weights_only=True)
    read, load = [], torch.load

    def loading(path, **options):
        read.append((str(path), options["mmap"]))
        return load(path, **options)

    monkeypatch.setattr(torch, "load", loading)
    capsys.readouterr()
    for args, path in (
        (["--max_iters=0"], "out/gpt2_train/best.pt"),
        (["--max_iters=0", "--init_from=a.pt"], "a.pt"),
    ):
        (folder / "last.pt").rename("a.pt") if path == "a.pt" else None
        g = gpt2(*args)
        assert read == [(path, True)]
        assert not any(opt.state for opt in g["optimizers"])
        read.clear()
    out = capsys.readouterr().out
    step, val_loss = best["step"], best["best_val_loss"]
    said = re.search(r"out/gpt2_train/best.pt: the weights of step (\d+)(.*)\n", out)
    assert int(said[1]) == step and f"val loss {val_loss:.4f}" in said[2]
    assert "\na.pt: " in out and "final" not in out
    # A whole run: its start has all, its end the weights alone
    Path("a.pt").rename(folder / "last.pt")
    gpt2(*SHORT, "--max_iters=6")
    assert [Path(path).name for path, _ in read] == ["last.pt", "best.pt"]
    assert [mmap for _, mmap in read] == [False, True]


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_second_ctrl_c_ends_at_once(gpt2, tokens, signum):
    """But not a second SIGTERM: a scheduler may send one, and torchrun another."""
    g = gpt2()
    for number in STOP_SIGNALS:
        signal.signal(number, g["request_stop"])
    assert not g["stop_requested"]
    signal.raise_signal(signum)
    assert g["stop_requested"]
    assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is g["request_stop"]


def test_handlers_are_restored(gpt2, tokens):
    """As in a notebook, where the process goes on when the run is over."""
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    for _ in range(2):
        gpt2(*SHORT, "--max_iters=2")
        gpt2(*SHORT, "--max_iters=4")
        after = [signal.getsignal(number) for number in STOP_SIGNALS]
        for number, a, b in zip(STOP_SIGNALS, before, after):
            assert number == signal.SIGTERM or a is b


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_nohup_is_respected(gpt2, tokens, monkeypatch):
    """A closed terminal stops the run, unless it was told to be ignored."""

    def unhandled(*_):
        pytest.fail("SIGHUP was not handled")

    for handler, last in ((unhandled, 6), (signal.SIG_IGN, 12)):
        signal.signal(signal.SIGHUP, handler)
        with monkeypatch.context() as context:
            interrupt(context, "step     5/12 | loss", "SIGHUP")
            with contextlib.suppress(SystemExit):
                gpt2(*SHORT, f"--out_dir=until_{last}")
        saved = torch.load(f"until_{last}/last.pt", weights_only=True)
        assert saved["step"] == last


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_closed_terminal(tokens, start, tmp_path):
    """SIGHUP, and what is printed reaches nobody any more: the run saves and ends."""
    args = [*CPU, *TINY, "--data_dir=tokens", "--max_iters=1000000", "--out_dir=run"]
    process = start("gpt2_train.py", *args, "--log_interval=1")
    for line in process.stdout:
        if "| loss" in line:
            break
    process.stdout.close()
    time.sleep(0.1)  # some lines go nowhere
    process.send_signal(signal.SIGHUP)
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 130 and stderr == ""
    step = torch.load(tmp_path / "run/last.pt", weights_only=True)["step"]
    assert step > 1 and max(read_log("run")[0]) == step


def test_interrupted_process_saves_and_exits(tokens, start, tmp_path):
    """As a scheduler does it: SIGTERM to a running script."""
    args = [*CPU, *TINY, "--data_dir=tokens", "--max_iters=1000000", "--out_dir=run"]
    process = start("gpt2_train.py", *args)
    for line in process.stdout:
        if "| loss" in line:
            process.send_signal(signal.SIGTERM)
            break
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 130 and stderr == ""
    step = torch.load(tmp_path / "run/last.pt", weights_only=True)["step"]
    assert step > 0 and step in read_log("run")[0]
    assert last_line_says(stdout, "run") is not None


def test_unfinished_checkpoint_harms_nothing(gpt2, tokens, monkeypatch):
    """Stopped in the middle of a checkpoint: those that there are stay as they are."""
    g = gpt2(*SHORT, "--max_iters=4", "--keep_every=4")
    folder = Path("out/gpt2_train")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert list(sorted(files)) == ["best.pt", "last.pt", "log.csv", "step_000004.pt"]

    def dying(checkpoint, file):
        file.write(b"half of a checkpoint")
        file.flush()
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", dying)
    for name in files:
        with pytest.raises(KeyboardInterrupt):
            g["save_checkpoint"](name, 5)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


@pytest.mark.long
def test_killed_ten_times(tokens, start, tmp_path):
    """SIGKILL at random moments, ten times in one run: it ends as an unbroken one."""
    args = [*CPU, *TINY, "--data_dir=tokens", "--max_iters=200", "--eval_interval=5"]
    args += ["--log_interval=1", "--eval_tokens=64", "--max_new_tokens=5"]
    rng = random.Random(1)
    for _ in range(10):
        process = start("gpt2_train.py", *args, "--out_dir=parts")
        evaluations = rng.randint(1, 3)
        for line in process.stdout:
            evaluations -= "| val loss" in line
            if evaluations == 0:
                break
        time.sleep(rng.uniform(0, 0.25))
        process.kill()
        process.communicate()
        if Path("parts/last.pt").exists():
            torch.load("parts/last.pt", weights_only=True)  # never half a file
    assert torch.load("parts/last.pt", weights_only=True)["step"] > 10
    for out_dir in ("parts", "whole"):
        process = start("gpt2_train.py", *args, f"--out_dir={out_dir}")
        process.communicate()
        assert process.returncode == 0
    assert_same_checkpoint("parts/last.pt", "whole/last.pt")
    assert_same_checkpoint("parts/best.pt", "whole/best.pt")


PRECISIONS = {
    "float32": ["--no-float16", "--no-bfloat16"],
    "bfloat16": ["--no-float16", "--bfloat16"],
    "float16": ["--float16", "--no-bfloat16"],
}


QUICK = [("float32", "float16"), ("float16", "bfloat16")]
OTHERS = [pair for pair in itertools.permutations(PRECISIONS, 2) if pair not in QUICK]


@pytest.mark.parametrize(
    "first, second",
    QUICK + [pytest.param(*pair, marks=pytest.mark.long) for pair in OTHERS],
)
def test_resume_in_another_precision(gpt2, tokens, capsys, first, second):
    """Only float16 scales its loss: it begins to where that was not so before."""
    gpt2(*SHORT, *PRECISIONS[first], "--max_iters=4")
    saved = torch.load("out/gpt2_train/last.pt", weights_only=True)
    assert saved["step"] == 4 and bool(saved["scaler"]) == (first == "float16")
    kept = {"step": 4, "best_val_loss": saved["best_val_loss"]}
    g = gpt2(*PRECISIONS[second])  # only loads
    assert g["scaler"].is_enabled() == (second == "float16")
    assert dict(zip(kept, g["load_checkpoint"](Path("out/gpt2_train/last.pt")))) == kept
    assert weights(g).keys() == saved["model"].keys()
    for name, p in weights(g).items():
        assert torch.equal(p, saved["model"][name])
    for opt, state in zip(g["optimizers"], saved["optimizers"], strict=True):
        ours, theirs = flat(opt.state_dict()["state"]), flat(state["state"])
        assert ours and all(
            torch.equal(a, b) for (_, a), (_, b) in zip(ours, theirs, strict=True)
        )
    if second == "float16":
        assert g["scaler"].get_scale() == 65536
    capsys.readouterr()
    gpt2(*SHORT, *PRECISIONS[second])
    assert "continuing from step 4" in capsys.readouterr().out
    losses = read_log("out/gpt2_train")[0]
    assert list(losses) == list(range(1, 13)) and all(
        map(math.isfinite, losses.values())
    )
    saved = torch.load("out/gpt2_train/last.pt", weights_only=True)
    assert saved["step"] == 12 and bool(saved["scaler"]) == (second == "float16")


def test_scale_of_float16_is_kept(gpt2, tokens):
    g = gpt2(*PRECISIONS["float16"])
    Path("out/gpt2_train").mkdir(parents=True)
    g["scaler"].load_state_dict(
        {**g["scaler"].state_dict(), "scale": 512.0, "_growth_tracker": 7}
    )
    g["save_checkpoint"]("last.pt", 3)
    g = gpt2(*PRECISIONS["float16"])
    g["load_checkpoint"]("out/gpt2_train/last.pt")
    assert (
        g["scaler"].get_scale() == 512
        and g["scaler"].state_dict()["_growth_tracker"] == 7
    )


@pytest.mark.parametrize(
    "optimizer, name, value",
    [
        ("muon", "h.1.mlp.c_fc.weight", math.inf),
        ("muon", "h.0.attn.c_attn.weight", math.nan),
        ("muon", "wte.weight", -math.inf),
        ("adamw", "ln_f.bias", math.nan),
    ],
)
def test_float16_skips_a_step_as_a_whole(
    gpt2, tokens, monkeypatch, optimizer, name, value
):
    """One entry of a gradient overflows in step 5: no weight moves in any optimizer."""
    models, before, scales = [], [], []
    zero_grad, unscale = torch.nn.Module.zero_grad, torch.amp.GradScaler.unscale_

    def starting(self, *args):  # the script does so at the start of each step
        models.append(self)
        before.append({k: p.clone() for k, p in self.state_dict().items()})
        return zero_grad(self, *args)

    def poisoned(self, opt):
        if len(scales) < len(models):  # the first optimizer of this step
            scales.append(self.get_scale())
            if len(models) == 6:
                models[0].get_parameter(name).grad.view(-1)[3] = value
        return unscale(self, opt)

    monkeypatch.setattr(torch.nn.Module, "zero_grad", starting)
    monkeypatch.setattr(torch.amp.GradScaler, "unscale_", poisoned)
    g = gpt2(
        *SHORT, *PRECISIONS["float16"], f"--optimizer={optimizer}", "--max_new_tokens=0"
    )
    g["load_checkpoint"]("out/gpt2_train/last.pt")
    before.append(weights(g))
    assert len(before) == 13 and len(scales) == 12
    for step in range(12):
        changed = {
            k
            for k, p in before[step + 1].items()
            if not torch.equal(p, before[step][k])
        }
        if step == 5:
            assert not changed
        else:  # of either optimizer
            assert {"h.0.mlp.c_proj.weight", "wte.weight", "ln_f.bias"} <= changed, step
    assert scales == [65536.0] * 6 + [32768.0] * 6 and g["scaler"].get_scale() == 32768
    assert all(p.isfinite().all() for p in before[12].values())
    steps = {s["step"].item() for s in g["optimizers"][-1].state.values()}
    assert steps == {11}  # AdamW does not count it
    for opt in g["optimizers"]:
        for _, leaf in flat(opt.state_dict()["state"]):
            assert leaf.isfinite().all()
    losses = read_log("out/gpt2_train")[0]
    assert list(losses) == list(range(1, 13)) and all(
        map(math.isfinite, losses.values())
    )


def test_time_left_is_without_the_first_step(gpt2, tokens, monkeypatch, capsys):
    """The first step compiles, in a resumed run, too; checkpoints take time as well."""
    now, steps = [0.0], []
    backward, save = torch.Tensor.backward, torch.save

    def slow_backward(self):
        steps.append(len(steps))
        now[0] += 6000 if len(steps) == 1 else 60
        return backward(self)

    def slow_save(*args):
        now[0] += 1000
        return save(*args)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.Tensor, "backward", slow_backward)
    monkeypatch.setattr(torch, "save", slow_save)
    for first_step, how in ((0, "SIGINT"), (6, None)):
        steps.clear(), capsys.readouterr()
        with monkeypatch.context() as context:
            if how:
                interrupt(context, "step     5/12 | loss", how)
                with pytest.raises(SystemExit):
                    gpt2(*SHORT, "--batch_size=8")
            else:
                gpt2(*SHORT, "--batch_size=8")
        lines = re.findall(
            r"step +(\d+)/12 \| loss.* (\d+) ms \|.*tokens/s(.*)",
            capsys.readouterr().out,
        )
        last = 6 if how else 12
        assert [int(step) for step, *_ in lines] == [*range(first_step + 1, last + 1)]
        assert lines[0][1:] == ("6000000", "")  # nothing is known of the others yet
        for step, ms, left in lines[1:]:  # a minute for each
            assert ms == "60000" and left == f" | {12 - int(step)}.0 min left"


# ----------------------------------------------------------------------- The hardware's
# Names as the driver prints them; dense operations in half precision by the data sheets
PEAKS = [
    ("NVIDIA A100-SXM4-40GB", 312),
    ("NVIDIA A100-SXM4-80GB", 312),
    ("NVIDIA A100-PCIE-40GB", 312),
    ("NVIDIA A100 80GB PCIe", 312),
    ("NVIDIA H100 PCIe", 756),
    ("NVIDIA H100 80GB HBM3", 989),
    ("NVIDIA H100 NVL", 835),
    ("NVIDIA H200", 989),
    ("NVIDIA H200 NVL", 835),
    ("NVIDIA H800", 989),
    ("NVIDIA GB200", 2500),
    ("NVIDIA B200", 2250),
    ("NVIDIA L4", 121),
    ("NVIDIA L40", 181),
    ("NVIDIA L40S", 362),
    ("NVIDIA A10", 125),
    ("NVIDIA A40", 150),
    ("NVIDIA A30", 165),
    ("Tesla T4", 65),
    ("Tesla V100-SXM2-16GB", 125),
    ("Tesla V100-PCIE-32GB", 112),
    ("NVIDIA GeForce RTX 3090", 71),
    ("NVIDIA GeForce RTX 4090", 165),
    ("NVIDIA GeForce RTX 5090", 209),
    ("NVIDIA RTX 6000 Ada Generation", 364),
    # Like one of the above in name, but not in speed
    ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
    ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", None),
    ("NVIDIA GeForce RTX 4090 D", None),
    ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ("NVIDIA GeForce RTX 3090 Ti", None),
    ("NVIDIA GeForce RTX 5090 D", None),
    ("NVIDIA RTX 6000", None),
    ("Quadro RTX 6000", None),
    ("NVIDIA RTX A4000", None),
    ("NVIDIA A10G", None),
    ("NVIDIA A2", None),
    ("NVIDIA A16", None),
    ("NVIDIA L20", None),
    ("NVIDIA H20", None),
    ("NVIDIA T400", None),
    ("NVIDIA T400 4GB", None),
    ("NVIDIA T1000", None),
    ("Tesla V100S-PCIE-32GB", None),
    ("NVIDIA B300 SXM6 AC", None),
    ("AMD Instinct MI300X", None),
    ("", None),
]


def test_peaks(gpt2, tokens):
    """Those of the table are the data sheets'; of all others nothing is claimed."""
    g = gpt2()
    assert math.isnan(g["peak"])  # of a CPU
    sheets = dict(PEAKS)
    for name, tera in g["peaks"].items():
        assert tera == pytest.approx(sheets[name], rel=0.005), name
    assert {"NVIDIA H100 80GB HBM3", "Tesla T4"} < set(g["peaks"])
    for name in sheets:
        cuda = SimpleNamespace(get_device_name=lambda device, name=name: name)
        fake = SimpleNamespace(cuda=cuda)
        changed = {"on_gpu": True, "world_size": 3, "torch": fake}
        found = again(g, "peak = ", "if on_gpu:\n    peak", **changed)["peak"]
        if name in g["peaks"]:
            assert found == 3e12 * g["peaks"][name], name
        else:
            assert math.isnan(found), name


def test_torch_that_is_too_old_for_gpus(gpt2, tokens):
    """2.10 with torch.compile gave NaNs on an A100."""
    g = gpt2()
    for version, on_gpu in (("2.10.1", True), ("2.9.0+cu128", True), ("2.5.0", False)):
        old = SimpleNamespace(__version__=TorchVersion(version))
        if not on_gpu:
            again(g, "if on_gpu and torch.__version__", torch=old)
            continue
        with pytest.raises(SystemExit) as end:
            again(g, "if on_gpu and torch.__version__", on_gpu=True, torch=old)
        assert "PyTorch 2.11 or newer" in end.value.code and "\n" not in end.value.code
    for version in ("2.11.0", "2.13.0+cu130", "3.0.0"):
        new = SimpleNamespace(__version__=TorchVersion(version))
        again(g, "if on_gpu and torch.__version__", on_gpu=True, torch=new)


def test_no_compile_without_triton(gpt2, tokens, monkeypatch, capsys):
    """As on Windows: said in one line, and the run goes on without it."""
    g = gpt2()
    found = {"triton": None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found[name])
    begin = "if on_gpu and compile"
    capsys.readouterr()
    assert again(g, begin, on_gpu=True, compile=True)["compile"] is False
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "triton" in out
    found["triton"] = "it is here"
    assert again(g, begin, on_gpu=True, compile=True)["compile"] is True
    found.clear()  # nobody asks for it
    assert again(g, begin, on_gpu=False, compile=True)["compile"] is True
    assert again(g, begin, on_gpu=True, compile=False)["compile"] is False
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("size", [(2, 2, 32, 16), (3, 4, 64, 128)])
def test_flops_equal_a_count(gpt2, tokens, size):
    """Forward and backward, counted by torch where attention is plain matrix products.

    Those are of all pairs of positions, also of the half that causal attention may
    leave out, and so is the formula. It also counts parameters that are only added:
    positions, norms, biases.
    """
    n_layer, n_head, n_embd, block_size = size
    args = [f"--n_layer={n_layer}", f"--n_head={n_head}", f"--n_embd={n_embd}"]
    args += [f"--block_size={block_size}", f"--total_batch_size={4 * block_size}"]
    g = gpt2(*args)
    model = g["model"]
    x, y = g["get_batch"](0, 0)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x, y).backward()
    counted = counter.get_total_flops() * g["accumulation"]
    added = (
        sum(p.numel() for p in model.parameters() if p.ndim == 1)
        + model.wpe.weight.numel()
    )
    assert g["flops"] == counted + 6 * added * 4 * block_size
    attention = 12 * n_layer * n_embd * block_size * 4 * block_size
    assert 0.05 * counted < attention < counted  # a wrong one could not hide


HALF = {
    "bfloat16": (True, False),
    "float16": (False, True),
    "float32": (False, False),
}


def sized(g, name, precision="bfloat16", block_size=1024, world_size=1):
    """The script's names, as if it had been started with a model of that size."""
    g["n_layer"], g["n_head"], g["n_embd"] = g["sizes"][name][:3]
    g["block_size"] = block_size
    g["bfloat16"], g["float16"] = HALF[precision]
    with torch.device("meta"):  # shapes without memory
        g["model"] = g["GPT"]()
    g["n_params"] = sum(p.numel() for p in g["model"].parameters())
    g["per_process"] = 524_288 // block_size // world_size
    return g


@pytest.mark.parametrize("precision", HALF)
def test_automatic_batch_fits(gpt2, gpt2_tokens, precision):
    """Every size on every GPU: at most 90% of its memory, and 2**31 logits.

    A parameter takes 20 bytes: weight, gradient, two means, and DDP's buffer.
    """
    g = gpt2()
    assert g["micro_batch_size"] == 8  # of the tiny model: all that a step needs
    channel = (
        68 if precision == "float32" else 34
    )  # bytes that a layer keeps of a token
    chosen = {}
    for name in g["sizes"]:
        block_size = 2048 if name.startswith("gpt3") else 1024
        sized(g, name, precision, block_size)

        def bytes_for(B):
            per_token = channel * g["n_layer"] * g["n_embd"] + 13 * 50304
            return 20 * g["n_params"] + B * block_size * per_token

        def fits(B, memory, margin=1.0):
            enough = bytes_for(B) <= margin * 0.9 * memory * 2**30
            return enough and B * block_size * 50304 < 2**31

        for memory in (15, 24, 40, 80, 94, 141):
            for per_process in (1, 30, 509, 512):
                g["per_process"] = per_process
                case = name, memory, per_process
                chosen[case] = B = g["largest_batch_size"](memory * 2**30)
                assert per_process % B == 0 and (fits(B, memory) or B == 1), case
                # Nor is it smaller than it must be; about one percent nobody argues
                for larger in range(B + 1, per_process + 1):
                    if per_process % larger == 0:
                        assert not fits(larger, memory, 0.99), case
    in_half = precision != "float32"
    found = [chosen["gpt2", memory, 512] for memory in (15, 40, 80)]
    assert found == ([8, 32, 32] if in_half else [8, 16, 32])
    assert chosen["gpt2-xl", 40, 512] == (2 if in_half else 1)  # 4 would not fit
    assert chosen["char", 15, 512] > 8


def test_given_batch_size_is_taken(gpt2, tokens):
    g = gpt2("--batch_size=2")
    assert g["micro_batch_size"] == 2 and g["accumulation"] == 4
    g = gpt2("--batch_size=1")
    assert g["micro_batch_size"] == 1 and g["accumulation"] == 8


def test_memory_table_is_computed_by_the_script(gpt2, gpt2_tokens):
    text = (SCRIPT.parent / "docs/reproduce_gpt2.md").read_text(encoding="utf-8")
    header = re.search(r"^\| model \| context \|(.*)\|$", text, flags=re.M)
    sizes = [int(number) for number in re.findall(r"(\d+) GiB", header[1])]
    rows = re.findall(r"^\| `(gpt[\w-]+)` \| ([\d,]+) \| (.*) \|$", text, flags=re.M)
    assert len(rows) == 6 and len(sizes) == 5
    g = gpt2()
    table = []
    for name, context, _ in rows:
        block_size = int(context.replace(",", ""))
        sized(g, name, block_size=block_size)
        per_token = 34 * g["n_layer"] * g["n_embd"] + 13 * 50304
        cells = []
        for gib in sizes:
            cell = str(g["largest_batch_size"](gib * 2**30))
            if 20 * g["n_params"] + block_size * per_token > 0.9 * gib * 2**30:
                cell = "no"
            cells.append(cell)
        table.append((name, context, " | ".join(cells)))
    assert rows == table


@pytest.mark.parametrize("precision", HALF)
def test_memory_of_a_layer(gpt2, tokens, precision):
    """The 34 or 68 bytes per channel that the formula counts, against what is kept.

    Without torch.compile the two are only near each other.
    """
    kept, shape = (
        [],
        "--n_embd=128 --n_head=2 --block_size=128 --total_batch_size=512".split(),
    )
    for n_layer in (1, 2):
        g = gpt2(
            *PRECISIONS[precision], *shape, f"--n_layer={n_layer}", "--batch_size=4"
        )
        g["attention"] = lambda q, k, v, p: F.scaled_dot_product_attention(
            q, k, v, is_causal=True
        )
        storages = {}

        def pack(tensor):
            # A weight in half precision does not become more with more tokens
            if tensor.is_floating_point() and tensor.numel() >= 4 * 128:
                weight = (
                    tensor.ndim == 2 and 512 not in tensor.stride() + tensor.shape[:1]
                )
                if not weight:
                    storages[tensor.untyped_storage().data_ptr()] = (
                        tensor.untyped_storage()
                    )
            return tensor

        tokens = g["get_batch"](0, 0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = g["model"](*tokens)
        own = {p.untyped_storage().data_ptr() for p in g["model"].parameters()}
        kept.append(sum(s.nbytes() for at, s in storages.items() if at not in own))
        del loss
    per_channel = (kept[1] - kept[0]) / (4 * 128) / 128
    assert per_channel == pytest.approx(68 if precision == "float32" else 34, rel=0.15)


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
    before, *samples, after = capsys.readouterr().out.split("-" * 80 + "\n")
    assert len(samples) == 3 and after == ""
    assert all(s.startswith("To be") and s == samples[0] for s in samples)
    val_losses = read_log("out/gpt2_train")[1]
    best = min(val_losses, key=val_losses.get)
    last_line = before.splitlines()[-1]
    assert last_line.startswith(f"out/gpt2_train/best.pt: the weights of step {best}")
    assert f"val loss {val_losses[best]:.4f}" in last_line


def test_an_empty_prompt_is_the_start_of_a_document(gpt2, gpt2_tokens, monkeypatch):
    g = gpt2()
    fed = []
    monkeypatch.setitem(g, "generate", lambda idx, *_: fed.append(idx.tolist()) or idx)
    g["sample"](2, 5)
    assert fed == [[[50256], [50256]]]
    g["tokenizer"] = None  # bytes
    g["sample"](1, 5)
    assert fed[1] == [[10]]
