"""What long runs must survive: a full disk, damaged files, a second run, other systems.

What the three scripts that write checkpoints have in common is tested here. Kills and
signals are in test_resume.py, what can't be used at all is in tests/refusals.
"""

import os
import random
import re
import signal
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from makers import (
    ARGS,
    LARGE,
    ROOT,
    TRAINERS,
    assert_same_runs,
    assert_same_state,
    command,
    continued,
    final_loss,
    finish,
    one_line,
    popen,
    read,
    samples,
)

# ------------------------------------------------------------------------------- Kills
# Runs a script under torchrun; in its first start process 1 kills itself between two
# micro-steps of step 6, in its second one process 0 does in step 11
KILLER = """
import os, runpy, signal, sys
from torch.nn.parallel import DistributedDataParallel

start, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"])
forward = DistributedDataParallel.forward

def killing(self, x, y):
    now = (start, rank, step()) in ((0, 1, 6), (1, 0, 11))
    if now and self.require_backward_grad_sync:
        os.kill(os.getpid(), signal.SIGKILL)
    return forward(self, x, y)

def step():
    frame = sys._getframe()
    while "accumulation" not in frame.f_globals:  # up to the script
        frame = frame.f_back
    return frame.f_globals["step"]

if os.environ.get("KILL"):
    DistributedDataParallel.forward = killing
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def finish_torchrun(command, **options):
    """The same for torchrun, which is asked to end, and so ends its processes, where it
    hangs.
    """
    process = popen(command, **options)
    try:
        out, err = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.terminate()
        pytest.fail("it hangs; " + process.communicate()[1])
    assert process.returncode == 0, err
    return out, err


@pytest.mark.long
@pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="no gloo"
)
@pytest.mark.parametrize("script", LARGE)
def test_torchrun_restarts_what_was_killed(place, script):
    Path("killer.py").write_text(KILLER)
    torchrun = "-m torch.distributed.run --standalone --nproc_per_node=2"
    torchrun += " --max-restarts=3 killer.py"
    args = command(script, "--batch_size=1", "--eval_interval=4", "--max_iters=20")
    args = [args[0], *torchrun.split(), *args[1:]]
    # As the README says: without it, torchrun may send a new start to the addresses of
    # the old one
    env = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    out, _ = finish_torchrun([*args, "--out_dir=killed"], env={**env, "KILL": "1"})
    whole, _ = finish_torchrun([*args, "--out_dir=whole"], env=env)
    assert continued(out) == [("killed/last.pt", 4), ("killed/last.pt", 8)]
    assert continued(whole) == []
    assert_same_runs("killed", "whole")
    assert samples(out) == samples(whole) and final_loss(out) == final_loss(whole)


# ----------------------------------------------------------------------------- Signals
# Runs a script that a signal reaches in its fifth step, and in the sixth if it did not
# end then; and again, TIMES - 1 times, while it saves
TOLD = """
import os, runpy, signal, sys
import torch

clip, save, steps = torch.nn.utils.clip_grad_norm_, torch.save, []
signum = signal.Signals[os.environ["SIGNAL"]]

def clipping(*args):
    steps.append("one more")
    if len(steps) == 5:
        os.kill(os.getpid(), signum)
    return clip(*args)

def saving(*args):
    for _ in range(int(os.environ["TIMES"]) - 1 if len(steps) == 5 else 0):
        os.kill(os.getpid(), signum)
    return save(*args)

torch.nn.utils.clip_grad_norm_, torch.save = clipping, saving
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def tell(script, args, name, times=1, code=130):
    """Run a script that is told to stop in its fifth step."""
    Path("told.py").write_text(TOLD)
    python, *more = command(script, *args)
    env = {**os.environ, "SIGNAL": name, "TIMES": str(times)}
    return finish([python, "told.py", *more], code=code, env=env)


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
@pytest.mark.parametrize("script", TRAINERS)
def test_ctrl_c_twice(place, script):
    """It ends at once, here in the middle of saving; what had been saved is intact."""
    args = ["--max_iters=9", "--eval_interval=4", "--out_dir=run"]
    tell(script, args, "SIGINT", times=2, code=-signal.SIGINT)
    assert read("run/last.pt")["step"] == 4
    out, _ = finish(command(script, *args))
    assert continued(out) == [("run/last.pt", 4)]
    finish(command(script, *args[:-1], "--out_dir=whole"))
    assert_same_runs("run", "whole")


