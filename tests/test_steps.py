"""The chapters in docs/: their diffs lead from script to script, every file in between runs, and
docs/steps.py carries an edit through all that follows, or says where it cannot.
"""

import ast
import difflib
import math
import random
import re
import runpy
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run_here

TOOL = ROOT / "docs/steps.py"
LADDER = ["bigram", "v2_attention", "gpt_char", "gpt2_train", "sparse_gpt"]
apply = runpy.run_path(str(TOOL), run_name="steps")["apply"]
needs_patch = pytest.mark.skipif(not shutil.which("patch"), reason="patch is not installed")


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


# ------------------------------------------------------------------------------------- The tool
BIGRAM = "".join(f"a{i} = {i}\n" for i in range(10, 70))
EDITS = {  # chapter: titles, and what is replaced by what
    "v2_attention": [
        ("1. Twelve is new", "a12 = 12", "a12 = 120\nb12 = 1"),
        ("2. Less", "a30", "c"),
    ],
    "gpt_char": [("1. `Twelve`, again", "a12 = 120", "a12 = 1200"), ("The end", "a69 = 69\n", "")],
    "gpt2_train": [("1. Forty", "a40 = 40\na41 = 41", "a40 = 81")],
    "sparse_gpt": [("1. Begin", "a10 = 10", "import os\n\na10 = 10"), ("2. Fifty", "= 50", "= 5")],
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
]


class Ladder:
    """A small ladder in a folder, with the tool, and what was unfolded from it."""

    def __init__(self, folder):
        self.folder, self.steps = folder, folder / "out/steps"
        (folder / "docs").mkdir()
        shutil.copy(TOOL, folder / "docs/steps.py")
        (folder / "bigram.py").write_text(BIGRAM)
        texts = [BIGRAM]
        for script, edits in EDITS.items():
            chapter = f"# {script}\n\nThe idea.\n"
            for title, old, new in edits:
                assert texts[-1].count(old) == 1
                texts.append(texts[-1].replace(old, new))
                diff = diff_of(*texts[-2:])
                chapter += f"\n## {title}\n\nWhy - \\1 é.\n\n```diff\n{diff}```\n\nMore.\n"
            chapter += "\n## Exercises\n\n```sh\n@@ ls\n```\n"
            (folder / f"docs/{script}.md").write_text(chapter, encoding="utf-8")
            (folder / f"{script}.py").write_text(texts[-1])
        self.texts = dict(zip(FILES, texts))

    def run(self, *args):
        return run_here(self.folder / "docs/steps.py", *args)

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
        return {p: p.read_bytes() for p in sorted(self.folder.rglob("*")) if p.is_file()}

    def edit(self, path, old, new):
        path = self.folder / path if (self.folder / path).exists() else self.steps / path
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1
        path.write_text(text.replace(old, new), encoding="utf-8")

    def has(self, line):
        """Which of the files in between have a line; the scripts must agree with them."""
        found = [name for name in FILES if line in (self.steps / name).read_text().splitlines()]
        for script in LADDER:
            last = [name for name in FILES if name.startswith(script)][-1]
            assert (self.folder / f"{script}.py").read_text() == (self.steps / last).read_text()
        assert self.ok("check") == "7 steps lead from bigram.py to sparse_gpt.py\n"
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
        rng.choice(["x\n", "\n", "  y\n", "-z\n", f"{i}\n"]) for i in range(rng.choice([0, 1, 60]))
    ]
    new = list(old)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(new) + 1)
        new[at : at + rng.randrange(3)] = [f"+{rng.random()}\n", "\n"][: rng.randrange(3)]
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
    assert str(error.value).startswith("docs/x.md, step 3: ") and "\n" not in str(error.value)


def test_unfold_writes_every_file_in_between(ladder):
    assert ladder.ok("unfold") == "out/steps: 8 files\n"
    found = {p.relative_to(ladder.steps).as_posix() for p in ladder.steps.rglob("*.py")}
    assert found == set(FILES)
    for name, text in ladder.texts.items():
        assert (ladder.steps / name).read_text() == text
    assert ladder.ok("unfold") == "out/steps: 8 files\n"  # a second time


