"""README.md and docs/: every file, flag, link and table that can be checked without
training.

A flag is a name of the script's section "Settings", read with ast, or an option that a
prepare script adds to argparse. The files in between that the chapters speak of, under
out/steps, are made from the chapters' diffs.
"""

import ast
import functools
import json
import re
import runpy
import shlex
import statistics
from pathlib import Path

import pytest
from makers import ROOT

DOCUMENTS = sorted(
    ["README.md", *(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]
)
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
README = TEXTS["README.md"]
FILES = []  # a document may name a program without its folder
for pattern in ("beyond/*.py", "docs/*/*.py", "tests/*/*.py"):
    FILES += [path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern)]
PATHS = [*ROOT.glob("*.py"), *ROOT.glob("beyond/*.py")]
SCRIPTS = sorted(path.relative_to(ROOT).as_posix() for path in PATHS)
# Options and files of other programs, in code that is no command line of ours
FOREIGN = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "--nproc_per_node",
    "--max-restarts",
    "--depth",
    "--word-diff",
    "--help",
}


@functools.cache
def files_in_between():
    """What docs/tools/steps.py writes to out/steps: {path: text}."""
    steps = runpy.run_path(str(ROOT / "docs/tools/steps.py"))["steps"]
    found = steps((ROOT / "bigram.py").read_text(encoding="utf-8"))
    return {f"out/steps/{name}": text for name, text in found.items()}


@functools.cache
def text_of(script):
    if script.startswith("out/steps/"):
        return files_in_between()[script]
    return (ROOT / script).read_text(encoding="utf-8")


@functools.cache
def tree_of(script):
    return ast.parse(text_of(script))


@functools.cache
def flags_of(script):
    """The names that a script understands after two hyphens."""
    found = {"help"}
    for node in ast.walk(tree_of(script)):
        if isinstance(node, ast.Call) and "add" in ast.unparse(node.func) and node.args:
            option = getattr(node.args[0], "value", None)
            if isinstance(option, str) and option.startswith("--"):
                found.add(option[2:])
    if "\nimport lab\n" in text_of(script):  # a measurement has the flags of its engine
        found |= flags_of("docs/bench/lab.py")
    settings, banner, _ = text_of(script).partition(" Command line\n")
    for node in ast.parse(settings).body if banner else []:  # what follows can't be set
        if isinstance(node, ast.Assign) and not isinstance(node.value, ast.Dict):
            (name,) = [target.id for target in node.targets]
            found.add(name)
            known = isinstance(node.value, ast.Constant)
            if not known or type(node.value.value) is bool:
                found.add(f"no-{name}")
    return found


def code(markdown):
    """All fenced blocks that are shell, with continued lines joined, and all inline
    code.
    """
    fences = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", markdown, flags=re.M | re.S)
    prose = re.sub(r"^ *```.*?^ *```$", "", markdown, flags=re.M | re.S)
    lines = [
        line
        for kind, block in fences
        for line in block.replace("\\\n", " ").splitlines()
        if kind == "sh" or kind == "" and line.startswith(("python ", "torchrun "))
    ]
    return lines, re.findall(r"`([^`]+)`", prose)


def commands(markdown):
    """Every [script, argument, ...] that python or torchrun starts."""
    found = []
    for line in [text for texts in code(markdown) for text in texts]:
        for command in re.split(r"&&|;", line):
            if (
                not re.search(r"\b(python|torchrun) ", command)
                or "python -c" in command
            ):
                continue
            words = shlex.split(command, comments=True)
            starts = [
                i for i, word in enumerate(words) if word in ("python", "torchrun")
            ]
            places = [i for i, word in enumerate(words) if word.endswith(".py")]
            if starts and places and starts[0] < places[0]:
                found.append(words[places[0] :])
    return found


def wrong_flags(markdown):
    """Every flag in a command line that its script lacks; elsewhere, that none has."""
    wrong = []
    for script, *args in commands(markdown):
        for arg in args:
            if arg.startswith("--") and arg[2:].split("=")[0] not in flags_of(script):
                wrong.append((script, arg))
    for text in code(markdown)[1]:
        if text.startswith("--"):
            for flag in re.findall(r"(?<!\S)--[\w-]+", text):
                if flag not in FOREIGN and not is_flag(flag[2:]):
                    wrong.append(("any script", flag))
    return wrong


def is_flag(name):
    """Whether a script has this flag, or a file in between has the setting."""
    if any(name in flags_of(script) for script in SCRIPTS):
        return True
    heads = [text.split(" Command line\n")[0] for text in files_in_between().values()]
    return any(f"\n{name} = " in head for head in heads)


