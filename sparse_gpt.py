# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.11", "numpy", "tiktoken"]
# ///
"""Rung 5 of 5: sparse attention, for long contexts.

Dense attention computes T * T scores. Here a pattern says who sees whom: for example
a window, or rows and columns, which together reach everything (Child et al. 2019).
Positions that see each other are laid out side by side, in tiles, and attention skips
pairs of tiles in which nobody sees anybody. Rotary positions replace GPT-2's learned
table, which would grow with the context.

    python sparse_gpt.py                         on a laptop: a context of 1024 bytes
    torchrun --nproc_per_node=8 sparse_gpt.py    on 8 GPUs: a context of 8192 tokens
    python sparse_gpt.py --pattern=dense --out_dir=out/dense            to compare
    python sparse_gpt.py --show_pattern --block_size=256 --stride=16    only draw

Expect a val loss of about 1.43 after seven minutes on two cores. The chapter is
docs/sparse_gpt.md.
"""

import argparse
import contextlib
import ctypes
import functools
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tiktoken
import torch
import torch.distributed as dist
import torch.distributed.nn  # imported later, it would keep the process group alive
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

# ---------------------------------------------------------------------------- Settings
device = "cuda" if torch.cuda.is_available() else "cpu"  # "mps" on a Mac
data_dir = "data/shakespeare/bytes"  # folder of shards (files of tokens)
out_dir = "out/sparse_gpt"  # folder for the checkpoints and log.csv
export_dir = ""  # if given, export the model there for HuggingFace's transformers
# Where to start: "resume" (the checkpoints in out_dir, if any), "scratch", the file
# of a checkpoint, or a model of HuggingFace's transformers ("gpt2", ..., or a folder).
# Training continues from out_dir if it has checkpoints, unless this is "scratch"
init_from = "resume"
seed = 1337  # for the initial weights, the batches and the sample
total_batch_size = 4096  # tokens per training step, over all processes
batch_size = 0  # B: sequences a process computes at a time; 0: as many as fit in memory
block_size = 1024  # T: tokens per sequence
rotary = True  # positions rotate queries and keys; GPT-2's weights need --no-rotary
pattern = "strided"  # who sees whom: a row of patterns, below
stride = 0  # l: positions in a row; 0: about the square root of block_size
window = 0  # positions in a window, for patterns that have one; 0: two rows
sinks = 4  # first positions that all later ones see, in "sinks"
summary = 8  # c: columns at the end of a row that all later rows see, in "fixed"
selected = 3  # tiles of keys that each query selects, in "selection"
tile = 0  # positions computed at a time; 0: as many as a row has
combine = "heads"  # each hop gets half of the heads; "layers": hops take turns
show_pattern = False  # only draw what one position sees
max_iters = 2000  # training steps; 0: no training, only a sample
log_interval = 25  # steps between lines of progress
eval_interval = 500  # steps between evaluations
eval_tokens = 10_485_760  # tokens of validation data per evaluation, at most
hellaswag = False  # also evaluate on HellaSwag, if data/hellaswag is there
keep_every = 5000  # steps between permanent checkpoints; a multiple of eval_interval
model_size = "char"  # a row of sizes, below: sets the next four and learning_rate
n_layer = 5  # blocks
n_embd = 128  # C: channels, the numbers that describe a position
n_head = 2  # attention heads, with n_embd / n_head channels each
gelu = "none"  # "tanh": the approximation that GPT-2 was trained with
dropout = 0.0  # probability of zeroing an activation during training
optimizer = "muon"  # Muon for the matrices of the blocks; "adamw": AdamW for all
learning_rate = 1.5e-2  # peak learning rate
adamw_share = 0.15  # AdamW's learning rate, as a fraction of Muon's
warmup_iters = 5  # steps until the learning rate reaches its peak
weight_decay = 0.1  # pulls the matrices of the blocks towards 0
momentum = 0.9  # Muon: decay rate of the running mean of gradients
beta1 = 0.9  # AdamW: decay rate of the running mean of gradients
beta2 = 0.99  # AdamW: the same for squared gradients
grad_clip = 1.0  # maximum norm of the gradient; 0: no clipping
# Half precision for matrix products, if the CPU has instructions for it
bfloat16 = torch.cpu.get_capabilities().get("avx512_bf16", False)
float16 = False  # the half precision of GPUs without bfloat16
compile = False  # let torch.compile fuse small kernels into large ones
prompt = ""  # what the samples start with; empty: the start of a document
num_samples = 1  # texts to sample
max_new_tokens = 500  # length of a sample
temperature = 0.8  # below 1: safer, above 1: wilder, 0: always the likeliest token
top_k = 0  # sample from the k likeliest tokens only; 0: from all

# Defaults that differ on a GPU
gpu_preset = {
    "data_dir": "data/fineweb_edu",  # ten billion tokens of the web
    "model_size": "gpt2",
    "total_batch_size": 524_288,
    "block_size": 8192,
    "tile": 128,
    "max_iters": 19_073,  # once through the data
    "adamw_share": 1.0,
    "warmup_iters": 256,
    "momentum": 0.95,
    "beta2": 0.95,
    "hellaswag": True,
    "log_interval": 1,
    "eval_interval": 1000,
    "num_samples": 4,
    "max_new_tokens": 100,
    "bfloat16": torch.cuda.is_bf16_supported(including_emulation=False),
    "float16": not torch.cuda.is_bf16_supported(including_emulation=False),
    "compile": True,
}
# Defaults that differ on a CPU without bfloat16
slow_cpu_preset = {
    "model_size": "char-small",
    "max_iters": 1200,
}
# Defaults that depend on model_size: n_layer, n_head, n_embd, learning_rate, gelu
# From gpt2 on, learning rates are three times those of GPT-3 (Brown et al. 2020)
sizes = {
    "char": (5, 2, 128, 1.5e-2, "none"),  # the model of gpt_char.py
    "char-small": (4, 2, 96, 1.5e-2, "none"),  # its model for a CPU without bfloat16
    "gpt2": (12, 12, 768, 1.8e-3, "tanh"),  # 124M parameters, the size of GPT-3 Small
    "gpt2-medium": (24, 16, 1024, 9e-4, "tanh"),  # 350M, the size of GPT-3 Medium
    "gpt2-large": (36, 20, 1280, 7.5e-4, "tanh"),  # 774M
    "gpt2-xl": (48, 25, 1600, 6e-4, "tanh"),  # 1558M
    "gpt3-large": (24, 16, 1536, 7.5e-4, "tanh"),  # 760M; add --block_size=2048
    "gpt3-xl": (24, 16, 2048, 6e-4, "tanh"),  # 1.3B; add --block_size=2048
}

# ------------------------------------------------------------------------ Command line
# Every setting is also a flag, for example --max_iters=2000 --seed=7 --no-bfloat16
# (--help is added at the end: it shows the defaults, which a preset can still change)
parser = argparse.ArgumentParser(
    usage="%(prog)s [--name=value]", allow_abbrev=False, add_help=False
)
for name, value in list(globals().items()):
    kind = type(value)
    if kind is bool:
        switch = argparse.BooleanOptionalAction  # accepts --name and --no-name
        parser.add_argument(
            f"--{name}", action=switch, default=value, help="%(default)r"
        )
    elif kind in (int, float, str) and not name.startswith("_"):
        parser.add_argument(f"--{name}", type=kind, default=value, help="%(default)r")
first_look, _ = parser.parse_known_args()  # device, bfloat16: which preset applies
if "cuda" in first_look.device:
    parser.set_defaults(**gpu_preset)
elif not first_look.bfloat16:
    parser.set_defaults(**slow_cpu_preset)
second_look, _ = parser.parse_known_args()  # model_size decides which row of sizes
if second_look.model_size in sizes:
    names = ["n_layer", "n_head", "n_embd", "learning_rate", "gelu"]
    parser.set_defaults(**dict(zip(names, sizes[second_look.model_size])))
parser.add_argument("--help", action="help")  # now that the defaults are final
config = vars(parser.parse_args())
globals().update(config)  # overwrites the settings

# --------------------------------------------------------------------------- Processes
# torchrun runs world_size copies of this script. Each has a number, its rank, and takes
# the GPU with the number local_rank on its machine
try:
    rank = int(os.environ.get("RANK", 0))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if not 0 <= rank < world_size:
        raise ValueError(f"RANK={rank} must be below WORLD_SIZE={world_size}")
