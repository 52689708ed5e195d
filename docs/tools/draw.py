"""Draw the pictures of the course; needs matplotlib.

    python docs/tools/draw.py              all of them, to docs/pictures/
    python docs/tools/draw.py NAME ...     some: bigram, heads, shapes, worth, ...

bigram draws the table that docs/tools/weights.py wrote, and counts the pairs in
data/shakespeare; samples marks the words of that text. Most others draw what the
reports in docs/bench have. A column is 4.9 inches wide, so that letters of 12 points
can be read on a telephone.
"""

import base64
import functools
import html
import io
import json
import math
import re
import runpy
import statistics
import sys
import textwrap
from contextlib import redirect_stdout
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch

DOCS = Path(__file__).resolve().parents[1]
plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "", "font.size": 12}
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False}
plt.rcParams |= {"grid.color": "#e4e4e4", "font.family": "sans-serif"}
BLUE = "#1f6fb4"
ORANGE = "#b35c00"
GREEN = "#1f7a3f"
PURPLE = "#7a4a9e"
GREY = "#888888"
RED = "#c23b3b"
# Fills, strong enough to be told apart in the dark form, too
LIGHT_BLUE = "#a9cdec"
LIGHT_ORANGE = "#f7cf94"
LIGHT_GREEN = "#a8dca8"
LIGHT_PURPLE = "#cdb2e0"
LIGHT_GREY = "#e4e4e4"
COLORS = {"bigram": BLUE, "v2_attention": ORANGE, "gpt_char": GREEN}
COLORS |= {"gpt2_train": RED, "sparse_gpt": PURPLE}


def tables(part):
    """The tables of a report in docs/bench."""
    report = (DOCS / f"bench/{part}.json").read_text(encoding="utf-8")
    return json.loads(report)["tables"]


# Where the reader's system is dark, the picture is, too: white becomes almost black,
# and hues stay as they are
DARK = (
    "<style>@media (prefers-color-scheme: dark) "
    "{ svg { filter: invert(0.92) hue-rotate(180deg); } }</style>"
)


def write(name, svg):
    """Write a picture, with its dark form."""
    lines = [line.rstrip() for line in svg.splitlines()]
    text = "\n".join(lines) + "\n"
    if DARK not in text:
        text = re.sub(r"(<svg[^>]*>\n)", rf"\1{DARK}\n", text, count=1)
    (DOCS / f"pictures/{name}.svg").write_text(text, encoding="utf-8")


def save(figure, name, title):
    """Write a figure of matplotlib as a picture."""
    out = io.StringIO()
    metadata = {"Date": None, "Title": title}
    figure.savefig(out, format="svg", bbox_inches="tight", metadata=metadata)
    plt.close(figure)
    write(name, out.getvalue())


@functools.cache
def names_of(script, *flags):
    """The names of a script after its run with some flags."""
    sys.argv = [str(DOCS.parent / script), *flags]
    with redirect_stdout(io.StringIO()):
        return runpy.run_path(sys.argv[0], run_name="__main__")


def untrained(script, *flags):
    """The names of a script that built its model and data, and trained nothing."""
    few = ["--max_iters=0", "--max_new_tokens=1", "--init_from=scratch"]
    few.append("--device=cpu")
    return names_of(script, *few, *flags)


def sheet(width, height):
    """An empty drawing on which 10 units are one inch."""
    figure, axes = plt.subplots(figsize=(width / 10, height / 10))
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1)
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def box(axes, x, y, width, height, color, label="", size=12):
    """A box with its lower left corner at x, y, and a label in it."""
    style = dict(facecolor=color, edgecolor="black", linewidth=0.8)
    axes.add_patch(plt.Rectangle((x, y), width, height, **style))
    at = dict(ha="center", va="center", fontsize=size)
    axes.text(x + width / 2, y + height / 2, label, **at)


def arrow(axes, start, end, color="black"):
    style = dict(arrowstyle="->", color=color, linewidth=1.5, shrinkA=0, shrinkB=0)
    axes.annotate("", end, start, arrowprops=style)


def frame(axes, x, y, width, height, color="black"):
    """A frame around what the learner is to look at."""
    style = dict(fill=False, edgecolor=color, linewidth=2.5, zorder=3, clip_on=False)
    axes.add_patch(plt.Rectangle((x, y), width, height, **style))


def letters(axes, columns, rows):
    """Label the cells of a matrix by characters, the columns on top."""
    show = {" ": "␣", "\n": "↵"}
    axes.set_xticks(
        [i + 0.5 for i in range(len(columns))], [show.get(c, c) for c in columns]
    )
    axes.set_yticks([i + 0.5 for i in range(len(rows))], [show.get(c, c) for c in rows])
    axes.xaxis.tick_top()
    axes.invert_yaxis()
    axes.tick_params(length=0, labelsize=9)
    axes.set_aspect("equal")
    axes.spines[:].set_visible(False)


def bigram():
    """The table that bigram.py learns, beside the one that counting gives."""
    script = (DOCS / "tools/weights_bigram.js").read_text(encoding="utf-8")
    weights = json.loads(script.split(" = ", 1)[1].rstrip(";\n"))
    vocabulary = weights["chars"]
    V = len(vocabulary)
    table = np.frombuffer(base64.b64decode(weights["table"]), "<f4").reshape(V, V)
    learned = np.exp(table)
    learned /= learned.sum(axis=1, keepdims=True)
    text = Path("data/shakespeare/input.txt").read_text(encoding="utf-8")
    data = np.array([vocabulary.index(c) for c in text[: int(0.9 * len(text))]])
    pairs = np.bincount(data[:-1] * V + data[1:], minlength=V * V).reshape(V, V)
    counted = pairs / pairs.sum(axis=1, keepdims=True)
    chars = " aehot"
    ids = [vocabulary.index(c) for c in chars]
    figure, both = plt.subplots(1, 2, figsize=(4.9, 3.4), layout="constrained")
    for axes, table, title, color in zip(
        both, (counted, learned), ("counted", "learned"), ("black", BLUE)
    ):
        shown = table[ids][:, ids]
        axes.pcolormesh(shown, cmap="Blues", vmin=0, vmax=0.45)
        for i, row in enumerate(shown.tolist()):
            for j, p in enumerate(row):
                if p >= 0.045:
                    ink = "white" if p > 0.25 else "black"
                    at = dict(ha="center", va="center", fontsize=13, color=ink)
                    axes.text(j + 0.5, i + 0.5, f"{100 * p:.0f}", **at)
        for this, following in ("th", "he", "e "):
            corner = (chars.index(following), chars.index(this))
            frame(axes, *corner, 1, 1)
        letters(axes, chars, chars)
        axes.tick_params(labelsize=13)
        axes.xaxis.set_label_position("top")
        axes.set_xlabel("... comes this one", labelpad=6)
        axes.set_title(title, pad=10, fontsize=15, weight="bold", color=color)
    both[0].set_ylabel("after this letter ...")
    words = "in percent, from 5 up; ␣ is a space.\nFramed: how “the␣” is written"
    figure.supxlabel(words, fontsize=12)
    save(figure, "bigram", "The table of pairs of characters, counted and learned")


