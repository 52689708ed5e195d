"""What attention does on one line of text: the numbers behind docs/v2_attention.md.

    python docs/bench/attention.py

Trains v2_attention.py, changed in several ways, and writes docs/bench/attention.md, and
.json with the queries, keys and values that the pictures draw. Takes about five
minutes.
"""

import io
import json
import math
import platform
import runpy
import sys
import tempfile
import time
from contextlib import redirect_stdout
from datetime import date
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "docs/bench"
LINE = "my father"
MASK = "hide the future\n"
NEAR = "        scores = scores.masked_fill(self.past[:T, :T].tril(-2), -torch.inf)\n"
NO_MASK = ("        scores = scores.masked_fill(~self.past[:T, :T], -torch.inf)", "")
NO_SQRT = (" / k.shape[-1] ** 0.5", "")
Q_K_V = "self.query(x), self.key(x), self.value(x)"
# What is measured: the name in the report, the flags, what is replaced in the script
RUNS = {
    "nothing": ([], []),
    "without the mask": ([], [NO_MASK]),
    "without the mask, after 100 steps": (["--max_iters=100"], [NO_MASK]),
    "without the square root": ([], [NO_SQRT]),
    "one head": (["--n_head=1"], []),
    "one head, without the square root": (["--n_head=1"], [NO_SQRT]),
    "K = V": ([], [(Q_K_V, "self.query(x), self.key(x), self.key(x)")]),
    "Q = K": ([], [(Q_K_V, "self.key(x), self.key(x), self.value(x)")]),
    "Q = K = V": ([], [(Q_K_V, "self.key(x), self.key(x), self.key(x)")]),
    "only itself and the one before": ([], [(MASK, MASK + NEAR)]),
}


