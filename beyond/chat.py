# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.11", "numpy", "regex"]
# ///
"""From GPT-2 to a model of today that answers: SmolLM2, or any Llama of its family.

    python beyond/chat.py                            talk
    python beyond/chat.py --prompt="Who are you?"    one answer
    python beyond/chat.py --max_iters=300            learn from Shakespeare

The chapter is docs/chat.md.
"""

import argparse
import codecs
import functools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import regex
import torch
import torch.nn as nn
import torch.nn.functional as F

# ---------------------------------------------------------------------------- Settings
device = "cuda" if torch.cuda.is_available() else "cpu"  # "mps" on a Mac
model_dir = "data/smollm2"  # folder with config.json, tokenizer.json, model.safetensors
out_dir = "out/chat"  # folder for the checkpoints best.pt and last.pt
export_dir = ""  # write the model to this folder, in the format of model_dir
init_from = "resume"  # from the checkpoints in out_dir, if any; "scratch": start over
seed = 1337  # for the initial weights of LoRA, the batches and the answers
batch_tokens = 256  # most tokens of a batch, padding included
block_size = 2048  # tokens of a conversation that the model can see
data_file = ""  # a {"messages": [...]} per line to learn from; empty: Shakespeare
max_length = 256  # tokens of a conversation to learn from; the rest is cut off
max_iters = 0  # training steps; 0: no training, but a conversation
log_interval = 10  # steps between lines of progress
eval_interval = 50  # steps between evaluations
eval_size = 64  # conversations that an evaluation reads
lora_rank = 16  # rank of LoRA's matrices; 0: train all weights
learning_rate = 1e-3  # peak learning rate
warmup_iters = 5  # steps until the learning rate reaches its peak
weight_decay = 0.1  # pulls the matrices of the blocks towards 0
beta1 = 0.9  # AdamW: decay rate of the running mean of gradients
beta2 = 0.99  # AdamW: the same for squared gradients
grad_clip = 1.0  # maximum norm of the gradient; 0: no clipping
# Half precision for matrix products, if the CPU has instructions for it
bfloat16 = torch.cpu.get_capabilities().get("avx512_bf16", False)
prompt = ""  # a question, to get one answer; empty: a conversation
max_new_tokens = 500  # maximum length of an answer
int8 = device == "cpu"  # round the weights to 8 bits for an answer
temperature = 0.2  # below 1: safer, above 1: wilder, 0: always the likeliest token
top_k = 0  # sample from the k likeliest tokens only; 0: from all
# What the model is told before a conversation begins
system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
# What is asked before and after training
questions = [
    "What is the capital of France?",
    "Who are you?",
    "What do you think of the king?",
]

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
def read_shakespeare():
    """Conversations of two messages: a speech, and the next one as its answer."""
    input_file = Path("data/shakespeare/input.txt")
    if not input_file.exists():
        prepare = Path(__file__).parents[1] / "prepare_shakespeare.py"
        subprocess.run([sys.executable, prepare])
    if not input_file.exists():
        sys.exit(f"{input_file} is missing; see python prepare_shakespeare.py --help")
    text = input_file.read_text(encoding="utf-8")
    speeches = [part.partition(":\n")[2] for part in text.split("\n\n")]
    for speech, reply in zip(speeches, speeches[1:]):
        question = {"role": "user", "content": speech}
        yield [question, {"role": "assistant", "content": reply}]


# --------------------------------------------------------------------------- Tokenizer
# No token crosses a word boundary. A word includes the space in front of it; each
# digit is a word, and so is a run of punctuation or of space
word_pattern = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+"
    r"|\s+(?![^\s\p{N}])|\s+"
)


def merge(parts, pair):
    """Join this pair of neighbors wherever it occurs."""
    merged = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


tokenizer_file = Path(model_dir, "tokenizer.json")
if not tokenizer_file.exists() and model_dir == "data/smollm2":  # the first time
    subprocess.run([sys.executable, Path(__file__).with_name("prepare_smollm2.py")])
