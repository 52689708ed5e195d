"""For the day a GPU is there: speed, memory, HellaSwag, kills, long contexts.

    python docs/bench/gpu.py
    python docs/bench/gpu.py --nanogpt=CLONE --build_nanogpt=CLONE    theirs, too

It should take at most ten minutes on one H200. Everything happens in a temporary
folder, on made-up tokens: no data has to be prepared, and the losses mean nothing
elsewhere. The report is printed, and written to out/bench/gpu.md. What fails has a row
with the last line of its error.

The part kill can be tried without a GPU, with a tiny model:

    python docs/bench/gpu.py --only=kill --flags="--device=cpu --block_size=16
        --data_dir=data/fineweb_edu --n_layer=1 --n_head=1 --n_embd=16
        --total_batch_size=32 --eval_tokens=32"
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SPEED = re.compile(r"loss ([\d.]+) .* ([\d,]+) tokens/s(?: \| mfu ([\d.]+)%)?")


# ------------------------------------------------------------------------- Made-up data
def make_tokens(count, seed):
    """Tokens of GPT-2's vocabulary that can be learned a little.

    They are as unevenly distributed as words are, and every other one follows from the
    one before.
    """
    rng = np.random.default_rng(seed)
    follows = np.random.default_rng(0).permutation(50257)
    tokens = np.minimum(rng.zipf(1.2, count), 50257) - 1
    tokens[1::2] = follows[tokens[: len(tokens[1::2]) * 2 : 2]]
    return tokens.astype(np.uint16)


def write_shard(path, tokens):
    header = np.zeros(256, dtype="<i4")
    header[:3] = [20240520, 1, len(tokens)]
    with open(path, "wb") as f:
        f.write(header.tobytes())
        f.write(tokens.astype("<u2").tobytes())


def make_work(work, n_tokens):
    """Write shards and questions where the scripts look for them, below work."""
    folder = work / "data/fineweb_edu"
    folder.mkdir(parents=True)
    write_shard(folder / "made_up_train_000001.bin", make_tokens(n_tokens, seed=1))
    write_shard(folder / "made_up_val_000000.bin", make_tokens(n_tokens // 10, seed=2))
    (work / "data/hellaswag").mkdir()
    rng = np.random.default_rng(3)
    words = "the a man woman dog runs walks house into with and then opens door".split()
    with open(work / "data/hellaswag/hellaswag_val.jsonl", "w") as f:
        for _ in range(1000):
            endings = [
                " ".join(rng.choice(words, rng.integers(5, 40))) for _ in range(4)
            ]
            context = " ".join(rng.choice(words, rng.integers(10, 80)))
            question = {
                "ctx": context,
                "endings": endings,
                "label": int(rng.integers(4)),
            }
            f.write(json.dumps(question) + "\n")


def last_line(text):
    """What an error says at its end."""
    lines = text.strip().splitlines() or ["failed, and said nothing"]
    return lines[-1]


# ----------------------------------------------------------------- In a child process
def child(half_residual, script, flags):
    """Run a script; then print the most memory that was allocated on the GPU."""
    import runpy

    import torch
    import torch.nn.functional as F

    if half_residual:  # what is added to half precision under autocast stays in it

        def forward(self, idx):
            return F.embedding(idx, self.weight).bfloat16()

        torch.nn.Embedding.forward = forward
    sys.argv = [script, *flags]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")


class Bench:
    def __init__(self, args, work):
        self.args = args
        self.work = work
        self.rows = []

    def command(self, script, *flags, half_residual=False):
        python = self.args.python.split()
        return [
            *python,
            str(Path(__file__).resolve()),
            f"--child={'half' if half_residual else 'plain'}",
            str(ROOT / script),
            *flags,
        ]

    def run(self, name, script, *flags, half_residual=False):
        """Run a script, and add a row to the report. Returns what it printed."""
        start = time.perf_counter()
        done = subprocess.run(
            self.command(script, *flags, half_residual=half_residual),
            cwd=self.work,
            capture_output=True,
            text=True,
        )
        self.add_row(name, done.stdout, time.perf_counter() - start)
        if done.returncode != 0:
            self.rows[-1]["note"] = last_line(done.stderr)
        return done.stdout

    def add_row(self, name, output, seconds):
        """Speed: the median of the second half of the lines of progress."""
        found = SPEED.findall(output)
        row = {"what": name, "seconds": f"{seconds:.0f}"}
        if found:
            later = found[len(found) // 2 :]
            speeds = sorted(float(speed.replace(",", "")) for _, speed, _ in later)
            row["tokens/s"] = f"{speeds[len(speeds) // 2]:,.0f}"
            row["loss"] = found[-1][0]
            row["mfu"] = later[-1][2]
        for key, pattern in [
            ("val loss", r"val loss ([\d.]+)"),
            ("hellaswag", r"hellaswag ([\d.]+)"),
            ("peak GiB", r"peak memory ([\d.]+)"),
        ]:
            values = re.findall(pattern, output)
            if values:
                row[key] = values[-1]
        self.rows.append(row)
        print(row, flush=True)

    # ------------------------------------------------------------------ Measurements
    def train(self):
        """GPT-2 (124M), 65,536 tokens a step, in several variants."""
        base = [f"--max_iters={self.args.steps}", "--total_batch_size=65536"]
        base += [
            "--eval_interval=1000000",
            "--eval_tokens=1048576",
            "--init_from=scratch",
        ]
        base += ["--max_new_tokens=10", "--num_samples=1", "--warmup_iters=20"]
        base += self.args.flags.split()
        for name, flags, half_residual in [
            ("gpt2, compiled", ["--no-hellaswag"], False),
            ("gpt2, not compiled", ["--no-hellaswag", "--no-compile"], False),
            ("gpt2, compiled, residual in bfloat16", ["--no-hellaswag"], True),
            (
                "gpt2, compiled, adamw_share=2",
                ["--no-hellaswag", "--adamw_share=2"],
                False,
            ),
            (
                "gpt2, compiled, AdamW alone",
                ["--no-hellaswag", "--optimizer=adamw"],
                False,
            ),
        ]:
            flags = [*base, *flags, "--out_dir=out/train"]
            self.run(name, "gpt2_train.py", *flags, half_residual=half_residual)

    def hellaswag(self):
        """One step, and an evaluation on 1,000 made-up questions after it."""
        flags = ["--max_iters=1", "--total_batch_size=65536", "--init_from=scratch"]
        flags += ["--eval_tokens=1048576", "--num_samples=1", "--out_dir=out/hellaswag"]
        self.run("1,000 questions", "gpt2_train.py", *flags, *self.args.flags.split())

    def kill(self):
        """Stop a run with SIGTERM, kill it with SIGKILL, resume: the same val loss?"""
        flags = ["--total_batch_size=65536", "--max_iters=30", "--eval_interval=10"]
        flags += ["--eval_tokens=1048576", "--no-hellaswag", "--max_new_tokens=5"]
        flags += self.args.flags.split()
        unbroken = self.run(
            "unbroken", "gpt2_train.py", *flags, "--out_dir=out/unbroken"
        )
        command = self.command("gpt2_train.py", *flags, "--out_dir=out/killed")
        for signum, after in [(signal.SIGTERM, 5), (signal.SIGKILL, 14)]:
            self.stop_after(command, signum, after)
        resumed = self.run(
            "killed twice, resumed", "gpt2_train.py", *flags, "--out_dir=out/killed"
        )
        losses = []
        for output in (unbroken, resumed):
            losses += re.findall(r"final val loss ([\d.]+)", output)
        if len(losses) == 2:
            same = "the same" if losses[0] == losses[1] else "another"
            self.rows[-1]["note"] = f"{same} val loss: {', '.join(losses)}"

    def stop_after(self, command, signum, after):
        """Start a run, and send it a signal once it has done so many steps."""
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                command,
                cwd=self.work,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            sent = False
            for line in process.stdout:
                step = re.match(r"step +(\d+)/", line)
                if step and int(step[1]) >= after and not sent:
                    process.send_signal(signum)
                    sent = True
            process.wait()
            errors.seek(0)
            row = {"what": f"stopped by {signum.name}"}
            if not sent:
                row["note"] = f"ended before: {last_line(errors.read())}"
        self.rows.append(row)
        print(row, flush=True)

    def sparse(self):
        """8,192 tokens of context: sparse patterns against dense attention."""
        steps = max(2, self.args.steps // 4)
        base = [f"--max_iters={steps}", "--total_batch_size=65536"]
        base += ["--eval_interval=1000000", "--eval_tokens=1048576", "--no-hellaswag"]
        base += ["--init_from=scratch", "--max_new_tokens=5", "--num_samples=1"]
        base += self.args.flags.split()
        for pattern in ["window", "fixed", "strided", "dense"]:
            flags = [*base, f"--pattern={pattern}", "--out_dir=out/sparse"]
            self.run(f"sparse_gpt, 8,192 tokens, {pattern}", "sparse_gpt.py", *flags)

    def nanogpt(self, clone):
        """nanoGPT's own benchmark at the same size, on random data of its own."""
        work = self.work / "nanogpt"
        shutil.copytree(clone, work, ignore=shutil.ignore_patterns(".git"))
        command = [*self.args.python.split(), "bench.py", "--real_data=False"]
        command.append("--batch_size=64")
        if "--no-compile" in self.args.flags:
            command.append("--compile=False")
        done = subprocess.run(command, cwd=work, capture_output=True, text=True)
        ms = re.findall(r"time per iteration: ([\d.]+)ms", done.stdout)
        row = {"what": "nanoGPT's bench.py, 64 x 1,024"}
        if ms:
            row["tokens/s"] = f"{64 * 1024 / float(ms[-1]) * 1000:,.0f}"
        else:
            row["note"] = last_line(done.stderr)
        self.rows.append(row)
        print(row, flush=True)

    def build_nanogpt(self, clone):
        """build-nanogpt's train_gpt2.py on our tokens, stopped after eight steps."""
        work = self.work / "build_nanogpt"
        shutil.copytree(clone, work, ignore=shutil.ignore_patterns(".git"))
        (work / "edu_fineweb10B").mkdir()
        for split, seed in [("train", 1), ("val", 2)]:
            tokens = make_tokens(10_000_000, seed)
            np.save(work / f"edu_fineweb10B/made_up_{split}_000000.npy", tokens)
        (work / "hellaswag").mkdir(exist_ok=True)
        questions = self.work / "data/hellaswag/hellaswag_val.jsonl"
        lines = questions.read_text().splitlines(True)[:20]
        (work / "hellaswag/hellaswag_val.jsonl").write_text("".join(lines))
        speeds = []
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                [*self.args.python.split(), "train_gpt2.py"],
                cwd=work,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            for line in process.stdout:
                speeds += [float(s) for s in re.findall(r"tok/sec: ([\d.]+)", line)]
                if len(speeds) == 8:
                    process.kill()
                    break
            process.wait()
            errors.seek(0)
            error = last_line(errors.read())
        row = {"what": "build-nanogpt's train_gpt2.py, not compiled"}
        if len(speeds) == 8:
            row["tokens/s"] = f"{sorted(speeds[2:])[3]:,.0f}"
        else:
            row["note"] = error
        self.rows.append(row)
        print(row, flush=True)

    def report(self):
        """A Markdown table of all rows."""
        import torch

        columns = [
            "what",
            "tokens/s",
            "mfu",
            "peak GiB",
            "loss",
            "val loss",
            "hellaswag",
        ]
        columns += ["seconds", "note"]
        lines = ["# bench gpu", ""]
        if torch.cuda.is_available():
            lines.append(f"- GPU: {torch.cuda.get_device_name()}")
        lines += [f"- PyTorch {torch.__version__}, {time.strftime('%Y-%m-%d')}", ""]
        lines += [" | ".join(columns), " | ".join("---" for _ in columns)]
        for row in self.rows:
            lines.append(" | ".join(row.get(column, "") for column in columns))
        return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nanogpt", help="your clone of nanoGPT")
    parser.add_argument("--build_nanogpt", help="your clone of build-nanogpt")
    parser.add_argument(
        "--steps", type=int, default=200, help="steps of each training run"
    )
    parser.add_argument("--flags", default="", help="more flags for our scripts")
    parser.add_argument(
        "--python", default=sys.executable, help="the command to run them by"
    )
    parser.add_argument(
        "--only",
        default="train,hellaswag,kill,sparse",
        help="which of these parts; --only= for the clones alone",
    )
    args = parser.parse_args()
    chosen = [part for part in args.only.split(",") if part]
    for part in chosen:
        if part not in ("train", "hellaswag", "kill", "sparse"):
            parser.error(f"--only={part} must be of train, hellaswag, kill, sparse")
    for clone in (args.nanogpt, args.build_nanogpt):
        if clone and not Path(clone).is_dir():
            parser.error(f"{clone} is no folder: give that of your clone")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        make_work(Path(folder), 20_000_000)
        parts = {
            "train": bench.train,
            "hellaswag": bench.hellaswag,
            "kill": bench.kill,
            "sparse": bench.sparse,
        }
        for part in chosen:
            parts[part]()
        if args.nanogpt:
            bench.nanogpt(args.nanogpt)
        if args.build_nanogpt:
            bench.build_nanogpt(args.build_nanogpt)
        report = bench.report()
    out = ROOT / "out/bench"
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.md").write_text(report)
    print(report)


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1].startswith("--child="):
        child(sys.argv[1] == "--child=half", sys.argv[2], sys.argv[3:])
    else:
        main()
