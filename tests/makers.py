"""What tests are made of: texts, shards, tiny settings, ways to run a script.

Nothing in here is a fixture (those are in conftest.py) or a test.
"""

import contextlib
import csv
import gc
import io
import os
import random
import re
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
# What one of several processes says once in some forty runs, as PyTorch's threads end:
# a test of something else may start the run again
ABORTED = "terminate called without an active exception"
TEXT_SCRIPTS = ["bigram", "v2_attention", "gpt_char"]  # they read input.txt
LARGE = ["gpt2_train", "sparse_gpt"]  # they read shards
TRAINERS = ["gpt_char", *LARGE]  # they write checkpoints
LADDER = [*TEXT_SCRIPTS, *LARGE]
STOP_SIGNALS = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGHUP"):
    STOP_SIGNALS.append(signal.SIGHUP)

# ------------------------------------------------------------------------ Tiny settings
# A gpt_char of milliseconds. Dropout is on: without it a wrong random state would go
# unnoticed
TINY = ["--n_layer=2", "--n_head=2", "--n_embd=16", "--block_size=16", "--batch_size=4"]
TINY += ["--dropout=0.1", "--warmup_iters=2", "--no-bfloat16"]

# For every script the flags of a run of milliseconds, of steps of four windows, in what
# the fixture place makes
ARGS = {"bigram": ["--device=cpu", "--max_new_tokens=3", "--block_size=16"]}
ARGS["v2_attention"] = [*ARGS["bigram"], "--n_head=2", "--n_embd=16"]
MODEL = "--n_layer=1 --n_head=2 --n_embd=16 --warmup_iters=2 --no-bfloat16".split()
ARGS["gpt_char"] = [*ARGS["bigram"], *MODEL, "--dropout=0.1", "--batch_size=4"]
ARGS["gpt2_train"] = [*ARGS["bigram"], *MODEL, "--no-float16", "--no-compile"]
ARGS["gpt2_train"] += ["--no-hellaswag", "--data_dir=tokens", "--eval_tokens=64"]
ARGS["gpt2_train"] += ["--total_batch_size=64"]
ARGS["sparse_gpt"] = [*ARGS["gpt2_train"], "--stride=4", "--summary=2"]


# What is added to the flags of the fixture gpt2 for a run of gpt2_train.py
SHORT = "--max_iters=12 --log_interval=1 --eval_interval=4 --eval_tokens=512".split()
SHORT += ["--max_new_tokens=5"]
PRECISIONS = {
    "float32": ["--no-float16", "--no-bfloat16"],
    "bfloat16": ["--no-float16", "--bfloat16"],
    "float16": ["--float16", "--no-bfloat16"],
}


# -------------------------------------------------------------------- Texts and shards
def markov_text(length, seed):
    """A text in which the next character depends on the current one alone, the same
    everywhere.
    """
    rng = random.Random(seed)
    chars = "\n ,.ABCDEabcdefghijklmnopqrstué"
    rows = {
        c: [rng.random() ** 4 for _ in chars] for c in chars
    }  # few likely, many rare
    text = "A"
    while len(text) < length:
        text += rng.choices(chars, rows[text[-1]])[0]
    return text


def random_tokens(length, vocab_size=256, seed=0):
    return np.random.default_rng(seed).integers(vocab_size, size=length)


def letters(length):
    """Tokens that are bytes of a few letters: something that can be learned."""
    return np.random.default_rng(length).choice(list(b"a few letters"), length)


def write_shard(path, tokens, vocab_size=256, magic=20240520, version=1):
    """A shard in llm.c's format, written without the prepare scripts."""
    path = Path(path)
    header = np.zeros(256, dtype="<i4")
    header[:4] = magic, version, len(tokens), vocab_size % 50257
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.tobytes() + np.asarray(tokens, dtype="<u2").tobytes())


def write_shards(folder="tokens", train=3000, val=305, make=letters, vocab_size=256):
    """A shard for each split. make(length) makes their tokens."""
    for name, length in (("train_000001", train), ("val_000000", val)):
        write_shard(Path(folder, f"t_{name}.bin"), make(length), vocab_size)


