"""The defaults of the last three scripts on a CPU without bfloat16.

python docs/bench/slow_cpu.py                about twelve minutes on two cores

A CPU that has bfloat16 is restricted to AVX2 by settings of the environment.
"""

import lab

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
AVX2["ATEN_CPU_CAPABILITY"] = "avx2"


def measure(bench):
    flags = "--no-bfloat16"
    if bench.quick:
        flags += " --max_iters=3 --max_new_tokens=1"
    jobs = {}
    for name in ("gpt_char", "gpt2_train", "sparse_gpt"):
        jobs[name] = lab.job(f"{name}.py", flags, env=AVX2)
    measures = ("final val loss", "ms per step", "wall s")
    rows = bench.in_turn(jobs, measures, rounds=1)
    words = " ".join(f"`{name}={value}`" for name, value in AVX2.items())
    bench.say(f"With {words}")
    bench.table("The defaults, with --no-bfloat16", rows)


if __name__ == "__main__":
    lab.main(measure, "slow_cpu", "On a CPU without bfloat16")
