"""What is wrong is said in one line that names it, and no file is touched.

A command line that makes no sense: the usage, one line, exit code 2. Anything else:
one line, exit code 1. The scripts run in this process, where an exception that is not a
SystemExit fails the test; test_as_a_user_sees_it runs a few of them as processes.
bad_input.py has the tables. The first two scripts check little: they stay plain.
"""

import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_input import LAST, TABLES, TRAIN
from makers import (
    ARGS,
    LADDER,
    LARGE,
    TRAINERS,
    final_loss,
    one_line,
    read,
    run_here,
    samples,
    the_line,
)

TWO_STEPS = ["--max_iters=2", "--eval_interval=1"]
OUT = "--out_dir=out/run"


def working(script):
    """A command that works: two steps, in what the fixture place makes."""
    if script in TRAINERS:
        return [*ARGS[script], *TWO_STEPS, OUT]
    if script in LADDER:
        return [*ARGS[script], *TWO_STEPS]
    return []


@pytest.fixture(scope="module")
def checkpoints():
    return {}


@pytest.fixture
def train(place, checkpoints):
    """train(script): the checkpoints of the command that works, made only once."""

    def train(script):
        if script not in checkpoints:
            done = run_here(f"{script}.py", *working(script))
            assert (done.code, done.err) == (0, "")
            files = Path("out/run").iterdir()
            checkpoints[script] = {path: path.read_bytes() for path in files}
        Path("out/run").mkdir(parents=True, exist_ok=True)
        for path, content in checkpoints[script].items():
            path.write_bytes(content)

    return train


def cases():
    found = []
    for script, rows in TABLES.items():
        for row in rows:
            found.append(
                pytest.param(script, row, id=f"{script}-{row.name or row.flags}")
            )
    return found


@pytest.mark.parametrize("script, row", cases())
def test_refused(place, tree, train, monkeypatch, script, row):
    if row.trained:
        train(script)
    if row.before:
        row.before()
    for name, value in row.env.items():
        monkeypatch.setenv(name, value)
    files = tree()
    done = run_here(f"{script}.py", *working(script), *row.flags.split())
    assert done.code == row.code, done.err
    one_line(done.err, *row.words, script=script if row.code == 2 else None)
    assert samples(done.out) == [] and final_loss(done.out) is None
    assert not Path("it_was_run").exists()
    if not row.late:
        assert tree() == files