for name in ["config.json", "tokenizer.json", "model.safetensors"]:
    if not Path(model_dir, name).exists():
        sys.exit(f"{model_dir} lacks {name}; see beyond/prepare_smollm2.py --help")
tokenizer = json.loads(tokenizer_file.read_text(encoding="utf-8"))
rules = tokenizer["pre_tokenizer"].get("pretokenizers", [])
if [rule["type"] for rule in rules] != ["Digits", "ByteLevel"]:
    sys.exit(f"{tokenizer_file} cuts a text into words by other rules than we do")

# The file writes a token as text, one character per byte. The first byte without a
# visible character becomes chr(256), the next one chr(257), and so on
visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
hidden = [b for b in range(256) if b not in visible]
letters = {chr(b): b for b in visible}
letters |= {chr(256 + i): b for i, b in enumerate(hidden)}


def to_bytes(token):
    """The bytes of a token as the file writes it."""
    return bytes(letters[c] for c in token)


token_ids = {to_bytes(s): i for s, i in tokenizer["model"]["vocab"].items()}
vocabulary = {i: token for token, i in token_ids.items()}
ranks = {}
for rank, pair in enumerate(tokenizer["model"]["merges"]):
    first, second = pair.split(" ") if isinstance(pair, str) else pair
    ranks[to_bytes(first), to_bytes(second)] = rank


@functools.cache  # the same words come again and again
def encode_word(word):
    """Merge pairs in the order in which they were learned."""
    parts = [bytes([b]) for b in word.encode()]
    parts = [part for part in parts if part in token_ids]  # a few bytes are missing
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


special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
im_start = special["<|im_start|>"]  # begins a message
im_end = special["<|im_end|>"]  # ends it


def encode_message(role, content):
    """A message as SmolLM2 knows it: <|im_start|>role, a newline, content<|im_end|>."""
    ids = encode(f"{role}\n") + encode(content.strip())
    return [im_start, *ids, im_end, *encode("\n")]


system_ids = encode_message("system", system)
reply_start = [im_start, *encode("assistant\n")]  # the answer comes next


def fit(turns):
    """The tokens of a conversation. Removes old turns if an answer would not fit."""
    while True:
        ids = [*system_ids, *sum(turns, []), *reply_start]
        if len(ids) + max_new_tokens <= block_size or len(turns) == 1:
            return ids
        del turns[:2]  # a question and its answer


def encode_conversation(messages):
    """Its tokens, and for each, whether it belongs to an answer and is learned."""
    ids = []
    learn = []
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    for message in messages:
        role = message["role"]
        if role not in ("system", "user", "assistant"):
            raise ValueError(f"role {role!r}")
        tokens = encode_message(role, message["content"])
        head = 1 + len(encode(f"{role}\n"))
        ids += tokens
        learn += [False] * head
        learn += [role == "assistant"] * (len(tokens) - head - 1)  # im_end, too
        learn += [False]  # the newline after it
    return ids[:max_length], learn[:max_length]


def read_data_file():
    """The conversations of a file with one JSON object per line."""
    with open(data_file, encoding="utf-8") as f:
        for number, line in enumerate(f, start=1):
            try:
                messages = json.loads(line)["messages"]
                encode_conversation(messages)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                sys.exit(f"{data_file}, line {number}: {error!r}, not messages")
            yield messages


def read_conversations():
    """For training and validation, a list of conversations as tokens."""
    try:
        source = read_data_file() if data_file else read_shakespeare()
        found = [encode_conversation(messages) for messages in source]
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"{data_file}: {error}")
    found = [(ids, learn) for ids, learn in found if any(learn)]
    n = int(0.9 * len(found))  # the first 90% is for training, the rest for validation
    if n == 0:
        hint = "the data needs at least two conversations with an answer"
        sys.exit(f"{hint} of at most --max_length={max_length} tokens")
    return found[:n], found[n:]


