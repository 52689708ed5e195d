# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy", "tiktoken", "pyarrow", "huggingface_hub"]
# ///
"""Turn text from the web into GPT-2 tokens, to train rungs 4 and 5 for real.

    python prepare_fineweb.py                    FineWeb-Edu, a sample of 10B tokens
    python prepare_fineweb.py --tokens=1B        its first billion; also K and M
    python prepare_fineweb.py --pretokenized     FineWeb, tokenized by others
    python prepare_fineweb.py --source FILE... --name=NAME    your own files
    python prepare_fineweb.py --verify           only check the shards that are there

This writes data/NAME/NAME_val_000000.bin, for validation, then NAME_train_000001.bin
and so on: "shards" of 100 million tokens (--shard_size). NAME is fineweb_edu, or
fineweb with --pretokenized. HellaSwag, a test for language models, goes to
data/hellaswag/hellaswag_val.jsonl.

Your files may be .parquet with a column "text", .jsonl or .jsonl.gz with a key "text"
on every line, or .txt (one document each). Downloaded files come one at a time and are
deleted after use, unless you say --keep.

Every document starts with the token <|endoftext|>. Documents are shuffled by --seed:
first the files and the row groups of parquet files, then the documents within about
33 million characters. A .jsonl file is read from start to end, so don't sort it.

Interrupted? The same command continues after the last finished shard and produces the
same bytes. data/NAME/manifest.json records the source, the options, and for each shard
its tokens, documents, sha256 and the place in the source where the next one begins.
"""

import argparse
import gzip
import hashlib
import json
import math
import os
import re
import shutil
import sys
import threading
import time
import urllib.request
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import numpy as np
import tiktoken

# A repository of the Hub (Hugging Face's server), and the folder in it
FINEWEB_EDU = "HuggingFaceFW/fineweb-edu", "sample/10BT"
PRETOKENIZED = "kjj0/fineweb10B-gpt2", None
HELLASWAG_URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/"
HELLASWAG_URL += "hellaswag_val.jsonl"
EOT = 50256  # the token <|endoftext|>
BUFFER_SIZE = 2**25  # characters that are shuffled together
PIECE_SIZE = 2**18  # characters that a thread tokenizes at a time
PIECES_AHEAD = 64  # keep the threads busy while the next buffer is read
WAITS = 1, 2, 4, 8, 16, 32, 64  # seconds before a failed download is tried again
UNITS = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9}
# For English text, to estimate the number of tokens
TOKENS_PER_BYTE = {
    ".parquet": 0.35,
    ".gz": 0.6,
    ".jsonl": 0.22,
    ".txt": 0.23,
    ".bin": 0.5,
}


