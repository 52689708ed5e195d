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
ORANGE = "#d9822b"
GREEN = "#2f8f4e"
PURPLE = "#7a4a9e"
GREY = "#888888"
COLORS = {"bigram": BLUE, "v2_attention": ORANGE, "gpt_char": GREEN}
COLORS |= {"gpt2_train": "#c23b3b", "sparse_gpt": PURPLE}


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
                    at = dict(ha="center", va="center", fontsize=10, color=color)
                    axes.text(j + 0.5, i + 0.5, f"{100 * p:.0f}", **at)
        letters(axes, chars, chars)
        axes.tick_params(labelsize=12)
        axes.set_title(title, pad=8, fontsize=13)
    both[0].set_ylabel("after this letter ...")
    figure.supxlabel("... comes that one, in percent; ␣ is a space", fontsize=12)
    save(figure, "bigram", "The table of pairs of characters, counted and learned")


SHOWN = {" ": "␣", "\n": "↵"}
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
    strip(top, x, "x: 128 numbers for each letter", "black", text)
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
        ("attention", (2, 2), (9, 9)),
        ("attention_narrow", (4, 1), (4.6, 17)),
    ):
        figure, all_axes = plt.subplots(*shape, figsize=size, layout="constrained")
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
        for axes in (first, third):
            axes.set_ylabel("the letter that looks")
        save(figure, name, "Scores, masked scores, weights and output for a line")


def heads():
    """What each of the four heads looks at, on the same line."""
    text, _, every_head = one_line()
    figure, all_axes = plt.subplots(2, 2, figsize=(5.4, 5.8), layout="constrained")
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
    figure.supxlabel("dark: all of its weight; white: none", fontsize=12)
    save(
        figure, "heads", "The weights of the four heads of v2_attention.py over a line"
    )


def samples():
    """What gpt_char.py writes while it learns."""
    run = tables("curves")["gpt_char"]
    out, y = [], 30
    for step, text in run["samples"].items():
        lines = [line[:44] for line in text.strip("\n").splitlines()[:6]]
        out.append(
            f'<text x="14" y="{y}" font-weight="bold">after {int(step):,} steps</text>'
        )
        for i, line in enumerate(lines, start=1):
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
    four = ["#a9cdec", "#f7cf94", "#a8dca8", "#cdb2e0"]
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
        text(14 + 22 * n, 103, name, weight="bold")
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
    figure, (start, whole) = plt.subplots(
        1, 2, figsize=(9, 3.2), width_ratios=(1, 2), sharey=True
    )
    for axes, last in ((start, 20), (whole, last_step)):
        steps = [*range(0, 21), *range(30, last, 10)] if last > 20 else range(21)
        rates = [get_lr(step) for step in steps]
        axes.plot(steps, rates, color=GREEN, linewidth=2)
        axes.set(xlabel="step", ylim=(0, None), xlim=(0, last))
        axes.grid()
    start.set(ylabel="learning rate", title="the first steps: up")
    whole.set(title="all of them: down in a straight line")
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
    figure, axes = plt.subplots(figsize=(9, 0.36 * len(rows) + 0.8))
    before = rows[0][1]
    for y, (title, loss) in enumerate(rows):
        bar = GREEN if loss < before else "#c23b3b"
        axes.plot([before, loss], [y, y], color=bar, linewidth=7, solid_capstyle="butt")
        if y + 1 < len(rows):
            axes.plot([loss, loss], [y, y + 1], color=GREY, linewidth=0.8)
        axes.text(max(before, loss) + 0.02, y, f"{loss:.3f}", va="center", fontsize=10)
        at = dict(va="center", fontsize=10, transform=axes.get_yaxis_transform())
        axes.text(1.02, y, title, **at)
        before = loss
    axes.invert_yaxis()
    axes.set(
        yticks=[],
        xlabel="val loss after 300 steps: green where the step lowers it, else red",
    )
    axes.set_xlim(1.6, 3.6)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    save(figure, "worth", "What each step of the chapter on the Transformer bought")


