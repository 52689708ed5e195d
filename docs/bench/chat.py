"""What the parts of a model of today bring: the first nine steps of docs/chat.md.

    python docs/bench/chat.py --time             ms per step, in turn; a quiet machine
    python docs/bench/chat.py                    losses; may share the machine
    python docs/bench/chat.py --only=equal_time --steps=02,03 --seeds=1,2

Each step is trained three ways: for 1,500 steps; for as many steps as fit into the time
that step 1 takes for 300; and the best ones also for as many as fit into three quarters
of the time of gpt_char.py's 4,000. What a step takes is measured with --time, so do
that first. The results are kept in docs/bench/steps_chat.json, whose form is that of
steps.py: what it has of the same code is not measured again, a run can be interrupted,
and two may run at once. The report is docs/bench/chat.md.
"""

import argparse
import os
import runpy
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

import lab
import steps
import torch

BENCH = Path(__file__).parent
SEEDS = (1337, 1, 2)
ITERS = 1500  # the default of these steps
SHORT = 300  # equal time: steps of step 1
LONG = 4000  # the default of gpt_char.py
SHARE = 0.75  # of the time of gpt_char.py
TIMED = 30  # steps of a run that is timed
ROUNDS = 10
FIRST = "01_less_to_carry"
ROTARY = "04_rotary_positions"
BEST = "05_normalized_queries"
RIVAL = "05_with_relu_squared"
GELU = "F.gelu(self.c_fc(x))"
RELU2 = "F.relu(self.c_fc(x)).square()"
NO_CACHE, CACHE = "07_grouped_queries", "08_a_cache"
BPE = "09_byte_pair_encoding"
WAYS = ("equal_steps", "equal_time", "moonshot")


def settings_of(iters, seed):
    """The flags of a run."""
    return {
        "max_iters": iters,
        "eval_interval": iters,
        "seed": seed,
        "init_from": "scratch",
        "device": "cpu",
        "max_new_tokens": steps.SAMPLE_LENGTH,
    }


def find_files(folder):
    """{name: path} of gpt_char.py, the first nine steps, and a rival of the fifth."""
    files = steps.files_of("chat", folder)
    files = dict(list(files.items())[:10])
    rival = folder / f"{RIVAL}.py"
    code = files[BEST].read_text(encoding="utf-8")
    rival.write_text(code.replace(GELU, RELU2), encoding="utf-8")
    files[RIVAL] = rival
    del files[CACHE]  # trains as the step before it does
    return dict(sorted(files.items()))


class Bench:
    """The files, and what is known of them."""

    def __init__(self, folder, threads):
        self.files = find_files(folder)
        self.codes = {name: lab.code_of(path) for name, path in self.files.items()}
        self.book = steps.Book(BENCH / "steps_chat.json")
        self.threads = threads
        self.machine = steps.describe_machine(threads)
        self.flags = {}  # of each file

    def key(self, name, iters, seed):
        return self.book.key(self.codes[name], settings_of(iters, seed))

    def find(self, name, iters, seed):
        """What is known of a run, or None."""
        return self.book.runs.get(self.key(name, iters, seed))

    def run(self, name, iters, seed):
        """Do a run, unless it is known."""
        if self.find(name, iters, seed):
            return
        path = self.files[name]
        if name not in self.flags:
            self.flags[name] = steps.known_flags(path)
        settings = settings_of(iters, seed)
        found = steps.train(path, self.flags[name], settings, self.threads)
        found["file"] = name
        found["machine"] = self.machine
        self.book.runs[self.key(name, iters, seed)] = found
        self.book.save()
        loss = found["val loss"]
        print(f"{name}: {iters} steps, seed {seed}: {loss:.4f}", flush=True)

    def time(self, name, count):
        """Measure the time of a step, unless it is known of this round."""
        key = f"{self.codes[name]} time round={count}"
        if key in self.book.runs:
            return
        settings = settings_of(TIMED, SEEDS[0]) | {"max_new_tokens": 1}
        if name not in self.flags:
            self.flags[name] = steps.known_flags(self.files[name])
        words = steps.command_of("", self.flags[name], settings)[1:]
        found = lab.perform(lab.job(self.files[name], " ".join(words)))
        kept = {"file": name, "machine": self.machine}
        kept["ms per step"] = round(found["ms per step"], 2)
        self.book.runs[key] = kept
        self.book.save()
        print(f"{name}: {kept['ms per step']} ms", flush=True)

    def times(self, name):
        """The ms per step of all rounds, or an empty list."""
        keys = [f"{self.codes[name]} time round={n}" for n in range(ROUNDS)]
        runs = [self.book.runs.get(key) for key in keys]
        return [run["ms per step"] for run in runs if run]

    def ms(self, name):
        """The time of a step in the fastest round: other load can only slow it down."""
        times = self.times(name)
        if not times:
            sys.exit("the times are missing: python docs/bench/chat.py --time")
        return min(times)

    def iters(self, name, way):
        """How many steps a file gets in a way of comparing."""
        if way == "equal_steps":
            return ITERS
        if way == "equal_time":
            return round(SHORT * self.ms(FIRST) / self.ms(name))
        return round(SHARE * LONG * self.ms("00_gpt_char") / self.ms(name))

    def names(self, way):
        """The files that are compared."""
        if way == "moonshot":
            return [ROTARY, BEST, RIVAL]
        return [name for name in self.files if name != "00_gpt_char"]

    def losses(self, name, way):
        """The losses of all seeds that are known."""
        iters = self.iters(name, way)
        runs = [self.find(name, iters, seed) for seed in SEEDS]
        return [run["val loss"] for run in runs if run]


