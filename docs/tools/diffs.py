"""Two Python texts as one piece of HTML, which shows them side by side or unified.

A <p> is a line. Its class says where it belongs:

    a    only in the old text        l    in both, shown in the left column
    b    only in the new text        r    in both, shown in the right column

Lines of class l exist for the view side by side; the unified view hides them.
course.css does the rest: the signs, the columns, the colors.
"""

import difflib
import functools
import html
import itertools
import re

import narrow  # narrow.py, in this folder
from pygments.lexers import PythonLexer
from pygments.token import Token

CONTEXT = 3  # lines shown before and after a change
SHORTEST_FOLD = 6  # unchanged lines; fewer are not worth a fold
LONG_WORD = 24  # letters without a space that leave a telephone's line half empty
ALIKE = 0.6  # the share of equal letters from which on two lines are a pair
COLORS = {  # the first that contains a kind of token wins
    Token.Comment: "c",
    Token.Literal.String: "s",
    Token.Literal.Number: "m",
    Token.Keyword: "k",
    Token.Operator.Word: "k",
    Token.Name.Builtin: "n",
    Token.Name.Function: "f",
    Token.Name.Class: "f",
    Token.Name.Decorator: "n",
    Token.Generic.Deleted: "deleted",
    Token.Generic.Inserted: "inserted",
}


@functools.cache
def color(kind):
    """The class of a token's color in course.css; "": that of the text."""
    for group, name in COLORS.items():
        if kind in group:
            return name
    return ""


def tokens(text, lexer):
    """(class of its color, piece of text), one after the other."""
    for kind, piece in lexer.get_tokens(text):
        yield color(kind), piece


def code(text, lexer):
    """A whole text as colored HTML."""
    if lexer.name == "Python":
        return "".join(line_of_code(pieces) for pieces in python_lines(text))
    return plain(tuple(tokens(text, lexer)))


def line_of_code(pieces):
    """A line of python_lines as HTML. A long one knows where it goes on if it wraps."""
    text = "".join(piece for _, piece in pieces)
    inner = f"{plain(pieces)}\n"
    if len(text) <= narrow.WIDTH:
        return inner
    indent = len(text) - len(text.lstrip())
    return f'<span class="long" style="--i:{indent}">{inner}</span>'


@functools.cache
def plain(pieces):
    """(class of its color, piece of text), ... as HTML."""
    parts = [span(name, html.escape(text, quote=False)) for name, text in pieces]
    return "".join(parts)


def span(name, inner):
    if name == "c":  # the sign of a comment stays with its first word
        word = r"^# [^\s&<-][^\s&<]{,15}"
        inner = re.sub(word, r'<span class="w">\g<0></span>', inner)
    if name and inner:
        return f'<i class="{name}">{inner}</i>'
    return inner


@functools.cache
def python_lines(text):
    """Every line of a Python text as a tuple of (class of its color, piece).

    It is read in pieces that begin at top level. Most are the same after the next step,
    and are not read again.
    """
    lines = []
    for part in re.split(r"(?<=\n\n\n)|(?<=\n)(?=# -{5})", text):
        lines += lines_of_part(part)
    return lines


@functools.cache
def lines_of_part(text):
    lines = [[]]
    for name, piece in tokens(text, PythonLexer(stripnl=False)):
        first, *more = piece.split("\n")
        lines[-1].append((name, first))
        for part in more:
            lines.append([(name, part)])
    return [tuple(line) for line in lines[:-1]]  # after the last newline is nothing


# ------------------------------------------------------------------------------- Places
@functools.cache
def places(text):
    """For every line, where it stands: its section, or its class and function."""
    found = []
    section = "start of the file"
    open_names = []  # (indentation, name) of the classes and functions around a line
    for line in text.splitlines():
        banner = re.match(r"# -{5,} (.+)", line)
        if banner:
            section = banner[1]
            open_names = []
        stripped = line.lstrip()
        indent = len(line) - len(stripped)
        if stripped and not stripped.startswith(("#", ")")):
            while open_names and open_names[-1][0] >= indent:
                open_names.pop()
            match = re.match(r"(class|def) (\w+)", stripped)
            if match:
                open_names.append((indent, match[0]))
        names = [name for _, name in open_names]
        found.append(" · ".join(names) or section)
    return found


# -------------------------------------------------------------------------------- Pairs
def alike(old, new):
    """How much two lines resemble each other, or 0 if it is too little for a pair."""
    if not old or not new:
        return 0
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    if matcher.real_quick_ratio() < ALIKE or matcher.quick_ratio() < ALIKE:
        return 0
    ratio = matcher.ratio()
    return ratio if ratio >= ALIKE else 0


