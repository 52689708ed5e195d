"""
Step 5 of 5: sparse attention, for contexts whose square is too much.

With T positions, dense attention computes T * T scores. But not every position must look at every
earlier one: it is enough that it can be reached in two hops. Read the positions as a matrix with
rows of about sqrt(T), and let half of the heads look along the rows, half along the columns: that
takes about T * sqrt(T) scores, and two layers up every position has still heard of all before it.
These are the Sparse Transformers of Child et al. 2019 (arXiv 1904.10509); the rest is GPT-2's.

    python sparse_gpt.py                              on a laptop: 1024 bytes of Shakespeare
    torchrun --nproc_per_node=8 sparse_gpt.py         on 8 GPUs: FineWeb-Edu, 8192 tokens at a time
    python sparse_gpt.py --pattern=strided --combine=layers --out_dir=out/strided
    python sparse_gpt.py --pattern=dense --out_dir=out/dense      to compare: as gpt2_train.py
    python sparse_gpt.py --show_pattern --block_size=256 --stride=16 --summary=2

All else is done as with gpt2_train.py. Expect on two cores of an Intel Xeon a final val loss of
about 1.53 after two and three quarter minutes. On GPUs its speed and loss are not measured yet.

Diff against gpt2_train.py
+ pattern, stride, summary: which of the earlier positions are seen
+ combine: how the two hops are shared out, over heads or layers
+ position_dims: a position may be embedded as a row and a column
+ show_pattern: a drawing of the pattern
+ sees: the definition of the patterns
+ attend: attention that computes little else
~ CausalSelfAttention: half of the heads take one hop, half the other
~ GPT: tells each layer its hops; position embeddings of one or two dimensions
~ load_checkpoint: a checkpoint of another pattern does not fit
+ rows, keys: how many keys count for a query
~ flops: goes by them
~ block_size, total_batch_size, max_iters: 8 times the context, in fewer and larger steps
~ out_dir: a folder of its own
"""

import csv
import ctypes
import difflib
import functools
import json
import math
import os
import signal
import subprocess
import sys
import time
import zipfile
from datetime import timedelta
from pathlib import Path

import numpy as np
import tiktoken
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

# ------------------------------------------------------------------------------ Hyperparameters
# torchrun tells each process its number on this node: every process takes its own GPU
device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
data_dir = "data/shakespeare/bytes" if device == "cpu" else "data/fineweb_edu"  # token shards
out_dir = "out/sparse_gpt"  # folder of the checkpoints and of log.csv
export_dir = ""  # if given, the model is written there in the format of HuggingFace's transformers
init_from = "resume"  # or "scratch", or OpenAI's weights: "gpt2", "gpt2-medium", ...
cpu_features = getattr(torch.cpu, "get_capabilities", dict)()
# Matrix products in bfloat16 where the hardware has it: a step takes 0.7 of the time on a CPU
bfloat16 = torch.cuda.is_bf16_supported(False) or cpu_features.get("avx512_bf16", False)
float16 = device != "cpu" and not bfloat16  # the half precision of older GPUs
compile = device != "cpu"  # let torch.compile fuse small kernels into large ones
seed = 1337  # decides the initial weights, the batches and the sample
total_batch_size = 4096 if device == "cpu" else 524_288  # tokens in a step of all processes
batch_size = 0  # B: sequences that a process computes at a time; 0: what fits the memory
block_size = 1024 if device == "cpu" else 8192  # T: tokens in a sequence
pattern = "fixed"  # who sees whom: "fixed" or "strided" (Child et al. 2019), or "dense": all
stride = 32 if device == "cpu" else 128  # l: positions in a row of the matrix; best near sqrt(T)
summary = 4 if device == "cpu" else 8  # c: columns of it that all later rows see, where fixed
combine = "heads"  # half of the heads take each hop, or "layers": every other layer does
position_dims = 0  # embeddings of a position: 1, or 2: of its row and column; 0: 1 if dense, or 2
show_pattern = False  # only draw what one position sees
max_iters = 2000 if device == "cpu" else 19_073  # training steps; 0 only samples
eval_interval = 250  # steps from one evaluation, and checkpoint, to the next
eval_tokens = 10_485_760  # tokens of validation data in an evaluation
hellaswag = device != "cpu"  # evaluate on HellaSwag, too, if data/hellaswag is there
keep_every = 5000  # steps from one checkpoint that is kept to the next, in whole eval_intervals
model = "char" if device == "cpu" else "gpt2"  # a name in sizes, below
n_layer = 0  # blocks; 0: as model says
n_head = 0  # heads of attention, each of n_embd / n_head channels; 0: as model says
n_embd = 0  # C: numbers that describe one position; 0: as model says
dropout = 0.0  # share of activations set to 0 while training
optimizer = "muon"  # for the matrices inside the blocks; "adamw": for everything, as in the lecture
learning_rate = 1.5e-2 if device == "cpu" else 1.8e-3  # of both optimizers, at its peak
warmup_iters = 5 if device == "cpu" else 256  # steps until the peak
weight_decay = 0.1  # of the matrices inside the blocks
momentum = 0.9 if device == "cpu" else 0.95  # of Muon
beta1 = 0.9  # of AdamW: how slowly its mean gradient changes
beta2 = 0.99 if device == "cpu" else 0.95  # and its mean squared gradient
grad_clip = 1.0  # longest gradient, as a norm over all parameters
prompt = ""  # what the samples begin with; empty: as if a new document began
num_samples = 1 if device == "cpu" else 4  # texts to sample
max_new_tokens = 500 if device == "cpu" else 100  # tokens to sample
temperature = 0.8  # below 1: safer, above 1: wilder; 0: always the likeliest
top_k = 0  # sample from the k likeliest only; 0: from all