@pytest.mark.parametrize("script", TRAINERS)
def test_sigterm_three_times(place, script):
    """As schedulers do, which lose patience: saved as after one."""
    tell(script, ["--max_iters=9", "--out_dir=run"], "SIGTERM", times=3)
    tell(script, ["--max_iters=9", "--out_dir=once"], "SIGTERM")
    assert read("run/last.pt")["step"] == 5
    last = [read(Path(f, "last.pt")) for f in ("run", "once")]
    assert_same_state(*last)
    names = [{p.name for p in Path(folder).iterdir()} for folder in ("run", "once")]
    assert names[0] == names[1]


@pytest.mark.parametrize("script", TRAINERS)
def test_ctrl_c_while_sampling(place, script):
    """It ends, without a traceback."""
    Path("told.py").write_text(TOLD.replace("if len(steps) == 5:", "if False:"))
    source = Path("told.py").read_text()
    patch = """
def drawing(*args, draw=torch.multinomial, **kwargs):
    os.kill(os.getpid(), signum)
    return draw(*args, **kwargs)

torch.multinomial = drawing
"""
    source = source.replace(
        "sys.argv = sys.argv[1:]", patch + "sys.argv = sys.argv[1:]"
    )
    Path("told.py").write_text(source)
    args = ["--out_dir=run", "--max_iters=2"]
    finish(command(script, *args))
    python, *more = command(script, *args)
    env = {**os.environ, "SIGNAL": "SIGINT", "TIMES": "1"}
    out, err = finish([python, "told.py", *more], code=130, env=env)
    assert err == "" and final_loss(out) is None
    assert continued(out) == [("run/last.pt", 2)]


