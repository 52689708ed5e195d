"""Measure the steps of docs/chat.md and write docs/bench/chat.md.

    python docs/tools/steps.py unfold
    python docs/bench/chat.py

Trains every step for 1,500 steps on one thread (three to six minutes each; the outputs
stay in out/bench_chat, and a second call measures only what is missing). Then times the
samples of an untrained model with and without a cache, in turn.
"""

import datetime
import os
import platform
import re
import runpy
import statistics
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
STEPS = ROOT / "out/steps/chat"
OUT = ROOT / "out/bench_chat"
GELU = "F.gelu(self.c_fc(x))"
RELU2 = "F.relu(self.c_fc(x)).square()"


def train(path):
    """What a step prints."""
    log = OUT / f"{path.stem}.txt"
    if not log.exists():
        command = [sys.executable, path, "--device=cpu", "--init_from=scratch"]
        command.append(f"--out_dir={OUT / path.stem}")
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        log.write_text(done.stdout)
    return log.read_text()


def row(path):
    """A row of the table of losses."""
    out = train(path)
    parameters = out.split()[0]
    loss = re.search(r"final val loss (\S+)", out)[1]
    per_byte = re.search(r"final .* (\S+) per byte", out)
    ms = re.findall(r"(\d+) ms", out)[-1]
    text = " ".join(out.split("-" * 80)[1].split())[:70]
    shown = per_byte[1] if per_byte else loss
    return f"| {path.stem} | {parameters} | {loss} | {shown} | {ms} | `{text}` |"


def ms_per_token(names, cached):
    """The time for a token of an untrained model."""
    if cached:
        start = time.perf_counter()
        list(names["generate"](names["encode"]("F"), 128))
    else:
        idx = torch.tensor([names["encode"]("F")])
        start = time.perf_counter()
        names["generate"](idx, 128)
    return 1000 * (time.perf_counter() - start) / 128


def load(path):
    """The names of an untrained step, as its functions see them."""
    sys.argv = [str(path), "--device=cpu", "--init_from=scratch", "--max_iters=0"]
    sys.argv += ["--no-bfloat16", "--max_new_tokens=1"]
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        return runpy.run_path(str(path))["decode"].__globals__


def main():
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    paths = sorted(STEPS.glob("*.py"))[:9]  # later ones: chat_weights.py
    rival = OUT / "05_with_relu_squared.py"
    rival.write_text(paths[4].read_text().replace(GELU, RELU2))
    models = [(load(paths[6]), False), (load(paths[7]), True)]
    times = [[ms_per_token(*model) for model in models] for _ in range(7)]
    without, cached = (f"{statistics.median(t):.2f}" for t in zip(*times))
    commit = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(commit, capture_output=True, text=True, cwd=ROOT).stdout
    lines = ["# What the steps of chat.md bring", ""]
    lines += [f"- torch: {torch.__version__}", f"- python: {platform.python_version()}"]
    lines += ["- threads: 1, on a machine that was also doing other work: the losses"]
    lines += ["  do not depend on it, the times do", "- seed: 1337, one run each"]
    lines += [f"- date: {datetime.date.today()}"]
    lines += [
        f"- this repository: {commit.strip()} and the steps committed with it",
        "",
    ]
    lines += ["## Every step, 1500 training steps", ""]
    lines += ["|  | parameters | val loss | per byte | ms per step | sample |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    lines += [row(path) for path in [*paths[:5], rival, *paths[5:7], *paths[8:]]]
    lines += ["", "08_a_cache trains as 07_grouped_queries does.", ""]
    lines += ["## Writing 128 tokens, untrained, in turn, median of 7", ""]
    lines += ["|  | ms per token |", "| --- | --- |"]
    lines += [f"| 07_grouped_queries | {without} |", f"| 08_a_cache | {cached} |"]
    (ROOT / "docs/bench/chat.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
