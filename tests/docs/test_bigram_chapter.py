"""docs/bigram.md quotes all of bigram.py, to the letter, and its numbers are true."""

import ast
import contextlib
import io
import math
import re

import torch
import torch.nn.functional as F
from makers import ROOT

CHAPTER = (ROOT / "docs/bigram.md").read_text(encoding="utf-8")
SCRIPT = (ROOT / "bigram.py").read_text(encoding="utf-8")
# A folded answer may have code of its own, which is not quoted from the script
SHOWN = re.sub(r"<details>.*?</details>", "", CHAPTER, flags=re.S)


def test_the_pieces_are_the_script_to_the_letter():
    """In order they are the script below its docstring, but for blank lines between."""
    docstring = ast.parse(SCRIPT).body[0]
    rest = "".join(SCRIPT.splitlines(True)[docstring.end_lineno :])
    pieces = re.findall(r"^```python\n(.*?)^```$", SHOWN, re.M | re.S)
    assert pieces
    for piece in pieces:
        rest = rest.lstrip("\n")
        assert rest.startswith(piece), f"not at its place in bigram.py:\n{piece}"
        rest = rest.removeprefix(piece)
    assert not rest.strip(), f"not in the chapter:\n{rest}"


def test_each_piece_is_explained():
    """Prose stands between any two pieces."""
    parts = re.split(r"^```python\n.*?^```$", SHOWN, flags=re.M | re.S)
    assert all(part.strip() for part in parts)


def test_every_exercise_has_an_answer():
    exercises = CHAPTER.partition("\n## Exercises\n")[2]
    count = len(re.findall(r"^\d\. ", exercises, flags=re.M))
    assert count == exercises.count("<details>") == exercises.count("</details>") > 0


def numbers_after(name):
    """The numbers in the line of the chapter that starts with a name."""
    line = re.search(rf"^{re.escape(name)} +(\d.*)$", CHAPTER, re.M)[1]
    return [float(word) for word in re.findall(r"\d+(?:\.\d+)?", line)]


def test_softmax_in_numbers():
    logits = numbers_after("logits")
    *powers, total = numbers_after("e^logit")
    *probabilities, one = numbers_after("probabilities")
    exact = [math.exp(logit) for logit in logits]
    assert powers == [round(power, 2) for power in exact]
    assert total == round(sum(exact), 2)
    assert probabilities == [round(power / sum(exact), 2) for power in exact]
    assert one == 1


def test_temperature_in_numbers():
    section = CHAPTER.split("## 9. Sampling\n")[1].split("\n## ")[0]
    logits = [float(z) for z in re.search(r"^logits +(.*)$", section, re.M)[1].split()]
    rows = re.findall(r"^temperature (\S+) +(.*)$", section, re.M)
    assert [float(temperature) for temperature, _ in rows] == [0.5, 1, 2]
    for temperature, probabilities in rows:
        exact = softmax(z / float(temperature) for z in logits)
        assert probabilities.split() == [f"{p:.2f}" for p in exact]


def test_a_row_has_learned_when_it_holds_the_frequencies():
    """The gradient of row t over a batch is 0 at the frequencies of what followed."""
    followers = torch.tensor([0, 0, 0, 1, 1, 2])
    frequencies = followers.bincount() / len(followers)
    row = frequencies.log().requires_grad_()
    F.cross_entropy(row.expand(6, 3), followers).backward()
    torch.testing.assert_close(row.grad, torch.zeros(3))


def test_losses_in_numbers():
    prose = " ".join(CHAPTER.split())
    for p, loss in re.findall(r"p = (0\.\d+) gives (\d\.\d+)", prose):
        assert abs(-math.log(float(p)) - float(loss)) < 0.01
    for n, loss in re.findall(r"ln (\d+) = (\d\.\d\d)", prose):
        assert float(loss) == round(math.log(int(n)), 2)
    for loss, n in re.findall(r"e\^(\d\.\d\d) = (\d+)", prose):
        assert int(n) == round(math.exp(float(loss)))


def test_honesty_in_numbers():
    """The mean loss of 34 cases of 100 and 66 others, which is smallest at 0.34."""
    prose = " ".join(CHAPTER.split())
    said = re.search(r"The mean cost is (.*?)\. It is smallest", prose)[1]
    pairs = re.findall(r"(\d\.\d+) for p = (0\.\d+)", said)
    assert len(pairs) == 4
    costs = {}
    for cost, p in pairs:
        p = torch.tensor([float(p), 1 - float(p)], dtype=torch.float64)
        exact = F.cross_entropy(p.log(), torch.tensor([0.34, 0.66]).double())
        assert cost == f"{exact.item():.2f}"
        costs[p[0].item()] = exact.item()
    assert min(costs, key=costs.get) == 0.34


