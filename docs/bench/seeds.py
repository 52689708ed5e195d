"""The scripts that train the same model on a laptop, from several seeds.

python docs/bench/seeds.py                   about 40 minutes on two cores
"""

import statistics

import lab

RUNS = {
    "gpt_char": ("gpt_char.py", ""),
    "gpt_char, 3,000 steps": ("gpt_char.py", "--max_iters=3000"),
    "gpt2_train": ("gpt2_train.py", ""),
}


def measure(bench):
    less = "--max_iters=3 --max_new_tokens=1" if bench.quick else ""
    measures = ("final val loss", "wall s", "peak MiB")
    rows = {}
    for seed in range(1337, 1337 + bench.args.rounds):
        jobs = {}
        for name, (script, flags) in RUNS.items():
            jobs[name] = lab.job(script, f"--seed={seed} {flags} {less}")
        for name, row in bench.in_turn(jobs, measures, rounds=1).items():
            for measure, values in row.items():
                rows.setdefault(name, {}).setdefault(measure, []).extend(values)
    bench.table("Seeds from 1337 on", rows, ["wall s"])
    for name, row in rows.items():
        mean = statistics.mean(row["final val loss"])
        bench.say(f"- {name}: mean val loss {mean:.4f}")


if __name__ == "__main__":
    lab.main(measure, "seeds", "What the seed changes")
