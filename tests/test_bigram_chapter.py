"""docs/bigram.md quotes all of bigram.py, in order and to the letter, and its numbers are true."""

import math
import re

from conftest import ROOT

CHAPTER = (ROOT / "docs/bigram.md").read_text(encoding="utf-8")
SCRIPT = (ROOT / "bigram.py").read_text(encoding="utf-8")


def test_the_pieces_are_the_script_to_the_letter():
    """One after the other they are the file below the docstring, but for empty lines between."""
    docstring = re.match(r'(#.*\n)*"""(.|\n)*?"""\n', SCRIPT)
    at, pieces = docstring.end(), 0
    # An answer folded away may have code of its own, which is no piece of the script
    shown = re.sub(r"<details>.*?</details>", "", CHAPTER, flags=re.S)
    for piece in re.findall(r"^```python\n(.*?)^```$", shown, re.M | re.S):
        at += len(SCRIPT[at:]) - len(SCRIPT[at:].lstrip("\n"))
        assert SCRIPT[at : at + len(piece)] == piece, f"not at its place in bigram.py:\n{piece}"
        at, pieces = at + len(piece), pieces + 1
    assert not SCRIPT[at:].strip(), f"not in the chapter:\n{SCRIPT[at:]}"
    assert pieces >= 8


def test_each_piece_is_explained():
    """Prose stands between any two pieces, and answers are folded away."""
    shown = re.sub(r"<details>.*?</details>", "", CHAPTER, flags=re.S)
    parts = re.split(r"^```python\n.*?^```$", shown, flags=re.M | re.S)
    assert all(len(part.split()) >= 20 for part in parts)
    exercises = CHAPTER.partition("\n## Exercises\n")[2]
    assert len(re.findall(r"^\d\. ", exercises, flags=re.M)) == 3
    assert exercises.count("<details>") == exercises.count("</details>") == 3


def numbers(line):
    return [float(word) for word in re.findall(r"\d+(?:\.\d+)?", line)]


def test_softmax_and_chance_level_in_numbers():
    scores, powers, shares = (
        numbers(re.search(rf"^{name} +(\d.*?)(?:sum (.*))?$", CHAPTER, re.M)[0].partition("sum")[0])
        for name in ("scores", r"e\^score", "shares")
    )
    total = sum(map(math.exp, scores))
    assert powers == [round(math.exp(score), 2) for score in scores]
    assert shares == [round(math.exp(score) / total, 2) for score in scores]
    assert f"sum {total:.2f}\n" in CHAPTER
    assert f"ln 65 = {math.log(65):.2f}" in CHAPTER and f"e^2.49 = {math.exp(2.49):.0f} " in CHAPTER
    for p, surprise in re.findall(r"p = (0\.\d+) gives (\d\.\d+)", " ".join(CHAPTER.split())):
        assert abs(-math.log(float(p)) - float(surprise)) < 0.01
