"""The worked examples of docs/gpt_char.md, computed again.

Every number is read from the chapter, so a typing error in an example fails a test.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import markov_text

ROOT = Path(__file__).parents[2]
CHAPTER = (ROOT / "docs/gpt_char.md").read_text(encoding="utf-8")
NUMBER = r"-?\d+\.?\d*"


def section(title):
    """The prose of a step, without its diff."""
    body = re.search(rf"^## \d+\. {title}.*?\n(.*?)^## ", CHAPTER, re.M | re.S)
    return without_diff(body[1])


def without_diff(text):
    return re.sub(r"^```diff\n.*?^```$", "", text, flags=re.M | re.S)


def example(title, start):
    """The numbers of all lines of a step's examples that begin with some text."""
    lines = re.findall(rf"^{re.escape(start)}(.*)$", section(title), re.M)
    assert lines, f"{title}: {start}"
    return [[float(n) for n in re.findall(NUMBER, line)] for line in lines]


def close(found, expected, digits):
    """Equal after rounding, as the chapter writes it."""
    return all(abs(a - b) <= 0.5001 * 10**-digits for a, b in zip(found, expected))


def test_a_hidden_unit_that_detects_and():
    for t, h in ((0, 0), (1, 0), (0, 1), (1, 1)):
        ((before, after),) = example("Time to think", f"{t}  {h}  ")
        assert before == 4 * t + 4 * h - 6
        assert close([after], [F.gelu(torch.tensor(before)).item()], 2)


def test_twelve_layers_that_halve_the_gradient():
    assert "1/4096" in section("Residual connections") and 2**12 == 4096
    assert "0.5 ** 12 = 0.0002" in section("Residual connections")
    assert round(0.5**12, 4) == 0.0002


@pytest.mark.parametrize("start", ["(2, ", "(20, "])
def test_layernorm(start):
    (numbers,) = example("LayerNorm", start)
    first = float(start[1:-2])
    x = torch.tensor([first, *numbers[:3]], dtype=torch.float64)
    mean, deviation, *result = numbers[3:]
    assert mean == x.mean()
    assert close([deviation], [x.std(correction=0).item()], 1)
    assert close(result, F.layer_norm(x, (4,), eps=0).tolist(), 2)


def test_gradient_descent_in_a_valley():
    a_line, b_line = section("Plain gradient descent").split("learning rate 0.0")[1:3]
    for rate, line in ((0.01, a_line), (0.03, b_line)):
        points = re.findall(rf"\(({NUMBER}), ({NUMBER})\)", line.split("\n")[0])
        assert len(points) == 4
        p = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
        for said in points:
            assert close([float(n) for n in said], p.tolist(), 2)
            loss = (p[0] ** 2 + 100 * p[1] ** 2) / 2
            (gradient,) = torch.autograd.grad(loss, p)
            p = (p - rate * gradient).detach().requires_grad_()


def test_clipping():
    for start in ("(3, 4)", "(0.3, 0.4)"):
        (numbers,) = example("Gradient clipping", start)
        p = torch.nn.Parameter(torch.zeros(2))
        p.grad = torch.tensor([float(n) for n in re.findall(NUMBER, start)])
        norm = torch.nn.utils.clip_grad_norm_([p], 1.0)
        assert close(numbers[:1], [norm.item()], 1)
        assert close(numbers[-2:], p.grad.tolist(), 2)


def test_running_means():
    for signs in ([1, 1, 1, 1], [1, -1, 1, -1]):
        start = "gradients  " + "  ".join(f"{s:2d}" for s in signs).strip()
        (numbers,) = example("Momentum", start)
        mean, expected = 0.0, []
        for g in signs:
            mean = 0.9 * mean + 0.1 * g
            expected.append(mean)
        assert close(numbers[2:6], expected, 2)


def test_adam_by_hand():
    """Against PyTorch's Adam, with a learning rate of 1."""
    moves = re.findall(r"= ([\d.]+) lr$", section("Adam"), re.M)
    means = re.findall(r"mean .*/ [\d.]+ += ([\d.]+)$", section("Adam"), re.M)
    roots = re.findall(r"root ([\d.]+)$", section("Adam"), re.M)
    assert len(moves) == len(means) == len(roots) == 2
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    adam = torch.optim.Adam([p], lr=1.0, betas=(0.9, 0.99), eps=0)
    for step, gradient in enumerate((0.2, 0.1), start=1):
        before = p.item()
        p.grad = torch.tensor([gradient], dtype=torch.float64)
        adam.step()
        state = adam.state[p]
        assert close([float(moves[step - 1])], [before - p.item()], 2)
        mean = state["exp_avg"].item() / (1 - 0.9**step)
        root = (state["exp_avg_sq"].item() / (1 - 0.99**step)) ** 0.5
        assert close([float(means[step - 1])], [mean], 3)
        assert close([float(roots[step - 1])], [root], 3)


