# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy", "tiktoken", "pyarrow", "huggingface_hub"]
# ///
"""Gets a part of the web as text and cuts it into GPT-2's tokens, to train steps 4 and 5 for real.

    python prepare_fineweb.py                    FineWeb-Edu's sample of ten billion tokens
    python prepare_fineweb.py --tokens=1B        the first of them; K, M and B are understood
    python prepare_fineweb.py --pretokenized     FineWeb, cut into tokens by others already
    python prepare_fineweb.py --source FILE... --name=NAME    your own files
    python prepare_fineweb.py --verify           only read the shards again and check them

writes data/NAME/NAME_val_000000.bin, for validation, then data/NAME/NAME_train_000001.bin and so
on: files of 100 million tokens (--shard_size), called shards. NAME is fineweb_edu, with
--pretokenized fineweb, if --name does not say otherwise. HellaSwag, questions that test a language
model, goes to data/hellaswag/hellaswag_val.jsonl.

A source is a .parquet file with a column "text", a .jsonl or .jsonl.gz file with a key "text" in
every line, or a .txt file, which is one document. Those of the Hub, Hugging Face's server, come
one at a time and are deleted when no longer needed, unless --keep.

Every document begins with the token <|endoftext|>. Documents are shuffled, by --seed: files and the
row groups of parquet files are taken in shuffled order, and then documents of about 33 million
characters at a time are shuffled. A file of another kind is read from its start to its end, so it
should not be sorted.

The same command goes on where an interrupted one ended, after the last finished shard, and leads
to the same bytes. data/NAME/manifest.json says what was done: the source, the options, and for
every shard its tokens, documents, sha256 and where in the source the next one begins.
"""

import argparse
import gzip
import hashlib
import itertools
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

FINEWEB_EDU = "HuggingFaceFW/fineweb-edu", "sample/10BT"  # a repository of the Hub, its folder
PRETOKENIZED = "kjj0/fineweb10B-gpt2", None
HELLASWAG_URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
EOT = 50256  # the token <|endoftext|>
BUFFER_SIZE = 2**25  # characters that are shuffled together
PIECE_SIZE = 2**18  # characters that a thread tokenizes at a time
PIECES_AHEAD = 64  # under way, so that the threads have work while the next buffer is read
WAITS = 1, 2, 4, 8, 16, 32, 64  # seconds until a failed download is tried again
# Of English text, to know beforehand about how much it will be
TOKENS_PER_BYTE = {".parquet": 0.35, ".gz": 0.6, ".jsonl": 0.22, ".txt": 0.23, ".bin": 0.5}