def padded_length(ids):
    """Positions of a conversation in a batch. With few lengths, memory is reused."""
    return 16 * math.ceil((len(ids) - 1) / 16)  # - 1: the last token is only a target


def collate(conversations):
    """Inputs x and targets y (B, T) of conversations, all as long as the longest."""
    longest = max(padded_length(ids) for ids, _ in conversations)
    x = torch.zeros(len(conversations), longest, dtype=torch.long)
    y = torch.full_like(x, -1)  # -1: nothing to learn
    for row, (ids, learn) in enumerate(conversations):
        ids = torch.tensor(ids)
        x[row, : len(ids) - 1] = ids[:-1]
        y[row, : len(ids) - 1] = ids[1:].where(torch.tensor(learn[1:]), -1)
    return x.to(device), y.to(device)


def pack(conversations, rng):
    """Batches of conversations of about the same length, of at most batch_tokens."""
    lengths = [padded_length(ids) for ids, _ in conversations]
    order = np.lexsort((rng.random(len(lengths)), lengths))  # by length, then by chance
    batches = []
    for i in order:  # the longest of a batch comes last; the others are padded to it
        if not batches or (len(batches[-1]) + 1) * lengths[i] > batch_tokens:
            batches.append([])
        batches[-1].append(conversations[i])
    return batches


def get_batch(step):
    """The conversations of a step."""
    epoch, batch = divmod(step, n_batches)
    rng = np.random.default_rng((seed, epoch))  # the same in all steps of an epoch
    batches = pack(train_data, rng)
    return collate(batches[rng.permutation(n_batches)[batch]])


if max_iters > 0:
    train_data, val_data = read_conversations()
    val_data = val_data[:eval_size]
    n_batches = len(pack(train_data, np.random.default_rng(0)))  # in every epoch


# ------------------------------------------------------------------------------- Model
# A folder in the format of the transformers library holds the model
llama = json.loads(Path(model_dir, "config.json").read_text(encoding="utf-8"))
if llama.get("model_type") != "llama":
    sys.exit(f"{model_dir} holds a model of type {llama.get('model_type')}, not llama")
n_layer = llama["num_hidden_layers"]  # blocks
n_embd = llama["hidden_size"]  # C: channels, the numbers that describe a position
n_hidden = llama["intermediate_size"]  # channels inside the MLP
n_head = llama["num_attention_heads"]  # with n_embd / n_head channels each
n_kv_head = llama["num_key_value_heads"]  # n_head / n_kv_head query heads share one
vocab_size = llama["vocab_size"]  # V
norm_eps = llama["rms_norm_eps"]  # keeps RMSNorm from dividing by 0
rope = llama.get("rope_parameters", llama)  # older files have no rope_parameters
rope_base = rope["rope_theta"]  # the larger, the slower the last pairs turn

