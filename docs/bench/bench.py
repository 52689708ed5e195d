"""The README's numbers, measured side by side with those of other repositories.

    python docs/bench/bench.py char   gpt_char.py: loss against time, time per step
    python docs/bench/bench.py short  the same, to the loss of nanoGPT's recipe
    python docs/bench/bench.py train  gpt2_train.py: speed, memory, Muon against AdamW
    python docs/bench/bench.py sample gpt2_train.py: sampling with a cache and without
    python docs/bench/bench.py sparse sparse_gpt.py: sparse attention against dense
    python docs/bench/bench.py texts  sparse_gpt.py: loss at equal time, two texts
    python docs/bench/bench.py ladder every script without arguments
    python docs/bench/bench.py seeds  gpt_char.py from three seeds, and a shorter run
    python docs/bench/bench.py laptop gpt_char.py and gpt2_train.py from three seeds
    python docs/bench/bench.py curves the loss of every script from its first step on
    python docs/bench/bench.py data   prepare_fineweb.py, gpt2_train.py's loader
    python docs/bench/bench.py steps  every file of the chapters
    python docs/bench/bench.py all    --peers=DIR   everything: on two cores some hours

DIR holds your own clones of nanoGPT, build-nanogpt and ng-video-lecture; nothing is
written there, and what is missing is left out. --data=FOLDER takes other tokens of
GPT-2 than Shakespeare's. --before=CLONE, of an earlier commit, lets seeds compare: was
a change of gpt_char.py worth it? --quick does very little of everything, to try it out.
On a GPU the presets are those for GPUs.

Things to compare run in turn, A B A B ..., each in a process of its own. A table has
the median of --rounds rounds (smallest - largest) and the ratio to the first row: the
median of the ratios within the rounds. It goes to out/bench/PART.md and, with every
single value, to PART.json there. Seconds of training are those between optimizer steps:
no imports, compilation, first evaluation. Memory is what was allocated on the GPU at
most; without one, the largest resident set.
"""

import argparse
import json
import math
import multiprocessing
import os
import pickle
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import types
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np

if sys.argv[1:2] != ["--pool"]:  # its memory is measured, too
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "out/bench"
WORK = OUT / "work"  # where the scripts run: see make_work


# ---------------------------------------- What happens in the process that is measured
def child(job):
    """Run job["script"], changed by job["edits"] (pattern: new text), and measure its
    pieces.
    """
    path, stamps = Path(job["script"]), {}  # when each step of each optimizer ended
    source = path.read_text(encoding="utf-8")
    for pattern, new in job["edits"].items():
        source, count = re.subn(pattern, lambda _: new, source, flags=re.M)
        if count == 0:
            sys.exit(f"{path} is not the version known here: it has no {pattern}")
    module = sys.modules["__main__"] = types.ModuleType(
        "__main__"
    )  # what pickle looks at
    g, sys.argv, sys.path[0] = (
        module.__dict__,
        [str(path), *job["flags"]],
        str(path.parent),
    )
    g["__file__"] = str(path)

    def stamp(optimizer, *_):
        stamps.setdefault(id(optimizer), []).append(time.perf_counter())

    curve = []  # seconds since the start of the process, and the loss printed then

    def timed_print(*values, **options):
        print(*values, **options)
        for loss in re.findall(r"val[ _]loss ([\d.]+)", str(values[0])):
            curve.append((time.time() - job["start"], float(loss)))

    points, samples, begin, paused = [], {}, time.perf_counter(), 0.0

    def probe(
        step,
    ):  # before a step: the loss, and for some steps a sample, outside of the time
        nonlocal begin, paused
        begin, t = (begin if points else time.perf_counter()), time.perf_counter()
        if step in job["curve"]:
            points.append((t - begin - paused, g["estimate_loss"]()))
        if step in job["samples"]:
            first = torch.tensor([g["encode"](g["text"][0])], device=g["device"])
            samples[step] = g["decode"](g["generate"](first, 400, 0.8)[0].tolist())
        paused += time.perf_counter() - t

    register_optimizer_step_post_hook(stamp)
    g |= {"print": timed_print, "probe": probe}
    exec(compile(source, str(path), "exec"), g)
    result = {"curve": curve}
    if "curve" in job:
        ends = max(stamps.values(), key=len)
        result |= {"points": [*points, (ends[-1] - begin - paused, curve[-1][1])]}
        if samples:
            samples[len(ends)] = g["sample"](g["max_new_tokens"])
        result["samples"] = samples
    if torch.cuda.is_available():
        result["peak MiB"] = torch.cuda.max_memory_allocated() / 2**20
    elif Path("/proc/self/status").exists():
        status = Path("/proc/self/status").read_text()
        result["peak MiB"] = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 2**10
    ends = next(iter(stamps.values()), [])
    if len(ends) > 2:
        seconds = statistics.median(np.diff(ends))
        result["ms per step"] = 1000 * seconds
        result["tokens/s"] = job.get("tokens_per_step", math.nan) / seconds
        # Without what stands between the first two steps: gpt2_train.py evaluates there
        result["train s"] = (ends[-1] - ends[1]) * len(ends) / (len(ends) - 2)
        result["steps"] = len(ends)
        if math.isfinite(g.get("peak", math.nan)):
            result["mfu %"] = 100 * g["flops"] / seconds / g["peak"]
    for name in ("loss", "split", "sample", "load", "attention", "layer"):
        if name in job:
            result |= globals()["measure_" + name](g, *job[name])
    return result


def now():
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def loss_of(model, x, y):
    """The loss of a model that returns it, as ours do, or (logits, loss)."""
    found = model(x, y)
    return found if torch.is_tensor(found) else found[1]