def test_fold_after_unfold_changes_nothing(ladder):
    ladder.ok("unfold", "elsewhere/steps")
    before = ladder.tree()
    assert ladder.ok("fold", "elsewhere/steps") == "0 files changed\n"
    assert ladder.tree() == before


@pytest.mark.parametrize("first", range(8))
def test_an_edit_is_carried_through_all_that_follows(ladder, first):
    prose = {
        p: re.sub(r"(?ms)^```diff.*?^```$", "", p.read_text()) for p in Path("docs").glob("*.md")
    }
    ladder.ok("unfold")
    ladder.edit(FILES[first], "a20 = 20\n", "a20 = 21\nnew = 1\n")
    ladder.ok("fold")
    assert ladder.has("a20 = 21") == ladder.has("new = 1") == FILES[first:]
    assert ladder.has("a20 = 20") == FILES[:first]
    for path, text in prose.items():
        assert re.sub(r"(?ms)^```diff.*?^```$", "", path.read_text()) == text
    diffs = "".join(p.read_text() for p in Path("docs").glob("*.md"))
    assert diffs.count("+a20 = 21\n") == (first > 0)  # it enters once
    assert ladder.ok("fold") == "0 files changed\n"


@pytest.mark.parametrize("script", LADDER)
def test_an_edit_of_a_script_enters_in_the_last_step_of_its_chapter(ladder, script):
    ladder.ok("unfold")
    ladder.edit(f"{script}.py", "a20 = 20", "a20 = 21")
    assert script == "bigram" or "does not lead to" in ladder.fails("check")
    ladder.ok("fold")
    last = max(i for i, name in enumerate(FILES) if name.startswith(script))
    assert ladder.has("a20 = 21") == FILES[last:]


def test_several_edits_at_once(ladder):
    ladder.ok("unfold")
    ladder.edit("bigram.py", "a60 = 60", "a60 = 61")
    ladder.edit("gpt_char.py", "a20 = 20", "a20 = 22")
    ladder.edit("gpt_char/02_the_end.py", "a62 = 62", "a62 = 63")
    ladder.edit("v2_attention/01_twelve_is_new.py", "a25 = 25\n", "")
    ladder.ok("fold")
    assert ladder.has("a60 = 61") == FILES
    assert ladder.has("a20 = 22") == ladder.has("a62 = 63") == FILES[4:]
    assert ladder.has("a25 = 25") == FILES[:1]


def test_a_collision_is_named_and_nothing_written(ladder):
    """Line 3 of bigram.py is changed by the first step of two chapters."""
    ladder.ok("unfold")
    ladder.edit("v2_attention/01_twelve_is_new.py", "a12 = 120", "a12 = 12.0")
    ladder.edit("gpt_char/01_twelve_again.py", "a55 = 55", "a55 = 5")  # elsewhere: settles nothing
    error = ladder.fails("fold")
    assert error.startswith("docs/gpt_char.md, step gpt_char/01_twelve_again.py: line 3 collides")
    ladder.edit("gpt_char/01_twelve_again.py", "a12 = 1200", "a12 = 1200.0")
    ladder.ok("fold")
    assert ladder.has("a12 = 12.0") == FILES[1:3]
    assert ladder.has("a12 = 1200.0") == FILES[3:]
    assert ladder.has("a55 = 5") == FILES[3:]


def test_an_empty_line_at_the_end_leaves_a_file_as_it_is(ladder):
    ladder.ok("unfold")
    ladder.edit("bigram/00_bigram.py", "a40 = 40\n", "a40 = 40  # forty\n")
    ladder.edit("bigram/00_bigram.py", "a50 = 50\n", "a50 = 50  # fifty\n")
    assert "step gpt2_train/01_forty.py: line 32 collides" in ladder.fails("fold")
    path = ladder.steps / "gpt2_train/01_forty.py"
    path.write_text(path.read_text() + "\n")
    assert "step sparse_gpt/02_fifty.py: line 43 collides" in ladder.fails("fold")
    path = ladder.steps / "sparse_gpt/02_fifty.py"
    path.write_text(path.read_text() + "\n")
    ladder.ok("fold")
    assert ladder.has("a40 = 40  # forty") == FILES[:5]
    assert ladder.has("a40 = 81") == FILES[5:]
    assert ladder.has("a50 = 50  # fifty") == FILES[:7]
    assert ladder.has("a50 = 5") == FILES[7:]
    assert ladder.has("") == FILES[6:]  # that of "import os": none was added


