"""Measures sparse_gpt.py: what its patterns compute, how fast, and what they learn.

    python docs/bench/sparse.py counts      without a clock: scores, cache, tiles
    python docs/bench/sparse.py speed       attention alone, 1,024 to 16,384 positions
    python docs/bench/sparse.py sampling    tokens a second at position 8,000
    python docs/bench/sparse.py crossover   forward and backward, 512 to 16,384 long
    python docs/bench/sparse.py recall      does a value arrive from far away?
    python docs/bench/sparse.py equal_time  the loss of seven patterns on two texts
    python docs/bench/sparse.py positions   three ways to say where a token stands

Everything runs on one thread. The report is docs/bench/sparse_PART.md. What is timed
or trained is kept in sparse_PART.json and not repeated, so a run can be interrupted:
delete the file to start again. --only=WORDS takes the runs whose name contains one of
them, --minutes stops after so many. What is timed wants a machine that does nothing
else. Recall, equal_time and positions count steps, not seconds, so they can share it:
each takes about half an hour on one core. The chapter's steps are measured by steps.py.
"""

import argparse
import contextlib
import io
import json
import math
import os
import platform
import runpy
import statistics
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "docs/bench"
PATTERNS = ("dense", "window", "sinks", "alternate", "strided", "fixed", "selection")


def load(pattern, T, *flags):
    """The names of sparse_gpt.py for contexts of T, with an untrained model."""
    words = [f"--pattern={pattern}", f"--block_size={T}", "--max_iters=0"]
    if pattern == "alternate":  # as in gpt-oss
        words.append("--combine=layers")
    words += ["--max_new_tokens=0", "--device=cpu", "--out_dir=none", *flags]
    sys.argv = ["sparse_gpt.py", *words, "--init_from=scratch"]
    with contextlib.redirect_stdout(io.StringIO()):
        return runpy.run_path(str(ROOT / "sparse_gpt.py"))


def load_tiny(pattern, T, *flags):
    """The same with next to no model: only its attention is of interest."""
    return load(pattern, T, "--n_layer=1", "--n_embd=16", "--n_head=2", *flags)


# ------------------------------------------------------------------------------ Records
class Record:
    """The JSON of a part: {name of a run: what was measured}."""

    def __init__(self, part, args):
        self.path = BENCH / f"sparse_{part}.json"
        self.words = [word for word in args.only.split(",") if word]
        self.end = math.inf
        if args.minutes > 0:
            self.end = time.monotonic() + 60 * args.minutes

    def runs(self):
        """All runs so far; another process may add some, too."""
        if not self.path.exists():
            return {}
        return json.loads(self.path.read_text(encoding="utf-8"))["runs"]

    def wants(self, name):
        """Is this run still to be done, and to be done now?"""
        if self.words and not any(word in name for word in self.words):
            return False
        return name not in self.runs() and time.monotonic() < self.end

    def add(self, name, **values):
        """Keep what was measured."""
        values["machine"] = describe_machine()
        content = {"runs": self.runs() | {name: values}}
        unfinished = self.path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(unfinished, self.path)
        del values["machine"]
        print(name, values, flush=True)