def number(text):
    """What a text like 1.5B, 100M, 20K or 12345 stands for."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMB]?)", text.upper())
    return round(float(match[1]) * {"": 1, "K": 1e3, "M": 1e6, "B": 1e9}[match[2]])


def parse_args():
    usage = "%(prog)s [--tokens=N] [--source FILE... --name=NAME] [--help]"
    parser = argparse.ArgumentParser(usage=usage, allow_abbrev=False)
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--source", metavar="FILE", nargs="+", action="extend", help="local files to use instead")
    add("--pretokenized", action="store_true", help="download the tokens of FineWeb instead")
    add("--name", help="the folder under data/, and what its files' names begin with")
    add("--tokens", type=number, metavar="N", default=math.inf, help="stop after so many, say 1B")
    add("--shard_size", type=number, metavar="N", default=10**8, help="tokens; default 100M")
    add("--seed", type=int, default=1337, help="decides the order; default 1337")
    add("--keep", action="store_true", help="do not delete what was downloaded")
    add("--verify", action="store_true", help="only check the shards against manifest.json")
    args = parser.parse_args()
    name = args.name or ("fineweb" if args.pretokenized else "fineweb_edu")
    for message, is_wrong in {
        "--source and --pretokenized exclude each other": args.source and args.pretokenized,
        "--source needs --name=NAME, a name for the shards": args.source and not args.name,
        f"--name={name} must be the name of a folder under data/": re.search(r"^\.|[\\/]", name),
        "--pretokenized has shards of 100M": args.pretokenized and args.shard_size != 10**8,
        f"--seed={args.seed} must be 0 or more": args.seed < 0,
        f"--shard_size={args.shard_size} must be below 2**31": not 0 < args.shard_size < 2**31,
        "--tokens must exceed --shard_size, the validation shard": args.tokens <= args.shard_size,
    }.items():
        if is_wrong:
            parser.error(message)
    args.name = name
    return args


# --------------------------------------------------------------------------- Files under data/
@contextmanager
def new_file(path):
    """A file to write that appears complete or not at all; ends the program if that fails."""
    unfinished = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(unfinished, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        sys.exit(f"{path}: {error.strerror}. Finished shards are intact, the command can go on")
    finally:
        with suppress(OSError):
            unfinished.unlink()


def shard_header(num_tokens):
    """The first 1024 bytes of a shard, as in llm.c: 256 int32, of which three are not 0."""
    return np.array([20240520, 1, num_tokens] + 253 * [0], dtype="<i4").tobytes()


def shard_path(folder, i):
    return folder / f"{folder.name}_{'train' if i else 'val'}_{i:06d}.bin"


def inspect_shard(path):
    """What manifest.json says of a shard. Raises ValueError where the file is not a whole one."""
    documents, highest = 0, 0
    with open(path, "rb") as f:
        header = f.read(1024)
        num_tokens, odd = divmod(os.path.getsize(path) - 1024, 2)
        if num_tokens < 1 or odd or header != shard_header(num_tokens):
            raise ValueError("is not a whole shard of GPT-2's tokens")
        sha256 = hashlib.sha256(header)
        while block := f.read(2**22):
            sha256.update(block)
            tokens = np.frombuffer(block, dtype="<u2")
            documents += int(np.count_nonzero(tokens == EOT))
            highest = max(highest, int(tokens.max()))
    if highest > EOT:
        raise ValueError(f"has a token of {highest}, GPT-2's end at {EOT}")
    return {"tokens": num_tokens, "documents": documents, "sha256": sha256.hexdigest()}


def read_manifest(folder):
    try:
        return json.loads((folder / "manifest.json").read_bytes())
    except (OSError, ValueError) as error:
        sys.exit(f"{folder}/manifest.json: {error}. Without it nothing can be checked or continued")


def save_manifest(folder, manifest):
    for key in ("tokens", "documents"):
        manifest[key] = sum(shard[key] for shard in manifest["shards"])
    with new_file(folder / "manifest.json") as f:
        f.write(json.dumps(manifest, indent=1).encode())


def verify(folder):
    """Check all shards of a folder against its manifest."""
    shards = {shard["file"]: shard for shard in read_manifest(folder)["shards"]}
    errors = []
    for name in sorted(shards.keys() | {path.name for path in folder.glob("*.bin")}):
        try:
            if not inspect_shard(folder / name).items() <= shards.get(name, {}).items():
                raise ValueError("is not what manifest.json says")
        except (OSError, ValueError) as error:
            errors.append(f"{folder / name}: {getattr(error, 'strerror', None) or error}")
    if errors:
        end = "Delete these; the same command without --verify makes the missing ones again"
        sys.exit("\n".join([*errors, end]))
    print(f"{folder}: {len(shards)} shards are as manifest.json says")


def open_manifest(folder, args):
    """What was done of a folder, or the manifest of a new one. Other options are refused."""
    for path in folder.glob("*.tmp*"):
        path.unlink()  # of a run that was killed
    options = {
        "source": sorted(set(args.source or [])) or list(FINEWEB_EDU),
        "encoding": "gpt2",
        "seed": args.seed,
        "shard_size": args.shard_size,
        "buffer_size": BUFFER_SIZE,
    }
    if args.pretokenized:
        options.update(source=list(PRETOKENIZED), seed=None, buffer_size=None)
    if not (folder / "manifest.json").exists():
        if any(folder.glob("*.bin")):
            sys.exit(f"{folder}: has shards, but no manifest.json; choose another --name=NAME")
        manifest = {**options, **list_files(args), "complete": False, "shards": []}
        save_manifest(folder, manifest)
        return manifest
    manifest = read_manifest(folder)
    if args.source:
        options["files"] = list_files(args)["files"]
    for key, value in options.items():
        if manifest.get(key) != value:
            sys.exit(
                f"{folder}: was begun with another {key}: {manifest.get(key)}, not {value}. Go on "
                "with that one, choose another --name=NAME, or delete the folder to begin again"
            )
    for i, shard in enumerate(manifest["shards"]):
        path = folder / shard["file"]
        if not path.exists() or path.stat().st_size != 1024 + 2 * shard["tokens"]:
            print(f"{path}: is missing or cut short; it and those after it are made again")
            del manifest["shards"][i:]
            manifest["complete"] = False
            break
    tokens = sum(shard["tokens"] for shard in manifest["shards"])
    if not manifest["complete"] and tokens % args.shard_size and tokens < args.tokens:
        manifest["shards"].pop()  # was cut short by another --tokens
    save_manifest(folder, manifest)
    return manifest


# ------------------------------------------------------------------------------------ Downloads
@contextmanager
def waiting():
    """Print every four seconds that what is done inside goes on."""
    done = threading.Event()

    def show():
        while not done.wait(4):
            print("  still waiting", flush=True)

    threading.Thread(target=show, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def get_hellaswag():
    """Download HellaSwag's validation set (Zellers et al. 2019). Training can do without."""
    path = Path("data/hellaswag/hellaswag_val.jsonl")
    if path.exists():
        return
    try:
        with waiting(), urllib.request.urlopen(HELLASWAG_URL, timeout=5) as response:
            size = int(response.headers.get("Content-Length", 12_000_000))
            print(f"downloading HellaSwag's questions, {size / 1e6:.1f} MB", flush=True)
            content = response.read()
        if len([json.loads(line)["endings"] for line in content.splitlines()]) < 1:
            raise ValueError("it has no questions")
        with new_file(path) as f:
            f.write(content)
    except Exception as error:  # OSError, HTTPException, ValueError, KeyError, ...
        print(f"going on without HellaSwag: {HELLASWAG_URL}: {error}", flush=True)