# ------------------------------------------------------------------------ Command line
def number(text):
    """The number that a text like 1.5B, 100M, 20K or 12345 stands for."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMB]?)", text.upper())
    if match is None:
        raise ValueError(text)
    return round(float(match[1]) * UNITS[match[2]])


def parse_args():
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--tokens=N] [--source FILE... --name=NAME] [--help]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--source", metavar="FILE", nargs="+", action="extend", help="your own files")
    add("--pretokenized", action="store_true", help="download FineWeb's tokens")
    add("--name", help="the folder under data/, and how its files' names begin")
    add("--tokens", type=number, metavar="N", default=math.inf, help="stop after N")
    add("--shard_size", type=number, metavar="N", default=10**8, help="default 100M")
    add("--seed", type=int, default=1337, help="decides the order; default 1337")
    add("--keep", action="store_true", help="keep the downloaded files")
    add("--verify", action="store_true", help="only check the shards")
    args = parser.parse_args()

    if args.source and args.pretokenized:
        parser.error("--source and --pretokenized exclude each other")
    if args.source and not args.name:
        parser.error("--source needs --name=NAME, a name for the shards")
    if not args.name:
        args.name = "fineweb_edu"
        if args.pretokenized:
            args.name = "fineweb"
    if re.search(r"^\.|[\\/]", args.name):
        parser.error(f"--name={args.name} must be the name of a folder under data/")
    if args.pretokenized and args.shard_size != 10**8:
        parser.error("--pretokenized has shards of 100M; leave --shard_size out")
    if args.seed < 0:
        parser.error(f"--seed={args.seed} must be 0 or more")
    if not 0 < args.shard_size < 2**31:
        parser.error(f"--shard_size={args.shard_size} must be from 1 to {2**31 - 1}")
    if args.tokens <= args.shard_size:
        parser.error("--tokens must exceed --shard_size, the validation shard")
    return args


# ------------------------------------------------------------------- Files under data/
def shard_header(num_tokens):
    """The first 1024 bytes of a shard (llm.c): 256 int32, the first three not 0."""
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, num_tokens
    return header.tobytes()


def shard_path(folder, i):
    split = "val" if i == 0 else "train"
    return folder / f"{folder.name}_{split}_{i:06d}.bin"


def inspect_shard(path):
    """What manifest.json records of a shard. Raises ValueError if it is damaged."""
    documents = 0
    highest = 0
    with open(path, "rb") as f:
        header = f.read(1024)
        num_tokens, rest = divmod(os.path.getsize(path) - 1024, 2)
        if num_tokens < 1 or rest != 0 or header != shard_header(num_tokens):
            raise ValueError("is not a whole shard of GPT-2 tokens")
        sha256 = hashlib.sha256(header)
        while block := f.read(2**22):
            sha256.update(block)
            tokens = np.frombuffer(block, dtype="<u2")
            documents += int(np.count_nonzero(tokens == EOT))
            highest = max(highest, int(tokens.max()))
    if highest > EOT:
        raise ValueError(f"has a token of {highest}; GPT-2's last is {EOT}")
    return {
        "tokens": num_tokens,
        "documents": documents,
        "sha256": sha256.hexdigest(),
    }


@contextmanager
def new_file(path):
    """A file to write, which appears whole or not at all. Errors end the program."""
    unfinished = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(unfinished, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        what_to_do = "Finished shards are intact; the same command continues"
        sys.exit(f"{path}: {error.strerror}. {what_to_do}")
    finally:
        with suppress(OSError):
            unfinished.unlink()


def read_manifest(folder):
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        sys.exit(f"{path}: {error.strerror}. Without it, nothing can be checked")
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or "shards" not in manifest:
        sys.exit(f"{path}: is damaged; delete the folder to start again")
    return manifest


def save_manifest(folder, manifest):
    for key in ("tokens", "documents"):
        manifest[key] = sum(shard[key] for shard in manifest["shards"])
    with new_file(folder / "manifest.json") as f:
        f.write(json.dumps(manifest, indent=1).encode())


def verify(folder):
    """Check all shards of a folder against its manifest."""
    manifest = read_manifest(folder)
    recorded = {shard["file"]: shard for shard in manifest["shards"]}
    present = {path.name for path in folder.glob("*.bin")}
    if not manifest["complete"]:  # an interrupted run may have left the next one
        present.discard(shard_path(folder, len(recorded)).name)
    errors = []
    for name in sorted(recorded.keys() | present):
        path = folder / name
        try:
            shard = {"file": name, **inspect_shard(path)}
            record = recorded.get(name, {})
            if any(record.get(key) != value for key, value in shard.items()):
                errors.append(f"{path}: is not what manifest.json says")
        except FileNotFoundError:
            errors.append(f"{path}: is missing")
        except OSError as error:
            sys.exit(f"{path}: {error.strerror}")
        except ValueError as error:
            errors.append(f"{path}: {error}")
    if errors:
        errors.append("Delete these, then run without --verify: it makes them again")
        sys.exit("\n".join(errors))
    print(f"{folder}: the shards ({len(recorded)}) are as manifest.json says")


def options_of(args):
    """The options that decide about the bytes of the shards."""
    options = {
        "source": list(FINEWEB_EDU),
        "encoding": "gpt2",
        "seed": args.seed,
        "shard_size": args.shard_size,
        "buffer_size": BUFFER_SIZE,
    }
    if args.source:
        options["source"] = sorted(set(args.source))
    if args.pretokenized:
        options["source"] = list(PRETOKENIZED)
        options["seed"] = None
        options["buffer_size"] = None
    return options


def open_manifest(folder, args):
    """The manifest to continue with, or a new one. Refuses changed options."""
    for path in folder.glob("*.tmp*"):
        path.unlink()  # from a run that was killed
    options = options_of(args)
    if not (folder / "manifest.json").exists():
        if any(folder.glob("*.bin")):
            what_to_do = "choose another --name=NAME"
            sys.exit(f"{folder}: has shards, but no manifest.json; {what_to_do}")
        manifest = {**options, **list_files(args), "complete": False, "shards": []}
        save_manifest(folder, manifest)
        return manifest

    manifest = read_manifest(folder)
    if args.source:
        options["files"] = list_files(args)["files"]
    for key, value in options.items():
        if manifest.get(key) != value:
            sys.exit(
                f"{folder}: was begun with another {key}: {manifest.get(key)}, "
                f"not {value}. Use that one, choose another --name=NAME, "
                "or delete the folder to start again"
            )
    drop_lost_shards(folder, manifest)
    tokens = sum(shard["tokens"] for shard in manifest["shards"])
    if not manifest["complete"] and tokens % args.shard_size and tokens < args.tokens:
        manifest["shards"].pop()  # another --tokens has cut it short
    save_manifest(folder, manifest)
    return manifest


def drop_lost_shards(folder, manifest):
    """From the first shard that is missing or cut short, all are made again."""
    for i, shard in enumerate(manifest["shards"]):
        path = folder / shard["file"]
        if not path.exists() or path.stat().st_size != 1024 + 2 * shard["tokens"]:
            print(f"{path}: is missing or cut short; making it and later ones again")
            del manifest["shards"][i:]
            manifest["complete"] = False
            return


# --------------------------------------------------------------------------- Downloads
@contextmanager
def waiting():
    """Print a line every four seconds until the work inside is done."""
    done = threading.Event()

    def show():
        while not done.wait(4):
            print("  still waiting", flush=True)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def get_hellaswag():
    """Download HellaSwag's validation set (Zellers et al. 2019), which is optional."""
    path = Path("data/hellaswag/hellaswag_val.jsonl")
    if path.exists():
        return
    try:
        with waiting(), urllib.request.urlopen(HELLASWAG_URL, timeout=5) as response:
            size = int(response.headers.get("Content-Length", 12_000_000))
            print(f"downloading HellaSwag, {size / 1e6:.1f} MB", flush=True)
            content = response.read()
        questions = content.splitlines()
        if not questions:
            raise ValueError("it has no questions")
        for question in questions:
            json.loads(question)["endings"]
        with new_file(path) as f:
            f.write(content)
    except Exception as error:  # OSError, HTTPException, ValueError, KeyError, ...
        print(f"continuing without HellaSwag: {HELLASWAG_URL}: {error}", flush=True)