def measure_loss(g):
    """The loss over the last tenth of the text, by the same code for every model."""
    tokens = torch.from_numpy(np.fromfile("data/char/val.bin", "<u2").astype(int)).to(
        g["device"]
    )
    end, total, model = (
        (len(tokens) - 1) // g["block_size"] * g["block_size"],
        0.0,
        g["model"],
    )
    x, y = (
        t.view(-1, g["block_size"]).split(32)
        for t in (tokens[:end], tokens[1 : end + 1])
    )
    model.eval()
    with torch.no_grad(), g.get("ctx", nullcontext()):
        for xb, yb in zip(x, y):
            total += loss_of(model, xb, yb).item() * xb.numel()
    return {"val loss": total / end}


def measure_split(g, steps, *batch):
    """The parts of a training step in milliseconds, medians over some steps."""
    model, optimizers = g["model"].train(), g.get("optimizers") or [g["optimizer"]]
    for group in (
        group for optimizer in optimizers for group in optimizer.param_groups
    ):
        group.setdefault("lr", 1e-3)  # where the training loop sets it
    times = []
    for _ in range(steps):
        times.append([now()])
        x, y = g["get_batch"](*batch)
        times[-1].append(now())
        with g.get("ctx", nullcontext()):
            loss = loss_of(model, x, y)
        times[-1].append(now())
        model.zero_grad()
        loss.backward()
        times[-1].append(now())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        times[-1].append(now())
    medians = 1000 * np.median(np.diff(times), axis=0)
    names = ("data ms", "forward ms", "backward ms", "optimizer ms")
    return dict(zip(names, medians.tolist())) | {"step ms": medians.sum()}


def measure_sample(g, tokens, use_cache):
    for n in (min(tokens, 4), tokens):  # the first warms up
        start = now()
        if "generate" in g:
            g["generate"](
                torch.tensor([[min(50256, g["vocab_size"] - 1)]], device=g["device"]),
                n,
                0.8,
                200,
                use_cache,
            )
        else:  # what nanoGPT's sample.py does for every sample
            with torch.no_grad(), g["ctx"]:
                g["model"].generate(g["x"], n, temperature=0.8, top_k=200)
    return {"tokens/s": tokens / (now() - start)}


def measure_load(g, seconds, threads):
    torch.set_num_threads(threads)  # as torchrun does
    start, step = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        g["get_batch"](step, 0)
        step += 1
    return {"tokens/s": step * g["total_batch_size"] / (time.perf_counter() - start)}


