"""Draws curves.svg and cost.svg from what tests/bench.py measured; needs matplotlib.

python tests/bench.py ladder && python tests/bench.py sparse
cp out/bench/*.json out/bench/*.md docs/bench/ && python docs/draw_curves.py
"""

import json
import statistics
from pathlib import Path

import matplotlib.pyplot as plt

HERE = Path(__file__).parent
plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "", "font.size": 12}
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True}
plt.rcParams |= {"grid.color": "#e4e4e4", "font.family": "sans-serif"}


def tables(part):
    return json.loads((HERE / f"bench/{part}.json").read_text(encoding="utf-8"))["tables"]


def save(figure, name, title):
    figure.savefig(HERE / name, bbox_inches="tight", metadata={"Date": None, "Title": title})


# Every rung's loss against time: the estimates while it trains, and the final one
curves = next(table for name, table in tables("ladder").items() if name.startswith("Curves"))
figure, axes = plt.subplots(figsize=(9, 4.5))
for name, points in curves.items():
    seconds, losses = zip(*points)
    (line,) = axes.plot(seconds, losses, linewidth=2)
    axes.plot(seconds[-1], losses[-1], "o", color=line.get_color())
    axes.annotate(
        f"{name}.py {losses[-1]:.2f}",
        (seconds[-1], losses[-1]),
        xytext={"gpt_char": (-130, -14), "sparse_gpt": (8, 8)}.get(name, (8, -5)),
        textcoords="offset points",
        color=line.get_color(),
        bbox=dict(facecolor="white", edgecolor="none", pad=1),
    )
axes.axhline(1.4697, color="#888888", linewidth=1, linestyle="--")  # nanoGPT's README
axes.annotate(
    "nanoGPT on an A100, 3 minutes: 1.4697",
    (2, 1.4697),
    xytext=(0, 5),
    color="#888888",
    textcoords="offset points",
)
axes.set(xscale="log", xlabel="seconds since the start of the command, on two cores")
axes.set(ylabel="validation loss (nats per character)", ylim=(1.3, 4.3))
axes.set_xticks([2, 5, 10, 20, 50, 100, 200], [2, 5, 10, 20, 50, 100, 200], minor=False)
axes.minorticks_off()
save(figure, "curves.svg", "Validation loss of the five scripts against time")

# The cost of attention against the length of the context
attention = next(table for name, table in tables("sparse").items() if name.startswith("Attention"))
figure, axes = plt.subplots(figsize=(9, 4))
for name in ("dense", "fixed", "strided"):
    lengths = [int(measure.split()[2].rstrip(":")) for measure in attention[name]]
    times = [statistics.median(values) for values in attention[name].values()]
    (line,) = axes.plot(lengths, times, "o-", linewidth=2)
    shift = (8, {"fixed": 2, "strided": -10}.get(name, -4))
    at = dict(xytext=shift, textcoords="offset points", color=line.get_color())
    axes.annotate(f"{name}: {times[-1]:,.0f} ms", (lengths[-1], times[-1]), **at)
axes.set(xscale="log", yscale="log", xlabel="T, positions in the context")
axes.set(ylabel="ms, forward and backward")
axes.set_xticks(lengths, [f"{n:,}" for n in lengths])
axes.set_yticks([10, 100, 1000], ["10", "100", "1,000"])
axes.minorticks_off()
save(figure, "cost.svg", "Time of dense and of sparse attention against the length of the context")
