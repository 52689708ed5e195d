"""What is wrong is said in one line that names it, and nothing on the disk is touched.

A command line that makes no sense: the usage, one line, exit code 2. Anything else: one line, exit
code 1. The scripts run in this process, where an exception that is not a SystemExit fails the test;
test_as_a_user_sees_it runs a few of them as processes. What only prepare_shakespeare.py,
gpt2_train.py or sparse_gpt.py can be given is in their own tests.
"""

import pickle
import re
from pathlib import Path

import pytest
import torch
from conftest import names_of

STAGES = ("bigram", "v2_attention", "gpt_char")
ALL = (*STAGES, "gpt2_train", "sparse_gpt")
INPUT = Path("data/shakespeare/input.txt")
LAST = Path("out/gpt_char/last.pt")

# For a run of gpt2_train.py or sparse_gpt.py of milliseconds, on what the fixture shards makes
SHARDS = "--data_dir=data/text/bytes --total_batch_size=64 --block_size=16 --batch_size=2".split()
SHARDS += "--n_layer=1 --n_head=2 --n_embd=16 --eval_tokens=64 --bfloat16=False".split()


def write(content):
    return lambda make: INPUT.write_bytes(content)


def short_text(make):
    INPUT.write_bytes(b"abcdefghij" * 64)  # 640: the validation part is 64, as long as a context


def text_is_a_folder(make):
    INPUT.unlink()
    INPUT.mkdir()


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