SHOWN = {" ": "␣", "\n": "↵"}
SIGNS = "blue: +, red: −"  # the colors of strip
HEAD = 2  # the head of v2_attention.py that the chapter follows, from 0


def one_line():
    """The line of docs/bench/attention.json: text, x, and (q, k, v) of each head."""
    report = (DOCS / "bench/attention.json").read_text(encoding="utf-8")
    line = json.loads(report)["line"]
    text = [SHOWN.get(c, c) for c in line["text"]]
    heads = []
    for head in line["heads"]:
        heads.append([np.array(part) for part in head.values()])
    return text, np.array(line["x"]), heads


def strip(axes, matrix, title, color, rows):
    """Draw a matrix as an image, its rows labelled by characters."""
    limits = dict(vmin=-5, vmax=5, aspect="auto")
    axes.imshow(matrix, cmap="RdBu", interpolation="none", **limits)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks([])
    axes.tick_params(length=0, labelsize=12)
    axes.spines[:].set_visible(True)
    axes.set_title(title, color=color, fontsize=13)


def qkv():
    """Where the queries, keys and values of a line of text come from."""
    text, x, every_head = one_line()
    q, k, v = every_head[HEAD]
    figure = plt.figure(figsize=(4.9, 5.6))
    left, width = 0.06, 0.92
    top = figure.add_axes((left, 0.61, width, 0.33))
    strip(top, x, "x: 128 numbers for each letter", "black", text)
    parts = (("query", "Q", q, BLUE), ("key", "K", k, ORANGE), ("value", "V", v, GREEN))
    for n, (layer, letter, matrix, color) in enumerate(parts):
        start = left + n * (width - width / 4) / 2
        # A quarter as wide as x, as its rows have a quarter as many numbers
        axes = figure.add_axes((start, 0.08, width / 4, 0.33))
        strip(axes, matrix, "", color, text)
        axes.set_title(f"{letter}: 32 each", color=color, fontsize=13, weight="bold")
        middle = start + width / 8
        words = dict(color=color, fontsize=13, ha="center", va="center", weight="bold")
        figure.text(middle, 0.535, f"self.{layer}", **words)
        at = dict(xycoords="figure fraction", textcoords="figure fraction")
        for begin, end in ((0.6, 0.56), (0.515, 0.465)):
            style = "->" if end < 0.5 else "-"
            line = dict(arrowstyle=style, color=color, linewidth=2)
            top.annotate("", (middle, end), (middle, begin), arrowprops=line, **at)
    figure.text(left + width / 2, 0.02, SIGNS, ha="center")
    save(figure, "qkv", "The queries, keys and values of a line, made from its vectors")


def cells(axes, matrix, text, title, limits, words):
    """Draw a matrix of positions in colours; words: {(row, column): what to write}.

    What is hidden from a position is None, and stays empty.
    """
    T = len(text)
    low, high = limits
    shown = np.ma.masked_invalid(matrix)
    axes.imshow(shown, cmap="Oranges", vmin=low, vmax=high, interpolation="none")
    for (i, j), word in words.items():
        dark = matrix[i, j] > low + 0.6 * (high - low)
        color = "white" if dark else "black"
        axes.text(j, i, word, ha="center", va="center", fontsize=10, color=color)
    if np.isnan(matrix[0, -1]):
        place = (0.72 * T - 0.5, 0.25 * T - 0.5)
        axes.text(*place, "the future", ha="center", va="center", color="#666666")
    axes.set_xticks(range(T), text)
    axes.set_yticks(range(T), text)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=13)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=14, weight="bold")


def weights_of(scores):
    """The masked softmax of each row; nan where the mask is."""
    past = np.tril(np.ones(scores.shape, dtype=bool))
    powers = np.exp(np.where(past, scores, -np.inf))
    return np.where(past, powers / powers.sum(axis=1, keepdims=True), np.nan)


def attention():
    """From queries and keys to scores, weights and the output, on a line of text.

    In two forms: two by two, and below each other for narrow screens. A frame is
    around the row that the chapter computes by hand.
    """
    text, _, every_head = one_line()
    q, k, v = every_head[HEAD]
    T = len(text)
    row = text.index("h")
    scores = q @ k.T / q.shape[1] ** 0.5
    weights = weights_of(scores)
    hidden = np.where(np.isnan(weights), np.nan, scores)
    output = np.nan_to_num(weights) @ v
    of_row = {}
    for j in range(T):
        of_row[row, j] = f"{scores[row, j]:.0f}".replace("-", "−")
    seen = {place: of_row[place] for place in of_row if place[1] <= row}
    large = {}
    for i in range(T):
        for j in range(i + 1):
            if weights[i, j] >= 0.05:
                large[i, j] = f"{weights[i, j]:.2f}"
    panels = (
        ("1. scores: Q Kᵀ / √32", scores, (-18, 6), of_row),
        ("2. the future hidden", hidden, (-18, 6), seen),
        ("3. weights: softmax", weights, (0, 1), large),
    )
    for name, shape, size in (
        ("attention", (2, 2), (7.8, 8.6)),
        ("attention_narrow", (4, 1), (4.4, 18.4)),
    ):
        figure, all_axes = plt.subplots(*shape, figsize=size, layout="constrained")
        figure.get_layout_engine().set(h_pad=0.12)
        *first, last = all_axes.flat
        for axes, panel in zip(first, panels):
            title, matrix, limits, words = panel
            cells(axes, matrix, text, title, limits, words)
            axes.set_xlabel("the letter that is looked at")
        strip(last, output, "", "black", text)
        last.set_title("4. output: weights · V", fontsize=14, weight="bold")
        last.tick_params(labelsize=13)
        last.set_box_aspect(1)
        last.set_xlabel(f"32 numbers for each letter\n({SIGNS})")
        for axes in all_axes.flat:
            columns = T if axes is not last else output.shape[1]
            frame(axes, -0.5, row - 0.5, columns, 1)
            axes.get_yticklabels()[row].set_weight("bold")
        for axes in all_axes.reshape(shape)[:, 0]:
            if axes is not last:
                axes.set_ylabel("the letter that looks")
        save(figure, name, "Scores, masked scores, weights and output for a line")


