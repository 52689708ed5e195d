"""Train the two models that run in the web pages, and write their weights.

    python docs/tools/weights.py    writes docs/tools/weights_*.js; half a minute

bigram.py and v2_attention.py are run as they are, without arguments. Of bigram.py the
page gets the table itself. The weights of v2_attention.py are rounded to 8 bits: each
row of a matrix is divided by its largest number and stored as integers from -127 to
127, beside that scale. What the rounding costs is measured and written down, too.
"""

import base64
import io
import json
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parents[1]


def train(script):
    """The names of a script after its run without arguments."""
    sys.argv = [str(ROOT / script)]
    with redirect_stdout(io.StringIO()):
        return runpy.run_path(sys.argv[0], run_name="__main__")


def packed(array):
    """The bytes of an array as text."""
    return base64.b64encode(array.tobytes()).decode()


def rounded(matrix):
    """A matrix in 8 bits: (integers, scale of each row). A vector is a single row."""
    rows = matrix.reshape(-1, matrix.shape[-1])
    scales = np.abs(rows).max(axis=1, keepdims=True) / 127
    integers = np.round(rows / scales)
    return integers.astype("int8"), scales.astype("<f4")


def write(name, content):
    """Write a script that puts the weights where live.js finds them."""
    text = json.dumps(content, ensure_ascii=True, indent=1)
    head = "// Made by docs/tools/weights.py: the trained weights of a model\n"
    path = TOOLS / f"weights_{name}.js"
    path.write_text(f"{head}var {name}_weights = {text};\n", encoding="utf-8")
    print(f"{path}: {path.stat().st_size:,} bytes")


def bigram():
    """The table of bigram.py, as it is."""
    names = train("bigram.py")
    table = names["model"].table.weight.detach().numpy()
    content = {
        "chars": "".join(names["chars"]),
        "loss": round(names["estimate_loss"](), 4),
        "table": packed(table.astype("<f4")),
    }
    write("bigram", content)


def attention():
    """The weights of v2_attention.py in 8 bits, and what is lost by that."""
    names = train("v2_attention.py")
    model = names["model"]
    text = names["val_data"][: names["block_size"]][None]
    with torch.no_grad():
        exact = model.logits(text)
    loss = names["estimate_loss"]()

    tensors = {}
    for name, weight in model.named_parameters():
        integers, scales = rounded(weight.detach().numpy())
        again = torch.from_numpy(integers * scales).view(weight.shape)
        weight.data.copy_(again)
        tensors[name] = {
            "shape": list(weight.shape),
            "integers": packed(integers),
            "scales": packed(scales),
        }
    with torch.no_grad():
        error = (model.logits(text) - exact).abs()
    content = {
        "chars": "".join(names["chars"]),
        "block_size": names["block_size"],
        "n_head": names["n_head"],
        "loss": round(loss, 4),
        "loss in 8 bits": round(names["estimate_loss"](), 4),
        "mean error of a logit": round(error.mean().item(), 4),
        "largest error of a logit": round(error.max().item(), 4),
        "tensors": tensors,
    }
    write("attention", content)


if __name__ == "__main__":
    bigram()
    attention()
