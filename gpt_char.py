# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.11", "numpy"]
# ///
"""Rung 3 of 5: the Transformer, trained with today's methods.

Attention lets positions exchange information; an MLP lets each of them work on what it
received. The two make a block, and a stack of blocks is a GPT. The rest of the file
makes it learn fast, and lets a long run be stopped and continued.

    python gpt_char.py                        train, or continue an interrupted run
    python gpt_char.py --prompt="ROMEO:"      after training: only print a sample
    python gpt_char.py --init_from=scratch    start over, and overwrite the checkpoints

Expect a val loss of about 1.45 (v2_attention.py: 2.15) and a play that resembles
Shakespeare from a distance, after three to seven minutes on two cores. The chapter is
docs/gpt_char.md.
"""

import argparse
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

# ---------------------------------------------------------------------------- Settings
device = "cuda" if torch.cuda.is_available() else "cpu"  # "mps" on a Mac
data_dir = "data/shakespeare"  # folder that contains input.txt
out_dir = "out/gpt_char"  # folder for the checkpoints best.pt and last.pt
init_from = "resume"  # from the checkpoints in out_dir, if any; "scratch": start over
seed = 1337  # for the initial weights, the batches and the sample
batch_size = 12  # B: sequences per batch
block_size = 128  # T: tokens per sequence; a token is a character
max_iters = 4000  # training steps; 0: no training, only a sample
log_interval = 25  # steps between lines of progress
eval_interval = 500  # steps between evaluations
n_layer = 5  # blocks
n_embd = 128  # C: channels, the numbers that describe a position
n_head = 2  # attention heads, with n_embd / n_head channels each
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
prompt = ""  # what the sample starts with; empty: the first character of the text
max_new_tokens = 500  # length of the sample
temperature = 0.8  # below 1: safer, above 1: wilder, 0: always the likeliest token
top_k = 0  # sample from the k likeliest tokens only; 0: from all

# Defaults that differ on a GPU
gpu_preset = {
    "batch_size": 64,
    "block_size": 256,
    "max_iters": 2400,
    "n_layer": 6,
    "n_embd": 384,
    "n_head": 6,
    "dropout": 0.2,
    "learning_rate": 5e-3,
    "bfloat16": torch.cuda.is_bf16_supported(including_emulation=False),
}
# Defaults that differ on a CPU without bfloat16
slow_cpu_preset = {
    "max_iters": 2700,
    "n_layer": 4,
    "n_embd": 96,
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
parser.add_argument("--help", action="help")  # now that the defaults are final
config = vars(parser.parse_args())
globals().update(config)  # overwrites the settings

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
    if "cuda" in device:  # pinned memory can be copied while the GPU computes
        x, y = x.pin_memory(), y.pin_memory()
    return x.to(device, non_blocking=True), y.to(device, non_blocking=True)


# ------------------------------------------------------------------------------- Model
# Inside autocast, matrix products are computed in half precision
device_type = "cuda" if "cuda" in device else "cpu"
autocast = torch.autocast(device_type, torch.bfloat16, enabled=bfloat16)
if device == "cpu" and bfloat16:
    # Here the fused "flash" kernel is slower than plain matrix products whose sums are
    # kept in bfloat16. (In spite of their name, these settings are for CPUs, too)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)


class CausalSelfAttention(nn.Module):
    """What MultiHeadAttention of rung 2 computes, for all heads at once."""

    def __init__(self):
        super().__init__()
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)  # query, key, value for all heads
        self.c_proj = nn.Linear(n_embd, n_embd)  # mixes what the heads found

    def forward(self, x):
        """x: (B, T, C). Returns (B, T, C)."""
        B, T, C = x.shape
        hs = C // n_head  # channels per head
        q, k, v = self.c_attn(x).split(C, dim=2)  # (B, T, C) each
        q = q.view(B, T, n_head, hs).transpose(1, 2)  # (B, nh, T, hs)
        k = k.view(B, T, n_head, hs).transpose(1, 2)
        v = v.view(B, T, n_head, hs).transpose(1, 2)
        p = dropout if self.training else 0.0
        # softmax(q k^T / sqrt(hs)) v, with the future hidden, as in Head of rung 2
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
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
        return self.c_proj(F.gelu(self.c_fc(x)))


class Block(nn.Module):
    """One layer: positions communicate (attention), then each one computes (MLP)."""

    def __init__(self):
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd)  # every position: mean 0, variance 1
        self.attn = CausalSelfAttention()
        self.ln_2 = nn.LayerNorm(n_embd)
        self.mlp = MLP()
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        """x: (B, T, C). Returns (B, T, C)."""
        # Residual connections: adding to x keeps a direct path for the gradient
        x = x + self.drop(self.attn(self.ln_1(x)))
        x = x + self.drop(self.mlp(self.ln_2(x)))
        return x


