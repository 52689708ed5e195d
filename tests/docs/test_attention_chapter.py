"""docs/v2_attention.md: every worked number is recomputed.

The queries, keys and values of the real line are those that docs/bench/attention.py
took from a trained model; here they go through softmax(Q K^T / sqrt(d)) V once more.
"""

import json
import math
import re
import runpy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from makers import ROOT, capture

CHAPTER = (ROOT / "docs/v2_attention.md").read_text(encoding="utf-8")
REPORT = json.loads((ROOT / "docs/bench/attention.json").read_text(encoding="utf-8"))
HEAD = 2  # the third, which the chapter follows


def section(title):
    """The text from a heading to the next."""
    return re.search(rf"^## {title}\n(.*?)(?=^## )", CHAPTER, re.M | re.S)[1]


def numbers_of(line):
    return [float(word) for word in re.findall(r"-?\d+(?:\.\d+)?", line)]


def row(text, name):
    """The numbers of a line that starts with a name."""
    return numbers_of(re.search(rf"^{re.escape(name)} +(\S.*)$", text, re.M)[1])


def line_of(head):
    parts = REPORT["line"]["heads"][head]
    return [np.array(parts[name]) for name in "qkv"]


def names_of(step, *flags):
    """The names of the file after a step, which has run without training."""
    files = runpy.run_path(str(ROOT / "docs/tools/steps.py"))["steps"]
    texts = files((ROOT / "bigram.py").read_text(encoding="utf-8"))
    (source,) = [
        text for name, text in texts.items() if name.startswith(f"v2_attention/{step}_")
    ]
    names = {"__name__": "step", "__file__": str(ROOT / "step.py")}
    args = ["step.py", "--device=cpu", "--max_iters=0", "--max_new_tokens=1", *flags]
    done = capture(args, lambda: exec(source, names))
    assert done.code == 0, done.err
    return names


def softmax(scores):
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


# ----------------------------------------------------------------------- Small examples
def test_products_are_right():
    """Every "2*2 + 1*1  =  5" of the chapter."""
    found = re.findall(r"((?:-?\d\*-?\d \+ )+-?\d\*-?\d) += +(-?\d+)", CHAPTER)
    assert len(found) >= 10
    for sum_of_products, result in found:
        assert eval(sum_of_products) == int(result)


def test_the_average_of_three():
    text = section("2. An average")
    rows = re.findall(r"\( (\d), (\d) \) +(?:= +)?\( (\d), (\d) \)", text)
    rows = np.array(rows, dtype=float)
    assert rows.shape == (3, 4)
    assert np.allclose(np.full((3, 3), 1 / 3) @ rows[:, :2], rows[:, 2:])


def test_the_average_is_the_same_everywhere():
    """Step 2: the same prediction at all positions; step 3: not."""
    for step, equal in (("02", True), ("03", False)):
        names = names_of(step)
        logits = names["model"].logits(names["val_data"][None, :64])[0]
        assert torch.allclose(logits, logits[:1], atol=1e-5) == equal


def test_the_mask_in_numbers():
    text = section("3. The mask")
    scores = torch.zeros(3, 3).masked_fill(~torch.ones(3, 3).tril().bool(), -torch.inf)
    weights = F.softmax(scores, dim=-1)
    said = re.search(r"weights\n(.*?)```", text, re.S)[1].splitlines()
    for line, exact in zip(said, weights.tolist(), strict=True):
        words = re.split(r" {3,}", line.strip())[-3:]
        cells = " ".join(words).split()[-3:]
        assert [eval(cell) for cell in cells] == pytest.approx(exact)
    vectors = torch.tensor([[3.0, 0], [3, 0], [0, 3]])
    results = weights @ vectors
    said = re.search(r"the results are (.*?)\.", " ".join(text.split()))[1]
    assert numbers_of(said) == pytest.approx(results.flatten().tolist())
    head = names_of("03", "--n_embd=2", "--block_size=3")["Head"]()
    torch.testing.assert_close(head(vectors[None])[0], results)


def test_query_key_value_in_numbers():
    text = section("5. Query, key, value")
    rows = re.findall(r"^\d  \w .*$", text, re.M)
    rows = [numbers_of(line)[1:] for line in rows]  # without the position
    query = np.array(rows[-1][:2])
    rows[-1] = rows[-1][2:]
    keys, values = np.array(rows)[:, :2], np.array(rows)[:, 2:4]
    scores = keys @ query
    weights = softmax(scores)
    assert [r[4] for r in rows] == scores.tolist()
    assert [r[5] for r in rows] == np.exp(scores).round(1).tolist()
    assert [r[6] for r in rows] == weights.round(2).tolist()
    said = re.search(r"^output of d:.*=  \((.*)\)$", text, re.M)[1]
    output = weights @ values
    assert numbers_of(said) == output.round(2).tolist()
    # The same by the Head of the step: position t has a 1 in channel t
    head = names_of("05", "--n_embd=4", "--block_size=4")["Head"](2)
    queries = np.array([[0, 0], [0, 0], [0, 0], query])
    with torch.no_grad():
        for name, rows in (("query", queries), ("key", keys), ("value", values)):
            getattr(head, name).weight.copy_(torch.tensor(rows.T))
            getattr(head, name).bias.zero_()
        last = head(torch.eye(4)[None])[0, 3]
    assert last.tolist() == pytest.approx(output.tolist())


