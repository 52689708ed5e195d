"""gpt2_train.py on two processes on the CPU, over gloo, against one process.

Most are started as torchrun would do it, but as copies of this process: faster.
"""

import csv
import os
import shutil
import signal
import sys
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
from makers import (
    ROOT,
    continued,
    free_port,
    letters,
    popen,
    write_shard,
    write_shards,
)

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(),
    reason="this torch has no gloo",
)
SCRIPT = ROOT / "gpt2_train.py"
STEPS, WINDOWS = 20, 8  # of a run, and in a step
ARGS = (
    "--device=cpu --no-compile --no-float16 --no-bfloat16 --no-hellaswag "
    "--n_layer=2 --n_head=2 --n_embd=32 --block_size=16 --batch_size=2 "
    "--data_dir=tokens --eval_tokens=512 --eval_interval=4 --keep_every=4 "
    "--total_batch_size=128 --max_new_tokens=5 --learning_rate=3e-3 "
    f"--max_iters={STEPS}"
).split()

# Runs a script, and notes what its DistributedDataParallel was given in this process.
# SIGTERM reaches the second process only, in the step STOP
SPY = """
import os, runpy, signal, sys
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_post_hook

seen, synchronised, forward = [], [], DistributedDataParallel.forward
kept = {"seeds": set()}

def note(opt, *_):
    tensors = [x for state in opt.state.values() for x in state.values()]
    kept[type(opt).__name__] = sum(x.numel() for x in tensors)

register_optimizer_step_post_hook(note)

def spy(self, x, y):
    seen.append(torch.cat((x, y[:, -1:]), 1))
    synchronised.append(self.require_backward_grad_sync)
    kept["seeds"].add(torch.initial_seed())
    stop = int(os.environ.get("STOP", -9))
    if os.environ["RANK"] == "1" and len(seen) == 2 * stop + 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return forward(self, x, y)

DistributedDataParallel.forward = spy
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    torch.save((torch.stack(seen), synchronised, kept), f"seen_{os.environ['RANK']}.pt")
"""

# Runs a script, and prints the names of its threads at its end
THREADS = """
import glob, runpy, sys
from pathlib import Path

sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    paths = glob.glob("/proc/self/task/*/comm")
    print("threads", *(Path(path).read_text().strip() for path in paths))
"""

# Runs a script under torchrun. SIGTERM is noted in a file, and the process neither
# saves nor ends before it came twice, as on a slow disk. The file pid_n is of rank n
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
    """A folder with byte shards under tokens/: 80 different windows in two of them."""
    path = tmp_path_factory.mktemp("distributed")
    (path / "spy.py").write_text(SPY)
    (path / "threads.py").write_text(THREADS)
    (path / "slow.py").write_text(SLOW)
    write_shards(path / "tokens", 51 * 16 + 9, 300)
    write_shard(path / "tokens/t_train_000002.bin", letters(497))
    return path


def environment(**extra):
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **extra}


def train(
    folder, processes, *args, spy="", expected=0, each=((), ()), limit=300, **extra
):
    """Run to the end; returns stdout of all.

    spy: the program that runs the script. each: more arguments, by rank. limit: the
    seconds after which a process is killed.
    """
    port = str(free_port())
    command = [sys.executable, *spy.split(), SCRIPT, *ARGS, *args]
    started = []
    for rank in range(processes):
        env = environment(**extra)
        if processes > 1:
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            env |= {"WORLD_SIZE": str(processes)}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        started.append(popen([*command, *each[rank]], env=env, cwd=folder))
    outputs = [process.communicate(timeout=limit) for process in started]
    codes = [process.returncode for process in started]
    said = "".join(out for out, _ in outputs)
    errors = "".join(err for _, err in outputs)
    assert codes == [expected] * processes, f"{said}\n{errors}"
    return said


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
    train(folder, 2, "--out_dir=two", spy="spy.py")
    return folder / "two"


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="/proc has the names of threads")
def test_no_thread_of_the_process_group_outlives_it(folder):
    """One that does may abort a run that has ended well."""
    # With -u they are no copies of this process, in which all is imported already
    program = "-u threads.py"
    said = train(folder, 2, "--max_iters=2", "--out_dir=threads", spy=program)
    lines = [line for line in said.splitlines() if line.startswith("threads ")]
    assert len(lines) == 2
    assert not any("gloo" in line for line in lines), lines


