"""The pictures: what they show of sparse attention is what sparse_gpt.py computes."""

import ast
import json
import math
import re
import runpy

import pytest
from makers import ROOT, write_shards

DRAW = ROOT / "docs/tools/draw.py"
T, ROW, SUMMARY = 16, 4, 1


@pytest.fixture(scope="module")
def draw():
    pytest.importorskip("matplotlib", reason="pip install matplotlib")
    return runpy.run_path(str(DRAW), run_name="draw")


@pytest.fixture
def names(draw, tmp_path, monkeypatch):
    """Those of sparse_gpt.py for 16 positions in rows of 4."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    write_shards("data/shakespeare/bytes", 4000, 400)
    return draw["sparse"](T, ROW, SUMMARY, tile=4)


def expected(pattern, hop, i, j):
    """Who sees whom, by the words of the chapter."""
    if j > i:
        return False
    same_row = i // ROW == j // ROW
    same_column = i % ROW == j % ROW
    return {
        ("fixed", 0): same_row,
        ("fixed", 1): j % ROW >= ROW - SUMMARY,
        ("strided", 0): i - j <= ROW,
        ("strided", 1): same_column,
    }[pattern, hop]


@pytest.mark.parametrize("pattern", ["fixed", "strided"])
@pytest.mark.parametrize("hop", [0, 1])
def test_what_is_seen(draw, names, pattern, hop):
    one = names["patterns"][pattern][hop]
    seen = draw["seen_by"](names, one, T)
    for i in range(T):
        for j in range(T):
            assert seen[i, j] == expected(pattern, hop, i, j), (i, j)


def test_no_code_is_cut_out_of_a_script():
    """Pictures run the scripts, or read reports and chapters."""
    calls = set()
    for node in ast.walk(ast.parse(DRAW.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            calls.add(node.func.id)
    assert not calls & {"exec", "eval", "compile"}


def test_every_picture_of_a_document_has_its_function():
    names = set()
    for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        for word in path.read_text(encoding="utf-8").split("pictures/")[1:]:
            names.add(word.partition(".svg")[0])
    functions = set()
    for node in ast.parse(DRAW.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            functions.add(node.name)
    assert names <= functions
    for name in names:
        assert (ROOT / f"docs/pictures/{name}.svg").exists()


def words_of(name):
    """The words of a picture, each text of it one string."""
    picture = (ROOT / f"docs/pictures/{name}.svg").read_text(encoding="utf-8")
    return re.findall(r">([^<>]+)</text>", picture)


@pytest.mark.parametrize("name", ["attention", "attention_narrow"])
def test_the_weights_of_attention_follow_from_its_scores_as_printed(name):
    words = words_of(name)
    scores = [word for word in words if re.fullmatch(r"−\d+\.\d+", word)]
    after = words.index(scores[-1]) + 1
    powers = [math.exp(float(score.replace("−", "-"))) for score in scores]
    assert len(scores) == 7
    for power, word in zip(powers, words[after:]):
        assert f"{power / sum(powers):.2f}" == word


def test_the_losses_of_the_curves_are_those_of_the_report():
    report = (ROOT / "docs/bench/curves.json").read_text(encoding="utf-8")
    runs = json.loads(report)["tables"]
    words = words_of("curves")
    ends = {name: f"{run['points'][-1][1]:.2f}" for name, run in runs.items()}
    for name in ("bigram", "v2_attention"):
        assert f"{name}.py: {ends.pop(name)}" in words
    low, high = min(ends.values()), max(ends.values())
    assert f"three Transformers: {low} to {high}" in words
    assert {f"{name}.py" for name in ends} <= set(words)


def test_the_losses_of_peers_are_those_of_their_best_runs():
    report = (ROOT / "docs/bench/char.json").read_text(encoding="utf-8")
    rows = json.loads(report)["tables"][
        "Validation loss after a run of so many seconds of training"
    ]
    best = {}
    for run, row in rows.items():
        name = run.split(", ")[1]
        end = (row["val loss"][0], row["train s"][0])
        best[name] = min(end, best.get(name, end))
    loss, seconds = best.pop("gpt_char")
    words = words_of("peers")
    assert f"{loss:.2f} in {seconds:.0f} s" in words
    for name, (loss, _) in best.items():
        assert name in words
        assert f"{loss:.2f}" in words


def table_of(chapter, corner):
    """A table of a chapter, found by its first cell: the numbers of each row."""
    text = (ROOT / f"docs/{chapter}.md").read_text(encoding="utf-8")
    (table,) = re.findall(rf"^\| {corner} \|.*\n\|[-|:]+\n((?:\|.*\n)+)", text, re.M)
    rows = {}
    for line in table.splitlines():
        name, *cells = line.strip("|").split("|")
        rows[name.strip()] = [float(cell) for cell in cells]
    return rows


def test_the_ends_of_overfitting_are_those_of_the_table():
    words = words_of("overfitting")
    for dropout, (train, lowest, val) in table_of("gpt_char", "dropout").items():
        assert f"train {train:.2f}" in words
        assert f"val {val:.2f}" in words
        if dropout == "0":
            assert f"lowest: {lowest:.2f}" in words


def test_the_times_of_cost_give_the_factors_of_the_table():
    """Nearly: the table has the median of factors, the picture medians of times."""
    words = words_of("cost")
    seconds = {}
    for name in ("dense", "two rows", "fixed", "strided"):
        (label,) = [word for word in words if word.startswith(f"{name} ")]
        seconds[name] = float(label.removeprefix(name).removesuffix("s"))
    table = table_of("sparse_gpt", "times as fast as dense, at T =")
    rows = {"two rows": "window, two rows", "fixed": "fixed", "strided": "strided"}
    for name, row in rows.items():
        factor = seconds["dense"] / seconds[name]
        assert factor == pytest.approx(table[row][-1], rel=0.05), name
