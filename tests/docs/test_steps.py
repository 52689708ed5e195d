"""The chapters in docs/ lead from script to script, and every file in between runs.

docs/tools/steps.py carries an edit through all that follows, or says where it cannot.
"""

import ast
import difflib
import os
import random
import re
import runpy
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from makers import ROOT, run_here, write_shards

TOOL = ROOT / "docs/tools/steps.py"
TOOLS = runpy.run_path(str(TOOL), run_name="steps")
LADDER = ["bigram", "v2_attention", "gpt_char", "gpt2_train", "sparse_gpt"]
CHAPTERS = TOOLS["chapters"]()  # {chapter: the script that it starts from}
apply = TOOLS["apply"]
needs_patch = pytest.mark.skipif(
    not shutil.which("patch"), reason="patch is not installed"
)


def diff_of(old, new):
    lines = difflib.unified_diff(old.splitlines(True), new.splitlines(True))
    return re.sub("^ $", "", "".join([*lines][2:]), flags=re.M)


def patch(text, diff, folder):
    """What the program patch makes of a text."""
    (folder / "text").write_text(text)
    (folder / "diff").write_text(f"--- text\n+++ text\n{diff}" if diff else "")
    command = ["patch", "-s", "--posix", "-F0", "text", "diff"]
    subprocess.run(command, cwd=folder, check=True)
    return (folder / "text").read_text() if (folder / "text").exists() else ""


# --------------------------------------------------------------------------- The tool
BIGRAM = "".join(f"a{i} = {i}\n" for i in range(10, 70))
STARTS = {
    "v2_attention": "bigram",
    "gpt_char": "v2_attention",
    "gpt2_train": "gpt_char",
    "sparse_gpt": "gpt2_train",
    "by_hand": "bigram",
    "chat": "gpt_char",
}
EDITS = {  # chapter: titles, and what is replaced by what
    "v2_attention": [
        ("1. Twelve is new", "a12 = 12", "a12 = 120\nb12 = 1"),
        ("2. Less", "a30", "c"),
    ],
    "gpt_char": [
        ("1. `Twelve`, again", "a12 = 120", "a12 = 1200"),
        ("The end", "a69 = 69\n", ""),
    ],
    "gpt2_train": [("1. Forty", "a40 = 40\na41 = 41", "a40 = 81")],
    "sparse_gpt": [
        ("1. Begin", "a10 = 10", "import os\n\na10 = 10"),
        ("2. Fifty", "= 50", "= 5"),
    ],
    "by_hand": [
        ("1. Sixty, by hand", "a60 = 60", "a60 = 6 * 10"),
        ("2. Less", "a15 = 15\n", ""),
    ],
    "chat": [("1. Chat", "a33 = 33", "a33 = 34\nb33 = 35")],
}
FILES = [
    "bigram/00_bigram.py",
    "v2_attention/01_twelve_is_new.py",
    "v2_attention/02_less.py",
    "gpt_char/01_twelve_again.py",
    "gpt_char/02_the_end.py",
    "gpt2_train/01_forty.py",
    "sparse_gpt/01_begin.py",
    "sparse_gpt/02_fifty.py",
    "by_hand/01_sixty_by_hand.py",
    "by_hand/02_less.py",
    "chat/01_chat.py",
]
CHECKED = """\
2 steps lead from bigram.py to v2_attention.py
2 steps lead from v2_attention.py to gpt_char.py
1 steps lead from gpt_char.py to gpt2_train.py
2 steps lead from gpt2_train.py to sparse_gpt.py
2 steps lead from bigram.py to beyond/by_hand.py
1 steps lead from gpt_char.py to beyond/chat.py
"""


def last_of(chapter):
    return [name for name in FILES if name.startswith(f"{chapter}/")][-1]


def script_of(chapter):
    return f"{chapter}.py" if chapter in LADDER else f"beyond/{chapter}.py"


def parent(name):
    """The file that the diff of a file starts from."""
    chapter, before = name.split("/")[0], FILES[FILES.index(name) - 1]
    if before.startswith(f"{chapter}/"):
        return before
    return last_of(STARTS[chapter])


def onward(first):
    """A file and all those to which an edit of it is carried."""
    found = [first]
    for name in FILES[1:]:
        if parent(name) in found:
            found.append(name)
    return found