def architecture():
    """A GPT: the residual stream with its shapes, and the code of every box."""
    boxes = [  # from bottom to top: what it is, its code, its color
        ("tokens idx (B, T)", "", "#eeeeee"),
        ("embeddings", "x = self.wte(idx) + self.wpe(positions)", "#cfe3f5"),
        ("attention", "x = x + self.attn(self.ln_1(x))", "#fbe0bd"),
        ("MLP", "x = x + self.mlp(self.ln_2(x))", "#cfeacf"),
        ("LayerNorm, lm_head", "return self.lm_head(self.ln_f(x))", "#cfe3f5"),
        ("logits (B, T, V)", "", "#eeeeee"),
    ]
    places = [520, 440, 330, 210, 90, 20]
    out = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 580" '
        'font-family="sans-serif" font-size="14">',
        "<title>The architecture of a GPT: residual stream, shapes and code</title>",
        '<rect width="760" height="580" fill="#ffffff"/>',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0 0 L8 4 L0 8 z"/></marker></defs>',
        '<rect x="40" y="160" width="690" height="240" rx="8" fill="none" '
        'stroke="#888888" stroke-dasharray="6 4"/>',
        '<text x="130" y="180" fill="#555555">class Block, n_layer times: '
        '<tspan font-family="monospace">for block in self.h: x = block(x)</tspan>'
        "</text>",
    ]

    def line(x, y, x2, y2, tip=True):
        end = ' marker-end="url(#tip)"' if tip else ""
        out.append(
            f'<path d="M{x} {y} L{x2} {y2}" stroke="#000000" stroke-width="1.6" '
            f'fill="none"{end}/>'
        )

    line(110, 520, 110, 483)
    line(110, 440, 110, 133)  # the residual stream
    line(110, 90, 110, 63)
    for (what, code, color), y in zip(boxes, places):
        beside = what in ("attention", "MLP")
        x, width = (190, 200) if beside else (50, 180)
        label = f"LayerNorm, {what}" if beside else what
        out.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="42" fill="{color}" '
            f'stroke="#000000"/><text x="{x + width / 2}" y="{y + 26}" '
            f'text-anchor="middle">{label}</text>'
        )
        if code:
            out.append(
                f'<text x="{x + width + 20}" y="{y + 26}" font-family="monospace" '
                f'font-size="13">{code}</text>'
            )
        if beside:  # reads the stream below, adds to it above
            line(110, y + 52, 290, y + 52, tip=False)
            line(290, y + 52, 290, y + 44)
            line(290, y, 290, y - 14, tip=False)
            line(290, y - 14, 123, y - 14)
            out.append(
                f'<circle cx="110" cy="{y - 14}" r="11" fill="#ffffff" '
                f'stroke="#000000"/><text x="110" y="{y - 9}" '
                'text-anchor="middle">+</text>'
            )
    for y, shape in ((422, "(B, T, C)"), (285, "(B, T, C)"), (150, "(B, T, C)")):
        out.append(f'<text x="118" y="{y}" font-size="12">{shape}</text>')
    for y, words in (
        (377, "class CausalSelfAttention: positions talk"),
        (257, "class MLP: each position thinks"),
    ):
        out.append(
            f'<text x="410" y="{y}" font-size="12" fill="#555555">{words}</text>'
        )
    at = 'font-size="12" fill="#555555" text-anchor="middle"'
    out.append(
        f'<text transform="rotate(-90 32 285)" x="32" y="285" {at}>'
        "the residual stream</text>"
    )
    out.append("</svg>")
    write("architecture", "\n".join(out))


