"""Makes web pages of the course: every step with its prose and its diff side by side.

    python docs/build.py [FOLDER]    writes to out/course if no FOLDER is given

Open index.html there; it needs no server and no network. Keys: right or n for the next page, left
or p for the one before, c for the contents. Needs pygments, which comes with pytest, and
markdown-it-py: pip install markdown-it-py
"""

import difflib
import functools
import html
import itertools
import re
import shutil
import sys
from pathlib import Path

import steps as course  # steps.py, in this folder

try:
    from markdown_it import MarkdownIt
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer, get_lexer_by_name
    from pygments.token import STANDARD_TYPES
except ImportError as error:
    sys.exit(f"{error}: pip install pygments markdown-it-py")

DOCS, ROOT = course.DOCS, course.DOCS.parent
DOCUMENTS = [*course.LADDER, "glossary", "reproduce_gpt2", "compare", "troubleshooting"]
LIGHT, DARK = (HtmlFormatter(style=s).get_style_defs() for s in ("default", "github-dark"))
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="course.css"><script defer src="course.js"></script></head>
<body><nav>{links}</nav>{body}<nav class="low">{links}</nav></body></html>
"""


# ------------------------------------------------------------------------------------- Markdown
def coloured(text, language, _):
    """A block of code as HTML, coloured where its language is known."""
    known = language in ("python", "sh", "diff")
    return highlight(text, get_lexer_by_name(language), HtmlFormatter(nowrap=True)) if known else ""


MARKDOWN = MarkdownIt("commonmark", {"html": True, "highlight": coloured}).enable("table")


def slug(title):
    """What a heading is called in links, as the forge makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def heading(text):
    """The first heading of a Markdown text."""
    return re.match(r"#+ (.*)", text)[1].replace("`", "")


def render(text, path, pages):
    """Markdown from a file as HTML. pages: (file, slug of a heading or "") -> page, for links."""
    tokens = MARKDOWN.parse(text)
    for i, token in enumerate(tokens):
        if token.type == "heading_open":
            token.attrSet("id", slug(heading("# " + tokens[i + 1].content)))
        for child in token.children or []:
            if child.type == "image":
                child.attrSet("src", Path(child.attrGet("src")).name)
            if child.type == "link_open" and not child.attrGet("href").startswith("http"):
                file, _, place = child.attrGet("href").partition("#")
                file = (path.parent / file).resolve() if file else path
                page = pages.get((file, place)) or sys.exit(f"{path}: no page for {file} {place}")
                child.attrSet("href", page + f"#{place}" * bool(place))
    body = MARKDOWN.renderer.render(tokens, MARKDOWN.options, {})
    body = body.replace("<p><em>Measured:", '<p class="measured"><em>Measured:')
    return f"<main>{body}</main>"


# ----------------------------------------------------------------------------------- Side by side
@functools.cache
def python_lines(text):
    """Every line of a Python file as a list of (class of its colour or "", piece of text)."""
    lines = [[]]
    for kind, piece in PythonLexer(stripnl=False).get_tokens(text):
        name = STANDARD_TYPES.get(kind, "")
        name = name if f"\n.{name} " in LIGHT else ""  # most words have the colour of the text
        first, *more = piece.split("\n")
        lines[-1].append((name, first))
        lines += [[(name, part)] for part in more]
    return lines


def twins(old, new):
    """Pairs (i, j) of lines that resemble each other, old[i] and new[j]; both rise."""
    start = 0
    for i, line in enumerate(old):
        close = difflib.get_close_matches(line, new[start : start + 20], n=1, cutoff=0.6)
        if close and line.strip():
            j = new.index(close[0], start)
            yield i, j
            start = j + 1


def changed(old, new):
    """The columns in which two lines differ: a set for each."""
    old, new = (re.findall(r"\w+|\s+|.", line) for line in (old, new))
    found = set(), set()
    for kind, *at in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        for words, columns, (i, j) in zip((old, new), found, (at[:2], at[2:])):
            if kind != "equal":
                columns |= {*range(len("".join(words[:i])), len("".join(words[:j])))}
    return found


def line(pieces, number, marked=()):
    """A line of python_lines as HTML, with its number, and with a mark on the marked columns."""
    out, column = [], 0
    for name, piece in pieces:
        letters = enumerate(piece, column)
        for mark, part in itertools.groupby(letters, lambda letter: letter[0] in marked):
            part = html.escape("".join(letter for _, letter in part))
            part = f"<mark>{part}</mark>" if mark else part
            out.append(f'<span class="{name}">{part}</span>' if name else part)
        column += len(piece)
    return f'<p data-n="{number + 1}">{"".join(out)}</p>'