class Ladder:
    """A small ladder in a folder, with the tool, and what was unfolded from it."""

    def __init__(self, folder):
        self.folder, self.steps = folder, folder / "out/steps"
        (folder / "docs/tools").mkdir(parents=True)
        (folder / "beyond").mkdir()
        shutil.copy(TOOL, folder / "docs/tools/steps.py")
        (folder / "bigram.py").write_text(BIGRAM)
        self.texts = {FILES[0]: BIGRAM}
        names = iter(FILES[1:])
        for chapter, edits in EDITS.items():
            text = self.texts[last_of(STARTS[chapter])]
            prose = f"# {chapter}\n\nThe idea.\n"
            for title, old, new in edits:
                assert text.count(old) == 1
                diff = diff_of(text, text.replace(old, new))
                text = text.replace(old, new)
                self.texts[next(names)] = text
                prose += (
                    f"\n## {title}\n\nWhy - \\1 é.\n\n```diff\n{diff}```\n\nMore.\n"
                )
            prose += "\n## Exercises\n\n```sh\n@@ ls\n```\n"
            (folder / f"docs/{chapter}.md").write_text(prose, encoding="utf-8")
            (folder / script_of(chapter)).write_text(text)

    def run(self, *args):
        return run_here(self.folder / "docs/tools/steps.py", *args)

    def ok(self, *args):
        done = self.run(*args)
        assert (done.code, done.err) == (0, "")
        return done.out

    def fails(self, *args):
        """The one line with which it fails; nothing may have been written."""
        before = self.tree()
        done = self.run(*args)
        assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
        assert self.tree() == before
        return done.err

    def tree(self):
        return {
            p: p.read_bytes() for p in sorted(self.folder.rglob("*")) if p.is_file()
        }

    def edit(self, path, old, new):
        if not (self.folder / path).exists():
            path = self.steps / path
        path = self.folder / path
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1
        path.write_text(text.replace(old, new), encoding="utf-8")

    def has(self, line):
        """Which files in between have a line. The scripts must agree with them."""
        found = []
        for name in FILES:
            if line in (self.steps / name).read_text().splitlines():
                found.append(name)
        for chapter in ["bigram", *STARTS]:
            last = (self.steps / last_of(chapter)).read_text()
            assert (self.folder / script_of(chapter)).read_text() == last
        assert self.ok("check") == CHECKED
        return found


@pytest.fixture
def ladder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Ladder(tmp_path)


@needs_patch
@pytest.mark.parametrize("seed", range(20))
def test_apply_does_what_patch_does(tmp_path, seed):
    rng = random.Random(seed)
    old = [
        rng.choice(["x\n", "\n", "  y\n", "-z\n", f"{i}\n"])
        for i in range(rng.choice([0, 1, 60]))
    ]
    new = list(old)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(new) + 1)
        new[at : at + rng.randrange(3)] = [f"+{rng.random()}\n", "\n"][
            : rng.randrange(3)
        ]
    old, new = "".join(old), "".join(new)
    diff = diff_of(old, new)
    assert apply(old, diff, "here") == patch(old, diff, tmp_path) == new


@pytest.mark.parametrize(
    "diff",
    [
        "@@ -1,2 +1,2 @@\n a\n-c\n+d\n",  # another line
        "@@ -2,2 +2,2 @@\n a\n-b\n+d\n",  # at another place
        "@@ -3,2 +3,2 @@\n c\n-d\n+e\n",  # beyond the end
        "@@ -1,3 +1,2 @@\n a\n-b\n+d\n",  # wrong sizes
        "@@ -1,2 +1,3 @@\n a\n-b\n+d\n",
        "--- a\n+++ b\n@@ -1,2 +1,2 @@\n a\n-b\n+d\n",
        "@@ -1,2 +1,2 @@\n a\n-b\n+d\n\\ No newline at end of file\n",
        "+a\n",
        "no diff\n",
    ],
)
def test_apply_refuses(diff):
    with pytest.raises(SystemExit) as error:
        apply("a\nb\nc\n", diff, "docs/x.md, step 3")
    assert str(error.value).startswith("docs/x.md, step 3: ") and "\n" not in str(
        error.value
    )


def test_unfold_writes_every_file_in_between(ladder):
    assert ladder.ok("check") == CHECKED
    assert ladder.ok("unfold") == "out/steps: 11 files\n"
    found = {p.relative_to(ladder.steps).as_posix() for p in ladder.steps.rglob("*.py")}
    assert found == set(FILES)
    for name, text in ladder.texts.items():
        assert (ladder.steps / name).read_text() == text
    assert ladder.ok("unfold") == "out/steps: 11 files\n"  # a second time


def test_a_branch_may_be_missing(ladder):
    for branch in ("by_hand", "chat"):
        Path(f"docs/{branch}.md").unlink()
        Path(f"beyond/{branch}.py").unlink()
    assert ladder.ok("check") == "".join(CHECKED.splitlines(True)[:4])
    ladder.ok("unfold")
    found = {p.relative_to(ladder.steps).as_posix() for p in ladder.steps.rglob("*.py")}
    assert found == set(FILES[:8])
    assert ladder.ok("fold") == "0 files changed\n"


def test_fold_after_unfold_changes_nothing(ladder):
    ladder.ok("unfold", "elsewhere/steps")
    before = ladder.tree()
    assert ladder.ok("fold", "elsewhere/steps") == "0 files changed\n"
    assert ladder.tree() == before


