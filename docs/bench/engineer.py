"""What the steps of gpt2_train.md are for, where a CPU can show it.

    python docs/bench/engineer.py                 every part that is missing
    python docs/bench/engineer.py cache zero      these parts, again
    python docs/bench/engineer.py --list

A part is one small experiment and one table of docs/bench/engineer.md; the values are
in engineer.json. Files between gpt_char.py and gpt2_train.py are unfolded to a
temporary folder. Every process computes on one thread unless a row says otherwise. Peak
memory is the largest resident set of the process.
"""

import argparse
import csv
import functools
import json
import os
import platform
import random
import re
import runpy
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "docs/bench"
SCRIPT = ROOT / "gpt2_train.py"
BYTES = "--data_dir=data/shakespeare/bytes"
TOKENS = "--data_dir=data/shakespeare/gpt2"
MIB = 2**20
PARTS = {}


def part(heading, *columns):
    """Register a function that returns the rows of a table, and perhaps a note."""

    def register(function):
        PARTS[function.__name__] = (function, heading, columns)
        return function

    return register


# ----------------------------------------------------------------------------- Running
@functools.cache
def folder():
    """A folder for this run, with the file after every step in steps/."""
    path = Path(tempfile.mkdtemp(prefix="engineer_"))
    command = [sys.executable, ROOT / "docs/tools/steps.py", "unfold", path / "steps"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return path


def step_file(number):
    """The file after a step of the chapter."""
    (path,) = folder().glob(f"steps/gpt2_train/{number:02d}_*.py")
    return path


def new_folder():
    return tempfile.mkdtemp(dir=folder())


def patched(path, *replacements):
    """A copy of a file in which some text was replaced: (old, new) pairs."""
    text = path.read_text(encoding="utf-8")
    for old, new in replacements:
        assert text.count(old) == 1, f"{path.name} has not one {old!r}"
        text = text.replace(old, new)
    copy = Path(new_folder(), path.name)
    copy.write_text(text, encoding="utf-8")
    return copy


def environment(threads):
    env = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONIOENCODING": "utf-8"}
    env.setdefault("TIKTOKEN_CACHE_DIR", str(ROOT / "data/tiktoken"))
    return env


def run(path, *flags, processes=1, threads=1, waits=False, cwd=ROOT):
    """Run a script: {"output", "MiB" (of one process), "log": the rows of log.csv}.

    On one thread, the script's own clock counts the time that it computes, so what else
    the machine does matters little; with waits=True also the time that it waits.
    """
    out_dir = new_folder()
    if threads == 1 and not waits:
        text = path.read_text(encoding="utf-8")
        path = Path(new_folder(), path.name)
        text = text.replace("time.perf_counter()", "time.process_time()")
        path.write_text(text, encoding="utf-8")
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    command += [path, "--device=cpu", f"--out_dir={out_dir}", "--max_new_tokens=1"]
    command += [str(flag) for flag in flags]  # a flag given twice: the last one counts
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        streams = dict(stdout=output, stderr=output)
        process = subprocess.Popen(
            command, cwd=cwd, env=environment(threads), **streams
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode != 0:
        sys.exit(text)
    return {
        "output": text,
        "MiB": usage.ru_maxrss / 1024,
        "log": read_log(out_dir),
        "out_dir": out_dir,
    }


def read_log(out_dir):
    """The rows of log.csv, or none if the file has not been invented yet."""
    path = Path(out_dir, "log.csv")
    if not path.exists():
        return []
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def val_loss(result):
    return float(re.findall(r"final val loss ([\d.]+)", result["output"])[-1])


def ms_per_step(result):
    """The median of all steps but the first."""
    times = [float(row["ms"]) for row in result["log"] if row["ms"]]
    return statistics.median(times[1:])


def load(path, *flags):
    """The names of a script after a run in this process, which trains nothing."""
    old = sys.argv
    flags = ["--max_iters=0", "--max_new_tokens=1", "--device=cpu", *flags]
    sys.argv = [str(path), f"--out_dir={new_folder()}", *flags]
    try:
        with redirect_stdout(StringIO()):
            return runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv = old


def milliseconds(function, repeats=5):
    """The median computing time of some calls, after one that does not count."""
    function()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(1000 * (time.process_time() - start))
    return statistics.median(times)


def windows_of(names, count):
    """x, y of the first validation windows."""
    return names["to_batch"]([names["read_window"]("val", i) for i in range(count)])


def difference(a, b):
    """The largest difference of two checkpoints' weights."""
    models = []
    for out_dir in (a, b):
        path = Path(out_dir, "last.pt")
        models.append(torch.load(path, weights_only=True)["model"])
    gaps = [(models[0][name] - models[1][name]).abs().max() for name in models[0]]
    return max(gaps).item()


# ------------------------------------------------------------------------------ 1. Data
@part("Bytes and GPT-2's tokens", "text", "bytes", "tokens", "bytes per token")
def tokens():
    rows = []
    totals = [0, 0]
    for split in ("train", "val"):
        counts = []
        for kind in ("bytes", "gpt2"):
            files = Path(ROOT, "data/shakespeare", kind).glob(f"*_{split}_*.bin")
            counts.append(sum((path.stat().st_size - 1024) // 2 for path in files))
        rows.append([split, *counts])
        totals = [a + b for a, b in zip(totals, counts)]
    rows.append(["all", *totals])
    return [[*row, f"{row[1] / row[2]:.3f}"] for row in rows]


def write_shard(path, ids, vocab_size):
    header = np.zeros(256, dtype="<i4")
    header[:4] = 20240520, 1, len(ids), vocab_size
    with open(path, "wb") as f:
        f.write(header.tobytes() + np.asarray(ids, dtype="<u2").tobytes())


@part("A large shard", "tokens", "step 2, peak MiB", "step 3, peak MiB")
def shards():
    rows = []
    text = (ROOT / "data/shakespeare/input.txt").read_bytes()
    ids = np.frombuffer(text, dtype=np.uint8)
    for millions in (1, 20, 100):
        data = new_folder()
        long = np.resize(ids, millions * 1_000_000)
        write_shard(Path(data, "large_train_000001.bin"), long, 256)
        write_shard(Path(data, "large_val_000000.bin"), ids[:20_000], 256)
        flags = f"--max_iters=1 --n_layer=1 --batch_size=1 --data_dir={data}".split()
        peaks = [run(step_file(number), *flags)["MiB"] for number in (2, 3)]
        rows.append([f"{millions} million", *[f"{peak:.0f}" for peak in peaks]])
        shutil.rmtree(data)
    return rows


@part(
    "The same time for bytes and for tokens",
    "tokens are",
    "ms per step",
    "steps",
    "training s",
    "val loss",
    "nats per byte",
)
def vocabularies():
    rows = []
    seconds = 40
    for name, flag in (("bytes", BYTES), ("GPT-2's", TOKENS)):
        ms = ms_per_step(run(SCRIPT, flag, "--max_iters=12"))
        steps = int(1000 * seconds / ms)
        result = run(SCRIPT, flag, f"--max_iters={steps}", "--eval_interval=100000")
        spent = sum(float(row["ms"]) for row in result["log"] if row["ms"]) / 1000
        loss = val_loss(result)
        per_byte = loss
        if flag == TOKENS:
            _, _, _, ratio = PARTS["tokens"][0]()[1]
            per_byte = loss / float(ratio)
        row = [name, f"{ms_per_step(result):.0f}", steps, f"{spent:.0f}"]
        rows.append([*row, f"{loss:.3f}", f"{per_byte:.3f}"])
    return rows


@part(
    "The last product of GPT-2, forward and backward", "rows", "float32 ms", "bf16 ms"
)
def padding():
    sizes, dtypes = (50257, 50304), (torch.float32, torch.bfloat16)
    times = {(size, dtype): [] for dtype in dtypes for size in sizes}
    for _ in range(10):
        for size, dtype in times:
            x = torch.randn(512, 768, dtype=dtype, requires_grad=True)
            w = torch.randn(size, 768, dtype=dtype, requires_grad=True)
            start = time.process_time()
            F.linear(x, w).sum().backward()
            times[size, dtype].append(1000 * (time.process_time() - start))
    rows = []
    for size in sizes:
        rows.append([size, *[f"{min(times[size, dtype]):.0f}" for dtype in dtypes]])
    return rows, "The fastest of 10 rounds in turn."


# ------------------------------------------------------------------- 2. Speed and scale
@part("The sizes", "model_size", "parameters", "weights GB")
def sizes():
    rows = []
    for name, (n_layer, _, C, *_) in load(SCRIPT)["sizes"].items():
        block_size = 2048 if name.startswith("gpt3") else 1024
        count = (50304 + block_size) * C + n_layer * (12 * C * C + 13 * C) + 2 * C
        rows.append([name, f"{count:,}", f"{4 * count / 1e9:.2f}"])
    return rows, "With GPT-2's tokens and its context; computed."


@part("The first loss", "model", "ln V", "loss", "P of the same token again, %")
def first_loss():
    rows = []
    for name, flags in (
        ("128 channels, bytes", [BYTES]),
        ("768 channels, bytes", [BYTES, "--model_size=gpt2", "--n_layer=2"]),
        ("768 channels, GPT-2's tokens", [TOKENS, "--model_size=gpt2", "--n_layer=2"]),
    ):
        names = load(SCRIPT, *flags)
        x, y = windows_of(names, 8)
        with torch.no_grad():
            loss = names["model"](x, y).item()
            p = names["model"].logits(x).softmax(-1)
        again = p.gather(2, x[:, :, None]).mean().item()
        fair = np.log(names["vocab_size"])
        rows.append([name, f"{fair:.2f}", f"{loss:.2f}", f"{100 * again:.0f}"])
    return rows


def little_to_evaluate():
    """GPT-2's tokens of Shakespeare, with a validation shard of 2,048 tokens."""
    data = Path(new_folder())
    for path in Path(ROOT, "data/shakespeare/gpt2").glob("*_train_*.bin"):
        (data / path.name).symlink_to(path)
    (path,) = Path(ROOT, "data/shakespeare/gpt2").glob("*_val_*.bin")
    ids = np.fromfile(path, dtype="<u2", offset=1024)[:2048]
    write_shard(data / path.name, ids, 0)
    return f"--data_dir={data}"


@part(
    "Gradient accumulation, GPT-2's tokens",
    "batch_size",
    "micro-steps",
    "peak MiB",
    "val loss after 2 steps",
    "gradient: relative difference",
)
def accumulation():
    rows = []
    data = little_to_evaluate()
    names = load(step_file(7), TOKENS, "--no-bfloat16", "--model_size=char")
    model = names["model"]
    x, y = windows_of(names, 12)

    def gradient(batch_size):
        model.zero_grad()
        for part_x, part_y in zip(x.split(batch_size), y.split(batch_size)):
            (model(part_x, part_y) * batch_size / 12).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    whole = gradient(12)
    for batch_size in (48, 24, 12):
        flags = [data, "--max_iters=2", "--total_batch_size=6144"]
        result = run(step_file(7), *flags, f"--batch_size={batch_size}")
        gap = (gradient(batch_size // 4) - whole).norm() / whole.norm()
        row = [batch_size, 48 // batch_size, f"{result['MiB']:.0f}"]
        rows.append([*row, f"{val_loss(result):.4f}", f"{gap.item():.0e}"])
    return rows, "48 sequences in a step. The gradients are of 12, in float32."


@part("The next batch", "what", "ms")
def next_batch():
    names = load(step_file(8), BYTES)
    read = milliseconds(lambda: names["get_batch"](0, 0), 50)
    return [["reading a batch", f"{read:.2f}"]]


@part(
    "The gradient of the logits in float16, untrained",
    "tokens are",
    "scale",
    "becomes 0, %",
    "is subnormal, %",
    "is infinite, %",
)
def underflow():
    rows = []
    for name, flag in (("bytes", BYTES), ("GPT-2's", TOKENS)):
        names = load(SCRIPT, flag)
        x, y = windows_of(names, 12)
        logits = names["model"].logits(x).detach()[..., : names["vocab_size"]]
        logits.requires_grad_()
        F.cross_entropy(logits.flatten(0, 1), y.flatten()).backward()
        for power in (0, 16, 30):
            half = (logits.grad * 2.0**power).half()
            zero = (half == 0).float().mean().item()
            tiny = ((half != 0) & (half.abs() < 2**-14)).float().mean().item()
            large = half.isinf().float().mean().item()
            cells = [f"{100 * share:.1f}" for share in (zero, tiny, large)]
            rows.append([name, f"2^{power}", *cells])
    return rows


SCALER = "scaler = torch.amp.GradScaler(device_type, enabled=float16)"


def with_scale(path, init_scale, growth_interval):
    """A copy of a file with another scale to begin with, which prints every scale."""
    arguments = f"init_scale={init_scale}, growth_interval={growth_interval}"
    scaler = SCALER.replace("enabled", f"{arguments}, enabled")
    update = "    scaler.update()\n"
    printed = update + "    print('@', step, scaler.get_scale(), bool(overflow))\n"
    return patched(path, (SCALER, scaler), (update, printed))


@part("Training with each number format", "format", "scale", "val loss")
def formats():
    flags = [TOKENS, "--model_size=char-small", "--n_layer=2", "--total_batch_size=512"]
    flags += ["--optimizer=adamw", "--learning_rate=3e-3", "--max_iters=40"]
    flags += ["--eval_tokens=4096", "--block_size=64"]
    half = ["--no-bfloat16", "--float16"]
    forever = 10**9
    rows = []
    for name, path, scale, more in (
        ("float32", step_file(15), "", ["--no-bfloat16"]),
        ("bfloat16", step_file(15), "", ["--bfloat16"]),
        ("float16", with_scale(step_file(15), 1.0, forever), "1", half),
        ("float16", with_scale(step_file(15), 65536.0, 2000), "65,536", half),
    ):
        rows.append([name, scale, f"{val_loss(run(path, *flags, *more)):.3f}"])
    return rows


@part("A scale that is too large", "step", "scale", "what happened")
def overflow():
    flags = [BYTES, "--model_size=char-small", "--n_layer=2", "--total_batch_size=512"]
    flags += ["--max_iters=16", "--eval_tokens=512", "--no-bfloat16", "--float16"]
    path = with_scale(step_file(15), 2.0**24, 3)
    found = re.findall(r"^@ (\d+) (\S+) (\w+)", run(path, *flags)["output"], re.M)
    rows = []
    scale = 2.0**24
    for step, after, skipped in found:
        what = "overflow: step skipped, scale halved"
        if skipped == "False":
            what = "step taken"
            if float(after) > scale:
                what = "step taken, scale doubled"
        rows.append([int(step) + 1, f"2^{int(np.log2(scale))}", what])
        scale = float(after)
    return rows, "Starting at 2^24, doubled after 3 good steps instead of 2,000."


@part("torch.compile", "model", "first step s", "ms per step", "val loss")
def compiled():
    rows = []
    for name, flags in (("eager", []), ("compiled", ["--compile"])):
        flags = [BYTES, "--max_iters=40", "--eval_interval=100", *flags]
        result = run(SCRIPT, *flags, threads=2)
        first = float(result["log"][0]["ms"]) / 1000
        row = [name, f"{first:.1f}", f"{ms_per_step(result):.1f}"]
        rows.append([*row, f"{val_loss(result):.4f}"])
    return rows


@part("Two processes", "how", "ms per step", "val loss after 50 steps")
def processes():
    rows = []
    for name, number, count, threads in (
        ("one process, one thread", 12, 1, 1),
        ("two processes, each with every window (step 11)", 11, 2, 1),
        ("two processes, half of the windows each (step 12)", 12, 2, 1),
    ):
        flags = [BYTES, "--max_iters=50", "--batch_size=3", "--eval_interval=100"]
        how = dict(processes=count, threads=threads, waits=True)
        result = run(step_file(number), *flags, **how)
        (ms,) = re.findall(r"step +50/50 \| loss \S+ \| (\d+) ms", result["output"])
        rows.append([name, ms, f"{val_loss(result):.4f}"])
    return rows, "From one step to the next, waiting included; nothing else ran."


AT_THE_END = "# " + "-" * 78 + " Result\n"


def with_report(path, code):
    """A copy of a file in which every process prints something after training."""
    return patched(path, (AT_THE_END, code + AT_THE_END))


@part(
    "ZeRO-1",
    "processes",
    "Muon's state in each, MiB",
    "largest difference of a weight after 20 steps",
)
def zero():
    code = "means = [s['mean'].numel() for s in optimizers[0].state.values()]\n"
    code += "print('@', rank, 4 * sum(means) / 2**20, flush=True)\n"
    path = with_report(step_file(13), code)
    flags = [BYTES, "--max_iters=20", "--no-bfloat16", "--model_size=char"]
    flags += ["--batch_size=3"]
    results = {}
    rows = []
    for count in (1, 2, 4):
        results[count] = run(path, *flags, processes=count)
        found = dict(re.findall(r"@ (\d) (\S+)", results[count]["output"]))
        states = [f"{float(found[rank]):.2f}" for rank in sorted(found)]
        gap = difference(results[1]["out_dir"], results[count]["out_dir"])
        rows.append([count, ", ".join(states), f"{gap:.0e}"])
    rows.append(["2, then 1 after step 10", "", continued(path, flags, results[1])])
    return rows


def continued(path, flags, whole):
    """The largest difference after 10 steps with two processes and 10 with one."""
    shared = new_folder()
    # Two processes that are asked to stop after 10 steps
    halfway = patched(path, ("    if stop_requested:\n", "    if done == 10:\n"))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += [halfway, "--device=cpu", f"--out_dir={shared}", *flags]
    subprocess.run(command, cwd=ROOT, env=environment(1), capture_output=True)
    second = run(path, *flags, f"--out_dir={shared}")
    assert ": step 10 (max_iters" in second["output"]
    return f"{difference(shared, whole['out_dir']):.0e}"


@part("Evaluation shared out", "processes", "windows of each", "s", "val loss")
def evaluation():
    code = "begin = time.process_time()\n"
    code += "loss = estimate_loss()\n"
    code += "spent = time.process_time() - begin\n"
    code += "windows = sum(window_counts['val'])\n"
    code += "firsts = range(rank * batch_size, windows, world_size * batch_size)\n"
    code += "each = sum(min(batch_size, windows - first) for first in firsts)\n"
    code += "print('@', rank, each, spent, loss, flush=True)\n"
    path = with_report(step_file(14), code)
    rows = []
    flags = [BYTES, "--max_iters=1", "--batch_size=6", "--eval_tokens=999999"]
    for count in (1, 2):
        output = run(path, *flags, processes=count)["output"]
        found = sorted(re.findall(r"@ (\d) (\d+) (\S+) (\S+)", output))
        windows = ", ".join(cells[1] for cells in found)
        slowest = max(float(cells[2]) for cells in found)
        rows.append([count, windows, f"{slowest:.2f}", f"{float(found[0][3]):.4f}"])
    return rows


@part("What a sequence takes, GPT-2's tokens", "how", "MiB per sequence")
def fits():
    peaks = {row[0]: float(row[2]) for row in read_results()["accumulation"]["rows"]}
    measured = (peaks[48] - peaks[24]) / 24
    per_token = 34 * 5 * 128 + 13 * 50304
    formula = 128 * per_token / MIB
    rows = [
        ["formula", f"{formula:.0f}"],
        ["measured, 48 against 24", f"{measured:.0f}"],
    ]
    return rows, "From the table of gradient accumulation, in bfloat16."


@part("MFU of one core", "what", "GFLOP", "ms", "GFLOP per second")
def mfu():
    a = torch.randn(2048, 2048, dtype=torch.bfloat16)
    ms = milliseconds(lambda: a @ a)
    names = load(SCRIPT, BYTES)
    step = ms_per_step(run(SCRIPT, BYTES, "--max_iters=30"))
    rows = []
    for name, flops, spent in (
        ("a product of 2048 x 2048 matrices", 2 * 2048**3, ms),
        ("a training step", names["flops"], step),
    ):
        row = [name, f"{flops / 1e9:.1f}", f"{spent:.1f}"]
        rows.append([*row, f"{flops / 1e6 / spent:.0f}"])
    share = (names["flops"] / step) / (2 * 2048**3 / ms)
    rows.append(["MFU, %", "", "", f"{100 * share:.0f}"])
    return rows


# ------------------------------------------------------------------ 3. A run to rely on
@part(
    "Interrupted and continued",
    "run",
    "ended after step",
    "rows of steps",
    "largest difference of a loss",
    "val loss",
)
def resume():
    flags = [BYTES, "--max_iters=60", "--eval_interval=20", "--eval_tokens=8192"]
    whole = run(SCRIPT, *flags)
    expected = [row["loss"] for row in whole["log"] if row["loss"]]
    rows = [["not interrupted", 60, len(expected), "", f"{val_loss(whole):.4f}"]]
    for name, signum in (("killed", signal.SIGKILL), ("SIGTERM", signal.SIGTERM)):
        out_dir = new_folder()
        command = [sys.executable, SCRIPT, "--device=cpu", f"--out_dir={out_dir}"]
        command += flags
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(1), stdout=subprocess.DEVNULL
        )
        while len(read_log(out_dir)) < 36:  # 33 steps and the evaluations of 1 and 20
            time.sleep(0.01)
        process.send_signal(signum)
        process.wait()
        ended = [row["step"] for row in read_log(out_dir) if row["loss"]][-1]
        rest = run(SCRIPT, *flags, f"--out_dir={out_dir}")
        steps = [row for row in read_log(out_dir) if row["loss"]]
        losses = [row["loss"] for row in steps]
        assert [row["step"] for row in steps] == [str(i + 1) for i in range(60)]
        gap = max(abs(float(a) - float(b)) for a, b in zip(losses, expected))
        rows.append([name, ended, len(losses), f"{gap:g}", f"{val_loss(rest):.4f}"])
    return rows


@part("Checkpoints", "model", "MB", "s to write", "s to write, without fsync")
def checkpoints():
    rows = []
    gpt2 = [TOKENS, "--model_size=gpt2", "--block_size=1024"]
    for name, flags in (("char", [BYTES]), ("gpt2", gpt2)):
        names = load(SCRIPT, *flags)
        for p in names["model"].parameters():
            p.grad = torch.zeros_like(p)
        for opt in names["optimizers"]:
            for group in opt.param_groups:
                group["lr"] = 0.0
            opt.step()
        path = Path(names["out_dir"], "last.pt")
        start = time.perf_counter()
        names["save_checkpoint"]("last.pt", 1)
        middle = time.perf_counter()
        real = os.fsync
        os.fsync = lambda number: None
        names["save_checkpoint"]("last.pt", 1)
        end = time.perf_counter()
        os.fsync = real
        size = path.stat().st_size / 1e6
        rows.append(
            [name, f"{size:.0f}", f"{middle - start:.2f}", f"{end - middle:.2f}"]
        )
        path.unlink()
    return rows


@part("Sampling from a checkpoint", "file", "peak MiB")
def weights_only():
    size = ["--n_layer=8", "--n_embd=768", "--n_head=12", BYTES]
    flags = ["--max_iters=1", "--total_batch_size=128", "--eval_tokens=128"]
    first = run(step_file(21), *size, *flags)
    rows = []
    for name, number in (("everything (step 21)", 21), ("weights (step 22)", 22)):
        flags = ["--max_iters=0", "--eval_tokens=128", f"--out_dir={first['out_dir']}"]
        rows.append([name, f"{run(step_file(number), *size, *flags)['MiB']:.0f}"])
    bytes_ = Path(first["out_dir"], "best.pt").stat().st_size
    return rows, f"8 blocks of 768 channels; the file has {bytes_ / 1e6:.0f} MB."


def make_questions(path, count):
    """Questions like HellaSwag's, from the validation text of Shakespeare."""
    text = (ROOT / "data/shakespeare/input.txt").read_text(encoding="utf-8")
    words = text[int(0.9 * len(text)) :].split()
    rng = random.Random(1)
    path.parent.mkdir(parents=True)
    with open(path, "w", encoding="utf-8") as f:
        for _ in range(count):
            start = rng.randrange(len(words) - 40)
            endings = [words[start + 12 : start + 12 + rng.randint(4, 8)]]
            for _ in range(3):
                other = rng.randrange(len(words) - 40)
                endings.append(words[other : other + rng.randint(4, 8)])
            label = rng.randrange(4)
            endings[0], endings[label] = endings[label], endings[0]
            question = {"ctx": " ".join(words[start : start + 12]), "label": label}
            question["endings"] = [" ".join(ending) for ending in endings]
            f.write(json.dumps(question) + "\n")


@functools.cache
def trained():
    """A folder with data and questions, and the run of a small model in it."""
    place = Path(new_folder())
    (place / "data").mkdir()
    (place / "data/shakespeare").symlink_to(ROOT / "data/shakespeare")
    make_questions(place / "data/hellaswag/hellaswag_val.jsonl", 200)
    flags = [BYTES, "--max_iters=400", "--eval_interval=100", "--hellaswag"]
    return place, run(SCRIPT, *flags, cwd=place)


@part("Questions about Shakespeare", "step", "val loss", "right by mean, %")
def questions():
    rows = []
    for row in trained()[1]["log"]:
        if row["val_loss"]:
            accuracy = 100 * float(row["hellaswag"])
            rows.append(
                [row["step"], f"{float(row['val_loss']):.3f}", f"{accuracy:.1f}"]
            )
    return rows, "200 questions of four endings, three of them from other places."


@part("One question", "ending", "bytes", "sum of losses", "mean loss")
def one_question():
    place, result = trained()
    names = load(SCRIPT, BYTES, f"--init_from={result['out_dir']}/best.pt")
    lines = (place / "data/hellaswag/hellaswag_val.jsonl").read_text().splitlines()
    right_by = {"sum": 0, "mean": 0}
    chosen = None
    for line in lines:
        question = json.loads(line)
        endings = [names["encode"](" " + e) for e in question["endings"]]
        row = (names["encode"](question["ctx"]), endings, question["label"])
        x, y = names["hellaswag_batch"]([row])
        with torch.no_grad():
            logits = names["model"].logits(x).transpose(1, 2)
        losses = F.cross_entropy(logits, y, ignore_index=-1, reduction="none")
        sums = losses.sum(dim=1)
        means = sums / (y >= 0).sum(dim=1)
        right_by["sum"] += int(sums.argmin()) == question["label"]
        right_by["mean"] += int(means.argmin()) == question["label"]
        if chosen is None and means.argmin() == question["label"] != sums.argmin():
            chosen = (question, endings, sums.tolist(), means.tolist())
    question, endings, sums, means = chosen
    rows = []
    for i, text in enumerate(question["endings"]):
        mark = " (right)" if i == question["label"] else ""
        row = [text + mark, len(endings[i]), f"{sums[i]:.1f}"]
        rows.append([*row, f"{means[i]:.2f}"])
    rows.append(["right of 200, by sum", right_by["sum"], "", ""])
    rows.append(["right of 200, by mean", right_by["mean"], "", ""])
    return rows, f"Context: {question['ctx']}"


@part("Samples side by side", "samples", "with cache, tokens/s", "without, tokens/s")
def samples():
    names = load(SCRIPT, BYTES, "--model_size=gpt2", "--n_layer=4", "--block_size=256")
    rows = []
    for count in (1, 4, 16):
        idx = torch.zeros(count, 64, dtype=torch.long)
        cells = []
        for use_cache, length in ((True, 20), (False, 4)):

            def write():
                names["generate"](idx, length, use_cache=use_cache)

            seconds = milliseconds(write, 3) / 1000
            cells.append(f"{count * length / seconds:.1f}")
        rows.append([count, *cells])
    return rows, "4 blocks of 768 channels, after a prompt of 64 tokens."


@part("A token at the end of a text", "positions", "with cache, ms", "without, ms")
def cache():
    names = load(SCRIPT, BYTES, "--model_size=gpt2", "--n_layer=4", "--block_size=1024")
    model = names["model"].eval()
    rows = []
    for T in (64, 128, 256, 512, 1024):
        idx = torch.randint(256, (1, T))
        with torch.no_grad(), names["autocast"]():
            caches = [names["KVCache"]() for _ in range(4)]
            model.logits(idx[:, :-1], caches)

            def cached():
                for one in caches:
                    one.length = T - 1
                model.logits(idx[:, -1:], caches)

            cells = [milliseconds(cached), milliseconds(lambda: model.logits(idx), 3)]
        rows.append([T, *[f"{cell:.1f}" for cell in cells]])
    return rows, "4 blocks of 768 channels."


@part("Against transformers' GPT-2, random weights", "what", "largest difference")
def openai():
    import transformers

    config = transformers.GPT2Config(n_layer=4, n_head=4, n_embd=128, n_positions=128)
    torch.manual_seed(1)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.2 * torch.randn_like(p))  # large enough that GELU matters
    place = new_folder()
    theirs.save_pretrained(place)
    names = load(SCRIPT, TOKENS, f"--init_from={place}", "--no-bfloat16")
    x, _ = windows_of(names, 4)
    model = names["model"].eval()
    rows = []
    with torch.no_grad():
        expected = theirs(x).logits
        for name, kind in (("logits", "tanh"), ("logits, exact GELU", "none")):
            names["MLP"].forward.__globals__["gelu"] = kind
            ours = model.logits(x)[..., :50257]
            rows.append([name, f"{(ours - expected).abs().max().item():.0e}"])
        size = expected.abs().mean().item()
    out = new_folder()
    load(SCRIPT, TOKENS, f"--init_from={place}", "--no-bfloat16", f"--export_dir={out}")
    back = transformers.GPT2LMHeadModel.from_pretrained(out)
    pairs = zip(theirs.parameters(), back.parameters())
    gap = max((a - b).abs().max().item() for a, b in pairs)
    rows.append(["weights, imported and exported", f"{gap:g}"])
    return rows, f"The logits are {size:.1f} in size on average."


@part("Fine-tuning on Python", "start", "step 1", "step 25", "step 50", "step 100")
def finetuning():
    import argparse as first
    import difflib as second
    import textwrap as third

    text = b"".join(Path(m.__file__).read_bytes() for m in (first, second, third))
    data = new_folder()
    ids = np.frombuffer(text, dtype=np.uint8)
    cut = len(ids) * 9 // 10
    write_shard(Path(data, "python_train_000001.bin"), ids[:cut], 256)
    write_shard(Path(data, "python_val_000000.bin"), ids[cut:], 256)
    start = f"--init_from={trained()[1]['out_dir']}/best.pt"
    rows = []
    for name, flags in (("random weights", []), ("Shakespeare", [start])):
        flags += [f"--data_dir={data}", "--max_iters=100", "--eval_interval=25"]
        log = run(SCRIPT, *flags)["log"]
        found = {row["step"]: row["val_loss"] for row in log if row["val_loss"]}
        cells = [f"{float(found[step]):.3f}" for step in ("1", "25", "50", "100")]
        rows.append([name, *cells])
    return rows, f"{len(ids):,} bytes: argparse.py, difflib.py, textwrap.py."


# ------------------------------------------------------------------------- The appendix
@part("Memory that is kept, GPT-2's tokens", "file", "ms per step", "peak MiB")
def kept():
    rows = []
    data = little_to_evaluate()
    for number in (29, 30):
        result = run(step_file(number), data, "--max_iters=8")
        ms = f"{ms_per_step(result):.0f}"
        rows.append([f"step {number}", ms, f"{result['MiB']:.0f}"])
    return rows


@part("Attention written out", "file", "ms per step")
def written_out():
    times = {30: [], 31: []}
    for _ in range(4):
        for number in times:
            result = run(step_file(number), BYTES, "--max_iters=40")
            times[number].append(ms_per_step(result))
    rows = []
    for number, found in times.items():
        rows.append([f"step {number}", f"{statistics.median(found):.1f}"])
    return rows, "Four rounds in turn."


# ------------------------------------------------------------------------------ Reports
def machine():
    name = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"model name\s*: (.+)", cpuinfo.read_text())
        if found:
            name = found[1]
    version = f"torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    return f"{os.cpu_count()} cores of {name}, {version}"


def report(results):
    lines = ["# What the steps of gpt2_train.md are for", ""]
    lines += [
        "Made by `docs/bench/engineer.py`. Every process computes on one thread; ms and"
    ]
    lines += ["s are the time that it computes, unless a table says otherwise."]
    for name, (_, heading, columns) in PARTS.items():
        if name not in results:
            continue
        result = results[name]
        lines += ["", f"## {heading}", "", f"`{name}`, {result['machine']}.", ""]
        if result["note"]:
            lines[-1:] = [result["note"], ""]
        lines.append("| " + " | ".join(columns) + " |")
        lines.append("|---|" + "---:|" * (len(columns) - 1))
        for row in result["rows"]:
            lines.append("| " + " | ".join(str(cell) for cell in row) + " |")
    return "\n".join(lines) + "\n"


def read_results():
    path = BENCH / "engineer.json"
    if not path.exists():
        return {}
    return json.loads(path.read_text(encoding="utf-8"))


def measure(name):
    """Do a part, and write what it found to the report."""
    start = time.monotonic()
    try:
        found = PARTS[name][0]()
    except (Exception, SystemExit) as error:  # the other parts can still be measured
        traceback.print_exc()
        print(f"{name}: failed: {error}", flush=True)
        return
    rows, note = found if isinstance(found, tuple) else (found, "")
    result = {"rows": rows, "note": note, "machine": machine()}
    results = read_results() | {name: result}
    text = json.dumps(results, indent=1) + "\n"
    (BENCH / "engineer.json").write_text(text, encoding="utf-8")
    (BENCH / "engineer.md").write_text(report(results), encoding="utf-8")
    print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    for row in rows:
        print("   ", *row, sep="  ", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--list", action="store_true", help="the names of the parts")
    args = parser.parse_args()
    if args.list:
        print("\n".join(PARTS))
        return
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    names = args.parts or [name for name in PARTS if name not in read_results()]
    if len(names) > 1:  # the peak memory of a script counts from that of its parent
        for name in names:
            subprocess.run([sys.executable, __file__, name], check=True)
        return
    os.chdir(ROOT)
    torch.set_num_threads(1)
    try:
        for name in names:
            measure(name)
    finally:
        shutil.rmtree(folder())


if __name__ == "__main__":
    main()
