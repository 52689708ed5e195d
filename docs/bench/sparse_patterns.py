"""The patterns of sparse_gpt.py after equally many steps.

python docs/bench/sparse_patterns.py         about half an hour on two cores

Equal steps, not equal time, and one seed: short runs mostly measure which pattern
leaves the plateau of bigrams first.
"""

import lab

PATTERNS = ["fixed", "strided", "window", "alternate", "dense"]


def measure(bench):
    steps = 3 if bench.quick else 400
    env = {"OMP_NUM_THREADS": "1"}
    jobs = {}
    for pattern in PATTERNS:
        flags = f"--pattern={pattern} --max_iters={steps} --no-hellaswag"
        jobs[pattern] = lab.job("sparse_gpt.py", flags, env=env)
    rows = bench.in_turn(jobs, ["final val loss"], rounds=1)
    flags = "--max_iters=3" if bench.quick else ""
    jobs = {"fixed, 2,000 steps": lab.job("sparse_gpt.py", flags, env=env)}
    default = bench.in_turn(jobs, ["final val loss"], rounds=1)
    for row in [*rows.values(), *default.values()]:
        row["val loss"] = row.pop("final val loss")
    bench.table(f"After {steps} steps, one seed", rows)
    bench.table("The default", default)


if __name__ == "__main__":
    lab.main(measure, "sparse_patterns", "The patterns of sparse_gpt.py, equal steps")