class GPT(nn.Module):
    """The decoder-only Transformer of GPT-2 (Radford et al. 2019, section 2.3)."""

    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, n_embd)  # which token it is
        self.wpe = nn.Embedding(block_size, n_embd)  # where it stands
        self.drop = nn.Dropout(dropout)
        self.h = nn.ModuleList([Block() for _ in range(n_layer)])  # GPT-2's name
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight  # tied: one matrix for both
        for name, p in self.named_parameters():
            if name.endswith(("bias", "c_proj.weight")):
                nn.init.zeros_(p)  # at first, the blocks add nothing
            elif p.ndim == 2:
                nn.init.normal_(p, std=0.02)

    @autocast
    def logits(self, idx):
        """idx: (B, T). Returns (B, T, V): for each token, logits of the next one."""
        positions = torch.arange(idx.shape[1], device=idx.device)  # 0, 1, ..., T - 1
        x = self.wte(idx) + self.wpe(positions)  # (B, T, C)
        x = self.drop(x)
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x)).float()  # back to single precision

    def forward(self, x, y):
        """The loss: the mean of -ln P(y given x), in nats. x and y: (B, T)."""
        logits = self.logits(x).flatten(0, 1)  # (B * T, V)
        return F.cross_entropy(logits, y.flatten())


# ---------------------------------------------------------------------------- Sampling
@torch.no_grad()  # nothing is learned here, so no gradients are needed
def generate(idx, max_new_tokens, temperature=1.0, top_k=0):
    """Continue the sequences idx (B, T). Returns (B, T + max_new_tokens)."""
    model.eval()  # no dropout
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
    model.train()
    return idx


def sample(max_new_tokens):
    """The prompt followed by max_new_tokens generated tokens, as a string."""
    torch.manual_seed(seed)  # the same random numbers every time
    idx = torch.tensor([encode(prompt or text[0])], device=device)  # (1, T)
    return decode(generate(idx, max_new_tokens, temperature, top_k)[0].tolist())


# -------------------------------------------------------------------------- Evaluation
@torch.no_grad()
def estimate_loss():
    """Mean loss over the validation data, cut into windows of T tokens."""
    model.eval()  # no dropout
    n = (len(val_data) - 1) // block_size * block_size  # whole windows; y needs 1 more
    x = val_data[:n].view(-1, block_size)
    y = val_data[1 : n + 1].view(-1, block_size)
    total = 0.0
    for xb, yb in zip(x.split(batch_size), y.split(batch_size)):
        loss = model(xb.to(device), yb.to(device)).item()
        total += loss * len(xb)  # the last batch can be smaller
    model.train()
    return total / len(x)


# ------------------------------------------------------------------------------ Checks
for name in "batch_size log_interval eval_interval n_layer n_embd n_head".split():
    if config[name] < 1:
        parser.error(f"--{name}={config[name]} must be at least 1")
for name in "max_iters warmup_iters max_new_tokens top_k seed".split():
    if config[name] < 0:
        parser.error(f"--{name}={config[name]} must be at least 0")
for name in "learning_rate adamw_share weight_decay grad_clip".split():
    if not 0 <= config[name] < math.inf:
        parser.error(f"--{name}={config[name]} must be a finite number, 0 or more")
for name in "dropout momentum beta1 beta2".split():
    if not 0 <= config[name] < 1:
        parser.error(f"--{name}={config[name]} must be at least 0 and less than 1")
if optimizer not in ("muon", "adamw"):
    parser.error(f"--optimizer={optimizer} must be muon or adamw")
if init_from not in ("resume", "scratch"):
    parser.error(f"--init_from={init_from} must be resume or scratch")
if n_embd % n_head != 0:
    parser.error(f"--n_embd={n_embd} must be divisible by --n_head={n_head}")
if not 0 < block_size < len(val_data):
    parser.error(f"--block_size must be from 1 to {len(val_data) - 1} for {input_file}")
if not set(prompt) <= set(chars):
    parser.error(f"--prompt contains a character that {input_file} does not contain")
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
    "block_size": block_size,
    "optimizer": optimizer,
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
            found = checkpoint["identity"].get(key)
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
    print(f"step {step:5d}/{max_iters} | val loss {val_loss:.4f}", flush=True)
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
            plan = "continuing" if first_step < max_iters else "nothing left to train"
            print(f"{out_dir}/{name}: step {first_step} ({max_iters=}), {plan}")
            break

stop_requested = False
handlers = {}  # the previous signal handlers, to be restored
for signum in [signal.SIGINT, signal.SIGTERM]:
    handlers[signum] = signal.signal(signum, request_stop)
start = time.perf_counter()
for step in range(first_step, max_iters):
    # A seed for each step, so that a resumed run has the same dropout
    torch.manual_seed(hash((seed, step)))
    x, y = get_batch(step)
    loss = model(x, y)
    model.zero_grad()  # otherwise new gradients are added to the old ones
    loss.backward()  # computes the gradient: how the loss changes with each weight
    if grad_clip > 0:
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
try:
    val_loss = estimate_loss()
    if not math.isfinite(val_loss):
        sys.exit("the val loss is not finite; try a lower --learning_rate")
    print("-" * 80, sample(max_new_tokens), "-" * 80, sep="\n")
except KeyboardInterrupt:
    sys.exit(130)
print(f"final val loss {val_loss:.4f}")