except ValueError as error:
    sys.exit(f"{error}; start several processes with torchrun")
device_type = "cuda" if "cuda" in device else "cpu"
on_gpu = device_type == "cuda"
if world_size > 1:
    try:
        if on_gpu:
            torch.cuda.set_device(local_rank)  # from now on, "cuda" means this one
        dist.init_process_group(timeout=timedelta(minutes=20))
    except (RuntimeError, ValueError) as error:
        sys.exit(f"cannot join the processes of torchrun: {error}".split("\n")[0])


def log(line):
    """Print a line, in the first process only."""
    if rank == 0:
        with contextlib.suppress(OSError):  # the terminal may have been closed
            print(line, flush=True)


def add_up(*numbers):
    """The sums of numbers over all processes, as a list of floats."""
    sums = torch.tensor(numbers, dtype=torch.float32, device=device)
    if world_size > 1:
        dist.all_reduce(sums)
    return sums.tolist()


# ----------------------------------------------------------------------------- Pattern
if stride == 0:
    square = max(1, block_size)  # about stride * stride
    if pattern == "fixed":  # its second hop costs c times as much
        square *= max(1, summary)
    stride = 2 ** int(math.log2(math.sqrt(square)))
if window == 0:
    window = 2 * stride
if tile == 0:
    tile = stride


# Who may attend to whom, if position j is not later than position i
def everything(i, j):
    return True


def in_window(i, j):
    return i - j < window


def in_window_or_sink(i, j):
    return (i - j < window) | (j < sinks)


def one_row_back(i, j):
    return i - j <= stride


def same_column(i, j):
    return (i - j) % stride == 0


def same_row(i, j):
    return i // stride == j // stride


def in_summary(i, j):
    return j % stride >= stride - summary


# Sort keys: attention lays the positions out in increasing order of these numbers
def as_they_come(i):
    return i


def by_column(i):
    return i % stride


def summaries_first(i):
    return i % stride < stride - summary  # False, for a summary, comes before True


class Hop(NamedTuple):
    """Which positions attend to which, and the order in which attention stores them."""

    allows: Callable
    order: Callable = as_they_come
    selects: bool = False  # each query picks a few tiles of those it may see


patterns = {
    "dense": [Hop(everything)],
    "window": [Hop(in_window)],
    "sinks": [Hop(in_window_or_sink)],
    "alternate": [Hop(in_window), Hop(everything)],
    "strided": [Hop(one_row_back), Hop(same_column, by_column)],
    "fixed": [Hop(same_row), Hop(in_summary, summaries_first)],
    "selection": [Hop(everything, selects=True)],
}


def sees(hop, i, j):
    """Whether position i attends to position j: numbers, or arrays of numbers."""
    return (j <= i) & hop.allows(i, j)


