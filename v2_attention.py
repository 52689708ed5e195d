# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.9", "numpy"]
# ///
"""Step 2 of 5: self-attention, written out.

To guess better than the bigram model, a position must know what came before it. Here it takes an
average over the past, and computes from the characters themselves which of them weigh how much:
that is attention. docs/v2_attention.md climbs from bigram.py to this file, one idea at a time.

    python v2_attention.py               several heads
    python v2_attention.py --n_head=1    one head

Expect a val loss of about 2.15 (bigram.py: 2.49) after 19 s on two cores, and text whose words
look like words.

Diff against bigram.py
+ Head: one head of attention
+ MultiHeadAttention: several of them, and a projection
+ AttentionLanguageModel: token + position embedding, attention, linear layer
- BigramLanguageModel: the table is gone
~ generate: crops the context to the block_size positions that the model knows
~ model: is the new class
+ n_embd: width of the embeddings
+ n_head: number of heads
~ learning_rate: more layers want smaller steps than a table
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

# ------------------------------------------------------------------------------ Hyperparameters
device = "cuda" if torch.cuda.is_available() else "cpu"  # where to compute; "mps" on a Mac
data_dir = "data/shakespeare"  # folder with input.txt, see prepare_shakespeare.py
seed = 1337  # decides the initial weights, the batches and the sample
batch_size = 32  # B: sequences in a batch
block_size = 64  # T: tokens (here: characters) in a sequence
max_iters = 1000  # training steps; 0 only samples
eval_interval = 100  # steps from one evaluation to the next
n_embd = 128  # C, the channels: how many numbers describe a position
n_head = 4  # heads of attention, each of n_embd / n_head channels
learning_rate = 5e-3  # how far a step moves the weights
prompt = ""  # what the sample begins with; empty: the first character of the text
max_new_tokens = 500  # tokens to sample
temperature = 0.8  # below 1: safer, above 1: wilder; 0: always the likeliest
top_k = 0  # sample from the k likeliest only; 0: from all

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

# ----------------------------------------------------------------------------------------- Data
input_file = Path(data_dir, "input.txt")
if not input_file.exists() and data_dir == "data/shakespeare":
    subprocess.run([sys.executable, Path(__file__).with_name("prepare_shakespeare.py")])
try:
    text = input_file.read_text(encoding="utf-8")
except (OSError, UnicodeDecodeError) as error:
    sys.exit(f"{input_file}: {error}; prepare_shakespeare.py --source=FILE --name=NAME makes one")
chars = sorted(set(text))  # the vocabulary: every character that the text has
vocab_size = len(chars)  # V
stoi = {c: i for i, c in enumerate(chars)}  # "string to integer"


def encode(s):
    """Turn a string into a list of token ids, one per character."""
    return [stoi[c] for c in s]


def decode(ids):
    """Turn a list of token ids back into the string."""
    return "".join(chars[i] for i in ids)


n = int(0.9 * len(text))  # the first 90% is to learn from, the rest, for validation, to judge by
train_data, val_data = torch.tensor(encode(text[:n])), torch.tensor(encode(text[n:]))


def get_batch():
    """Random sequences x (B, T) of the training data, and y (B, T): what follows each character."""
    starts = torch.randint(len(train_data) - block_size, (batch_size,))
    i = starts[:, None] + torch.arange(block_size)  # (B, T): T places from each start on
    return train_data[i].to(device), train_data[i + 1].to(device)


# ---------------------------------------------------------------------------------------- Model
class Head(nn.Module):
    """One head of causal self-attention: an average over the past, its weights by what fits."""

    def __init__(self, head_size):
        super().__init__()
        self.query = nn.Linear(n_embd, head_size)  # what a position looks for
        self.key = nn.Linear(n_embd, head_size)  # what it offers to be found by
        self.value = nn.Linear(n_embd, head_size)  # what it hands over when found
        # Not learned: True where the column is the row's position itself or an earlier one
        self.register_buffer("past", torch.ones(block_size, block_size).tril().bool())

    def forward(self, x):
        """x: (B, T, C). Returns (B, T, hs), hs being head_size."""
        B, T, C = x.shape
        q, k, v = self.query(x), self.key(x), self.value(x)  # (B, T, hs) each
        # If the entries of q and k have variance 1, those of q @ k.T have variance hs; the
        # division brings it back to 1. Otherwise softmax would put nearly all weight on one.
        wei = q @ k.transpose(1, 2) / k.shape[-1] ** 0.5  # (B, T, T): how well q and k fit
        wei = wei.masked_fill(~self.past[:T, :T], -torch.inf)  # no weight on what comes later
        wei = F.softmax(wei, dim=-1)  # rows sum to 1
        return wei @ v  # (B, T, hs): the values, averaged with these weights


class MultiHeadAttention(nn.Module):
    """Several heads side by side, each with its own idea of what to look for."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList([Head(n_embd // n_head) for _ in range(n_head)])
        self.c_proj = nn.Linear(n_embd, n_embd)  # mixes what the heads found

    def forward(self, x):
        """x: (B, T, C). Returns (B, T, C)."""
        return self.c_proj(torch.cat([head(x) for head in self.heads], dim=-1))


