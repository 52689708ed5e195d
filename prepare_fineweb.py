"""
Gets a part of the web as text and cuts it into GPT-2's tokens: what trains steps 4 and 5 for real.

    python prepare_fineweb.py                    FineWeb-Edu's sample of ten billion tokens
    python prepare_fineweb.py --tokens=1B        the first of them; K, M and B are understood
    python prepare_fineweb.py --pretokenized     FineWeb, cut into tokens by others already
    python prepare_fineweb.py --source FILE... --name=NAME    your own files
    python prepare_fineweb.py --verify           only read the shards again and check them

writes data/NAME/NAME_val_000000.bin, for validation, then data/NAME/NAME_train_000001.bin and so
on: shards of 100 million tokens (--shard_size). NAME is fineweb_edu, with --pretokenized fineweb,
if --name does not say otherwise. HellaSwag's questions go to data/hellaswag/hellaswag_val.jsonl.

A source is a .parquet file with a column "text", a .jsonl or .jsonl.gz file with a key "text" in
every line, or a .txt file, which is one document. The Hub's files come one at a time and are
deleted when no longer needed, unless --keep. Parquet needs pyarrow, the Hub huggingface_hub.

Every document begins with the token <|endoftext|>; inside a text these characters mean nothing.
Documents are shuffled, by --seed: the files are taken in shuffled order, and so are the row groups
of each parquet file; then documents are collected until they have about 33 million characters and
these are shuffled. Where row groups are small, that is a sample from all over a file. A file of
another kind is read from its start to its end: one that is sorted should be shuffled before.

The same command goes on where an interrupted one ended, after the last finished shard, and leads
to the same bytes. data/NAME/manifest.json says what was done: the source, the options, and for
every shard its tokens, documents, sha256 and where in the source the next one begins.
"""

import argparse
import difflib
import errno
import functools
import gzip
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import sys
import time
import urllib.request
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tiktoken

FINEWEB_EDU = "HuggingFaceFW/fineweb-edu", "sample/10BT"  # a repository of the Hub, its folder
PRETOKENIZED = "kjj0/fineweb10B-gpt2", None
HELLASWAG_URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
HELLASWAG_QUESTIONS = 10_042
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
    value = round(float(match[1]) * 1000 ** ("KMB".find(match[2]) + 1 if match[2] else 0))
    if value < 1:
        raise ValueError
    return value


