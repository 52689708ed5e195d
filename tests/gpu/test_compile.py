"""--compile with the real compiler, on the CPU: the losses are those without it, for
any batch.

A GPU compiles by default, where no test runs. Skipped where there is no C++ compiler.
"""

import csv
import functools
import os
import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest
import torch.distributed as dist
from makers import ABORTED, ROOT, write_shards

ARGS = (
    "--device=cpu --no-bfloat16 --no-float16 --no-hellaswag --n_layer=2 --n_head=2 "
    "--n_embd=32 --block_size=16 --total_batch_size=128 --batch_size=4 "
    "--data_dir=tokens "
    "--eval_interval=4 --max_iters=6 --max_new_tokens=3"
).split()
RUNS = [("gpt2_train", 1, ()), ("gpt2_train", 2, ())]
RUNS += [
    (
        "sparse_gpt",
        1,
        (f"--pattern={pattern}", f"--combine={combine}", "--stride=6", "--summary=2"),
    )
    for pattern in ("fixed", "strided")
    for combine in ("heads", "layers")
]


@functools.cache
def compiler():
    """Whether the compiler finds a C++ compiler; it tells by an exception."""
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        return bool(get_cpp_compiler())
    except Exception:
        return False


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Byte shards under tokens/: 25 windows to evaluate, in batches of 4 one is left
    over.

    With two processes 13 and 12 of them, so the first process has a smaller batch, the
    second none.
    """
    path = tmp_path_factory.mktemp("compile")
    write_shards(path / "tokens", 3000, 25 * 16 + 1)
    return path


def train(folder, script, processes, args, out_dir, compile):
    """Run to the end; returns stderr and the columns of log.csv."""
    torchrun = "-m torch.distributed.run --standalone --nproc_per_node=2".split()
    command = [
        sys.executable,
        *(torchrun if processes == 2 else ()),
        ROOT / f"{script}.py",
        *ARGS,
    ]
    command += [
        *args,
        f"--out_dir={out_dir}",
        "--compile" if compile else "--no-compile",
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    # What the runs have in common is compiled once
    env["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")
    env["TORCH_LOGS"] = "recompiles,dynamic"
    for _ in range(3):
        shutil.rmtree(folder / out_dir, ignore_errors=True)
        done = subprocess.run(
            list(map(str, command)),
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=1200,
        )
        if ABORTED not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    with open(folder / out_dir / "log.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    columns = ("loss", "val_loss", "grad_norm")
    return done.stderr, {
        name: [float(r[name]) for r in rows if r[name]] for name in columns
    }


@pytest.mark.long
@pytest.mark.skipif(not compiler(), reason="this system has no C++ compiler")
@pytest.mark.parametrize(
    "script, processes, args",
    RUNS,
    ids=[" ".join(map(str, (s, n, *a[:2]))) for s, n, a in RUNS],
)
def test_losses_equal_those_without(folder, script, processes, args):
    """And the compiler is called once for training, and for evaluation once per size of
    a batch.
    """
    if processes == 2 and not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    out_dir = "_".join([script, str(processes), *(a.split("=")[1] for a in args)])
    said, eager = train(
        folder, script, processes, args, f"{out_dir}_eager", compile=False
    )
    assert "symbolic_shapes" not in said
    said, compiled = train(folder, script, processes, args, out_dir, compile=True)
    assert [len(eager[name]) for name in eager] == [
        6,
        3,
        6,
    ]  # evaluated after 1, 4, 6 steps
    for name, numbers in eager.items():
        assert compiled[name] == pytest.approx(
            numbers, rel=1e-4 if "loss" in name else 1e-3
        ), name
    # It was compiled, every size of a batch for itself: a size left open is a symbol,
    # s0, s1, ...
    assert "create_env" in said and "produce_guards" in said
    assert not re.search(r"create_symbol|create_unbacked|\bs\d+\b", said), said
    # The second size of a batch in an evaluation is the only one that may need another
    # compilation; the first evaluation counts as one, too, since the graph of training
    # was there before
    recompiled = Counter()
    for rank, reasons in re.findall(
        r"^(?:\[rank(\d)\]:)?.*Recompiling function .*\n((?:.*__recompiles\] .*- \d.*\n"
        r"|.*triggered by.*\n)*)",
        said,
        re.MULTILINE,
    ):
        first = re.findall(r"- \d+/\d+: (.*)", reasons)[0]
        recompiled[rank, "size" if "size mismatch" in first else "mode"] += 1
    assert recompiled and max(recompiled.values()) == 1, said
    assert sum(kind == "size" for _, kind in recompiled) == 1, said
