"""sparse_gpt.py: attention over exactly the paper's sets, at a cost that really falls."""

import csv
import itertools
import math
import os
import re
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo  # every optimizer imports it: so copies of this process have it
import torch.distributed as dist
import torch.nn.functional as F
from conftest import names_of, popen, run_here
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parent.parent
SHAPES = [(1, 4, 1), (5, 8, 2), (16, 4, 1), (37, 6, 2), (33, 32, 4), (100, 7, 7), (64, 8, 3)]
TINY = ["--device=cpu", "--n_layer=2", "--n_head=2", "--n_embd=16", "--stride=6", "--summary=2"]
TINY += ["--bfloat16=False", "--block_size=32", "--total_batch_size=128", "--warmup_iters=1"]
TINY += ["--max_new_tokens=9"]
VARIANTS = [(p, c) for p in ("fixed", "strided") for c in ("heads", "layers")]


def paper(pattern, hop, i, stride, summary):
    """A1(i) or A2(i) of Child et al. 2019, section 4.3, in its words: a set of positions."""
    if pattern == "strided" and hop == 1:  # {t, t + 1, ..., i} for t = max(0, i - l)
        return set(range(max(0, i - stride), i + 1))
    if pattern == "strided":  # {j : (i - j) mod l = 0}
        return set(range(i, -1, -stride))
    if hop == 1:  # {j : floor(j / l) = floor(i / l)}
        return {j for j in range(i + 1) if math.floor(j / stride) == math.floor(i / stride)}
    return {j for j in range(i + 1) if j % stride in range(stride - summary, stride)}


def paper_matrix(T, *args):
    """The sets of T positions as a matrix of 0 and 1, in float64."""
    matrix = torch.zeros(T, T, dtype=torch.float64)
    for i in range(T):
        matrix[i, list(paper(*args[:2], i, *args[2:]))] = 1
    return matrix


def masked_attention(q, k, v, matrix):
    """Softmax over the sets, written out in float64; 0 where a set is empty."""
    weights = (q.double() @ k.double().mT / math.sqrt(q.shape[-1])).exp() * matrix
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-300) @ v.double()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for split, number, n in (("train", 1, 3000), ("val", 0, 300)):
        header = np.zeros(256, dtype="<i4")
        header[:4] = 20240520, 1, n, 256
        tokens = np.random.default_rng(n).integers(97, 123, n).astype("<u2")
        (folder / f"tiny_{split}_{number:06d}.bin").write_bytes(header.tobytes() + tokens.tobytes())
    return folder


def load(data_dir, *flags, script="sparse_gpt.py", out_dir="none"):
    """Run a script in this process; its globals."""
    tiny = TINY if script == "sparse_gpt.py" else [f for f in TINY if f[:4] not in ("--st", "--su")]
    argv = sys.argv
    sys.argv = [script, *tiny, f"--data_dir={data_dir}", f"--out_dir={out_dir}", *flags]
    try:
        return names_of(script)
    finally:
        sys.argv = argv


@pytest.fixture(scope="module")
def script(data_dir):
    return load(data_dir, "--max_iters=0")


@pytest.fixture
def attend(script, monkeypatch):
    """attend(), which takes the pattern, stride and summary to use as its first arguments."""

    def with_settings(pattern, stride, summary, *args):
        for name, value in {"pattern": pattern, "stride": stride, "summary": summary}.items():
            monkeypatch.setitem(script["attend"].__globals__, name, value)
        return script["attend"](*args)

    return with_settings


def shaken(script):
    """The model with weights so large that every score matters."""
    model = script["model"]
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
    return model


