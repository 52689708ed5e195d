"""What gpt2_train.py knows of GPUs, as far as arithmetic goes: speed and memory.

The names of the script are those of a run on the CPU: see gpt2 in conftest.py.
"""

import ast
import functools
import importlib.util
import math
import re
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from makers import (
    PRECISIONS,
    ROOT,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.torch_version import TorchVersion
from torch.utils.flop_counter import FlopCounterMode

SCRIPT = ROOT / "gpt2_train.py"


@functools.cache
def statements():
    """The script's top-level statements, as (text without comments, code)."""
    body = ast.parse(SCRIPT.read_text(encoding="utf-8")).body
    return [
        (ast.unparse(n), compile(ast.Module([n], []), SCRIPT, "exec")) for n in body
    ]


def again(g, *beginnings, **changed):
    """Run again the statements of the script that begin so, with some names changed.

    For what depends on hardware that is not here; returns the names afterwards.
    """
    names = {**g, **changed}
    chosen = [code for text, code in statements() if text.startswith(beginnings)]
    assert len(chosen) >= len(beginnings)
    for code in chosen:
        exec(code, names)
    return names


# ----------------------------------------------------------------------- The hardware's
# Names as the driver prints them; dense operations in half precision by the data sheets
PEAKS = [
    ("NVIDIA A100-SXM4-40GB", 312),
    ("NVIDIA A100-SXM4-80GB", 312),
    ("NVIDIA A100-PCIE-40GB", 312),
    ("NVIDIA A100 80GB PCIe", 312),
    ("NVIDIA H100 PCIe", 756),
    ("NVIDIA H100 80GB HBM3", 989),
    ("NVIDIA H100 NVL", 835),
    ("NVIDIA H200", 989),
    ("NVIDIA H200 NVL", 835),
    ("NVIDIA H800", 989),
    ("NVIDIA GB200", 2500),
    ("NVIDIA B200", 2250),
    ("NVIDIA L4", 121),
    ("NVIDIA L40", 181),
    ("NVIDIA L40S", 362),
    ("NVIDIA A10", 125),
    ("NVIDIA A40", 150),
    ("NVIDIA A30", 165),
    ("Tesla T4", 65),
    ("Tesla V100-SXM2-16GB", 125),
    ("Tesla V100-PCIE-32GB", 112),
    ("NVIDIA GeForce RTX 3090", 71),
    ("NVIDIA GeForce RTX 4090", 165),
    ("NVIDIA GeForce RTX 5090", 209),
    ("NVIDIA RTX 6000 Ada Generation", 364),
    # Like one of the above in name, but not in speed
    ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
    ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", None),
    ("NVIDIA GeForce RTX 4090 D", None),
    ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ("NVIDIA GeForce RTX 3090 Ti", None),
    ("NVIDIA GeForce RTX 5090 D", None),
    ("NVIDIA RTX 6000", None),
    ("Quadro RTX 6000", None),
    ("NVIDIA RTX A4000", None),
    ("NVIDIA A10G", None),
    ("NVIDIA A2", None),
    ("NVIDIA A16", None),
    ("NVIDIA L20", None),
    ("NVIDIA H20", None),
    ("NVIDIA T400", None),
    ("NVIDIA T400 4GB", None),
    ("NVIDIA T1000", None),
    ("Tesla V100S-PCIE-32GB", None),
    ("NVIDIA B300 SXM6 AC", None),
    ("AMD Instinct MI300X", None),
    ("", None),
]


def test_peaks(gpt2, tokens):
    """Those of the table are the data sheets'; of all others nothing is claimed."""
    g = gpt2()
    assert math.isnan(g["peak"])  # of a CPU
    sheets = dict(PEAKS)
    for name, tera in g["peaks"].items():
        assert tera == pytest.approx(sheets[name], rel=0.005), name
    assert {"NVIDIA H100 80GB HBM3", "Tesla T4"} < set(g["peaks"])
    for name in sheets:
        cuda = SimpleNamespace(get_device_name=lambda device, name=name: name)
        fake = SimpleNamespace(cuda=cuda)
        changed = {"on_gpu": True, "world_size": 3, "torch": fake}
        found = again(g, "peak = ", "if on_gpu:\n    peak", **changed)["peak"]
        if name in g["peaks"]:
            assert found == 3e12 * g["peaks"][name], name
        else:
            assert math.isnan(found), name


def test_torch_that_is_too_old_for_gpus(gpt2, tokens):
    """2.10 with torch.compile gave NaNs on an A100."""
    g = gpt2()
    for version, on_gpu in (("2.10.1", True), ("2.9.0+cu128", True), ("2.5.0", False)):
        old = SimpleNamespace(__version__=TorchVersion(version))
        if not on_gpu:
            again(g, "if on_gpu and torch.__version__", torch=old)
            continue
        with pytest.raises(SystemExit) as end:
            again(g, "if on_gpu and torch.__version__", on_gpu=True, torch=old)
        assert "PyTorch 2.11 or newer" in end.value.code and "\n" not in end.value.code
    for version in ("2.11.0", "2.13.0+cu130", "3.0.0"):
        new = SimpleNamespace(__version__=TorchVersion(version))
        again(g, "if on_gpu and torch.__version__", on_gpu=True, torch=new)


def test_no_compile_without_triton(gpt2, tokens, monkeypatch, capsys):
    """As on Windows: said in one line, and the run goes on without it."""
    g = gpt2()
    found = {"triton": None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found[name])
    begin = "if on_gpu and compile"
    capsys.readouterr()
    assert again(g, begin, on_gpu=True, compile=True)["compile"] is False
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "triton" in out
    found["triton"] = "it is here"
    assert again(g, begin, on_gpu=True, compile=True)["compile"] is True
    found.clear()  # nobody asks for it
    assert again(g, begin, on_gpu=False, compile=True)["compile"] is True
    assert again(g, begin, on_gpu=True, compile=False)["compile"] is False
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("size", [(2, 2, 32, 16), (3, 4, 64, 128)])
def test_flops_equal_a_count(gpt2, tokens, size):
    """Forward and backward, counted by torch where attention is plain matrix products.

    Those are of all pairs of positions, also of the half that causal attention may
    leave out, and so is the formula. It also counts parameters that are only added:
    positions, norms, biases.
    """
    n_layer, n_head, n_embd, block_size = size
    args = [f"--n_layer={n_layer}", f"--n_head={n_head}", f"--n_embd={n_embd}"]
    args += [f"--block_size={block_size}", f"--total_batch_size={4 * block_size}"]
    g = gpt2(*args)
    model = g["model"]
    x, y = g["get_batch"](0, 0)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x, y).backward()
    counted = counter.get_total_flops() * g["accumulation"]
    added = (
        sum(p.numel() for p in model.parameters() if p.ndim == 1)
        + model.wpe.weight.numel()
    )
    assert g["flops"] == counted + 6 * added * 4 * block_size
    attention = 12 * n_layer * n_embd * block_size * 4 * block_size
    assert 0.05 * counted < attention < counted  # a wrong one could not hide


