"""Every report that README and chapters quote: what writes it, and how long it takes.

    python docs/bench/all.py                     the list, with the time of the last run
    python docs/bench/all.py ladder char         run these, be they there or not
    python docs/bench/all.py --missing           run those whose report is missing
    python docs/bench/all.py --everything        run all of them: many hours
    python docs/bench/all.py --minutes=60 ...    stop after about an hour

After Ctrl-C, or when the time is up, the same command continues: parts that are done
are not repeated, and a part that was interrupted goes on where it was. --peers=DIR is
the folder with your clones of other repositories (see peers.py).
"""

import argparse
import ast
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import lab

TIMES = lab.BENCH / "times.json"  # the seconds of the last run of each part
UNFINISHED = lab.OUT / "unfinished.json"  # the seconds so far of interrupted parts
DONE = lab.OUT / "done.json"  # the parts that are done since --everything was begun


class Part(NamedTuple):
    """A report and its program in this folder."""

    report: str
    what: str
    command: str
    has_lab: bool = True  # a measurement of lab.py has its flags


# What is no measurement, or one that all.py does not repeat
OTHERS = {"all", "lab", "inside", "peers", "steps", "gpu", "mutants"}
FLAGS = {"effects": "--minutes=600"}
# Programs with several reports: sparse.py NAME writes sparse_NAME.md
MANY = {"sparse": "counts speed sampling crossover recall equal_time positions".split()}
# Reports of what is over, or of what needs another machine or a change of a script
HISTORY = {
    "gpu": "python docs/bench/gpu.py, on a GPU",
    "ideas": "what was tried to lower the loss; the variants are not kept",
    "machines": "older runs on other processors",
    "mutants": "python docs/bench/mutants.py, which tests the tests",
    "short_float32": "short.py --suffix=_float32, on a CPU without bfloat16",
}


def find_parts():
    """A part for each program in this folder: NAME.py writes NAME.md."""
    parts = []
    for path in sorted(lab.BENCH.glob("*.py")):
        name = path.stem
        if name in OTHERS:
            continue
        code = path.read_text(encoding="utf-8")
        title = ast.get_docstring(ast.parse(code)).split("\n")[0]
        command = f"{name}.py {FLAGS.get(name, '')}".strip()
        has_lab = "\nimport lab\n" in code
        if name not in MANY:
            parts.append(Part(name, title, command, has_lab))
        for report in MANY.get(name, []):
            parts.append(Part(f"{name}_{report}", title, f"{command} {report}", False))
    for chapter in ("v2_attention", "gpt_char", "gpt2_train", "sparse_gpt", "by_hand"):
        title = f"What the steps of {chapter}.md change."
        command = f"steps.py --chapter={chapter}"
        parts.append(Part(f"steps_{chapter}", title, command, False))
    return parts


def read_json(path):
    if not path.exists():
        return {}
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    path.write_text(text, encoding="utf-8")


def times_in(row):
    """The seconds of all rounds in a row of a table, if it has any."""
    if isinstance(row, dict):
        return row.get("wall s", [])
    return []


def seconds_of(report, times, bench=lab.BENCH):
    """How long the last run took: by the record, or what its runs add up to."""
    if report in times:
        return times[report]
    content = read_json(bench / f"{report}.json")
    found = []
    for run in content.get("runs", {}).values():
        found.append(run.get("wall s", run.get("seconds", 0)))
    if not found:  # of an earlier program: each table has all its rounds
        for rows in content.get("tables", {}).values():
            if not isinstance(rows, dict):
                continue
            for row in rows.values():
                found += times_in(row)
    return sum(found) or None


def show(parts, times, bench=lab.BENCH):
    """The list of all parts."""
    for part in parts:
        seconds = seconds_of(part.report, times, bench)
        if not (bench / f"{part.report}.md").exists():
            state = "missing"
        elif seconds is None:
            state = "?"
        else:
            state = f"{seconds / 60:.0f} min"
            if seconds < 90:
                state = f"{seconds:.0f} s"
        print(f"{part.report:18} {state:>8}   {part.what}")
    for report, what in HISTORY.items():
        print(f"{report:18} {'-':>8}   {what}")


def run(part, more):
    """Run the program of a part; is it done? After an interruption, times add up."""
    program, *flags = part.command.split()
    if part.has_lab:
        flags += more
    command = [sys.executable, lab.BENCH / program, *flags]
    print(f"--- {part.report}", flush=True)
    start = time.monotonic()
    code = None
    try:
        code = subprocess.run(command, cwd=lab.ROOT).returncode
    finally:  # after Ctrl-C, too
        unfinished = read_json(UNFINISHED)
        seconds = unfinished.pop(part.report, 0) + time.monotonic() - start
        if code == 0:
            write_json(TIMES, read_json(TIMES) | {part.report: round(seconds)})
        else:
            unfinished[part.report] = round(seconds)
        write_json(UNFINISHED, unfinished)
    return code == 0


def choose(parts, names, missing, everything, done, bench=lab.BENCH):
    """The parts to run, in their order."""
    chosen = []
    for part in parts:
        is_there = (bench / f"{part.report}.md").exists()
        wanted = part.report in names or (missing and not is_there)
        if wanted or (everything and part.report not in done):
            chosen.append(part)
    return chosen


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = find_parts()
    reports = [part.report for part in parts]
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--missing", action="store_true")
    parser.add_argument("--everything", action="store_true")
    parser.add_argument("--minutes", type=float, default=0)
    parser.add_argument("--peers", type=Path, metavar="DIR")
    args = parser.parse_args()
    for name in args.names:
        if name not in reports:
            parser.error(f"{name}: no such part; choose from {', '.join(reports)}")
    if not (args.names or args.missing or args.everything):
        show(parts, read_json(TIMES))
        return
    done = read_json(DONE) or []
    begin = time.monotonic()
    unfold = [sys.executable, lab.ROOT / "docs/tools/steps.py", "unfold"]
    subprocess.run(unfold, cwd=lab.ROOT, check=True)  # some programs run these files
    failed = []
    for part in choose(parts, args.names, args.missing, args.everything, done):
        more = []
        if args.peers:
            more.append(f"--peers={args.peers.resolve()}")
        if args.everything or part.report in args.names:
            more.append("--again")
        if args.minutes > 0:
            left = args.minutes - (time.monotonic() - begin) / 60
            if left <= 0:
                sys.exit("the time is up; the same command continues")
            more.append(f"--minutes={left:.1f}")
        try:
            is_done = run(part, more)
        except KeyboardInterrupt:
            sys.exit("\ninterrupted; the same command continues")
        if not is_done:
            failed.append(part.report)
            continue
        done.append(part.report)
        write_json(DONE, done)
    if failed:
        sys.exit(f"not finished: {', '.join(failed)}")
    if args.everything:
        DONE.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