def test_positions_in_numbers():
    """Queries and keys of the example, by linear layers, find the position before."""
    text = section("8. Positions")
    names = ("wte  what", "wpe  where", "x", "key", "query")
    what, where, x, key, query = (np.array(row(text, name)) for name in names)
    assert (what + where).tolist() == x.tolist()
    x, key, query = x.reshape(3, 4), key.reshape(3, 2), query.reshape(3, 2)
    as_it_is = np.array([[0, 0], [0, 0], [1, 0], [0, 1]])
    turned_back = np.array([[0, 0], [0, 0], [0, -1], [1, 0]])
    assert np.array_equal(x @ as_it_is, key)
    assert np.array_equal(x @ turned_back, query)
    scores = query @ key.T
    said = re.findall(r"^position (\d) looks at (\d): .* = +(\d+)$", text, re.M)
    assert len(said) == 5
    for i, j, score in said:
        assert scores[int(i), int(j)] == int(score)
    assert scores[1].argmax() == 0 and scores[2].argmax() == 1
    divided, weights = re.search(
        r"25 / √2 = (\S+) .*? the weights (.*?):", text
    ).groups()
    assert float(divided) == round(25 / math.sqrt(2), 1)
    exact = softmax(scores[2] / math.sqrt(2))
    assert numbers_of(weights) == exact.round(2).tolist()


# ------------------------------------------------------------------------ The real line
def test_one_row_by_hand():
    text = section("The formula on a real line")
    q, k, v = line_of(HEAD)
    line = REPORT["line"]["text"]
    at = line.index("h")
    letters = re.search(r"^head 3, h +(.*)$", text, re.M)[1].split()
    assert "".join(letters).replace("␣", " ") == line[: at + 1]
    products = k[: at + 1] @ q[at]
    scores = products / math.sqrt(q.shape[1])
    powers = np.exp(scores - scores.max())
    weights = powers / powers.sum()

    def close(name, exact, last=None):
        found = row(text, name)
        exact = [*exact] if last is None else [*exact, last]
        assert found == pytest.approx(exact, abs=0.0051), name

    close("q.k", products)
    close("/ sqrt(32)", scores)
    close("- largest", scores - scores.max())
    close("e^", powers, powers.sum())
    close("weight", weights, 1)
    close("v[0]", v[: at + 1, 0])
    said = re.search(r"^output\[0\].*=  (\S+)$", text, re.M)[1]
    assert float(said) == pytest.approx(weights @ v[: at + 1, 0], abs=0.005)
    sharp = softmax(products)
    said = re.search(r"give the `a` a\s+weight of (\d\.\d\d)", text)[1]
    assert float(said) == round(sharp[line.index("a")], 2)
    said = re.search(r"and the `t`\s+only (\d\.\d\d)", text)[1]
    assert float(said) == round(sharp[line.index("t")], 2)
    lowest, highest = re.search(r"scores run from (-\d+) to (-\d+)", text).groups()
    assert int(lowest) == round(scores.min()) and int(highest) == round(scores.max())


def test_what_the_heads_look_at():
    """At the h of "my father": itself, a, (a, t and the space), t."""
    line = REPORT["line"]["text"]
    at = line.index("h")
    weights = []
    for head in range(4):
        q, k, _ = line_of(head)
        weights.append(softmax(k[: at + 1] @ q[at] / math.sqrt(q.shape[1])))
    for head, letter in ((0, "h"), (1, "a"), (3, "t")):
        assert line[weights[head].argmax()] == letter
        assert weights[head].max() > 0.95
    three = {line[i] for i in weights[HEAD].argsort()[-3:]}
    assert three == {"a", "t", " "}


def test_heads_that_look_one_letter_back():
    """Heads 2 and 4 do, in most rows; head 2 not at the h."""
    line = REPORT["line"]["text"]
    for head in (1, 3):
        q, k, _ = line_of(head)
        back = []
        for i in range(1, len(line)):
            back.append(int(i - (k[: i + 1] @ q[i]).argmax()))
        assert back.count(1) > len(back) / 2
        if head == 1:
            assert back[line.index("h") - 1] == 2


