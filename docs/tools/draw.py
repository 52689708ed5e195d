"""Draw the pictures of the course; needs matplotlib.

    python docs/tools/draw.py              all of them, to docs/pictures/
    python docs/tools/draw.py NAME ...     some: bigram, heads, shapes, worth, ...

bigram draws the table that docs/tools/weights.py wrote, and counts the pairs in
data/shakespeare; most others draw what the reports in docs/bench have.
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
from contextlib import redirect_stdout
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyBboxPatch

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
    chars = " aehnotu"
    ids = [vocabulary.index(c) for c in chars]
    figure, both = plt.subplots(1, 2, figsize=(5.4, 3.15), layout="constrained")
    for axes, table, title in zip(
        both, (counted, learned), ("counted", "learned by bigram.py")
    ):
        shown = table[ids][:, ids]
        axes.pcolormesh(shown, cmap="Blues", vmin=0, vmax=0.4)
        for i, row in enumerate(shown.tolist()):
            for j, p in enumerate(row):
                if p >= 0.045:
                    color = "white" if p > 0.25 else "black"
                    at = dict(ha="center", va="center", fontsize=11, color=color)
                    axes.text(j + 0.5, i + 0.5, f"{100 * p:.0f}", **at)
        letters(axes, chars, chars)
        axes.tick_params(labelsize=12)
        axes.xaxis.set_label_position("top")
        axes.set_xlabel("... comes this one", labelpad=6)
        axes.set_title(title, pad=10, fontsize=13, weight="bold")
    both[0].set_ylabel("after this letter ...")
    figure.supxlabel("in percent, from 5 up; ␣ is a space", fontsize=12)
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
    axes.tick_params(length=0, labelsize=10)
    axes.spines[:].set_visible(True)
    axes.set_title(title, color=color, fontsize=12)


def qkv():
    """Where the queries, keys and values of a line of text come from."""
    text, x, every_head = one_line()
    q, k, v = every_head[HEAD]
    figure = plt.figure(figsize=(5.4, 5.2))
    top = figure.add_axes((0.06, 0.6, 0.92, 0.34))
    strip(top, x, f"x: 128 numbers for each letter ({SIGNS})", "black", text)
    parts = (("query", "Q", q, BLUE), ("key", "K", k, ORANGE), ("value", "V", v, GREEN))
    for n, (layer, letter, matrix, color) in enumerate(parts):
        left = 0.06 + 0.325 * n
        axes = figure.add_axes((left, 0.03, 0.27, 0.34))
        strip(axes, matrix, f"{letter}: 32 each", color, text)
        words = dict(color=color, fontsize=12, ha="center", weight="bold")
        figure.text(left + 0.135, 0.482, f"self.{layer}", **words)
        at = dict(xycoords="figure fraction", textcoords="figure fraction")
        middle = left + 0.135
        for start, end in ((0.59, 0.52), (0.462, 0.42)):
            style = "->" if end < 0.5 else "-"
            arrow = dict(arrowstyle=style, color=color, linewidth=1.8)
            top.annotate("", (middle, end), (middle, start), arrowprops=arrow, **at)
    save(figure, "qkv", "The queries, keys and values of a line, made from its vectors")


def numbers(axes, matrix, text, title, cmap, limits, digits):
    """Draw a matrix of positions with its numbers; those that are None stay empty."""
    T = len(text)
    low, high = limits
    cells = np.ma.masked_invalid(matrix)
    axes.imshow(cells, cmap=cmap, vmin=low, vmax=high, interpolation="none")
    for i in range(T):
        for j in range(T):
            number = matrix[i, j]
            if np.isnan(number):
                continue
            dark = number > low + 0.7 * (high - low)
            color = "white" if dark else "black"
            at = dict(ha="center", va="center", fontsize=9, color=color)
            axes.text(j, i, f"{number:.{digits}f}", **at)
    axes.set_xticks(range(T), text)
    axes.set_yticks(range(T), text)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=13)


def weights_of(scores):
    """The masked softmax of each row; nan where the mask is."""
    past = np.tril(np.ones(scores.shape, dtype=bool))
    powers = np.exp(np.where(past, scores, -np.inf))
    return np.where(past, powers / powers.sum(axis=1, keepdims=True), np.nan)


def attention():
    """From queries and keys to scores, weights and the output, on a line of text.

    In two forms: two by two, and below each other for narrow screens.
    """
    text, _, every_head = one_line()
    q, k, v = every_head[HEAD]
    scores = q @ k.T / q.shape[1] ** 0.5
    weights = weights_of(scores)
    hidden = np.where(np.isnan(weights), np.nan, scores)
    output = np.nan_to_num(weights) @ v
    for name, shape, size in (
        ("attention", (2, 2), (9, 9.4)),
        ("attention_narrow", (4, 1), (4.6, 18.4)),
    ):
        figure, all_axes = plt.subplots(*shape, figsize=size, layout="constrained")
        figure.get_layout_engine().set(h_pad=0.12)
        first, second, third, last = all_axes.flat
        title = "1. scores: Q Kᵀ / √32"
        numbers(first, scores, text, title, "Oranges", (-18, 6), 1)
        title = "2. masked: no look at the future"
        numbers(second, hidden, text, title, "Oranges", (-18, 6), 1)
        title = "3. weights: softmax of each row"
        numbers(third, weights, text, title, "Oranges", (0, 1), 2)
        title = "4. output: weights · V"
        strip(last, output, title, GREEN, text)
        last.set_title(title, fontsize=13, color=GREEN)
        last.set_box_aspect(1)
        last.set_xlabel(f"32 numbers for each letter ({SIGNS})")
        for axes in (first, second, third):
            axes.set_xlabel("the letter that is looked at")
        for axes in all_axes.reshape(shape)[:, 0]:
            if axes is not last:
                axes.set_ylabel("the letter that looks")
        save(figure, name, "Scores, masked scores, weights and output for a line")


def heads():
    """What each of the four heads looks at, on the same line."""
    text, _, every_head = one_line()
    figure, all_axes = plt.subplots(2, 2, figsize=(5.4, 6), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1)
    for n, (axes, (q, k, _)) in enumerate(zip(all_axes.flat, every_head), start=1):
        weights = weights_of(q @ k.T / q.shape[1] ** 0.5)
        distances = [np.diagonal(weights, -far).mean() for far in range(4)]
        order = np.argsort(distances)[::-1]
        words = ("itself", "one back", "two back", "three back")
        title = f"head {n}: {words[order[0]]}"
        if distances[order[0]] < 0.6:
            title += f" or {words[order[1]].removesuffix(' back')}"
        cells = np.ma.masked_invalid(weights)
        axes.imshow(cells, cmap="Oranges", vmin=0, vmax=1, interpolation="none")
        axes.set_xticks(range(len(text)), text)
        axes.set_yticks(range(len(text)), text)
        axes.xaxis.tick_top()
        axes.tick_params(length=0, labelsize=12)
        axes.spines[:].set_visible(False)
        axes.set_title(title, fontsize=12)
    figure.supylabel("the letter that looks", fontsize=12)
    words = "the letter that is looked at (strong colour: much weight)"
    figure.supxlabel(words, fontsize=12)
    save(
        figure, "heads", "The weights of the four heads of v2_attention.py over a line"
    )


def samples():
    """What gpt_char.py writes while it learns."""
    run = tables("curves")["gpt_char"]
    out, y = [], 30
    for step, text in run["samples"].items():
        lines = "\n".join(text.strip("\n").splitlines()[:6]).rstrip().splitlines()
        out.append(
            f'<text x="14" y="{y}" font-weight="bold">after {int(step):,} steps</text>'
        )
        for i, line in enumerate(lines, start=1):
            if len(line) > 44:
                line = line[:43] + "…"
            at = f'x="14" y="{y + 19 * i}" font-family="monospace" font-size="14"'
            out.append(f'<text {at} xml:space="preserve">{html.escape(line)}</text>')
        y += 19 * len(lines) + 34
    y -= 20
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 410 {y}" '
    head += 'width="410" font-family="sans-serif">'
    out = [
        head,
        "<title>What gpt_char.py writes after some steps</title>",
        f'<rect width="410" height="{y}" fill="#ffffff"/>',
        *out,
        "</svg>",
    ]
    write("samples", "\n".join(out))


def shapes():
    """The shapes through attention: (B, T, C) to (B, nh, T, hs) and back."""
    figure, axes = plt.subplots(figsize=(5.4, 7.2))
    axes.set(xlim=(0, 100), ylim=(0, 134))
    axes.axis("off")
    four = [LIGHT_BLUE, LIGHT_ORANGE, LIGHT_GREEN, LIGHT_PURPLE]
    style = dict(boxstyle="square,pad=0", edgecolor="black", linewidth=0.8)

    def row(y, x, width):
        """Four heads side by side: the columns of one matrix."""
        for i in range(4):
            place = ((x + i * width, y), width, 12)
            axes.add_patch(FancyBboxPatch(*place, facecolor=four[i], **style))

    def text(x, y, words, **more):
        axes.text(x, y, words, ha="center", va="center", fontsize=13, **more)

    def arrow(y, words):
        axes.annotate("", (36, y - 7), (36, y), arrowprops=dict(arrowstyle="->"))
        axes.text(40, y - 3.5, words, va="center", fontsize=12, family="monospace")

    text(36, 131, "x", weight="bold")
    row(116, 24, 6)
    text(82, 122, "(B, T, C)")
    arrow(114, "self.c_attn(x).split(C)")
    for n, name in enumerate("qkv"):
        text(14 + 22 * n, 104.5, name, weight="bold")
        row(89, 5 + 22 * n, 4.5)
    text(86, 95, "(B, T, C)\neach")
    arrow(86, "view, transpose")
    for i in range(4):
        x = 4 + 17 * i
        for n in range(3):
            place = ((x + 4.5 * n, 62), 3.6, 12)
            axes.add_patch(FancyBboxPatch(*place, facecolor=four[i], **style))
        text(x + 6.5, 58, f"head {i + 1}")
    text(85, 70, "q, k, v:")
    text(85, 65, "(B, nh, T, hs)")
    arrow(54, "attention, each head alone")
    for i in range(4):
        place = ((8.5 + 17 * i, 32), 3.6, 12)
        axes.add_patch(FancyBboxPatch(*place, facecolor=four[i], **style))
    text(85, 38, "(B, nh, T, hs)")
    arrow(29, "transpose, reshape")
    row(7, 24, 6)
    text(82, 13, "(B, T, C)")
    text(50, 1, "one colour: one head;  C = nh · hs")
    save(figure, "shapes", "The shapes of tensors through attention, with four heads")


def schedule():
    """The learning rate of gpt_char.py, by its own function."""
    names = untrained("gpt_char.py", "--bfloat16")
    last_step = names["parser"].get_default("max_iters")
    get_lr = names["get_lr"]
    get_lr.__globals__["max_iters"] = last_step  # instead of 0
    figure, whole = plt.subplots(figsize=(5.4, 3.9), layout="constrained")
    start = whole.inset_axes((0.6, 0.58, 0.39, 0.34))
    for axes, last in ((start, 20), (whole, last_step)):
        steps = [*range(0, 21), *range(30, last + 1, 10)]
        rates = [get_lr(step) for step in steps]
        axes.plot(steps, rates, color=GREEN, linewidth=2)
        axes.set(ylim=(0, 0.0165), xlim=(0, last), yticks=[0, 0.005, 0.01, 0.015])
        axes.grid()
    peak = max(range(last_step), key=get_lr)
    start.set_title(f"up: the first {peak} steps", fontsize=12)
    start.set(xticks=[0, peak, 10, 20])
    whole.set(ylabel="learning rate", xlabel="step")
    whole.text(150, 0.0012, "then down in\na straight line", va="bottom")
    whole.set_xticks(range(0, last_step + 1, 1000))
    whole.set_xticklabels(f"{step:,}" for step in range(0, last_step + 1, 1000))
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
            rows.append((f"{number}. {title}", found[0]))
    figure, axes = plt.subplots(figsize=(5.4, 0.46 * len(rows) + 0.7))
    before = rows[0][1]
    for y, (title, loss) in enumerate(rows):
        color = GREEN if loss < before else RED
        if y == 0:
            color = "black"
        style = dict(color=color, solid_capstyle="butt")
        axes.plot([before, loss], [y, y], linewidth=8, **style)
        axes.plot([loss, loss], [y - 0.12, y + 0.12], linewidth=3, **style)
        at = dict(y=y - 0.43, va="center", fontsize=12)
        axes.text(1.72, s=title, **at)
        axes.text(3.6, s=f"{loss:.3f}", color=color, ha="right", **at)
        before = loss
    axes.set(yticks=[], ylim=(len(rows) - 0.5, -0.9), xlim=(1.7, 3.6))
    axes.set_xlabel("val loss after 300 steps: green down, red up")
    axes.set_xticks([1.75, 2, 2.25, 2.5, 2.75, 3, 3.25, 3.5])
    axes.spines["left"].set_visible(False)
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
            "class CausalSelfAttention: positions talk",
            LIGHT_ORANGE,
            376,
            74,
        ),
        (
            "LayerNorm, MLP",
            "x = x + self.mlp(self.ln_2(x))",
            "class MLP: each position thinks",
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
    stream = 58
    out = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 410 652" width="500" '
        'font-family="sans-serif" font-size="14">',
        "<title>The architecture of a GPT: residual stream, shapes and code</title>",
        '<rect width="410" height="652" fill="#ffffff"/>',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="9" '
        'markerHeight="9" markerUnits="userSpaceOnUse" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z"/></marker></defs>',
        '<rect x="8" y="168" width="394" height="314" rx="8" fill="none" '
        'stroke="#666666" stroke-dasharray="6 4"/>',
        '<text x="84" y="188">class Block, n_layer times:</text>',
        '<text x="84" y="206" font-size="12" font-family="monospace">'
        "for block in self.h: x = block(x)</text>",
    ]

    def line(*points, tip=True, width=1.6):
        path = " L".join(f"{x} {y}" for x, y in points)
        end = ' marker-end="url(#tip)"' if tip else ""
        out.append(
            f'<path d="M{path}" stroke="#000000" stroke-width="{width}" '
            f'fill="none"{end}/>'
        )

    line((stream, 604), (stream, 571))
    line((stream, 514), (stream, 141), width=3)  # the residual stream
    line((stream, 84), (stream, 51))
    for what, code, does, color, y, height in boxes:
        x, width = (20, 376) if code else (20, 150)
        if does:
            x, width = 96, 298
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
            out.append(f'<text {at} y="{y + 63}" font-size="12">{does}</text>')
            below, above = y + height + 14, y - 14
            line((stream, below), (middle, below), (middle, y + height + 1))
            line((middle, y), (middle, above), (stream + 12, above))
            out.append(
                f'<circle cx="{stream}" cy="{above}" r="11" fill="#ffffff" '
                f'stroke="#000000"/><text x="{stream}" y="{above + 5}" '
                'text-anchor="middle">+</text>'
            )
    for y in (501, 346, 159):
        out.append(f'<text x="{stream + 10}" y="{y}" font-size="13">(B, T, C)</text>')
    out.append(
        '<text transform="rotate(-90 32 325)" x="32" y="325" font-size="13" '
        'text-anchor="middle">the residual stream</text>'
    )
    out.append("</svg>")
    write("architecture", "\n".join(out))


def muon():
    """What a gradient and Muon's update do to the unit circle, and a real spectrum."""
    angles = [2 * math.pi * i / 200 for i in range(201)]
    circle = [(math.cos(a), math.sin(a)) for a in angles]
    figure = plt.figure(figsize=(5.4, 6.8), layout="constrained")
    top, low = figure.subfigures(2, 1, height_ratios=(3.8, 3))
    both = top.subplots(1, 2, sharey=True)
    for axes, ((a, b), (c, d)), title in (
        (both[0], ((3, 2), (2, 3)), "the gradient:\nfactors 5 and 1"),
        (both[1], ((1, 0), (0, 1)), "Muon's update:\nfactors 1 and 1"),
    ):
        axes.plot(*zip(*circle), color="#444444", linewidth=1, linestyle="--")
        image = [(a * x + b * y, c * x + d * y) for x, y in circle]
        axes.plot(*zip(*image), color=BLUE, linewidth=2)
        for sign, color in ((1, GREEN), (-1, ORANGE)):
            x, y = math.sqrt(0.5), sign * math.sqrt(0.5)
            arrow = dict(arrowstyle="->", color=color, linewidth=2.5)
            arrow |= dict(shrinkA=0, shrinkB=0)
            end = (a * x + b * y, c * x + d * y)
            axes.annotate("", end, (0, 0), arrowprops=arrow)
        axes.set(xlim=(-4.2, 4.2), ylim=(-4.2, 4.2))
        axes.set(xticks=[-2, 0, 2], yticks=[-4, -2, 0, 2, 4])
        axes.set_aspect("equal")
        axes.set_title(title, fontsize=12)
        axes.grid()
    both[0].set_xlabel("dashed: the vectors\nof length 1")
    both[1].set_xlabel("blue: what becomes\nof them")
    report = (DOCS / "bench/effects.json").read_text(encoding="utf-8")
    values = json.loads(report)["spectrum"]["value"]
    relative = [value / values[0] for value in values]
    ranks = range(1, len(values) + 1)
    real = low.subplots()
    real.plot(ranks, relative, color=BLUE, linewidth=2)
    real.axhline(1, color=PURPLE, linewidth=2)
    real.text(70, 0.8, "Muon's update: 1 for all", color=PURPLE, ha="center", va="top")
    real.text(36, relative[54], "the gradient", color=BLUE, ha="center", va="top")
    real.set(yscale="log", ylim=(1e-4, 3), xlim=(1, len(values)))
    real.set_yticks(
        [1, 0.1, 0.01, 0.001, 1e-4], ["1", "0.1", "0.01", "0.001", "0.0001"]
    )
    real.set_xticks([1, 32, 64, 96, 128])
    real.minorticks_off()
    real.set_title("a real gradient, of step 14", fontsize=12)
    real.set_xlabel("its 128 directions, by size")
    real.set_ylabel("factor (largest: 1)")
    real.grid()
    save(figure, "muon", "A gradient and Muon's update: how far each direction moves")