def run(source, flags):
    """Run a script: its names afterwards, and its last loss."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "script.py")
        path.write_text(source, encoding="utf-8")
        sys.argv = [str(path), "--device=cpu", *flags]
        out = io.StringIO()
        with redirect_stdout(out):
            names = runpy.run_path(str(path), run_name="__main__")
    sample = out.getvalue().split("-" * 80)[1].strip("\n")
    return names, float(out.getvalue().split()[-1]), sample


def changed(source, replacements):
    for old, new in replacements:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    return source


def rounded(tensor):
    """A tensor as lists of numbers with four decimals."""
    return json.loads(
        json.dumps(tensor.tolist()), parse_float=lambda s: round(float(s), 4)
    )


def entropy(weights):
    """Of each row, in nats."""
    return -(weights * weights.clamp_min(1e-30).log()).sum(dim=-1)


def softmax_of(scores):
    """The masked softmax of scores (..., T, T)."""
    T = scores.shape[-1]
    future = torch.ones(T, T).triu(1).bool()
    return scores.masked_fill(future, -torch.inf).softmax(dim=-1)


@torch.no_grad()
def entropies(names):
    """Mean entropy of the last row of weights, with and without the square root.

    names: of a file with one head and without positions.
    """
    model = names["model"]
    x = model.wte(names["val_data"][: 64 * 200].view(200, 64))
    q, k = model.attn.query(x), model.attn.key(x)
    scores = q @ k.transpose(1, 2)
    found = {"spread of the scores": scores.std().item()}
    for name, divisor in (("with", q.shape[-1] ** 0.5), ("without", 1)):
        found[name] = entropy(softmax_of(scores / divisor))[:, -1].mean().item()
    return found


@torch.no_grad()
def weight_of_own_character(names):
    """The weight of a position's own character, itself and earlier copies together.

    names: of a file with one head and without positions.
    """
    model = names["model"]
    idx = names["val_data"][: 64 * 100].view(100, 64)
    x = model.wte(idx)
    q, k = model.attn.query(x), model.attn.key(x)
    weights = softmax_of(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5)
    same = idx[:, :, None] == idx[:, None, :]
    return (weights * same).sum(dim=-1)[:, 8:].mean().item()  # with some past to see


@torch.no_grad()
def line_of(names):
    """x, and the queries, keys and values of each head, on the line."""
    model = names["model"]
    idx = torch.tensor(names["encode"](LINE))
    x = model.wte(idx) + model.wpe(torch.arange(len(LINE)))
    heads = []
    for head in model.attn.heads:
        parts = {"q": head.query(x), "k": head.key(x), "v": head.value(x)}
        heads.append({name: rounded(part) for name, part in parts.items()})
    return {"text": LINE, "x": rounded(x), "heads": heads}


def random_vectors(hs):
    """Queries and keys of variance 1: how sharp is the softmax of 64 scores?"""
    torch.manual_seed(0)
    q, k = torch.randn(1000, 1, hs), torch.randn(1000, 64, hs)
    scores = (q @ k.transpose(1, 2))[:, 0]
    rows = {}
    for name, divisor in (("without", 1), ("with", hs**0.5)):
        weights = (scores / divisor).softmax(dim=-1)
        rows[name] = {
            "entropy": entropy(weights).mean().item(),
            "largest weight": weights.max(dim=-1).values.mean().item(),
        }
    return rows


def counted(names, n):
    """Val loss of a table of n-grams, made by counting, 0.01 added to each count."""
    V = names["vocab_size"]
    counts = torch.full((V**n,), 0.01)
    ids = {}
    for part in ("train_data", "val_data"):
        data = names[part]
        ids[part] = sum(
            data[i : len(data) - n + 1 + i] * V ** (n - 1 - i) for i in range(n)
        )
    counts += ids["train_data"].bincount(minlength=V**n)
    table = counts.view(-1, V)
    probs = (table / table.sum(dim=1, keepdim=True)).flatten()
    return -probs[ids["val_data"]].log().mean().item()


def seconds_to_write(source):
    """The time of a sample of 2,000 characters, all together."""
    start = time.perf_counter()
    run(source, ["--max_iters=0", "--max_new_tokens=2000"])
    with_it = time.perf_counter() - start
    start = time.perf_counter()
    run(source, ["--max_iters=0", "--max_new_tokens=1"])
    return with_it - (time.perf_counter() - start)


def table(head, rows):
    """A table in Markdown: the cells of its head, and of its rows."""
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for row in rows:
        lines.append(f"| {' | '.join(row)} |")
    return [*lines, ""]


def write(found):
    """Write the report, and the JSON with all that was measured."""
    path = BENCH / "attention.json"
    path.write_text(json.dumps(found) + "\n", encoding="utf-8")
    tables = found["tables"]
    lines = [
        "# What attention does: python docs/bench/attention.py",
        "",
        f"- {platform.machine()}, {torch.get_num_threads()} threads",
        f"- torch {torch.__version__}, {date.today()}",
        "- seed 1337, 1,000 steps",
        "",
        "### v2_attention.py, changed",
        "",
    ]
    rows = [[name, f"{loss:.4f}"] for name, loss in tables["loss"].items()]
    lines += table(["change", "val loss"], rows)

    title = "The weights of the last of 64 positions, after step 5, not yet trained"
    lines += [f"### {title}", ""]
    start = tables["start"]
    rows = [["all equal: ln 64", f"{math.log(64):.2f}"]]
    rows += [["with the square root", f"{start['with']:.2f}"]]
    rows += [["without the square root", f"{start['without']:.2f}"]]
    lines += table(["weights", "entropy, nats"], rows)
    spread = start["spread of the scores"]
    lines += [f"Standard deviation of the scores: {spread:.2f}.", ""]

    lines += ["### Where the weight goes after step 6, trained", ""]
    rows = [["the same character, itself included", f"{100 * tables['own']:.0f}"]]
    lines += table(["positions", "%"], rows)

    lines += ["### The softmax of 64 dot products of random vectors", ""]
    head = ["hs", "entropy, without √hs", "largest weight"]
    head += ["entropy, with √hs", "largest"]
    rows = []
    for hs, row in tables["random"].items():
        cells = [f"{hs}"]
        for name in ("without", "with"):
            cells.append(f"{row[name]['entropy']:.2f}")
            cells.append(f"{row[name]['largest weight']:.2f}")
        rows.append(cells)
    lines += table(head, rows)

    lines += ["### Tables made by counting, 0.01 added to each count", ""]
    rows = [[f"{n}", f"{loss:.4f}"] for n, loss in tables["n-grams"].items()]
    lines += table(["characters", "val loss"], rows)

    lines += ["### To write 2,000 characters", ""]
    rows = [[name, f"{seconds:.1f}"] for name, seconds in tables["seconds"].items()]
    lines += table(["file", "s"], rows)

    lines += ["### What it writes", ""]
    for name in ("nothing", "without the mask"):
        lines += [f"{name}:", "", "```text", tables["sample"][name][:300], "```", ""]
    text = "\n".join(lines).rstrip() + "\n"
    (BENCH / "attention.md").write_text(text, encoding="utf-8")


def main():
    steps = runpy.run_path(str(ROOT / "docs/tools/steps.py"))["steps"]
    files = steps((ROOT / "bigram.py").read_text(encoding="utf-8"))
    after = {}
    for name, text in files.items():
        if name.startswith("v2_attention/"):
            after[Path(name).stem] = text
    start, writing, own = {}, {}, None
    for name, text in after.items():
        if name.startswith("05_"):
            names, _, _ = run(text, ["--max_iters=0"])
            start = entropies(names)
        if name.startswith("06_"):
            names, _, _ = run(text, ["--max_new_tokens=1"])
            own = weight_of_own_character(names)
        if name.startswith(("06_", "07_")):
            writing[name] = seconds_to_write(text)

    source = (ROOT / "v2_attention.py").read_text(encoding="utf-8")
    losses, samples, line, grams = {}, {}, {}, {}
    for name, (flags, replacements) in RUNS.items():
        names, losses[name], samples[name] = run(changed(source, replacements), flags)
        print(f"{name}: {losses[name]:.4f}", flush=True)
        if name == "nothing":
            line = line_of(names)
            for n in (1, 2, 3):
                grams[n] = counted(names, n)
    random = {hs: random_vectors(hs) for hs in (8, 32, 128)}
    tables = {"loss": losses, "sample": samples, "random": random, "start": start}
    tables |= {"n-grams": grams, "seconds": writing, "own": own}
    write({"tables": tables, "line": line})


if __name__ == "__main__":
    main()