def describe_machine():
    """Facts about this machine, in a line."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(": ")[1]
                break
    facts = [f"cpu {name}", "threads 1", f"torch {torch.__version__}"]
    return ", ".join([*facts, time.strftime("date %Y-%m-%d")])


def write_report(part, notes, tables, runs=None):
    """notes: a paragraph. tables: {heading: rows of cells, the first one the heads}."""
    lines = [f"# python docs/bench/sparse.py {part}", ""]
    machines = []
    for run in (runs or {}).values():
        if run["machine"] not in machines:
            machines.append(run["machine"])
    lines += [f"- {machine}" for machine in machines]
    lines += ["", textwrap.fill(" ".join(notes.split()), 88)]
    for heading, (heads, *rows) in tables.items():
        lines += ["", f"### {heading}", ""]
        lines.append("| " + " | ".join(heads) + " |")
        lines.append("|---|" + "---:|" * (len(heads) - 1))
        for row in rows:
            lines.append("| " + " | ".join(str(cell) for cell in row) + " |")
    text = "\n".join(lines) + "\n"
    (BENCH / f"sparse_{part}.md").write_text(text, encoding="utf-8")


# ------------------------------------------------------------------------------- Counts
def computed(script, hop, T):
    """Scores that attention computes in a hop, as a percentage of T * T."""
    if hop.allows is script["everything"] and hop.selects == 0:
        return 100.0
    tile = script["tile"]
    groups, *_ = script["lay_out"](hop, math.ceil(T / tile))
    scores = 0
    for group in groups:
        scores += group.mask.numel()
    return 100 * scores / T**2


def flex_blocks(script, hop, T, order):
    """Percentage of blocks that FlexAttention skips, in an order of the positions."""
    from torch.nn.attention.flex_attention import create_block_mask

    def mask(b, h, i, j):
        return script["sees"](hop, order[i], order[j])

    return create_block_mask(mask, None, None, T, T, device="cpu").sparsity()


def reach(script, layers, T):
    """How many positions can influence the last one, through so many layers."""
    positions = np.arange(T)
    reached = np.zeros(T, dtype=bool)
    reached[T - 1] = True
    for number in reversed(range(layers)):
        hops = script["model"].h[0].attn.hops
        if script["combine"] == "layers":
            hops = script["patterns"][script["pattern"]]
            hops = [hops[number % len(hops)]]
        after = reached.copy()
        for hop in hops:
            seen = script["sees"](hop, positions[reached][:, None], positions)
            after |= seen.any(axis=0)
        reached = after
    return int(reached.sum())


def counts(args):
    """What attention computes and what a cache keeps."""
    tables = {}
    for T in (1024, 8192):
        rows = [["", "l", "as they come, %", "in order, %", "keys seen", "cache"]]
        rows[0].append("cache, kB")
        tile = {1024: 32, 8192: 64}[T]  # the same for all patterns
        for pattern in PATTERNS:
            script = load_tiny(pattern, T, f"--total_batch_size={T}", f"--tile={tile}")
            hops = script["patterns"][pattern]
            plain = [hop._replace(order=script["as_they_come"]) for hop in hops]
            cells = []
            for some in (plain, hops):
                percent = sum(computed(script, hop, T) for hop in some) / len(some)
                cells.append(f"{percent:.1f}")
            pairs = sum(script["keys_of"](hop) for hop in hops) / len(hops) / 2
            kept = 0
            for hop in hops:
                numbers, _ = script["assign_slots"](hop)
                kept += (int(numbers.max()) + 1) / len(hops)
            # A layer of GPT-2 (124M): key and value of 768 channels in half precision
            cells += [
                f"{pairs:,.0f}",
                f"{kept:,.0f}",
                f"{kept * 2 * 768 * 2 / 1e3:,.0f}",
            ]
            rows.append([pattern, script["stride"], *cells])
            print(rows[-1], flush=True)
        tables[f"T = {T}, tiles of {tile}"] = rows
    T = 8192
    rows = [["", "in order, %"]]
    for pattern in ("window", "sinks", "strided", "fixed"):
        script = load_tiny(pattern, T, f"--total_batch_size={T}", "--tile=128")
        hops = script["patterns"][pattern]
        percent = sum(computed(script, hop, T) for hop in hops) / len(hops)
        rows.append([pattern, f"{percent:.1f}"])
        print(rows[-1], flush=True)
    tables["T = 8192, tiles of 128, as on a GPU"] = rows
    T = 1024
    rows = [["", "1 layer", "2 layers", "5 layers"]]
    for pattern in PATTERNS[:-1]:  # what selection reaches depends on the text
        script = load_tiny(pattern, T, f"--total_batch_size={T}")
        rows.append([pattern, *[f"{reach(script, n, T):,}" for n in (1, 2, 5)]])
        print(rows[-1], flush=True)
    tables["Positions that can influence the last one, T = 1024"] = rows
    T = 8192
    script = load_tiny("strided", T, f"--total_batch_size={T}")
    rows = [["", "skipped, %"]]
    for number, hop in enumerate(script["patterns"]["strided"], start=1):
        positions = torch.arange(T)
        orders = {"as they come": positions}
        orders["by column"] = positions[
            script["by_column"](positions).argsort(stable=True)
        ]
        for name, order in orders.items():
            percent = flex_blocks(script, hop, T, order)
            rows.append([f"hop {number}, {name}", f"{percent:.1f}"])
            print(rows[-1], flush=True)
    tables["FlexAttention, strided, T = 8192, blocks of 128"] = rows
    notes = """
