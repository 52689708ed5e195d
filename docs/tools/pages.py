"""Make web pages of the course: a page for each step, with its prose and its diff.

    python docs/tools/pages.py [FOLDER]    writes to out/course if you give no FOLDER

Open index.html there; it needs no server and no network. Press ? for the keys. Needs
pygments, which comes with pytest, and markdown-it-py: pip install markdown-it-py

The other files of the pages are beside this one: diffs.py makes the diffs, narrow.py
fits tables of text into telephones, course.css and course.js are the looks and the
behavior, live.js computes with the models whose weights weights.py has written.
"""

import argparse
import functools
import html
import itertools
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

import steps as course  # steps.py, in this folder

try:
    import diffs  # diffs.py, in this folder
    import narrow  # narrow.py, in this folder
    from markdown_it import MarkdownIt
    from markdown_it.tree import SyntaxTreeNode
    from pygments.lexers import get_lexer_by_name
except ImportError as error:
    sys.exit(f"{error}: pip install pygments markdown-it-py")

TOOLS, DOCS, ROOT = Path(__file__).resolve().parent, course.DOCS, course.ROOT
CHAPTERS = course.chapters()
DOCUMENTS = ["bigram", *CHAPTERS]
DOCUMENTS += ["glossary", "reproduce_gpt2", "compare", "troubleshooting"]
COPIED = ["course.css", "course.js", "live.js"]
COPIED += ["weights_bigram.js", "weights_attention.js"]
TITLE = "From a bigram to GPT-2"
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="course.css">
<script defer src="course.js"></script>{scripts}</head>
<body data-page="{page}"><a class="skip" href="#main">Skip to the text</a>
<header><nav aria-label="Pages">{links}</nav></header>
<main id="main">
{body}
</main>
<footer><nav aria-label="Previous and next page">{low}</nav></footer></body></html>
"""
START = """
# From a bigram to GPT&#8209;2, one diff at a time

You will build a GPT, and understand every line of it. Four scripts lead to GPT&#8209;2,
each building on the last: a table of character pairs, attention, a Transformer that
learns Shakespeare on a laptop in a few minutes, and GPT&#8209;2. A fifth goes on to
long texts. Each lesson is one small diff: you read it, run it, and see what it did to
the loss and to what the model writes.
"""
TASTE = """
To see the result first, run the GPT of chapter 3{where}:

```sh
{clone}pip install -r requirements.txt
python gpt_char.py                      # trains for 3 to 7 minutes, then writes
python gpt_char.py --prompt="ROMEO:"    # only writes
```
"""


NOTHING_KNOWN = 4.17  # the loss if all 65 characters are equally likely
LONG = 6  # a page with so many sections begins with a list of them
BROAD = 86  # a block of code or text with longer lines is wider than the prose
SMALLER = 6  # so many letters more fit if they are a little smaller
BROADEST = 100  # and with still longer lines it wraps, or with one or two of them
FORMULA = 12  # a piece of code in a sentence that is no longer does not wrap
FULL = 38  # letters that a row of a table can have on a telephone, gaps included
NOISE = 0.15  # times of a step that differ by less may be equal


class Page(NamedTuple):
    """A page before it is HTML."""

    name: str  # of its file
    title: str
    path: Path  # the file it is made of
    text: str  # Markdown
    step: int = 0  # its number in the chapter; 0: no step


# ----------------------------------------------------------------------------- Markdown
def colored(text, language, _):
    """A block of code as HTML, colored where its language is known."""
    if language == "sh":
        code = diffs.code(text, get_lexer_by_name(language))
        code = unbroken(code.replace("\n</i>", "</i>\n"))
        return "".join(f"<span>{line}</span>" for line in code.splitlines(True))
    if language in ("python", "diff"):
        return diffs.code(text, get_lexer_by_name(language))
    return ""


RUN_COMMAND = r"(?s)<p>(?=<strong>Run</strong>).*?</p>"
CARD = '<div id="card"></div>'  # where the card of a step will stand
ANNOUNCED = r"(?<=[.!?)])\s+(?:[^.:!?()]{,40}\bwrites|The\s+sample):$"
MARKDOWN = MarkdownIt("commonmark", {"html": True, "highlight": colored})
MARKDOWN.enable("table")
COMMAND = re.compile(r"(python|pip|torchrun|git|uv) \S")


def inline_code(code):
    """HTML of code in a sentence. A short formula, such as U V, stays in one line."""
    if " " in code and len(code) <= FORMULA:
        return f'<span class="w">{code}</span>'
    return unbroken(code)


def unbroken(code):
    """HTML of a command that wraps before its flags, not within, and between words.

    The name of a file in a folder goes to the next line before it is divided.
    """
    code = re.sub(r"(?<![^\s>])-[\w-]{1,30}=?", r'<span class="w">\g<0></span>', code)
    return re.sub(r"(?:[\w.-]+/)+[\w.-]*(?![^<]*>)", unbroken_path, code)


def unbroken_path(match):
    folder, _, file = match[0].rpartition("/")
    folder = folder.replace("/", "/<wbr>")
    if len(file) > 14:
        file = f'<span class="file">{diffs.breakable(file)}</span>'
    return f"{folder}/<wbr>{file}"


def slug(title):
    """What a heading is called in links, as the forge makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def heading(text):
    """The first heading of a Markdown text."""
    return re.search(r"^#+ (.*)", text, re.M)[1].replace("`", "")