def side_by_side(old, new):
    """Two texts of Python next to each other, as HTML; what is equal is folded but for 4 lines."""
    old_lines, new_lines = python_lines(old), python_lines(new)
    a, b, out = old.splitlines(), new.splitlines(), []

    def row(i, i2, j, j2, kinds=("same", "same"), marks=((), ())):
        rows = max(i2 - i, j2 - j)
        left = [line(old_lines[k], k, marks[0]) for k in range(i, i2)]
        right = [line(new_lines[k], k, marks[1]) for k in range(j, j2)]
        sides = ("".join(lines + ["<p></p>"] * (rows - len(lines))) for lines in (left, right))
        sides = [f'<div class="{kind}">{text}</div>' for kind, text in zip(kinds, sides)]
        out.append(f'<div class="row">{"".join(sides)}</div>' if rows else "")

    for kind, i, i2, j, j2 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind != "equal":
            both = ("old", "new")
            for x, y in [(i + x, j + y) for x, y in twins(a[i:i2], b[j:j2])]:
                row(i, x, j, y, both)
                row(x, x + 1, y, y + 1, both, changed(a[x], b[y]))
                i, j = x + 1, y + 1
            row(i, i2, j, j2, both)
        elif i2 - i < 12:
            row(i, i2, j, j2)
        else:  # its first lines if something stands before it, its last if something follows
            head, tail = 4 * (i > 0), 4 * (i2 < len(a))
            row(i, i + head, j, j + head)
            folded = "".join(line(new_lines[k], k) for k in range(j + head, j2 - tail))
            out.append(f"<details><summary>{j2 - j - head - tail} equal lines</summary>")
            out.append(f'<div class="row"><div class="same">{folded}</div></div></details>')
            row(i2 - tail, i2, j2 - tail, j2)
    return f'<div class="diff">{"".join(out)}</div>'


# ---------------------------------------------------------------------------------------- Pages
def split(path):
    """The pages of a document: [(title, Markdown)]. A chapter has one for each step."""
    text = course.read(path)
    if path.stem not in course.LADDER[1:] or path.parent != DOCS:
        return [(heading(text), text)]
    pieces = re.split(r"^(?=## \d)", text, flags=re.M)
    last, end = re.split(r"^(?=## (?!\d))", pieces.pop(), maxsplit=1, flags=re.M)
    after = f"After {path.stem}.py"
    return [(heading(piece), piece) for piece in [*pieces, last]] + [(after, end)]


def contents(parts):
    """The page with links to all pages."""
    out = ["<main><h1>From a bigram to GPT-2, one diff at a time</h1>"]
    out.append('<img src="curves.svg" alt="Loss of the five scripts against time">')
    for first, group in itertools.groupby(parts, lambda part: part[2].parent == DOCS and part[2]):
        links = [f'<a href="{page}">{html.escape(title)}</a>' for page, title, *_ in group]
        title = links.pop(0) if first else "Scripts and reports"
        items = "".join(f"<li>{link}</li>" for link in links)
        out.append(f"<h3>{title}</h3><ul>{items}</ul>" if items else f"<h3>{title}</h3>")
    return "".join(out) + "</main>"


def build(folder):
    """Write all pages; returns how many."""
    steps = [*course.steps(course.read(ROOT / "bigram.py")).values()]
    diffs = map(side_by_side, steps, steps[1:])
    parts, pages = [], {(DOCS / "bench", ""): "index.html", (ROOT / "README.md", ""): "index.html"}
    documents = [DOCS / f"{name}.md" for name in DOCUMENTS]
    for path in documents + sorted(DOCS.glob("bench/*.md")):
        for number, (title, text) in enumerate(split(path)):
            page = path.stem + f"_{number}" * (number > 0) + "_report" * (path.parent != DOCS)
            parts.append((f"{page}.html", title, path, text))
            for place in ["", *map(slug, re.findall(r"^#+ (.*)", text, re.M))]:
                pages.setdefault((path, place), f"{page}.html")
    for path in sorted(ROOT.glob("*.py")):
        pages[path, ""] = f"{path.name}.html"
        code = f"# {path.name}\n\n```python\n{course.read(path)}```\n"
        parts.append((f"{path.name}.html", path.name, path, code))

    folder.mkdir(parents=True, exist_ok=True)
    first = ("index.html", "Contents", DOCS, "")
    for before, part, after in zip([None, first, *parts], [first, *parts], [*parts, None]):
        page, title, path, text = part
        links = {"prev": (before, "← "), "contents": (first, ""), "next": (after, "")}
        links = "".join(
            f'<a rel="{rel}" href="{to[0]}">{arrow}{html.escape(to[1])}</a>'
            if to
            else "<span></span>"
            for rel, (to, arrow) in links.items()
        )
        prose, *rest = re.split(r"^```diff\n(?:.*\n)*?```\n", text, flags=re.M)
        body = render(prose, path, pages) if text else contents(parts)
        body += "".join(next(diffs) + render(piece, path, pages) for piece in rest)
        page_text = PAGE.format(title=html.escape(title), links=links, body=body)
        (folder / page).write_text(page_text, encoding="utf-8")
    for path in [*DOCS.glob("*.svg"), DOCS / "course.js"]:
        shutil.copy(path, folder)
    dark = f"@media (prefers-color-scheme: dark) {{\n{DARK}\n}}\n"
    style = course.read(DOCS / "course.css") + LIGHT + "\n" + dark
    (folder / "course.css").write_text(style, encoding="utf-8")
    return len(parts) + 1


if __name__ == "__main__":
    if len(sys.argv) > 2 or "--help" in sys.argv:
        sys.exit(print(__doc__) if "--help" in sys.argv else __doc__)
    folder = Path(sys.argv[1]) if len(sys.argv) == 2 else ROOT / "out/course"
    try:
        print(f"{build(folder)} pages; the first is {folder / 'index.html'}")
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}")