Scores: what attention computes in one head, mean of the hops, in percent of T * T: once
with the positions as they come, once in the order of the hop. Keys seen: by a query, on
average. Cache: the keys that sampling keeps at most, averaged over the hops, and the kB
of a layer of GPT-2 (124M) in half precision. FlexAttention's blocks are counted by
PyTorch's create_block_mask: those that it skips, because nobody in them sees anybody.
"""
    write_report("counts", notes, tables)


# -------------------------------------------------------------------------------- Speed
def time_of(attention, q, k, v, dy):
    """Milliseconds of attention, forward and backward."""
    q.grad = k.grad = v.grad = None
    start = time.perf_counter()
    attention(q, k, v).backward(dy)
    return 1000 * (time.perf_counter() - start)


def dense(q, k, v):
    """What PyTorch offers."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def sparse(script, pattern):
    """Attention as a layer of the script computes it: the heads share the hops."""
    hops = script["patterns"][pattern]

    def attention(q, k, v):
        parts = [x.chunk(len(hops), dim=1) for x in (q, k, v)]
        results = []
        for hop, *qkv in zip(hops, *parts):
            results.append(script["attend"](*qkv, hop, 0.0))
        return torch.cat(results, dim=1)

    return attention


def speed(args):
    """Attention of 6 heads of 64, forward and backward, in turn."""
    record = Record("speed", args)
    kinds = {
        "window, two rows": ("window", 2),
        "window, one row": ("window", 1),
        "strided": ("strided", 0),
        "fixed": ("fixed", 0),
    }
    lengths = (1024, 4096, 16384)
    for T in lengths:
        if not record.wants(f"T = {T}"):
            continue
        attentions = {"dense": dense}
        stride = 2 ** int(math.log2(math.sqrt(T)))
        for name, (pattern, rows) in kinds.items():
            flags = ["--no-bfloat16", f"--total_batch_size={T}"]
            script = load_tiny(pattern, T, *flags, f"--window={rows * stride}")
            attentions[name] = sparse(script, pattern)
        torch.manual_seed(0)
        qkv = [torch.randn(1, 6, T, 64, requires_grad=True) for _ in range(3)]
        dy = torch.randn(1, 6, T, 64)
        times = {name: [] for name in attentions}
        rounds = {1024: 41, 4096: 13, 16384: 4}[T]
        for _ in range(rounds):
            for name, attention in attentions.items():
                times[name].append(time_of(attention, *qkv, dy))
        record.add(f"T = {T}", times={name: t[1:] for name, t in times.items()})
    runs = record.runs()
    lengths = [T for T in lengths if f"T = {T}" in runs]
    rows = [["", *[f"T = {T}: ms" for T in lengths]]]
    rows[0] += [f"T = {T}: times faster" for T in lengths]
    for name in ("dense", *kinds):
        found = [runs[f"T = {T}"]["times"] for T in lengths]
        row = [f"{statistics.median(times[name]):,.1f}" for times in found]
        for times in found:
            ratios = [a / b for a, b in zip(times["dense"], times[name])]
            row.append(f"{statistics.median(ratios):.1f}")
        rows.append([name, *row])
    notes = """
Attention alone, forward and backward: 6 heads of 64, batch 1, float32. Dense is
scaled_dot_product_attention with is_causal=True; the others are what a layer of
sparse_gpt.py computes, at its default stride, window and tile. All run in turn in one
process; medians of the rounds, and the median of the ratios within the rounds.
"""
    write_report("speed", notes, {"Attention of 6 heads": rows}, runs)


