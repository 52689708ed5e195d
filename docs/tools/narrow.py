"""Text in columns for narrow screens, where its lines do not fit.

A text that fits in smaller letters stays as it is. Otherwise, columns without room go
below, all together, with the first column again. If they go on where the line ended, as
in "a -> b", they go below their line instead. Text without columns wraps.

A drawing or a matrix is never taken apart. Only the words to its right go below it, and
what follows a brace. The names of its rows may stand above them. If it still has no
room, one can push it sideways. No word is lost.
"""

import itertools
import re
import textwrap

WIDTH = 46  # characters that fit a telephone at 12 px
WIDEST = 52  # and at 11 px, which is for text that would have to be taken apart
GAP = "  "  # between two columns


def longest(lines):
    return max(len(line) for line in lines)


def narrow(text):
    """A text with lines of at most WIDTH characters, but for words that are longer.

    They are up to WIDEST if that keeps a table whole, and longer in a drawing.
    """
    tightened = []
    out = []
    for lines in paragraphs(text):
        tightened += tight(lines) if lines[0] else lines
        out += paragraph(lines) if lines[0] else lines
    fits = longest(tightened) <= WIDEST
    return "\n".join(tightened if fits else out)


def is_whole(text):
    """Whether the narrow form has a drawing that is still too wide."""
    for lines in paragraphs(text):
        if lines[0] and is_drawing(lines) and longest(paragraph(lines)) > WIDEST:
            return True
    return False


def paragraphs(text):
    """The lines of a text in groups: the empty ones, and those between them."""
    groups = itertools.groupby(text.split("\n"), lambda line: not line)
    return [list(lines) for _, lines in groups]


def tight(lines):
    """Lines with their columns nearer to each other."""
    if longest(lines) <= WIDTH or count(lines) == 1:
        return lines
    return [GAP.join(row).rstrip() for row in table(lines)]


def paragraph(lines):
    if longest(lines) <= (WIDTH if len(lines) > 1 else WIDEST):
        return lines
    if is_drawing(lines):
        return with_legend(lines)
    if count(lines) > 1 and longest(tight(lines)) <= WIDEST:
        return tight(lines)
    # A caption, or a last line with other columns, would hide the columns
    if GAP not in lines[0].strip() and len(lines) > 2:
        if count(lines[1:]) > count(lines):
            return [*wrapped(lines[0]), *paragraph(lines[1:])]
    if len(lines) > 2 and count(lines[:-1]) > count(lines) + 1:
        return [*paragraph(lines[:-1]), *wrapped(lines[-1])]
    if count(lines) > 1:
        forms = [stacked(table(lines), width) for width in (WIDTH, WIDEST)]
        return min(forms, key=len)
    is_log = any(" | " in line and len(line) <= WIDEST for line in lines)
    pieces = []
    for line in lines:
        pieces += wrapped(line, WIDEST if is_log else WIDTH)
    return pieces


def wrapped(line, width=WIDTH):
    """A line as several; those after the first stand further right."""
    if not line.strip("-"):
        return [line[:width]]  # a rule, not a text
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    options = dict(break_long_words=False, break_on_hyphens=False)
    return textwrap.wrap(line, width, subsequent_indent=indent, **options)


# ---------------------------------------------------------------------------- Drawings
def is_drawing(lines):
    """Whether lines show, by what stands above what, more than a table does."""
    if any(re.search(r"\\(\s|$)", line) for line in lines):
        return True  # a line that goes down, drawn with a backslash
    if sum(bool(re.search(r"(^|\s)[.#]*#[.#]*(\s|$)", line)) for line in lines) > 2:
        return True  # squares, made of # and .
    if any(bars(above) & bars(below, "edge") for above, below in neighbors(lines)):
        return True
    if any(splits(above) & splits(below) for above, below in neighbors(lines)):
        return True
    if has_notes_below(lines):
        return True
    first, *others = columns_of(lines)
    return is_matrix(first, first=True) or any(map(is_matrix, others))


def neighbors(lines):
    """Pairs of lines beside each other, in both orders."""
    pairs = list(itertools.pairwise(lines))
    return pairs + [(below, above) for above, below in pairs]


def bars(line, kind="any"):
    """Where a line has bars: any, or those at the edge of a column."""
    pattern = {"any": r"\|", "edge": r"(?<=  )\||\|(?=  )"}[kind]
    return {match.start() for match in re.finditer(pattern, line)}