# ------------------------------------------------------------------------- Checkpoints
def read(path):
    """A checkpoint, which must be plain data."""
    return torch.load(path, weights_only=True)


def leaves(value, name=""):
    """A nested checkpoint as a list of (path, leaf)."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return [(name, value)]
    found = []
    for key, inner in items:
        found += leaves(inner, f"{name}.{key}")
    return found


def assert_same_state(a, b):
    """Two checkpoints equal to the bit, apart from their command lines."""
    a, b = ({k: v for k, v in state.items() if k != "config"} for state in (a, b))
    a, b = leaves(a), leaves(b)
    assert [name for name, _ in a] == [name for name, _ in b]
    for (name, x), (_, y) in zip(a, b):
        assert type(x) is type(y), name
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y, name


def assert_same_runs(a, b):
    """The checkpoints in two folders are equal to the bit."""
    for name in ("best.pt", "last.pt"):
        assert_same_state(read(Path(a, name)), read(Path(b, name)))


def read_log(folder):
    """{step: loss} and {step: val_loss} of a log.csv, which has each of them once."""
    with open(Path(folder, "log.csv"), newline="") as f:
        rows = list(csv.DictReader(f))
    curves = []
    for name in ("loss", "val_loss"):
        found = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        assert len(dict(found)) == len(found), "a step is there twice"
        curves.append(dict(found))
    return tuple(curves)


def shake(model, scale=0.2):
    """Away from the start, where blocks, biases and gains do nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(scale * torch.randn(p.shape, generator=generator))


def stir(model, scale=0.3):
    """The same, but a dot product does not grow with its length."""
    torch.manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            p += (
                scale
                * torch.randn_like(p)
                * (1 if p.ndim == 1 else p.shape[-1] ** -0.5)
            )


def import_transformers():
    return pytest.importorskip(
        "transformers", reason="transformers is not installed: nothing to compare with"
    )


def huggingface_model(vocab_size, n_positions, activation_function):
    """A GPT2LMHeadModel of random weights; its logits are far below 0, as OpenAI's."""
    transformers = import_transformers()
    names = {name: value for name, value in locals().items() if name != "transformers"}
    config = transformers.GPT2Config(**names, n_embd=32, n_layer=2, n_head=2)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    stir(theirs, 1.0)
    with torch.no_grad():
        theirs.transformer.wte.weight[:, 0] += 4
        theirs.transformer.ln_f.bias[0] -= 10
    return theirs


# ---------------------------------------------------------------------- What is printed
def the_line(err, script=None):
    """The one line that says what is wrong; of a command line, it follows the usage."""
    if script:
        usage, _, err = err.partition("\n")
        assert usage.startswith(f"usage: {script}.py "), usage
        start = f"{script}.py: error: "
        assert err.startswith(start), err
    assert err.count("\n") == 1 and err.endswith("\n") and 1 < len(err) < 600, err
    assert "Traceback" not in err, err
    # PyTorch's own advice: load it all the same
    assert "weights_only" not in err and "can still be loaded" not in err, err
    return err


def one_line(err, *words, script=None):
    line = the_line(err, script)
    for word in words:
        assert word in line, line


def continued(out):
    """The checkpoints that a run says it continues from, with their steps."""
    found = re.findall(r"^(.+): step (\d+) \(max_iters", out, flags=re.M)
    return [(path, int(step)) for path, step in found]


def samples(out):
    """The texts that a run wrote."""
    texts = out.split("-" * 80 + "\n")[1:-1]
    return [text.removesuffix("\n") for text in texts]


def final_loss(out):
    """What the last line says of a run that is complete; or None."""
    found = re.search(r"^final val loss (\d+\.\d{4})\n\Z", out, flags=re.M)
    if found:
        return float(found[1])
    return None


def advice(out):
    """What the last line wants added to the command so that it continues."""
    line = out.splitlines()[-1]
    assert line.startswith("saved in "), line
    return [word for word in line.split() if word.startswith("--")]


# ------------------------------------------------------------------------ Run a script
class Killed(BaseException):
    """The end of a run in this process: no except clause of a script catches it."""


