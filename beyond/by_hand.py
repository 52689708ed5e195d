# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy"]
# ///
"""Down to NumPy: what loss.backward() does.

The models of bigram.py and v2_attention.py, trained without PyTorch, on an autograd of
a hundred lines.

    python beyond/by_hand.py
    python beyond/by_hand.py --n_head=1

Expect val losses of about 2.50 and 2.20 in less than a minute on two cores, as with
PyTorch from the same weights and batches. The chapter is docs/by_hand.md.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

# ---------------------------------------------------------------------------- Settings
data_dir = "data/shakespeare"  # folder that contains input.txt
seed = 1337  # for the initial weights, the batches and the sample
batch_size = 32  # B: sequences per batch
block_size = 64  # T: tokens per sequence; a token is a character
max_iters = 1000  # training steps; 0: no training, only a sample
eval_interval = 100  # steps between evaluations
n_embd = 128  # C: channels, the numbers that describe a position
n_head = 4  # attention heads, with n_embd / n_head channels each
bigram_learning_rate = 5e-2  # how far a step moves the weights of the bigram
learning_rate = 5e-3  # how far a step moves the weights of attention
beta1 = 0.9  # decay rate of the running mean of gradients
beta2 = 0.999  # the same for squared gradients
weight_decay = 0.01  # how strongly weights are pulled towards 0
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
    prepare = Path(__file__).parents[1] / "prepare_shakespeare.py"
    subprocess.run([sys.executable, prepare])
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
train_data = np.array(encode(text[:n]))
val_data = np.array(encode(text[n:]))


def get_batch():
    """A random batch: inputs x (B, T), and targets y (B, T), each one token later."""
    starts = rng.integers(len(train_data) - block_size, size=batch_size)
    x = np.stack([train_data[i : i + block_size] for i in starts])
    y = np.stack([train_data[i + 1 : i + 1 + block_size] for i in starts])
    return x, y


def one_hot(ids, size):
    """For each id a row of zeros, with a 1 in column id."""
    return np.eye(size, dtype=np.float32)[ids]


# ---------------------------------------------------------------------------- Autograd
class Tensor:
    """An array that remembers what it was computed from."""

    def __init__(self, data, parents=(), grad_fn=None):
        self.data = data
        self.grad = None  # how the loss changes with each entry of data
        self.shape = data.shape
        self.parents = parents  # what it was computed from: tensors and constants
        self.grad_fn = grad_fn  # turns its gradient into those of its parents

    def backward(self):
        """Give a gradient to everything that this tensor, the loss, is made of."""
        order = []
        sort_graph(self, order, seen=set())
        self.grad = np.ones_like(self.data)  # d loss / d loss = 1
        for tensor in reversed(order):  # its gradient is complete when its turn comes
            if tensor.grad_fn is None:
                continue
            grads = tensor.grad_fn(tensor.grad)
            for parent, grad in zip(tensor.parents, grads):
                if isinstance(parent, Tensor):
                    parent.add_grad(grad)

    def add_grad(self, grad):
        """A tensor that is used twice receives two gradients: they add up."""
        grad = sum_to_shape(grad, self.shape)
        if self.grad is None:
            self.grad = grad
        else:
            self.grad = self.grad + grad

    def __add__(self, other):
        return Tensor(self.data + data_of(other), [self, other], lambda g: [g, g])

    def __mul__(self, other):
        a, b = self.data, data_of(other)
        return Tensor(a * b, [self, other], lambda g: [g * b, g * a])

    def __pow__(self, n):
        a = self.data
        return Tensor(a**n, [self], lambda g: [g * n * a ** (n - 1)])

    def __matmul__(self, other):
        a, b = self.data, other.data
        a_T, b_T = a.swapaxes(-1, -2), b.swapaxes(-1, -2)
        return Tensor(a @ b, [self, other], lambda g: [g @ b_T, a_T @ g])

    def __neg__(self):
        return self * -1

    def __sub__(self, other):
        return self + -other

    def __truediv__(self, other):
        return self * other**-1

    def sum(self, axis=None):
        """The sum of all entries, or along an axis, which stays with length 1."""
        total = self.data.sum(axis, keepdims=axis is not None)
        return Tensor(total, [self], lambda g: [np.broadcast_to(g, self.shape)])

    def exp(self):
        out = np.exp(self.data)
        return Tensor(out, [self], lambda g: [g * out])

    def log(self):
        return Tensor(np.log(self.data), [self], lambda g: [g / self.data])

    def __getitem__(self, idx):
        """The rows idx, which is an array of integers of any shape."""

        def grad_fn(g):
            rows = one_hot(idx.flatten(), len(self.data))  # (ids, rows of the table)
            grad = rows.T @ g.reshape(idx.size, -1)
            return [grad.reshape(self.shape)]

        return Tensor(self.data[idx], [self], grad_fn)

    def transpose(self, i, j):
        """Exchange two axes."""
        out = self.data.swapaxes(i, j)
        return Tensor(out, [self], lambda g: [g.swapaxes(i, j)])

    def item(self):
        """A tensor of one entry as a number."""
        return self.data.item()

    def __format__(self, spec):
        return format(self.item(), spec)


def cat(tensors):
    """Join tensors of the same shape along their last axis."""
    out = np.concatenate([t.data for t in tensors], axis=-1)
    return Tensor(out, tensors, lambda g: np.split(g, len(tensors), axis=-1))


def data_of(x):
    """The array of a tensor; a constant as it is."""
    return x.data if isinstance(x, Tensor) else x


def sort_graph(tensor, order, seen):
    """Append a tensor to order, after everything it was computed from."""
    if not isinstance(tensor, Tensor) or tensor in seen:
        return
    seen.add(tensor)
    for parent in tensor.parents:
        sort_graph(parent, order, seen)
    order.append(tensor)


def sum_to_shape(grad, shape):
    """Sum a gradient over the axes along which an array of this shape was repeated."""
    if grad.shape == shape:
        return grad
    new_axes = grad.ndim - len(shape)
    grad = grad.sum(axis=tuple(range(new_axes)))
    for axis, size in enumerate(shape):
        if size == 1:
            grad = grad.sum(axis, keepdims=True)
    return grad


def softmax(x):
    """Turn each row of logits into probabilities."""
    e = (x - x.data.max(axis=-1, keepdims=True)).exp()  # at most 1: cannot overflow
    return e / e.sum(axis=-1)


def cross_entropy(logits, y):
    """Mean of -ln P(y), where P is the softmax of the logits (B, T, V)."""
    z = logits - logits.data.max(axis=-1, keepdims=True)
    log_probs = z - z.exp().sum(axis=-1).log()
    return -(log_probs * one_hot(y, vocab_size)).sum() / y.size


# ------------------------------------------------------------------------------- Model
class Module:
    """Something with parameters: its tensors, and those of the modules in it."""

    def __call__(self, *inputs):
        return self.forward(*inputs)

    def parameters(self):
        """All tensors that are learned."""
        found = []
        for part in vars(self).values():
            if isinstance(part, Tensor):
                found.append(part)
            if isinstance(part, Module):
                found += part.parameters()
            if isinstance(part, list):
                for module in part:
                    found += module.parameters()
        return found

    def zero_grad(self):
        """Forget the gradients."""
        for p in self.parameters():
            p.grad = None


class Embedding(Module):
    """A table: for each of n ids, a row of numbers."""

    def __init__(self, n, n_out):
        self.weight = Tensor(rng.normal(size=(n, n_out)).astype(np.float32))

    def forward(self, idx):
        return self.weight[idx]


class Linear(Module):
    """Each output is a weighted sum of the inputs, plus a bias."""

    def __init__(self, n_in, n_out, bias=True):
        limit = n_in**-0.5  # as PyTorch's nn.Linear starts
        weight = rng.uniform(-limit, limit, (n_in, n_out))
        self.weight = Tensor(weight.astype(np.float32))
        self.bias = 0  # nothing to add
        if bias:
            self.bias = Tensor(rng.uniform(-limit, limit, n_out).astype(np.float32))

    def forward(self, x):
        return x @ self.weight + self.bias


class BigramLanguageModel(Module):
    """A table: row i holds the logits of the tokens that may follow token i."""

    def __init__(self):
        # All tokens about equally likely
        weight = rng.normal(0, 0.02, (vocab_size, vocab_size))
        self.table = Tensor(weight.astype(np.float32))

    def logits(self, idx):
        """idx: (B, T). Returns (B, T, V): for each token, logits of the next one."""
        return self.table[idx]

    def forward(self, x, y):
        """The loss: mean of -ln P(y) in nats. Inputs x and targets y are (B, T)."""
        return cross_entropy(self.logits(x), y)


class Head(Module):
    """One head of causal self-attention: a weighted average of the past."""

    def __init__(self, head_size):
        self.query = Linear(n_embd, head_size)  # what a position is looking for
        self.key = Linear(n_embd, head_size)  # what it can be found by
        self.value = Linear(n_embd, head_size)  # what it passes on if chosen
        # A constant, not a parameter. Row i: 0 up to column i, then -inf
        future = np.full((block_size, block_size), -np.inf, dtype=np.float32)
        self.future = np.triu(future, k=1)

    def forward(self, x):
        """x: (B, T, C). Returns (B, T, hs), where hs is head_size."""
        T = x.shape[1]
        q, k, v = self.query(x), self.key(x), self.value(x)  # (B, T, hs) each
        # Dividing by sqrt(hs) brings the variance of a dot product back to 1
        scores = q @ k.transpose(1, 2) / k.shape[-1] ** 0.5  # (B, T, T)
        scores = scores + self.future[:T, :T]  # hide the future
        weights = softmax(scores)  # each row sums to 1
        return weights @ v  # (B, T, hs)


class MultiHeadAttention(Module):
    """Several heads side by side; each can look for something else."""

    def __init__(self):
        head_size = n_embd // n_head
        self.heads = [Head(head_size) for _ in range(n_head)]
        self.c_proj = Linear(n_embd, n_embd)  # mixes what the heads found

    def forward(self, x):
        """x: (B, T, C). Returns (B, T, C)."""
        x = cat([head(x) for head in self.heads])
        return self.c_proj(x)


class AttentionLanguageModel(Module):
    """Embed tokens and positions, attend once, and turn the result into logits."""

    def __init__(self):
        self.wte = Embedding(vocab_size, n_embd)  # which token it is
        self.wpe = Embedding(block_size, n_embd)  # where it stands
        self.attn = MultiHeadAttention()
        self.lm_head = Linear(n_embd, vocab_size, bias=False)

    def logits(self, idx):
        """idx: (B, T). Returns (B, T, V): for each token, logits of the next one."""
        positions = np.arange(idx.shape[1])  # 0, 1, ..., T - 1
        x = self.wte(idx) + self.wpe(positions)  # (B, T, C)
        x = self.attn(x)
        return self.lm_head(x)

    def forward(self, x, y):
        """The loss: mean of -ln P(y) in nats. Inputs x and targets y are (B, T)."""
        return cross_entropy(self.logits(x), y)


# ---------------------------------------------------------------------------- Sampling
def generate(idx, max_new_tokens, temperature=1.0, top_k=0):
    """Continue the sequences idx (B, T). Returns (B, T + max_new_tokens)."""
    for _ in range(max_new_tokens):
        logits = model.logits(idx[:, -block_size:]).data  # (B, T, V), T <= block_size
        logits = logits[:, -1]  # (B, V): what follows the last token
        if top_k > 0:
            k = min(top_k, vocab_size)
            kth = np.sort(logits)[:, -k, None]  # (B, 1): the k-th largest
            logits[logits < kth] = -np.inf
        if temperature > 0:
            probs = softmax(Tensor(logits / temperature)).data
            idx_next = [[rng.choice(vocab_size, p=row)] for row in probs]  # (B, 1)
        else:
            idx_next = logits.argmax(axis=-1, keepdims=True)
        idx = np.concatenate((idx, idx_next), axis=1)
    return idx


# -------------------------------------------------------------------------- Evaluation
def estimate_loss():
    """Mean loss over the validation data, cut into windows of T tokens."""
    n = (len(val_data) - 1) // block_size * block_size  # whole windows; y needs 1 more
    x = val_data[:n].reshape(-1, block_size)
    y = val_data[1 : n + 1].reshape(-1, block_size)
    total = 0.0
    for i in range(0, len(x), batch_size):
        xb, yb = x[i : i + batch_size], y[i : i + batch_size]
        total += model(xb, yb).item() * len(xb)
    return total / len(x)


def check_gradient(h=1e-4):
    """The largest error of the gradient, found by nudging some weights by h."""
    x = val_data[None, :block_size]  # any text will do
    y = val_data[None, 1 : block_size + 1]
    for p in model.parameters():
        p.data = p.data.astype(np.float64)  # float32 would round the change away
    model.zero_grad()
    model(x, y).backward()
    dice = np.random.default_rng(seed)
    errors = []
    for p in model.parameters():
        for _ in range(10):
            i = tuple(dice.integers(p.data.shape))  # the index of one weight
            w = p.data[i]
            p.data[i] = w + h
            above = model(x, y).item()
            p.data[i] = w - h
            below = model(x, y).item()
            p.data[i] = w
            slope = (above - below) / (2 * h)
            errors.append(abs(slope - p.grad[i]))
    for p in model.parameters():
        p.data = p.data.astype(np.float32)
    return max(errors)


# ------------------------------------------------------------------------------ Checks
if n_embd % n_head != 0:
    parser.error(f"--n_embd={n_embd} must be divisible by --n_head={n_head}")
if not 0 < block_size < len(val_data):
    parser.error(f"--block_size must be from 1 to {len(val_data) - 1} for {input_file}")
if not set(prompt) <= set(chars):
    parser.error(f"--prompt contains a character that {input_file} does not contain")
if temperature != 0 and not 0.01 <= temperature <= 100:  # logits could overflow
    parser.error(f"--temperature={temperature} must be 0, or between 0.01 and 100")


# --------------------------------------------------------------------------- Optimizer
class AdamW:
    """Adam with weight decay: a weight that the gradient leaves alone shrinks to 0."""

    def __init__(self, parameters, lr):
        self.parameters = list(parameters)
        self.lr = lr
        self.m = [0.0] * len(self.parameters)  # the mean of past gradients, fading
        self.v = [0.0] * len(self.parameters)  # the mean of their squares
        self.t = 0  # steps taken

    def step(self):
        """Move every weight, using its .grad."""
        self.t += 1
        for i, p in enumerate(self.parameters):
            self.m[i] = beta1 * self.m[i] + (1 - beta1) * p.grad
            self.v[i] = beta2 * self.v[i] + (1 - beta2) * p.grad**2
            # Both means started at 0, so they are too small at first
            m = self.m[i] / (1 - beta1**self.t)
            v = self.v[i] / (1 - beta2**self.t)
            p.data -= self.lr * weight_decay * p.data
            p.data -= self.lr * m / (v**0.5 + 1e-8)  # 1e-8: never divide by 0


# ---------------------------------------------------------------------------- Training
models = [
    (BigramLanguageModel, bigram_learning_rate),
    (AttentionLanguageModel, learning_rate),
]
for Model, lr in models:
    rng = np.random.default_rng(seed)
    model = Model()
    n_params = sum(p.data.size for p in model.parameters())
    print(f"{Model.__name__}: {n_params:,} parameters, {vocab_size} different tokens")
    print(f"gradient check: off by at most {check_gradient():.0e}")

    optimizer = AdamW(model.parameters(), lr)
    for step in range(max_iters):
        x, y = get_batch()
        loss = model(x, y)
        if step % eval_interval == 0:
            val_loss = estimate_loss()
            print(f"step {step:5d} | train loss {loss:.4f} | val loss {val_loss:.4f}")
        model.zero_grad()  # otherwise new gradients are added to the old ones
        loss.backward()  # computes the gradient: how the loss changes with each weight
        optimizer.step()

    rng = np.random.default_rng(seed)
    idx = np.array([encode(prompt or text[0])])  # (1, T)
    sample = decode(generate(idx, max_new_tokens, temperature, top_k)[0].tolist())
    print("-" * 80, sample, "-" * 80, sep="\n")
    print(f"final val loss {estimate_loss():.4f}")