def prose():
    """Everything but the diffs of the chapters."""
    found = {}
    for path in Path("docs").glob("*.md"):
        found[path] = re.sub(r"(?ms)^```diff.*?^```$", "", path.read_text())
    return found


@pytest.mark.parametrize("first", FILES)
def test_an_edit_is_carried_through_all_that_follows(ladder, first):
    """Also from the ladder into the branches."""
    before = prose()
    ladder.ok("unfold")
    ladder.edit(first, "a20 = 20\n", "a20 = 21\nnew = 1\n")
    ladder.ok("fold")
    assert ladder.has("a20 = 21") == ladder.has("new = 1") == onward(first)
    assert ladder.has("a20 = 20") == [n for n in FILES if n not in onward(first)]
    assert prose() == before
    diffs = "".join(p.read_text() for p in Path("docs").glob("*.md"))
    assert diffs.count("+a20 = 21\n") == (first != FILES[0])  # it enters once
    assert ladder.ok("fold") == "0 files changed\n"


@pytest.mark.parametrize("chapter", ["bigram", *STARTS])
def test_new_lines_of_a_script_enter_in_the_last_step(ladder, chapter):
    ladder.ok("unfold")
    ladder.edit(script_of(chapter), "a20 = 20\n", "a20 = 20\nnew = 1\n")
    assert "unfold first" in ladder.fails("check")
    ladder.ok("fold")
    assert ladder.has("new = 1") == onward(last_of(chapter))


@pytest.mark.parametrize("chapter", ["bigram", *STARTS])
@pytest.mark.parametrize(
    "old, new", [("a20 = 20", "a20 = 21"), ("a10 = 10", "a = 0\nb = 0")]
)
def test_an_edit_without_unfolding(ladder, chapter, old, new):
    """No chapter is blamed, and the edit is not lost; in and far from the diffs."""
    script = script_of(chapter)
    ladder.edit(script, old + "\n", f"{old}\n{new}\n")
    line = ladder.fails("check")
    assert line.startswith(f"{script}, line ") and "unfold first, then fold" in line
    assert f"If you edited {Path(script).name}" in line
    line = ladder.fails("fold")
    assert line == "out/steps/unfolded.json: No such file; unfold first\n"
    ladder.ok("unfold")
    ladder.ok("fold")
    assert ladder.has(new.splitlines()[0]) == onward(last_of(chapter))


def test_several_scripts_edited_without_unfolding(ladder):
    """Of those that were not edited, one is enough to know the first script by."""
    for chapter in ("bigram", "v2_attention", "gpt_char", "chat", "by_hand"):
        ladder.edit(script_of(chapter), "a10 = 10\n", "a10 = 10\nnew = 1\n")
    line = ladder.fails("check")
    assert line.startswith("bigram.py, line 2: ") and "unfold first" in line
    ladder.ok("unfold")
    for name in FILES:
        assert (ladder.steps / name).read_text() == ladder.texts[name]
    ladder.ok("fold")
    assert ladder.has("new = 1") == FILES


def test_all_scripts_edited_without_unfolding(ladder):
    """Nothing is left to know the first script by: what to do is said."""
    for chapter in ["bigram", *STARTS]:
        path = Path(script_of(chapter))
        path.write_text("new = 1\n" + path.read_text())
    line = ladder.fails("check")
    assert line.startswith("docs/v2_attention.md, step 1, Twelve is new: @@ ")
    assert line.endswith(
        "If you edited all the scripts: put them back, unfold, edit, fold\n"
    )


@pytest.mark.parametrize("start", ["bigram", "sparse_gpt", "by_hand", "chat"])
def test_a_new_branch(ladder, start):
    """A line in the tool's table is all it takes, wherever the branch starts."""
    tool = ladder.folder / "docs/tools/steps.py"
    old = '"chat": "gpt_char"}'
    assert tool.read_text().count(old) == 1
    new = f'"chat": "gpt_char", "twig": "{start}"}}'
    tool.write_text(tool.read_text().replace(old, new))
    text = ladder.texts[last_of(start)]
    grown = text.replace("a45 = 45\n", "a45 = 45\ntwig = 1\n")
    prose = f"# twig\n\n## 1. Grow\n\n```diff\n{diff_of(text, grown)}```\n"
    Path("docs/twig.md").write_text(prose)
    Path("beyond/twig.py").write_text(grown)
    said = f"1 steps lead from {start}.py to beyond/twig.py\n"
    assert ladder.ok("check") == CHECKED + said
    ladder.ok("unfold")
    ladder.edit(last_of(start), "a20 = 20", "a20 = 21")
    ladder.edit("beyond/twig.py", "twig = 1", "twig = 2")
    ladder.ok("fold")
    text = Path("beyond/twig.py").read_text()
    assert "a20 = 21\n" in text and "twig = 2\n" in text
    assert "+twig = 2\n" in Path("docs/twig.md").read_text()
    assert ladder.ok("check") == CHECKED + said


