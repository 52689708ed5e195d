"""Writes diffs/NAME.diff: what `git diff --no-index` says of each script and the one before."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LADDER = ("bigram.py", "v2_attention.py", "gpt_char.py", "gpt2_train.py", "sparse_gpt.py")


def diff(old, new):
    """The diff from script old to script new, without the lines that name blobs and modes."""
    command = ["git", "diff", "--no-index", "--no-color", old, new]
    nobodys = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(command, cwd=ROOT, env=nobodys, capture_output=True, encoding="utf-8")
    if done.returncode != 1:  # 1: they differ
        raise RuntimeError(done.stderr)
    return done.stdout[done.stdout.index("--- ") :]


if __name__ == "__main__":
    for old, new in zip(LADDER, LADDER[1:]):
        path = ROOT / "assets/diffs" / new.replace(".py", ".diff")
        path.parent.mkdir(exist_ok=True)
        path.write_text(diff(old, new), encoding="utf-8")
