"""What long runs must survive: kills, a full disk, damaged files, a second run, other systems.

What the tests of the single scripts show already is not repeated here. Those of minutes are
marked long. gpt_char.py promises less: files appear whole, and no run needs more and more memory.
"""

import errno
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
import torch._dynamo  # every optimizer imports it: so copies of this process have it
import torch.distributed as dist
from conftest import popen

ROOT = Path(__file__).parent.parent
LARGE = ["gpt2_train", "sparse_gpt"]
TINY = "--device=cpu --bfloat16=False --n_layer=1 --n_head=2 --n_embd=16 --block_size=16".split()
TINY += ["--warmup_iters=2", "--max_new_tokens=3"]
ARGS = {"gpt_char": [*TINY, "--dropout=0.1", "--batch_size=4"]}
ARGS["gpt2_train"] = [*TINY, "--compile=False", "--float16=False", "--hellaswag=False"]
ARGS["gpt2_train"] += ["--data_dir=tokens", "--total_batch_size=64", "--eval_tokens=64"]
ARGS["sparse_gpt"] = [*ARGS["gpt2_train"], "--stride=4", "--summary=2"]


@pytest.fixture
def place(folder, monkeypatch):
    """An empty working directory but for data/shakespeare/input.txt and two shards in tokens/."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (folder / "tokens").mkdir()
    for name, length in (("train_000001", 3000), ("val_000000", 305)):  # whole windows
        write_shard(folder / f"tokens/t_{name}.bin", length)
    handler = signal.getsignal(signal.SIGTERM)
    yield folder
    signal.signal(signal.SIGTERM, handler)


def write_shard(path, length):
    header = np.zeros(256, dtype="<i4")
    header[:4] = 20240520, 1, length, 256
    tokens = np.random.default_rng(length).choice(list(b"a few letters"), length).astype("<u2")
    path.write_bytes(header.tobytes() + tokens.tobytes())


def command(script, *args):
    return [sys.executable, str(ROOT / f"{script}.py"), *ARGS[script], *args]


def finish(command, code=0, **options):
    """Run a command to its end; returns stdout and stderr."""
    process = popen(command, **options)
    out, err = process.communicate(timeout=300)
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


def one_line(err, *parts, script=None):
    """One line that names all parts; after argparse's line of usage, if the script is given."""
    if script:
        usage, err = err.split("\n", 1)
        assert usage == f"usage: {script}.py [--name=value ...]"
        assert err.startswith(f"{script}.py: error: "), err
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


def finish_torchrun(command, **options):
    """The same for torchrun, which is asked to end, and so ends its processes, where it hangs."""
    process = popen(command, **options)
    try:
        out, err = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.terminate()
        pytest.fail("it hangs; " + process.communicate()[1])
    assert process.returncode == 0, err
    return out, err


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
    out, _ = finish_torchrun([*args, "--out_dir=killed"], env={**env, "KILL": "1"})
    whole, _ = finish_torchrun([*args, "--out_dir=whole"], env=env)
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


# ---------------------------------------------------------------------------------------- Signals
# Runs a script that SIGTERM reaches in its fifth step, and again, TIMES - 1 times, while it saves
TOLD = """
import os, runpy, signal, sys
import torch

clip, save, steps = torch.nn.utils.clip_grad_norm_, torch.save, []

def clipping(*args):
    steps.append("one more")
    if len(steps) == 5:
        os.kill(os.getpid(), signal.SIGTERM)
    return clip(*args)

def saving(*args):
    for _ in range(int(os.environ["TIMES"]) - 1 if len(steps) == 5 else 0):
        os.kill(os.getpid(), signal.SIGTERM)
    return save(*args)

torch.nn.utils.clip_grad_norm_, torch.save = clipping, saving
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("script", LARGE)
def test_sigterm_twice(place, script):
    """As schedulers do, which lose patience: saved as after one, and it goes on."""
    Path("told.py").write_text(TOLD)
    python, *args = command(script, "--max_iters=9", "--eval_interval=100")
    for times in ("1", "2"):
        out, err = finish(
            [python, "told.py", *args, f"--out_dir=run_{times}"],
            code=130,
            env={**os.environ, "TIMES": times},
        )
        assert f"stopped, saved in run_{times}: " in out and err == ""
        assert torch.load(f"run_{times}/last.pt", weights_only=True)["step"] == 5
    assert_same_runs("run_1", "run_2")
    assert {p.name for p in Path("run_1").glob("*")} == {p.name for p in Path("run_2").glob("*")}
    out, _ = finish([python, *args, "--out_dir=run_2"])
    assert "run_2/last.pt: going on from step 5\n" in out
    finish([python, *args, "--out_dir=whole"])
    assert_same_runs("run_2", "whole")


# -------------------------------------------------------------------------------------- Full disk
# Runs a script in which no file may become longer than LIMIT
LIMITED = """
import os, resource, runpy, signal, sys

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error, as where the disk is full
resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["LIMIT"]),) * 2)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    "script, limit, what",  # a checkpoint has from 20 to 100 KB
    [
        ("gpt_char", 1000, ""),
        ("gpt_char", 15_000, ""),
        *((name, 700, "run/log.csv: ") for name in LARGE),
        *((name, 60_000, "run/") for name in LARGE),
    ],
)
def test_disk_full(place, run_any, script, limit, what):
    """One line, nothing half written, and with space again it goes on as if nothing had been.

    gpt_char.py may end with a traceback, and leave what it was writing under another name.
    """
    pytest.importorskip("resource", reason="this system has no such limits")
    Path("limited.py").write_text(LIMITED)
    args = [*ARGS[script], "--eval_interval=10", "--out_dir=run"]
    assert run_any(f"{script}.py", *args, "--max_iters=1").code == 0
    before = {p.name: p.read_bytes() for p in Path("run").iterdir()}
    python, *more = command(script, *args, "--max_iters=30")
    env = {**os.environ, "LIMIT": str(limit)}
    _, err = finish([python, "limited.py", *more], code=1, env=env)
    after = {p.name: p.read_bytes() for p in Path("run").iterdir()}
    if script in LARGE:
        one_line(err, what, "free some space")
        assert after.keys() == before.keys()
    assert {name for name in after if name.endswith(".pt")} == {"best.pt", "last.pt"}
    assert all(after[name] == before[name] for name in before if name.endswith(".pt"))
    assert run_any(f"{script}.py", *args, "--max_iters=30").code == 0
    assert torch.load("run/last.pt", weights_only=True)["step"] == 30
    finish(command(script, "--eval_interval=10", "--max_iters=1", "--out_dir=whole"))
    finish(command(script, "--eval_interval=10", "--max_iters=30", "--out_dir=whole"))
    assert_same_runs("run", "whole")


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


