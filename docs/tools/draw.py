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
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from matplotlib.transforms import ScaledTranslation

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


SHOWN = {" ": "␣", "\n": "↵"}


def lift_spaces(axes):
    """Move the sign of a space up: below its line it seems to be the next row's."""
    up = ScaledTranslation(0, 4 / 72, axes.figure.dpi_scale_trans)
    for label in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
        if label.get_text() == SHOWN[" "]:
            label.set_transform(label.get_transform() + up)


def letters(axes, columns, rows):
    """Label the cells of a matrix by characters, the columns on top."""
    axes.set_xticks(
        [i + 0.5 for i in range(len(columns))], [SHOWN.get(c, c) for c in columns]
    )
    axes.set_yticks(
        [i + 0.5 for i in range(len(rows))], [SHOWN.get(c, c) for c in rows]
    )
    axes.xaxis.tick_top()
    axes.invert_yaxis()
    axes.tick_params(length=0, labelsize=9)
    lift_spaces(axes)  # after the length of ticks, which sets their places anew
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
    at = dict(ha="center", va="center", fontsize=20, transform=both[1].transAxes)
    both[1].text(-0.11, 1.29, "≈", **at).set_in_layout(False)
    words = "in percent, below 5 not shown; ␣ is a space.\n"
    words += "Framed: how “the␣” is written"
    figure.supxlabel(words, fontsize=12)
    save(figure, "bigram", "The table of pairs of characters, counted and learned")


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
    """Draw a matrix as an image, its rows labeled by characters."""
    limits = dict(vmin=-5, vmax=5, aspect="auto")
    axes.imshow(matrix, cmap="RdBu", interpolation="none", **limits)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks([])
    axes.tick_params(length=0, labelsize=12)
    lift_spaces(axes)
    axes.spines[:].set_visible(True)
    axes.set_title(title, color=color, fontsize=13)


def qkv():
    """Where the queries, keys and values of a line of text come from."""
    text, x, every_head = one_line()
    q, k, v = every_head[HEAD]
    figure = plt.figure(figsize=(4.9, 5.8))
    left, width = 0.06, 0.92
    top = figure.add_axes((left, 0.62, width, 0.32))
    strip(top, x, "x: 128 numbers for each letter ...", "black", text)
    parts = (
        ("query", "Q", q, BLUE, LIGHT_BLUE),
        ("key", "K", k, ORANGE, LIGHT_ORANGE),
        ("value", "V", v, GREEN, LIGHT_GREEN),
    )
    for n, (layer, letter, matrix, color, fill) in enumerate(parts):
        start = left + n * (width - width / 4) / 2
        # A quarter as wide as x, as its rows have a quarter as many numbers
        axes = figure.add_axes((start, 0.12, width / 4, 0.32))
        strip(axes, matrix, "", color, text)
        axes.set_title(letter, color=color, fontsize=14, weight="bold", pad=4)
        middle = start + width / 8
        line = dict(arrowstyle="simple,head_width=1.2,head_length=0.8,tail_width=0.3")
        line |= dict(color=color, linewidth=0, shrinkA=0, shrinkB=0)
        # Not "figure fraction", which ignores that the figure is cut when it is saved
        at = dict(xycoords=figure.transFigure, textcoords=figure.transFigure)
        top.annotate("", (middle, 0.49), (middle, 0.612), arrowprops=line, **at)
        words = dict(fontsize=13, ha="center", va="center", weight="bold")
        words["bbox"] = dict(facecolor=fill, edgecolor=color, boxstyle="round,pad=0.3")
        figure.text(middle, 0.563, f"self.{layer}", **words)
    each = []
    for _, letter, matrix, _, _ in parts:
        each.append(f"{matrix.shape[1]} in {letter}")
    words = f"... become {', '.join(each)} (head {HEAD + 1})"
    figure.text(left + width / 2, 0.07, words, ha="center")
    figure.text(left + width / 2, 0.02, SIGNS, ha="center", color="#555555")
    save(figure, "qkv", "The queries, keys and values of a line, made from its vectors")


# The ends of Oranges are left out: a light cell has to differ from the background, and
# the strongest color would be pale in the dark form
LEAST, MOST = 0.14, 0.9
SCORES = plt.cm.Oranges(np.linspace(LEAST, MOST, 256))
# In the middle of Oranges, neither black nor white digits can be read in both forms:
# below one half, the weights are light, with black digits, above it strong, with white
WEIGHTS = np.concatenate(
    [
        plt.cm.Oranges(np.linspace(LEAST, 0.44, 128)),
        plt.cm.Oranges(np.linspace(0.78, MOST, 128)),
    ]
)


def in_cell(axes, x, y, weight, size):
    """Write a weight on its color. The dark form turns both around."""
    at = dict(ha="center", va="center_baseline", fontsize=size)
    axes.text(x, y, f"{weight:.2f}", color="white" if weight >= 0.5 else "black", **at)


def cells(axes, matrix, text, title, colors, limits, future):
    """Draw a matrix of positions in colors.

    What is hidden from a position is nan, and stays empty; there, future is written.
    """
    T = len(text)
    low, high = limits
    shown = np.ma.masked_invalid(matrix)
    style = dict(cmap=ListedColormap(colors), interpolation="none")
    axes.imshow(shown, vmin=low, vmax=high, **style)
    separate(axes, T)
    for edge in range(1, T):
        axes.axvline(edge - 0.5, color="white", linewidth=0.8)
    place = (0.72 * T - 0.5, 0.25 * T - 0.5)
    axes.text(*place, future, ha="center", va="center", color="#555555")
    axes.set_xticks(range(T), text)
    axes.set_yticks(range(T), text)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=13)
    lift_spaces(axes)
    axes.spines[:].set_visible(False)
    axes.set_title(title, weight="bold")