@pytest.mark.parametrize("script", LADDER)
def test_the_command_works_without_the_fault(place, script):
    """Or all of the table would be refused for another reason."""
    done = run_here(f"{script}.py", *working(script))
    assert (done.code, done.err) == (0, "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("script", TRAINERS)
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_no_gpu(place, tree, script, device):
    files = tree()
    done = run_here(f"{script}.py", *working(script), f"--device={device}")
    assert done.code == 2 and tree() == files
    one_line(done.err, f"--device={device}", script=script)


# ----------------------------------------------------------------------- Every setting
def settings(script):
    """The flags that --help lists, with their defaults: {name: text}."""
    help_text = run_here(f"{script}.py", "--device=cpu", "--help").out
    found = re.findall(r"^  --(\w+)(?:, --no-\w+| [A-Z_]\w*)\s+(\S*)", help_text, re.M)
    assert len(found) == help_text.count("\n  --") - ("\n  --help" in help_text)
    return dict(found)


@pytest.mark.long
@pytest.mark.parametrize("script", LADDER)
def test_every_number_is_checked(place, tree, script):
    """Each setting of each script, given what no number of its kind can be.

    All scripts refuse other kinds, and from rung 3 on numbers that are too small.
    """
    files, kinds = tree(), set()
    for name, default in settings(script).items():
        if re.fullmatch(r"\d+", default):
            kind, wrong, small = "int", ["x", "0.5"], ["-1"]
        elif re.fullmatch(r"[\d.e-]+", default):
            kind, wrong, small = "float", ["x"], ["-0.1", "nan", "inf", "-inf"]
        else:
            continue
        kinds.add(kind)
        if name == "temperature":
            small.remove("inf")  # all tokens equally likely
        if script in TRAINERS:
            wrong += small
        for value in wrong:
            done = run_here(f"{script}.py", *working(script), f"--{name}={value}")
            assert done.code == 2, (name, value)
            one_line(done.err, f"--{name}", script=script)
    assert kinds == {"int", "float"} and tree() == files


@pytest.mark.parametrize("script", TRAINERS)
def test_every_switch(place, script):
    """--name means True, --no-name False, and neither takes a word."""
    defaults = settings(script)
    switches = [name for name in defaults if defaults[name] in ("True", "False")]
    assert "bfloat16" in switches
    for name in switches:
        for word in ("yes", "True", "1", ""):
            done = run_here(f"{script}.py", f"--{name}={word}")
            assert done.code == 2
            one_line(done.err, f"--{name}", f"'{word}'", script=script)
        for flag in (f"--{name}", f"--no-{name}"):
            # No complaint about it, only about the wrong flag that follows
            done = run_here(f"{script}.py", flag, "--x")
            one_line(done.err, "--x", script=script)
            assert name not in done.err.splitlines()[1]


def test_a_switch_is_set(load, tiny):
    few = [word for word in tiny if "bfloat16" not in word]
    for word, value in (("--bfloat16", True), ("--no-bfloat16", False)):
        names = load("gpt_char.py", *few, word)
        assert names["bfloat16"] is names["config"]["bfloat16"] is value
        assert names["autocast"]._enabled is value


@pytest.mark.long
@pytest.mark.parametrize("total", [1, 63, 130, 1006])
@pytest.mark.parametrize("batch_size", [0, 2, 3])
@pytest.mark.parametrize("script", LARGE)
def test_total_batch_size_names_the_nearest(place, script, batch_size, total):
    def attempt(*args):
        return run_here(f"{script}.py", *working(script), "--max_iters=1", *args)

    unit = 16 * max(1, batch_size)
    sizes = [f"--batch_size={batch_size}", f"--total_batch_size={total}"]
    done = attempt(*sizes)
    assert done.code == 2
    line = the_line(done.err, script)
    said = [int(number) for number in re.findall(r"\d+", line.replace(sizes[1], ""))]
    valid = [n for n in said if n > 0 and n % unit == 0]
    nearest = min(abs(n - total) for n in range(unit, 2000, unit))
    assert sizes[1] in line and any(abs(n - total) == nearest for n in valid), line
    assert attempt(sizes[0], f"--total_batch_size={valid[-1]}").code == 0
    assert attempt(*sizes, "--max_iters=0").code == 0  # sampling needs none


# -------------------------------------------------------------------- As a user sees it
SEEN = {
    "bigram": (["--x=1"], 2, "--x=1"),
    "v2_attention": (["--data_dir=none"], 1, str(Path("none/input.txt"))),
    "gpt_char": (["--n_layer=3"], 1, str(LAST)),
}


@pytest.mark.parametrize("script", SEEN)
def test_as_a_user_sees_it(start, place, train, tree, script):
    args, code, word = SEEN[script]
    if script in TRAINERS:
        train(script)
    process = start(f"{script}.py", *working(script), *args)
    files = tree()
    _, err = process.communicate(timeout=300)
    assert process.returncode == code and tree() == files
    one_line(err, word, script=script if code == 2 else None)


# ------------------------------------------------------------------- Circumstances
@pytest.mark.parametrize("script", LARGE)
def test_shard_that_cannot_be_read(place, monkeypatch, script):
    """It is not the shard's fault: nobody is told to delete it."""

    def forbidden(path, *args, **options):  # root may read anything
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(np, "fromfile", forbidden)
    done = run_here(f"{script}.py", *working(script))
    assert done.code == 1
    one_line(done.err, str(TRAIN), "Permission denied")
    assert "delete" not in done.err


def test_loaded_weights_that_do_not_fit(place):
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed"
    )
    size = {"n_positions": 16, "n_embd": 32, "n_layer": 1, "n_head": 2}
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(vocab_size=300, **size, **ids)
    transformers.GPT2LMHeadModel(config).save_pretrained("other")
    Path("nothing").mkdir()
    for folder, words in (("other", ["tokens", "other"]), ("nothing", ["nothing"])):
        done = run_here(
            "gpt2_train.py", *working("gpt2_train"), f"--init_from={folder}"
        )
        last = done.err.splitlines()[-1]  # there is transformers' progress before it
        assert done.code == 1 and "Traceback" not in done.err
        assert all(word in last for word in words), last


