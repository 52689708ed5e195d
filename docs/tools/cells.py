"""The numbers in the texts, each bound to a cell of a table in docs/bench.

    python docs/tools/cells.py check     does every number equal its cell?
    python docs/tools/cells.py update    rewrite the numbers after a new measurement

At the end of a section of README.md or docs/*.md stands a comment that readers of the
page do not see:

    <!-- numbers
    1.449 = ladder: gpt_char | final val loss
    10.7 = char#Time to a loss: nanoGPT | s / gpt_char | s
    0.4 GiB = ladder: gpt_char | peak MiB
    0.9, 0.05 = given
    -->

Left is the number as the text has it. Right is its cell: the report (a .md in
docs/bench), the heading of the table if there are several such cells, the row (its
first cell, or the first few joined by ", ") and the head of the column. The first
number of the cell counts; [2] after the column takes the second. A / B is the ratio of
two cells; B may leave out the report. A number with a unit is converted from the unit
of the column. "given": an example or a setting, which nobody measured.

Every number of the text that looks measured, a decimal or one with a unit, must be in
the comment of its section. Code is not looked at, nor is "(5 s)", which tells how long
a command will take. A document without any such comment
is not checked.
"""

import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
UNITS = r"ms|s|min|minutes|seconds|MiB|GiB|MB|GB|tokens/s|times|x(?= \w+er\b)"
DIGITS = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
# A decimal, or a number with a unit; not a part of a name, a version or a date
MEASURED = re.compile(
    rf"(?<![\w.,/-])(?:(?P<number>{DIGITS})(?=\s?(?:(?:{UNITS})\b|%))"
    r"|(?P<decimal>\d+\.\d+))(?![\d^])(?!\.\d)"
)
BLOCK = re.compile(r"^<!-- numbers\n(.*?)^-->\n?", re.M | re.S)
# What is no prose: code, comments, targets of links, tags
NO_PROSE = re.compile(
    r"^ *```.*?^ *```$|<!--.*?-->|`[^`\n]*`|\]\([^)]*\)|https?://\S+|<[^>\n]+>"
    r"|\(\d+ (?:s|min)\)|^#+ [^\n]*$",
    re.M | re.S,
)
# From the unit of a column to the unit of a number
SCALES = {
    ("MiB", "GiB"): 1 / 1024,
    ("ms", "s"): 1 / 1000,
    ("s", "ms"): 1000,
    ("s", "min"): 1 / 60,
}
NAMES = {"seconds": "s", "minutes": "min"}


class Entry(NamedTuple):
    """A line of a comment: a number, and where it comes from ("given" or cells)."""

    number: str
    unit: str
    source: str


# ----------------------------------------------------------------------------- Reports
def tables_of(report):
    """The tables of a report: (heading, heads of the columns, rows of cells)."""
    path = ROOT / "docs/bench" / f"{report}.md"
    if not path.exists():
        raise ValueError(f"there is no docs/bench/{report}.md")
    found = []
    heading = ""
    rows = []
    for line in [*path.read_text(encoding="utf-8").splitlines(), ""]:
        if line.startswith("#"):
            heading = line.lstrip("#").strip()
        if line.startswith("|"):
            cells = [cell.strip(" `*") for cell in line.strip().strip("|").split("|")]
            rows.append(cells)
        elif rows:
            found.append((heading, rows[0], rows[2:]))  # rows[1] is the line below
            rows = []
    return found


def is_row(cells, name):
    """Is this the row of a name: its first cell, or its first few?"""
    for count in range(1, len(cells) + 1):
        if ", ".join(cells[:count]) == name:
            return True
    return False


def value_of(address, report=""):
    """The value of a cell, the unit of its column, and its report."""
    match = re.fullmatch(
        r"(?:(\w+)(?:#(.+?))?: )?(.+?) \| (.+?)(?: \[(\d)\])?", address.strip()
    )
    if match is None:
        raise ValueError(f"{address!r} is not REPORT: ROW | COLUMN")
    report = match[1] or report
    row, column = match[3].strip(" `*"), match[4].strip(" `*")
    found = []
    for heading, heads, rows in tables_of(report):
        if column not in heads or match[2] not in (None, heading):
            continue
        for cells in rows:
            if is_row(cells, row) and heads.index(column) < len(cells):
                found.append(cells[heads.index(column)])
    if len(found) != 1:
        raise ValueError(f"{address!r}: there are {len(found)} such cells")
    numbers = re.findall(rf"-?(?:{DIGITS})(?:e[+-]?\d+)?", found[0])
    place = int(match[5] or 1) - 1
    if place >= len(numbers):
        raise ValueError(f"{address!r}: its cell is {found[0]!r}")
    unit = re.search(r"\b(ms|s|seconds|MiB|GiB)\b", column)
    unit = unit[1] if unit else ""
    return float(numbers[place].replace(",", "")), NAMES.get(unit, unit), report


def value_for(entry):
    """What a number should be: its cell, or the ratio of two, in the unit it has."""
    addresses = entry.source.split(" / ")
    value, unit, report = value_of(addresses[0])
    if len(addresses) == 2:
        other, _, _ = value_of(addresses[1], report)
        return value / other
    if len(addresses) > 2:
        raise ValueError(f"{entry.source!r}: at most one ratio")
    wanted = NAMES.get(entry.unit, entry.unit)
    return value * SCALES.get((unit, wanted), 1)


