"""Make web pages of the course: every step with its prose and its diff side by side.

    python docs/tools/pages.py [FOLDER]    writes to out/course if you give no FOLDER

Open index.html there; it needs no server and no network. Keys: right or n for the next
page, left or p for the previous one, c for the contents. Needs pygments, which comes
with pytest, and markdown-it-py: pip install markdown-it-py
"""

import argparse
import difflib
import functools
import html
import itertools
import re
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

TOOLS, DOCS, ROOT = Path(__file__).resolve().parent, course.DOCS, course.ROOT
CHAPTERS = course.chapters()
DOCUMENTS = ["bigram", *CHAPTERS]
DOCUMENTS += ["glossary", "reproduce_gpt2", "compare", "troubleshooting"]
LIGHT, DARK = (
    HtmlFormatter(style=s).get_style_defs() for s in ("default", "github-dark")
)
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="course.css"><script defer src="course.js"></script></head>
<body><nav>{links}</nav>{body}<nav class="low">{links}</nav></body></html>
"""


# ----------------------------------------------------------------------------- Markdown
def coloured(text, language, _):
    """A block of code as HTML, coloured where its language is known."""
    known = language in ("python", "sh", "diff")
    return (
        highlight(text, get_lexer_by_name(language), HtmlFormatter(nowrap=True))
        if known
        else ""
    )


MARKDOWN = MarkdownIt("commonmark", {"html": True, "highlight": coloured}).enable(
    "table"
)


def slug(title):
    """What a heading is called in links, as the forge makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def heading(text):
    """The first heading of a Markdown text."""
    return re.match(r"#+ (.*)", text)[1].replace("`", "")


def render(text, path, pages):
    """Markdown from a file as HTML. pages, for links: (file, slug or "") -> page."""
    tokens = MARKDOWN.parse(text)
    for i, token in enumerate(tokens):
        if token.type == "heading_open":
            token.attrSet("id", slug(heading("# " + tokens[i + 1].content)))
        for child in token.children or []:
            if child.type == "image":
                picture = Path(child.attrGet("src")).name
                child.attrSet("src", f"pictures/{picture}")
            if child.type == "link_open" and not child.attrGet("href").startswith(
                "http"
            ):
                file, _, place = child.attrGet("href").partition("#")
                file = (path.parent / file).resolve() if file else path
                page = pages.get((file, place)) or sys.exit(
                    f"{path}: no page for {file} {place}"
                )
                child.attrSet("href", page + f"#{place}" * bool(place))
    body = MARKDOWN.renderer.render(tokens, MARKDOWN.options, {})
    body = body.replace("<p><em>Measured:", '<p class="measured"><em>Measured:')
    return f"<main>{body}</main>"


# ------------------------------------------------------------------------- Side by side
@functools.cache
def python_lines(text):
    """Every line of a Python file as a list of (class of its colour or "", text)."""
    lines = [[]]
    for kind, piece in PythonLexer(stripnl=False).get_tokens(text):
        name = STANDARD_TYPES.get(kind, "")
        name = (
            name if f"\n.{name} " in LIGHT else ""
        )  # most words have the colour of the text
        first, *more = piece.split("\n")
        lines[-1].append((name, first))
        lines += [[(name, part)] for part in more]
    return lines


def twins(old, new):
    """Pairs (i, j) of lines that resemble each other, old[i] and new[j]; both rise."""
    start = 0
    for i, line in enumerate(old):
        close = difflib.get_close_matches(
            line, new[start : start + 20], n=1, cutoff=0.6
        )
        if close and line.strip():
            j = new.index(close[0], start)
            yield i, j
            start = j + 1


def changed(old, new):
    """The columns in which two lines differ: a set for each."""
    old, new = (re.findall(r"\w+|\s+|.", line) for line in (old, new))
    found = set(), set()
    for kind, *at in difflib.SequenceMatcher(
        None, old, new, autojunk=False
    ).get_opcodes():
        for words, columns, (i, j) in zip((old, new), found, (at[:2], at[2:])):
            if kind != "equal":
                columns |= {*range(len("".join(words[:i])), len("".join(words[:j])))}
    return found


def line(pieces, number, marked=()):
    """A line of python_lines as HTML, with its number and its marked columns."""
    out, column = [], 0
    for name, piece in pieces:
        letters = enumerate(piece, column)
        for mark, part in itertools.groupby(
            letters, lambda letter: letter[0] in marked
        ):
            part = html.escape("".join(letter for _, letter in part))
            part = f"<mark>{part}</mark>" if mark else part
            out.append(f'<span class="{name}">{part}</span>' if name else part)
        column += len(piece)
    return f'<p data-n="{number + 1}">{"".join(out)}</p>'


