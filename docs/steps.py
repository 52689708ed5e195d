"""The steps between two scripts of the ladder: the diffs in the chapters of docs/.

    python docs/steps.py check              do the diffs of every chapter lead to its script?
    python docs/steps.py unfold [FOLDER]    write every file in between: to run, read and edit
    python docs/steps.py fold [FOLDER]      put edits of these files back into the chapters

A chapter is named after the script that it leads to; each diff in it is a step. To change a line,
unfold (to out/steps if no FOLDER is given), edit the file where it enters, and fold: all later
files, the scripts and the diffs follow. What was changed in a script itself enters in the last step
of its chapter. Where a later step changes the same lines, fold names it and writes nothing: make
the edit there, too, or end that file with an empty line if it is right as it is; then fold again.
"""

import difflib
import json
import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
LADDER = ["bigram", "v2_attention", "gpt_char", "gpt2_train", "sparse_gpt"]
BLOCK = re.compile(r"(?<=^```diff\n)(?:(?!```).*\n)*", re.M)


def read(path):
    """The text of a file; ends the program where there is none."""
    try:
        text = path.read_text(encoding="utf-8")
        return text if text.endswith("\n") else sys.exit(f"{path}: its last line has no end")
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"{path}: {getattr(error, 'strerror', error)}")


def write(files):
    """Write files, first all under other names: so all of them change, or none does."""
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            Path(f"{path}.tmp").write_text(text, encoding="utf-8", newline="\n")
        for path in files:
            Path(f"{path}.tmp").replace(path)
    except OSError as error:
        [tmp.unlink() for tmp in (Path(f"{path}.tmp") for path in files) if tmp.exists()]
        sys.exit(f"{error.filename}: {error.strerror}")


def apply(text, diff, where):
    """The text after a unified diff, whose every line must fit. where: what to call it if not."""
    lines = text.splitlines(True)
    for part in reversed([*filter(None, re.split("^(?=@@)", diff, flags=re.M))]):
        hunk = re.match(r"@@ -(\d+),?(\d*) \+\d+,?(\d*) @@", part)
        body = part.splitlines(True)[1:]
        gone, come = ([line[1:] or line for line in body if line[0] != sign] for sign in "+-")
        start = int(hunk[1]) - (gone != []) if hunk else 0  # lines count from 1; -0,0: before all
        sizes = [int(size or 1) for size in hunk.group(2, 3)] if hunk else []
        if sizes != [len(gone), len(come)] or lines[start : start + len(gone)] != gone:
            sys.exit(f"{where}: {part.splitlines()[0]} does not fit the file that it changes")
        lines[start : start + len(gone)] = come
    return "".join(lines)


def changes(old, new):
    """What differs, as (start, end, new lines, start, end): where in the old and in the new."""
    old, new = old.splitlines(True), new.splitlines(True)
    blocks = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    return [(i, j, new[k:n], k, n) for tag, i, j, k, n in blocks if tag != "equal"]


def merge(base, ours, theirs):
    """base with the changes of both, and where in theirs they collide: there theirs count."""
    kept, collisions = changes(base, theirs), []
    for a in changes(base, ours):
        hits = [b for b in kept if a[0] < b[1] and b[0] < a[1] or a[0] == b[0]]
        if not hits:
            kept.append(a)
        elif [b[:3] for b in hits] != [a[:3]]:
            collisions += [b[3:] for b in hits]
    lines = base.splitlines(True)
    for start, end, new, *_ in sorted(kept, reverse=True):
        lines[start:end] = new
    return "".join(lines), collisions


def steps(bigram):
    """The text of bigram.py and of every file in between, by "SCRIPT/NUMBER_TITLE.py"."""
    found, text = {"bigram/00_bigram.py": bigram}, bigram
    for script in LADDER[1:]:
        chapter = read(DOCS / f"{script}.md")
        blocks = [*BLOCK.finditer(chapter)] or sys.exit(f"docs/{script}.md: has no diff")
        for number, block in enumerate(blocks, start=1):
            titles = ["", *re.findall(r"^## (?:[\d.]+ )?(.+)$", chapter[: block.start()], re.M)]
            words = "_".join(re.findall(r"\w+", titles[-1].lower()))
            text = apply(text, block[0], f"docs/{script}.md, step {number}, {titles[-1]}")
            found[f"{script}/{number:02d}_{words}.py"] = text
    return found


def check(_):
    """End the program unless the diffs of every chapter lead to its script."""
    found = steps(read(DOCS.parent / "bigram.py"))
    for script, text in {name.split("/")[0]: text for name, text in found.items()}.items():
        for place in changes(text, read(DOCS.parent / f"{script}.py")):
            sys.exit(f"docs/{script}.md: does not lead to {script}.py, line {place[3] + 1}")
    print(f"{len(found) - 1} steps lead from bigram.py to {LADDER[-1]}.py")


def unfold(folder):
    """Write every file in between, and a record of all by which fold knows what was edited."""
    found = steps(read(DOCS.parent / "bigram.py"))
    files = {folder / name: text for name, text in found.items()}
    for path in folder.rglob("*.py"):
        if read(path) != files.get(path):
            sys.exit(f"{path}: edited, or no step; fold it, move it, or name another folder")
    write(files | {folder / "unfolded.json": json.dumps(found) + "\n"})
    print(f"{folder}: {len(found)} files")


def fold(folder):
    """Carry the edits of the files in folder, and of the scripts, through all that follows."""
    found, new, writes, before, after = json.loads(read(folder / "unfolded.json")), {}, {}, "", ""
    foreign = {*folder.rglob("*.py")} - {folder / name for name in found}
    if foreign or found != steps(found["bigram/00_bigram.py"]):
        sys.exit(f"{min(foreign, default=folder)}: is not what the chapters unfold to by now")
    last = {name.split("/")[0]: name for name in found}  # the last step of each script
    for name, text in found.items():
        script = DOCS.parent / (name.split("/")[0] + ".py")
        other = read(script) if name in last.values() else text
        edited, twice = merge(text, other, read(folder / name))
        carried, collisions = merge(before, after, text)
        edited, as_it_is = edited.rstrip("\n") + "\n", edited.endswith("\n\n")
        own = changes(text, edited)
        left = [c for c in collisions if not any(i <= c[1] and c[0] <= j for i, j, *_ in own)]
        for at, _ in twice + left * (not as_it_is):
            sys.exit(f"docs/{script.stem}.md, step {name}: line {at + 1} collides; see --help")
        before, after = text, merge(text, carried, edited)[0]
        new[name] = writes[folder / name] = writes[script] = after
    texts = [text.splitlines(True) for text in new.values()]
    blocks = ("".join([*difflib.unified_diff(*pair)][2:]) for pair in zip(texts, texts[1:]))
    for chapter in [DOCS / f"{script}.md" for script in LADDER[1:]]:
        writes[chapter] = BLOCK.sub(lambda _: re.sub("(?m)^ $", "", next(blocks)), read(chapter))
    writes[folder / "unfolded.json"] = json.dumps(new) + "\n"
    changed = {path: text for path, text in writes.items() if read(path) != text}
    write(changed)
    print(*(f"{path}: changed" for path in changed), f"{len(changed)} files changed", sep="\n")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in ("check", "unfold", "fold"):
        sys.exit(print(__doc__) if "--help" in sys.argv else __doc__)
    globals()[sys.argv[1]](Path(sys.argv[2] if len(sys.argv) == 3 else "out/steps"))
