"""sparse_gpt.py against dense attention in equal time, on two texts.

python docs/bench/texts.py                   about an hour on two cores

The other text is Python's own library: code has longer dependencies than a play.
On a CPU without bfloat16: --flags="--max_iters=250" --suffix=_float32
"""

import os
import statistics
import subprocess
import sys
from pathlib import Path

import lab


def prepare_library():
    """The modules of Python as bytes, in data/library."""
    if (lab.ROOT / "data/library/bytes").exists():
        return
    text = ""
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        text += path.read_text(encoding="utf-8")
    source = lab.OUT / "library.txt"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(text, encoding="utf-8")
    command = ["prepare_shakespeare.py", f"--source={source}", "--name=library"]
    subprocess.run([sys.executable, *command], cwd=lab.ROOT, check=True)


def measure(bench):
    prepare_library()
    flags = "--no-hellaswag --eval_interval=1000000 --max_new_tokens=1"
    few, n = 20, 1000
    if bench.quick:
        few, n = 4, 4

    def train(text, pattern, n, seed, more=""):
        words = f"{flags} --data_dir=data/{text}/bytes --pattern={pattern} {more}"
        words += f" --max_iters={n} --seed={seed} {bench.args.flags}"
        return lab.job("sparse_gpt.py", words)

    jobs = {}
    for pattern in ("dense", "fixed"):
        jobs[pattern] = train("shakespeare", pattern, few, 1337, "--eval_tokens=1")
    rows = bench.in_turn(jobs, ("ms per step", "peak MiB"))
    bench.table("A training step", rows, ["ms per step", "peak MiB"])
    pace = {name: statistics.median(row["ms per step"]) for name, row in rows.items()}
    steps = {"dense": max(4, round(n * pace["fixed"] / pace["dense"])), "fixed": n}
    measures = ("final val loss", "train s", "steps")
    for text in ("shakespeare", "library"):
        rows = {}
        for seed in range(1337, 1337 + bench.args.rounds):
            jobs = {name: train(text, name, steps[name], seed) for name in steps}
            for name, row in bench.in_turn(jobs, measures, rounds=1).items():
                for measure, values in row.items():
                    rows.setdefault(name, {}).setdefault(measure, []).extend(values)
        title = f"The loss at equal time, {text}, seeds from 1337 on"
        bench.table(title, rows, ["train s"])


if __name__ == "__main__":
    lab.main(measure, "texts", "sparse_gpt.py against dense attention in equal time")
