"""Measures the steps of docs/by_hand.md, and writes docs/bench/by_hand.md.

    python docs/bench/by_hand.py                    about four minutes on two cores
    python docs/bench/by_hand.py --steps=FOLDER     these step files, already unfolded

Every step file runs once with its own settings, then a few of them with others, then
beyond/by_hand.py and the PyTorch scripts in turn, to compare the time of a step. All
read data/shakespeare of the folder that this program is started in.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
REPORT = Path(__file__).with_suffix(".md")

# A copy of the script notes the time after every step; it runs in a process of its own
CHILD = """
import json, pathlib, sys, time
path, ticks = pathlib.Path(sys.argv[1]), []
del sys.argv[0]
source = path.read_text(encoding="utf-8")
source = source.replace("optimizer.step()\\n", "optimizer.step(); TICK()\\n")
names = {"__name__": "__main__", "__file__": str(path)}
names["TICK"] = lambda: ticks.append((type(names["model"]).__name__, time.time()))
exec(compile(source, str(path), "exec"), names)
print("TICKS" + json.dumps(ticks))
"""

NUDGES = """
import runpy, sys
script = sys.argv[1]
sys.argv = [script, "--max_iters=0", "--max_new_tokens=1"]
check_gradient = runpy.run_path(script)["check_gradient"]
for exponent in range(1, 13):
    print(f"NUDGE {exponent} {check_gradient(h=10.0**-exponent)}")
"""

# PyTorch's model starts from the weights of ours, and learns from its batches
TWIN = """
import runpy, sys
import numpy as np, torch
script, other, iters = sys.argv[1:]
sys.argv = [script, "--max_iters=0", "--max_new_tokens=1"]
ours = runpy.run_path(script)["generate"].__globals__
ours["rng"] = np.random.default_rng(ours["seed"])
model = ours["AttentionLanguageModel"]()
sys.argv = [other, "--device=cpu", "--max_iters=0", "--max_new_tokens=1"]
theirs = runpy.run_path(other)
twin = theirs["model"]
for p, (name, q) in zip(model.parameters(), twin.named_parameters(), strict=True):
    array = torch.tensor(p.data)
    linear = q.ndim == 2 and not name.startswith(("wte", "wpe"))
    q.data = array.T.contiguous() if linear else array
optimizer = torch.optim.AdamW(twin.parameters(), lr=ours["learning_rate"])
for _ in range(int(iters)):
    x, y = ours["get_batch"]()
    loss = twin(torch.tensor(x), torch.tensor(y))
    twin.zero_grad()
    loss.backward()
    optimizer.step()