@functools.cache
def glossary():
    """{slug of a term: its first sentence}."""
    found = {}
    text = course.read(DOCS / "glossary.md")
    for title, body in re.findall(r"^## (.+)\n\n((?:.+\n)+)", text, re.M):
        body = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(body.split()))
        body = re.sub(r"[*`]", "", body)
        found[slug(title)] = re.match(r".*?[.:](?= |$)", body)[0]
    return found


def picture(token, path):
    """Let an image lead to its copy, and say so if it has no form for the dark."""
    file = (path.parent / token.attrGet("src")).resolve()
    token.attrSet("src", f"pictures/{file.name}")
    if file.exists() and "prefers-color-scheme" not in course.read(file):
        token.attrSet("class", "bright")


def with_narrow_forms(body):
    """Pictures that have a form for narrow screens, as the browser can choose."""

    def replace(match):
        image, name = match.group(0, 1)
        narrow = f"pictures/{name}_narrow.svg"
        if not (DOCS / narrow).exists():
            return image
        source = f'<source media="(max-width: 40rem)" srcset="{narrow}">'
        return f"<picture>{source}{image}</picture>"

    return re.sub(r'<img src="pictures/(\w+)\.svg"[^>]*>', replace, body)


def link_to_page(token, end, path, pages):
    """Let a link from a Markdown file, up to the token end, lead to its page.

    What has no page, such as the data of a report, stays as words.
    """
    file, _, place = token.attrGet("href").partition("#")
    target = path
    if file:
        target = (path.parent / file).resolve()
    page = pages.get((target, place))
    if page is None and target.suffix != ".md" and target.exists():
        token.tag = end.tag = "span"
        token.attrs = {}
        return
    if page is None:
        sys.exit(f"{path}: no page for {target} {place}")
    href = page
    if place:
        href += f"#{place}"
    token.attrSet("href", href)
    if target == DOCS / "glossary.md" and path != target and place in glossary():
        token.attrSet("class", "term")
        token.attrSet("data-tip", glossary()[place])


def fitted(body):
    """Blocks of code and text that say how long their lines are.

    Text whose lines are too long for a telephone is there in a narrow form, too.
    """

    def replace(match):
        kind, code = match.groups()
        text = html.unescape(re.sub("<[^>]*>", "", code)).rstrip("\n")
        lines = text.split("\n")
        width = narrow.longest(lines)
        long_lines = [line for line in lines if len(line) > BROAD]
        is_prose = len(long_lines) < 3 and narrow.GAP not in text
        names = []
        if long_lines and (is_prose or width > BROADEST):
            names.append("wraps")
        elif width > BROAD + SMALLER:
            names.append("broad")
        other = ""
        if kind in ("", ' class="language-text"') and width > narrow.WIDTH:
            names.append("full")
            other = narrow_form(text)
        start = f'<pre class="{" ".join(names)}" style="--width:{width}">'
        return f"{start}<code{kind}>{code}</code></pre>{other}"

    return re.sub(r"<pre><code([^>]*)>(.*?)</code></pre>", replace, body, flags=re.S)


def narrow_form(text):
    """A block of text for telephones. A drawing keeps its lines, however long."""
    form = narrow.narrow(text)
    width = min(narrow.longest(form.split("\n")), narrow.WIDEST)
    kind = "narrow whole" if narrow.is_whole(text) else "narrow"
    code = html.escape(form, quote=False)
    return f'<pre class="{kind}" style="--width:{width}"><code>{code}</code></pre>'


def widest_word(cell):
    """How many letters of a cell of a table must stand in one line."""
    text = re.sub(r"\]\([^)]*\)", "]", cell.children[0].content)
    code = " ".join(re.findall("`([^`]*)`", text))
    words = re.sub("`[^`]*`", "", text).split()
    words += re.findall(r"(?<!\S)-[\w-]{1,30}=?", code)  # as in unbroken
    return max([0, *map(len, words)])


def label_cells(tokens):
    """Let the rows of tables that are too wide for telephones stand as stacks there.

    Then every cell needs the title of its column.
    """
    for table in SyntaxTreeNode(tokens).walk():
        if table.type != "table":
            continue
        rows = []
        for part in table.children:
            rows += [row.children for row in part.children]
        width = 0
        for column in zip(*rows):
            width += 1 + max(widest_word(cell) for cell in column)
        if width <= FULL:
            continue
        kind = "stack dense" if width > 2 * FULL else "stack"
        table.nester_tokens.opening.attrSet("class", kind)
        titles = [re.sub("[`*]", "", cell.children[0].content) for cell in rows[0]]
        for row in rows[1:]:
            for cell, title in zip(row, titles):
                cell.nester_tokens.opening.attrSet("data-title", title)


