"""What is wrong is said in one line that names it, and no file is touched.

A command line that makes no sense: the usage, one line, exit code 2. Anything else:
one line, exit code 1. The scripts run in this process, where an exception that is not a
SystemExit fails the test; test_as_a_user_sees_it runs a few of them as processes. The
first two check little, so that they stay plain. What only prepare_shakespeare.py,
gpt2_train.py or sparse_gpt.py can be given is in their own tests, and what long runs
must survive in test_faults.py.
"""

import pickle
import random
import re
from pathlib import Path

import pytest
import torch
from conftest import names_of

STAGES = ("bigram", "v2_attention", "gpt_char")
ALL = (*STAGES, "gpt2_train", "sparse_gpt")
INPUT = Path("data/shakespeare/input.txt")
LAST = Path("out/gpt_char/last.pt")

# For a run of gpt2_train.py or sparse_gpt.py of milliseconds, on what the fixture
# shards makes
SHARDS = "--data_dir=data/text/bytes --total_batch_size=64 --block_size=16".split()
SHARDS += ["--batch_size=2"]
SHARDS += "--n_layer=1 --n_head=2 --n_embd=16 --eval_tokens=64 --no-bfloat16".split()


def write(content):
    return lambda make: INPUT.write_bytes(content)


def short_text(make):
    INPUT.write_bytes(
        b"abcdefghij" * 64
    )  # 640: the validation part is 64, as long as a context


def file(path, content=b"something"):
    def setup(make):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content)

    return setup


def checkpoint(change=None):
    """The checkpoints of a short run, then the last one changed."""

    def setup(make):
        make()
        if change:
            change(LAST)

    return setup


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


class Evil:
    def __reduce__(self):
        return open, ("it_was_run", "w")


def evil(path):
    state = torch.load(path, weights_only=True)
    torch.save({**state, "step": Evil()}, path)


def evil_plain(path):
    path.write_bytes(pickle.dumps(Evil()))


def without(key):
    def change(path):
        state = torch.load(path, weights_only=True)
        del state[key]
        torch.save(state, path)

    return change


def other_optimizers(path):
    state = torch.load(path, weights_only=True)
    torch.save({**state, "optimizers": [{}, {}]}, path)


def other_weights(path):
    """Of the right shape by what it says, but not by what it has."""
    state = torch.load(path, weights_only=True)
    torch.save({**state, "model": {"weight": torch.zeros(3)}}, path)


def foreign(path):
    torch.save({"weights": torch.zeros(3)}, path)