def test_without_transformers(place, tree, monkeypatch):
    """It says so before the training, not after it."""
    monkeypatch.setitem(sys.modules, "transformers", None)  # import: ImportError
    files = tree()
    for flag in ("--init_from=gpt2", "--export_dir=exported"):
        done = run_here("gpt2_train.py", *working("gpt2_train"), flag)
        assert done.code == 1 and tree() == files
        one_line(done.err, flag.partition("=")[0], "pip install transformers")


@pytest.mark.parametrize("script", LARGE)
def test_prompt_that_is_no_unicode(place, script):
    """From a terminal in latin-1; the byte that means nothing in UTF-8 becomes a
    question mark.
    """
    done = run_here(f"{script}.py", *ARGS[script], "--max_iters=0", "--prompt=a\udce9b")
    assert (done.code, done.err) == (0, "")
    assert samples(done.out)[0].startswith("a?b")


# ------------------------------------------------------------------ A run that diverges
@pytest.mark.parametrize("eval_interval", [1, 100])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("script", TRAINERS)
def test_loss_that_is_no_number(place, script, optimizer, eval_interval):
    """Whether the loss of a step or that of an evaluation shows it first.

    The last good checkpoint stays. A run that is no good from the start leaves none.
    """
    args = [*working(script), f"--optimizer={optimizer}", "--warmup_iters=0"]
    args += [f"--eval_interval={eval_interval}"]
    assert run_here(f"{script}.py", *args).code == 0
    bad = ["--learning_rate=1e30", "--max_iters=20"]
    done = run_here(f"{script}.py", *args, *bad)
    assert done.code == 1 and final_loss(done.out) is None
    one_line(done.err, "--learning_rate")
    if script in LARGE and eval_interval == 100:
        assert "val loss" not in done.out  # at once, not at the next evaluation
    for name in ("last.pt", "best.pt"):
        state = read(Path("out/run", name))
        assert state["step"] <= 2 and math.isfinite(state["best_val_loss"])
        assert all(p.isfinite().all() for p in state["model"].values())
    done = run_here(f"{script}.py", *args, *bad, "--out_dir=out/bad")
    assert done.code == 1
    one_line(done.err, "--learning_rate")
    for path in Path("out/bad").glob("*.pt"):
        assert all(p.isfinite().all() for p in read(path)["model"].values())


@pytest.mark.parametrize("max_iters", [0, 2])
def test_weights_that_are_no_numbers(place, train, max_iters):
    """A checkpoint can be whole, and of no use."""
    train("gpt_char")
    for path in Path("out/run").glob("*.pt"):
        state = read(path)
        state["model"]["wte.weight"].fill_(torch.nan)
        state["best_val_loss"] = min(state["best_val_loss"], 3.0)
        torch.save(state, path)
    done = run_here("gpt_char.py", *working("gpt_char"), f"--max_iters={max_iters}")
    assert done.code == 1 and final_loss(done.out) is None
    one_line(done.err, "not finite")


def test_no_row_stands_twice():
    for script, rows in TABLES.items():
        names = [row.name or row.flags for row in rows]
        assert len(set(names)) == len(names), script
        assert all(row.words for row in rows), script
