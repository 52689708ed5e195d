"""The loss of every script from its first step on, and what gpt_char.py writes.

python docs/bench/curves.py                  about half an hour on two cores

How long a script takes is in the report of ladder.py, for which nothing else ran. Here
only the losses count, so this may share the machine: it is the part of a run that was
measured, and the time is that part of the ladder's.
"""

import json
import statistics

import lab

SCRIPTS = ["bigram", "v2_attention", "gpt_char", "gpt2_train", "sparse_gpt"]


def times_of_ladder():
    """{script: seconds of the whole run}."""
    report = json.loads((lab.BENCH / "ladder.json").read_text(encoding="utf-8"))
    rows = report["tables"]["Every script without arguments"]
    return {name: statistics.median(row["wall s"]) for name, row in rows.items()}


def measure(bench):
    flags = "--max_iters=4 --max_new_tokens=1" if bench.quick else ""
    losses_at = sorted({0} | {round(1.5**n) for n in range(22)})  # 0, 1, 2, 3, 5, 8 ...
    runs = {}
    for name in SCRIPTS:
        samples_at = [0, 50, 250, 1000] if name == "gpt_char" else []
        job = lab.job(f"{name}.py", flags, trace=[losses_at, samples_at])
        runs[name] = bench.result(name, job)
    times = times_of_ladder()
    for name, run in runs.items():
        stretch = times[name] / run["seconds"]
        points = [*run["points"], [run["seconds"], run["final val loss"]]]
        points = [[seconds * stretch, loss] for seconds, loss in points]
        samples = dict(run["samples"])
        if samples:
            samples[str(run["steps"])] = run["sample"]
        bench.tables[name] = {
            "points": points,
            "samples": samples,
            "final val loss": run["final val loss"],
        }
        loss, seconds = run["final val loss"], times[name]
        bench.say(f"- {name}: {loss:.4f}; the run of the ladder took {seconds:.1f} s")


if __name__ == "__main__":
    lab.main(measure, "curves", "The loss of every script against time")