# scripts, arguments, what the last line must name, what to do beforehand; code 2
COMMAND_LINES = [
    (ALL, ["--learning_rat=1"], ["unrecognized arguments: --learning_rat=1"], None),
    (ALL, ["--max_iter=1"], ["unrecognized arguments: --max_iter=1"], None),  # no short
    (ALL, ["--BLOCK-SIZE=8"], ["unrecognized arguments: --BLOCK-SIZE=8"], None),
    (ALL, ["--"], ["unrecognized arguments: --"], None),
    (ALL, ["train"], ["unrecognized arguments: train"], None),
    (ALL, ["max_iters=3"], ["unrecognized arguments: max_iters=3"], None),
    (ALL, ["-max_iters=3"], ["unrecognized arguments: -max_iters=3"], None),
    (ALL, ["--math=3"], ["unrecognized arguments: --math=3"], None),  # in the script
    (ALL, ["--max_iters=many"], ["--max_iters: invalid int value: 'many'"], None),
    (ALL, ["--max_iters=1.5"], ["--max_iters: invalid int value: '1.5'"], None),
    (ALL, ["--max_iters="], ["--max_iters: invalid int value: ''"], None),
    (ALL, ["--max_iters"], ["--max_iters: expected one argument"], None),
    (ALL, ["--max_iters", "5", "6"], ["unrecognized arguments: 6"], None),
    (ALL, ["--prompt"], ["--prompt: expected one argument"], None),
    (ALL, ["--learning_rate=fast"], ["--learning_rate: invalid float", "'fast'"], None),
    (STAGES, ["--block_size=0"], ["--block_size"], None),
    (ALL, ["--block_size=-8"], ["--block_size"], None),
    (ALL, ["--temperature=-0.1"], ["--temperature", "0.01"], None),
    (ALL, ["--temperature=nan"], ["--temperature", "0.01"], None),
    (ALL, ["--temperature=1e-320"], ["--temperature", "0.01"], None),
    (ALL[1:], ["--n_embd=30", "--n_head=4"], ["--n_embd=30", "--n_head=4"], None),
    # the text
    (STAGES, [], ["--block_size", str(INPUT)], write(b"")),
    (STAGES, ["--block_size=64"], ["--block_size", str(INPUT), "63"], short_text),
    (STAGES, ["--prompt=AB#5"], ["--prompt", str(INPUT)], None),
    # from rung 3 on
    (ALL[2:], ["--bfloat16=maybe"], ["--bfloat16", "'maybe'"], None),
    (ALL[2:], ["--bfloat16=False"], ["--bfloat16", "'False'"], None),
    (ALL[2:], ["--bfloat16", "False"], ["unrecognized arguments: False"], None),
    (ALL[2:], ["--no-seed"], ["unrecognized arguments: --no-seed"], None),
    (ALL[2:], ["--max_iters=-1"], ["--max_iters=-1", "at least 0"], None),
    (ALL[2:3], ["--batch_size=0"], ["--batch_size=0", "at least 1"], None),
    (ALL[3:], ["--batch_size=-1"], ["--batch_size=-1", "at least 0"], None),
    (ALL[2:], ["--eval_interval=0"], ["--eval_interval=0", "at least 1"], None),
    (ALL[2:], ["--log_interval=0"], ["--log_interval=0", "at least 1"], None),
    (ALL[2:3], ["--n_layer=0"], ["--n_layer=0", "at least 1"], None),
    (ALL[2:3], ["--n_embd=0"], ["--n_embd=0", "at least 1"], None),
    (ALL[2:3], ["--n_head=0"], ["--n_head=0", "at least 1"], None),
    (ALL[2:], ["--top_k=-1"], ["--top_k=-1", "at least 0"], None),
    (ALL[2:], ["--seed=-1"], ["--seed=-1", "at least 0"], None),
    (ALL[2:], ["--learning_rate=inf"], ["--learning_rate=inf"], None),
    (ALL[2:], ["--learning_rate=-1"], ["--learning_rate=-1"], None),
    (ALL[2:], ["--momentum=1"], ["--momentum=1", "less than 1"], None),
    (ALL[2:], ["--dropout=1"], ["--dropout=1", "less than 1"], None),
    (ALL[2:], ["--beta1=1"], ["--beta1=1", "less than 1"], None),
    (ALL[2:], ["--beta2=1.5"], ["--beta2=1.5", "less than 1"], None),
    (ALL[2:], ["--optimizer=sgd"], ["--optimizer=sgd", "muon", "adamw"], None),
    (ALL[2:], ["--init_from=gpt7"], ["--init_from=gpt7"], None),
    (ALL[2:], ["--device=abacus"], ["--device=abacus", "cuda"], None),
    (ALL[2:], ["--device="], ["--device=", "empty"], None),
    (ALL[2:], ["--device=meta"], ["--device=meta"], None),
    (ALL[2:], ["--device=hpu"], ["--device=hpu"], None),  # torch knows it by name only
    (ALL[2:], ["--device=cuda:99"], ["--device=cuda:99"], None),
    # from rung 4 on
    (ALL[3:], ["--total_batch_size=0"], ["--total_batch_size=0", "at least 1"], None),
    (ALL[3:], ["--eval_tokens=0"], ["--eval_tokens=0", "at least 1"], None),
    (ALL[3:], ["--keep_every=0"], ["--keep_every=0", "at least 1"], None),
    (ALL[3:], ["--num_samples=0"], ["--num_samples=0", "at least 1"], None),
    (ALL[4:], ["--stride=0"], ["--stride=0", "from 1"], None),
    (ALL[4:], ["--summary=0"], ["--summary=0", "from 1"], None),
]
DAMAGED = [f"{LAST}: ", "--out_dir"]
SHAPES = {"n_layer": 3, "n_embd": 32, "n_head": 4, "block_size": 32}
# The same, but one line on stderr and code 1
FAILURES = [
    # the text
    (STAGES, ["--data_dir=none"], ["none/input.txt", "prepare_shakespeare.py"], None),
    # checkpoints of another run
    *(
        (
            ("gpt_char",),
            [f"--{name}={value}"],
            [*DAMAGED, f"{name}=", f"not {value};"],
            checkpoint(),
        )
        for name, value in SHAPES.items()
    ),
    (
        ("gpt_char",),
        ["--optimizer=adamw"],
        [*DAMAGED, "optimizer=muon, not adamw;"],
        checkpoint(),
    ),
    (
        ("gpt_char",),
        ["--data_dir=data/other"],
        [*DAMAGED, "data="],
        lambda make: (
            checkpoint()(make),
            file("data/other/input.txt", b"other" * 200)(make),
        ),
    ),
    # files that are no checkpoints, or not of ours, or not all of one
    (("gpt_char",), [], DAMAGED, checkpoint(change=truncate)),
    (("gpt_char",), [], DAMAGED, file(LAST, b"")),
    (("gpt_char",), [], DAMAGED, file(LAST, b"not one")),
    (("gpt_char",), [], DAMAGED, file(LAST, random.Random(1).randbytes(5000))),
    (("gpt_char",), [], DAMAGED, checkpoint(change=foreign)),
    (("gpt_char",), [], DAMAGED, checkpoint(change=evil)),
    (("gpt_char",), [], DAMAGED, checkpoint(change=evil_plain)),
    *(
        (("gpt_char",), [], [*DAMAGED, f"'{key}'"], checkpoint(change=without(key)))
        for key in ("identity", "step", "best_val_loss", "model", "optimizers")
    ),
    (("gpt_char",), [], DAMAGED, checkpoint(change=other_optimizers)),
    (("gpt_char",), [], DAMAGED, checkpoint(change=other_weights)),
]