print("TWIN", theirs["estimate_loss"]())
"""


def python(code, *args):
    """Run code in a new process. Returns what it printed, or ends this program."""
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode != 0:
        sys.exit(f"{args}: {done.stderr[-800:]}")
    return done.stdout


def measure(script, *args):
    """Run a script. Returns a dict with what it printed, and the time of its steps."""
    start = time.time()
    out = python(CHILD, script, *args)
    seconds = time.time() - start
    out, ticks = out.split("TICKS")
    times = {}  # by the name of the model
    for (model, before), (same, after) in zip(json.loads(ticks), json.loads(ticks)[1:]):
        if model == same:
            times.setdefault(model, []).append(1000 * (after - before))
    result = {"out": out, "seconds": seconds}
    result["ms"] = {model: statistics.median(ms) for model, ms in times.items()}
    result["loss"] = re.findall(r"final val loss ([\d.]+)", out)
    samples = re.findall(r"-{80}\n(.*?)\n-{80}", out, re.S)
    result["sample"] = [" ".join(sample.split())[:60] for sample in samples]
    result["off"] = [
        float(number) for number in re.findall(r"off by at most (\S+)", out)
    ]
    return result


def table(head, rows):
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]


def say(lines):
    """Print lines as they come, and keep them for the report."""
    print(*lines, sep="\n", flush=True)
    report.extend(lines)


def machine():
    """Where and with what this was measured."""
    commit = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(commit, capture_output=True, text=True)
    torch = python("import torch; print(torch.__version__)").strip()
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        cpu = found[1] if found else cpu
    return [
        f"- cpu: {cpu}",
        f"- cores: {os.cpu_count()}",
        f"- threads: {os.environ.get('OMP_NUM_THREADS', os.cpu_count())}",
        f"- system: {platform.system()}",
        f"- python: {platform.python_version()}",
        f"- numpy: {np.__version__}",
        f"- torch: {torch}",
        f"- date: {time.strftime('%Y-%m-%d')}",
        f"- this repository: {done.stdout.strip() or 'unknown'}",
    ]


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--steps", default="", help="folder of the step files of by_hand")
parser.add_argument("--rounds", type=int, default=3, help="rounds of the comparison")
parser.add_argument("--max_iters", type=int, default=1000, help="fewer to try it out")
args = parser.parse_args()
if not Path("data/shakespeare/input.txt").exists():
    sys.exit("data/shakespeare/input.txt is missing; prepare_shakespeare.py makes it")

report = []
with tempfile.TemporaryDirectory() as folder:
    if args.steps:
        files = sorted(Path(args.steps).glob("[0-9][0-9]_*.py"))
    else:
        tool = ROOT / "docs/tools/steps.py"
        subprocess.run([sys.executable, tool, "unfold", folder], check=True, cwd=ROOT)
        files = sorted(Path(folder).rglob("by_hand/[0-9][0-9]_*.py"))
    if not files:
        sys.exit("no step files of by_hand")
    iters = f"--max_iters={args.max_iters}"

    say(["# What the steps of by_hand.md cost and bring", "", *machine(), ""])
    say([f"## Every step, {args.max_iters} training steps", ""])
    say(
        [
            "*off*: the largest error of the gradient that the file itself prints.",
            "",
        ]
    )
    say(table(["", "val loss", "ms per step", "seconds in all", "off", "sample"], []))
    for path in [ROOT / "bigram.py", ROOT / "v2_attention.py", *files]:
        run = measure(path, iters)
        row = [path.stem, " and ".join(run["loss"])]
        row += [" and ".join(f"{ms:.2f}" for ms in run["ms"].values())]
        row += [f"{run['seconds']:.0f}"]
        row += [f"{max(run['off']):.0e}" if run["off"] else ""]
        row += [" and ".join(f"`{sample}`" for sample in run["sample"])]
        say(table(row, [])[:1])

    out = python(TWIN, files[-1], ROOT / "v2_attention.py", args.max_iters)
    loss = float(out.split("TWIN ")[1])
    twin = "v2_attention, with the weights and batches of the last step"
    say(table([twin, f"{loss:.4f}", "", "", "", ""], [])[:1])

    say(["", "## Other settings", ""])
    say(table(["step", "settings", "val loss"], []))
    others = [
        (2, "--learning_rate=0.05"),
        (2, "--learning_rate=30"),
        (2, "--learning_rate=100"),
        (3, "--learning_rate=30"),
        (4, "--beta2=0.5"),
        (5, "--weight_decay=0.1"),
        (5, "--weight_decay=1"),
    ]
    for number, setting in others:
        run = measure(files[number - 1], iters, setting)
        say(table([files[number - 1].stem, f"`{setting}`", run["loss"][0]], [])[:1])

    say(["", "## Mistakes made on purpose", ""])
    head = ["step", "instead of", "we write", "off"]
    say(table([*head, "val loss after 0, 100, 200 steps, and at the end"], []))
    mistakes = [
        (9, "error.reshape(-1, vocab_size) / x.size", "error.reshape(-1, vocab_size)"),
        (12, "lambda g: [g * out]", "lambda g: [g]"),
    ]
    for number, right, wrong in mistakes:
        path = Path(folder) / "mistake.py"
        source = files[number - 1].read_text(encoding="utf-8")
        assert source.count(right) == 1
        path.write_text(source.replace(right, wrong), encoding="utf-8")
        run = measure(path, iters, "--eval_interval=100")
        losses = re.findall(r"val loss ([\d.]+)", run["out"])
        row = [files[number - 1].stem, f"`{right}`", f"`{wrong}`"]
        row += [f"{max(run['off']):.0e}", ", ".join([*losses[:3], losses[-1]])]
        say(table(row, [])[:1])

    say(["", "## Finite differences: the error for every size of the nudge", ""])
    say(table(["h", "off by at most"], []))
    for line in python(NUDGES, files[8]).splitlines():
        if line.startswith("NUDGE"):
            _, exponent, off = line.split()
            say(table([f"1e-{exponent}", f"{float(off):.0e}"], [])[:1])

    say(["", f"## The time of a step, in turn with PyTorch, {args.rounds} rounds", ""])
    short = ["--max_iters=60", "--eval_interval=1000", "--max_new_tokens=1"]
    found = {"bigram.py": [], "v2_attention.py": [], "bigram": [], "attention": []}
    for _ in range(args.rounds):
        for name in ["bigram.py", "v2_attention.py"]:
            found[name] += measure(ROOT / name, *short)["ms"].values()
        bigram, attention = measure(files[-1], *short)["ms"].values()
        found["bigram"].append(bigram)
        found["attention"].append(attention)
    rows = []
    for torch, numpy in [("bigram.py", "bigram"), ("v2_attention.py", "attention")]:
        ratios = [b / a for a, b in zip(found[torch], found[numpy])]
        row = [torch, f"{statistics.median(found[torch]):.2f}"]
        row += [f"{statistics.median(found[numpy]):.2f}"]
        row += [
            f"{statistics.median(ratios):.1f} ({min(ratios):.1f} - {max(ratios):.1f})"
        ]
        rows.append(row)
    say(table(["model of", "PyTorch, ms", "by_hand.py, ms", "ratio"], rows))

REPORT.write_text("\n".join(report) + "\n", encoding="utf-8", newline="\n")
