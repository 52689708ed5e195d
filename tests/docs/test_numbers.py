"""One truth for numbers: what the texts say of loss, time, memory and speed is in a
report.

A number that was measured stands in a report of docs/bench. In README and docs each is
bound to its cell by a comment (docs/tools/cells.py). In a document that is PENDING, and
in the docstrings of the scripts, it must at least be a number of some report, rounded
to the digits that are written, or be listed below with where it is from.
"""

import ast
import functools
import json
import re
import statistics
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs/tools"))
import cells  # noqa: E402

# Documents whose numbers are not bound to cells yet
PENDING = {
    "README.md",
    "docs/bigram.md",
    "docs/compare.md",
    "docs/glossary.md",
    "docs/gpt2_train.md",
    "docs/gpt_char.md",
    "docs/reproduce_gpt2.md",
    "docs/sparse_gpt.md",
    "docs/troubleshooting.md",
    "docs/v2_attention.md",
}
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]
)
SCRIPTS = ("bigram", "v2_attention", "gpt_char", "gpt2_train", "sparse_gpt")
UNIT = r"s|ms|MiB|GiB|MB|GB|seconds|minutes|tokens/s|times"
NUMBER = re.compile(
    rf"(?<![\w.-])\d[\d,]*(?:\.\d+)? (?:{UNIT})\b"
    r"|(?<![\w.-])\d\.\d{2,4}\b(?![\w.]*\d)"
)
# What is no measurement of ours, and where it is from: a file, the number, why it is
# there
GIVEN = """
README.md | 1.4697 | nanoGPT's README
README.md | 3.10 | a version of Python
docs/bigram.md | 0.69 | ln 2
docs/compare.md | 1.4697 | nanoGPT's README
docs/compare.md | 3.28 | the aim of modded-nanogpt
docs/glossary.md | 0.37 | 1 / e
docs/glossary.md | 0.69 | ln 2
docs/gpt2_train.md | 1.58 | computed in the exercise
docs/gpt2_train.md | 105 GB | 2**19 * 50304 * 4 bytes
docs/gpt2_train.md | 20 GB | 10 billion tokens of 2 bytes
docs/gpt2_train.md | 20 seconds | of a command
docs/gpt2_train.md | 309 MB | 12 * 128 * 50304 * 4 bytes
docs/gpt2_train.md | 50,000 times | the merges of GPT-2's vocabulary
docs/gpt2_train.md | 5.55 | ln 256
docs/gpt_char.md | 2.0315 | a coefficient of Muon
docs/gpt_char.md | 3.4445 | a coefficient of Muon
docs/gpt_char.md | 3.4445 s | a coefficient of Muon
docs/gpt_char.md | 4.7750 | a coefficient of Muon
docs/reproduce_gpt2.md | 0.2955 | build-nanogpt's README
docs/reproduce_gpt2.md | 20 GB | 10 billion tokens of 2 bytes
docs/reproduce_gpt2.md | 24 GiB | memory of GPUs
docs/reproduce_gpt2.md | 40 GiB | memory of GPUs
docs/reproduce_gpt2.md | 80 GiB | memory of GPUs
docs/reproduce_gpt2.md | 139 GiB | memory of GPUs
"""


@functools.cache
def texts():
    """The prose of README and docs without blocks of code, and the docstrings of the
    scripts.
    """
    paths = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
    found = {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in paths}
    found = {
        n: re.sub(r"^ *```.*?^ *```$", "", t, flags=re.M | re.S)
        for n, t in found.items()
    }
    for name in SCRIPTS:
        source = (ROOT / f"{name}.py").read_text(encoding="utf-8")
        found[f"{name}.py"] = ast.get_docstring(ast.parse(source))
    return found


def flat(value):
    """All numbers in what json.loads returns."""
    if isinstance(value, (dict, list)):
        return [
            x
            for v in (value.values() if isinstance(value, dict) else value)
            for x in flat(v)
        ]
    return [value] if isinstance(value, (int, float)) else []


@functools.cache
def measured():
    """Every number of every report; those of MiB also in GiB, seconds in minutes."""
    numbers = []
    for path in ROOT.glob("docs/bench/*"):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            numbers += flat(json.loads(text)["tables"])
        else:
            numbers += [
                float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*\.?\d*", text)
            ]
    return numbers


def is_measured(text):
    digits, _, unit = text.partition(" ")
    digits = digits.replace(",", "")
    decimals = len(digits.partition(".")[2])
    scale = {"GiB": 1 / 1024, "minutes": 1 / 60}.get(unit, 1)
    return any(f"{scale * x:.{decimals}f}" == digits for x in measured())


def given():
    return {tuple(line.split(" | ")[:2]) for line in GIVEN.strip().splitlines()}


@pytest.mark.parametrize("name", texts())
def test_numbers_are_those_of_a_report(name):
    if name in DOCUMENTS and name not in PENDING:
        return  # every number is bound to its cell
    found = {" ".join(match[0].split()) for match in NUMBER.finditer(texts()[name])}
    missing = {n for n in found if not is_measured(n) and (name, n) not in given()}
    assert not missing, f"{name}: in no report of docs/bench: {sorted(missing)}"


