"""What each step of a chapter changes: the loss, the time, the memory and a sample.

    python docs/bench/steps.py --chapter=gpt_char
    python docs/bench/steps.py --chapter=gpt_char --only=03,04 --no-time
    python docs/bench/steps.py --chapter=gpt2_train --max_iters=100 --seeds=1337,1,2

The steps are unfolded to a temporary folder, and each file runs as it is, in a process
of its own, with the same arguments (those that it knows, according to its --help). The
report is docs/bench/steps_CHAPTER.md, and .json with every single value. What the JSON
has of the same code is not measured again, so a run can be interrupted; comments and
docstrings may change meanwhile. --no-time leaves out what other load would disturb;
--again measures what is there already.

ms per step: the median time from one step of the optimizer to the next, in a run of
--time_iters steps; where a file has no optimizer of PyTorch, from one backward to the
next. All files run in turn, and the report has the fastest of --rounds rounds: what
else a machine does can only slow a run down. Memory is the largest resident set of the
process.
"""

import argparse
import csv
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

import lab

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "docs/bench"
# Where a chapter starts; training steps that show something, and enough for the time
CHAPTERS = {
    "v2_attention": ("bigram", 1000, 300),
    "gpt_char": ("v2_attention", 300, 40),
    "gpt2_train": ("gpt_char", 100, 40),
    "sparse_gpt": ("gpt2_train", 60, 12),
    "by_hand": ("bigram", 1000, 300),
    "chat": ("gpt_char", 250, 60),
}
# {chapter: {number of a step: flags that show what the step is about}}
FLAGS = {
    "sparse_gpt": {
        "05": {"pattern": "strided"},
        "06": {"pattern": "strided"},
        "07": {"pattern": "alternate", "combine": "layers"},
        "08": {"pattern": "sinks"},
        "10": {"pattern": "selection"},
    }
}
SAMPLE_LENGTH = 120  # characters of the sample that the report shows
LINE = "-" * 80 + "\n"  # what the scripts print around a sample


# ----------------------------------------------------------------------------- Running
def run(command, threads=0):
    """Run a program from the root of the repository: its output, time and memory."""
    env = dict(os.environ)
    env.setdefault("TIKTOKEN_CACHE_DIR", "data/tiktoken")
    env["PYTHONIOENCODING"] = "utf-8"
    if threads > 0:
        env["OMP_NUM_THREADS"] = str(threads)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=env, stdout=log, stderr=log
        )
        memory = None
        try:
            if hasattr(os, "wait4"):  # not on Windows
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                unit = 2**20 if sys.platform == "darwin" else 2**10
                memory = usage.ru_maxrss / unit
            else:
                process.wait()
        except BaseException:  # Ctrl-C, for example
            process.kill()
            process.wait()
            raise
        seconds = time.perf_counter() - start
        log.seek(0)
        output = log.read()
    if process.returncode != 0:
        reason = "it was killed"
        if output.strip():
            reason = output.strip().splitlines()[-1]
        raise RuntimeError(reason)
    return output, seconds, memory


def known_flags(path):
    """The names of the settings that a file lists in its --help."""
    output, _, _ = run([path, "--help"])
    return set(re.findall(r"--(\w+)", output))


def command_of(path, known, settings):
    """The command that runs a file, with those of the settings that it knows."""
    command = [path]
    for name, value in settings.items():
        if name not in known:
            continue
        if value is False:
            command.append(f"--no-{name}")
        else:
            command.append(f"--{name}={value}")
    return command


def sample_of(output):
    """The last text between two lines of dashes."""
    parts = output.split(LINE)
    if len(parts) < 3:
        return None
    return parts[-2].rstrip("\n")


def train(path, known, settings, threads):
    """Train with a file from the beginning, in a new folder: all that it shows."""
    with tempfile.TemporaryDirectory() as folder:
        out_dir = Path(folder, "out")
        settings = settings | {"out_dir": out_dir}
        command = command_of(path, known, settings)
        output, seconds, memory = run(command, threads)
        result = {"seconds": round(seconds, 3)}
        if memory is not None:
            result["peak MiB"] = round(memory, 1)
        per_byte = r"^final val loss .* ([\d.]+) per byte"
        losses = re.findall(r"^final val loss ([\d.]+)", output, re.M)
        if losses:
            result["val loss"] = float(losses[-1])
        losses = re.findall(per_byte, output, re.M)
        if losses:  # tokens are not characters
            result["per token"] = result["val loss"]
            result["val loss"] = float(losses[-1])
        sample = sample_of(output)
        if sample is not None:
            result["sample"] = sample
        log_file = out_dir / "log.csv"
        if log_file.exists():
            with open(log_file, newline="") as f:
                times = [float(row["ms"]) for row in csv.DictReader(f) if row["ms"]]
            if len(times) > 2:
                result["ms per step"] = round(statistics.median(times[1:]), 2)
    return result