def render(text, path, pages):
    """Markdown from a file as HTML. pages, for links: (file, slug or "") -> page."""
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.S)
    found = MARKDOWN.parse(text)
    label_cells(found)
    first = True
    for i, token in enumerate(found):
        if token.type == "heading_open":
            title = found[i + 1].content
            token.attrSet("id", slug(title))
            if first:  # whatever its level, it is the title of the page
                token.tag = found[i + 2].tag = "h1"
            elif token.tag == "h1":
                token.tag = found[i + 2].tag = "h2"
            first = False
        children = token.children or []
        for k, child in enumerate(children):
            if child.type == "image":
                picture(child, path)
            if child.type == "link_open":
                ends = [other for other in children[k:] if other.type == "link_close"]
                if not child.attrGet("href").startswith("http"):
                    link_to_page(child, ends[0], path, pages)
            if child.type == "code_inline" and COMMAND.match(child.content):
                child.attrSet("class", "command")
    body = MARKDOWN.renderer.render(found, MARKDOWN.options, {})
    body = re.sub("<p>(?=<em>(Measured|Counted))", '<p class="measured">', body)
    body = body.replace("<p><em>Not measured", '<p class="unmeasured"><em>Not measured')
    body = body.replace("<p><strong>Predict", '<p class="predict"><strong>Predict')
    body = re.sub(RUN_COMMAND, run_block, body)
    inline = r'(?<!<pre>)(<code(?: class="command")?>)([^<]*)(?=</code>)'
    body = re.sub(inline, lambda code: code[1] + inline_code(code[2]), body)
    body = fitted(body)
    body = re.sub("<table.*?>", r'<div class="scroll">\g<0>', body)
    body = body.replace("</table>", "</table></div>")
    body = with_live_model(body, "bigram", "bigram", 0)
    body = with_live_model(body, "heads", "attention", 1)
    return with_narrow_forms(body)


def run_block(match):
    """A paragraph that says what to run. Its commands stand on lines of their own.

    How long the only one takes stands before it.
    """
    command = r'(<code class="command">[^<]*</code>)'
    words = re.sub(rf": {command}\s(\([^()]*\))</p>", r" \2: \1</p>", match[0].strip())
    words = re.sub(rf"{command}[,.:]? ?", r"\1", words)
    return words.replace("<p>", '<p class="run">', 1)


def with_jump(body):
    """A page with a link below its title to its diff, which says how long it is."""
    found = re.search(r'<span class="count"><b>(.*?)</b></span>', body)
    if not found:
        return body
    link = f'<p class="jump"><a href="#diff">{found[1]} in this diff ↓</a></p>'
    return body.replace("</h1>\n", f"</h1>\n{link}\n", 1)


def with_live_model(body, picture, model, paragraphs):
    """A model to play with below a picture and the paragraphs that speak of it."""
    image = rf'<p><img src="pictures/{picture}\.svg".*?</p>\n'
    words = rf"(?:<p>.*?</p>\n){{{paragraphs}}}"
    place = f'<div class="live" data-model="{model}"></div>\n'
    return re.sub(image + words, rf"\g<0>{place}", body, flags=re.S)


# -------------------------------------------------------------------- What was measured
@functools.cache
def report(chapter):
    """What docs/bench/steps.py measured of the steps of a chapter; empty if nothing."""
    path = DOCS / f"bench/steps_{chapter}.json"
    if not path.exists():
        return {}
    return json.loads(path.read_text(encoding="utf-8"))


def measured(chapter):
    """{file of a step: what was measured}, with the start of a chapter."""
    return report(chapter).get("steps", {})


@functools.cache
def flags_of(chapter, name):
    """{flag: value} with which the loss of a step was measured, or nothing."""
    for key, run in report(chapter).get("runs", {}).items():
        if run.get("file") != name or run.get("val loss") is None:
            continue
        flags = {}
        for word in key.split()[1:]:
            flag, sign, setting = word.partition("=")
            if sign and flag != "round":
                flags[flag] = setting
        return flags
    return {}


def value(row, measure):
    """The first value of a measure, or None."""
    values = row.get(measure) or [None]
    return values[0]


def before_and_after(label, old, new, digits, noise):
    """A line of a table: a number before and after a step. Nothing if there is none.

    A change below the noise gets no color.
    """
    name = f'<th scope="row">{label}</th>'
    if old is None or new is None:
        return ""
    old = round(old, digits)  # the change is that of the numbers shown
    new = round(new, digits)
    change = new - old
    sign = "+" if change > 0 else "−"
    words = "no change"
    if round(abs(change), digits) > 0:
        words = f"{sign}{abs(change):.{digits}f}"
    kind = "same"
    if label == "ms per step" and abs(change) < noise:
        words = "within the noise"
    if abs(change) >= noise:
        kind = "worse" if change > 0 else "better"
    return (
        f"<tr>{name}<td>{old:.{digits}f}</td>"
        f'<td>{new:.{digits}f}</td><td class="{kind}">{words}</td></tr>'
    )