def parse_args():
    """The command line; what is wrong with it is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message} (see --help)\n")
    add = parser.add_argument
    add("--source", metavar="FILE", nargs="+", action="extend", help="local files to use instead")
    add("--pretokenized", action="store_true", help="download the tokens of FineWeb instead")
    add("--name", help="the folder under data/, and what its files' names begin with")
    add("--tokens", type=number, metavar="N", help="stop after so many; 1B, for example")
    add("--shard_size", type=number, metavar="N", default=10**8, help="tokens; default 100M")
    add("--seed", type=int, default=1337, help="decides the order; default 1337")
    add("--keep", action="store_true", help="do not delete what was downloaded")
    add("--verify", action="store_true", help="only check the shards against manifest.json")
    args, extra = parser.parse_known_args()
    if args.source:  # --source=FILE FILE is fine, too
        args.source += [arg for arg in extra if not arg.startswith("-")]
    for arg in extra if not args.source else [arg for arg in extra if arg.startswith("-")]:
        near = difflib.get_close_matches(arg.split("=")[0], [f"--{k}" for k in vars(args)], 1, 0)
        parser.error(f"{arg}: unknown, did you mean {near[0]}?")
    if args.source and args.pretokenized:
        parser.error("--source and --pretokenized exclude each other")
    if args.source and not args.name:
        parser.error(f"--source={args.source[0]}: name the shards with --name=NAME")
    args.name = args.name or ("fineweb" if args.pretokenized else "fineweb_edu")
    if args.name in (".", "..", "tiktoken") or set(args.name) & set('/\\:*?"<>|[]\0'):
        parser.error(f"--name={args.name}: must be the name of a folder to make under data/")
    if args.pretokenized and args.shard_size != 10**8:
        parser.error(f"--shard_size={args.shard_size}: --pretokenized has shards of 100M tokens")
    if args.seed < 0:
        parser.error(f"--seed={args.seed}: must be 0 or more")
    if args.shard_size >= 2**31:
        parser.error(f"--shard_size={args.shard_size}: must be below 2**31, by the files' format")
    if args.tokens and args.tokens <= args.shard_size:
        parser.error(f"--tokens={args.tokens}: must exceed --shard_size, the validation shard")
    return args


# --------------------------------------------------------------------------- Files under data/
@contextmanager
def new_file(path):
    """A file to write that appears complete or not at all; ends the program if that fails."""
    unfinished = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(unfinished, "wb") as f:
                yield f
                f.flush()
                os.fsync(f.fileno())
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        sys.exit(f"{path}: {error.strerror}. Finished shards are intact, the command can go on")


def shard_header(num_tokens):
    """The first 1024 bytes of a shard, as in llm.c: 256 int32, of which three are not 0."""
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, num_tokens
    return header.tobytes()


def inspect_shard(path):
    """Read a shard; returns its numbers of tokens and documents, and its sha256.

    Raises ValueError where it is not one of GPT-2's tokens, OSError where it cannot be read.
    """
    sha256, documents, highest = hashlib.sha256(), 0, 0
    with open(path, "rb") as f:
        header = f.read(1024)
        sha256.update(header)
        num_tokens, odd = divmod(os.fstat(f.fileno()).st_size - 1024, 2)
        if num_tokens < 1 or odd or header != shard_header(num_tokens):
            raise ValueError("is not a whole shard of GPT-2's tokens")
        while block := f.read(2**22):
            sha256.update(block)
            tokens = np.frombuffer(block, dtype="<u2")
            documents += int(np.count_nonzero(tokens == EOT))
            highest = max(highest, int(tokens.max()))
    if highest > EOT:
        raise ValueError(f"has a token of {highest}, GPT-2's end at {EOT}")
    return {"tokens": num_tokens, "documents": documents, "sha256": sha256.hexdigest()}


def shard_path(folder, i):
    return folder / f"{folder.name}_{'train' if i else 'val'}_{i:06d}.bin"


def add_up(manifest):
    """Set the manifest's totals."""
    for key in ("tokens", "documents"):
        manifest[key] = sum(shard[key] for shard in manifest["shards"])


def read_manifest(folder):
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        add_up(manifest)
        return manifest
    except (OSError, KeyError, TypeError, ValueError) as error:
        sys.exit(f"{path}: {error}. Without it {folder} cannot be checked or continued")


def save_manifest(folder, manifest):
    add_up(manifest)
    with new_file(folder / "manifest.json") as f:
        f.write(json.dumps(manifest, indent=1).encode())


def verify(folder):
    """Check all shards of a folder against its manifest."""
    manifest = read_manifest(folder)
    bad = {path.name: "is not in manifest.json" for path in folder.glob("*.bin")}
    for shard in manifest["shards"]:
        bad.pop(shard["file"], None)
        try:
            if not inspect_shard(folder / shard["file"]).items() <= shard.items():
                bad[shard["file"]] = "is not the shard that manifest.json describes"
        except (OSError, ValueError) as error:
            bad[shard["file"]] = getattr(error, "strerror", None) or str(error)
    for name, reason in bad.items():
        print(f"{folder / name}: {reason}", file=sys.stderr)
    if bad:
        sys.exit("Delete these; the same command without --verify makes the missing ones again")
    print(f"{folder}: {len(manifest['shards'])} shards are as manifest.json says")