# Inside autocast, matrix products are computed in half precision
device_type = "cuda" if "cuda" in device else "cpu"
autocast = torch.autocast(device_type, torch.bfloat16, enabled=bfloat16)
if device == "cpu" and bfloat16:
    # Here the fused "flash" kernel is slower than plain matrix products whose sums are
    # kept in bfloat16. (In spite of their name, these settings are for CPUs, too)
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
    """Attention with rotary positions; some query heads share keys and values."""

    def __init__(self):
        super().__init__()
        heads = n_head + 2 * n_kv_head  # of queries, keys and values
        hs = n_embd // n_head  # channels per head
        self.c_attn = nn.Linear(n_embd, heads * hs, bias=False)
        self.c_proj = nn.Linear(n_embd, n_embd, bias=False)  # mixes the heads

    def forward(self, x, cos, sin, cache, start):
        """x: (B, T, C), cos and sin: (T, hs). Returns (B, T, C)."""
        B, T, C = x.shape
        hs = C // n_head  # channels per head
        heads = self.c_attn(x).view(B, T, -1, hs).transpose(1, 2)  # (B, heads, T, hs)
        q, k, v = heads.split([n_head, n_kv_head, n_kv_head], dim=1)
        q = rotate(q, cos, sin)
        k = rotate(k, cos, sin)
        mask = None
        if cache is not None:
            cache[0, :, :, start : start + T] = k
            cache[1, :, :, start : start + T] = v
            k, v = cache[:, :, :, : start + T]  # those of earlier positions, too
        if start > 0 and T > 1:  # position t of x may look at all up to start + t
            mask = torch.ones(T, start + T, dtype=torch.bool, device=x.device)
            mask = mask.tril(start)
        # softmax(q k^T / sqrt(hs)) v, with the future hidden, as in Head of rung 2
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=start == 0, enable_gqa=True
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
    """The decoder-only Transformer of Llama 2 (Touvron et al. 2023, section 2.2)."""

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

    def features(self, idx, cache=None, start=0):
        """idx: (B, T). Returns (B, T, C): what lm_head turns into logits.

        The first token stands at position start; the cache knows those before it.
        """
        if cache is None:
            cache = [None] * n_layer
        x = self.wte(idx)  # (B, T, C)
        end = start + idx.shape[1]
        cos, sin = self.cos[start:end], self.sin[start:end]
        for block, block_cache in zip(self.h, cache):
            x = block(x, cos, sin, block_cache, start)
        return self.ln_f(x)

    def logits(self, x):
        """x: (..., C) of features. Returns (..., V): logits of the next token."""
        return self.lm_head(x).float()  # back to single precision

    @autocast
    def forward(self, x, y):
        """The mean of -ln P(y given x), in nats, where y is not -1. x and y: (B, T)."""
        learn = y >= 0
        logits = self.logits(self.features(x)[learn])  # (tokens to learn, V)
        return F.cross_entropy(logits, y[learn])


# ----------------------------------------------------------------------------- Weights
def read_safetensors(path):
    """{name: tensor}. First the length of a header in JSON, the header, the numbers."""
    data = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)
    header_end = 8 + int.from_bytes(bytes(data[:8].tolist()), "little")
    header = json.loads(bytes(data[8:header_end].tolist()))
    header.pop("__metadata__", None)
    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        tensor = data[header_end + start : header_end + end]
        tensor = tensor.view(dtypes[entry["dtype"]])
        tensors[name] = tensor.view(entry["shape"]).float()
    return tensors


def from_llama(theirs):
    """Llama's tensors under our names; those that share a matrix here are stacked."""
    ours = {"wte.weight": theirs["model.embed_tokens.weight"]}
    ours["lm_head.weight"] = ours["wte.weight"]
    ours["ln_f.weight"] = theirs["model.norm.weight"]
    for i in range(n_layer):
        layer = f"model.layers.{i}."
        qkv = [theirs[f"{layer}self_attn.{c}_proj.weight"] for c in "qkv"]
        gate = theirs[f"{layer}mlp.gate_proj.weight"]
        up = theirs[f"{layer}mlp.up_proj.weight"]
        ours |= {
            f"h.{i}.attn.c_attn.weight": torch.cat(qkv),
            f"h.{i}.attn.c_proj.weight": theirs[f"{layer}self_attn.o_proj.weight"],
            f"h.{i}.mlp.c_fc.weight": torch.cat((gate, up)),
            f"h.{i}.mlp.c_proj.weight": theirs[f"{layer}mlp.down_proj.weight"],
            f"h.{i}.ln_1.weight": theirs[f"{layer}input_layernorm.weight"],
            f"h.{i}.ln_2.weight": theirs[f"{layer}post_attention_layernorm.weight"],
        }
    return ours


