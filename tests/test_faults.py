"""What long runs must survive: kills, a full disk, damaged files, a second run, other systems.

What the tests of the single scripts show already is not repeated here. Those of minutes are
marked long. Without sparse_gpt.py its share is left out.
"""

import os
import random
import re
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

ROOT = Path(__file__).parent.parent
LARGE = [name for name in ("gpt2_train", "sparse_gpt") if (ROOT / f"{name}.py").exists()]
TINY = "--device=cpu --bfloat16=False --n_layer=1 --n_head=2 --n_embd=16 --block_size=16".split()
TINY += ["--warmup_iters=2", "--max_new_tokens=3"]
ARGS = {"gpt_char": [*TINY, "--dropout=0.1", "--batch_size=4", "--eval_iters=1"]}
ARGS["gpt2_train"] = [*TINY, "--compile=False", "--float16=False", "--hellaswag=False"]
ARGS["gpt2_train"] += ["--data_dir=tokens", "--total_batch_size=64", "--eval_tokens=64"]
ARGS["sparse_gpt"] = [*ARGS["gpt2_train"], "--stride=4", "--summary=2"]


@pytest.fixture
def place(folder, monkeypatch):
    """An empty working directory but for data/shakespeare/input.txt and two shards in tokens/."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (folder / "tokens").mkdir()
    for name, length in (("train_000001", 3000), ("val_000000", 300)):
        write_shard(folder / f"tokens/t_{name}.bin", length)
    handler = signal.getsignal(signal.SIGTERM)
    precision = torch.get_float32_matmul_precision()
    yield folder
    torch.set_float32_matmul_precision(precision)
    signal.signal(signal.SIGTERM, handler)


def write_shard(path, length):
    header = np.zeros(256, dtype="<i4")
    header[:4] = 20240520, 1, length, 256
    tokens = np.random.default_rng(length).choice(list(b"a few letters"), length).astype("<u2")
    path.write_bytes(header.tobytes() + tokens.tobytes())


def command(script, *args):
    return [sys.executable, str(ROOT / f"{script}.py"), *ARGS[script], *args]


def popen(command, **options):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, **{**pipes, **options})


def finish(command, code=0, **options):
    """Run a command to its end; returns stdout and stderr."""
    process = popen(command, **options)
    try:
        out, err = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its processes then
        pytest.fail("it hangs; " + process.communicate()[1])
    assert process.returncode == code, err
    return out, err


def leaves(value, name=""):
    """A nested checkpoint as a list of (path, leaf)."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [leaf for k, v in items for leaf in leaves(v, f"{name}.{k}")]
    return [(name, value)]


def assert_same_state(a, b):
    """Two checkpoints equal to the bit, apart from the command line they were made with."""
    a, b = ({k: v for k, v in state.items() if k != "config"} for state in (a, b))
    a, b = leaves(a), leaves(b)
    assert [name for name, _ in a] == [name for name, _ in b]
    for (name, x), (_, y) in zip(a, b):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y, name


def assert_same_runs(a, b):
    for name in ("best.pt", "last.pt"):
        assert_same_state(*(torch.load(Path(f, name), weights_only=True) for f in (a, b)))


def one_line(err, *parts):
    assert err.count("\n") == 1 and err.endswith("\n") and len(err) < 600, err
    assert "Traceback" not in err and all(part in err for part in parts), err