def test_the_same_edit_twice_is_no_collision(ladder):
    ladder.ok("unfold")
    for name in (FILES[1], FILES[3], "gpt_char.py"):
        ladder.edit(name, "a20 = 20", "a20 = 21")
    ladder.ok("fold")
    assert ladder.has("a20 = 21") == FILES[1:]


def test_a_script_and_its_last_file_edited_differently(ladder):
    ladder.ok("unfold")
    ladder.edit("gpt_char.py", "a20 = 20", "a20 = 21")
    ladder.edit("gpt_char/02_the_end.py", "a20 = 20", "a20 = 22")
    assert "docs/gpt_char.md, step gpt_char/02_the_end.py: line 12 " in ladder.fails("fold")


def test_a_change_moves_to_an_earlier_step(ladder):
    """Moved from one step to a new one before it, which begins as an empty diff."""
    empty = "## 1. New\n\nWhy.\n\n```diff\n```\n\n## 2. Begin"
    ladder.edit("docs/sparse_gpt.md", "## 1. Begin", empty)
    ladder.ok("unfold")
    ladder.edit("sparse_gpt/01_new.py", "= 50", "= 5")
    ladder.ok("fold")
    chapter = Path("docs/sparse_gpt.md").read_text()
    assert re.findall(r"(?ms)^## ([^\n]+).*?^```diff\n(.*?)^```", chapter)[2] == ("2. Fifty", "")
    assert ladder.ok("check").startswith("8 steps")


@pytest.mark.parametrize(
    "command, path, old, new, error",
    [
        ("check", "docs/gpt_char.md", "-a12 = 120", "-a12 = 121", "docs/gpt_char.md, step 1, `Tw"),
        ("unfold", "docs/gpt_char.md", "+a12 = 1200\n", "", "docs/gpt_char.md, step 1, `Twelve`"),
        ("fold", "docs/gpt_char.md", "-a12 = 120", "-a12 = 121", "docs/gpt_char.md, step 1, `Tw"),
        ("check", "docs/gpt2_train.md", "```diff", "```", "docs/gpt2_train.md: has no diff"),
        ("check", "docs/gpt2_train.md", None, None, "docs/gpt2_train.md: No such file"),
        ("unfold", "docs/gpt2_train.md", None, None, "docs/gpt2_train.md: No such file"),
        ("check", "gpt2_train.py", None, None, "gpt2_train.py: No such file"),
        ("check", "bigram.py", "a12 = 12\n", "", "docs/v2_attention.md, step 1, Twelve is new: "),
        (
            "check",
            "gpt_char.py",
            "a20 = 20",
            "a20",
            "docs/gpt_char.md: does not lead to gpt_char.py",
        ),
        ("check", "gpt_char.py", "a68 = 68\n", "a68 = 68", "gpt_char.py: its last line has no end"),
        ("fold", "gpt_char/02_the_end.py", "a68 = 68\n", "a68", "02_the_end.py: its last line has"),
        ("fold", "gpt_char/02_the_end.py", None, None, "02_the_end.py: No such file"),
        ("fold", "out/steps/unfolded.json", None, None, "unfolded.json: No such file"),
        ("fold", "gpt_char/02b.py", None, "a = 1\n", "02b.py: is not what the chapters unfold to"),
        ("unfold", "gpt_char/02b.py", None, "a = 1\n", "02b.py: edited, or no step;"),
        ("unfold", "gpt_char/02_the_end.py", "a20", "b20", "02_the_end.py: edited, or no step;"),
        # The chapters have changed since they were unfolded
        (
            "fold",
            "docs/sparse_gpt.md",
            "+a50 = 5\n",
            "+a50 = 55\n",
            "out/steps: is not what the chapters",
        ),
        ("fold", "docs/gpt_char.md", "## The end", "## An end", "out/steps: is not what the chapt"),
    ],
)
def test_bad_input_is_one_clear_line(ladder, command, path, old, new, error):
    ladder.ok("unfold")
    place = ladder.folder if path.startswith("docs/") or "/" not in path else ladder.steps
    place = ladder.folder if path.startswith("out/") else place
    if old is not None:
        ladder.edit(place / path, old, new)
    elif new is not None:
        (place / path).write_text(new)
    else:
        (place / path).unlink()
    assert error in ladder.fails(command)


