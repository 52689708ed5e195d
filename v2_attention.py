# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.11", "numpy"]
# ///
"""Rung 2 of 5: self-attention, written out.

Each position looks at itself and the characters before it, and learns which matter.

    python v2_attention.py
    python v2_attention.py --n_head=1

Expect a val loss of about 2.15 (bigram.py: 2.49) after 29 s on two cores, and text in
which some words are English. The chapter is docs/v2_attention.md.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

# ---------------------------------------------------------------------------- Settings
device = "cuda" if torch.cuda.is_available() else "cpu"  # "mps" on a Mac
data_dir = "data/shakespeare"  # folder that contains input.txt
seed = 1337  # for the initial weights, the batches and the sample
batch_size = 32  # B: sequences per batch
block_size = 64  # T: tokens per sequence; a token is a character
max_iters = 1000  # training steps; 0: no training, only a sample
eval_interval = 100  # steps between evaluations
n_embd = 128  # C: channels, the numbers that describe a position
n_head = 4  # attention heads, with n_embd / n_head channels each
learning_rate = 5e-3  # how far a step moves the weights
prompt = ""  # what the sample starts with; empty: the first character of the text
max_new_tokens = 500  # length of the sample
temperature = 0.8  # below 1: safer, above 1: wilder, 0: always the likeliest token
top_k = 0  # sample from the k likeliest tokens only; 0: from all

# ------------------------------------------------------------------------ Command line
# Every setting is also a flag, for example --max_iters=2000 --seed=7
parser = argparse.ArgumentParser(usage="%(prog)s [--name=value]", allow_abbrev=False)
for name, value in list(globals().items()):
    kind = type(value)
    if kind in (int, float, str) and not name.startswith("_"):  # settings only
        parser.add_argument(f"--{name}", type=kind, default=value, help="%(default)r")
globals().update(vars(parser.parse_args()))  # overwrites the settings

# -------------------------------------------------------------------------------- Data
input_file = Path(data_dir, "input.txt")
if not input_file.exists() and data_dir == "data/shakespeare":  # the first time
    subprocess.run([sys.executable, Path(__file__).with_name("prepare_shakespeare.py")])
if not input_file.exists():
    sys.exit(f"{input_file} is missing; see python prepare_shakespeare.py --help")
text = input_file.read_text(encoding="utf-8")
chars = sorted(set(text))  # the vocabulary
vocab_size = len(chars)  # V
stoi = {c: i for i, c in enumerate(chars)}  # "string to integer"


def encode(s):
    """Turn a string into a list of token ids, one per character."""
    return [stoi[c] for c in s]


def decode(ids):
    """Turn a list of token ids back into a string."""
    return "".join(chars[i] for i in ids)


n = int(0.9 * len(text))  # the first 90% is for training, the rest for validation
train_data = torch.tensor(encode(text[:n]))
val_data = torch.tensor(encode(text[n:]))


def get_batch():
    """A random batch: inputs x (B, T), and targets y (B, T), each one token later."""
    starts = torch.randint(len(train_data) - block_size, (batch_size,))
    x = torch.stack([train_data[i : i + block_size] for i in starts])
    y = torch.stack([train_data[i + 1 : i + 1 + block_size] for i in starts])
    return x.to(device), y.to(device)


# ------------------------------------------------------------------------------- Model
class Head(nn.Module):
    """One head of causal self-attention: a weighted average of the past."""

    def __init__(self, head_size):
        super().__init__()
        self.query = nn.Linear(n_embd, head_size)  # what a position is looking for
        self.key = nn.Linear(n_embd, head_size)  # what it can be found by
        self.value = nn.Linear(n_embd, head_size)  # what it passes on if chosen
        # A constant, not a parameter. Row i: True up to column i
        past = torch.ones(block_size, block_size).tril().bool()
        self.register_buffer("past", past)

    def forward(self, x):
        """x: (B, T, C). Returns (B, T, hs), where hs is head_size."""
        T = x.shape[1]
        q, k, v = self.query(x), self.key(x), self.value(x)  # (B, T, hs) each
        # Dividing by sqrt(hs) brings the variance of a dot product back to 1
        scores = q @ k.transpose(1, 2) / k.shape[-1] ** 0.5  # (B, T, T)
        scores = scores.masked_fill(~self.past[:T, :T], -torch.inf)  # hide the future
        weights = F.softmax(scores, dim=-1)  # each row sums to 1
        return weights @ v  # (B, T, hs)


class MultiHeadAttention(nn.Module):
    """Several heads side by side; each can look for something else."""

    def __init__(self):
        super().__init__()
        head_size = n_embd // n_head
        self.heads = nn.ModuleList([Head(head_size) for _ in range(n_head)])
        self.c_proj = nn.Linear(n_embd, n_embd)  # mixes what the heads found

    def forward(self, x):
        """x: (B, T, C). Returns (B, T, C)."""
        x = torch.cat([head(x) for head in self.heads], dim=-1)
        return self.c_proj(x)


class AttentionLanguageModel(nn.Module):
    """Embed tokens and positions, attend once, and turn the result into logits."""

    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, n_embd)  # which token it is
        self.wpe = nn.Embedding(block_size, n_embd)  # where it stands
        self.attn = MultiHeadAttention()
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)

    def logits(self, idx):
        """idx: (B, T). Returns (B, T, V): for each token, logits of the next one."""
        positions = torch.arange(idx.shape[1], device=idx.device)  # 0, 1, ..., T - 1
        x = self.wte(idx) + self.wpe(positions)  # (B, T, C)
        x = self.attn(x)
        return self.lm_head(x)

    def forward(self, x, y):
        """The loss: the mean of -ln P(y given x), in nats. x and y: (B, T)."""
        logits = self.logits(x).flatten(0, 1)  # (B * T, V)
        return F.cross_entropy(logits, y.flatten())


# ---------------------------------------------------------------------------- Sampling
@torch.no_grad()  # nothing is learned here, so no gradients are needed
def generate(idx, max_new_tokens, temperature=1.0, top_k=0):
    """Continue the sequences idx (B, T). Returns (B, T + max_new_tokens)."""
    for _ in range(max_new_tokens):
        logits = model.logits(idx[:, -block_size:])  # (B, T, V), T at most block_size
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
    return idx


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
if n_embd % n_head != 0:
    parser.error(f"--n_embd={n_embd} must be divisible by --n_head={n_head}")
if not 0 < block_size < len(val_data):
    parser.error(f"--block_size must be from 1 to {len(val_data) - 1} for {input_file}")
if not set(prompt) <= set(chars):
    parser.error(f"--prompt contains a character that {input_file} does not contain")
if temperature != 0 and not 0.01 <= temperature <= 100:  # logits could overflow
    parser.error(f"--temperature={temperature} must be 0, or between 0.01 and 100")

# ------------------------------------------------------------------------------- Start
torch.manual_seed(seed)
model = AttentionLanguageModel().to(device)
n_params = sum(p.numel() for p in model.parameters())
print(f"{n_params:,} parameters, {vocab_size} different tokens, device {device}")

# --------------------------------------------------------------------------- Optimizer
# AdamW is gradient descent with a separate step size for each weight
optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)

# ---------------------------------------------------------------------------- Training
for step in range(max_iters):
    x, y = get_batch()
    loss = model(x, y)
    if step % eval_interval == 0:
        val_loss = estimate_loss()
        print(f"step {step:5d} | train loss {loss:.4f} | val loss {val_loss:.4f}")
    model.zero_grad()  # otherwise new gradients are added to the old ones
    loss.backward()  # computes the gradient: how the loss changes with each weight
    optimizer.step()

# ------------------------------------------------------------------------------ Result
torch.manual_seed(seed)  # so that the sample does not depend on what was drawn before
idx = torch.tensor([encode(prompt or text[0])], device=device)  # (1, T)
sample = decode(generate(idx, max_new_tokens, temperature, top_k)[0].tolist())
print("-" * 80, sample, "-" * 80, sep="\n")
print(f"final val loss {estimate_loss():.4f}")
