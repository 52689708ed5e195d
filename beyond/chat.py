# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.11", "numpy"]
# ///
"""From GPT-2 to a model of today: a small Llama and its tokenizer.

    python beyond/chat.py                        train, or continue an interrupted run
    python beyond/chat.py --prompt="ROMEO:"      after training: only print a sample
    python beyond/chat.py --init_from=scratch    start over, and overwrite checkpoints

The chapter is docs/chat.md.
"""

import argparse
import functools
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import regex
import torch
import torch.nn as nn
import torch.nn.functional as F

# ---------------------------------------------------------------------------- Settings
device = "cuda" if torch.cuda.is_available() else "cpu"  # "mps" on a Mac
data_dir = "data/shakespeare"  # folder that contains input.txt
out_dir = "out/chat"  # folder for the checkpoints best.pt and last.pt
init_from = "resume"  # from the checkpoints in out_dir, if any; "scratch": start over
seed = 1337  # for the initial weights, the batches and the sample
batch_size = 12  # B: sequences per batch
block_size = 128  # T: tokens per sequence
n_merges = 768  # pairs that the tokenizer merges; 0: a token is a byte
max_iters = 1500  # training steps; 0: no training, only a sample
log_interval = 25  # steps between lines of progress
eval_interval = 500  # steps between evaluations
n_layer = 5  # blocks
n_embd = 128  # C: channels, the numbers that describe a position
n_hidden = 384  # channels inside the MLP
n_head = 2  # attention heads, with n_embd / n_head channels each
n_kv_head = 1  # heads of keys and values; n_head / n_kv_head query heads share one
rope_base = 10000.0  # the slowest pair of channels turns once in about 2 pi * this
qk_norm = True  # RMSNorm for queries and keys
norm_eps = 1e-5  # keeps RMSNorm from dividing by 0
learning_rate = 1.5e-2  # peak learning rate
adamw_share = 0.15  # AdamW's learning rate, as a fraction of Muon's
warmup_iters = 5  # steps until the learning rate reaches its peak
weight_decay = 0.1  # pulls the matrices of the blocks towards 0
momentum = 0.9  # Muon: decay rate of the running mean of gradients
beta1 = 0.9  # AdamW: decay rate of the running mean of gradients
beta2 = 0.99  # AdamW: the same for squared gradients
grad_clip = 1.0  # maximum norm of the gradient
# Half precision for matrix products, if the CPU has instructions for it
bfloat16 = torch.cpu.get_capabilities().get("avx512_bf16", False)
prompt = ""  # what the sample starts with; empty: the first character of the text
max_new_tokens = 500  # length of the sample
temperature = 0.8  # below 1: safer, above 1: wilder, 0: always the likeliest token
top_k = 0  # sample from the k likeliest tokens only; 0: from all

# ------------------------------------------------------------------------ Command line
# Every setting is also a flag, for example --max_iters=2000 --seed=7 --no-bfloat16
parser = argparse.ArgumentParser(usage="%(prog)s [--name=value]", allow_abbrev=False)
for name, value in list(globals().items()):
    kind = type(value)
    if kind is bool:
        switch = argparse.BooleanOptionalAction  # accepts --name and --no-name
        parser.add_argument(
            f"--{name}", action=switch, default=value, help="%(default)r"
        )
    elif kind in (int, float, str) and not name.startswith("_"):
        parser.add_argument(f"--{name}", type=kind, default=value, help="%(default)r")
config = vars(parser.parse_args())
globals().update(config)  # overwrites the settings

# -------------------------------------------------------------------------------- Data
input_file = Path(data_dir, "input.txt")
if not input_file.exists() and data_dir == "data/shakespeare":  # the first time
    prepare = Path(__file__).parent.with_name("prepare_shakespeare.py")
    subprocess.run([sys.executable, prepare])
if not input_file.exists():
    sys.exit(f"{input_file} is missing; see python prepare_shakespeare.py --help")
text = input_file.read_text(encoding="utf-8")
n = int(0.9 * len(text))  # the first 90% is for training, the rest for validation


# --------------------------------------------------------------------------- Tokenizer
# No token crosses the border of a word: a word has its space in front, digits stand
# alone, the rest is punctuation or space
word_pattern = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+"
    r"|\s+(?![^\s\p{N}])|\s+"
)


