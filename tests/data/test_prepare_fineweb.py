"""prepare_fineweb.py: the right tokens in the right order, whatever happens."""

import ast
import errno
import gzip
import hashlib
import http.server
import io
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from makers import ROOT, capture, write_shard

SCRIPT = ROOT / "prepare_fineweb.py"
EOT = 50256
HUB_FILES = {}  # {"repository/path": bytes} of the stand-in for the Hub
# Small sizes, so that little text has many buffers and pieces, and no real network
SMALL = dict(HELLASWAG_URL="http://127.0.0.1:9/", WAITS=(0.01,) * 20)
SMALL |= dict(BUFFER_SIZE=20_000, PIECE_SIZE=500)


def names_of_script(**changes):
    """The script's top-level names. Its functions see the changes."""
    main = runpy.run_path(str(SCRIPT), run_name="prepare_fineweb")["main"]
    main.__globals__.update(SMALL | changes)
    return main.__globals__


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(*args, code=0, **changes): run the script in an empty folder.

    Returns what it printed. An exception that is not a SystemExit fails the test.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(
        os, "fsync", lambda fd: None
    )  # slow, and nothing here loses its power

    def run(*args, code=0, **changes):
        done = capture(
            ["prepare_fineweb.py", *args], names_of_script(**changes)["main"]
        )
        assert done.code == code, done.out + done.err
        return done.out + done.err

    return run


def start(folder, *args, setup=""):
    """Start the script as a process of its own."""
    code = f"import runpy, sys\nsys.argv[0] = 'prepare_fineweb.py'\n{setup}\n"
    code += f"main = runpy.run_path({str(SCRIPT)!r}, run_name='prepare')['main']\n"
    code += "names = main.__globals__\n"
    code += f"names.update({SMALL!r})\nnames['main']()"
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([sys.executable, "-c", code, *args], cwd=folder, **pipes)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def words(rng, n):
    """Text of n words, with what makes tokenizing interesting."""
    some = (
        "the of and hill's we'll 1234 -- Ünï 東京 \u00a0x \n \n\n  \t it. 🙂 don't ’s"
    )
    some = some.split(" ")
    return " ".join(rng.choice(some + ["quick", "brown", "fox"], n))


def documents(seed=0, n=120):
    rng = np.random.default_rng(seed)
    docs = [words(rng, int(size)) for size in rng.geometric(1 / 60, n)]
    return docs + [
        "",
        "<|endoftext|>",
        "<|endoftext|><|endoftext|> x",
        "",
        words(rng, 6000),
    ]


def write_source(path, docs):
    if path.suffix == ".parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        table = pa.table({"id": range(len(docs)), "text": docs})
        pq.write_table(table, path, row_group_size=9)
    elif path.suffix == ".txt":
        (text,) = docs
        path.write_bytes(text.encode())
    else:
        lines = "".join(
            json.dumps({"text": doc, "n": 1}) + "\n" for doc in docs
        ).encode()
        path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)


def read_source(path, rng):
    """The documents of a file in the order in which the script reads them."""
    if path.suffix == ".parquet":
        f = pytest.importorskip("pyarrow.parquet").ParquetFile(path)
        groups = [
            f.read_row_group(i)["text"].to_pylist() for i in range(f.num_row_groups)
        ]
        return [doc for i in rng.permutation(len(groups)) for doc in groups[i]]
    if path.suffix == ".txt":
        return [path.read_bytes().decode()]
    content = (
        gzip.decompress(path.read_bytes())
        if path.suffix == ".gz"
        else path.read_bytes()
    )
    return [json.loads(line)["text"] for line in content.splitlines()]


def implied_order(manifest, folder):
    """The shuffled documents, from nothing but the manifest and the source."""
    seed, docs = manifest["seed"], []
    for i, file in enumerate(manifest["files"]):
        docs += read_source(folder / file["path"], np.random.default_rng([seed, 1, i]))
    ordered, buffer, size, number = [], [], 0, 0
    for i, doc in enumerate(docs):
        buffer.append(doc)
        size += len(doc) + 100
        if size >= manifest["buffer_size"] or i == len(docs) - 1:
            order = np.random.default_rng([seed, 2, number]).permutation(len(buffer))
            ordered += [buffer[j] for j in order]
            buffer, size, number = [], 0, number + 1
    return ordered


def read_shard(path):
    """The tokens of a shard, with the checks of llm.c and of modded-nanogpt."""
    content = path.read_bytes()
    header = np.frombuffer(content[:1024], dtype=np.int32)
    assert len(header) == 256
    assert header[0] == 20240520, "llm.c: Bad magic in the data file"
    assert header[1] == 1, "llm.c: Bad version in data file"
    num_tokens = int(header[2])
    assert num_tokens > 0
    assert len(content) == 1024 + 2 * num_tokens, "llm.c: file size is not as expected"
    tokens = np.frombuffer(content[1024:], dtype=np.uint16)
    assert len(tokens) == num_tokens, "modded-nanogpt: number of tokens read != header"
    assert not header[3:].any()
    return tokens


