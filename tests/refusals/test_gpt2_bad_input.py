"""gpt2_train.py given what it cannot use: one clear line, nothing overwritten."""

import json
import math
import os
import runpy
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "gpt2_train.py"
TINY = (
    "--device=cpu --no-compile --no-float16 --no-bfloat16 --no-hellaswag "
    "--n_layer=1 --n_head=2 --n_embd=32 --block_size=16 --total_batch_size=128 "
    "--data_dir=tokens --out_dir=out --max_iters=2 --max_new_tokens=0"
).split()


def write_shard(
    path, length=600, vocab_size=256, magic=20240520, version=1, highest=255
):
    header = np.zeros(256, dtype="<i4")
    header[:4] = magic, version, length, vocab_size
    tokens = np.random.default_rng(0).integers(256, size=length).astype("<u2")
    tokens[length // 2] = highest
    path.write_bytes(header.tobytes() + tokens.tobytes())


@pytest.fixture
def attempt(tmp_path, monkeypatch, capsys):
    """A function that runs the script here; returns its exit code and its message."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    (tmp_path / "tokens").mkdir()
    write_shard(tmp_path / "tokens/t_train_000001.bin")
    write_shard(tmp_path / "tokens/t_val_000000.bin")

    def run(*args):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *TINY, *args])
        capsys.readouterr()
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as end:  # any other exception would be a traceback
            if isinstance(end.code, str):
                return 1, end.code
            return end.code or 0, capsys.readouterr().err.strip()
        return 0, capsys.readouterr().err.strip()

    yield run
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).glob("*")}


def one_line(code, line):
    """The line that says what is wrong. Of a bad command line, it follows the usage."""
    if code == 2:
        usage, _, line = line.partition("\n")
        assert usage == "usage: gpt2_train.py [--name=value]"
        assert line.startswith("gpt2_train.py: error: ")
    assert line.strip() and "\n" not in line.strip()
    return line


def refused(attempt, *args, says, code=1):
    """It ends with a line that has all of says, and an earlier run stays as it was."""
    before = contents("out")
    found, line = attempt(*args)
    assert found == code, line
    line = one_line(code, line)
    for part in says:
        assert part in line, line
    assert contents("out") == before


TRAIN, VAL = "tokens/t_train_000001.bin", "tokens/t_val_000000.bin"
SHARDS = {
    "no train": (lambda: os.remove(TRAIN), ["tokens has no train shards", "prepare"]),
    "no val": (lambda: os.remove(VAL), ["tokens has no val shards", "prepare"]),
    "truncated": (lambda: os.truncate(TRAIN, 2000), [TRAIN, "2000 bytes, not 2224"]),
    "too long": (lambda: os.truncate(VAL, 2226), [VAL, "2226 bytes, not 2224"]),
    "half a header": (lambda: os.truncate(TRAIN, 100), [TRAIN, "not a shard"]),
    "empty": (lambda: os.truncate(TRAIN, 0), [TRAIN, "not a shard"]),
    "magic": (lambda: write_shard(Path(TRAIN), magic=20240801), [TRAIN, "not a shard"]),
    "version": (lambda: write_shard(Path(VAL), version=2), [VAL, "not a shard"]),
    "vocabulary": (
        lambda: write_shard(Path(VAL), vocab_size=1000),
        ["tokens", "bytes"],
    ),
    "two vocabularies": (
        lambda: write_shard(Path(VAL), vocab_size=0),
        ["tokens", "bytes"],
    ),
    "short": (
        lambda: write_shard(Path(TRAIN), length=16),
        ["tokens", "block_size=16"],
    ),
    "high id in train": (lambda: write_shard(Path(TRAIN), highest=256), [TRAIN, "256"]),
    "high id in val": (lambda: write_shard(Path(VAL), highest=65535), [VAL, "65535"]),
}


@pytest.mark.parametrize("name", SHARDS)
def test_bad_shards(attempt, name):
    damage, says = SHARDS[name]
    damage()
    code, line = attempt("--max_iters=6")  # more than an epoch: every window is read
    assert code == 1 and "\n" not in line.strip()
    assert all(part in line for part in says), line


def test_no_data_folder(attempt):
    refused(attempt, "--data_dir=nowhere", says=["nowhere has no train shards"])


def test_shard_that_cannot_be_read(attempt, monkeypatch):
    """It is not the shard's fault: nobody is told to delete it."""
    Path("tokens/t_train_000002.bin").mkdir()
    code, line = attempt()
    assert code == 1 and line.startswith("tokens/t_train_000002.bin cannot be read: ")
    assert "delete" not in line and "\n" not in line
    Path("tokens/t_train_000002.bin").rmdir()

    def forbidden(path, *args, **options):  # root may read anything
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(np, "fromfile", forbidden)
    code, line = attempt()
    assert (code, line) == (1, f"{TRAIN} cannot be read: Permission denied")


FLAGS = {  # what the line must name besides the flag
    "--model_size=gpt5": ["gpt2-xl"],
    "--init_from=gpt7": [],
    "--optimizer=sgd": ["adamw"],
    "--gelu=exact": ["tanh"],
    "--n_head=5": ["--n_embd=32"],
    "--n_layer=0": ["1"],
    "--dropout=1": [],
    "--momentum=1.5": [],
    "--device=tpu": [],
    "--export_dir=a_file": ["folder"],
    "--max_iters=-1": ["0"],
    "--batch_size=-1": ["0"],
    "--block_size=0": ["1"],
    "--block_size=-3": ["1"],
    "--learning_rate=nan": [],
    "--learning_rate=inf": [],
    "--temperature=1e-320": ["0.01"],
    "--temperature=nan": ["0.01"],
    "--temperature=-1": ["0.01"],
    "--temperature=1e30": ["0.01"],
}


@pytest.mark.parametrize("flag", FLAGS)
def test_bad_flags(attempt, flag):
    Path("a_file").write_text("mine")
    assert attempt() == (0, "")  # an earlier run, which must stay as it is
    name = flag.partition("=")[0]
    if name == "--temperature":  # its value is a float's by now
        flag_in_line = name
    else:
        flag_in_line = flag
    refused(attempt, flag, says=[flag_in_line, *FLAGS[flag]], code=2)
    assert Path("a_file").read_text() == "mine"


WORDS = {"--block_sise=16": "", "--max_iter=3": "", "now": "", "--compile=maybe": ""}
WORDS |= {"--max_iters=many": "many", "--n_embd=3.5": "3.5"}


@pytest.mark.parametrize("word", WORDS)
def test_bad_command_line(attempt, word):
    says = [word.partition("=")[0], WORDS[word]]
    refused(attempt, word, says=says, code=2)


@pytest.mark.long
@pytest.mark.parametrize("total", [1, 63, 130, 1006])
@pytest.mark.parametrize("batch_size", [None, 2, 3])
def test_total_batch_size_names_the_nearest(attempt, total, batch_size):
    args = ["--max_iters=1", f"--batch_size={batch_size}"][: 2 if batch_size else 1]
    code, line = attempt(f"--total_batch_size={total}", *args)
    assert code == 2 and f"--total_batch_size={total} must be" in one_line(code, line)
    said = int(line.rpartition("; ")[2].split()[0])
    valid = range(16 * (batch_size or 1), 2000, 16 * (batch_size or 1))
    assert f"a multiple of {valid.step}, " in line
    assert said in valid and abs(said - total) == min(abs(n - total) for n in valid)
    assert attempt(f"--total_batch_size={said}", *args, "--out_dir=nearest")[0] == 0
    assert (
        attempt(f"--total_batch_size={total}", "--max_iters=0")[0] == 0
    )  # sampling needs none


@pytest.mark.parametrize("eval_interval", [1, 100])
def test_nan_keeps_the_last_good_checkpoint(attempt, eval_interval):
    """Whether the loss of a step or that of an evaluation shows it first."""
    args = ["--optimizer=adamw", "--warmup_iters=0", f"--eval_interval={eval_interval}"]
    assert attempt(*args) == (0, "")
    before = contents("out")
    code, line = attempt(*args, "--learning_rate=1e18", "--max_iters=50")
    assert code == 1 and "\n" not in line
    if eval_interval == 1:
        assert "not finite" in line and "--learning_rate" in line
    else:
        assert int(line.split()[1].rstrip(":")) < 10, line  # at once, not at the end
        assert "nan" in line and "--learning_rate" in line
    for name in ("last.pt", "best.pt"):
        assert contents("out")[name] == before[name]
        checkpoint = torch.load(Path("out", name), weights_only=True)
        assert all(p.isfinite().all() for p in checkpoint["model"].values())
        assert math.isfinite(checkpoint["best_val_loss"])
    # A run that is no good from the start leaves no checkpoint to go on from
    code, line = attempt(
        *args, "--learning_rate=1e18", "--max_iters=50", "--out_dir=bad"
    )
    assert code == 1 and "\n" not in line and "--learning_rate" in line
    assert not list(Path("bad").glob("*.pt"))


def foreign(path):
    torch.save({"weights": torch.zeros(3)}, path)


CHECKPOINTS = {
    "block_size": (None, "--block_size=32", ["block_size=16", "32"]),
    "n_embd": (None, "--n_embd=64", ["n_embd=32", "64"]),
    "cut": (lambda path: os.truncate(path, 5000), "--seed=1", []),
    "empty": (lambda path: os.truncate(path, 0), "--seed=1", []),
    "foreign": (foreign, "--seed=1", []),
}


@pytest.mark.parametrize("init_from", ["resume", "out/last.pt"])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoint_that_does_not_fit(attempt, name, init_from):
    damage, flag, says = CHECKPOINTS[name]
    assert attempt()[0] == 0
    if damage:
        damage("out/last.pt")
    refused(
        attempt,
        flag,
        f"--init_from={init_from}",
        says=["out/last.pt: ", *says, "--out_dir"],
    )


def test_out_dir_is_a_file(attempt):
    Path("out_file").write_text("mine")
    refused(attempt, "--out_dir=out_file", says=["--out_dir", "out_file"], code=2)
    assert Path("out_file").read_text() == "mine"


GOOD = {"ctx": "it is", "endings": ["a", "b", "c", "d"], "label": 1}
LINES = {
    "no JSON": '{"ctx": "it is',
    "no object": "5",
    "empty line": "",
    "no label": json.dumps({k: v for k, v in GOOD.items() if k != "label"}),
    "three endings": json.dumps({**GOOD, "endings": ["a", "b", "c"]}),
    "a number": json.dumps({**GOOD, "ctx": 5}),
    "label": json.dumps({**GOOD, "label": "first"}),
}


@pytest.mark.parametrize("name", LINES)
def test_damaged_hellaswag(attempt, tmp_path, name):
    folder = tmp_path / "data/hellaswag"
    folder.mkdir(parents=True)
    lines = [json.dumps(GOOD)] * 9 + [LINES[name]] + [json.dumps(GOOD)]
    (folder / "hellaswag_val.jsonl").write_text("\n".join(lines) + "\n")
    refused(attempt, "--hellaswag", says=["hellaswag_val.jsonl", "line 10"])


def test_empty_hellaswag(attempt, tmp_path):
    folder = tmp_path / "data/hellaswag"
    folder.mkdir(parents=True)
    (folder / "hellaswag_val.jsonl").touch()
    refused(attempt, "--hellaswag", says=["hellaswag_val.jsonl", "line 1"])


def test_loaded_weights_that_do_not_fit(attempt, tmp_path):
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed"
    )
    size = dict(
        n_positions=16, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    config = transformers.GPT2Config(vocab_size=300, **size)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "other")
    refused(attempt, "--init_from=other", says=["tokens", "other"])
    Path("nothing").mkdir()
    refused(attempt, "--init_from=nothing", says=["--init_from=nothing: "])


def test_without_transformers(attempt, monkeypatch):
    """It says so before the training, not after it."""
    monkeypatch.setitem(sys.modules, "transformers", None)  # import: ImportError
    for flag in ("--init_from=gpt2", "--export_dir=exported"):
        code, line = attempt(flag)
        assert code == 1 and "\n" not in line and flag.partition("=")[0] in line
        assert line.endswith("pip install transformers")
    assert not Path("exported").exists() and not contents("out")
    assert attempt() == (0, "")  # all else needs none
