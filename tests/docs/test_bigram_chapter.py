"""docs/bigram.md quotes all of bigram.py, to the letter, and its numbers are true."""

import ast
import math
import re

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


def test_losses_in_numbers():
    prose = " ".join(CHAPTER.split())
    for p, loss in re.findall(r"p = (0\.\d+) gives (\d\.\d+)", prose):
        assert abs(-math.log(float(p)) - float(loss)) < 0.01
    for n, loss in re.findall(r"ln (\d+) = (\d\.\d\d)", prose):
        assert float(loss) == round(math.log(int(n)), 2)
    for loss, n in re.findall(r"e\^(\d\.\d\d) = (\d+)", prose):
        assert int(n) == round(math.exp(float(loss)))