# --------------------------------------------------------------------------- Full disk
# Runs a script in which no file may become longer than LIMIT
LIMITED = """
import os, resource, runpy, signal, sys

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error, as where the disk is full
resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["LIMIT"]),) * 2)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.long
@pytest.mark.parametrize(
    "script, limit",  # a checkpoint has from 20 to 100 KB; first, there is log.csv
    [
        *(("gpt_char", size) for size in (1000, 15_000)),
        *((name, size) for name in LARGE for size in (700, 60_000)),
    ],
)
def test_disk_full(place, run_any, script, limit):
    """One line, nothing half written, and with space again the run continues."""
    pytest.importorskip("resource", reason="this system has no such limits")
    Path("limited.py").write_text(LIMITED)
    args = [*ARGS[script], "--eval_interval=10", "--out_dir=run"]
    assert run_any(f"{script}.py", *args, "--max_iters=1").code == 0
    before = {p.name: p.read_bytes() for p in Path("run").iterdir()}
    python, *more = command(script, *args, "--max_iters=30")
    env = {**os.environ, "LIMIT": str(limit)}
    _, err = finish([python, "limited.py", *more], code=1, env=env)
    after = {p.name: p.read_bytes() for p in Path("run").iterdir()}
    one_line(err, "run/")
    assert after.keys() == before.keys() >= {"best.pt", "last.pt"}
    assert all(after[name] == before[name] for name in before if name.endswith(".pt"))
    assert run_any(f"{script}.py", *args, "--max_iters=30").code == 0
    assert read("run/last.pt")["step"] == 30
    finish(command(script, "--eval_interval=10", "--max_iters=1", "--out_dir=whole"))
    finish(command(script, "--eval_interval=10", "--max_iters=30", "--out_dir=whole"))
    assert_same_runs("run", "whole")


# ----------------------------------------------------------------------- Damaged files
def damage(good, flips, cuts, seed, regions=()):
    """Yields flips of good with one byte changed, half of them in regions, and cuts of
    it.
    """
    rng = random.Random(seed)
    for i in range(flips):
        low, high = (
            regions[i // 2 % len(regions)] if regions and i % 2 else (0, len(good))
        )
        place = rng.randrange(low, high)
        byte = good[place] ^ rng.choice(
            [1, 2, 4, 8, 16, 32, 64, 128, rng.randint(1, 255)]
        )
        yield good[:place] + bytes([byte]) + good[place + 1 :]
    for length in [
        0,
        1,
        *(rng.randrange(len(good)) for _ in range(cuts - 3)),
        len(good) - 1,
    ]:
        yield good[:length]


def directory_bits(good):
    """Where the bytes of a checkpoint are in which 16 would mean that an entry is a
    folder.
    """
    starts = [match.start() for match in re.finditer(b"PK\x01\x02", good)]
    return [
        start + 38 for start in starts if good[start + 46 :].startswith(b"archive/")
    ]


@pytest.mark.parametrize("script", TRAINERS)
def test_damaged_checkpoint(place, run_any, script):
    """Refused by name, or what is loaded is to the bit what was saved."""
    args = [*ARGS[script], "--max_iters=2", "--eval_interval=1", "--out_dir=run"]
    names = run_any(f"{script}.py", *args).names
    path = Path("run/last.pt")
    given = "last.pt" if script == "gpt_char" else path
    good, state = path.read_bytes(), read(path)
    found = Counter()
    ends = [(0, 3000), (len(good) - 3000, len(good))]  # the pickle; what is inside
    folders = directory_bits(good)
    for bad in damage(good, flips=200, cuts=60, seed=1, regions=ends):
        if len(bad) == len(good) and any(bad[i] & 16 for i in folders):
            continue  # PyTorch takes the entry for a folder, and reads anything
        path.write_bytes(bad)
        try:
            step, best_val_loss = names["load_checkpoint"](given)
        except SystemExit as error:
            one_line(error.code + "\n", "run/last.pt: ", "--out_dir")
            found["refused"] += 1
            continue
        loaded = {**state, "step": step, "best_val_loss": best_val_loss}
        loaded["model"] = names["model"].state_dict()
        loaded["optimizers"] = [opt.state_dict() for opt in names["optimizers"]]
        assert_same_state(loaded, state)
        found["harmless"] += 1
    assert found["refused"] > 200, found
    path.write_bytes(good)
    assert names["load_checkpoint"](given)[0] == 2


@pytest.mark.parametrize("script", TRAINERS)
def test_best_without_last(place, run_any, script):
    """It continues from there, and samples from what was trained."""
    args = [*ARGS[script], "--out_dir=run", "--eval_interval=2"]
    run_any(f"{script}.py", *args, "--max_iters=4")
    with_last = run_any(f"{script}.py", *args, "--max_iters=0")
    step = read("run/best.pt")["step"]
    Path("run/last.pt").unlink()
    done = run_any(f"{script}.py", *args, "--max_iters=0")
    assert (done.code, done.err) == (0, "") and "untrained" not in done.out
    assert re.search(rf"^run/best.pt: .*step {step}\b", done.out, flags=re.M)
    assert samples(done.out) == samples(with_last.out) != []
    done = run_any(f"{script}.py", *args, "--max_iters=6")
    assert continued(done.out) == [("run/best.pt", step)]
    assert ", continuing\n" in done.out
    assert read("run/last.pt")["step"] == 6
    done = run_any(f"{script}.py", *args, "--max_iters=5")
    assert "run/last.pt: step 6 (max_iters=5), nothing left to train\n" in done.out
    assert read("run/last.pt")["step"] == 6


@pytest.mark.parametrize("script", TRAINERS)
def test_untrained_is_said(place, run_any, script):
    """But not of a run that was stopped before its first evaluation."""
    args = ["--out_dir=run", "--max_iters=9", "--eval_interval=100"]
    few = [*ARGS[script], "--out_dir=run", "--max_iters=0"]
    assert "untrained" in run_any(f"{script}.py", *few).out
    tell(script, args, "SIGINT")
    done = run_any(f"{script}.py", *few)
    assert (done.code, done.err) == (0, "") and "untrained" not in done.out


@pytest.mark.long
@pytest.mark.parametrize("part", ["header", "tokens"])
def test_damaged_shard(place, run_any, part):
    """Refused by name, or at most a single token has become another one of the
    vocabulary.

    The format has no checksum: that is as much as a reader can know. What
    prepare_fineweb.py wrote its --verify compares with manifest.json.
    """
    path = Path("tokens/t_val_000000.bin")
    good = path.read_bytes()
    tokens = np.frombuffer(good[1024:], dtype="<u2")
    flips = [(0, 16)] if part == "header" else [(1024, len(good))]
    found = Counter()
    for bad in damage(good, flips=80, cuts=30, seed=part, regions=flips * 2):
        path.write_bytes(bad)

        def call():
            names = run_any("gpt2_train.py", *ARGS["gpt2_train"], "--max_iters=0")
            if names.code == 0:
                names.names["eval_tokens"] = 10**6  # read all of it
                names.names["estimate_loss"]()
            return names

        try:
            done = call()
        except SystemExit as error:  # while reading
            one_line(error.code + "\n", str(path))
            found["refused"] += 1
            continue
        if done.code:
            assert done.code == 1
            one_line(done.err, "tokens")
            found["refused"] += 1
        else:
            (read,) = done.names["shards"]["val"]
            assert len(read) == len(tokens) and read.max() < 256
            assert (read != tokens).sum() <= 1
            found["harmless"] += 1
    assert len(found) == 2 and found["refused"] > 50, found


@pytest.mark.long
def test_damaged_text(folder, run):
    """Refused by name, or trained on is what the file says: all of it, one character
    changed.
    """
    path = Path("data/shakespeare/input.txt")
    good = path.read_bytes()[:3000].rstrip(b"\xc3")
    text = good.decode()
    found = Counter()
    for bad in damage(good, flips=120, cuts=80, seed=2):
        path.write_bytes(bad)
        args = ["--max_iters=0", "--max_new_tokens=0", "--block_size=16"]
        try:
            done = run("bigram.py", *args)
        except UnicodeDecodeError:  # a traceback will do in rung 1
            found["refused"] += 1
            continue
        if done.code:  # no text, or too little of it for a window
            assert done.code == 2
            one_line(done.err, "--block_size", str(path), script="bigram")
            found["refused"] += 1
            continue
        read = done.names["text"]
        assert read.encode() == bad
        if len(bad) == len(good):
            assert (
                len(read) == len(text) and sum(a != b for a, b in zip(read, text)) == 1
            )
        else:
            assert text.startswith(read)
        found["harmless"] += 1
    assert min(found["refused"], found["harmless"]) > 20, found


# ---------------------------------------------------------------- Two runs, one folder
@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the second run is a fork")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("script", TRAINERS)
def test_two_runs_in_one_folder(place, run_any, monkeypatch, script, when):
    """While one writes a checkpoint, the other writes all of its own; both end well."""
    args = ["--out_dir=run", "--eval_interval=1", "--init_from=scratch"]
    save, saved = torch.save, []

    def saving(*arguments):
        saved.append(when)
        if when == "after":
            save(*arguments)
        if len(saved) == 3:
            finish(command(script, *args, "--max_iters=3", "--seed=7"))
            for path in Path("run").glob("*.pt"):
                read(path)
        if when == "before":
            save(*arguments)

    monkeypatch.setattr(torch, "save", saving)
    done = run_any(f"{script}.py", *ARGS[script], *args, "--max_iters=4")
    assert (done.code, done.err) == (0, "") and len(saved) > 3
    assert read("run/last.pt")["step"] == 4
    read("run/best.pt")
    names = {path.name for path in Path("run").iterdir()} - {"log.csv"}
    assert names == {"best.pt", "last.pt"}


# ------------------------------------------------------------ A folder for checkpoints
@pytest.mark.parametrize("script", TRAINERS)
def test_out_dir_on_a_full_disk(place, tree, script):
    pytest.importorskip("resource", reason="this system has no such limits")
    Path("limited.py").write_text(LIMITED)
    files = tree()
    python, *more = command(script, "--out_dir=run", "--max_iters=2")
    env = {**os.environ, "LIMIT": "0"}
    out, err = finish([python, "limited.py", *more], code=2, env=env)
    assert "step " not in out and tree() == files
    one_line(err.split("\n", 1)[1], "--out_dir=run")


@pytest.mark.parametrize("script", TRAINERS)
def test_sampling_needs_no_folder(place, run_any, tree, script):
    files = tree()
    args = [*ARGS[script], "--max_iters=0", "--out_dir=run"]
    assert run_any(f"{script}.py", *args).code == 0
    assert tree() == files and not Path("run").exists()


# -------------------------------------------------------------------------------- GPUs
class Reached(Exception):
    """The script has come to what needs several GPUs."""


@pytest.mark.parametrize("args", [[], ["--device=cuda"], ["--device=cpu"]])
@pytest.mark.parametrize("script", LARGE)
def test_every_process_takes_its_own_gpu(place, run_any, monkeypatch, script, args):
    """The second of two processes, on a machine that seems to have two GPUs.

    "cuda", given or chosen, is the second one, and that before anything is put there.
    """
    said = []

    def init_process_group(**options):
        said.append("init_process_group")
        # A stall must not cost two hours that are paid for
        assert "timeout" not in options or options["timeout"].total_seconds() <= 1200
        raise Reached

    zeros = torch.zeros

    def make(*size, device="cpu", **options):
        said.append(f"zeros {device}")
        return zeros(*size, **options)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda n: said.append(f"GPU {n}"))
    monkeypatch.setattr(torch, "zeros", make)
    monkeypatch.setattr(dist, "init_process_group", init_process_group)
    for name, value in {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Reached):
        run_any(f"{script}.py", "--n_layer=1", *args)
    cpu = args == ["--device=cpu"]
    assert said == [*([] if cpu else ["GPU 1"]), "init_process_group"]


# -------------------------------------------------------------------------------- Soak
# Runs a script; with every line of progress, the step, pages of memory and open files
# on stderr
WATCHED = """
import builtins, os, runpy, sys

