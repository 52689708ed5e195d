"""
Step 2 of 5: self-attention, written out.

To guess better than the bigram model, a position must know what came before it. The simplest
way is an average over the past. Written as a matrix product, that average is a lower-triangular
matrix with rows that sum to 1:

    [ 1                ]   [ x0 ]   [ x0               ]
    [ 1/2  1/2         ] @ [ x1 ] = [ (x0 + x1) / 2    ]
    [ 1/3  1/3  1/3    ]   [ x2 ]   [ (x0 + x1 + x2)/3 ]

Row t holds the weights with which position t looks at positions 0 to t; zeros above the diagonal
keep the future out. Attention keeps the triangle and learns the weights: each position emits a
query (what am I looking for?) and a key (what do I have?), the weight of a pair is the softmax of
query times key, and what is averaged is a third vector, the value. A head does this once;
several heads side by side can look for several things at a time. An average knows no order, so
the position is embedded, too, and added to the character.

    python v2_attention.py               several heads
    python v2_attention.py --n_head=1    one head

Expect a final val loss of about 2.16 (bigram.py: 2.49) after 15 s on two cores of an Intel Xeon,
and text whose words look like words.

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

import difflib
import math
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

# ------------------------------------------------------------------------------ Hyperparameters
device = "cuda" if torch.cuda.is_available() else "cpu"  # "mps" on a Mac
data_dir = "data/shakespeare"  # folder with input.txt, see prepare_shakespeare.py
seed = 1337  # decides the initial weights, the batches and the sample
batch_size = 32  # B: sequences in a batch
block_size = 64  # T: tokens (here: characters) in a sequence
max_iters = 1000  # training steps; 0 only samples
eval_interval = 100  # steps from one evaluation to the next
eval_iters = 20  # batches in an estimate of the loss
n_embd = 128  # C: numbers that describe one position
n_head = 4  # heads of attention, each of n_embd / n_head channels
learning_rate = 5e-3  # of AdamW
prompt = ""  # what the sample begins with; empty: the first character of the text
max_new_tokens = 500  # tokens to sample
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

# ----------------------------------------------------------------------------------------- Data
input_file = Path(data_dir, "input.txt")
if not input_file.exists() and data_dir == "data/shakespeare":
    prepare = subprocess.run([sys.executable, Path(__file__).with_name("prepare_shakespeare.py")])
    if not input_file.exists():
        sys.exit(prepare.returncode)  # it has said why
try:
    text = input_file.read_bytes().decode("utf-8")
except (OSError, UnicodeDecodeError) as error:
    sys.exit(f"{input_file}: {error}; prepare_shakespeare.py --source=FILE --name=NAME makes one")

chars = sorted(set(text))  # the vocabulary
vocab_size = len(chars)  # V
stoi = {c: i for i, c in enumerate(chars)}


def encode(s):
    """Turn a string into a list of token ids, one per character."""
    return [stoi[c] for c in s]


def decode(ids):
    """Turn a list of token ids back into the string."""
    return "".join(chars[i] for i in ids)


unknown = "".join(sorted(set(prompt) - set(chars)))
if unknown:
    sys.exit(f"--prompt: the model cannot know {unknown!r}, which {input_file} does not contain")

data = torch.tensor(encode(text), dtype=torch.long)
n = int(0.9 * len(data))  # the first 90% is for training, the rest for validation
train_data, val_data = data[:n].to(device), data[n:].to(device)
if len(val_data) <= block_size:
    sys.exit(
        f"{input_file}: --block_size={block_size} needs {10 * block_size + 10} characters or more"
    )


def get_batch():
    """Cut random sequences out of the training data.

    Returns x, y of shape (B, T): y[b, t] is the character that follows x[b, t] in the text.
    """
    i = torch.randint(len(train_data) - block_size, (batch_size, 1), device=device)  # (B, 1)
    i = i + torch.arange(block_size, device=device)  # (B, T)
    return train_data[i], train_data[i + 1]


# ---------------------------------------------------------------------------------------- Model
if n_embd % n_head != 0:
    sys.exit(f"--n_embd={n_embd}: must be a multiple of --n_head={n_head}")


class Head(nn.Module):
    """One head of causal self-attention: a learned, weighted average over the past."""

    def __init__(self, head_size):
        super().__init__()
        self.query = nn.Linear(n_embd, head_size)  # what a position looks for
        self.key = nn.Linear(n_embd, head_size)  # what it offers to be found by
        self.value = nn.Linear(n_embd, head_size)  # what it hands over when found
        self.register_buffer("past", torch.ones(block_size, block_size).tril().bool())

    def forward(self, x):
        """x: (B, T, C). Returns (B, T, head_size)."""
        B, T, C = x.shape
        q, k, v = self.query(x), self.key(x), self.value(x)  # (B, T, hs) each
        # If the entries of q and k have variance 1, those of q @ k have variance hs; the division
        # brings it back to 1. Otherwise softmax would put all weight on one position.
        wei = q @ k.transpose(1, 2) / math.sqrt(k.shape[-1])  # (B, T, T)
        wei = wei.masked_fill(~self.past[:T, :T], -math.inf)  # no weight on the future
        wei = F.softmax(wei, dim=-1)  # rows sum to 1
        return wei @ v  # (B, T, hs)


class MultiHeadAttention(nn.Module):
    """Several heads side by side, each with its own idea of what to look for."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList([Head(n_embd // n_head) for _ in range(n_head)])
        self.proj = nn.Linear(n_embd, n_embd)  # mixes what the heads found

    def forward(self, x):
        """x: (B, T, C). Returns (B, T, C)."""
        return self.proj(torch.cat([head(x) for head in self.heads], dim=-1))