def list_files(args):
    """The files of the source in the order in which they are read, with their sizes in bytes."""
    if args.source:
        files, revision = [], None
        for name in sorted(set(args.source)):
            is_known = name.endswith((".parquet", ".jsonl", ".jsonl.gz", ".txt"))
            if not is_known or not os.path.isfile(name):
                sys.exit(f"--source={name}: is no .parquet, .jsonl, .jsonl.gz or .txt file")
            files.append({"path": name, "bytes": os.path.getsize(name)})
    else:
        repo, folder = PRETOKENIZED if args.pretokenized else FINEWEB_EDU
        print(f"asking the Hub which files {repo} has", flush=True)
        revision = ask_hub(repo, lambda hub: hub.dataset_info(repo, expand=["sha"], timeout=5).sha)
        options = {"repo_type": "dataset", "revision": revision}
        tree = ask_hub(repo, lambda hub: list(hub.list_repo_tree(repo, folder, **options)))
        files = [
            {"path": file.path, "bytes": file.size, "sha256": file.lfs and file.lfs.sha256}
            for file in tree
            if file.path.endswith((".parquet", ".bin"))
        ]
        if not files:
            sys.exit(f"{repo}: has no files of data in its folder {folder}")
    if args.pretokenized:  # the shard for validation first
        files.sort(key=lambda file: ("_val_" not in file["path"], file["path"]))
    else:
        order = np.random.default_rng([args.seed, 0]).permutation(len(files))
        files = [files[i] for i in order]
    return {"files": files, "revision": revision}


def ask_hub(what, action):
    """Return action(Hub). If the net or the server fails it, wait longer and longer and retry."""
    from huggingface_hub import HfApi

    for wait in (*WAITS, None):
        try:
            with nullcontext() if sys.stderr.isatty() else waiting():  # a terminal shows its bar
                return action(HfApi())
        except Exception as error:  # whatever its HTTP library raises
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            status = getattr(getattr(error, "response", None), "status_code", None)
            if wait is None or status in (401, 403, 404):
                sys.exit(f"{what}: {reason}. Finished shards are intact, the command can go on")
        print(f"{what}: {reason}; trying again in {wait} s", flush=True)
        time.sleep(wait)


def source_path(folder, manifest, i):
    """The path of a file of the source. Downloads it first if it is the Hub's."""
    file, revision = manifest["files"][i], manifest["revision"]
    if revision is None:
        return Path(file["path"])
    path = folder / "download" / file["path"]

    def download(hub):
        options = {"repo_type": "dataset", "revision": revision, "local_dir": folder / "download"}
        hub.hf_hub_download(manifest["source"][0], file["path"], **options)
        content = np.memmap(path, mode="r")
        sha256 = hashlib.sha256(content).hexdigest()
        if len(content) != file["bytes"] or file["sha256"] not in (None, sha256):
            path.unlink()  # or it would be taken for the right one
            raise ValueError("what came is not this file")

    if not path.exists():
        print(f"downloading {file['path']}, {file['bytes'] / 1e6:,.1f} MB", flush=True)
    ask_hub(file["path"], download)
    return path


# ------------------------------------------------------------------------- From files to tokens
def read_documents(path, rng):
    """The texts of a file; rng shuffles the row groups of a parquet file."""
    if path.suffix == ".parquet":
        from pyarrow.parquet import ParquetFile

        with ParquetFile(path, buffer_size=2**20) as f:
            for group in rng.permutation(f.num_row_groups).tolist():
                for batch in f.iter_batches(256, row_groups=[group], columns=["text"]):
                    yield from batch["text"].to_pylist()
    elif path.suffix == ".txt":
        yield path.read_bytes().decode("utf-8-sig")
    else:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as f:
            for line in f:
                if line.strip():
                    yield json.loads(line)["text"]