HALF = {
    "bfloat16": (True, False),
    "float16": (False, True),
    "float32": (False, False),
}


def sized(g, name, precision="bfloat16", block_size=1024, world_size=1):
    """The script's names, as if it had been started with a model of that size."""
    g["n_layer"], g["n_head"], g["n_embd"] = g["sizes"][name][:3]
    g["block_size"] = block_size
    g["bfloat16"], g["float16"] = HALF[precision]
    with torch.device("meta"):  # shapes without memory
        g["model"] = g["GPT"]()
    g["n_params"] = sum(p.numel() for p in g["model"].parameters())
    g["per_process"] = 524_288 // block_size // world_size
    return g


@pytest.mark.parametrize("precision", HALF)
def test_automatic_batch_fits(gpt2, gpt2_tokens, precision):
    """Every size on every GPU: at most 90% of its memory, and 2**31 logits.

    A parameter takes 20 bytes: weight, gradient, two means, and DDP's buffer.
    """
    g = gpt2()
    assert g["micro_batch_size"] == 8  # of the tiny model: all that a step needs
    channel = (
        68 if precision == "float32" else 34
    )  # bytes that a layer keeps of a token
    chosen = {}
    for name in g["sizes"]:
        block_size = 2048 if name.startswith("gpt3") else 1024
        sized(g, name, precision, block_size)

        def bytes_for(B):
            per_token = channel * g["n_layer"] * g["n_embd"] + 13 * 50304
            return 20 * g["n_params"] + B * block_size * per_token

        def fits(B, memory, margin=1.0):
            enough = bytes_for(B) <= margin * 0.9 * memory * 2**30
            return enough and B * block_size * 50304 < 2**31

        for memory in (15, 24, 40, 80, 94, 141):
            for per_process in (1, 30, 509, 512):
                g["per_process"] = per_process
                case = name, memory, per_process
                chosen[case] = B = g["largest_batch_size"](memory * 2**30)
                assert per_process % B == 0 and (fits(B, memory) or B == 1), case
                # Nor is it smaller than it must be; about one percent nobody argues
                for larger in range(B + 1, per_process + 1):
                    if per_process % larger == 0:
                        assert not fits(larger, memory, 0.99), case
    in_half = precision != "float32"
    found = [chosen["gpt2", memory, 512] for memory in (15, 40, 80)]
    assert found == ([8, 32, 32] if in_half else [8, 16, 32])
    assert chosen["gpt2-xl", 40, 512] == (2 if in_half else 1)  # 4 would not fit
    assert chosen["char", 15, 512] > 8