def check(folder, docs, encoding, shard_size):
    """All that must be true of a finished folder made of docs. Returns its manifest."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    names = [shard["file"] for shard in manifest["shards"]]
    splits = ["val" if i == 0 else "train" for i in range(len(names))]
    assert names == [f"{folder.name}_{s}_{i:06d}.bin" for i, s in enumerate(splits)]
    assert {path.name for path in folder.iterdir()} == {"manifest.json", *names}
    shards = [read_shard(folder / name) for name in names]
    assert [len(shard) for shard in shards[:-1]] == [shard_size] * (len(shards) - 1)
    assert 1 <= len(shards[-1]) <= shard_size
    for shard, entry in zip(shards, manifest["shards"]):
        assert (
            entry["tokens"] == len(shard) and entry["documents"] == (shard == EOT).sum()
        )
        assert (
            entry["sha256"]
            == hashlib.sha256((folder / entry["file"]).read_bytes()).hexdigest()
        )
    tokens = np.concatenate(shards).tolist()
    ordered = implied_order(manifest, folder.parent.parent)
    assert sorted(ordered) == sorted(docs) and (ordered != docs or len(docs) == 1)
    assert tokens == [
        t for doc in ordered for t in [EOT, *encoding.encode_ordinary(doc)]
    ]
    texts = encoding.decode_batch(
        [
            part.tolist()
            for part in np.split(tokens, np.flatnonzero(np.array(tokens) == EOT))[1:]
        ]
    )
    assert texts == ["<|endoftext|>" + doc for doc in ordered]
    assert manifest["documents"] == len(docs) and manifest["tokens"] == len(tokens)
    return manifest


# --------------------------------------------------------------------- The right tokens
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_shards_are_the_documents_in_the_order_of_the_manifest(
    run, tmp_path, encoding, suffix
):
    parts = [documents(seed) for seed in range(3)]
    names = [f"{name}{suffix}" for name in "abc"]
    for name, docs in zip(names, parts):
        write_source(tmp_path / name, docs)
    args = ["--name=n", "--shard_size=7K", "--seed=5"]
    out = run("--source", *names, *args)
    docs = sum(parts, [])
    manifest = check(tmp_path / "data/n", docs, encoding, 7000)
    last = out.splitlines()[-1]
    assert f"{len(docs):,}" in last and f"{manifest['tokens']:,}" in last
    assert {file["path"] for file in manifest["files"]} == set(names)
    assert all(
        f"{shard['file']}: {shard['tokens']:,} tokens" in out
        for shard in manifest["shards"]
    )

    before = contents(
        tmp_path / "data/n"
    )  # a second call, also in another order, does nothing
    run("--source", names[2], names[0], "--source", names[1], *args)
    assert contents(tmp_path / "data/n") == before
    run("--source", *names, "--name=m", "--shard_size=7K", "--seed=6")
    assert (tmp_path / "data/m/m_val_000000.bin").read_bytes() != before[
        "n_val_000000.bin"
    ]


def test_progress(run, tmp_path, encoding):
    """Every four seconds a line says how far it is, how fast, and how long it takes."""
    clock = iter(range(0, 10_000, 2))
    write_source(tmp_path / "a.jsonl", documents())
    seconds = SimpleNamespace(time=lambda: next(clock))
    out = run("--source=a.jsonl", "--name=n", "--shard_size=1K", time=seconds)
    lines = [line for line in out.splitlines() if line.startswith("  ")]
    pattern = r"  ([\d,]+) of about ([\d,]+) tokens, ([\d,]+) tokens/s, (\d+) min left"
    found = [
        [int(n.replace(",", "")) for n in re.fullmatch(pattern, x).groups()]
        for x in lines
    ]
    total = json.loads((tmp_path / "data/n/manifest.json").read_bytes())["tokens"]
    expected = round(0.22 * (tmp_path / "a.jsonl").stat().st_size)
    assert len(found) > 5 and found[-1][0] <= total
    for i, (done, of, speed, minutes) in enumerate(found, 1):
        assert of == expected and speed == round(done / (4 * i))
        assert minutes == round(max(0, expected - done) / (done / (4 * i)) / 60)


def test_text_files_are_documents(run, tmp_path, encoding):
    docs = [words(np.random.default_rng(i), 300) for i in range(12)]
    for i, doc in enumerate(docs):
        write_source(tmp_path / f"{i}.txt", [doc])
    run("--source", *[f"{i}.txt" for i in range(12)], "--name=n", "--shard_size=1K")
    check(tmp_path / "data/n", docs, encoding, 1000)


@pytest.mark.parametrize("shard_size", [1, 2, 3, 64])
def test_documents_at_the_ends_of_shards(run, tmp_path, encoding, shard_size):
    """Longer than many shards; empty; only special tokens; two that fill one each."""
    docs = [
        "hello",
        "world",
        "hello world",
        "a b c",
        "",
        "",
        "<|endoftext|>",
        "x " * 100,
        "y",
        "z",
    ]
    write_source(tmp_path / "a.jsonl", docs)
    run("--source=a.jsonl", "--name=n", f"--shard_size={shard_size}")
    check(tmp_path / "data/n", docs, encoding, shard_size)


def test_only_full_shards(run, tmp_path, encoding):
    """Where the source ends with a shard there is no empty one after it."""
    write_source(tmp_path / "a.jsonl", ["hello"] * 6)  # 2 tokens each
    run("--source=a.jsonl", "--name=n", "--shard_size=4")
    tokens = [
        read_shard(path).tolist()
        for path in sorted((tmp_path / "data/n").glob("*.bin"))
    ]
    assert tokens == [[EOT, 31373] * 2] * 3


def test_a_text_without_a_training_shard(run, tmp_path, encoding):
    """It is refused, and nothing stands in the way of smaller shards."""
    docs = documents()
    write_source(tmp_path / "a.jsonl", docs)
    total = sum(1 + len(encoding.encode_ordinary(doc)) for doc in docs)
    args = ["--source=a.jsonl", "--name=n"]
    for shard_size in (total, total + 1, 10**8):
        out = run(*args, f"--shard_size={shard_size}", code=1)
        last = out.splitlines()[-1]
        assert last.startswith(f"{Path('data/n')}: ") and f"{total:,}" in last
        assert not (tmp_path / "data/n").exists()
    smaller = re.search(r"--shard_size=(\d+)", last)[1]
    run(*args, f"--shard_size={smaller}")
    check(tmp_path / "data/n", docs, encoding, int(smaller))


def test_a_text_without_a_training_shard_in_a_folder_with_other_files(
    run, tmp_path, encoding
):
    write_source(tmp_path / "a.jsonl", ["hello"])
    (tmp_path / "data/n").mkdir(parents=True)
    (tmp_path / "data/n/notes.txt").write_bytes(b"mine")
    run("--source=a.jsonl", "--name=n", "--shard_size=1K", code=1)
    assert contents(tmp_path / "data/n") == {"notes.txt": b"mine"}


@pytest.mark.long
def test_text_that_tiktoken_cannot_take(run, tmp_path, encoding):
    """Half of a surrogate pair is replaced, as by tiktoken; much whitespace is cut."""
    docs = [
        "a \ud83d b",
        " " * 1_200_000 + "x" + " " * 1_200_000,
        "ok\n" + "\n" * 1_200_001 + "y",
        "\u00a0" * 1_200_000,
    ]
    write_source(tmp_path / "a.jsonl", docs)
    run("--source=a.jsonl", "--name=n", "--shard_size=1M")
    shards = sorted((tmp_path / "data/n").glob("n_train_*.bin"))
    shards = [tmp_path / "data/n/n_val_000000.bin", *shards]
    tokens = np.concatenate([read_shard(path) for path in shards])
    found = [
        part.tolist() for part in np.split(tokens, np.flatnonzero(tokens == EOT))[1:]
    ]
    expected = [
        encoding.encode_ordinary(docs[0]),
        [220] * 1_199_999 + encoding.encode_ordinary(" x") + [220] * 1_200_000,
        [
            482,
            *encoding.encode_ordinary("\n" * 1_200_001),
            *encoding.encode_ordinary("\ny"),
        ],
        encoding.encode_ordinary(docs[3]),
    ]
    assert sorted(found) == sorted([EOT, *tokens] for tokens in expected)


def test_pieces_have_the_tokens_of_the_whole(encoding):
    """In texts of all that GPT-2's regular expression tells apart, cut very often."""
    cut = names_of_script(PIECE_SIZE=3)["cut"]
    rng, pieces_seen = np.random.default_rng(0), 0
    parts = [
        "a",
        "ll",
        "'",
        "'s",
        "'re",
        "7",
        "!",
        " ",
        "  ",
        "\n",
        "\n ",
        "\t",
        "\r\n",
        "\u00a0",
    ]
    parts += [
        "\x1c",
        "\x1f",
        "\x85",
        "\u2028",
        "\u3000",
        "é",
        "東",
        "🙂",
        "\u0301",
        "\u200b",
    ]
    for _ in range(3000):
        text = "".join(rng.choice(parts, 30))
        pieces = [piece for pieces in cut([text]) for piece in pieces]
        assert [is_start for is_start, _ in pieces] == [True] + [False] * (
            len(pieces) - 1
        )
        assert "".join(piece for _, piece in pieces) == text
        tokens = [
            token for _, piece in pieces for token in encoding.encode_ordinary(piece)
        ]
        assert tokens == encoding.encode_ordinary(text), repr(text)
        pieces_seen += len(pieces)
    assert pieces_seen > 9000


