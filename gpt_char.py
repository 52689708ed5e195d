"""
Step 3 of 5: the Transformer, trained the way it is done today.

Attention moves information between positions; what was missing is time to think about it and
depth. A Transformer block is attention followed by an MLP, both wrapped in the two devices that
make deep networks trainable: a residual connection (x + f(x): gradients flow past f undiminished)
and LayerNorm in front of f. A GPT is a stack of such blocks between an embedding and its
transpose. Around the model come what long runs need: dropout, a learning-rate schedule, gradient
clipping, the Muon optimizer, and checkpoints from which an interrupted run goes on.

    python gpt_char.py                        train, or go on where the last run was interrupted
    python gpt_char.py --prompt="ROMEO:"      once trained, only sample (from the best checkpoint)
    python gpt_char.py --init_from=scratch    forget the checkpoints of out_dir and train anew
    python gpt_char.py --optimizer=adamw --learning_rate=3e-3     as in the lecture, without Muon

Expect a final val loss of about 1.50 (v2_attention.py: 2.16) after two and a half minutes on two
cores of an Intel Xeon, and text that has the shape of a play. With a GPU the model is 17 times as
large; its loss there is not measured yet.

Diff against v2_attention.py
+ CausalSelfAttention: all heads in one projection, PyTorch's fused attention kernel
- Head: now inside CausalSelfAttention
- MultiHeadAttention: the same
+ MLP: the position-wise network
+ Block: attention and MLP with residuals and LayerNorm
+ GPT: a stack of blocks; GPT-2's initialisation, tied weights, dropout, bfloat16
- AttentionLanguageModel: the one-layer model
~ model: is the new class
~ estimate_loss: switches dropout off
~ generate: the same
+ matrices, others: the parameters for Muon, and those for AdamW
~ optimizer: is now a hyperparameter, "muon" or "adamw"
+ get_lr: warm-up and decay of the learning rate
+ save_checkpoint, load_checkpoint: write and read all that training needs to go on
+ lock_out_dir: a second run in the same folder is refused
+ request_stop, stop: Ctrl-C saves before it ends
+ out_dir, init_from: where checkpoints are, and whether to start from one
+ cpu_features, bfloat16: faster matrix products where the hardware has them
+ n_layer, dropout: number of blocks, strength of the regularisation
+ warmup_iters, weight_decay, momentum, beta1, beta2, grad_clip: of the optimizers
~ block_size, n_head, n_embd: a larger model
~ batch_size, max_iters, eval_interval, learning_rate: a longer run
+ first_step, best_val_loss: where a run goes on
"""

import difflib
import math
import os
import signal
import subprocess
import sys
import time
import zipfile
from datetime import timedelta
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

# ------------------------------------------------------------------------------ Hyperparameters
device = "cuda" if torch.cuda.is_available() else "cpu"  # "mps" on a Mac
data_dir = "data/shakespeare"  # folder with input.txt, see prepare_shakespeare.py
out_dir = "out/gpt_char"  # folder of the checkpoints best.pt and last.pt
init_from = "resume"  # continue from out_dir/last.pt if it is there; "scratch": start anew
cpu_features = getattr(torch.cpu, "get_capabilities", dict)()
# Matrix products in bfloat16 where the hardware has it: a step takes 0.7 of the time on a CPU
bfloat16 = torch.cuda.is_bf16_supported(False) or cpu_features.get("avx512_bf16", False)
seed = 1337  # decides the initial weights, the batches and the sample
batch_size = 12 if device == "cpu" else 64  # B: sequences in a batch
block_size = 128 if device == "cpu" else 256  # T: tokens (here: characters) in a sequence
max_iters = 3600 if device == "cpu" else 2400  # training steps; 0 only samples
eval_interval = 250  # steps from one evaluation, and checkpoint, to the next
eval_iters = 20  # batches in an estimate of the loss
n_layer = 3 if device == "cpu" else 6  # blocks
n_head = 2 if device == "cpu" else 6  # heads of attention, each of n_embd / n_head channels
n_embd = 128 if device == "cpu" else 384  # C: numbers that describe one position
dropout = 0.0 if device == "cpu" else 0.2  # share of activations set to 0 while training
optimizer = "muon"  # for the matrices inside the blocks; "adamw": for everything, as in the lecture
learning_rate = 1.5e-2 if device == "cpu" else 5e-3  # of both optimizers, at its peak
warmup_iters = 5  # steps until the peak
weight_decay = 0.1  # of the matrices inside the blocks
momentum = 0.9  # of Muon
beta1 = 0.9  # of AdamW: how slowly its mean gradient changes
beta2 = 0.99  # and its mean squared gradient
grad_clip = 1.0  # longest gradient, as a norm over all parameters
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
for name in ("dropout", "momentum", "beta1", "beta2"):
    if config[name] >= 1:
        sys.exit(f"--{name}={config[name]}: must be below 1")


