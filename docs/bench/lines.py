"""What every script writes after its training, from the prompt ROMEO: where it has one.

python docs/bench/lines.py                   about a quarter of an hour on two cores
"""

import lab

FLAGS = {
    "bigram": "",
    "v2_attention": "",
    "gpt_char": "--prompt=ROMEO:",
    "gpt2_train": "--prompt=ROMEO:",
    "sparse_gpt": "--prompt=ROMEO:",
}


def measure(bench):
    less = "--max_iters=3 --max_new_tokens=20" if bench.quick else ""
    for name, flags in FLAGS.items():
        run = bench.result(name, lab.job(f"{name}.py", f"{flags} {less}"))
        loss = f"Final val loss {run['final val loss']:.4f}."
        bench.say(f"\n## {name}.py\n\n{loss}\n\n```text\n{run['sample']}\n```")


if __name__ == "__main__":
    lab.main(measure, "lines", "What the scripts write")