def separate(axes, rows):
    """Thin lines between the rows of an image."""
    for edge in range(1, rows):
        axes.axhline(edge - 0.5, color="white", linewidth=0.8)


def weights_of(scores):
    """The masked softmax of each row; nan where the mask is."""
    past = np.tril(np.ones(scores.shape, dtype=bool))
    powers = np.exp(np.where(past, scores, -np.inf))
    return np.where(past, powers / powers.sum(axis=1, keepdims=True), np.nan)


def in_numbers(axes, text, scores, weights, size):
    """A row of scores above its weights, in numbers, without the future (nan)."""
    past = np.flatnonzero(~np.isnan(weights))
    T = len(past)
    style = dict(cmap=ListedColormap(WEIGHTS), vmin=0, vmax=1)
    axes.pcolormesh(range(T + 1), (1, 2), weights[past][None], **style)
    at = dict(ha="center", va="center_baseline", fontsize=size)
    for j in past:
        # As many digits as it takes to get the weight
        axes.text(j + 0.5, 0.5, f"{scores[j]:.2f}".replace("-", "−"), **at)
    for j in past:
        in_cell(axes, j + 0.5, 1.5, weights[j], size)
    for edge in range(1, T):
        axes.axvline(edge, color="white", linewidth=0.8)
    axes.set_ylim(0, 2)
    letters(axes, text[:T], ())
    axes.set_yticks((0.5, 1.5), ("score", "weight"))
    axes.tick_params(labelsize=13)
    frame(axes, 0, 0, T, 2)


def as_sum(letter, weights, text):
    """A row of the output as a sum over the largest weights of its letter."""
    parts = []
    for j in np.argsort(-weights)[:3]:
        name = "space" if text[j] == SHOWN[" "] else text[j]
        parts.append(f"{weights[j]:.2f} V({name})")
    first, second, third = parts
    return f"output of {letter} = {first} + {second}\n+ {third} + ..."


def attention():
    """From queries and keys to scores, weights and the output, on a line of text.

    In two forms: two by two, and below each other for narrow screens, where the scores
    are there only once. A frame is around the row that the chapter computes by hand.
    Its scores and weights are there in numbers, too, so that one can check one by the
    other.
    """
    text, _, every_head = one_line()
    q, k, v = every_head[HEAD]
    T = len(text)
    row = text.index("h")
    scores = q @ k.T / q.shape[1] ** 0.5
    weights = weights_of(scores)
    hidden = np.where(np.isnan(weights), np.nan, scores)
    output = np.nan_to_num(weights) @ v
    formula = "Q Kᵀ / √32"
    message = "each letter mixes the letters so far:\nthe weights in its row sum to 1"
    looked_at = "the letter that is looked at"
    strong = "what stands out is high"
    limits = (-18, 9)
    masked = (
        "scores, the future hidden",
        hidden,
        SCORES,
        limits,
        "the future:\nhidden",
    )
    softmax = ("weights: softmax", weights, WEIGHTS, (0, 1), "the future:\nweight 0")
    wide = {
        "scores": (f"scores: {formula}", scores, SCORES, limits, ""),
        "hidden": masked,
        "weights": softmax,
    }
    narrow = {"hidden": masked, "weights": softmax}
    for name, panels, places, size, heights in (
        (
            "attention",
            wide,
            [["scores", "hidden"], ["row", "row"], ["weights", "output"]],
            (7.8, 10.6),
            (1, 0.26, 1),
        ),
        (
            "attention_narrow",
            narrow,
            [["hidden"], ["row"], ["weights"], ["output"]],
            (4.4, 12.4),
            (1, 0.32, 1, 1),
        ),
    ):
        is_narrow = panels is narrow
        style = dict(figsize=size, height_ratios=heights, layout="constrained")
        figure, parts = plt.subplot_mosaic(places, **style)
        figure.get_layout_engine().set(h_pad=0.08 if is_narrow else 0.12)
        figure.suptitle(message, fontsize=15 if is_narrow else 18, weight="bold")
        number = 1
        for part, (title, matrix, *how) in panels.items():
            cells(parts[part], matrix, text, f"{number}. {title}", *how)
            number += 1
        for i, j in np.argwhere(weights >= 0.01):
            in_cell(parts["weights"], j, i, weights[i, j], 10 if is_narrow else 11)
        if is_narrow:
            parts["hidden"].set_xlabel(f"{looked_at}\n({formula}; {strong})")
            first = parts["hidden"]
        else:
            parts["scores"].set_xlabel(f"{looked_at}\n({strong})")
            parts["hidden"].set_xlabel(f"{looked_at}\n")  # as high as its neighbor
            first = parts["scores"]
        rounded = "each row sums to 1\n(rounded; below 0.01: blank)"
        parts["weights"].set_xlabel(rounded)
        seen = (text, hidden[row], weights[row])
        in_numbers(parts["row"], *seen, 8.5 if is_narrow else 12)
        words = f"row {text[row]} in numbers, up to {text[row]} itself"
        parts["row"].set_title(words, weight="bold", pad=8)
        softmax_words = "weight = exp(score) / sum of exp(score)"
        between = "\n" if is_narrow else " "
        parts["row"].set_xlabel(f"{softmax_words}{between}(all numbers are rounded)")
        last = parts["output"]
        strip(last, output, "", "black", text)
        separate(last, T)
        columns = output.shape[1]
        last.set_xticks((0, columns - 1), (1, columns))
        last.xaxis.tick_top()
        # 4 more than elsewhere, where the sign of the space is lifted by as much
        last.set_title(f"{number}. output: weights · V", weight="bold", pad=10)
        last.tick_params(labelsize=13)
        terms = as_sum(text[row], weights[row], text)
        note = f"(the rows are outputs, not V;\n{SIGNS})"
        last.set_xlabel(f"{terms}\n{note}")
        for part, axes in parts.items():
            axes.set_aspect("auto")
            axes.title.set_fontsize(13 if is_narrow else 14)
            if part == "row":
                continue
            frame(axes, -0.5, row - 0.5, columns if axes is last else T, 1)
            axes.get_yticklabels()[row].set_weight("bold")
        for axes in (first, parts["weights"]):
            axes.set_ylabel("the letter that looks")
        save(figure, name, "Scores, masked scores, weights and output for a line")