@pytest.mark.parametrize(
    "chapter, old, new, entered",
    [
        ("v2_attention", "a20 = 20", "a20 = 21", FILES[0]),
        ("v2_attention", "b12 = 1", "b12 = 2", FILES[1]),
        ("gpt_char", "b12 = 1\n", "", FILES[1]),
        ("gpt_char", "a12 = 1200", "a12 = 120.0", FILES[3]),
        ("sparse_gpt", "import os\n", "import sys\n", FILES[6]),
        ("sparse_gpt", "a40 = 81", "a40 = 82", FILES[5]),
        ("by_hand", "a60 = 6 * 10", "a60 = 5 * 12", FILES[8]),
        ("chat", "a12 = 1200", "a12 = 12.5", FILES[3]),
    ],
)
def test_a_late_edit_names_the_step_where_the_lines_enter(
    ladder, chapter, old, new, entered
):
    script = ladder.folder / script_of(chapter)
    ladder.ok("unfold")
    ladder.edit(script, old, new)
    line = ladder.fails("fold")
    assert line.startswith(f"{script.name}, line ")
    assert f"these lines enter in out/steps/{entered}; edit them there" in line
    # There it is carried, and the edit of the script does no harm
    ladder.edit(entered, old, new)
    ladder.ok("fold")
    text = (ladder.steps / last_of(chapter)).read_text()
    assert ladder.texts[last_of(chapter)].replace(old, new) == text
    assert ladder.ok("check") == CHECKED


def test_a_late_edit_can_be_meant(ladder):
    """Made in the file after the last step, it is a change of that step."""
    ladder.ok("unfold")
    ladder.edit("gpt_char.py", "a20 = 20", "a20 = 21")
    ladder.edit("gpt_char/02_the_end.py", "a20 = 20", "a20 = 21")
    ladder.ok("fold")
    assert ladder.has("a20 = 21") == onward(FILES[4])


def test_lines_of_the_last_step_may_be_edited_in_the_script(ladder):
    ladder.ok("unfold")
    ladder.edit("gpt2_train.py", "a40 = 81", "a40 = 82")
    ladder.edit("beyond/chat.py", "a33 = 34", "a33 = 36")
    ladder.ok("fold")
    assert ladder.has("a40 = 82") == FILES[5:8]
    assert ladder.has("a33 = 36") == FILES[10:]


def test_several_edits_at_once(ladder):
    ladder.ok("unfold")
    ladder.edit("bigram.py", "a65 = 65", "a65 = 66")
    ladder.edit("gpt_char.py", "a20 = 20\n", "a20 = 20\nnew = 1\n")
    ladder.edit("gpt_char/02_the_end.py", "a62 = 62", "a62 = 63")
    ladder.edit("v2_attention/01_twelve_is_new.py", "a25 = 25\n", "")
    ladder.edit("beyond/by_hand.py", "a11 = 11\n", "a11 = 11\nhand = 1\n")
    ladder.ok("fold")
    assert ladder.has("a65 = 66") == FILES
    assert ladder.has("new = 1") == ladder.has("a62 = 63") == onward(FILES[4])
    assert ladder.has("a25 = 25") == [FILES[0], *FILES[8:10]]
    assert ladder.has("hand = 1") == [FILES[9]]


def test_a_collision_is_named_and_nothing_written(ladder):
    """Line 3 of bigram.py is changed by the first step of two chapters."""
    ladder.ok("unfold")
    ladder.edit("v2_attention/01_twelve_is_new.py", "a12 = 120", "a12 = 12.0")
    ladder.edit("gpt_char/01_twelve_again.py", "a55 = 55", "a55 = 5")  # is elsewhere
    error = ladder.fails("fold")
    assert error.startswith("out/steps/gpt_char/01_twelve_again.py, line 3: this step ")
    ladder.edit("gpt_char/01_twelve_again.py", "a12 = 1200", "a12 = 1200.0")
    ladder.ok("fold")
    assert ladder.has("a12 = 12.0") == FILES[1:3]
    assert ladder.has("a12 = 1200.0") == ladder.has("a55 = 5") == onward(FILES[3])


@pytest.mark.parametrize(
    "old, new, is_removed",
    [
        ("a15 = 15\n", "a15 = 1.5\n", True),
        ("a15 = 15\n", "", True),
        ("a14 = 14\na15 = 15\n", "a14 = 1.4\na15 = 1.5\n", False),  # more than that
    ],
)
def test_a_step_that_only_removes_lines_removes_them_edited_too(
    ladder, old, new, is_removed
):
    """Line 6 of bigram.py, which the second step of by_hand removes."""
    ladder.ok("unfold")
    for name in FILES[:8] + FILES[10:]:  # where the line stays
        ladder.edit(name, old, new)
    ladder.edit("by_hand/01_sixty_by_hand.py", old, new)
    if not is_removed:
        error = ladder.fails("fold")
        assert error.startswith("out/steps/by_hand/02_less.py, line 6: this step ")
        return
    ladder.ok("fold")
    assert "a15" not in Path("beyond/by_hand.py").read_text()
    assert ladder.ok("check") == CHECKED


