"""gpt_char.py: the model against formulas, and runs of it."""

import math
import random
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import (
    assert_same_state,
    continued,
    final_loss,
    read,
    samples,
    shake,
)


# -------------------------------------------------------------------------------- Data
def starts_of(names, epoch):
    """Where the windows of an epoch begin, batch by batch; the text is its own
    positions.
    """
    batches = (len(names["train_data"]) // names["block_size"] - 1) // names[
        "batch_size"
    ]
    xs, ys = zip(*(names["get_batch"](epoch * batches + i) for i in range(batches)))
    for x, y in zip(xs, ys):
        assert torch.equal(x, x[:, :1] + torch.arange(names["block_size"]))  # neighbors
        assert torch.equal(y, x + 1)
    return torch.cat(xs)[:, 0].tolist()


@pytest.mark.parametrize(
    "length, batch_size", [(16 * 41, 10), (16 * 41 + 15, 40), (16 * 45 + 3, 6)]
)
def test_an_epoch_visits_every_window_once(load, tiny, length, batch_size):
    names = load("gpt_char.py", *tiny, f"--batch_size={batch_size}")
    names["train_data"] = torch.arange(length)
    windows = length // 16 - 1
    visited = (
        windows // batch_size * batch_size
    )  # what does not fill a batch waits for its chance
    shifts, orders, left_out = [], [], set()
    for epoch in range(100):
        starts = starts_of(names, epoch)
        shift = starts[0] % 16
        # the text from the shift on is cut into windows, and each of them is there once
        assert len(set(starts)) == len(starts) == visited
        assert set(starts) <= set(range(shift, shift + 16 * windows, 16))
        if visited == windows:
            assert sorted(starts) == list(range(shift, shift + 16 * windows, 16))
        left_out |= set(range(windows)) - {start // 16 for start in starts}
        shifts.append(shift), orders.append(tuple(start // 16 for start in starts))
    assert set(shifts) == set(
        range(16)
    )  # cut at any place, usually another one than before
    assert sum(a != b for a, b in zip(shifts, shifts[1:])) > 80
    assert len(set(orders)) == 100  # in another order each time
    assert visited == windows or left_out == set(
        range(windows)
    )  # no window is never seen
    # the cut that is furthest to the right still has a character to predict, the last
    # one
    assert max(shifts) + 16 * windows <= length - 1


def test_batch_is_a_function_of_seed_and_step(load, tiny):
    names = load("gpt_char.py", *tiny)
    steps = [0, 700, 3, 100_000, 3, 0]
    batches = []
    for i, step in enumerate(steps):  # whatever was asked before, whatever was drawn
        torch.manual_seed(i), np.random.seed(i), random.seed(i)
        state = torch.get_rng_state()
        batches.append(names["get_batch"](step))
        assert torch.equal(torch.get_rng_state(), state)
    again = load("gpt_char.py", *tiny)
    for i, step in enumerate(steps):
        for a, b in zip(batches[i], again["get_batch"](step)):
            assert torch.equal(a, b)
        for j in range(i):
            assert torch.equal(batches[i][0], batches[j][0]) == (steps[i] == steps[j])
    other = load("gpt_char.py", *tiny, "--seed=5")
    assert not any(
        torch.equal(batches[i][0], other["get_batch"](s)[0])
        for i, s in enumerate(steps)
    )


# ------------------------------------------------------------------------------- Model
SHAPES = [
    (2, 4, 48, 24),
    (4, 4, 128, 64),
    (1, 1, 8, 16),
]  # n_layer, n_head, n_embd, block_size


def shape_args(n_layer, n_head, n_embd, block_size):
    sizes = [f"--n_layer={n_layer}", f"--n_head={n_head}", f"--n_embd={n_embd}"]
    return [*sizes, f"--block_size={block_size}", "--no-bfloat16"]


@pytest.mark.parametrize("shape", SHAPES)
def test_parameter_count_and_tying(load, shape):
    names = load("gpt_char.py", *shape_args(*shape))
    model, V = names["model"], names["vocab_size"]
    L, _, C, T = shape
    attention = 3 * C * C + 3 * C + C * C + C
    mlp = 4 * C * C + 4 * C + 4 * C * C + C
    norm = 2 * C
    # the output layer has none of its own: it is the embedding of the characters
    by_hand = V * C + T * C + L * (attention + mlp + 2 * norm) + norm
    assert sum(p.numel() for p in model.parameters()) == by_hand
    assert model.lm_head.weight is model.wte.weight and model.lm_head.bias is None


def test_tying_survives_a_checkpoint(run, tiny):
    run("gpt_char.py", *tiny, "--max_iters=2", "--max_new_tokens=0")
    model = run("gpt_char.py", *tiny, "--max_iters=2", "--max_new_tokens=0").names[
        "model"
    ]
    assert model.lm_head.weight is model.wte.weight


def test_initial_weights(load):
    model = load("gpt_char.py", *shape_args(4, 4, 128, 128))["model"]
    for name, p in model.named_parameters():
        if name.endswith(("bias", "c_proj.weight")):  # the blocks add nothing
            assert (p == 0).all(), name
        elif p.ndim == 1:
            assert (p == 1).all(), name  # gain of a LayerNorm
        else:
            assert p.std().item() == pytest.approx(0.02, rel=0.05), name
            assert abs(p.mean().item()) < 0.1 * 0.02, name


@pytest.mark.parametrize("args", [[], ["--bfloat16"], shape_args(2, 2, 16, 16)])
def test_initial_loss_is_that_of_a_guess(load, args):
    names = load("gpt_char.py", *args)
    assert names["estimate_loss"]() == pytest.approx(
        math.log(names["vocab_size"]), abs=0.1
    )


def reference(weights, idx, n_layer, n_head):
    """A GPT-2 by the formulas, in float64 (Radford et al. 2019, section 2.3)."""

    def norm(x, name):
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    w = {name: p.double() for name, p in weights.items()}
    T = idx.shape[1]
    x = w["wte.weight"][idx] + w["wpe.weight"][:T]
    for i in range(n_layer):
        q, k, v = linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn").chunk(3, dim=-1)
        hs, heads = q.shape[-1] // n_head, []
        for h in range(n_head):
            part = slice(h * hs, (h + 1) * hs)
            scores = q[..., part] @ k[..., part].mT / hs**0.5
            scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
            heads.append(scores.softmax(-1) @ v[..., part])
        x = x + linear(torch.cat(heads, dim=-1), f"h.{i}.attn.c_proj")
        y = linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        y = (
            y * 0.5 * (1 + torch.erf(y / 2**0.5))
        )  # GELU, without its tanh approximation
        x = x + linear(y, f"h.{i}.mlp.c_proj")
    return norm(x, "ln_f") @ w["wte.weight"].T


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_model_against_the_formulas(load, shape):
    names = load("gpt_char.py", *shape_args(*shape))
    model = names["model"].eval()
    generator = torch.Generator().manual_seed(1)
    shake(model)
    with torch.no_grad():
        idx = torch.randint(names["vocab_size"], (2, shape[3] - 3), generator=generator)
        expected = reference(model.state_dict(), idx, shape[0], shape[1])
        logits = model.logits(idx)
        assert expected.std() > 1
        torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-4)
        half = load("gpt_char.py", *shape_args(*shape), "--bfloat16")["model"].eval()
        half.load_state_dict(
            model.state_dict()
        )  # 8 bits of precision, so it comes close only
        difference = (half.logits(idx) - expected).abs().mean()
        assert 1e-4 < difference < 0.05 * expected.std()
        y = torch.randint(names["vocab_size"], idx.shape, generator=generator)
        loss = -expected.log_softmax(-1).gather(2, y[..., None]).mean()
        assert model(idx, y).item() == pytest.approx(loss.item(), rel=1e-5)


# --------------------------------------------------------------------------- Optimizer


def test_where_the_blocks_add_nothing(load, run, tiny):
    """At the start c_proj is 0: it alone learns of a block, and after one step all of
    it does.
    """
    args = [*tiny, "--dropout=0.0", "--warmup_iters=0", "--max_new_tokens=0"]
    before = load("gpt_char.py", *args, "--weight_decay=0")["model"].state_dict()
    for steps, still in ((1, ("c_attn.weight", "c_fc.weight")), (2, ())):
        run("gpt_char.py", *args, "--weight_decay=0", f"--max_iters={steps}")
        after = read("out/gpt_char/last.pt")["model"]
        for name in before:
            if name.startswith("h.") and before[name].ndim == 2:
                assert torch.equal(before[name], after[name]) == name.endswith(still), (
                    name
                )


@pytest.mark.parametrize(
    "optimizer", ["muon", pytest.param("adamw", marks=pytest.mark.long)]
)
def test_it_learns(run, tiny, optimizer):
    args = [
        *tiny,
        "--max_iters=200",
        "--dropout=0.0",
        "--learning_rate=0.02",
        "--batch_size=16",
    ]
    done = run("gpt_char.py", *args, f"--optimizer={optimizer}", "--eval_interval=100")
    middle, last = val_losses(done.out)
    first = math.log(done.names["vocab_size"])
    print(first, middle, last)
    assert last < middle - 0.05 and middle < first - 0.2


# ------------------------------------------------------------------------- Checkpoints
def val_losses(out):
    """What the lines of progress say; not the one at the end."""
    return [
        float(x)
        for x in re.findall(r"^step +\d+/\d+ \| val loss (\d+\.\d+)$", out, re.M)
    ]


def train(run, tiny, *args):
    args = ["--max_new_tokens=5", "--eval_interval=3", "--data_dir=data/short", *args]
    return run("gpt_char.py", *tiny, *args)


@pytest.fixture(autouse=True)
def short(folder, text):
    """The beginning of the text, for runs that evaluate often."""
    (folder / "data/short").mkdir()
    (folder / "data/short/input.txt").write_text(text[:4000], encoding="utf-8")
    return text[:4000]


def test_finished_run_only_samples(run, tiny, tree):
    trained = train(run, tiny, "--max_iters=6")
    files, last, best = (
        tree(),
        read("out/gpt_char/last.pt"),
        read("out/gpt_char/best.pt"),
    )
    again = train(run, tiny, "--max_iters=6", "--prompt=AB", "--temperature=0")
    assert again.code == 0
    (sample,) = samples(again.out)
    assert sample.startswith("AB") and len(sample) == 2 + 5
    assert final_loss(again.out) == final_loss(trained.out) is not None
    assert tree().keys() == files.keys()
    assert_same_state(read("out/gpt_char/last.pt"), last)
    assert_same_state(read("out/gpt_char/best.pt"), best)


@pytest.mark.long
def test_best_is_kept_beside_last(run, tiny, folder, text, direct_loss):
    """Where the validation text is of another kind, training makes it worse."""
    (folder / "data/other").mkdir()
    n, chars = int(0.9 * len(text)), sorted(set(text))
    other = text[n:].translate(str.maketrans(dict(zip(chars, chars[::-1]))))
    (folder / "data/other/input.txt").write_text(text[:n] + other, encoding="utf-8")
    args = [
        "--data_dir=data/other",
        "--max_iters=30",
        "--learning_rate=0.1",
        "--dropout=0.0",
    ]
    done = train(run, tiny, *args)
    losses = val_losses(done.out)
    best, last = read("out/gpt_char/best.pt"), read("out/gpt_char/last.pt")
    assert (last["step"], best["step"]) == (30, 3 + 3 * losses.index(min(losses)))
    assert best["step"] < 30
    assert best["best_val_loss"] == last["best_val_loss"]
    assert best["best_val_loss"] == pytest.approx(min(losses), abs=1e-4)
    # what is printed and sampled at the end is of the best
    names = done.names
    for name, p in names["model"].state_dict().items():
        assert torch.equal(p, best["model"][name])
    of_best = direct_loss(names, names["val_data"])
    assert final_loss(done.out) == pytest.approx(of_best, abs=1e-4)
    names["model"].load_state_dict(last["model"])
    assert direct_loss(names, names["val_data"]) > of_best + 0.01


def test_scratch_forgets(run, tiny):
    args = ["--max_iters=6", "--log_interval=3"]
    first = train(run, tiny, *args)
    again = train(run, tiny, *args, "--init_from=scratch")
    losses = [re.findall(r"loss \d\.\d{4}", done.out) for done in (first, again)]
    assert losses[0] == losses[1] and len(losses[0]) == 5
    assert continued(again.out) == []


def test_a_sample_at_every_evaluation(run, tiny):
    """One sees the model learn to write, and it does not change what is learned."""
    often = train(run, tiny, "--max_iters=6", "--prompt=AB", "--out_dir=out/often")
    once = train(run, tiny, "--max_iters=6", "--eval_interval=6", "--out_dir=out/once")
    parts = re.split(r"^step +[36]/6 \| val loss .*\n", often.out, flags=re.M)
    assert len(parts) == 3
    texts = [part.split("-" * 80)[0].rstrip("\n") for part in parts[1:]]
    for text in texts:
        assert text.startswith("AB") and len(text) >= 80
    assert texts[0] != texts[1] and once.code == 0
    assert_same_state(
        read("out/often/last.pt")["model"], read("out/once/last.pt")["model"]
    )


def test_time_that_is_left(run, tiny):
    """Said after the first ten steps, whatever the interval, and then at every one."""
    done = train(run, tiny, "--max_iters=60", "--eval_interval=60")
    lines = re.findall(r"^step +(\d+)/60 \| loss \d.* min left$", done.out, flags=re.M)
    assert lines == ["10", "25", "50"]


def test_no_training_writes_nothing(run, tiny, tree):
    files = tree()
    done = train(run, tiny, "--max_iters=0")
    assert done.code == 0 and tree() == files


def test_more_steps_go_on_from_the_last(run, tiny):
    train(run, tiny, "--max_iters=6")
    done = train(run, tiny, "--max_iters=9")
    assert continued(done.out) == [("out/gpt_char/last.pt", 6)]
    assert read("out/gpt_char/last.pt")["step"] == 9


def test_checkpoint_content(run, tiny, short):
    """All of it is plain data: weights_only=True reads it (see read)."""
    train(run, tiny, "--max_iters=3", "--seed=11")
    last = read("out/gpt_char/last.pt")
    assert last.keys() == {"identity", "step", "best_val_loss", "model", "optimizers"}
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16}
    assert sizes.items() < last["identity"].items()
    assert last["identity"]["optimizer"] == "muon"
    assert last["identity"]["data"] == zlib.crc32(short.encode())
    assert last["step"] == 3 and len(last["optimizers"]) == 2
    assert sorted(p.name for p in Path("out/gpt_char").iterdir()) == [
        "best.pt",
        "last.pt",
    ]


def test_resumed_run_has_the_settings_of_its_command_line(run, tiny):
    run("gpt_char.py", *tiny, "--max_iters=2")
    done = run("gpt_char.py", *tiny, "--max_iters=3", "--beta2=0.5")
    assert continued(done.out) == [("out/gpt_char/last.pt", 2)]
    (group,) = done.names["optimizers"][-1].param_groups
    assert group["betas"] == (0.9, 0.5)
