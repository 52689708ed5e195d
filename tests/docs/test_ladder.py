"""The ladder: five scripts with the same sections, in plain code, as something to diff.

The list at the end of a chapter says exactly what its script changed. A definition is
a top-level function, class or assigned name. Its text is its source, with the rest of
its last line (a comment may not change unnoticed either).
"""

import ast
import difflib
import re
from pathlib import Path

import pytest
from makers import ROOT

LADDER = [
    "bigram.py",
    "v2_attention.py",
    "gpt_char.py",
    "gpt2_train.py",
    "sparse_gpt.py",
]
PAIRS = list(zip(LADDER, LADDER[1:]))
SECTIONS = ["Settings", "Command line", "Data", "Model", "Sampling", "Evaluation"]
SECTIONS += ["Checks", "Start", "Optimizer", "Training", "Result"]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


# ----------------------------------------------------------------------- What is new
def definitions(source):
    """Every top-level definition of a script: {name: text}. Loops, ifs: not entered."""
    lines = source.splitlines()
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
            first = min(d.lineno for d in [node, *node.decorator_list])
        elif isinstance(node, ast.Assign):
            inside = [n for target in node.targets for n in ast.walk(target)]
            names = [n.id for n in inside if isinstance(n, ast.Name)]
            names = [name for name in names if name != "_"]
            first = node.lineno
        else:
            continue
        for name in names:
            text = "\n".join(lines[first - 1 : node.end_lineno])
            found[name] = found.get(name, "") + text
    return found


def difference(old, new):
    """The three sets of names that were added (+), changed (~) and dropped (-)."""
    a, b = definitions(old), definitions(new)
    return {
        "+": b.keys() - a.keys(),
        "~": {name for name in a.keys() & b.keys() if a[name] != b[name]},
        "-": a.keys() - b.keys(),
    }


def listed(chapter):
    """What the list at the end of a chapter says, in the same form."""
    text = chapter.split("\n## What the diff adds, by name\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"^```text\n(.*?)^```$", text, flags=re.M | re.S)
    said = {"+": set(), "~": set(), "-": set()}
    for line in block.splitlines():
        if line[:2] not in ("+ ", "~ ", "- "):
            continue  # a heading, an empty line
        sign, names, why = re.fullmatch(r"([+~-]) ([\w, ]+): (.+)", line).groups()
        for name in names.split(", "):
            assert not any(name in some for some in said.values()), f"{name}: twice"
            said[sign].add(name)
    return said


def chapter_of(name):
    return read(f"docs/{Path(name).stem}.md")


@pytest.mark.parametrize("old, new", PAIRS)
def test_what_the_diff_adds(old, new):
    assert listed(chapter_of(new)) == difference(read(old), read(new))


def test_the_test_notices():
    """One space more in an unchanged function, or a name left out, must show."""
    old, new = read("bigram.py"), read("v2_attention.py")
    chapter = chapter_of("v2_attention.py")
    said = listed(chapter)
    assert said == difference(old, new)
    spaced = new.replace("return [stoi[c] for c in s]", "return [stoi[c]  for c in s]")
    assert difference(old, spaced)["~"] - said["~"] == {"encode"}
    commented = new.replace("# B: sequences per batch", "# B: sequences")
    assert difference(old, commented)["~"] - said["~"] == {"batch_size"}
    silent = re.sub(r"^\+ (.*)\bn_head(, |(?=:))", r"+ \1", chapter, flags=re.M)
    silent = re.sub(r"^\+ : .*\n", "", silent, flags=re.M)
    assert silent != chapter and listed(silent) != difference(old, new)


# ------------------------------------------------------------------------- Sections
def section(source, banner):
    """The lines from one banner comment to the next."""
    parts = re.split(r"^# -{10,} (.+)$", source, flags=re.M)
    return parts[parts.index(banner) + 1]


@pytest.mark.parametrize("name", LADDER)
def test_same_banners_in_the_same_order(name):
    banners = re.findall(r"^# -{10,} (.+)$", read(name), flags=re.M)
    assert [b for b in banners if b in SECTIONS] == SECTIONS
    lines = re.findall(r"^# -{10,} .+$", read(name), flags=re.M)
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize("names", [LADDER[:2], LADDER[3:]], ids=["1 2", "4 5"])
def test_command_line_is_the_same_to_the_letter(names):
    assert len({section(read(name), "Command line") for name in names}) == 1


def test_command_line_of_rung_4_only_adds():
    old, new = (section(read(name), "Command line") for name in LADDER[2:4])
    lines = list(difflib.ndiff(old.splitlines(), new.splitlines()))
    assert [line for line in lines if line[0] == "-"] == []
    assert 0 < sum(line[0] == "+" for line in lines) < 10


@pytest.mark.parametrize("name", LADDER)
def test_checks_are_where_they_belong(name):
    """What refuses a command line stands together; the rest is the road.

    Rungs 4 and 5 have a few more, where a setting is used before.
    """
    source = read(name)
    elsewhere = source.count("parser.error(")
    elsewhere -= section(source, "Checks").count("parser.error(")
    assert elsewhere <= (0 if name in LADDER[:3] else 5)


@pytest.mark.parametrize("name", LADDER)
def test_every_setting_has_a_comment(name):
    lines = section(read(name), "Settings").splitlines()
    found = 0
    for above, line in zip(lines, lines[1:]):
        if re.match(r"[a-z]\w* = .*[^{]$", line):
            found += 1
            assert re.search(r"\S  # \S", line) or above.startswith("# "), line
    assert found > 8


# ------------------------------------------------------------------------ Plain code
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def inside(node, kinds):
    """All nodes of some kinds in a node, itself left out."""
    return [n for n in ast.walk(node) if isinstance(n, kinds) and n is not node]


def tricks(source):
    """What takes more than one reading: (line, what it is)."""
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, COMPREHENSIONS) and inside(node, COMPREHENSIONS):
            found.append((node.lineno, "a comprehension in a comprehension"))
        if isinstance(node, COMPREHENSIONS) and len(node.generators) > 1:
            found.append((node.lineno, "a comprehension with two loops"))
        if isinstance(node, ast.Expr) and isinstance(node.value, COMPREHENSIONS):
            found.append((node.lineno, "a comprehension for its side effect"))
        if isinstance(node, ast.IfExp) and inside(node, ast.IfExp):
            found.append((node.lineno, "two conditions in an expression"))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.GeneratorExp):
            if any(isinstance(target, ast.Tuple) for target in node.targets):
                found.append((node.lineno, "a generator unpacked into names"))
    lines = [node.lineno for node in inside(tree, ast.IfExp)]
    for line in set(lines):
        if lines.count(line) > 1:
            found.append((line, "two conditional expressions"))
    return sorted(set(found))


