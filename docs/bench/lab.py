"""The laboratory: what the measurements in this folder share.

A measurement is a small file beside this one: a table of jobs, and what is reported of
them. Things to compare run in turn, A B A B ..., each job in a process of its own. A
cell of a report is the median over the rounds (smallest - largest), a ratio is the
median of the ratios within the rounds.

Every result is written down as soon as it is there, in out/bench/NAME.json. So a
measurement can be interrupted: the same command continues where it was. When all is
there, the report goes to docs/bench/NAME.md, and with every single value to NAME.json
beside it. What that has of the same code and the same flags is not measured again.

All measurements have these flags:

    --rounds=3     how often each job runs
    --again        measure what is there already, too
    --minutes=20   stop after so many; the same command continues
    --quick        very little of everything, to try it out: writes to out/bench/quick
    --peers=DIR    the folder with your clones of nanoGPT, build-nanogpt, ...
"""

import argparse
import ast
import hashlib
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "docs/bench"
OUT = ROOT / "out/bench"
INSIDE = BENCH / "inside.py"


# ------------------------------------------------------------------------------- Facts
def code_of(path):
    """A fingerprint of the code in a file, without its comments and docstrings."""
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                first.value.value = ""
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def describe_machine():
    """Facts about this machine and what runs on it."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        match = re.search(r"model name\s*: (.+)", cpuinfo.read_text())
        if match:
            name = match[1]
    question = (
        "import torch; print(torch.__version__, torch.get_num_threads(), "
        "torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    )
    answer = subprocess.run(
        [sys.executable, "-c", question], capture_output=True, text=True, check=True
    )
    version, threads, *gpu = answer.stdout.split(maxsplit=2)
    facts = {
        "cpu": name,
        "cores": os.cpu_count(),
        "threads": int(threads),
        "python": platform.python_version(),
        "torch": version,
        "date": time.strftime("%Y-%m-%d"),
    }
    if gpu:
        facts["gpu"] = gpu[0].strip()
    return facts


# -------------------------------------------------------------------------------- Jobs
def job(script, flags="", **more):
    """What one process does: run a script with flags, and measure.

    script: a path below the root of the repository, or an absolute one. more:
        folder: where it runs, or None for an empty folder that has data/
        settings: {name: value} for a script that takes no flags (see inside.py)
        after: [function of inside.py, arguments ...], called with its names
        trace: [steps at which to take the loss, steps at which to sample]
        env: {name: value} of environment variables
    """
    return {"script": str(script), "flags": flags.split()} | more


def fingerprint(job):
    """What a result depends on: the job, and the code of its script."""
    path = ROOT / job["script"]
    code = ""
    if path.is_file():
        code = code_of(path)
    kept = {key: value for key, value in job.items() if key != "folder"}
    words = json.dumps([kept, code], sort_keys=True)
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def perform(job):
    """Do a job in a process of its own; returns what was measured."""
    with tempfile.TemporaryDirectory() as empty:
        folder = job.get("folder")
        if folder is None:
            folder = empty
            Path(empty, "data").symlink_to(ROOT / "data")
        result = Path(empty, "result.json")
        env = os.environ | {"PYTHONIOENCODING": "utf-8"} | job.get("env", {})
        env.setdefault("TIKTOKEN_CACHE_DIR", str(ROOT / "data/tiktoken"))
        command = [sys.executable, INSIDE, json.dumps(job), result]
        start = time.perf_counter()
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
            process = subprocess.Popen(
                command, cwd=folder, env=env, stdout=log, stderr=log
            )
            try:
                process.wait()
            finally:  # after Ctrl-C, too
                process.kill()
                process.wait()
            seconds = time.perf_counter() - start
            log.seek(0)
            output = log.read().strip()
        if process.returncode != 0:
            lines = output.splitlines() or ["it was killed"]
            raise RuntimeError(lines[-1])
        measured = {"wall s": round(seconds, 3)}
        losses = re.findall(r"^final val loss ([\d.]+)", output, re.M)
        if losses:
            measured["final val loss"] = float(losses[-1])
        parts = output.split("-" * 80)
        if len(parts) >= 3:
            measured["sample"] = parts[-2].strip("\n")
        if result.exists():
            measured |= json.loads(result.read_text(encoding="utf-8"))
    return measured


def unfold():
    """Write the files between the scripts to out/bench/steps: {chapter/NN_title: path}.

    The paths are below the root of the repository.
    """
    folder = OUT / "steps"
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, ROOT / "docs/tools/steps.py", "unfold", folder]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    found = {}
    for path in sorted(folder.glob("*/*.py")):
        found[f"{path.parent.name}/{path.stem}"] = path.relative_to(ROOT)
    return found


# ------------------------------------------------------------------------------- Tables
def number(x):
    """Four digits, or all of a large one."""
    if abs(x) >= 1000:
        return f"{x:,.0f}"
    return f"{x:.4g}"


def cell(values):
    """The median of some values and, if they differ, their range."""
    text = number(statistics.median(values))
    if len(values) > 1:
        text += f" ({number(min(values))} - {number(max(values))})"
    return text


def ratios(values, base):
    """The ratio to the base within each round."""
    return [value / of for value, of in zip(values, base)]


def as_markdown(rows, compared=()):
    """A table of {name: {measure: values of all rounds}}.

    compared: the measures of which there is a column with the ratio to the first row.
    """
    columns = []
    for row in rows.values():
        for measure, values in row.items():
            is_number = all(isinstance(value, (int, float)) for value in values)
            if is_number and measure not in columns:
                columns.append(measure)
    first = next(iter(rows.values()), {})
    compared = [measure for measure in compared if measure in first]
    heads = ["", *columns]
    for measure in compared:
        heads.append(f"{measure}, ratio")
    lines = ["| " + " | ".join(heads) + " |"]
    lines.append("|---" + "|---:" * (len(heads) - 1) + "|")
    for name, row in rows.items():
        cells = [name]
        for measure in columns:
            cells.append(cell(row[measure]) if measure in row else "")
        for measure in compared:
            found = ratios(row.get(measure, []), first[measure])
            cells.append(cell(found) if found else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


# ---------------------------------------------------------------------- A measurement
class Lab:
    """A measurement with its record of results, and the report that it becomes."""

    def __init__(self, name, title, perform=perform, bench=BENCH, out=OUT, args=None):
        parser = argparse.ArgumentParser(description=title)
        parser.add_argument("--rounds", type=int, default=3)
        parser.add_argument("--again", action="store_true")
        parser.add_argument("--minutes", type=float, default=0)
        parser.add_argument("--quick", action="store_true")
        parser.add_argument("--peers", type=Path, metavar="DIR")
        parser.add_argument("--suffix", default="", help="of the report's name")
        parser.add_argument("--flags", default="", help="more flags for our scripts")
        self.args = parser.parse_args(args)
        self.name = name + self.args.suffix
        self.title = title
        self.perform = perform
        self.bench = bench
        self.record = out / f"{self.name}.json"
        self.quick = self.args.quick
        if self.quick:
            self.bench = out / "quick"
            self.record = out / f"quick/{self.name}.record.json"
        self.machine = None  # found out when something runs
        self.begin = time.monotonic()
        self.lines = []
        self.tables = {}
        self.used = {}  # key: result, of all results in the report
        self.left_out = {}
        self.runs = self.earlier()

    def earlier(self):
        """The results of the last report, and those of a run that was interrupted."""
        found = {}
        for path in (self.bench / f"{self.name}.json", self.record):
            if path.exists():
                found |= json.loads(path.read_text(encoding="utf-8")).get("runs", {})
        if self.args.again:  # but for what was measured again before an interruption
            found = {key: run for key, run in found.items() if run.get("again")}
        return found

    def facts(self):
        """The facts about this machine; with "gpu" if it has one."""
        if self.machine is None:
            self.machine = describe_machine()
        return self.machine

    def save(self):
        """Write all results down, under another name first."""
        self.record.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.record.with_suffix(".tmp")
        text = json.dumps({"runs": self.runs}, indent=1)
        unfinished.write_text(text + "\n", encoding="utf-8")
        unfinished.replace(self.record)

    def result(self, name, job, count=0):
        """The result of a job in a round, measured now if it is not there yet."""
        key = f"{fingerprint(job)} round={count}"
        if key not in self.runs:
            minutes = self.args.minutes
            if minutes > 0 and time.monotonic() - self.begin > 60 * minutes:
                sys.exit("the time is up; the same command continues here")
            machine = self.facts()
            result = self.perform(job)
            result |= {"what": name, "machine": machine}
            if self.args.again:
                result["again"] = True
            self.runs[key] = result
            self.save()
            shown = {k: v for k, v in result.items() if type(v) in (int, float)}
            print(f"{name}, round {count + 1}: {shown}", flush=True)
        self.used[key] = self.runs[key]
        return self.runs[key]

    def in_turn(self, jobs, measures, rounds=None):
        """Run {name: job} in turn: {name: {measure: [value of each round]}}.

        A job that fails is left out, which the report says.
        """
        rounds = rounds or self.args.rounds
        if self.quick:
            rounds = 1
        found = {}
        failed = set()
        for count in range(rounds):
            for name, job in jobs.items():
                if name in failed:
                    continue
                try:
                    result = self.result(name, job, count)
                except RuntimeError as error:
                    failed.add(name)
                    found.pop(name, None)
                    self.say(f"{name} is left out: {error}")
                    continue
                row = found.setdefault(name, {})
                for measure in measures:
                    if measure in result:
                        row.setdefault(measure, []).append(result[measure])
        return found

    def say(self, line):
        """Add a line to the report."""
        print(line, flush=True)
        self.lines.append(line)

    def table(self, title, rows, compared=()):
        """Add a table of what in_turn returned."""
        self.tables[title] = rows
        self.say(f"\n## {title}\n\n{as_markdown(rows, compared)}\n")

    def finish(self):
        """Write the report: everything is there."""
        machines = []
        for result in self.used.values():
            facts = ", ".join(f"{k} {v}" for k, v in result["machine"].items())
            if facts not in machines:
                machines.append(facts)
        program = Path(sys.argv[0]).name
        lines = [f"# {self.title}", ""]
        if self.quick:
            lines += ["Tried out with --quick: the numbers mean nothing.", ""]
        lines.append(f"- `python docs/bench/{program}`, {self.args.rounds} rounds")
        lines += [f"- {facts}" for facts in machines]
        text = "\n".join([*lines, *self.lines]).rstrip() + "\n"
        for result in self.used.values():
            result.pop("again", None)
        content = {"tables": self.tables, "runs": self.used}
        self.bench.mkdir(parents=True, exist_ok=True)
        path = self.bench / f"{self.name}.md"
        path.write_text(text, encoding="utf-8")
        content = json.dumps(content, indent=1) + "\n"
        path.with_suffix(".json").write_text(content, encoding="utf-8")
        self.record.unlink(missing_ok=True)
        print(f"{path}: written")


def main(measure, name, title):
    """Run a measurement: measure(lab)."""
    lab = Lab(name, title)
    try:
        measure(lab)
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; the same command continues here")
    lab.finish()