def test_a_step_of_adamw_does_not_depend_on_the_size_of_the_gradient():
    """The learning rate times 1, while the gradients agree; little, when they don't."""

    def last_step(gradients):
        weight = torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.AdamW([weight], lr=0.05)
        for gradient in gradients:
            before = weight.item()
            weight.grad = torch.tensor([gradient])
            optimizer.step()
        return before - weight.item()

    section = CHAPTER.split("## 15. The optimizer\n")[1].split("\n## ")[0]
    examples = re.findall(r"((?:0\.\d+,\s+){2}0\.\d+)", section)
    assert len(examples) == 2
    for example in examples:
        gradients = [float(word) for word in example.split(",")]
        assert abs(last_step(gradients) - 0.05) < 0.001
    assert abs(last_step([0.1, -0.1] * 10)) < 0.1 * 0.05


def test_gradients_are_stored_next_to_the_parameters():
    """In p.grad, where step() reads them; backward adds to what is there."""
    model = torch.nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()
    assert model.weight.grad.tolist() == [[1, 1]]
    model(torch.ones(1, 2)).sum().backward()
    assert model.weight.grad.tolist() == [[2, 2]]
    model.zero_grad()
    assert not model.weight.grad


# ------------------------------------------------------------- Backpropagation by hand
BY_HAND = CHAPTER.split("## 14. Backpropagation by hand\n")[1].split("\n## ")[0]


def row(name):
    """The three numbers of a line of the tables, for h, o and a space."""
    line = re.search(rf"^{re.escape(name)} +(-?\d.*)$", BY_HAND, re.M)[1]
    return [float(word) for word in re.findall(r"-?\d+(?:\.\d+)?", line)[:3]]


def same(numbers, exact, digits=3):
    exact = [round(x, digits) + 0.0 for x in exact]
    assert numbers == exact


def test_backpropagation_by_hand():
    """Every line is recomputed: the gradient by PyTorch, the rest step by step."""
    z = torch.tensor(row("logits z"), dtype=torch.float64, requires_grad=True)
    p = F.softmax(z, dim=0)
    same(row("probabilities p"), p.tolist())
    (dp_dz,) = torch.autograd.grad(p[1], z, retain_graph=True)
    same(row("dp[o]/dz"), dp_dz.tolist())
    dL_dp = -1 / p[1].item()
    assert f"{dL_dp:.3f}" in re.search(r"^dL/dp.*$", BY_HAND, re.M)[0].split()[-1]
    same(row("dL/dz     = product"), (dL_dp * dp_dz).tolist())
    before = F.cross_entropy(z, torch.tensor(1))
    before.backward()
    same(row("p - y"), z.grad.tolist())
    y = torch.tensor(row("y"))
    torch.testing.assert_close(z.grad, p.detach() - y)
    new = z.detach() - z.grad
    same(row("new z = z - 1 * (p - y)"), new.tolist())
    same(row("new p"), F.softmax(new, dim=0).tolist())
    after = F.cross_entropy(new, torch.tensor(1)).item()
    said = re.search(r"= (\d\.\d\d)   before.* = (\d\.\d\d)   after", BY_HAND)
    assert said.groups() == (f"{before.item():.2f}", f"{after:.2f}")


def test_the_derivatives_of_softmax():
    """p (1 - p) for its own logit, - p p' for another."""
    z = torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64)
    p = F.softmax(z, dim=0)
    exact = torch.autograd.functional.jacobian(lambda z: F.softmax(z, dim=0), z)
    torch.testing.assert_close(exact, p.diag() - p[:, None] * p)


def test_a_derivative_by_trial():
    section = CHAPTER.split("## 13. What a derivative is for\n")[1]
    trials = re.findall(r"^logits  (.*?)      loss (.*)$", section, re.M)
    losses = []
    for logits, loss in trials:
        exact = -math.log(softmax(map(float, logits.split()))[1])
        assert loss == f"{exact:.4f}"
        losses.append(float(loss))
    slope = re.search(r"^slope .*= +(-\d\.\d+)$", section, re.M)[1]
    assert slope == f"{(losses[1] - losses[0]) / 0.01:.2f}"


def softmax(logits):
    powers = [math.exp(z) for z in logits]
    return [power / sum(powers) for power in powers]


def test_the_check_with_pytorch_prints_what_it_says():
    code = BY_HAND.split("```python\n")[1].split("```")[0]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, {})
    printed = re.findall(r"-?\d\.\d{4}", out.getvalue())
    assert re.findall(r"-?\d\.\d{4}", code) == printed


def test_a_q_is_always_followed_by_a_u():
    text = (ROOT / "data/shakespeare/input.txt").read_text(encoding="utf-8")
    assert set(re.findall("q(.)", text, re.S)) == {"u"}