def test_other_bad_input(ladder):
    assert "nothing/unfolded.json: No such file" in ladder.fails("fold", "nothing")
    Path("file").write_text("x")
    assert ladder.fails("unfold", "file").startswith("file")
    Path("docs/gpt_char.md").write_bytes(b"\xff\n")
    assert "docs/gpt_char.md: " in ladder.fails("check")
    for args in ([], ["unfolds"], ["fold", "a", "b"]):
        done = ladder.run(*args)
        assert done.code == 1 and "steps.py unfold [FOLDER]" in done.err
    assert "steps.py unfold [FOLDER]" in ladder.ok("--help")


@pytest.mark.parametrize("command", ["unfold", "fold"])
def test_a_full_disk_changes_nothing(ladder, command, monkeypatch):
    if command == "fold":
        ladder.ok("unfold")
        ladder.edit("bigram.py", "a20 = 20", "a20 = 21")
    write_text, left = Path.write_text, [4]

    def full(self, *args, **kwargs):
        write_text(self, *args, **kwargs)
        left[0] -= 1
        if left[0] == 0:
            raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    assert ladder.fails(command).endswith("No space left on device\n")


def test_the_tool_is_small_and_needs_nothing():
    source = TOOL.read_text()
    assert len(source.splitlines()) <= 150
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import)]
    names = {name.name for node in imports for name in node.names}
    assert names | {"pathlib"} <= sys.stdlib_module_names
    assert re.findall(r"^from (\w+)", source, flags=re.M) == ["pathlib"]


# --------------------------------------------------------------------------------- The chapters
def sections(script):
    """The steps of a chapter: (number, title, prose, diff)."""
    chapter = (ROOT / f"docs/{script}.md").read_text(encoding="utf-8")
    found = []
    for title, body in re.findall(r"^## (\d.*?)\n(.*?)(?=^## |\Z)", chapter, re.M | re.S):
        prose, *diffs = re.split(r"^```diff\n(.*?)^```\n", body, flags=re.M | re.S)
        assert len(diffs) == 2 and not diffs[1].strip(), f"{script}: {title}: prose, then one diff"
        found.append((*title.split(". ", 1), prose, diffs[0]))
    assert chapter.count("\n```diff\n") == len(found)
    return found


@pytest.fixture(scope="module")
def unfolded(tmp_path_factory):
    """A folder with every file in between, of the chapters as they are."""
    folder = tmp_path_factory.mktemp("steps")
    done = run_here(TOOL, "unfold", str(folder))
    assert (done.code, done.err) == (0, "")
    return folder


def between(folder):
    return sorted(folder.rglob("*.py"), key=lambda p: (LADDER.index(p.parent.name), p.name))


def test_the_diffs_lead_to_the_scripts_to_the_letter():
    done = run_here(TOOL, "check")
    assert (done.code, done.err) == (0, "")
    text = (ROOT / "bigram.py").read_text()
    for script in LADDER[1:]:
        for _, title, _, diff in sections(script):
            text = apply(text, diff, title)
        assert text == (ROOT / f"{script}.py").read_text()


@needs_patch
def test_patch_leads_to_the_scripts_too(tmp_path):
    text = (ROOT / "bigram.py").read_text()
    for script in LADDER[1:]:
        for _, _, _, diff in sections(script):
            text = patch(text, diff, tmp_path)
        assert text == (ROOT / f"{script}.py").read_text()