def cases(table):
    return [
        pytest.param(script, *row, id=f"{script}-{i}-{' '.join(row[0]) or row[1][0]}")
        for i, (scripts, *row) in enumerate(table)
        for script in scripts
    ]


@pytest.fixture
def make(run, tiny):
    """make(*args): the checkpoints of a gpt_char of a few steps."""
    args = [*tiny, "--max_iters=2", "--eval_interval=1", "--max_new_tokens=1"]
    return lambda *more: run("gpt_char.py", *args, *more)


@pytest.fixture(scope="session")
def write_shard():
    return names_of("prepare_shakespeare.py", run_name="prepare_shakespeare")[
        "write_shard"
    ]


@pytest.fixture
def shards(folder, text, write_shard):
    """Shards of bytes under data/text/bytes: the beginning of the text."""
    for name, part in (("train_000001", text[:4000]), ("val_000000", text[4000:4500])):
        write_shard(Path(f"data/text/bytes/text_{name}.bin"), part.encode(), 256)


def arguments(script, args, tiny):
    few = ["--device=cpu", "--max_new_tokens=1", "--max_iters=3", "--eval_interval=1"]
    if any(arg.startswith("--device") for arg in args):
        few = few[1:]
    sizes = {
        "gpt_char": tiny,
        "gpt2_train": SHARDS,
        "sparse_gpt": [*SHARDS, "--stride=8"],
    }
    return [*few, *sizes.get(script, []), *args]


def refused(done, script, needles, code):
    """It ended as it should; returns the line that says why."""
    assert done.code == code, done.err
    *usage, line, end = done.err.split("\n")
    assert end == "" and len(line) < 600, done.err
    if code == 2:
        assert usage == [f"usage: {script}.py [--name=value]"], done.err
        assert line.startswith(f"{script}.py: error: "), line
    else:
        assert usage == [], done.err
    for needle in needles:
        assert needle in line, line
    assert "Traceback" not in done.err and "final val loss" not in done.out
    # PyTorch's own advice: load it all the same
    assert "weights_only" not in line and "can still be loaded" not in line, line
    return line


@pytest.mark.parametrize("script, args, needles, setup", cases(COMMAND_LINES))
def test_usage_and_one_line(run_any, shards, tree, tiny, script, args, needles, setup):
    if setup:
        setup(None)
    files = tree()
    done = run_any(f"{script}.py", *arguments(script, args, tiny))
    refused(done, script, needles, code=2)
    assert tree() == files


@pytest.mark.parametrize("script, args, needles, setup", cases(FAILURES))
def test_one_line(run_any, make, tree, tiny, script, args, needles, setup):
    if setup:
        setup(make)
    files = tree()
    done = run_any(f"{script}.py", *arguments(script, args, tiny))
    refused(done, script, needles, code=1)
    assert tree() == files


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("script", ALL[2:])
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_no_gpu(run_any, shards, tree, tiny, script, device):
    files = tree()
    done = run_any(f"{script}.py", *arguments(script, [f"--device={device}"], tiny))
    refused(done, script, [f"--device={device}"], code=2)
    assert tree() == files


