"""sparse_gpt.py: the time and memory of sparse attention against dense attention.

python docs/bench/sparse.py                  about half an hour on two cores
"""

import lab


def measure(bench):
    on_gpu = "gpu" in bench.facts()
    lengths = [1024, 4096, 16384]
    if on_gpu:
        lengths = [8192, 16384, 32768, 65536]
    if bench.quick:
        lengths = [64, 256]
    flags = "--max_iters=0 --max_new_tokens=1 --model_size=char --block_size=64"
    flags += " --stride=8 --total_batch_size=64 --no-compile"
    flags += " --data_dir=data/shakespeare/bytes"
    kinds = {"dense": ("dense", 0), "strided": ("strided", 0), "fixed": ("fixed", 0)}
    for pattern in ("strided", "fixed"):
        for hop in (1, 2):
            kinds[f"{pattern}, hop {hop} of 3 heads"] = (pattern, hop)
    jobs = {}
    for name, (pattern, hop) in kinds.items():
        after = ["attention_times", pattern, hop, lengths, 5]
        jobs[name] = lab.job("sparse_gpt.py", flags, after=after)
    measures = [f"T = {T}: ms" for T in lengths]
    title = "Attention, forward and backward, 6 heads of 64"
    if not on_gpu:
        title += ", one thread"
    bench.table(title, bench.in_turn(jobs, measures), measures)

    few = 4 if bench.quick else 10
    base = f"--max_iters={few} --max_new_tokens=1 --eval_tokens=1 --no-hellaswag"
    base += " --eval_interval=1000000 --data_dir=data/shakespeare/bytes"
    longer = "--block_size=2048 --stride=64"
    if on_gpu:
        base += " --total_batch_size=65536"
        longer = "--block_size=16384 --stride=128"
    for title, size in (("the preset", ""), ("twice its context", longer)):
        jobs = {}
        for pattern in ("dense", "strided", "fixed"):
            flags = f"{base} --pattern={pattern} {size}"
            jobs[pattern] = lab.job("sparse_gpt.py", flags)
        rows = bench.in_turn(jobs, ("ms per step", "peak MiB"))
        bench.table(f"A training step, {title}", rows, ["ms per step", "peak MiB"])


if __name__ == "__main__":
    lab.main(measure, "sparse", "sparse_gpt.py: sparse attention against dense")