# ----------------------------------------------------------------------------- Sampling
def sampling(args):
    """The next token at position 8,000, from a cache that is full."""
    record = Record("sampling", args)
    T, first, tokens = 8192, 7950, 100
    flags = ["--n_layer=2", "--n_embd=256", "--n_head=4", "--no-bfloat16"]
    flags += [f"--total_batch_size={T}", "--no-rotary"]
    patterns = [name for name in PATTERNS if name != "selection"]  # it keeps all
    wanted = patterns if any(record.wants(pattern) for pattern in patterns) else []
    models, caches, times = {}, {}, {}
    torch.manual_seed(0)
    idx = torch.randint(256, (1, first + tokens))
    torch.set_grad_enabled(False)
    for pattern in wanted:
        script = load(pattern, T, *flags)
        torch.manual_seed(0)
        model = script["model"]
        for p in model.parameters():  # otherwise attention adds nothing
            if p.ndim == 2:
                torch.nn.init.normal_(p, std=0.05)
        models[pattern] = model
        caches[pattern] = [script["KVCache"]() for _ in model.h]
        times[pattern] = []
        model.logits(idx[:, :first], caches[pattern])
    logits = {}
    for i in range(first, first + tokens):
        for pattern, model in models.items():
            start = time.perf_counter()
            logits[pattern] = model.logits(idx[:, i : i + 1], caches[pattern])
            times[pattern].append(time.perf_counter() - start)
    for pattern, model in models.items():
        expected = model.logits(idx)[:, -1]
        kept = 0
        for cache in caches[pattern]:
            for k, v, _ in cache.contents.values():
                kept += k.numel() + v.numel()
        last = logits[pattern][0, -1]
        same = bool(last.argmax() == expected.argmax())
        distance = (last - expected).nan_to_num(0.0).abs().max().item()
        ms = 1000 * statistics.median(times[pattern])
        record.add(pattern, ms=ms, MB=4 * kept / 1e6, same=same, distance=distance)
    torch.set_grad_enabled(True)
    runs = record.runs()
    rows = [["", "tokens/s", "times as fast", "cache, MB", "same token"]]
    for pattern in patterns:
        if pattern in runs:
            run = runs[pattern]
            faster = runs["dense"]["ms"] / run["ms"]
            row = [pattern, f"{1000 / run['ms']:,.0f}", f"{faster:.1f}"]
            rows.append([*row, f"{run['MB']:.2f}", "yes" if run["same"] else "no"])
    notes = """
One text, 2 layers, 256 channels, 4 heads, learned positions, float32, random weights.
Tokens a second: median of 100 tokens around position 8,000, of all patterns in turn.
Cache: keys and values of all layers.
Same token: the likeliest next token is that of a pass over all positions at once.
"""
    write_report("sampling", notes, {"At position 8,000": rows}, runs)