def side_by_side(old, new):
    """Two Python texts next to each other, as HTML. Long equal parts are folded."""
    old_lines, new_lines = python_lines(old), python_lines(new)
    a, b, out = old.splitlines(), new.splitlines(), []

    def row(i, i2, j, j2, kinds=("same", "same"), marks=((), ())):
        rows = max(i2 - i, j2 - j)
        left = [line(old_lines[k], k, marks[0]) for k in range(i, i2)]
        right = [line(new_lines[k], k, marks[1]) for k in range(j, j2)]
        sides = (
            "".join(lines + ["<p></p>"] * (rows - len(lines)))
            for lines in (left, right)
        )
        sides = [
            f'<div class="{kind}">{text}</div>' for kind, text in zip(kinds, sides)
        ]
        out.append(f'<div class="row">{"".join(sides)}</div>' if rows else "")

    for kind, i, i2, j, j2 in difflib.SequenceMatcher(
        None, a, b, autojunk=False
    ).get_opcodes():
        if kind != "equal":
            both = ("old", "new")
            for x, y in [(i + x, j + y) for x, y in twins(a[i:i2], b[j:j2])]:
                row(i, x, j, y, both)
                row(x, x + 1, y, y + 1, both, changed(a[x], b[y]))
                i, j = x + 1, y + 1
            row(i, i2, j, j2, both)
        elif i2 - i < 12:
            row(i, i2, j, j2)
        else:  # 4 lines stay after what is before it, and 4 before what follows
            head, tail = 4 * (i > 0), 4 * (i2 < len(a))
            row(i, i + head, j, j + head)
            folded = "".join(line(new_lines[k], k) for k in range(j + head, j2 - tail))
            out.append(
                f"<details><summary>{j2 - j - head - tail} equal lines</summary>"
            )
            out.append(
                f'<div class="row"><div class="same">{folded}</div></div></details>'
            )
            row(i2 - tail, i2, j2 - tail, j2)
    return f'<div class="diff">{"".join(out)}</div>'


# -------------------------------------------------------------------------------- Pages
def split(path):
    """The pages of a document: [(title, Markdown)]. A chapter has one for each step."""
    text = course.read(path)
    if path.stem not in CHAPTERS or path.parent != DOCS:
        return [(heading(text), text)]
    pieces = re.split(r"^(?=## \d)", text, flags=re.M)
    last, *end = re.split(r"^(?=## (?!\d))", pieces.pop(), maxsplit=1, flags=re.M)
    found = [(heading(piece), piece) for piece in [*pieces, last]]
    if end:
        found.append((f"After {path.stem}.py", end[0]))
    return found


def contents(parts):
    """The page with links to all pages."""
    out = ["<main><h1>From a bigram to GPT-2, one diff at a time</h1>"]
    out.append(
        '<img src="pictures/curves.svg" alt="Loss of the five scripts against time">'
    )

    def chapter(part):
        path = part[2]
        return path if path.parent == DOCS else None

    for path, group in itertools.groupby(parts, chapter):
        links = []
        for page, title, *_ in group:
            links.append(f'<a href="{page}">{html.escape(title)}</a>')
        title = "Scripts and reports"
        if path:
            title = links.pop(0)
        out.append(f"<h3>{title}</h3>")
        if links:
            items = "".join(f"<li>{link}</li>" for link in links)
            out.append(f"<ul>{items}</ul>")
    return "".join(out) + "</main>"


def build(folder):
    """Write all pages, or none; returns how many."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    texts = course.steps(course.read(ROOT / "bigram.py"))
    parents = course.parents(texts)
    diffs = (side_by_side(texts[parents[name]], texts[name]) for name in parents)
    parts = []
    pages = {(DOCS / "bench", ""): "index.html", (ROOT / "README.md", ""): "index.html"}
    documents = [DOCS / f"{name}.md" for name in DOCUMENTS]
    for path in documents + sorted(DOCS.glob("bench/*.md")):
        for number, (title, text) in enumerate(split(path)):
            page = path.stem
            if number > 0:
                page += f"_{number}"
            if path.parent != DOCS:
                page += "_report"
            parts.append((f"{page}.html", title, path, text))
            for place in ["", *map(slug, re.findall(r"^#+ (.*)", text, re.M))]:
                pages.setdefault((path, place), f"{page}.html")
    values = sorted(DOCS.glob("bench/*.json"))  # reports link to them
    for path in values:
        pages[path, ""] = path.name
    for path in sorted(ROOT.glob("*.py")) + sorted(ROOT.glob("beyond/*.py")):
        pages[path, ""] = f"{path.name}.html"
        code = f"# {path.name}\n\n```python\n{course.read(path)}```\n"
        parts.append((f"{path.name}.html", path.name, path, code))

    files = {}
    first = ("index.html", "Contents", DOCS, "")
    order = [None, first, *parts, None]
    for before, part, after in zip(order, order[1:], order[2:]):
        page, title, path, text = part
        links = (
            link("prev", before, "← ") + link("contents", first) + link("next", after)
        )
        prose, *rest = re.split(r"^```diff\n(?:.*\n)*?```\n", text, flags=re.M)
        body = render(prose, path, pages) if text else contents(parts)
        for piece in rest:
            body += next(diffs) + render(piece, path, pages)
        title = html.escape(title)
        files[folder / page] = PAGE.format(title=title, links=links, body=body)
    for path in values:
        files[folder / path.name] = course.read(path)
    for path in DOCS.glob("pictures/*.svg"):
        files[folder / "pictures" / path.name] = course.read(path)
    files[folder / "course.js"] = course.read(TOOLS / "course.js")
    dark = f"@media (prefers-color-scheme: dark) {{\n{DARK}\n}}\n"
    style = course.read(TOOLS / "course.css") + LIGHT + "\n" + dark
    files[folder / "course.css"] = style
    course.write(files)
    return len(parts) + 1


def link(rel, part, arrow=""):
    """A link to the page of a part, or an empty place."""
    if part is None:
        return "<span></span>"
    page, title, *_ = part
    return f'<a rel="{rel}" href="{page}">{arrow}{html.escape(title)}</a>'


def main():
    if hasattr(sys.stdout, "reconfigure"):  # not so in a notebook
        sys.stdout.reconfigure(errors="replace")  # "?" for what a console cannot show
    parser = argparse.ArgumentParser(
        usage="%(prog)s [FOLDER]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "out/course")
    folder = parser.parse_args().folder
    try:
        count = build(folder)
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}")
    print(f"{count} pages; the first is {folder / 'index.html'}")


if __name__ == "__main__":
    main()
