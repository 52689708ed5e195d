"""sparse_gpt.py: attention over exactly the sets of the paper, at a cost that falls."""

import csv
import math
import os
import re
import sys

import numpy as np
import pytest
import torch
import torch._dynamo  # every optimizer imports it: so copies of this process have it
import torch.distributed as dist
from makers import ROOT, free_port, names_of, popen, run_here, write_shards

SHAPES = [  # positions, stride, summary
    (1, 4, 1),
    (5, 8, 2),
    (16, 4, 1),
    (37, 6, 2),
    (33, 32, 4),
    (100, 7, 7),
    (64, 8, 3),
]
SMALL = ["--device=cpu", "--no-bfloat16", "--n_layer=2", "--n_head=2", "--n_embd=16"]
SMALL += ["--block_size=32", "--total_batch_size=128", "--warmup_iters=1"]
SMALL += ["--max_new_tokens=9"]
TINY = [*SMALL, "--stride=6", "--summary=2", "--window=9", "--tile=4"]
WINDOW = 9
VARIANTS = [
    ("window", "heads"),
    ("sinks", "heads"),
    ("alternate", "layers"),
    ("fixed", "heads"),
    ("fixed", "layers"),
    ("strided", "heads"),
    ("strided", "layers"),
]
ALL = [*VARIANTS, ("selection", "heads")]


def paper(pattern, hop, i, stride, summary):
    """A1(i) or A2(i) of Child et al. 2019, section 4.3, in its words: a set."""
    if pattern == "dense" or (pattern == "alternate" and hop == 2):
        return set(range(i + 1))
    if pattern in ("window", "alternate"):
        return set(range(max(0, i - WINDOW + 1), i + 1))
    if pattern == "sinks":
        return set(range(min(i + 1, 4))) | set(range(max(0, i - WINDOW + 1), i + 1))
    if pattern == "strided" and hop == 1:  # {t, t + 1, ..., i} for t = max(0, i - l)
        return set(range(max(0, i - stride), i + 1))
    if pattern == "strided":  # {j : (i - j) mod l = 0}
        return {j for j in range(i + 1) if (i - j) % stride == 0}
    if hop == 1:  # {j : floor(j / l) = floor(i / l)}
        row = math.floor(i / stride)
        return {j for j in range(i + 1) if math.floor(j / stride) == row}
    # {j : j mod l in {t, t + 1, ..., l}} for t = l - c
    return {j for j in range(i + 1) if j % stride in range(stride - summary, stride)}


def paper_matrix(T, pattern, hop, stride, summary):
    """The sets of T positions as a matrix of 0 and 1, in float64."""
    matrix = torch.zeros(T, T, dtype=torch.float64)
    for i in range(T):
        matrix[i, list(paper(pattern, hop, i, stride, summary))] = 1
    return matrix


def masked_attention(q, k, v, matrix):
    """Softmax over the sets, written out in float64; 0 where a set is empty."""
    scores = q.double() @ k.double().mT / math.sqrt(q.shape[-1])
    weights = scores.exp() * matrix
    sums = weights.sum(-1, keepdim=True).clamp(min=1e-300)
    return weights / sums @ v.double()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_shards(folder, 3000, 300)
    return folder


def load(data_dir, *flags, script="sparse_gpt.py", out_dir="none"):
    """Run a script in this process; its globals."""
    tiny = TINY if script == "sparse_gpt.py" else SMALL
    argv = sys.argv
    sys.argv = [script, *tiny, f"--data_dir={data_dir}", f"--out_dir={out_dir}", *flags]
    try:
        return names_of(script)
    finally:
        sys.argv = argv


@pytest.fixture(scope="module")
def script(data_dir):
    return load(data_dir, "--max_iters=0")


def shaken(script):
    """The model with weights so large that every score matters."""
    model = script["model"]
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
    return model


# ---------------------------------------------------------------------- The patterns
PATTERNS = ("dense", "window", "sinks", "alternate", "strided", "fixed")


def hops_of(script, monkeypatch, pattern, stride, summary, tile):
    """The hops of a pattern; who sees whom follows the settings."""
    names = script["attend"].__globals__
    settings = {"stride": stride, "summary": summary, "tile": tile}
    for name, value in settings.items():
        monkeypatch.setitem(names, name, value)
    script["layouts"].clear()
    script["lay_out"].cache_clear()
    script["assign_slots"].cache_clear()
    hops = script["patterns"][pattern]
    return list(enumerate(hops, start=1))


