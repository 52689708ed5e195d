"""The scripts as on a GPU, without one: see fake_gpu.py.

Nothing is computed, so no test here says that a result is right or fast. They say that
every tensor is where it must be, that no line but the one that reads the loss waits for
the GPU, how many kernels are launched, how much memory is held, and which attention
kernels PyTorch takes.
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import ROOT, continued, samples, write_shards

HERE = Path(__file__).parent
TORCH = Path(torch.__file__).parent
HEADER = TORCH / "include/ATen/detail/CUDAHooksInterface.h"
COMPILER = shutil.which(os.environ.get("CXX", "c++"))

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        sys.platform != "linux", reason="fake_gpu.py forks, as on Linux"
    ),
    pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler"),
    pytest.mark.skipif(
        not HEADER.exists(), reason="PyTorch is without its C++ headers"
    ),
]

GPUS = {  # name, memory in GiB, major compute capability: below 8 there is no bfloat16
    "T4": ("Tesla T4", 15, 7),
    "4090": ("NVIDIA GeForce RTX 4090", 24, 8),
    "A100 40": ("NVIDIA A100-SXM4-40GB", 40, 8),
    "A100 80": ("NVIDIA A100-SXM4-80GB", 80, 8),
    "H100": ("NVIDIA H100 80GB HBM3", 80, 9),
    "H200": ("NVIDIA H200", 141, 9),
}
PRECISIONS = {
    "bfloat16": ("--bfloat16", "--no-float16"),
    "float16": ("--no-bfloat16", "--float16"),
    "float32": ("--no-bfloat16", "--no-float16"),
}
SHORT = ("--no-compile", "--max_new_tokens=3")
# Small models go through the same lines, in less time
SMALL = {
    "gpt_char.py": ["--n_layer=1", "--block_size=32", "--max_iters=2"],
    "gpt2_train.py": ["--n_layer=1", "--n_head=2", "--n_embd=32", "--block_size=64"],
}
SMALL["gpt2_train.py"] += [
    *SHORT,
    "--total_batch_size=256",
    "--max_iters=2",
    "--eval_tokens=256",
]
SMALL["sparse_gpt.py"] = [*SMALL["gpt2_train.py"], "--stride=8", "--summary=2"]


def printable(length):
    """Tokens that are printable characters."""
    return 32 + np.arange(length) % 95


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with the data that the presets for a GPU read, and bytes."""
    folder = tmp_path_factory.mktemp("gpu")
    for name, vocab_size in (("fineweb_edu", 50257), ("bytes", 256)):
        place = folder / "data" / name
        write_shards(place, 60_000, 8200, make=printable, vocab_size=vocab_size)
    (folder / "data/shakespeare").mkdir()
    (folder / "data/shakespeare/input.txt").write_text("To be, or not to be?\n" * 400)
    (folder / "data/hellaswag").mkdir()
    endings = ["sat.", "sat on the mat.", "is a dog.", "ran"]
    lines = [
        json.dumps({"ctx": "The cat", "endings": endings, "label": i % 4})
        for i in range(10)
    ]
    (folder / "data/hellaswag/hellaswag_val.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """ask(job): what fake_gpu.py answers, see its run_job."""
    library = tmp_path_factory.mktemp("library") / "fake_gpu.so"
    command = [
        COMPILER,
        "-shared",
        "-fPIC",
        "-std=c++20",
        HERE / "fake_gpu.cpp",
        "-o",
        library,
    ]
    command += [f"-I{TORCH}/include", f"-L{TORCH}/lib", "-lc10", "-ltorch_cpu"]
    subprocess.run([*command, f"-Wl,-rpath,{TORCH}/lib"], check=True)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8"}
    process = subprocess.Popen([sys.executable, HERE / "fake_gpu.py", library], **pipes)

    def ask(job):
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield ask
    process.stdin.close()
    assert process.wait() == 0


@pytest.fixture
def dry_run(ask, folder, tmp_path):
    """dry_run(script, *args): run a script on a fake GPU; its result is described in
    fake_gpu.py.

    replace=(old, new) runs a copy in which that text, which must be there once, is
    another. What is given as then is executed among the script's names at the end, and
    may set answer.
    """

    def dry_run(script, *args, gpu="H100", replace=None, then=""):
        source = (ROOT / script).read_text(encoding="utf-8")
        if replace:
            assert source.count(replace[0]) == 1, replace[0]
            source = source.replace(*replace)
        # What is written at every evaluation is short, as each token takes long here
        source, count = re.subn(r"(\bsample\(.*)\b80\)", r"\g<1>2)", source)
        assert count == 1
        path = tmp_path / script
        path.write_text(source, encoding="utf-8")
        name, memory, major = GPUS[gpu]
        about = {"name": name, "memory": memory, "major": major}
        args = [f"--out_dir={tmp_path}/out", *args]
        job = {
            "script": str(path),
            "args": args,
            "folder": str(folder),
            "gpu": about,
            "then": then,
        }
        return ask(job) | {"source": source}

    return dry_run


def passed(result):
    assert (result["code"], result["err"]) == (0, ""), result["err"]
    return result


def kernels(result):
    """The names of the kernels that attention took."""
    return {json.loads(call)[0] for call in result["attention"]}


# ------------------------------------------------------------------------- The presets
def test_gpt_char(dry_run):
    result = passed(
        dry_run("gpt_char.py", "--max_iters=2", "--max_new_tokens=3", "--top_k=5")
    )
    assert "10,7" in result["out"] and "device cuda" in result["out"]
    assert kernels(result) == {"flash"}
    prompt = "--prompt=" + 20 * "To be, or not to be?"  # longer than block_size
    again = passed(
        dry_run("gpt_char.py", "--max_iters=3", "--max_new_tokens=3", prompt)
    )
    assert [step for _, step in continued(again["out"])] == [2]


def test_gpt_char_without_bfloat16(dry_run):
    result = dry_run("gpt_char.py", "--max_iters=1", "--max_new_tokens=1", gpu="T4")
    assert kernels(passed(result)) == {"efficient"}


@pytest.mark.parametrize("gpu, kernel", [("H100", "flash"), ("T4", "efficient")])
def test_gpt2_train(dry_run, gpu, kernel):
    """In bfloat16 or, on the T4, in float16: as its preset says."""
    args = [
        "--total_batch_size=16384",
        "--batch_size=8",
        "--prompt=To",
        "--dropout=0.1",
        *SHORT,
    ]
    result = passed(
        dry_run("gpt2_train.py", "--max_iters=2", "--eval_interval=2", *args, gpu=gpu)
    )
    assert re.search("124,475,904 .* 1 x cuda", result["out"])
    assert (
        "hellaswag 0.3000\n" in result["out"]
    )  # the answer is always 1: 3 of 10 are right
    assert len(samples(result["out"])) == 4
    assert kernels(result) == {kernel}
    again = passed(
        dry_run("gpt2_train.py", "--max_iters=3", "--top_k=5", *args, gpu=gpu)
    )
    assert [step for _, step in continued(again["out"])] == [2]


@pytest.mark.parametrize("gpu", ["H100", "T4"])
@pytest.mark.parametrize("pattern", ["fixed", "strided"])
def test_sparse_gpt(dry_run, pattern, gpu):
    """Each pattern in both precisions; also whole layers for a hop, and a prompt of
    many rows.
    """
    args = [
        "--total_batch_size=16384",
        "--batch_size=2",
        f"--pattern={pattern}",
        *SHORT,
    ]
    args += (
        ["--combine=layers", "--n_layer=4"] if (pattern, gpu) == ("fixed", "T4") else []
    )
    args += ["--prompt=" + 300 * "a", "--num_samples=1"]
    result = passed(dry_run("sparse_gpt.py", "--max_iters=1", *args, gpu=gpu))
    assert "micro-steps of 2 x 8192 tokens: 1 per step" in result["out"]
    assert "hellaswag 0.3000\n" in result["out"]
    expected = {"efficient"}  # every group of tiles has a mask
    if gpu == "H100":
        expected.add("flash")  # a single query, while sampling, needs none
    assert kernels(result) == expected
    again = passed(dry_run("sparse_gpt.py", "--max_iters=2", *args, gpu=gpu))
    assert [step for _, step in continued(again["out"])] == [1]


# ------------------------------------------------------------ Tensors in a wrong place
@pytest.mark.parametrize("script", SMALL)
def test_small_runs_pass(dry_run, script):
    """So what fails below fails by what was replaced."""
    passed(dry_run(script, *SMALL[script]))
    if script == "sparse_gpt.py":
        passed(
            dry_run(script, *SMALL[script], "--pattern=strided", "--init_from=scratch")
        )


MISPLACED = {  # the text that is replaced, by what
    "gpt_char.py": [
        ("torch.arange(idx.shape[1], device=idx.device)", "torch.arange(idx.shape[1])"),
        (", y.to(device, non_blocking=True)", ", y"),
        ("yb.to(device)", "yb"),
        (
            "[encode(prompt or text[0])], device=device)",
            "[encode(prompt or text[0])])",
        ),
        ("cat((idx, idx_next), dim=1)", "cat((idx, idx_next.cpu()), dim=1)"),
        ("torch.zeros_like(x)", "torch.zeros(x.shape)"),
    ],
    "gpt2_train.py": [
        ("past + idx.shape[1], device=idx.device)", "past + idx.shape[1])"),
        ("torch.zeros(padded_size, device=device)", "torch.zeros(padded_size)"),
        ("model = GPT().to(device)", "model = GPT()"),
        ("loss_sum = torch.zeros((), device=device)", "loss_sum = torch.zeros(())"),
        (
            "return batch[:, :-1], batch[:, 1:]",
            "return batch[:, :-1], batch.cpu()[:, 1:]",
        ),
        ("return x.to(device), y.to(device)", "return x.to(device), y"),
        ("[ids] * num_samples, device=device)", "[ids] * num_samples)"),
        ("torch.zeros_like(x)", "torch.zeros(x.shape)"),
    ],
    "sparse_gpt.py": [
        (
            "mask=torch.from_numpy(mask).to(device)",
            "mask=torch.from_numpy(mask)",
        ),
        ("positions.clip(max=T - 1)).to(device)", "positions.clip(max=T - 1))"),
        ("q_group = q_group.reshape", "q_group = q_group.double().reshape"),
        ("torch.arange(0, hs, 2, device=device)", "torch.arange(0, hs, 2)"),
    ],
}


FOUND = "device|mask is of|on the cpu|fast kernel|different dtypes"


@pytest.mark.parametrize(
    "script, replace",
    [(script, pair) for script, pairs in MISPLACED.items() for pair in pairs],
)
def test_a_tensor_in_a_wrong_place_is_found(dry_run, script, replace):
    """On a CPU, where there is but one place, most of these run without an error."""
    result = dry_run(script, *SMALL[script], replace=replace)
    assert result["code"] == 1
    assert re.search(FOUND, result["err"]), result["err"]


# --------------------------------------------------------------------- Lines that wait
def waits_of_steps(result):
    """How often the lines of a training step waited for the GPU; copies to it are
    apart.
    """
    source = result["source"]
    steps = source[
        source.index("for step in range(first_step") : source.index("if done % eval_in")
    ]
    steps = {line.strip() for line in steps.split("\n")}
    found = {"read": {}, "copy": {}, "size": {}}
    for about, times in result["waits"].items():
        kind, line = about.split(": ", maxsplit=1)
        if line.split("\n")[0] in steps:
            found[kind][line] = times
    return found


READ_LOSS = "mean_loss, stops = add_up(loss_sum / world_size, stop_requested)"
READ_NORM = "norm.isfinite()"


@pytest.mark.parametrize("gpu", ["H100", "T4"])
@pytest.mark.parametrize("script", ["gpt2_train.py", "sparse_gpt.py"])
def test_a_step_waits_once(dry_run, script, gpu):
    args = [
        "--max_iters=6",
        "--eval_interval=100",
        f"--dropout={0.1 * (gpu == 'H100')}",
    ]
    waits = waits_of_steps(passed(dry_run(script, *SMALL[script], *args, gpu=gpu)))
    assert waits["size"] == waits["copy"] == {}
    lines = {line.split("\n")[0]: times for line, times in waits["read"].items()}
    assert lines.pop(READ_LOSS) == 6
    # In float16 the norm decides whether the weights move, so it is read before they do
    if gpu == "T4":
        ((line, times),) = lines.items()
        assert READ_NORM in line and times == 6
    else:
        assert lines == {}


def test_a_step_of_gpt_char_waits_where_it_prints(dry_run):
    args = [
        *SMALL["gpt_char.py"],
        "--max_iters=6",
        "--log_interval=3",
        "--eval_interval=100",
    ]
    waits = waits_of_steps(passed(dry_run("gpt_char.py", *args)))
    [(line, times)] = waits["read"].items()
    assert line.startswith("print_progress(done, loss)") and times == 2
    assert waits["size"] == {} and waits["copy"] == {}


BACKWARD = (
    "loss.backward()  # computes the gradient: how the loss changes with each weight"
)
CLIP = "nn.utils.clip_grad_norm_(model.parameters(), grad_clip)"
NORM = "nn.utils.clip_grad_norm_(model.parameters(), max_norm)"


ATTEND = "B, nh, T, hs = q.shape"
WAITING = [  # a script, the text that is replaced, by what, and the kind of wait
    ("gpt_char.py", BACKWARD, "loss.backward() or loss.item()", "read"),
    ("gpt_char.py", CLIP, f"assert {CLIP} >= 0", "read"),
    ("gpt2_train.py", "loss_sum += loss.detach()", "loss_sum += loss.item()", "read"),
    ("gpt2_train.py", NORM, f"{NORM}.cpu()", "read"),
    ("gpt2_train.py", "(device, non_blocking=True)", "(device)", "copy"),
    ("gpt2_train.py", "batch = batch.pin_memory()", "batch = batch + 0", "copy"),
    ("sparse_gpt.py", ATTEND, f"q.nonzero(); {ATTEND}", "size"),
    ("sparse_gpt.py", ATTEND, f"q.sum().tolist(); {ATTEND}", "read"),
]


@pytest.mark.parametrize("script, old, new, kind", WAITING)
def test_a_line_that_waits_is_found(dry_run, script, old, new, kind):
    args = [
        *SMALL[script],
        "--max_iters=4",
        "--eval_interval=100",
        "--log_interval=100",
    ]
    waits = waits_of_steps(passed(dry_run(script, *args, replace=(old, new))))[kind]
    expected = 0 if kind != "read" else 1 if script == "gpt_char.py" else 4  # see above
    assert (
        sum(waits.values()) >= expected + 3
    )  # in one of the steps the loss is printed anyway


def test_every_kind_of_wait_is_counted(ask, folder, tmp_path):
    """One line each; what waits for nothing, or does not wait, is not counted."""
    waiting = [
        "x.sum().item()",
        "x.sum().tolist()",
        "(x + 1).cpu()",
        "(x + 1).to('cpu')",
    ]
    waiting += ["(x + 1).tolist()", "float(x.sum())", "int(x.sum())", "bool(x.sum())"]
    waiting += [
        "x.nonzero()",
        "x[x > 0]",
        "x.masked_select(x > 0)",
        "x.add_(1).copy_(torch.ones(3))",
    ]
    waiting += [
        "f'{x.sum():.2f}'",
        "torch.zeros(3).copy_(x + 1)",
        "torch.equal(x + 1, x)",
    ]
    waiting += ["print('yes' if x.sum() > 0 else 'no')", "torch.where(x > 0)"]
    free = [
        "x + 1",
        "x[x > 0] = 1.0",
        "x.sum(); x.view(3, 1)",
        "x.to('cuda')",
        "torch.arange(3)",
    ]
    free += [
        "(x + 1, torch.ones(3).pin_memory().to('cuda', non_blocking=True))",
        "int(len(x))",
    ]
    lines = [
        "import torch",
        "x = torch.zeros(3, device='cuda')",
        *free,
        "x.sum().item()",
    ]
    (tmp_path / "lines.py").write_text(
        "\n".join([*lines, *waiting, "x.sum().item()  # last"])
    )
    gpu = {"name": "", "memory": 1, "major": 9}
    job = {
        "script": str(tmp_path / "lines.py"),
        "args": [],
        "folder": str(folder),
        "gpu": gpu,
    }
    waits = passed(ask(job))["waits"]
    assert {
        line.split(": ", maxsplit=1)[1]: n for line, n in waits.items()
    } == dict.fromkeys([*waiting, "x.sum().item()  # last"], 1) | {"x.sum().item()": 2}


# ------------------------------------------------------------------ Kernels and memory
def test_muon_launches_few_kernels(dry_run):
    """Less than a third of PyTorch's own, which takes the matrices one by one."""
    then = """
def count(optimizer):
    optimizer.step()  # the first makes its state
    before = machine.launched
    optimizer.step()
    return machine.launched - before

answer = [count(optimizers[0]), count(torch.optim.Muon(matrices))]
"""
    args = [
        "--max_iters=1",
        "--total_batch_size=1024",
        "--batch_size=1",
        "--no-hellaswag",
    ]
    ours, theirs = passed(dry_run("gpt2_train.py", *args, *SHORT, then=then))["answer"]
    print(f"kernels in a step of Muon: {ours}, of torch.optim.Muon: {theirs}")
    assert 3 * ours <= theirs


FITS = [  # each size, GPU and precision; of all that were tried, the fullest
    ("gpt2", "float16", "T4"),
    ("gpt2", "float32", "4090"),
    ("gpt2", "bfloat16", "A100 40"),
    ("gpt2-medium", "float16", "T4"),
    ("gpt2-medium", "bfloat16", "H100"),
    ("gpt2-large", "bfloat16", "4090"),
    ("gpt2-large", "float32", "A100 80"),
    ("gpt2-xl", "bfloat16", "A100 40"),
    ("gpt2-xl", "bfloat16", "H200"),
    ("gpt3-large", "bfloat16", "H100"),
    ("gpt3-xl", "bfloat16", "H100"),
]


@pytest.mark.parametrize("size, precision, gpu", FITS)
def test_automatic_batch_size_leaves_a_tenth_of_the_memory(
    dry_run, size, precision, gpu
):
    """Without torch.compile, which needs less. The second step has all that later ones
    have.
    """
    args = [
        *SHORT,
        *PRECISIONS[precision],
        f"--model_size={size}",
        "--max_iters=2",
        "--no-hellaswag",
    ]
    args += ["--block_size=2048"] if size.startswith("gpt3") else []
    loop = "for micro_step in range(accumulation):"
    two = loop.replace(
        "accumulation", "min(2, accumulation)"
    )  # the others are like the second
    result = passed(dry_run("gpt2_train.py", *args, gpu=gpu, replace=(loop, two)))
    batch = int(re.search(r"micro-steps of (\d+) x", result["out"])[1])
    share = result["peak"] / (GPUS[gpu][1] * 2**30)
    print(f"{size}, {precision}, {gpu}: batch {batch}, peak {share:.2f} of the memory")
    assert batch > 1 and share <= 0.9


def test_automatic_batch_size_is_1_where_nothing_fits(dry_run):
    """The parameters of gpt2-xl alone take 23 GiB in training."""
    args = ["--model_size=gpt2-xl", "--max_iters=0", *SHORT]
    result = passed(dry_run("gpt2_train.py", *args, gpu="4090"))
    assert "micro-steps of 1 x 1024 tokens: 512 per step" in result["out"]


# ----------------------------------------------------------------------- Long contexts
@pytest.mark.parametrize("pattern", ["fixed", "strided"])
def test_long_contexts_take_no_memory_of_their_square(dry_run, pattern):
    """With 8192 positions, no tensor has half of 8192 ** 2 numbers, for all of its
    heads together.

    The tokens are bytes: GPT-2's vocabulary alone would make the logits larger. The
    optimizer is AdamW: a batch of Muon's has nearly all matrices of the model, whatever
    the context.
    """
    T = 8192
    args = [
        "--data_dir=data/bytes",
        f"--pattern={pattern}",
        "--max_iters=1",
        "--batch_size=1",
    ]
    args += [
        f"--total_batch_size={2 * T}",
        "--no-hellaswag",
        "--optimizer=adamw",
        *SHORT,
    ]
    result = passed(dry_run("sparse_gpt.py", *args))
    print(
        f"{pattern}: largest tensor {result['largest']:,}, "
        f"peak {result['peak'] / 2**30:.2f} GiB"
    )
    assert result["largest"] < T**2 / 2
    calls = [json.loads(call) for call in result["attention"]]
    masks = [mask for *_, mask in calls if mask]
    assert masks and all(math.prod(mask) <= T**2 / 16 for mask in masks)
    # Otherwise the kernel copies them
    assert all(mask[-1] % 8 == 0 for mask in masks)
    for kernel, q, k, dtype, mask in calls:
        assert dtype == "torch.bfloat16" and kernel == (
            "efficient" if mask else "flash"
        )
        assert q[-1] == k[-1] == 64 and q[:2] == k[:2]


def test_a_mask_of_the_square_is_found(dry_run):
    line = "    plan = layouts.get("
    square = """    i = torch.arange(T, device=q.device)
    return attention(q, k, v, p, sees(hop, i[:, None], i).log())
"""
    replace = (line, square + line)
    args = ["--data_dir=data/bytes", "--max_iters=1", "--total_batch_size=8192", *SHORT]
    args += ["--no-hellaswag", "--n_layer=1", "--batch_size=1"]
    assert dry_run("sparse_gpt.py", *args, replace=replace)["largest"] >= 8192**2


@pytest.mark.parametrize("words", ["x.mT.contiguous().mT", "x[:, :, :0]"])
def test_attention_without_a_fast_kernel_is_found(dry_run, words):
    line = "y = attention(q_group, k_group, v_group, p, mask)"
    old = "q_group, k_group, v_group"
    replace = (line, f"{old} = ({words} for x in ({old}))\n        {line}")
    result = dry_run("sparse_gpt.py", *SMALL["sparse_gpt.py"], replace=replace)
    assert result["code"] == 1 and "without a fast kernel" in result["err"]


def test_heads_of_a_bad_size_are_found(dry_run):
    """Of 12 channels, which is no multiple of 8."""
    result = dry_run("gpt2_train.py", *SMALL["gpt2_train.py"], "--n_embd=24", gpu="T4")
    assert result["code"] == 1 and "without a fast kernel" in result["err"]