def list_files(args):
    """The files of the source in reading order, with their sizes in bytes."""
    if args.source:
        files = list_local_files(args.source)
        revision = None
    elif args.pretokenized:
        files, revision = list_hub_files(*PRETOKENIZED)
    else:
        files, revision = list_hub_files(*FINEWEB_EDU)
    if args.pretokenized:  # the validation shard first
        files.sort(key=lambda file: ("_val_" not in file["path"], file["path"]))
    else:
        order = np.random.default_rng([args.seed, 0]).permutation(len(files))
        files = [files[i] for i in order]
    return {"files": files, "revision": revision}


def list_local_files(names):
    files = []
    for name in sorted(set(names)):
        is_known = name.endswith((".parquet", ".jsonl", ".jsonl.gz", ".txt"))
        if not is_known or not os.path.isfile(name):
            sys.exit(f"--source={name}: is no .parquet, .jsonl, .jsonl.gz or .txt file")
        files.append({"path": name, "bytes": os.path.getsize(name)})
    return files


def list_hub_files(repo, folder):
    """The data files of a repository of the Hub, and its present revision."""
    print(f"asking the Hub which files {repo} has", flush=True)

    def get_revision(hub):
        return hub.dataset_info(repo, expand=["sha"], timeout=5).sha

    def get_tree(hub):
        options = {"repo_type": "dataset", "revision": revision}
        return list(hub.list_repo_tree(repo, folder, **options))

    revision = ask_hub(repo, get_revision)
    files = []
    for file in ask_hub(repo, get_tree):
        if file.path.endswith((".parquet", ".bin")):
            sha256 = file.lfs and file.lfs.sha256
            files.append({"path": file.path, "bytes": file.size, "sha256": sha256})
    if not files:
        sys.exit(f"{repo}: has no data files in its folder {folder}")
    return files, revision