def test_what_is_given_is_still_there():
    for name, number in given():
        assert re.search(
            rf"(?<![\w.]){re.escape(number)}".replace(r"\ ", r"\s+"), texts()[name]
        )


LADDER = json.loads((ROOT / "docs/bench/ladder.json").read_text(encoding="utf-8"))
LADDER = LADDER["tables"]["Every script without arguments"]


def of_ladder(script, measure, form):
    return format(statistics.median(LADDER[script][measure]), form)


@pytest.mark.parametrize(
    ("file", "words", "script", "measure", "form"),
    [
        (
            "README.md",
            r"`python gpt_char.py` ends at a val loss of ([\d.]+)",
            "gpt_char",
            "final val loss",
            ".4f",
        ),
        (
            "README.md",
            r"ends at a val loss of [\d.]+ after (\d+) s",
            "gpt_char",
            "wall s",
            ".0f",
        ),
        (
            "docs/compare.md",
            r"ends at ([\d.]+) after",
            "gpt_char",
            "final val loss",
            ".4f",
        ),
        (
            "docs/compare.md",
            r"ends at [\d.]+ after (\d+) s",
            "gpt_char",
            "wall s",
            ".0f",
        ),
        ("bigram.py", r"val loss of about ([\d.]+)", "bigram", "final val loss", ".2f"),
        ("bigram.py", r"after (\d+) s on two cores", "bigram", "wall s", ".0f"),
        (
            "v2_attention.py",
            r"after (\d+) s on two cores",
            "v2_attention",
            "wall s",
            ".0f",
        ),
        (
            "v2_attention.py",
            r"val loss of about ([\d.]+)",
            "v2_attention",
            "final val loss",
            ".2f",
        ),
        (
            "v2_attention.py",
            r"bigram.py: ([\d.]+)\)",
            "bigram",
            "final val loss",
            ".2f",
        ),
        (
            "gpt_char.py",
            r"val loss of about ([\d.]+)",
            "gpt_char",
            "final val loss",
            ".2f",
        ),
        (
            "gpt_char.py",
            r"v2_attention.py: ([\d.]+)\)",
            "v2_attention",
            "final val loss",
            ".2f",
        ),
        (
            "gpt2_train.py",
            r"val loss of about ([\d.]+)",
            "gpt2_train",
            "final val loss",
            ".2f",
        ),
        (
            "sparse_gpt.py",
            r"val loss of about ([\d.]+)",
            "sparse_gpt",
            "final val loss",
            ".2f",
        ),
    ],
)
def test_headline_numbers(file, words, script, measure, form):
    words = r"\s+".join(words.split(" "))
    found = re.search(words, texts()[file])
    assert found and found[1] == of_ladder(script, measure, form)


@pytest.mark.parametrize("chapter", SCRIPTS[1:])
def test_table_of_a_chapter_is_that_of_its_report(chapter):
    """What each step is worth: a row for every measured file, with its numbers."""
    report = json.loads(
        (ROOT / f"docs/bench/steps_{chapter}.json").read_text(encoding="utf-8")
    )
    data = next(t for name, t in report["tables"].items() if "val loss after" in name)
    text = (ROOT / f"docs/{chapter}.md").read_text(encoding="utf-8")
    section = text.split("## What each step is worth\n")[1].split("\n## ")[0]
    rows = [
        line.strip("|").split(" | ")
        for line in section.splitlines()
        if line.startswith("| ")
    ]
    rows = [[cell.strip() for cell in row] for row in rows[1:]]
    measured = iter(data.values())
    for columns in rows:  # in order; the report may have files that are steps no more
        assert any(cells_of(m) == [c for c in columns[1:] if c] for m in measured), (
            columns
        )


def cells_of(measures):
    """What a row of the table says of a measured file."""
    ms, mib = (statistics.median(measures[m]) for m in ("ms per step", "peak MiB"))
    cells = [f"{measures['val loss'][0]:.3f}", f"{ms:.{ms < 10:d}f}", f"{mib:,.0f}"]
    if "its val loss" in measures:
        cells.append(f"{measures['its val loss'][0]:.3f}")
    return cells


@pytest.mark.parametrize("chapter", SCRIPTS[1:])
def test_every_step_says_what_was_measured(chapter):
    text = (ROOT / f"docs/{chapter}.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\*Measured:\* (.*?)\n\n", text, re.M | re.S)
    assert len(lines) == len(re.findall(r"^## \d+\. ", text, re.M))
    assert all(
        re.search(r"val loss .*\d\.\d{3}", " ".join(line.split())) for line in lines
    )


# -------------------------------------------------------------- Numbers and their cells
@pytest.mark.parametrize("name", DOCUMENTS)
def test_numbers_are_those_of_their_cells(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    if not cells.has_numbers(text):
        assert name in PENDING, f"{name}: no <!-- numbers in any section"
        pytest.skip("pending")
    assert cells.mistakes(text) == []


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


def test_update_leaves_to_a_person_what_is_ambiguous(fake):
    fake.write_text(REPORT.replace("2.4879", "2.4712"), encoding="utf-8")
    text = TEXT.replace("10.3, 0.05 = given", "10.3, 0.05, 2.488 = given")
    new, by_hand = cells.updated(text)
    assert new == text
    assert len(by_hand) == 1 and "2.471" in by_hand[0]