def time_steps(path, known, settings, threads):
    """The median time of a step; without it, where the file has no backward()."""
    flags = command_of("", known, settings)[1:]
    env = {"OMP_NUM_THREADS": str(threads)} if threads > 0 else {}
    found = lab.perform(lab.job(path, " ".join(flags), env=env))
    result = {"seconds": round(found["wall s"], 3)}
    if "ms per step" in found:
        result["ms per step"] = round(found["ms per step"], 2)
    return result


# --------------------------------------------------------------------------- Measuring
class Book:
    """The JSON beside the report: every run that was ever measured, by its code."""

    def __init__(self, path):
        self.path = path
        self.runs = {}
        if path.exists():
            content = json.loads(path.read_text(encoding="utf-8"))
            self.runs = content.get("runs", {})

    def key(self, code, settings, count=0):
        """Under which a run is found: code, settings and its round."""
        words = [f"{name}={value}" for name, value in settings.items()]
        return " ".join([code, *words, f"round={count}"])

    def save(self, **more):
        self.runs = Book(self.path).runs | self.runs  # another process may write, too
        content = json.dumps(more | {"runs": self.runs}, indent=1) + "\n"
        unfinished = self.path.with_suffix(".tmp")
        unfinished.write_text(content, encoding="utf-8")
        unfinished.replace(self.path)


def files_of(chapter, folder):
    """{name: path} of the script that a chapter starts from and of its steps."""
    program = ROOT / "docs/tools/steps.py"
    subprocess.run([sys.executable, program, "unfold", folder], cwd=ROOT, check=True)
    start = CHAPTERS[chapter][0]
    last = sorted((folder / start).glob("*.py"))[-1]
    files = {f"00_{start}": last}
    for path in sorted((folder / chapter).glob("*.py")):
        files[path.stem] = path
    return files


def flags_of(args, name):
    """The flags of a step that are its own."""
    return FLAGS.get(args.chapter, {}).get(name[:2], {})


def loss_settings(args, name, seed):
    """What a run is given whose loss and sample count."""
    return {
        "max_iters": args.max_iters,
        "eval_interval": args.max_iters,
        "seed": seed,
        "prompt": args.prompt,
        "max_new_tokens": args.max_new_tokens,
        "num_samples": 1,
        "hellaswag": False,
        **flags_of(args, name),
    }


def time_settings(args, name):
    """What a run is given whose time counts."""
    return {
        "max_iters": args.time_iters,
        "eval_interval": args.time_iters,
        "seed": args.seeds[0],
        "max_new_tokens": 1,
        "num_samples": 1,
        "hellaswag": False,
        **flags_of(args, name),
    }


def plan(args, names):
    """All runs in their order: (name of the file, settings, round, how to run it)."""
    runs = []
    for seed in args.seeds:
        for name in names:
            runs.append((name, loss_settings(args, name, seed), 0, train))
    if args.time:
        for count in range(args.rounds):
            for name in names:
                settings = time_settings(args, name)
                runs.append((name, settings, count, time_steps))
    return runs


def chosen(name, only):
    """Is a step among those of --only (numbers or beginnings of names)?"""
    return not only or any(name.startswith(start) for start in only)


def measure(args, files, codes, book, machine):
    """Do the runs that the book does not have yet. Returns the reasons of failures."""
    failures = {}
    flags = {}
    done = set()
    if not args.again:
        done.update(book.runs)
    begin = time.monotonic()
    names = [name for name in files if chosen(name, args.only)]
    for name, settings, count, how in plan(args, names):
        key = book.key(codes[name], settings, count)
        if name in failures or key in done:
            continue
        if args.minutes > 0 and time.monotonic() - begin > 60 * args.minutes:
            print("the time is up; the same command continues here")
            break
        try:
            if name not in flags:
                flags[name] = known_flags(files[name])
            result = how(files[name], flags[name], settings, args.threads)
        except RuntimeError as error:
            failures[name] = str(error)
            print(f"{name}: {error}", flush=True)
            continue
        result["file"] = name
        result["machine"] = machine
        book.runs[key] = result
        done.add(key)
        book.save()
        shown = {k: v for k, v in result.items() if k not in ("sample", "machine")}
        print(f"{settings['max_iters']} steps: {shown}", flush=True)
    return failures


# ----------------------------------------------------------------------------- Reports
def collect(args, files, codes, book):
    """{name: {"val loss": values of all seeds, ...}} of what the book has."""
    rows = {}
    for name in files:
        row = {"val loss": [], "ms per step": [], "peak MiB": [], "machines": {}}
        for seed in args.seeds:
            settings = loss_settings(args, name, seed)
            found = book.runs.get(book.key(codes[name], settings))
            if found is None:
                continue
            row["machines"]["loss, memory, sample"] = found["machine"]
            if "sample" in found and "sample" not in row:
                row["sample"] = found["sample"][:SAMPLE_LENGTH]
            for measure in ("val loss", "peak MiB"):
                if measure in found:
                    row[measure].append(found[measure])
        for count in range(args.rounds):
            key = book.key(codes[name], time_settings(args, name), count)
            found = book.runs.get(key, {})
            if "ms per step" not in found:
                continue
            fastest = min([*row["ms per step"], found["ms per step"]])
            row["ms per step"] = [fastest]
            row["machines"]["ms per step"] = found["machine"]
        rows[name] = row
    return rows