def heads():
    """What each of the four heads looks at, on the same line."""
    text, _, every_head = one_line()
    T = len(text)
    row = text.index("h")
    figure, all_axes = plt.subplots(2, 2, figsize=(4.9, 5.9), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1)
    for n, (axes, (q, k, _)) in enumerate(zip(all_axes.flat, every_head), start=1):
        weights = weights_of(q @ k.T / q.shape[1] ** 0.5)
        shown = np.ma.masked_invalid(weights)
        axes.imshow(shown, cmap="Oranges", vmin=0, vmax=1, interpolation="none")
        frame(axes, -0.5, row - 0.5, row + 1, 1)
        most = []
        for j in np.argsort(-weights[row, : row + 1]):
            if weights[row, j] > 0.1:
                most.append({SHOWN[" "]: "space"}.get(text[j], text[j]))
        if most == [text[row]]:
            most = ["itself"]
        place = (0.72 * T - 0.5, 0.2 * T - 0.5)
        at = dict(ha="center", va="center", fontsize=13, weight="bold")
        axes.text(*place, f"{text[row]} looks at\n{', '.join(most)}", **at)
        axes.set_xticks(range(T), text)
        axes.set_yticks(range(T), text)
        axes.get_yticklabels()[row].set_weight("bold")
        axes.xaxis.tick_top()
        axes.tick_params(length=0, labelsize=12)
        lift_spaces(axes)
        axes.spines[:].set_visible(False)
        axes.set_title(f"head {n}", fontsize=13)
    figure.supylabel("the letter that looks", fontsize=12)
    words = "the letter that is looked at\n(strong color: much weight)"
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
    title = "training turns noise into words"
    out = [f'<text x="8" y="24" font-size="18" font-weight="bold">{title}</text>']
    out.append(f'<text x="8" y="48" {style}>green: a word of Shakespeare</text>')
    words = "each sample goes on; the % counts all of it"
    out.append(f'<text x="8" y="68" font-size="14">{words}</text>')
    y = 102
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
    figure, axes = sheet(47, 70)
    four = [LIGHT_BLUE, LIGHT_ORANGE, LIGHT_GREEN, LIGHT_PURPLE]
    center = 15
    hs, C = 2.2, 8.8  # widths

    def heads_of(x, y):
        """A matrix whose columns belong to four heads."""
        for i, color in enumerate(four):
            box(axes, x + i * hs, y, hs, 6, color)

    def shape(y, words):
        style = dict(va="center", ha="right", fontsize=13, weight="bold")
        axes.text(46.5, y + 3, words, **style)

    def step(y, words, family="monospace"):
        arrow(axes, (center, y + 5.4), (center, y + 0.8))
        axes.text(center + 1.7, y + 3.1, words, va="center", family=family)

    edge = dict(ha="center", va="center", fontsize=13, color="#555555")
    box(axes, center - C / 2, 60, C, 6, LIGHT_GREY, "x", 14)
    axes.text(center - C / 2 - 1.3, 63, "T", **edge)
    axes.text(center, 67.5, "C", **edge)
    shape(60, "(B, T, C)")
    step(53.7, "c_attn, split")
    for n, name in enumerate("qkv"):
        middle = center + 9.9 * (n - 1)
        axes.text(middle, 51.2, name, ha="center", weight="bold", fontsize=14)
        heads_of(middle - C / 2, 44)
    shape(44, "(B, T, C)\neach")
    step(37.7, "view, transpose")
    for i, color in enumerate(four):
        middle = center + 7.5 * (i - 1.5)
        for n, name in enumerate("qkv"):
            box(axes, middle + hs * (n - 1.5), 31, hs, 6, color, name)
        axes.text(middle, 28.3, f"head {i + 1}", ha="center")
        box(axes, middle - hs / 2, 15.3, hs, 6, color)
        if i == 0:
            axes.text(middle - hs / 2 - 1.3, 18.3, "T", **edge)
            axes.text(middle, 22.8, "hs", **edge)
    shape(31, "(B, nh, T, hs)\neach")
    step(22, "attention, each head alone", "sans-serif")
    shape(15.3, "(B, nh, T, hs)")
    step(9, "transpose, reshape")
    heads_of(center - C / 2, 2.6)
    shape(2.6, "(B, T, C)")
    axes.text(23.5, -1.2, "nh heads of hs numbers: C = nh · hs", ha="center")
    save(figure, "shapes", "The shapes of tensors through attention, with four heads")