def test_losses_equal_those_of_one_process(one, two):
    steps = (
        [*range(1, STEPS + 1)],
        [1, *range(4, STEPS + 1, 4)],
    )  # of training, of evaluation
    for a, b, expected in zip(curves(one), curves(two), steps):
        assert list(a) == list(b) == expected
        assert a == pytest.approx(b, rel=1e-5)
        assert a[expected[-1]] < a[expected[0]] - 0.1
    names = [
        set(torch.load(f / "last.pt", weights_only=True)["model"]) for f in (one, two)
    ]
    assert names[0] == names[1] and "wte.weight" in names[0]  # no prefix of the wrapper


def test_processes_share_every_window(folder, two):
    """Disjoint in every step, and in an epoch of 10 steps each window once."""
    a, synchronised, _ = torch.load(folder / "seen_0.pt")
    b, _, _ = torch.load(folder / "seen_1.pt")
    assert a.shape == b.shape == (STEPS * 2, 2, 17)
    ours = []
    for side in (a[:20], b[:20]):
        ours.append({tuple(window) for window in side.flatten(0, 1).tolist()})
    assert len(ours[0]) == len(ours[1]) == 40 and not ours[0] & ours[1]
    # An epoch cuts the shards at one of 16 places
    expected = [set() for _ in range(16)]
    for path in sorted((folder / "tokens").glob("*_train_*.bin")):
        tokens = np.fromfile(path, dtype="<u2")[512:].tolist()
        for shift, windows in enumerate(expected):
            starts = range(shift, len(tokens) - 31 + shift, 16)
            windows |= {tuple(tokens[i : i + 17]) for i in starts}
    assert all(len(windows) == 80 for windows in expected)
    assert ours[0] | ours[1] in expected
    # In every step, each process has a seed of its own
    seeds = [torch.load(folder / f"seen_{rank}.pt")[2]["seeds"] for rank in (0, 1)]
    assert [len(side) for side in seeds] == [STEPS, STEPS] and not seeds[0] & seeds[1]
    # Gradients are added up only in the last micro-step
    assert synchronised == [False, True] * STEPS


def difference(a, b):
    """The largest difference between the weights, and between Muon's means."""
    a, b = (torch.load(path, weights_only=True) for path in (a, b))
    assert a["model"].keys() == b["model"].keys()
    of_weights = [
        (a["model"][name] - b["model"][name]).abs().max() for name in a["model"]
    ]
    means = [x["optimizers"][0]["state"] for x in (a, b)]
    assert means[0].keys() == means[1].keys() and len(means[0]) == 2
    of_means = []
    for key in means[0]:
        left, right = (side[key]["mean"] for side in means)
        assert left.shape == right.shape
        of_means.append((left - right).abs().max() / left.abs().max())
    return max(of_weights).item(), max(of_means).item()


def test_weights_equal_those_of_one_process(folder, one, two):
    """The processes share Muon's products, and put together what they have computed."""
    for step in (4, 8):
        name = f"step_{step:06d}.pt"
        of_weights, of_means = difference(one / name, two / name)
        assert of_weights < 1e-6 and of_means < 1e-5, step
    # Each of them keeps half of the state: 16 pieces of 32 x 32, 2 of 32 x 128
    for rank in (0, 1):
        _, _, kept = torch.load(folder / f"seen_{rank}.pt")
        assert kept["Muon"] == 8 * 32 * 32 + 32 * 128
    state = torch.load(two / "last.pt", weights_only=True)["optimizers"][0]["state"]
    shapes = [tuple(entry["mean"].shape) for entry in state.values()]
    assert shapes == [(16, 32, 32), (2, 32, 128)]  # a checkpoint has all of it


@pytest.mark.parametrize("n_layer", [1, 3])
def test_pieces_that_cannot_be_halved(folder, n_layer):
    """Of 3 pieces one process takes 2, of a single one the second takes none."""
    args = [f"--n_layer={n_layer}", "--max_iters=4"]
    for processes in (1, 2):
        out_dir = f"pieces_{n_layer}_{processes}"
        train(folder, processes, *args, f"--out_dir={out_dir}")
    paths = [folder / f"pieces_{n_layer}_{n}/last.pt" for n in (1, 2)]
    of_weights, of_means = difference(*paths)
    assert of_weights < 1e-6 and of_means < 1e-5