def ask_hub(what, action):
    """Return action(Hub). After a failure, wait longer and longer, and try again."""
    from huggingface_hub import HfApi

    for wait in [*WAITS, None]:
        progress = waiting()
        if sys.stderr.isatty():
            progress = nullcontext()  # a terminal shows the Hub's own bar
        try:
            with progress:
                return action(HfApi())
        except Exception as error:  # whatever its HTTP library raises
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            response = getattr(error, "response", None)
            is_refused = getattr(response, "status_code", None) in (401, 403, 404)
        if is_refused or wait is None:
            what_to_do = "Finished shards are intact; the same command continues"
            sys.exit(f"{what}: {reason}. {what_to_do}")
        print(f"{what}: {reason}; trying again in {wait} s", flush=True)
        time.sleep(wait)


def source_path(folder, manifest, i):
    """The path of file i of the source. Downloads it first if it is on the Hub."""
    file = manifest["files"][i]
    if manifest["revision"] is None:
        return Path(file["path"])
    path = folder / "download" / file["path"]

    def download(hub):
        hub.hf_hub_download(
            manifest["source"][0],
            file["path"],
            repo_type="dataset",
            revision=manifest["revision"],
            local_dir=folder / "download",
        )
        content = np.memmap(path, mode="r")
        sha256 = hashlib.sha256(content).hexdigest()
        if len(content) != file["bytes"] or file["sha256"] not in (None, sha256):
            path.unlink()  # or the next try would find it and stop there
            raise ValueError("the server sent something else")

    if not path.exists():
        size = file["bytes"] / 1e6
        print(f"downloading {file['path']}, {size:,.1f} MB", flush=True)
    ask_hub(file["path"], download)
    return path


# ------------------------------------------------------------------- From files to text
def read_documents(path, rng):
    """The texts of a file. rng shuffles the row groups of a parquet file."""
    if path.suffix == ".parquet":
        yield from read_parquet(path, rng)
    elif path.suffix == ".txt":
        yield path.read_bytes().decode("utf-8-sig")
    else:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rb") as f:
            for line in f:
                if line.strip():
                    yield json.loads(line)["text"]


def read_parquet(path, rng):
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path, buffer_size=2**20) as f:
        for group in rng.permutation(f.num_row_groups).tolist():
            for batch in f.iter_batches(256, row_groups=[group], columns=["text"]):
                yield from batch["text"].to_pylist()


def shuffled(texts, seed, buffer):
    order = np.random.default_rng([seed, 2, buffer]).permutation(len(texts))
    return [texts[i] for i in order.tolist()]


def shuffled_documents(folder, manifest, buffer, file, start):
    """Read the source from a document on. Yields (begin, shuffled texts) per buffer.

    begin is the place in the source where the buffer begins: (number of the buffer,
    number of the file, number of the document in it).
    """
    seed = manifest["seed"]
    begin = (buffer, file, start)
    texts = []
    size = 0
    for i in range(file, len(manifest["files"])):
        path = source_path(folder, manifest, i)
        rng = np.random.default_rng([seed, 1, i])
        number = 0
        try:
            for text in read_documents(path, rng):
                if not isinstance(text, str):
                    raise TypeError(f"its text is {text!r:.50}")
                number += 1
                if number <= start:
                    continue
                texts.append(text)
                size += len(text) + 100  # empty ones take memory, too
                if size >= manifest["buffer_size"]:
                    yield begin, shuffled(texts, seed, buffer)
                    buffer += 1
                    begin = (buffer, i, number)
                    texts = []
                    size = 0
        except (
            OSError,
            EOFError,
            KeyError,
            TypeError,
            ValueError,
            zlib.error,
        ) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            where = f"{path}: document {number + 1}"
            sys.exit(f"{where}: {reason}. Finished shards are intact")
        start = 0
    if texts:
        yield begin, shuffled(texts, seed, buffer)


# ------------------------------------------------------------------ From text to tokens
# GPT-2 first splits a text into words with a regular expression. Two kinds of places
# always end a word there: before a space or a line end that follows something visible,
# and before the last of many whitespace characters. The second matters because tiktoken
# fails on a million of them in front of something else
SPACE = r"[^\S\x1c-\x1f]"  # only Python takes \x1c to \x1f for whitespace
SEAM = re.compile(rf"\S(?=[ \n])|(?={SPACE}[\S\x1c-\x1f])(?<={SPACE}{{1000}})")