# ------------------------------------------------------------------------------------------ Kills
# Runs a script under torchrun; in its first start process 1 kills itself between two micro-steps
# of step 6, in its second one process 0 does in step 11
KILLER = """
import os, runpy, signal, sys
from torch.nn.parallel import DistributedDataParallel

start, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"])
forward = DistributedDataParallel.forward

def killing(self, x, y):
    if (start, rank, step()) in ((0, 1, 6), (1, 0, 11)) and self.require_backward_grad_sync:
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


@pytest.mark.long
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="no gloo")
@pytest.mark.parametrize("script", LARGE)
def test_torchrun_restarts_what_was_killed(place, script):
    Path("killer.py").write_text(KILLER)
    torchrun = "-m torch.distributed.run --standalone --nproc_per_node=2 --max-restarts=3 killer.py"
    args = command(script, "--batch_size=1", "--eval_interval=4", "--max_iters=20")
    args = [args[0], *torchrun.split(), *args[1:]]
    # As the README says: without it, torchrun may send a new start to the addresses of the old one
    env = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    out, _ = finish([*args, "--out_dir=killed"], env={**env, "KILL": "1"})
    whole, _ = finish([*args, "--out_dir=whole"], env=env)
    assert [int(n) for n in re.findall("going on from step (\\d+)", out)] == [4, 8]
    assert "going on" not in whole
    assert_same_runs("killed", "whole")
    assert out.split("-" * 80)[1:] == whole.split("-" * 80)[1:]


def kill_and_go_on(script, kills, seed):
    """SIGKILL again and again at random moments; saving is most of what the run does."""
    rng = random.Random(seed)
    args = command(script, "--max_iters=1500", "--eval_interval=1")
    killed = 0
    while killed < kills:
        process = popen([*args, "--out_dir=parts"])
        for line in process.stdout:
            if line.startswith("step "):
                break
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.communicate()
        if process.returncode != -signal.SIGKILL:
            break  # this process was held up, and the run was done first
        killed += 1
        for path in Path("parts").glob("*.pt"):
            torch.load(path, weights_only=True)  # what has its name is complete
    assert killed > kills // 2
    out, err = finish([*args, "--out_dir=parts"])
    assert "going on from step" in out and err == ""
    finish([*args, "--out_dir=whole"])
    assert_same_runs("parts", "whole")


@pytest.mark.long
@pytest.mark.parametrize("script", LARGE)
def test_sigkill_thirty_times(place, script):
    seed = time.time_ns()
    print("seed", seed)
    kill_and_go_on(script, 30, seed)


# -------------------------------------------------------------------------------------- Full disk
@pytest.mark.parametrize(
    "script, limit, what",  # no file may become longer; a checkpoint has from 20 to 100 KB
    [
        ("gpt_char", 1000, "best.pt"),
        ("gpt_char", 15_000, "best.pt"),
        *((name, 700, "log.csv") for name in LARGE),
        *((name, 60_000, "best.pt") for name in LARGE),
    ],
)
def test_disk_full(place, run_any, script, limit, what):
    """One line, nothing half written, and with space again it goes on as if nothing had been."""
    resource = pytest.importorskip("resource", reason="this system has no such limits")
    args = [*ARGS[script], "--eval_interval=10", "--out_dir=run"]
    assert run_any(f"{script}.py", *args, "--max_iters=1").code == 0
    before = {p.name: p.read_bytes() for p in Path("run").iterdir()}

    def set_limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error, as where the disk is full
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    more = command(script, *args, "--max_iters=30")
    _, err = finish(more, code=1, preexec_fn=set_limit)
    one_line(err, f"run/{what}: ", "free some space")
    after = {p.name: p.read_bytes() for p in Path("run").iterdir()}
    assert after.keys() == before.keys()
    assert all(after[name] == before[name] for name in before if name.endswith(".pt"))
    assert run_any(f"{script}.py", *args, "--max_iters=30").code == 0
    assert torch.load("run/last.pt", weights_only=True)["step"] == 30


# ----------------------------------------------------------------------------------- Damaged files
def damage(good, flips, cuts, seed, regions=()):
    """Yields flips of good with one byte changed, half of them in regions, and cuts of it."""
    rng = random.Random(seed)
    for i in range(flips):
        low, high = regions[i // 2 % len(regions)] if regions and i % 2 else (0, len(good))
        place = rng.randrange(low, high)
        byte = good[place] ^ rng.choice([1, 2, 4, 8, 16, 32, 64, 128, rng.randint(1, 255)])
        yield good[:place] + bytes([byte]) + good[place + 1 :]
    for length in [0, 1, *(rng.randrange(len(good)) for _ in range(cuts - 3)), len(good) - 1]:
        yield good[:length]


@pytest.mark.parametrize("script", ["gpt_char", *LARGE])
def test_damaged_checkpoint(place, run_any, script):
    """Refused by name, or what is loaded is to the bit what was saved."""
    args = [*ARGS[script], "--max_iters=2", "--eval_interval=1", "--out_dir=run"]
    names = run_any(f"{script}.py", *args).names
    path = Path("run/last.pt")
    good, state = path.read_bytes(), torch.load(path, weights_only=True)
    found = Counter()
    ends = [(0, 3000), (len(good) - 3000, len(good))]  # the pickle, the list of what is inside
    for bad in damage(good, flips=200, cuts=60, seed=1, regions=ends):
        path.write_bytes(bad)
        try:
            step, best_val_loss = names["load_checkpoint"](path)
        except SystemExit as error:
            one_line(error.code + "\n", "run/last.pt: ", "--init_from=scratch")
            found["refused"] += 1
            continue
        loaded = {**state, "step": step, "best_val_loss": best_val_loss}
        loaded["model"] = names["model"].state_dict()
        loaded["optimizers"] = [opt.state_dict() for opt in names["optimizers"]]
        assert_same_state(loaded, state)
        found["harmless"] += 1
    assert found["refused"] > 220, found
    path.write_bytes(good)
    names["load_checkpoint"](path)


class Evil:
    def __reduce__(self):
        return open, ("it_was_run", "w")


@pytest.mark.parametrize("init_from", ["resume", "run/last.pt"])
@pytest.mark.parametrize("script", LARGE)
def test_checkpoint_that_would_run_code(place, run_any, script, init_from):
    args = [*ARGS[script], "--max_iters=2", "--out_dir=run"]
    run_any(f"{script}.py", *args)
    state = torch.load("run/last.pt", weights_only=True)
    torch.save({**state, "step": Evil()}, "run/last.pt")
    done = run_any(f"{script}.py", *args, f"--init_from={init_from}")
    assert done.code == 1 and not Path("it_was_run").exists()
    one_line(done.err, "run/last.pt: ")


@pytest.mark.parametrize("part", ["header", "tokens"])
def test_damaged_shard(place, run_any, part):
    """Refused by name, or at most a single token has become another one of the vocabulary.

    The format has no checksum: that is as much as a reader can know. What prepare_fineweb.py
    wrote its --verify compares with manifest.json.
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
            assert len(read) == len(tokens) and (read != tokens).sum() <= 1 and read.max() < 256
            found["harmless"] += 1
    assert len(found) == 2 and found["refused"] > 50, found


