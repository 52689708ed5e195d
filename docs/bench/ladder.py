"""Every script without arguments: time, memory and loss.

python docs/bench/ladder.py        about 40 minutes on two cores; see lab.py for flags
"""

import lab

SCRIPTS = ["bigram", "v2_attention", "gpt_char", "gpt2_train", "sparse_gpt"]


def measure(bench):
    flags = bench.args.flags
    if bench.quick:
        flags += " --max_iters=3 --max_new_tokens=1"
    jobs = {name: lab.job(f"{name}.py", flags) for name in SCRIPTS}
    rows = bench.in_turn(jobs, ("wall s", "peak MiB", "final val loss"))
    bench.table("Every script without arguments", rows)


if __name__ == "__main__":
    lab.main(measure, "ladder", "Every script without arguments")