# --------------------------------------------------------------------------------- Command line
# --name=value sets any of the names above. This section is the same in every script.
sys.stdout.reconfigure(errors="replace")  # a console that lacks a character shows a "?"
config = {k: v for k, v in globals().items() if k[0] != "_" and type(v) in (bool, int, float, str)}
zero_means_none = ("max_iters", "max_new_tokens", "seed", "warmup_iters")
for arg in sys.argv[1:]:
    if arg in ("-h", "--help"):
        print(__doc__.strip(), "\nHyperparameters and their defaults:\n", sep="\n")
        print(*(f"  --{k}={v}" for k, v in config.items()), sep="\n")
        sys.exit()
    name, equals, value = arg.removeprefix("--").partition("=")
    kind = type(config.get(name))
    try:
        value = {"": True, "True": True, "False": False}[value] if kind is bool else kind(value)
    except (KeyError, TypeError, ValueError):
        value = None
    zero_is_fine = kind is float or config.get(name) == 0 or name in zero_means_none
    if name not in config or not arg.startswith("--"):
        near = difflib.get_close_matches(name, config, n=1, cutoff=0)[0]
        error = f"unknown, did you mean --{near}={config[near]}? (--help lists all names)"
    elif value is None or not (equals or kind is bool):
        error = f"needs a value of type {kind.__name__}, for example --{name}={config[name]}"
    elif kind in (int, float) and not (0 < value < math.inf or value == 0 and zero_is_fine):
        error = "must be 0 or more" if zero_is_fine else "must be 1 or more"
    else:
        config[name] = globals()[name] = value
        continue
    print(f"{Path(__file__).name}: {arg}: {error}", file=sys.stderr)
    sys.exit(2)
try:
    torch.empty(0, device=device)
except (AssertionError, RuntimeError) as error:
    sys.exit(f"--device={device}: {str(error).splitlines()[0]}")

# -------------------------------------------------------------------------- Sizes and processes
sizes = {  # n_layer, n_head, n_embd
    "char": (3, 2, 128),  # the model of gpt_char.py on a CPU
    "gpt2": (12, 12, 768),  # 124M parameters; the same as GPT-3 Small
    "gpt2-medium": (24, 16, 1024),  # 350M; the same as GPT-3 Medium
    "gpt2-large": (36, 20, 1280),  # 774M
    "gpt2-xl": (48, 25, 1600),  # 1558M
    "gpt3-large": (24, 16, 1536),  # 760M, with --block_size=2048 (Brown et al. 2020, table 2.1)
    "gpt3-xl": (24, 16, 2048),  # 1.3B, the same
}
pretrained = None  # a model of HuggingFace's transformers
if init_from in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl") or Path(init_from).is_dir():
    try:
        import transformers

        pretrained = transformers.GPT2LMHeadModel.from_pretrained(init_from)
    except ImportError:
        sys.exit(f"--init_from={init_from}: needs transformers; pip install transformers")
    except Exception as error:  # whatever its download or its files lead to
        sys.exit(f"--init_from={init_from}: {str(error).strip().splitlines()[0]}")
    theirs = pretrained.config
    n_layer, n_head, n_embd = theirs.n_layer, theirs.n_head, theirs.n_embd
    if block_size > theirs.n_positions:
        sys.exit(f"--block_size={block_size}: {init_from} has {theirs.n_positions} positions only")
elif init_from not in ("resume", "scratch") and not Path(init_from).is_file():
    sys.exit(
        f"--init_from={init_from}: must be resume, scratch, gpt2, gpt2-medium, gpt2-large, "
        "gpt2-xl, a checkpoint, or a folder with a model of transformers"
    )
if model not in sizes:
    sys.exit(f"--model={model}: must be one of {', '.join(sizes)}")
given = n_layer, n_head, n_embd
n_layer, n_head, n_embd = (size or default for size, default in zip(given, sizes[model]))
config.update(n_layer=n_layer, n_head=n_head, n_embd=n_embd)

# torchrun runs this script in world_size processes at a time; rank is the number of this one
rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
device_type = torch.device(device).type
if device_type == "cuda":
    torch.cuda.set_device(device)
if world_size > 1:
    try:
        dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        sys.exit(f"several processes are started by torchrun: {str(error).splitlines()[0]}")

