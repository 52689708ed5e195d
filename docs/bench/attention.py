"""The numbers behind docs/bigram.md and docs/v2_attention.md.

    python docs/bench/attention.py
    python docs/bench/attention.py "step 5" pairs    only these parts; see PARTS

Trains v2_attention.py and its steps, changed in several ways, and writes
docs/bench/attention.md, and .json with all values, among them the queries, keys and
values that the pictures draw. Takes about twenty minutes.
"""

import functools
import io
import json
import math
import runpy
import sys
import tempfile
import time
from collections import Counter
from contextlib import redirect_stdout
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
from lab import describe_machine

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "docs/bench"
LINE = "my father"
CHARS = "\n aehilnorstuy"  # of the picture of the table of pairs
NAMED = {" ": "space", "\n": "new line"}
MASK = "hide the future\n"
NEAR = "        scores = scores.masked_fill(self.past[:T, :T].tril(-2), -torch.inf)\n"
NO_MASK = ("        scores = scores.masked_fill(~self.past[:T, :T], -torch.inf)", "")
NO_SQRT = (" / k.shape[-1] ** 0.5", "")
Q_K_V = "self.query(x), self.key(x), self.value(x)"
# Dividing the scores by √hs is the same as dividing queries and keys by its root. Adam
# makes steps of the same size, whatever the gradient, so for the weights of the two
# layers it means a smaller start and smaller steps. Here are both of them, separately
MODEL = "model = AttentionLanguageModel().to(device)\n"
HALF = """with torch.no_grad():
    for parameter in [*model.attn.query.parameters(), *model.attn.key.parameters()]:
        parameter /= n_embd**0.25
"""
SMALL_START = (MODEL, MODEL + HALF)
ADAMW = "optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)\n"
GROUPS = """few = [*model.attn.query.parameters(), *model.attn.key.parameters()]
rest = [*model.wte.parameters(), *model.attn.value.parameters()]
rest += model.lm_head.parameters()
groups = [{"params": rest}, {"params": few, "lr": learning_rate / n_embd**0.25}]
optimizer = torch.optim.AdamW(groups, lr=learning_rate)
"""
SMALL_STEPS = (ADAMW, GROUPS)
STUDIES = {
    "step 5": (5, []),
    "step 6": (6, []),
    "step 5, smaller weights at the start": (5, [SMALL_START]),
    "step 5, smaller steps": (5, [SMALL_STEPS]),
}
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