def test_a_file_can_be_kept_as_it_is(ladder):
    """By a flag, file by file; an empty line at a file's end is no signal."""
    ladder.ok("unfold")
    ladder.edit("bigram/00_bigram.py", "a40 = 40\n", "a40 = 40  # forty\n")
    ladder.edit("bigram/00_bigram.py", "a50 = 50\n", "a50 = 50  # fifty\n")
    first, second = "--keep=gpt2_train/01_forty.py", "--keep=sparse_gpt/02_fifty.py"
    path = ladder.steps / "gpt2_train/01_forty.py"
    text = path.read_text()
    path.write_text(text + "\n")
    error = ladder.fails("fold")
    assert error.startswith("out/steps/gpt2_train/01_forty.py, line 32: this step ")
    assert error.endswith(f"or fold with {first}\n")
    path.write_text(text)
    assert ladder.fails("fold", first).endswith(f"or fold with {second}\n")
    ladder.ok("fold", first, second)
    assert ladder.has("a40 = 40  # forty") == [*FILES[:5], *FILES[8:]]
    assert ladder.has("a40 = 81") == FILES[5:8]
    assert ladder.has("a50 = 50  # fifty") == [*FILES[:7], *FILES[8:]]
    assert ladder.has("a50 = 5") == [FILES[7]]
    assert ladder.has("") == FILES[6:8]  # that of "import os": none was added


def test_two_insertions_at_one_place(ladder):
    """Their order is not guessed, whether a step or another edit inserts, too."""
    ladder.ok("unfold")
    ladder.edit("bigram.py", "a10 = 10", "first = 1\na10 = 10")
    error = ladder.fails("fold")  # sparse_gpt/01_begin.py inserts there
    assert error.startswith("out/steps/sparse_gpt/01_begin.py, line 1: this step ")
    ladder.edit("sparse_gpt/01_begin.py", "import os\n", "import os\n\nfirst = 1\n")
    ladder.ok("fold")
    assert ladder.has("first = 1") == FILES

    ladder.edit("bigram/00_bigram.py", "a20 = 20\n", "a20 = 20\nearly = 1\n")
    ladder.edit("gpt_char/01_twelve_again.py", "a20 = 20\n", "a20 = 20\nlate = 1\n")
    error = ladder.fails("fold")
    assert error.startswith("out/steps/gpt_char/01_twelve_again.py, line ")
    assert "an edit before this step changes the same place" in error
    ladder.edit("gpt_char/01_twelve_again.py", "late = 1\n", "late = 1\nearly = 1\n")
    ladder.ok("fold")
    assert ladder.has("early = 1") == FILES
    assert ladder.has("late = 1") == onward(FILES[3])
    text = Path("beyond/chat.py").read_text()
    assert "a20 = 20\nlate = 1\nearly = 1\na21" in text


def test_an_insertion_before_an_edited_line_does_not_undo_the_edit(ladder):
    ladder.ok("unfold")
    ladder.edit("bigram/00_bigram.py", "a20 = 20\n", "a20 = 21\n")
    ladder.edit("gpt_char/01_twelve_again.py", "a20 = 20\n", "late = 1\na20 = 20\n")
    assert "an edit before this step changes the same place" in ladder.fails("fold")
    ladder.edit("gpt_char/01_twelve_again.py", "a20 = 20\n", "a20 = 21\n")
    ladder.ok("fold")
    assert ladder.has("a20 = 21") == FILES
    assert ladder.has("late = 1") == onward(FILES[3])


def test_insertions_where_a_step_adds_lines(ladder):
    """After a12 = 12, where the first step adds b12: before it or after it?"""
    ladder.ok("unfold")
    ladder.edit("bigram.py", "a12 = 12\n", "a12 = 12\nnew = 1\n")
    error = ladder.fails("fold")
    assert error.startswith("out/steps/v2_attention/01_twelve_is_new.py, line 3: this ")


def test_the_same_edit_twice_is_no_collision(ladder):
    ladder.ok("unfold")
    for name in (FILES[1], FILES[3], "gpt_char.py"):
        ladder.edit(name, "a20 = 20", "a20 = 21")
    ladder.ok("fold")
    assert ladder.has("a20 = 21") == onward(FILES[1])


def test_a_script_and_its_last_file_edited_differently(ladder):
    ladder.ok("unfold")
    ladder.edit("gpt_char.py", "a20 = 20", "a20 = 21")
    ladder.edit("gpt_char/02_the_end.py", "a20 = 20", "a20 = 22")
    line = ladder.fails("fold")
    assert line.startswith(
        "out/steps/gpt_char/02_the_end.py, line 12: edited differently"
    )
    assert "gpt_char.py, line 12" in line