per_process = total_batch_size // (block_size * world_size)  # sequences in a step
if batch_size == 0:
    # In half precision a layer keeps 34 bytes per channel and token (Korthikanti et al. 2022,
    # equation 2) and the softmax over the vocabulary about 10 per entry; a parameter takes 16
    memory = 2**33  # bytes; 8 GiB on a CPU
    if device_type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    free = 0.8 * memory - 16 * (12 * n_layer * n_embd + 50304) * n_embd
    fits = free / (block_size * (34 * n_layer * n_embd + 10 * 50304))
    divisors = [b for b in range(1, per_process + 1) if per_process % b == 0]
    batch_size = max((b for b in divisors if b <= fits), default=1)
accumulation = per_process // batch_size  # micro-batches in a step
unit = block_size * world_size * (config["batch_size"] or 1)  # an automatic one always divides
if max_iters > 0 and total_batch_size % unit != 0:
    nearest = max(1, round(total_batch_size / unit)) * unit
    sys.exit(
        f"--total_batch_size={total_batch_size}: must be a multiple of batch_size x block_size x "
        f"processes = {unit}; --total_batch_size={nearest} is the nearest"
    )


def log(message):
    """Print a line, from the first process only."""
    if rank == 0:
        print(message, flush=True)


def add_up(*numbers):
    """The sums of numbers over all processes, as a list of floats."""
    sums = torch.tensor(numbers, dtype=torch.float32, device=device)
    if world_size > 1:
        dist.all_reduce(sums)
    return sums.tolist()


# -------------------------------------------------------------------------------------- Pattern
if pattern not in ("fixed", "strided", "dense"):
    sys.exit(f"--pattern={pattern}: must be fixed, strided or dense")
if combine not in ("heads", "layers"):
    sys.exit(f"--combine={combine}: must be heads or layers")
if position_dims > 2:
    sys.exit(f"--position_dims={position_dims}: must be 1 or 2, or 0 to go by --pattern")
position_dims = position_dims or (1 if pattern == "dense" or pretrained else 2)
config.update(position_dims=position_dims)
if (pattern != "dense" or position_dims == 2) and stride > block_size:
    sys.exit(f"--stride={stride}: must be at most --block_size={block_size}")
if pattern == "fixed" and summary > stride:
    sys.exit(f"--summary={summary}: must be at most --stride={stride}")
if pattern != "dense" and combine == "heads" and n_head % 2 != 0:
    sys.exit(f"--n_head={n_head}: must be even to be shared by two hops; or try --combine=layers")
if position_dims == 2 and pretrained or (pattern, position_dims) != ("dense", 1) and export_dir:
    sys.exit("GPT-2 is dense, with --position_dims=1: nothing else goes to or from transformers")