def open_manifest(folder, args):
    """What is done of a folder, or the manifest of a new one. Other options are refused."""
    options = {
        "source": sorted(set(args.source or [])) or list(FINEWEB_EDU),
        "encoding": "gpt2",
        "seed": args.seed,
        "shard_size": args.shard_size,
        "buffer_size": BUFFER_SIZE,
    }
    if args.pretokenized:
        options.update(source=list(PRETOKENIZED), seed=None, buffer_size=None)
    for path in folder.glob("*.tmp*"):
        path.unlink()  # of a run that was killed
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
    done = sum(shard["tokens"] for shard in manifest["shards"])
    if not manifest["complete"] and done % args.shard_size and done < (args.tokens or math.inf):
        manifest["shards"].pop()  # was cut short by another --tokens
    add_up(manifest)
    return manifest


def get_hellaswag():
    """Download HellaSwag's validation set (Zellers et al. 2019). Training can do without."""
    path = Path("data/hellaswag/hellaswag_val.jsonl")
    if path.exists():
        return
    try:
        with urllib.request.urlopen(HELLASWAG_URL, timeout=10) as response:
            content = response.read()
        questions = [json.loads(line)["endings"] for line in content.splitlines()]
        if len(questions) != HELLASWAG_QUESTIONS:
            raise ValueError(f"has {len(questions)} questions, not {HELLASWAG_QUESTIONS}")
    except Exception as error:  # OSError, HTTPException, ValueError, KeyError, ...
        print(f"going on without HellaSwag: {HELLASWAG_URL}: {error}", flush=True)
        return
    with new_file(path) as f:
        f.write(content)


# -------------------------------------------------------------------------------------- Source
def list_files(args):
    """The files of the source in the order in which they are read, with their sizes in bytes."""
    files, revision = [], None
    if args.source:
        for name in sorted(set(args.source)):
            if not name.endswith((".parquet", ".jsonl", ".jsonl.gz", ".txt")):
                sys.exit(f"--source={name}: must be a .parquet, .jsonl, .jsonl.gz or .txt file")
            try:
                with open(name, "rb"):
                    files.append({"path": name, "bytes": os.path.getsize(name)})
            except OSError as error:
                sys.exit(f"--source={name}: {error.strerror}")
    else:
        repo, folder = PRETOKENIZED if args.pretokenized else FINEWEB_EDU
        revision = ask_hub(repo, lambda hub: hub.dataset_info(repo, expand=["sha"]).sha)
        options = {"repo_type": "dataset", "revision": revision}
        tree = ask_hub(repo, lambda hub: list(hub.list_repo_tree(repo, folder, **options)))
        for file in tree:
            if file.path.endswith((".parquet", ".bin")):
                sha256 = file.lfs.sha256 if file.lfs else None
                files.append({"path": file.path, "bytes": file.size, "sha256": sha256})
        if not files:
            sys.exit(f"{repo}: has no files of data in its folder {folder}")
    if args.pretokenized:  # the shard for validation first
        files.sort(key=lambda file: ("_val_" not in file["path"], file["path"]))
        return {"files": files, "revision": revision}
    order = np.random.default_rng([args.seed, 0]).permutation(len(files))
    return {"files": [files[i] for i in order], "revision": revision}


def ask_hub(what, action):
    """Return action(Hub). If the net or the server fails it, wait longer and longer and retry."""
    try:
        from huggingface_hub import HfApi
    except ImportError:
        sys.exit("huggingface_hub is missing: pip install huggingface_hub, or use --source")
    for wait in (*WAITS, None):
        try:
            return action(HfApi())
        except Exception as error:  # whatever its HTTP library raises
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            status = getattr(getattr(error, "response", None), "status_code", None)
            no_space = getattr(error, "errno", None) == errno.ENOSPC
            if wait is None or status in (401, 403, 404) or no_space:
                sys.exit(f"{what}: {reason}. Finished shards are intact, the command can go on")
        print(f"{what}: {reason}; trying again in {wait} s", flush=True)
        time.sleep(wait)


