"""The ladder as something to diff: every file's "Diff" block says exactly what changed.

A definition is a top-level function, class or assigned name. Its text is its source, with the
rest of its last line (a comment may not change unnoticed either).
"""

import ast
import difflib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LADDER = ["bigram.py", "v2_attention.py", "gpt_char.py", "gpt2_train.py", "sparse_gpt.py"]
LADDER = [name for name in LADDER if (ROOT / name).exists()]
README = (ROOT / "README.md").read_text()
PAIRS = list(zip(LADDER, LADDER[1:]))


def definitions(source):
    """Every top-level definition of a script: {name: its text}. Loops and ifs are not entered."""
    lines = source.splitlines()
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names, first = [node.name], min(d.lineno for d in [node, *node.decorator_list])
        elif isinstance(node, ast.Assign):
            targets = [n for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)]
            names, first = [t.id for t in targets if isinstance(t.ctx, ast.Store)], node.lineno
        else:
            continue
        for name in names:
            found[name] = found.get(name, "") + "\n".join(lines[first - 1 : node.end_lineno])
    return found


def difference(old, new):
    """The three sets of names that were added (+), changed (~) and dropped (-)."""
    a, b = definitions(old), definitions(new)
    return {
        "+": b.keys() - a.keys(),
        "~": {name for name in a.keys() & b.keys() if a[name] != b[name]},
        "-": a.keys() - b.keys(),
    }


def diff_block(source, old_name):
    """What the block "Diff against OLD" at the end of a docstring says, in the same form."""
    block = ast.get_docstring(ast.parse(source)).split(f"Diff against {old_name}\n")[1]
    said = {"+": set(), "~": set(), "-": set()}
    for line in block.splitlines():
        if line[0] not in "+~-":
            continue  # a heading
        sign, names, why = re.fullmatch(r"([+~-]) ([\w, ]+): (.+)", line).groups()
        for name in names.split(", "):
            assert not any(name in names for names in said.values()), f"{name} is named twice"
            said[sign].add(name)
    return said


def section(source, banner):
    """The lines from one banner comment to the next."""
    parts = re.split(r"^# -{10,} (.+)$", source, flags=re.M)
    return parts[parts.index(banner) + 1]


@pytest.mark.parametrize("old, new", PAIRS)
def test_diff_block_is_true(old, new):
    new_source = (ROOT / new).read_text()
    assert diff_block(new_source, old) == difference((ROOT / old).read_text(), new_source)


def test_the_test_notices():
    """One space more in an unchanged function, or a name left out of the block, must show."""
    old, new = ((ROOT / name).read_text() for name in ("bigram.py", "v2_attention.py"))
    said = diff_block(new, "bigram.py")
    assert said == difference(old, new)
    spaced = new.replace("return [stoi[c] for c in s]", "return [stoi[c]  for c in s]")
    assert difference(old, spaced)["~"] - said["~"] == {"encode"}
    commented = new.replace("# B: sequences in a batch", "# B: sequences")
    assert difference(old, commented)["~"] - said["~"] == {"batch_size"}
    silent = re.sub(r"^\+ n_head: .*\n", "", new, flags=re.M)
    assert diff_block(silent, "bigram.py") != difference(old, silent)


@pytest.mark.parametrize("name", LADDER)
def test_same_banners_in_the_same_order(name):
    banners = re.findall(r"^# -{10,} (.+)$", (ROOT / name).read_text(), flags=re.M)
    expected = ["Hyperparameters", "Command line", "Data", "Model", "Evaluation", "Optimizer"]
    expected += ["Training loop", "Sampling"]
    assert [b for b in banners if b in expected] == expected


@pytest.mark.parametrize("name", LADDER)
def test_command_line_is_the_same_to_the_letter(name):
    sources = [(ROOT / n).read_text() for n in (LADDER[0], name)]
    assert section(sources[0], "Command line") == section(sources[1], "Command line")


def test_readme_table_counts_lines_and_steps():
    """The columns "lines" and "steps" of the README's ladder are those of the files."""
    rows = re.findall(
        r"^\| \[(\w+)\.py\]\S+ \| .*? \| (\d+) \| \[(\w+)\]\((\S+)\) \|$", README, re.M
    )
    assert [f"{name}.py" for name, *_ in rows] == LADDER
    for name, lines, steps, chapter in rows:
        assert int(lines) == len((ROOT / f"{name}.py").read_text().splitlines()), name
        assert chapter == f"docs/{name}.md"
        count = (ROOT / chapter).read_text(encoding="utf-8").count("\n```diff\n")
        assert steps == (str(count) if count else "read"), name


def code_lines_changed(old, new):
    """How many lines of code a diff removes and adds, docstrings of the files apart."""
    texts = []
    for name in (old, new):
        source = (ROOT / name).read_text(encoding="utf-8")
        end = ast.parse(source).body[0].end_lineno
        texts.append(source.splitlines()[end:])
    return sum(
        line[0] in "+-" for line in list(difflib.unified_diff(*texts, n=0))[2:] if line[0] != "@"
    )


@pytest.mark.parametrize(
    "name, lines, changed",
    [
        ("bigram.py", 165, 0),
        ("v2_attention.py", 235, 65),
        ("gpt_char.py", 445, 286),
        ("gpt2_train.py", 815, 580),
        ("sparse_gpt.py", 895, 120),
    ],
)
def test_scripts_stay_small(name, lines, changed):
    source = (ROOT / name).read_text(encoding="utf-8").splitlines()
    assert len(source) <= lines
    if name != LADDER[0]:
        assert code_lines_changed(LADDER[LADDER.index(name) - 1], name) <= changed


def test_bigram_comes_to_language_soon():
    source = (ROOT / "bigram.py").read_text(encoding="utf-8").splitlines()
    first = [i for i, line in enumerate(source, start=1) if line.startswith(("chars =", "class "))]
    assert first[0] < 60 and first[1] < 85
    section_lines = section("\n".join(source), "Command line").strip().splitlines()
    assert len(section_lines) <= 18