def draw_pattern():
    """Print what one position, far down the text, sees, in rows of stride."""
    rows = block_size // stride
    last = min(rows * 3 // 4 * stride + stride // 2, block_size - 1)
    print(f"What position {last}, @, sees: 1 in hop 1, 2 in hop 2, 3 in both, . hidden")
    marks = ""
    for j in range(last):
        mark = 0
        for number, hop in enumerate(patterns[pattern], start=1):
            if sees(hop, last, j):
                mark += number
        marks += ".123"[mark]
    marks += "@"
    for start in range(0, len(marks), stride):
        print(marks[start : start + stride])


# -------------------------------------------------------------------------------- Data
def open_shard(path):
    """Open a shard. Returns its tokens, read from the disk on use, and vocabulary size.

    The format is llm.c's and one more number: 256 int32 (magic number, version, number
    of tokens, vocabulary size, where 0 means GPT-2's 50257), then tokens as uint16.
    Raises ValueError if the file is anything else, or not complete.
    """
    header = np.fromfile(path, dtype="<i4", count=256)
    if len(header) < 256 or header[0] != 20240520 or header[1] != 1 or header[2] < 1:
        raise ValueError("is not a shard of tokens")
    n_bytes = 256 * 4 + 2 * int(header[2])
    if path.stat().st_size != n_bytes:
        raise ValueError(f"has {path.stat().st_size} bytes, not {n_bytes}")
    vocab_size = int(header[3])
    if vocab_size == 0:
        vocab_size = 50257
    return np.memmap(path, dtype="<u2", mode="r", offset=256 * 4), vocab_size


is_shakespeare = Path(data_dir).parent == Path("data/shakespeare")
if is_shakespeare and not any(Path(data_dir).glob("*.bin")) and local_rank == 0:
    subprocess.run([sys.executable, Path(__file__).with_name("prepare_shakespeare.py")])
if world_size > 1:
    dist.barrier()  # the others wait for the data
shards = {"train": [], "val": []}  # the tokens of each file
vocab_sizes = set()
for split in shards:
    for path in sorted(Path(data_dir).glob(f"*_{split}_*.bin")):
        try:
            tokens, vocab_size = open_shard(path)
        except OSError as error:
            sys.exit(f"{path} cannot be read: {error.strerror}")
        except ValueError as error:
            sys.exit(f"{path} {error}; delete it, and prepare the data again")
        shards[split].append(tokens)
        vocab_sizes.add(vocab_size)
    if not shards[split]:
        hint = "try data/shakespeare/bytes, or see prepare_fineweb.py --help"
        sys.exit(f"{data_dir} has no {split} shards; {hint}")
if vocab_sizes not in ({256}, {50257}):
    sys.exit(f"{data_dir}: the shards must all be of bytes, or all of GPT-2's tokens")
tokenizer = None  # tokens are bytes
if vocab_size == 50257:
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", "data/tiktoken")
    try:
        tokenizer = tiktoken.get_encoding("gpt2")
    except Exception:  # its download can fail in many ways
        sys.exit("GPT-2's tokenizer is missing; run prepare_shakespeare.py to get it")


def encode(s):
    """Turn a string into a list of token ids."""
    if tokenizer is None:
        return list(s.encode("utf-8", errors="replace"))
    return tokenizer.encode_ordinary(s)


def decode(ids):
    """Turn a list of token ids back into a string."""
    if tokenizer is None:
        return bytes(ids).decode("utf-8", errors="replace")
    return tokenizer.decode(ids)


if block_size < 1:
    parser.error(f"--block_size={block_size} must be at least 1")
# The data is cut into windows of block_size tokens, and one more for the targets.
# Each epoch shifts the training windows by 0 to block_size - 1 tokens, so the end of
# each shard leaves room for that
window_counts = {
    "train": [max(0, len(t) - block_size) // block_size for t in shards["train"]],
    "val": [(len(t) - 1) // block_size for t in shards["val"]],
}
for split, counts in window_counts.items():
    if sum(counts) == 0:
        sys.exit(f"{data_dir}: its {split} shards are too short for {block_size=}")


def read_window(split, number, shift=0):
    """The block_size + 1 tokens of a window; its number runs through all shards."""
    for tokens, count in zip(shards[split], window_counts[split]):
        if number < count:
            start = number * block_size + shift
            window = tokens[start : start + block_size + 1].astype(np.int64)
            if window.max() >= vocab_size:
                reason = f"token {window.max()} is not in the vocabulary"
                sys.exit(f"{tokens.filename}: {reason}; prepare the data again")
            return torch.from_numpy(window)
        number -= count  # it is in a later shard


def to_batch(windows):
    """Inputs x and targets y (B, T), on the device, from windows of T + 1 tokens."""
    batch = torch.stack(windows)
    if on_gpu:
        batch = batch.pin_memory()  # copied without the CPU waiting
    batch = batch.to(device, non_blocking=True)
    return batch[:, :-1], batch[:, 1:]


@functools.lru_cache(maxsize=2)
def shuffle(epoch):
    """How far an epoch shifts the training windows, and in which order they come."""
    rng = np.random.default_rng((seed, epoch))
    shift = int(rng.integers(block_size))  # each epoch cuts at different places
    return shift, rng.permutation(sum(window_counts["train"]))


def get_batch(step, micro_step):
    """x, y (B, T) of a micro-step of this process: its share of the step's windows."""
    # Number of the micro-batch; a step has accumulation of them in each process
    number = (step * accumulation + micro_step) * world_size + rank
    first = number * micro_batch_size
    windows = []
    for i in range(first, first + micro_batch_size):
        epoch, place = divmod(i, sum(window_counts["train"]))
        shift, order = shuffle(epoch)
        windows.append(read_window("train", order[place], shift))
    return to_batch(windows)


questions = []  # of HellaSwag: (tokens of the context, tokens of its 4 endings, label)
hellaswag_file = Path("data/hellaswag/hellaswag_val.jsonl")
if hellaswag and hellaswag_file.exists():
    lines = hellaswag_file.read_text(encoding="utf-8", errors="replace").strip()
    lines = lines.split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            question = json.loads(line)
            endings = [encode(" " + ending) for ending in question["endings"]]
            label = int(question["label"])
            if len(endings) != 4 or not 0 <= label < 4:
                raise ValueError("needs four endings and a label from 0 to 3")
            questions.append((encode(question["ctx"]), endings, label))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            sys.exit(f"{hellaswag_file}: line {number} is damaged ({error!r})")


# ------------------------------------------------------------------------------- Model
half = torch.float16 if float16 else torch.bfloat16


def autocast():
    """A context in which matrix products are computed in half precision."""
    return torch.autocast(device_type, half, enabled=bfloat16 or float16)


def attention(q, k, v, p, mask=None):
    """Attention of queries q (..., T, hs) to keys and values k, v (..., S, hs).

    mask (..., T, S): 0 where a query sees a key and -inf elsewhere. Without a mask,
    attention is causal, and a single query sees all the keys.
    """
    T = q.shape[-2]
    if T == 1 or device != "cpu" or (mask is None and not bfloat16):
        causal = mask is None and T > 1
        if mask is not None:
            mask = mask == 0  # PyTorch's function takes True for what is seen
        return F.scaled_dot_product_attention(q, k, v, mask, p, is_causal=causal)
    # On a CPU in half precision, or with a mask, it is faster written out
    if mask is None:
        mask = torch.full((T, T), -torch.inf).triu(1)  # -inf where the future is
    scale = q.shape[-1] ** -0.5
    scores = (q * scale) @ k.mT  # (B, nh, T, S)
    weights = F.softmax(scores.add_(mask.to(q.dtype)), dim=-1)
    return F.dropout(weights, p) @ v


class Group(NamedTuple):
    """Query tiles that are computed together: m of them, with n key tiles each."""

    keys: torch.Tensor | None  # (m * n * tile): their positions. None: all, in order
    mask: torch.Tensor  # (m, tile, n * tile): 0 where a query sees a key, else -inf
    blind: torch.Tensor | None  # (m, tile, 1): queries that see nobody, if any
    query_tiles: torch.Tensor  # (m): their numbers
    key_tiles: torch.Tensor  # (m, n): the numbers of the key tiles of each


def gather(x, positions):
    """x (B, nh, T, hs) at some positions; None: at all of them, in order."""
    if positions is None:
        return x
    return x.index_select(2, positions)


def to_index(positions, T):
    """Positions as gather takes them, in a context of T.

    Positions beyond the end are masked, so any index will do; we use the last one.
    """
    if np.array_equal(positions, np.arange(T)):
        return None
    return torch.from_numpy(positions.clip(max=T - 1)).to(device)


layouts = {}  # what lay_out returned for the whole context


@functools.cache
def lay_out(hop, tiles):
    """How attention computes a hop over so many tiles: a plan, made once.

    Returns the groups; the positions of their queries, group by group; and, for each
    position, its index in that list, which puts the results back in order.
    """
    T = tiles * tile
    order = hop.order(np.arange(T)).argsort(kind="stable")
    # One more tile, beyond the end, where nobody sees anybody
    order = np.concatenate((order, np.arange(T, T + tile)))
    in_tiles = order.reshape(-1, tile)
    needed = []  # of each query tile: the key tiles in which it sees somebody
    for number in range(tiles):
        seen = sees(hop, in_tiles[number, :, None], order)
        somebody = seen.reshape(tile, -1, tile).any(2).any(0)
        needed.append(somebody.nonzero()[0].tolist())
    largest = max(1, max(len(keys) for keys in needed))
    extra = tiles  # the number of the tile beyond the end, which pads the lists of keys
    members = {}  # of the group of n: query tiles, each with its n key tiles
    for number, keys in enumerate(needed):
        n = largest  # or half of it, or a quarter: few sizes, so there are few groups
        while n // 2 >= max(1, len(keys)):
            n //= 2
        keys = keys + [extra] * (n - len(keys))
        members.setdefault(n, []).append((number, keys))
    groups = []
    gathered = []
    for group in members.values():
        query_tiles = np.array([number for number, _ in group])
        key_tiles = np.array([numbers for _, numbers in group])
        i = in_tiles[query_tiles]  # (m, tile)
        j = in_tiles[key_tiles].reshape(len(group), -1)  # (m, n * tile)
        seen = sees(hop, i[:, :, None], j[:, None, :])
        blind = ~seen.any(2, keepdims=True)
        mask = np.where(seen | blind, 0.0, -np.inf).astype(np.float32)
        groups.append(
            Group(
                keys=to_index(j.flatten(), T),
                mask=torch.from_numpy(mask).to(device),
                blind=torch.from_numpy(blind).to(device) if blind.any() else None,
                query_tiles=torch.from_numpy(query_tiles).to(device),
                key_tiles=torch.from_numpy(key_tiles).to(device),
            )
        )
        gathered.append(i.flatten())
    gathered = np.concatenate(gathered)
    return groups, to_index(gathered, T), to_index(gathered.argsort(), T)


def select_tiles(q, k, own):
    """Which tiles of keys each query selects, as MoBA does: (N, m, tile, tiles).

    q: (N, m, tile, hs). k: (B, nh, T, hs), where B * nh = N. own, (m): the number of
    the queries' own tile, which they always see; later ones they never do.
    """
    B, nh, T, hs = k.shape
    k = F.pad(k, (0, 0, 0, -T % tile))
    pooled = k.reshape(B * nh, -1, tile, hs).mean(2)  # the mean key of each tile
    numbers = torch.arange(pooled.shape[1], device=q.device)
    own = own[:, None, None]
    scores = q @ pooled.mT[:, None]
    scores = scores.masked_fill(numbers >= own, -torch.inf)
    best = scores.topk(min(selected, len(numbers)), dim=-1).indices
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
    return (chosen & (numbers < own)) | (numbers == own)


def select(q, k, group):
    """Which keys each query of a group selects, tile by tile, as MoBA does.

    q: (B * nh, m, tile, hs). k: (B, nh, T, hs), of all positions, which come in order.
    Returns (B * nh, m, tile, n * tile).
    """
    chosen = select_tiles(q, k, group.query_tiles)  # (B * nh, m, tile, tiles)
    chosen = F.pad(chosen, (0, 1))  # nobody selects the tile beyond the end
    numbers = group.key_tiles[:, None].expand(*chosen.shape[:3], -1)
    chosen = chosen.gather(3, numbers)  # (B * nh, m, tile, n)
    return chosen.repeat_interleave(tile, dim=3)  # all keys of a chosen tile


def attend(q, k, v, hop, p):
    """Attention of every position i to the positions j with sees(hop, i, j) only.

    q, k, v: (B, nh, T, hs). Returns (B, nh, T, hs).
    """
    if hop == Hop(everything):  # there is nothing to skip
        return attention(q, k, v, p)
    B, nh, T, hs = q.shape
    plan = layouts.get((hop, T))
    if plan is None:  # another length, such as that of a prompt
        plan = lay_out(hop, math.ceil(T / tile))
    groups, queries, place = plan
    if T % tile != 0:  # pad the last tile: no query sees the padding
        q = F.pad(q, (0, 0, 0, -T % tile))
        k = F.pad(k, (0, 0, 0, -T % tile))
        v = F.pad(v, (0, 0, 0, -T % tile))
    lengths = [len(group.mask) * tile for group in groups]
    results = []
    for group, q_group in zip(groups, gather(q, queries).split(lengths, dim=2)):
        mask = group.mask
        m = len(mask)
        q_group = q_group.reshape(B * nh, m, tile, hs)
        k_group = gather(k, group.keys).reshape(B * nh, m, -1, hs)
        v_group = gather(v, group.keys).reshape(B * nh, m, -1, hs)
        if hop.selects:
            chosen = select(q_group, k, group)
            mask = mask.masked_fill(~chosen, -torch.inf)
        y = attention(q_group, k_group, v_group, p, mask)
        if group.blind is not None:
            y = y.masked_fill(group.blind, 0.0)
        results.append(y.reshape(B, nh, m * tile, hs))
    y = gather(torch.cat(results, dim=2), place)  # back to where they came from
    return y[:, :, :T]


@functools.cache
def keys_of(hop):
    """Twice the mean number of keys that a query may see: block_size for all."""
    if hop == Hop(everything):
        return block_size
    positions = np.arange(block_size)
    pairs = 0
    for i in range(block_size):
        pairs += sees(hop, i, positions).sum()
    return 2 * float(pairs) / block_size


@functools.cache
def assign_slots(hop):
    """A slot of the cache for each position; a slot that nobody sees is used again.

    Returns the slots and, for each position, the last one that sees it.
    """
    positions = np.arange(block_size)
    last_viewers = []
    for j in positions:
        viewers = positions[sees(hop, positions, j)]
        last_viewers.append(int(viewers.max(initial=0)))
    free = []
    freed = [[] for _ in range(block_size + 1)]  # [j]: slots free again at j
    size = 0
    slots = []
    for j in range(block_size):
        free += freed[j]
        if not free:
            free.append(size)
            size += 1
        slot = free.pop()
        slots.append(slot)
        last_use = max(j, last_viewers[j])  # even a key that nobody sees is written
        freed[last_use + 1].append(slot)
    return np.array(slots), np.array(last_viewers)


class KVCache:
    """The keys and values of one layer that later positions will see."""

    def __init__(self):
        self.length = 0
        self.contents = {}  # of each hop: k, v and the position in each slot

    def append(self, hop, k, v):
        """Store k, v (B, nh, T, hs) of new positions that are still to be seen."""
        slots, last_viewers = assign_slots(hop)
        if hop not in self.contents:
            B, nh, _, hs = k.shape
            size = int(slots.max()) + 1
            held = np.full(size, block_size)  # empty: later than any position
            empty = k.new_zeros(B, nh, size, hs)
            self.contents[hop] = empty, empty.clone(), held
        keys, values, held = self.contents[hop]
        end = self.length + k.shape[2]
        new = np.arange(self.length, end)
        kept = new[last_viewers[new] >= end - 1]  # seen by the newest, or a later one
        if len(kept) == 0:
            return
        held[slots[kept]] = kept
        source = torch.from_numpy(kept - self.length).to(k.device)
        target = torch.from_numpy(slots[kept]).to(k.device)
        keys[:, :, target] = k[:, :, source]
        values[:, :, target] = v[:, :, source]

    def attend(self, q, hop):
        """Attention of the newest position, q (B, nh, 1, hs), to what it sees."""
        keys, values, held = self.contents[hop]
        seen = sees(hop, self.length, held)
        count = int(seen.sum())
        if count == 0:
            return torch.zeros_like(q)
        in_front = seen[:count].all()  # all in the first slots: a slice, without a copy
        if in_front:
            k, v = keys[:, :, :count], values[:, :, :count]
        else:
            visible = torch.from_numpy(seen.nonzero()[0]).to(q.device)
            k, v = keys[:, :, visible], values[:, :, visible]
        if not hop.selects:
            return attention(q, k, v, 0.0)
        B, nh, _, hs = q.shape
        own = torch.tensor([self.length // tile], device=q.device)
        chosen = select_tiles(q.reshape(B * nh, 1, 1, hs), k, own)
        chosen = chosen.repeat_interleave(tile, dim=3)[..., :count]
        mask = torch.zeros(chosen.shape, device=q.device)
        mask = mask.masked_fill(~chosen, -torch.inf).view(B, nh, 1, count)
        return attention(q, k, v, 0.0, mask)


def rotary_table(hs):
    """cos and sin (block_size, hs) of the angles by which each position rotates."""
    exponents = torch.arange(0, hs, 2, device=device) / hs  # one per pair of channels
    speeds = 10_000.0**-exponents  # radians per position
    angles = torch.outer(torch.arange(block_size, device=device), speeds)
    angles = torch.cat((angles, angles), dim=1)  # for both channels of a pair
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Rotate each pair of channels, i and i + hs / 2, of x (B, nh, T, hs).

    RoPE (Su et al. 2021), with the pairs of Llama.
    """
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)  # by 90 degrees
    return (x * cos + turned * sin).to(x.dtype)


class CausalSelfAttention(nn.Module):
    """Causal self-attention, all heads at once, divided among the hops."""

    def __init__(self, hops):
        super().__init__()
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)  # query, key, value for all heads
        self.c_proj = nn.Linear(n_embd, n_embd)  # mixes what the heads found
        self.cos, self.sin = rotary_table(n_embd // n_head)
        self.hops = hops

    def forward(self, x, cache=None):
        """x: (B, T, C). Returns (B, T, C)."""
        B, T, C = x.shape
        hs = C // n_head  # channels per head
        q, k, v = self.c_attn(x).split(C, dim=2)  # (B, T, C) each
        q = q.view(B, T, n_head, hs).transpose(1, 2)  # (B, nh, T, hs)
        k = k.view(B, T, n_head, hs).transpose(1, 2)
        v = v.view(B, T, n_head, hs).transpose(1, 2)
        if rotary:
            past = 0 if cache is None else cache.length  # positions before those of x
            cos, sin = self.cos[past : past + T], self.sin[past : past + T]
            q = rotate(q, cos, sin)
            k = rotate(k, cos, sin)
        p = dropout if self.training else 0.0
        results = []
        share = n_head // len(self.hops)  # heads per hop
        for number, hop in enumerate(self.hops):
            heads = slice(number * share, (number + 1) * share)
            if cache is not None:
                cache.append(hop, k[:, heads], v[:, heads])
            if cache is not None and cache.length > 0:  # one step of sampling
                y = cache.attend(q[:, heads], hop)
            else:
                y = attend(q[:, heads], k[:, heads], v[:, heads], hop, p)
            results.append(y)
        if cache is not None:
            cache.length += T
        y = torch.cat(results, dim=1)
        y = y.transpose(1, 2).reshape(B, T, C)  # the heads side by side again
        return self.c_proj(y)


class MLP(nn.Module):
    """Two linear layers and a nonlinearity in between, for each position separately."""

    def __init__(self):
        super().__init__()
        self.c_fc = nn.Linear(n_embd, 4 * n_embd)  # 4 times as wide, as in GPT-2
        self.c_proj = nn.Linear(4 * n_embd, n_embd)

    def forward(self, x):
        """x: (B, T, C). Returns (B, T, C)."""
        return self.c_proj(F.gelu(self.c_fc(x), approximate=gelu))


class Block(nn.Module):
    """One layer: positions communicate (attention), then each one computes (MLP)."""

    def __init__(self, hops):
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd)  # every position: mean 0, variance 1
        self.attn = CausalSelfAttention(hops)
        self.ln_2 = nn.LayerNorm(n_embd)
        self.mlp = MLP()
        self.drop = nn.Dropout(dropout)

    def forward(self, x, cache=None):
        """x: (B, T, C). Returns (B, T, C)."""
        # Residual connections: adding to x keeps a direct path for the gradient
        x = x + self.drop(self.attn(self.ln_1(x), cache))
        x = x + self.drop(self.mlp(self.ln_2(x)))
        return x


class GPT(nn.Module):
    """The decoder-only Transformer of GPT-2 (Radford et al. 2019, section 2.3)."""

    def __init__(self):
        super().__init__()
        # A multiple of 128 rows suits the hardware; those beyond vocab_size are unused
        padded_size = math.ceil(vocab_size / 128) * 128
        self.wte = nn.Embedding(padded_size, n_embd)  # which token it is
        if not rotary:
            self.wpe = nn.Embedding(block_size, n_embd)  # where it stands
        self.drop = nn.Dropout(dropout)
        hops = patterns[pattern]
        self.h = nn.ModuleList()  # GPT-2's name
        for i in range(n_layer):
            if combine == "layers":
                self.h.append(Block([hops[i % len(hops)]]))
            else:
                self.h.append(Block(hops))
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, padded_size, bias=False)
        self.lm_head.weight = self.wte.weight  # tied: one matrix for both
        # Added to the logits, it gives the unused rows probability 0
        self.padding = torch.zeros(padded_size, device=device)
        self.padding[vocab_size:] = -torch.inf
        for name, p in self.named_parameters():
            if name.endswith(("bias", "c_proj.weight")):
                nn.init.zeros_(p)  # at first, the blocks add nothing
            elif p.ndim == 2:
                nn.init.normal_(p, std=0.02)

    @autocast()
    def logits(self, idx, caches=None):
        """idx: (B, T). Returns (B, T, V): for each token, logits of the next one."""
        past = 0  # positions before those of idx
        if caches is None:
            caches = [None] * n_layer
        else:
            past = caches[0].length
        x = self.wte(idx)  # (B, T, C)
        if not rotary:
            positions = torch.arange(past, past + idx.shape[1], device=idx.device)
            x = x + self.wpe(positions)
        x = self.drop(x)
        for block, cache in zip(self.h, caches):
            x = block(x, cache)
        logits = F.linear(self.ln_f(x), self.lm_head.weight, self.padding)
        return logits.float()  # back to single precision

    def forward(self, x, y):
        """The loss: the mean of -ln P(y given x), in nats. x and y: (B, T)."""
        logits = self.logits(x).flatten(0, 1)  # (B * T, V)
        return F.cross_entropy(logits, y.flatten())


# ---------------------------------------------------------------------------- Sampling
@torch.no_grad()  # nothing is learned here, so no gradients are needed
@autocast()  # around the loop, so the weights are cast once and not for each token
def generate(idx, max_new_tokens, temperature=1.0, top_k=0, use_cache=True):
    """Continue the sequences idx (B, T). Returns (B, T + max_new_tokens)."""
    model.eval()  # no dropout
    caches = None
    for i in range(max_new_tokens):
        fits = idx.shape[1] <= block_size  # otherwise the window slides
        if use_cache and i > 0 and fits:
            logits = model.logits(idx[:, -1:], caches)  # of the new token only
        else:  # all positions are new
            if use_cache:
                caches = [KVCache() for _ in range(n_layer)]
            logits = model.logits(idx[:, -block_size:], caches)
        logits = logits[:, -1]  # (B, V): what follows the last token
        if top_k > 0:
            kth = logits.topk(min(top_k, vocab_size)).values[:, -1:]  # the k-th largest
            logits[logits < kth] = -torch.inf
        if temperature > 0:
            probs = F.softmax(logits / temperature, dim=-1)
            idx_next = torch.multinomial(probs, num_samples=1)  # (B, 1)
        else:
            idx_next = logits.argmax(dim=-1, keepdim=True)
        idx = torch.cat((idx, idx_next), dim=1)
    model.train()
    return idx


def sample(num_samples, max_new_tokens):
    """A list of texts: the prompt followed by max_new_tokens generated tokens."""
    torch.manual_seed(seed)  # the same random numbers every time
    ids = encode(prompt)
    if not ids:  # what separates two documents: a newline, or <|endoftext|>
        ids = encode("\n") if tokenizer is None else [tokenizer.eot_token]
    idx = torch.tensor([ids] * num_samples, device=device)  # (B, T)
    idx = generate(idx, max_new_tokens, temperature, top_k)
    return [decode(ids) for ids in idx.tolist()]


# -------------------------------------------------------------------------- Evaluation
@torch.no_grad()
def estimate_loss():
    """Mean loss over eval_tokens of validation data, divided among the processes."""
    model.eval()  # no dropout
    windows = min(sum(window_counts["val"]), math.ceil(eval_tokens / block_size))
    total = 0.0
    count = 0
    for i in range(rank * micro_batch_size, windows, world_size * micro_batch_size):
        numbers = range(i, min(i + micro_batch_size, windows))
        x, y = to_batch([read_window("val", number) for number in numbers])
        total += compiled(x, y).item() * len(x)  # the last batch can be smaller
        count += len(x)
    model.train()
    total, count = add_up(total, count)
    return total / count


def hellaswag_batch(questions):
    """x, y (4 * questions, T): context and ending; y is -1 outside the ending."""
    rows = []
    for context, endings, _ in questions:
        rows += [(context, ending[: block_size - 1]) for ending in endings]
    # The last token is only a target. Rounded up, because cuDNN's attention plans anew
    # for each new shape
    longest = max(len(context) + len(ending) for context, ending in rows) - 1
    T = min(math.ceil(longest / 128) * 128, block_size)
    x = torch.zeros(len(rows), T, dtype=torch.long)
    y = torch.full_like(x, -1)
    for i, (context, ending) in enumerate(rows):
        ids = torch.tensor((context + ending)[-T - 1 :])
        n = len(ids) - 1
        x[i, :n] = ids[:-1]
        y[i, n - len(ending) : n] = ids[-len(ending) :]
    return x.to(device), y.to(device)


@torch.no_grad()
def hellaswag_accuracy():
    """Fraction of questions whose right ending has the lowest loss (Zellers et al.)."""
    model.eval()  # no dropout
    right = 0
    for first in range(8 * rank, len(questions), 8 * world_size):
        batch = questions[first : first + 8]
        x, y = hellaswag_batch(batch)
        logits = model.logits(x).transpose(1, 2)  # (rows, V, T)
        losses = F.cross_entropy(logits, y, ignore_index=-1, reduction="none")
        losses = losses.sum(dim=1) / (y >= 0).sum(dim=1)  # (rows,): means
        answers = losses.view(-1, 4).argmin(dim=1).tolist()
        for answer, (_, _, label) in zip(answers, batch):
            if answer == label:
                right += 1
    model.train()
    return add_up(right)[0] / len(questions)


# ------------------------------------------------------------------------------ Checks
if model_size not in sizes:
    parser.error(f"--model_size={model_size} must be one of: {', '.join(sizes)}")
for name in "log_interval eval_interval keep_every eval_tokens".split():
    if config[name] < 1:
        parser.error(f"--{name}={config[name]} must be at least 1")
for name in "n_layer n_embd n_head num_samples total_batch_size".split():
    if config[name] < 1:
        parser.error(f"--{name}={config[name]} must be at least 1")
for name in "max_iters warmup_iters max_new_tokens top_k seed batch_size".split():
    if config[name] < 0:
        parser.error(f"--{name}={config[name]} must be at least 0")
for name in "learning_rate adamw_share weight_decay grad_clip".split():
    if not 0 <= config[name] < math.inf:
        parser.error(f"--{name}={config[name]} must be a finite number, 0 or more")
for name in "dropout momentum beta1 beta2".split():
    if not 0 <= config[name] < 1:
        parser.error(f"--{name}={config[name]} must be at least 0 and less than 1")
if pattern not in patterns:
    parser.error(f"--pattern={pattern} must be one of: {', '.join(patterns)}")
if combine not in ("heads", "layers"):
    parser.error(f"--combine={combine} must be heads or layers")
for name in "stride window".split():
    if not 0 <= config[name] <= block_size:
        parser.error(
            f"--{name}={config[name]} must be from 0 to --block_size={block_size}"
        )
for name in "sinks selected".split():
    if config[name] < 1:
        parser.error(f"--{name}={config[name]} must be at least 1")
if tile < 0:
    parser.error(f"--tile={tile} must be at least 0")
if summary < 1 or (pattern == "fixed" and summary > stride):
    parser.error(f"--summary={summary} must be from 1 to --stride={stride}")
if combine == "heads" and n_head % len(patterns[pattern]) != 0:
    parser.error(f"--n_head={n_head} must be even, or --combine=layers")
if optimizer not in ("muon", "adamw"):
    parser.error(f"--optimizer={optimizer} must be muon or adamw")
if gelu not in ("none", "tanh"):
    parser.error(f"--gelu={gelu} must be none or tanh")
if n_embd % n_head != 0:
    parser.error(f"--n_embd={n_embd} must be divisible by --n_head={n_head}")
if rotary and n_embd // n_head % 2 != 0:
    parser.error(f"--n_embd={n_embd} / --n_head={n_head} must be even, or --no-rotary")
if temperature != 0 and not 0.01 <= temperature <= 100:  # logits could overflow
    parser.error(f"--temperature={temperature} must be 0, or between 0.01 and 100")
unit = block_size * world_size * max(1, batch_size)
if max_iters > 0 and total_batch_size % unit != 0:
    nearest = max(1, round(total_batch_size / unit)) * unit
    parser.error(
        f"--total_batch_size={total_batch_size} must be a multiple of {unit}, which is "
        f"block_size x processes x batch_size (if given); {nearest} is the nearest"
    )
try:
    torch.zeros(1, device=device).item()
except Exception as error:  # PyTorch has many ways to say that there is no such device
    parser.error(f"--device={device}: {error}".split("\n")[0])
if on_gpu and world_size > 1 and device != "cuda":
    parser.error(f"--device={device} must be cuda: torchrun assigns the GPUs")
if bfloat16 and float16:
    parser.error("--bfloat16 and --float16 exclude each other: add --no-bfloat16")
if on_gpu and torch.__version__ < "2.11":  # older versions gave wrong results
    sys.exit("on a GPU, PyTorch 2.11 or newer is needed: pip install --upgrade torch")
if on_gpu and compile and importlib.util.find_spec("triton") is None:
    compile = False
    log("triton is not installed, so the model will not be compiled")
try:  # find out now if out_dir is writable, not at the first checkpoint
    if max_iters > 0 and rank == 0:
        Path(out_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out_dir) as f:
            f.write(b"x")
except OSError as error:
    parser.error(f"--out_dir={out_dir} is not writable: {error.strerror}")
if Path(export_dir).is_file():
    parser.error(f"--export_dir={export_dir} is a file; give the name of a folder")

if show_pattern:
    draw_pattern()
    sys.exit()

# -------------------------------------------------------------------- OpenAI's weights
theirs = None  # a GPT2LMHeadModel of HuggingFace's transformers
start_from_theirs = False
if init_from not in ("resume", "scratch") and not Path(init_from).is_file():
    start_from_theirs = init_from.startswith("gpt2") or Path(init_from).is_dir()
if start_from_theirs or export_dir:
    if pattern != "dense" or rotary:
        parser.error("GPT-2's weights need --pattern=dense --no-rotary")
    try:
        import transformers
    except ImportError:
        sys.exit("--init_from and --export_dir need more: pip install transformers")
if start_from_theirs:
    try:
        theirs = transformers.GPT2LMHeadModel.from_pretrained(init_from)
    except Exception as error:  # its download and its files can fail in many ways
        sys.exit(f"--init_from={init_from}: {str(error).strip().splitlines()[0]}")
    n_layer = theirs.config.n_layer
    n_head = theirs.config.n_head
    n_embd = theirs.config.n_embd
    gelu = "tanh"
    if theirs.config.activation_function == "gelu":
        gelu = "none"
    if theirs.config.n_positions < block_size:
        parser.error(f"--block_size must be at most {theirs.config.n_positions}")
    if theirs.config.vocab_size != vocab_size:
        sys.exit(f"{data_dir} does not hold the tokens of {init_from}")
elif init_from not in ("resume", "scratch") and not Path(init_from).is_file():
    parser.error(f"--init_from={init_from}: there is no such file, folder or model")


def pairs_with(theirs):
    """Pairs of tensors: a parameter of the transformers model, and ours."""
    for name, p in theirs.transformer.named_parameters():
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            p = p.T  # theirs are transposed
        ours = model.get_parameter(name)
        n = min(len(p), len(ours))  # no padding, and as many positions as both have
        yield p[:n], ours[:n]


@torch.no_grad()
def import_weights(theirs):
    """Copy the weights of a GPT2LMHeadModel of transformers into the model."""
    for source, target in pairs_with(theirs):
        target.copy_(source)


@torch.no_grad()
def export_weights(folder):
    """Write the model so that GPT2LMHeadModel.from_pretrained(folder) can load it."""
    their_config = transformers.GPT2Config(
        vocab_size=vocab_size,
        n_positions=block_size,
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_embd,
        activation_function={"none": "gelu", "tanh": "gelu_new"}[gelu],
        bos_token_id=vocab_size - 1,
        eos_token_id=vocab_size - 1,
    )
    theirs = transformers.GPT2LMHeadModel(their_config)
    for target, source in pairs_with(theirs):
        target.copy_(source)
    theirs.save_pretrained(folder)


# ------------------------------------------------------------------------------- Start
if hasattr(sys.stdout, "reconfigure"):  # in a notebook it has no such method
    sys.stdout.reconfigure(errors="replace")  # print "?" for what a console cannot show
torch.set_float32_matmul_precision("high")  # fast float32 on GPUs
if device == "cpu" and sys.platform == "linux":
    # Let glibc keep freed memory, instead of asking the kernel for new pages
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(-4, 0)  # M_MMAP_MAX
    mallopt(-1, -1)  # M_TRIM_THRESHOLD
torch.manual_seed(seed)
model = GPT().to(device)
n_params = sum(p.numel() for p in model.parameters())


def largest_batch_size(memory):
    """The largest micro-batch, in sequences, that fits in this many bytes.

    A parameter takes up to 20 bytes: weight, gradient, AdamW's two means, DDP's buffer.
    A token takes 34 bytes per layer and channel (Korthikanti et al. 2022, equation 1),
    or 68 in single precision, and its logits with their gradients about 13 bytes per
    entry of the vocabulary.
    """
    per_token = 34 * n_layer * n_embd
    if not bfloat16 and not float16:
        per_token *= 2
    per_token += 13 * len(model.wte.weight)
    tokens = (0.9 * memory - 20 * n_params) / per_token
    # Kernels index the logits, tokens x vocabulary, with 32-bit integers
    tokens = min(tokens, 2**31 / len(model.wte.weight))
    largest = 1
    for size in range(1, per_process + 1):  # per_process: its sequences per step
        if per_process % size == 0 and size * block_size <= tokens:
            largest = size
    return largest


per_process = total_batch_size // (block_size * world_size)  # sequences per step
micro_batch_size = batch_size
if batch_size == 0:
    memory = 2**33  # bytes; without a GPU, assume 8 GiB
    if on_gpu:
        memory = torch.cuda.get_device_properties(device).total_memory
    micro_batch_size = largest_batch_size(memory)
accumulation = per_process // micro_batch_size  # micro-steps per step
log(
    f"{n_params:,} parameters, {vocab_size} different tokens, {world_size} x {device}, "
    f"micro-steps of {micro_batch_size} x {block_size} tokens: {accumulation} per step"
)
for hop in patterns[pattern]:  # now, as torch.compile cannot trace it
    if hop != Hop(everything):
        layouts[hop, block_size] = lay_out(hop, math.ceil(block_size / tile))
# compiled and wrapped share the weights of model
compiled = model
if compile:
    compiled = torch.compile(model, dynamic=False)  # once for each shape of a batch
wrapped = compiled
if world_size > 1:
    wrapped = DistributedDataParallel(compiled)


# --------------------------------------------------------------------------- Optimizer
def share_of(x):
    """The part of x, along its first dimension, that this process works on."""
    size = math.ceil(len(x) / world_size)
    return x[rank * size : (rank + 1) * size]


def join_shares(share, length):
    """Join the shares of all processes. length: that of the whole tensor."""
    if world_size == 1:
        return share
    size = math.ceil(length / world_size)
    padded = share.new_zeros(size, *share.shape[1:])  # the last share can be shorter
    padded[: len(share)] = share
    shares = [torch.empty_like(padded) for _ in range(world_size)]
    dist.all_gather(shares, padded)
    return torch.cat(shares)[:length]


class Muon(torch.optim.Optimizer):
    """Gradient descent with momentum, for matrices (Jordan et al. 2024).

    The singular values of an update say how far it moves the matrix in each direction.
    In plain gradient descent a few large ones dominate; Muon sets all to about 1. Each
    matrix is first cut into pieces of n_embd rows: c_attn into query, key and value.
    Every process computes the updates of its share of the pieces, and keeps the mean
    gradient of those only (ZeRO-1, Rajbhandari et al. 2020).
    """

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            grads = [p.grad.unflatten(0, (-1, n_embd)) for p in group["params"]]
            x = share_of(torch.cat(grads))  # (pieces of this process, n_embd, columns)
            # PyTorch keeps state per parameter; the first one has that of the group
            state = self.state[group["params"][0]]
            if "mean" not in state:
                state["mean"] = torch.zeros_like(x)
            mean = state["mean"].lerp_(x, 1 - momentum)  # a running mean of x
            # Nesterov momentum: mix the newest gradient in once more
            x = x.lerp_(mean, momentum)
            x = x.to(torch.bfloat16 if bfloat16 else torch.float32)
            # Divided by its norm, x has singular values of at most 1. Five rounds of
            # Newton-Schulz then bring most to between 0.7 and 1.2. A round keeps the
            # directions, and turns s into 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
            x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
            for _ in range(5):
                a = x @ x.mT
                # b = -4.7750 * a + 2.0315 * a @ a, and x = 3.4445 * x + b @ x
                b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
                x = torch.baddbmm(x, b, x, beta=3.4445)
            lengths = [len(grad) for grad in grads]
            updates = join_shares(x, sum(lengths)).split(lengths)
            for p, update in zip(group["params"], updates):
                p.mul_(1 - group["lr"] * weight_decay)
                # The update's rows have length 1, so its entries are about
                # 1 / sqrt(columns). Make them about 0.2, as they usually are with AdamW
                # (Liu et al. 2025, equation 4)
                step_size = group["lr"] * 0.2 * p.shape[1] ** 0.5
                p.sub_(update.flatten(0, 1), alpha=step_size)

    def state_dict(self):
        """The state of all processes, which must call this together."""
        whole = super().state_dict()
        for group, saved in zip(self.param_groups, whole["param_groups"]):
            first = saved["params"][0]  # number of the parameter that has the state
            if first in whole["state"]:
                mean = whole["state"][first]["mean"]
                length = sum(len(p) // n_embd for p in group["params"])
                whole["state"][first] = {"mean": join_shares(mean, length)}
        return whole

    def load_state_dict(self, whole):
        """Keep only the share of this process."""
        shares = {}
        for first, state in whole["state"].items():
            mean = share_of(state["mean"]).clone()  # a copy: the whole can be freed
            shares[first] = {"mean": mean}
        super().load_state_dict({**whole, "state": shares})


# Muon updates the matrices of the blocks, AdamW everything else.
# AdamW is gradient descent with a separate step size for each weight
matrices = []
others = []
for name, p in model.named_parameters():
    if name.startswith("h.") and p.ndim == 2:
        matrices.append(p)
    else:
        others.append(p)
# In each step, a group's learning rate will be get_lr(step) * lr_scale
if optimizer == "muon":
    # Muon stacks the matrices of a group, so they need the same number of columns
    narrow = {"params": [p for p in matrices if p.shape[1] == n_embd], "lr_scale": 1.0}
    wide = {"params": [p for p in matrices if p.shape[1] != n_embd], "lr_scale": 1.0}
    rest = {"params": others, "lr_scale": adamw_share, "weight_decay": 0.0}
    adamw = torch.optim.AdamW([rest], betas=(beta1, beta2), fused=True)
    optimizers = [Muon([narrow, wide], defaults={}), adamw]
else:
    decayed = {"params": matrices, "lr_scale": 1.0, "weight_decay": weight_decay}
    rest = {"params": others, "lr_scale": 1.0, "weight_decay": 0.0}
    adamw = torch.optim.AdamW([decayed, rest], betas=(beta1, beta2), fused=True)
    optimizers = [adamw]
scaler = torch.amp.GradScaler(device_type, enabled=float16)  # keeps gradients in range


def get_lr(step):
    """The learning rate for a step: linear warm-up to the peak, linear decay to 0."""
    if step < warmup_iters:
        return learning_rate * (step + 1) / warmup_iters
    return learning_rate * (max_iters - step) / (max_iters - warmup_iters)


# ------------------------------------------------------------------------- Checkpoints
# Only a run that agrees on all of this can continue from a checkpoint
identity = {
    "n_layer": n_layer,
    "n_head": n_head,
    "n_embd": n_embd,
    "gelu": gelu,
    "rotary": rotary,
    "pattern": pattern,
    "stride": stride,
    "window": window,
    "sinks": sinks,
    "summary": summary,
    "selected": selected,
    "combine": combine,
    "block_size": block_size,
    "vocab_size": vocab_size,
    "optimizer": optimizer,
    "data": zlib.crc32(shards["val"][0][:1_000_000]),  # a fingerprint
}
if pattern == "selection":
    identity["tile"] = tile  # the other patterns see the same with any tile


def save_checkpoint(name, step):
    """Save everything needed to continue, and never leave a half-written file.

    All processes must call this together; the first one writes.
    """
    checkpoint = {"identity": identity, "step": step, "best_val_loss": best_val_loss}
    checkpoint["model"] = model.state_dict()
    checkpoint["optimizers"] = [opt.state_dict() for opt in optimizers]
    checkpoint["scaler"] = scaler.state_dict()
    checkpoint["config"] = config  # for the record
    if rank != 0:
        return
    try:
        with tempfile.TemporaryDirectory(dir=out_dir) as folder:  # no other run uses it
            unfinished = Path(folder, name).with_suffix(".tmp")
            with open(unfinished, "wb") as f:
                torch.save(checkpoint, f)
                f.flush()
                os.fsync(f.fileno())  # it is on the disk before it gets its name
            os.replace(unfinished, Path(out_dir, name))  # all at once
    except (OSError, RuntimeError) as error:  # the disk is full, for example
        sys.exit(f"{out_dir}/{name} could not be written: {error}")


def load_checkpoint(path, weights_only=False):
    """Restore model and optimizers. Returns the step and the best val loss so far.

    weights_only: only the model, which can then learn from other data.
    """
    try:
        if zipfile.ZipFile(path).testzip() is not None:  # torch.save writes zip files
            raise ValueError("the file is damaged (wrong checksum)")
        # With mmap, the optimizers' state does not take up memory if it is not used
        checkpoint = torch.load(
            path, map_location="cpu", weights_only=True, mmap=weights_only
        )
        for key, value in identity.items():
            found = checkpoint["identity"].get(key)
            if found != value and not (weights_only and key in ("data", "optimizer")):
                raise ValueError(f"saved by a run with {key}={found}, not {value}")
        model.load_state_dict(checkpoint["model"])
        if not weights_only:
            for opt, state in zip(optimizers, checkpoint["optimizers"]):
                for group, saved in zip(opt.param_groups, state["param_groups"]):
                    saved.update(group, params=saved["params"])  # this run's settings
                opt.load_state_dict(state)
            if checkpoint["scaler"]:  # empty if the run was not in float16
                scaler.load_state_dict(checkpoint["scaler"])
        return checkpoint["step"], checkpoint["best_val_loss"]
    except Exception as error:  # a damaged file can raise almost anything
        reason = f"{type(error).__name__}: {error}".split("\n")[0].split(". ")[0]
        sys.exit(f"{path}: {reason}; use another --out_dir or --init_from")


def evaluate_and_save(step):
    """Log the val loss and a sample. Save last.pt, and best.pt if it is the best."""
    global best_val_loss
    val_loss = estimate_loss()
    line = f"step {step:5d}/{max_iters} | val loss {val_loss:.4f}"
    accuracy = ""  # an empty field in log.csv
    if questions:
        accuracy = hellaswag_accuracy()
        line += f" | hellaswag {accuracy:.4f}"
    log(line)
    append_to_log(step=step, val_loss=val_loss, hellaswag=accuracy)
    if not math.isfinite(val_loss):
        sys.exit("the val loss is not finite; try a lower --learning_rate")
    if rank == 0:
        log(sample(1, 80)[0])
    if val_loss < best_val_loss:
        best_val_loss = val_loss
        save_checkpoint("best.pt", step)
    save_checkpoint("last.pt", step)
    if step % keep_every == 0:
        save_checkpoint(f"step_{step:06d}.pt", step)


# --------------------------------------------------------------------------------- Log
# Peak throughput in half precision, in teraflops (dense), from the data sheets
peaks = {
    "NVIDIA B200": 2250,
    "NVIDIA H200": 989,
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100-SXM4-40GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "NVIDIA L40S": 362,
    "NVIDIA L4": 121,
    "NVIDIA A10": 125,
    "NVIDIA GeForce RTX 5090": 209,
    "NVIDIA GeForce RTX 4090": 165,
    "NVIDIA GeForce RTX 3090": 71,
    "Tesla V100-SXM2-16GB": 125,
    "Tesla T4": 65,
}
peak = math.nan
if on_gpu:
    peak = peaks.get(torch.cuda.get_device_name(device), math.nan) * 1e12 * world_size
# Operations per step: for each token 6 per parameter (Kaplan et al. 2020, section 2.1)
# and, for attention, 12 * T per channel and layer. That counts all T keys, though with
# a causal mask a query sees half of them on average. For a sparse pattern, twice the
# mean number of keys that a query sees takes the place of T
keys = 0.0
for block in model.h:
    for hop in block.attn.hops:
        keys += keys_of(hop) / len(block.attn.hops) / n_layer
flops = total_batch_size * (6 * n_params + 12 * n_layer * n_embd * keys)
columns = "step,loss,lr,grad_norm,ms,tokens_per_second,mfu,val_loss,hellaswag"
log_file = Path(out_dir, "log.csv")


def append_to_log(**row):
    """Add a row to log.csv. Columns that are not given stay empty."""
    if rank != 0:
        return
    values = [str(row.get(name, "")) for name in columns.split(",")]
    try:
        with open(log_file, "a") as f:
            f.write(",".join(values) + "\n")
    except OSError as error:
        sys.exit(f"{log_file} cannot be written: {error}")


def start_log():
    """Rewrite log.csv without the rows of steps that will be trained again."""
    rows = [columns]
    if log_file.exists():
        for row in log_file.read_text().splitlines()[1:]:
            step = row.split(",")[0]
            complete = step.isdigit() and row.count(",") == columns.count(",")
            if complete and int(step) <= first_step:
                rows.append(row)
    try:
        with tempfile.TemporaryDirectory(dir=out_dir) as folder:  # no other run uses it
            unfinished = Path(folder, "log.tmp")
            unfinished.write_text("\n".join(rows) + "\n")
            os.replace(unfinished, log_file)
    except OSError as error:
        sys.exit(f"{log_file} cannot be written: {error}")


def log_step(step, loss, norm, seconds):
    """Write a row of log.csv and, every log_interval steps, a line of progress."""
    global timed_steps, timed_seconds
    if not math.isfinite(loss):
        sys.exit(f"step {step}: the loss is {loss}; try a lower --learning_rate")
    if step > first_step + 1:  # step counts from 1, and the first one compiles
        timed_steps += 1
        timed_seconds += seconds
    speed = total_batch_size / seconds  # tokens per second
    mfu = flops / seconds / peak  # model flops utilization
    lr = get_lr(step - 1)  # get_lr counts from 0
    append_to_log(
        step=step,
        loss=loss,
        lr=lr,
        grad_norm=norm,
        ms=1000 * seconds,
        tokens_per_second=speed,
        mfu=mfu,
    )
    if step % log_interval == 0 or step == first_step + 10:
        line = f"step {step:5d}/{max_iters} | loss {loss:.4f} | lr {lr:.2e} | "
        line += f"norm {norm:.3f} | {1000 * seconds:.0f} ms | {speed:,.0f} tokens/s"
        if math.isfinite(mfu):
            line += f" | mfu {mfu:.1%}"
        if timed_steps > 0:
            minutes = timed_seconds / timed_steps * (max_iters - step) / 60
            line += f" | {minutes:.1f} min left"
        log(line)


def request_stop(signum, frame):
    """On Ctrl-C, finish the step and save. A second Ctrl-C ends the program at once."""
    global stop_requested
    stop_requested = True
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # from now on it ends the program


# ---------------------------------------------------------------------------- Training
first_step = 0
best_val_loss = math.inf
names = ["last.pt", "best.pt"]
if max_iters == 0:
    names = ["best.pt", "last.pt"]  # for sampling, prefer the best weights
found = [Path(out_dir, name) for name in names if Path(out_dir, name).exists()]
# Checkpoints in out_dir come first, even if init_from names other weights
if found and max_iters > 0 and init_from != "scratch":
    first_step, best_val_loss = load_checkpoint(found[0])
    plan = "continuing" if first_step < max_iters else "nothing left to train"
    log(f"{found[0]}: step {first_step} ({max_iters=}), {plan}")
elif found and init_from == "resume":  # max_iters is 0: only sample
    step, val_loss = load_checkpoint(found[0], weights_only=True)
    log(f"{found[0]}: the weights of step {step}; best val loss {val_loss:.4f}")
elif theirs is not None:
    import_weights(theirs)
elif init_from not in ("resume", "scratch"):
    load_checkpoint(init_from, weights_only=True)
    log(f"{init_from}: starting from its weights")
elif max_iters == 0 and export_dir:
    sys.exit("--export_dir: no weights were loaded; check --out_dir and --init_from")
elif max_iters == 0:
    log("no weights were loaded: this model is untrained")
theirs = None  # frees its memory
if world_size > 1:
    starts = [None] * world_size
    dist.all_gather_object(starts, (first_step, best_val_loss))
    if len(set(starts)) > 1:
        log(f"--out_dir={out_dir} is not the same folder for all processes: {starts}")
        sys.exit(1)

if max_iters > 0 and rank == 0:
    start_log()
timed_steps = 0
timed_seconds = 0.0
stop_requested = False
stop_signals = [signal.SIGINT, signal.SIGTERM]
# SIGHUP: the terminal was closed. Windows does not have it, and nohup makes it ignored
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
    stop_signals.append(signal.SIGHUP)
handlers = {}  # the previous signal handlers, to be restored
for signum in stop_signals:
    handlers[signum] = signal.signal(signum, request_stop)
batch = get_batch(first_step, 0)
for step in range(first_step, max_iters):
    # A seed for each step, so that a resumed run has the same dropout
    torch.manual_seed(hash((seed, step, rank)))
    start = time.perf_counter()
    model.zero_grad()  # otherwise new gradients are added to the old ones
    loss_sum = torch.zeros((), device=device)
    for micro_step in range(accumulation):
        x, y = batch
        last = micro_step == accumulation - 1
        wrapped.require_backward_grad_sync = last  # DDP averages the gradients once
        loss = wrapped(x, y) / accumulation
        # The next batch is read while the GPU computes
        if last:
            batch = get_batch(step + 1, 0)
        else:
            batch = get_batch(step, micro_step + 1)
        scaler.scale(loss).backward()
        loss_sum += loss.detach()
    for opt in optimizers:
        scaler.unscale_(opt)
    max_norm = grad_clip if grad_clip > 0 else math.inf
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    overflow = float16 and not norm.isfinite()
    if not overflow:  # otherwise skip the step; scaler.update() lowers the scale
        for opt in optimizers:
            for group in opt.param_groups:
                group["lr"] = get_lr(step) * group["lr_scale"]
            opt.step()
    scaler.update()
    # The mean over the processes, all of which stop in the same step. Reading it waits
    # for the device to finish
    mean_loss, stops = add_up(loss_sum / world_size, stop_requested)
    done = step + 1
    log_step(done, mean_loss, norm.item(), time.perf_counter() - start)
    # Also after the first step, so that an evaluation that fails does so at once
    if done % eval_interval == 0 or done in (1, max_iters):
        evaluate_and_save(done)
    if stops > 0:
        save_checkpoint("last.pt", done)
        if world_size > 1:
            dist.barrier()  # torchrun ends all processes when the first one exits
        hint = "run the same command again to continue"
        if init_from == "scratch":
            hint = "to continue, add --init_from=resume to the command"
        log(f"saved in {out_dir}; {hint}")
        sys.exit(130)  # the conventional exit code after Ctrl-C
for signum, handler in handlers.items():
    signal.signal(signum, handler)

# ------------------------------------------------------------------------------ Result
if world_size > 1:
    dist.barrier()
    # Its threads must end before Python does, so nothing may hold the process group now
    del wrapped
    dist.destroy_process_group()
if rank > 0:
    sys.exit()  # the rest is for one process alone
if max_iters > 0 and Path(out_dir, "best.pt").exists():
    load_checkpoint(Path(out_dir, "best.pt"), weights_only=True)
try:
    for text in sample(num_samples, max_new_tokens):
        log("-" * 80 + "\n" + text)
except KeyboardInterrupt:
    sys.exit(130)
log("-" * 80)
if export_dir:
    export_weights(export_dir)
    log(f"{export_dir}: GPT2LMHeadModel.from_pretrained can load it")
if max_iters > 0:
    log(f"final val loss {best_val_loss:.4f}")
