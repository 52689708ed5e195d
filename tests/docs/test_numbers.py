"""One truth for numbers: what the texts say of loss, time, memory and speed is in a
report.

A number that was measured stands in a report of docs/bench. In README and docs each is
bound to its cell by a comment (docs/tools/cells.py), in the docstring of a script by
the table below.
"""

import ast
import random
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs/tools"))
import cells  # noqa: E402

# Documents whose numbers are not bound to cells yet
PENDING = set()
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]
)
# The measured numbers in the docstring of each script
DOCSTRINGS = {
    "bigram": {
        "2.49": "ladder: bigram | final val loss",
        "5 s": "ladder: bigram | wall s",
    },
    "v2_attention": {
        "2.15": "ladder: v2_attention | final val loss",
        "2.49": "ladder: bigram | final val loss",
        "29 s": "ladder: v2_attention | wall s",
    },
    "gpt_char": {
        "1.45": "ladder: gpt_char | final val loss",
        "2.15": "ladder: v2_attention | final val loss",
    },
    "gpt2_train": {"1.45": "ladder: gpt2_train | final val loss"},
    "sparse_gpt": {"1.43": "ladder: sparse_gpt | final val loss"},
}


# -------------------------------------------------------------- Numbers and their cells
@pytest.mark.parametrize("script", DOCSTRINGS)
def test_numbers_of_a_docstring_are_those_of_their_cells(script):
    """As in a document, with the table above as its comment."""
    code = (ROOT / f"{script}.py").read_text(encoding="utf-8")
    text = ast.get_docstring(ast.parse(code))
    text = re.sub(r"^    .*$", "", text, flags=re.M)  # commands
    listed = "".join(f"{n} = {cell}\n" for n, cell in DOCSTRINGS[script].items())
    assert cells.mistakes(f"{text}\n<!-- numbers\n{listed}-->\n") == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_numbers_are_those_of_their_cells(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    if not cells.has_numbers(text):
        assert name in PENDING, f"{name}: no <!-- numbers in any section"
        pytest.skip("pending")
    assert cells.mistakes(text) == []


def wrong(number, listed, rng):
    """The same number with another last digit, which no entry of the section has."""
    others = {number[:-1] + digit for digit in "0123456789"}
    return rng.choice(sorted(others - listed))


@pytest.mark.parametrize("seed", range(10))
def test_a_wrong_number_in_a_document_is_caught(seed):
    """A measured number of a random section, put wrong where readers see it."""
    rng = random.Random(seed)
    places = []
    for name in sorted(set(DOCUMENTS) - PENDING):
        text = (ROOT / name).read_text(encoding="utf-8")
        for start, end in cells.sections(text):
            found = cells.entries(text[start:end])
            listed = {entry.number for entry in found}
            bound = {entry.number for entry in found if entry.source != "given"}
            for first, last, number in cells.measured(text[start:end]):
                if number in bound:
                    places.append((name, start + first, start + last, listed))
    name, first, last, listed = rng.choice(places)
    text = (ROOT / name).read_text(encoding="utf-8")
    changed = text[:first] + wrong(text[first:last], listed, rng) + text[last:]
    assert len(cells.mistakes(changed)) > len(cells.mistakes(text)), changed[first:last]


REPORT = """# A report

## Losses

| model | val loss | ms per step | peak MiB |
|---|---:|---:|---:|
| small | 2.4879 | 12.5 (11.9 - 13.0) | 512 |
| large | 1.4493 and 1.5 | 1,250.0 | 2,048 |

## Settings

| model | flag | val loss |
|---|---|---:|
| small | `--beta2=0.5` | 2.6418 |
| small | `--beta2=0.9` | 2.5000 |
"""
TEXT = """# Title

## One section

The loss is 2.488 after 12.5 ms a step, 1.45 for the large one (10.3 with 3).
It takes 2 GiB, or 1,250 ms, or 1.25 s: 100 times as long. With beta2 it is 2.642, so
`--lr=0.05` and a rate of 0.05 are settings. Version 3.10.2, in 2026-11-29 (5 s).

```text
9.99 is code
```

<!-- numbers
2.488 = fake#Losses: small | val loss
12.5 = fake: small | ms per step
1.45 = fake: large | val loss
10.3, 0.05 = given
2 GiB = fake: large | peak MiB
1,250 = fake: large | ms per step
1.25 s = fake: large | ms per step
100 = fake: large | ms per step / small | ms per step
2.642 = fake#Settings: small, --beta2=0.5 | val loss
-->

## Another section

1.500 is the second number of a cell.

<!-- numbers
1.500 = fake: large | val loss [2]
-->
"""
# Put in on purpose: (what, by what it is replaced, how often)
WRONG = [
    ("2.488", "2.487"),  # in the text and in its entry: not what the cell says
    ("12.5 ", "12.6 "),
    ("1.45 ", "1.44 "),
    ("2 GiB", "3 GiB"),
    ("1,250 ", "1,260 "),
    ("1.25 s", "1.26 s"),
    ("100 ", "101 "),
    ("2.642", "2.500"),  # the cell of another row
    ("1.500", "1.449"),  # the first number instead of the second
    ("large one (", "large one, 1.4493 ("),  # right, but bound to no cell
]


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A repository with one report."""
    (tmp_path / "docs/bench").mkdir(parents=True)
    (tmp_path / "docs/bench/fake.md").write_text(REPORT, encoding="utf-8")
    monkeypatch.setattr(cells, "ROOT", tmp_path)
    return tmp_path / "docs/bench/fake.md"


def test_right_numbers_are_accepted(fake):
    assert cells.mistakes(TEXT) == []


@pytest.mark.parametrize(("right", "wrong"), WRONG)
def test_a_wrong_number_is_caught(fake, right, wrong):
    assert right in TEXT
    text = TEXT.replace(right, wrong)
    assert cells.mistakes(text) != []


@pytest.mark.parametrize(("right", "wrong"), WRONG)
def test_a_wrong_number_in_the_prose_alone_is_caught(fake, right, wrong):
    assert cells.mistakes(TEXT.replace(right, wrong, 1)) != []


@pytest.mark.parametrize(
    "source",
    [
        "nothing: small | val loss",  # no such report
        "fake: medium | val loss",  # no such row
        "fake: small | train loss",  # no such column
        "fake: small | val loss",  # three cells
        "fake: small | peak MiB [2]",  # no second number
    ],
)
def test_a_cell_that_is_not_there_is_named(fake, source):
    text = TEXT.replace("fake#Losses: small | val loss", source)
    found = cells.mistakes(text)
    assert len(found) == 1 and "2.488" in found[0]


def test_update_follows_a_new_measurement(fake):
    report = REPORT.replace("2.4879", "2.4712").replace("1,250.0", "2,500.0")
    fake.write_text(report, encoding="utf-8")
    assert len(cells.mistakes(TEXT)) == 4
    new, by_hand = cells.updated(TEXT)
    assert by_hand == []
    assert cells.mistakes(new) == []
    assert "The loss is 2.471 after 12.5 ms" in new
    assert "2,500 ms, or 2.50 s: 200 times" in new
    assert cells.updated(new) == (new, [])


def test_update_leaves_other_numbers_alone(fake):
    """A number with a unit is not the same number in a name, or of other things."""
    fake.write_text(REPORT.replace("1,250.0", "2,500.0"), encoding="utf-8")
    others = "of 1,250 tokens, as float1,250 or 1,250_steps"
    text = "\n".join(
        [
            f"# A\n\nIt takes 1,250 ms {others}.\n\n| 1,250 |\n",
            "<!-- numbers\n1,250 ms = fake: large | ms per step\n-->\n",
        ]
    )
    new, _ = cells.updated(text)
    assert f"It takes 2,500 ms {others}.\n\n| 2,500 |\n" in new


def test_update_leaves_to_a_person_what_is_ambiguous(fake):
    fake.write_text(REPORT.replace("2.4879", "2.4712"), encoding="utf-8")
    text = TEXT.replace("10.3, 0.05 = given", "10.3, 0.05, 2.488 = given")
    new, by_hand = cells.updated(text)
    assert new == text
    assert len(by_hand) == 1 and "2.471" in by_hand[0]