def muon():
    """What a gradient and Muon's update do to the unit circle, and a real spectrum."""
    angles = [2 * math.pi * i / 200 for i in range(201)]
    circle = [(math.cos(a), math.sin(a)) for a in angles]
    figure, three = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    for axes, ((a, b), (c, d)), title in (
        (three[0], ((3, 2), (2, 3)), "the gradient: factors 5 and 1"),
        (three[1], ((1, 0), (0, 1)), "Muon's update: factors 1 and 1"),
    ):
        axes.plot(*zip(*circle), color=GREY, linewidth=1, linestyle="--")
        image = [(a * x + b * y, c * x + d * y) for x, y in circle]
        axes.plot(*zip(*image), color=BLUE, linewidth=2)
        for sign, color in ((1, GREEN), (-1, ORANGE)):
            x, y = math.sqrt(0.5), sign * math.sqrt(0.5)
            arrow = dict(arrowstyle="->", color=color, linewidth=2.5)
            end = (a * x + b * y, c * x + d * y)
            axes.annotate("", end, (0, 0), arrowprops=arrow)
        axes.set(xlim=(-4, 4), ylim=(-4, 4), aspect="equal", title=title)
        axes.set_xlabel("dashed: vectors of length 1; blue: their images", fontsize=10)
        axes.grid()
    report = (DOCS / "bench/effects.json").read_text(encoding="utf-8")
    values = json.loads(report)["spectrum"]["value"]
    relative = [value / values[0] for value in values]
    ranks = range(1, len(values) + 1)
    real = three[2]
    real.plot(ranks, relative, color=BLUE, linewidth=2)
    real.axhline(1, color=PURPLE, linewidth=2)
    real.text(64, 1.25, "Muon's update", color=PURPLE, ha="center")
    real.text(70, relative[54], "the gradient", color=BLUE)
    real.set(yscale="log", ylim=(1e-4, 3), xlim=(1, len(values)))
    real.set(title="a gradient of step 14, 128 directions")
    real.set_xlabel("singular values by size, the largest set to 1", fontsize=10)
    real.grid()
    save(figure, "muon", "A gradient and Muon's update: how far each direction moves")


def overfitting():
    """Train and val loss on a short text, with and without dropout."""
    report = (DOCS / "bench/effects.json").read_text(encoding="utf-8")
    runs = json.loads(report)["runs"]
    figure, axes = plt.subplots(figsize=(9, 4.4))
    for name, color, label in (
        ("small text", "#c23b3b", "no dropout"),
        ("small text, dropout 0.2", GREEN, "dropout 0.2"),
    ):
        output = runs[name]["output"]
        pattern = r"step +(\d+) \| train loss (\S+) \| val loss (\S+)"
        lines = re.findall(pattern, output)
        steps, train, val = zip(*((int(s), float(a), float(b)) for s, a, b in lines))
        last = int(re.search(r"max_iters=(\d+)", runs[name]["flags"])[1])
        final = float(re.search(r"final val loss (\S+)", output)[1])
        at = dict(xytext=(6, -3), textcoords="offset points", color=color)
        axes.plot([*steps, last], [*val, final], color=color, linewidth=2)
        axes.annotate(f"{label}, val", (last, final), **at)
        axes.plot(steps, train, color=color, linewidth=1.5, linestyle="--")
        at["xytext"] = (20, -3)
        axes.annotate(f"{label}, train", (steps[-1], train[-1]), **at)
    axes.set(xlabel="step", ylabel="loss on a text of 30 KB", ylim=(0, 3.5))
    axes.set_xlim(0, last)
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
    names = sparse(T, stride, summary, tile=6)
    out = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 380" '
        'font-family="sans-serif" font-size="14">',
        "<title>Which positions attend to which: dense, strided and fixed</title>",
        '<rect width="960" height="380" fill="#ffffff"/>',
        "<defs>",
    ]
    for name, color in {
        "a1": "#1f6fb4",
        "a2": "#f2a33a",
        "both": "#7a4a9e",
        "none": "#e4e4e4",
    }.items():
        out.append(f'<rect id="{name}" width="7" height="7" fill="{color}"/>')
    out.append("</defs>")
    words = {
        "dense": "dense: T * T",
        "strided": "strided: row before, column",
        "fixed": "fixed: own row, last c columns",
    }
    for n, (name, word) in enumerate(words.items()):
        hops = names["patterns"][name]
        first = seen_by(names, hops[0], T)
        last = seen_by(names, hops[-1], T)
        out.append(f'<text x="{20 + 316 * n}" y="24">{word}</text>')
        out.append(f'<g id="{name}" transform="translate({20 + 316 * n} 36)">')
        for i in range(T):
            for j in range(i + 1):
                kind = "none"
                if first[i, j] and last[i, j]:
                    kind = "both"
                elif first[i, j]:
                    kind = "a1"
                elif last[i, j]:
                    kind = "a2"
                out.append(f'<use href="#{kind}" x="{8 * j}" y="{8 * i}"/>')
        out.append("</g>")
    x = 20
    for kind, word in {
        "a1": "hop 1 (A1)",
        "a2": "hop 2 (A2)",
        "both": "both",
        "none": "not seen, but in reach of two hops",
    }.items():
        out.append(
            f'<use href="#{kind}" x="{x}" y="342"/>'
            f'<text x="{x + 14}" y="350">{word}</text>'
        )
        x += 45 + 8 * len(word)
    what = "Each line is a position that attends, each column one that is seen; "
    what += f"T = {T}, stride l = {stride}, summary c = {summary}"
    out.append(f'<text x="20" y="372" fill="#555555">{what}</text>')
    out.append("</svg>")
    write("patterns", "\n".join(out))