def merge(parts, pair):
    """Join neighbours wherever they are this pair."""
    merged = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def learn_merges(text):
    """The most frequent pair of tokens, again and again (Sennrich et al. 2016)."""
    words = Counter(word_pattern.findall(text))
    parts = {word: [bytes([b]) for b in word.encode()] for word in words}
    counts = Counter()  # how often the text contains a pair
    where = defaultdict(set)  # the words that contain it

    def count(word, times):
        for pair in zip(parts[word], parts[word][1:]):
            counts[pair] += times
            where[pair].add(word)

    for word in words:
        count(word, words[word])
    merges = []
    while len(merges) < n_merges:
        best = max(counts, key=lambda pair: (counts[pair], pair), default=None)
        if best is None or counts[best] < 2:
            break  # a pair that occurs once is not worth a token
        for word in where.pop(best):
            count(word, -words[word])
            parts[word] = merge(parts[word], best)
            count(word, words[word])
        merges.append(best)
    return merges


merges = learn_merges(text[:n])
ranks = {pair: rank for rank, pair in enumerate(merges)}
vocabulary = [bytes([b]) for b in range(256)] + [a + b for a, b in merges]
vocab_size = len(vocabulary)  # V
token_ids = {token: i for i, token in enumerate(vocabulary)}


@functools.cache  # the same words come again and again
def encode_word(word):
    """Merge pairs in the order in which they were learned."""
    parts = [bytes([b]) for b in word.encode()]
    while len(parts) > 1:
        first = min(zip(parts, parts[1:]), key=lambda pair: ranks.get(pair, math.inf))
        if first not in ranks:
            break
        parts = merge(parts, first)
    return [token_ids[part] for part in parts]


def encode(s):
    """Turn a string into a list of token ids."""
    ids = []
    for word in word_pattern.findall(s):
        ids += encode_word(word)
    return ids


def decode(ids):
    """Turn a list of token ids back into a string."""
    return b"".join(vocabulary[i] for i in ids).decode(errors="replace")


train_data = torch.tensor(encode(text[:n]))
val_data = torch.tensor(encode(text[n:]))
bytes_per_token = len(text[n:].encode()) / len(val_data)


