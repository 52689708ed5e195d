"""Bad input: one table for each script, read by test_refusals.py.

A row says what is added to a command that works (ARGS in makers.py), and the words by
which the answer names the culprit: the flag, the file, what would be right. Not whole
sentences: how it is said may change.
"""

import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from makers import (
    LADDER,
    LARGE,
    TEXT_SCRIPTS,
    TRAINERS,
    import_transformers,
    random_tokens,
    read,
    write_shard,
    write_shards,
)

INPUT = Path("data/shakespeare/input.txt")
TRAIN, VAL = Path("tokens/t_train_000001.bin"), Path("tokens/t_val_000000.bin")
LAST, BEST = Path("out/run/last.pt"), Path("out/run/best.pt")


class Row(NamedTuple):
    flags: str
    words: tuple
    code: int = 2  # 2: the command line is wrong; 1: something else is
    before: Callable | None = None  # is called first
    trained: bool = False  # a run of two steps has left its checkpoints
    late: bool = False  # is noticed only while it trains
    env: dict = {}
    name: str = ""


TABLES = {name: [] for name in [*LADDER, "prepare_shakespeare", "prepare_fineweb"]}


def add(scripts, rows, **more):
    """Put rows into the tables of these scripts. more: what all the rows have."""
    for script in scripts:
        for flags, *words in rows:
            TABLES[script].append(Row(flags, tuple(words), **more))


def add_files(scripts, rows, **more):
    """Rows of (name, what to do before, flags, words ...), for which the code is 1."""
    for script in scripts:
        for name, before, flags, *words in rows:
            row = Row(flags, tuple(words), 1, before, name=name, **more)
            TABLES[script].append(row)


