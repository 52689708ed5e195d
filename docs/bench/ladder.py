"""Every script without arguments: time, memory, loss, and what it writes.

python docs/bench/ladder.py        about 40 minutes on two cores; see lab.py for flags
"""

import lab

SCRIPTS = ["bigram", "v2_attention", "gpt_char", "gpt2_train", "sparse_gpt"]


def measure(bench):
    flags = bench.args.flags
    if bench.quick:
        flags += " --max_iters=3 --max_new_tokens=1"
    jobs = {name: lab.job(f"{name}.py", flags) for name in SCRIPTS}
    rows = bench.in_turn(jobs, ("wall s", "peak MiB", "final val loss", "sample"))
    samples = {name: row.pop("sample")[0] for name, row in rows.items()}
    bench.table("Every script without arguments", rows)
    bench.say("\n## What they write")
    for name, sample in samples.items():
        bench.say(f"\n### {name}\n\n```text\n{sample}\n```")


if __name__ == "__main__":
    lab.main(measure, "ladder", "Every script without arguments")