class CausalSelfAttention(nn.Module):
    """All heads of causal self-attention at once: the same function as MultiHeadAttention."""

    def __init__(self):
        super().__init__()
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)  # query, key and value of all heads
        self.c_proj = nn.Linear(n_embd, n_embd)  # mixes what the heads found

    def forward(self, x):
        """x: (B, T, C). Returns (B, T, C)."""
        B, T, C = x.shape
        # q, k, v: (B, nh, T, hs) each
        q, k, v = self.c_attn(x).view(B, T, 3, n_head, C // n_head).permute(2, 0, 3, 1, 4)
        if device == "cpu":  # its kernel is 2.4 times as fast in float32
            q, k, v = q.float(), k.float(), v.float()
        with torch.autocast("cpu", enabled=False):
            # The kernel does what Head did, block by block: no (T, T) matrix is ever stored
            p = dropout if self.training else 0.0
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    """Two linear layers: what attention has gathered is worked on, position by position."""

    def __init__(self):
        super().__init__()
        self.c_fc = nn.Linear(n_embd, 4 * n_embd)
        self.c_proj = nn.Linear(4 * n_embd, n_embd)

    def forward(self, x):
        """x: (B, T, C). Returns (B, T, C)."""
        return self.c_proj(F.gelu(self.c_fc(x)))


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
        self.wte = nn.Embedding(vocab_size, n_embd)  # what the token is
        self.wpe = nn.Embedding(block_size, n_embd)  # where it stands
        self.drop = nn.Dropout(dropout)
        self.h = nn.ModuleList([Block() for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight  # tied: one matrix reads and writes tokens
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
        Returns logits (B, T, V) and, given targets, the mean cross-entropy in nats (else None).
        """
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bfloat16):
            x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1], device=idx.device))  # (B, T, C)
            x = self.drop(x)
            for block in self.h:
                x = block(x)
            logits = self.lm_head(self.ln_f(x)).float()  # (B, T, V)
        if targets is None:
            return logits, None
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        return logits, loss


torch.manual_seed(seed)
model = GPT().to(device)
n_params = sum(p.numel() for p in model.parameters())
print(f"{n_params:,} parameters, {vocab_size} different tokens, device {device}")


# ----------------------------------------------------------------------------------- Evaluation
@torch.no_grad()
def estimate_loss(data, max_batches=math.inf):
    """Mean loss in nats per character over the whole of data, or over evenly spaced parts of it.

    The text is cut into neighbouring windows of block_size characters, each one is one sequence.
    """
    model.eval()  # no dropout
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
    model.train()
    return total / count


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
        "config": config,
        "chars": "".join(chars),
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


def load_checkpoint(path):
    """Make model and optimizers what they were at save_checkpoint; returns the other two."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # torch.load does not look at its checksums
                raise ValueError("is damaged, its checksums are wrong")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        for name in ("n_layer", "n_head", "n_embd", "block_size", "optimizer"):
            if checkpoint["config"].get(name) != config[name]:
                raise ValueError(f"was made with --{name}={checkpoint['config'].get(name)}")
        if checkpoint["chars"] != "".join(chars):
            raise ValueError(f"was trained on a text with other characters than {input_file}")
        model.load_state_dict(checkpoint["model"])
        for opt, state in zip(optimizers, checkpoint["optimizers"], strict=True):
            opt.load_state_dict(state)
        return checkpoint["step"], checkpoint["best_val_loss"]
    except Exception as error:  # whatever a damaged or foreign file leads to
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        sys.exit(f"{path}: {reason}. --init_from=scratch starts anew, --out_dir=... elsewhere")


if init_from not in ("resume", "scratch"):
    sys.exit(f"--init_from={init_from}: must be resume or scratch")
first_step, best_val_loss = 0, math.inf
if init_from == "resume" and Path(out_dir, "last.pt").exists():
    first_step, best_val_loss = load_checkpoint(Path(out_dir, "last.pt"))
    print(f"{out_dir}/last.pt: going on from step {first_step}")

# -------------------------------------------------------------------------------- Training loop
stop = False


def request_stop(signum, frame):
    """On Ctrl-C finish the step, save and end; a second Ctrl-C ends at once."""
    global stop
    stop = True
    signal.signal(signum, signal.SIG_DFL)


if max_iters > 0:
    lock = lock_out_dir()
    signal.signal(signal.SIGINT, request_stop)
start = time.perf_counter()
for step in range(first_step, max_iters + 1) if max_iters > 0 else ():
    if step % eval_interval == 0 or step == max_iters:
        train_loss, val_loss = (estimate_loss(d, eval_iters) for d in (train_data, val_data))
        speed = (step - first_step) / (time.perf_counter() - start)  # steps per second
        left = timedelta(seconds=round((max_iters - step) / speed)) if speed else "?"
        print(
            f"step {step:5d}/{max_iters} | train loss {train_loss:.4f} | val loss {val_loss:.4f} | "
            f"{speed * batch_size * block_size:9,.0f} tokens/s | {left} left",
            flush=True,
        )
        if not math.isfinite(val_loss):
            sys.exit(
                f"step {step}: the validation loss is {val_loss}; {out_dir}/last.pt is from "
                "before. Try a lower --learning_rate"
            )
        is_best = val_loss < best_val_loss
        best_val_loss = min(val_loss, best_val_loss)
        if is_best:
            save_checkpoint("best.pt", step, best_val_loss)
        save_checkpoint("last.pt", step, best_val_loss)
    if stop:
        save_checkpoint("last.pt", step, best_val_loss)
        print(f"stopped at step {step}, saved in {out_dir}; --init_from=resume goes on from there")
        sys.exit(130)
    if step == max_iters:
        break
    torch.manual_seed(hash((seed, step)))  # batch and dropout depend on nothing that went before
    x, y = get_batch()
    logits, loss = model(x, y)
    model.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    for opt in optimizers:
        for group in opt.param_groups:
            group["lr"] = get_lr(step)
        opt.step()
signal.signal(signal.SIGINT, signal.SIG_DFL)


# ------------------------------------------------------------------------------------- Sampling
@torch.no_grad()
def generate(idx, max_new_tokens, temperature=1.0, top_k=0):
    """Continue the sequences idx (B, T) by sampling: returns (B, T + max_new_tokens)."""
    model.eval()
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
    model.train()
    return idx


if best_val_loss < math.inf:  # there is a checkpoint of this model
    load_checkpoint(Path(out_dir, "best.pt"))
final_val_loss = estimate_loss(val_data)
torch.manual_seed(seed)
idx = torch.tensor([encode(prompt or text[0])], device=device)  # (1, T)
sample = decode(generate(idx, max_new_tokens, temperature, top_k)[0].tolist())
print("-" * 80, sample, "-" * 80, sep="\n")
print(f"final val loss {final_val_loss:.4f}")