def test_damaged_text(folder, run):
    """Refused by name, or trained on is what the file says: all of it, one character changed."""
    path = Path("data/shakespeare/input.txt")
    good = path.read_bytes()[:3000].rstrip(b"\xc3")
    text = good.decode()
    found = Counter()
    for bad in damage(good, flips=120, cuts=80, seed=2):
        path.write_bytes(bad)
        done = run("bigram.py", "--max_iters=0", "--max_new_tokens=0", "--block_size=16")
        if done.code:
            assert done.code == 1
            one_line(done.err, str(path))
            found["refused"] += 1
            continue
        read = done.names["text"]
        assert read.encode() == bad
        if len(bad) == len(good):
            assert len(read) == len(text) and sum(a != b for a, b in zip(read, text)) == 1
        else:
            assert text.startswith(read)
        found["harmless"] += 1
    assert min(found["refused"], found["harmless"]) > 20, found


# ----------------------------------------------------------------------------- Two runs, one folder
@pytest.mark.parametrize("script", ["gpt_char", *LARGE])
def test_second_run_in_the_same_folder_is_refused(place, run_any, script):
    """And as soon as the first one is gone, however that was, the next one may."""
    args = [*ARGS[script], "--out_dir=run", "--eval_interval=1000000"]
    first = popen(command(script, *args, "--max_iters=1000000"))
    try:
        for line in first.stdout:
            if line.startswith("step "):
                break
        done = run_any(f"{script}.py", *args, "--max_iters=2")
        assert done.code == 1
        one_line(done.err, "run", "--out_dir")
        done = run_any(f"{script}.py", *args, "--max_iters=0")  # to look at its samples is fine
        assert (done.code, done.err) == (0, "") and "-" * 80 in done.out
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()
    done = run_any(f"{script}.py", *args, "--max_iters=2", "--init_from=scratch")
    assert (done.code, done.err) == (0, "")
    assert torch.load("run/last.pt", weights_only=True)["step"] == 2


class FakeMsvcrt:
    """What Windows has in place of fcntl."""

    LK_NBLCK = 2
    locked = False

    @classmethod
    def locking(cls, fd, mode, count):
        os.fstat(fd)  # an open file
        if cls.locked or (mode, count) != (cls.LK_NBLCK, 1):
            raise PermissionError(13, "Permission denied")
        cls.locked = True