def store_by_columns():
    """Store wide layers column by column: the same numbers, faster to read.

    Where a layer has more outputs than inputs, a product with one position then adds up
    a few long columns, instead of computing many short dot products.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and layer.out_features > layer.in_features:
            layer.weight.data = layer.weight.data.t().contiguous().t()


def to_llama(ours):
    """Llama's names for our tensors: what from_llama does, undone."""
    theirs = {"model.embed_tokens.weight": ours["wte.weight"]}
    theirs["model.norm.weight"] = ours["ln_f.weight"]
    hs = n_embd // n_head
    sizes = [n_head * hs, n_kv_head * hs, n_kv_head * hs]
    for i in range(n_layer):
        layer = f"model.layers.{i}."
        qkv = ours[f"h.{i}.attn.c_attn.weight"].split(sizes)
        for name, weight in zip("qkv", qkv):
            theirs[f"{layer}self_attn.{name}_proj.weight"] = weight
        gate, up = ours[f"h.{i}.mlp.c_fc.weight"].chunk(2)
        theirs |= {
            f"{layer}self_attn.o_proj.weight": ours[f"h.{i}.attn.c_proj.weight"],
            f"{layer}mlp.gate_proj.weight": gate,
            f"{layer}mlp.up_proj.weight": up,
            f"{layer}mlp.down_proj.weight": ours[f"h.{i}.mlp.c_proj.weight"],
            f"{layer}input_layernorm.weight": ours[f"h.{i}.ln_1.weight"],
            f"{layer}post_attention_layernorm.weight": ours[f"h.{i}.ln_2.weight"],
        }
    return theirs