def shuffled_documents(folder, manifest, buffer, file, start):
    """Read the source from a document on; yields (begin, texts), with the texts shuffled.

    begin says where in the source they begin: their number, that of the file, that in the file.
    """
    begin, texts, size = (buffer, file, start), [], 0

    def shuffled():
        order = np.random.default_rng([manifest["seed"], 2, begin[0]]).permutation(len(texts))
        return begin, [texts[i] for i in order.tolist()]

    for i in range(file, len(manifest["files"])):
        path, rng = (
            source_path(folder, manifest, i),
            np.random.default_rng([manifest["seed"], 1, i]),
        )
        number = 0
        try:
            for text in read_documents(path, rng):
                if not isinstance(text, str):
                    raise TypeError(f"its text is {text!r:.50}")
                number += 1
                if number <= start:
                    continue
                texts.append(text)
                size += len(text) + 100  # an empty one takes memory, too
                if size >= manifest["buffer_size"]:
                    yield shuffled()
                    begin, texts, size = (begin[0] + 1, i, number), [], 0
        except (OSError, EOFError, KeyError, TypeError, ValueError, zlib.error) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            sys.exit(f"{path}: document {number + 1}: {reason}. Finished shards are intact")
        start = 0
    if texts:
        yield shuffled()


# GPT-2 first cuts a text into words, by a regular expression. Here are two kinds of places where it
# does so in any case: before a space or a line end after something visible, and before the last of
# many whitespace characters, as tiktoken fails on a million of them in front of something else
SPACE = r"[^\S\x1c-\x1f]"  # \x1c to \x1f are whitespace for Python only
SEAM = re.compile(rf"\S(?=[ \n])|(?={SPACE}[\S\x1c-\x1f])(?<={SPACE}{{1000}})")


def cut(texts):
    """Cut texts into pieces, which together have the tokens of the whole, for the threads.

    Yields lists [(is the start of a document, piece), ...] of about PIECE_SIZE characters.
    """
    pieces, size = [], 0
    for text in texts:
        start, end = 0, None
        while end != len(text):
            seam = SEAM.search(text, start + PIECE_SIZE)
            end = seam.end() if seam else len(text)
            pieces.append((start == 0, text[start:end]))
            size += end - start + 1
            start = end
            if size >= PIECE_SIZE:
                yield pieces
                pieces, size = [], 0
    if pieces:
        yield pieces


def tokenize(encoding, pieces):
    """The tokens of a list of pieces as a uint16 array; <|endoftext|> is before every document."""
    arrays = []
    for is_start, text in pieces:
        arrays.append([EOT] if is_start else [])
        try:
            arrays.append(encoding.encode_to_numpy(text, disallowed_special=()))
        except UnicodeEncodeError:  # half of a surrogate pair
            arrays.append(encoding.encode_ordinary(text))
    return np.concatenate(arrays).astype("<u2")


def get_gpt2_encoding():
    """tiktoken's GPT-2 encoding; its two files are kept in data/tiktoken, for use offline, too."""
    cache = Path(os.environ.setdefault("TIKTOKEN_CACHE_DIR", "data/tiktoken"))
    if not cache.exists():
        print("downloading GPT-2's vocabulary, 1.5 MB", flush=True)
    try:
        with waiting():
            return tiktoken.get_encoding("gpt2")
    except Exception:  # whatever its HTTP library raises
        sys.exit("cannot download GPT-2's tokenizer; prepare_shakespeare.py gets it from a package")


def token_stream(documents):
    """Tokenize on all cores; yields ((where its documents begin, the piece's number), tokens).

    Threads will do, because tiktoken works without Python's lock.
    """
    encoding, ahead = get_gpt2_encoding(), deque()
    # The thread that tokenizes first slows down the others as long as it goes on: if it is this
    # one, which tokenizes nothing more, two threads do 37 MB/s instead of 21
    encoding.encode_ordinary("Hello world")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for begin, texts in documents:
            for i, pieces in enumerate(cut(texts)):
                ahead.append(([*begin, i], pool.submit(tokenize, encoding, pieces)))
                if len(ahead) > PIECES_AHEAD:
                    position, tokens = ahead.popleft()
                    yield position, tokens.result()
        for position, tokens in ahead:
            yield position, tokens.result()


