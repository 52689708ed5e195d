# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.9", "numpy"]
# ///
"""Step 3 of 5: the Transformer, trained the way it is done today.

Attention moves information between positions. Here each position also gets an MLP to work on it,
attention and MLP make a block, and a stack of blocks is a GPT. Around the model comes what makes
it learn fast, and what keeps a longer run safe. docs/gpt_char.md climbs from v2_attention.py to
this file, one idea at a time.

    python gpt_char.py                        train, or go on where the last run was interrupted
    python gpt_char.py --prompt="ROMEO:"      once trained, only sample (from the best checkpoint)
    python gpt_char.py --init_from=scratch    forget the checkpoints of out_dir and train anew

Expect a val loss of about 1.45 (v2_attention.py: 2.15) and text in the shape of a play after some
four minutes on two cores, fifteen on older ones. A GPU gets a larger model: not measured yet.

Diff against v2_attention.py
+ CausalSelfAttention: all heads in one projection, PyTorch's fused attention
- Head, MultiHeadAttention: are now inside of that
+ MLP: works on each position by itself
+ Block: attention and MLP with residual connections and LayerNorm
+ GPT: a stack of blocks; tied weights, dropout, initialisation
- AttentionLanguageModel: the model of one layer
~ model: is the new class
+ n_layer: number of blocks
~ n_head, block_size: other sizes
+ dropout: against learning by heart, for long runs of large models
~ estimate_loss: switches dropout off
~ get_batch: visits every part of the text once before it begins again
~ batch_size, max_iters, eval_interval: a longer run, of smaller steps
+ log_interval, start: a line of progress in between
+ get_lr, warmup_iters: the learning rate goes up, then down to 0
~ learning_rate: is now the peak, and Muon's; its steps may be longer
+ grad_clip: against steps that are too long
+ Muon, momentum, weight_decay, matrices: an optimizer for matrices
+ others, adamw, adamw_share, beta1, beta2: AdamW for the rest
~ optimizer: is now a name; the objects are in optimizers
+ cpu, bfloat16, autocast: faster matrix products where the hardware has them
~ device: must be known before the sizes
+ save_checkpoint, load_checkpoint, shape: write and read all that training needs to go on
+ out_dir, init_from, first_step, best_val_loss: where checkpoints are, and from which to start
+ stop, before: Ctrl-C saves before it ends
~ generate: without dropout
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

# ------------------------------------------------------------------------------ Hyperparameters
# Chosen here already, since the sizes go by it: a GPU if there is one and not --device=cpu
device = "cuda" if torch.cuda.is_available() and "--device=cpu" not in "=".join(sys.argv) else "cpu"
data_dir = "data/shakespeare"  # folder with input.txt, see prepare_shakespeare.py
out_dir = "out/gpt_char"  # folder of the checkpoints best.pt and last.pt
init_from = "resume"  # go on from out_dir/last.pt if it is there; "scratch": start anew
seed = 1337  # decides the initial weights, the batches and the sample
batch_size = 12  # B: sequences in a batch
block_size = 128  # T: tokens in a sequence
max_iters = 4000  # training steps; 0 only samples
log_interval = 25  # steps from one line of progress to the next
eval_interval = 500  # steps from one evaluation to the next
n_layer = 5  # blocks
n_embd = 128  # C, the channels: how many numbers describe a position
n_head = 2  # heads of attention, each of n_embd / n_head channels
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
prompt = ""  # what the sample begins with; empty: the first character of the text
max_new_tokens = 500  # tokens to sample
temperature = 0.8  # below 1: safer, above 1: wilder; 0: always the likeliest
top_k = 0  # sample from the k likeliest only; 0: from all
if device == "cuda":  # the preset for a GPU
    batch_size, block_size, max_iters, learning_rate = 64, 256, 2400, 5e-3
    n_layer, n_embd, n_head, dropout = 6, 384, 6, 0.2

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


def get_batch(step):
    """x, y (B, T) of a step; an epoch visits every window of T characters once, in random order."""
    windows = len(train_data) // block_size - 1  # one less: room to cut elsewhere
    epoch, k = divmod(step, max(1, windows // batch_size))
    rng = np.random.default_rng((seed, epoch))
    starts = rng.integers(block_size) + block_size * rng.permutation(windows)  # cut anew each time
    starts = torch.from_numpy(starts[k * batch_size : (k + 1) * batch_size])
    i = starts[:, None] + torch.arange(block_size)  # (B, T): T places from each start on
    x, y = train_data[i], train_data[i + 1]
    if "cuda" in device:  # pinned, they are copied to the GPU while it still computes
        x, y = x.pin_memory(), y.pin_memory()
    return x.to(device, non_blocking=True), y.to(device, non_blocking=True)


# ---------------------------------------------------------------------------------------- Model
# A context in which matrix products are done in half precision, numbers of 16 bits: twice as fast
autocast = torch.autocast("cuda" if "cuda" in device else "cpu", torch.bfloat16, enabled=bfloat16)
if device == "cpu" and bfloat16:  # unfused attention: 0.85 of the time of a step
    torch.backends.cuda.enable_flash_sdp(False)  # whatever its name, it is for CPUs, too
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)


class CausalSelfAttention(nn.Module):
    """All heads of causal self-attention at once: the same function as MultiHeadAttention."""

    def __init__(self):
        super().__init__()
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)  # query, key and value of all heads
        self.c_proj = nn.Linear(n_embd, n_embd)  # mixes what the heads found

    def forward(self, x):
        """x: (B, T, C). Returns (B, T, C)."""
        B, T, C = x.shape
        # (B, T, 3C) taken apart into q, k, v: (B, nh, T, hs) each
        q, k, v = self.c_attn(x).view(B, T, 3, n_head, C // n_head).permute(2, 0, 3, 1, 4)
        p = dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)  # as in Head
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    """Two linear layers, bent by GELU in between: each position works on what it has gathered."""

    def __init__(self):
        super().__init__()
        self.c_fc = nn.Linear(n_embd, 4 * n_embd)  # 4 times as wide, as in GPT-2
        self.c_proj = nn.Linear(4 * n_embd, n_embd)

    def forward(self, x):
        """x: (B, T, C). Returns (B, T, C)."""
        return self.c_proj(F.gelu(self.c_fc(x)))


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
        self.wte = nn.Embedding(vocab_size, n_embd)  # what the token is
        self.wpe = nn.Embedding(block_size, n_embd)  # where it stands
        self.drop = nn.Dropout(dropout)
        self.h = nn.ModuleList([Block() for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight  # tied: one matrix reads and writes tokens
        for name, p in self.named_parameters():
            if name.endswith(("bias", "c_proj.weight")):
                nn.init.zeros_(p)  # at the start the blocks add nothing
            elif p.ndim == 2:
                nn.init.normal_(p, std=0.02)

    @autocast
    def logits(self, idx):
        """The logits (B, T, V): the scores of what may follow each of the token ids (B, T)."""
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1], device=idx.device))  # (B, T, C)
        x = self.drop(x)
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x)).float()  # in 32 bits again

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
if init_from not in ("resume", "scratch"):
    parser.error("argument --init_from: must be resume or scratch")
if len(val_data) <= block_size:
    parser.error(f"argument --block_size: too large for {input_file}, {len(text)} characters")
if not set(prompt) <= set(chars):
    parser.error(f"argument --prompt: {input_file} does not have {set(prompt) - set(chars)}")
try:
    torch.zeros(1, device=device).item()
except Exception as error:  # this machine has no such device
    parser.error(f"argument --device: {error}".splitlines()[0])
torch.manual_seed(seed)
model = GPT().to(device)
n_params = sum(p.numel() for p in model.parameters())
print(f"{n_params:,} parameters, {vocab_size} different tokens, device {device}")


# ----------------------------------------------------------------------------------- Evaluation
@torch.no_grad()  # computes no gradients: nothing is learned here
def estimate_loss():
    """The mean loss over the validation data, cut into neighbouring windows of T characters."""
    model.eval()  # no dropout
    n = (len(val_data) - 1) // block_size * block_size  # whole windows; y needs one token more
    x, y = (val_data[i : n + i].to(device).view(-1, block_size) for i in (0, 1))  # y: 1 ahead
    batches = zip(x.split(batch_size), y.split(batch_size))
    total = sum(model(xb, yb).item() * len(xb) for xb, yb in batches)
    model.train()
    return total / len(x)


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


def get_lr(step):
    """The learning rate of a step: up to learning_rate in warmup_iters steps, then down to 0."""
    if step < warmup_iters:
        return learning_rate * (step + 1) / warmup_iters
    return learning_rate * (max_iters - step) / (max_iters - warmup_iters)


# ---------------------------------------------------------------------------------- Checkpoints
shape = [n_layer, n_head, n_embd, block_size, optimizer, "".join(chars)]  # must agree


def save_checkpoint(names, step, best_val_loss):
    """Write all that training needs to go on from here; a file appears complete or not at all."""
    checkpoint = {"shape": shape, "step": step, "best_val_loss": best_val_loss}
    checkpoint["model"] = model.state_dict()
    checkpoint["optimizers"] = [opt.state_dict() for opt in optimizers]
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    for name in names:
        with open(Path(out_dir, name).with_suffix(".tmp"), "wb") as f:
            torch.save(checkpoint, f)
        os.replace(f.name, Path(out_dir, name))


def load_checkpoint(path):
    """Make model and optimizers what they were at save_checkpoint; returns step, best_val_loss."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if checkpoint["shape"] != shape:
            raise ValueError(f"its model is {checkpoint['shape']}, not {shape}")
        model.load_state_dict(checkpoint["model"])
        for opt, state in zip(optimizers, checkpoint["optimizers"], strict=True):
            opt.load_state_dict(state)
        return checkpoint["step"], checkpoint["best_val_loss"]
    except Exception as error:  # whatever a damaged or foreign file leads to
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        sys.exit(f"{path}: {reason}; --init_from=scratch starts anew, --out_dir=... elsewhere")