# scripts, arguments, what the last line must name, what to do beforehand (and the scripts that
# can't do it yet); all end with code 2
COMMAND_LINES = [
    (ALL, ["--learning_rat=1"], ["unrecognized arguments: --learning_rat=1"], None),
    (ALL, ["--max_iter=1"], ["unrecognized arguments: --max_iter=1"], None),  # no abbreviations
    (ALL, ["--BLOCK-SIZE=8"], ["unrecognized arguments: --BLOCK-SIZE=8"], None),
    (ALL, ["--"], ["unrecognized arguments: --"], None),
    (ALL, ["train"], ["unrecognized arguments: train"], None),
    (ALL, ["max_iters=3"], ["unrecognized arguments: max_iters=3"], None),
    (ALL, ["-max_iters=3"], ["unrecognized arguments: -max_iters=3"], None),
    (ALL, ["--math=3"], ["unrecognized arguments: --math=3"], None),  # a name in the script
    (ALL, ["--max_iters=many"], ["--max_iters: invalid int value: 'many'"], None),
    (ALL, ["--max_iters=1.5"], ["--max_iters: invalid int value: '1.5'"], None),
    (ALL, ["--max_iters="], ["--max_iters: invalid int value: ''"], None),
    (ALL, ["--max_iters"], ["--max_iters: expected one argument"], None),
    (ALL, ["--max_iters", "5", "6"], ["unrecognized arguments: 6"], None),
    (ALL, ["--prompt"], ["--prompt: expected one argument"], None),
    (ALL, ["--learning_rate=fast"], ["--learning_rate: invalid float value: 'fast'"], None),
    (ALL[2:], ["--bfloat16=maybe"], ["--bfloat16: invalid bool value: 'maybe'"], None),
    (ALL[2:], ["--bfloat16=0"], ["--bfloat16: invalid bool value: '0'"], None),
    (ALL, ["--max_iters=-1"], ["--max_iters", "0 or more"], None),
    (ALL[:3], ["--batch_size=0"], ["--batch_size", "1 or more"], None),
    (ALL, ["--block_size=0"], ["--block_size", "1 or more"], None),
    (ALL, ["--block_size=-8"], ["--block_size", "1 or more"], None),
    (ALL, ["--eval_interval=0"], ["--eval_interval", "1 or more"], None),
    (ALL[2:], ["--log_interval=0"], ["--log_interval", "1 or more"], None),
    (ALL[1:3], ["--n_embd=0"], ["--n_embd", "1 or more"], None),
    (ALL[1:3], ["--n_head=0"], ["--n_head", "1 or more"], None),
    (ALL[2:3], ["--n_layer=0"], ["--n_layer", "1 or more"], None),
    (ALL[3:], ["--total_batch_size=0"], ["--total_batch_size", "1 or more"], None),
    (ALL[3:], ["--eval_tokens=0"], ["--eval_tokens", "1 or more"], None),
    (ALL[3:], ["--keep_every=0"], ["--keep_every", "1 or more"], None),
    (ALL[3:], ["--num_samples=0"], ["--num_samples", "1 or more"], None),
    (ALL[4:], ["--stride=0"], ["--stride", "1 or more"], None),
    (ALL[4:], ["--summary=0"], ["--summary", "1 or more"], None),
    (ALL, ["--temperature=-0.1"], ["--temperature", "0 or more"], None),
    (ALL, ["--temperature=nan"], ["--temperature", "0 or more"], None),
    (ALL, ["--learning_rate=inf"], ["--learning_rate", "0 or more"], None),
    (ALL, ["--top_k=-1"], ["--top_k", "0 or more"], None),
    (ALL, ["--seed=100000000000000000000"], ["--seed", "below 2**63"], None),
    (ALL, ["--seed=9223372036854775808"], ["--seed", "below 2**63"], None),
    (ALL, ["--seed=-1"], ["--seed", "0 or more"], None),
    (ALL, ["--device=abacus"], ["--device", "cuda"], None),
    (ALL, ["--device="], ["--device", "empty"], None),
    (ALL, ["--device=meta"], ["--device", "meta"], None),
    (ALL, ["--device=hpu"], ["--device"], None),  # a kind that torch knows by name only
    # the text
    (STAGES, [], ["--block_size", str(INPUT)], write(b"")),
    (STAGES, ["--block_size=64"], ["--block_size", str(INPUT), "640"], short_text),
    (STAGES, ["--prompt=AB#5é5"], ["--prompt", str(INPUT), "'#'", "'5'"], None),
    # the model
    (ALL[1:], ["--n_embd=30", "--n_head=4"], ["--n_embd", "n_head, which is 4"], None),
    (ALL[2:], ["--momentum=1"], ["--momentum", "below 1"], None),
    (ALL[2:], ["--dropout=1"], ["--dropout", "below 1"], None),
    (ALL[2:], ["--beta1=1"], ["--beta1", "below 1"], None),
    (ALL[2:], ["--beta2=1.5"], ["--beta2", "below 1"], None),
    (ALL[2:], ["--optimizer=sgd"], ["--optimizer", "muon", "adamw"], None),
    (ALL[2:], ["--init_from=gpt7"], ["--init_from", "resume", "scratch"], None),
]
DAMAGED = [f"{LAST}: ", "--init_from=scratch"]
# The same, but one line on stderr and code 1
FAILURES = [
    # the text
    (STAGES, ["--data_dir=data/none"], ["data/none/input.txt", "prepare_shakespeare.py"], None),
    (STAGES, [], [str(INPUT), "prepare_shakespeare.py"], text_is_a_folder),
    (STAGES, [], [str(INPUT), "utf-8", "position 3"], write(b"abc\xff" * 500)),
    # checkpoints of another shape
    (("gpt_char",), ["--n_layer=3"], [str(LAST), "[2, 2, 16, 16,", "--init_from"], checkpoint()),
    (("gpt_char",), ["--n_embd=32"], [str(LAST), "[2, 2, 16, 16,", "[2, 2, 32,"], checkpoint()),
    (("gpt_char",), ["--n_head=4"], [str(LAST), "[2, 2, 16, 16,", "[2, 4, 16,"], checkpoint()),
    (("gpt_char",), ["--block_size=32"], [str(LAST), "[2, 2, 16, 16,", "16, 32,"], checkpoint()),
    (("gpt_char",), ["--optimizer=adamw"], [str(LAST), "'muon'", "'adamw'"], checkpoint()),
    (
        ("gpt_char",),
        ["--data_dir=data/other"],
        [str(LAST), "'ehort'", "--init_from=scratch"],
        lambda make: (checkpoint()(make), file("data/other/input.txt", b"other" * 200)(make)),
    ),
    # files that are no checkpoints, or not of ours, or not all of one
    (("gpt_char",), [], DAMAGED, checkpoint(change=truncate)),
    (("gpt_char",), [], DAMAGED, file(LAST, b"")),
    (("gpt_char",), [], DAMAGED, file(LAST, b"not one")),
    (("gpt_char",), [], DAMAGED, checkpoint(change=foreign)),
    (("gpt_char",), [], DAMAGED, checkpoint(change=evil)),
    (("gpt_char",), [], DAMAGED, checkpoint(change=evil_plain)),
    *(
        (("gpt_char",), [], [str(LAST), f"'{key}'", "--init_from"], checkpoint(change=without(key)))
        for key in ("shape", "step", "best_val_loss", "model", "optimizers")
    ),
    (("gpt_char",), [], [str(LAST), "--init_from"], checkpoint(change=other_optimizers)),
    (("gpt_char",), [], [str(LAST), "--init_from"], checkpoint(change=other_weights)),
]  # fmt: skip


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
    return names_of("prepare_shakespeare.py", run_name="prepare_shakespeare")["write_shard"]


@pytest.fixture
def shards(folder, text, write_shard):
    """Shards of bytes under data/text/bytes: the beginning of the text."""
    for name, part in (("train_000001", text[:4000]), ("val_000000", text[4000:4500])):
        write_shard(Path(f"data/text/bytes/text_{name}.bin"), part.encode(), 256)


def arguments(script, args, tiny):
    few = ["--device=cpu", "--max_new_tokens=1", "--max_iters=3", "--eval_interval=1"]
    if any(arg.startswith("--device") for arg in args):
        few = few[1:]
    sizes = {"gpt_char": tiny, "gpt2_train": SHARDS, "sparse_gpt": [*SHARDS, "--stride=8"]}
    return [*few, *sizes.get(script, []), *args]