def source_path(folder, manifest, i, progress):
    """The path of a file of the source. Downloads it first if it is the Hub's and not there yet."""
    file = manifest["files"][i]
    if manifest["revision"] is None:
        return Path(file["path"])
    path, start = folder / "download" / file["path"], time.time()

    def download(hub):
        repo, options = manifest["source"][0], {"local_dir": folder / "download"}
        options.update(repo_type="dataset", revision=manifest["revision"])
        hub.hf_hub_download(repo, file["path"], **options)
        sha256 = hashlib.sha256()
        with open(path, "rb") as f:
            while block := f.read(2**22):
                sha256.update(block)
            size = f.tell()
        if size != file["bytes"] or file["sha256"] not in (None, sha256.hexdigest()):
            path.unlink()  # or it would be taken for the right one
            raise ValueError(f"{size} bytes came; it has {file['bytes']}, or others")

    ask_hub(file["path"], download)
    progress.downloads.append((file["bytes"], time.time() - start))
    return path


def read_parquet(path, rng, start):
    """The texts of a parquet file, row groups in shuffled order, but for the first start ones."""
    try:
        import pyarrow.parquet
    except ImportError:
        sys.exit(f"{path}: pyarrow is missing: pip install pyarrow")
    with pyarrow.parquet.ParquetFile(path, buffer_size=2**20) as f:
        if "text" not in f.schema_arrow.names:
            raise ValueError(f'has no column "text", but {", ".join(f.schema_arrow.names)}')
        for group in rng.permutation(f.num_row_groups).tolist():
            rows = f.metadata.row_group(group).num_rows
            if start >= rows:
                start -= rows
                continue
            for batch in f.iter_batches(batch_size=256, row_groups=[group], columns=["text"]):
                yield from batch.column(0).to_pylist()[start:]
                start = max(0, start - len(batch))


def read_jsonl(path, start):
    """The texts of a file with a JSON object in every line, but for the first start ones."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as f:
        lines = ((i, line) for i, line in enumerate(f, 1) if line.strip())
        for i, line in itertools.islice(lines, start, None):
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f'line {i} is not {{"text": "..."}}: {error!r}')
            yield text


def read_documents(path, rng, start):
    """The texts of any file of a source; ends the program where it is damaged, and says where."""
    try:
        if path.suffix == ".parquet":
            texts = read_parquet(path, rng, start)
        elif path.suffix == ".txt":
            texts = [path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8")][start:]
        else:
            texts = read_jsonl(path, start)
        for i, text in enumerate(texts, start + 1):
            if not isinstance(text, str):
                raise ValueError(f'the "text" of document {i} is {text!r:.50}')
            yield text
    except (OSError, ValueError, EOFError, zlib.error) as error:  # pyarrow's are among them
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        sys.exit(f"{path}: {reason}. Mend it or leave it out; finished shards are intact")


# -------------------------------------------------------------------------------------- Tokens
def get_gpt2_encoding():
    """tiktoken's GPT-2 encoding; its two files are kept in data/tiktoken, for use offline, too."""
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", "data/tiktoken")
    try:
        return tiktoken.get_encoding("gpt2")
    except Exception:  # whatever its HTTP library raises
        sys.exit("cannot download GPT-2's tokenizer; prepare_shakespeare.py gets it from a package")


SEAM = re.compile(r"\S(?=[ \n])")


