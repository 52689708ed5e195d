"""One truth for numbers: what the texts say of loss, time, memory and speed is in a
report.

A number that was measured stands in a report of docs/bench. Wherever README, a chapter
or the docstring of a script names a loss, a time or a size, it must be a number of a
report, rounded to the digits that are written, or be listed below with where it is
from.
"""

import ast
import functools
import json
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
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
docs/by_hand.md | 8.41 | a worked example
docs/by_hand.md | 9.61 | a worked example
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
    for cells in rows:  # in order; the report may have files that are steps no more
        assert any(cells_of(m) == [c for c in cells[1:] if c] for m in measured), cells


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
