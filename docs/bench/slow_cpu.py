"""The defaults of the last three scripts on a CPU without bfloat16.

    python docs/bench/slow_cpu.py --rounds=1     about twenty minutes on two cores

A CPU that has bfloat16 is restricted to AVX2 by settings of the environment.
"""

import lab

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
AVX2["ATEN_CPU_CAPABILITY"] = "avx2"
# Two sizes of gpt_char.py, with as many steps as they make in about the same time
SIZES = [
    "--n_layer=4 --n_embd=96 --max_iters=2900",
    "--n_layer=5 --n_embd=128 --max_iters=1400",
]


def measure(bench):
    quick = " --max_iters=3 --max_new_tokens=1" if bench.quick else ""
    measures = ("final val loss", "ms per step", "wall s")

    def table(title, runs):
        jobs = {}
        for script, flags in runs:
            job = lab.job(f"{script}.py", f"--no-bfloat16 {flags}{quick}", env=AVX2)
            jobs[f"{script} {flags}".rstrip()] = job
        bench.table(title, bench.in_turn(jobs, measures))

    words = " ".join(f"`{name}={value}`" for name, value in AVX2.items())
    bench.say(f"- with {words}")
    scripts = ("gpt_char", "gpt2_train", "sparse_gpt")
    table("The defaults, with --no-bfloat16", [(script, "") for script in scripts])
    table("What gpt_char.py's were chosen from", [("gpt_char", size) for size in SIZES])


if __name__ == "__main__":
    lab.main(measure, "slow_cpu", "On a CPU without bfloat16")