def free_port():
    """A port on this machine, where processes can meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def capture(argv, call):
    """Call call() as the program argv and return its code, out and err, and what it
    returned.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    code, value = 0, None
    before = sys.argv
    handlers = {s: signal.getsignal(s) for s in STOP_SIGNALS}
    sys.argv = list(argv)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            value = call()
    except SystemExit as error:  # do as Python does
        code = error.code or 0
        if isinstance(code, str):
            print(code, file=err)
            code = 1
    finally:
        sys.argv = before
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    texts = []
    for stream in (out, err):
        stream.seek(0)
        texts.append(stream.read())
    return SimpleNamespace(code=code, out=texts[0], err=texts[1], value=value)


def names_of(script, run_name="__main__"):
    """Run a script and return its top-level names; what is set in them, its functions
    see.
    """
    names = runpy.run_path(str(ROOT / script), run_name=run_name)
    ours = [v for v in names.values() if getattr(v, "__module__", "") == run_name]
    return next(v.__globals__ for v in ours if hasattr(v, "__globals__"))


def run_here(script, *args):
    """Run a script in this process and return its code, out, err, and names."""
    done = capture([script, *args], lambda: names_of(script))
    done.names = done.value
    return done


class Forked:
    """A script as a process of its own, used like subprocess.Popen(command, text=True,
    pipes ...).

    It is a copy of this process, so torch is imported already: the newest one takes
    some seconds for that. What a test has patched is patched there, too.
    """

    def __init__(self, command, env=None, cwd=None, encoding="utf-8"):
        (self.out, out), (self.err, err) = os.pipe(), os.pipe()
        self.pid, self.returncode = os.fork(), None
        if self.pid == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out, 1), os.dup2(err, 2)
            gc.freeze()  # or garbage would later close what then has its number
            os.closerange(3, 100)
            self.become(command, env, cwd, encoding)
        os.close(out), os.close(err)
        self.stdout = open(self.out, encoding=encoding, errors="replace")
        self.stderr = open(self.err, encoding=encoding, errors="replace")

    def become(self, command, env, cwd, encoding):
        code = 1
        try:
            sys.stdin = open(0, closefd=False)
            sys.stdout = open(1, "w", encoding=encoding, closefd=False)
            sys.stderr = open(2, "w", encoding=encoding, closefd=False)
            os.chdir(cwd or ".")
            if env is not None:
                os.environ.clear(), os.environ.update(env)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if hasattr(signal, "SIGHUP"):
                signal.signal(signal.SIGHUP, signal.SIG_DFL)
            sys.argv = [str(word) for word in command[1:]]  # without the interpreter
            sys.path.insert(0, str(Path(sys.argv[0]).parent))
            sys.modules["__main__"].__dict__.pop("__file__", None)
            runpy.run_path(sys.argv[0], run_name="__main__")
            code = 0
        except SystemExit as end:  # do as Python does
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
            os._exit(code)

    def poll(self, flags=os.WNOHANG if hasattr(os, "WNOHANG") else 0):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, flags)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self):
        return self.poll(0)

    def send_signal(self, signum):
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def communicate(self, timeout=300):
        timer = threading.Timer(timeout, self.kill)
        timer.start()
        texts = {}
        reader = threading.Thread(target=lambda: texts.update(err=self.stderr.read()))
        reader.start()
        texts["out"] = "" if self.stdout.closed else self.stdout.read()
        reader.join(), self.wait(), timer.cancel()
        return texts["out"], texts["err"]


def popen(command, env=None, cwd=None, encoding="utf-8"):
    """Start [python, script, argument, ...]: forked where that is possible, or else for
    real.
    """
    if hasattr(os, "fork") and str(command[1]).endswith(".py"):
        return Forked(command, env, cwd, encoding)
    pipes = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }
    command = [str(word) for word in command]
    return subprocess.Popen(command, env=env, cwd=cwd, encoding=encoding, **pipes)


def command(script, *args):
    """The command for a script with its tiny settings."""
    return [sys.executable, str(ROOT / f"{script}.py"), *ARGS[script], *args]


def finish(command, code=0, **options):
    """Run a command to its end; returns stdout and stderr."""
    process = popen(command, **options)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    return out, err
