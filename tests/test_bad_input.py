"""What is wrong is said in one line that names it, and nothing on the disk is touched.

One table for all four scripts. They run in this process, where an exception that is not a
SystemExit fails the test; test_as_a_user_sees_it runs a few of them as processes.
"""

import pickle
import zipfile
from pathlib import Path

import pytest
import torch

STAGES = ("bigram", "v2_attention", "gpt_char")
ALL = (*STAGES, "prepare_shakespeare")
INPUT = Path("data/shakespeare/input.txt")
LAST = Path("out/gpt_char/last.pt")


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


def flip(path):
    """A bit of rot in the weights of the largest member."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + 64 + largest.file_size // 2] ^= 255
    path.write_bytes(bytes(content))


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


# scripts, arguments, what stderr must name, exit code, what to do beforehand
TABLE = [
    # the command line
    (STAGES, ["--learning_rat=1"], ["--learning_rat=1", "mean --learning_rate="], 2, None),
    (STAGES, ["--max_iter=1"], ["--max_iter=1", "mean --max_iters="], 2, None),
    (STAGES, ["--BLOCK-SIZE=8"], ["--BLOCK-SIZE=8", "mean --"], 2, None),
    (STAGES, ["--"], ["--: unknown"], 2, None),
    (STAGES, ["train"], ["train", "unknown"], 2, None),
    (STAGES, ["max_iters=3"], ["max_iters=3", "mean --max_iters="], 2, None),
    (STAGES, ["-max_iters=3"], ["-max_iters=3", "mean --max_iters="], 2, None),
    (STAGES, ["--math=3"], ["--math=3", "unknown"], 2, None),  # a name, but no hyperparameter
    (STAGES, ["--max_iters=many"], ["--max_iters=many", "int"], 2, None),
    (STAGES, ["--max_iters=1.5"], ["--max_iters=1.5", "int"], 2, None),
    (STAGES, ["--max_iters="], ["--max_iters=", "int"], 2, None),
    (STAGES, ["--max_iters"], ["--max_iters", "int"], 2, None),
    (STAGES, ["--max_iters", "5"], ["--max_iters", "int"], 2, None),
    (STAGES, ["--prompt"], ["--prompt", "str"], 2, None),
    (STAGES, ["--learning_rate=fast"], ["--learning_rate=fast", "float"], 2, None),
    (("gpt_char",), ["--bfloat16=maybe"], ["--bfloat16=maybe", "bool"], 2, None),
    (STAGES, ["--max_iters=-1"], ["--max_iters=-1", "0 or more"], 2, None),
    (STAGES, ["--batch_size=0"], ["--batch_size=0", "1 or more"], 2, None),
    (STAGES, ["--block_size=-8"], ["--block_size=-8", "1 or more"], 2, None),
    (STAGES, ["--eval_interval=0"], ["--eval_interval=0", "1 or more"], 2, None),
    (STAGES, ["--temperature=-0.1"], ["--temperature=-0.1", "0 or more"], 2, None),
    (STAGES, ["--temperature=nan"], ["--temperature=nan", "0 or more"], 2, None),
    (STAGES, ["--learning_rate=inf"], ["--learning_rate=inf", "0 or more"], 2, None),
    (STAGES, ["--top_k=-1"], ["--top_k=-1", "0 or more"], 2, None),
    (STAGES, ["--device=abacus"], ["--device=abacus", "cuda"], 1, None),
    (STAGES, ["--device="], ["--device="], 1, None),
    # the text
    (STAGES, ["--data_dir=data/none"], ["data/none/input.txt", "prepare_shakespeare.py"], 1, None),
    (STAGES, [], [str(INPUT), "prepare_shakespeare.py"], 1, text_is_a_folder),
    (STAGES, [], [str(INPUT), "--block_size"], 1, write(b"")),
    (STAGES, ["--block_size=64"], [str(INPUT), "--block_size=64", "650"], 1, short_text),
    (STAGES, [], [str(INPUT), "utf-8", "position 3"], 1, write(b"abc\xff" * 500)),
    (STAGES, ["--prompt=AB#5é5"], ["--prompt", "'#5'", str(INPUT)], 1, None),
    # the model
    (("gpt_char",), ["--momentum=1"], ["--momentum=1", "below 1"], 1, None),
    (STAGES[1:], ["--n_embd=30", "--n_head=4"], ["--n_embd=30", "--n_head=4"], 1, None),
    (("gpt_char",), ["--dropout=1"], ["--dropout=1", "below 1"], 1, None),
    (("gpt_char",), ["--optimizer=sgd"], ["--optimizer=sgd", "muon", "adamw"], 1, None),
    (("gpt_char",), ["--init_from=gpt2"], ["--init_from=gpt2", "resume", "scratch"], 1, None),
    (("gpt_char",), ["--beta1=1"], ["--beta1=1", "below 1"], 1, None),
    (("gpt_char",), ["--beta2=1.5"], ["--beta2=1.5", "below 1"], 1, None),
    (("gpt_char",), ["--out_dir=a_file"], ["a_file", "--out_dir"], 1, file("a_file")),
    (("gpt_char",), ["--out_dir=a_file/x"], ["a_file/x", "--out_dir"], 1, file("a_file")),
    # checkpoints
    (("gpt_char",), ["--n_layer=3"], [str(LAST), "--n_layer=2", "--init_from"], 1, checkpoint()),
    (("gpt_char",), ["--n_embd=32"], [str(LAST), "--n_embd=16"], 1, checkpoint()),
    (("gpt_char",), ["--n_head=4"], [str(LAST), "--n_head=2"], 1, checkpoint()),
    (("gpt_char",), ["--block_size=32"], [str(LAST), "--block_size=16"], 1, checkpoint()),
    (("gpt_char",), ["--optimizer=adamw"], [str(LAST), "--optimizer=muon"], 1, checkpoint()),
    (
        ("gpt_char",),
        ["--data_dir=data/other"],
        [str(LAST), "characters", "data/other/input.txt"],
        1,
        lambda make: (checkpoint()(make), file("data/other/input.txt", b"other" * 200)(make)),
    ),
    (("gpt_char",), [], [str(LAST), "--init_from=scratch"], 1, checkpoint(change=truncate)),
    (("gpt_char",), [], [str(LAST), "--init_from=scratch"], 1, checkpoint(change=flip)),
    (("gpt_char",), [], [str(LAST), "--init_from=scratch"], 1, file(LAST, b"")),
    (("gpt_char",), [], [str(LAST), "--init_from=scratch"], 1, file(LAST, b"not one")),
    (("gpt_char",), [], [str(LAST), "--init_from=scratch"], 1, checkpoint(change=evil)),
    (("gpt_char",), [], [str(LAST), "--init_from=scratch"], 1, checkpoint(change=evil_plain)),
    *(
        (("gpt_char",), [], [str(LAST), "--init_from"], 1, checkpoint(change=without(key)))
        for key in ("step", "best_val_loss", "model", "optimizers", "config", "chars")
    ),
    (("gpt_char",), [], [str(LAST), "--init_from"], 1, checkpoint(change=other_optimizers)),
    # prepare_shakespeare.py
    (ALL[3:], ["--sorce=a_file", "--name=x"], ["--sorce=a_file", "mean --source="], 2, None),
    (ALL[3:], ["a_file"], ["a_file", "unknown"], 2, file("a_file")),
    (ALL[3:], ["--source=a_file"], ["--source=a_file", "--name=NAME"], 2, file("a_file")),
    (ALL[3:], ["--name=x"], ["--name=x", "--source=FILE"], 2, None),
    (ALL[3:], ["--source"], ["--source", "expected"], 2, None),
    (ALL[3:], ["--source=a_file", "--name=../x"], ["--name=../x"], 2, file("a_file")),
    (ALL[3:], ["--source=a_file", "--name=.."], ["--name=.."], 2, file("a_file")),
    (ALL[3:], ["--source=a_file", "--name="], ["--name="], 2, file("a_file")),
    (ALL[3:], ["--source=none", "--name=x"], ["--source=none", "No such file"], 1, None),
    (ALL[3:], ["--source=data", "--name=x"], ["--source=data", "directory"], 1, None),
    (ALL[3:], ["--source=a_file", "--name=x"], ["a_file", "empty"], 1, file("a_file", b"")),
    (
        ALL[3:],
        ["--source=a_file", "--name=x"],
        ["a_file", "utf-8", "position 2"],
        1,
        file("a_file", b"ab\xffcd"),
    ),
    (ALL[3:], ["--source=a_file", "--name=b"], ["data/b"], 1,
     lambda make: (file("a_file")(make), file("data/b")(make))),
]  # fmt: skip
CASES = [
    pytest.param(script, *row, id=f"{script}-{i}-{' '.join(row[0]) or row[1][0]}")
    for i, (scripts, *row) in enumerate(TABLE)
    for script in scripts
]


@pytest.fixture
def make(run, tiny):
    """make(*args): the checkpoints of a gpt_char of a few steps."""
    args = [*tiny, "--max_iters=2", "--eval_interval=1", "--max_new_tokens=1"]
    return lambda *more: run("gpt_char.py", *args, *more)


def arguments(script, args, tiny):
    if script == "prepare_shakespeare":
        return args
    few = ["--device=cpu", "--max_new_tokens=1", "--max_iters=3", "--eval_interval=1"]
    return [*few, *(tiny if script == "gpt_char" else []), *args]


@pytest.mark.parametrize("script, args, needles, code, setup", CASES)
def test_one_line(run_any, make, tree, tiny, script, args, needles, code, setup):
    if setup:
        setup(make)
    files = tree()
    done = run_any(f"{script}.py", *arguments(script, args, tiny))
    assert done.code == code, done.err
    assert done.err.count("\n") == 1 and done.err.endswith("\n"), done.err
    for needle in needles:
        assert needle in done.err
    assert "Traceback" not in done.err and len(done.err) < 600
    assert "final val loss" not in done.out
    assert tree() == files


SEEN = {
    "bigram": (["--learning_rat=1"], "bigram.py: --learning_rat=1: unknown", 2),
    "gpt_char": (["--n_layer=3"], str(LAST), 1),
    "prepare_shakespeare": (["--source=none", "--name=x"], "--source=none: ", 1),
}


@pytest.mark.parametrize("script", SEEN)
def test_as_a_user_sees_it(start, make, tree, tiny, script):
    args, beginning, code = SEEN[script]
    if script == "gpt_char":
        make()
    process = start(f"{script}.py", *arguments(script, args, tiny))
    files = tree()
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.startswith(beginning) and err.count("\n") == 1
    assert tree() == files


def test_loss_that_is_no_number(run, tiny, tree):
    """A run that diverges says so and leaves the last good checkpoint."""
    args = [*tiny, "--max_iters=4", "--eval_interval=1", "--optimizer=adamw"]
    done = run("gpt_char.py", *args, "--learning_rate=1e30", "--weight_decay=0")
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


def test_disk_full(run, tiny, monkeypatch):
    """The checkpoint that was there stays, the unfinished one goes."""

    def full(fd):
        raise OSError(28, "No space left on device")

    args = [*tiny, "--eval_interval=1", "--max_new_tokens=1"]
    assert run("gpt_char.py", *args, "--max_iters=2").code == 0
    before = {p.name: p.read_bytes() for p in LAST.parent.iterdir()}
    monkeypatch.setattr("os.fsync", full)
    done = run("gpt_char.py", *args, "--max_iters=4")
    assert done.code == 1 and done.err.count("\n") == 1
    assert "No space left" in done.err and "--out_dir" in done.err
    assert {p.name: p.read_bytes() for p in LAST.parent.iterdir()} == before