def twins(old, new):
    """Pairs (i, j) of lines that resemble each other, old[i] and new[j]; both rise.

    Of all such pairings it is the one with the largest resemblance in total. How far
    a line is indented does not count.
    """
    old = [line.strip() for line in old]
    new = [line.strip() for line in new]
    scores = []
    for a in old:
        scores.append([alike(a, b) for b in new])
    # best[i][j]: what the lines from old[i] and new[j] on can reach
    best = [[0.0] * (len(new) + 1) for _ in range(len(old) + 1)]
    for i in reversed(range(len(old))):
        for j in reversed(range(len(new))):
            paired = scores[i][j] + best[i + 1][j + 1]
            best[i][j] = max(paired, best[i + 1][j], best[i][j + 1])
    i = j = 0
    while i < len(old) and j < len(new):
        if best[i][j] == best[i + 1][j]:
            i += 1
        elif best[i][j] == best[i][j + 1]:
            j += 1
        else:
            yield i, j
            i += 1
            j += 1


def words(line):
    return re.findall(r"\w+|\s+|.", line)


def changed(old, new):
    """The columns in which two lines differ: a set for each.

    A space between two words that differ belongs to them; the indentation never does.
    """
    old, new = words(old), words(new)
    in_old, in_new = set(), set()
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for kind, i, i2, j, j2 in matcher.get_opcodes():
        is_between = 0 < i and i2 < len(old) and 0 < j and j2 < len(new)
        if kind != "equal" or is_between and i2 == i + 1 and old[i].isspace():
            in_old |= columns(old, i, i2)
            in_new |= columns(new, j, j2)
    return in_old - indentation(old), in_new - indentation(new)


def indentation(words):
    """The columns of the spaces that a line begins with."""
    if words and words[0].isspace():
        return columns(words, 0, 1)
    return set()


def columns(words, start, end):
    """The columns of words[start:end] in their line."""
    before = len("".join(words[:start]))
    return set(range(before, before + len("".join(words[start:end]))))


# --------------------------------------------------------------------------------- HTML
def emphasized(pieces, marked):
    """A line of python_lines as HTML, with its marked columns."""
    out = []
    column = 0
    for name, piece in pieces:
        letters = enumerate(piece, column)
        for mark, group in itertools.groupby(letters, lambda at: at[0] in marked):
            part = html.escape("".join(letter for _, letter in group), quote=False)
            part = span(name, part)
            if mark:
                part = f"<mark>{part}</mark>"
            out.append(part)
        column += len(piece)
    return "".join(out)


def line(kind, pieces, number, marked=(), row=0):
    """A line of python_lines as a <p>. row: of the grid, side by side."""
    text = "".join(piece for _, piece in pieces)
    indent = len(text) - len(text.lstrip())
    style = ""
    if indent:  # where a wrapped line goes on
        style += f"--i:{indent};"
    if row:
        style += f"grid-row:{row}"
    if style:
        style = f' style="{style}"'
    inner = emphasized(pieces, marked) if marked else plain(pieces)
    if text.startswith("# ---"):  # a banner need not wrap where there is little room
        inner = re.sub("-{9,}", r"<u>\g<0></u>", inner)
    if re.search(rf"\S{{{LONG_WORD},}}", text):  # it may wrap after ( . and ,
        inner = re.sub(r"(?<=\w)[.,(](?=[a-z_\"'])(?![^<]*>)", r"\g<0><wbr>", inner)
    return f'<p class="{kind}" data-n="{number + 1}"{style}>{inner}</p>'


def equal_lines(old, new, i, j, count):
    """Lines that are the same in both texts."""
    out = []
    for k in range(count):
        out.append(line("l", python_lines(old)[i + k], i + k))
    for k in range(count):
        out.append(line("r", python_lines(new)[j + k], j + k))
    return out


def changed_lines(old, new, i, i2, j, j2):
    """Lines that differ. Side by side, those that resemble each other share a row."""
    a = old.splitlines()
    b = new.splitlines()
    old_rows, new_rows = {}, {}
    marks = {}
    row = 1
    x, y = i, j
    pairs = [(i + p, j + q) for p, q in twins(a[i:i2], b[j:j2])]
    for to_x, to_y in [*pairs, (i2, j2)]:
        for k in range(x, to_x):
            old_rows[k] = row + k - x
        for k in range(y, to_y):
            new_rows[k] = row + k - y
        row += max(to_x - x, to_y - y)
        if to_x < i2 and to_y < j2:
            old_rows[to_x] = new_rows[to_y] = row
            in_old, in_new = changed(a[to_x], b[to_y])
            marks["a", to_x] = in_old
            marks["b", to_y] = in_new
            row += 1
        x, y = to_x + 1, to_y + 1
    out = []
    for kind, text, rows in (("a", old, old_rows), ("b", new, new_rows)):
        for k in sorted(rows):
            pieces = python_lines(text)[k]
            out.append(line(kind, pieces, k, marks.get((kind, k), ()), rows[k]))
    return out