def schedule():
    """The learning rate of gpt_char.py, by its own function: the start, and all."""
    names = untrained("gpt_char.py", "--bfloat16")
    last_step = names["parser"].get_default("max_iters")
    get_lr = names["get_lr"]
    get_lr.__globals__["max_iters"] = last_step  # instead of 0
    peak = max(range(last_step), key=get_lr)
    style = dict(sharey=True, width_ratios=(1, 1.9), layout="constrained")
    figure, (start, whole) = plt.subplots(1, 2, figsize=(4.9, 4.1), **style)
    for axes, steps in ((start, range(peak + 1)), (whole, range(peak, last_step + 1))):
        axes.plot(steps, [get_lr(step) for step in steps], color=GREEN, linewidth=3)
        axes.grid()
        axes.set_xlabel("step")
    start.set(xlim=(0, 1.15 * peak), xticks=[0, peak], ylabel="learning rate")
    heights = (0, 0.005, 0.01, 0.015)
    start.set_yticks(heights, [f"{height:g}" for height in heights])
    start.set_ylim(0, 0.0165)
    start.plot(0, get_lr(0), "o", color=GREEN, markersize=9, clip_on=False, zorder=3)
    start.text(0.45, get_lr(0) - 0.0008, f"{get_lr(0):g}", color=GREEN)
    highest = f"{get_lr(peak):.1e}".replace("e-0", "e-")
    words = f"{get_lr(peak):g} = {highest}"
    whole.text(peak + 130, 1.01 * get_lr(peak), words, color=GREEN)
    whole.set_xlim(peak - 0.05 * last_step, last_step)
    ticks = [peak, *range(2000, last_step + 1, 2000)]
    whole.set_xticks(ticks, [f"{step:,}" for step in ticks])
    titles = (
        (start, f"up: {peak} steps", "axis stretched"),
        (whole, f"down: {last_step - peak:,} steps", "in a straight line"),
    )
    for axes, title, words in titles:
        axes.set_title(title, weight="bold", fontsize=13, color=GREEN, pad=22)
        at = dict(ha="center", va="bottom", color=GREEN, transform=axes.transAxes)
        axes.text(0.5, 1.02, words, **at)
    whole.spines["left"].set_visible(False)
    whole.tick_params(axis="y", length=0)
    slash = dict(marker=[(-0.6, -1), (0.6, 1)], markersize=13, color="black")
    slash |= dict(linestyle="none", clip_on=False, zorder=4)
    for axes, edge in ((start, 1), (whole, 0)):  # the axis is broken
        axes.plot(edge, 0, transform=axes.transAxes, **slash)
    save(figure, "schedule", "The learning rate of gpt_char.py over its steps")


def worth():
    """What each idea bought: the val loss after the steps of the chapter gpt_char."""
    report = (DOCS / "bench/steps_gpt_char.json").read_text(encoding="utf-8")
    measured = json.loads(report)["steps"]
    text = (DOCS / "gpt_char.md").read_text(encoding="utf-8")
    titles = dict(re.findall(r"^## (\d+)\. (.+)$", text, re.M))
    rows = []  # number, loss before, loss
    for name, row in measured.items():
        if not row["val loss"]:
            continue
        loss = row["val loss"][0]
        number = int(name[:2])
        before = rows[-1][2] if rows else loss
        rows.append((number, before, loss))
    groups = {1: "architecture", 7: "optimizer", 28: "sizes"}  # where they begin
    notes = {7: "back to plain, on purpose", 8: "pays off with step 9"}
    notes |= {11: "pays off in long runs", 28: "larger: pays off after 4,000 steps"}
    figure, axes = plt.subplots(figsize=(4.9, 6.6))
    y = 0
    above = None  # the bar before
    for number, before, loss in rows:
        change = loss - before
        if number in groups:
            style = dict(va="center", color="#555555", weight="bold")
            axes.text(1.3, y + 0.2, groups[number], **style)
            y += 1.2
        if number and abs(change) <= 0.02:  # chance is nearly as large
            continue
        title = "v2_attention.py"
        if number:
            title = f"{number}. {titles[str(number)].split(':')[0]}"
        color = "black"
        if change:
            color = GREEN if change < 0 else RED
        if above is not None:
            axes.plot([before, before], [above, y], color=GREY, linewidth=1, zorder=0)
        bar = dict(height=0.64, color=color, edgecolor=color, linewidth=1.5)
        axes.barh(y, change, left=before, **bar)
        style = dict(va="center_baseline")
        axes.text(1.66, y, f"{loss:.3f}", ha="right", color=color, **style)
        end = max(before, loss) + 0.05
        if abs(change) > 1:  # room for the words in the bar
            middle = (before + loss) / 2
            style |= dict(color="white", fontsize=10.5)
            axes.text(middle, y, title, ha="center", **style)
        else:
            axes.text(end, y, title, **style)
        above = y
        if number in notes:
            y += 0.8
            axes.text(end, y, notes[number], va="center", color=RED)
        y += 1
    axes.text(1.66, -1, "val loss", ha="right", va="center_baseline", weight="bold")
    axes.set(yticks=[], ylim=(y - 0.3, -1.5), xlim=(1.29, 3.75))
    axes.set_xticks([2, 2.5, 3])
    axes.set_xlabel("val loss after 300 steps\ngreen: lower, red: higher")
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
            "self.attn(self.ln_1(x))",
            "positions read earlier ones",
            LIGHT_ORANGE,
            376,
            74,
        ),
        (
            "LayerNorm, MLP",
            "self.mlp(self.ln_2(x))",
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
        '<text x="82" y="186" font-weight="bold">Block, n_layer times:</text>',
        '<text x="82" y="204" font-size="13" font-family="monospace" '
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
            below, above = y + height + 14, y - 20
            line((stream, below), (middle, below), (middle, y + height + 1))
            line((middle, y), (middle, above), (stream + 12, above))
            out.append(
                f'<circle cx="{stream}" cy="{above}" r="11" fill="#ffffff" '
                f'stroke="{PURPLE}" stroke-width="2.5"/>'
                f'<text x="{stream}" y="{above + 5}" '
                'text-anchor="middle" font-weight="bold">+</text>'
                f'<text x="{stream + 18}" y="{above + 15}" fill="{PURPLE}" '
                'font-size="13" font-family="monospace">x = x + ...</text>'
            )
    style = f'fill="{PURPLE}" font-weight="bold"'
    for y in (501, 342, 160):
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
        (both[0], ((3, 2), (2, 3)), "the gradient", BLUE, ("× 5", "× 1")),
        (both[1], ((1, 0), (0, 1)), "Muon's update", PURPLE, ("× 1", "× 1")),
    ):
        image = [(a * x + b * y, c * x + d * y) for x, y in circle]
        width = 2.5 if (a, b) == (3, 2) else 4.5  # wide enough to lie under dashes
        axes.plot(*zip(*image), color=color, linewidth=width)
        dashed = dict(color="black", linewidth=1.2, linestyle="--", zorder=3)
        axes.plot(*zip(*circle), **dashed)
        for sign, factor in zip((1, -1), factors):
            x, y = math.sqrt(0.5), sign * math.sqrt(0.5)
            end = (a * x + b * y, c * x + d * y)
            arrow(axes, (0, 0), end, color)
            at = dict(color=color, va="center", fontsize=14, weight="bold")
            if factor == "× 5":
                axes.text(3.6, 2.5, factor, **at)
            else:
                axes.text(0.95, 1.2 * sign, factor, **at)
        axes.set(xlim=(-3.9, 5.1), ylim=(-3.9, 4.3), aspect="equal")
        axes.axis("off")
        axes.set_title(title, fontsize=14, color=color, weight="bold")
    words = "dashed: all arrows of length 1\nsolid: what they become"
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
    words = f"half of them below 1/{half}\nof the largest"
    real.text(64, 0.14, words, color=BLUE, ha="center", va="bottom")
    title = f"all {len(values)} directions of a real gradient"
    real.set_title(title, fontsize=13, weight="bold")
    real.set(ylim=(0, 1.1), xlim=(1, len(values)), yticks=[0, 0.5, 1])
    real.set_xticks([1, 32, 64, 96, 128])
    real.set_xlabel("directions, by size")
    real.set_ylabel("stretching factor\n(largest: 1)")
    save(figure, "muon", "A gradient and Muon's update: how far each direction moves")