def missing_files(markdown):
    """Every file named in code that neither is there nor is made by a script.

    Under data/ and out/, and without a folder, a script must name the file that it
    makes.
    """
    names = [words[0] for words in commands(markdown)]
    for text in [text for texts in code(markdown) for text in texts]:
        pattern = r"(?:[\w.-]+/)*[\w-]+\.(?:py|md|txt|toml|svg|png|csv|json|pt)\b"
        names += re.findall(rf"(?<![\w/*.]){pattern}", text)
    made = "".join(ast.unparse(tree_of(script)) for script in SCRIPTS)
    missing = []
    for name in names:
        here = (ROOT / name).exists() or (ROOT / "docs" / name).exists()
        here = here or any(
            f"/{path}".endswith(f"/{name}") for path in [*files_in_between(), *FILES]
        )
        name = name.removeprefix("out_dir/")
        by_us = not name.endswith(".py") and (
            "/" not in name or name.startswith(("data/", "out/"))
        )
        known = Path(name).name in made or Path(name).name in FOREIGN
        known = known or re.fullmatch(r"step_\d{6}\.pt", name)  # made with a number
        if not here and not (by_us and known):
            missing.append(name)
    return missing


def dead_links(markdown, folder="."):
    """Every relative link or picture without its file, and every #anchor without its
    heading.
    """
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^ *```.*?^ *```$", "", markdown, flags=re.M | re.S), re.M
    )
    anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", markdown):
        path, _, anchor = target.partition("#")
        if re.match(r"https?://", target):
            continue
        if (
            path
            and not (ROOT / folder / path).exists()
            or not path
            and anchor not in anchors
        ):
            dead.append(target)
    return dead


@pytest.mark.parametrize("name", DOCUMENTS)
def test_flags_exist(name):
    assert wrong_flags(TEXTS[name]) == []


def test_commands_are_found():
    assert len(commands(README)) > 8
    assert sum(len(commands(text)) for text in TEXTS.values()) > 60


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_exist(name):
    assert missing_files(TEXTS[name]) == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    assert dead_links(TEXTS[name], Path(name).parent) == []


@pytest.mark.parametrize(
    "check, text, found",
    [
        (
            wrong_flags,
            "`python bigram.py --seed=1 --nhead=1`",
            [("bigram.py", "--nhead=1")],
        ),
        (
            wrong_flags,
            "`python gpt_char.py --no-bfloat16 --no-seed`",
            [("gpt_char.py", "--no-seed")],
        ),
        (
            wrong_flags,
            "```sh\npython gpt_char.py \\\n  --pattern\n```",
            [("gpt_char.py", "--pattern")],
        ),
        (
            wrong_flags,
            "```sh\ntorchrun --nnodes=2 gpt2_train.py --nnodes=2\n```",
            [("gpt2_train.py", "--nnodes=2")],
        ),
        (
            wrong_flags,
            "`python prepare_fineweb.py --token=1B`",
            [("prepare_fineweb.py", "--token=1B")],
        ),
        (
            wrong_flags,
            "`python gpt_char.py --cpu=1`",
            [("gpt_char.py", "--cpu=1")],
        ),
        (wrong_flags, "give `--batchsize`", [("any script", "--batchsize")]),
        (missing_files, "see `v2.py` and `bigram.py`", ["v2.py"]),
        (missing_files, "`docs/pattern.svg`", ["docs/pattern.svg"]),
        (missing_files, "`log.txt` and `log.csv`", ["log.txt"]),
        (
            dead_links,
            "![a](docs/none.svg) [b](#no) [c](LICENSE)\n## D\n[d](#d)",
            ["docs/none.svg", "#no"],
        ),
    ],
)
def test_the_checks_notice(check, text, found):
    assert check(text) == found


def test_ladder_table_is_that_of_the_report():
    """Loss to two digits and time of every script, as docs/bench/ladder.json has them:
    in seconds, or in minutes from the lower to the upper.
    """
    report = json.loads((ROOT / "docs/bench/ladder.json").read_text(encoding="utf-8"))
    measured = report["tables"]["Every script without arguments"]
    rows = re.findall(
        r"^\| \[(\w+)\.py\]\S+ \| .* \| ([\d.]+) \| ([\d to]+) (s|min) \| .*\|$",
        README,
        re.M,
    )
    assert [name for name, *_ in rows] == list(measured)
    for name, loss, time, unit in rows:
        final = statistics.median(measured[name]["final val loss"])
        assert loss == f"{final:.2f}", name
        seconds = statistics.median(measured[name]["wall s"])
        if unit == "s":
            assert time == f"{seconds:.0f}", name
        else:
            lower, upper = time.split(" ")[0], time.split(" ")[-1]
            assert int(lower) - 0.5 <= seconds / 60 <= int(upper) + 0.5, name


def test_lines_that_the_models_wrote_are_in_a_report():
    written = re.findall(r"^\| \[\w+\.py\]\S+ \| .* \| `(.+)` \|$", README, re.M)
    assert len(written) >= 3
    reports = ""
    for path in ROOT.glob("docs/bench/*.*"):
        reports += path.read_text(encoding="utf-8")
    for line in written:
        assert line in reports, line


def test_what_runs_the_tests_finds_the_readme_s_command():
    for name in (".ci/run", ".github/workflows/tests.yml"):
        text = (ROOT / name).read_text(encoding="utf-8")
        (pattern,) = re.findall(r"grep --max-count=1 '(.*?)' README.md", text)
        (command,) = re.findall(rf"{pattern}.*", README, re.M)
        assert command.startswith("pytest"), name