def sees(hop, i, j):
    """Whether position i attends to position j in a hop: A1 or A2 of Child et al. 2019, sec. 4.3.

    Read the positions as a matrix with rows of length l (stride). One hop follows the rows, the
    other the columns: hop 1, then hop 2 carry information from any position to any later one.
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
    """Map a shard of tokens into memory; ends the program where it is not a whole one.

    The format is llm.c's: 256 int32 of header (magic number, version, number of tokens, vocabulary
    size with 0 for GPT-2's 50257), then the tokens as uint16, all little-endian.
    Returns the tokens, an array that is read from the disk on use, and the size of the vocabulary.
    """
    try:
        header = np.fromfile(path, dtype="<i4", count=256)
        if len(header) < 256 or header[0] != 20240520 or header[1] != 1 or header[2] < 1:
            sys.exit(f"{path}: is not a shard of tokens; delete it, and prepare the data again")
        expected, found = 256 * 4 + 2 * int(header[2]), path.stat().st_size
        if found != expected:
            sys.exit(f"{path}: has {found} bytes, not {expected}; delete it, and prepare it again")
        return np.memmap(path, dtype="<u2", mode="r", offset=256 * 4), int(header[3]) or 50257
    except (OSError, ValueError) as error:
        sys.exit(f"{path}: {error}")


hellaswag_file = Path("data/hellaswag/hellaswag_val.jsonl")
if not any(Path(data_dir).glob("*.bin")) and Path(data_dir).parent == Path("data/shakespeare"):
    subprocess.run([sys.executable, Path(__file__).with_name("prepare_shakespeare.py")])
paths, shards, vocab_sizes = {}, {}, set()
for split in ("train", "val"):
    paths[split] = sorted(Path(data_dir).glob(f"*_{split}_*.bin"))
    if not paths[split]:
        sys.exit(f"{data_dir}: has no *_{split}_*.bin; prepare_fineweb.py makes those of the web")
    shards[split], sizes_found = zip(*map(open_shard, paths[split]))
    vocab_sizes.update(sizes_found)
vocab_size = min(vocab_sizes)  # V
if vocab_sizes not in ({256}, {50257}):
    sys.exit(f"{data_dir}: the shards must all be of bytes, or all of GPT-2's tokens")
if pretrained and vocab_size != pretrained.config.vocab_size:
    sys.exit(
        f"--data_dir={data_dir}: has {vocab_size} different tokens and {init_from} "
        f"{pretrained.config.vocab_size}; try --data_dir=data/shakespeare/gpt2"
    )
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


def count_windows(split):
    """How many windows of block_size tokens every shard of a split has.

    "val" includes the last one, which is cut short; "train" leaves space to shift all of them.
    """
    spare = block_size - 1 if split == "val" else 1 - block_size
    return np.array([max(0, len(tokens) - 1 + spare) // block_size for tokens in shards[split]])


window_ends = {split: count_windows(split).cumsum() for split in ("train", "val")}
for split in ("train", "val"):
    if window_ends[split][-1] == 0:
        sys.exit(f"{data_dir}: too short, --block_size={block_size} needs longer shards of {split}")


def read_windows(split, starts):
    """The windows of a split that start at these tokens, counted over its shards' whole windows.

    Returns x, y of shape (B, T): y[b, t] follows x[b, t]. The windows of "val" go to the very end
    of a shard; the last one is filled up with targets of -1, which do not count.
    """
    batch = np.full((len(starts), block_size + 1), -1, dtype=np.int64)
    for row, start in zip(batch, starts):
        shard = np.searchsorted(window_ends[split], start // block_size, side="right")
        start -= block_size * (window_ends[split][shard - 1] if shard > 0 else 0)
        tokens = shards[split][shard][start : start + block_size + 1]
        if tokens.max() >= vocab_size:
            sys.exit(f"{paths[split][shard]}: has a token of {tokens.max()}, but {vocab_size=}")
        row[: len(tokens)] = tokens
    batch = torch.from_numpy(batch)
    if device_type == "cuda":
        batch = batch.pin_memory()  # lets the copy run beside the computation
    batch = batch.to(device, non_blocking=True)
    return batch[:, :-1].clamp(min=0), batch[:, 1:]


@functools.lru_cache(maxsize=2)
def shuffled_windows(epoch):
    """Where the windows of the training data start, in the order in which an epoch visits them.

    Every epoch cuts elsewhere: on Shakespeare's bytes that takes the val loss from 1.508 to 1.491.
    """
    rng = np.random.default_rng((seed, epoch))
    shift = rng.integers(block_size)
    return shift + block_size * rng.permutation(int(window_ends["train"][-1]))


def get_batch(step, micro_step):
    """Sequences x, y of shape (B, T) for one micro-step of this process.

    They depend on nothing but the seed and their place: every epoch visits every window once, a
    step takes the next total_batch_size / block_size windows, and its micro-steps and processes
    share them out. So a resumed run, on whatever number of GPUs, sees what an unbroken one sees.
    """
    i = ((step * accumulation + micro_step) * world_size + rank) * batch_size
    places = [divmod(j, int(window_ends["train"][-1])) for j in range(i, i + batch_size)]
    return read_windows("train", [shuffled_windows(epoch)[place] for epoch, place in places])


# ---------------------------------------------------------------------------------------- Model
if n_embd % n_head != 0:
    sys.exit(f"--n_embd={n_embd}: must be a multiple of --n_head={n_head}")
for name in ("dropout", "momentum", "beta1", "beta2"):
    if config[name] >= 1:
        sys.exit(f"--{name}={config[name]}: must be below 1")


def attend(q, k, v, hop, dropout_p):
    """Attention of every position i to the positions j with sees(hop, i, j) only.

    Few other scores are ever computed: the positions are laid out so that those that see each
    other form small dense blocks. q: (B, nh, T, hs), k and v: the same or, where q is of the last
    position alone, those of all positions. Returns the shape of q.
    """
    B, nh, T, hs = q.shape
    if T < k.shape[2]:  # a step of sampling
        seen = sees(hop, k.shape[2] - 1, torch.arange(k.shape[2], device=k.device))
        weights = (q @ k[:, :, seen].mT / math.sqrt(hs)).softmax(dim=-1)
        return weights @ v[:, :, seen]
    sdpa = functools.partial(F.scaled_dot_product_attention, dropout_p=dropout_p)
    # The matrix of positions; what fills its last row comes too late for any position to see it
    if T % stride:
        q, k, v = (F.pad(x, (0, 0, 0, -T % stride)) for x in (q, k, v))
    q, k, v = (x.reshape(B * nh, -1, stride, hs) for x in (q, k, v))
    i = torch.arange(q.shape[1] * stride, device=q.device).view(-1, stride)
    if pattern == "fixed" and hop == 1:  # every row for itself
        y = sdpa(q, k, v, is_causal=True)
    elif pattern == "fixed":  # all positions on the last columns
        q, k, v = (x.reshape(B, nh, -1, hs) for x in (q, k[:, :, -summary:], v[:, :, -summary:]))
        i, j, first = i.flatten(), i[:, -summary:].flatten(), stride - summary
        y = [torch.zeros_like(q[:, :, :first])]  # the first positions see nothing
        for part in q[:, :, first:].chunk(4, dim=2):  # the early ones need few of the keys
            end = first + part.shape[2]
            n = math.ceil(end / stride) * summary
            mask = sees(2, i[first:end, None], j[:n])
            y.append(sdpa(part, k[:, :, :n], v[:, :, :n], attn_mask=mask))
            first = end
        y = torch.cat(y, dim=2)
    elif hop == 1:  # the first row for itself, all others on themselves and the row above
        y = sdpa(q[:, :1], k[:, :1], v[:, :1], is_causal=True)
        k, v = (torch.cat((x[:, :-1], x[:, 1:]), dim=2) for x in (k, v))
        j = torch.arange(2 * stride, device=q.device)
        mask = sees(1, j[stride:, None], j)  # the same for all of them
        y = torch.cat((y, sdpa(q[:, 1:], k, v, attn_mask=mask)), dim=1)
    else:  # every column for itself
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        y = sdpa(q, k, v, is_causal=True).transpose(1, 2)
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
        # q, k, v: (B, nh, T, hs) each
        q, k, v = self.c_attn(x).view(B, T, 3, n_head, C // n_head).permute(2, 0, 3, 1, 4)
        causal = True
        if self.cache is not None:  # keys and values of the past do not change: compute them once
            causal = not self.cache  # a single query may see all keys
            past_k, past_v = self.cache or (k[:, :, :0], v[:, :, :0])
            k, v = torch.cat((past_k, k), dim=2), torch.cat((past_v, v), dim=2)
            self.cache = [k, v]
        if device == "cpu":  # its kernel is 2.4 times as fast in float32
            q, k, v = q.float(), k.float(), v.float()
        with torch.autocast("cpu", enabled=False):
            # The kernel does what Head did, block by block: no (T, T) matrix is ever stored
            p = dropout if self.training else 0.0
            if pattern == "dense":
                y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=causal)
            else:
                shares = zip(self.hops, *(x.chunk(len(self.hops), dim=1) for x in (q, k, v)))
                y = torch.cat([attend(*qkv, hop, p) for hop, *qkv in shares], dim=1)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    """Two linear layers: what attention has gathered is worked on, position by position."""

    def __init__(self):
        super().__init__()
        self.c_fc = nn.Linear(n_embd, 4 * n_embd)
        self.c_proj = nn.Linear(4 * n_embd, n_embd)

    def forward(self, x):
        """x: (B, T, C). Returns (B, T, C)."""
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    """One layer of the Transformer: positions talk (attention), then each thinks (MLP)."""

    def __init__(self):
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd)
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
        self.padding[vocab_size:] = -math.inf
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.ndim == 2:
                # x is a sum over 2 * n_layer projections: smaller ones keep its variance steady
                std = 0.02 / math.sqrt(2 * n_layer) if name.endswith("c_proj.weight") else 0.02
                nn.init.normal_(p, std=std)

    def forward(self, idx, targets=None):
        """Score every possible next token at every position.

        idx, targets: (B, T) token ids, T at most block_size, targets of -1 do not count.
        Returns logits (B, T, V) and None or, given targets, None and the mean cross-entropy (nats).
        """
        half = torch.bfloat16 if bfloat16 else torch.float16
        with torch.autocast(torch.device(device).type, half, enabled=bfloat16 or float16):
            past = self.h[0].attn.cache[0].shape[2] if self.h[0].attn.cache else 0
            positions = torch.arange(past, past + idx.shape[1], device=idx.device)
            if position_dims == 2:
                where = self.wpe(positions % stride) + self.wpe(stride + positions // stride)
            else:
                where = self.wpe(positions)
            x = self.wte(idx) + where  # (B, T, C)
            x = self.drop(x)
            for block in self.h:
                x = block(x)
            logits = F.linear(self.ln_f(x), self.lm_head.weight, self.padding).float()
        if targets is None:
            return logits[..., :vocab_size], None
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        return None, loss  # logits that nobody asks for need not be stored when compiled


torch.manual_seed(seed)
torch.set_float32_matmul_precision("high")  # where float32 is left on a GPU, use its fast form
if device == "cpu" and sys.platform == "linux":
    # Large tensors reuse memory, instead of having the system clear new pages in every step: half
    # of the time of a step with GPT-2's vocabulary, 0.85 of it with bytes
    for option, value in ((-4, 0), (-1, -1)):  # glibc's M_MMAP_MAX and M_TRIM_THRESHOLD
        ctypes.CDLL(None).mallopt(option, value)
model = GPT().to(device)
n_params = sum(p.numel() for p in model.parameters())
log(
    f"{n_params:,} parameters, {vocab_size} different tokens, {world_size} x {device}, "
    f"{accumulation} micro-batches of {batch_size} x {block_size} tokens"
)
# Both have the weights of model. They take shapes that do not change: training and validation
compiled = torch.compile(model) if compile else model
wrapped = DistributedDataParallel(compiled) if world_size > 1 else compiled


# ----------------------------------------------------------------------------------- Evaluation
@torch.no_grad()
def estimate_loss():
    """Mean loss in nats per token over the first eval_tokens tokens of the validation data.

    The windows are shared out over the processes; their number does not change the result.
    """
    model.eval()  # no dropout
    windows = min(int(window_ends["val"][-1]), math.ceil(eval_tokens / block_size))
    starts = range(0, windows * block_size, block_size)
    total = count = 0
    for i in range(rank * batch_size, windows, world_size * batch_size):
        x, y = read_windows("val", starts[i : i + batch_size])
        _, loss = compiled(x, y)
        tokens = (y >= 0).sum().item()
        total += loss.item() * tokens
        count += tokens
    model.train()
    total, count = add_up(total, count)
    return total / count


@torch.no_grad()
def hellaswag_accuracy():
    """Share of HellaSwag's questions (Zellers et al. 2019) that the model answers right.

    A question is a context and four endings; the model's answer is the ending whose tokens are
    the likeliest on average. The questions are shared out over the processes.
    """
    model.eval()
    lines = hellaswag_file.read_text(encoding="utf-8", errors="replace").strip().split("\n")
    right = count = 0
    for first in range(8 * rank, len(lines), 8 * world_size):  # 8 questions at a time
        rows, labels = [], []
        for number, line in enumerate(lines[first : first + 8], start=first + 1):
            try:
                question = json.loads(line)
                a, b, c, d = (encode(" " + ending) for ending in question["endings"])
                rows += [
                    (encode(question["ctx"]), ending[: block_size - 1]) for ending in (a, b, c, d)
                ]
                labels.append(int(question["label"]))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                sys.exit(f"{hellaswag_file}: line {number} is damaged ({error!r}); get a new copy")
        x = torch.zeros(len(rows), block_size, dtype=torch.long)
        y = torch.full_like(x, -1)
        for i, (context, ending) in enumerate(rows):
            ids = torch.tensor((context + ending)[-block_size - 1 :])
            x[i, : len(ids) - 1] = ids[:-1]
            y[i, len(ids) - 1 - len(ending) : len(ids) - 1] = ids[-len(ending) :]
        longest = int((y >= 0).nonzero()[:, 1].max()) + 1
        x, y = x[:, :longest].to(device), y[:, :longest].to(device)
        logits, _ = model(x)
        losses = F.cross_entropy(logits.transpose(1, 2), y, ignore_index=-1, reduction="none")
        answers = (losses.sum(1) / (y >= 0).sum(1)).view(-1, 4).argmin(1)
        right += (answers.cpu() == torch.tensor(labels)).sum().item()
        count += len(labels)
    model.train()
    right, count = add_up(right, count)
    return right / count


# ------------------------------------------------------------------------------------ Optimizer
# Muon replaces the gradient of a matrix by the nearest orthogonal matrix: every direction in it
# learns equally fast. It is made for the matrices inside the blocks; AdamW takes the embedding,
# the norms and the biases. match_rms_adamw gives both steps of one size, so one rate serves both.
# fused=True updates all parameters in one kernel: 0.4 of AdamW's time on a CPU.
if optimizer not in ("muon", "adamw"):
    sys.exit(f"--optimizer={optimizer}: must be muon or adamw")
matrices = [p for p in model.h.parameters() if p.ndim == 2]
others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
if optimizer == "muon":
    optimizers = [
        torch.optim.Muon(
            matrices, momentum=momentum, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, betas=(beta1, beta2), weight_decay=0.0, fused=True),
    ]
else:
    groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    optimizers = [
        torch.optim.AdamW(groups, betas=(beta1, beta2), weight_decay=weight_decay, fused=True)
    ]
scaler = torch.amp.GradScaler(device_type, enabled=float16)  # Micikevicius et al. 2018, 3.2


def get_lr(step):
    """The learning rate of a step: up to learning_rate in warmup_iters steps, then down to 0."""
    if step < warmup_iters:
        return learning_rate * (step + 1) / warmup_iters
    return learning_rate * (max_iters - step) / (max_iters - warmup_iters)


# ---------------------------------------------------------------------------------- Checkpoints
def lock_out_dir():
    """Keep other runs out of out_dir until this process ends, in whatever way that happens."""
    try:
        Path(out_dir).mkdir(parents=True, exist_ok=True)
        lock = open(Path(out_dir, "lock"), "w")
        try:
            import fcntl

            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # on Windows
            import msvcrt

            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        return lock  # locked as long as it is open
    except (BlockingIOError, PermissionError) as error:
        sys.exit(f"{out_dir}: {error}; is another run using it? Choose another --out_dir")
    except OSError:  # a file system without locks
        return None


def save_checkpoint(file_name, step, best_val_loss):
    """Write all that training needs to go on from here; the file appears complete or not at all."""
    path = Path(out_dir, file_name)
    unfinished = path.with_suffix(".tmp")
    checkpoint = {
        "step": step,
        "best_val_loss": best_val_loss,
        "model": model.state_dict(),
        "optimizers": [opt.state_dict() for opt in optimizers],
        "scaler": scaler.state_dict(),
        "config": config,
        "vocab_size": vocab_size,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(unfinished, "wb") as f:
            torch.save(checkpoint, f)
            f.flush()
            os.fsync(f.fileno())  # on the disk before the name changes
        os.replace(unfinished, path)
    except (OSError, RuntimeError) as error:
        if os.path.exists(unfinished):
            unfinished.unlink()
        sys.exit(f"{path}: {error}; free some space or choose another --out_dir")


def load_checkpoint(path, training=True):
    """Make model and optimizers what they were at save_checkpoint; returns the other two.

    With training=False only the model: the start of another run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # torch.load does not look at its checksums
                raise ValueError("is damaged, its checksums are wrong")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        shape = ("n_layer", "n_head", "n_embd", "block_size")
        shape += ("pattern", "stride", "summary", "combine", "position_dims")
        for name in (*shape, "optimizer") if training else shape:
            if checkpoint["config"].get(name) != config[name]:
                raise ValueError(f"was made with --{name}={checkpoint['config'].get(name)}")
        if checkpoint["vocab_size"] != vocab_size:
            raise ValueError(f"knows {checkpoint['vocab_size']} different tokens, not {vocab_size}")
        model.load_state_dict(checkpoint["model"])
        if training:
            for opt, state in zip(optimizers, checkpoint["optimizers"], strict=True):
                opt.load_state_dict(state)
            scaler.load_state_dict(checkpoint["scaler"])
        return checkpoint["step"], checkpoint["best_val_loss"]
    except Exception as error:  # whatever a damaged or foreign file leads to
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        sys.exit(f"{path}: {reason}. --init_from=scratch starts anew, --out_dir=... elsewhere")


TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # in transformers, against nn.Linear


def import_weights(pretrained):
    """Copy the weights of a GPT2LMHeadModel of transformers into the model."""
    theirs = pretrained.transformer.state_dict()
    with torch.no_grad():
        for name, p in model.named_parameters():
            weight = theirs[name].T if name.endswith(TRANSPOSED) else theirs[name]
            rows = min(len(p), len(weight))  # fewer positions, or more tokens, than theirs
            p[:rows] = weight[:rows]


def export_weights(folder):
    """Write the model so that GPT2LMHeadModel.from_pretrained(folder) of transformers loads it."""
    try:
        import transformers
    except ImportError:
        sys.exit(f"--export_dir={folder}: needs transformers; pip install transformers")
    if Path(folder).is_file():
        sys.exit(f"--export_dir={folder}: is a file; give the name of a folder")
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=vocab_size,
            n_positions=block_size,
            n_embd=n_embd,
            n_layer=n_layer,
            n_head=n_head,
            bos_token_id=vocab_size - 1,
            eos_token_id=vocab_size - 1,
        )
    )
    with torch.no_grad():
        for name, p in theirs.transformer.named_parameters():
            weight = model.get_parameter(name)
            p[:] = weight.T if name.endswith(TRANSPOSED) else weight[: len(p)]  # without padding
    theirs.save_pretrained(folder)