def overfitting():
    """Train and val loss on a short text, with and without dropout."""
    report = (DOCS / "bench/effects.json").read_text(encoding="utf-8")
    runs = json.loads(report)["runs"]
    figure, axes = plt.subplots(figsize=(4.9, 4.4), layout="constrained")
    for name, color, width in (
        ("small text", ORANGE, 3.5),
        ("small text, dropout 0.2", BLUE, 2),
    ):
        output = runs[name]["output"]
        pattern = r"step +(\d+) \| train loss (\S+) \| val loss (\S+)"
        lines = re.findall(pattern, output)
        steps, train, val = zip(*((int(s), float(a), float(b)) for s, a, b in lines))
        axes.plot(steps, train, color=color, linewidth=1.5, linestyle="--")
        axes.plot(steps[-1], train[-1], "o", color=color, markersize=6)
        low = min(zip(val, steps))
        last = int(re.search(r"--max_iters=(\d+)", runs[name]["flags"])[1])
        final = float(re.search(r"final val loss (\S+)", output)[1])
        at = dict(color=color, ha="right", fontsize=13)
        axes.text(steps[-1], train[-1] - 0.25, f"train {train[-1]:.2f}", **at)
        steps += (last,)
        val += (final,)
        axes.plot(steps, val, color=color, linewidth=width)
        axes.plot(last, final, "o", color=color, markersize=7, clip_on=False)
        axes.text(last, final + 0.15, f"val {final:.2f}", **at)
        if color == ORANGE:
            axes.plot(low[1], low[0], "o", color=color, markersize=9)
            words = f"lowest: {low[0]:.2f}"
            axes.text(low[1] + 240, low[0] + 0.3, words, **at)
    lines = (
        ("without dropout: overfitting", ORANGE, "bold"),
        ("with dropout: both stay close", BLUE, "bold"),
        ("solid: val, dashed: train", "#444444", "normal"),
    )
    for n, (words, color, weight) in enumerate(lines):
        axes.text(0.1 * last, 4.15 - 0.3 * n, words, color=color, weight=weight)
    axes.set(xlabel="step", ylabel="loss on a text of 30 KB", ylim=(0, 4.4))
    axes.set_xlim(0, last)
    ticks = range(0, last + 1, 400)
    axes.set_xticks(ticks, [f"{step:,}" for step in ticks])
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
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 642 694" width="500" '
        'font-family="sans-serif" font-size="23">',
        "<title>Which positions attend to which: dense, strided and fixed</title>",
        '<rect width="642" height="694" fill="#ffffff"/>',
        "<defs>",
    ]
    # What is seen in both hops looks like what is seen in the first
    for name, color in {
        "a1": BLUE,
        "a2": "#d9822b",
        "both": BLUE,
        "none": "#b8b8b8",
    }.items():
        out.append(f'<rect id="{name}" width="7" height="7" fill="{color}"/>')
    out.append("</defs>")
    for n, name in enumerate(("dense", "strided", "fixed")):
        hops = names["patterns"][name]
        first = seen_by(names, hops[0], T)
        last = seen_by(names, hops[-1], T)
        left, top = 34 + 308 * (n % 2), 28 + 358 * (n // 2)
        count = int((first | last)[framed].sum())
        right = 'x="288" text-anchor="end"'
        end = 8 * framed + 8  # of the frame
        out.append(
            f'<g id="{name}" transform="translate({left} {top})">'
            f'<text {right} y="10" font-size="26" font-weight="bold">{name}</text>'
            f'<text {right} y="92">position {framed}</text>'
            f'<text {right} y="120">sees {count} of {framed + 1}</text>'
            f'<path d="M262 130 L{end - 3} {8 * framed - 1}" stroke="#000000" '
            'stroke-width="2"/>'
        )
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
            f'<rect x="-1" y="{8 * framed - 1}" width="{end + 1}" '  # between the rows
            'height="9" fill="none" stroke="#000000" stroke-width="2"/></g>'
        )
    axis = 'fill="#444444" text-anchor="middle"'
    out.append(f'<text x="178" y="342" {axis}>who is seen →</text>')
    out.append(
        f'<text transform="rotate(-90 22 172)" x="22" y="172" {axis}>← who sees</text>'
    )
    x, y = 362, 490
    for kind, word in {
        "a1": "seen in hop 1",
        "a2": "seen in hop 2",
        "none": "not seen, but reached",
    }.items():
        out.append(
            f'<use href="#{kind}" transform="translate({x} {y - 17}) scale(2.6)"/>'
            f'<text x="{x + 30}" y="{y}">{word}</text>'
        )
        y += 42
    out.append(f'<text x="{x + 30}" y="{y - 14}">through both hops</text>')
    out.append("</svg>")
    write("patterns", "\n".join(out))