# ---------------------------------------------------------------------------- Crossover
def crossover(args):
    """A training step at growing contexts: where does sparse attention begin to pay?"""
    record = Record("crossover", args)
    lengths = (512, 1024, 2048, 4096, 8192, 16384)
    patterns = ("dense", "window", "strided", "fixed")
    flags = ["--n_layer=4", "--n_embd=128", "--n_head=2", "--no-bfloat16"]
    flags.append("--no-rotary")
    for T in lengths:
        if not record.wants(f"T = {T}"):
            continue
        scripts = {}
        for pattern in patterns:
            scripts[pattern] = load(pattern, T, *flags, f"--total_batch_size={T}")
        x = torch.randint(256, (1, T))
        times = {name: [] for name in scripts}
        for _ in range(max(3, 2048 // T + 2)):
            for name, script in scripts.items():
                start = time.perf_counter()
                script["model"].zero_grad()
                script["model"](x, x).backward()
                times[name].append(1000 * (time.perf_counter() - start))
        record.add(f"T = {T}", times={name: t[1:] for name, t in times.items()})
    runs = record.runs()
    lengths = [T for T in lengths if f"T = {T}" in runs]
    rows = [["", *[f"{T:,}" for T in lengths]]]
    speeds = [["", *[f"{T:,}" for T in lengths]]]
    for name in patterns:
        times = [statistics.median(runs[f"T = {T}"]["times"][name]) for T in lengths]
        rows.append([name, *[f"{ms:,.0f}" for ms in times]])
        speed = [1000 * T / ms for T, ms in zip(lengths, times)]
        speeds.append([name, *[f"{s:,.0f}" for s in speed]])
    notes = """
Forward and backward of a model of 4 layers, 128 channels, 2 heads, learned positions,
for one text of so many positions; float32; medians, in turn.
"""
    tables = {"ms": rows, "Tokens a second": speeds}
    write_report("crossover", notes, tables, runs)


# ------------------------------------------------------------------------------- Recall
KEYS, VALUES, TOLD, QUERIES = 8, 8, 16, 256
DISTANCES = (1, 32, 64, 128, 256, 512, 1024)


def recall_batch(rng, B, T):
    """Inputs x and targets y (B, T), and how far back the answer is.

    In each text, every key has a value. A run of 16 equal tokens tells it, somewhere in
    the text. At 256 other places, a token asks for a key, and the answer is its value.
    It never enters the text, so nobody can copy it from a later place. All the rest is
    filler.
    """
    x = torch.full((B, T), 32)
    y = torch.full((B, T), -100)  # cross_entropy ignores it
    distance = torch.zeros(B, T, dtype=torch.long)
    values = torch.randint(VALUES, (B, KEYS), generator=rng)
    first = TOLD * torch.rand(B, T // TOLD, generator=rng).argsort(dim=1)[:, :KEYS]
    free = torch.rand(B, T, generator=rng)
    for i in range(TOLD):
        x.scatter_(1, first + i, 128 + torch.arange(KEYS) * VALUES + values)
        free.scatter_(1, first + i, 2.0)  # so that nobody asks there
    asked = free.argsort(dim=1)[:, :QUERIES]
    keys = torch.randint(KEYS, (B, QUERIES), generator=rng)
    x.scatter_(1, asked, keys)
    far = asked - (first + TOLD - 1).gather(1, keys)
    answers = torch.where(far > 0, 48 + values.gather(1, keys), -100)
    y.scatter_(1, asked, answers)
    distance.scatter_(1, asked, far)
    return x, y, distance


def train(script, batches, steps, rate):
    """Train the model of a script on batches (x, y): warm-up and linear decay."""
    model = script["model"]
    model.train()
    for step in range(steps):
        x, y = next(batches)
        model.zero_grad()
        model(x, y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        share = min(1.0, (step + 1) / 20) * (steps - step) / steps
        for optimizer in script["optimizers"]:
            for group in optimizer.param_groups:
                group["lr"] = rate * share * group["lr_scale"]
            optimizer.step()
    model.eval()


@torch.no_grad()
def recall_accuracy(script, T):
    """Fraction of right answers, by distance: {first distance: accuracy}."""
    rng = torch.Generator().manual_seed(2)
    right = dict.fromkeys(DISTANCES[:-1], 0)
    count = dict.fromkeys(DISTANCES[:-1], 0)
    for _ in range(16):
        x, y, distance = recall_batch(rng, 8, T)
        hits = script["model"].logits(x).argmax(-1) == y
        for low, high in zip(DISTANCES, DISTANCES[1:]):
            here = (distance >= low) & (distance < high)
            right[low] += hits[here].sum().item()
            count[low] += here.sum().item()
    return {low: right[low] / count[low] for low in right}


def recall(args):
    """Key-value retrieval: which patterns bring an answer from how far?"""
    record = Record("recall", args)
    T, B, steps, rate = 1024, 4, args.steps or 2500, 1e-2
    flags = ["--n_layer=4", "--n_embd=64", "--n_head=2", f"--total_batch_size={B * T}"]
    flags.append("--no-rotary")
    for pattern in PATTERNS:
        if not record.wants(pattern):
            continue
        start = time.process_time()
        script = load(pattern, T, *flags)

        def batches():
            rng = torch.Generator().manual_seed(1)
            while True:
                yield recall_batch(rng, B, T)[:2]

        train(script, batches(), steps, rate)
        accuracy = recall_accuracy(script, T)
        seconds = round(time.process_time() - start)
        record.add(pattern, accuracy=accuracy, seconds=seconds)
    runs = record.runs()
    rows = [["", *[f"{a} - {b - 1}" for a, b in zip(DISTANCES, DISTANCES[1:])]]]
    for pattern in PATTERNS:
        if pattern in runs:
            accuracy = runs[pattern]["accuracy"].values()
            rows.append([pattern, *[f"{100 * a:.1f}" for a in accuracy]])
    notes = f"""
A model of 4 layers, 64 channels, 2 heads and learned positions, trained for {steps:,}
steps of {B} texts of {T:,} positions. In each, runs of {TOLD} equal tokens tell the
values of {KEYS} keys, and {QUERIES} other tokens ask for one; a guess is right in
{100 / VALUES:.1f}%. The distance is that to the end of the run. Four layers of the
window reach {4 * 63} positions back: from a distance of {4 * 63 + 1} on, nothing of the
run can arrive.
"""
    tables = {"Right answers in percent, by distance": rows}
    write_report("recall", notes, tables, runs)


# --------------------------------------------------------------------------- Equal time
TEXTS = ("shakespeare", "library")
RATES = (3e-2, 1.5e-2)
SEEDS = (1337, 1338, 1339)
CUTS = (64, 256, 1024)


def prepare_texts():
    """Shakespeare, and the sources of Python's own library, as bytes."""
    for text in TEXTS:
        if any((ROOT / f"data/{text}/bytes").glob("*.bin")):
            continue
        command = [sys.executable, ROOT / "prepare_shakespeare.py"]
        if text == "library":
            modules = sorted(Path(os.__file__).parent.glob("*.py"))
            sources = [path.read_text(encoding="utf-8") for path in modules]
            path = ROOT / "data/library.txt"
            path.write_text("".join(sources), encoding="utf-8")
            command += [f"--source={path}", "--name=library"]
        subprocess.run(command, cwd=ROOT, check=True)


@torch.no_grad()
def losses_of(script, text, half, T):
    """The loss at each of T positions, over 64 KiB of a half of the validation text."""
    tokens = script["shards"]["val"][0].astype("int64")
    middle = len(tokens) // 2
    tokens = torch.from_numpy(tokens[:middle] if half == "first" else tokens[middle:])
    windows = min(len(tokens) - 1, 65_536) // T
    x = tokens[: windows * T].view(windows, T)
    y = tokens[1 : windows * T + 1].view(windows, T)
    total = torch.zeros(T)
    for xs, ys in zip(x.split(4096 // T), y.split(4096 // T)):
        logits = script["model"].logits(xs).transpose(1, 2)
        total += F.cross_entropy(logits, ys, reduction="none").sum(0)
    return total / windows


def time_in_turn(scripts):
    """{name: ms of a training step}, medians, all in turn."""
    times = {name: [] for name in scripts}
    for count in range(12):
        for name, script in scripts.items():
            start = time.perf_counter()
            train_on(script, 1, 1e-2)
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(t[2:]) for name, t in times.items()}


def pace_of(text, flags):
    """{pattern: ms of a training step}, all in turn."""
    scripts = {pattern: load(pattern, 1024, *flags) for pattern in PATTERNS}
    return time_in_turn(scripts)


EQUAL_TIME = ["--n_layer=3", "--n_embd=64", "--n_head=2", "--batch_size=2"]
EQUAL_TIME.append("--total_batch_size=2048")


def train_on(script, steps, rate):
    """Train on the text of the script, with its own batches."""
    batches = (script["get_batch"](step, 0) for step in range(steps))
    train(script, batches, steps, rate)


def equal_time(args):
    """Seven patterns, two texts: the loss after equal time."""
    os.chdir(ROOT)
    prepare_texts()
    record = Record("equal_time", args)
    if record.wants("pace"):
        record.add("pace", ms=pace_of("shakespeare", EQUAL_TIME))
    pace = record.runs()["pace"]["ms"]

    def run(name, text, pattern, rate, seed, seconds, half):
        if not record.wants(name):
            return
        steps = round(1000 * seconds / pace[pattern])
        more = [f"--data_dir=data/{text}/bytes", f"--seed={seed}"]
        script = load(pattern, 1024, *EQUAL_TIME, *more)
        train_on(script, steps, rate)
        losses = losses_of(script, text, half, 1024)
        values = {"loss": losses.mean().item(), "steps": steps}
        edges = (0, 32, 64, 128, 256, 512, 1024)
        for low, high in zip(edges, edges[1:]):
            values[f"{low} - {high - 1}"] = losses[low:high].mean().item()
        for cut in CUTS:
            losses = losses_of(script, text, half, cut)
            values[f"cut {cut}"] = losses[cut // 2 :].mean().item()
        record.add(name, **values)

    best = {}
    for text in TEXTS:
        for pattern in PATTERNS:
            losses = {}
            for rate in RATES:
                name = f"choose {text} {pattern} {rate:g}"
                run(name, text, pattern, rate, 1, args.seconds / 2, "first")
                if name in record.runs():
                    losses[record.runs()[name]["loss"]] = rate
            if len(losses) == len(RATES):
                best[text, pattern] = losses[min(losses)]
    for seed in SEEDS:
        for (text, pattern), rate in best.items():
            name = f"{text} {pattern} {seed}"
            run(name, text, pattern, rate, seed, args.seconds, "second")

    runs = record.runs()
    tables = {}
    for text in TEXTS:
        rows = [["", "ms per step", "steps", "rate", "val loss"]]
        places = [["", "0 - 31", "32 - 63", "64 - 127", "128 - 255", "256 - 511"]]
        places[0].append("512 - 1023")
        cuts = [["", *[f"{cut}" for cut in CUTS]]]
        for pattern in PATTERNS:
            found = [runs.get(f"{text} {pattern} {seed}") for seed in SEEDS]
            found = [values for values in found if values is not None]
            if not found:
                continue
            losses = [values["loss"] for values in found]
            loss = f"{statistics.mean(losses):.3f}"
            if len(losses) > 1:
                loss += f" ({min(losses):.3f} - {max(losses):.3f})"
            row = [pattern, f"{pace[pattern]:.1f}", found[0]["steps"]]
            rows.append([*row, f"{best[text, pattern]:g}", loss])
            row = [pattern]
            for place in places[0][1:]:
                row.append(f"{statistics.mean(v[place] for v in found):.3f}")
            places.append(row)
            row = [pattern]
            for cut in CUTS:
                row.append(f"{statistics.mean(v[f'cut {cut}'] for v in found):.3f}")
            cuts.append(row)
        tables[f"Loss at equal time, {text}"] = rows
        tables[f"Loss by position, {text}"] = places
        tables[f"Loss with the context cut, {text}"] = cuts
    seeds = max(1, len([s for s in SEEDS if f"{TEXTS[-1]} selection {s}" in runs]))
    notes = f"""
A model of 3 layers, 64 channels, 2 heads at T = 1,024, trained for as many steps of
2,048 bytes as take {args.seconds:g} s on one thread of a machine that does nothing
else. The rate is the better of {RATES[0]:g} and {RATES[1]:g} after half of that time,
on the first half of the validation text. The losses are those of the second half, of
64 KiB of it at most: means of {seeds} seeds (smallest - largest). With the context cut
to n, the text comes in windows of n, and the second half of each counts.
"""
    write_report("equal_time", notes, tables, runs)


# ---------------------------------------------------------------------------- Positions
def two_dimensional(script):
    """A vector for each row plus one for each column (Child et al., section 5.1)."""
    stride = script["stride"]
    wpe = script["model"].wpe
    rows = script["block_size"] // stride

    def forward(positions):
        row = F.embedding(positions // stride, wpe.weight)
        column = F.embedding(rows + positions % stride, wpe.weight)
        return row + column

    wpe.forward = forward


FORMS = ("learned", "two-dimensional", "rotary")


def positions(args):
    """Three ways to tell a model where a token stands: the loss after equal time."""
    os.chdir(ROOT)
    prepare_texts()
    record = Record("positions", args)
    patterns = ("dense", "window", "strided", "fixed")

    def load_form(form, pattern):
        flags = [*EQUAL_TIME, "--data_dir=data/shakespeare/bytes"]
        if form != "rotary":
            flags.append("--no-rotary")
        script = load(pattern, 1024, *flags)
        if form == "two-dimensional":
            two_dimensional(script)
        return script

    if record.wants("pace"):
        scripts = {}
        for pattern in patterns:
            for form in FORMS:
                scripts[f"{form} {pattern}"] = load_form(form, pattern)
        record.add("pace", ms=time_in_turn(scripts))
    pace = record.runs()["pace"]["ms"]
    for pattern in patterns:
        for form in FORMS:
            name = f"shakespeare {form} {pattern}"
            if not record.wants(name):
                continue
            steps = round(1000 * args.seconds / pace[f"{form} {pattern}"])
            script = load_form(form, pattern)
            train_on(script, steps, 1e-2)
            loss = losses_of(script, "shakespeare", "second", 1024).mean().item()
            record.add(name, steps=steps, loss=loss)
    runs = record.runs()
    rows = [["", *patterns]]
    for form in FORMS:
        row = [form]
        for pattern in patterns:
            run = runs.get(f"shakespeare {form} {pattern}")
            row.append(f"{run['loss']:.3f}" if run else "")
        rows.append(row)
    tables = {"Loss at equal time, shakespeare": rows}
    rows = [["", *patterns]]
    for form in FORMS:
        times = [pace[f"{form} {pattern}"] for pattern in patterns]
        rows.append([form, *[f"{ms:.1f}" for ms in times]])
    tables["ms per step"] = rows
    notes = f"""
The model of equal_time, {args.seconds:g} s of training on one thread, seed 1337, rate
0.01. Learned: a vector for each of the 1,024 positions. Two-dimensional: one for each
row plus one for each column. Rotary: nothing is added; queries and keys are turned.
"""
    write_report("positions", notes, tables, runs)


PARTS = {"counts": counts, "speed": speed, "sampling": sampling}
PARTS |= {"crossover": crossover, "recall": recall, "equal_time": equal_time}
PARTS |= {"positions": positions}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--only", default="", help="words in the names of runs")
    parser.add_argument("--minutes", type=float, default=0, help="stop after as many")
    parser.add_argument("--steps", type=int, default=0, help="of recall")
    parser.add_argument("--seconds", type=float, default=30, help="of a training")
    args = parser.parse_args()
    torch.set_num_threads(1)
    PARTS[args.part](args)


if __name__ == "__main__":
    main()