# The learning rates of two files, and how far other seeds take the loss of some
RATES = {"00_bigram": [0.0005, 0.005, 0.05, 0.5, 5]}
RATES["01_a_vector_for_every_character"] = [0.001, 0.002, 0.005]
SEEDS = (1337, 1, 2)
SEEDED = {
    "00_bigram": [],
    "01_a_vector_for_every_character": [],
    "09_several_heads": [],
    "09_several_heads, one head": ["--n_head=1"],
    "08_positions": [],
    "06_the_square_root": [],
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


def studied(name):
    """Steps 5 and 6: the weights before training, and when it has begun."""
    step, replacements = STUDIES[name]
    text = changed(file_after(step), replacements)
    names, _, _ = run(text, ["--max_iters=0", "--max_new_tokens=1"])
    found = {"before": weights_of(names, step)}
    names, _, _ = run(text, ["--max_iters=100", "--max_new_tokens=1"])
    return {name: found | {"after": weights_of(names, step)}}


@torch.no_grad()
def weights_of(names, step):
    """How spread the scores are, and how settled the weights of the last position.

    The weights of equal characters are added first: without positions, attention cannot
    tell them apart. slope: the sum of w (1 - w), the derivatives of the weights.
    """
    model = names["model"]
    idx = names["val_data"][: 64 * 200].view(200, 64)
    x = model.wte(idx)
    q, k = model.attn.query(x), model.attn.key(x)
    scores = q @ k.transpose(1, 2)
    if step == 6:
        scores = scores / q.shape[-1] ** 0.5
    weights = softmax_of(scores)
    last = weights[:, -1]
    of_char = torch.zeros(200, names["vocab_size"]).scatter_add_(1, idx, last)
    return {
        "spread": scores.std().item(),
        "slope": (1 - (of_char**2).sum(dim=1)).mean().item(),
        "largest": of_char.max(dim=1).values.mean().item(),
    }


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
def loss_by_position(names, factor=1):
    """The mean loss at each position of the validation windows, logits times factor."""
    data, T = names["val_data"], names["block_size"]
    n = (len(data) - 1) // T * T
    x, y = data[:n].view(-1, T), data[1 : n + 1].view(-1, T)
    losses = []
    for xb, yb in zip(x.split(32), y.split(32)):
        logits = names["model"].logits(xb).transpose(1, 2)  # (B, V, T)
        losses.append(F.cross_entropy(logits * factor, yb, reduction="none"))
    return torch.cat(losses).mean(dim=0)


@torch.no_grad()
def weight_of_itself(names):
    """The weight that a position gives to itself, the mean of all heads."""
    model = names["model"]
    x = model.wte(names["val_data"][: 64 * 100].view(100, 64))
    x = x + model.wpe(torch.arange(64))
    heads = []
    for head in model.attn.heads:
        q, k = head.query(x), head.key(x)
        if names["SHARED"]:
            q = k
        weights = softmax_of(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5)
        own = weights.diagonal(dim1=1, dim2=2)
        heads.append(own[:, 8:].mean().item())  # with some past to see
    return sum(heads) / len(heads)


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


# ------------------------------------------------------------------------------- Parts
def files():
    """{"00_bigram": text, "01_...": text, ...}: bigram.py and the files after it."""
    bigram = (ROOT / "bigram.py").read_text(encoding="utf-8")
    steps = runpy.run_path(str(ROOT / "docs/tools/steps.py"))["steps"]
    found = {"00_bigram": bigram}
    for name, text in steps(bigram).items():
        if name.startswith("v2_attention/"):
            found[Path(name).stem] = text
    return found


def file_after(number):
    """The text of the file after a step."""
    (text,) = [t for name, t in files().items() if name.startswith(f"{number:02d}_")]
    return text


def script():
    """v2_attention.py, changed: losses, samples, the line; tables of n-grams."""
    source = (ROOT / "v2_attention.py").read_text(encoding="utf-8")
    losses, samples, line, grams = {}, {}, {}, {}
    for name, (flags, replacements) in RUNS.items():
        names, losses[name], samples[name] = run(changed(source, replacements), flags)
        print(f"{name}: {losses[name]:.4f}", flush=True)
        if name == "nothing":
            line = line_of(names)
            for n in (1, 2, 3):
                grams[n] = counted(names, n)
    return {"loss": losses, "sample": samples, "line": line, "n-grams": grams}


def before():
    """The loss of the first two files before training, and the weights of step 5."""
    losses = {}
    for name, text in list(files().items())[:2]:
        _, losses[name], _ = run(text, ["--max_iters=0", "--max_new_tokens=1"])
    names, _, _ = run(file_after(5), ["--max_iters=0", "--max_new_tokens=1"])
    return {"untrained": losses, "start": entropies(names)}


def own():
    """Step 6, trained: where the weight goes."""
    names, _, _ = run(file_after(6), ["--max_new_tokens=1"])
    return {"own": weight_of_own_character(names)}


def pairs():
    """What follows a character, and what bigram.py has learned of it."""
    names, _, _ = run(file_after(0), [])
    following = {}
    text = names["text"]
    for char in "th":
        counts = Counter(b for a, b in zip(text, text[1:]) if a == char)
        for other, count in counts.most_common(4):
            percent = 100 * count / counts.total()
            following[f"{char} {NAMED.get(other, other)}"] = percent
    ids = names["encode"](CHARS)
    learned = names["model"].table.weight.detach().softmax(dim=1)[ids][:, ids]
    data, V = names["train_data"], names["vocab_size"]
    counts = (data[:-1] * V + data[1:]).bincount(minlength=V * V).view(V, V)
    exact = (counts / counts.sum(dim=1, keepdim=True))[ids][:, ids]
    difference = 100 * (learned - exact).abs().max().item()
    return {"following": following, "learned": [len(CHARS) ** 2, difference]}


def seconds():
    """The time that a long sample takes, without a limit to the context and with it."""
    writing = {}
    for name, text in files().items():
        if name.startswith(("06_", "07_")):
            writing[name] = seconds_to_write(text)
    return {"seconds": writing}


def vectors():
    """The softmax of random dot products."""
    return {"random": {hs: random_vectors(hs) for hs in (8, 32, 128)}}


def rates():
    """The loss at other learning rates, after 100 steps and at the end."""
    found = {}
    for name, values in RATES.items():
        text = files()[name]
        for rate in values:
            flags = [f"--learning_rate={rate}", "--eval_interval=1000"]
            flags.append("--max_new_tokens=1")
            _, early, _ = run(text, [*flags, "--max_iters=100"])
            _, final, _ = run(text, flags)
            found[f"{name}, {rate}"] = [early, final]
    return {"rates": found}


def positions():
    """The loss at each position, of step 3 and of the script without its mask."""
    names, _, _ = run(file_after(3), ["--max_new_tokens=1"])
    found = {"03_the_mask": rounded(loss_by_position(names))}
    halved = loss_by_position(names, 0.5)
    found["03_the_mask, logits halved"] = rounded(halved)
    source = (ROOT / "v2_attention.py").read_text(encoding="utf-8")
    names, _, _ = run(changed(source, [NO_MASK]), ["--max_new_tokens=1"])
    found["without the mask"] = rounded(loss_by_position(names))
    return {"positions": found}


def itself():
    """How much weight a position gives to itself, with Q = K and without."""
    source = (ROOT / "v2_attention.py").read_text(encoding="utf-8")
    found = {}
    for name in ("nothing", "Q = K"):
        names, _, _ = run(changed(source, RUNS[name][1]), ["--max_new_tokens=1"])
        names["SHARED"] = name == "Q = K"
        found[name] = weight_of_itself(names)
    return {"itself": found}


def seeded(name):
    """The losses of a file from other seeds."""
    text = files()[name.partition(",")[0]]
    losses = []
    for seed in SEEDS:
        flags = [*SEEDED[name], f"--seed={seed}", "--eval_interval=1000"]
        losses.append(run(text, [*flags, "--max_new_tokens=1"])[1])
    return {f"seeds, {name}": losses}


PARTS = [script, before, own, pairs, seconds, vectors, rates, positions, itself]
PARTS = {part.__name__: part for part in PARTS}
PARTS |= {f"seeds, {name}": functools.partial(seeded, name) for name in SEEDED}
PARTS |= {name: functools.partial(studied, name) for name in STUDIES}


# ------------------------------------------------------------------------------ Report
def table(head, rows):
    """A table in Markdown: the cells of its head, and of its rows."""
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for row in rows:
        lines.append(f"| {' | '.join(row)} |")
    return [*lines, ""]


def report(found):
    """The report as Markdown."""
    lines = [
        "# What attention does: python docs/bench/attention.py",
        "",
        f"- cpu {describe_machine()['cpu']}, threads {torch.get_num_threads()}",
        f"- torch {torch.__version__}, date {date.today()}",
        "- seed 1337, 1,000 steps",
        "",
        "### What follows a character, in percent",
        "",
    ]
    rows = []
    for pair, percent in found["following"].items():
        first, _, second = pair.partition(" ")
        rows.append([first, second, f"{percent:.1f}"])
    lines += table(["character", "followed by", "%"], rows)

    lines += ["### The table of bigram.py, learned and counted", ""]
    count, difference = found["learned"]
    head = ["probabilities", "largest difference, %"]
    lines += table(head, [[f"of {count} pairs", f"{difference:.2f}"]])

    lines += ["### Before training", ""]
    rows = [[name, f"{loss:.4f}"] for name, loss in found["untrained"].items()]
    lines += table(["file", "val loss"], rows)

    lines += ["### v2_attention.py, changed", ""]
    rows = [[name, f"{loss:.4f}"] for name, loss in found["loss"].items()]
    lines += table(["change", "val loss"], rows)

    lines += ["### Other seeds", ""]
    head = ["file"] + [f"seed {seed}" for seed in SEEDS] + ["mean", "range"]
    rows = []
    for name in SEEDED:
        losses = found[f"seeds, {name}"]
        cells = [*losses, sum(losses) / len(losses), max(losses) - min(losses)]
        rows.append([name, *(f"{cell:.4f}" for cell in cells)])
    lines += table(head, rows)

    lines += ["### Other learning rates", ""]
    rows = []
    for name, losses in found["rates"].items():
        rows.append([*name.split(", "), *(f"{loss:.4f}" for loss in losses)])
    lines += table(["file", "learning rate", "loss after 100 steps", "val loss"], rows)

    lines += ["### The loss by position", ""]
    head = ["file", "1st", "2nd", "4th", "16th", "63rd", "64th"]
    head += ["mean of the first 63", "mean"]
    rows = []
    for name, losses in found["positions"].items():
        cells = [losses[i - 1] for i in (1, 2, 4, 16, 63, 64)]
        cells += [sum(losses[:63]) / 63, sum(losses) / 64]
        rows.append([name, *(f"{cell:.4f}" for cell in cells)])
    lines += table(head, rows)

    lines += ["### The weight that a position gives to itself, mean of the heads", ""]
    rows = [[name, f"{100 * share:.0f}"] for name, share in found["itself"].items()]
    lines += table(["change", "%"], rows)

    title = "The weights of the last of 64 positions, after step 5, not yet trained"
    lines += [f"### {title}", ""]
    start = found["start"]
    rows = [["all equal: ln 64", f"{math.log(64):.2f}"]]
    rows += [["with the square root", f"{start['with']:.2f}"]]
    rows += [["without the square root", f"{start['without']:.2f}"]]
    lines += table(["weights", "entropy, nats"], rows)
    spread = start["spread of the scores"]
    lines += [f"Standard deviation of the scores: {spread:.2f}.", ""]

    lines += ["### The weights of the last of 64 positions, by character", ""]
    head = ["file", "training steps", "spread of the scores"]
    head += ["largest weight", "sum of w (1 - w)"]
    rows = []
    for name in STUDIES:
        for steps, when in (("0", "before"), ("100", "after")):
            cells = [found[name][when][key] for key in ("spread", "largest", "slope")]
            rows.append([name, steps, *(f"{cell:.2f}" for cell in cells)])
    lines += table(head, rows)

    lines += ["### Where the weight goes after step 6, trained", ""]
    rows = [["the same character, itself included", f"{100 * found['own']:.0f}"]]
    lines += table(["positions", "%"], rows)

    lines += ["### The softmax of 64 dot products of random vectors", ""]
    head = ["hs", "entropy, without √hs", "largest weight"]
    head += ["entropy, with √hs", "largest"]
    rows = []
    for hs, row in found["random"].items():
        cells = [f"{hs}"]
        for name in ("without", "with"):
            cells.append(f"{row[name]['entropy']:.2f}")
            cells.append(f"{row[name]['largest weight']:.2f}")
        rows.append(cells)
    lines += table(head, rows)

    lines += ["### Tables made by counting, 0.01 added to each count", ""]
    rows = [[f"{n}", f"{loss:.4f}"] for n, loss in found["n-grams"].items()]
    lines += table(["characters", "val loss"], rows)

    lines += ["### To write 2,000 characters", ""]
    rows = [[name, f"{seconds:.1f}"] for name, seconds in found["seconds"].items()]
    lines += table(["file", "s"], rows)

    lines += ["### What it writes", ""]
    for name in ("nothing", "without the mask"):
        lines += [f"{name}:", "", "```text", found["sample"][name][:300], "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def main():
    chosen = sys.argv[1:] or list(PARTS)
    path = BENCH / "attention.json"
    for name in chosen:
        result = json.loads(json.dumps(PARTS[name]()))  # its keys become strings
        found = json.loads(path.read_text(encoding="utf-8"))
        found["tables"] |= result
        if "line" in result:
            found["line"] = found["tables"].pop("line")
        path.write_text(json.dumps(found) + "\n", encoding="utf-8")
        print(f"{name}: done", flush=True)
    text = report(json.loads(path.read_text(encoding="utf-8"))["tables"])
    (BENCH / "attention.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