def losses_of(chapter):
    """{file of a step: the loss after it}, for the steps whose loss was measured."""
    found = {}
    for step, row in measured(chapter).items():
        loss = value(row, "val loss")
        if loss is not None:
            found[step] = loss
    return found


def iterations(chapter, names):
    """For how many iterations all of these steps were trained, or nothing."""
    counts = {flags_of(chapter, name).get("max_iters") for name in names}
    if len(counts) > 1 or None in counts:
        return ""
    return f"{int(counts.pop()):,}"


def other_flags(chapter, before, after):
    """The flags of a step that are not those of the step before: two texts."""
    old, new = flags_of(chapter, before), flags_of(chapter, after)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if not old or not new:
        names = []
    texts = []
    for flags in (old, new):
        known = [name for name in names if name in flags]
        texts.append(" ".join(f"--{name}={flags[name]}" for name in known))
    return texts


def highest(losses, step):
    """The loss at the top of the chart: the largest, unless it is far from all others.

    Such a loss may only be cut off if neither the step nor the one before has it.
    """
    second, first = sorted(losses.values())[-2:]
    names = list(losses)
    at = names.index(step)
    near = [losses[name] for name in names[max(0, at - 1) : at + 1]]
    is_far = first - second > (second - min(losses.values())) / 2
    return second if is_far and first not in near else first


def chart(chapter, step):
    """The losses after all steps of a chapter as a line, with the value of one step."""
    losses = losses_of(chapter)
    top = highest(losses, step)
    bottom = min(losses.values())
    points = []
    marks = ""
    before = top
    for number, (name, loss) in enumerate(losses.items()):
        left = 3 + 94 * number / (len(losses) - 1)
        down = 17 + 62 * (top - loss) / (top - bottom or 1)
        points.append(f"{left:.2f},{down:.1f}")
        side = "first" if left < 12 else "last" if left > 88 else "middle"
        if loss > top:
            marks += f'<b class="cut {side}" style="left:{left:.2f}%">↑ {loss:.2f}</b>'
        else:
            marks += f'<i class="at" style="left:{left:.2f}%;top:{down:.1f}%"></i>'
        if name == step:
            kind = f"{side} below" if loss < before else side
            marks += (
                f'<i class="dot" style="left:{left:.2f}%;top:{down:.1f}%"></i>'
                f'<b class="{kind}" style="left:{left:.2f}%;top:{down:.1f}%">'
                f"{loss:.3f}</b>"
            )
        before = loss
    last = course_number(list(losses)[-1])
    return (
        '<p class="note">Val loss after every step of this chapter. The large dot is '
        "this step.</p>"
        '<div class="plot"><div class="axis" aria-hidden="true">'
        f"<span>{top:.2f}</span><span>{bottom:.2f}</span></div>"
        '<div class="spark"><svg viewBox="0 0 100 100" preserveAspectRatio="none" '
        'role="img" aria-label="A line that shows the loss after every step, with a '
        f'dot at this one: {losses[step]:.3f}">'
        f'<polyline points="{" ".join(points)}"/></svg>{marks}</div>'
        '<div class="names" aria-hidden="true"><span>start</span>'
        f"<span>step {last}</span></div></div>"
    )


def one_recipe(chapter):
    """Were all steps of a chapter measured with the same flags?"""
    settings = [flags_of(chapter, name) for name in losses_of(chapter)]
    known = [flags for flags in settings if flags]
    return all(flags == known[0] for flags in known)


def course_number(name):
    """The number of a step from the name of its file."""
    return int(name.partition("_")[0])


def figure(words, sample):
    """A sample with a caption. Its lines know where they go on if they wrap."""
    lines = ""
    for line in sample.strip().splitlines(True):
        lines += f"<span>{html.escape(line, quote=False)}</span>"
    return (
        f"<figure><figcaption>{words}</figcaption>"
        f'<pre class="sample">{lines}</pre></figure>'
    )


def samples(old, new, text):
    """What the model wrote before a step and writes after it, where both are known."""
    before, after = old.get("sample"), new.get("sample")
    if not after:
        return ""
    figures = figure("It writes now", after)
    if before == after:
        if not quotes(text, after):
            return "<p>It writes the same as before.</p>"
        figures = figure("It writes the same as before", after)
    elif before:
        figures = figure("Before this step, it wrote", before) + figures
    return f'<div class="samples">{figures}</div>'