def test_given_batch_size_is_taken(gpt2, tokens):
    g = gpt2("--batch_size=2")
    assert g["micro_batch_size"] == 2 and g["accumulation"] == 4
    g = gpt2("--batch_size=1")
    assert g["micro_batch_size"] == 1 and g["accumulation"] == 8


@pytest.mark.long
def test_memory_table_is_computed_by_the_script(gpt2, gpt2_tokens):
    text = (SCRIPT.parent / "docs/reproduce_gpt2.md").read_text(encoding="utf-8")
    header = re.search(r"^\| model \| context \|(.*)\|$", text, flags=re.M)
    sizes = [int(number) for number in re.findall(r"(\d+) GiB", header[1])]
    rows = re.findall(r"^\| `(gpt[\w-]+)` \| ([\d,]+) \| (.*) \|$", text, flags=re.M)
    assert rows and sizes
    g = gpt2()
    table = []
    for name, context, _ in rows:
        block_size = int(context.replace(",", ""))
        sized(g, name, block_size=block_size)
        per_token = 34 * g["n_layer"] * g["n_embd"] + 13 * 50304
        cells = []
        for gib in sizes:
            cell = str(g["largest_batch_size"](gib * 2**30))
            if 20 * g["n_params"] + block_size * per_token > 0.9 * gib * 2**30:
                cell = "no"
            cells.append(cell)
        table.append((name, context, " | ".join(cells)))
    assert rows == table


@pytest.mark.parametrize("precision", HALF)
def test_memory_of_a_layer(gpt2, tokens, precision):
    """The 34 or 68 bytes per channel that the formula counts, against what is kept.

    Without torch.compile the two are only near each other.
    """
    kept, shape = (
        [],
        "--n_embd=128 --n_head=2 --block_size=128 --total_batch_size=512".split(),
    )
    for n_layer in (1, 2):
        g = gpt2(
            *PRECISIONS[precision], *shape, f"--n_layer={n_layer}", "--batch_size=4"
        )
        g["attention"] = lambda q, k, v, p: F.scaled_dot_product_attention(
            q, k, v, is_causal=True
        )
        storages = {}

        def pack(tensor):
            # A weight in half precision does not become more with more tokens
            if tensor.is_floating_point() and tensor.numel() >= 4 * 128:
                weight = (
                    tensor.ndim == 2 and 512 not in tensor.stride() + tensor.shape[:1]
                )
                if not weight:
                    storages[tensor.untyped_storage().data_ptr()] = (
                        tensor.untyped_storage()
                    )
            return tensor

        tokens = g["get_batch"](0, 0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = g["model"](*tokens)
        own = {p.untyped_storage().data_ptr() for p in g["model"].parameters()}
        kept.append(sum(s.nbytes() for at, s in storages.items() if at not in own))
        del loss
    per_channel = (kept[1] - kept[0]) / (4 * 128) / 128
    assert per_channel == pytest.approx(68 if precision == "float32" else 34, rel=0.15)
