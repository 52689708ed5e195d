"""What the chapter gpt_char.md claims beyond the loss of each step.

    python docs/bench/effects.py [--minutes=5]

Each row is one run of a file between v2_attention.py and gpt_char.py with some flags.
The report is docs/bench/effects.md, and .json with what every run printed. A run that
the JSON has is not repeated; delete it there if its file has changed.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "docs/bench"
SMALL = "--data_dir=data/small"  # the first 30,000 characters of Shakespeare
# (name, beginning of the file's name, flags)
RUNS = []
for depth in (1, 3, 6):
    RUNS.append((f"plain, {depth} blocks", "02", f"--n_layer={depth} --max_iters=300"))
for depth in (1, 3, 6):
    name = f"residual, {depth} blocks"
    RUNS.append((name, "03", f"--n_layer={depth} --max_iters=300"))
SHORT = f"{SMALL} --max_iters=800 --batch_size=16 --eval_interval=50"
RUNS += [
    ("first lines", "17", "--max_iters=1"),
    ("first lines, quiet start", "18", "--max_iters=1"),
    ("first lines, 12 blocks", "17", "--max_iters=1 --n_layer=12"),
    ("first lines, 12 blocks, quiet start", "18", "--max_iters=1 --n_layer=12"),
    ("unclipped, rate 3", "07", "--learning_rate=3 --max_iters=300"),
    ("AdamW, rate 1.5e-2", "17", "--optimizer=adamw --max_iters=300"),
    ("small text", "14", SHORT),
    ("small text, dropout 0.2", "14", f"{SHORT} --dropout=0.2"),
    ("small text, decay 1", "14", f"{SHORT} --weight_decay=1"),
    ("small text, decay 0", "14", f"{SHORT} --weight_decay=0"),
    ("a longer run, 1 block", "06", "--max_iters=1000 --n_layer=1"),
    ("a longer run", "06", "--max_iters=1000"),
    ("constant rate", "10", "--max_iters=1000"),
    ("schedule", "11", "--max_iters=1000"),
    ("residual, rate 2e-2", "03", "--learning_rate=2e-2 --max_iters=300"),
    ("LayerNorm, rate 2e-2", "04", "--learning_rate=2e-2 --max_iters=300"),
]


def make_small_text():
    """The short text on which dropout shows what it is for."""
    text = (ROOT / "data/shakespeare/input.txt").read_text(encoding="utf-8")
    folder = ROOT / "data/small"
    folder.mkdir(exist_ok=True)
    (folder / "input.txt").write_text(text[:30_000], encoding="utf-8")


def run(path, flags):
    """What a run prints, and the time of the whole process in seconds."""
    command = [sys.executable, path, *flags.split(), "--prompt=ROMEO:"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode != 0 and "nan" not in done.stdout:  # nan: a loss that exploded
        sys.exit(done.stderr)
    return {"output": done.stdout, "seconds": round(time.perf_counter() - start, 1)}


def row(name, file, flags, output):
    """The run as a row of the table: its first and its last lines."""
    steps = re.findall(r"train loss (\S+) \| val loss (\S+)", output)
    final = (re.findall(r"final val loss (\S+)", output) or ["nan"])[0]
    lowest = min(float(loss) for _, loss in [*steps, ("", final)])
    cells = [name, f"`{file} {flags}`", steps[0][1], steps[-1][0]]
    return "| " + " | ".join([*cells, f"{lowest:.4f}", final]) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--first", type=int, default=0, help="row to begin with")
    args = parser.parse_args()
    make_small_text()
    record = BENCH / "effects.json"

    def runs():
        """All runs so far; another process may add some, too."""
        if not record.exists():
            return {}
        return json.loads(record.read_text(encoding="utf-8"))["runs"]

    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        steps = [sys.executable, ROOT / "docs/tools/steps.py", "unfold", folder]
        subprocess.run(steps, check=True, stdout=subprocess.DEVNULL)
        for name, file, flags in RUNS[args.first :]:
            if name in runs() or time.monotonic() - begin > 60 * args.minutes:
                continue
            (path,) = Path(folder, "gpt_char").glob(f"{file}_*.py")
            result = run(path, flags) | {"file": path.name, "flags": flags}
            found = runs() | {name: result}
            record.write_text(json.dumps({"runs": found}, indent=1) + "\n")
            print(name, result["seconds"], "s", flush=True)
    found = runs()
    lines = ["# What single steps of gpt_char.md change", ""]
    lines += ["One run each, seed 1337, one thread. The train loss is that of the last"]
    lines += ["batch before the last evaluation.", ""]
    lines += [
        "| run | file and flags | first val loss | train loss | lowest val loss | "
    ]
    lines[-1] += "final val loss |"
    lines += ["|---|---|---:|---:|---:|---:|"]
    for name, file, flags in RUNS:
        if name in found:
            lines.append(row(name, file, flags, found[name]["output"]))
    if "a longer run" in found:
        sample = found["a longer run"]["output"].split("-" * 80)[1].strip()
        lines += ["", "## What step 6 writes after 1,000 steps", "", "```text"]
        lines += [sample, "```"]
    text = "\n".join(lines) + "\n"
    (BENCH / "effects.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
