"""Counts what sparse_gpt.py computes and keeps, without a clock: the same anywhere.

    python docs/bench/sparse_counts.py      writes docs/bench/sparse_counts.md

Scores: what attention computes in one head, mean of the hops, in percent of T * T:
once with the positions as they come, once in the order of the hop. Cache: the keys that
sampling keeps at most, averaged over the hops.
"""

import contextlib
import io
import math
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LENGTHS = (1024, 8192)


def load(pattern, T):
    """The names of sparse_gpt.py with a tiny model, for contexts of T."""
    flags = [f"--pattern={pattern}", f"--block_size={T}", "--max_iters=0"]
    flags += ["--n_layer=1", "--n_embd=16", "--max_new_tokens=0", "--tile=64"]
    flags += ["--device=cpu", "--out_dir=none", "--init_from=scratch"]
    sys.argv = ["sparse_gpt.py", *flags]
    with contextlib.redirect_stdout(io.StringIO()):
        return runpy.run_path(str(ROOT / "sparse_gpt.py"))


def computed(script, hop, T):
    """Scores that attention computes in a hop, as a percentage of T * T."""
    if hop.allows is script["everything"] and hop.selects == 0:
        return 100.0
    tile = script["tile"]
    _, _, _, groups = script["lay_out"](hop, math.ceil(T / tile))
    return 100 * sum(keys.numel() for _, keys, _ in groups) * tile**2 / T**2


def row(pattern, T):
    """A row of the table of T."""
    script = load(pattern, T)
    hops = script["patterns"][pattern]
    plain = [hop._replace(order=script["as_they_come"]) for hop in hops]
    cells = []
    for some in (plain, hops):
        cells.append(sum(computed(script, hop, T) for hop in some) / len(some))
    pairs = sum(script["keys_of"](hop) for hop in hops) / len(hops) / 2
    kept = 0
    for hop in hops:
        slots, _ = script["assign_slots"](hop)
        kept += (int(slots.max()) + 1) / len(hops)
    numbers = f"{cells[0]:.1f} | {cells[1]:.1f} | {pairs:,.0f} | {kept:,.0f}"
    return f"| {pattern} | {script['stride']} | {numbers} |"


def main():
    lines = ["# python docs/bench/sparse_counts.py", "", __doc__.split("\n\n")[2], ""]
    for T in LENGTHS:
        lines += [f"### T = {T}, tiles of 64", ""]
        lines.append("| | l | as they come, % | in order, % | keys seen | cache |")
        lines.append("|---|---:|---:|---:|---:|---:|")
        for pattern in ("dense", "window", "sinks", "alternate", "strided", "fixed"):
            lines.append(row(pattern, T))
            print(lines[-1], flush=True)
        lines.append("")
    (ROOT / "docs/bench/sparse_counts.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
