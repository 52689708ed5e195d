"""What the chapter gpt_char.md claims beyond the loss of each step.

    python docs/bench/effects.py                      losses
    python docs/bench/effects.py --time --minutes=2   times, on an idle machine

Each row is a run of a file between v2_attention.py and gpt_char.py with some flags. The
report is docs/bench/effects.md, and .json with what every run printed. A loss that the
JSON has of the same code is not measured again, so a run can be interrupted. --time
adds rounds to the times, starting with the files that have the fewest.

ms per step: the time of a run of 82 steps minus that of a run of two, per step, on a
text so short that the evaluations hardly count.
"""

import argparse
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

from steps import code_of

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
# (beginning of the file's name, flags)
TIMES = [
    ("04", ""),
    ("05", ""),
    ("04", "--n_head=16"),
    ("05", "--n_head=16"),
    ("12", ""),
    ("13", ""),
    ("15", ""),
    ("16", ""),
    ("20", ""),
    ("21", ""),
]
TIMED_STEPS = 80


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
def saved():
    """All that was measured so far; another process may add something, too."""
    found = {"runs": {}, "times": {}, "spectrum": {}}
    if RECORD.exists():
        found |= json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def save(part, name, result):
    """Put one result into the JSON."""
    found = saved()
    found[part][name] = result
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


def measure_times(path_of, end):
    """Time a step of each file, again and again until the time is up."""
    fixed = f"{SMALL} --max_new_tokens=1 --eval_interval=1000"
    while time.monotonic() < end:
        times = saved()["times"]
        rows = []
        for file, flags in TIMES:
            path = path_of(file)
            name = f"{file} {flags}".strip()
            row = {"file": path.name, "code": code_of(path), "ms": []}
            old = times.get(name, {})
            if old.get("code") == row["code"]:
                row = old
            rows.append((len(row["ms"]), name, path, flags, row))
        _, name, path, flags, row = min(rows, key=lambda found: found[0])
        seconds = []
        for steps in (2, 2 + TIMED_STEPS):
            start = time.perf_counter()
            run(path, f"{fixed} --max_iters={steps} {flags}")
            seconds.append(time.perf_counter() - start)
        row["ms"].append(round(1000 * (seconds[1] - seconds[0]) / TIMED_STEPS, 1))
        save("times", name, row)
        print(name, row["ms"], "ms per step", flush=True)


def measure_spectrum(path_of):
    """The singular values of gradients of step 14, which Muon of step 15 makes equal.

    They are those of the middle block, after 100 steps, in pieces as Muon takes them.
    """
    path = path_of("14")
    if saved()["spectrum"].get("code") == code_of(path):
        return
    before, sys.argv = sys.argv, [str(path), "--max_iters=100", "--max_new_tokens=1"]
    with redirect_stdout(io.StringIO()):
        names = runpy.run_path(str(path), run_name="__main__")
    sys.argv = before
    block = names["model"].h[1]
    q, k, v = block.attn.c_attn.weight.grad.chunk(3)
    gradients = {"query": q, "key": k, "value": v}
    gradients["attention's c_proj"] = block.attn.c_proj.weight.grad
    gradients["c_fc, first quarter"] = block.mlp.c_fc.weight.grad.chunk(4)[0]
    gradients["MLP's c_proj"] = block.mlp.c_proj.weight.grad
    for name, gradient in gradients.items():
        save("spectrum", name, gradient.svd()[1].tolist())
    save("spectrum", "code", code_of(path))


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


def report(found):
    """The report as Markdown."""
    lines = ["# What single steps of gpt_char.md change", ""]
    lines += ["## Losses", "", "One run each, one thread; seed 1337 if none is named."]
    lines += ["The train loss is that of the last batch before the last evaluation."]
    lines += [""]
    heads = "run | file and flags | first val loss | train loss | lowest val loss"
    lines += [f"| {heads} | final val loss |", "|---|---|---:|---:|---:|---:|"]
    for name, file, flags in RUNS:
        if name in found["runs"]:
            lines.append(loss_row(name, file, flags, found["runs"][name]["output"]))
    lines += ["", "## Times", "", "Two threads, nothing else running."]
    lines += ["Median, and the range of all rounds.", ""]
    lines += ["| file and flags | ms per step | rounds |", "|---|---:|---:|"]
    for file, flags in TIMES:
        name = f"{file} {flags}".strip()
        if name in found["times"]:
            ms = found["times"][name]["ms"]
            values = f"{statistics.median(ms):.1f} ({min(ms):.1f} - {max(ms):.1f})"
            lines.append(f"| {name} | {values} | {len(ms)} |")
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
            measure_times(path_of, end)
        else:
            measure_losses(path_of, end)
            measure_spectrum(path_of)
    (BENCH / "effects.md").write_text(report(saved()), encoding="utf-8")


if __name__ == "__main__":
    main()