def effect(chapter, name, text):
    """What a step did: loss, time and sample before and after, or nothing.

    If all of it is as before, that is a line, or nothing if the text says it.
    """
    rows = measured(chapter)
    names = list(rows)
    if name not in rows or names.index(name) == 0:
        return ""
    new = rows[name]
    loss = value(new, "val loss")
    earlier = names[: names.index(name)]
    if loss is not None:  # else the step before is what there is to compare with
        earlier = [other for other in earlier if value(rows[other], "val loss")]
    if not earlier:
        return ""
    old = rows[earlier[-1]]
    losses = value(old, "val loss"), loss
    times = value(old, "ms per step"), value(new, "ms per step")
    lines = before_and_after("val loss", *losses, 3, 0.015)
    lines += before_and_after("ms per step", *times, 1, NOISE * (times[0] or 0))
    stays = loss is not None and round(losses[0], 3) == round(loss, 3)
    if stays and None in times and old.get("sample") == new.get("sample"):
        return as_before(loss, text, iterations(chapter, [earlier[-1], name]))
    figures = samples(old, new, text)
    if not lines and not figures:
        return ""
    note = ""
    count = iterations(chapter, [earlier[-1], name])
    if count:
        note += f"After {count} iterations each. "
    for word, flags in zip(
        ("Before", "After"), other_flags(chapter, earlier[-1], name)
    ):
        if flags:
            note += f"{word}: with <code>{html.escape(flags)}</code>. "
    if note:
        note = f'<p class="note">{note.strip()}</p>'
    table = ""
    if lines:
        table = (
            '<div class="scroll"><table><thead><tr><td></td><th scope="col">before</th>'
            '<th scope="col">after</th><th scope="col">change</th></tr></thead>'
            f"<tbody>{lines}</tbody></table></div>"
        )
    if loss is not None and not stays and one_recipe(chapter):
        table += chart(chapter, name)
    return (
        '<section class="effect" aria-labelledby="effect">'
        f'<h2 id="effect">What this step did</h2>{note}{table}{figures}</section>'
    )


def as_before(loss, text, count):
    """A line for a step that changes nothing, unless the text says it."""
    number = f"{loss:.3f}"
    told = re.search(r"^\*Measured(.*?)\n\n", text, re.M | re.S)
    if told and number in told[1] and re.search("same|stays|as before", told[1]):
        return ""
    when = f", after {count} iterations with the default settings" if count else ""
    return (
        '<section class="effect short" aria-label="What this step did">'
        f"<p>Val loss <b>{number}</b>, as before{when}. The model writes the same.</p>"
        "</section>"
    )


def quotes(text, sample):
    """Whether a text has a block with a sample."""
    blocks = re.findall(r"^```text\n(.*?)^```", text, re.M | re.S)
    return any(block.split() == sample.split() for block in blocks)


def with_place_for_card(text, sample):
    """A text without the sample that it quotes. The card stands there, and has it.

    The words that announce the sample go, too.
    """
    for block in re.finditer(r"^```text\n(.*?)^```\n", text, re.M | re.S):
        if block[1].split() != sample.split():
            continue
        before = re.sub(ANNOUNCED, "", text[: block.start()].rstrip())
        before = re.sub(r",? and (?:it|the model)\s+writes:?$", ".", before)
        before = re.sub(":$", ".", before)
        return f"{before}\n\n{CARD}\n{text[block.end() :]}"
    return text


def with_card(body, card):
    """A page with the card where a sample stood, or above the question at its end.

    So it follows what was measured, and all that is said of that.
    """
    if CARD in body or not card:
        return body.replace(CARD, card)
    starts = ("</section>", '<p class="measured">', '<p class="unmeasured">')
    start = max(0, *map(body.rfind, starts))
    question = re.compile(r"<details>|<h[23]|<p><strong>").search(body, start)
    place = question.start() if question else len(body)
    return body[:place] + card + body[place:]


# -------------------------------------------------------------------------------- Pages
def split(path):
    """The pages of a document: [(number of the step or 0, title, Markdown)].

    A chapter has a page for each step. The heading of a part goes to its first step.
    """
    text = course.read(path)
    if path.stem not in CHAPTERS or path.parent != DOCS:
        return [(0, heading(text), text)]
    pieces = re.split(r"^(?=## (?:\d|Part ))", text, flags=re.M)
    last, *end = re.split(r"^(?=## (?!\d))", pieces.pop(), maxsplit=1, flags=re.M)
    found = []
    part = ""
    for piece in [*pieces, last]:
        if piece.startswith("## Part "):
            part = re.sub(r"^## (.*)", "**\\1**", piece)
            continue
        title = heading(piece)
        if part:
            first, rest = piece.split("\n", 1)
            piece = f"{first}\n\n{part}\n{rest}"
            part = ""
        found.append((len(found), title, with_diff_first(piece)))
    if end:
        title = f"After {path.stem}.py"
        found.append((0, title, f"# {title}\n\n{end[0]}"))
    return found


def with_diff_first(text):
    """A step with its diff where the reader needs it: after "In the diff".

    That is before one predicts what it does, and runs it.
    """
    diff = re.search(r"^```diff\n.*?^```\n\n?", text, re.M | re.S)
    told = re.search(r"^\*\*In the diff\*\*", text, re.M)
    start = told.end() if told else 0
    next_thing = re.compile(r"^(\*\*(Predict|Run)\*\*|\*(Measured|Counted))", re.M)
    place = next_thing.search(text, start)
    if not diff or not place or diff.start() < place.start():
        return text
    between = text[place.start() : diff.start()]
    return f"{text[: place.start()]}{diff[0].rstrip()}\n\n{between}{text[diff.end() :]}"