def settings(run_any, script):
    """The flags that --help lists, with their defaults: {name: text}."""
    help_text = run_any(f"{script}.py", "--device=cpu", "--help").out
    found = re.findall(r"^  --(\w+)(?:, --no-\w+| [A-Z_]\w*)\s+(\S*)", help_text, re.M)
    assert len(found) == help_text.count("\n  --") - ("\n  --help" in help_text)
    return dict(found)


@pytest.mark.long
@pytest.mark.parametrize("script", ALL)
def test_every_number_is_checked(run_any, shards, tree, tiny, script):
    """Each setting of each script, given what no number of its kind can be.

    All scripts refuse other kinds, and from rung 3 on numbers that are too small.
    """
    files, kinds = tree(), set()
    for name, default in settings(run_any, script).items():
        if re.fullmatch(r"\d+", default):
            kind, wrong, small = "int", {"x": "invalid int", "0.5": "invalid int"}, [-1]
        elif re.fullmatch(r"[\d.e-]+", default):
            kind, wrong = "float", {"x": "invalid float"}
            small = ["-0.1", "nan", "inf", "-inf"]
        else:
            continue
        kinds.add(kind)
        if script in ALL[2:]:
            wrong |= dict.fromkeys(small, "must be")
        if name == "temperature":
            wrong.pop("inf", None)  # all tokens equally likely
        for value, needle in wrong.items():
            args = arguments(script, [f"--{name}={value}"], tiny)
            done = run_any(f"{script}.py", *args)
            refused(done, script, [f"--{name}", needle], code=2)
    assert kinds == {"int", "float"} and tree() == files


@pytest.mark.parametrize("script", ALL[2:])
def test_every_switch(run_any, shards, script):
    """--name means True, --no-name False, and neither takes a word."""
    defaults = settings(run_any, script)
    switches = [name for name in defaults if defaults[name] in ("True", "False")]
    assert "bfloat16" in switches
    for name in switches:
        for word in ("yes", "True", "1", ""):
            done = run_any(f"{script}.py", f"--{name}={word}")
            refused(done, script, [f"--{name}", f"argument '{word}'"], code=2)
        for flag in (f"--{name}", f"--no-{name}"):
            # No complaint about it, only about the wrong flag that follows
            done = run_any(f"{script}.py", flag, "--x")
            refused(done, script, ["unrecognized arguments: --x"], code=2)


def test_a_switch_is_set(load, tiny):
    few = [word for word in tiny if "bfloat16" not in word]
    for word, value in (("--bfloat16", True), ("--no-bfloat16", False)):
        names = load("gpt_char.py", *few, word)
        assert names["bfloat16"] is names["config"]["bfloat16"] is value
        assert names["autocast"]._enabled is value


SEEN = {
    "bigram": (["--x=1"], "usage: bigram.py [--name=value]\nbigram.py: error: ", 2),
    "v2_attention": (["--data_dir=none"], str(Path("none/input.txt")), 1),
    "gpt_char": (["--n_layer=3"], str(LAST), 1),
}


@pytest.mark.parametrize("script", SEEN)
def test_as_a_user_sees_it(start, make, tree, tiny, script):
    args, beginning, code = SEEN[script]
    if script == "gpt_char":
        make()
    process = start(f"{script}.py", *arguments(script, args, tiny))
    files = tree()
    out, err = process.communicate(timeout=300)
    assert process.returncode == code
    assert (
        err.startswith(beginning) and err.count("\n") == code
    )  # one line, or usage and line
    assert tree() == files


def test_loss_that_is_no_number(run, tiny, tree):
    """A run that diverges says so and leaves the last good checkpoint."""
    args = [*tiny, "--max_iters=4", "--eval_interval=1", "--optimizer=adamw"]
    done = run("gpt_char.py", *args, "--learning_rate=1e18", "--weight_decay=0")
    assert done.code == 1 and done.err.count("\n") == 1
    assert "--learning_rate" in done.err
    for path in LAST.parent.glob("*.pt"):
        weights = torch.load(path, weights_only=True)["model"].values()
        assert all(p.isfinite().all() for p in weights)


def test_best_checkpoint_is_gone(make):
    make()
    weights = torch.load(LAST, weights_only=True)["model"]
    Path("out/gpt_char/best.pt").unlink()
    done = make()
    assert done.code == 1 and done.err.count("\n") == 1
    assert "out/gpt_char/best.pt" in done.err and "--out_dir" in done.err
    after = torch.load(LAST, weights_only=True)["model"]
    assert all(torch.equal(after[name], weights[name]) for name in weights)