# ------------------------------------------------------------------------- What it says
@pytest.mark.long
def test_order_makes_no_difference_before_positions():
    """After "the" and "hte": the same prediction in step 7, another one in step 8."""
    for step, equal in (("07", True), ("08", False)):
        names = names_of(step)
        idx = torch.tensor([names["encode"](word) for word in ("the", "hte")])
        the, hte = names["model"].logits(idx)[:, -1]
        assert torch.allclose(the, hte, atol=1e-5) == equal


def test_a_small_step_of_all_weights_moves_a_logit_far():
    """By the step times the sum of the sizes: about 100 for a random vector."""
    torch.manual_seed(1)
    sizes = torch.randn(1000, 128).abs().sum(dim=1)
    assert sizes.mean().item() == pytest.approx(100, rel=0.05)


def test_each_head_adds_a_term_of_its_own():
    """Attention of all heads is the sum of what each does alone, and the bias."""
    names = names_of("09")
    attention = names["model"].attn
    x = torch.randn(1, 8, 128)
    with torch.no_grad():
        found = attention.c_proj.bias.clone().expand(1, 8, 128)
        for n, head in enumerate(attention.heads):
            columns = attention.c_proj.weight[:, 32 * n : 32 * (n + 1)]
            found = found + head(x) @ columns.T
        torch.testing.assert_close(found, attention(x))


def test_random_dot_products_have_variance_hs():
    torch.manual_seed(1)
    q, k = torch.randn(2, 20_000, 128)
    assert (q * k).sum(dim=1).var().item() == pytest.approx(128, rel=0.05)


@pytest.mark.long
def test_dividing_the_scores_is_dividing_the_weights():
    """Step 5 with smaller weights in query and key starts as step 6 does."""
    five, six = names_of("05"), names_of("06")
    idx = five["val_data"][None, :64]
    attention = five["model"].attn
    with torch.no_grad():
        assert not torch.allclose(five["model"].logits(idx), six["model"].logits(idx))
        for layer in (attention.query, attention.key):
            layer.weight /= 128**0.25
            layer.bias /= 128**0.25
        torch.testing.assert_close(five["model"].logits(idx), six["model"].logits(idx))


def test_similarity_has_no_gradient():
    """Step 4: a weight on another character is 0 for training, and so is its slope."""
    names = names_of("04")
    model, idx = names["model"], names["val_data"][None, :64]
    x = model.wte(idx)
    scores = (x @ x.transpose(1, 2)).detach().requires_grad_()
    future = torch.ones(64, 64).triu(1).bool()
    weights = F.softmax(scores.masked_fill(future, -torch.inf), dim=-1)
    others = idx[:, :, None] != idx[:, None, :]
    assert (weights * others).max().item() < 1e-12
    logits = model.lm_head(weights @ x)
    F.cross_entropy(logits[0], names["val_data"][1:65]).backward()
    assert (scores.grad * others).abs().max().item() < 1e-12


def test_similar_means_itself():
    """Step 4: the dot product of a random vector with itself and with another."""
    torch.manual_seed(1)
    x = torch.randn(65, 128)
    products = x @ x.T
    assert products.diagonal().mean().item() == pytest.approx(128, rel=0.05)
    others = products[~torch.eye(65).bool()]
    assert others.std().item() == pytest.approx(11, rel=0.1)


def test_every_step_has_its_parts():
    """What to look for, the diff, a prediction, a command, and what was measured, in
    this order; and a question with its answer.
    """
    steps = re.findall(r"^## \d\. .*?(?=^## )", CHAPTER, re.M | re.S)
    assert len(steps) == CHAPTER.count("\n```diff\n")
    for step in steps:
        parts = [
            "**In the diff**",
            "```diff\n",
            "**Predict**",
            "**Run**",
            "*Measured:*",
        ]
        places = [step.index(part) for part in parts]
        assert places == sorted(places), step[:60]
        command = step[places[3] : places[4]]
        assert re.search("--prompt=ROMEO:(`|\n)", command), step[:60]
        assert "<details><summary>" in step
    titles = re.findall(r"^## (.*)$", CHAPTER, re.M)
    assert not [title for title in titles if " and " in title]


def test_samples_are_those_of_the_report():
    report = (ROOT / "docs/bench/steps_v2_attention.md").read_text(encoding="utf-8")
    found = re.findall(r"^### (\d\d)_\w+\n\n```text\n(.*?)\n```$", report, re.M | re.S)
    samples = dict(found)
    for number, step in enumerate(re.split(r"^## (?=\d)", CHAPTER, flags=re.M)):
        shown = [
            b for b in re.findall(r"```text\n(.*?)\n```", step, re.S) if "ROMEO:" in b
        ]
        whole = "\n".join(
            line.rstrip() for line in samples[f"{number:02d}"].split("\n")
        )
        assert shown == [whole], number