def directory_bits(good):
    """Where the bytes of a checkpoint are in which 16 would mean that an entry is a folder."""
    starts = [match.start() for match in re.finditer(b"PK\x01\x02", good)]
    return [start + 38 for start in starts if good[start + 46 :].startswith(b"archive/")]


@pytest.mark.parametrize("script", LARGE)
def test_damaged_checkpoint(place, run_any, script):
    """Refused by name, or what is loaded is to the bit what was saved."""
    args = [*ARGS[script], "--max_iters=2", "--eval_interval=1", "--out_dir=run"]
    names = run_any(f"{script}.py", *args).names
    path = Path("run/last.pt")
    good, state = path.read_bytes(), torch.load(path, weights_only=True)
    found = Counter()
    ends = [(0, 3000), (len(good) - 3000, len(good))]  # the pickle, the list of what is inside
    folders = directory_bits(good)
    for bad in damage(good, flips=200, cuts=60, seed=1, regions=ends):
        if len(bad) == len(good) and any(bad[i] & 16 for i in folders):
            continue  # the next test is for these
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


def test_checkpoint_of_gpt_char_that_was_cut(place, run_any):
    """It checks no checksums, but what is not whole it refuses by name."""
    args = [*ARGS["gpt_char"], "--max_iters=2", "--eval_interval=1", "--out_dir=run"]
    names = run_any("gpt_char.py", *args).names
    path = Path("run/last.pt")
    good = path.read_bytes()
    for bad in damage(good, flips=0, cuts=40, seed=1):
        path.write_bytes(bad)
        with pytest.raises(SystemExit) as refused:
            names["load_checkpoint"](path)
        assert "run/last.pt: " in refused.value.code
        assert "--init_from=scratch" in refused.value.code
    path.write_bytes(good)
    assert names["load_checkpoint"](path)[0] == 2


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
        if done.code:  # no text, or too little of it for a window
            assert done.code in (1, 2)
            parts = [str(path)] if done.code == 1 else ["--block_size", str(path)]
            one_line(done.err, *parts, script="bigram" if done.code == 2 else None)
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
@pytest.mark.parametrize("script", LARGE)
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


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK], ids=["ENOSYS", "ENOLCK"])
@pytest.mark.filterwarnings("ignore:flock not supported")
@pytest.mark.parametrize("script", LARGE)
def test_file_system_without_locks(place, run_any, monkeypatch, script, number):
    """It trains, and goes on, without: a shared file system of a cluster often has none."""
    fcntl = pytest.importorskip("fcntl")

    def flock(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    for steps in (2, 4):
        done = run_any(f"{script}.py", *ARGS[script], f"--max_iters={steps}", "--out_dir=run")
        assert done.code == 0, done.err
    assert torch.load("run/last.pt", weights_only=True)["step"] == 4


# -------------------------------------------------------------------------------------- Bad input
def file(path):
    return lambda: Path(path).write_text("mine")


TABLE = [  # arguments, what stderr must name, exit code, what to do beforehand
    (["--learning_rat=1"], ["--learning_rat=1", "unrecognized"], 2, None),
    (["train"], ["train", "unrecognized"], 2, None),
    (["-max_iters=3"], ["-max_iters=3", "unrecognized"], 2, None),
    (["--max_iters=1.5"], ["--max_iters", "int", "'1.5'"], 2, None),
    (["--max_iters"], ["--max_iters", "expected one argument"], 2, None),
    (["--prompt"], ["--prompt", "expected one argument"], 2, None),
    (["--compile=maybe"], ["--compile", "bool", "'maybe'"], 2, None),
    (["--learning_rate=inf"], ["--learning_rate", "0 or more"], 2, None),
    (["--temperature=nan"], ["--temperature", "0 or more"], 2, None),
    (["--total_batch_size=0"], ["--total_batch_size", "1 or more"], 2, None),
    (["--keep_every=0"], ["--keep_every", "1 or more"], 2, None),
    (["--num_samples=0"], ["--num_samples", "1 or more"], 2, None),
    (["--log_interval=0"], ["--log_interval", "1 or more"], 2, None),
    (["--batch_size=-1"], ["--batch_size", "0 or more"], 2, None),
    (["--seed=-1"], ["--seed", "0 or more"], 2, None),
    (["--seed=9223372036854775808"], ["--seed", "below 2**63"], 2, None),
    (["--top_k=-1"], ["--top_k", "0 or more"], 2, None),
    (["--device=abacus"], ["--device", "abacus"], 2, None),
    (["--device=cuda:99"], ["argument --device: "], 2, None),
    (["--model=gpt-2"], ["--model", "gpt-2 is none", "gpt2-medium"], 2, None),
    (["--init_from=none.pt"], ["--init_from", "none.pt", "scratch"], 2, None),
    (["--init_from=a_file"], ["a_file: "], 1, file("a_file")),
    (["--optimizer=sgd"], ["--optimizer", "adamw"], 2, None),
    (["--beta2=1"], ["--beta2", "below 1"], 2, None),
    (["--n_embd=15"], ["--n_embd", "n_head, which is 2"], 2, None),
    (["--total_batch_size=65"], ["--total_batch_size", "64 is the nearest"], 2, None),
    (["--data_dir=nowhere"], ["nowhere", "_train_"], 1, None),
    (["--data_dir=a_file"], ["a_file", "_train_"], 1, file("a_file")),
    (["--out_dir=a_file"], ["a_file", "--out_dir"], 2, file("a_file")),
    (["--out_dir=a_file/x"], ["a_file/x", "--out_dir"], 1, file("a_file")),
    (["--export_dir=a_file"], ["--export_dir", "a_file"], 2, file("a_file")),
]


@pytest.mark.parametrize("args, parts, code, setup", TABLE, ids=[" ".join(r[0]) for r in TABLE])
@pytest.mark.parametrize("script", LARGE)
def test_one_line(place, run_any, tree, script, args, parts, code, setup):
    if setup:
        setup()
    files = tree()
    done = run_any(f"{script}.py", *ARGS[script], "--max_iters=2", *args)
    assert done.code == code, done.err
    one_line(done.err, *parts, script=script if code == 2 else None)
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


# ------------------------------------------------------------------------------------------- GPUs
class Reached(Exception):
    """The script has come to what needs several GPUs."""


@pytest.mark.parametrize("args", [[], ["--device=cuda"], ["--device=cuda:0"], ["--device=cpu"]])
@pytest.mark.parametrize("script", LARGE)
def test_every_process_takes_its_own_gpu(place, run_any, monkeypatch, script, args):
    """The second of two processes, on a machine that seems to have two GPUs.

    cuda, given or chosen, is the second GPU, and that before anything is put on a GPU; who names
    one gets that one.
    """
    said, zeros = [], torch.zeros

    def make(*size, device="cpu", **options):
        said.append(("zeros", str(device)))
        return zeros(*size, **options)

    def init_process_group(**options):
        said.append(("init_process_group", str(options.get("device_id"))))
        # While the first process writes the files of gpt2-xl, or exports, the others wait
        assert options["timeout"].total_seconds() >= 3600
        raise Reached

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda d: said.append(("set_device", str(d))))
    monkeypatch.setattr(torch, "zeros", make)
    monkeypatch.setattr(dist, "init_process_group", init_process_group)
    for name, value in {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Reached):
        run_any(f"{script}.py", "--n_layer=1", *args)
    expected = {"--device=cuda:0": "cuda:0", "--device=cpu": "cpu"}.get("".join(args), "cuda:1")
    if expected == "cpu":
        assert said == [("zeros", "cpu"), ("init_process_group", "None")]
    else:
        kinds = ("zeros", "set_device", "init_process_group")
        assert said == [(kind, expected) for kind in kinds]


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
    # For real, not as a copy of this process
    command_line = [args[0], "watched.py", *args[1:], "--max_iters=2000", "--log_interval=25"]
    done = subprocess.run(command_line, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    err = done.stderr
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
    command = [sys.executable, str(ROOT / f"{script}.py"), *args]
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}  # where it is no copy
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
