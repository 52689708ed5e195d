"""gpt2_train.py on two processes on the CPU, over gloo, against one process."""

import csv
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo"
)
SCRIPT = Path(__file__).parent.parent / "gpt2_train.py"
STEPS, WINDOWS = 20, 8  # of a run, and in a step
ARGS = (
    "--device=cpu --compile=False --float16=False --bfloat16=False --hellaswag=False "
    "--n_layer=2 --n_head=2 --n_embd=32 --block_size=16 --total_batch_size=128 --batch_size=2 "
    "--data_dir=tokens --eval_tokens=512 --eval_interval=4 --keep_every=4 --max_new_tokens=5 "
    f"--max_iters={STEPS} --learning_rate=3e-3"
).split()

# Runs a script, and notes what its DistributedDataParallel was given in this process; SIGTERM
# reaches the second process only, in the step STOP
SPY = """
import os, runpy, signal, sys
import torch
from torch.nn.parallel import DistributedDataParallel

seen, synchronised, forward = [], [], DistributedDataParallel.forward

def spy(self, x, y):
    seen.append(torch.cat((x, y[:, -1:]), 1))
    synchronised.append(self.require_backward_grad_sync)
    if os.environ["RANK"] == "1" and len(seen) == 2 * int(os.environ.get("STOP", -9)) + 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return forward(self, x, y)

DistributedDataParallel.forward = spy
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    torch.save((torch.stack(seen), synchronised), f"seen_{os.environ['RANK']}.pt")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with byte shards under tokens/: 80 windows in two shards, all different."""
    path = tmp_path_factory.mktemp("distributed")
    (path / "tokens").mkdir()
    (path / "spy.py").write_text(SPY)
    rng = np.random.default_rng(0)
    for name, length in (("train_000001", 51 * 16 + 9), ("train_000002", 497), ("val_0", 300)):
        header = np.zeros(256, dtype="<i4")
        header[:4] = 20240520, 1, length, 256
        tokens = rng.choice(list(b"a few letters"), size=length).astype("<u2")
        path.joinpath(f"tokens/t_{name}.bin").write_bytes(header.tobytes() + tokens.tobytes())
    return path


def command(processes, *args, spy=False):
    torchrun = "-m torch.distributed.run --standalone --nproc_per_node=2".split()
    start = [sys.executable, *(torchrun if processes == 2 else ()), *(["spy.py"] if spy else ())]
    return [*map(str, start), str(SCRIPT), *ARGS, *args]


def environment(**extra):
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **extra}


def train(folder, processes, *args, spy=False, expected=0, **extra):
    """Run to the end; returns stdout."""
    done = subprocess.run(
        command(processes, *args, spy=spy),
        cwd=folder,
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode == 0) == (expected == 0), done.stderr
    return done.stdout


def curves(out_dir):
    """{step: loss} and {step: val_loss} of a log.csv."""
    with open(out_dir / "log.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    return [
        {int(row["step"]): float(row[name]) for row in rows if row[name]}
        for name in ("loss", "val_loss")
    ]


@pytest.fixture(scope="module")
def one(folder):
    """The run on one process that all others must equal."""
    train(folder, 1, "--out_dir=one")
    return folder / "one"


@pytest.fixture(scope="module")
def two(folder):
    """The same on two processes."""
    train(folder, 2, "--out_dir=two", spy=True)
    return folder / "two"


def test_losses_equal_those_of_one_process(one, two):
    for a, b, length in zip(curves(one), curves(two), (STEPS, STEPS // 4 + 1)):
        assert len(a) == len(b) == length
        assert a == pytest.approx(b, rel=1e-5)
        assert a[length - 1 if length == STEPS else STEPS] < a[0] - 0.1
    names = [set(torch.load(f / "last.pt", weights_only=True)["model"]) for f in (one, two)]
    assert names[0] == names[1] and "wte.weight" in names[0]  # no prefix of the wrapper


def test_processes_share_every_window(folder, two):
    """Disjoint in every step, and together each window once in the epoch of 10 steps."""
    (a, synchronised), (b, _) = (torch.load(folder / f"seen_{rank}.pt") for rank in (0, 1))
    assert a.shape == b.shape == (STEPS * 2, 2, 17)
    ours = [{tuple(w) for w in side.flatten(0, 1).tolist()} for side in (a[:20], b[:20])]
    assert len(ours[0]) == len(ours[1]) == 40 and not ours[0] & ours[1]
    expected = [set() for _ in range(16)]  # an epoch cuts the shards at one of 16 places
    for path in sorted((folder / "tokens").glob("*_train_*.bin")):
        tokens = np.fromfile(path, dtype="<u2")[512:].tolist()
        for shift, windows in enumerate(expected):
            starts = range(shift, len(tokens) - 31 + shift, 16)
            windows |= {tuple(tokens[i : i + 17]) for i in starts}
    assert all(len(windows) == 80 for windows in expected) and ours[0] | ours[1] in expected
    assert synchronised == [False, True] * STEPS  # gradients only in the last micro-step


def test_resume_on_another_number_of_processes(folder, one, two):
    """2 processes to step 8, 1 to step 16, 2 to the end: the curve of one unbroken run."""
    losses, val_losses = ({k: v for k, v in curve.items() if k < 8} for curve in curves(two))
    before = two
    for processes, step in ((1, 8), (2, 16)):
        out_dir = folder / f"from_{step}"
        out_dir.mkdir()
        shutil.copy(before / f"step_{step:06d}.pt", out_dir / "last.pt")
        shutil.copy(before / "best.pt", out_dir)
        stdout = train(folder, processes, f"--out_dir={out_dir.name}")
        assert f"going on from step {step}" in stdout and f"{processes} x cpu" in stdout
        for curve, new in zip((losses, val_losses), curves(out_dir)):
            assert min(new) == step
            curve.update(new)
        before = out_dir
    for curve, expected in zip((losses, val_losses), curves(one)):
        assert curve == pytest.approx(expected, rel=1e-5)


def test_one_process_told_to_stop_stops_all(folder):
    """SIGTERM reaches one process only, in step 5: both finish it, one saves."""
    stdout = train(folder, 2, "--out_dir=told", spy=True, expected=1, STOP="5")
    assert "stopped at step 6, saved in told" in stdout
    assert torch.load(folder / "told/last.pt", weights_only=True)["step"] == 6
    assert list(curves(folder / "told")[0]) == list(range(6))


def test_torchrun_told_to_stop(folder):
    """SIGTERM to torchrun itself, as schedulers do it: saved, and gone."""
    process = subprocess.Popen(
        command(2, "--out_dir=scheduled", "--max_iters=1000000", "--eval_interval=1000000"),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    for line in process.stdout:
        if "| loss" in line:
            process.send_signal(signal.SIGTERM)
            break
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and "stopped at step" in stdout
    step = torch.load(folder / "scheduled/last.pt", weights_only=True)["step"]
    assert step > 0 and f"stopped at step {step}, saved in scheduled" in stdout