def cut(texts):
    """Cut texts into pieces that have the same tokens as the whole, one per thread.

    Yields lists [(does a document start here, piece), ...] of about PIECE_SIZE.
    """
    pieces = []
    size = 0
    for text in texts:
        start = 0
        end = None
        while end != len(text):
            seam = SEAM.search(text, start + PIECE_SIZE)
            end = seam.end() if seam else len(text)
            pieces.append((start == 0, text[start:end]))
            size += end - start + 1
            start = end
            if size >= PIECE_SIZE:
                yield pieces
                pieces = []
                size = 0
    if pieces:
        yield pieces


def tokenize(encoding, pieces):
    """The tokens of pieces as a uint16 array, with <|endoftext|> before documents."""
    arrays = []
    for is_start, text in pieces:
        if is_start:
            arrays.append([EOT])
        try:
            arrays.append(encoding.encode_to_numpy(text, disallowed_special=()))
        except UnicodeEncodeError:  # half of a surrogate pair
            arrays.append(encoding.encode_ordinary(text))
    return np.concatenate(arrays).astype("<u2")


def get_gpt2_encoding():
    """tiktoken's GPT-2 encoding. Its files stay in data/tiktoken for use offline."""
    cache = Path(os.environ.setdefault("TIKTOKEN_CACHE_DIR", "data/tiktoken"))
    if not cache.exists():
        print("downloading GPT-2's vocabulary, 1.5 MB", flush=True)
    try:
        with waiting():
            return tiktoken.get_encoding("gpt2")
    except Exception as error:  # whatever its HTTP library raises
        reason = " ".join(str(error).split())  # on one line
        what_to_do = "prepare_shakespeare.py can get it from a package"
        sys.exit(f"cannot get GPT-2's vocabulary: {reason}. {what_to_do}")


def token_stream(documents):
    """Tokenize on all cores. Yields (position, tokens).

    A position is the place where a buffer begins, and the number of the piece in it.
    Threads are enough, because tiktoken releases Python's lock.
    """
    encoding = get_gpt2_encoding()
    # The first thread that encodes something slows the others down. Let that be this
    # one, which encodes nothing else
    encoding.encode_ordinary("Hello world")
    ahead = deque()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for begin, texts in documents:
            for i, pieces in enumerate(cut(texts)):
                tokens = pool.submit(tokenize, encoding, pieces)
                ahead.append(([*begin, i], tokens))
                if len(ahead) > PIECES_AHEAD:
                    position, tokens = ahead.popleft()
                    yield position, tokens.result()
        for position, tokens in ahead:
            yield position, tokens.result()


# ---------------------------------------------------------------- From tokens to shards
def show_progress(stream, before, expected):
    """Pass a stream on and print every four seconds how far it is."""
    start = time.time()
    shown = start
    done = before
    for position, tokens in stream:
        yield position, tokens
        done += len(tokens)
        now = time.time()
        if now < shown + 4:
            continue
        shown = now
        speed = (done - before) / (now - start)
        minutes = max(0, expected - done) / speed / 60
        how_far = f"{done:,} of about {expected:,.0f} tokens"
        print(f"  {how_far}, {speed:,.0f} tokens/s, {minutes:.0f} min left", flush=True)


def split(stream, begin, shard_size, limit):
    """Split a stream at the ends of shards, from begin on, for limit tokens.

    Yields (tokens, the position after them, do they end a shard). Such a position has
    one more number than a stream's: the number of tokens in the piece before it.
    """
    done = 0
    for position, tokens in stream:
        if position < begin[:4]:
            continue
        used = 0
        if position == begin[:4]:
            used = begin[4]
        while used < len(tokens):
            room = min(shard_size - done % shard_size, limit - done)
            part = tokens[used : used + room]
            used += len(part)
            done += len(part)
            yield part, [*position, used], done % shard_size == 0 or done == limit
            if done == limit:
                return


def write_shard(path, part, parts):
    """Write a part and those that follow, to the end of a shard.

    Returns the position of the next shard.
    """
    with new_file(path) as f:
        f.write(shard_header(0))  # until the number of tokens is known
        while part:
            tokens, position, is_last = part
            f.write(tokens)
            if is_last:
                break
            part = next(parts, None)
        num_tokens = f.tell() // 2 - 512
        f.seek(0)
        f.write(shard_header(num_tokens))
    return position


