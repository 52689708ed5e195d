"""The README's names: every file, flag, link and table that can be checked without training.

A flag is a name of the script's section "Hyperparameters", read with ast, or an option that a
prepare script adds to argparse.
"""

import ast
import functools
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("*.py"))
# Options of other programs, in code that is no command line of ours
FOREIGN = {"--nproc_per_node", "--depth", "--word-diff", "--help"}


@functools.cache
def tree_of(script):
    return ast.parse((ROOT / script).read_text(encoding="utf-8"))


@functools.cache
def flags_of(script):
    """The names that a script understands after two hyphens."""
    found = {"help"}
    for node in ast.walk(tree_of(script)):
        if isinstance(node, ast.Call) and "add" in ast.unparse(node.func) and node.args:
            option = getattr(node.args[0], "value", None)
            if isinstance(option, str) and option.startswith("--"):
                found.add(option[2:])
    body = tree_of(script).body
    ends = [i for i, node in enumerate(body) if ast.unparse(node).startswith("config = {")]
    for node in body[: ends[0]] if ends else []:  # what follows cannot be set
        if isinstance(node, ast.Assign):
            found.update(target.id for target in node.targets)
    return found - {"cpu_features"}


def code(markdown):
    """All fenced blocks that are shell, with continued lines joined, and all inline code."""
    fences = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", markdown, flags=re.M | re.S)
    prose = re.sub(r"^ *```.*?^ *```$", "", markdown, flags=re.M | re.S)
    lines = [
        line
        for kind, block in fences
        if kind == "sh"
        for line in block.replace("\\\n", " ").splitlines()
    ]
    return lines, re.findall(r"`([^`]+)`", prose)


def commands(markdown):
    """Every [script, argument, ...] that python or torchrun starts."""
    found = []
    for line in [text for texts in code(markdown) for text in texts]:
        for command in re.split(r"&&|;", line):
            words = shlex.split(command, comments=True)
            starts = [i for i, word in enumerate(words) if word in ("python", "torchrun")]
            places = [i for i, word in enumerate(words) if word.endswith(".py")]
            if starts and places and starts[0] < places[0]:
                found.append(words[places[0] :])
    return found


def wrong_flags(markdown):
    """Every flag in a command line that its script lacks, or elsewhere that none has."""
    wrong = []
    for script, *args in commands(markdown):
        for arg in args:
            if arg.startswith("--") and arg[2:].split("=")[0] not in flags_of(script):
                wrong.append((script, arg))
    known = set().union(*map(flags_of, SCRIPTS))
    for text in code(markdown)[1]:
        if text.startswith("--"):
            for flag in re.findall(r"(?<!\S)--[\w-]+", text):
                if flag[2:] not in known and flag not in FOREIGN:
                    wrong.append(("any script", flag))
    return wrong


def missing_files(markdown):
    """Every file named in code that neither is there nor is made by a script.

    Under data/ and out/, and without a folder, a script must name the file that it makes.
    """
    names = [words[0] for words in commands(markdown)]
    for text in [text for texts in code(markdown) for text in texts]:
        pattern = r"(?:[\w.-]+/)*[\w-]+\.(?:py|md|txt|toml|svg|png|csv|json|pt)\b"
        names += re.findall(rf"(?<![\w/*.]){pattern}", text)
    made = "".join(ast.unparse(tree_of(script)) for script in SCRIPTS)
    missing = []
    for name in names:
        here = (ROOT / name).exists()
        by_us = not name.endswith(".py") and ("/" not in name or name.startswith(("data/", "out/")))
        if not here and not (by_us and Path(name).name in made):
            missing.append(name)
    return missing


def dead_links(markdown):
    """Every relative link or picture without its file, and every #anchor without its heading."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^ *```.*?^ *```$", "", markdown, flags=re.M | re.S), re.M
    )
    anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", markdown):
        path, _, anchor = target.partition("#")
        if re.match(r"https?://", target):
            continue
        if path and not (ROOT / path).exists() or not path and anchor not in anchors:
            dead.append(target)
    return dead


def test_flags_exist():
    assert len(commands(README)) > 20
    assert wrong_flags(README) == []


def test_files_exist():
    assert missing_files(README) == []


def test_links_lead_somewhere():
    assert dead_links(README) == []


@pytest.mark.parametrize(
    "check, text, found",
    [
        (wrong_flags, "`python bigram.py --seed=1 --nhead=1`", [("bigram.py", "--nhead=1")]),
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
            "`python gpt_char.py --cpu_features=1`",
            [("gpt_char.py", "--cpu_features=1")],
        ),
        (wrong_flags, "give `--batchsize`", [("any script", "--batchsize")]),
        (missing_files, "see `v2.py` and `bigram.py`", ["v2.py"]),
        (missing_files, "`assets/pattern.svg`", ["assets/pattern.svg"]),
        (missing_files, "`log.txt` and `log.csv`", ["log.txt"]),
        (
            dead_links,
            "![a](assets/none.svg) [b](#no) [c](LICENSE)\n## D\n[d](#d)",
            ["assets/none.svg", "#no"],
        ),
    ],
)
def test_the_checks_notice(check, text, found):
    assert check(text) == found


def test_lines_are_short():
    long = [line for line in README.splitlines() if len(line) > 100 and line[0] != "|"]
    assert long == []


def batch_size_that_fits(memory, model, block_size):
    """What gpt2_train.py chooses for a GPU: its own lines are run, with a GPU of our own."""
    body = tree_of("gpt2_train.py").body
    sizes = next(n.value for n in body if ast.unparse(n).startswith("sizes = {"))
    choice = next(n for n in body if ast.unparse(n).startswith("if batch_size == 0:"))
    n_layer, n_head, n_embd = ast.literal_eval(sizes)[model]
    properties = SimpleNamespace(total_memory=memory)
    cuda = SimpleNamespace(get_device_properties=lambda device: properties)
    names = {"batch_size": 0, "block_size": block_size, "n_layer": n_layer, "n_embd": n_embd}
    names |= {"per_process": 524_288 // block_size, "device": "cuda", "device_type": "cuda"}
    names["torch"] = SimpleNamespace(cuda=cuda)
    exec(compile(ast.Module([choice], []), "gpt2_train.py", "exec"), names)
    return str(names["batch_size"]) if names["fits"] >= 1 else "no"


def test_memory_table_is_computed_by_the_script():
    header = re.search(r"^\| model \| context \|(.*)\|$", README, flags=re.M)
    gib = [int(number) for number in re.findall(r"(\d+) GiB", header[1])]
    rows = re.findall(r"^\| `(gpt[\w-]+)` \| ([\d,]+) \| (.*) \|$", README, flags=re.M)
    assert len(rows) == 6 and len(gib) == 5
    for model, context, cells in rows:
        context = int(context.replace(",", ""))
        expected = [batch_size_that_fits(n * 2**30, model, context) for n in gib]
        assert cells.split(" | ") == expected, model


def test_drawing_of_the_patterns_is_printed_like_that(run):
    """The two columns of the drawing are what --show_pattern prints."""
    block = re.search(r"^--pattern=fixed .*?\n\n(.*?)\n\n", README, flags=re.M | re.S)[1]
    columns = list(zip(*(line.split() for line in block.splitlines())))
    for pattern, column in zip(("fixed", "strided"), columns, strict=True):
        flags = ["--show_pattern", "--block_size=64", "--stride=8", "--summary=2"]
        done = run("sparse_gpt.py", f"--pattern={pattern}", *flags)
        assert (done.code, done.err) == (0, "")
        assert done.out.splitlines()[1:] == list(column)
