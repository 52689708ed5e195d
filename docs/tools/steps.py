"""The steps between the scripts: the diffs in the chapters of docs/.

    python docs/tools/steps.py check              do the diffs lead to the scripts?
    python docs/tools/steps.py unfold [FOLDER]    write the file after each step
    python docs/tools/steps.py fold [FOLDER]      put your edits back into the chapters

FOLDER is out/steps by default. The files in it can be run and edited. To change a line:
unfold, edit the file of the step where the line enters, fold. All later files, the
scripts and the diffs follow. You may also edit a script: new lines enter in the last
step of its chapter. A new branch needs a line in BRANCHES.

If a later step changes the lines that you edited, fold names that step and writes
nothing. Make the edit there, too; or, if that file is right as it is, say so:

    python docs/tools/steps.py fold --keep=gpt_char/04_dropout.py
"""

import argparse
import difflib
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
LADDER = ["bigram", "v2_attention", "gpt_char", "gpt2_train", "sparse_gpt"]
BRANCHES = {"by_hand": "bigram", "chat": "gpt_char"}  # to beyond/NAME.py: from where
FIRST = "bigram/00_bigram.py"
BLOCK = re.compile(r"(?<=^```diff\n)(?:(?!```).*\n)*", re.M)


# ---------------------------------------------------------------------- Files and names
def read(path):
    """The text of a file. Ends the program if there is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        sys.exit(f"{path}: {error.strerror}")
    except UnicodeDecodeError as error:
        sys.exit(f"{path}: {error}")
    if not text.endswith("\n"):
        sys.exit(f"{path}: the last line must end with a newline")
    return text


def write(files):
    """Write files {path: text}, first under other names: all change, or none does."""
    unfinished = {path: Path(f"{path}.tmp") for path in files}
    path = None
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished[path].write_text(text, encoding="utf-8", newline="\n")
        for path in files:
            unfinished[path].replace(path)
    except OSError as error:
        sys.exit(f"{path}: {error.strerror}")
    finally:
        for leftover in unfinished.values():
            if leftover.exists():
                leftover.unlink()


def chapters():
    """{chapter: the script that it starts from}, without branches not written yet."""
    found = dict(zip(LADDER[1:], LADDER))
    for branch, start in BRANCHES.items():
        if (DOCS / f"{branch}.md").exists():
            found[branch] = start
    return found


def script_path(chapter):
    """The script that a chapter leads to."""
    if chapter in BRANCHES:
        return ROOT / "beyond" / f"{chapter}.py"
    return ROOT / f"{chapter}.py"


def last_steps(names):
    """{chapter: the file after its last step}."""
    return {name.split("/")[0]: name for name in names}


def parents(names):
    """{file after a step: the file before the step}."""
    found = {}
    last = {}
    for name in names:
        chapter = name.split("/")[0]
        if chapter in last:
            found[name] = last[chapter]
        elif name != FIRST:
            found[name] = last[chapters()[chapter]]
        last[chapter] = name
    return found


# ----------------------------------------------------------------------- Apply and undo
def apply(text, diff, where):
    """The text after a diff, which must fit to the letter. where: for the message."""
    lines = text.splitlines(True)
    hunks = [hunk for hunk in re.split(r"^(?=@@)", diff, flags=re.M) if hunk]
    for hunk in reversed(hunks):  # from the end, so that line numbers stay true
        head, *body = hunk.splitlines(True)
        gone = [line[1:] or line for line in body if line[0] != "+"]
        come = [line[1:] or line for line in body if line[0] != "-"]
        match = re.match(r"@@ -(\d+),?(\d*) \+\d+,?(\d*) @@", head)
        if match is None:
            sys.exit(f"{where}: {head.rstrip()} is no line number of a diff")
        start = int(match[1])
        if gone:
            start -= 1  # lines count from 1, but -0,0 is before the first
        sizes = [int(size or 1) for size in match.group(2, 3)]
        end = start + len(gone)
        if sizes != [len(gone), len(come)] or lines[start:end] != gone:
            sys.exit(f"{where}: {head.rstrip()} does not fit the file that it changes")
        lines[start:end] = come
    return "".join(lines)


def reverse(diff):
    """The diff that undoes a diff."""
    signs = {"+": "-", "-": "+"}
    lines = []
    for line in diff.splitlines(True):
        head = re.match(r"@@ -(\S+) \+(\S+) @@", line)
        if head:
            lines.append(f"@@ -{head[2]} +{head[1]} @@\n")
        else:
            lines.append(signs.get(line[0], line[0]) + line[1:])
    return "".join(lines)


def read_chapter(chapter):
    """The steps of a chapter: (name of the file after it, for messages, diff)."""
    text = read(DOCS / f"{chapter}.md")
    found = []
    for number, block in enumerate(BLOCK.finditer(text), start=1):
        before = text[: block.start()]
        titles = re.findall(r"^## (?:[\d.]+ )?(.+)$", before, re.M)
        title = titles[-1] if titles else ""
        words = "_".join(re.findall(r"\w+", title.lower()))
        where = f"docs/{chapter}.md, step {number}, {title}"
        found.append((f"{chapter}/{number:02d}_{words}.py", where, block[0]))
    if not found:
        sys.exit(f"docs/{chapter}.md: has no diff")
    return found


def steps(bigram):
    """{"CHAPTER/NUMBER_TITLE.py": text} of bigram.py and the files after each step."""
    found = {FIRST: bigram}
    ends = {"bigram": bigram}
    for chapter, start in chapters().items():
        text = ends[start]
        for name, where, diff in read_chapter(chapter):
            text = apply(text, diff, where)
            found[name] = text
        ends[chapter] = text
    return found


def undo(chapter):
    """The text of bigram.py from which a chapter's script came, or None.

    All steps from bigram.py to the script are undone.
    """
    text = read(script_path(chapter))
    try:
        while chapter != "bigram":
            for _, where, diff in reversed(read_chapter(chapter)):
                text = apply(text, reverse(diff), where)
            chapter = chapters()[chapter]
    except SystemExit:  # a diff that does not fit
        return None
    return text


def agreement(bigram):
    """To how many scripts do the steps lead from a text of bigram.py?"""
    ends = {"bigram": bigram}
    count = 0
    for chapter, start in chapters().items():
        if start not in ends:
            continue
        text = ends[start]
        try:
            for _, where, diff in read_chapter(chapter):
                text = apply(text, diff, where)
        except SystemExit:  # a diff that does not fit
            continue
        ends[chapter] = text
        if text == read(script_path(chapter)):
            count += 1
    return count


def unedited_bigram():
    """The text of bigram.py that the chapters know, though scripts may be edited.

    bigram.py itself, or what remains of another script when its steps are undone:
    the text from which the steps lead to the most scripts.
    """
    found = read(ROOT / "bigram.py")
    best = agreement(found)
    if best == len(chapters()):
        return found
    for chapter in chapters():
        text = undo(chapter)
        if text is not None and agreement(text) > best:
            found = text
            best = agreement(text)
    if best == 0:
        try:
            steps(found)
        except SystemExit as error:
            sys.exit(
                f"{error}. If you edited all the scripts: put them back, unfold, "
                "edit, fold"
            )
    return found


# ------------------------------------------------------------------------------ Merging
class Change(NamedTuple):
    """Lines start to end of the old text became the lines new, from line at on."""

    start: int
    end: int
    new: list
    at: int


def changes(old, new):
    """What differs between two texts, as a list of Change."""
    old = old.splitlines(True)
    new = new.splitlines(True)
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    found = []
    for tag, i, j, k, n in matcher.get_opcodes():
        if tag != "equal":
            found.append(Change(i, j, new[k:n], k))
    return found


def first_difference(old, new):
    """The number, from 1, of the first line of old that differs from new, or None."""
    found = changes(old, new)
    return found[0].start + 1 if found else None


def collide(a, b):
    """Do two changes touch the same lines, or add lines at the same place?"""
    if a.start == b.start or (a.start < b.end and b.start < a.end):
        return True
    both_add = len(a.new) > a.end - a.start and len(b.new) > b.end - b.start
    return both_add and (a.end == b.start or b.end == a.start)


def merge(base, ours, theirs):
    """base with the changes of both, and the pairs of changes that collide.

    Where they collide, theirs count.
    """
    kept = changes(base, theirs)
    collisions = []
    for a in changes(base, ours):
        hits = [b for b in kept if collide(a, b)]
        if not hits:
            kept.append(a)
        elif [b[:3] for b in hits] != [a[:3]]:  # the same change twice is fine
            collisions += [(a, b) for b in hits]
    lines = base.splitlines(True)
    for change in sorted(kept, reverse=True):
        lines[change.start : change.end] = change.new
    return "".join(lines), collisions


def settles(edit, carried):
    """Does an edit in a file say what becomes of the change that is carried to it?

    It does if it replaces the same lines, or contains those that the change adds.
    """
    if carried.start < carried.end:
        return edit.start <= carried.start and carried.end <= edit.end
    n = len(carried.new)
    places = range(len(edit.new) - n + 1)
    return any(edit.new[i : i + n] == carried.new for i in places)


def swallows(step, edit):
    """Does a step remove the edited lines, without putting anything in their place?"""
    if step.new:
        return False
    if edit.start == edit.end:  # lines were added: in the midst of what is removed?
        return step.start < edit.start < step.end
    return step.start <= edit.start and edit.end <= step.end


def origins(texts, before):
    """{file: for each of its lines, the file where this line entered}."""
    found = {}
    for name, text in texts.items():
        new = text.splitlines(True)
        if name not in before:
            found[name] = [name] * len(new)
            continue
        lines = found[before[name]].copy()
        for change in reversed(changes(texts[before[name]], text)):
            lines[change.start : change.end] = [name] * len(change.new)
        found[name] = lines
    return found


# ------------------------------------------------------------------------- The commands
def check():
    """End the program unless the diffs of every chapter lead to its script."""
    bigram = unedited_bigram()
    line = first_difference(read(ROOT / "bigram.py"), bigram)
    if line:
        sys.exit(
            f"bigram.py, line {line}: is not what docs/v2_attention.md starts from. "
            "If you edited bigram.py: unfold first, then fold"
        )
    found = steps(bigram)
    report = []
    for chapter, name in last_steps(found).items():
        path = script_path(chapter)
        script = path.relative_to(ROOT).as_posix()
        line = first_difference(read(path), found[name])
        if line:
            sys.exit(
                f"{script}, line {line}: is not what docs/{chapter}.md leads to. "
                f"If you edited {path.name}: unfold first, then fold"
            )
        if chapter != "bigram":
            count = len(read_chapter(chapter))
            start = chapters()[chapter]
            report.append(f"{count} steps lead from {start}.py to {script}")
    print("\n".join(report))


def unfold(folder):
    """Write the file after each step, and a record by which fold knows your edits.

    Files of old chapters are replaced, or removed, unless they were edited.
    """
    found = steps(unedited_bigram())
    record = folder / "unfolded.json"
    before = parse_record(record) if record.exists() else {}
    gone = []
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        if read(path) not in (found.get(name), before.get(name)):
            what_to_do = "fold it, delete it, or unfold to another FOLDER"
            sys.exit(f"{path}: is edited, or no step; {what_to_do}")
        if name not in found:  # a step of old chapters
            gone.append(path)
    files = {folder / name: text for name, text in found.items()}
    write(files | {record: json.dumps(found) + "\n"})
    for path in gone:
        path.unlink()
    print(f"{folder}: {len(found)} files")


def parse_record(path):
    """{file: its text} as unfold wrote it, or {} if the record is damaged."""
    try:
        found = json.loads(read(path))
    except ValueError:
        return {}
    is_record = isinstance(found, dict) and isinstance(found.get(FIRST), str)
    return found if is_record else {}


def read_record(folder):
    """What unfold wrote, which must be what the chapters still say."""
    path = folder / "unfolded.json"
    if not path.exists():
        sys.exit(f"{path}: No such file; unfold first")
    found = parse_record(path)
    if not found:
        sys.exit(f"{path}: is damaged; unfold to another FOLDER and edit there")
    if found != steps(found[FIRST]):
        what_to_do = "unfold to another FOLDER and edit there"
        sys.exit(f"{folder}: is not what the chapters say by now; {what_to_do}")
    for path in sorted(folder.rglob("*.py")):
        if path.relative_to(folder).as_posix() not in found:
            sys.exit(f"{path}: is no step; move it away")
    return found


def read_edits(folder, name, text, found):
    """The file after a step as it was edited in the folder.

    After the last step of a chapter, with the edits of the script, too.
    """
    edited = read(folder / name)
    chapter = name.split("/")[0]
    if last_steps(found)[chapter] != name:
        return edited
    script = script_path(chapter)
    merged, collisions = merge(text, read(script), edited)
    for a, b in collisions:
        sys.exit(
            f"{folder / name}, line {b.at + 1}: edited differently in {script.name}, "
            f"line {a.at + 1}; make both the same"
        )
    return merged


def refuse_late_edits(folder, name, text, carried, origin):
    """End the program if lines from before this step were edited in a script."""
    chapter = name.split("/")[0]
    script = script_path(chapter)
    known = changes(text, carried) + changes(text, read(folder / name))
    known = [change[:3] for change in known]
    for change in changes(text, read(script)):
        for entered in origin[name][change.start : change.end]:
            if entered != name and change[:3] not in known:
                sys.exit(
                    f"{script.name}, line {change.at + 1}: these lines enter in "
                    f"{folder / entered}; edit them there, or in {folder / name} "
                    "if they shall change in this step"
                )


def is_touched(step, edits):
    """Does one of the edits of a file touch the lines that its step changes?"""
    end = step.at + len(step.new)
    return any(edit.start <= end and step.at <= edit.end for edit in edits)


def fold(folder, keep=()):
    """Carry the edits in the folder and in the scripts through all that follows."""
    found = read_record(folder)
    for name in keep:
        if name not in found:
            sys.exit(f"--keep={name}: is no file in {folder}")
    before = parents(found)
    origin = origins(found, before)
    new = {}
    for name, text in found.items():
        where = folder / name
        edited = read_edits(folder, name, text, found)
        carried = text
        if name in before:
            old = before[name]
            carried, collisions = merge(found[old], new[old], text)
            for edit, step in collisions:
                if name in keep or swallows(step, edit):
                    continue
                if not is_touched(step, changes(text, edited)):
                    sys.exit(
                        f"{where}, line {step.at + 1}: this step changes the lines "
                        "that you edited; edit them here, too, or fold with "
                        f"--keep={name}"
                    )
        if name in last_steps(found).values():
            refuse_late_edits(folder, name, text, carried, origin)
        new[name], collisions = merge(text, carried, edited)
        for change, edit in collisions:
            if name not in keep and not settles(edit, change):
                sys.exit(
                    f"{where}, line {edit.at + 1}: an edit before this step changes "
                    f"the same place; put both in here, or fold with --keep={name}"
                )

    writes = {folder / name: text for name, text in new.items()}
    for chapter, name in last_steps(new).items():
        writes[script_path(chapter)] = new[name]
    for chapter in chapters():
        diffs = []
        for name in new:
            if name.startswith(f"{chapter}/"):
                diffs.append(diff_of(new[before[name]], new[name]))
        following = iter(diffs)
        text = read(DOCS / f"{chapter}.md")
        writes[DOCS / f"{chapter}.md"] = BLOCK.sub(lambda _: next(following), text)
    writes[folder / "unfolded.json"] = json.dumps(new) + "\n"
    changed = {path: text for path, text in writes.items() if read(path) != text}
    write(changed)
    for path in changed:
        if folder not in path.parents:
            print(f"{path}: changed")
    print(f"{len(changed)} files changed")


def diff_of(old, new):
    """The unified diff of two texts, without the two lines of its head."""
    lines = difflib.unified_diff(old.splitlines(True), new.splitlines(True))
    text = "".join(list(lines)[2:])
    return re.sub("^ $", "", text, flags=re.M)  # an empty line has no space before it


def main():
    if hasattr(sys.stdout, "reconfigure"):  # not so in a notebook
        sys.stdout.reconfigure(errors="replace")  # "?" for what a console cannot show
    parser = argparse.ArgumentParser(
        usage="%(prog)s check | unfold [FOLDER] | fold [FOLDER] [--keep=STEP ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", choices=["check", "unfold", "fold"])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("out/steps"))
    parser.add_argument(
        "--keep", metavar="STEP", action="append", default=[], help="a file to keep"
    )
    args = parser.parse_args()
    if args.keep and args.command != "fold":
        parser.error("--keep goes with fold")
    if args.command == "check":
        check()
    elif args.command == "unfold":
        unfold(args.folder)
    else:
        fold(args.folder, args.keep)


if __name__ == "__main__":
    main()