def test_half_of_a_weight_is_left():
    (steps,) = re.findall(r"half is left after ([\d,]+) steps", CHAPTER)
    steps = int(steps.replace(",", ""))
    assert (1 - 0.005 * 0.1) ** steps < 0.5 <= (1 - 0.005 * 0.1) ** (steps - 1)


def matrices_of(title):
    """The 2 x 2 matrices that the examples of a step show after 'G ='."""
    found = re.findall(r"G = (\d)  (\d).*\n +(\d)  (\d)", section(title))
    return [torch.tensor([int(n) for n in m], dtype=torch.float64) for m in found]


def test_muon_on_a_matrix_of_2_x_2():
    for numbers in matrices_of("Muon: equal"):
        G = numbers.view(2, 2)
        U, S, Vh = torch.linalg.svd(G)
        assert torch.allclose(S, torch.tensor([5.0, 1.0], dtype=S.dtype))
        assert torch.allclose(U @ Vh, torch.eye(2, dtype=S.dtype))  # as the text shows
        assert (G @ torch.tensor([1.0, 1.0], dtype=S.dtype)).tolist() == [5, 5]
        assert (G @ torch.tensor([1.0, -1.0], dtype=S.dtype)).tolist() == [1, -1]
    assert len(matrices_of("Muon: equal")) == 2
    swapped = torch.tensor([[2.0, 3.0], [3.0, 2.0]])  # the question
    U, _, Vh = torch.linalg.svd(swapped)
    assert torch.allclose(U @ Vh, torch.tensor([[0.0, 1.0], [1.0, 0.0]]), atol=1e-6)


def test_newton_schulz():
    """The table of rounds, by matrix products and not by the polynomial of s."""
    x = torch.tensor([[3.0, 2.0], [2.0, 3.0]], dtype=torch.float64)
    x = x / x.norm()
    table = [*example("Muon without", "large "), *example("Muon without", "small ")]
    assert [len(row) for row in table] == [6, 6]
    for large, small in zip(*table):
        # of a symmetric matrix, the directions (1, 1) and (1, -1) stay
        factors = [(x[0, 0] + x[0, 1]).item(), (x[0, 0] - x[0, 1]).item()]
        assert close([large, small], factors, 2)
        cube = x @ x.mT @ x
        x = 3.4445 * x - 4.7750 * cube + 2.0315 * cube @ x.mT @ x


def test_neighbors_of_1_in_bfloat16():
    one = torch.tensor(1.0, dtype=torch.bfloat16)
    infinity = torch.tensor(torch.inf, dtype=torch.bfloat16)
    numbers = [torch.nextafter(one, s * infinity).item() for s in (1, -1)]
    (said,) = re.findall(rf"next to 1 come ({NUMBER}) and ({NUMBER})", CHAPTER)
    assert [float(n) for n in said] == numbers
    assert torch.tensor(1.001).to(torch.bfloat16) == 1


# -------------------------------------------------------------------- Parts and samples
def steps_of_the_chapter():
    """{number: text} of every step, with its diff."""
    steps = re.findall(r"^## (\d+)\. (.*?)(?=^## )", CHAPTER, re.M | re.S)
    return {int(number): text for number, text in steps}


def reported(name):
    return (ROOT / f"docs/bench/{name}.md").read_text(encoding="utf-8")


def test_every_step_has_its_parts():
    """What to look for, the diff, a prediction, a command, and what was measured, in
    this order; and a question with its answer.
    """
    steps = steps_of_the_chapter()
    assert list(steps) == list(range(1, 31))
    for number, step in steps.items():
        parts = [
            "**In the diff**",
            "\n```diff\n",
            "**Predict**",
            "**Run**",
            "*Measured:*",
        ]
        places = [step.index(part) for part in parts]
        assert places == sorted(places), number
        # The diff stands directly below: at most a list and a note come between
        _, *between = step[places[0] : places[1]].strip().split("\n\n")
        assert all(part.startswith(("- ", "(")) for part in between), number
        assert "<details><summary>" in step, number
    titles = re.findall(r"^## (.*)$", CHAPTER, re.M)
    assert not [title for title in titles if " and " in title]


def test_a_command_whose_sample_is_shown_has_its_prompt():
    for number, step in steps_of_the_chapter().items():
        command, measured = step.split("**Run**")[1].split("*Measured:*")
        if re.search(r"^```text\nROMEO:", measured, re.M):
            first = command.split("`")[1]
            assert first.split()[-1] == "--prompt=ROMEO:", number


def test_no_prediction_is_given_away():
    """The picture of all losses comes after the last step."""
    assert CHAPTER.index("pictures/worth.svg") > CHAPTER.index("\n## 30. ")