@pytest.mark.parametrize("name", LADDER)
def test_one_thought_per_line(name):
    assert tricks(read(name)) == []


@pytest.mark.parametrize("name", LADDER)
def test_few_conditional_expressions(name):
    source = read(name)
    count = len(inside(ast.parse(source), ast.IfExp))
    per_100_lines = 100 * count / len(source.splitlines())
    assert per_100_lines <= (1 if name in LADDER[:3] else 2)


@pytest.mark.parametrize(
    "line",
    [
        "x = [[1 for i in y] for j in y]",
        "x = [i for j in y for i in j]",
        "[print(i) for i in y]",
        "a, b = (i for i in y)",
        "a = 1 if y else 2 if z else 3",
        "a = f(1 if y else 2, 3 if z else 4)",
    ],
)
def test_tricks_are_found(line):
    found = tricks(f"a = [i for i in y]\n{line}\na, b = y\n")
    assert {number for number, _ in found} == {2}


# --------------------------------------------------------------------------- README
def test_readme_table_counts_steps():
    """The README's ladder says how many sections or steps each chapter has."""
    rows = re.findall(
        r"^\| \[(\w+)\.py\]\S+ \| .* \| \[(\d): (\d+ \w+)\]\((\S+)\) \| [\d.]+ \|",
        read("README.md"),
        flags=re.M,
    )
    assert [f"{name}.py" for name, *_ in rows] == LADDER
    assert [number for _, number, *_ in rows] == ["1", "2", "3", "4", "5"]
    for name, _, steps, chapter in rows:
        assert chapter == f"docs/{name}.md"
        count = read(chapter).count("\n```diff\n")
        expected = f"{count} steps"
        if name == "bigram":  # has no diffs: it is where the course begins
            sections = re.findall(r"^## \d+\. ", read(chapter), re.M)
            expected = f"{len(sections)} sections"
        assert steps == expected, name