def test_tokens_can_be_raised(run, tmp_path, encoding):
    """--tokens stops early and exactly; more of them later is as if never stopped."""
    write_source(tmp_path / "a.jsonl", documents())
    args = ["--source=a.jsonl", "--shard_size=1K"]
    run(*args, "--name=n")
    whole = contents(tmp_path / "data/n")
    run(*args, "--name=m", "--tokens=2.5K")
    sizes = [
        len(read_shard(path)) for path in sorted((tmp_path / "data/m").glob("*.bin"))
    ]
    assert sorted(sizes) == [500, 1000, 1000]
    before = contents(tmp_path / "data/m")
    run(*args, "--name=m", "--tokens=1500")
    assert contents(tmp_path / "data/m") == before
    run(*args, "--name=m", "--tokens=4K")
    run(*args, "--name=m")
    after = {
        name.replace("m_", "n_"): b for name, b in contents(tmp_path / "data/m").items()
    }
    assert after.pop("manifest.json").replace(b"m_", b"n_") == whole.pop(
        "manifest.json"
    )
    assert after == whole


# --------------------------------------------------------------------- Whatever happens
def kill_again_and_again(run, tmp_path, kills, seed, suffix=".jsonl"):
    docs = [words(np.random.default_rng(i), 200) for i in range(900)]
    write_source(tmp_path / f"a{suffix}", docs[:500])
    write_source(tmp_path / f"b{suffix}", docs[500:])
    args = ["--source", f"a{suffix}", f"b{suffix}", "--shard_size=7003"]
    run(*args, "--name=n")
    expected = contents(tmp_path / "data/n")
    rng = np.random.default_rng(seed)
    # Slow enough to be killed at every point, also between a shard and its manifest
    slow = """
import os, time
for name in ("fsync", "replace"):
    real = getattr(os, name)
    def slow(*args, real=real):
        time.sleep(0.02)
        real(*args)
        time.sleep(0.02)
    setattr(os, name, slow)
"""
    hits, folder, other = 0, tmp_path / "data/n", tmp_path / "data/elsewhere"
    folder.rename(other)
    tries = 0
    while hits < kills:
        tries += 1
        assert tries < 10 * kills, "it ends before it can be killed"
        process = start(tmp_path, *args, "--name=n", setup=slow)
        time.sleep(rng.uniform(0.3, 1.5))
        hits += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for path in folder.glob("*.bin"):  # what has its name is whole, at any time
            assert path.read_bytes() == expected[path.name]
        if folder.exists() and len(contents(folder)) == len(expected):
            for path in folder.iterdir():
                path.unlink()
    run(*args, "--name=n")
    assert contents(folder) == expected