def test_resume_on_another_number_of_processes(folder, one, two):
    """2 processes to step 8, 1 to 16, 2 to the end: the curve of an unbroken run."""
    losses, val_losses = curves(two)
    losses = {step: loss for step, loss in losses.items() if step <= 8}
    val_losses = {step: loss for step, loss in val_losses.items() if step <= 8}
    before = two
    for processes, step in ((1, 8), (2, 16)):
        out_dir = folder / f"from_{step}"
        out_dir.mkdir()
        shutil.copy(before / f"step_{step:06d}.pt", out_dir / "last.pt")
        shutil.copy(before / "best.pt", out_dir)
        stdout = train(folder, processes, f"--out_dir={out_dir.name}")
        assert continued(stdout) == [(f"{out_dir.name}/last.pt", step)]
        assert f"{processes} x cpu" in stdout
        for curve, new, first in zip(
            (losses, val_losses), curves(out_dir), (step + 1, step + 4)
        ):
            assert min(new) == first
            curve.update(new)
        before = out_dir
    for curve, expected in zip((losses, val_losses), curves(one)):
        assert curve == pytest.approx(expected, rel=1e-5)
    of_weights, of_means = difference(before / "last.pt", one / "last.pt")
    assert of_weights < 1e-4 and of_means < 1e-3  # rounding has grown in 20 steps


# What the processes find in folders of their own: a step of which run, or none
STARTS = {
    "other step": (("two", 8), ("two", 4)),
    "none": (("two", 8), None),
    "none in the first": (None, ("two", 8)),
    "other run": (("two", 8), ("altered", 8)),
}


@pytest.mark.parametrize("case", STARTS)
def test_folder_that_is_not_shared(folder, two, case):
    """They would train different models: refused in one line, without a stall."""
    each = []
    for rank, start in enumerate(STARTS[case]):
        name = f"own_{rank}_{case.replace(' ', '_')}"
        (folder / name).mkdir()
        each.append([f"--out_dir={name}"])
        if start is None:
            continue
        checkpoint = torch.load(two / f"step_{start[1]:06d}.pt", weights_only=True)
        if start[0] == "altered":
            checkpoint["best_val_loss"] += 0.1
        torch.save(checkpoint, folder / name / "last.pt")
    before = [sorted((folder / name[10:]).iterdir()) for (name,) in each]
    stdout = train(folder, 2, expected=1, each=each, limit=60)
    lines = [line for line in stdout.splitlines() if "not the same folder" in line]
    assert len(lines) == 1 and each[0][0] in lines[0] and "| loss" not in stdout
    assert before == [sorted((folder / name[10:]).iterdir()) for (name,) in each]


def test_one_process_told_to_stop_stops_all(folder):
    """SIGTERM reaches one process only, in step 5: both finish it, one saves."""
    stdout = train(folder, 2, "--out_dir=told", spy="spy.py", expected=130, STOP="5")
    assert "saved in told" in stdout.splitlines()[-1]
    assert torch.load(folder / "told/last.pt", weights_only=True)["step"] == 6
    assert list(curves(folder / "told")[0]) == list(range(1, 7))


LONG_RUN = ["--max_iters=1000000", "--eval_interval=1000000", "--log_interval=1"]


def saved_and_goes_on(folder, out_dir, stdout):
    """What was stopped left a whole checkpoint, from which two processes continue."""
    assert f"saved in {out_dir}" in stdout.splitlines()[-1]
    step = torch.load(folder / out_dir / "last.pt", weights_only=True)["step"]
    assert step > 0 and list(curves(folder / out_dir)[0]) == [*range(1, step + 1)]
    files = {path.name for path in (folder / out_dir).iterdir()}
    assert files == {"best.pt", "last.pt", "log.csv"}  # nothing temporary is left
    stdout = train(folder, 2, f"--out_dir={out_dir}", f"--max_iters={step + 1}")
    assert continued(stdout) == [(f"{out_dir}/last.pt", step)]
    assert list(curves(folder / out_dir)[0]) == [*range(1, step + 2)]


@pytest.mark.long
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
    """SIGTERM to everything at once, as some schedulers do it; torchrun sends its own.

    So each process gets it twice, the second time while the first process still saves.
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