def test_fold_leaves_the_chapters_as_they_are(tmp_path):
    (tmp_path / "docs").mkdir()
    for script in LADDER:
        shutil.copy(ROOT / f"{script}.py", tmp_path)
    for script in LADDER[1:]:
        shutil.copy(ROOT / f"docs/{script}.md", tmp_path / "docs")
    tool = shutil.copy(TOOL, tmp_path / "docs")
    assert run_here(tool, "unfold", str(tmp_path / "out")).code == 0
    assert run_here(tool, "fold", str(tmp_path / "out")).out == "0 files changed\n"


def test_a_ladder_of_many_small_steps():
    count = 0
    for script in LADDER[1:]:
        steps = sections(script)
        count += len(steps)
        for number, (said, title, prose, diff) in enumerate(steps, start=1):
            where = f"docs/{script}.md, {said}. {title}"
            assert said == str(number), where
            changed = sum(line[0] in "+-" for line in diff.splitlines() if line)
            assert changed <= 60 or number == len(steps), f"{where}: {changed} changed lines"
            drawn = re.sub(r"^```.*?^```$", "", prose, flags=re.M | re.S)  # is no prose
            lines = [line for line in drawn.splitlines() if line.strip() and line[0] != "!"]
            assert 5 <= len(lines) <= 30, f"{where}: {len(lines)} lines of prose"
            assert sum(line.startswith("*Measured:*") for line in lines) == 1, where
    assert count >= 35


def test_every_command_of_a_chapter_names_a_file_that_is_there(unfolded):
    for script in LADDER[1:]:
        for path in re.findall(r"out/steps/([\w/]+\.py)", (ROOT / f"docs/{script}.md").read_text()):
            assert (unfolded / path).exists(), f"docs/{script}.md: {path}"


def test_every_file_in_between_is_a_script(unfolded):
    texts = [path.read_text() for path in between(unfolded)]
    assert len(set(texts)) == len(texts) >= 36
    for text in texts:
        compile(text, "step", "exec")
        assert max(map(len, text.splitlines())) <= 100
    for old, new in pairwise(texts):  # a name that goes for good is no longer used
        gone = set(re.findall(r"^(?:class|def) (\w+)", old, flags=re.M))
        gone -= set(re.findall(r"^(?:class|def) (\w+)", new, flags=re.M))
        code = ast.parse(new)
        used = {node.id for node in ast.walk(code) if isinstance(node, ast.Name)}
        assert not gone & used


# What a run of milliseconds needs; every file gets those that it knows
FLAGS = dict(n_layer=2, n_head=2, n_embd=16, block_size=16, batch_size=4, total_batch_size=128)
FLAGS |= dict(max_iters=3, eval_interval=2, log_interval=1, max_new_tokens=5, eval_tokens=256)
FLAGS |= dict(warmup_iters=1, dropout=0.1, stride=4, summary=2, device="cpu", out_dir="out/step")
FLAGS |= dict(bfloat16=False, float16=False, compile=False, hellaswag=False)


def runs(path, start):
    """Run a file in between: it trains a few steps and samples."""
    for split, number, length in (("train", 1, 4000), ("val", 0, 400)):  # for rungs 4 and 5
        shard = Path(f"data/shakespeare/bytes/t_{split}_{number:06d}.bin")
        shard.parent.mkdir(parents=True, exist_ok=True)
        header = np.zeros(256, dtype="<i4")
        header[:4] = 20240520, 1, length, 256
        tokens = np.random.default_rng(length).integers(97, 123, size=length)
        shard.write_bytes(header.tobytes() + tokens.astype("<u2").tobytes())
    settings = re.search(
        r"^# -+ Hyperparameters\n(.*?)^# -+ Command", path.read_text(), re.M | re.S
    )
    known = re.findall(r"^(\w+) = ", settings[1], flags=re.M)
    process = start(path, *(f"--{name}={value}" for name, value in FLAGS.items() if name in known))
    out, err = process.communicate()
    where = f"{path.parent.name}/{path.name}"
    assert (process.returncode, err) == (0, ""), f"{where}: {err}"
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", out)]
    assert len(losses) >= 3 and all(0 < loss < 20 for loss in losses), f"{where}: {out}"
    assert out.count("-" * 80) >= 2, f"{where}: no sample"


