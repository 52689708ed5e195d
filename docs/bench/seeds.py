"""What the seed changes: the loss of the scripts that train the same model on a laptop.

python docs/bench/seeds.py                   about an hour; may share the machine
"""

import statistics

import lab

SCRIPTS = ["gpt_char", "gpt2_train"]


def measure(bench):
    less = "--max_iters=3 --max_new_tokens=1" if bench.quick else ""
    rows = {name: {"final val loss": []} for name in SCRIPTS}
    for seed in range(1337, 1337 + bench.args.rounds):
        for name in SCRIPTS:
            job = lab.job(f"{name}.py", f"--seed={seed} {less}")
            result = bench.result(f"{name}, seed {seed}", job)
            rows[name]["final val loss"].append(result["final val loss"])
    bench.table("Seeds from 1337 on", rows)
    for name, row in rows.items():
        mean = statistics.mean(row["final val loss"])
        bench.say(f"- {name}: mean val loss {mean:.4f}")


if __name__ == "__main__":
    lab.main(measure, "seeds", "What the seed changes")