def cut(texts):
    """Cut texts into pieces; yields lists [(is the start of a document, piece), ...] of them.

    Long texts are cut only where GPT-2's regular expression does so in any case, before a space or
    a line end that follows something visible: the pieces have the tokens of the whole.
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


def shuffled_pieces(manifest, get_path, position):
    """The text of the source from a position on; yields (position, list of pieces).

    A position says which buffer it is, where in the source that begins (the number of the file
    and of documents before it), which of its lists of pieces, and how many of its tokens to skip.
    """
    buffer, file, start, first, skip = position
    seed = manifest["seed"]

    def documents(file, start):
        for i in range(file, len(manifest["files"])):
            rng = np.random.default_rng([seed, 1, i])
            for after, text in enumerate(read_documents(get_path(i), rng, start), start + 1):
                yield i, after, text
            start = 0

    source = documents(file, start)
    for buffer in itertools.count(buffer):
        begin, texts, size = (buffer, file, start), [], 0
        for file, start, text in source:
            texts.append(text)
            size += len(text) + 100  # an empty one takes memory, too
            if size >= manifest["buffer_size"]:
                break
        if not texts:
            return
        order = np.random.default_rng([seed, 2, buffer]).permutation(len(texts)).tolist()
        for i, pieces in enumerate(cut(texts[j] for j in order)):
            if i >= first:
                yield (*begin, i, skip), pieces
                first = skip = 0


# Too much whitespace, followed by something else, is an error in tiktoken. GPT-2's regular
# expression cuts before the last of it in any case (\x1c to \x1f are whitespace for Python only)
SPACE, OTHER = r"[^\S\x1c-\x1f]", r"[\S\x1c-\x1f]"
LONG_SPACE = re.compile(f"(?<!{SPACE})({SPACE}{{1000,}})(?={SPACE}{OTHER})")


def tokenize(encoding, pieces):
    """The tokens of a list of pieces as a uint16 array; <|endoftext|> is before every document."""
    arrays = []
    for is_start, text in pieces:
        arrays.append([EOT] if is_start else [])
        try:
            arrays.append(encoding.encode_to_numpy(text, disallowed_special=()))
        except (AttributeError, UnicodeEncodeError):  # an old tiktoken; half of a surrogate pair
            arrays.append(encoding.encode_ordinary(text))
        except ValueError:
            arrays += map(encoding.encode_ordinary, LONG_SPACE.split(text))
    return np.concatenate(arrays).astype("<u2")


def token_stream(encoding, pieces):
    """Tokenize on all cores; yields (position, tokens) in the order of the pieces.

    Threads will do, because tiktoken works without Python's lock.
    """
    # The thread that tokenizes first slows down the others as long as it goes on: if it is this
    # one, which tokenizes nothing more, two threads do 37 MB/s instead of 21
    encoding.encode_ordinary("Hello world")
    pool, waiting = ThreadPoolExecutor(os.cpu_count()), deque()
    try:
        for position, texts in itertools.chain(pieces, [(None, None)] * PIECES_AHEAD):
            waiting.append((position, texts and pool.submit(tokenize, encoding, texts)))
            if len(waiting) > PIECES_AHEAD:
                position, tokens = waiting.popleft()
                if position:
                    yield position, tokens.result()[position[-1] :]
    finally:
        pool.shutdown(cancel_futures=True)


def split(stream, shard_size, limit):
    """Split tokens where a shard ends; yields (tokens, position after them, are the last of it)."""
    done = 0
    for position, tokens in stream:
        while len(tokens):
            part = tokens[: min(shard_size - done % shard_size, limit - done)]
            tokens, done = tokens[len(part) :], done + len(part)
            position = (*position[:-1], position[-1] + len(part))
            yield part, position, done % shard_size == 0 or done == limit
            if done == limit:
                return


def write_shard(path, parts, progress):
    """Write the tokens of one shard. Returns the position where it ended."""
    with new_file(path) as f:
        f.write(shard_header(0))
        for tokens, position, is_last in parts:
            f.write(tokens)
            progress.add(len(tokens), int(np.count_nonzero(tokens == EOT)))
            if is_last:
                break
        num_tokens = f.tell() // 2 - 512
        f.seek(0)
        f.write(shard_header(num_tokens))
    return position


# ------------------------------------------------------------------------- All of it in its order
class Progress:
    """A line that says what was done, how fast, and what is left. A terminal shows it live."""

    def __init__(self, manifest, expected):
        self.tokens, self.documents = manifest["tokens"], manifest["documents"]
        self.shard_size, self.expected, self.downloads = manifest["shard_size"], expected, []
        self.tokens_before, self.start, self.shown = self.tokens, time.time(), 0

    def add(self, tokens, documents):
        self.tokens, self.documents = self.tokens + tokens, self.documents + documents
        if sys.stdout.isatty() and time.time() > self.shown + 0.5:
            self.show(end="\x1b[K\r")

    def show(self, end="\n"):
        self.shown = time.time()
        speed = (self.tokens - self.tokens_before) / max(1e-9, self.shown - self.start)
        minutes = max(0, self.expected - self.tokens) / max(1, speed) / 60
        shard = math.ceil(self.tokens / self.shard_size)
        shards = max(shard, math.ceil(self.expected / self.shard_size))
        size, seconds = map(sum, zip((0, 1e-9), *self.downloads))
        line = f"{self.documents:,} documents, {self.tokens:,} tokens, {speed:,.0f} tokens/s, "
        line += f"shard {shard} of {shards}, {minutes:.0f} min left, "
        print(line + f"{size / seconds / 1e6:.1f} MB/s down", end=end, flush=True)


def check_space(folder, manifest, expected, keep):
    """End the program now if the disk would be full before it is done."""
    sizes = sorted(file["bytes"] for file in manifest["files"])
    need = 2 * max(0, expected - manifest["tokens"])
    if manifest["revision"]:  # at most: one that is still needed, the current one, the next one
        need += sum(sizes if keep else sizes[-3:])
    free = shutil.disk_usage(folder).free
    if free < need:
        sys.exit(
            f"{folder}: needs about {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; make "
            "space, or stop earlier with --tokens=N"
        )


def make_shards(folder, manifest, limit, progress):
    """Tokenize the source from where the last shard ended; yields (path, where this one ends)."""
    position = manifest["shards"][-1]["next"] if manifest["shards"] else [0] * 5
    get_path = functools.partial(source_path, folder, manifest, progress=progress)
    stream = token_stream(get_gpt2_encoding(), shuffled_pieces(manifest, get_path, position))
    parts = split(stream, manifest["shard_size"], limit - manifest["tokens"])
    for first in parts:
        path = shard_path(folder, len(manifest["shards"]))
        yield path, write_shard(path, itertools.chain([first], parts), progress)


def get_shards(folder, manifest, progress):
    """Download shards that were made by others; yields (path, None)."""
    for i in range(len(manifest["shards"]), len(manifest["files"])):
        path = source_path(folder, manifest, i, progress)
        try:
            shard = inspect_shard(path)
            os.replace(path, shard_path(folder, i))
        except (OSError, ValueError) as error:
            sys.exit(f"{path}: {error}. Finished shards are intact")
        progress.add(shard["tokens"], shard["documents"])
        yield shard_path(folder, i), None


def main():
    args = parse_args()
    folder = Path("data", args.name)
    if args.verify:
        return verify(folder)
    get_hellaswag()
    manifest = open_manifest(folder, args)
    shards, files, limit = manifest["shards"], manifest["files"], args.tokens or math.inf
    if manifest["tokens"] < limit and not manifest["complete"]:
        guesses = [file["bytes"] * TOKENS_PER_BYTE[Path(file["path"]).suffix] for file in files]
        expected = min(sum(guesses), limit)
        check_space(folder, manifest, expected, args.keep)
        progress = Progress(manifest, expected)
        new = get_shards(folder, manifest, progress)
        if not args.pretokenized:
            new = make_shards(folder, manifest, limit, progress)
        for path, position in new:
            shards.append({"file": path.name, **inspect_shard(path), "next": position})
            save_manifest(folder, manifest)
            progress.show()
            if manifest["revision"] and position and not args.keep:
                for file in files[: position[1]]:  # used up
                    (folder / "download" / file["path"]).unlink(missing_ok=True)
            if manifest["tokens"] >= limit:
                break
        else:
            manifest["complete"] = True
            save_manifest(folder, manifest)
    if not args.keep:
        shutil.rmtree(folder / "download", ignore_errors=True)
    documents, tokens = manifest["documents"], manifest["tokens"]
    print(f"{folder}: {len(shards)} shards, {documents:,} documents, {tokens:,} tokens")
    if len(shards) < 2:
        sys.exit(f"{folder}: nothing is left to train on; choose a smaller --shard_size")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; the same command goes on after the last finished shard")