def layouts():
    """Blocks of 6 x 6 scores: which must be computed, before and after reordering."""
    T, row, c = 36, 6, 2
    names = sparse(T, row, c, tile=row)
    column = names["patterns"]["strided"][1]
    last_columns = names["patterns"]["fixed"][1]
    as_they_come = names["as_they_come"]
    rows = {  # the hop, and the name of its own order
        "strided": (column, "sorted by column"),
        "fixed": (last_columns, "summaries first"),
    }
    skipped = "#d0d0d0"  # lighter, it would be lost in the dark
    figure = plt.figure(figsize=(4.9, 6.8), layout="constrained")
    *parts, below = figure.subfigures(3, 1, height_ratios=(1, 1, 0.12))
    for part, (pattern, (hop, own)) in zip(parts, rows.items()):
        both = part.subplots(1, 2)
        counts = []
        orders = {"positions as they come": as_they_come, own: hop.order}
        for axes, (title, order) in zip(both, orders.items()):
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
                    color = skipped
                    if len(seen) > before:
                        color = LIGHT_ORANGE
                        computed += 1
                    corner = (left - 0.3, top - 0.3)
                    block = plt.Rectangle(corner, row - 0.4, row - 0.4, facecolor=color)
                    axes.add_patch(block)
            squares(axes, T, 10, {(BLUE, 1): seen})
            axes.set_title(title, fontsize=13)
            axes.set_xlabel("keys")
            counts.append(computed)
            if title == "summaries first":  # the queries are in this order, too
                summaries = c * T // row
                edge = summaries - 0.5
                axes.plot([-0.5, T - 0.5], [edge, edge], color="black", linewidth=1.2)
                right = T - 1.3
                at = dict(ha="right", va="center", fontsize=12)
                axes.text(right, edge / 2, "queries that\nare summaries", **at)
                axes.text(right, (edge + T) / 2 - 3, "the other\nqueries", **at)
        both[0].set_ylabel("queries")
        words = f"{pattern}: {counts[0]} → {counts[1]} of {(T // row) ** 2} blocks"
        part.suptitle(words, fontsize=14, weight="bold")
    kinds = {"seen in hop 2": BLUE, "block computed": LIGHT_ORANGE}
    kinds["block skipped"] = skipped
    handles = [Patch(color=color, label=kind) for kind, color in kinds.items()]
    style = dict(ncols=3, frameon=False, columnspacing=0.8, handlelength=0.9)
    style |= dict(handletextpad=0.4, fontsize=11.5)
    below.legend(handles=handles, loc="center", **style)
    title = "The blocks of scores that are computed, before and after reordering"
    save(figure, "layouts", title)