def test_a_script_and_its_last_file_with_an_insertion_each(ladder):
    """Which comes first is not guessed, unless one file has both."""
    ladder.ok("unfold")
    ladder.edit("gpt_char.py", "a20 = 20\n", "a20 = 20\nscript = 1\n")
    ladder.edit(FILES[4], "a20 = 20\n", "a20 = 20\nfile = 1\n")
    line = ladder.fails("fold")
    assert line.startswith("out/steps/gpt_char/02_the_end.py, line 13: edited diff")
    ladder.edit("gpt_char.py", "script = 1\n", "file = 1\nscript = 1\n")
    ladder.edit(FILES[4], "file = 1\n", "file = 1\nscript = 1\n")
    ladder.ok("fold")
    assert ladder.has("script = 1") == ladder.has("file = 1") == onward(FILES[4])


def test_a_change_moves_to_an_earlier_step(ladder):
    """Moved from one step to a new one before it, which begins as an empty diff."""
    empty = "## 1. New\n\nWhy.\n\n```diff\n```\n\n## 2. Begin"
    ladder.edit("docs/sparse_gpt.md", "## 1. Begin", empty)
    ladder.ok("unfold")
    ladder.edit("sparse_gpt/01_new.py", "= 50", "= 5")
    ladder.ok("fold")
    chapter = Path("docs/sparse_gpt.md").read_text()
    assert re.findall(r"(?ms)^## ([^\n]+).*?^```diff\n(.*?)^```", chapter)[2] == (
        "2. Fifty",
        "",
    )
    assert "3 steps lead from gpt2_train.py to sparse_gpt.py\n" in ladder.ok("check")


TWELVE = "docs/gpt_char.md, step 1, `Twelve`, again: @@ "
STALE = "out/steps: is not what the chapters say by now; unfold to another FOLDER"
RECORD = "out/steps/unfolded.json"


@pytest.mark.parametrize(
    "command, path, old, new, error",
    [
        ("check", "docs/gpt_char.md", "-a12 = 120", "-a12 = 121", TWELVE),
        ("unfold", "docs/gpt_char.md", "+a12 = 1200\n", "", TWELVE),
        ("fold", "docs/gpt_char.md", "-a12 = 120", "-a12 = 121", TWELVE),
        (
            "check",
            "docs/chat.md",
            "-a33 = 33",
            "-a33 = 3",
            "docs/chat.md, step 1, Chat: ",
        ),
        ("check", "docs/gpt2_train.md", "```diff", "```", "gpt2_train.md: has no diff"),
        ("check", "docs/gpt2_train.md", None, None, "gpt2_train.md: No such file"),
        ("unfold", "docs/gpt2_train.md", None, None, "gpt2_train.md: No such file"),
        ("check", "gpt2_train.py", None, None, "gpt2_train.py: No such file"),
        ("check", "beyond/chat.py", None, None, "chat.py: No such file"),
        (
            "check",
            "gpt_char.py",
            "a68 = 68\n",
            "a68 = 68",
            "gpt_char.py: the last line",
        ),
        (
            "fold",
            FILES[4],
            "a68 = 68\n",
            "a68",
            "02_the_end.py: the last line must end",
        ),
        ("fold", FILES[4], None, None, "02_the_end.py: No such file"),
        ("fold", RECORD, None, None, "unfolded.json: No such file; unfold first"),
        (
            "fold",
            "gpt_char/02b.py",
            None,
            "a = 1\n",
            "02b.py: is no step; move it away",
        ),
        (
            "unfold",
            "gpt_char/02b.py",
            None,
            "a = 1\n",
            "02b.py: is edited, or no step;",
        ),
        (
            "unfold",
            FILES[4],
            "a20",
            "b20",
            "02_the_end.py: is edited, or no step; fold it",
        ),
        # The chapters have changed since they were unfolded
        ("fold", "docs/sparse_gpt.md", "+a50 = 5\n", "+a50 = 55\n", STALE),
        ("fold", "docs/gpt_char.md", "## The end", "## An end", STALE),
        # A record that nobody can read
        ("fold", RECORD, None, "{\n", "unfolded.json: is damaged; unfold to another"),
        ("fold", RECORD, None, "\n", "unfolded.json: is damaged"),
        ("fold", RECORD, None, "[1]\n", "unfolded.json: is damaged"),
        ("fold", RECORD, None, "null\n", "unfolded.json: is damaged"),
        ("fold", RECORD, None, "{}\n", "unfolded.json: is damaged"),
        ("fold", RECORD, None, '{"bigram/00_bigram.py": 3}\n', "is damaged"),
    ],
)
def test_bad_input_is_one_clear_line(ladder, command, path, old, new, error):
    ladder.ok("unfold")
    is_step = "/" in path and not path.startswith(("docs/", "beyond/", "out/"))
    place = ladder.steps if is_step else ladder.folder
    if old is not None:
        ladder.edit(place / path, old, new)
    elif new is not None:
        (place / path).write_text(new)
    else:
        (place / path).unlink()
    assert error in ladder.fails(command)