@pytest.mark.parametrize("part", range(4))
def test_some_of_the_files_in_between_run(unfolded, start, part):
    """The middle one of a chapter; the last is the script itself, which has tests of its own."""
    paths = [path for path in between(unfolded) if path.parent.name == LADDER[part + 1]]
    runs(paths[len(paths) // 2], start)


@pytest.mark.long
def test_every_file_in_between_runs(unfolded, start):
    faults = []
    for path in between(unfolded):
        shutil.rmtree("out", ignore_errors=True)
        try:
            runs(path, start)
        except AssertionError as error:
            faults.append(str(error))
    assert not faults, "\n".join(faults)


# --------------------------------------------------------------------------- What the prose says
def numbers(text):
    return [float(word) for word in re.findall(r"-?\d+(?:\.\d+)?", text)]


def test_attention_in_numbers(load):
    """The example of v2_attention's third step: by hand, and by the script's Head."""
    prose = sections("v2_attention")[2][2]
    table = [numbers(row)[1:] for row in re.findall(r"^(\d +[a-z] .*)$", prose, flags=re.M)]
    assert len(table) == 4 and all(len(row) == 6 for row in table)
    q, k, v = ([row[i : i + 2] for row in table] for i in (0, 2, 4))
    results = [numbers(row)[1:] for row in re.findall(r"^(\d +-?\d.*)$", prose, flags=re.M)]
    assert len(results) == 4
    head = load("v2_attention.py", "--n_embd=4", "--n_head=2", "--block_size=4")["Head"](2)
    with torch.no_grad():
        for name, rows in zip(("query", "key", "value"), (q, k, v)):
            getattr(head, name).weight.copy_(torch.tensor(rows).T)
            getattr(head, name).bias.zero_()
        out = head(torch.eye(4)[None])[0]  # position t has a 1 in channel t
    for t, said in enumerate(results):
        scores = [sum(a * b for a, b in zip(q[t], k[s])) / math.sqrt(2) for s in range(t + 1)]
        weights = [math.exp(score) / sum(map(math.exp, scores)) for score in scores]
        mean = [sum(w * v[s][c] for s, w in enumerate(weights)) for c in (0, 1)]
        assert said == [round(x, 2) for x in scores + weights + mean]
        torch.testing.assert_close(out[t], torch.tensor(mean), rtol=0, atol=1e-6)


def test_the_average_of_the_past_in_numbers(load, unfolded):
    """The three matrices of the second step, and that the file in between computes the last."""
    prose = sections("v2_attention")[1][2]
    rows = re.findall(r"^((?: +(?:-inf|\d(?:/\d)?)){9})$", prose, flags=re.M)
    values = [[eval(word.replace("-inf", "-math.inf")) for word in row.split()] for row in rows]
    zeros, masked, weights = (torch.tensor([row[i : i + 3] for row in values]) for i in (0, 3, 6))
    assert torch.equal(zeros, torch.zeros(3, 3).to(zeros))
    past = torch.ones(3, 3).tril().bool()
    assert torch.equal(masked, torch.zeros(3, 3).masked_fill(~past, -torch.inf))
    torch.testing.assert_close(weights, masked.softmax(-1))
    x = torch.randn(2, 3, 5)
    path = unfolded / "v2_attention/02_the_average_of_the_past.py"
    head = load(path, "--block_size=3", "--n_embd=5")["Head"]()
    torch.testing.assert_close(head(x), weights @ x)


def test_layernorm_and_muon_in_numbers():
    steps = sections("gpt_char")
    ((old, new),) = re.findall(r"\(([\d ,]+)\)  ->.*->  \(([-\d. ,]+)\)", steps[1][2])
    old, new = torch.tensor(numbers(old)), torch.tensor(numbers(new))
    torch.testing.assert_close(torch.nn.LayerNorm(4)(old), new, rtol=0, atol=5e-3)
    s, *said = numbers(re.search(r"^s = (.*?)\(", steps[8][2], flags=re.M)[1])
    assert len(said) == 5
    for value in said:
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        assert value == round(s, 2)