def curves():
    """The loss of the scripts that are measured, against the seconds of training.

    The Transformers run on top of each other, in shades of one hue. Each later one is
    thinner and darker, so that all of them are seen.
    """
    runs = tables("curves")
    figure, axes = plt.subplots(figsize=(4.9, 4.9), layout="constrained")
    guess = runs["bigram"]["points"][0][1]  # before the first step, among 65 tokens
    high_guess = runs["gpt2_train"]["points"][0][1]  # the same among 256
    last = max(run["points"][-1][0] for run in runs.values())
    dark = "#0b4420"
    styles = {  # the color, the width, the dashes
        "bigram": (BLUE, 3, "-"),
        "v2_attention": (ORANGE, 3, "-"),
        "gpt_char": ("#7cc68f", 5, "-"),
        "gpt2_train": (GREEN, 3.5, (0, (2.2, 1.1))),
        "sparse_gpt": (dark, 2.5, (0, (0.9, 1.3))),
    }
    words_at = dict(va="center", fontsize=13)
    y = 0.78  # of the name of the next Transformer
    losses_at_end = []  # of the Transformers
    for name, run in runs.items():
        seconds, losses = zip(*run["points"])
        end, loss = seconds[-1], losses[-1]
        color, width, dashes = styles[name]
        style = dict(color=color, linewidth=width, linestyle=dashes)
        on_top = 3 if name in ("bigram", "v2_attention") else 2
        axes.plot(seconds, losses, dash_capstyle="butt", zorder=on_top, **style)
        edge = color if name in ("bigram", "v2_attention") else dark
        dot = dict(color=color, markersize=8, markeredgecolor=edge, zorder=4)
        axes.plot(end, loss, "o", **dot)
        words = f"{name}.py: {loss:.2f}"
        if name == "bigram":
            # To the right of the other lines, which are too near for words
            right = 0.021 * last
            axes.plot((end, right), (loss, 2.95), color=color, linewidth=1, zorder=4)
            words += "\na table of pairs"
            axes.text(1.06 * right, 3.15, words, color=color, **words_at)
        elif name == "v2_attention":
            words += "\nwith attention"
            axes.text(1.3 * end, loss + 0.36, words, color=color, **words_at)
        else:
            # They end in the same place: a list of names, with a piece of each line
            axes.plot((0.16 * last, 0.26 * last), (y, y), **style)
            axes.text(0.29 * last, y, f"{name}.py", color=dark, **words_at)
            y -= 0.29
            losses_at_end.append(f"{loss:.2f}")
    low, high = min(losses_at_end), max(losses_at_end)
    words = f"three Transformers: {low} to {high}"
    axes.text(last, 1.1, words, color=dark, ha="right", **words_at)
    for loss, words in ((guess, "65 characters"), (high_guess, "256 bytes")):
        axes.axhline(loss, color=GREY, linewidth=1, linestyle="--")
        words = f"{loss:.2f}: a blind guess among {words}"
        axes.text(1.04 * last, loss + 0.06, words, ha="right", fontsize=12)
    axes.set(ylabel="val loss: lower is better", ylim=(y + 0.1, 5.95))
    axes.set_xscale("function", functions=(np.sqrt, np.square))
    axes.set(xlabel="training time on two cores (square-root scale)")
    axes.set_xlim(0, 1.08 * last)
    ticks = {1: "1 s", 10: "10 s", 60: "1 min", 120: "2 min", 240: "4 min"}
    ticks[480] = "8 min"
    seen = [second for second in ticks if second < 1.08 * last]
    axes.set_xticks(seen, [ticks[second] for second in seen])
    axes.set_yticks([1, 2, 3, 4, 5])
    axes.grid()
    axes.set_axisbelow(True)
    title = "attention lowers the loss, the Transformer more"
    axes.set_title(title, fontsize=13, weight="bold")
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
    labels = {  # the color, the places of the name and of the last loss
        "gpt_char.py": (GREEN, (23, 1.85), (390, 1.4)),
        "nanoGPT": (ORANGE, (94, 2.03), (246, 1.615)),
        "ng-video-lecture": (BLUE, (14.5, 2.46), (246, 1.695)),
    }
    for name, (color, place, end) in labels.items():
        best = []  # the runs that none of the same script beats in less time
        for seconds, loss in sorted(runs[name.removesuffix(".py")]):
            if not best or loss < best[-1][1]:
                best.append((seconds, loss))
        weight = "bold" if color == GREEN else "normal"
        style = dict(linewidth=3.5 if color == GREEN else 2, markersize=6)
        axes.plot(*zip(*best), "o-", color=color, **style)
        at = dict(color=color, fontsize=13, weight=weight, va="center")
        axes.text(*place, name, **at)
        seconds, loss = best[-1]
        words = f"{loss:.2f}"
        if color == GREEN:
            words += f" in {seconds:.0f} s"
            at["ha"] = "right"
        axes.text(*end, words, **at)
    axes.axhline(1.4697, color=GREY, linewidth=1, linestyle="--")  # nanoGPT's README
    words = "nanoGPT, 3 minutes\nof an A100: 1.4697"
    axes.text(5.7, 1.49, words, color="#555555", va="bottom")
    axes.set(xscale="log", xlabel="seconds of training, on two cores (log scale)")
    axes.set(ylabel="val loss: lower is better", xlim=(5.3, 400), ylim=(1.35, 2.7))
    axes.set_yticks([1.5, 2, 2.5])
    ticks = [7.5, 15, 30, 60, 120, 240]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid()
    title = "gpt_char.py is lowest throughout"
    axes.set_title(title, fontsize=14, weight="bold")
    title = "Validation loss of gpt_char.py, nanoGPT and ng-video-lecture"
    save(figure, "peers", title)