def test_unfold_after_the_chapters_changed(ladder):
    ladder.ok("unfold")
    ladder.edit("docs/gpt_char.md", "## The end", "## An end")
    ladder.edit("docs/sparse_gpt.md", "+a50 = 5\n", "+a50 = 55\n")
    ladder.edit("sparse_gpt.py", "a50 = 5\n", "a50 = 55\n")
    old = ladder.steps / "gpt_char/02_the_end.py"  # a step that is gone

    ladder.edit(old, "a20", "b20")  # what was edited stays
    assert f"{old.name}: is edited, or no step" in ladder.fails("unfold")
    ladder.edit(old, "b20", "a20")
    assert ladder.ok("unfold") == "out/steps: 11 files\n"
    assert not old.exists() and (old.parent / "02_an_end.py").exists()
    assert "a50 = 55\n" in (ladder.steps / FILES[7]).read_text()
    assert ladder.ok("fold") == "0 files changed\n"  # the record is the new one


def test_other_bad_input(ladder):
    assert "nothing/unfolded.json: No such file" in ladder.fails("fold", "nothing")
    ladder.ok("unfold")
    assert "--keep=a.py: is no file in out/steps" in ladder.fails("fold", "--keep=a.py")
    Path("file").write_text("x")
    assert ladder.fails("unfold", "file").startswith("file")
    Path("docs/gpt_char.md").write_bytes(b"\xff\n")
    assert "docs/gpt_char.md: " in ladder.fails("check")
    for args in ([], ["unfolds"], ["fold", "a", "b"], ["--foo"], ["check", "--keep=a"]):
        done = ladder.run(*args)
        usage, error, nothing = done.err.split("\n")
        assert done.code == 2 and usage.startswith("usage: steps.py check | unfold")
        assert error.startswith("steps.py: error: ") and not nothing
    assert "steps.py unfold [FOLDER]" in ladder.ok("--help")


def test_a_folder_that_the_console_cannot_show(ladder):
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "docs/tools/steps.py", "unfold", "schrïtte"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "schr?tte: 11 files\n"


@pytest.mark.parametrize("command", ["unfold", "fold"])
def test_a_full_disk_changes_nothing(ladder, command, monkeypatch):
    if command == "fold":
        ladder.ok("unfold")
        ladder.edit("bigram.py", "a20 = 20", "a20 = 21")
    write_text, left = Path.write_text, [4]

    def full(self, *args, **kwargs):
        write_text(self, *args, **kwargs)
        left[0] -= 1
        if left[0] == 0:  # as when the file is closed: nobody says which one it is
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    line = ladder.fails(command)
    assert line.endswith(": No space left on device\n") and "None" not in line
    assert not list(ladder.folder.rglob("*.tmp"))


def test_the_tool_needs_nothing_but_python():
    imports = ast.walk(ast.parse(TOOL.read_text()))
    names = set()
    for node in imports:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names.add(node.module)
    assert names <= sys.stdlib_module_names


# ----------------------------------------------------------------------- The chapters
def chapter_text(chapter):
    return (ROOT / f"docs/{chapter}.md").read_text(encoding="utf-8")


