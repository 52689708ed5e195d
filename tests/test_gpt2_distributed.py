"""gpt2_train.py on two processes on the CPU, over gloo, against one process.

Most of them are started as torchrun would do it, but as copies of this process: that is faster.
"""

import csv
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo  # every optimizer imports it: so copies of this process have it
import torch.distributed as dist
from conftest import popen

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


# Runs a script under torchrun; SIGTERM is noted in a file, and the process neither saves nor ends
# before it came twice, as on a slow disk. The file pid_n says which process has rank n
SLOW = """
import os, runpy, signal, sys, time
from pathlib import Path
import torch

rank, count, set_handler, save = os.environ["RANK"], 0, signal.signal, torch.save

def counting(signum, handler):
    def counted(*args):
        global count
        count += 1
        Path(f"told_{rank}").touch()
        return handler(*args)
    ours = signum == signal.SIGTERM and callable(handler)
    return set_handler(signum, counted if ours else handler)

def wait_for_the_second():
    end = time.monotonic() + 60
    while count == 1 and time.monotonic() < end:
        time.sleep(0.02)

def saving(*args):
    wait_for_the_second()
    return save(*args)

signal.signal, torch.save = counting, saving
Path(f"pid_{rank}").write_text(str(os.getpid()))
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    wait_for_the_second()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with byte shards under tokens/: 80 windows in two shards, all different."""
    path = tmp_path_factory.mktemp("distributed")
    (path / "tokens").mkdir()
    (path / "spy.py").write_text(SPY)
    (path / "slow.py").write_text(SLOW)
    rng = np.random.default_rng(0)
    for name, length in (("train_000001", 51 * 16 + 9), ("train_000002", 497), ("val_0", 300)):
        header = np.zeros(256, dtype="<i4")
        header[:4] = 20240520, 1, length, 256
        tokens = rng.choice(list(b"a few letters"), size=length).astype("<u2")
        path.joinpath(f"tokens/t_{name}.bin").write_bytes(header.tobytes() + tokens.tobytes())
    return path


def environment(**extra):
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **extra}


def train(folder, processes, *args, spy=False, expected=0, **extra):
    """Run to the end; returns stdout of all processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    command = [sys.executable, *(["spy.py"] if spy else ()), SCRIPT, *ARGS, *args]
    started = []
    for rank in map(str, range(processes)):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(processes)}
        env = environment(**extra, **({**ranks, **address} if processes > 1 else {}))
        started.append(popen(command, env=env, cwd=folder))
    outputs = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [expected] * processes, outputs
    return "".join(out for out, _ in outputs)


def torchrun(folder, *args, wrapper=()):
    """The same two processes by torchrun itself."""
    start = "-m torch.distributed.run --standalone --nproc_per_node=2".split()
    command = [sys.executable, *start, *wrapper, SCRIPT, *ARGS, *args]
    return popen(command, env=environment(), cwd=folder)


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
    steps = [*range(STEPS)], [1, *range(4, STEPS + 1, 4)]  # of training, of evaluation
    for a, b, expected in zip(curves(one), curves(two), steps):
        assert list(a) == list(b) == expected
        assert a == pytest.approx(b, rel=1e-5)
        assert a[expected[-1]] < a[expected[0]] - 0.1
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
    losses, val_losses = curves(two)
    losses = {step: loss for step, loss in losses.items() if step < 8}
    val_losses = {step: loss for step, loss in val_losses.items() if step <= 8}
    before = two
    for processes, step in ((1, 8), (2, 16)):
        out_dir = folder / f"from_{step}"
        out_dir.mkdir()
        shutil.copy(before / f"step_{step:06d}.pt", out_dir / "last.pt")
        shutil.copy(before / "best.pt", out_dir)
        stdout = train(folder, processes, f"--out_dir={out_dir.name}")
        assert f"going on from step {step}" in stdout and f"{processes} x cpu" in stdout
        for curve, new, first in zip((losses, val_losses), curves(out_dir), (step, step + 4)):
            assert min(new) == first
            curve.update(new)
        before = out_dir
    for curve, expected in zip((losses, val_losses), curves(one)):
        assert curve == pytest.approx(expected, rel=1e-5)


def test_one_process_told_to_stop_stops_all(folder):
    """SIGTERM reaches one process only, in step 5: both finish it, one saves."""
    stdout = train(folder, 2, "--out_dir=told", spy=True, expected=130, STOP="5")
    assert "stopped, saved in told: the same command goes on" in stdout
    assert torch.load(folder / "told/last.pt", weights_only=True)["step"] == 6
    assert list(curves(folder / "told")[0]) == list(range(6))


LONG_RUN = ["--max_iters=1000000", "--eval_interval=1000000", "--log_interval=1"]


def saved_and_goes_on(folder, out_dir, stdout):
    """What was stopped left a whole checkpoint, with which two processes take the next step."""
    assert f"stopped, saved in {out_dir}: the same command goes on" in stdout
    step = torch.load(folder / out_dir / "last.pt", weights_only=True)["step"]
    assert step > 0 and list(curves(folder / out_dir)[0]) == [*range(step)]
    assert not list((folder / out_dir).glob("*.tmp"))
    stdout = train(folder, 2, f"--out_dir={out_dir}", f"--max_iters={step + 1}")
    assert f"{out_dir}/last.pt: going on from step {step}\n" in stdout
    assert list(curves(folder / out_dir)[0]) == [*range(step + 1)]


def test_torchrun_told_to_stop(folder):
    """SIGTERM to torchrun itself, as schedulers do it: saved, and gone."""
    process = torchrun(folder, "--out_dir=scheduled", *LONG_RUN)
    for line in process.stdout:
        if "| loss" in line:
            process.send_signal(signal.SIGTERM)
            break
    stdout, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    saved_and_goes_on(folder, "scheduled", stdout)


@pytest.mark.long
def test_torchrun_and_all_its_processes_told_to_stop(folder):
    """SIGTERM to everything at once, as some schedulers do it; torchrun sends its own after it.

    So each process gets it twice, and the second one while the first process still saves.
    """
    process = torchrun(folder, "--out_dir=all", *LONG_RUN, wrapper=["slow.py"])
    try:
        for line in process.stdout:
            if "| loss" in line:
                break
        for rank in (0, 1):
            os.kill(int((folder / f"pid_{rank}").read_text()), signal.SIGTERM)
        end = time.monotonic() + 60
        while not all((folder / f"told_{rank}").exists() for rank in (0, 1)):
            assert time.monotonic() < end, "the processes were not told"
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGTERM)  # it ends its processes, too
    stdout, stderr = process.communicate(timeout=100)
    assert process.returncode != 0 and "signal: 15" in stderr
    saved_and_goes_on(folder, "all", stdout)
