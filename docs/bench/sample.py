"""Sampling from GPT-2 (124M) with random weights: a cache, none, and nanoGPT.

python docs/bench/sample.py --peers=DIR      about ten minutes on two cores
"""

import lab
import peers


def measure(bench):
    peers.copy(bench)
    tokens = 3 if bench.quick else 500  # nanoGPT's sample.py takes 500
    flags = "--model_size=gpt2 --block_size=1024 --total_batch_size=1024"
    flags += " --data_dir=data/shakespeare/gpt2 --max_iters=0 --max_new_tokens=1"
    nanogpt = ["nanogpt_samples", f"{peers.PEERS}/nanoGPT", tokens]
    cached = ["tokens_per_second", tokens, True]
    uncached = ["tokens_per_second", tokens, False]
    jobs = {
        "gpt2_train": lab.job("gpt2_train.py", flags, after=cached),
        "gpt2_train, no cache": lab.job("gpt2_train.py", flags, after=uncached),
        "nanoGPT": lab.job("", after=nanogpt),
    }
    rows = bench.in_turn(jobs, ["tokens/s"])
    title = f"Sampling {tokens} tokens from GPT-2 (124M) with random weights"
    bench.table(title, rows, ["tokens/s"])


if __name__ == "__main__":
    lab.main(measure, "sample", "Sampling with a cache and without")