def cost():
    """The time of attention against the length of the context."""
    path = DOCS / "bench/sparse_speed.json"
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    lengths = sorted(int(name.split()[2]) for name in runs)
    figure, axes = plt.subplots(figsize=(4.9, 4.6), layout="constrained")
    # The color, and the factor from the last point up to the label
    colors = {"dense": ("#333333", 1), "window, two rows": (GREEN, 1.62)}
    colors |= {"fixed": (BLUE, 1), "strided": (ORANGE, 0.78)}
    for name, (color, up) in colors.items():
        times = []
        for T in lengths:
            times.append(statistics.median(runs[f"T = {T}"]["times"][name]))
        width = 3 if name in ("dense", "strided") else 1.5
        axes.plot(lengths, times, "o-", linewidth=width, color=color)
        seconds = times[-1] / 1000
        digits = 1 if seconds > 1 else 2
        words = name.replace(", ", " of\n")
        label = f"{words} {seconds:.{digits}f} s"
        at = dict(color=color, va="center", fontsize=13)
        axes.text(lengths[-1] * 1.2, times[-1] * up, label, **at)
        factors = {round(after / before) for before, after in zip(times, times[1:])}
        words = f"{lengths[-1] // lengths[-2]} × positions:\n"
        words += f"{' to '.join(str(factor) for factor in sorted(factors))} × time"
        x = math.sqrt(lengths[-2] * lengths[-1])
        y = math.sqrt(times[-2] * times[-1])
        at = dict(color=color, weight="bold", va="center", fontsize=13)
        at["bbox"] = dict(facecolor="white", edgecolor="none", pad=1)
        if name == "dense":
            axes.text(x * 0.85, 1.9 * y, words, ha="right", **at)
        elif name == "strided":
            axes.text(1.05 * lengths[-1], 0.16 * y, words, ha="right", **at)
    axes.set(xscale="log", yscale="log", xlabel="T, positions in the context (log)")
    axes.set(ylabel="time of attention (log)")
    axes.set(xlim=(lengths[0] * 0.85, lengths[-1] * 1.15), ylim=(9, 20_000))
    axes.set_xticks(lengths, [f"{n:,}" for n in lengths])
    axes.set_yticks([10, 100, 1000, 10_000], ["10 ms", "0.1 s", "1 s", "10 s"])
    axes.minorticks_off()
    axes.grid()
    axes.set_title("dense: by far the steepest", fontsize=14, weight="bold")
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
    axes.text(25, 31.5, "memory: 2 at a time", **memory)
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
        box(axes, x, 33.2, 21, 6.4, LIGHT_GREY, "the whole model,\nthe same weights")
        arrow(axes, (middle, 32.9), (middle, 29.5))
        box(axes, x, 22.9, 21, 6.4, color, f"gradient {rank}")
        arrow(axes, (middle, 22.6), (middle, 19.2), GREEN)
        arrow(axes, (middle, 10.4), (middle, 7), GREEN)
        box(axes, x, 0.4, 21, 6.4, LIGHT_GREEN, "the same step")
    box(axes, 0.5, 10.7, 46, 8.2, LIGHT_GREEN)
    words = "all-reduce: both get the sum;\ndivided by 2, it is the mean"
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
        own = middle - 8.5 + 4.25 * (1, 3.5)[rank]  # the middle of its own pieces
        for piece in range(5):
            x = middle - 10.5 + 4.25 * piece
            owner = piece // 3
            if owner == rank:
                box(axes, x, 26.2, 4, 5, colors[owner], str(piece), 13)
            else:
                style = dict(fill=False, edgecolor=GREY, linewidth=0.8, linestyle="--")
                axes.add_patch(plt.Rectangle((x, 26.2), 4, 5, **style))
            box(axes, x, 40.7, 4, 5, LIGHT_GREY, str(piece), 13)
            box(axes, x, 0.4, 4, 5, colors[owner], str(piece), 13)
        arrow(axes, (own, 40.4), (own, 31.6))
        arrow(axes, (own, 25.8), (own, 22), GREEN)
        arrow(axes, (middle, 13.2), (middle, 5.8), GREEN)
    box(axes, 0.5, 13.5, 46, 8.2, LIGHT_GREEN)
    at = dict(ha="center", va="center", fontsize=13)
    axes.text(23.5, 48.3, "mean gradients: the same in both", **at)
    words = "Muon's work: each\nfor its own pieces"
    axes.text(23.5, 36, words, weight="bold", **at)
    words = "all-gather: both get all of them"
    axes.text(23.5, 17.6, words, weight="bold", **at)
    axes.text(23.5, 9.4, "updates: the\nsame in both", **at)
    save(figure, "zero", "The pieces of Muon, shared out between two processes")


def formats():
    """The bits of three number formats, and the range that they cover."""
    kinds = (  # name, bits of the exponent, of the fraction, smallest and largest
        ("float32", 8, 23, -126, 128),
        ("bfloat16", 8, 7, -126, 128),
        ("float16", 5, 10, -14, 16),
    )
    figure, (top, low) = plt.subplots(2, 1, figsize=(4.9, 6.6), layout="constrained")
    figure.get_layout_engine().set(hspace=0.08)
    for n, (name, exponent, fraction, smallest, largest) in enumerate(kinds):
        y = 2 - n
        box(top, 0, y, 1, 0.46, LIGHT_GREY, "1", 11)
        box(top, 1, y, exponent, 0.46, LIGHT_ORANGE, str(exponent), 13)
        box(top, 1 + exponent, y, fraction, 0.46, LIGHT_BLUE, str(fraction), 13)
        color = RED if name == "float16" else "#444444"
        style = dict(color=color, weight="bold", fontsize=13)
        top.text(0, y + 0.53, name, va="bottom", **style)
        bar = dict(color=color, solid_capstyle="butt")
        low.plot([smallest, largest], [y, y], linewidth=11, **bar)
        # Smaller ones have fewer digits; below half of the smallest, they become 0
        tail = smallest - fraction - 1
        low.plot([tail, smallest], [y, y], linewidth=3, **bar)
        if name == "float16":
            low.text(largest + 8, y, "float16\nmisses them", va="center", **style)
            low.text(smallest, y + 0.14, "6e-5", color=color, va="bottom")
        else:
            low.text(largest, y + 0.2, name, ha="right", va="bottom", **style)
        if name == "float32":
            words = dict(color=color, va="bottom")
            low.text(tail, y + 0.2, "thin: fewer digits", **words)
    parts = {"sign": LIGHT_GREY, "range": LIGHT_ORANGE, "precision": LIGHT_BLUE}
    handles = [
        Patch(facecolor=color, edgecolor="black", linewidth=0.8, label=part)
        for part, color in parts.items()
    ]
    style = dict(ncols=3, frameon=False, loc="upper right", handlelength=1.1)
    style |= dict(columnspacing=1.2, borderaxespad=0, bbox_to_anchor=(1, 1.02))
    top.legend(handles=handles, **style)
    top.set(xlim=(-0.2, 32.2), ylim=(-0.1, 3.1))
    top.set_title("bits of a number", fontsize=14, weight="bold")
    top.axis("off")
    # 1 / 50,257 tokens / 1,536 to 524,288 positions in a step
    low.axvspan(-35, -26, color=RED, alpha=0.25, linewidth=0, zorder=0)
    words = "gradients of\nGPT-2's logits"
    low.text(-39, 0.0, words, ha="right", va="center", color=RED)
    sizes = {1e-38: "1e-38", 3e-8: "3e-8", 65504: "65,504", 3e38: "3e38"}
    low.set_xticks([math.log2(size) for size in sizes], [*sizes.values()], fontsize=13)
    low.set(yticks=[], ylim=(-0.5, 2.7), xlabel="size of the number (log scale)")
    low.set_title("sizes that a number can have", fontsize=14, weight="bold")
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