class AttentionLanguageModel(nn.Module):
    """Characters and positions are embedded, attention mixes them, a linear layer scores."""

    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, n_embd)  # what the token is
        self.wpe = nn.Embedding(block_size, n_embd)  # where it stands
        self.attn = MultiHeadAttention()
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)

    def logits(self, idx):
        """The logits (B, T, V): the scores of what may follow each of the token ids (B, T)."""
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1], device=idx.device))  # (B, T, C)
        x = self.attn(x)
        return self.lm_head(x)

    def forward(self, x, y):
        """How surprised the model is by y (B, T), given x (B, T): mean of -ln P(y), in nats."""
        return F.cross_entropy(self.logits(x).flatten(0, 1), y.flatten())


if n_embd % n_head != 0:
    parser.error(f"argument --n_embd: must be a multiple of n_head, which is {n_head}")
if len(val_data) <= block_size:
    parser.error(f"argument --block_size: too large for {input_file}, {len(text)} characters")
if not set(prompt) <= set(chars):
    parser.error(f"argument --prompt: {input_file} does not have {set(prompt) - set(chars)}")
try:
    torch.zeros(1, device=device).item()
except Exception as error:  # this machine has no such device
    parser.error(f"argument --device: {error}".splitlines()[0])
torch.manual_seed(seed)
model = AttentionLanguageModel().to(device)
n_params = sum(p.numel() for p in model.parameters())
print(f"{n_params:,} parameters, {vocab_size} different tokens, device {device}")


# ----------------------------------------------------------------------------------- Evaluation
@torch.no_grad()  # computes no gradients: nothing is learned here
def estimate_loss():
    """The mean loss over the validation data, cut into neighbouring windows of T characters."""
    n = (len(val_data) - 1) // block_size * block_size  # whole windows; y needs one token more
    x, y = (val_data[i : n + i].to(device).view(-1, block_size) for i in (0, 1))  # y: 1 ahead
    batches = zip(x.split(batch_size), y.split(batch_size))
    total = sum(model(xb, yb).item() * len(xb) for xb, yb in batches)
    return total / len(x)


# ------------------------------------------------------------------------------------ Optimizer
# AdamW is gradient descent that scales learning_rate for every weight by itself
optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)

# -------------------------------------------------------------------------------- Training loop
for step in range(max_iters):
    x, y = get_batch()
    loss = model(x, y)
    if step % eval_interval == 0:
        print(f"step {step:5d} | train loss {loss:.4f} | val loss {estimate_loss():.4f}")
    model.zero_grad()  # or gradients would add up
    loss.backward()  # the gradient: how the loss changes with each weight
    optimizer.step()


# ------------------------------------------------------------------------------------- Sampling
@torch.no_grad()
def generate(idx, max_new_tokens, temperature=1.0, top_k=0):
    """Continue the sequences idx (B, T) by sampling: returns (B, T + max_new_tokens)."""
    for _ in range(max_new_tokens):
        logits = model.logits(idx[:, -block_size:])  # no position beyond block_size is known
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
    return idx


torch.manual_seed(seed)
idx = torch.tensor([encode(prompt or text[0])], device=device)  # (1, T)
sample = decode(generate(idx, max_new_tokens, temperature, top_k)[0].tolist())
print("-" * 80, sample, "-" * 80, sep="\n")
print(f"final val loss {estimate_loss():.4f}")