def splits(line):
    """Where a line has a bar between numbers."""
    return {match.start() for match in re.finditer(r"(?<=\d )\| +\d", line)}


def has_notes_below(lines):
    """Whether a long line has notes in several lines below its middle."""
    start = min(len(line) - len(line.lstrip()) for line in lines[1:] or lines)
    middle = lines[0][start - len(GAP) : start]
    return len(lines) > 2 and start > 8 and len(middle.split()) > 0


def is_matrix(column, first=False):
    """Whether a column has a matrix: "G = 3" above "    2", or equal rows."""
    cells = [cell.strip() for cell in column]
    for cell, below in itertools.pairwise(cells):
        if re.search(r"\w = -?[\d.]+$", cell) and re.fullmatch(r"-?[\d.]+", below):
            return True
    if len(cells) > 2 and len(set(cells)) == 1 and " " in cells[0]:
        return True
    rows = [cell for cell in cells if re.fullmatch(r"[\d/.-]+( [\d/.-]+)+", cell)]
    return first and len(set(rows)) < len(rows)


def with_legend(lines):
    """A drawing, then the words that stood to its right.

    Where the column before the words tells the rows apart, it is there again.
    """
    columns = columns_of(lines)
    for k, column in enumerate(columns):
        if {cell.strip() for cell in column} == {"\\", "|", "/"}:
            return with_brace(columns[: k + 1], columns[k + 1 :])
    *picture, words = columns
    if picture and not re.search(r"[^\s>=-]", "".join(picture[-1])):
        words = joined(picture.pop(), words)  # arrows to the words
    drawn = [GAP.join(row).rstrip() for row in zip(*picture)]
    if len(picture) < 2 or longest(drawn) > WIDEST or not is_prose(words):
        return in_parts(columns) or with_names_above(columns)
    rows = [k for k, cell in enumerate(words) if cell.strip()]
    names = [picture[-1][k].strip() for k in rows]
    told_apart = len(rows) > 1 and len(set(names)) == len(names) and is_prose(names, 1)
    if told_apart and len(rows) == len(lines):
        picture.pop()  # every cell stands below, with its words
        drawn = [GAP.join(row).rstrip() for row in zip(*picture)]
    out = [*drawn, ""]
    for name, k in zip(names, rows):
        note = wrapped(words[k].strip())
        if told_apart:
            out.append(name)
            note = [GAP + line for line in note]
        out += note
    return out


def with_brace(picture, rest):
    """A drawing up to its brace, and below it the row of arrows that follows."""
    out = [GAP.join(row).rstrip() for row in zip(*picture)]
    following = [GAP.join(cells).strip() for cells in zip(*rest)]
    row = GAP.join(words for words in following if words)
    out.append("")
    for part in re.split(r"\s+(?=->)", row):
        if out[-1] and len(f"{out[-1]}{GAP}{part}") <= WIDTH:
            out[-1] += GAP + part
        elif out[-1]:
            out.append(GAP + part)
        else:
            out.append(part)
    return out


def in_parts(columns):
    """A drawing too wide, of columns with captions, as drawings below each other.

    If its rows have numbers, each part has them. Nothing if it is no such drawing.
    """
    captions = [column[0] for column in columns]
    others = []
    for column in columns:
        others += column[1:]
    if longest([GAP.join(row).rstrip() for row in zip(*columns)]) <= WIDEST:
        return None
    if is_prose(others, 2) or not all(is_prose([cell], 2) for cell in captions):
        return None
    numbers = [re.match(r" *\d+ ", cell) for cell in columns[0][1:]]
    parts = [[column] for column in columns]
    names = [""] * len(columns[0])
    if all(numbers):
        size = numbers[0].end()
        names = [cell[:size] for cell in columns[0]]
        first = [cell[size:] for cell in columns[0]]
        parts = [[first, *columns[1:2]], columns[2:]]
    out = []
    for part in parts:
        if out:
            out.append("")
        for name, row in zip(names, zip(*part)):
            out.append(name + GAP.join(row).rstrip())
    return out


def with_names_above(columns):
    """A drawing too wide for its names: each stands above its row, if it has one."""
    whole = [GAP.join(row).rstrip() for row in zip(*columns)]
    rows = [GAP.join(row).rstrip() for row in zip(*columns[1:])]
    has_names = is_prose(columns[0]) and all(name.strip() for name in columns[0])
    if longest(whole) <= WIDEST or longest(rows) > WIDEST or not has_names:
        return whole
    out = []
    for name, row in zip(columns[0], rows):
        out += [name.rstrip(), row]
    return out


