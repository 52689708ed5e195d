"""How fast get_batch of gpt2_train.py reads windows of a large shard, on one thread.

python docs/bench/loader.py                  a minute
"""

import lab
import numpy as np


def make_shards(count):
    """Shards of random tokens in data/loader."""
    folder = lab.ROOT / "data/loader"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name, n in (("x_val_000000.bin", 10**5), ("x_train_000001.bin", count)):
        header = np.zeros(256, dtype="<i4")
        header[:3] = 20240520, 1, n
        tokens = rng.integers(50257, size=n, dtype="<u2")
        (folder / name).write_bytes(header.tobytes() + tokens.tobytes())


def measure(bench):
    make_shards(10**6 if bench.quick else 10**8)
    seconds = 0.3 if bench.quick else 5
    flags = "--data_dir=data/loader --block_size=1024 --batch_size=64 --device=cpu"
    flags += " --total_batch_size=65536 --max_iters=0 --max_new_tokens=1"
    flags += " --n_layer=1 --n_head=1 --n_embd=16 --init_from=scratch"
    env = {"OMP_NUM_THREADS": "1"}
    after = ["windows_per_second", seconds]
    jobs = {"1 process": lab.job("gpt2_train.py", flags, env=env, after=after)}
    rows = bench.in_turn(jobs, ["tokens/s"])
    for row in rows.values():
        row["of 40M tokens/s"] = [speed / 40e6 for speed in row["tokens/s"]]
    bench.table("get_batch of gpt2_train.py, 64 x 1,024 tokens", rows)


if __name__ == "__main__":
    lab.main(measure, "loader", "Reading tokens")