def heads():
    """What each of the four heads looks at, on the same line."""
    text, _, every_head = one_line()
    T = len(text)
    row = text.index("h")
    figure, all_axes = plt.subplots(2, 2, figsize=(4.9, 6.2), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1)
    for n, (axes, (q, k, _)) in enumerate(zip(all_axes.flat, every_head), start=1):
        weights = weights_of(q @ k.T / q.shape[1] ** 0.5)
        distances = [np.diagonal(weights, -far).mean() for far in range(4)]
        order = np.argsort(distances)[::-1]
        words = ("itself", "one back", "two back", "three back")
        title = f"head {n}:\n{words[order[0]]}"
        if distances[order[0]] < 0.6:
            title += f" or {words[order[1]].removesuffix(' back')}"
        shown = np.ma.masked_invalid(weights)
        axes.imshow(shown, cmap="Oranges", vmin=0, vmax=1, interpolation="none")
        frame(axes, -0.5, row - 0.5, row + 1, 1)
        most = [
            j for j in np.argsort(-weights[row, : row + 1]) if weights[row, j] > 0.1
        ]
        looks = f"{text[row]} looks at\n{', '.join(text[j] for j in most)}"
        place = (0.74 * T - 0.5, 0.2 * T - 0.5)
        axes.text(*place, looks, ha="center", va="center", weight="bold")
        axes.set_xticks(range(T), text)
        axes.set_yticks(range(T), text)
        axes.get_yticklabels()[row].set_weight("bold")
        axes.xaxis.tick_top()
        axes.tick_params(length=0, labelsize=12)
        axes.spines[:].set_visible(False)
        axes.set_title(title, fontsize=13)
    figure.supylabel("the letter that looks", fontsize=12)
    words = "the letter that is looked at\n(strong colour: much weight)"
    figure.supxlabel(words, fontsize=12)
    save(
        figure, "heads", "The weights of the four heads of v2_attention.py over a line"
    )


def samples():
    """What gpt_char.py writes while it learns. Words of the text are marked."""
    run = tables("curves")["gpt_char"]
    text = Path("data/shakespeare/input.txt").read_text(encoding="utf-8")
    known = set(re.findall(r"[A-Za-z']{2,}", text.lower()))
    known |= {"a", "i", "o"}
    columns = 46
    style = f'fill="{GREEN}" font-weight="bold"'
    out = [f'<text x="8" y="24" {style}>green: words that the text has, too</text>']
    y = 62
    *_, last = run["samples"]
    for step, sample in run["samples"].items():
        words = re.findall(r"[A-Za-z']+", sample)
        share = sum(word.lower() in known for word in words) / len(words)
        heading = f"after {int(step):,} steps: {100 * share:.0f}% are words"
        out.append(f'<text x="8" y="{y}" font-weight="bold">{heading}</text>')
        lines = []
        for line in sample.split("\n"):
            if line:
                lines += textwrap.wrap(line, columns, subsequent_indent="  ")
        lines = lines[:4] if step != last else lines[:6]
        for i, line in enumerate(lines, start=1):
            at = f'x="8" y="{y + 20 * i}" font-family="monospace" font-size="13"'
            marked = []
            for part in re.split(r"([A-Za-z']+)", line):
                piece = html.escape(part, quote=False)
                if part.lower() in known:
                    piece = f"<tspan {style}>{piece}</tspan>"
                marked.append(piece)
            line = "".join(marked)
            out.append(f'<text {at} fill="#555555" xml:space="preserve">{line}</text>')
        y += 20 * len(lines) + 34
    y -= 22
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 376 {y}" '
    head += 'width="470" font-family="sans-serif" font-size="16">'
    out = [
        head,
        "<title>What gpt_char.py writes after some steps</title>",
        f'<rect width="376" height="{y}" fill="#ffffff"/>',
        *out,
        "</svg>",
    ]
    write("samples", "\n".join(out))


def shapes():
    """The shapes through attention: (B, T, C) to (B, nh, T, hs) and back."""
    figure, axes = sheet(47, 68)
    four = [LIGHT_BLUE, LIGHT_ORANGE, LIGHT_GREEN, LIGHT_PURPLE]
    center = 15

    def heads_of(x, y, width):
        """A matrix whose columns belong to four heads."""
        for i, color in enumerate(four):
            box(axes, x + i * width, y, width, 6, color)

    def shape(y, words):
        style = dict(va="center", ha="right", fontsize=13, weight="bold")
        axes.text(46.5, y + 3, words, **style)

    def step(y, words):
        arrow(axes, (center, y + 5.4), (center, y + 0.8))
        axes.text(center + 1.7, y + 3.1, words, va="center", family="monospace")

    box(axes, center - 6, 60, 12, 6, LIGHT_GREY, "x", 14)
    shape(60, "(B, T, C)")
    step(53.7, "c_attn, split")
    for n, name in enumerate("qkv"):
        middle = center + 9.9 * (n - 1)
        axes.text(middle, 51.2, name, ha="center", weight="bold", fontsize=14)
        heads_of(middle - 4.4, 44, 2.2)
    shape(44, "(B, T, C)\neach")
    step(37.7, "view, transpose")
    for i, color in enumerate(four):
        x = 0.5 + 7.6 * i
        for n, name in enumerate("qkv"):
            box(axes, x + 2.2 * n, 31, 2, 6, color, name)
        axes.text(x + 3.2, 28.3, f"head {i + 1}", ha="center")
        box(axes, x + 2.2, 15.3, 2, 6, color)
    shape(31, "(B, nh, T, hs)\neach")
    step(22, "attention, each head alone")
    shape(15.3, "(B, nh, T, hs)")
    step(9, "transpose, reshape")
    heads_of(center - 6, 2.6, 3)
    shape(2.6, "(B, T, C)")
    axes.text(center, -1, "nh heads of hs numbers: C = nh · hs", ha="center")
    save(figure, "shapes", "The shapes of tensors through attention, with four heads")


def schedule():
    """The learning rate of gpt_char.py, by its own function: the start, and all."""
    names = untrained("gpt_char.py", "--bfloat16")
    last_step = names["parser"].get_default("max_iters")
    get_lr = names["get_lr"]
    get_lr.__globals__["max_iters"] = last_step  # instead of 0
    peak = max(range(last_step), key=get_lr)
    style = dict(sharey=True, width_ratios=(1, 3), layout="constrained")
    figure, (start, whole) = plt.subplots(1, 2, figsize=(4.9, 3.9), **style)
    for axes, steps in ((start, range(peak + 1)), (whole, range(peak, last_step + 1))):
        axes.plot(steps, [get_lr(step) for step in steps], color=GREEN, linewidth=3)
        axes.grid()
        axes.set_xlabel("step")
    start.set(xlim=(0, peak), xticks=[0, peak], ylabel="learning rate")
    start.set(ylim=(0, 0.0165), yticks=[0, 0.005, 0.01, 0.015])
    start.set_title(f"up:\n{peak} steps", weight="bold", fontsize=13, color=GREEN)
    whole.set_xlim(peak, last_step)
    ticks = range(1000, last_step + 1, 1000)
    whole.set_xticks(ticks, [f"{step:,}" for step in ticks])
    title = f"down in a straight line:\n{last_step - peak:,} steps"
    whole.set_title(title, weight="bold", fontsize=13, color=GREEN)
    save(figure, "schedule", "The learning rate of gpt_char.py over its steps")