@pytest.mark.parametrize("T, stride, summary", SHAPES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_sees_is_the_definition(script, monkeypatch, pattern, T, stride, summary):
    """For tensors and for numbers."""
    i = torch.arange(T)
    for number, hop in hops_of(script, monkeypatch, pattern, stride, summary, 4):
        matrix = paper_matrix(T, pattern, number, stride, summary)
        seen = script["sees"](hop, i[:, None], i)
        assert seen.dtype == torch.bool
        assert torch.equal(seen.double(), matrix)
        assert bool(script["sees"](hop, T - 1, T // 2)) == bool(matrix[T - 1, T // 2])


@pytest.mark.parametrize("T, stride, summary", SHAPES)
@pytest.mark.parametrize("tile", (4, 16))
@pytest.mark.parametrize("bfloat16", (False, True))  # True: attention is written out
@pytest.mark.parametrize("pattern", PATTERNS)
def test_equals_masked_dense_attention(
    script, monkeypatch, pattern, bfloat16, tile, T, stride, summary
):
    """Forward and backward, in float64."""
    exact = 1e-12
    for number, hop in hops_of(script, monkeypatch, pattern, stride, summary, tile):
        monkeypatch.setitem(script["attend"].__globals__, "bfloat16", bfloat16)
        torch.manual_seed(0)
        qkv = [torch.randn(2, 3, T, 8).double().requires_grad_() for _ in range(3)]
        ours = script["attend"](*qkv, hop, 0.0)
        matrix = paper_matrix(T, pattern, number, stride, summary)
        theirs = masked_attention(*qkv, matrix)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=exact)
        out = torch.randn_like(ours)
        gradients = torch.autograd.grad(ours, qkv, out)
        expected = torch.autograd.grad(theirs, qkv, out)
        torch.testing.assert_close(gradients, expected, rtol=0, atol=exact)


@pytest.mark.long
@pytest.mark.parametrize("T, stride, summary", [(37, 6, 2), (64, 8, 3)])
@pytest.mark.parametrize("pattern", ("window", "sinks", "strided", "fixed"))
def test_equals_flex_attention(script, monkeypatch, pattern, T, stride, summary):
    """A second reference, PyTorch's own; there, too, who sees nobody gets 0."""
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    torch.manual_seed(0)
    qkv = [torch.randn(2, 3, T, 8) for _ in range(3)]
    for number, hop in hops_of(script, monkeypatch, pattern, stride, summary, 4):
        matrix = paper_matrix(T, pattern, number, stride, summary).bool()

        def mask(b, h, i, j):
            return matrix[i, j]

        blocks = flex.create_block_mask(mask, None, None, T, T, "cpu", BLOCK_SIZE=4)
        theirs = flex.flex_attention(*qkv, block_mask=blocks)
        ours = script["attend"](*qkv, hop, 0.0)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pattern", ("window", "sinks", "strided", "fixed"))
def test_computes_the_tiles_that_somebody_needs(script, monkeypatch, pattern):
    """FlexAttention counts them independently; groups fill up to at most twice."""
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    T, tile = 256, 16
    for number, hop in hops_of(script, monkeypatch, pattern, 16, 4, tile):
        matrix = paper_matrix(T, pattern, number, 16, 4).bool()
        order = torch.from_numpy(hop.order(np.arange(T)).argsort(kind="stable"))
        matrix = matrix[order][:, order]

        def mask(b, h, i, j):
            return matrix[i, j]

        blocks = flex.create_block_mask(mask, None, None, T, T, "cpu", BLOCK_SIZE=tile)
        needed = (blocks.kv_num_blocks + blocks.full_kv_num_blocks).sum().item()
        groups, *_ = script["lay_out"](hop, T // tile)
        tiles = sum(group.mask.numel() for group in groups) // tile**2
        assert needed <= tiles < 2 * needed
        assert needed < (T // tile) ** 2 / 4  # of all, causality leaves half


@pytest.mark.parametrize("T", (3, 16, 37))
def test_selection_equals_a_loop_over_queries(script, monkeypatch, T):
    """Each query: its own tile, and the 3 earlier tiles of the best mean key."""
    hops = hops_of(script, monkeypatch, "selection", 6, 2, 4)
    torch.manual_seed(0)
    qkv = [torch.randn(1, 2, T, 8).double().requires_grad_() for _ in range(3)]
    q, k, v = qkv
    matrix = torch.zeros(1, 2, T, T).double()
    for head in range(2):
        for i in range(T):
            own = i // 4
            score = [
                (q[0, head, i] @ k[0, head, 4 * t : 4 * t + 4].mean(0)).item()
                for t in range(own)
            ]
            best = sorted(range(own), key=lambda t: -score[t])[:3]
            for j in range(i + 1):
                matrix[0, head, i, j] = j // 4 == own or j // 4 in best
    ours = script["attend"](q, k, v, hops[0][1], 0.0)
    theirs = masked_attention(q, k, v, matrix)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    out = torch.randn_like(ours)
    gradients = torch.autograd.grad(ours, qkv, out)
    expected = torch.autograd.grad(theirs, qkv, out)
    torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-12)


def test_exercise_adds_a_pattern_in_ten_lines(script, monkeypatch):
    """What the chapter's first answer shows: a rule, and a row of the table."""
    text = (ROOT / "docs/sparse_gpt.md").read_text(encoding="utf-8")
    code = text.split("## Exercises")[1].split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    rule, row = code.rsplit("\n\n\n", 1)
    names = script["attend"].__globals__
    monkeypatch.setitem(names, "tile", 4)
    monkeypatch.setitem(names, "window", WINDOW)
    scope = dict(names)
    exec(rule, scope)
    (hops,) = eval("{" + row + "}", scope).values()
    T = 37
    torch.manual_seed(0)
    qkv = [torch.randn(1, 2, T, 8).double() for _ in range(3)]
    powers = torch.zeros(T, T, dtype=torch.float64)
    for i in range(T):
        powers[i, i] = 1
        for n in range(6):
            if i - 2**n >= 0:
                powers[i, i - 2**n] = 1
    matrices = [paper_matrix(T, "window", 1, 6, 2), powers]
    for hop, matrix in zip(hops, matrices, strict=True):
        ours = script["attend"](*qkv, hop, 0.0)
        theirs = masked_attention(*qkv, matrix)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pattern", ("fixed", "strided"))
def test_two_hops_reach_every_earlier_position(pattern):
    A1, A2 = [paper_matrix(37, pattern, hop, 6, 2) for hop in (1, 2)]
    past = torch.ones(37, 37).tril().bool()
    assert torch.equal((A1 + A2 + A2 @ A1) > 0, past)  # the later layer stands left
    if pattern == "fixed":
        assert not torch.equal((A1 + A2 + A1 @ A2) > 0, past)


def computed(script, monkeypatch, pattern, T, stride):
    """Scores that attention computes in the hops of a pattern."""
    counts = []
    names = script["attend"].__globals__
    attention = script["attention"]

    def counting(q, k, v, *args):
        counts.append(q.shape[:-1].numel() * k.shape[-2])
        return attention(q, k, v, *args)

    for _, hop in hops_of(script, monkeypatch, pattern, stride, 2, 32):
        with monkeypatch.context() as patch:
            patch.setitem(names, "attention", counting)
            script["attend"](*[torch.randn(1, 1, T, 4)] * 3, hop, 0.0)
    return sum(counts)


@pytest.mark.parametrize("pattern", ("fixed", "strided", "window"))
def test_cost_really_falls(script, monkeypatch, pattern):
    """Scores that are computed, not only used: T * sqrt(T)."""
    small = computed(script, monkeypatch, pattern, 1024, 32)
    large = computed(script, monkeypatch, pattern, 4096, 64)
    assert large <= 3 * 4096**1.5
    assert large / small < 8.5  # four times the positions; dense: 16


def test_without_its_order_a_hop_is_not_sparse(script, monkeypatch):
    (_, hop), *_ = reversed(hops_of(script, monkeypatch, "strided", 32, 2, 32))
    blocks = {}
    for order in (hop.order, script["as_they_come"]):
        groups, *_ = script["lay_out"](hop._replace(order=order), 32)
        blocks[order] = sum(group.mask.numel() for group in groups) // 32**2
    assert blocks[hop.order] == 32  # a column is a tile
    assert blocks[script["as_they_come"]] >= 32 * 33 / 2


@pytest.mark.parametrize("pattern", ("fixed", "strided", "window", "dense"))
def test_keys_that_count_for_a_query(data_dir, pattern):
    """What mfu goes by: twice the mean of the hops' sets; T where dense."""
    flags = ["--block_size=256", "--stride=16", "--summary=4", "--total_batch_size=256"]
    script = load(data_dir, "--max_iters=0", f"--pattern={pattern}", *flags)
    expected = 256
    if pattern != "dense":
        seen = [paper_matrix(256, pattern, hop, 16, 4).sum().item() for hop in (1, 2)]
        expected = sum(seen) / 256
    assert script["keys"] == pytest.approx(expected)
    attention = 12 * 2 * 16 * expected  # 12 * n_layer * n_embd * keys
    assert script["flops"] == pytest.approx(256 * (6 * script["n_params"] + attention))


@pytest.mark.long
def test_attend_is_one_graph(script, monkeypatch):
    """torch.compile need not fall back to Python in the midst of it."""
    qkv = [torch.randn(1, 2, 13, 4) for _ in range(3)]
    for pattern in (*PATTERNS, "selection"):
        for _, hop in hops_of(script, monkeypatch, pattern, 4, 2, 4):
            script["layouts"][hop, 13] = script["lay_out"](hop, 4)  # as at the start
            eager = script["attend"](*qkv, hop, 0.0)
            torch.compiler.reset()
            compiled = torch.compile(script["attend"], backend="eager", fullgraph=True)
            assert torch.equal(compiled(*qkv, hop, 0.0), eager)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_cache_forgets_what_nobody_will_see(data_dir, pattern):
    """Nothing that is still seen is overwritten, and no place is wasted."""
    script = load(data_dir, "--max_iters=0", f"--pattern={pattern}")
    for number, hop in enumerate(script["patterns"][pattern], start=1):
        slots, _ = script["assign_slots"](hop)
        matrix = paper_matrix(32, pattern, number, 6, 2)
        holds = {}
        most = 0
        for i in range(32):
            holds[int(slots[i])] = i
            wanted = {j for j in range(i + 1) if matrix[i:, j].any()}
            assert wanted <= set(holds.values())
            most = max(most, len(wanted | {i}))
        assert int(slots.max()) + 1 == most


# ------------------------------------------------------------------------- The model
def rotated(x):
    """Rotary positions by their definition: a pair of channels is a complex number."""
    T, hs = x.shape[-2:]
    speeds = torch.tensor([10_000 ** (-2 * i / hs) for i in range(hs // 2)])
    angles = torch.arange(T)[:, None] * speeds
    pairs = torch.complex(*x.chunk(2, dim=-1)) * torch.exp(1j * angles)
    return torch.cat((pairs.real, pairs.imag), dim=-1)


@pytest.mark.parametrize("T", (27, 30, 4))  # 27 is no multiple of 6
@pytest.mark.parametrize("pattern, combine", VARIANTS)
def test_layers_equal_masked_dense_attention(data_dir, pattern, combine, T):
    """Heads: the first half takes hop 1. Layers: they alternate, hop 1 first."""
    flags = [f"--pattern={pattern}", f"--combine={combine}"]
    script = load(data_dir, "--max_iters=0", *flags)
    hops = [paper_matrix(T, pattern, hop, 6, 2) for hop in (1, 2)]
    for number, block in enumerate(shaken(script).h):
        attn = block.attn
        x = torch.randn(2, T, 16, requires_grad=True)
        heads = []
        for share in attn.c_attn(x).split(16, dim=2):
            heads.append(share.view(2, T, 2, 8).transpose(1, 2))
        heads[0], heads[1] = rotated(heads[0]), rotated(heads[1])  # q and k
        matrix = torch.stack(hops)
        if combine == "layers":
            matrix = hops[number % 2]
        y = masked_attention(*heads, matrix).float()
        theirs = attn.c_proj(y.transpose(1, 2).reshape(2, T, 16))
        ours = attn(x)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        inputs = [x, attn.c_attn.weight, attn.c_attn.bias]
        out = torch.randn_like(theirs)
        gradients = torch.autograd.grad(ours, inputs, out)
        expected = torch.autograd.grad(theirs, inputs, out)
        torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pattern, combine", ALL)
def test_no_position_sees_the_future(data_dir, pattern, combine):
    """To the bit; and two hops show the past to every later position."""
    flags = [f"--pattern={pattern}", f"--combine={combine}"]
    script = load(data_dir, "--max_iters=0", *flags)
    model = shaken(script).eval()
    idx = torch.randint(256, (1, 32))
    logits = model.logits(idx)
    for i in range(32):
        other = idx.clone()
        other[0, i] = (idx[0, i] + 1) % 256
        changed = (model.logits(other) != logits).any(-1)[0]
        assert not changed[:i].any()
        if pattern not in ("window", "sinks", "selection"):
            assert changed[i:].all()


@pytest.mark.parametrize("pattern, combine", ALL)
def test_cached_sampling_equals_uncached(data_dir, pattern, combine):
    """Also after the window began to slide."""
    flags = [f"--pattern={pattern}", f"--combine={combine}"]
    script = load(data_dir, "--max_iters=0", *flags)
    model, generate = shaken(script), script["generate"]
    for start in (1, 7, 30):
        idx = torch.randint(256, (2, start))
        cached = generate(idx, 40, temperature=0.0, use_cache=True)
        uncached = generate(idx, 40, temperature=0.0, use_cache=False)
        assert torch.equal(cached, uncached)
    caches = [script["KVCache"]() for _ in model.h]
    logits = []
    for i in range(32):
        logits.append(model.logits(uncached[:, i : i + 1], caches))
    expected = model.logits(uncached[:, :32])
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, rtol=1e-4, atol=1e-3)


def test_dense_is_gpt2_train_to_the_bit(data_dir, tmp_path, capsys):
    """With the positions of GPT-2: the same data, losses, texts and weights."""
    flags = ["--max_iters=4", "--eval_interval=2", "--log_interval=1", "--dropout=0.1"]
    old = load(data_dir, *flags, script="gpt2_train.py", out_dir=tmp_path / "old")
    said_old = capsys.readouterr().out
    flags += ["--pattern=dense", "--no-rotary"]
    new = load(data_dir, *flags, out_dir=tmp_path / "new")
    said_new = capsys.readouterr().out
    weights, expected = new["model"].state_dict(), old["model"].state_dict()
    assert list(weights) == list(expected)
    for name, tensor in weights.items():
        assert torch.equal(tensor, expected[name]), name
    without_times = re.sub(r"\d+ ms .*", "", said_new)
    assert without_times == re.sub(r"\d+ ms .*", "", said_old)
    assert len(re.findall(r"\| loss \d", said_new)) == 4


# ----------------------------------------------------------------------- The program
@pytest.mark.long
@pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(),
    reason="this torch has no gloo",
)
@pytest.mark.parametrize("pattern, combine", VARIANTS)
def test_two_processes_equal_one(data_dir, tmp_path, pattern, combine):
    """Started as torchrun would do it, but as copies of this process."""
    losses = []
    for processes in (1, 2):
        out_dir = tmp_path / str(processes)
        flags = [*TINY, f"--data_dir={data_dir}", f"--out_dir={out_dir}"]
        flags += [f"--pattern={pattern}", f"--combine={combine}"]
        flags += ["--max_iters=3", "--batch_size=2"]
        port = str(free_port())
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "WORLD_SIZE": str(processes)}
        env.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        started = []
        for rank in range(processes):
            env.update(RANK=str(rank), LOCAL_RANK=str(rank))
            command = [sys.executable, ROOT / "sparse_gpt.py", *flags]
            started.append(popen(command, env=dict(env), cwd=tmp_path))
        outputs = [process.communicate(timeout=300) for process in started]
        codes = [process.returncode for process in started]
        assert codes == [0] * processes, "".join(err for _, err in outputs)
        with open(out_dir / "log.csv") as f:
            losses.append(
                [float(r["loss"] or r["val_loss"]) for r in csv.DictReader(f)]
            )
    assert len(losses[0]) == 5  # three steps and two evaluations
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_weights_go_to_transformers_and_back(data_dir, tmp_path):
    pytest.importorskip("transformers")
    flags = ["--max_iters=0", "--pattern=dense", "--no-rotary"]
    script = load(data_dir, *flags, out_dir=tmp_path)
    shaken(script)
    script["save_checkpoint"]("best.pt", 0)
    load(data_dir, *flags, f"--export_dir={tmp_path / 'hf'}", out_dir=tmp_path)
    again = load(data_dir, *flags, f"--init_from={tmp_path / 'hf'}", "--gelu=none")
    idx = torch.randint(256, (2, 32))
    expected = script["model"].logits(idx)
    torch.testing.assert_close(again["model"].logits(idx), expected)


def test_one_head_will_do_where_hops_do_not_share(data_dir):
    load(data_dir, "--max_iters=0", "--n_head=1", "--pattern=dense")
    load(data_dir, "--max_iters=0", "--n_head=1", "--combine=layers")


def test_tile_belongs_to_a_model_only_where_queries_select_tiles(data_dir, tmp_path):
    """What was trained with large tiles on a GPU can be sampled with small ones."""
    for pattern in ("fixed", "selection"):
        out_dir = tmp_path / pattern
        flags = [f"--pattern={pattern}"]
        trained = load(data_dir, *flags, "--max_iters=1", out_dir=out_dir)
        flags += ["--max_iters=0", "--tile=8"]
        if pattern == "selection":
            with pytest.raises(SystemExit, match="with tile=4, not 8"):
                load(data_dir, *flags, out_dir=out_dir)
            continue
        sampled = load(data_dir, *flags, out_dir=out_dir)
        idx = torch.randint(256, (2, 32))
        expected = trained["model"].logits(idx)
        torch.testing.assert_close(sampled["model"].logits(idx), expected)


@pytest.mark.parametrize("pattern", ("fixed", "strided"))
def test_show_pattern(data_dir, tmp_path, pattern):
    """Draws the sets of one position, and does nothing else."""
    flags = [*TINY, f"--data_dir={data_dir}", f"--out_dir={tmp_path / 'out'}"]
    flags += [f"--pattern={pattern}", "--show_pattern"]
    result = run_here("sparse_gpt.py", *flags)
    assert (result.code, result.err) == (0, "")
    title, *rows = result.out.splitlines()
    last = int(re.search(r"position (\d+)", title)[1])
    assert 6 < last < 32
    sets = [paper(pattern, hop, last, 6, 2) for hop in (1, 2)]
    marks = [".123"[(j in sets[0]) + 2 * (j in sets[1])] for j in range(last)]
    assert "".join(rows) == "".join(marks) + "@"
    assert {len(row) for row in rows[:-1]} == {6}
    assert not list(tmp_path.glob("out/*"))


def test_show_a_pattern_of_one_hop(data_dir):
    flags = [*TINY, f"--data_dir={data_dir}", "--pattern=window", "--show_pattern"]
    title, *rows = run_here("sparse_gpt.py", *flags, "--window=5").out.splitlines()
    last = int(re.search(r"position (\d+)", title)[1])
    assert "".join(rows) == "." * (last - 4) + "1111@"


def test_drawing_is_true():
    """patterns.svg: T = 36, l = 6, c = 2; its squares are the paper's sets."""
    svg = (ROOT / "docs/pictures/patterns.svg").read_text()
    for pattern in ("strided", "fixed"):
        group = re.search(rf'<g id="{pattern}".*?</g>', svg, flags=re.S)[0]
        drawn = {"a1": set(), "a2": set(), "both": set(), "none": set()}
        for kind, j, i in re.findall(r'<use href="#(\w+)" x="(\d+)" y="(\d+)"', group):
            drawn[kind].add((int(i) // 8, int(j) // 8))
        a1, a2 = set(), set()
        for i in range(36):
            a1 |= {(i, j) for j in paper(pattern, 1, i, 6, 2)}
            a2 |= {(i, j) for j in paper(pattern, 2, i, 6, 2)}
        assert drawn["both"] == a1 & a2
        assert drawn["a1"] == a1 - a2 and drawn["a2"] == a2 - a1
