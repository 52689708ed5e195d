"""gpt2_train.py on one process: training, its log, its checkpoints, fine-tuning.

Most tests run the script inside this process: see gpt2 in conftest.py.
"""

import builtins
import contextlib
import csv
import itertools
import math
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from makers import (
    PRECISIONS,
    SHORT,
    STOP_SIGNALS,
    Killed,
    advice,
    assert_same_runs,
    continued,
    huggingface_model,
    leaves,
    random_tokens,
    read_log,
    write_shard,
)


def sentences(words, length, seed=0):
    """A text of which a tiny model can learn something: words in random order."""
    rng = random.Random(seed)
    text = " ".join(rng.choice(words.split()) for _ in range(length))
    return list(text.encode()[:length])


def weights(g):
    """A copy of the model's weights."""
    return {name: p.clone() for name, p in g["model"].state_dict().items()}


@pytest.mark.long
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
    expected = g["model"](*g["get_batch"](0, 0)).item()  # one batch has all of them
    gpt2(*SHORT, "--max_iters=1", "--batch_size=2", "--out_dir=run")
    assert read_log("run")[0][1] == pytest.approx(expected, rel=1e-6)


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
        interrupt(context, "run/last.pt: ", "killed")
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


@pytest.mark.long
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
        for path, leaf in leaves(checkpoint):
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


@pytest.mark.long
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
    gpt2(*tune, "--out_dir=parts", *advice(capsys.readouterr().out))
    assert continued(capsys.readouterr().out) == [("parts/last.pt", 6)]
    assert read_log("parts") == read_log("whole")
    assert_same_runs("parts", "whole")


@pytest.mark.long
def test_fine_tuning_of_openais_weights_is_continued(gpt2, tokens, monkeypatch, capsys):
    """They decide on the size of the model, and its GELU, so they are needed again."""
    huggingface_model(256, 16, "gelu_new").save_pretrained("hf")
    tune = [*SHORT, "--init_from=hf", "--n_layer=3", "--learning_rate=1e-3"]
    with monkeypatch.context() as context:
        interrupt(context, "step     5/12 | loss", "SIGINT")
        with pytest.raises(SystemExit):
            gpt2(*tune)
    flags = advice(capsys.readouterr().out)
    gpt2(*tune, *flags)
    out = capsys.readouterr().out
    assert continued(out) == [("out/gpt2_train/last.pt", 6)]
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
        ours, theirs = leaves(opt.state_dict()["state"]), leaves(state["state"])
        assert ours and all(
            torch.equal(a, b) for (_, a), (_, b) in zip(ours, theirs, strict=True)
        )
    if second == "float16":
        assert g["scaler"].get_scale() == 65536
    capsys.readouterr()
    gpt2(*SHORT, *PRECISIONS[second])
    expected = [("out/gpt2_train/last.pt", 4)]
    assert continued(capsys.readouterr().out) == expected
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
        for _, leaf in leaves(opt.state_dict()["state"]):
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