# ------------------------------------------------------------------------ Command lines
WRONG_WORDS = [
    ("--learning_rat=1", "--learning_rat=1"),
    ("--max_iter=1", "--max_iter=1"),  # no abbreviations
    ("--BLOCK-SIZE=8", "--BLOCK-SIZE=8"),
    ("--", "--"),
    ("train", "train"),
    ("max_iters=3", "max_iters=3"),
    ("-max_iters=3", "-max_iters=3"),
    ("--math=3", "--math=3"),  # a name in the script, but no setting
    ("--max_iters=many", "--max_iters", "'many'"),
    ("--max_iters=1.5", "--max_iters", "'1.5'"),
    ("--max_iters=", "--max_iters", "''"),
    ("--max_iters", "--max_iters"),
    ("--max_iters 5 6", "6"),
    ("--prompt", "--prompt"),
    ("--learning_rate=fast", "--learning_rate", "'fast'"),
]
add(LADDER, WRONG_WORDS)
add(
    LADDER,
    [
        ("--block_size=0", "--block_size"),
        ("--block_size=-8", "--block_size"),
        ("--temperature=-0.1", "--temperature", "0.01"),
        ("--temperature=nan", "--temperature", "0.01"),
        ("--temperature=1e-320", "--temperature", "0.01"),
        ("--temperature=1e30", "--temperature", "0.01"),
    ],
)
add(LADDER[1:], [("--n_embd=30 --n_head=4", "--n_embd=30", "--n_head=4")])
add(TEXT_SCRIPTS, [("--prompt=AB#5", "--prompt", str(INPUT))])
add(
    TRAINERS,
    [
        ("--bfloat16=maybe", "--bfloat16", "'maybe'"),
        ("--bfloat16=False", "--bfloat16", "'False'"),
        ("--bfloat16 False", "False"),
        ("--no-seed", "--no-seed"),
        ("--max_iters=-1", "--max_iters=-1", "0"),
        ("--eval_interval=0", "--eval_interval=0", "1"),
        ("--log_interval=0", "--log_interval=0", "1"),
        ("--n_layer=0", "--n_layer=0", "1"),
        ("--n_embd=0", "--n_embd=0", "1"),
        ("--n_head=0", "--n_head=0", "1"),
        ("--top_k=-1", "--top_k=-1", "0"),
        ("--seed=-1", "--seed=-1", "0"),
        ("--learning_rate=inf", "--learning_rate=inf"),
        ("--learning_rate=nan", "--learning_rate=nan"),
        ("--learning_rate=-1", "--learning_rate=-1"),
        ("--momentum=1", "--momentum=1"),
        ("--dropout=1", "--dropout=1"),
        ("--beta1=1", "--beta1=1"),
        ("--beta2=1.5", "--beta2=1.5"),
        ("--optimizer=sgd", "--optimizer=sgd", "muon", "adamw"),
        ("--init_from=gpt7", "--init_from=gpt7"),
        ("--device=abacus", "--device=abacus", "cuda"),
        ("--device=", "--device="),
        ("--device=meta", "--device=meta"),
        ("--device=hpu", "--device=hpu"),  # torch knows it by name only
        ("--device=cuda:99", "--device=cuda:99"),
    ],
)
add(["gpt_char"], [("--batch_size=0", "--batch_size=0", "1")])
add(
    LARGE,
    [
        ("--batch_size=-1", "--batch_size=-1", "0"),
        ("--total_batch_size=0", "--total_batch_size=0", "1"),
        ("--total_batch_size=65", "--total_batch_size=65", "64"),
        ("--eval_tokens=0", "--eval_tokens=0", "1"),
        ("--keep_every=0", "--keep_every=0", "1"),
        ("--num_samples=0", "--num_samples=0", "1"),
        ("--model_size=gpt-2", "--model_size=gpt-2", "gpt2-medium"),
        ("--gelu=exact", "--gelu=exact", "tanh"),
        ("--compile=maybe", "--compile", "'maybe'"),
        ("--init_from=none.pt", "--init_from=none.pt"),
        ("--bfloat16 --float16", "--bfloat16", "--float16"),
    ],
)
add(
    LARGE,
    [("--export_dir=a_file", "--export_dir=a_file", "folder")],
    before=lambda: Path("a_file").write_text("mine"),
)
add(
    ["sparse_gpt"],
    [
        ("--pattern=sparse", "--pattern=sparse", "fixed", "strided", "dense"),
        ("--combine=union", "--combine=union", "heads", "layers"),
        ("--stride=17", "--stride=17", "0", "--block_size=16"),
        ("--window=17", "--window=17", "0", "--block_size=16"),
        ("--sinks=0", "--sinks=0", "1"),
        ("--selected=0", "--selected=0", "1"),
        ("--tile=-1", "--tile=-1", "0"),
        ("--pattern=fixed --summary=0", "--summary=0", "1", "--stride=4"),
        ("--pattern=fixed --summary=5", "--summary=5", "1", "--stride=4"),
        ("--n_head=1", "--n_head=1", "even", "--combine=layers"),
        ("--n_embd=10 --n_head=2", "--n_embd=10", "--n_head=2", "even"),
        # GPT-2's weights are those of a dense model with a table of positions
        ("--export_dir=hf", "--pattern=dense", "--no-rotary"),
        ("--export_dir=hf --pattern=dense", "--no-rotary"),
        ("--export_dir=hf --no-rotary", "--pattern=dense"),
        ("--init_from=gpt2", "--pattern=dense"),
        ("--init_from=gpt2 --pattern=window", "--pattern=dense"),
    ],
)
add(
    ["prepare_shakespeare"],
    [
        ("--sorce=a --name=x", "--sorce=a"),
        ("--sour=a --name=x", "--sour=a"),
        ("a_file", "a_file"),
        ("--source", "--source"),
        ("--source=a_file", "--source=a_file", "--name"),
        ("--name=x", "--source=", "--name=x"),
        ("--source=a --name=../x", "--name=../x"),
        ("--source=a --name=..", "--name=.."),
        ("--source=a --name=", "--name="),
    ],
)
add(
    ["prepare_fineweb"],
    [
        ("--tokns=3", "--tokns=3"),
        ("--token=3", "--token=3"),
        ("stray", "stray"),
        ("--source=a.txt b.txt --name=n", "b.txt"),
        ("--source", "--source"),
        ("--tokens=1X", "--tokens", "'1X'"),
        ("--tokens=0", "--tokens", "--shard_size"),
        ("--tokens=100M", "--tokens", "--shard_size"),
        ("--shard_size=3G", "--shard_size", "'3G'"),
        ("--shard_size=3B", "--shard_size=3000000000"),
        ("--shard_size=0", "--shard_size=0"),
        ("--seed=-1", "--seed=-1", "0"),
        ("--source a.txt", "--source", "--name"),
        ("--source a.txt --name=n --pretokenized", "--source", "--pretokenized"),
        ("--pretokenized --shard_size=5M", "--pretokenized", "100M"),
        ("--name=a/b", "--name=a/b"),
        ("--name=..", "--name=.."),
    ],
)


# --------------------------------------------------------------------- Texts and shards
def write(path, content):
    def before():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content)

    return before