def is_prose(column, letters=3):
    cells = [cell for cell in column if cell.strip()]
    return all(re.search(f"[A-Za-z]{{{letters}}}", cell) for cell in cells)


# ----------------------------------------------------------------------------- Columns
def columns_of(lines):
    """Columns of cells. Between them, all lines have two spaces or more."""
    width = longest(lines)
    lines = [line.ljust(width) for line in lines]
    ink = ""
    for letters in zip(*lines):
        ink += "x" if any(letter != " " for letter in letters) else " "
    found = []
    for match in re.finditer(r"x+( x+)*", ink):
        found.append([line[match.start() : match.end()] for line in lines])
    return found


def table(lines):
    """Lines as rows of cells, of which the first is different in every row."""
    columns = []
    for column in columns_of(lines):
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
def stacked(rows, width):
    """Rows of cells as lines; what does not fit is below."""
    halves = side_by_side(rows)
    if halves:
        return [*stacked(halves[0], width), "", *stacked(halves[1], width)]
    rows = with_joined_notes(rows)
    first = len(rows[0][0])
    parts = groups(rows[0], 1, width - first - len(GAP))
    lines = []
    if len(rows) == 1 or first > width - 16 or goes_on(rows, parts):
        rest = groups(rows[0], parts[0].stop, width - len(GAP))
        for row in rows:
            lines += below(row, [parts[0], *rest], width)
        return lines
    for part in parts:
        if lines:
            lines.append("")
        for row in rows:
            if "".join(row[part]).strip() or part is parts[0] and is_empty(row[1:]):
                lines += below(row, [part], width)
    return lines


def is_empty(cells):
    return not "".join(cells).strip()


def side_by_side(rows):
    """Rows of two tables beside each other as two tables, or nothing."""
    for middle in range(3, len(rows[0])):
        names = [row[0] for row in rows] + [row[middle] for row in rows]
        if all(re.match(r"[a-z]+(_[a-z]+)+ ", f"{name} ") for name in names):
            return [row[:middle] for row in rows], [row[middle:] for row in rows]
    return None


def with_joined_notes(rows):
    """Rows whose last columns are one, if the first row has nothing there."""
    end = len(rows[0])
    while end > 2 and not rows[0][end - 1].strip():
        end -= 1
    notes = []
    for row in rows:
        notes.append(GAP.join(cell.strip() for cell in row[end:] if cell.strip()))
    if len(rows[0]) - end < 2 or all(notes[1:]):
        return rows
    width = longest(notes)
    return [(*row[:end], note.ljust(width)) for row, note in zip(rows, notes)]


def goes_on(rows, parts):
    """Whether a row goes on, with an arrow or a sign, where its first part ends."""
    if len(parts) < 2:
        return any(ends_open(row[parts[0]][-1]) for row in rows)
    if all(re.search(r"\d$", row[0].rstrip()) for row in rows) and len(rows) < 3:
        return True  # the first cell is no name: it has numbers of its own
    for row in rows:
        if ends_open(row[parts[0]][-1]) or row[0].rstrip().endswith("="):
            return True
        if re.match(r"\s*(=|-+>|[/*+] )", row[parts[1]][0]):
            return True
    return False


def ends_open(cell):
    return cell.rstrip().endswith(("=", "->", ":"))


def below(row, parts, width):
    """A row as a line for each part of its cells, the first with the first cell."""
    texts = [GAP.join(row[part]).rstrip() for part in parts]
    for k in range(1, len(texts)):  # a sign belongs to what follows
        sign = re.search(r"\s+(=|->)$", texts[k - 1])
        if sign and texts[k].strip():
            texts[k - 1] = texts[k - 1][: sign.start()]
            texts[k] = sign[1] + GAP + texts[k].lstrip()
    line = f"{row[0]}{GAP}{texts[0]}".rstrip()
    if len(line) <= width:
        lines = [line]
        texts = texts[1:]
    else:
        lines = wrapped(row[0].rstrip(), width) if row[0].strip() else []
    for text in texts:
        line = GAP + text
        if len(line) > width:
            line = GAP + re.sub(r"(?<=\S) {3,}", GAP, line.strip())
        lines += wrapped(line, width)
    return [line for line in lines if line.strip()]