first_step, best_val_loss = 0, math.inf
goes_on = init_from == "resume" or init_from != "scratch" and max_iters > 0  # fine-tuning, too
if goes_on and Path(out_dir, "last.pt").exists():
    first_step, best_val_loss = load_checkpoint(Path(out_dir, "last.pt"))
    log(f"{out_dir}/last.pt: going on from step {first_step}")
elif pretrained is not None:
    import_weights(pretrained)
elif init_from not in ("resume", "scratch"):
    load_checkpoint(init_from, training=False)
    log(f"{init_from}: starting from its weights")

# -------------------------------------------------------------------------------- Training loop
stop = False


def request_stop(signum, frame):
    """On Ctrl-C or SIGTERM finish the step, save and end; the second time end at once."""
    global stop
    stop = True
    signal.signal(signum, signal.SIG_DFL)


def append_to_log(**row):
    """Add a row to out_dir/log.csv; columns without a value stay empty."""
    path = Path(out_dir, "log.csv")
    columns = (
        "step loss learning_rate grad_norm ms tokens_per_second mfu val_loss hellaswag".split()
    )
    try:
        with open(path, "a", newline="") as f:
            writer = csv.DictWriter(f, columns)
            if f.tell() == 0:
                writer.writeheader()
            writer.writerow(row)
    except OSError as error:
        sys.exit(f"{path}: {error}; free some space or choose another --out_dir")