def sections(chapter):
    """The steps of a chapter: (number, title, prose, diff)."""
    text = chapter_text(chapter)
    found = []
    parts = re.findall(r"^## (\d.*?)\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    for title, body in parts:
        where = f"{chapter}: {title}"
        body = re.sub(r"^<!-- numbers\n.*?^-->\n", "", body, flags=re.M | re.S)
        prose, *diffs = re.split(r"^```diff\n(.*?)^```\n", body, flags=re.M | re.S)
        assert len(diffs) == 2, f"{where}: one diff"
        assert prose.strip(), f"{where}: prose before the diff"
        found.append((*title.split(". ", 1), prose + diffs[1], diffs[0]))
    assert text.count("\n```diff\n") == len(found)
    return found


@pytest.fixture(scope="module")
def unfolded(tmp_path_factory):
    """A folder with every file in between, of the chapters as they are."""
    folder = tmp_path_factory.mktemp("steps")
    done = run_here(TOOL, "unfold", str(folder))
    assert (done.code, done.err) == (0, "")
    return folder


def between(folder, chapter):
    """The files after the steps of a chapter."""
    return sorted((folder / chapter).glob("*.py"))


def test_the_diffs_lead_to_the_scripts_to_the_letter():
    done = run_here(TOOL, "check")
    assert (done.code, done.err) == (0, "")
    for chapter, start in CHAPTERS.items():
        text = (ROOT / script_of(start)).read_text(encoding="utf-8")
        for _, title, _, diff in sections(chapter):
            text = apply(text, diff, title)
        assert text == (ROOT / script_of(chapter)).read_text(encoding="utf-8")


@needs_patch
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_patch_leads_to_the_scripts_too(tmp_path, chapter):
    text = (ROOT / script_of(CHAPTERS[chapter])).read_text(encoding="utf-8")
    for _, _, _, diff in sections(chapter):
        text = patch(text, diff, tmp_path)
    assert text == (ROOT / script_of(chapter)).read_text(encoding="utf-8")


def test_fold_leaves_the_chapters_as_they_are(tmp_path):
    (tmp_path / "docs/tools").mkdir(parents=True)
    (tmp_path / "beyond").mkdir()
    for chapter in ["bigram", *CHAPTERS]:
        shutil.copy(ROOT / script_of(chapter), tmp_path / script_of(chapter))
        shutil.copy(ROOT / f"docs/{chapter}.md", tmp_path / "docs")
    tool = shutil.copy(TOOL, tmp_path / "docs/tools")
    assert run_here(tool, "unfold", str(tmp_path / "out")).code == 0
    assert run_here(tool, "fold", str(tmp_path / "out")).out == "0 files changed\n"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_steps_are_numbered_and_measured(chapter):
    for number, (said, title, prose, _) in enumerate(sections(chapter), start=1):
        where = f"docs/{chapter}.md, {said}. {title}"
        assert said == str(number), where
        result = r"^\*(Measured|Counted|Not measured)\b"
        assert re.search(result, prose, flags=re.M), where


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_command_names_a_file_that_is_there(unfolded, chapter):
    for path in re.findall(r"out/steps/([\w/]+\.py)", chapter_text(chapter)):
        assert (unfolded / path).exists(), f"docs/{chapter}.md: {path}"


@pytest.mark.long
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_file_in_between_is_a_script(unfolded, chapter):
    texts = [(ROOT / script_of(CHAPTERS[chapter])).read_text(encoding="utf-8")]
    for path in between(unfolded, chapter):
        texts.append(path.read_text(encoding="utf-8"))
    assert len(set(texts)) == len(texts), "a step that changes nothing"
    for old, new in pairwise(texts):  # a name that goes for good is no longer used
        gone = set(re.findall(r"^(?:class|def) (\w+)", old, flags=re.M))
        gone -= set(re.findall(r"^(?:class|def) (\w+)", new, flags=re.M))
        code = ast.parse(new)
        used = {node.id for node in ast.walk(code) if isinstance(node, ast.Name)}
        assert not gone & used


# What a run of milliseconds needs; every file gets the settings that it has
SMALL = {
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 16,
    "block_size": 16,
    "batch_size": 4,
    "total_batch_size": 128,
    "max_iters": 3,
    "eval_interval": 2,
    "log_interval": 1,
    "max_new_tokens": 5,
    "eval_tokens": 256,
    "warmup_iters": 1,
    "dropout": 0.1,
    "stride": 4,
    "summary": 2,
    "window": 8,
    "device": "cpu",
    "out_dir": "out/step",
    "bfloat16": False,
    "float16": False,
    "compile": False,
    "hellaswag": False,
}


def flags_of(path):
    """SMALL as flags, as far as a file knows them."""
    text = path.read_text(encoding="utf-8")
    settings = re.search(r"^# -+ Settings\n(.*?)^# -+ ", text, re.M | re.S)[1]
    flags = []
    for name in re.findall(r"^(\w+) = ", settings, flags=re.M):
        if SMALL.get(name) is False:
            flags.append(f"--no-{name}")
        elif name in SMALL:
            flags.append(f"--{name}={SMALL[name]}")
    return flags


def runs(path, start):
    """Run a file in between: it trains a few steps and samples."""
    write_shards("data/shakespeare/bytes", 4000, 400)  # for rungs 4 and 5
    process = start(path, *flags_of(path))
    out, err = process.communicate()
    where = f"{path.parent.name}/{path.name}"
    assert (process.returncode, err) == (0, ""), f"{where}: {err}"
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", out)]
    assert len(losses) >= 3, f"{where}: {out}"
    assert all(0 < loss < 20 for loss in losses), f"{where}: {out}"
    assert out.count("-" * 80) >= 2, f"{where}: no sample"


def without_weights(paths):
    """The files that start from nothing; test_chat_weights.py runs the others."""
    return [path for path in paths if "\nmodel_dir = " not in path.read_text("utf-8")]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_some_of_the_files_in_between_run(unfolded, start, chapter):
    """The middle one of a chapter; the last, the script, has tests of its own."""
    paths = without_weights(between(unfolded, chapter))
    runs(paths[len(paths) // 2], start)


@pytest.mark.long
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_file_in_between_runs(unfolded, start, chapter):
    faults = []
    for path in without_weights(between(unfolded, chapter)):
        shutil.rmtree("out", ignore_errors=True)
        try:
            runs(path, start)
        except AssertionError as error:
            faults.append(str(error))
    assert not faults, "\n".join(faults)