def cell(values, digits):
    """The median of some values and, if there are several, their range."""
    if not values:
        return ""
    text = f"{statistics.median(values):.{digits}f}"
    if len(values) > 1:
        text += f" ({min(values):.{digits}f} - {max(values):.{digits}f})"
    return text


def describe_machine(threads):
    """Facts about this machine and what runs on it."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        match = re.search(r"model name\s*: (.+)", cpuinfo.read_text())
        if match:
            name = match[1]
    question = "import torch; print(torch.__version__, torch.get_num_threads())"
    output, _, _ = run(["-c", question], threads)
    version, threads = output.split()
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "threads": int(threads),
        "python": platform.python_version(),
        "torch": version,
        "date": time.strftime("%Y-%m-%d"),
    }


def report(args, rows, failures):
    """The report as Markdown."""
    machines = []
    for row in rows.values():
        for what, machine in row.pop("machines").items():
            facts = ", ".join(f"{key} {value}" for key, value in machine.items())
            if f"{what}: {facts}" not in machines:
                machines.append(f"{what}: {facts}")
    lines = [f"# The steps of {args.chapter}.md, one after the other", ""]
    lines += [f"- {facts}" for facts in machines]
    seeds = ", ".join(str(seed) for seed in args.seeds)
    lines.append(f"- loss, memory, sample: {args.max_iters} steps; seeds {seeds}")
    if any(row["ms per step"] for row in rows.values()):
        words = f"the fastest of {args.rounds} rounds of {args.time_iters} steps"
        lines.append(f"- ms per step: {words}")
    lines += ["", "## Loss, time and memory", ""]
    head = ["step", "val loss", "ms per step", "peak MiB"]
    line = ["---", "---:", "---:", "---:"]
    if args.chapter in FLAGS:
        head.insert(1, "flags")
        line.insert(1, "---")
    lines.append("| " + " | ".join(head) + " |")
    lines.append("|" + "|".join(line) + "|")
    for name, row in rows.items():
        cells = [name]
        if args.chapter in FLAGS:
            flags = flags_of(args, name)
            cells.append(" ".join(f"`--{flag}={flags[flag]}`" for flag in flags))
        cells += [cell(row["val loss"], 4), cell(row["ms per step"], 1)]
        cells.append(cell(row["peak MiB"][:1], 0))
        lines.append("| " + " | ".join(cells) + " |")
    for name, reason in failures.items():
        lines += ["", f"{name} ends with: {reason}"]
    lines += ["", "## Samples", ""]
    lines.append(f"Seed {args.seeds[0]}, prompt {json.dumps(args.prompt)}.")
    for name, row in rows.items():
        if "sample" in row:
            lines += ["", f"### {name}", "", "```text", row["sample"], "```"]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chapter", choices=CHAPTERS, required=True)
    parser.add_argument("--only", default="", help="numbers of steps, such as 03,04")
    parser.add_argument("--max_iters", type=int, default=0, help="0: the chapter's")
    parser.add_argument("--seeds", default="1337", help="such as 1337,1,2")
    parser.add_argument("--prompt", default="ROMEO:", help="start of the sample")
    parser.add_argument("--max_new_tokens", type=int, default=SAMPLE_LENGTH)
    parser.add_argument("--time", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--time_iters", type=int, default=0, help="0: the chapter's")
    parser.add_argument("--rounds", type=int, default=3, help="of what is timed")
    parser.add_argument("--threads", type=int, default=0, help="0: PyTorch's choice")
    parser.add_argument("--again", action="store_true", help="also what is there")
    parser.add_argument("--minutes", type=float, default=0, help="stop after as many")
    args = parser.parse_args()
    args.seeds = [int(seed) for seed in args.seeds.split(",")]
    args.only = [start for start in args.only.split(",") if start]
    if args.max_iters == 0:
        args.max_iters = CHAPTERS[args.chapter][1]
    if args.time_iters == 0:
        args.time_iters = CHAPTERS[args.chapter][2]
    if args.time_iters < 3:
        parser.error("--time_iters must be at least 3")

    machine = describe_machine(args.threads)
    book = Book(BENCH / f"steps_{args.chapter}.json")
    with tempfile.TemporaryDirectory() as folder:
        files = files_of(args.chapter, Path(folder))
        codes = {name: lab.code_of(path) for name, path in files.items()}
        try:
            failures = measure(args, files, codes, book, machine)
        except KeyboardInterrupt:
            sys.exit("\ninterrupted; the same command continues here")
    rows = collect(args, files, codes, book)
    text = report(args, rows, failures)
    book.path.with_suffix(".md").write_text(text, encoding="utf-8")
    book.save(steps=rows)
    print(f"{book.path.with_suffix('.md')}: written")


if __name__ == "__main__":
    main()