def name_of_chapter(path):
    """Chapter 2, Branch chat.py, or nothing."""
    if path.parent != DOCS:
        return ""
    if path.stem in course.LADDER:
        return f"Chapter {course.LADDER.index(path.stem) + 1}"
    if path.stem in course.BRANCHES:
        return f"Branch {path.stem}.py"
    return ""


def part_that_begins(page):
    """The title of the part whose first step this is, or nothing."""
    found = re.search(r"^\*\*(Part .*)\*\*$", page.text, re.M)
    return found[1] if found and page.step else ""


def kicker(page, pages):
    """Above the title: the chapter, which step of how many, and links to all."""
    chapter = name_of_chapter(page.path)
    lesson = DOCS / f"{page.path.stem}.md"
    if page.path.suffix == ".py" and name_of_chapter(lesson):
        words = f'<a href="{lesson.stem}.html">{name_of_chapter(lesson)}</a>'
        return f'<p class="kicker">The script of {words}</p>'
    siblings = [other for other in pages if other.path == page.path]
    if not chapter or len(siblings) == 1:
        return f'<p class="kicker">{chapter}</p>' if chapter else ""
    count = max(other.step for other in siblings)
    words = chapter
    if page.step:
        words += f", step {page.step} of {count}"
        earlier = [other for other in siblings if 0 < other.step <= page.step]
        titles = [part_that_begins(other) for other in earlier]
        for title in [title for title in titles if title][-1:]:
            words += f" · {title}"
    lists = "<ol>"
    for other in siblings:
        label = str(other.step or ("Start" if other == siblings[0] else "End"))
        here = ' aria-current="page"' if other == page else ""
        part = part_that_begins(other)
        if part:
            lists += f'</ol><ol title="{html.escape(part)}">'
        title = html.escape(other.title)
        lists += f'<li><a href="{other.name}" title="{title}"{here}>{label}</a></li>'
    return (
        f'<p class="kicker">{words}</p><nav class="dots" '
        f'aria-label="Steps of this chapter">{lists}</ol></nav>'
    )


def list_of_links(pairs, kind=""):
    """Links, each with attributes for its <a>, as a list without numbers of its own."""
    items = []
    for attributes, words in pairs:
        items.append(f"<li><a {attributes}>{html.escape(words)}</a></li>")
    return f'<ul class="steps{kind}">{"".join(items)}</ul>'


def sections(page):
    """(link, title) of the sections of a page."""
    text = re.sub(r"^```.*?^```\n", "", page.text, flags=re.M | re.S)
    found = []
    for title in re.findall(r"^## (.+)", text, re.M):
        link = f'href="{page.name}#{slug(title)}"'
        found.append((link, title.replace("`", "")))
    return found


def with_sections(body, page, pages):
    """A long page with a list of its sections below the title."""
    alone = [other for other in pages if other.path == page.path] == [page]
    if page.path.parent != DOCS or not alone or len(sections(page)) < LONG:
        return body
    links = list_of_links(sections(page))
    fold = '<details class="chapter"><summary><span>On this page</span></summary>'
    return body.replace("</h1>", f"</h1>{fold}{links}</details>", 1)


def steps_of_chapter(page, pages):
    """Below the introduction of a chapter: its steps, under the names of its parts."""
    siblings = [other for other in pages if other.path == page.path]
    if len(siblings) == 1 or siblings[:1] != [page]:
        return ""
    out = ['<h2 id="the-steps">The steps of this chapter</h2>']
    links = []
    for other in siblings[1:]:
        part = part_that_begins(other)
        if part:
            if links:
                out.append(list_of_links(links, " boxed"))
            links = []
            out.append(f"<h3>{html.escape(part)}</h3>")
        links.append((f'href="{other.name}"', other.title))
    out.append(list_of_links(links, " boxed"))
    return "".join(out)


def facts():
    """For whom the course is and what it takes, from the README."""
    text = course.read(ROOT / "README.md")
    names = "For whom|You need|Time"
    return "\n".join(re.findall(rf"^\*\*(?:{names})\*\*(?:.+\n)+", text, re.M))


def taste():
    """How to run the script of chapter 3; first the clone, as the README has it."""
    text = course.read(ROOT / "README.md")
    clone = re.search(r"^git clone .+\n(?:cd .+\n)?", text, re.M)
    if clone:
        return TASTE.format(where="", clone=clone[0])
    return TASTE.format(
        where=", in the folder of the course, the one with `gpt_char.py`", clone=""
    )


def words_on_curves():
    """What the picture of the README shows."""
    return (
        "<p>The losses of all five scripts while they train; the three Transformers "
        "end close together:</p>"
        f'<p class="curves">{picture_of_readme("curves")}</p>'
    )