@pytest.mark.long
def test_killed_and_continued_gives_the_same_bytes(run, tmp_path, encoding):
    kill_again_and_again(run, tmp_path, kills=3, seed=0)


@pytest.mark.long
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_killed_20_times_gives_the_same_bytes(run, tmp_path, encoding, suffix):
    kill_again_and_again(run, tmp_path, kills=20, seed=1, suffix=suffix)


@pytest.mark.long
@pytest.mark.parametrize("n, shard_size", [(200, 1009), (3, 211)])
def test_every_position_in_the_manifest_can_be_continued(
    run, tmp_path, encoding, n, shard_size
):
    """Also those inside a piece, a buffer, or a document longer than a shard."""
    write_source(tmp_path / "a.jsonl", documents(0, n))
    write_source(tmp_path / "b.jsonl", documents(1, n))
    args = ["--source", "a.jsonl", "b.jsonl", "--name=n", f"--shard_size={shard_size}"]
    run(*args)
    expected = contents(tmp_path / "data/n")
    names = sorted(name for name in expected if name.endswith(".bin"))
    names = sorted(names, key=lambda name: name[-10:])
    for i in (len(names) - 1, len(names) // 2, 7, 3, 1, 0):
        (tmp_path / "data/n" / names[i]).unlink()
        assert names[i] in run(*args)
        assert contents(tmp_path / "data/n") == expected


def test_long_documents_are_tokenized_in_pieces(run, tmp_path, encoding):
    """So that they, too, are work for all threads."""
    sizes, tokenize = [], names_of_script()["tokenize"]

    def record(encoding, pieces):
        sizes.append(sum(len(text) for _, text in pieces))
        return tokenize(encoding, pieces)

    write_source(tmp_path / "a.jsonl", ["so it goes " * 40_000])
    run("--source=a.jsonl", "--name=n", "--shard_size=50K", tokenize=record)
    check(tmp_path / "data/n", ["so it goes " * 40_000], encoding, 50_000)
    assert max(sizes) < 1000 and len(sizes) > 400


def test_changed_options_are_refused(run, tmp_path, encoding):
    write_source(tmp_path / "a.jsonl", documents())
    write_source(tmp_path / "b.jsonl", documents(1))
    args = ["--source=a.jsonl", "--name=n"]
    run(*args, "--shard_size=1K")
    before = contents(tmp_path / "data/n")
    for changed in (
        [*args, "--shard_size=2K"],
        [*args, "--shard_size=1K", "--seed=7"],
        ["--source=b.jsonl", "--name=n", "--shard_size=1K"],
        ["--source=b.jsonl", *args, "--shard_size=1K"],
    ):
        out = run(*changed, code=1)
        assert "data/n: " in out and "--name=NAME" in out
    assert "buffer_size" in run(*args, "--shard_size=1K", BUFFER_SIZE=9, code=1)
    write_source(tmp_path / "a.jsonl", documents()[1:])
    assert "files" in run(*args, "--shard_size=1K", code=1)
    assert contents(tmp_path / "data/n") == before


def test_verify(run, tmp_path, encoding):
    write_source(tmp_path / "a.jsonl", documents())
    args = ["--source=a.jsonl", "--name=n", "--shard_size=1K"]
    run(*args)
    folder = tmp_path / "data/n"
    before = contents(folder)
    assert "manifest.json" in run("--name=n", "--verify")
    path = folder / "n_train_000002.bin"
    for damage in ("bit", "short", "gone", "header", "stray"):
        content = bytearray(before[path.name])
        content[1500] ^= damage == "bit"
        content[0] ^= damage == "header"
        path.write_bytes(content[:-2] if damage == "short" else content)
        bad = path
        if damage == "gone":
            path.unlink()
        if damage == "stray":
            bad = folder / "n_train_000999.bin"
            bad.write_bytes(content)
        out = run("--name=n", "--verify", code=1)
        assert f"data/n/{bad.name}: " in out and out.count("data/n/") == 1
        bad.unlink(missing_ok=True)  # as the message says
        run(*args)
        assert contents(folder) == before
    assert "manifest.json" in run("--name=other", "--verify", code=1)


def test_a_shard_that_an_interruption_left(run, tmp_path, encoding):
    """Written, but not recorded yet: no damage, and the next run makes it again."""
    write_source(tmp_path / "a.jsonl", documents())
    args = ["--source=a.jsonl", "--name=n", "--shard_size=1K"]
    run(*args)
    folder = tmp_path / "data/n"
    before = contents(folder)
    manifest = json.loads(before["manifest.json"])
    manifest["complete"] = False
    del manifest["shards"][3:]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for path in folder.glob("n_train_*.bin"):
        if int(path.stem[-6:]) > 3:
            path.unlink()
    run("--name=n", "--verify")
    run(*args)
    assert contents(folder) == before


# ------------------------------------------------------------------------------ The Hub
class StandIn(http.server.BaseHTTPRequestHandler):
    """Speaks enough of the Hub's language, and plays a list of faults meanwhile."""

    protocol_version = "HTTP/1.1"
    commit = "c0ffee" + "0" * 34

    def log_message(self, *args):
        pass

    def send(self, content, length=None, status=200, **headers):
        self.send_response(status)
        headers["Content-Length"] = len(content) if length is None else length
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urllib.parse.unquote(self.path.split("?")[0])
        faults = self.server.faults.get("files" if "/resolve/" in path else "api", [])
        fault = faults.pop(0) if faults and self.command == "GET" else None
        self.server.log.append((self.command, path, fault))
        if fault in (429, 503):
            return self.send(b"later", status=fault, Retry_After=0)
        if fault == "close":
            self.close_connection = True
            return
        if path.startswith("/api/datasets/"):
            repo, _, tree = path.removeprefix("/api/datasets/").partition("/tree/")
            answer = {"id": repo, "sha": self.commit}
            if tree:
                below = repo + tree.removeprefix(self.commit)
                answer = [
                    {
                        "type": "file",
                        "path": name.removeprefix(repo + "/"),
                        "size": len(content),
                        "oid": "0" * 40,
                        "lfs": {
                            "oid": hashlib.sha256(content).hexdigest(),
                            "size": len(content),
                            "pointerSize": 9,
                        },
                    }
                    for name, content in HUB_FILES.items()
                    if name.startswith(below)
                ]
            return self.send(
                json.dumps(answer).encode(), Content_Type="application/json"
            )
        name = path.removeprefix("/datasets/").replace(f"/resolve/{self.commit}", "")
        if name not in HUB_FILES:
            return self.send(b"", status=404)
        content = HUB_FILES[name]
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X_Repo_Commit": self.commit,
        }
        half = len(content) // 2
        if fault == "drop":
            self.close_connection = True
            return self.send(content[:half], len(content), **headers)
        if fault == "short":
            return self.send(content[:half], **headers)
        if fault == "long":
            return self.send(content + b"more", **headers)
        if fault == "other":
            return self.send(b"\0" * len(content), **headers)
        first = int(self.headers.get("Range", "bytes=0-")[6:].rstrip("-"))
        if first:
            headers["Content_Range"] = (
                f"bytes {first}-{len(content) - 1}/{len(content)}"
            )
        self.send(content[first:], status=206 if first else 200, **headers)


