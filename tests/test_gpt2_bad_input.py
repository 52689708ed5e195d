"""gpt2_train.py given what it cannot use: one clear line, exit 1 or 2, nothing overwritten."""

import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "gpt2_train.py"
TINY = (
    "--device=cpu --compile=False --float16=False --bfloat16=False --hellaswag=False "
    "--n_layer=1 --n_head=2 --n_embd=32 --block_size=16 --total_batch_size=128 "
    "--data_dir=tokens --out_dir=out --max_iters=2 --max_new_tokens=0"
).split()
WITHOUT_CUDA = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def write_shard(path, length=600, vocab_size=256, magic=20240520, version=1, highest=255):
    header = np.zeros(256, dtype="<i4")
    header[:4] = magic, version, length, vocab_size
    tokens = np.random.default_rng(0).integers(256, size=length).astype("<u2")
    tokens[length // 2] = highest
    path.write_bytes(header.tobytes() + tokens.tobytes())


@pytest.fixture
def attempt(tmp_path, monkeypatch, capsys):
    """A function that runs the script here; returns its exit code and what it would say."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    precision = torch.get_float32_matmul_precision()
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
        return 0, ""

    yield run
    torch.set_float32_matmul_precision(precision)
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).glob("*") if path.name != "lock"}


def refused(attempt, *args, says, code=1):
    """It ends with one line that holds all of says, and leaves an earlier run as it was."""
    before = contents("out")
    found, line = attempt(*args)
    assert found == code, line
    assert line.strip() and "\n" not in line.strip()
    for part in says:
        assert part in line, line
    assert contents("out") == before


TRAIN, VAL = "tokens/t_train_000001.bin", "tokens/t_val_000000.bin"
SHARDS = {
    "no train": (lambda: os.remove(TRAIN), ["tokens: has no *_train_*.bin", "prepare"]),
    "no val": (lambda: os.remove(VAL), ["tokens: has no *_val_*.bin", "prepare"]),
    "truncated": (lambda: os.truncate(TRAIN, 2000), [TRAIN, "2000 bytes, not 2224"]),
    "too long": (lambda: os.truncate(VAL, 2226), [VAL, "2226 bytes, not 2224"]),
    "half a header": (lambda: os.truncate(TRAIN, 100), [TRAIN, "not a shard"]),
    "empty": (lambda: os.truncate(TRAIN, 0), [TRAIN, "not a shard"]),
    "magic": (lambda: write_shard(Path(TRAIN), magic=20240801), [TRAIN, "not a shard"]),
    "version": (lambda: write_shard(Path(VAL), version=2), [VAL, "not a shard"]),
    "vocabulary": (lambda: write_shard(Path(VAL), vocab_size=1000), ["tokens", "bytes"]),
    "two vocabularies": (lambda: write_shard(Path(VAL), vocab_size=0), ["tokens", "bytes"]),
    "short": (lambda: write_shard(Path(TRAIN), length=16), ["tokens", "--block_size=16"]),
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
    refused(attempt, "--data_dir=nowhere", says=["nowhere: has no *_train_*.bin"])


FLAGS = {
    "--model=gpt5": ["--model=gpt5", "gpt2-xl"],
    "--init_from=gpt7": ["--init_from=gpt7", "scratch", "gpt2-medium"],
    "--optimizer=sgd": ["--optimizer=sgd", "adamw"],
    "--n_head=5": ["--n_embd=32", "--n_head=5"],
    "--dropout=1": ["--dropout=1", "below 1"],
    "--device=tpu": ["--device=tpu"],
}


@pytest.mark.parametrize("flag", FLAGS)
def test_bad_flags(attempt, flag):
    assert attempt()[0] == 0  # an earlier run, which must stay as it is
    refused(attempt, flag, says=FLAGS[flag])


@pytest.mark.parametrize("flag", ["--block_sise=16", "--max_iters=many", "--batch_size=-1", "now"])
def test_bad_command_line(attempt, flag):
    refused(attempt, flag, says=[flag], code=2)


@pytest.mark.parametrize("total", [1, 15, 63, 97, 130, 200, 1006])
@pytest.mark.parametrize("batch_size", [None, 2, 3])
def test_total_batch_size_names_the_nearest(attempt, total, batch_size):
    args = ["--max_iters=1", f"--batch_size={batch_size}"][: 2 if batch_size else 1]
    code, line = attempt(f"--total_batch_size={total}", *args)
    assert code == 1 and "\n" not in line and f"--total_batch_size={total}:" in line
    said = int(line.rpartition("--total_batch_size=")[2].split()[0])
    valid = range(16 * (batch_size or 1), 2000, 16 * (batch_size or 1))
    assert said in valid and abs(said - total) == min(abs(n - total) for n in valid)
    assert attempt(f"--total_batch_size={said}", *args, "--out_dir=nearest")[0] == 0
    assert attempt(f"--total_batch_size={total}", "--max_iters=0")[0] == 0  # sampling needs none


def test_nan_keeps_the_last_good_checkpoint(attempt):
    """Whether the loss of a step or that of an evaluation shows it first."""
    for eval_interval in (1, 100):
        out_dir = f"nan_{eval_interval}"
        code, line = attempt(
            "--learning_rate=1e30",
            "--optimizer=adamw",
            "--warmup_iters=0",
            "--max_iters=50",
            f"--eval_interval={eval_interval}",
            f"--out_dir={out_dir}",
        )
        assert code == 1 and "\n" not in line
        assert int(line.split()[1].rstrip(":")) < 10, line  # at once, not at the end
        assert "nan" in line and f"{out_dir}/last.pt" in line and "--learning_rate" in line
        for name in ("last.pt", "best.pt"):
            checkpoint = torch.load(Path(out_dir, name), weights_only=True)
            assert all(p.isfinite().all() for p in checkpoint["model"].values())
            assert np.isfinite(checkpoint["best_val_loss"])


def foreign(path):
    torch.save({"weights": torch.zeros(3)}, path)


CHECKPOINTS = {
    "block_size": (None, "--block_size=32", ["--block_size=16"]),
    "n_embd": (None, "--n_embd=64", ["--n_embd=32"]),
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
    refused(attempt, flag, f"--init_from={init_from}", says=["out/last.pt: ", *says])


def test_out_dir_is_a_file(attempt):
    Path("out_file").write_text("mine")
    refused(attempt, "--out_dir=out_file", says=["out_file"])
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
    refused(attempt, "--hellaswag=True", says=["hellaswag_val.jsonl: line 10"])


def test_empty_hellaswag(attempt, tmp_path):
    folder = tmp_path / "data/hellaswag"
    folder.mkdir(parents=True)
    (folder / "hellaswag_val.jsonl").touch()
    refused(attempt, "--hellaswag=True", says=["hellaswag_val.jsonl"])


def test_loaded_weights_that_do_not_fit(attempt, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    size = dict(n_positions=16, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    for name, vocab_size in (("hf", 256), ("other", 300)):
        config = transformers.GPT2Config(vocab_size=vocab_size, **size)
        transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / name)
    refused(attempt, "--init_from=hf", "--block_size=32", says=["--block_size=32", "hf has 16"])
    refused(attempt, "--init_from=other", says=["--data_dir=tokens", "256", "300"])
    Path("nothing").mkdir()
    refused(attempt, "--init_from=nothing", says=["--init_from=nothing"])


def test_without_transformers(tmp_path, attempt):
    """As a process of its own, with a module in the way that cannot be imported."""
    (tmp_path / "without").mkdir()
    (tmp_path / "without/transformers.py").write_text("raise ImportError('not here')")
    for flag in ("--init_from=gpt2", "--export_dir=exported"):
        done = subprocess.run(
            [sys.executable, SCRIPT, *TINY, flag],
            env={**WITHOUT_CUDA, "PYTHONPATH": str(tmp_path / "without")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert done.stderr == f"{flag}: needs transformers; pip install transformers\n"
    assert not Path("exported").exists()
    assert torch.load("out/last.pt", weights_only=True)["step"] == 2  # training is not lost
