"""The loss of every script from its first step on, and what gpt_char.py writes.

python docs/bench/curves.py                  about a quarter of an hour on two cores
"""

import lab

SCRIPTS = ["bigram", "v2_attention", "gpt_char", "gpt2_train", "sparse_gpt"]


def measure(bench):
    flags = "--max_iters=4 --max_new_tokens=1" if bench.quick else ""
    losses_at = sorted({0} | {round(1.5**n) for n in range(22)})  # 0, 1, 2, 3, 5, 8 ...
    for name in SCRIPTS:
        samples_at = [0, 50, 250, 1000] if name == "gpt_char" else []
        job = lab.job(f"{name}.py", flags, trace=[losses_at, samples_at])
        run = bench.result(name, job)
        points = [*run["points"], [run["seconds"], run["final val loss"]]]
        samples = dict(run["samples"])
        if samples:
            samples[str(run["steps"])] = run["sample"]
        bench.tables[name] = {
            "points": points,
            "samples": samples,
            "final val loss": run["final val loss"],
        }
        bench.say(
            f"- {name}: {run['final val loss']:.4f} after {run['seconds']:.1f} s "
            "from the first step on"
        )


if __name__ == "__main__":
    lab.main(measure, "curves", "The loss of every script against time")
