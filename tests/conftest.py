"""What all tests share: a text, a folder to work in, and two ways to run a script.

No test needs a GPU or a file that is not in the repository. Those that need GPT-2's
encoding, which comes from a package index, are skipped where it can't be had.
"""

import contextlib
import gc
import io
import os
import random
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest

# One thread each: models this small gain nothing from more, and lose where the cores
# are busy
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402
import torch._dynamo  # noqa: E402  # every optimizer wants it: imported once for all

ROOT = Path(__file__).parent.parent

# A gpt_char of milliseconds. Dropout is on: without it a wrong random state would go
# unnoticed
TINY = ["--n_layer=2", "--n_head=2", "--n_embd=16", "--block_size=16", "--batch_size=4"]
TINY += ["--dropout=0.1", "--warmup_iters=2", "--no-bfloat16"]


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


@pytest.fixture(scope="session")
def text():
    return markov_text(60_000, seed=1)


@pytest.fixture
def folder(tmp_path, monkeypatch, text):
    """An empty working directory but for data/shakespeare/input.txt, which is the text
    above.
    """
    monkeypatch.chdir(tmp_path)
    Path("data/shakespeare").mkdir(parents=True)
    Path("data/shakespeare/input.txt").write_bytes(text.encode("utf-8"))
    return tmp_path


@pytest.fixture
def tiny():
    return TINY


@pytest.fixture(autouse=True)
def same_torch():
    """What a script sets for its whole process does not reach the next test."""
    cuda, precision = torch.backends.cuda, torch.get_float32_matmul_precision()
    yield
    cuda.enable_flash_sdp(True)
    cuda.allow_fp16_bf16_reduction_math_sdp(False)
    torch.set_float32_matmul_precision(precision)


def capture(argv, call):
    """Call call() as the program argv and return its code, out and err, and what it
    returned.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    code, value = 0, None
    before = sys.argv
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
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


@pytest.fixture
def run(folder):
    """run(script, *args): run a script in this process, see run_here."""
    return lambda script, *args: run_here(script, "--device=cpu", *args)


@pytest.fixture
def run_any(folder):
    """The same without an argument of our own."""
    return run_here


@pytest.fixture
def load(run):
    """load(script, *args): the names of an untrained script."""

    def load(script, *args):
        done = run(script, "--max_iters=0", "--max_new_tokens=2", *args)
        assert (done.code, done.err) == (0, "")
        return done.names

    return load


@pytest.fixture
def prepare(folder):
    """The names of prepare_shakespeare.py, with a function run(*args) that calls its
    main().

    Its GPT-2 tokenizer is a toy (a character's code is its token): the real one is a
    download.
    """
    names = names_of("prepare_shakespeare.py", run_name="prepare_shakespeare")
    toy = SimpleNamespace(
        n_vocab=50257, eot_token=50256, encode_ordinary=lambda s: [*map(ord, s)]
    )
    names["get_gpt2_encoding_really"] = names["get_gpt2_encoding"]
    names["get_gpt2_encoding"] = lambda: toy
    names["download_really"] = names["download"]
    names["download"] = lambda url: pytest.fail("a test must not use the network")
    names["run"] = lambda *args: capture(
        ["prepare_shakespeare.py", *args], names["main"]
    )
    return names


@pytest.fixture(scope="session")
def encoding(tmp_path_factory):
    """GPT-2's encoding by tiktoken; the scripts that are run find its files, too."""
    if not os.path.isabs(
        os.environ.get("TIKTOKEN_CACHE_DIR", "")
    ):  # our scripts set one, too
        os.environ["TIKTOKEN_CACHE_DIR"] = str(tmp_path_factory.mktemp("tiktoken"))
    script = runpy.run_path(
        str(ROOT / "prepare_shakespeare.py"), run_name="prepare_shakespeare"
    )
    try:
        return script["get_gpt2_encoding"]()
    except SystemExit as error:
        pytest.skip(str(error))


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


@pytest.fixture
def start(folder):
    """start(script, *args): start a script as a process of its own; it does not outlive
    the test.

    It reaches no network: the proxy is a closed port, and pip is one that fails.
    """
    Path("no_pip/pip").mkdir(parents=True)
    Path("no_pip/pip/__init__.py").touch()
    Path("no_pip/pip/__main__.py").write_text(
        "import sys; sys.exit('ERROR: no network')"
    )
    env = {
        **os.environ,
        "https_proxy": "http://127.0.0.1:9",
        "PYTHONPATH": str(folder / "no_pip"),
    }
    processes = []

    def start(script, *args):
        processes.append(popen([sys.executable, ROOT / script, *args], env=env))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def tree(folder):
    """tree(): every file below the working directory with its content."""
    return lambda: {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def direct_loss():
    """direct_loss(names, data): the mean cross-entropy of the script's model, computed
    plainly.

    The data is predicted in whole windows, one at a time, every character but the first
    once.
    """

    def direct_loss(names, data):
        losses = []
        names["model"].eval()
        with torch.no_grad():
            whole = (len(data) - 1) // names["block_size"] * names["block_size"]
            for i in range(0, whole, names["block_size"]):
                x = data[i : i + names["block_size"]]
                logp = names["model"].logits(x[None])[0].double().log_softmax(-1)
                losses += [-logp[t, data[i + t + 1]].item() for t in range(len(x))]
        assert len(data) - 1 - names["block_size"] < len(losses) <= len(data) - 1
        return sum(losses) / len(losses)

    return direct_loss