def watching(*args, real=print, **kwargs):
    real(*args, **kwargs)
    if args and str(args[0]).startswith("step "):
        with open("/proc/self/statm") as f:
            pages = int(f.read().split()[1])
        handles = len(os.listdir("/proc/self/fd"))
        real(args[0].split("/")[0].split()[1], pages, handles, file=sys.stderr)

builtins.print = watching
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.long
@pytest.mark.skipif(
    not os.path.exists("/proc/self/statm"), reason="this system has no /proc"
)
@pytest.mark.parametrize("script", TRAINERS)
def test_soak(place, script):
    """2000 steps with a checkpoint every 50: no more memory and files at the end than
    at 200.
    """
    Path("watched.py").write_text(WATCHED)
    args = command(
        script, "--n_layer=3", "--n_embd=32", "--block_size=32", "--eval_interval=50"
    )
    # For real, not as a copy of this process
    command_line = [
        args[0],
        "watched.py",
        *args[1:],
        "--max_iters=2000",
        "--log_interval=25",
    ]
    done = subprocess.run(command_line, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    err = done.stderr
    seen = {int(a): (int(b), int(c)) for a, b, c in map(str.split, err.splitlines())}
    assert {50, 200, 2000} <= seen.keys()
    late = [pages for step, (pages, _) in seen.items() if step >= 1900]
    assert max(late) <= 1.05 * seen[200][0], (seen[200], late)
    assert len({handles for step, (_, handles) in seen.items() if step >= 50}) == 1


# ----------------------------------------------------------------------- Other systems
@pytest.mark.parametrize(
    "script, encoding",
    [(name, "ascii") for name in TRAINERS]
    + [("gpt_char", "cp1252"), ("gpt2_train", "cp1252")],
)
def test_console_that_is_not_utf8(place, script, encoding):
    """Windows, where the output goes to a file: what cannot be shown is a question
    mark.
    """
    path = Path("data/shakespeare/input.txt")
    path.write_text(path.read_text("utf-8") + "日本", encoding="utf-8")
    args = [*ARGS[script], "--max_iters=0", "--prompt=Aé日", "--out_dir=日"]
    command = [sys.executable, str(ROOT / f"{script}.py"), *args]
    env = {
        **os.environ,
        "PYTHONIOENCODING": encoding,
        "PYTHONUTF8": "0",
    }  # where it is no copy
    out, err = finish(command, env=env, encoding=encoding)
    assert err == "" and ("A??" if encoding == "ascii" else "Aé?") in out


@pytest.mark.parametrize("script", TRAINERS)
def test_without_what_other_systems_lack(place, run_any, monkeypatch, script):
    """No gloo, no fork, no fsync of folders, no SIGKILL: one process asks for none of
    them.
    """

    def missing(*args, **kwargs):
        raise NotImplementedError

    for name in (
        "init_process_group",
        "all_reduce",
        "destroy_process_group",
        "barrier",
    ):
        monkeypatch.setattr(dist, name, missing)
    monkeypatch.setattr(dist, "is_available", lambda: False)
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: check_file(fd) or fsync(fd))
    for name in ("fork", "forkpty", "getuid", "sched_getaffinity"):
        monkeypatch.delattr(os, name, raising=False)
    for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGXFSZ", "alarm"):
        monkeypatch.delattr(signal, name, raising=False)
    done = run_any(f"{script}.py", *ARGS[script], "--max_iters=3", "--eval_interval=1")
    assert (done.code, done.err) == (0, "")


def check_file(fd):
    assert stat.S_ISREG(os.fstat(fd).st_mode)


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["my data", "back\\slash", "[1]*", "größer", "-x", "a'b\"c"]
)
@pytest.mark.parametrize("script", TRAINERS)
def test_names_of_folders(place, run_any, script, name):
    Path("tokens" if script in LARGE else "data/shakespeare").rename(name)
    args = [
        *ARGS[script],
        f"--data_dir={name}",
        f"--out_dir=out/{name}",
        "--eval_interval=1",
    ]
    assert run_any(f"{script}.py", *args, "--max_iters=2").code == 0
    done = run_any(f"{script}.py", *args, "--max_iters=3")
    assert (done.code, done.err) == (0, "")
    assert continued(done.out) == [(f"out/{name}/last.pt", 2)]
    assert torch.load(Path("out", name, "last.pt"), weights_only=True)["step"] == 3


def test_nothing_of_one_system_alone():
    """Names that not every system has would be found here."""
    lacking = (
        r"os\.(fork|uname|getuid|sched_\w+)|/dev/|/tmp|/proc|shell=True|SIGKILL|SIGALRM"
    )
    for path in ROOT.glob("*.py"):
        assert not re.search(lacking, path.read_text(encoding="utf-8")), path