def turn_hub(monkeypatch, url):
    """Let huggingface_hub ask this server, and not sleep before it tries again."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template
    )
    awake = SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", awake, raising=False)


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the Hub, with faults and a log. The script asks this one."""
    pytest.importorskip("huggingface_hub")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    server.faults, server.log = {}, []
    url = f"http://127.0.0.1:{server.server_port}"
    turn_hub(monkeypatch, url)
    HUB_FILES.clear()
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def fill_hub(tmp_path):
    parts = [documents(seed) for seed in range(3)]
    for i, docs in enumerate(parts):
        write_source(tmp_path / "part.parquet", docs)
        content = (tmp_path / "part.parquet").read_bytes()
        HUB_FILES[f"HuggingFaceFW/fineweb-edu/sample/10BT/{i:03d}_00000.parquet"] = (
            content
        )
        (tmp_path / f"sample/10BT/{i:03d}_00000.parquet").parent.mkdir(
            parents=True, exist_ok=True
        )
        (tmp_path / f"sample/10BT/{i:03d}_00000.parquet").write_bytes(content)
    HUB_FILES["HuggingFaceFW/fineweb-edu/README.md"] = b"not this one"
    return sum(parts, [])


@pytest.mark.long
def test_fineweb_edu_from_a_faulty_hub(run, tmp_path, encoding, hub):
    docs = fill_hub(tmp_path)
    hub.faults["api"] = ["close", 429, 503]
    hub.faults["files"] = [
        "drop",
        "short",
        "long",
        429,
        "other",
        "close",
        "drop",
        503,
        "short",
    ]
    out = run("--shard_size=7K")
    manifest = check(
        tmp_path / "data/fineweb_edu", docs, encoding, 7000
    )  # downloads are deleted
    assert not hub.faults["api"] and not hub.faults["files"]
    assert manifest["revision"] == StandIn.commit
    hub.log.clear()
    run("--shard_size=7K")
    assert hub.log == []  # nothing left to ask for


def test_downloads_are_deleted_on_the_way_unless_kept(run, tmp_path, encoding, hub):
    fill_hub(tmp_path)
    counts, ask_hub = [], names_of_script()["ask_hub"]

    def watch(*args):
        counts.append(len(list((tmp_path / "data").rglob("*.parquet"))))
        return ask_hub(*args)

    run("--shard_size=1K", "--name=a", PIECES_AHEAD=4, ask_hub=watch)
    assert len(counts) == 5 and max(counts) == 1
    run("--shard_size=1K", "--name=b", "--keep")
    assert len(list((tmp_path / "data/b").rglob("*.parquet"))) == 3
    for name, content in contents(tmp_path / "data/a").items():
        assert (tmp_path / "data/b" / name.replace("a_", "b_")).exists() and content