def overfitting():
    """Train and val loss on a short text, with and without dropout."""
    report = (DOCS / "bench/effects.json").read_text(encoding="utf-8")
    runs = json.loads(report)["runs"]
    figure, axes = plt.subplots(figsize=(5.4, 4.2), layout="constrained")
    for name, color, label, val_at, train_at in (
        ("small text", RED, "no dropout", (1180, 3.0), (880, 0.8)),
        ("small text, dropout 0.2", GREEN, "dropout 0.2", (1590, 1.94), (1590, 1.34)),
    ):
        output = runs[name]["output"]
        pattern = r"step +(\d+) \| train loss (\S+) \| val loss (\S+)"
        lines = re.findall(pattern, output)
        steps, train, val = zip(*((int(s), float(a), float(b)) for s, a, b in lines))
        last = int(re.search(r"max_iters=(\d+)", runs[name]["flags"])[1])
        final = float(re.search(r"final val loss (\S+)", output)[1])
        at = dict(color=color, ha="right", va="center")
        axes.plot([*steps, last], [*val, final], color=color, linewidth=2)
        axes.plot(steps, train, color=color, linewidth=1.5, linestyle="--")
        axes.text(*val_at, f"{label}: val", **at)
        axes.text(*train_at, f"{label}: train", **at)
    axes.set(xlabel="step", ylabel="loss on a text of 30 KB", ylim=(0, 3.5))
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
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 696" width="560" '
        'font-family="sans-serif" font-size="20">',
        "<title>Which positions attend to which: dense, strided and fixed</title>",
        '<rect width="640" height="696" fill="#ffffff"/>',
        "<defs>",
    ]
    for name, color in {
        "a1": BLUE,
        "a2": "#d9822b",
        "both": PURPLE,
        "none": "#e4e4e4",
    }.items():
        out.append(f'<rect id="{name}" width="7" height="7" fill="{color}"/>')
    out.append("</defs>")
    words = {
        "dense": ("dense", "all before, in one hop"),
        "strided": ("strided", "1: the row before", "2: the column"),
        "fixed": ("fixed", "1: the own row", "2: last c columns"),
    }
    for n, (name, lines) in enumerate(words.items()):
        hops = names["patterns"][name]
        first = seen_by(names, hops[0], T)
        last = seen_by(names, hops[-1], T)
        left, top = 30 + 312 * (n % 2), 36 + 350 * (n // 2)
        for i, line in enumerate(lines):
            weight = "" if i else ' font-weight="bold"'
            out.append(
                f'<text x="{left + 290}" y="{top + 14 + 25 * i}" '
                f'text-anchor="end"{weight}>{line}</text>'
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
            f'<rect x="-2.5" y="{8 * framed - 2.5}" width="{8 * framed + 12}" '
            'height="12" fill="none" stroke="#000000" stroke-width="2"/></g>'
        )
    x, y = 350, 412
    for kind, word in {
        "a1": "seen in hop 1",
        "a2": "seen in hop 2",
        "both": "seen in both",
        "none": "in reach of two hops",
    }.items():
        out.append(
            f'<use href="#{kind}" transform="translate({x} {y - 15}) scale(2.3)"/>'
            f'<text x="{x + 30}" y="{y}">{word}</text>'
        )
        y += 34
    y += 6
    for line in (
        "down: the one that attends",
        "across: the one that it sees",
        f"framed: what number {framed} sees",
        f"T = {T}, stride l = {stride},",
        f"summary c = {summary}",
    ):
        out.append(f'<text x="{x}" y="{y}" font-size="19">{line}</text>')
        y += 28
    out.append("</svg>")
    write("patterns", "\n".join(out))


def layouts():
    """Blocks of 6 x 6 scores: which must be computed, before and after reordering."""
    T, row, c = 36, 6, 2
    names = sparse(T, row, c, tile=row)
    column = names["patterns"]["strided"][1]
    last_columns = names["patterns"]["fixed"][1]
    panels = {
        "strided, as they come": (column, names["as_they_come"]),
        "strided, by column": (column, column.order),
        "fixed, as they come": (last_columns, names["as_they_come"]),
        "fixed, summaries first": (last_columns, last_columns.order),
    }
    figure, all_axes = plt.subplots(2, 2, figsize=(5.4, 6.7), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.1)
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
                corner = (left - 0.45, top - 0.45)
                block = plt.Rectangle(corner, row - 0.1, row - 0.1, color=color)
                axes.add_patch(block)
        squares(axes, T, 12, {(BLUE, 1): seen})
        axes.set_title(f"{title}:\n{computed} of 36 blocks", fontsize=12)
    for axes in all_axes[:, 0]:
        axes.set_ylabel("queries")
    for axes in all_axes[1]:
        axes.set_xlabel("keys")
    what = "blue: seen in hop 2; orange: computed with it,\nand masked; grey: skipped"
    figure.supxlabel(what, fontsize=12)
    title = "The blocks of scores that are computed, before and after reordering"
    save(figure, "layouts", title)


def curves():
    """The loss of every script against the seconds of training."""
    figure, axes = plt.subplots(figsize=(5.8, 4.4), layout="constrained")
    places = {  # of the labels, and of the ends of the lines that lead to them
        "bigram": (38, 2.95),
        "v2_attention": (62, 2.45),
        "gpt_char": (62, 1.33),
        "gpt2_train": (135, 1.13),
        "sparse_gpt": (88, 1.95),
    }
    ladder = tables("ladder")["Every script without arguments"]
    for name, run in tables("curves").items():
        seconds, losses = zip(*run["points"])
        end = (seconds[-1], losses[-1])
        axes.plot(seconds, losses, linewidth=2, color=COLORS[name])
        axes.plot(*end, "o", color=COLORS[name])
        line = dict(arrowstyle="-", color=COLORS[name], linewidth=0.8, shrinkB=4)
        label = f"{name}.py  {losses[-1]:.2f}"
        latest = statistics.median(ladder[name]["final val loss"])
        if abs(latest - losses[-1]) > 0.01:  # the script learns better since then
            label += f", by now {latest:.2f}"
        at = dict(color=COLORS[name], fontsize=12, arrowprops=line)
        axes.annotate(label, end, places[name], **at)
    axes.annotate("4.17: knows nothing yet", (6, 4.12), color="#555555", va="center")
    axes.set(xlabel="seconds of training, on two cores", xlim=(0, 250))
    axes.set(ylabel="val loss: lower is better", ylim=(1, 4.25))
    axes.grid()
    title = "Validation loss of the scripts against the time of training"
    save(figure, "curves", title)


def peers():
    """The loss of gpt_char.py and of its peers after runs of some length."""
    figure, axes = plt.subplots(figsize=(5.6, 4.2), layout="constrained")
    report, runs = tables("char"), {}
    rows = report["Validation loss after a run of so many seconds of training"]
    for name, row in rows.items():
        runs.setdefault(name.split(", ")[1], []).append(
            (row["train s"][0], row["val loss"][0])
        )
    for (name, points), color in zip(runs.items(), (GREEN, ORANGE, BLUE)):
        points = sorted(points)
        axes.plot(*zip(*points), "o", color=color, markersize=5)
        best = []  # the best run that takes no longer
        for seconds, loss in points:
            if not best or loss < best[-1][1]:
                best.append((seconds, loss))
        label = f"{name}: {best[-1][1]:.2f}"
        axes.plot(*zip(*best), linewidth=2, color=color, label=label)
    axes.legend(frameon=False, labelcolor="linecolor", loc="upper right")
    axes.axhline(1.4697, color=GREY, linewidth=1, linestyle="--")  # nanoGPT's README
    words = "1.4697: nanoGPT, 3 minutes of an A100"
    axes.annotate(words, (6, 1.485), color="#555555", fontsize=11)
    words = "dots: runs; lines: the best so far"
    axes.text(0.98, 0.66, words, color="#555555", ha="right", transform=axes.transAxes)
    axes.set(xscale="log", xlabel="seconds of training, on two cores (log scale)")
    axes.set(ylabel="val loss: lower is better", xlim=(5.5, 330), ylim=(1.35, 2.7))
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
    figure, axes = plt.subplots(figsize=(5.4, 4.6), layout="constrained")
    colors = {"dense": "#444444", "window, two rows": GREEN}
    colors |= {"fixed": BLUE, "strided": ORANGE}
    for name, color in colors.items():
        times = []
        for T in lengths:
            times.append(statistics.median(runs[f"T = {T}"]["times"][name]))
        label = f"{name}: {times[-1]:,.0f} ms"
        axes.plot(lengths, times, "o-", linewidth=2, color=color, label=label)
        power, words = {"dense": (2, "as T²"), "fixed": (1.5, "as T√T")}.get(
            name, (None, "")
        )
        if power is None:
            continue
        guide = [times[-1] * (n / lengths[-1]) ** power for n in lengths]
        axes.plot(lengths, guide, ":", color=color, linewidth=1.5)
        place = (2 * lengths[0], guide[0] * 2**power)
        at = dict(xytext=(4, -4), textcoords="offset points", color=color, va="top")
        axes.annotate(words, place, **at)
    title = f"at {lengths[-1]:,} positions:"
    legend = dict(frameon=False, labelcolor="linecolor", loc="upper left")
    axes.legend(title=title, alignment="left", **legend)
    axes.set(xscale="log", yscale="log", xlabel="T, positions in the context")
    axes.set(ylabel="ms, forward and backward")
    axes.set(xlim=(lengths[0] * 0.85, lengths[-1] * 1.15), ylim=(4, 25_000))
    axes.set_xticks(lengths, [f"{n:,}" for n in lengths])
    axes.set_yticks([10, 100, 1000, 10_000], ["10", "100", "1,000", "10,000"])
    axes.minorticks_off()
    axes.grid()
    title = "Time of dense and of sparse attention against the length of the context"
    save(figure, "cost", title)


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


def accumulation():
    """A batch of eight sequences at once, and in four micro-batches."""
    figure, axes = sheet(54, 55)
    heading = dict(ha="center", weight="bold")
    axes.text(27, 52.5, "at once: x (8, T), memory for 8 sequences", **heading)
    for i in range(8):
        box(axes, 1, 48.5 - 2.5 * i, 15, 2.2, LIGHT_BLUE)
    arrow(axes, (16.5, 39.8), (20.5, 39.8))
    box(axes, 21, 36.3, 11, 7, LIGHT_ORANGE, "loss")
    arrow(axes, (32.5, 39.8), (39.5, 39.8), GREEN)
    box(axes, 40, 36.3, 13, 7, LIGHT_GREEN, "gradient")
    axes.text(27, 25.5, "four times x (2, T), memory for 2 sequences", **heading)
    for i in range(4):
        y = 18.5 - 6 * i
        for j in range(2):
            box(axes, 1, y + 2.5 * (1 - j), 15, 2.2, LIGHT_BLUE)
        arrow(axes, (16.5, y + 2.3), (20.5, y + 2.3))
        box(axes, 21, y, 11, 4.7, LIGHT_ORANGE, "loss / 4")
        arrow(axes, (32.5, y + 2.3), (39.5, 11.8 + 1.5 * (1.5 - i)), GREEN)
    box(axes, 40, 8.3, 13, 7, LIGHT_GREEN, "gradients\nadd up")
    save(figure, "accumulation", "A batch at once, and the same in four micro-batches")


def ddp():
    """Two processes compute half of a step each and average their gradients."""
    figure, axes = sheet(54, 52)
    for rank, color in enumerate((LIGHT_BLUE, LIGHT_ORANGE)):
        x = 2 + 28 * rank
        middle = x + 11
        axes.text(middle, 49.5, f"rank {rank}", ha="center", weight="bold")
        windows = ("0 1 | 4 5", "2 3 | 6 7")[rank]
        box(axes, x, 42, 22, 6, color, f"windows {windows}")
        arrow(axes, (middle, 41.7), (middle, 38.3))
        box(axes, x, 32, 22, 6, LIGHT_GREY, "the whole model")
        arrow(axes, (middle, 31.7), (middle, 28.3))
        box(axes, x, 22, 22, 6, color, f"gradient {rank}")
        side = 27 + 7 * (2 * rank - 1)
        arrow(axes, (middle, 21.7), (side, 17.3), GREEN)
        arrow(axes, (side, 10.7), (middle, 6.8), GREEN)
        box(axes, x, 0.5, 22, 6, LIGHT_GREEN, "the same step")
    box(axes, 14, 11, 26, 6, LIGHT_GREEN, "all-reduce: the mean")
    save(figure, "ddp", "Two processes, one mean gradient, and the same step in both")


def zero():
    """Five pieces, shared out between two processes and collected again."""
    figure, axes = sheet(54, 41)
    colors = (LIGHT_BLUE, LIGHT_ORANGE)
    middles = (13.5, 40.5)
    for rank, middle in enumerate(middles):
        axes.text(middle, 38.5, f"rank {rank}", ha="center", weight="bold")
        for piece in range(5):
            x = middle - 11.4 + 4.6 * piece
            owner = piece // 3
            mine = owner == rank
            color = colors[owner] if mine else "#ffffff"
            box(axes, x, 29, 4.3, 4.6, LIGHT_GREY, str(piece))
            box(axes, x, 16.5, 4.3, 4.6, color, str(piece) if mine else "")
            box(axes, x, 1, 4.3, 4.6, colors[owner], str(piece))
        arrow(axes, (middle, 28.6), (middle, 25.2))
        for other in middles:
            arrow(axes, (middle, 16.1), (other, 9.8), GREEN)
    at = dict(ha="center", va="center")
    axes.text(27, 35.5, "1. mean gradients, the same in both (step 12)", **at)
    axes.text(27, 23.5, "2. momentum, Newton-Schulz: each for its own", **at)
    axes.text(27, 7.8, "3. updates, the same in both", **at)
    axes.text(48.5, 13, "all-gather", color=GREEN, **at)
    save(figure, "zero", "The pieces of Muon, shared out between two processes")


def formats():
    """The bits of three number formats, and the range that they cover."""
    kinds = (  # name, bits of the exponent, of the fraction, smallest and largest
        ("float32", 8, 23, -126, 128),
        ("bfloat16", 8, 7, -126, 128),
        ("float16", 5, 10, -14, 16),
    )
    figure, (top, low) = plt.subplots(2, 1, figsize=(5.4, 5.8), layout="constrained")
    for n, (name, exponent, fraction, smallest, largest) in enumerate(kinds):
        y = 2 - n
        bits = [LIGHT_GREY] + exponent * [LIGHT_ORANGE] + fraction * [LIGHT_BLUE]
        for i, color in enumerate(bits):
            box(top, i, y, 1, 0.42, color)
        words = f"{name}: 1 + {exponent} + {fraction} bits"
        top.text(0, y + 0.5, words, va="bottom")
        low.plot([smallest, largest], [y, y], color=BLUE, linewidth=9)
        tail = smallest - fraction  # smaller ones have fewer digits
        low.plot([tail, smallest], [y, y], color=BLUE, linewidth=3)
        low.text(largest, y + 0.2, name, ha="right", va="bottom")
    top.set(xlim=(-0.2, 32.2), ylim=(-0.1, 3.5))
    top.axis("off")
    for x, color, words in (
        (0, LIGHT_GREY, "sign"),
        (6.5, LIGHT_ORANGE, "exponent: range"),
        (19, LIGHT_BLUE, "fraction: precision"),
    ):
        box(top, x, 3.1, 1, 0.3, color)
        top.text(x + 1.5, 3.25, words, va="center")
    # 1 / 50,257 tokens / 1,536 to 524,288 positions in a step
    low.axvspan(-35, -26, color=RED, alpha=0.25, linewidth=0)
    words = "gradients of GPT-2's\nlogits: lost in float16"
    low.text(-39, 0.05, words, ha="right", va="center", color=RED)
    powers = {-126: "2⁻¹²⁶", -64: "2⁻⁶⁴", -14: "2⁻¹⁴", 16: "2¹⁶", 64: "2⁶⁴"}
    powers[128] = "2¹²⁸"
    low.set_xticks([*powers], [*powers.values()], fontsize=14)
    low.set(yticks=[], ylim=(-0.5, 2.7), xlabel="size of a number (thin: fewer digits)")
    low.spines["left"].set_visible(False)
    save(figure, "formats", "The bits and the range of float32, bfloat16 and float16")


def cache():
    """Rows of queries, keys and values that are computed, without and with a cache."""
    figure, axes = sheet(54, 41)
    at = dict(ha="center", va="center")
    for n, (title, cached) in enumerate((("without", False), ("with a cache", True))):
        left = 8 + 24.5 * n
        axes.text(left + 10.5, 39, title, weight="bold", **at)
        for k, name in enumerate("qkv"):
            x = left + 7.2 * k
            axes.text(x + 3.3, 35.7, name, **at)
            for i in range(6):
                new = not cached or i == 5
                if name == "q" and not new:
                    continue
                color = LIGHT_ORANGE if new else LIGHT_BLUE
                box(axes, x, 30 - 4.4 * i, 6.6, 4, color, "new" if new else "")
    for i in range(6):
        axes.text(4, 32 - 4.4 * i, f"{i + 1}", **at)
    axes.text(4, 35.7, "token", **at)
    for y, color, words in (
        (3.6, LIGHT_ORANGE, "new: computed for token 6"),
        (0.5, LIGHT_BLUE, "from the cache: computed before, kept"),
    ):
        box(axes, 8, y, 3, 2.2, color)
        axes.text(12, y + 1.1, words, va="center")
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