def shard(path, count=600, highest=None, **header):
    """A shard of random bytes, one of them replaced."""

    def before():
        tokens = random_tokens(count)
        if highest is not None:
            tokens[count // 2] = highest
        write_shard(path, tokens, **header)

    return before


add(
    TEXT_SCRIPTS,
    [("", "--block_size", str(INPUT))],
    before=write(INPUT, b""),
    name="an empty text",
)
add(
    TEXT_SCRIPTS,  # 640 characters: the validation data is as long as a context
    [("--block_size=64", "--block_size", str(INPUT), "63")],
    before=write(INPUT, b"abcdefghij" * 64),
    name="a short text",
)
no_text = ("--data_dir=none", str(Path("none/input.txt")), "prepare_shakespeare.py")
add(TEXT_SCRIPTS, [no_text], code=1)
add(LARGE, [("--data_dir=nowhere", "nowhere", "train")], code=1)
add_files(
    LARGE,
    [
        ("a file", write("a_file", b"mine"), "--data_dir=a_file", "a_file", "train"),
        ("no train", lambda: TRAIN.unlink(), "", "tokens", "train", "prepare"),
        ("no val", lambda: VAL.unlink(), "", "tokens", "val", "prepare"),
        ("cut", lambda: os.truncate(TRAIN, 2000), "", str(TRAIN), "2000", "7024"),
        ("too long", lambda: os.truncate(VAL, 1636), "", str(VAL), "1636", "1634"),
        ("half a header", lambda: os.truncate(TRAIN, 100), "", str(TRAIN)),
        ("empty", lambda: os.truncate(TRAIN, 0), "", str(TRAIN)),
        ("a folder", lambda: Path("tokens/t_train_9.bin").mkdir(), "", "t_train_9.bin"),
        ("magic", shard(TRAIN, magic=20240801), "", str(TRAIN)),
        ("version", shard(VAL, version=2), "", str(VAL)),
        ("no vocabulary", shard(VAL, vocab_size=1000), "", "tokens", "bytes"),
        ("two vocabularies", shard(VAL, vocab_size=50257), "", "tokens", "bytes"),
        ("short", shard(TRAIN, count=16), "", "tokens", "block_size=16"),
    ],
)
add_files(
    LARGE,
    [  # every window is read once: 37 of them, four in a step
        ("high id", shard(TRAIN, highest=256), "--max_iters=12", str(TRAIN), "256"),
        ("high id in val", shard(VAL, highest=65535), "--eval_tokens=999", str(VAL)),
    ],
    late=True,
)


# ---------------------------------------------------------------------------- HellaSwag
GOOD = {"ctx": "it is", "endings": ["a", "b", "c", "d"], "label": 1}
LINES = {
    "no JSON": '{"ctx": "it is',
    "no object": "5",
    "an empty line": "",
    "no label": json.dumps({k: v for k, v in GOOD.items() if k != "label"}),
    "three endings": json.dumps({**GOOD, "endings": ["a", "b", "c"]}),
    "a number": json.dumps({**GOOD, "ctx": 5}),
    "a word as label": json.dumps({**GOOD, "label": "first"}),
}
HELLASWAG = "data/hellaswag/hellaswag_val.jsonl"
for name, line in LINES.items():
    lines = [json.dumps(GOOD)] * 9 + [line] + [json.dumps(GOOD)]
    before = write(HELLASWAG, ("\n".join(lines) + "\n").encode())
    row = (f"HellaSwag: {name}", before, "--hellaswag", "hellaswag_val.jsonl", "10")
    add_files(LARGE, [row])
row = ("HellaSwag: empty", write(HELLASWAG, b""), "--hellaswag", "hellaswag_val.jsonl")
add_files(LARGE, [row])


# -------------------------------------------------------------------------- Checkpoints
class Evil:
    def __reduce__(self):
        return open, ("it_was_run", "w")


def altered(path=LAST, **changes):
    """A checkpoint with some entries replaced, or removed where the change is None."""

    def before():
        state = {**read(path), **changes}
        kept = {key: value for key, value in state.items() if value is not None}
        torch.save(kept, path)

    return before


def flipped(path):
    """One bit of the weights is another one."""

    def before():
        content = bytearray(path.read_bytes())
        weights = read(path)["model"]["wte.weight"].numpy().tobytes()
        content[content.index(weights) + 3] ^= 1
        path.write_bytes(content)

    return before


def cut(path):
    return lambda: path.write_bytes(path.read_bytes()[:-1000])


def write_other_data():
    """Of the same size and the same characters, but not the same."""
    write_shards("other", 3200, 321)
    text = INPUT.read_text(encoding="utf-8")
    write("other/input.txt", text[::-1].encode())()


NOISE = random.Random(1).randbytes(20_000)
ABOUT_LAST = (str(LAST), "--out_dir")
OTHERS = {"n_layer": (1, 3), "n_embd": (16, 32), "n_head": (2, 4)}
OTHERS |= {"block_size": (16, 32), "optimizer": ("muon", "adamw")}
OTHERS_SPARSE = {"pattern": ("strided", "fixed"), "combine": ("heads", "layers")}
OTHERS_SPARSE |= {"stride": (4, 5), "summary": (2, 3), "window": (8, 7)}
for scripts, others in ((TRAINERS, OTHERS), (["sparse_gpt"], OTHERS_SPARSE)):
    for name, (old, new) in others.items():
        words = [*ABOUT_LAST, f"{name}={old}", str(new)]
        add(scripts, [(f"--{name}={new}", *words)], code=1, trained=True)
for max_iters in (2, 4):
    flags = f"--data_dir=other --max_iters={max_iters}"
    row = (f"other data, {max_iters} steps", write_other_data, flags, *ABOUT_LAST)
    add_files(TRAINERS, [row], trained=True)
DAMAGED = [
    ("last.pt is cut", cut(LAST)),
    ("last.pt is empty", write(LAST, b"")),
    ("last.pt is a text", write(LAST, b"not one")),
    ("last.pt is noise", write(LAST, NOISE)),
    ("last.pt has a flipped bit", flipped(LAST)),
    ("last.pt is of another program", lambda: torch.save({"w": torch.zeros(3)}, LAST)),
    ("last.pt would run code", altered(step=Evil())),
    ("last.pt would run code at once", write(LAST, pickle.dumps(Evil()))),
    ("last.pt has other optimizers", altered(optimizers=[{}, {}])),
    ("last.pt has other weights", altered(model={"weight": torch.zeros(3)})),
    ("last.pt has no identity", altered(identity=None)),
    ("last.pt has no step", altered(step=None)),
    ("last.pt has no best loss", altered(best_val_loss=None)),
    ("last.pt has no model", altered(model=None)),
    ("last.pt has no optimizers", altered(optimizers=None)),
]
for name, before in DAMAGED:
    add_files(TRAINERS, [(name, before, "", *ABOUT_LAST)], trained=True)
for name, before in (("noise", write(BEST, NOISE)), ("a flipped bit", flipped(BEST))):
    add_files(TRAINERS, [(f"best.pt: {name}", before, "", str(BEST))], trained=True)
add_files(["gpt_char"], [("best.pt is gone", BEST.unlink, "", str(BEST))], trained=True)
# The same files as the start of a run in another folder
NEW = f"--init_from={LAST.as_posix()} --out_dir=out/new"
for name, before in DAMAGED[:7]:
    add_files(LARGE, [(f"{name}: init_from", before, NEW, str(LAST))], trained=True)
words = [str(LAST), "n_embd=16", "32"]
add(LARGE, [(f"{NEW} --n_embd=32", *words)], code=1, trained=True)


# -------------------------------------------------------------------- Nothing to export
EXPORT = "--max_iters=0 --export_dir=hf"
for script, dense in (
    ("gpt2_train", ""),
    ("sparse_gpt", " --pattern=dense --no-rotary"),
):
    for flags in ("--out_dir=out/none", "--init_from=scratch"):
        row = (f"{EXPORT} {flags}{dense}", "--export_dir", "--out_dir", "--init_from")
        add([script], [row], code=1, before=import_transformers, trained=True)


# ---------------------------------------------------------------- Folders and processes
def dangling():
    try:
        Path("link").symlink_to("nowhere/at/all")
    except OSError:
        pytest.skip("this system makes no links")


def forbidden():
    Path("mine").mkdir()
    Path("mine").chmod(0o500)


def no_folder(out_dir, before, name):
    words = [(f"--out_dir={out_dir}", f"--out_dir={out_dir}")]
    add(TRAINERS, words, before=before, name=name)


mine = write("a_file", b"mine")
no_folder("a_file", mine, "out_dir is a file")
no_folder("a_file/x", mine, "out_dir below a file")
no_folder("link", dangling, "out_dir is a link to nothing")
no_folder("link/x", dangling, "out_dir below a link to nothing")
no_folder(300 * "x", None, "out_dir has a long name")
if Path("/proc/self").exists():
    no_folder("/proc/self/run", None, "out_dir where no folder can be made")
if hasattr(os, "geteuid") and os.geteuid() != 0:  # root may write anywhere
    no_folder("mine", forbidden, "out_dir without permission")
    no_folder("mine/x", forbidden, "out_dir below no permission")
for env in (
    {"WORLD_SIZE": "2", "RANK": "0"},  # some clusters set these by themselves
    {"RANK": "1"},
    {"RANK": "abc", "WORLD_SIZE": "1"},
    {"WORLD_SIZE": "0", "RANK": "0"},
):
    add(LARGE, [("", "torchrun")], code=1, env=env, name=str(env))


# ----------------------------------------------------------------- Files to be prepared
for name, content, *words in (
    ("gone", None),
    ("empty", b"", "empty"),
    ("a single character", "é".encode()),
    ("no UTF-8", b"ab\xffcd", "position 2"),
):
    before = write("a_file", content) if content is not None else None
    row = (name, before, "--source=a_file --name=x", "--source=a_file", *words)
    add_files(["prepare_shakespeare"], [row])
