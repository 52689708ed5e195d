"""v2_attention.py: attention is what its docstring says, and gpt_char's is the same
function.
"""

import math
import random

import pytest
import torch
from makers import shake

SIZE = ["--n_embd=48", "--n_head=4", "--block_size=20"]
MODELS = [
    ("v2_attention.py", []),
    ("gpt_char.py", ["--dropout=0.0", "--no-bfloat16"]),
    ("gpt_char.py", ["--dropout=0.0", "--bfloat16"]),
]


def set_weights(module, **weights):
    with torch.no_grad():
        for name, value in weights.items():
            getattr(module, name).weight.copy_(torch.as_tensor(value))
            getattr(module, name).bias.zero_()


@pytest.mark.parametrize("T", [1, 7, 20])
@pytest.mark.parametrize("n_head", [1, 4])
def test_v2_and_gpt_char_compute_the_same(load, T, n_head):
    args = [*SIZE, f"--n_head={n_head}"]
    old = load("v2_attention.py", *args)["MultiHeadAttention"]()
    new = load("gpt_char.py", *args, "--dropout=0.0", "--no-bfloat16")[
        "CausalSelfAttention"
    ]()
    with torch.no_grad():
        for kind in ("weight", "bias"):
            parts = [
                getattr(getattr(head, part), kind)
                for part in ("query", "key", "value")
                for head in old.heads
            ]
            getattr(new.c_attn, kind).copy_(torch.cat(parts))
            getattr(new.c_proj, kind).copy_(getattr(old.c_proj, kind))
        x = 2 * torch.randn(3, T, 48, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(new(x), old(x), rtol=0, atol=1e-6)


def test_head_against_the_formula(load):
    """One position at a time, in float64: softmax(q k / sqrt(hs)) over the past, times
    v.
    """
    names = load("v2_attention.py", *SIZE)
    head, hs = names["Head"](12).double().requires_grad_(False), 12
    x = 3 * torch.randn(2, 20, 48, generator=torch.Generator().manual_seed(2)).double()
    out = head(x)
    q, k, v = (
        x @ linear.weight.T + linear.bias
        for linear in (head.query, head.key, head.value)
    )
    for b in range(2):
        for t in range(20):
            scores = [q[b, t] @ k[b, s] / math.sqrt(hs) for s in range(t + 1)]
            top = max(scores)
            weights = [math.exp(score - top) for score in scores]
            mean = sum(w * v[b, s] for s, w in enumerate(weights)) / sum(weights)
            torch.testing.assert_close(out[b, t], mean, rtol=0, atol=1e-12)


def test_equal_weights_are_a_running_average(load):
    """Where no key is preferred, position t holds the mean of 0 to t."""
    names = load("v2_attention.py", *SIZE)
    head = names["Head"](48)
    set_weights(
        head, query=torch.zeros(48, 48), key=torch.zeros(48, 48), value=torch.eye(48)
    )
    x = torch.randn(2, 20, 48)
    average = x.cumsum(dim=1) / torch.arange(1, 21)[:, None]
    torch.testing.assert_close(head(x), average, rtol=0, atol=1e-6)
    triangle = torch.ones(20, 20).tril()
    triangle /= triangle.sum(dim=1, keepdim=True)
    torch.testing.assert_close(triangle @ x, average, rtol=0, atol=1e-6)


@pytest.mark.parametrize("hs", [4, 64])
def test_scale_keeps_the_variance(load, monkeypatch, hs):
    """The comment's claim: with queries and keys of variance 1 the scores have variance
    1.
    """
    names = load("v2_attention.py", "--n_embd=64", "--n_head=1", "--block_size=64")
    head = names["Head"](hs)
    select = torch.eye(64)[:hs]
    set_weights(head, query=select, key=select.flip(0), value=select)
    seen = []
    softmax = torch.nn.functional.softmax

    def spy(scores, dim):
        seen.append(scores)
        return softmax(scores, dim=dim)

    monkeypatch.setattr(torch.nn.functional, "softmax", spy)
    head(torch.randn(64, 64, 64, generator=torch.Generator().manual_seed(3)))
    (scores,) = seen
    off_diagonal = scores[:, torch.ones(64, 64).tril(-1).bool()]
    assert off_diagonal.var().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("script, args", MODELS)
def test_no_position_sees_the_future(load, script, args):
    names = load(script, *SIZE, *args)
    model, V = names["model"], names["vocab_size"]
    generator = torch.Generator().manual_seed(4)
    shake(model)
    with torch.no_grad():
        idx = torch.randint(V, (2, 20), generator=generator)
        before = model.logits(idx)
        for t in range(20):
            other = idx.clone()
            other[:, t] = (other[:, t] + 1) % V
            after = model.logits(other)
            assert torch.equal(after[:, :t], before[:, :t])
            # ... and every later one sees the change
            changed = (after[:, t:] != before[:, t:]).any(dim=-1)
            assert changed.all() if not names.get("bfloat16") else changed[:, 0].all()


@pytest.mark.parametrize("script, args", MODELS)
def test_order_matters(load, script, args):
    """An average knows no order; the embedded positions do. (In one layer: a second one
    sees which sets the positions before have averaged over.)
    """
    names = load(
        script, *SIZE, *args, *(["--n_layer=1"] if script == "gpt_char.py" else [])
    )
    shake(names["model"])
    with torch.no_grad():
        a = names["model"].logits(torch.tensor([[1, 2, 3]]))[0, -1]
        b = names["model"].logits(torch.tensor([[2, 1, 3]]))[0, -1]
        assert not torch.equal(a, b)
        names["model"].wpe.weight.zero_()
        a = names["model"].logits(torch.tensor([[1, 2, 3]]))[0, -1]
        b = names["model"].logits(torch.tensor([[2, 1, 3]]))[0, -1]
        torch.testing.assert_close(
            a, b, rtol=0, atol=1e-2 if names.get("bfloat16") else 1e-5
        )


@pytest.mark.parametrize("script, args", MODELS)
def test_context_is_cropped(load, script, args):
    names = load(script, *SIZE, *args)
    generator = torch.Generator().manual_seed(5)
    shake(names["model"])
    idx = torch.randint(names["vocab_size"], (1, 30), generator=generator)
    long = names["generate"](idx, 25, temperature=0)
    assert long.shape == (1, 55) and torch.equal(long[:, :30], idx)
    with torch.no_grad():  # each character follows from exactly the 20 before it
        for t in range(30, 55):
            logits = names["model"].eval().logits(long[:, t - 20 : t])
            assert logits[0, -1].argmax() == long[0, t]
    torch.manual_seed(0)
    a = names["generate"](idx, 1, temperature=1.0)
    torch.manual_seed(0)
    b = names["generate"](idx[:, -20:], 1, temperature=1.0)
    assert torch.equal(a[:, -1], b[:, -1])


def test_parameter_count(load):
    V, C, T = load("v2_attention.py", *SIZE)["vocab_size"], 48, 20
    names = load("v2_attention.py", *SIZE)
    embeddings, attention, head = V * C + T * C, 4 * (C * C + C), C * V
    count = sum(p.numel() for p in names["model"].parameters())
    assert count == embeddings + attention + head


@pytest.mark.long
def test_attention_beats_the_bigram_where_the_past_counts(run, folder):
    """Every second character repeats the one two before it: the current one alone tells
    nothing.
    """
    rng = random.Random(0)
    firsts = rng.choices("abcd", k=5000)
    text = "".join(a + rng.choice("xyz") + a + rng.choice("uvw") for a in firsts)
    (folder / "data/copy").mkdir()
    (folder / "data/copy/input.txt").write_text(text)
    args = [
        "--data_dir=data/copy",
        "--max_iters=150",
        "--max_new_tokens=1",
        "--block_size=16",
    ]
    losses = {}
    for script in ("bigram.py", "v2_attention.py"):
        losses[script] = float(run(script, *args).out.split()[-1])
    # per four characters: one free of 4, one free of 3, one copied, one free of 3
    bigram, whole_past = math.log(6 * 4 * 6 * 4) / 4, math.log(4 * 3 * 1 * 3) / 4
    print(losses, bigram, whole_past)
    assert losses["bigram.py"] == pytest.approx(bigram, abs=0.02)
    assert losses["v2_attention.py"] < (bigram + whole_past) / 2