def ladder(parts, pages):
    """The scripts as the README's table has them, as a list of cards with steps."""
    text = course.read(ROOT / "README.md")
    out = []
    number = 0
    for row in re.findall(r"^\| \[.*", text, re.M):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        script, adds, _, loss, time, wrote = cells
        adds = adds[:1].upper() + adds[1:]
        script = re.match(r"\[(.*?)\]", script)[1]
        lesson = DOCS / f"{Path(script).stem}.md"
        chapter = pages[lesson, ""]
        if not loss:
            continue
        number += 1
        share = float(loss) / NOTHING_KNOWN
        out.append(
            f'<li><a href="{chapter}"><b>{number}. {html.escape(adds)}</b></a>'
            f'<span class="script"><code>{script}</code> runs in {time}</span>'
            f'<span class="loss">val loss <b>{loss}</b></span>'
            f'<span class="bar" style="--share:{share:.2f}"></span>'
            f"<q>{html.escape(wrote.strip('`'))}</q>"
            f"{folded_chapter([p for p in parts if p.path == lesson], False)}</li>"
        )
    return f'<ol class="ladder">{"".join(out)}</ol>'


def contents(parts, pages):
    """The body of the start page."""
    readme = ROOT / "README.md"
    out = [render(START, readme, pages)]
    begin = pages[DOCS / "bigram.md", ""]
    out.append(f'<p><a class="begin" href="{begin}">Begin with chapter 1 →</a></p>')
    out.append('<p id="progress" hidden></p>')
    out.append(
        '<h2 id="try">Try the first model</h2>'
        "<p>This is <code>bigram.py</code> after its training, in your browser. It "
        "sees only the last character that you type. At a low temperature it writes "
        "the likeliest ones, at a high one it is bolder.</p>"
        '<div class="live" data-model="bigram"></div>'
        "<noscript><p>It needs JavaScript.</p></noscript>"
    )
    second = next(page for page in parts if "pictures/heads.svg" in page.text)
    out.append(
        "<p>The next one, <code>v2_attention.py</code>, sees 64 characters: you can "
        f'play with it in chapter 2, <a href="{second.name}">{second.title}</a>.</p>'
    )
    out.append(f'<div class="facts">{render(facts(), readme, pages)}</div>')
    out.append(render(taste(), readme, pages))
    out.append(
        "<h2>The ladder</h2><p>The <b>val loss</b> says how surprised a model is by "
        "text it was not trained on: the shorter the bar, the better. A full bar, "
        f"{NOTHING_KNOWN}, is a blind guess among 65 characters. Scripts 4 and 5 guess "
        "among 256 bytes; they aim at more data and longer texts, not at a lower loss "
        "on a laptop. (Each character of this text is one byte, so the losses "
        "compare.) Each card has a line that the model wrote, and the steps that "
        "lead to it.</p>"
    )
    out.append(ladder(parts, pages))
    out.append(words_on_curves())
    out.append(
        "<h2>Two branches</h2><p>Both are optional. <code>by_hand.py</code> needs "
        "chapters 1 and 2; <code>chat.py</code> goes on from the GPT of chapter 3.</p>"
    )
    reference = []
    others = []
    for path, group in itertools.groupby(parts, lambda page: page.path):
        if name_of_chapter(path).startswith("Branch"):
            out.append(folded_chapter(list(group)))
        elif path.parent == DOCS and not name_of_chapter(path):
            reference += [(f'href="{page.name}"', page.title) for page in group]
        elif path.parent != DOCS:
            others += [(f'href="{page.name}"', page.title) for page in group]
    out.append("<h2>To look up</h2>")
    out.append(list_of_links(reference, " boxed"))
    out.append(
        '<details class="chapter"><summary><span>Scripts and reports</span>'
        f'<small class="count">{len(others)} pages</small></summary>'
        f"{list_of_links(others)}</details>"
    )
    return "\n".join(out)


def picture_of_readme(name):
    """A picture of the README with its words for those who cannot see it."""
    text = course.read(ROOT / "README.md")
    words = re.search(rf"!\[(.*?)\]\(docs/pictures/{name}\.svg\)", text)[1]
    return f'<img src="pictures/{name}.svg" alt="{html.escape(words)}">'


def folded_chapter(group, with_title=True):
    """A chapter on the start page: its title, with links to its steps or sections."""
    first, *rest = group
    name = name_of_chapter(first.path)
    words = f"<b>{name}</b>"
    if with_title:
        words = f"<b>{name}:</b> {html.escape(first.title)}"
    links = [(f'href="{first.name}"', "Introduction")]
    for page in rest:
        mark = " data-step" if page.step else ""
        links.append((f'href="{page.name}"{mark}', page.title))
    count = f"{max(page.step for page in group)} steps"
    if not rest:
        links += sections(first)
        numbered = [title for _, title in sections(first) if title[0].isdigit()]
        count = f"{len(numbered)} sections"
    return (
        '<details class="chapter"><summary><span>'
        f"{words}</span>"
        f'<small class="count">{count}</small></summary>'
        f"{list_of_links(links)}</details>"
    )