def get_batch(step):
    """Inputs x and targets y (B, T) of a step.

    An epoch cuts the text into windows of T tokens and visits them in random order.
    """
    windows = len(train_data) // block_size - 1  # one fewer: room for the shift below
    batches = max(1, windows // batch_size)  # per epoch
    epoch, batch = divmod(step, batches)
    rng = np.random.default_rng((seed, epoch))  # the same in all steps of an epoch
    shift = rng.integers(block_size)  # each epoch cuts the text at different places
    starts = shift + block_size * rng.permutation(windows)
    starts = starts[batch * batch_size : (batch + 1) * batch_size]
    x = torch.stack([train_data[i : i + block_size] for i in starts])
    y = torch.stack([train_data[i + 1 : i + 1 + block_size] for i in starts])
    return x.to(device), y.to(device)


# ------------------------------------------------------------------------------- Model
# Inside autocast, matrix products are computed in half precision
device_type = "cuda" if "cuda" in device else "cpu"
autocast = torch.autocast(device_type, torch.bfloat16, enabled=bfloat16)
if device == "cpu" and bfloat16:
    # Here the fused "flash" kernel is slower than plain matrix products whose sums are
    # kept in bfloat16. (In spite of "cuda", these settings are for CPUs, too)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)


class RMSNorm(nn.Module):
    """Scale every position to a root mean square of 1 (Zhang and Sennrich 2019)."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        """x: (..., channels). Returns the same shape."""
        x = x.float()  # squares in half precision would be too coarse
        mean_square = x.square().mean(dim=-1, keepdim=True)
        return x * torch.rsqrt(mean_square + norm_eps) * self.weight


def rotary_table():
    """cos and sin (block_size, hs) of the angles by which each position rotates."""
    hs = n_embd // n_head  # channels per head
    exponents = torch.arange(0, hs, 2) / hs  # one for each pair of channels
    speeds = 1.0 / rope_base**exponents  # radians per position
    angles = torch.outer(torch.arange(block_size), speeds)  # (block_size, hs / 2)
    angles = torch.cat((angles, angles), dim=1)  # for both channels of a pair
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Rotate each pair of channels i, i + hs / 2 of x (B, heads, T, hs)."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)  # by 90 degrees
    return x * cos + turned * sin


class CausalSelfAttention(nn.Module):
    """What MultiHeadAttention of rung 2 computes, for all heads at once."""

    def __init__(self):
        super().__init__()
        heads = n_head + 2 * n_kv_head  # of queries, keys and values
        self.c_attn = nn.Linear(n_embd, heads * n_embd // n_head, bias=False)
        self.c_proj = nn.Linear(n_embd, n_embd, bias=False)  # mixes the heads
        if qk_norm:
            self.q_norm = RMSNorm(n_embd // n_head)
            self.k_norm = RMSNorm(n_embd // n_head)

    def forward(self, x, cos, sin, cache, start):
        """x: (B, T, C), cos and sin: (T, hs). Returns (B, T, C)."""
        B, T, C = x.shape
        hs = C // n_head  # channels per head
        heads = self.c_attn(x).view(B, T, -1, hs).transpose(1, 2)  # (B, heads, T, hs)
        q, k, v = heads.split([n_head, n_kv_head, n_kv_head], dim=1)
        if qk_norm:
            q = self.q_norm(q)
            k = self.k_norm(k)
        q = rotate(q, cos, sin)
        k = rotate(k, cos, sin)
        mask = None
        if cache is not None:
            cache[0, :, :, start : start + T] = k
            cache[1, :, :, start : start + T] = v
            k, v = cache[:, :, :, : start + T]  # those of earlier positions, too
        if start > 0:  # position t of x may look at all up to start + t
            mask = torch.ones(T, start + T, dtype=torch.bool, device=x.device)
            mask = mask.tril(start)
        # softmax(q k^T / sqrt(hs)) v, with the future hidden, as in Head of rung 2
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        y = y.transpose(1, 2).reshape(B, T, C)  # the heads side by side again
        return self.c_proj(y)


class MLP(nn.Module):
    """SwiGLU: a linear layer, gated by a second one, then a third (Shazeer 2020)."""

    def __init__(self):
        super().__init__()
        self.c_fc = nn.Linear(n_embd, 2 * n_hidden, bias=False)  # gate and value
        self.c_proj = nn.Linear(n_hidden, n_embd, bias=False)

    def forward(self, x):
        """x: (B, T, C). Returns (B, T, C)."""
        gate, up = self.c_fc(x).chunk(2, dim=-1)  # (B, T, n_hidden) each
        return self.c_proj(F.silu(gate) * up)


class Block(nn.Module):
    """One layer: positions communicate (attention), then each one computes (MLP)."""

    def __init__(self):
        super().__init__()
        self.ln_1 = RMSNorm(n_embd)
        self.attn = CausalSelfAttention()
        self.ln_2 = RMSNorm(n_embd)
        self.mlp = MLP()

    def forward(self, x, cos, sin, cache, start):
        """x: (B, T, C), cos and sin: (T, hs). Returns (B, T, C)."""
        # Residual connections: adding to x keeps a direct path for the gradient
        x = x + self.attn(self.ln_1(x), cos, sin, cache, start)
        x = x + self.mlp(self.ln_2(x))
        return x


class GPT(nn.Module):
    """The decoder-only Transformer of GPT-2 (Radford et al. 2019, section 2.3)."""

    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, n_embd)  # which token it is
        cos, sin = rotary_table()
        self.register_buffer("cos", cos, persistent=False)  # moves with the model,
        self.register_buffer("sin", sin, persistent=False)  # but is not saved
        self.h = nn.ModuleList([Block() for _ in range(n_layer)])  # GPT-2's name
        self.ln_f = RMSNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight  # tied: one matrix for both
        for name, p in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.zeros_(p)  # at first, the blocks add nothing
            elif p.ndim == 2:
                nn.init.normal_(p, std=0.02)

    def logits(self, idx, cache=None, start=0):
        """idx: (B, T). Returns (B, T, V): for each token, logits of the next one.

        The first token stands at position start; the cache knows those before it.
        """
        if cache is None:
            cache = [None] * n_layer
        x = self.wte(idx)  # (B, T, C)
        end = start + idx.shape[1]
        cos, sin = self.cos[start:end], self.sin[start:end]
        for block, block_cache in zip(self.h, cache):
            x = block(x, cos, sin, block_cache, start)
        return self.lm_head(self.ln_f(x)).float()  # back to single precision

    @autocast
    def forward(self, x, y):
        """The loss: the mean of -ln P(y given x), in nats. x and y: (B, T)."""
        logits = self.logits(x).flatten(0, 1)  # (B * T, V)
        return F.cross_entropy(logits, y.flatten())


# ---------------------------------------------------------------------------- Sampling
@torch.no_grad()  # nothing is learned here, so no gradients are needed
def generate(ids, max_new_tokens, temperature=1.0, top_k=0):
    """Yield the tokens that follow the tokens ids, one after the other."""
    size = (n_layer, 2, 1, n_kv_head, block_size, n_embd // n_head)
    cache = torch.zeros(size, device=device)  # keys and values
    start = 0  # how many positions the cache knows
    for _ in range(max_new_tokens):
        if len(ids) > block_size:  # the cache is full: keep the later half
            ids = ids[-max(1, block_size // 2) :]
            start = 0
        idx = torch.tensor([ids[start:]], device=device)  # (1, T): only what is new
        logits = model.logits(idx, cache, start)[0, -1]  # (V): after the last token
        start = len(ids)
        if top_k > 0:
            kth = logits.topk(min(top_k, vocab_size)).values[-1]  # the k-th largest
            logits[logits < kth] = -torch.inf
        if temperature > 0:
            probs = F.softmax(logits / temperature, dim=-1)
            token = torch.multinomial(probs, num_samples=1).item()
        else:
            token = logits.argmax().item()
        ids = ids + [token]
        yield token


def sample(max_new_tokens):
    """The prompt followed by max_new_tokens generated tokens, as a string."""
    torch.manual_seed(seed)  # the same random numbers every time
    ids = encode(prompt or text[0])
    return decode(ids + list(generate(ids, max_new_tokens, temperature, top_k)))


# -------------------------------------------------------------------------- Evaluation
@torch.no_grad()
def estimate_loss():
    """Mean loss over the validation data, cut into windows of T tokens."""
    n = (len(val_data) - 1) // block_size * block_size  # whole windows; y needs 1 more
    x = val_data[:n].view(-1, block_size)
    y = val_data[1 : n + 1].view(-1, block_size)
    total = 0.0
    for xb, yb in zip(x.split(batch_size), y.split(batch_size)):
        loss = model(xb.to(device), yb.to(device)).item()
        total += loss * len(xb)  # the last batch can be smaller
    return total / len(x)


# ------------------------------------------------------------------------------ Checks
for name in "batch_size log_interval eval_interval n_layer n_embd n_head".split():
    if config[name] < 1:
        parser.error(f"--{name}={config[name]} must be at least 1")
for name in ["n_hidden", "n_kv_head"]:
    if config[name] < 1:
        parser.error(f"--{name}={config[name]} must be at least 1")
for name in "n_merges max_iters warmup_iters max_new_tokens top_k seed".split():
    if config[name] < 0:
        parser.error(f"--{name}={config[name]} must be at least 0")
for name in "learning_rate adamw_share weight_decay grad_clip".split():
    if not 0 <= config[name] < math.inf:
        parser.error(f"--{name}={config[name]} must be a finite number, 0 or more")
for name in "momentum beta1 beta2".split():
    if not 0 <= config[name] < 1:
        parser.error(f"--{name}={config[name]} must be at least 0 and less than 1")
if init_from not in ("resume", "scratch"):
    parser.error(f"--init_from={init_from} must be resume or scratch")
if n_embd % n_head != 0:
    parser.error(f"--n_embd={n_embd} must be divisible by --n_head={n_head}")
if n_head % n_kv_head != 0:
    parser.error(f"--n_head={n_head} must be divisible by --n_kv_head={n_kv_head}")
if n_embd // n_head % 2 != 0:
    parser.error(f"--n_embd={n_embd} / --n_head={n_head} must be even")
if not 0 < block_size < len(val_data):
    parser.error(f"--block_size must be from 1 to {len(val_data) - 1} for {input_file}")
if temperature != 0 and not 0.01 <= temperature <= 100:  # logits could overflow
    parser.error(f"--temperature={temperature} must be 0, or between 0.01 and 100")
try:
    torch.zeros(1, device=device).item()
except Exception as error:  # PyTorch has many ways to say that there is no such device
    parser.error(f"--device={device}: {error}".split("\n")[0])
try:  # find out now if out_dir is writable, not at the first checkpoint
    if max_iters > 0:
        Path(out_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out_dir) as f:
            f.write(b"x")
except OSError as error:
    parser.error(f"--out_dir={out_dir} is not writable: {error.strerror}")

# ------------------------------------------------------------------------------- Start
if hasattr(sys.stdout, "reconfigure"):  # in a notebook it has no such method
    sys.stdout.reconfigure(errors="replace")  # print "?" for what a console cannot show
torch.manual_seed(seed)
model = GPT().to(device)
n_params = sum(p.numel() for p in model.parameters())
print(f"{n_params:,} parameters, {vocab_size} different tokens, device {device}")


# --------------------------------------------------------------------------- Optimizer
class Muon(torch.optim.Optimizer):
    """Gradient descent with momentum, for matrices (Jordan et al. 2024).

    The singular values of an update say how far it moves the matrix in each direction.
    In plain gradient descent a few large ones dominate; Muon sets all to about 1. Each
    matrix is first cut into pieces of n_embd rows: c_attn into query, key and value.
    """

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            grads = [p.grad.unflatten(0, (-1, n_embd)) for p in group["params"]]
            x = torch.cat(grads)  # (pieces of all matrices, n_embd, columns)
            # PyTorch keeps a state per parameter; the first one holds it for the group
            state = self.state[group["params"][0]]
            if "mean" not in state:
                state["mean"] = torch.zeros_like(x)
            mean = state["mean"].lerp_(x, 1 - momentum)  # a running mean of x
            # Nesterov: (1 - momentum) * x + momentum * mean, so x counts a second time
            x = x.lerp_(mean, momentum)
            x = x.to(torch.bfloat16 if bfloat16 else torch.float32)
            # Divided by its norm, x has singular values of at most 1. Five rounds of
            # Newton-Schulz then bring all close to 1: a round makes a singular value s
            # 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5, and keeps the directions
            x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
            for _ in range(5):
                a = x @ x.mT
                # b = -4.7750 * a + 2.0315 * a @ a, and x = 3.4445 * x + b @ x
                b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
                x = torch.baddbmm(x, b, x, beta=3.4445)
            updates = x.split([len(grad) for grad in grads])
            for p, update in zip(group["params"], updates):
                p.mul_(1 - group["lr"] * weight_decay)
                # The update's rows have length 1, so its entries are about
                # 1 / sqrt(columns). Make them about 0.2, as they usually are with AdamW
                # (Liu et al. 2025, equation 4)
                step_size = group["lr"] * 0.2 * p.shape[1] ** 0.5
                p.sub_(update.flatten(0, 1), alpha=step_size)


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
# Muon stacks the matrices of a group, so they need the same number of columns
narrow = {"params": [p for p in matrices if p.shape[1] == n_embd], "lr_scale": 1.0}
wide = {"params": [p for p in matrices if p.shape[1] != n_embd], "lr_scale": 1.0}
rest = {"params": others, "lr_scale": adamw_share, "weight_decay": 0.0}
adamw = torch.optim.AdamW([rest], betas=(beta1, beta2), fused=True)
optimizers = [Muon([narrow, wide], defaults={}), adamw]


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
    "n_kv_head": n_kv_head,
    "n_embd": n_embd,
    "n_hidden": n_hidden,
    "block_size": block_size,
    "n_merges": n_merges,
    "data": zlib.crc32(text.encode()),  # a fingerprint of the text
}


def save_checkpoint(name, step):
    """Save everything needed to continue, and never leave a half-written file."""
    checkpoint = {"identity": identity, "step": step, "best_val_loss": best_val_loss}
    checkpoint["model"] = model.state_dict()
    checkpoint["optimizers"] = [opt.state_dict() for opt in optimizers]
    try:
        with tempfile.TemporaryDirectory(dir=out_dir) as folder:  # no other run uses it
            unfinished = Path(folder, name).with_suffix(".tmp")
            with open(unfinished, "wb") as f:
                torch.save(checkpoint, f)
            os.replace(unfinished, Path(out_dir, name))  # all at once
    except (OSError, RuntimeError) as error:  # the disk is full, for example
        sys.exit(f"{out_dir}/{name} could not be written: {error}")


def load_checkpoint(name):
    """Restore model and optimizers. Returns the step and the best val loss so far."""
    path = Path(out_dir, name)
    try:
        if zipfile.ZipFile(path).testzip() is not None:  # torch.save writes zip files
            raise ValueError("the file is damaged (wrong checksum)")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        for key, value in identity.items():
            found = checkpoint["identity"][key]
            if found != value:
                raise ValueError(f"saved by a run with {key}={found}, not {value}")
        model.load_state_dict(checkpoint["model"])
        for opt, state in zip(optimizers, checkpoint["optimizers"]):
            for group, saved in zip(opt.param_groups, state["param_groups"]):
                saved.update(group, params=saved["params"])  # this run's settings
            opt.load_state_dict(state)
        return checkpoint["step"], checkpoint["best_val_loss"]
    except Exception as error:  # a damaged file can raise almost anything
        reason = f"{type(error).__name__}: {error}".split("\n")[0].split(". ")[0]
        sys.exit(f"{path}: {reason}; use another --out_dir")


def evaluate_and_save(step):
    """Print the val loss and a sample. Save last.pt, and best.pt if it is the best."""
    global best_val_loss
    val_loss = estimate_loss()
    per_byte = f"{val_loss / bytes_per_token:.4f} per byte"
    print(f"step {step:5d}/{max_iters} | val loss {val_loss:.4f} | {per_byte}")
    if not math.isfinite(val_loss):
        sys.exit("the val loss is not finite; try a lower --learning_rate")
    print(sample(80), flush=True)
    if val_loss < best_val_loss:
        best_val_loss = val_loss
        save_checkpoint("best.pt", step)
    save_checkpoint("last.pt", step)


def print_progress(done, loss):
    """Print the loss, the time per step, and how long the rest will take."""
    seconds = (time.perf_counter() - start) / (done - first_step)
    minutes = seconds * (max_iters - done) / 60
    speed = f"{1000 * seconds:.0f} ms | {minutes:.1f} min left"
    print(f"step {done:5d}/{max_iters} | loss {loss:.4f} | {speed}", flush=True)


def request_stop(signum, frame):
    """On Ctrl-C, finish the step and save. A second Ctrl-C ends the program at once."""
    global stop_requested
    stop_requested = True
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # from now on it ends the program


# ---------------------------------------------------------------------------- Training
first_step = 0
best_val_loss = math.inf
if init_from == "resume":
    for name in ["last.pt", "best.pt"]:  # best.pt only if there is no last.pt
        if Path(out_dir, name).exists():
            first_step, best_val_loss = load_checkpoint(name)
            print(f"{out_dir}/{name}: continuing from step {first_step}")
            break

stop_requested = False
handlers = {}  # the previous signal handlers, to be restored
for signum in [signal.SIGINT, signal.SIGTERM]:
    handlers[signum] = signal.signal(signum, request_stop)
start = time.perf_counter()
for step in range(first_step, max_iters):
    x, y = get_batch(step)
    loss = model(x, y)
    model.zero_grad()  # otherwise new gradients are added to the old ones
    loss.backward()  # computes the gradient: how the loss changes with each weight
    nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    for opt in optimizers:
        for group in opt.param_groups:
            group["lr"] = get_lr(step) * group["lr_scale"]
        opt.step()
    done = step + 1
    if done % log_interval == 0 or done == first_step + 10:  # + 10: an early estimate
        print_progress(done, loss)
    if done % eval_interval == 0 or done == max_iters:
        evaluate_and_save(done)
    if stop_requested:
        save_checkpoint("last.pt", done)
        hint = "run the same command again to continue"
        if init_from == "scratch":
            hint = "to continue, add --init_from=resume to the command"
        print(f"saved in {out_dir}; {hint}")
        sys.exit(130)  # the conventional exit code after Ctrl-C
for signum, handler in handlers.items():
    signal.signal(signum, handler)

# ------------------------------------------------------------------------------ Result
if best_val_loss < math.inf:  # after an evaluation, there is a best.pt
    load_checkpoint("best.pt")
elif first_step == 0:  # max_iters is 0, and no checkpoint was loaded
    print("this model is untrained")
val_loss = estimate_loss()
if not math.isfinite(val_loss):
    sys.exit("the val loss is not finite; try a lower --learning_rate")
try:
    print("-" * 80, sample(max_new_tokens), "-" * 80, sep="\n")
except KeyboardInterrupt:
    sys.exit(130)
print(f"final val loss {val_loss:.4f} | {val_loss / bytes_per_token:.4f} per byte")