def rounded(value, like):
    """A value, written with as many decimals as another number, and its commas."""
    decimals = len(like.partition(".")[2])
    comma = "," if "," in like or value >= 10_000 else ""
    return f"{value:{comma}.{decimals}f}"


def equals(number, value):
    """Is a number this value, rounded to the digits that are written?"""
    decimals = len(number.partition(".")[2])
    error = abs(float(number.replace(",", "")) - value)
    return error <= 0.5 * 10**-decimals * (1 + 1e-6)


# ------------------------------------------------------------------------------- Texts
def blank(match):
    """Spaces instead of what matched, so that all places stay."""
    return re.sub(r"[^\n]", " ", match[0])


def sections(text):
    """(start, end) of each section of a document; code may have lines with #."""
    code = re.sub(r"^ *```.*?^ *```$", blank, text, flags=re.M | re.S)
    starts = [match.start() for match in re.finditer(r"^#+ ", code, re.M)]
    starts = sorted({0, *starts})
    return list(zip(starts, [*starts[1:], len(text)]))


def entries(section):
    """The entries of the comments in a section."""
    found = []
    for block in BLOCK.findall(section):
        for line in block.strip().splitlines():
            numbers, separator, source = line.partition(" = ")
            if not separator:
                raise ValueError(f"{line!r} is not NUMBER = CELL")
            for number in numbers.split(", "):
                match = re.fullmatch(rf"({DIGITS})(?: ?(x|{UNITS}|%))?", number.strip())
                if match is None:
                    raise ValueError(f"{number!r} is not a number with or without unit")
                found.append(Entry(match[1], match[2] or "", source.strip()))
    return found


def measured(section):
    """The numbers in a section's prose that look measured: (start, end, number)."""
    prose = NO_PROSE.sub(blank, section)
    found = []
    for match in MEASURED.finditer(prose):
        name = "number" if match["number"] else "decimal"
        found.append((*match.span(name), match[name]))
    return found


def title_of(section):
    """The heading of a section, or its first line."""
    return section.strip().split("\n")[0].lstrip("# ")


def has_numbers(text):
    """Is a document bound to cells, at least in one section?"""
    return BLOCK.search(text) is not None


def mistakes(text):
    """What is wrong with the numbers of a document, as a list of sentences."""
    found = []
    for start, end in sections(text):
        section = text[start:end]
        title = title_of(section)
        try:
            listed = entries(section)
        except ValueError as error:
            found.append(f"{title}: {error}")
            continue
        prose = NO_PROSE.sub(blank, section)
        numbers = {number for _, _, number in measured(section)}
        for number in sorted(numbers - {entry.number for entry in listed}):
            found.append(f"{title}: {number} is in no cell")
        for entry in listed:
            if not re.search(rf"(?<![\d.,]){re.escape(entry.number)}(?!\d)", prose):
                found.append(f"{title}: {entry.number} is not in the text")
            if entry.source == "given":
                continue
            try:
                value = value_for(entry)
            except ValueError as error:
                found.append(f"{title}: {entry.number} = {error}")
                continue
            if not equals(entry.number, value):
                found.append(f"{title}: {entry.number} is {value:.6g} in its cell")
    return found


def has_unit(text, match, units):
    """Is a number followed by one of its units? It need not be in a table."""
    if "" in units or text[: match.start()].endswith("| "):
        return True
    after = text[match.end() :].lstrip(" \n")
    return any(after.startswith(unit) for unit in units)


def updated(text):
    """The text with the numbers of its cells, and what has to be done by hand."""
    by_hand = []
    for start, end in reversed(sections(text)):
        section = text[start:end]
        wanted = {}  # number: what its cells say
        units = {}  # number: its units; "" for a number without
        for entry in entries(section):
            new = entry.number
            if entry.source != "given":
                value = value_for(entry)
                if not equals(entry.number, value):
                    new = rounded(value, entry.number)
            wanted.setdefault(entry.number, set()).add(new)
            units.setdefault(entry.number, set()).add(entry.unit)
        prose = NO_PROSE.sub(blank, section)
        places = []
        for number, news in wanted.items():
            if news == {number}:
                continue
            if len(news) > 1:
                news = " or ".join(sorted(news))
                by_hand.append(f"{title_of(section)}: {number} is now {news}")
                continue
            word = rf"{re.escape(number)}(?!\w|[.,]\d)"
            for match in re.finditer(rf"(?<![\w.,]){word}", prose):
                if has_unit(prose, match, units[number]):
                    places.append((*match.span(), *news))
            for block in BLOCK.finditer(section):
                for match in re.finditer(rf"(?:^|(?<=, )){word}", block[1], re.M):
                    first = block.start(1) + match.start()
                    places.append((first, first + len(number), *news))
        for first, last, new in sorted(places, reverse=True):
            section = section[:first] + new + section[last:]
        text = text[:start] + section + text[end:]
    return text, by_hand


def main():
    if sys.argv[1:] not in (["check"], ["update"]):
        sys.exit(__doc__)
    failed = False
    for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]:
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT).as_posix()
        if not has_numbers(text):
            print(f"{name}: not bound to cells yet")
            continue
        if sys.argv[1] == "update":
            new, by_hand = updated(text)
            for sentence in by_hand:
                print(f"{name}, {sentence}")
            if new != text:
                path.write_text(new, encoding="utf-8", newline="\n")
                print(f"{name}: updated")
            text = new
        for sentence in mistakes(text):
            failed = True
            print(f"{name}, {sentence}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