class AttentionLanguageModel(nn.Module):
    """Characters and positions are embedded, attention mixes them, a linear layer scores."""

    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, n_embd)  # what the token is
        self.wpe = nn.Embedding(block_size, n_embd)  # where it stands
        self.attn = MultiHeadAttention()
        self.lm_head = nn.Linear(n_embd, vocab_size)

    def forward(self, idx, targets=None):
        """Score every possible next token at every position.

        idx, targets: (B, T) token ids, T at most block_size, targets of -1 do not count.
        Returns logits (B, T, V) and, given targets, the mean cross-entropy in nats (else None).
        """
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1], device=idx.device))  # (B, T, C)
        x = self.attn(x)
        logits = self.lm_head(x)  # (B, T, V)
        if targets is None:
            return logits, None
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        return logits, loss


torch.manual_seed(seed)
model = AttentionLanguageModel().to(device)
n_params = sum(p.numel() for p in model.parameters())
print(f"{n_params:,} parameters, {vocab_size} different tokens, device {device}")


# ----------------------------------------------------------------------------------- Evaluation
@torch.no_grad()
def estimate_loss(data, max_batches=math.inf):
    """Mean loss in nats per character over the whole of data, or over evenly spaced parts of it.

    The text is cut into neighbouring windows of block_size characters, each one is one sequence.
    """
    x, y = data[:-1], data[1:]
    pad = -len(x) % block_size  # fills the last window up with targets that do not count
    x = F.pad(x, (0, pad)).view(-1, block_size)
    y = F.pad(y, (0, pad), value=-1).view(-1, block_size)
    every = max(1, math.ceil(len(x) / (max_batches * batch_size)))
    total = count = 0
    for xb, yb in zip(x[::every].split(batch_size), y[::every].split(batch_size)):
        _, loss = model(xb, yb)
        tokens = (yb >= 0).sum().item()
        total += loss.item() * tokens
        count += tokens
    return total / count


# ------------------------------------------------------------------------------------ Optimizer
optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)

# -------------------------------------------------------------------------------- Training loop
start = time.perf_counter()
for step in range(max_iters + 1):
    if step % eval_interval == 0 or step == max_iters:
        train_loss, val_loss = (estimate_loss(d, eval_iters) for d in (train_data, val_data))
        speed = step / (time.perf_counter() - start)  # steps per second
        left = timedelta(seconds=round((max_iters - step) / speed)) if speed else "?"
        print(
            f"step {step:5d}/{max_iters} | train loss {train_loss:.4f} | val loss {val_loss:.4f} | "
            f"{speed * batch_size * block_size:9,.0f} tokens/s | {left} left",
            flush=True,
        )
    if step == max_iters:
        break
    x, y = get_batch()
    logits, loss = model(x, y)
    model.zero_grad()
    loss.backward()
    optimizer.step()


# ------------------------------------------------------------------------------------- Sampling
@torch.no_grad()
def generate(idx, max_new_tokens, temperature=1.0, top_k=0):
    """Continue the sequences idx (B, T) by sampling: returns (B, T + max_new_tokens)."""
    for _ in range(max_new_tokens):
        logits, _ = model(idx[:, -block_size:])  # no position beyond block_size is known
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
    return idx


final_val_loss = estimate_loss(val_data)
torch.manual_seed(seed)
idx = torch.tensor([encode(prompt or text[0])], device=device)  # (1, T)
sample = decode(generate(idx, max_new_tokens, temperature, top_k)[0].tolist())
print("-" * 80, sample, "-" * 80, sep="\n")
print(f"final val loss {final_val_loss:.4f}")