peaks = {  # dense half-precision FLOP/s from the data sheets, by a part of the GPU's name
    "B200": 2250e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
    "3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}
gpu = torch.cuda.get_device_name(device) if device_type == "cuda" else ""
peak = world_size * next((flops for name, flops in peaks.items() if name in gpu), math.nan)
# 6 per parameter (Kaplan et al. 2020, section 2.1) and 12 * T per channel and layer in attention,
# though a position sees but T / 2 others on average: so twice the mean of both hops if sparse
rows = block_size / stride
keys = {"dense": block_size, "strided": stride + rows / 2, "fixed": (stride + rows * summary) / 2}
flops = total_batch_size * (6 * n_params + 12 * n_layer * n_embd * keys[pattern])  # of a step
seconds = 0.0  # of training, without evaluation and checkpoints
stops = 0  # how many processes were asked to stop
if max_iters > 0:
    lock = lock_out_dir() if rank == 0 else None
    signal.signal(signal.SIGINT, request_stop)
    signal.signal(signal.SIGTERM, request_stop)
    batch = get_batch(first_step, 0)
for step in range(first_step, max_iters + 1) if max_iters > 0 else ():
    if step % eval_interval == 0 or step == max_iters:
        val_loss = estimate_loss()
        scores = {"val_loss": val_loss}
        if hellaswag and hellaswag_file.exists():
            scores["hellaswag"] = hellaswag_accuracy()
        log(
            f"step {step:5d}/{max_iters} | " + " | ".join(f"{k} {v:.4f}" for k, v in scores.items())
        )
        if not math.isfinite(val_loss):
            sys.exit(
                f"step {step}: the validation loss is {val_loss}; {out_dir}/last.pt is from "
                "before. Try a lower --learning_rate"
            )
        is_best = val_loss < best_val_loss
        best_val_loss = min(val_loss, best_val_loss)
        if rank == 0:
            if is_best:
                save_checkpoint("best.pt", step, best_val_loss)
            if step % keep_every == 0 and step > 0:
                save_checkpoint(f"step_{step:06d}.pt", step, best_val_loss)
            save_checkpoint("last.pt", step, best_val_loss)
            append_to_log(step=step, **scores)
    if stops > 0:
        if rank == 0:
            save_checkpoint("last.pt", step, best_val_loss)
        log(f"stopped at step {step}, saved in {out_dir}; --init_from=resume goes on from there")
        sys.exit(130)
    if step == max_iters:
        break
    torch.manual_seed(hash((seed, step, rank)))  # dropout depends on nothing that went before
    start = time.perf_counter()
    model.zero_grad()
    loss_sum = torch.zeros((), device=device)
    for micro_step in range(accumulation):
        last = micro_step == accumulation - 1
        wrapped.require_backward_grad_sync = last  # DDP averages gradients once, at the end
        _, loss = wrapped(*batch)
        # The next batch is read and copied while the GPU computes
        batch = get_batch(step + 1, 0) if last else get_batch(step, micro_step + 1)
        scaler.scale(loss / accumulation).backward()
        loss_sum += loss.detach() / accumulation
    for opt in optimizers:
        scaler.unscale_(opt)
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    for opt in optimizers:
        for group in opt.param_groups:
            group["lr"] = get_lr(step)
        scaler.step(opt)
    scaler.update()
    loss, stops = add_up(loss_sum / world_size, stop)  # waits for the device to be done
    ms = 1000 * (time.perf_counter() - start)
    seconds += ms / 1000
    if not math.isfinite(loss):
        sys.exit(
            f"step {step}: the loss is {loss}; {out_dir}/last.pt is from before. Try a lower "
            "--learning_rate"
        )
    left = timedelta(seconds=round(seconds / (step + 1 - first_step) * (max_iters - step - 1)))
    speed = 1000 * total_batch_size / ms  # tokens per second
    mfu = 1000 * flops / ms / peak  # share of the hardware's peak, NaN where that is unknown
    log(
        f"step {step:5d}/{max_iters} | loss {loss:.4f} | lr {get_lr(step):.2e} | "
        f"norm {grad_norm:.3f} | {ms:.0f} ms | {speed:,.0f} tokens/s | "
        f"mfu {'n/a' if math.isnan(mfu) else f'{mfu:.1%}'} | {left} left"
    )
    if rank == 0:
        append_to_log(
            step=step,
            loss=loss,
            learning_rate=get_lr(step),
            grad_norm=grad_norm.item(),
            ms=ms,
            tokens_per_second=speed,
            mfu=mfu,
        )
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.signal(signal.SIGTERM, signal.SIG_DFL)


# ------------------------------------------------------------------------------------- Sampling
@torch.no_grad()
# Entered here, autocast casts the weights once: 24 instead of 94 ms per token of gpt2 on a CPU
@torch.autocast(device_type, torch.bfloat16 if bfloat16 else torch.float16, bfloat16 or float16)
def generate(idx, max_new_tokens, temperature=1.0, top_k=0, use_cache=True):
    """Continue the sequences idx (B, T) by sampling: returns (B, T + max_new_tokens)."""
    model.eval()
    for i in range(max_new_tokens):
        if i == 0 or idx.shape[1] > block_size or not use_cache:
            # The start, and when the window slides: then every token has a new position
            for block in model.h:
                block.attn.cache = [] if use_cache else None
            logits, _ = model(idx[:, -block_size:])  # no position beyond block_size is known
        else:
            logits, _ = model(idx[:, -1:])  # only the new token, the cache has the others
        logits = logits[:, -1]  # the scores of what follows the last token, (B, V)
        if temperature == 0:
            idx_next = logits.argmax(dim=-1, keepdim=True)  # (B, 1)
        else:
            if top_k > 0:
                kth = logits.topk(min(top_k, vocab_size)).values[:, -1:]  # (B, 1)
                logits = logits.masked_fill(logits < kth, -math.inf)
            probs = F.softmax(logits / temperature, dim=-1)
            idx_next = torch.multinomial(probs, num_samples=1)  # (B, 1)
        idx = torch.cat((idx, idx_next), dim=1)
    for block in model.h:
        block.attn.cache = None
    model.train()
    return idx


if rank == 0:
    if best_val_loss < math.inf:  # there is a checkpoint of this model
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
    if best_val_loss < math.inf:
        print(f"final val loss {best_val_loss:.4f}")
if world_size > 1:
    dist.barrier()  # meanwhile gloo's threads let go of their tensors, before Python ends
    dist.destroy_process_group()