def test_a_restart_keeps_to_the_revision_it_began_with(run, tmp_path, encoding, hub):
    docs = fill_hub(tmp_path)
    args = ["--shard_size=1K"]
    run(*args, "--tokens=3K")
    hub.log.clear()
    run(*args)
    assert hub.log and not any("/api/datasets" in path for _, path, _ in hub.log)
    check(tmp_path / "data/fineweb_edu", docs, encoding, 1000)


def test_pretokenized(run, tmp_path, hub):
    tokens = np.random.default_rng(0).integers(0, 50257, (3, 5000)).astype(np.uint16)
    names = [
        "fineweb_train_000001.bin",
        "fineweb_train_000002.bin",
        "fineweb_val_000000.bin",
    ]
    for name, part in zip(names, tokens):  # as modded-nanogpt and llm.c write them
        write_shard(tmp_path / name, part, 50257)
        HUB_FILES[f"kjj0/fineweb10B-gpt2/{name}"] = (tmp_path / name).read_bytes()
    hub.faults["files"] = ["drop", "short", "other"]
    run("--pretokenized", "--tokens=101M")
    folder = tmp_path / "data/fineweb"
    found = contents(folder)
    manifest = json.loads(found.pop("manifest.json"))
    assert found == {name: HUB_FILES[f"kjj0/fineweb10B-gpt2/{name}"] for name in names}
    assert [shard["file"] for shard in manifest["shards"]] == [names[2], *names[:2]]
    assert manifest["documents"] == (tokens == EOT).sum()
    assert "manifest.json" in run("--name=fineweb", "--verify")
    (folder / names[1]).unlink()
    run("--pretokenized")
    assert contents(folder).keys() == {*names, "manifest.json"}

    HUB_FILES[f"kjj0/fineweb10B-gpt2/{names[1]}"] = b"\0" * 3000
    out = run("--pretokenized", "--name=other", code=1)
    assert f"{names[1]}: is not a whole shard" in out
    assert not (
        tmp_path / f"data/other/{names[1].replace('fineweb', 'other')}"
    ).exists()


def test_no_net(run, encoding, monkeypatch):
    pytest.importorskip("huggingface_hub")
    turn_hub(monkeypatch, "http://127.0.0.1:9")
    out = run(WAITS=(0.01,), code=1)
    assert "HuggingFaceFW/fineweb-edu: " in out and "0.01 s" in out


def test_a_missing_repository_is_not_asked_for_again(run, tmp_path, encoding, hub):
    out = run(code=1)
    assert "has no" in out and "HuggingFaceFW/fineweb-edu" in out


def test_hellaswag(run, tmp_path, encoding):
    write_source(tmp_path / "a.jsonl", documents())
    args = ["--source=a.jsonl", "--name=n", "--shard_size=1K"]
    url = (tmp_path / "h.jsonl").as_uri()
    path = tmp_path / "data/hellaswag/hellaswag_val.jsonl"
    assert "HellaSwag" in run(*args)  # and goes on
    content = b'{"endings": []}\n' * 70_000
    for bad in (content[:-7], b"<html>", content + b"\n{}", b""):
        (tmp_path / "h.jsonl").write_bytes(bad)
        assert "HellaSwag" in run(*args, HELLASWAG_URL=url)
        assert not path.exists()
    (tmp_path / "h.jsonl").write_bytes(content)
    out = run(*args, HELLASWAG_URL=url)
    assert "HellaSwag" in out and "1.1 MB" in out
    assert path.read_bytes() == content
    assert "HellaSwag" not in run(*args)  # not again


def test_no_step_is_silent(run, tmp_path, encoding, monkeypatch):
    """While a server does not answer, a line says so every four seconds."""
    pytest.importorskip("huggingface_hub")
    seconds = []

    class Event(threading.Event):  # time is a hundred times as fast
        def wait(self, timeout):
            seconds.append(timeout)
            return super().wait(timeout / 100)

    def urlopen(url, timeout):
        assert 0 < timeout <= 5
        time.sleep(0.1)
        raise OSError("unreachable")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    names = names_of_script(
        threading=SimpleNamespace(Event=Event, Thread=threading.Thread)
    )
    done = capture([], names["get_hellaswag"])
    *waiting, last = done.out.splitlines()
    assert len(set(waiting)) == 1 and "unreachable" in last
    done = capture(
        [], lambda: names["ask_hub"]("a file", lambda hub: time.sleep(0.1) or 5)
    )
    assert set(done.out.splitlines()) == set(waiting) and done.value == 5
    names["tiktoken"] = SimpleNamespace(
        get_encoding=lambda name: time.sleep(0.1) or name
    )
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "none"))
    done = capture([], names["get_gpt2_encoding"])
    first, *again = done.out.splitlines()
    assert "vocabulary" in first and done.value == "gpt2"
    assert set(again) == set(waiting) and 0 < max(seconds) <= 5