def refused(done, script, needles, code):
    """It ended as it should; returns the line that says why."""
    assert done.code == code, done.err
    *usage, line, end = done.err.split("\n")
    assert end == "" and len(line) < 600, done.err
    if code == 2:
        assert usage == [f"usage: {script}.py [--name=value ...]"], done.err
        assert line.startswith(f"{script}.py: error: "), line
    else:
        assert usage == [], done.err
    for needle in needles:
        assert needle in line, line
    assert "Traceback" not in done.err and "final val loss" not in done.out
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
@pytest.mark.parametrize("script", ALL)
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_no_gpu(run_any, shards, tree, tiny, script, device):
    files = tree()
    done = run_any(f"{script}.py", *arguments(script, [f"--device={device}"], tiny))
    refused(done, script, ["argument --device: "], code=2)
    assert tree() == files


@pytest.mark.parametrize("script", ALL)
def test_every_number_is_checked(run_any, shards, tree, script):
    """Each hyperparameter of each script, given what no number of its kind can be."""
    files, kinds = tree(), set()
    help_text = run_any(f"{script}.py", "--device=cpu", "--help").out
    for name, default in re.findall(r"^  --(\w+) (\S*)$", help_text, flags=re.M):
        if re.fullmatch(r"\d+", default):
            wrong, kind = {"x": "invalid int", "0.5": "invalid int", "-1": "or more"}, "int"
        elif re.fullmatch(r"[\d.e-]+", default):
            wrong, kind = {"x": "invalid float", "-0.1": "or more"}, "float"
            wrong |= dict.fromkeys(["nan", "inf", "-inf"], "or more")
        else:
            continue
        kinds.add(kind)
        for value, needle in wrong.items():
            done = run_any(f"{script}.py", f"--{name}={value}")
            refused(done, script, [f"argument --{name}: ", needle], code=2)
    assert kinds == {"int", "float"} and tree() == files


@pytest.mark.parametrize("script", ALL[2:])
def test_every_switch(run_any, shards, script):
    """A name alone means True; the two words of Python are understood, and no others."""
    help_text = run_any(f"{script}.py", "--device=cpu", "--help").out
    switches = re.findall(r"^  --(\w+) \[(?:True|False)\]$", help_text, flags=re.M)
    assert "bfloat16" in switches
    for name in switches:
        for word in ("yes", "true", "1", ""):
            done = run_any(f"{script}.py", f"--{name}={word}")
            refused(done, script, [f"argument --{name}: invalid bool value: '{word}'"], code=2)
        for words in ([], ["False"], ["True"]):
            # No complaint about it, only about the wrong flag that follows
            done = run_any(f"{script}.py", f"--{name}", *words, "--x")
            refused(done, script, ["unrecognized arguments: --x"], code=2)


def test_a_switch_alone_means_true(load, tiny):
    few = [word for word in tiny if "bfloat16" not in word]
    for words, value in ((["--bfloat16"], True), (["--bfloat16", "False"], False),
                         (["--bfloat16=True"], True), (["--bfloat16=False"], False)):  # fmt: skip
        names = load("gpt_char.py", *few, *words)
        assert names["bfloat16"] is names["config"]["bfloat16"] is value
        assert names["autocast"]._enabled is value


SEEN = {
    "bigram": (["--learning_rat=1"], "usage: bigram.py [--name=value ...]\nbigram.py: error: ", 2),
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
    assert err.startswith(beginning) and err.count("\n") == code  # one line, or usage and line
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
    assert "out/gpt_char/best.pt" in done.err and "--init_from=scratch" in done.err
    after = torch.load(LAST, weights_only=True)["model"]
    assert all(torch.equal(after[name], weights[name]) for name in weights)


def test_out_dir_is_a_file(run, tiny, tree):
    """Said before anything is trained; what is less likely ends in Python's own error in step 3."""
    file("a_file")(None)
    files = tree()
    done = run("gpt_char.py", *tiny, "--max_iters=1", "--out_dir=a_file")
    assert done.code == 2 and "--out_dir: a_file is a file" in done.err.splitlines()[-1]
    with pytest.raises(OSError, match="a_file"):
        run("gpt_char.py", *tiny, "--max_iters=1", "--out_dir=a_file/x")
    assert tree() == files


def test_disk_full(run, tiny, monkeypatch):
    """The checkpoint that was there stays, and the next run goes on from it."""

    class Full:
        def __init__(self, file):
            self.file, self.left = file, 1000

        def write(self, content):
            self.left -= len(content)
            if self.left < 0:
                raise OSError(28, "No space left on device")
            return self.file.write(content)

        def flush(self):
            self.file.flush()

    args = [*tiny, "--eval_interval=1", "--max_new_tokens=1"]
    assert run("gpt_char.py", *args, "--max_iters=2").code == 0
    before = {p.name: p.read_bytes() for p in LAST.parent.glob("*.pt")}
    save = torch.save
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", lambda state, f: save(state, Full(f)))
        with pytest.raises((OSError, RuntimeError)):  # Python's own error will do in step 3
            run("gpt_char.py", *args, "--max_iters=4")
    assert {p.name: p.read_bytes() for p in LAST.parent.glob("*.pt")} == before
    done = run("gpt_char.py", *args, "--max_iters=4")
    assert done.code == 0 and "going on from step 2" in done.out
    assert {p.name for p in LAST.parent.iterdir()} == {"best.pt", "last.pt"}