def layouts():
    """Blocks of 6 x 6 scores: which must be computed, before and after reordering."""
    T, row, c = 36, 6, 2
    names = sparse(T, row, c, tile=row)
    column = names["patterns"]["strided"][1]
    last_columns = names["patterns"]["fixed"][1]
    panels = {
        "strided, hop 2, as they come": (column, names["as_they_come"]),
        "strided, hop 2, by column": (column, column.order),
        "fixed, hop 2, as they come": (last_columns, names["as_they_come"]),
        "fixed, hop 2, summaries first": (last_columns, last_columns.order),
    }
    figure, all_axes = plt.subplots(1, 4, figsize=(12, 3.7))
    for axes, (title, (hop, order)) in zip(all_axes, panels.items()):
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
                color = "#efefef"
                if len(seen) > before:
                    color = "#fbe0bd"
                    computed += 1
                corner = (left - 0.45, top - 0.45)
                block = plt.Rectangle(corner, row - 0.1, row - 0.1, color=color)
                axes.add_patch(block)
        squares(axes, T, 12, {(BLUE, 1): seen})
        axes.set_title(f"{title}:\n{computed} of 36 blocks", fontsize=10)
    what = "blue: seen; orange: computed with it and masked; grey: skipped"
    figure.text(0.5, 0.03, what, ha="center", color="#555555")
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
        "sparse_gpt": (120, 1.95),
    }
    for name, run in tables("curves").items():
        seconds, losses = zip(*run["points"])
        end = (seconds[-1], losses[-1])
        axes.plot(seconds, losses, linewidth=2, color=COLORS[name])
        axes.plot(*end, "o", color=COLORS[name])
        line = dict(arrowstyle="-", color=COLORS[name], linewidth=0.8, shrinkB=4)
        label = f"{name}.py  {losses[-1]:.2f}"
        at = dict(color=COLORS[name], fontsize=12, arrowprops=line)
        axes.annotate(label, end, places[name], **at)
    axes.annotate("4.17: knows nothing yet", (6, 4.12), color="#666666", va="center")
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
    axes.annotate(words, (6, 1.485), color="#666666", fontsize=11)
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
    figure, axes = plt.subplots(figsize=(9, 4.2))
    colors = {"dense": GREY, "fixed": BLUE, "strided": ORANGE}
    colors["window, two rows"] = GREEN
    for name, color in colors.items():
        times = []
        for T in lengths:
            times.append(statistics.median(runs[f"T = {T}"]["times"][name]))
        axes.plot(lengths, times, "o-", linewidth=2, color=color)
        shift = (8, {"strided": -12}.get(name, -2))
        at = dict(xytext=shift, textcoords="offset points", color=color)
        axes.annotate(f"{name}: {times[-1]:,.0f} ms", (lengths[-1], times[-1]), **at)
        power = {"dense": 2, "fixed": 1.5}.get(name)
        if power is None:
            continue
        guide = [times[-1] * (n / lengths[-1]) ** power for n in lengths]
        axes.plot(lengths, guide, ":", color=color, linewidth=1)
        at = dict(xytext=(-48, -4), textcoords="offset points", color=color)
        axes.annotate(f"as T^{power:g}", (lengths[0], guide[0]), fontsize=10, **at)
    axes.set(xscale="log", yscale="log", xlabel="T, positions in the context")
    axes.set(
        ylabel="ms, forward and backward",
        xlim=(lengths[0] * 0.72, lengths[-1] * 2.2),
        ylim=(1, None),
    )
    axes.set_xticks(lengths, [f"{n:,}" for n in lengths])
    axes.set_yticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
    axes.minorticks_off()
    axes.grid()
    title = "Time of dense and of sparse attention against the length of the context"
    save(figure, "cost", title)