# ---------------------------------------------------------------------------- Bad input
BAD_SOURCES = {
    "gone.jsonl": (None, "is no .parquet, .jsonl"),
    "a.csv": (b"a", "is no .parquet, .jsonl"),
    "json.jsonl": (b'{"text": "a"}\n\n{"text": "b"\n', "document 2: JSONDecodeError"),
    "key.jsonl": (b'{"text": "a"}\n{"body": "b"}\n', "document 2: KeyError: 'text'"),
    "list.jsonl": (b'{"text": "a"}\n[1]\n', "document 2: TypeError"),
    "null.jsonl": (
        b'{"text": "a"}\n{"text": null}\n',
        "document 2: TypeError: its text is None",
    ),
    "latin.jsonl": (
        b'{"text": "a"}\n{"text": "\xe9"}\n',
        "document 2: UnicodeDecodeError",
    ),
    "half.jsonl.gz": (
        gzip.compress(b'{"text": "abcdefg"}\n' * 999)[:-20],
        "end-of-stream",
    ),
    "not.jsonl.gz": (b"no gzip", "Not a gzipped file"),
    "latin.txt": (b"caf\xe9", "document 1: UnicodeDecodeError"),
    "broken.parquet": (b"PAR1 and so on", "arquet"),
    "empty.jsonl": (b"", "validation shard"),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_bad_sources(run, tmp_path, encoding, name):
    content, message = BAD_SOURCES[name]
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    out = run(f"--source={name}", "--name=n", code=1)
    *_, last = out.strip().splitlines()
    assert message in last and (name in last or "empty" in name)
    assert not list(tmp_path.rglob("data/n/*.bin*"))


def test_bad_parquet(run, tmp_path, encoding):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"id": [1], "body": ["x"]}), tmp_path / "column.parquet")
    pq.write_table(pa.table({"text": ["x", None]}), tmp_path / "null.parquet")
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "number.parquet")
    write_source(tmp_path / "damaged.parquet", documents())
    content = bytearray((tmp_path / "damaged.parquet").read_bytes())
    content[100:4000] = b"\xff" * 3900
    (tmp_path / "damaged.parquet").write_bytes(content)
    for name, message in {
        "column": "column.parquet: document 1: KeyError",
        "null": "null.parquet: document 2: TypeError: its text is None",
        "number": "number.parquet: document 1: TypeError: its text is 1",
        "damaged": "damaged.parquet: ",
    }.items():
        assert message in run(f"--source={name}.parquet", f"--name={name}", code=1)


def test_a_broken_line_leaves_the_shards_before_it(run, tmp_path, encoding):
    """And when it is mended, the rest follows."""
    docs = [words(np.random.default_rng(i), 300) for i in range(200)]
    write_source(tmp_path / "a.jsonl", docs)
    good = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "a.jsonl").write_bytes(good[:-3] + b"  \n")  # of the same size
    args = ["--source=a.jsonl", "--name=n", "--shard_size=1K"]
    assert "a.jsonl: document 200: JSONDecodeError" in run(*args, code=1)
    shards = {p.name: p.read_bytes() for p in (tmp_path / "data/n").glob("*.bin*")}
    assert len(shards) > 1 and "manifest.json" in run(
        "--name=n", "--verify"
    )
    (tmp_path / "a.jsonl").write_bytes(good)
    run(*args)
    check(tmp_path / "data/n", docs, encoding, 1000)
    assert shards.items() <= contents(tmp_path / "data/n").items()


@pytest.mark.parametrize(
    "text, value",
    [("7", 7), ("20k", 20_000), ("1.5B", 1_500_000_000), ("0.1M", 100_000)],
)
def test_numbers(text, value):
    assert names_of_script()["number"](text) == value


def test_help(run):
    out = run("--help")
    flags = set(re.findall(r"^  --(\w+)", out, flags=re.M))
    assert flags == {
        "source",
        "pretokenized",
        "name",
        "tokens",
        "shard_size",
        "seed",
        "keep",
        "verify",
    }


@pytest.fixture
def program(run, tmp_path):
    """program(*args): the script as it is, also its last lines. HellaSwag is there."""
    (tmp_path / "data/hellaswag").mkdir(parents=True)
    (tmp_path / "data/hellaswag/hellaswag_val.jsonl").touch()
    argv = ["prepare_fineweb.py"]
    main = lambda: runpy.run_path(str(SCRIPT), run_name="__main__")  # noqa: E731
    return lambda *args: capture([*argv, *args], main)


def test_packages_that_are_missing(program, tmp_path, encoding, monkeypatch):
    """Are named; .jsonl and .txt need none of them."""
    for name in ("pyarrow", "pyarrow.parquet", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, name, None)
    done = program()
    assert done.code == 1 and done.err.endswith(": pip install huggingface_hub\n")
    assert done.err.count("\n") == 1
    (tmp_path / "a.parquet").write_bytes(b"")
    done = program("--source", "a.parquet", "--name=n")
    assert done.code == 1 and done.err.endswith(": pip install pyarrow\n")
    write_source(tmp_path / "a.jsonl", documents())
    assert program("--source=a.jsonl", "--name=m", "--shard_size=1K").code == 0


def test_interrupted(program, tmp_path, encoding, monkeypatch):
    def interrupt(fd):
        raise KeyboardInterrupt

    write_source(tmp_path / "a.jsonl", documents())
    monkeypatch.setattr(os, "fsync", interrupt)
    try:
        done = program("--source=a.jsonl", "--name=n", "--shard_size=1K")
    except KeyboardInterrupt:
        pytest.fail("a traceback")
    assert done.code == 130
    assert done.err.strip().count("\n") == 0 and "continues" in done.err
    assert contents(tmp_path / "data/n") == {}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for others")