def worth():
    """What each idea bought: the val loss after the steps of the chapter gpt_char."""
    report = (DOCS / "bench/steps_gpt_char.json").read_text(encoding="utf-8")
    measured = json.loads(report)["steps"]
    text = (DOCS / "gpt_char.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## (\d+)\. (.+)$", text, re.M)
    losses = {int(name[:2]): row["val loss"] for name, row in measured.items()}
    rows = [("v2_attention.py", losses[0][0])]
    for number, title in titles:
        found = losses[int(number)]
        if found and abs(found[0] - rows[-1][1]) > 0.0005:  # steps that change it
            rows.append((f"{number}. {title.split(':')[0]}", found[0]))
    figure, axes = plt.subplots(figsize=(4.9, 0.3 * len(rows) + 0.7))
    before = rows[0][1]
    for y, (title, loss) in enumerate(rows):
        change = loss - before
        color = "black"
        if change:
            color = GREEN if change < 0 else RED
        weight = "bold" if abs(change) > 0.2 else "normal"
        if y:
            axes.plot([before, before], [y - 1, y], color=GREY, linewidth=1, zorder=0)
        bar = dict(height=0.64, color=color, edgecolor=color, linewidth=1.5)
        axes.barh(y, change, left=before, **bar)
        style = dict(va="center", weight=weight)
        axes.text(1.66, y, f"{loss:.3f}", ha="right", color=color, **style)
        if abs(change) > 1:  # room for the words in the bar
            middle = (before + loss) / 2
            style |= dict(color="white", fontsize=11)
            axes.text(middle, y, title, ha="center", **style)
        else:
            axes.text(max(before, loss) + 0.05, y, title, **style)
        before = loss
    axes.set(yticks=[], ylim=(len(rows) - 0.4, -0.7), xlim=(1.39, 3.85))
    axes.set_xticks([2, 2.5, 3])
    axes.set_xlabel("val loss after 300 steps; green: lower, red: higher")
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_bounds(1.75, 3.4)
    save(figure, "worth", "What each step of the chapter on the Transformer bought")


def architecture():
    """A GPT: the residual stream with its shapes, and the code of every box."""
    boxes = [  # what it is, its code, what it does, its color, its top, its height
        ("tokens idx (B, T)", "", "", LIGHT_GREY, 604, 36),
        (
            "embeddings",
            "x = self.wte(idx) + self.wpe(positions)",
            "",
            LIGHT_BLUE,
            514,
            56,
        ),
        (
            "LayerNorm, attention",
            "x = x + self.attn(self.ln_1(x))",
            "positions talk to each other",
            LIGHT_ORANGE,
            376,
            74,
        ),
        (
            "LayerNorm, MLP",
            "x = x + self.mlp(self.ln_2(x))",
            "each position thinks",
            LIGHT_GREEN,
            238,
            74,
        ),
        (
            "LayerNorm, lm_head",
            "return self.lm_head(self.ln_f(x))",
            "",
            LIGHT_BLUE,
            84,
            56,
        ),
        ("logits (B, T, V)", "", "", LIGHT_GREY, 14, 36),
    ]
    stream = 54
    out = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 360 652" width="470" '
        'font-family="sans-serif" font-size="15">',
        "<title>The architecture of a GPT: residual stream, shapes and code</title>",
        '<rect width="360" height="652" fill="#ffffff"/>',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="9" '
        'markerHeight="9" markerUnits="userSpaceOnUse" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z"/></marker></defs>',
        '<rect x="4" y="168" width="352" height="314" rx="8" fill="none" '
        'stroke="#666666" stroke-dasharray="6 4"/>',
        '<text x="82" y="188" font-weight="bold">Block, n_layer times:</text>',
        '<text x="82" y="207" font-size="13" font-family="monospace" '
        'fill="#333333">for block in self.h: x = block(x)</text>',
    ]

    def line(*points, tip=True, width=1.6, color="#000000"):
        path = " L".join(f"{x} {y}" for x, y in points)
        end = ' marker-end="url(#tip)"' if tip else ""
        out.append(
            f'<path d="M{path}" stroke="{color}" stroke-width="{width}" '
            f'fill="none"{end}/>'
        )

    line((stream, 604), (stream, 571))
    line((stream, 514), (stream, 140), width=7, tip=False, color=PURPLE)
    line((stream, 84), (stream, 51))
    for what, code, does, color, y, height in boxes:
        x, width = (14, 334) if code else (14, 160)
        if does:
            x, width = 92, 256
        middle = x + width / 2
        at = f'x="{middle:g}" text-anchor="middle"'
        out.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{color}" '
            f'stroke="#000000"/><text {at} y="{y + 23}">{what}</text>'
        )
        if code:
            out.append(
                f'<text {at} y="{y + 43}" '
                f'font-family="monospace" font-size="13">{code}</text>'
            )
        if does:  # reads the stream below, adds to it above
            out.append(f'<text {at} y="{y + 63}" font-size="14">{does}</text>')
            below, above = y + height + 14, y - 14
            line((stream, below), (middle, below), (middle, y + height + 1))
            line((middle, y), (middle, above), (stream + 12, above))
            out.append(
                f'<circle cx="{stream}" cy="{above}" r="11" fill="#ffffff" '
                f'stroke="{PURPLE}" stroke-width="2.5"/>'
                f'<text x="{stream}" y="{above + 5}" '
                'text-anchor="middle" font-weight="bold">+</text>'
            )
    style = f'fill="{PURPLE}" font-weight="bold"'
    for y in (501, 346, 160):
        out.append(f'<text x="{stream + 12}" y="{y}" {style}>(B, T, C)</text>')
    out.append(
        f'<text transform="rotate(-90 34 325)" x="34" y="325" font-size="17" {style} '
        'text-anchor="middle">the residual stream</text>'
    )
    out.append("</svg>")
    write("architecture", "\n".join(out))