def search_index(parts):
    """The sections of the prose and of the glossary, as a script for course.js."""
    found = []
    for page in parts:
        if page.path.parent != DOCS:
            continue
        text = re.sub(r"<!--.*?-->", "", page.text, flags=re.S)
        text = re.sub(r"^```.*?^```\n", "", text, flags=re.M | re.S)
        text = re.sub(r"^\|[|:\- ]+\n", "", text, flags=re.M)
        text = re.sub(r"^\| .*", lambda row: row[0].replace("|", " "), text, flags=re.M)
        for section in re.split(r"^(?=#+ )", text, flags=re.M):
            if not section.strip():
                continue
            title, _, body = section.partition("\n")
            title = title.lstrip("# ").replace("`", "")
            body = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", body)
            body = re.sub(r"[`*]|</?\w+>", "", body)
            found.append(
                {
                    "title": title,
                    "page": f"{page.name}#{slug(title)}",
                    "where": name_of_chapter(page.path) or heading(page.text),
                    "text": " ".join(body.split()),
                }
            )
    return f"var course_index = {json.dumps(found)};\n"


def documents():
    """All pages but the first, and where links lead: (file, slug or "") -> page."""
    parts = []
    pages = {(DOCS / "bench", ""): "index.html", (ROOT / "README.md", ""): "index.html"}
    files = [DOCS / f"{name}.md" for name in DOCUMENTS]
    for path in files + sorted(DOCS.glob("bench/*.md")):
        for number, (step, title, text) in enumerate(split(path)):
            name = path.stem
            if number > 0:
                name += f"_{number}"
            if path.parent != DOCS:
                name += "_report"
            parts.append(Page(f"{name}.html", title, path, text, step))
            for place in ["", *map(slug, re.findall(r"^#+ (.*)", text, re.M))]:
                pages.setdefault((path, place), f"{name}.html")
    for path in sorted(ROOT.glob("*.py")) + sorted(ROOT.glob("beyond/*.py")):
        pages[path, ""] = f"{path.name}.html"
        code = f"# {path.name}\n\n```python\n{course.read(path)}```\n"
        parts.append(Page(f"{path.name}.html", path.name, path, code))
    return parts, pages


def link(rel, page, words):
    """A link to a page, or an empty place."""
    if page is None:
        return "<span></span>"
    return f'<a rel="{rel}" href="{page.name}">{words}</a>'


def build(folder):
    """Write all pages, or none; returns how many."""
    folder.mkdir(parents=True, exist_ok=True)  # fails early
    texts = course.steps(course.read(ROOT / "bigram.py"))
    parents = course.parents(texts)
    following = iter(parents.items())
    parts, pages = documents()
    first = Page("index.html", "Contents", DOCS, "")
    order = [None, first, *parts, None]
    files = {}
    for before, page, after in zip(order, order[1:], order[2:]):
        body = kicker(page, parts)
        if page is first:
            body = contents(parts, pages)
        card = ""
        prose = re.split(r"^```diff\n(?:.*\n)*?```\n", page.text, flags=re.M)
        for n, piece in enumerate(prose):
            if n > 0:
                name, parent = next(following)
                step = Path(name).stem
                card = effect(page.path.stem, step, page.text)
                body += diffs.diff(texts[parent], texts[name], parent, name)
            if "<figure>" in card:
                sample = measured(page.path.stem)[step]["sample"]
                piece = with_place_for_card(piece, sample)
            if piece.strip() and n == 0:
                body += render(piece, page.path, pages)
            elif piece.strip():
                body += render_rest(piece, page.path, pages)
        body = with_card(body, card)
        body = with_jump(body)
        body = with_sections(body, page, parts)
        body += steps_of_chapter(page, parts)
        scripts = ""
        if 'class="live"' in body:
            names = ("weights_bigram", "weights_attention", "live")
            scripts = "".join(f'<script defer src="{n}.js"></script>' for n in names)
        title = page.title if page is not first else TITLE
        files[folder / page.name] = PAGE.format(
            title=html.escape(title),
            scripts=scripts,
            page=page.name,
            links=top_links(before, page, first, after),
            low=low_links(before, after),
            body=body,
        )
    files[folder / "search.js"] = search_index(parts)
    for name in COPIED:
        files[folder / name] = course.read(TOOLS / name)
    for path in DOCS.glob("pictures/*.svg"):
        files[folder / "pictures" / path.name] = course.read(path)
    course.write(files)
    return len(parts) + 1


def render_rest(text, path, pages):
    """What follows a diff: its headings are not titles of the page."""
    body = render(f"# title\n\n{text}", path, pages)
    return re.sub(r"<h1.*?</h1>\n", "", body, count=1)


def top_links(before, page, first, after):
    arrows = link("prev", before, "← Previous"), link("next", after, "Next →")
    words = TITLE
    if page is not first:
        words = f'<span class="wide">{TITLE}</span><span class="narrow">Contents</span>'
    contents = link("contents", first, words)
    return f"{arrows[0]}<span>{contents}</span>{arrows[1]}"


def low_links(before, after):
    out = []
    for rel, page, words in (("prev", before, "Previous"), ("next", after, "Next")):
        title = html.escape(page.title).replace("_", "_<wbr>") if page else ""
        out.append(link(rel, page, f"<span>{words}</span> {title}"))
    return "".join(out)


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
    print(f"{count} pages; open {(folder / 'index.html').resolve().as_uri()}")


if __name__ == "__main__":
    main()
