"""Text in columns for narrow screens, where its lines do not fit.

Columns for which there is no room go below, all together, with the first column again.
If they go on where the line ended, as in "a -> b", they go below their line instead.
Text without columns wraps. No word is lost.
"""

import itertools
import re
import textwrap

WIDTH = 46  # characters that fit a telephone at 12 px
GAP = "  "  # between two columns


def longest(lines):
    return max(len(line) for line in lines)


def narrow(text):
    """A text with lines of at most WIDTH characters, but for words that are longer."""
    out = []
    for empty, lines in itertools.groupby(text.split("\n"), lambda line: not line):
        out += lines if empty else paragraph(list(lines))
    return "\n".join(out)


def paragraph(lines):
    if longest(lines) <= WIDTH:
        return lines
    # A caption, or a last line with other columns, would hide the columns
    if GAP not in lines[0].strip() and len(lines) > 2:
        if count(lines[1:]) > count(lines):
            return [*wrapped(lines[0]), *paragraph(lines[1:])]
    if len(lines) > 2 and count(lines[:-1]) > count(lines) + 1:
        return [*paragraph(lines[:-1]), *wrapped(lines[-1])]
    if count(lines) > 1:
        return stacked(table(lines))
    return [piece for line in lines for piece in wrapped(line)]


def wrapped(line):
    """A line as several; those after the first stand further right."""
    if not line.strip("-"):
        return [line[:WIDTH]]  # a rule, not a text
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    options = dict(break_long_words=False, break_on_hyphens=False)
    return textwrap.wrap(line, WIDTH, subsequent_indent=indent, **options)


# ----------------------------------------------------------------------------- Columns
def table(lines):
    """Lines as rows of cells. Between columns, all lines have two spaces or more."""
    width = longest(lines)
    lines = [line.ljust(width) for line in lines]
    ink = ""
    for letters in zip(*lines):
        ink += "x" if any(letter != " " for letter in letters) else " "
    columns = []
    for match in re.finditer(r"x+( x+)*", ink):
        column = [line[match.start() : match.end()] for line in lines]
        if columns and belongs_to_next(columns[-1]):
            column = joined(columns.pop(), column)
        columns.append(column)
    while len(columns) > 2 and is_no_name(columns[0]):
        names = joined(*columns[:2])
        if len(names[0]) > WIDTH / 2:
            break
        columns[:2] = [names]
    return list(zip(*columns))


def count(lines):
    """How many columns lines have."""
    return len(table(lines)[0])


def joined(left, right):
    return [GAP.join(pair) for pair in zip(left, right)]


def belongs_to_next(column):
    """Whether a column has only signs, or the same word again and again."""
    words = [cell.strip() for cell in column if re.search(r"\w", cell)]
    same = len(words) > 1 and len(set(words)) == 1
    return not words or same and not re.search(r"\d", words[0])


def is_no_name(column):
    """Whether a first column is short and does not tell the rows apart."""
    cells = [cell.strip() for cell in column]
    return len(column[0]) < 16 and len(set(cells)) < len(cells)


def groups(row, start, room):
    """The cells of a row from start on in groups that fit the room, as slices."""
    found = []
    for end in range(start + 1, len(row) + 1):
        if end == len(row) or len(GAP.join(row[start : end + 1])) > room:
            found.append(slice(start, end))
            start = end
    return found


# -------------------------------------------------------------------------------- Rows
def stacked(rows):
    """Rows of cells as lines; what does not fit is below."""
    first = len(rows[0][0])
    parts = groups(rows[0], 1, WIDTH - first - len(GAP))
    lines = []
    if len(rows) == 1 or first > WIDTH - 16 or goes_on(rows, parts):
        rest = groups(rows[0], parts[0].stop, WIDTH - len(GAP))
        for row in rows:
            lines += below(row, [parts[0], *rest])
        return lines
    for part in parts:
        if lines:
            lines.append("")
        for row in rows:
            if part is parts[0] or "".join(row[part]).strip():
                lines += below(row, [part])
    return lines


def goes_on(rows, parts):
    """Whether a row goes on, with an arrow or a sign, where its first part ends."""
    for row in rows:
        if row[parts[0]][-1].rstrip().endswith(("=", "->")):
            return True
        if len(parts) > 1 and re.match(r"\s*(=|-+>)", row[parts[1]][0]):
            return True
    return False


def below(row, parts):
    """A row as a line for each part of its cells, the first with the first cell."""
    line = GAP.join([row[0], *row[parts[0]]]).rstrip()
    if len(line) <= WIDTH:
        lines = [line]
        parts = parts[1:]
    else:
        lines = wrapped(row[0].rstrip()) if row[0].strip() else []
    for part in parts:
        line = GAP + GAP.join(row[part]).rstrip()
        if len(line) > WIDTH:
            line = GAP + re.sub(r"(?<=\S) {3,}", GAP, line.strip())
        lines += wrapped(line)
    return [line for line in lines if line.strip()]
