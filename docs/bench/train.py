"""gpt2_train.py beside nanoGPT and build-nanogpt; Muon against AdamW.

python docs/bench/train.py --peers=DIR       about 40 minutes on two cores
"""

import lab
import peers


def measure(bench):
    peers.copy(bench)
    on_gpu = "gpu" in bench.facts()
    layers, heads, width, T, B, total = 4, 4, 256, 256, 8, 2048
    if on_gpu:
        layers, heads, width, T, B, total = 12, 12, 768, 1024, 32, 524_288
    if bench.quick:
        layers, heads, width, T, B, total = 2, 2, 32, 32, 2, 64
    steps = 4 if bench.quick else 20
    size = f"--n_layer={layers} --n_head={heads} --n_embd={width}"
    size += f" --block_size={T} --batch_size={B}"

    def ours(n, total, flags):
        flags = f"{size} --max_iters={n} --eval_interval={n} {flags}"
        flags += f" --total_batch_size={total} --data_dir=data/shakespeare/gpt2"
        flags += " --max_new_tokens=1 --no-hellaswag"
        return lab.job("gpt2_train.py", flags)

    flags = f"{size} --bias=True --dataset=bpe --max_iters={steps - 1} --eval_iters=1"
    flags += f" --gradient_accumulation_steps={total // (B * T)}"
    flags += " --eval_interval=1000000000"
    settings = dict(total_batch_size=total, B=B, T=T, max_steps=steps, warmup_steps=1)
    settings |= {"val_loss_steps": 1, "GPTConfig.block_size": T}
    settings |= {"GPTConfig.n_layer": layers, "GPTConfig.n_head": heads}
    settings["GPTConfig.n_embd"] = width
    adamw = f"--eval_tokens={T} --optimizer=adamw"
    jobs = {
        "gpt2_train, Muon": ours(steps, total, f"--eval_tokens={T}"),
        "gpt2_train, AdamW": ours(steps, total, adamw),
        "nanoGPT": peers.nanogpt(bench, flags),
        "build-nanogpt": peers.peer(
            "build-nanogpt", "train_gpt2.py", settings=settings
        ),
    }
    rows = bench.in_turn(jobs, ("ms per step", "peak MiB"))
    for row in rows.values():
        row["tokens/s"] = [1000 * total / ms for ms in row.pop("ms per step")]
    title = f"Training {layers} layers of {width} channels, "
    title += f"{total} = {B} x {T} x {total // B // T} tokens per step"
    bench.table(title, rows, ["tokens/s", "peak MiB"])

    # Both optimizers at several learning rates, then each at its best
    n = 100
    if on_gpu:
        n, total = 300, 65_536
    if bench.quick:
        n = 4
    measures = ("final val loss", "train s", "steps")

    def compare(optimizer, rate, n):
        flags = f"--optimizer={optimizer} --learning_rate={rate}"
        return ours(n, total, flags)

    best = {}
    for optimizer, rates in (
        ("muon", (5e-3, 1e-2, 2e-2, 4e-2)),
        ("adamw", (3e-4, 1e-3, 3e-3, 6e-3)),
    ):
        jobs = {str(rate): compare(optimizer, rate, n) for rate in rates}
        rows = bench.in_turn(jobs, measures, rounds=1)
        title = f"The learning rate of {optimizer}, {n} steps of {total} tokens"
        bench.table(title, rows)
        best[optimizer] = min(rows, key=lambda rate: rows[rate]["final val loss"])
        best[optimizer, "train s"] = rows[best[optimizer]]["train s"][0]
    longer = round(n * best["muon", "train s"] / best["adamw", "train s"])
    jobs = {
        "Muon": compare("muon", best["muon"], n),
        "AdamW, equal tokens": compare("adamw", best["adamw"], n),
        "AdamW, equal time": compare("adamw", best["adamw"], max(4, longer)),
    }
    rows = bench.in_turn(jobs, measures)
    bench.table("Muon against AdamW, each at its best rate", rows, ["train s"])


if __name__ == "__main__":
    lab.main(measure, "train", "gpt2_train.py: speed, memory, Muon against AdamW")
