"""What the chapter gpt_char.md claims beyond the loss of each step.

    python docs/bench/effects.py           losses
    python docs/bench/effects.py --time    times of parts of a step

Each row is a run of a file between v2_attention.py and gpt_char.py with some flags. The
report is docs/bench/effects.md, and .json with what every run printed. A loss that the
JSON has of the same code is not measured again, so a run can be interrupted.

Times are those of the processor on one thread, so that other load hardly counts: the
fastest of some repetitions. --time adds a round; the report has the fastest of all.
"""

import argparse
import functools
import io
import json
import os
import re
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

import torch
from lab import code_of, describe_machine

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "docs/bench"
RECORD = BENCH / "effects.json"
SMALL = "--data_dir=data/small"  # the first 30,000 characters of Shakespeare
SHORT = f"{SMALL} --max_iters=1600 --batch_size=16"
SLOW = "--learning_rate=5e-3"
# (name, beginning of the file's name, flags)
RUNS = [
    ("small text", "14", SHORT),
    ("small text, dropout 0.2", "14", f"{SHORT} --dropout=0.2"),
    ("small text, decay 1", "12", f"{SHORT} --weight_decay=1"),
    ("AdamW, rate 1.5e-2", "17", "--optimizer=adamw --max_iters=300"),
    ("Muon, the rest at 5e-3", "17", "--adamw_share=0.3333 --max_iters=300"),
    ("Muon, all at 5e-3", "17", f"{SLOW} --adamw_share=1 --max_iters=300"),
    ("seed 1", "20", "--seed=1 --max_iters=300"),
    ("seed 2", "20", "--seed=2 --max_iters=300"),
    ("first lines", "17", "--max_iters=1"),
    ("first lines, quiet start", "18", "--max_iters=1"),
    ("first lines, 12 blocks", "17", "--max_iters=1 --n_layer=12"),
    ("first lines, 12 blocks, quiet start", "18", "--max_iters=1 --n_layer=12"),
    ("unclipped, rate 3", "07", "--learning_rate=3 --max_iters=300"),
    ("clipped, rate 1", "08", "--learning_rate=1 --max_iters=300"),
    ("a longer run, 1 block", "06", "--max_iters=1000 --n_layer=1"),
    ("a longer run", "06", "--max_iters=1000"),
    ("constant rate", "10", "--max_iters=1000"),
    ("schedule", "11", "--max_iters=1000"),
    ("residual, rate 2e-2", "03", "--learning_rate=2e-2 --max_iters=300"),
    ("LayerNorm, rate 2e-2", "04", "--learning_rate=2e-2 --max_iters=300"),
]
for depth in (1, 3, 6):
    RUNS.append((f"plain, {depth} blocks", "02", f"--n_layer={depth} --max_iters=300"))
for depth in (1, 3, 6):
    name = f"residual, {depth} blocks"
    RUNS.append((name, "03", f"--n_layer={depth} --max_iters=300"))
# (name, beginning of the file's name, flags, part of a step)
TIMES = [
    ("attention, head by head", "04", "", "attention"),
    ("attention, all heads at once", "05", "", "attention"),
    ("attention, head by head, 16 heads", "04", "--n_head=16", "attention"),
    ("attention, all heads at once, 16 heads", "05", "--n_head=16", "attention"),
    ("AdamW written out", "12", "", "optimizer"),
    ("AdamW in one kernel", "13", "", "optimizer"),
    ("Muon with singular values", "15", "", "optimizer"),
    ("Muon without singular values", "16", "", "optimizer"),
    ("Muon in half precision", "21", "", "optimizer"),
    ("model in full precision", "20", "", "model"),
    ("model in half precision", "21", "", "model"),
]


def make_small_text():
    """The short text on which the model overfits."""
    text = (ROOT / "data/shakespeare/input.txt").read_text(encoding="utf-8")
    folder = ROOT / "data/small"
    folder.mkdir(exist_ok=True)
    (folder / "input.txt").write_text(text[:30_000], encoding="utf-8")


def run(path, flags, threads=0):
    """What a run prints, and the time of the whole process in seconds."""
    command = [sys.executable, path, *flags.split(), "--prompt=ROMEO:"]
    env = dict(os.environ)
    if threads > 0:
        env["OMP_NUM_THREADS"] = str(threads)
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode != 0 and "nan" not in done.stdout:  # nan: a loss that exploded
        sys.exit(done.stderr)
    return {"output": done.stdout, "seconds": round(time.perf_counter() - start, 1)}