def add_shard(folder, manifest, path, position=None):
    """Make a file the next shard. position: where in the source the next begins."""
    try:
        shard = inspect_shard(path)
    except ValueError as error:  # one that others made
        sys.exit(f"{path}: {error}. Finished shards are intact")
    path = path.replace(shard_path(folder, len(manifest["shards"])))
    manifest["shards"].append({"file": path.name, **shard, "next": position})
    save_manifest(folder, manifest)
    print(f"{path}: {shard['tokens']:,} tokens", flush=True)


def make_shards(folder, manifest, args, expected):
    """Tokenize the source from the end of the last shard on."""
    begin = [0, 0, 0, 0, 0]
    if manifest["shards"]:
        begin = manifest["shards"][-1]["next"]
    documents = shuffled_documents(folder, manifest, *begin[:3])
    stream = show_progress(token_stream(documents), manifest["tokens"], expected)
    limit = args.tokens - manifest["tokens"]
    parts = split(stream, begin, args.shard_size, limit)
    for part in parts:  # the first of each shard
        path = shard_path(folder, len(manifest["shards"]))
        position = write_shard(path, part, parts)
        add_shard(folder, manifest, path, position)
        if manifest["revision"] and not args.keep:
            for file in manifest["files"][: position[1]]:  # used up
                (folder / "download" / file["path"]).unlink(missing_ok=True)


def get_shards(folder, manifest, args):
    """Download shards that others made."""
    for i in range(len(manifest["shards"]), len(manifest["files"])):
        add_shard(folder, manifest, source_path(folder, manifest, i))
        if manifest["tokens"] >= args.tokens:
            return


def remove_shards(folder, manifest):
    """Remove shards and manifest, or other options would be refused from now on."""
    for shard in manifest["shards"]:
        (folder / shard["file"]).unlink()
    (folder / "manifest.json").unlink()
    with suppress(OSError):  # there may be other files in it
        folder.rmdir()


# -------------------------------------------------------------------------------- Main
def check_space(folder, manifest, args, expected):
    """End the program if the disk is too small for what is still to come."""
    need = 2 * max(0, expected - manifest["tokens"])
    if manifest["revision"]:
        sizes = sorted(file["bytes"] for file in manifest["files"])
        if not args.keep:
            sizes = sizes[-3:]  # one still needed, the present one, and the next
        need += sum(sizes)
    if need > shutil.disk_usage(folder).free:
        what_to_do = "make space, or choose a smaller --tokens=N"
        sys.exit(f"{folder}: needs about {need / 1e9:.1f} GB; {what_to_do}")


def main():
    if hasattr(sys.stdout, "reconfigure"):  # not so in a notebook
        sys.stdout.reconfigure(errors="replace")  # "?" for what a console cannot show
    args = parse_args()
    folder = Path("data", args.name)
    if args.verify:
        verify(folder)
        return
    get_hellaswag()
    manifest = open_manifest(folder, args)
    if manifest["tokens"] < args.tokens and not manifest["complete"]:
        expected = 0
        for file in manifest["files"]:
            expected += TOKENS_PER_BYTE[Path(file["path"]).suffix] * file["bytes"]
        expected = min(expected, args.tokens)
        check_space(folder, manifest, args, expected)
        if args.pretokenized:
            get_shards(folder, manifest, args)
        else:
            make_shards(folder, manifest, args, expected)
        # Fewer tokens than asked for: the source is used up
        manifest["complete"] = manifest["tokens"] < args.tokens
        save_manifest(folder, manifest)
    if not args.keep:
        shutil.rmtree(folder / "download", ignore_errors=True)
    n = len(manifest["shards"])
    tokens = manifest["tokens"]
    if n < 2:
        remove_shards(folder, manifest)
        what_to_do = f"use --shard_size={max(1, tokens // 10)} or a longer text"
        sys.exit(
            f"{folder}: nothing is left to train on, as the validation shard takes all "
            f"tokens ({tokens:,}); {what_to_do}"
        )
    documents = f"documents: {manifest['documents']:,}"
    print(f"{folder}: {tokens:,} tokens in {n} shards; {documents}")


if __name__ == "__main__":
    try:
        main()
    except ImportError as error:
        sys.exit(f"{error}: pip install {error.name.split('.')[0]}")
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues", file=sys.stderr)
        sys.exit(130)  # the conventional exit code after Ctrl-C