def end_of_docstring(lines):
    """The number of lines up to the end of the docstring of a script, or 0."""
    quotes = 0
    for number, line in enumerate(lines, 1):
        if quotes or line.startswith('"""'):  # others are indented
            quotes += line.count('"""')
        if quotes > 1:
            return number
    return 0


def changes(a, b):
    """How two lists of lines differ: (kind, from and to in a, from and to in b), ..."""
    return difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes()


def folded_docstring(old, new, end, end_in_new):
    """The lines up to there as a fold, and how many of them go and come."""
    lines = []
    gone = come = 0
    top = old.splitlines()[:end], new.splitlines()[:end_in_new]
    for kind, i, i2, j, j2 in changes(*top):
        if kind == "equal":
            lines.append(hunk(equal_lines(old, new, i, j, i2 - i)))
            continue
        lines.append(hunk(changed_lines(old, new, i, i2, j, j2)))
        gone += i2 - i
        come += j2 - j
    words = f"The docstring of the script<b>{count_of(come, gone)}</b>"
    shown = f"<details><summary>{words}</summary>{''.join(lines)}</details>"
    return shown, gone, come


def breakable(name):
    """The name of a file that may wrap between its words."""
    return html.escape(name).replace("_", "_<wbr>").replace("/", "/<wbr>")


def count_of(come, gone):
    return f'<span class="come">+{come}</span> <span class="gone">−{gone}</span>'


def hunk(lines):
    if not lines:
        return ""
    return f'<div class="hunk">{"".join(lines)}</div>'


def fold(old, new, i, j, count):
    """Equal lines that show when one opens them. The bar names what follows.

    After the last bar nothing follows; it names where its own lines begin.
    """
    end = j + count
    name = f"{places(new)[j]} … end of the file"
    if end + CONTEXT < len(places(new)):
        name = places(new)[end + CONTEXT]
    words = f"{count} unchanged lines<b>{html.escape(name)}</b>"
    lines = []
    for k in range(j, end):
        lines.append(line("r", python_lines(new)[k], k))
    return (
        f'<details data-shift="{j - i}"><summary>{words}</summary>'
        f"{hunk(lines)}</details>"
    )


def diff(old, new, before, after):
    """Two texts, old and new, with the names of their files, before and after."""
    a = old.splitlines()
    b = new.splitlines()
    out = []
    gone = come = 0
    folder, _, file = before.rpartition("/")
    if after.startswith(f"{folder}/"):
        before = file
        after = after.removeprefix(f"{folder}/")
    start, start_b = end_of_docstring(a), end_of_docstring(b)
    if a[:start] == b[:start_b] or a[start:] == b[start_b:]:
        start = start_b = 0  # the docstring does not change, or nothing else
    else:
        shown, gone, come = folded_docstring(old, new, start, start_b)
        out.append(shown)
    for kind, i, i2, j, j2 in changes(a[start:], b[start_b:]):
        i, i2, j, j2 = i + start, i2 + start, j + start_b, j2 + start_b
        if kind != "equal":
            out.append(hunk(changed_lines(old, new, i, i2, j, j2)))
            gone += i2 - i
            come += j2 - j
            continue
        head = CONTEXT if i > start else 0
        tail = CONTEXT if i2 < len(a) else 0
        folded = i2 - i - head - tail
        if folded < SHORTEST_FOLD:
            out.append(hunk(equal_lines(old, new, i, j, i2 - i)))
            continue
        out.append(hunk(equal_lines(old, new, i, j, head)))
        out.append(fold(old, new, i + head, j + head, folded))
        out.append(hunk(equal_lines(old, new, i2 - tail, j2 - tail, tail)))
    return (
        '<section class="diff" id="diff" aria-label="The diff"><div class="sheet">'
        '<div class="tools">'
        f"<span>{breakable(before)} → <b>{breakable(after)}</b></span> "
        f'<span class="count"><b>{count_of(come, gone)}</b></span>'
        '<span class="buttons">'
        '<button type="button" data-do="view" hidden>Side by side</button> '
        '<button type="button" data-do="unfold" hidden>Unfold all</button>'
        f'</span></div><div class="lines">{"".join(out)}</div></div></section>'
    )