# --------------------------------------------------------------------------- Measuring
@functools.cache
def machine():
    """What this runs on, and when, in a line."""
    facts = describe_machine()
    return ", ".join(f"{name} {facts[name]}" for name in ("cpu", "torch", "date"))


def saved():
    """All that was measured so far; another process may add something, too."""
    found = {"machine": {}, "runs": {}, "times": {}, "spectrum": {}, "norms": {}}
    if RECORD.exists():
        found |= json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def save(part, name, result):
    """Put one result into the JSON."""
    found = saved()
    found[part][name] = result
    found["machine"][part] = machine()
    unfinished = RECORD.with_suffix(".tmp")
    unfinished.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(RECORD)


def measure_losses(path_of, end):
    """Do the runs that the JSON doesn't have yet."""
    for name, file, flags in RUNS:
        path = path_of(file)
        known = {"file": path.name, "flags": flags, "code": code_of(path)}
        old = saved()["runs"].get(name, {})
        if known.items() <= old.items():
            continue
        if time.monotonic() > end:
            print("the time is up; the same command continues here")
            break
        result = run(path, flags, threads=1)
        save("runs", name, known | result)
        print(name, result["seconds"], "s", flush=True)


def names_of(path, flags):
    """The names of a file after its run."""
    before, sys.argv = sys.argv, [str(path), *flags.split(), "--max_new_tokens=1"]
    with redirect_stdout(io.StringIO()):
        names = runpy.run_path(str(path), run_name="__main__")
    sys.argv = before
    return names


def part_of(names, part):
    """A function that computes a part of a step."""
    torch.manual_seed(1)
    model = names["model"]
    shape = names["batch_size"], names["block_size"]
    if part == "attention":
        x = torch.randn(*shape, names["n_embd"])
        return lambda: model.h[0].attn(x).sum().backward()
    if part == "model":
        x, y = torch.randint(names["vocab_size"], (2, *shape))
        return lambda: model(x, y).backward()
    if "update" in names:
        return lambda: names["update"](0)
    optimizers = names.get("optimizers") or [names["optimizer"]]
    return lambda: [opt.step() for opt in optimizers]


def measure_times(path_of, only):
    """One more round of times; only: those whose names begin so."""
    torch.set_num_threads(1)
    for name, file, flags, part in TIMES:
        if not name.startswith(only):
            continue
        path = path_of(file)
        row = {"file": path.name, "code": code_of(path), "ms": []}
        old = saved()["times"].get(name, {})
        if old.get("code") == row["code"]:
            row = old
        compute = part_of(names_of(path, f"{SMALL} --max_iters=1 {flags}"), part)
        compute()
        times = []
        while len(times) < 5 or sum(times) < 0.7:
            start = time.process_time()
            compute()
            times.append(time.process_time() - start)
        row["ms"].append(round(1000 * min(times), 2))
        save("times", name, row)
        print(name, row["ms"], "ms", flush=True)


def measure_spectrum(path_of):
    """The singular values of gradients of step 14, which Muon of step 15 makes equal.

    They are those of the middle block, after 100 steps, in pieces as Muon takes them.
    """
    path = path_of("14")
    if saved()["spectrum"].get("code") == code_of(path):
        return
    names = names_of(path, "--max_iters=100")
    block = names["model"].h[1]
    q, k, v = block.attn.c_attn.weight.grad.chunk(3)
    gradients = {"query": q, "key": k, "value": v}
    gradients["attention's c_proj"] = block.attn.c_proj.weight.grad
    gradients["c_fc, first quarter"] = block.mlp.c_fc.weight.grad.chunk(4)[0]
    gradients["MLP's c_proj"] = block.mlp.c_proj.weight.grad
    for name, gradient in gradients.items():
        save("spectrum", name, gradient.svd()[1].tolist())
    save("spectrum", "code", code_of(path))


def measure_norms(path_of):
    """How long the gradient is in each step of step 8, before it is clipped."""
    path = path_of("08")
    if saved()["norms"].get("code") == code_of(path):
        return
    norms = []
    clip = torch.nn.utils.clip_grad_norm_

    def clip_and_record(*args):
        norm = clip(*args)
        norms.append(norm.item())
        return norm

    torch.nn.utils.clip_grad_norm_ = clip_and_record
    names_of(path, "--max_iters=300")
    torch.nn.utils.clip_grad_norm_ = clip
    save("norms", "step 8", norms)
    save("norms", "code", code_of(path))