def muon():
    """What a gradient and Muon's update do to the unit circle, and a real spectrum."""
    angles = [2 * math.pi * i / 200 for i in range(201)]
    circle = [(math.cos(a), math.sin(a)) for a in angles]
    figure = plt.figure(figsize=(4.9, 6), layout="constrained")
    top, low = figure.subfigures(2, 1, height_ratios=(2.9, 3))
    both = top.subplots(1, 2)
    for axes, ((a, b), (c, d)), title, color, factors in (
        (both[0], ((3, 2), (2, 3)), "the gradient", BLUE, ("5 times", "once")),
        (both[1], ((1, 0), (0, 1)), "Muon's update", PURPLE, ("once", "once")),
    ):
        image = [(a * x + b * y, c * x + d * y) for x, y in circle]
        axes.plot(*zip(*image), color=color, linewidth=2.5)
        axes.plot(*zip(*circle), color="#444444", linewidth=1.2, linestyle="--")
        for sign, factor in zip((1, -1), factors):
            x, y = math.sqrt(0.5), sign * math.sqrt(0.5)
            end = (a * x + b * y, c * x + d * y)
            arrow(axes, (0, 0), end, color)
            at = dict(color=color, va="center", fontsize=13)
            if factor == "5 times":
                axes.text(1.9, 3.9, factor, ha="right", weight="bold", **at)
            else:
                axes.text(0.95, 1.2 * sign, factor, **at)
        axes.set(xlim=(-3.9, 3.9), ylim=(-3.9, 4.3), aspect="equal")
        axes.axis("off")
        axes.set_title(title, fontsize=14, color=color, weight="bold")
    words = "dashed: arrows of length 1; solid: what becomes of them"
    top.supxlabel(words, fontsize=12)
    report = (DOCS / "bench/effects.json").read_text(encoding="utf-8")
    values = json.loads(report)["spectrum"]["value"]
    relative = [value / values[0] for value in values]
    ranks = range(1, len(values) + 1)
    real = low.subplots()
    real.plot(ranks, relative, color=BLUE, linewidth=2.5)
    real.fill_between(ranks, relative, color=LIGHT_BLUE)
    real.axhline(1, color=PURPLE, linewidth=2.5)
    real.text(64, 0.93, "Muon's update: 1 for all", color=PURPLE, ha="center", va="top")
    half = round(values[0] / statistics.median(values))
    words = f"a real gradient (step 14):\nhalf of them below 1/{half}"
    real.text(64, 0.14, words, color=BLUE, ha="center", va="bottom")
    real.set(ylim=(0, 1.1), xlim=(1, len(values)), yticks=[0, 0.5, 1])
    real.set_xticks([1, 32, 64, 96, 128])
    real.set_xlabel("its 128 directions, by size")
    real.set_ylabel("factor (largest: 1)")
    save(figure, "muon", "A gradient and Muon's update: how far each direction moves")


def overfitting():
    """Train and val loss on a short text, with and without dropout."""
    report = (DOCS / "bench/effects.json").read_text(encoding="utf-8")
    runs = json.loads(report)["runs"]
    figure, axes = plt.subplots(figsize=(4.9, 4.4), layout="constrained")
    for name, color, label, width, val_at, train_at in (
        ("small text", RED, "no dropout", 3.5, (1060, 3.0), (940, 0.45)),
        ("small text, dropout 0.2", GREEN, "dropout", 2, (1590, 2.02), (1590, 1.3)),
    ):
        output = runs[name]["output"]
        pattern = r"step +(\d+) \| train loss (\S+) \| val loss (\S+)"
        lines = re.findall(pattern, output)
        steps, train, val = zip(*((int(s), float(a), float(b)) for s, a, b in lines))
        last = int(re.search(r"max_iters=(\d+)", runs[name]["flags"])[1])
        final = float(re.search(r"final val loss (\S+)", output)[1])
        at = dict(color=color, ha="right", va="center", fontsize=13)
        axes.plot([*steps, last], [*val, final], color=color, linewidth=width)
        axes.plot(steps, train, color=color, linewidth=1.5, linestyle="--")
        weight = "bold" if width > 3 else "normal"
        axes.text(*val_at, f"{label}: val", weight=weight, **at)
        axes.text(*train_at, f"{label}: train", **at)
        if color == RED:
            axes.fill_between(steps, train, val, color=RED, alpha=0.12, linewidth=0)
            low = min(zip(val, steps))
            axes.plot(low[1], low[0], "o", color=RED, markersize=9)
            words = f"lowest: {low[0]:.2f}"
            axes.text(low[1] + 20, low[0] + 0.45, words, color=RED, ha="center")
            at["weight"] = "bold"
            axes.text(1590, 2.42, "overfitting", **at)
    axes.set(xlabel="step", ylabel="loss on a text of 30 KB", ylim=(0, 4.4))
    axes.set_xlim(0, last)
    axes.set_xticks(range(0, last + 1, 400))
    axes.grid()
    save(figure, "overfitting", "Loss on a short text, with and without dropout")


def squares(axes, T, size, kinds):
    """Draw cells of a T x T matrix as squares; kinds: (color, alpha) -> [(i, j), ..]"""
    for (color, alpha), cells in kinds.items():
        rows, columns = zip(*cells)
        style = dict(marker="s", s=size, color=color, alpha=alpha, linewidths=0)
        axes.scatter(columns, rows, **style)
    axes.set(
        xlim=(-0.5, T - 0.5), ylim=(T - 0.5, -0.5), aspect="equal", xticks=[], yticks=[]
    )
    axes.spines[:].set_visible(False)


def sparse(T, stride, summary, tile):
    """The names of sparse_gpt.py for a short context."""
    return untrained(
        "sparse_gpt.py",
        f"--block_size={T}",
        f"--stride={stride}",
        f"--summary={summary}",
        f"--tile={tile}",
    )


def seen_by(names, hop, T):
    """A T x T matrix: does a hop of sparse_gpt.py let position i see position j?"""
    positions = np.arange(T)
    return names["sees"](hop, positions[:, None], positions)