# ------------------------------------------------------------------------------ Writing
def load(path):
    """The names of an untrained step, as its functions see them."""
    sys.argv = [str(path), "--device=cpu", "--init_from=scratch", "--max_iters=0"]
    sys.argv += ["--no-bfloat16", "--max_new_tokens=1"]
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        return runpy.run_path(str(path))["decode"].__globals__


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


def time_writing(folder):
    """{name: ms per token}, in turn, on one thread."""
    torch.set_num_threads(1)
    paths = {path.stem: path for path in (folder / "chat").glob("*.py")}
    models = {name: load(paths[name]) for name in (NO_CACHE, CACHE)}
    times = {name: [] for name in models}
    for _ in range(7):
        for name, model in models.items():
            times[name].append(ms_per_token(model, name == CACHE))
    return {name: round(statistics.median(found), 2) for name, found in times.items()}


def time_all(bench, folder):
    """Measure what a clock is needed for."""
    for count in range(ROUNDS):
        for name in bench.files:
            bench.time(name, count)
    bench.book.runs["writing"] = time_writing(folder)
    bench.book.save()


# ------------------------------------------------------------------------------- Report
def table_of(bench, way):
    """A table of losses."""
    lines = ["| step | steps | val loss | each seed |", "|---|---:|---:|---|"]
    for name in bench.names(way):
        losses = bench.losses(name, way)
        if not losses:
            continue
        middle = f"{statistics.median(losses):.4f}"
        each = ", ".join(f"{loss:.4f}" for loss in losses)
        lines.append(f"| {name} | {bench.iters(name, way)} | {middle} | {each} |")
    return lines


def report(bench):
    """The report as Markdown, and the rows that the pages show."""
    lines = ["# What the steps of chat.md bring", ""]
    lines += [f"- {key}: {value}" for key, value in bench.machine.items()]
    lines += [f"- seeds: {', '.join(map(str, SEEDS))}; the loss is their median"]
    lines += ["- loss: per byte, which up to step 8 is per token", ""]
    lines += [f"## Equal steps, {ITERS:,} each", "", *table_of(bench, "equal_steps")]
    lines += ["", f"{CACHE} trains as {NO_CACHE} does.", ""]
    lines += ["## Loss per token and per byte, after equal steps", ""]
    lines += ["| step | per token | per byte |", "|---|---:|---:|"]
    run = bench.find(BPE, ITERS, SEEDS[0])
    if run:
        lines.append(f"| {BPE} | {run['per token']:.4f} | {run['val loss']:.4f} |")
    lines.append("")
    lines += [f"## Equal time, that of {SHORT} steps of {FIRST}", ""]
    lines += table_of(bench, "equal_time")
    lines += ["", f"## In {SHARE} of the time of {LONG:,} steps of gpt_char.py", ""]
    lines += table_of(bench, "moonshot")
    lines += ["", "## Time of a step on two threads", ""]
    lines += [f"The fastest of {ROUNDS} rounds of {TIMED} steps, all in turn.", ""]
    lines += ["| step | ms per step | each round |", "|---|---:|---|"]
    rows = {}
    for name in bench.files:
        times = bench.times(name)
        each = ", ".join(f"{ms:.1f}" for ms in times)
        lines.append(f"| {name} | {bench.ms(name):.1f} | {each} |")
        run = bench.find(name, ITERS, SEEDS[0])
        if run and name != RIVAL:
            rows[name] = {"val loss": bench.losses(name, "equal_steps")}
            rows[name] |= {"sample": run["sample"][: steps.SAMPLE_LENGTH]}
            rows[name] |= {"ms per step": [bench.ms(name)]}
    lines += ["", "## Writing 128 tokens, untrained, in turn, median of 7", ""]
    lines += ["| step | ms per token |", "|---|---:|"]
    for name, ms in bench.book.runs["writing"].items():
        lines.append(f"| {name} | {ms:.2f} |")
    lines += ["", "## Samples", ""]
    for name, row in rows.items():
        lines += [f"### {name}", "", "```text", row["sample"].strip(), "```", ""]
    return "\n".join(lines), rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--time", action="store_true", help="measure the times only")
    parser.add_argument("--only", default=",".join(WAYS), help="ways to compare")
    parser.add_argument("--steps", default="", help="of these only, such as 02,03")
    parser.add_argument("--seeds", default="1337,1,2")
    parser.add_argument("--threads", type=int, default=1, help="of the runs for losses")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), 0 if args.time else args.threads)
        if args.time:
            time_all(bench, Path(folder))
            return
        for seed in map(int, args.seeds.split(",")):
            for way in args.only.split(","):
                for name in bench.names(way):
                    if steps.chosen(name, args.steps.split(",")):
                        bench.run(name, bench.iters(name, way), seed)
        text, rows = report(bench)
    (BENCH / "chat.md").write_text(text, encoding="utf-8")
    bench.book.save(steps=rows)


if __name__ == "__main__":
    main()
