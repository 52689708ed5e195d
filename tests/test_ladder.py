"""The ladder as something to diff: every file's "Diff" block says exactly what changed.

A definition is a top-level function, class or assigned name. Its text is its source, with the
rest of its last line (a comment may not change unnoticed either).
"""

import ast
import re
import runpy
import shutil
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


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
@pytest.mark.parametrize("old, new", PAIRS)
def test_diffs_on_the_web_page_are_true(old, new):
    """After a change of a script: python assets/write_diffs.py"""
    diff = runpy.run_path(str(ROOT / "assets/write_diffs.py"))["diff"]
    path = ROOT / "assets/diffs" / new.replace(".py", ".diff")
    assert path.read_text(encoding="utf-8") == diff(old, new)


def test_readme_table_counts_lines():
    """The columns "lines" and "diff" of the README's ladder are those of the files."""
    rows = re.findall(r"^\| \[(\w+)\.py\]\S+ \| .*? \| (\d+) \| (\S*) ?\|$", README, flags=re.M)
    assert [f"{name}.py" for name, _, _ in rows] == LADDER
    for name, lines, changed in rows:
        assert int(lines) == len((ROOT / f"{name}.py").read_text().splitlines()), name
        path = ROOT / f"assets/diffs/{name}.diff"
        if path.exists():  # the first has none
            diff = path.read_text(encoding="utf-8").splitlines()[2:]
            count = sum(line[0] in "+-" for line in diff)
            assert changed == f"[{count}](assets/diffs/{name}.diff)"
