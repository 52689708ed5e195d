"""What the answers to the exercises of the chapters say.

python docs/bench/exercises.py               about five minutes on two cores
"""

import lab

FLAGS = ["--learning_rate=0.005", "--learning_rate=0.5", "--learning_rate=5"]
FLAGS.append("--max_iters=4000")


def measure(bench):
    less = "--max_iters=3 --max_new_tokens=1" if bench.quick else ""
    jobs = {}
    for flags in FLAGS:
        jobs[f"bigram.py, `{flags}`"] = lab.job("bigram.py", f"{flags} {less}")
    name = "the table made by counting, 0.01 added to each count"
    jobs[name] = lab.job("bigram.py", "--max_iters=1", after=["loss_of_counts", 0.01])
    rows = bench.in_turn(jobs, ["final val loss"], rounds=1)
    for row in rows.values():
        row["val loss"] = row.pop("final val loss")
    bench.table("Chapter 1", rows)

    bench.say("With GPT-2's tokens, 10 steps, before the step and after it.")
    flags = "--data_dir=data/shakespeare/gpt2 --max_iters=10 --max_new_tokens=1"
    files = list(lab.unfold().items())
    jobs = {}
    for before, after in zip(files, files[1:]):
        if after[0].endswith("memory_that_is_kept"):
            jobs = {name: lab.job(path, flags) for name, path in (before, after)}
    rows = bench.in_turn(jobs, ["ms per step", "peak MiB"], rounds=2)
    bench.table("Memory that is kept", rows, ["ms per step"])


if __name__ == "__main__":
    lab.main(measure, "exercises", "What the exercises of the chapters say")