def test_samples_are_those_of_the_reports():
    """Each step shows its sample, or says that it writes the same as the one before."""
    pattern = r"^### (\d\d)_\w+\n\n```text\n(.*?)\n```$"
    found = re.findall(pattern, reported("steps_gpt_char"), re.M | re.S)
    samples = {}
    for number, sample in found:
        samples[int(number)] = re.sub(r" +$", "", sample, flags=re.M)
    long_sample = reported("effects").split("after 1,000 steps\n\n```text\n")[1]
    for number, step in steps_of_the_chapter().items():
        prose = without_diff(step)
        shown = re.findall(r"^```text\n(ROMEO:.*?)\n```$", prose, re.M | re.S)
        if number == 6:  # the file of step 5 with another name, trained for longer
            assert len(shown) == 1 and long_sample.startswith(shown[0])
            shown = []
        if not shown:
            assert samples[number] == samples[number - 1], number
        else:
            assert [re.sub(r" +$", "", s, flags=re.M) for s in shown] == [
                samples[number]
            ], number


def test_the_last_sample_is_that_of_the_report():
    report = (ROOT / "docs/bench/curves.json").read_text(encoding="utf-8")
    samples = json.loads(report)["tables"]["gpt_char"]["samples"]
    *_, (_, last) = samples.items()
    (shown,) = re.findall(
        r"^## What it writes.*?^```text\n(.*?)```", CHAPTER, re.M | re.S
    )
    assert last.startswith(shown)


def test_the_picture_has_the_steps_that_change_the_loss():
    """By more than chance, each with its own loss and title, in the order of steps."""
    picture = (ROOT / "docs/pictures/worth.svg").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d\d)_\w+ \| ([\d.]+) ", reported("steps_gpt_char"), re.M)
    assert len(rows) == 31
    titles = dict(re.findall(r"^## (\d+)\. ([^:\n]+)", CHAPTER, re.M))
    expected = []
    before = 0.0
    for number, loss in rows:
        if abs(float(loss) - before) > 0.02:
            title = "v2_attention.py"
            if number != "00":
                title = f"{int(number)}. {titles[str(int(number))]}"
            expected += [f"{float(loss):.3f}", title]
        before = float(loss)
    assert len(expected) > 20
    words = re.findall(r">(\d\.\d{3}|\d+\. [^<]+|v2_attention\.py)</", picture)
    assert words == expected


# ------------------------------------------------------- Pictures and steps in between
@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """The folder with the files of the chapter, beside a short text."""
    folder = tmp_path_factory.mktemp("chapter")
    tool = ROOT / "docs/tools/steps.py"
    subprocess.run([sys.executable, tool, "unfold", folder], check=True)
    (folder / "input.txt").write_text(markov_text(4_000, seed=1), encoding="utf-8")
    return folder


def test_the_picture_shows_lines_of_the_script(steps):
    picture = (ROOT / "docs/pictures/architecture.svg").read_text(encoding="utf-8")
    code = re.findall(r'font-family="monospace" font-size="13">(.+?)<', picture)
    (path,) = (steps / "gpt_char").glob("06_*.py")
    lines = [line.split("  #")[0].strip() for line in path.read_text().splitlines()]
    assert len(code) == 4
    blocks = [line for line in code if line.startswith("self.")]  # behind a plus
    assert picture.count(">x = x + ...<") == len(blocks) == 2
    shown = {f"x = x + {line}" if line in blocks else line for line in code}
    assert not shown - set(lines)


def final_loss(steps, number, *flags):
    (path,) = (steps / "gpt_char").glob(f"{number}_*.py")
    size = "--n_layer=2 --n_head=2 --n_embd=16 --block_size=16 --batch_size=4"
    command = [sys.executable, path, *size.split(), f"--data_dir={steps}"]
    command += ["--max_iters=12", "--max_new_tokens=1", "--device=cpu", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


@pytest.mark.long
def test_adamw_written_out_is_that_of_pytorch(steps):
    flags = ["--weight_decay=20"]  # enough to be seen in a few steps
    by_hand = final_loss(steps, "12", *flags)
    assert by_hand == pytest.approx(final_loss(steps, "13", *flags), abs=2e-4)
    assert abs(by_hand - final_loss(steps, "12", "--weight_decay=0")) > 1e-3


@pytest.mark.long
def test_muon_with_and_without_singular_values_agree_roughly(steps):
    with_svd = final_loss(steps, "15")
    without = final_loss(steps, "16")
    assert with_svd == pytest.approx(without, abs=0.1)


@pytest.mark.long
def test_the_switch_to_adamw_is_the_step_before_muon(steps):
    flags = ["--optimizer=adamw", "--learning_rate=5e-3"]
    assert final_loss(steps, "17", *flags) == final_loss(steps, "14")