LIGHT_BLUE = "#cfe3f5"
LIGHT_ORANGE = "#fbe0bd"
LIGHT_GREEN = "#cfeacf"
LIGHT_GREY = "#eeeeee"


def sheet(width, height):
    """An empty drawing on which 10 units are one inch."""
    figure, axes = plt.subplots(figsize=(width / 10, height / 10))
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1)
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def box(axes, x, y, width, height, color, label="", size=10):
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
    figure, axes = sheet(90, 42)
    for i in range(8):
        box(axes, 4, 32 - 3.5 * i, 12, 3.2, LIGHT_BLUE)
    axes.text(10, 38, "x (8, T)", ha="center")
    arrow(axes, (17, 19), (22, 19))
    box(axes, 22.5, 15.5, 8, 7, LIGHT_ORANGE, "loss")
    axes.text(19, 2, "at once: memory for 8 sequences", ha="center", fontsize=10)
    for i in range(4):
        y = 31 - 8.5 * i
        for j in range(2):
            box(axes, 42, y + 3.5 * (1 - j), 12, 3.2, LIGHT_BLUE)
        arrow(axes, (55, y + 3.4), (58, y + 3.4))
        box(axes, 58.5, y + 0.4, 9, 6, LIGHT_ORANGE, "loss / 4")
        arrow(axes, (68, y + 3.4), (75.5, 19 + 1.2 * (1.5 - i)), GREEN)
    axes.text(48, 40, "x (2, T), four times", ha="center")
    box(axes, 76, 14.5, 12, 9, LIGHT_GREEN, "gradients\nadd up")
    axes.text(65, 2, "one after the other: memory for 2", ha="center", fontsize=10)
    axes.plot([36.5, 36.5], [4, 38], color=GREY, linewidth=1, linestyle="--")
    save(figure, "accumulation", "A batch at once, and the same in four micro-batches")


def ddp():
    """Two processes compute half of a step each and average their gradients."""
    figure, axes = sheet(90, 36)
    for rank, color in enumerate((LIGHT_BLUE, LIGHT_ORANGE)):
        y = 23 - 18 * rank
        axes.text(2, y + 4.5, f"rank {rank}", va="center", fontsize=11)
        windows = ("0 1 | 4 5", "2 3 | 6 7")[rank]
        box(axes, 11, y, 14, 9, color, f"windows\n{windows}")
        arrow(axes, (25.5, y + 4.5), (29.5, y + 4.5))
        box(axes, 30, y, 13, 9, color, "the whole\nmodel")
        arrow(axes, (43.5, y + 4.5), (47.5, y + 4.5))
        box(axes, 48, y, 11, 9, color, f"gradient {rank}")
        arrow(axes, (59.5, y + 4.5), (63, 18.2 + 1.5 * (0.5 - rank)), GREEN)
        arrow(axes, (73, 18.2 + 1.5 * (0.5 - rank)), (76.5, y + 4.5), GREEN)
        box(axes, 77, y, 11, 9, color, "the same\nstep")
    box(axes, 63.3, 14.5, 9.4, 7.5, LIGHT_GREEN, "mean", 11)
    axes.text(68, 10.5, "all-reduce", ha="center", fontsize=10, color=GREEN)
    save(figure, "ddp", "Two processes, one mean gradient, and the same step in both")