def test_ctrl_c(run, tmp_path, encoding):
    """The real signal, in the middle: exit code 130, one line, nothing half-written."""
    write_source(tmp_path / "a.jsonl", documents(n=4000))
    env = os.environ | {"https_proxy": "http://127.0.0.1:9"}
    command = [
        sys.executable,
        SCRIPT,
        "--source=a.jsonl",
        "--name=n",
        "--shard_size=1K",
    ]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # Where the tests run in the background, SIGINT may be ignored
    pipes["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, cwd=tmp_path, env=env, **pipes)
    for line in process.stdout:  # until it has made a few shards
        if "n_train_000003.bin: " in line:
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip().count("\n") == 0 and "Traceback" not in err
    assert not list(tmp_path.rglob("*.tmp*"))
    run("--name=n", "--verify")


def test_a_name_that_the_console_cannot_show(run, tmp_path, encoding):
    """An umlaut in ASCII: everything is written, and "?" stands for the umlaut."""
    write_source(tmp_path / "ä.jsonl", documents())
    names = ["--source=ä.jsonl", "--name=bücher"]
    env = os.environ | {
        "PYTHONIOENCODING": "ascii",
        "https_proxy": "http://127.0.0.1:9",
    }
    command = [sys.executable, SCRIPT, *names, "--shard_size=1K"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert "data/b?cher: " in done.stdout.splitlines()[-1]
    run("--name=bücher", "--verify")


@pytest.mark.parametrize(
    "content", [b"[]", b"3", b"null", b"{}", b'"text"', b"{", b"", b"\xff"]
)
def test_damaged_manifest(run, tmp_path, encoding, content):
    """One line that says what to do, and nothing changes."""
    write_source(tmp_path / "a.jsonl", documents())
    args = ["--source=a.jsonl", "--name=n", "--shard_size=1K"]
    run(*args)
    (tmp_path / "data/n/manifest.json").write_bytes(content)
    before = contents(tmp_path / "data/n")
    line = run("--name=n", "--verify", code=1)
    assert line.startswith("data/n/manifest.json: ") and line.count("\n") == 1
    assert run(*args, code=1).splitlines(True)[-1] == line
    assert contents(tmp_path / "data/n") == before


def test_damaged_tiktoken_cache(run, tmp_path, encoding, monkeypatch):
    """Without a network: one line, and no traceback of the HTTP library."""
    write_source(tmp_path / "a.jsonl", documents())
    (tmp_path / "cache").mkdir()
    for digest in (
        "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
        "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
    ):
        (tmp_path / "cache" / digest).write_text("damaged")
    names = ["--source=a.jsonl", "--name=n", "--shard_size=1K"]
    env = os.environ | {"TIKTOKEN_CACHE_DIR": "cache"}
    env |= {"https_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, SCRIPT, *names]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "vocabulary" in done.stderr and "prepare_shakespeare.py" in done.stderr


def test_no_encoding(run, tmp_path):
    write_source(tmp_path / "a.jsonl", ["x"])
    away = SimpleNamespace(get_encoding=lambda name: 1 / 0)
    out = run("--source=a.jsonl", "--name=n", tiktoken=away, code=1)
    assert "division by zero" in out and "prepare_shakespeare.py" in out


def test_no_space(run, tmp_path, encoding):
    """Checked before the start, and missing in the middle: finished shards stay."""
    docs = documents()
    write_source(tmp_path / "a.jsonl", docs)
    args = ["--source=a.jsonl", "--name=n", "--shard_size=1K"]
    little = SimpleNamespace(disk_usage=lambda path: SimpleNamespace(free=99))
    out = run(*args, shutil=little, code=1)
    assert "data/n: " in out and "GB" in out and "--tokens" in out
    assert not list((tmp_path / "data/n").glob("*.bin*"))

    class Full(io.FileIO):
        written = 0

        def write(self, content):
            Full.written += len(content)
            if Full.written > 20_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(content)

    def full(path, mode):
        return io.BufferedWriter(Full(path, "w")) if mode == "wb" else open(path, mode)

    out = run(*args, open=full, code=1)
    *_, last = out.strip().splitlines()
    assert (
        "data/n/" in last
        and "No space left on device" in last
    )
    assert "manifest.json" in run("--name=n", "--verify")
    names = contents(tmp_path / "data/n").keys()
    assert 3 < len(names) < 12 and not any("tmp" in name for name in names)
    run(*args)
    check(tmp_path / "data/n", docs, encoding, 1000)


def test_shards_of_others_are_not_overwritten(run, tmp_path, encoding):
    write_source(tmp_path / "a.jsonl", documents())
    (tmp_path / "data/n").mkdir(parents=True)
    (tmp_path / "data/n/n_val_000000.bin").write_bytes(b"mine")
    out = run("--source=a.jsonl", "--name=n", "--shard_size=1K", code=1)
    assert "data/n: " in out and "manifest.json" in out
    assert contents(tmp_path / "data/n") == {"n_val_000000.bin": b"mine"}


def test_unreadable(run, tmp_path, encoding):
    write_source(tmp_path / "a.jsonl", documents())
    (tmp_path / "folder.txt").mkdir()
    assert "folder.txt: " in run("--source=folder.txt", "--name=n", code=1)
    (tmp_path / "data").write_bytes(b"")
    out = run("--source=a.jsonl", "--name=n", "--shard_size=1K", code=1)
    assert "data/n" in out and "irectory" in out