first_step, best_val_loss = 0, torch.inf
if init_from == "resume" and Path(out_dir, "last.pt").exists():
    first_step, best_val_loss = load_checkpoint(Path(out_dir, "last.pt"))
    print(f"{out_dir}/last.pt: going on from step {first_step}")

# -------------------------------------------------------------------------------- Training loop
stop = []  # Ctrl-C puts something in: then the step is finished and saved
before = signal.signal(signal.SIGINT, lambda *_: stop.append("now"))
start = time.perf_counter()
for step in range(first_step, max_iters):
    torch.manual_seed(hash((seed, step)))  # so dropout depends on the step alone
    x, y = get_batch(step)
    loss = model(x, y)
    model.zero_grad()  # or gradients would add up
    loss.backward()  # the gradient: how the loss changes with each weight
    nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    for opt in optimizers:
        for group in opt.param_groups:
            group["lr"] = get_lr(step) * (1.0 if opt is optimizers[0] else adamw_share)
        opt.step()
    if step % log_interval == 0:
        seconds = (time.perf_counter() - start) / (step + 1 - first_step)  # of a step
        left = f"{1000 * seconds:.0f} ms | {seconds * (max_iters - step) / 60:.1f} min left"
        print(f"step {step:5d}/{max_iters} | loss {loss:.4f} | {left}", flush=True)
    done = step + 1
    if done % eval_interval == 0 or done == max_iters:
        val_loss = estimate_loss()
        print(f"step {done:5d}/{max_iters} | val loss {val_loss:.4f}", flush=True)
        if not val_loss < torch.inf:
            sys.exit("That is no number; try a lower --learning_rate")
        names = ["best.pt", "last.pt"] if val_loss < best_val_loss else ["last.pt"]
        best_val_loss = min(best_val_loss, val_loss)
        save_checkpoint(names, done, best_val_loss)
    if stop:
        save_checkpoint(["last.pt"], done, best_val_loss)
        print(f"stopped, saved in {out_dir}: the same command goes on from there")
        sys.exit(130)  # as programs do that Ctrl-C has ended
signal.signal(signal.SIGINT, before)  # from here on Ctrl-C ends at once again


# ------------------------------------------------------------------------------------- Sampling
@torch.no_grad()
def generate(idx, max_new_tokens, temperature=1.0, top_k=0):
    """Continue the sequences idx (B, T) by sampling: returns (B, T + max_new_tokens)."""
    model.eval()
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
    model.train()
    return idx


if best_val_loss < torch.inf:  # there is a checkpoint of this model
    load_checkpoint(Path(out_dir, "best.pt"))
torch.manual_seed(seed)
idx = torch.tensor([encode(prompt or text[0])], device=device)  # (1, T)
sample = decode(generate(idx, max_new_tokens, temperature, top_k)[0].tolist())
print("-" * 80, sample, "-" * 80, sep="\n")
print(f"final val loss {estimate_loss():.4f}")