def test_lock_on_windows(place, run_any, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)  # import fcntl: ImportError
    monkeypatch.setitem(sys.modules, "msvcrt", FakeMsvcrt)
    args = [*ARGS["gpt_char"], "--max_iters=2", "--out_dir=run"]
    assert run_any("gpt_char.py", *args).code == 0 and FakeMsvcrt.locked
    done = run_any("gpt_char.py", *args)
    assert done.code == 1
    one_line(done.err, "run", "--out_dir")


def test_file_system_without_locks(place, run_any, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def lockf(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    assert run_any("gpt_char.py", *ARGS["gpt_char"], "--max_iters=2").code == 0


# -------------------------------------------------------------------------------------- Bad input
def file(path):
    return lambda: Path(path).write_text("mine")


TABLE = [  # arguments, what stderr must name, exit code, what to do beforehand
    (["--learning_rat=1"], ["--learning_rat=1", "mean --learning_rate="], 2, None),
    (["--"], ["--: unknown"], 2, None),
    (["train"], ["train", "unknown"], 2, None),
    (["-max_iters=3"], ["-max_iters=3", "mean --max_iters="], 2, None),
    (["--max_iters=1.5"], ["--max_iters=1.5", "int"], 2, None),
    (["--max_iters", "5"], ["--max_iters", "int"], 2, None),
    (["--prompt"], ["--prompt", "str"], 2, None),
    (["--compile=maybe"], ["--compile=maybe", "bool"], 2, None),
    (["--learning_rate=inf"], ["--learning_rate=inf", "0 or more"], 2, None),
    (["--temperature=nan"], ["--temperature=nan", "0 or more"], 2, None),
    (["--total_batch_size=0"], ["--total_batch_size=0", "1 or more"], 2, None),
    (["--keep_every=0"], ["--keep_every=0", "1 or more"], 2, None),
    (["--num_samples=0"], ["--num_samples=0", "1 or more"], 2, None),
    (["--batch_size=-1"], ["--batch_size=-1", "0 or more"], 2, None),
    (["--seed=-1"], ["--seed=-1", "0 or more"], 2, None),
    (["--top_k=-1"], ["--top_k=-1", "0 or more"], 2, None),
    (["--device=abacus"], ["--device=abacus"], 1, None),
    (["--device=cuda:99"], ["--device=cuda:99"], 1, None),
    (["--model=gpt-2"], ["--model=gpt-2", "gpt2-medium"], 1, None),
    (["--init_from=none.pt"], ["--init_from=none.pt", "scratch"], 1, None),
    (["--init_from=a_file"], ["a_file: "], 1, file("a_file")),
    (["--optimizer=sgd"], ["--optimizer=sgd", "adamw"], 1, None),
    (["--beta2=1"], ["--beta2=1", "below 1"], 1, None),
    (["--n_embd=15"], ["--n_embd=15", "--n_head=2"], 1, None),
    (["--total_batch_size=65"], ["--total_batch_size=65", "--total_batch_size=64"], 1, None),
    (["--data_dir=nowhere"], ["nowhere", "_train_"], 1, None),
    (["--data_dir=a_file"], ["a_file", "_train_"], 1, file("a_file")),
    (["--out_dir=a_file"], ["a_file", "--out_dir"], 1, file("a_file")),
    (["--out_dir=a_file/x"], ["a_file/x", "--out_dir"], 1, file("a_file")),
]


@pytest.mark.parametrize("args, parts, code, setup", TABLE, ids=[" ".join(r[0]) for r in TABLE])
@pytest.mark.parametrize("script", LARGE)
def test_one_line(place, run_any, tree, script, args, parts, code, setup):
    if setup:
        setup()
    files = tree()
    done = run_any(f"{script}.py", *ARGS[script], "--max_iters=2", *args)
    assert done.code == code, done.err
    one_line(done.err, *parts)
    assert "-" * 80 not in done.out and tree() == files


@pytest.mark.parametrize("script", LARGE)
def test_prompt_that_is_no_unicode(place, run_any, script):
    """From a terminal in latin-1; the byte that means nothing in UTF-8 becomes a question mark."""
    done = run_any(f"{script}.py", *ARGS[script], "--max_iters=0", "--prompt=a\udce9b")
    assert (done.code, done.err) == (0, "") and "-" * 80 + "\na?b" in done.out


@pytest.mark.parametrize("script", LARGE)
def test_several_processes_without_torchrun(place, tree, script):
    """Some clusters set these by themselves."""
    files = tree()
    env = {k: v for k, v in os.environ.items() if k not in ("MASTER_ADDR", "MASTER_PORT")}
    _, err = finish(command(script), code=1, env={**env, "WORLD_SIZE": "2", "RANK": "0"})
    one_line(err, "torchrun")
    assert tree() == files


# ------------------------------------------------------------------------------------------- Soak
# Runs a script; with every line of progress, the step, pages of memory and open files on stderr
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
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="this system has no /proc")
@pytest.mark.parametrize("script", ["gpt_char", *LARGE])
def test_soak(place, script):
    """2000 steps with a checkpoint every 50: no more memory and files at the end than at 200."""
    Path("watched.py").write_text(WATCHED)
    args = command(script, "--n_layer=3", "--n_embd=32", "--block_size=32", "--eval_interval=50")
    _, err = finish([args[0], "watched.py", *args[1:], "--max_iters=2000"])
    seen = {int(a): (int(b), int(c)) for a, b, c in map(str.split, err.splitlines())}
    assert {0, 50, 200, 2000} <= seen.keys()
    late = [pages for step, (pages, _) in seen.items() if step >= 1900]
    assert max(late) <= 1.05 * seen[200][0], (seen[200], late)
    assert len({handles for step, (_, handles) in seen.items() if step >= 50}) == 1


# ---------------------------------------------------------------------------------- Other systems
@pytest.mark.parametrize(
    "script, encoding",
    [(name, "ascii") for name in ("bigram", "v2_attention", "gpt_char", *LARGE)]
    + [("gpt_char", "cp1252"), ("gpt2_train", "cp1252")],
)
def test_console_that_is_not_utf8(place, script, encoding):
    """Windows, where the output goes to a file: what cannot be shown is a question mark."""
    path = Path("data/shakespeare/input.txt")
    path.write_text(path.read_text("utf-8") + "日本", encoding="utf-8")
    args = [*ARGS.get(script, ["--device=cpu"]), "--max_iters=0", "--prompt=Aé日", "--out_dir=日"]
    args = [arg for arg in args if script in ARGS or "out_dir" not in arg]
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    command = [sys.executable, str(ROOT / f"{script}.py"), *args]
    out, err = finish(command, env=env, encoding=encoding)
    assert err == "" and ("A??" if encoding == "ascii" else "Aé?") in out


@pytest.mark.parametrize("script", ["gpt_char", *LARGE])
def test_without_what_other_systems_lack(place, run_any, monkeypatch, script):
    """No gloo, no fork, no fsync of folders, no SIGKILL: one process asks for none of them."""

    def missing(*args, **kwargs):
        raise NotImplementedError

    for name in ("init_process_group", "all_reduce", "destroy_process_group", "barrier"):
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


@pytest.mark.parametrize("name", ["my data", "back\\slash", "[1]*", "größer", "-x", "a'b\"c"])
@pytest.mark.parametrize("script", ["gpt_char", *LARGE])
def test_names_of_folders(place, run_any, script, name):
    Path("tokens" if script in LARGE else "data/shakespeare").rename(name)
    args = [*ARGS[script], f"--data_dir={name}", f"--out_dir=out/{name}", "--eval_interval=1"]
    assert run_any(f"{script}.py", *args, "--max_iters=2").code == 0
    done = run_any(f"{script}.py", *args, "--max_iters=3")
    assert (done.code, done.err) == (0, "") and "going on from step 2" in done.out
    assert torch.load(Path("out", name, "last.pt"), weights_only=True)["step"] == 3


def test_nothing_of_one_system_alone():
    """Names that not every system has would be found here."""
    lacking = r"os\.(fork|uname|getuid|sched_\w+)|/dev/|/tmp|/proc|shell=True|SIGKILL|SIGALRM"
    for path in ROOT.glob("*.py"):
        assert not re.search(lacking, path.read_text(encoding="utf-8")), path