def patterns():
    """Who sees whom among 36 positions, in rows of 6."""
    T, stride, summary = 36, 6, 2
    framed = 27
    names = sparse(T, stride, summary, tile=6)
    out = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 614 690" width="500" '
        'font-family="sans-serif" font-size="22">',
        "<title>Which positions attend to which: dense, strided and fixed</title>",
        '<rect width="614" height="690" fill="#ffffff"/>',
        "<defs>",
    ]
    # What is seen in both hops looks like what is seen in the first
    for name, color in {
        "a1": BLUE,
        "a2": "#d9822b",
        "both": BLUE,
        "none": "#dddddd",
    }.items():
        out.append(f'<rect id="{name}" width="7" height="7" fill="{color}"/>')
    out.append("</defs>")
    for n, name in enumerate(("dense", "strided", "fixed")):
        hops = names["patterns"][name]
        first = seen_by(names, hops[0], T)
        last = seen_by(names, hops[-1], T)
        left, top = 8 + 312 * (n % 2), 28 + 350 * (n // 2)
        count = int((first | last)[framed].sum())
        sees = f"{framed} sees {count} of {framed + 1}"
        right = f'x="{left + 290}" text-anchor="end"'
        out.append(
            f'<text {right} y="{top + 10}" font-size="26" font-weight="bold">{name}'
            f'</text><text {right} y="{top + 42}">{sees}</text>'
        )
        out.append(f'<g id="{name}" transform="translate({left} {top})">')
        for i in range(T):
            for j in range(i + 1):
                kind = "none"
                if len(hops) == 1:
                    kind = "a1"
                elif first[i, j] and last[i, j]:
                    kind = "both"
                elif first[i, j]:
                    kind = "a1"
                elif last[i, j]:
                    kind = "a2"
                out.append(f'<use href="#{kind}" x="{8 * j}" y="{8 * i}"/>')
        out.append(
            f'<rect x="-3.5" y="{8 * framed - 3.5}" width="{8 * framed + 14}" '
            'height="14" fill="none" stroke="#000000" stroke-width="3"/></g>'
        )
    x, y = 336, 446
    for kind, word in {
        "a1": "seen in hop 1",
        "a2": "seen in hop 2",
        "none": "reached in two hops",
    }.items():
        out.append(
            f'<use href="#{kind}" transform="translate({x} {y - 17}) scale(2.6)"/>'
            f'<text x="{x + 30}" y="{y}">{word}</text>'
        )
        y += 38
    y += 18
    for line in (
        "down: who sees",
        "across: who is seen",
        f"framed: position {framed}",
    ):
        out.append(f'<text x="{x}" y="{y}" fill="#444444">{line}</text>')
        y += 32
    out.append("</svg>")
    write("patterns", "\n".join(out))


def layouts():
    """Blocks of 6 x 6 scores: which must be computed, before and after reordering."""
    T, row, c = 36, 6, 2
    names = sparse(T, row, c, tile=row)
    column = names["patterns"]["strided"][1]
    last_columns = names["patterns"]["fixed"][1]
    panels = {
        "as they come": (column, names["as_they_come"]),
        "sorted by column": (column, column.order),
        "as they come ": (last_columns, names["as_they_come"]),
        "summaries first": (last_columns, last_columns.order),
    }
    figure, all_axes = plt.subplots(2, 2, figsize=(4.9, 6.6), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08, w_pad=0.08)
    for axes, (title, (hop, order)) in zip(all_axes.flat, panels.items()):
        positions = sorted(range(T), key=order)
        seen = []
        computed = 0
        for top in range(0, T, row):
            for left in range(0, T, row):
                before = len(seen)
                for y in range(top, top + row):
                    for x in range(left, left + row):
                        if names["sees"](hop, positions[y], positions[x]):
                            seen.append((y, x))
                color = LIGHT_GREY
                if len(seen) > before:
                    color = LIGHT_ORANGE
                    computed += 1
                corner = (left - 0.3, top - 0.3)
                block = plt.Rectangle(corner, row - 0.4, row - 0.4, facecolor=color)
                axes.add_patch(block)
        squares(axes, T, 10, {(BLUE, 1): seen})
        axes.set_title(title, fontsize=13)
        sorted_now = order is not names["as_they_come"]
        style = dict(fontsize=14, weight="bold", color=GREEN if sorted_now else "black")
        axes.set_xlabel(f"{computed} of 36 blocks", **style)
    for axes, name in zip(all_axes[:, 0], ("strided", "fixed")):
        axes.set_ylabel(name, fontsize=15, weight="bold")
    kinds = {"seen in hop 2": BLUE, "computed": LIGHT_ORANGE, "skipped": LIGHT_GREY}
    handles = [Patch(color=color, label=kind) for kind, color in kinds.items()]
    style = dict(ncols=3, frameon=False, columnspacing=1, handlelength=1.2)
    style["title"] = "down: queries, across: keys"
    figure.legend(handles=handles, loc="outside lower center", **style)
    title = "The blocks of scores that are computed, before and after reordering"
    save(figure, "layouts", title)


def curves():
    """The loss of every script against the seconds of training."""
    figure, axes = plt.subplots(figsize=(4.9, 4.4), layout="constrained")
    nothing = 4.17  # the loss of a model that holds all characters for equally likely
    axes.axhline(nothing, color=GREY, linewidth=1, linestyle="--")
    axes.text(300, nothing + 0.04, f"{nothing}: knows nothing yet", ha="right")
    ladder = tables("ladder")["Every script without arguments"]
    low, lines = [], []
    for name, run in tables("curves").items():
        points = [(s, loss) for s, loss in run["points"] if s > 0.01]
        seconds, losses = zip(*points)
        end = (seconds[-1], losses[-1])
        color = COLORS[name]
        (line,) = axes.plot(seconds, losses, linewidth=2.5, color=color)
        lines.append(line)
        axes.plot(*end, "o", color=color, markersize=8)
        label = f"{name}.py: {losses[-1]:.2f}"
        latest = statistics.median(ladder[name]["final val loss"])
        if abs(latest - losses[-1]) > 0.01:  # the script learns better since then
            label += f", by now {latest:.2f}"
        if losses[-1] < 2:
            low.append((losses[-1], label, end, color))
        else:
            at = (seconds[-1] * (1.2 if seconds[-1] < 1 else 0.42), losses[-1] - 0.1)
            axes.text(*at, label, color=color, ha="right", va="top", fontsize=13)
    for n, (_, label, end, color) in enumerate(sorted(low, reverse=True)):
        at = dict(color=color, fontsize=13, ha="right", va="center")
        axes.text(42, 1.62 - 0.19 * n, label, **at)
    axes.set(xscale="log", xlabel="time of training, on two cores (log scale)")
    axes.set(ylabel="val loss: lower is better", ylim=(1.1, 4.45), xlim=(0.018, 320))
    below = plt.Rectangle((0.01, 1), 1000, nothing - 1, transform=axes.transData)
    for line in lines:  # with 256 tokens they begin higher, at 5.5
        line.set_clip_path(below)
    ticks = {0.1: "0.1 s", 1: "1 s", 10: "10 s", 60: "1 min", 240: "4 min"}
    axes.set_xticks([*ticks], [*ticks.values()])
    axes.minorticks_off()
    axes.grid()
    title = "Validation loss of the scripts against the time of training"
    save(figure, "curves", title)


def peers():
    """The loss of gpt_char.py and of its peers after runs of some length."""
    figure, axes = plt.subplots(figsize=(4.9, 4.3), layout="constrained")
    report, runs = tables("char"), {}
    rows = report["Validation loss after a run of so many seconds of training"]
    for name, row in rows.items():
        runs.setdefault(name.split(", ")[1], []).append(
            (row["train s"][0], row["val loss"][0])
        )
    labels = {  # the colour, the places of the name and of the last loss
        "gpt_char": (GREEN, (9, 1.72), (178, 1.41)),
        "nanoGPT": (ORANGE, (94, 2.03), (240, 1.615)),
        "ng-video-lecture": (BLUE, (14.5, 2.46), (240, 1.695)),
    }
    for name, (color, place, end) in labels.items():
        points = sorted(runs[name])
        axes.plot(*zip(*points), "o", color=color, markersize=5)
        best = []  # the best run that takes no longer
        for seconds, loss in points:
            if not best or loss < best[-1][1]:
                best.append((seconds, loss))
        weight = "bold" if color == GREEN else "normal"
        width = 3.5 if color == GREEN else 2
        axes.plot(*zip(*best), linewidth=width, color=color)
        at = dict(color=color, fontsize=13, weight=weight, va="center")
        axes.text(*place, name, **at)
        axes.text(*end, f"{best[-1][1]:.2f}", **at)
    axes.axhline(1.4697, color=GREY, linewidth=1, linestyle="--")  # nanoGPT's README
    words = "1.4697: nanoGPT, 3 minutes of an A100"
    axes.text(5.7, 1.39, words, color="#555555")
    axes.text(5.7, 1.54, "dots: runs,\nlines: the best so far", color="#555555")
    axes.set(xscale="log", xlabel="seconds of training, on two cores (log scale)")
    axes.set(ylabel="val loss: lower is better", xlim=(5.3, 330), ylim=(1.35, 2.7))
    ticks = [7.5, 15, 30, 60, 120, 240]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid()
    save(
        figure, "peers", "Validation loss of gpt_char.py, nanoGPT and ng-video-lecture"
    )


def cost():
    """The time of attention against the length of the context."""
    path = DOCS / "bench/sparse_speed.json"
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    lengths = sorted(int(name.split()[2]) for name in runs)
    figure, axes = plt.subplots(figsize=(4.9, 4.6), layout="constrained")
    colors = {"dense": ("#333333", 11_000), "window, two rows": (GREEN, 950)}
    colors |= {"fixed": (BLUE, 530), "strided": (ORANGE, 300)}  # and heights of labels
    for name, (color, height) in colors.items():
        times = []
        for T in lengths:
            times.append(statistics.median(runs[f"T = {T}"]["times"][name]))
        width = 3 if name in ("dense", "strided") else 1.5
        axes.plot(lengths, times, "o-", linewidth=width, color=color)
        label = f"{name.split(',')[0]} {times[-1] / 1000:.1f} s"
        at = dict(color=color, va="center", fontsize=13)
        axes.text(lengths[-1] * 1.2, height, label, **at)
        factor = times[-1] / times[-2]
        x = math.sqrt(lengths[-2] * lengths[-1])
        y = math.sqrt(times[-2] * times[-1])
        at = dict(color=color, weight="bold", va="center", fontsize=13)
        if name == "dense":
            words = f"{factor:.0f} times\nthe time"
            axes.text(x * 0.85, 1.7 * y, words, ha="right", **at)
        elif name == "strided":
            axes.text(x, 0.42 * y, f"{factor:.0f} times\nthe time", **at)
    axes.set(xscale="log", yscale="log", xlabel="T, positions in the context")
    axes.set(ylabel="time, forward and backward (log scale)")
    axes.set(xlim=(lengths[0] * 0.85, lengths[-1] * 1.15), ylim=(9, 20_000))
    axes.set_xticks(lengths, [f"{n:,}" for n in lengths])
    axes.set_yticks([10, 100, 1000, 10_000], ["10 ms", "0.1 s", "1 s", "10 s"])
    axes.minorticks_off()
    axes.grid()
    axes.set_title("four times the positions take", fontsize=13)
    title = "Time of dense and of sparse attention against the length of the context"
    save(figure, "cost", title)


def accumulation():
    """A batch of eight sequences at once, and in four micro-batches."""
    figure, axes = sheet(49.5, 62)
    words = dict(va="center", fontsize=13)
    memory = dict(color=RED, weight="bold", **words)
    axes.text(0.5, 60, "at once", weight="bold", **words)
    for i in range(8):
        box(axes, 2, 54.5 - 2.5 * i, 13, 2.1, LIGHT_BLUE)
    frame(axes, 1, 36, 15, 21.6, RED)
    axes.text(18, 55.5, "memory: 8 sequences", **memory)
    arrow(axes, (16.8, 46.5), (22.5, 46.5))
    box(axes, 23, 43.5, 9, 6, LIGHT_ORANGE, "loss")
    arrow(axes, (32.5, 46.5), (37.5, 46.5), GREEN)
    box(axes, 38, 43.5, 11, 6, LIGHT_GREEN, "gradient")
    axes.text(0.5, 31.5, "one after the other", weight="bold", **words)
    axes.text(25, 31.5, "memory: 2 sequences", **memory)
    for i in range(4):
        y = 22.8 - 7.2 * i
        for j in range(2):
            box(axes, 5.5, y + 0.9 + 2.5 * j, 9.5, 2.1, LIGHT_BLUE)
        frame(axes, 4.5, y, 11.5, 6.3, RED)
        axes.text(0.5, y + 3, f"{i + 1}.", weight="bold", **words)
        arrow(axes, (16.8, y + 3), (22.5, y + 3))
        box(axes, 23, y, 9, 6, LIGHT_ORANGE, "loss / 4")
        arrow(axes, (32.5, y + 3), (37.5, y + 3), GREEN)
    box(axes, 38, 1.2, 11, 27.6, LIGHT_GREEN)
    axes.text(43.5, 15, "added up:\n\nthe same\ngradient", ha="center", **words)
    save(figure, "accumulation", "A batch at once, and the same in four micro-batches")


def ddp():
    """Two processes compute half of a step each and average their gradients."""
    figure, axes = sheet(47, 54)
    for rank, color in enumerate((LIGHT_BLUE, LIGHT_ORANGE)):
        x = 0.5 + 25 * rank
        middle = x + 10.5
        axes.text(middle, 51.8, f"rank {rank}", ha="center", weight="bold", fontsize=14)
        windows = ("0, 1, 4, 5", "2, 3, 6, 7")[rank]
        box(axes, x, 43.5, 21, 6.4, color, f"windows {windows}")
        arrow(axes, (middle, 43.2), (middle, 39.8))
        box(axes, x, 33.2, 21, 6.4, LIGHT_GREY, "the whole model")
        arrow(axes, (middle, 32.9), (middle, 29.5))
        box(axes, x, 22.9, 21, 6.4, color, f"gradient {rank}")
        arrow(axes, (middle, 22.6), (middle, 19.2), GREEN)
        arrow(axes, (middle, 10.4), (middle, 7), GREEN)
        box(axes, x, 0.4, 21, 6.4, LIGHT_GREEN, "the same step")
    box(axes, 0.5, 10.7, 46, 8.2, LIGHT_GREEN)
    words = "all-reduce: both get the mean"
    at = dict(ha="center", va="center", fontsize=14)
    axes.text(23.5, 14.8, words, weight="bold", **at)
    save(figure, "ddp", "Two processes, one mean gradient, and the same step in both")


def zero():
    """Five pieces, shared out between two processes and collected again."""
    figure, axes = sheet(47, 54)
    colors = (LIGHT_BLUE, LIGHT_ORANGE)
    middles = (11, 36)
    for rank, middle in enumerate(middles):
        axes.text(middle, 51.8, f"rank {rank}", ha="center", weight="bold", fontsize=14)
        for piece in range(5):
            x = middle - 10.5 + 4.25 * piece
            owner = piece // 3
            if owner == rank:
                box(axes, x, 26.2, 4, 5, colors[owner], str(piece), 13)
            else:
                frame(axes, x, 26.2, 4, 5, "#cccccc")
            box(axes, x, 40.7, 4, 5, LIGHT_GREY, str(piece), 13)
            box(axes, x, 0.4, 4, 5, colors[owner], str(piece), 13)
        arrow(axes, (middle, 40.4), (middle, 37.2))
        arrow(axes, (middle, 25.6), (middle, 22), GREEN)
        arrow(axes, (middle, 13.2), (middle, 9.6), GREEN)
    box(axes, 0.5, 13.5, 46, 8.2, LIGHT_GREEN)
    at = dict(ha="center", va="center", fontsize=13)
    axes.text(23.5, 48.3, "mean gradients: the same in both", **at)
    words = "Muon's work: each only for its own"
    axes.text(23.5, 34.4, words, weight="bold", **at)
    words = "all-gather: both get all of them"
    axes.text(23.5, 17.6, words, weight="bold", **at)
    axes.text(23.5, 7.6, "updates: the same in both", **at)
    save(figure, "zero", "The pieces of Muon, shared out between two processes")


def formats():
    """The bits of three number formats, and the range that they cover."""
    kinds = (  # name, bits of the exponent, of the fraction, smallest and largest
        ("float32", 8, 23, -126, 128),
        ("bfloat16", 8, 7, -126, 128),
        ("float16", 5, 10, -14, 16),
    )
    figure, (top, low) = plt.subplots(2, 1, figsize=(4.9, 6), layout="constrained")
    for n, (name, exponent, fraction, smallest, largest) in enumerate(kinds):
        y = 2 - n
        box(top, 0, y, 1, 0.46, LIGHT_GREY)
        box(top, 1, y, exponent, 0.46, LIGHT_ORANGE, str(exponent), 13)
        box(top, 1 + exponent, y, fraction, 0.46, LIGHT_BLUE, str(fraction), 13)
        color = RED if name == "float16" else "black"
        style = dict(color=color, weight="bold", fontsize=13)
        top.text(0, y + 0.53, name, va="bottom", **style)
        color = RED if name == "float16" else BLUE
        low.plot([smallest, largest], [y, y], color=color, linewidth=11)
        tail = smallest - fraction  # smaller ones have fewer digits
        low.plot([tail, smallest], [y, y], color=color, linewidth=3)
        style["color"] = color
        if name == "float16":
            low.text(largest + 6, y, "float16\nmisses them", va="center", **style)
        else:
            low.text(largest, y + 0.2, name, ha="right", va="bottom", **style)
    top.text(8.2, 2.55, "range", color=ORANGE, ha="center", va="bottom")
    top.text(20.5, 2.55, "precision", color=BLUE, ha="center", va="bottom")
    top.set(xlim=(-0.2, 32.2), ylim=(-0.1, 3.1))
    top.set_title("bits of a number", fontsize=13)
    top.axis("off")
    # 1 / 50,257 tokens / 1,536 to 524,288 positions in a step
    low.axvspan(-35, -26, color=RED, alpha=0.25, linewidth=0, zorder=0)
    words = "gradients of\nGPT-2's logits"
    low.text(-39, 0.0, words, ha="right", va="center", color=RED)
    powers = {-126: "2⁻¹²⁶", -64: "2⁻⁶⁴", -14: "2⁻¹⁴", 16: "2¹⁶", 64: "2⁶⁴"}
    powers[128] = "2¹²⁸"
    low.set_xticks([*powers], [*powers.values()], fontsize=14)
    low.set(yticks=[], ylim=(-0.5, 2.7), xlabel="size of a number (thin: fewer digits)")
    low.spines["left"].set_visible(False)
    save(figure, "formats", "The bits and the range of float32, bfloat16 and float16")


def cache():
    """Rows of queries, keys and values that are computed, without and with a cache."""
    figure, axes = sheet(48, 41)
    at = dict(ha="center", va="center")
    for n, title in enumerate(("without a cache", "with a cache")):
        left = 5 + 22.6 * n
        axes.text(left + 10, 39, title, weight="bold", fontsize=14, **at)
        computed = 0
        for k, name in enumerate("qkv"):
            x = left + 6.9 * k
            axes.text(x + 3.1, 35.3, name, fontsize=13, **at)
            for i in range(6):
                new = n == 0 or i == 5
                computed += new
                if name == "q" and not new:
                    continue
                color, word = (LIGHT_ORANGE, "new") if new else (LIGHT_BLUE, "kept")
                box(axes, x, 29.5 - 4.5 * i, 6.2, 4, color, word)
        words = dict(weight="bold", fontsize=15, color=RED if n == 0 else GREEN)
        axes.text(left + 10, 3.6, f"{computed} to compute", **words, **at)
    for i in range(6):
        axes.text(2, 31.5 - 4.5 * i, f"{i + 1}", **at)
    axes.text(23.5, 0.3, "rows: the 6 tokens so far", color="#555555", **at)
    save(
        figure, "cache", "What is computed for one more token, without and with a cache"
    )


# A picture is drawn by the function of its name
PICTURES = {f.__name__: f for f in (bigram, heads, qkv, attention, samples)}
PICTURES |= {f.__name__: f for f in (shapes, schedule, worth)}
PICTURES |= {f.__name__: f for f in (architecture, muon, overfitting)}
PICTURES |= {f.__name__: f for f in (accumulation, ddp, zero, formats, cache)}
PICTURES |= {f.__name__: f for f in (patterns, layouts, curves, peers, cost)}

if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):  # not so in a notebook
        sys.stdout.reconfigure(errors="replace")  # "?" for what a console cannot show
    chosen = sys.argv[1:] or list(PICTURES)
    for name in chosen:
        if name not in PICTURES:
            sys.exit(f"{name}: no such picture; choose from {', '.join(PICTURES)}")
    for name in chosen:
        PICTURES[name]()
        print(f"{DOCS / 'pictures' / name}.svg")
