"""What all tests share: a text, a folder to work in, and two ways to run a script.

No test needs a GPU or a file that is not in the repository. Those that need GPT-2's
encoding, which comes from a package index, are skipped where it can't be had.
"""

import os
import runpy
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiktoken

# One thread each: models this small gain nothing from more, and lose where the cores
# are busy
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402
import torch._dynamo  # noqa: E402  # every optimizer wants it: imported once for all
from makers import (  # noqa: E402
    ROOT,
    STOP_SIGNALS,
    TINY,
    capture,
    markov_text,
    names_of,
    popen,
    random_tokens,
    run_here,
    write_shard,
    write_shards,
)


def pytest_configure(config):
    """--device=cuda without a GPU: PyTorch's warning says what the test is about."""
    warning = "ignore:.*CUDA is not available.*:UserWarning"
    config.addinivalue_line("filterwarnings", warning)


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
def place(folder, monkeypatch):
    """The same with two shards in tokens/, and no GPU: see ARGS in makers.py."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    write_shards(folder / "tokens")  # the one for validation has whole windows only
    return folder


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


# ------------------------------------------------------------------------ gpt2_train.py
CPU = "--device=cpu --no-compile --no-float16 --no-bfloat16 --no-hellaswag".split()
SMALL = (
    "--n_layer=2 --n_head=2 --n_embd=32 --block_size=16 --total_batch_size=128".split()
)


class FakeTokenizer:
    """Stands in for GPT-2's where a test needs its vocabulary, but no network."""

    eot_token = 50256

    def encode_ordinary(self, s):
        return list(s.encode())

    def decode(self, ids):
        return " ".join(map(str, ids))


@pytest.fixture
def gpt2(tmp_path, monkeypatch):
    """A function that runs gpt2_train.py with arguments, in tmp_path.

    It returns the script's globals: what a test assigns there, its functions see.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: FakeTokenizer())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    handlers = {s: signal.getsignal(s) for s in STOP_SIGNALS}

    def run(*args):
        args = [
            *CPU,
            *SMALL,
            "--max_iters=0",
            "--max_new_tokens=0",
            "--data_dir=tokens",
            *args,
        ]
        monkeypatch.setattr(sys, "argv", [str(ROOT / "gpt2_train.py"), *args])
        # A signal that the script does not handle must fail the test, not end pytest
        signal.signal(signal.SIGTERM, lambda *_: pytest.fail("SIGTERM was not handled"))
        return runpy.run_path(str(ROOT / "gpt2_train.py"))["get_lr"].__globals__

    yield run
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


@pytest.fixture
def tokens(tmp_path):
    """Byte shards under tokens/; returns {split: [tokens of a shard, ...]}."""
    made = {"train": [], "val": []}
    for split, number, length in (
        ("train", 1, 901),
        ("train", 2, 700),
        ("val", 0, 333),
    ):
        made[split].append(random_tokens(length, seed=length))
        write_shard(tmp_path / f"tokens/t_{split}_{number:06d}.bin", made[split][-1])
    return made


@pytest.fixture
def gpt2_tokens(tmp_path, monkeypatch):
    """Shards under tokens/ with GPT-2's 50257 tokens; the script pads to 50304."""
    monkeypatch.chdir(tmp_path)
    write_shards(
        train=900, val=300, make=lambda n: random_tokens(n, 50257), vocab_size=50257
    )