def zero():
    """Five pieces, shared out between two processes and collected again."""
    figure, axes = sheet(90, 34)
    colors = (LIGHT_BLUE, LIGHT_ORANGE)
    for rank in range(2):
        y = 21 - 16 * rank
        axes.text(2, y + 3.5, f"rank {rank}", va="center", fontsize=11)
        for piece in range(5):
            owner = piece // 3
            mine = owner == rank
            color = colors[owner] if mine else "#ffffff"
            box(axes, 11 + 4 * piece, y, 3.6, 7, LIGHT_GREY, str(piece))
            box(axes, 39 + 4 * piece, y, 3.6, 7, color, str(piece) if mine else "")
            box(axes, 68 + 4 * piece, y, 3.6, 7, colors[owner], str(piece))
        arrow(axes, (32, y + 3.5), (37.5, y + 3.5))
        for other in (24, 8):
            arrow(axes, (60, y + 3.5), (66.5, other + 0.5), GREEN)
    axes.text(21, 31, "mean gradients (step 12)", ha="center", fontsize=10)
    axes.text(49, 31, "momentum, Newton-Schulz", ha="center", fontsize=10)
    axes.text(78, 31, "updates", ha="center", fontsize=10)
    axes.text(63.3, 1.5, "all-gather", ha="center", fontsize=10, color=GREEN)
    save(figure, "zero", "The pieces of Muon, shared out between two processes")


def formats():
    """The bits of three number formats, and the range that they cover."""
    kinds = (  # name, bits of the exponent, of the fraction, smallest and largest
        ("float32", 8, 23, -126, 128),
        ("bfloat16", 8, 7, -126, 128),
        ("float16", 5, 10, -14, 16),
    )
    figure, (top, low) = plt.subplots(2, 1, figsize=(9, 5.2))
    for n, (name, exponent, fraction, smallest, largest) in enumerate(kinds):
        y = 2 - n
        bits = [LIGHT_GREY] + exponent * [LIGHT_ORANGE] + fraction * [LIGHT_BLUE]
        for i, color in enumerate(bits):
            box(top, i, y, 1, 0.7, color)
        top.text(-0.5, y + 0.35, name, ha="right", va="center", fontsize=11)
        low.plot([smallest, largest], [y, y], color=BLUE, linewidth=9)
        tail = smallest - fraction  # smaller ones have fewer digits
        low.plot([tail, smallest], [y, y], color=LIGHT_BLUE, linewidth=9)
    top.set(xlim=(-5, 33), ylim=(-0.3, 3.6))
    top.axis("off")
    legend = ((0.5, "sign"), (5, "exponent: range"), (20, "fraction: precision"))
    for x, words in legend:
        top.text(x, 2.95, words, ha="center", fontsize=10)
    # 1 / 50,257 tokens / 1,536 to 524,288 positions in a step
    low.axvspan(-35, -26, color="#c23b3b", alpha=0.15, linewidth=0)
    words = "gradients of GPT-2's logits:\nlost in float16"
    low.text(-30.5, -0.75, words, ha="center", va="center", fontsize=9)
    low.set_yticks([2, 1, 0], [kind[0] for kind in kinds])
    low.set_xticks([-126, -60, -14, 16, 60, 128])
    low.set_xticklabels(["2^-126", "2^-60", "2^-14", "2^16", "2^60", "2^128"])
    low.set(ylim=(-1.3, 2.6), xlabel="size of a number (pale: fewer digits)")
    low.tick_params(left=False)
    figure.tight_layout()
    save(figure, "formats", "The bits and the range of float32, bfloat16 and float16")


def cache():
    """Rows of queries, keys and values that are computed, without and with a cache."""
    figure, axes = sheet(90, 36)
    for n, (title, cached) in enumerate((("without", False), ("with a cache", True))):
        left = 4 + 46 * n
        axes.text(left + 18, 33, title, ha="center", fontsize=12)
        for k, (name, rows) in enumerate((("q", 6), ("k", 6), ("v", 6))):
            x = left + 13 * k
            axes.text(x + 4.5, 29.5, name, ha="center", fontsize=11)
            for i in range(rows):
                new = not cached or i == 5
                if name == "q" and not new:
                    continue
                color = LIGHT_ORANGE if new else LIGHT_BLUE
                box(axes, x, 24.5 - 4 * i, 9, 3.6, color, "new" if new else "", 8)
    box(axes, 58, 0.4, 3, 2.4, LIGHT_BLUE)
    axes.text(62, 1.6, "from the cache", va="center", fontsize=10)
    box(axes, 12, 0.4, 3, 2.4, LIGHT_ORANGE)
    axes.text(16, 1.6, "computed for the sixth token", va="center", fontsize=10)
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