# ---------------------------------------------------------------------------------- the patterns
@pytest.mark.parametrize("T, stride, summary", SHAPES)
@pytest.mark.parametrize("hop", (1, 2))
@pytest.mark.parametrize("pattern", ("fixed", "strided"))
def test_sets_are_the_papers(attend, pattern, hop, T, stride, summary):
    """Without scores every position takes the mean of what it sees: 1 / |A_i| on A_i."""
    zero, one = torch.zeros(1, 1, T, T).double(), torch.eye(T).double()[None, None]
    found = attend(pattern, stride, summary, zero, zero, one, hop, 0.0)[0, 0]
    for i in range(T):
        seen = paper(pattern, hop, i, stride, summary)
        expected = torch.zeros(T, dtype=torch.float64)
        expected[list(seen)] = 1 / max(1, len(seen))
        torch.testing.assert_close(found[i], expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("T, stride, summary", SHAPES)
@pytest.mark.parametrize("pattern", ("fixed", "strided", "dense"))
def test_sees_is_the_papers(script, attend, monkeypatch, pattern, T, stride, summary):
    """The definition itself, for tensors and for numbers, before, in and after the sequence."""
    for name, value in {"pattern": pattern, "stride": stride, "summary": summary}.items():
        monkeypatch.setitem(script, name, value)
    i = torch.arange(-3, T)
    for hop in (1, 2):
        seen = script["sees"](hop, i[:, None], i)
        assert seen.shape == (T + 3, T + 3) and not seen[:3].any() and not seen[:, :3].any()
        if pattern == "dense":
            assert torch.equal(seen[3:, 3:], torch.ones(T, T).tril().bool())
            continue
        matrix = paper_matrix(T, pattern, hop, stride, summary)
        assert torch.equal(seen[3:, 3:].double(), matrix)
        assert bool(script["sees"](hop, T - 1, 0)) == bool(matrix[T - 1, 0])


@pytest.mark.parametrize("T, stride, summary", SHAPES)
@pytest.mark.parametrize("hop", (1, 2))
@pytest.mark.parametrize("pattern", ("fixed", "strided"))
@pytest.mark.parametrize("bfloat16", (False, True))  # True: attention is written out
def test_equals_masked_dense_attention(
    script, attend, monkeypatch, bfloat16, pattern, hop, T, stride, summary
):
    monkeypatch.setitem(script["attend"].__globals__, "bfloat16", bfloat16)
    torch.manual_seed(0)
    q, k, v = qkv = [torch.randn(2, 3, T, 8).double().requires_grad_() for _ in range(3)]
    matrix = paper_matrix(T, pattern, hop, stride, summary)
    ours = attend(pattern, stride, summary, q, k, v, hop, 0.0)
    theirs = masked_attention(q, k, v, matrix)
    out = torch.randn_like(ours)
    gradients = [torch.autograd.grad(y, qkv, out) for y in (ours, theirs)]
    for a, b in zip((ours, *gradients[0]), (theirs, *gradients[1])):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    # The last position alone, as in sampling
    last = attend(pattern, stride, summary, q[:, :, -1:], k, v, hop, 0.0)
    torch.testing.assert_close(last, theirs[:, :, -1:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("hop", (1, 2))
@pytest.mark.parametrize("pattern", ("fixed", "strided"))
def test_gradcheck(attend, pattern, hop):
    torch.manual_seed(0)
    qkv = [torch.randn(1, 2, 11, 3).double().requires_grad_() for _ in range(3)]
    assert torch.autograd.gradcheck(lambda *x: attend(pattern, 4, 2, *x, hop, 0.0), qkv)


@pytest.mark.parametrize("T, stride, summary", SHAPES)
@pytest.mark.parametrize("pattern", ("fixed", "strided"))
def test_two_hops_reach_every_earlier_position(attend, pattern, T, stride, summary):
    zero, one = torch.zeros(1, 1, T, T).double(), torch.eye(T).double()[None, None]
    A1, A2 = (attend(pattern, stride, summary, zero, zero, one, hop, 0.0)[0, 0] for hop in (1, 2))
    # The later layer, with hop 2, stands on the left
    assert torch.equal((A1 + A2 + A2 @ A1) > 0, torch.ones(T, T).tril().bool())
    if pattern == "fixed" and T >= 2 * stride > 2 * summary:
        assert not torch.equal((A1 + A2 + A1 @ A2) > 0, torch.ones(T, T).tril().bool())


def scores(attend, pattern, T, stride, summary, monkeypatch):
    """How many scores forward computes, and the size of the largest tensor, backward included."""
    count = largest = 0
    sdpa = F.scaled_dot_product_attention

    def counting(q, k, v, *args, **kwargs):
        nonlocal count
        count += q.shape[:-1].numel() * k.shape[-2]
        return sdpa(q, k, v, *args, **kwargs)

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            tensors = result if isinstance(result, tuple) else (result,)
            largest = max([largest] + [t.numel() for t in tensors if isinstance(t, torch.Tensor)])
            return result

    monkeypatch.setattr(F, "scaled_dot_product_attention", counting)
    qkv = [torch.randn(1, 1, T, 4, requires_grad=True) for _ in range(3)]
    with Sizes():
        for hop in (1, 2):
            attend(pattern, stride, summary, *qkv, hop, 0.0).sum().backward()
    monkeypatch.setattr(F, "scaled_dot_product_attention", sdpa)
    return count, largest


@pytest.mark.parametrize("pattern", ("fixed", "strided"))
def test_cost_really_falls(attend, pattern, monkeypatch):
    """Scores that are computed, not only used: T * sqrt(T) instead of T * T, and none elsewhere."""
    (small, _), (large, size) = (
        scores(attend, pattern, T, int(T**0.5), 2, monkeypatch) for T in (1024, 4096)
    )
    # Per position, in rows of sqrt(T): two rows and a column, or a row and two columns
    assert 4096**1.5 <= large <= 3 * 4096**1.5
    assert large / small < 8.5  # four times the positions; dense: 16
    assert size < 4096**2 / 8  # no dense matrix, nor mask


@pytest.mark.parametrize("pattern", ("fixed", "strided", "dense"))
def test_keys_that_count_for_a_query(data_dir, pattern):
    """What mfu goes by: twice the mean of the papers' sets, over both hops; T where dense."""
    flags = ["--block_size=256", "--stride=16", "--summary=4", "--total_batch_size=256"]
    script = load(data_dir, "--max_iters=0", f"--pattern={pattern}", *flags)
    expected = 256
    if pattern != "dense":
        expected = sum(paper_matrix(256, pattern, hop, 16, 4).sum() for hop in (1, 2)) / 256
    assert script["keys"][pattern] == pytest.approx(float(expected), rel=0.05)
    attention = 256 * 12 * 2 * 16 * script["keys"][pattern]  # T * 12 * n_layer * n_embd * keys
    assert script["flops"] == pytest.approx(256 * 6 * script["n_params"] + attention)


def test_attend_is_one_graph(script, attend):
    """torch.compile need not fall back to Python in the midst of it."""
    qkv = [torch.randn(1, 2, 13, 4) for _ in range(3)]
    for pattern in ("fixed", "strided"):
        for hop in (1, 2):
            eager = attend(pattern, 4, 2, *qkv, hop, 0.0)
            torch.compiler.reset()
            compiled = torch.compile(script["attend"], backend="eager", fullgraph=True)
            assert torch.equal(compiled(*qkv, hop, 0.0), eager)


# ------------------------------------------------------------------------------------- the model
@pytest.mark.parametrize("pattern, combine", VARIANTS)
def test_layers_equal_masked_dense_attention(data_dir, pattern, combine):
    """Heads: the first half takes hop 1, the second hop 2. Layers: they alternate, hop 1 first."""
    script = load(data_dir, "--max_iters=0", f"--pattern={pattern}", f"--combine={combine}")
    blocks = enumerate(shaken(script).h)
    for (number, block), T in itertools.product(blocks, (27, 30, 4)):  # 27 is no multiple of 6
        x = torch.randn(2, T, 16, requires_grad=True)
        hops = [paper_matrix(T, pattern, hop, 6, 2) for hop in (1, 2)]
        attn = block.attn
        q, k, v = (t.view(2, T, 2, 8).transpose(1, 2) for t in attn.c_attn(x).split(16, dim=2))
        matrix = torch.stack(hops if combine == "heads" else [hops[number % 2]] * 2)
        y = masked_attention(q, k, v, matrix).float()
        theirs = attn.c_proj(y.transpose(1, 2).reshape(2, T, 16))
        inputs = (x, attn.c_attn.weight, attn.c_attn.bias)
        out = torch.randn_like(theirs)
        ours = attn(x)
        for a, b in zip(
            (ours, *torch.autograd.grad(ours, inputs, out)),
            (theirs, *torch.autograd.grad(theirs, inputs, out)),
        ):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pattern, combine", VARIANTS)
def test_no_position_sees_the_future(data_dir, pattern, combine):
    """To the bit, and what is past every later position sees, through a model of two layers."""
    script = load(data_dir, "--max_iters=0", f"--pattern={pattern}", f"--combine={combine}")
    model = shaken(script).eval()
    idx = torch.randint(256, (1, 32))
    logits = model.logits(idx)
    for i in range(32):
        other = idx.clone()
        other[0, i] = (idx[0, i] + 1) % 256
        changed = (model.logits(other) != logits).any(-1)[0]
        assert not changed[:i].any() and changed[i:].all()


@pytest.mark.parametrize("pattern, combine", VARIANTS)
def test_cached_sampling_equals_uncached(data_dir, pattern, combine):
    """Also after the window began to slide."""
    script = load(data_dir, "--max_iters=0", f"--pattern={pattern}", f"--combine={combine}")
    model, generate = shaken(script), script["generate"]
    for start in (1, 7, 30):
        idx = torch.randint(256, (2, start))
        cached, uncached = (generate(idx, 40, 0.0, use_cache=c) for c in (True, False))
        assert torch.equal(cached, uncached)
    for block in model.h:
        block.attn.cache = []
    logits = torch.cat([model.logits(uncached[:, i : i + 1]) for i in range(32)], dim=1)
    for block in model.h:
        block.attn.cache = None
    torch.testing.assert_close(logits, model.logits(uncached[:, :32]), rtol=1e-4, atol=1e-3)


def test_position_is_a_row_and_a_column(data_dir):
    script = load(data_dir, "--max_iters=0")
    model = shaken(script)
    assert model.wpe.weight.shape == (6 + 6, 16)  # 32 positions: 6 columns, 6 rows, one cut short
    seen = []
    model.h[0].register_forward_pre_hook(lambda module, args: seen.append(args[0][0]))
    model.logits(torch.full((1, 32), 65))
    where = model.wpe.weight
    for i, x in enumerate(seen[0]):
        expected = model.wte.weight[65] + where[i % 6] + where[6 + i // 6]
        torch.testing.assert_close(x, expected)


def test_dense_is_gpt2_train_to_the_bit(data_dir, tmp_path, capsys):
    flags = ["--max_iters=4", "--eval_interval=2", "--dropout=0.1"]
    old = load(data_dir, *flags, script="gpt2_train.py", out_dir=tmp_path / "old")
    said_old = capsys.readouterr().out
    new = load(data_dir, "--pattern=dense", *flags, out_dir=tmp_path / "new")
    said_new = capsys.readouterr().out
    for (name, a), (other, b) in zip(*(s["model"].state_dict().items() for s in (old, new))):
        assert name == other and torch.equal(a, b), name
    without_times = [re.sub(r"\d+ ms .*", "", said) for said in (said_old, said_new)]
    assert without_times[0] == without_times[1] and "loss" in said_new


# ----------------------------------------------------------------------------------- the program
@pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo"
)
@pytest.mark.parametrize("pattern, combine", VARIANTS)
def test_two_processes_equal_one(data_dir, tmp_path, pattern, combine):
    """Started as torchrun would do it, but as copies of this process."""
    losses = []
    for processes in (1, 2):
        flags = [*TINY, f"--data_dir={data_dir}", f"--out_dir={tmp_path / str(processes)}"]
        flags += [f"--pattern={pattern}", f"--combine={combine}", "--max_iters=3", "--batch_size=2"]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        started = []
        for rank in map(str, range(processes)):
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(processes)}
            env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **ranks, **address}
            command = [sys.executable, ROOT / "sparse_gpt.py", *flags]
            started.append(popen(command, env=env, cwd=tmp_path))
        outputs = [process.communicate(timeout=300) for process in started]
        assert [process.returncode for process in started] == [0] * processes, outputs
        with open(tmp_path / str(processes) / "log.csv") as f:
            losses.append([float(r["loss"] or r["val_loss"]) for r in csv.DictReader(f)])
    assert len(losses[0]) == 5 and losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--pattern=sparse", "must be one of ('fixed', 'strided', 'dense')"),
        ("--combine=union", "must be one of ('heads', 'layers')"),
        ("--stride=0", "must be 1 or more"),
        ("--stride=33", "must be at most block_size, which is 32"),
        ("--pattern=dense --position_dims=2 --stride=33", "at most block_size, which is 32"),
        ("--summary=0", "must be 1 or more"),
        ("--summary=7", "must be at most stride, which is 6"),
        ("--n_head=1", "must be even"),
        ("--position_dims=3", "must be one of (0, 1, 2)"),
        ("--export_dir=hf", "transformers"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", sys)  # which is not needed to say so
    result = run_here("sparse_gpt.py", *TINY, *flags.split())
    usage, error = result.err.splitlines()
    assert result.code == 2 and result.out == "" and usage.startswith("usage: sparse_gpt.py")
    assert error.startswith("sparse_gpt.py: error: ") and message in error
    assert f"argument {flags.split()[-1].split('=')[0]}: " in error or "export" in flags
    assert not list(tmp_path.iterdir())


def test_what_the_pattern_does_not_use_is_not_checked(data_dir):
    load(data_dir, "--max_iters=0", "--pattern=dense", "--stride=99", "--n_head=1")
    load(data_dir, "--max_iters=0", "--pattern=strided", "--summary=9")
    load(data_dir, "--max_iters=0", "--combine=layers", "--n_head=1")
    load(data_dir, "--max_iters=0", "--pattern=dense", "--summary=99")


def test_checkpoint_of_another_pattern_is_refused(data_dir, tmp_path):
    flags = [*TINY, f"--data_dir={data_dir}", f"--out_dir={tmp_path / 'out'}"]
    assert run_here("sparse_gpt.py", *flags, "--max_iters=1").code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    mine = {"pattern": "fixed", "stride": 6, "summary": 2, "combine": "heads", "position_dims": 2}
    theirs = {"pattern": "strided", "stride": 5, "summary": 3, "combine": "layers"}
    for name, value in {**theirs, "position_dims": 1}.items():
        result = run_here("sparse_gpt.py", *flags, "--max_iters=2", f"--{name}={value}")
        assert result.code == 1 and result.err.count("\n") == 1 and "Traceback" not in result.err
        was, wanted = result.err.split(" not ", 1)
        assert "last.pt: " in was and f"'{name}': {mine[name]!r}" in was
        assert f"'{name}': {value!r}" in wanted and "--out_dir" in wanted
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    result = run_here("sparse_gpt.py", *flags, "--max_iters=2")
    assert result.code == 0 and "going on from step 1" in result.out


@pytest.mark.parametrize("pattern", ("fixed", "strided"))
def test_show_pattern(tmp_path, monkeypatch, pattern):
    """Draws the sets of one position, before it asks for any data."""
    monkeypatch.chdir(tmp_path)
    result = run_here("sparse_gpt.py", *TINY, f"--pattern={pattern}", "--show_pattern")
    title, *rows = result.out.splitlines()
    at = int(re.search(r"position (\d+)", title)[1])
    assert 6 < at < 32 and result.code == 0 and not list(tmp_path.iterdir())
    sets = [paper(pattern, hop, at, 6, 2) for hop in (1, 2)]
    marks = [".123"[(j in sets[0]) + 2 * (j in sets[1])] for j in range(at)] + ["@"]
    assert "".join(rows) == "".join(marks) and {len(row) for row in rows[:-1]} == {6}


def test_drawing_is_true():
    """docs/patterns.svg: T = 36, l = 6, c = 2; its squares are those of the paper's sets."""
    svg = (ROOT / "docs" / "patterns.svg").read_text()
    for pattern in ("strided", "fixed"):
        group = re.search(rf'<g id="{pattern}".*?</g>', svg, flags=re.S)[0]
        drawn = {"a1": set(), "a2": set(), "both": set(), "none": set()}
        for kind, j, i in re.findall(r'<use href="#(\w+)" x="(\d+)" y="(\d+)"', group):
            drawn[kind].add((int(i) // 8, int(j) // 8))
        a1, a2 = (
            {(i, j) for i in range(36) for j in paper(pattern, hop, i, 6, 2)} for hop in (1, 2)
        )
        assert drawn["both"] == a1 & a2
        assert drawn["a1"] == a1 - a2 and drawn["a2"] == a2 - a1