def measure_attention(g, pattern, hop, lengths, repeats):
    """Forward and backward of attention, medians in milliseconds: 6 heads of 64, or 3
    of a hop.
    """
    gpu, result = torch.cuda.is_available(), {}
    attend = torch.compile(g["attend"], dynamic=False) if gpu else g["attend"]
    torch.set_num_threads(1)

    def dense(q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    def one_hop(q, k, v):
        return attend(q, k, v, hop, 0.0)

    def sparse(q, k, v):  # half of the heads take each hop
        halves = zip((1, 2), *(x.chunk(2, dim=1) for x in (q, k, v)))
        return torch.cat([attend(*qkv, hop, 0.0) for hop, *qkv in halves], dim=1)

    for T in lengths:
        g.update(
            pattern=pattern,
            stride=2 ** int(math.log2(T) / 2),
            summary=4 if T <= 1024 else 8,
        )
        kind = dict(device=g["device"], dtype=torch.bfloat16 if gpu else torch.float32)
        shape, times = (1, 3 if hop else 6, T, 64), []
        q, k, v, dy = (torch.randn(shape, requires_grad=True, **kind) for _ in range(4))
        attention = dense if pattern == "dense" else one_hop if hop else sparse
        for _ in range(repeats + 1):
            q.grad = k.grad = v.grad = None
            start = now()
            attention(q, k, v).backward(dy)
            times.append(1000 * (now() - start))
        result[f"T = {T}: ms"] = statistics.median(times[1:])  # the first warms up
    return result


def measure_layer(g, *shapes):
    """Forward and backward of the first layer's attention, for x of (B, T, C), on one
    thread.
    """
    torch.set_num_threads(1)
    result, half = {}, {"dtype": torch.bfloat16, "enabled": bool(g["bfloat16"])}
    for B, T in shapes:
        x, times = torch.randn(B, T, g["n_embd"], requires_grad=True), []
        for _ in range(12):
            start = now()
            with torch.autocast("cpu", **half):
                y = g["model"].h[0].attn(x)
            y.sum().backward()
            times.append(1000 * (now() - start))
        result[f"attention, {B} x {T}: ms"] = statistics.median(
            times[2:]
        )  # the first warm up
    return result


def encode(text):
    return np.array(
        [encoder.eot_token, *encoder.encode_ordinary(text)], dtype=np.uint16
    )


def tokenize_with_pool(source, folder, shard_size):
    """The usual way, as in build-nanogpt: a pool of processes, a list of tokens per
    document.
    """
    global encoder
    import pyarrow.parquet as pq
    import tiktoken

    encoder, filled, number = tiktoken.get_encoding("gpt2"), 0, 0
    batches = pq.ParquetFile(source).iter_batches(columns=["text"])
    texts = (text for batch in batches for text in batch.column(0).to_pylist())
    shard = np.empty(shard_size, dtype=np.uint16)
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        for ids in pool.imap(encode, texts, chunksize=16):
            while len(ids):
                part = ids[: shard_size - filled]
                shard[filled : filled + len(part)] = part
                filled, ids = filled + len(part), ids[len(part) :]
                if filled == shard_size:
                    np.save(f"{folder}/{number:06d}", shard)
                    filled, number = 0, number + 1
    np.save(f"{folder}/{number:06d}", shard[:filled])


# --------------------------------------------------------------- Running and reporting
def job(script, flags="", edits=None, **measure):
    """What child is to do; measure: arguments of the measure_ functions."""
    return dict(script=script, flags=flags.split(), edits=edits or {}, **measure)


def run(job):
    """Do a job in a new process; returns its result, with the seconds of the whole
    process.
    """
    if "script" in job and not (WORK / job["script"]).exists():
        raise RuntimeError(f"{job['script']} is not there")
    job |= {"start": time.time()}
    command = job.get("command") or [__file__, "--child", json.dumps(job)]
    env = os.environ | {
        "TIKTOKEN_CACHE_DIR": "data/tiktoken",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    if "threads" in job:
        env["OMP_NUM_THREADS"] = str(job["threads"])
    else:
        shutil.rmtree(WORK / "out", ignore_errors=True)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        where = dict(
            cwd=WORK,
            env=env,
            stdout=log,
            stderr=log,
            start_new_session="command" in job,
        )
        start, peak = time.perf_counter(), 0
        with subprocess.Popen([sys.executable, *command], **where) as process:
            while "command" in job and process.poll() is None:
                peak = max(peak, session_memory(process.pid))
                time.sleep(0.1)
        result = {"wall s": time.perf_counter() - start}
        log.seek(0)
        output = log.read().strip()
    if process.returncode != 0:
        raise RuntimeError(output.splitlines()[-1] if output else "it was killed")
    if peak > 0:
        result["peak MiB"] = peak
    for loss in re.findall(r"^final val loss ([\d.]+)", output, re.M):
        result["final val loss"] = float(loss)
    for more in re.findall("^RESULT (.+)", output, re.M):
        result |= json.loads(more)
    return result


def session_memory(session):
    """MiB of all processes of a session; what they share counts once (Linux only)."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rsplit(")", 1)[1].split()[3]) == session:
                pss = re.search(
                    r"^Pss:\s+(\d+)", (stat.parent / "smaps_rollup").read_text(), re.M
                )
                total += int(pss[1]) / 2**10
        except (OSError, TypeError):
            pass  # the process ended meanwhile
    return total


def in_turn(kinds, measures, rounds=None):
    """Run kinds, {name: job or function}, in turn: {name: {measure: [value of each
    round]}}.
    """
    data, kinds = {}, dict(kinds)
    for _ in range(rounds or args.rounds):
        for name, kind in list(kinds.items()):
            try:
                result = kind() if callable(kind) else run(kind)
            except RuntimeError as error:
                say(f"{name} is left out: {error}")
                kinds.pop(name), data.pop(name, None)
                continue
            for measure in measures:
                if measure in result:
                    data.setdefault(name, {}).setdefault(measure, []).append(
                        result[measure]
                    )
    return data


def at_once(kinds):
    """The final val loss of jobs, as many at a time as there are cores, on one thread
    each.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = {
            name: pool.submit(run, kind | {"threads": 1})
            for name, kind in kinds.items()
        }
    return {name: future.result()["final val loss"] for name, future in found.items()}


def say(line):
    """Print a line that belongs into the report, too."""
    print(line, flush=True)
    report.append(line)


def cell(values):
    def number(x):
        return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.4g}"

    spread = (
        f" ({number(min(values))} - {number(max(values))})" if len(values) > 1 else ""
    )
    return number(statistics.median(values)) + spread


def table(title, data, *ratios):
    """Report what in_turn returned; ratios: the measures to compare with the first
    row's.
    """
    base = next(iter(data.values()), {})
    columns = list(dict.fromkeys(measure for row in data.values() for measure in row))
    ratios = [measure for measure in ratios if measure in base]
    rows = [["", *columns, *(f"{r}, ratio" for r in ratios)]]
    for name, row in data.items():
        cells = [cell(row[c]) if c in row else "" for c in columns]
        cells += [cell([a / b for a, b in zip(row[r], base[r])]) for r in ratios]
        rows.append([name, *cells])
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    lines.insert(1, "|---" + "|---:" * (len(widths) - 1) + "|")
    say(f"\n### {title}\n\n" + "\n".join(lines) + "\n")
    tables[title] = data


# ----------------------------------------------------------------------- Other scripts
def nanogpt(script, flags, edits=None, **measure):
    folder = "peers/nanoGPT"  # where it expects to be run; but it would write there
    edits = {r"open\('configurator.py'\)": f"open('{folder}/configurator.py')"} | (
        edits or {}
    )
    if not machine["gpu"]:
        flags += " --device=cpu --dtype=float32 --compile=False"
    return job(f"{folder}/{script}", flags, edits, **measure)


def assign(**values):
    """The edits that give other values to names at the top of a script."""
    return {rf"^{name} = [\w.]+": f"{name} = {value}" for name, value in values.items()}


# ------------------------------------------------------------------------------- Parts
def models_of_characters():
    """{name: function from a number of training steps to a job}: ours, and those of the
    peers.
    """
    size = dict(
        block_size=64, batch_size=12, n_layer=4, n_head=4, n_embd=128, dropout=0.0
    )
    size = {} if machine["gpu"] else size  # nanoGPT's recipe for a CPU

    def gpt_char(n, flags="", **measure):
        flags += f" --max_iters={n} --eval_interval={max(1, n)} --max_new_tokens=1"
        return job("ours/gpt_char.py", flags, **measure)

    def nano(n, **measure):  # it does one step more than max_iters
        flags = "peers/nanoGPT/config/train_shakespeare_char.py"
        flags += " --dataset=char --out_dir=out"
        flags += (
            f" --eval_iters=1 --max_iters={max(0, n - 1)} --lr_decay_iters={max(1, n)}"
        )
        flags += f" --warmup_iters={min(100, n // 10)} --eval_interval=1000000000"
        flags += "".join(f" --{name}={value}" for name, value in size.items())
        return nanogpt("train.py", flags, **measure)

    def lecture(n, **measure):
        edits = assign(max_iters=n, eval_interval=10**9, eval_iters=1, **size)
        edits["max_new_tokens=500"] = "max_new_tokens=1"
        return job("peers/ng-video-lecture/gpt.py", "", edits, **measure)

    return {"gpt_char": gpt_char, "nanoGPT": nano, "ng-video-lecture": lecture}


def char():
    recipes, steps = models_of_characters(), 2 if args.quick else 40
    kinds = {
        n: f(0, split=[steps, 0 if n == "gpt_char" else "train"])
        for n, f in recipes.items()
    }
    measures = ("data ms", "forward ms", "backward ms", "optimizer ms", "step ms")
    table("The parts of a training step", in_turn(kinds, measures), "step ms")

    # A schedule belongs to its length: every budget of time is a run of its own
    data = in_turn(
        {name: f(20) for name, f in recipes.items()}, ["ms per step"], rounds=1
    )
    pace = {
        name: row["ms per step"][0] / 1000 for name, row in data.items()
    }  # seconds per step
    measures, rows = ("val loss", "train s", "steps", "peak MiB"), {}
    for budget in (0.3, 1) if args.quick else (7.5, 15, 30, 60, 120, 240):
        kinds = {n: recipes[n](max(2, round(budget / pace[n])), loss=[]) for n in pace}
        for name, row in in_turn(kinds, measures, rounds=1).items():
            rows[f"{budget:g} s, {name}"] = row
            pace[name] = row["train s"][0] / row["steps"][0]
    table("Validation loss after a run of so many seconds of training", rows)


def short():
    gpu = bool(machine["gpu"])
    target = 3.3 if args.quick else 1.4697 if gpu else 1.88  # nanoGPT's
    recipes = models_of_characters()
    if not gpu:  # a smaller model is there sooner
        ours, small = recipes.pop("gpt_char"), "--n_layer=2 --adamw_share=0.5"
        recipes = {
            f"gpt_char {small}": lambda n, **measure: ours(n, small, **measure)
        } | recipes
    measures, kinds = ("val loss", "train s", "wall s", "steps", "peak MiB"), {}
    for name, recipe in recipes.items():
        some = (20, 40) if args.quick else (1000, 5000) if gpu else (1500, 3000)
        if name.startswith("gpt_char") and not args.quick:
            some = tuple(n // 5 for n in some)
        data = in_turn({n: recipe(n, loss=[]) for n in some}, ["val loss"], rounds=1)
        n = fewest_steps(
            recipe, [(n, row["val loss"][0]) for n, row in data.items()], target
        )
        if n is None:
            say(f"{name} did not get to {target} in {some[-1]} steps, or is not there")
        else:
            kinds[name] = recipe(n, loss=[])
    title = f"Time to a validation loss of {target}: the shortest run that ends there"
    table(title, in_turn(kinds, measures), "train s")


def fewest_steps(recipe, curve, target):
    """About the fewest steps of a run that ends at target; curve: (steps, loss) of some
    runs.
    """
    i = next((i for i, (_, loss) in enumerate(curve) if loss <= target), None)
    if not i:
        return None if i is None else curve[0][0]
    (n0, loss0), (n1, loss1) = curve[i - 1 : i + 1]
    n = round(
        n0 * (n1 / n0) ** ((loss0 - target) / (loss0 - loss1))
    )  # linear in log(steps)
    while n < n1 and run(recipe(n, loss=[]))["val loss"] > target:
        n = math.ceil(1.03 * n)
    return min(n, n1)


def train():
    gpu, quick = bool(machine["gpu"]), args.quick
    layers, heads, width = (12, 12, 768) if gpu else (4, 4, 32 if quick else 256)
    T, B, total = (
        (1024, 32, 524_288) if gpu else (32, 2, 64) if quick else (256, 8, 2048)
    )
    steps, size = (
        3 if quick else 20,
        f"--n_layer={layers} --n_head={heads} --n_embd={width}",
    )
    size += f" --block_size={T} --batch_size={B}"

    def gpt2_train(n, total, flags):
        flags = f"{size} --max_iters={n} --eval_interval={n} {flags}"
        flags += f" --total_batch_size={total}"
        flags += " --data_dir=data/gpt2 --max_new_tokens=1 --no-hellaswag"
        return job("ours/gpt2_train.py", flags, tokens_per_step=total)

    flags = f"{size} --bias=True --dataset=bpe --max_iters={steps - 1} --eval_iters=1"
    flags += (
        f" --gradient_accumulation_steps={total // (B * T)} --eval_interval=1000000000"
    )
    edits = assign(total_batch_size=total, B=B, T=T, max_steps=steps, warmup_steps=1)
    edits |= {
        r"\(vocab_size=50304": f"(T, 50304, {layers}, {heads}, {width}",
        "val_loss_steps = 20": "val_loss_steps = 1",
        r"\(not use_compile\)": "False",  # HellaSwag and sampling
        "^from hellaswag import .*": "",
    }
    kinds = {
        "gpt2_train, Muon": gpt2_train(steps, total, f"--eval_tokens={T}"),
        "gpt2_train, AdamW": gpt2_train(
            steps, total, f"--eval_tokens={T} --optimizer=adamw"
        ),
        "nanoGPT": nanogpt("train.py", flags, tokens_per_step=total),
        "build-nanogpt": job(
            "peers/build-nanogpt/train_gpt2.py", "", edits, tokens_per_step=total
        ),
    }
    title = f"Training {layers} layers of {width} channels, "
    title += f"{total} = {B} x {T} x {total // B // T}"
    data = in_turn(kinds, ("tokens/s", "mfu %", "peak MiB"))
    table(f"{title} tokens per step", data, "tokens/s", "peak MiB")

    # Both optimizers at several learning rates, then each at its best
    n, total = (3, total) if quick else (300, 65_536) if gpu else (100, total)
    measures = ("final val loss", "train s", "steps")

    def compare(optimizer, rate, n):
        return gpt2_train(n, total, f"--optimizer={optimizer} --learning_rate={rate}")

    best = {}
    for optimizer, rates in {
        "muon": (5e-3, 1e-2, 2e-2),
        "adamw": (1e-3, 3e-3, 6e-3),
    }.items():
        data = in_turn(
            {str(r): compare(optimizer, r, n) for r in rates}, measures, rounds=1
        )
        table(f"The learning rate of {optimizer}, {n} steps of {total} tokens", data)
        best[optimizer] = min(data.items(), key=lambda item: item[1]["final val loss"])
    (muon, muon_row), (adamw, adamw_row) = best.values()
    longer = max(1, round(n * muon_row["train s"][0] / adamw_row["train s"][0]))
    kinds = {
        "Muon": compare("muon", muon, n),
        "AdamW, equal tokens": compare("adamw", adamw, n),
        "AdamW, equal time": compare("adamw", adamw, longer),
    }
    table(
        "Muon against AdamW, each at its best rate", in_turn(kinds, measures), "train s"
    )


def sample():
    tokens = 3 if args.quick else 500  # 500 is sample.py's own
    flags = "--model_size=gpt2 --block_size=1024 --total_batch_size=1024"
    flags += " --data_dir=data/gpt2"
    flags += " --max_iters=0 --max_new_tokens=1"
    edits = {r"GPT\.from_pretrained\(.*\)$": "GPT(GPTConfig())"}  # random weights
    nano = "--init_from=gpt2 --num_samples=1 --max_new_tokens=1"
    kinds = {
        "gpt2_train": job("ours/gpt2_train.py", flags, sample=[tokens, True]),
        "gpt2_train, no cache": job(
            "ours/gpt2_train.py", flags, sample=[tokens, False]
        ),
        "nanoGPT": nanogpt("sample.py", nano, edits, sample=[tokens, False]),
    }
    title = f"Sampling {tokens} tokens from GPT-2 (124M) with random weights"
    table(title, in_turn(kinds, ("tokens/s", "peak MiB")), "tokens/s", "peak MiB")


def sparse():
    gpu, quick = bool(machine["gpu"]), args.quick
    T = (
        (64, 256)
        if quick
        else (8192, 16384, 32768, 65536)
        if gpu
        else (1024, 4096, 16384)
    )
    flags = "--max_iters=0 --max_new_tokens=1 --model_size=char"
    flags += " --data_dir=data/shakespeare/bytes"
    flags += " --block_size=64 --stride=8 --total_batch_size=64 --no-compile"
    kinds = {"dense": ("dense", 0), "strided": ("strided", 0), "fixed": ("fixed", 0)}
    kinds |= {
        f"{p}, hop {h} of 3 heads": (p, h) for p in ("strided", "fixed") for h in (1, 2)
    }
    for name, (pattern, hop) in kinds.items():
        kinds[name] = job("ours/sparse_gpt.py", flags, attention=[pattern, hop, T, 5])
    measures = [f"T = {t}: ms" for t in T]
    title = "Attention, forward and backward, 6 heads of 64" + (
        "" if gpu else ", one thread"
    )
    table(title, in_turn(kinds, measures), *measures)

    def train(pattern, n, *more):
        flags = (
            f"--pattern={pattern} --position_dims=2 --max_iters={n} --max_new_tokens=1"
        )
        flags += (
            " --data_dir=data/shakespeare/bytes --no-hellaswag --eval_interval=1000000"
        )
        flags += " --total_batch_size=65536" if gpu else ""
        return job("ours/sparse_gpt.py", " ".join([flags, *more]))

    few = 4 if quick else 10
    longer = (
        "--block_size=16384 --stride=128" if gpu else "--block_size=2048 --stride=64"
    )
    for title, size in ("the preset", ""), ("twice its context", longer):
        kinds = {
            p: train(p, few, "--eval_tokens=1", size)
            for p in ("dense", "strided", "fixed")
        }
        data = in_turn(kinds, ("ms per step", "peak MiB"))
        table(f"A training step, {title}", data, "ms per step", "peak MiB")


def texts():
    """sparse_gpt.py at its preset against dense attention in equal time: two texts."""
    library = sorted(Path(os.__file__).parent.glob("*.py"))  # Python's own modules
    library = "".join(path.read_text(encoding="utf-8") for path in library)
    (WORK / "library.txt").write_text(library, encoding="utf-8")
    command = [
        ROOT / "prepare_shakespeare.py",
        "--source=library.txt",
        "--name=library",
    ]
    subprocess.run([sys.executable, *command], cwd=WORK, check=True)
    flags = (
        "--position_dims=2 --no-hellaswag --eval_interval=1000000 --max_new_tokens=1"
    )
    few, n = (4, 4) if args.quick else (20, 1000)

    def train(text, pattern, n, seed, more=""):
        flags_ = f"{flags} --data_dir=data/{text}/bytes --pattern={pattern}"
        flags_ += f" --max_iters={n} {more}"
        return job(
            "ours/sparse_gpt.py",
            f"{flags_} --seed={seed} --out_dir=out/{pattern}_{seed}",
        )

    kinds = {
        p: train("shakespeare", p, few, 1337, "--eval_tokens=1")
        for p in ("dense", "fixed")
    }
    data = in_turn(kinds, ("ms per step", "peak MiB"))
    table("A training step", data, "ms per step", "peak MiB")
    pace = {name: statistics.median(row["ms per step"]) for name, row in data.items()}
    steps = {"dense": max(2, round(n * pace["fixed"] / pace["dense"])), "fixed": n}
    for text in ("shakespeare", "library"):
        rows = {}
        for seed in range(1337, 1337 + args.rounds):
            kinds = {name: train(text, name, steps[name], seed) for name in steps}
            for name, row in in_turn(
                kinds, ("final val loss", "train s", "steps"), 1
            ).items():
                for measure, values in row.items():
                    rows.setdefault(name, {}).setdefault(measure, []).extend(values)
        table(f"The loss at equal time, {text}, seeds from 1337 on", rows, "train s")


def curves():
    """The loss of every script from its first step on, and what gpt_char.py writes
    meanwhile.
    """
    flags, few = (
        ("--max_iters=4 --max_new_tokens=1", (0, 2))
        if args.quick
        else ("", (0, 50, 250, 1000))
    )
    steps = sorted(
        {round(1.5**n) for n in range(22)} | {0}
    )  # 0, 1, 2, 3, 5, 8 ... 4,987
    loop = (
        r"^    model\.zero_grad\(\)"  # a line of the training loop that all five have
    )
    names = ("bigram", "v2_attention", "gpt_char", "gpt2_train", "sparse_gpt")
    for name in args.chapter.split(",") if args.chapter else names:
        edits = {loop: "    probe(step)\n    model.zero_grad()"}
        result = run(
            job(
                f"ours/{name}.py",
                flags,
                edits,
                curve=steps,
                samples=few if name == "gpt_char" else (),
            )
        )
        tables[name] = {
            key: result[key] for key in ("points", "samples", "final val loss")
        }
        seconds, loss = result["points"][-1]
        say(f"- {name}: {loss:.4f} after {seconds:.1f} s from the first step on")


def from_seeds(title, kinds):
    """Scripts without arguments, another seed in each round; kinds: {name: (path,
    flags)}.
    """
    rows = {}
    less = "--max_iters=2 --max_new_tokens=1" if args.quick else ""
    for seed in range(1337, 1337 + args.rounds):
        jobs = {
            name: job(path, f"--seed={seed} {more} {less}")
            for name, (path, more) in kinds.items()
        }
        for name, row in in_turn(
            jobs, ("final val loss", "wall s", "peak MiB"), 1
        ).items():
            for measure, value in row.items():
                rows.setdefault(name, {}).setdefault(measure, []).extend(value)
    table(title, rows, "wall s")
    for name, row in rows.items():
        losses = row["final val loss"]
        say(
            f"- {name}: val loss {', '.join(map(str, losses))}: "
            f"mean {statistics.mean(losses):.4f}"
        )


def seeds():
    """gpt_char.py without arguments: before a change, and now."""
    now, shorter = "ours/gpt_char.py", "--max_iters=3000"
    kinds = {
        "before": ("before/gpt_char.py", ""),
        "now": (now, ""),
        f"now {shorter}": (now, shorter),
    }
    from_seeds("gpt_char.py without arguments, seeds from 1337 on", kinds)


def laptop():
    """The two scripts that train the same model on a machine without a GPU."""
    kinds = {name: (f"ours/{name}.py", "") for name in ("gpt_char", "gpt2_train")}
    from_seeds("Without arguments, seeds from 1337 on", kinds)


def ladder():
    names = ("bigram", "v2_attention", "gpt_char", "gpt2_train", "sparse_gpt")
    flags = "--max_iters=2 --max_new_tokens=1" if args.quick else ""
    measures = ("wall s", "peak MiB", "final val loss")
    again, kept, title = names, {}, "Every script without arguments"
    if args.chapter:
        again = args.chapter.split(",")
        old = json.loads((ROOT / "docs/bench/ladder.json").read_text("utf-8"))
        kept = {name: old["tables"][title][name] for name in names if name not in again}
        say(f"\n{', '.join(kept)}: of {old['machine']['this repository']}, unchanged.")
    table(
        title,
        kept
        | in_turn({name: job(f"ours/{name}.py", flags) for name in again}, measures),
    )


def steps():
    """Every file between two scripts, as the chapters of docs/ have them: a report for
    each.
    """
    folder = OUT / "steps"
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(
        [sys.executable, ROOT / "docs/tools/steps.py", "unfold", folder], check=True
    )
    (WORK / "steps").symlink_to(folder)
    iters = {"v2_attention": 1000, "gpt_char": 1000, "gpt2_train": 60, "sparse_gpt": 60}
    for chapter in args.chapter.split(",") if args.chapter else iters:
        report.clear(), tables.clear()
        below = (
            [*iters][[*iters].index(chapter) - 1]
            if chapter != "v2_attention"
            else "bigram"
        )
        files = {below: f"ours/{below}.py"}
        files |= {
            p.stem: f"steps/{chapter}/{p.name}"
            for p in sorted((folder / chapter).iterdir())
        }

        def train(path, n, seed=1337):
            flags = f"--max_iters={3 if args.quick else round(n)} --seed={seed}"
            flags += " --max_new_tokens=1"
            source = (WORK / path).read_text(
                encoding="utf-8"
            )  # the early ones have less
            flags += " --no-hellaswag" * ("\nhellaswag = " in source)
            flags += f" --out_dir=out/{Path(path).stem}_{seed}_{n:.0f}" * (
                "\nout_dir = " in source
            )
            return job(path, flags)

        n, short, kept, again = iters[chapter], iters[chapter] == 60, {}, files
        title = f"{chapter}: val loss after {n} steps, time and memory"
        if args.since:
            old = json.loads(
                (ROOT / f"docs/bench/steps_{chapter}.json").read_text("utf-8")
            )
            again = {
                k: path
                for k, path in files.items()
                if f"{args.since:02d}" <= k[:2] < "99"
            }
            kept = {k: old["tables"][title][k] for k in files if k not in again}
            say(
                f"\nFiles before {args.since}: of "
                f"{old['machine']['this repository']}, unchanged."
            )
        measures = ("ms per step", "peak MiB", "final val loss")
        data = in_turn(
            {k: train(path, 60) for k, path in again.items()}, measures, 2 - short
        )
        loss = {name: row.pop("final val loss")[0] for name, row in data.items()}
        if chapter == "sparse_gpt":  # what these steps are about
            none, shapes = (
                "--max_iters=0 --max_new_tokens=1",
                [(4, 1024), (2, 2048), (32, 128)],
            )
            more = [f"attention, {B} x {T}: ms" for B, T in shapes]
            kinds = {k: job(path, none, layer=shapes) for k, path in files.items()}
            strided = {
                k: path
                for k, path in files.items()
                if k[:2] in ("03", "06", "07", "08")
            }
            strided = {
                k: job(p, none + " --pattern=strided", layer=shapes)
                for k, p in strided.items()
            }
            table(
                "Attention of one layer on one thread: fixed, from step 3 on",
                in_turn(kinds, more, 1),
            )
            table("The same, strided", in_turn(strided, more, 1))
            kinds = {
                k: job(files[k], none, sample=[900, True])
                for k in files
                if k[:2] in ("07", "08")
            }
            table("Sampling 900 tokens", in_turn(kinds, ["tokens/s"], 1))
        if not short:
            loss = at_once({name: train(path, n) for name, path in again.items()})
        data = kept | {
            name: {"val loss": [loss[name]]} | row for name, row in data.items()
        }
        loss = {name: row["val loss"][0] for name, row in data.items()}
        pairs = [
            (a, b)
            for a, b in zip(data, [*data][1:])
            if 0.0005 < abs(loss[a] - loss[b]) < 0.02
        ]
        if chapter == "gpt2_train":
            pairs = []
        close = dict.fromkeys(name for pair in pairs for name in pair if name in again)
        for seed in range(1, args.rounds):
            more = at_once({name: train(files[name], n, seed) for name in close})
            for name in close:
                data[name]["val loss"].append(more[name])
        if (
            chapter == "gpt_char"
        ):  # half as long as the slowest; what computes the same is left out
            names = [
                name
                for i, name in enumerate(loss)
                if loss[name] not in [*loss.values()][:i]
            ]
            pace = {
                name: statistics.median(data[name]["ms per step"]) for name in names
            }
            fewer = {k: n / 2 * max(pace.values()) / pace[k] for k in names}
            names = [name for name in names if name in again]
            for name, value in at_once(
                {k: train(files[k], fewer[k]) for k in names}
            ).items():
                data[name] |= {
                    "steps in equal time": [round(fewer[name])],
                    "its val loss": [value],
                }
        table(title, data)
        title = f"{chapter}: what these steps changed, with the same seed"
        changed = old["tables"].get(title, {}) if kept else {}
        changed = {
            k: row for k, row in changed.items() if {*k.split(" to ")} <= {*kept}
        }
        if pairs or changed:
            for a, b in pairs:
                both = zip(data[a]["val loss"], data[b]["val loss"])
                changed[f"{a} to {b}"] = {"val loss": [y - x for x, y in both]}
            table(title, changed)
        save(f"steps_{chapter}")


def data():
    count, seconds, megabytes = (10**6, 0.3, 0.3) if args.quick else (10**8, 5, 250)
    rng, folder = np.random.default_rng(0), WORK / "data/loader"
    for name, n in (("x_val_000000.bin", 10**5), ("x_train_000001.bin", count)):
        header = np.zeros(256, dtype="<i4")
        header[:3] = 20240520, 1, n
        tokens = rng.integers(50257, size=n, dtype="<u2")
        (folder / name).write_bytes(header.tobytes() + tokens.tobytes())
    flags = "--data_dir=data/loader --block_size=1024 --batch_size=64"
    flags += " --total_batch_size=65536 --max_iters=0 --max_new_tokens=1 --device=cpu"
    flags += " --n_layer=1 --n_head=1 --n_embd=16"

    def load(processes):
        threads = max(1, machine["cores"] // processes)
        jobs = [job("ours/gpt2_train.py", flags, load=[seconds, threads])] * processes
        with ThreadPoolExecutor() as pool:
            speed = sum(result["tokens/s"] for result in pool.map(run, jobs))
        return {
            "tokens/s": speed,
            "of 40M tokens/s": speed / 40e6,
        }  # 10 x that of 8 H100s

    kinds = {"1 process": lambda: load(1), "2 processes": lambda: load(2)}
    found = in_turn(kinds, ("tokens/s", "of 40M tokens/s"))
    table("get_batch of gpt2_train, 64 x 1024 tokens from a large shard", found)

    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        return say("prepare_fineweb is left out: pyarrow is missing")
    # Documents as long as FineWeb-Edu's, 4.5 KB in the mean, of Shakespeare's
    # paragraphs
    parts, docs, size = (
        (WORK / "input.txt").read_text(encoding="utf-8").split("\n\n"),
        [],
        0,
    )
    while size < megabytes * 10**6:
        chosen = rng.integers(len(parts), size=max(1, int(rng.lognormal(3.0, 0.9))))
        docs.append("\n\n".join(parts[i] for i in chosen))
        size += len(docs[-1])
    source, shard_size = str(WORK / "text.parquet"), 10**4 if args.quick else 10**7
    pq.write_table(pa.table({"text": docs}), source, row_group_size=1000)
    out, hellaswag = WORK / "data/bench", WORK / "data/hellaswag"
    if not hellaswag.exists():  # an empty file, or it would be downloaded
        hellaswag.mkdir()
        (hellaswag / "hellaswag_val.jsonl").touch()
    ours = [WORK / "ours/prepare_fineweb.py", "--source=text.parquet", "--name=bench"]
    ours.append(f"--shard_size={shard_size}")

    def prepare(*command):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        result = run({"command": command})
        tokens = sum(path.stat().st_size for path in out.glob("*0*")) / 2
        return result | {"tokens/s": tokens / result["wall s"]}

    kinds = {
        "prepare_fineweb": lambda: prepare(*ours),
        "pool of processes": lambda: prepare(
            __file__, "--pool", source, out, str(shard_size)
        ),
    }
    found = in_turn(kinds, ("tokens/s", "peak MiB"))
    table(f"{size / 1e6:.1f} MB of parquet to tokens", found, "tokens/s", "peak MiB")


# -------------------------------------------------------------------------------- Main
def make_work():
    """The folder in which the scripts run, with data in the form that each repository
    wants.
    """
    shutil.rmtree(WORK, ignore_errors=True)
    for folder in (
        "data/char",
        "data/bpe",
        "data/loader",
        "data/bench",
        "edu_fineweb10B",
    ):
        (WORK / folder).mkdir(parents=True)
    if not (ROOT / "data/shakespeare/gpt2").exists():
        subprocess.run(
            [sys.executable, ROOT / "prepare_shakespeare.py"], cwd=ROOT, check=True
        )
    links = {"ours": ROOT, "data/gpt2": Path(args.data).resolve()}
    links |= {"peers": Path(args.peers).resolve()} if args.peers else {}
    links |= {"before": Path(args.before).resolve()} if args.before else {}
    links |= {f"data/{path.name}": path for path in (ROOT / "data").iterdir()}
    for name, target in links.items():
        if not (WORK / name).exists():
            (WORK / name).symlink_to(target)
    shutil.copy(ROOT / "data/shakespeare/input.txt", WORK)
    text = (WORK / "input.txt").read_text(encoding="utf-8")
    ids = np.unique(list(text), return_inverse=True)[1].astype("<u2")
    ids[: int(0.9 * len(ids))].tofile(WORK / "data/char/train.bin")
    ids[int(0.9 * len(ids)) :].tofile(WORK / "data/char/val.bin")
    (WORK / "data/char/meta.pkl").write_bytes(
        pickle.dumps({"vocab_size": int(ids.max()) + 1})
    )
    for split in ("train", "val"):
        path = min(Path(args.data).glob(f"*_{split}_*.bin"), default=None)
        if path is None:
            sys.exit(f"--data={args.data}: has no *_{split}_*.bin")
        tokens = np.fromfile(path, dtype="<u2", offset=1024)
        tokens.tofile(WORK / f"data/bpe/{split}.bin")
        np.save(WORK / f"edu_fineweb10B/x_{split}_0.npy", tokens)


def describe_machine():
    cpuinfo = Path("/proc/cpuinfo")
    name = (
        re.search(r"model name\s*: (.+)", cpuinfo.read_text())
        if cpuinfo.exists()
        else None
    )
    return {
        "cpu": name[1] if name else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def commit(folder):
    if not (folder / ".git").exists():
        return ""
    command = ["git", "-C", folder, "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def save(part):
    facts = "\n".join(
        f"- {name}: {value}" for name, value in machine.items() if value != ""
    )
    heading = f"# bench.py {part}" + (
        " --quick: the numbers mean nothing" if args.quick else ""
    )
    (OUT / f"{part}.md").write_text(
        "\n".join([heading, "", facts, *report, ""]), "utf-8"
    )
    content = {"machine": machine, "quick": args.quick, "tables": tables}
    (OUT / f"{part}.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print("\nRESULT", json.dumps(child(json.loads(sys.argv[2]))))
        sys.exit()
    if sys.argv[1:2] == ["--pool"]:
        sys.exit(tokenize_with_pool(*sys.argv[2:4], int(sys.argv[4])))
    PARTS = {
        "char": char,
        "short": short,
        "train": train,
        "sample": sample,
        "sparse": sparse,
        "texts": texts,
        "ladder": ladder,
        "seeds": seeds,
        "laptop": laptop,
        "curves": curves,
        "data": data,
        "steps": steps,
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", default="all", choices=[*PARTS, "all"])
    parser.add_argument("--peers", default="", metavar="DIR")
    parser.add_argument("--before", default="", metavar="CLONE")
    parser.add_argument(
        "--data", default=str(ROOT / "data/shakespeare/gpt2"), metavar="FOLDER"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chapter", default="", metavar="NAMES", help="only some")
    parser.add_argument(
        "--since", type=int, default=0, metavar="STEP", help="of steps: later ones"
    )
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    make_work()
    machine = describe_machine() | {"this repository": commit(ROOT)}
    for name in ("nanoGPT", "build-nanogpt", "ng-video-lecture"):
        machine[name] = commit(WORK / "peers" / name)
    machine["before"] = commit(WORK / "before")
    for part in PARTS if args.part == "all" else [args.part]:
        report, tables = [], {}
        try:
            PARTS[part]()
        finally:  # keep what was measured before an error
            if part != "steps":  # which saves by itself
                save(part)
    shutil.rmtree(WORK)