def write_safetensors(path, tensors):
    """The format that read_safetensors reads, in single precision."""
    header = {}
    end = 0
    for name, tensor in tensors.items():
        offsets = [end, end + 4 * tensor.numel()]
        shape = list(tensor.shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        end = offsets[1]
    header = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as f:
        f.write(len(header).to_bytes(8, "little"))
        f.write(header)
        for tensor in tensors.values():
            f.write(tensor.contiguous().cpu().numpy().data)


def export():
    """Write the folder that transformers, or this file with --model_dir, can load."""
    folder = Path(export_dir)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = to_llama(model.state_dict())
    write_safetensors(folder / "model.safetensors.tmp", tensors)
    os.replace(folder / "model.safetensors.tmp", folder / "model.safetensors")
    written = {**llama, "dtype": "float32", "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(written, indent=2))
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        if Path(model_dir, name).exists():
            shutil.copy(Path(model_dir, name), folder)
    print(f"{folder} is complete; --model_dir={folder} --init_from=scratch loads it")


class Int8Linear(nn.Module):
    """A linear layer whose weights are integers from -127 to 127: a scale per row."""

    def __init__(self, linear):
        super().__init__()
        weight = linear.weight.detach()  # (rows, columns)
        scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127  # (rows)
        rounded = (weight / scale[:, None]).round().to(torch.int8)
        self.register_buffer("scale", scale)
        self.register_buffer("weight", rounded)
        self.register_buffer("ones", torch.ones_like(scale, dtype=torch.bfloat16))

    def forward(self, x):
        """x: (..., columns). Returns (..., rows)."""
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) == 1 and x.shape[-1] % 32 == 0:  # PyTorch reads whole blocks only
            # It converts the weights to bfloat16 while it multiplies. The scales that
            # it wants in bfloat16 are ones; ours follow in single precision
            product = torch.ops.aten._weight_int8pack_mm
            y = product(rows.bfloat16(), self.weight, self.ones).float()
        else:
            y = F.linear(rows, self.weight.float())
        return (y * self.scale).view(*x.shape[:-1], -1)


class LoRA(nn.Module):
    """A frozen linear layer plus the product of two narrow ones (Hu et al. 2021)."""

    def __init__(self, linear):
        super().__init__()
        rows, columns = linear.weight.shape
        self.linear = linear
        self.a = nn.Parameter(torch.randn(lora_rank, columns) / columns**0.5)
        self.b = nn.Parameter(torch.zeros(rows, lora_rank))  # at first, adds nothing

    def forward(self, x):
        """x: (..., columns). Returns (..., rows)."""
        return self.linear(x) + F.linear(F.linear(x, self.a), self.b)


@torch.no_grad()
def merge_lora(layer):
    """An ordinary linear layer that computes the same."""
    layer.linear.weight += layer.b @ layer.a
    return layer.linear


def replace_linears(make):
    """Put make(layer) in the place of every linear layer of the blocks."""
    for block in model.h:
        for part in [block.attn, block.mlp]:
            for name, layer in list(part.named_children()):
                setattr(part, name, make(layer))


# ---------------------------------------------------------------------------- Sampling
@torch.no_grad()  # nothing is learned here, so no gradients are needed
def generate(ids, max_new_tokens, temperature=1.0, top_k=0):
    """Yield the tokens that follow the tokens ids, one after the other.

    The cache still holds the previous conversation; a beginning that ids shares
    with it is not computed again.
    """
    reusable = min(len(cached_ids), len(ids) - 1)  # the last token's output is needed
    start = 0
    while start < reusable and ids[start] == cached_ids[start]:
        start += 1
    for _ in range(min(max_new_tokens, block_size - len(ids))):
        del cached_ids[start:]
        idx = torch.tensor([ids[start:]], device=device)  # (1, T): only what is new
        x = model.features(idx, cache, start)  # (1, T, C)
        logits = model.logits(x[0, -1])  # (V): after the last token
        cached_ids.extend(ids[start:])
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


def answer(ids):
    """Print the answer to a conversation while it is written. Returns its tokens."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    reply = []
    try:
        for token in generate(ids, max_new_tokens, temperature, top_k):
            if token == im_end:
                break
            reply.append(token)
            # A character can have several tokens: the decoder waits for the last
            print(decoder.decode(vocabulary[token]), end="", flush=True)
    except KeyboardInterrupt:  # ends the answer, not the program
        pass
    print(decoder.decode(b"", final=True))
    return reply


def talk():
    """A conversation in the terminal, or with the lines of a file."""
    mark = "> " if sys.stdin.isatty() else ""
    turns = []  # the tokens of each message so far
    while True:
        try:
            message = input(mark).strip()
        except EOFError:  # Ctrl-D, or the end of the file
            return
        except KeyboardInterrupt:
            print("\n/quit ends the program, /reset starts a new conversation")
            continue
        if message == "/quit":
            return
        if message == "/reset":
            turns = []
        elif message:
            asked = [*turns, encode_message("user", message)]
            ids = fit(asked)
            if len(ids) >= block_size:
                print(f"too long: {len(ids)} tokens, --block_size={block_size}")
                continue
            turns = asked
            reply = answer(ids)
            turns.append([*reply_start, *reply, im_end, *encode("\n")])


# -------------------------------------------------------------------------- Evaluation
@torch.no_grad()
def estimate_loss():
    """Mean loss over the answers of the validation data, per token."""
    total = 0.0
    count = 0
    for batch in pack(val_data, np.random.default_rng(seed)):
        x, y = collate(batch)
        tokens = (y >= 0).sum().item()
        total += model(x, y).item() * tokens
        count += tokens
    return total / count


def answer_questions():
    """Answer the questions. Training should change the tone, not the facts."""
    cached_ids.clear()  # the weights have changed
    for question in questions:
        torch.manual_seed(seed)  # the same random numbers every time
        print(">", question)
        answer(fit([encode_message("user", question)]))


# ------------------------------------------------------------------------------ Checks
for name in "max_length log_interval eval_interval eval_size".split():
    if config[name] < 1:
        parser.error(f"--{name}={config[name]} must be at least 1")
for name in "lora_rank max_iters warmup_iters max_new_tokens top_k seed".split():
    if config[name] < 0:
        parser.error(f"--{name}={config[name]} must be at least 0")
for name in "learning_rate weight_decay grad_clip".split():
    if not 0 <= config[name] < math.inf:
        parser.error(f"--{name}={config[name]} must be a finite number, 0 or more")
for name in ["beta1", "beta2"]:
    if not 0 <= config[name] < 1:
        parser.error(f"--{name}={config[name]} must be at least 0 and less than 1")
if init_from not in ("resume", "scratch"):
    parser.error(f"--init_from={init_from} must be resume or scratch")
expected = {
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "head_dim": n_embd // n_head,
    "rope_scaling": None,
}
for name, value in expected.items():
    if llama.get(name, value) != value:
        sys.exit(f"{model_dir}: {name}={llama[name]} is not supported, only {value}")
if rope.get("rope_type", "default") != "default":
    sys.exit(f"{model_dir}: rope_type={rope['rope_type']} is not supported")
most = llama["max_position_embeddings"]
if not 0 < block_size <= most:
    parser.error(f"--block_size={block_size} must be from 1 to {most}")
if max_length > block_size:
    parser.error(f"--max_length={max_length} must be at most {block_size}")
if batch_tokens < max_length:
    parser.error(f"--batch_tokens={batch_tokens} must be at least {max_length}")
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
if Path(export_dir).is_file():
    parser.error(f"--export_dir={export_dir} is a file; give the name of a folder")

# ------------------------------------------------------------------------------- Start
if hasattr(sys.stdout, "reconfigure"):  # in a notebook it has no such method
    sys.stdout.reconfigure(errors="replace")  # print "?" for what a console cannot show
if hasattr(sys.stdin, "reconfigure"):
    sys.stdin.reconfigure(errors="replace")  # and read what is not UTF-8
torch.manual_seed(seed)
model = GPT()
weights_file = Path(model_dir, "model.safetensors")
model.load_state_dict(from_llama(read_safetensors(weights_file)))
fingerprint = zlib.crc32(model.h[0].mlp.c_proj.weight.detach().numpy())
if lora_rank > 0:
    model.requires_grad_(False)
    replace_linears(LoRA)
model.to(device)
n_params = sum(p.numel() for p in model.parameters())
n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
print(f"{n_params:,} parameters, {n_trained:,} of them trainable, device {device}")
size = (n_layer, 2, 1, n_kv_head, block_size, n_embd // n_head)
cache = torch.zeros(size, device=device)  # keys and values
cached_ids = []  # the tokens that they belong to


# --------------------------------------------------------------------------- Optimizer
# AdamW is gradient descent with a separate step size for each weight
matrices = []
others = []
for name, p in model.named_parameters():
    if not p.requires_grad:
        continue
    if name.startswith("h.") and p.ndim == 2:
        matrices.append(p)
    else:
        others.append(p)
decayed = {"params": matrices, "weight_decay": weight_decay}
rest = {"params": others, "weight_decay": 0.0}
optimizer = torch.optim.AdamW([decayed, rest], betas=(beta1, beta2), fused=True)


def get_lr(step):
    """The learning rate for a step: linear warm-up to the peak, linear decay to 0."""
    if step < warmup_iters:
        return learning_rate * (step + 1) / warmup_iters
    return learning_rate * (max_iters - step) / (max_iters - warmup_iters)


# ------------------------------------------------------------------------- Checkpoints
# Only a run that agrees on all of this can continue from a checkpoint
identity = {
    "n_layer": n_layer,
    "n_embd": n_embd,
    "lora_rank": lora_rank,
    "weights": fingerprint,  # those that a checkpoint with LoRA does not contain
}
if max_iters > 0:
    identity["data"] = zlib.crc32(repr(train_data).encode())  # a fingerprint


def trained_weights():
    """{name: parameter} of what training changes."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save_checkpoint(name, step):
    """Save everything needed to continue, and never leave a half-written file."""
    checkpoint = {"identity": identity, "step": step, "best_val_loss": best_val_loss}
    checkpoint["model"] = trained_weights()
    checkpoint["optimizer"] = optimizer.state_dict()
    try:
        with tempfile.TemporaryDirectory(dir=out_dir) as folder:  # no other run uses it
            unfinished = Path(folder, name).with_suffix(".tmp")
            with open(unfinished, "wb") as f:
                torch.save(checkpoint, f)
            os.replace(unfinished, Path(out_dir, name))  # all at once
    except (OSError, RuntimeError) as error:  # the disk is full, for example
        sys.exit(f"{out_dir}/{name} could not be written: {error}")


def load_checkpoint(name):
    """Restore model and optimizer. Returns the step and the best val loss so far."""
    path = Path(out_dir, name)
    try:
        if zipfile.ZipFile(path).testzip() is not None:  # torch.save writes zip files
            raise ValueError("the file is damaged (wrong checksum)")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        for key, value in identity.items():
            if key not in checkpoint["identity"]:
                raise ValueError(f"saved by an earlier step, without {key}")
            found = checkpoint["identity"].get(key)
            if found != value:
                raise ValueError(f"saved by a run with {key}={found}, not {value}")
        if checkpoint["model"].keys() != trained_weights().keys():
            raise ValueError("it contains other parameters than this run trains")
        model.load_state_dict(checkpoint["model"], strict=False)  # the others stay
        state = checkpoint["optimizer"]
        for group, saved in zip(optimizer.param_groups, state["param_groups"]):
            saved.update(group, params=saved["params"])  # this run's settings
        optimizer.load_state_dict(state)
        return checkpoint["step"], checkpoint["best_val_loss"]
    except Exception as error:  # a damaged file can raise almost anything
        reason = f"{type(error).__name__}: {error}".split("\n")[0].split(". ")[0]
        sys.exit(f"{path}: {reason}; use another --out_dir")


def evaluate_and_save(step):
    """Print the val loss. Save last.pt, and best.pt if it is the best."""
    global best_val_loss
    val_loss = estimate_loss()
    print(f"step {step:5d}/{max_iters} | val loss {val_loss:.4f}", flush=True)
    if not math.isfinite(val_loss):
        sys.exit("the val loss is not finite; try a lower --learning_rate")
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
            print(f"{out_dir}/{name}: trained for {first_step} steps")
            break

stop_requested = False
handlers = {}  # the previous signal handlers, to be restored
for signum in [signal.SIGINT, signal.SIGTERM]:
    handlers[signum] = signal.signal(signum, request_stop)
if max_iters > 0 and first_step == 0:
    print(f"before training: val loss {estimate_loss():.4f}")
    answer_questions()
start = time.perf_counter()
for step in range(first_step, max_iters):
    x, y = get_batch(step)
    loss = model(x, y)
    model.zero_grad()  # otherwise new gradients are added to the old ones
    loss.backward()  # computes the gradient: how the loss changes with each weight
    if grad_clip > 0:
        nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    for group in optimizer.param_groups:
        group["lr"] = get_lr(step)
    optimizer.step()
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
if max_iters > 0:
    answer_questions()
    print(f"final val loss {estimate_loss():.4f}")
if lora_rank > 0:
    replace_linears(merge_lora)
if export_dir:
    export()
talking = max_iters == 0 and not export_dir
if int8 and talking:
    replace_linears(Int8Linear)
    model.lm_head = Int8Linear(model.lm_head)  # wte keeps its copy: a row for a token
if device == "cpu" and talking:
    store_by_columns()
torch.manual_seed(seed)  # the same random numbers every time
try:
    if talking and prompt:
        answer(fit([encode_message("user", prompt)]))
    elif talking:
        print("/quit ends, /reset starts again, Ctrl-C stops an answer", flush=True)
        talk()
except BrokenPipeError:  # the program that read our output has ended
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