def add_shard(folder, manifest, path, position=None):
    """Make a file the next shard; position is where in the source the one after it begins."""
    try:
        shard = inspect_shard(path)
    except ValueError as error:  # one that was made by others
        sys.exit(f"{path}: {error}. Finished shards are intact")
    path = path.replace(shard_path(folder, len(manifest["shards"])))
    manifest["shards"].append({"file": path.name, **shard, "next": position})
    save_manifest(folder, manifest)
    print(f"{path}: {shard['tokens']:,} tokens", flush=True)


def show_progress(stream, before, expected):
    """Pass the tokens of a stream on, and print every four seconds how far that is."""
    start = shown = time.time()
    done = before
    for position, tokens in stream:
        yield position, tokens
        done += len(tokens)
        now = time.time()
        if now >= shown + 4:
            speed, shown = (done - before) / (now - start), now
            left = f"{max(0, expected - done) / speed / 60:.0f} min left"
            print(
                f"  {done:,} of about {expected:,.0f} tokens, {speed:,.0f} tokens/s, {left}",
                flush=True,
            )


def split(stream, begin, shard_size, limit):
    """Split tokens where a shard ends; yields (tokens, position after them, are the last of it).

    A position is one of token_stream and a number of its tokens. The first to be used is begin.
    """
    done = 0
    for position, tokens in stream:
        skip = begin[4] if position == begin[:4] else 0
        while skip < len(tokens) and position >= begin[:4]:
            part = tokens[skip : skip + min(shard_size - done % shard_size, limit - done)]
            skip, done = skip + len(part), done + len(part)
            yield part, [*position, skip], done % shard_size == 0 or done == limit
            if done == limit:
                return


def make_shards(folder, manifest, args, expected):
    """Tokenize the source from where the last shard ended to its end, or to as many --tokens."""
    begin = manifest["shards"][-1]["next"] if manifest["shards"] else [0] * 5
    stream = token_stream(shuffled_documents(folder, manifest, *begin[:3]))
    stream = show_progress(stream, manifest["tokens"], expected)
    parts = split(stream, begin, args.shard_size, args.tokens - manifest["tokens"])
    for part in parts:  # the first of another shard
        path = shard_path(folder, len(manifest["shards"]))
        with new_file(path) as f:
            f.write(shard_header(0))  # until it is known how many there are
            for tokens, position, is_last in itertools.chain([part], parts):
                f.write(tokens)
                if is_last:
                    break
            num_tokens = f.tell() // 2 - 512
            f.seek(0)
            f.write(shard_header(num_tokens))
        add_shard(folder, manifest, path, position)
        if manifest["revision"] and not args.keep:
            for file in manifest["files"][: position[1]]:  # used up
                (folder / "download" / file["path"]).unlink(missing_ok=True)


def get_shards(folder, manifest, args):
    """Download shards that were made by others."""
    for i in range(len(manifest["shards"]), len(manifest["files"])):
        add_shard(folder, manifest, source_path(folder, manifest, i))
        if manifest["tokens"] >= args.tokens:
            return


# ----------------------------------------------------------------------- All of it in its order
def main():
    args = parse_args()
    folder = Path("data", args.name)
    if args.verify:
        return verify(folder)
    get_hellaswag()
    manifest = open_manifest(folder, args)
    if manifest["tokens"] < args.tokens and not manifest["complete"]:
        sizes = {file["path"]: file["bytes"] for file in manifest["files"]}
        guesses = [TOKENS_PER_BYTE[Path(path).suffix] * size for path, size in sizes.items()]
        expected = min(sum(guesses), args.tokens)
        need = 2 * max(0, expected - manifest["tokens"])
        if manifest["revision"]:  # at most: a file still needed, the current one, the next one
            need += sum(sorted(sizes.values())[0 if args.keep else -3 :])
        if need > shutil.disk_usage(folder).free:
            sys.exit(f"{folder}: needs about {need / 1e9:.1f} GB; make space, or give --tokens=N")
        if args.pretokenized:
            get_shards(folder, manifest, args)
        else:
            make_shards(folder, manifest, args, expected)
        manifest["complete"] = manifest["tokens"] < args.tokens  # there is no more to read
        save_manifest(folder, manifest)
    if not args.keep:
        shutil.rmtree(folder / "download", ignore_errors=True)
    n, documents, tokens = len(manifest["shards"]), manifest["documents"], manifest["tokens"]
    print(f"{folder}: {n} shards, {documents:,} documents, {tokens:,} tokens")
    if n < 2:
        sys.exit(f"{folder}: nothing is left to train on; choose a smaller --shard_size")


if __name__ == "__main__":
    try:
        main()
    except ImportError as error:
        sys.exit(f"{error}: pip install {error.name.split('.')[0]}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; the same command goes on after the last finished shard")