# ----------------------------------------------------------------------------- Reports
def loss_row(name, file, flags, output):
    """A run as a row of the table: its first and its last lines."""
    steps = re.findall(r"(?:train loss (\S+) \| )?val loss (\S+)", output)
    final = (re.findall(r"final val loss (\S+)", output) or ["nan"])[0]
    lowest = min(float(loss) for _, loss in [*steps, ("", final)])
    train = [loss for loss, _ in steps if loss]
    cells = [name, f"`{file} {flags}`", steps[0][1], *train[-1:]]
    if not train:
        cells.append("")
    return "| " + " | ".join([*cells, f"{lowest:.4f}", final]) + " |"


def norm_lines(norms):
    """The table of gradient norms."""
    lines = ["", "## Norms of gradients", ""]
    lines += ["The norm of the gradient in each step of step 8, before clipping.", ""]
    heads = "steps | smallest | median | largest | steps with a norm above 1"
    lines += [f"| part of the run | {heads} |", "|---|---:|---:|---:|---:|---:|"]
    for name, part in (("all", norms), ("the last hundred", norms[-100:])):
        cells = [f"{f(part):.2f}" for f in (min, statistics.median, max)]
        above = sum(norm > 1 for norm in part)
        lines.append(f"| {name} | {len(part)} | {' | '.join(cells)} | {above} |")
    return lines


def report(found):
    """The report as Markdown."""
    lines = ["# What single steps of gpt_char.md change", ""]
    lines += [f"- {part}: {facts}" for part, facts in found["machine"].items()]
    lines += ["", "## Losses", ""]
    lines += ["One run each, one thread; seed 1337 if none is named."]
    lines += ["The train loss is that of the last batch before the last evaluation."]
    lines += [""]
    heads = "run | file and flags | first val loss | train loss | lowest val loss"
    lines += [f"| {heads} | final val loss |", "|---|---|---:|---:|---:|---:|"]
    for name, file, flags in RUNS:
        if name in found["runs"]:
            lines.append(loss_row(name, file, flags, found["runs"][name]["output"]))
    lines += ["", "## Times", "", "Processor time on one thread, the fastest of all"]
    lines += ["repetitions; attention and model: forward and backward.", ""]
    lines += ["| part of a step | file and flags | ms | rounds |"]
    lines += ["|---|---|---:|---|"]
    for name, file, flags, _ in TIMES:
        if name in found["times"]:
            ms = found["times"][name]["ms"]
            rounds = ", ".join(f"{value:.1f}" for value in ms)
            where = f"{file} {flags}".strip()
            lines.append(f"| {name} | `{where}` | {min(ms):.1f} | {rounds} |")
    lines += ["", "## Singular values of a gradient", ""]
    lines += ["Step 14 after 100 steps, the matrices of the middle block.", ""]
    heads = "gradient | largest | tenth | median | largest by median"
    lines += [f"| {heads} |", "|---|---:|---:|---:|---:|"]
    for name, values in found["spectrum"].items():
        if name == "code":
            continue
        median = statistics.median(values)
        cells = [f"{s:.5f}" for s in (values[0], values[9], median)]
        lines.append(f"| {name} | {' | '.join(cells)} | {values[0] / median:.0f} |")
    if "step 8" in found["norms"]:
        lines += norm_lines(found["norms"]["step 8"])
    if "a longer run" in found["runs"]:
        sample = found["runs"]["a longer run"]["output"].split("-" * 80)[1].strip()
        lines += ["", "## What step 6 writes after 1,000 steps", "", "```text"]
        lines += [sample, "```"]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60, help="stop after as many")
    parser.add_argument("--time", action="store_true", help="times instead of losses")
    parser.add_argument("--only", default="", help="beginning of a name, with --time")
    args = parser.parse_args()
    make_small_text()
    end = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as folder:
        steps = [sys.executable, ROOT / "docs/tools/steps.py", "unfold", folder]
        subprocess.run(steps, check=True, stdout=subprocess.DEVNULL)

        def path_of(file):
            (path,) = Path(folder, "gpt_char").glob(f"{file}_*.py")
            return path

        if args.time:
            measure_times(path_of, args.only)
        else:
            measure_losses(path_of, end)
            measure_spectrum(path_of)
            measure_norms(path_of)
    (BENCH / "effects.md").write_text(report(saved()), encoding="utf-8")


if __name__ == "__main__":
    main()
