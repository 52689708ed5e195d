"""The web pages of docs/tools/pages.py: complete, linked, sound in a browser."""

import base64
import html
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "docs/tools/pages.py"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or ""

pytest.importorskip("markdown_it", reason="pip install markdown-it-py")


RUN = dict(text=True, encoding="utf-8", capture_output=True)


def command(*args, cwd=ROOT, **env):
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"} | env
    return subprocess.run([sys.executable, BUILD, *args], cwd=cwd, env=env, **RUN)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The folder with the pages. Its name has an umlaut, which the console lacks."""
    above = tmp_path_factory.mktemp("course")
    done = command("sïte", cwd=above, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    folder = above / "sïte"
    count = len(list(folder.glob("*.html")))
    first = (folder / "index.html").as_uri()
    assert done.stdout == f"{count} pages; open {first}\n"
    return folder


@pytest.fixture(scope="module")
def pairs():
    """The texts before and after each step, in the order of the course."""
    names = runpy.run_path(str(ROOT / "docs/tools/steps.py"), run_name="steps")
    texts = names["steps"]((ROOT / "bigram.py").read_text(encoding="utf-8"))
    before = names["parents"](texts)
    return [(texts[before[name]], texts[name]) for name in before]


def text(page):
    return html.unescape(re.sub(r"<[^>]*>", "", page))


def in_order(folder):
    """The names of all pages as the key for the next page goes through them."""
    name, found = "index.html", []
    while name:
        assert name not in found, "a circle"
        found.append(name)
        following = re.search(
            '<a rel="next" href="([^"]*)"', (folder / name).read_text("utf-8")
        )
        name = following and following[1]
    return found


def test_every_page_is_on_the_way(pages):
    names = in_order(pages)
    assert sorted(names) == sorted(path.name for path in pages.glob("*.html"))
    before = [
        re.search('rel="prev" href="([^"]*)"', (pages / n).read_text("utf-8"))
        for n in names
    ]
    assert [b and b[1] for b in before] == [None, *names[:-1]]


def test_links_lead_somewhere_and_nothing_is_from_elsewhere(pages):
    for path in pages.glob("*.html"):
        page = path.read_text(encoding="utf-8")
        assert path.stat().st_size < 500_000, path.name
        for tag, name, target in re.findall(r'<(\w+)[^>]*? (href|src)="([^"]*)"', page):
            if target.startswith("http"):
                assert tag == "a", f"{path.name} loads {target}"
                continue
            file, _, place = html.unescape(target).partition("#")
            file = file or path.name
            assert (pages / file).is_file(), f"{path.name}: {target}"
            assert not place or f'id="{place}"' in (pages / file).read_text("utf-8"), (
                target
            )
    assert (
        "http"
        not in (pages / "course.css").read_text() + (pages / "course.js").read_text()
    )


def lines_of(page):
    """[(class, number, text, by how much folded lines moved or None)] of a diff."""
    found = []
    shift = None
    pattern = r'data-shift="(-?\d+)"|(</details>)|'
    pattern += r'<p class="(\w)" data-n="(\d+)"[^>]*>(.*?)</p>'
    for moved, end, kind, number, code in re.findall(pattern, page):
        if moved:
            shift = int(moved)
        elif end:
            shift = None
        else:
            found.append((kind, int(number), text(code), shift))
    return found


def diff_in(page):
    """The part of a page that holds the lines of its diff, or None."""
    parts = page.split('<div class="lines">')
    assert len(parts) < 3
    return parts[1].split("</section>")[0] if len(parts) == 2 else None


def test_every_step_is_shown_in_full(pages, pairs):
    """Both columns, with the lines that are folded, are the two files to the letter."""
    shown = []
    for name in in_order(pages):
        diff = diff_in((pages / name).read_text("utf-8"))
        if diff:
            shown.append((name, diff))
    assert len(shown) == len(pairs)
    for (name, diff), (old, new) in zip(shown, pairs):
        left, right = {}, {}
        for kind, number, line, shift in lines_of(diff):
            columns = []
            if kind in "al":
                columns.append((left, number))
            if kind in "br":
                columns.append((right, number))
            if shift is not None:
                columns.append((left, number - shift))
            for column, at in columns:
                assert at not in column, f"{name}: line {at} is there twice"
                column[at] = line
        for column, file in ((left, old), (right, new)):
            lines = [column[number] for number in sorted(column)]
            assert "\n".join(lines) + "\n" == file, name
            assert sorted(column) == list(range(1, len(lines) + 1)), name
        # What is marked as equal is so, and what is marked as changed is in one only
        equal = [line for kind, _, line, _ in lines_of(diff) if kind == "l"]
        folded = {at for _, at, _, shift in lines_of(diff) if shift is not None}
        both = [(k, n, line) for k, n, line, _ in lines_of(diff) if n not in folded]
        assert equal == [line for kind, _, line in both if kind == "r"], name


def test_prose_measure_and_changed_words(pages):
    page = (pages / "v2_attention_5.html").read_text(encoding="utf-8")
    assert "each position gets three vectors instead of one" in text(page)
    assert re.search('<p class="measured"><em>Measured:</em> .*[0-9]', page)
    marked = [text(word) for word in re.findall("<mark>(.*?)</mark>", page)]
    assert {"q", "k"} <= set(marked), "x @ x.transpose becomes q @ k.transpose"
    assert "class" not in marked, "a word that did not change"


def test_one_can_predict_before_one_reads_the_answer(pages):
    """Wherever the diff stands, the card with the loss is below all of it.

    A step may end with a prediction for the next one, below what was measured.
    """
    count = 0
    for path in pages.glob("*.html"):
        page = path.read_text(encoding="utf-8")
        if 'class="effect"' in page and 'class="predict"' in page:
            kinds = re.findall('class="(predict|measured|unmeasured|effect)"', page)
            assert kinds[-1] == "effect", path.name
            count += kinds[0] == "predict"
    assert count > 20
    page = (pages / "gpt2_train_20.html").read_text(encoding="utf-8")
    assert '<p class="unmeasured"><em>Not measured' in page


def test_an_introduction_lists_the_steps_and_a_long_page_its_sections(pages):
    for name in ("v2_attention", "gpt_char"):
        page = (pages / f"{name}.html").read_text(encoding="utf-8")
        links = re.findall('href="([^"]*)"', page.split('id="the-steps"')[1])
        steps = [path.name for path in pages.glob(f"{name}_[0-9]*.html")]
        assert len(steps) > 9 and set(steps) <= set(links)
    assert page.count("<h3>Part ") == 3
    page = (pages / "bigram.html").read_text(encoding="utf-8")
    fold = page.split("On this page")[1].split("</details>")[0]
    links = re.findall('href="bigram.html#([^"]*)"', fold)
    assert links == re.findall('<h2 id="([^"]*)"', page) and len(links) > 16


def test_what_the_search_finds_has_a_place(pages):
    """Comments in code are no headings, and names keep their underscores."""
    script = (pages / "search.js").read_text(encoding="utf-8")
    for entry in json.loads(script.split(" = ", 1)[1].rstrip(";\n")):
        file, _, place = entry["page"].partition("#")
        page = (pages / file).read_text(encoding="utf-8")
        assert f'id="{place}"' in page or f"<h1>{entry['title']}" in page, entry
    assert "v2_attention.py" in script and "v2attention" not in script


@pytest.fixture(scope="module")
def diffs():
    sys.path.insert(0, str(BUILD.parent))
    try:
        import diffs
    finally:
        sys.path.remove(str(BUILD.parent))
    return diffs


def test_pairs_do_not_depend_on_the_indentation(diffs):
    old = ["for n in range(9):", "x = model(n)"]
    new = ["with torch.no_grad():", "    for n in range(9):", "        x = model(n)"]
    assert list(diffs.twins(old, new)) == [(0, 1), (1, 2)]


def test_a_chance_resemblance_further_down_does_not_win(diffs):
    old = ["if vocab_sizes != {256}:", "exit('the shards must be of bytes')"]
    new = ["if vocab_sizes not in ({256}, {50257}):"]
    new += ["exit('the shards must all be of bytes')", "if vocab_size == 50257:"]
    assert list(diffs.twins(old, new)) == [(0, 0), (1, 1)]


def test_an_indentation_is_not_marked_and_a_phrase_is_one_piece(diffs):
    old, new = "    x = opt.step()", "        x = opt.step()"
    assert diffs.changed(old, new) == (set(), set())
    old, new = "# that are computed at a time", "# a process computes at a time"
    in_old, in_new = diffs.changed(old, new)
    assert in_old == set(range(2, 19)) and in_new == set(range(2, 20))


def test_the_bar_above_lines_names_where_they_are(diffs):
    source = """import a
# ------------------- Model
class A(nn.Module):
    x = 1

    def f(self):
        return 1


y = 2
# ------------------- Training
z = 3
"""
    places = diffs.places(source)
    assert places[0] == "start of the file"
    assert places[3] == "class A"
    assert places[6] == "class A · def f"
    assert places[9] == "Model"
    assert places[11] == "Training"


@pytest.fixture(scope="module")
def narrow(diffs):
    return diffs.narrow


def test_columns_without_room_go_below(narrow):
    """Numbers stay below each other; an arrow stays in its row."""
    wide = """
             first column  second column  third     fourth column
one row               1.0            2.0    3.0        4.0
another              11.0           12.0   13.0
"""
    stacked = """
         first column  second column  third
one row           1.0            2.0    3.0
another          11.0           12.0   13.0

         fourth column
one row     4.0
"""
    assert narrow.narrow(wide) == stacked
    row = "a vector of numbers  ->  a layer  ->  another layer  ->  a number"
    below = "a vector of numbers  ->  a layer\n  ->  another layer  ->  a number"
    assert narrow.narrow(row) == below
    assert narrow.narrow("short  enough   as it is") == "short  enough   as it is"
    assert narrow.narrow(wide.replace(" column", "")).count("\n") == wide.count("\n")


MATRIX = """
G = 3  2        G (1, 1)  = (5, 5)      this direction is stretched 5 times
    2  3        G (1, -1) = (1, -1)     this direction once
"""
MATRIX_NARROW = """
G = 3  2
    2  3

G (1, 1)  = (5, 5)
  this direction is stretched 5 times
G (1, -1) = (1, -1)
  this direction once
"""
SQUARES = """
               keys                      16 positions, tiles of 4, a window of 4
            0   1   2   3
queries 0   #   .   .   .                # computed, with a mask
        1   #   #   .   .                . skipped
        2   .   #   #   .
"""
SQUARES_NARROW = """
              keys
           0   1   2  3
queries 0  #   .   .  .
        1  #   #   .  .
        2  .   #   #  .

16 positions, tiles of 4, a window of 4
# computed, with a mask
. skipped
"""
BRACE = r"""
x (B, T, 128)  ->  head 1  ->  (B, T, 32)  \
               ->  head 2  ->  (B, T, 32)  |  ->  torch.cat  ->  (B, T, 128)
               ->  head 3  ->  (B, T, 32)  /
"""
BRACE_NARROW = r"""
x (B, T, 128)  ->  head 1  ->  (B, T, 32)  \
               ->  head 2  ->  (B, T, 32)  |
               ->  head 3  ->  (B, T, 32)  /

->  torch.cat  ->  (B, T, 128)
"""
WINDOWS = """
step:        windows 0 1 2 3 | 4 5 6 7          batch_size 2, two processes
rank 0       0 1 | 4 5                          micro-step 0 | micro-step 1
rank 1       2 3 | 6 7
"""
WINDOWS_NARROW = """
step:   windows 0 1 2 3 | 4 5 6 7
rank 0  0 1 | 4 5
rank 1  2 3 | 6 7

batch_size 2, two processes
micro-step 0 | micro-step 1
"""
ROWS = """
as they come        0  1  2  3 |  4  5  6  7 |  8  9 10 11 | 12 13 14 15
by column           0  4  8 12 |  1  5  9 13 |  2  6 10 14 |  3  7 11 15
"""
ROWS_NARROW = """
as they come
0  1  2  3 |  4  5  6  7 |  8  9 10 11 | 12 13 14 15
by column
0  4  8 12 |  1  5  9 13 |  2  6 10 14 |  3  7 11 15
"""
PARTS = """
   fixed, hop 1      fixed, hop 2        strided, hop 1    strided, hop 2
 9 #                 ................    #                 #
10 ##                ................    ##                .#
11 ###               ...............#    ###               ..#
"""
PARTS_NARROW = """
   fixed, hop 1  fixed, hop 2
 9 #             ................
10 ##            ................
11 ###           ...............#

   strided, hop 1  strided, hop 2
 9 #               #
10 ##              .#
11 ###             ..#
"""
TIMES = """
before  CPU  read |  wait for the GPU         | read |  wait for the GPU         |
        GPU       |  copy, forward, backward  |      |  copy, forward, backward  |
"""
UNDER = """
step  75/100 | loss 2.4912 | norm 0.807 | 148 ms | 0.1 min left
                             jumps are    can be compared
                             trouble      between machines
"""


def test_a_drawing_stays_whole(narrow):
    """Only the words to its right go below it; a line that is too long stays long.

    Nothing that was a note at the side becomes a statement about a row.
    """
    for wide, slim in (
        (MATRIX, MATRIX_NARROW),
        (SQUARES, SQUARES_NARROW),
        (BRACE, BRACE_NARROW),
        (WINDOWS, WINDOWS_NARROW),
        (ROWS, ROWS_NARROW),
        (PARTS, PARTS_NARROW),
    ):
        assert narrow.narrow(wide) == slim
        assert not narrow.is_whole(wide)
    for drawing in (TIMES, UNDER):
        assert narrow.narrow(drawing) == drawing
        assert narrow.is_whole(drawing)


def test_what_is_no_drawing(narrow):
    """The bars of a log, a division and a sum are none."""
    log = (
        "step   100/1000 | loss 2.0581 | 147 ms | 2.2 min left      every log_interval"
    )
    log += "\nstep   100/1000 | val loss 2.1347                           at the end"
    mean = "mean    0.1 * 0.2         = 0.0200    / 0.1     = 0.200      a first step"
    mean += "\nsquare  0.01 * 0.2**2    = 0.000400  / 0.01    = 0.0400     root 0.200"
    for text in (log, mean):
        assert not narrow.is_whole(text)
        assert narrow.longest(narrow.narrow(text).split("\n")) <= narrow.WIDEST


def test_no_word_is_lost_on_a_telephone(narrow):
    """Every text in the course: the same words, in lines that fit, none invented."""
    count = 0
    for path in ROOT.glob("docs/**/*.md"):
        source = path.read_text(encoding="utf-8")
        for block in re.findall(r"^```text\n(.*?)^```", source, re.M | re.S):
            lines = narrow.narrow(block.rstrip("\n")).split("\n")
            words = [word for line in lines for word in line.split() if word.strip("-")]
            wanted = [word for word in block.split() if word.strip("-")]
            assert set(words) == set(wanted), path.name
            for word in set(wanted):
                assert words.count(word) >= wanted.count(word), (path.name, word)
            for line in lines:
                longest = max([0, *map(len, line.split())])
                fits = len(line) <= max(narrow.WIDEST, longest + 4)
                assert fits or narrow.is_whole(block.rstrip("\n")), line
            count += len(lines) != block.count("\n")
    assert count > 50


def test_a_step_says_where_it_stands_and_what_it_did(pages):
    page = (pages / "v2_attention_3.html").read_text(encoding="utf-8")
    assert "Chapter 2, step 3 of" in text(page)
    report = json.loads((ROOT / "docs/bench/steps_v2_attention.json").read_text())
    rows = list(report["steps"].values())
    before, after = rows[2], rows[3]
    effect = text(page.split('class="effect"')[1].split("</section>")[0])
    for row in (before, after):
        assert f"{row['val loss'][0]:.3f}" in effect
        assert f"{row['ms per step'][0]:.1f}" in effect
    # A chart of all steps, if they can be compared
    assert "polyline" in page
    other_flags = (pages / "sparse_gpt_6.html").read_text(encoding="utf-8")
    assert "polyline" not in other_flags.split('class="effect"')[1]
    # Both samples stand in the card, the older one first, and nowhere else
    first = effect.index(before["sample"].strip())
    assert first < effect.index(after["sample"].strip())
    words = " ".join(text(page).split())
    assert words.count(" ".join(after["sample"].split())) == 1
    assert "their order is random." in words  # the colon went with the sample


def test_the_comment_on_a_sample_follows_it(pages):
    """The card is between "Measured" and the comment, and its samples come last."""
    page = (pages / "v2_attention_9.html").read_text(encoding="utf-8")
    card = page.split('class="effect"')[1].split("</section>")
    assert card[0].endswith("</pre></figure></div>")
    assert card[1].lstrip().startswith("<p>Lines, names and colons")
    assert "The model writes" not in page


@pytest.fixture(scope="module")
def builder(diffs):
    """The functions of pages.py."""
    sys.path.insert(0, str(BUILD.parent))
    try:
        return runpy.run_path(str(BUILD), run_name="pages")
    finally:
        sys.path.remove(str(BUILD.parent))


def test_what_announces_a_sample_goes_with_it(builder):
    place = builder["with_place_for_card"]
    block = "\n\n```text\na\nb\n```\n\nIt is good.\n"
    for above, rest in (
        ("*Measured:* 2.1. It\nwrites:", "*Measured:* 2.1."),
        ("*Measured:* 2.1, and the model writes", "*Measured:* 2.1."),
        ("*Measured:* 2.1. But look at the sample:",) * 2,
        ("*Measured:* 2.1.",) * 2,
    ):
        found = place(above + block, "a\n b")
        rest = re.sub(":$", ".", rest)
        assert found == f"{rest}\n\n{builder['CARD']}\n\nIt is good.\n"
    assert place(above + block, "another") == above + block


def test_how_long_a_command_takes_stands_before_it(builder):
    """Unless more follows: then it belongs to another command."""
    shown = builder["render"]("# a\n\n**Run**: `python a.py` (a\nminute)", BUILD, {})
    words = text(shown.split("</h1>")[1]).split()
    assert words == "Run (a minute): python a.py".split()
    shown = builder["render"]("# a\n\n**Run**: `python a.py`. Look (x)", BUILD, {})
    assert text(shown.split("</h1>")[1]).split() == "Run: python a.pyLook (x)".split()


def test_a_card_without_a_quoted_sample_stands_above_the_question(builder):
    """Not within the diff, and not between a result and what is said of it."""
    diff = '<section class="diff"><details>folded</details></section>'
    told = '<p class="measured">2.1</p>\n<p>On one thread.</p>\n'
    question = "<details><summary>Why?</summary></details>"
    place = builder["with_card"]
    assert place(diff + told + question, "card") == diff + told + "card" + question
    assert place(told + diff + question, "card") == told + diff + "card" + question
    assert place(diff + told, "card") == diff + told + "card"
    assert place(diff + told, "") == diff + told


def row(loss=None, sample=None, ms=None):
    found = {"val loss": [loss] if loss else [], "ms per step": [ms] if ms else []}
    return found | ({"sample": sample} if sample else {})


def test_a_card_has_what_was_measured(builder):
    """No row without two numbers, no chart and no second sample where nothing changes.

    The step before may be one without a loss; then the last one that has one counts.
    """
    rows = {
        "00_start": row(2.5, "a b"),
        "01_same": row(2.5001, "a b"),
        "02_nothing": row(),
        "03_lower": row(2.0, "c <d>"),
        "04_faster": row(2.0, "c <d>", 5.0),
        "05_faster": row(2.0, "c <d>", 4.0),
        "06_time": row(None, None, 3.0),
        "07_noise": row(None, None, 3.2),
    }
    effect = builder["effect"]
    names = effect.__globals__
    kept = names["report"]
    runs = {}
    for name in rows:
        pattern = "fixed" if name > "03" else "dense"
        key = f"1a2b max_iters=250 pattern={pattern} round=0"
        runs[f"{key} {name}"] = {"file": name, "val loss": 1}
    names["report"] = lambda chapter: {"steps": rows, "runs": runs}
    try:
        cards = {name: effect("x", name, "*Measured:* 2.5.\n\n") for name in rows}
        told = "*Measured:* 2.500 and the same text.\n\n"
        assert effect("x", "01_same", told) == ""
    finally:
        names["report"] = kept
    assert cards["00_start"] == cards["02_nothing"] == ""
    assert "Val loss 2.500, as before, after 250" in text(cards["01_same"])
    assert "<table" not in cards["01_same"] and "a b" not in cards["01_same"]
    assert "−0.500" in cards["03_lower"] and "a b" in text(cards["03_lower"])
    assert "After 250 iterations each." in cards["03_lower"]
    assert "Before: with --pattern=dense" in text(cards["03_lower"])
    assert text(cards["03_lower"]).endswith("c <d>")
    assert "ms" not in text(cards["04_faster"])
    assert "no change" in cards["05_faster"] and "−1.0" in cards["05_faster"]
    assert "polyline" not in "".join(cards.values())  # the steps differ in flags
    assert "It writes the same as before" in cards["05_faster"]
    assert "val loss" not in cards["06_time"] and "−1.0" in cards["06_time"]
    assert "within the noise" in cards["07_noise"] and "0.2" not in cards["07_noise"]


def test_one_bad_step_does_not_flatten_the_chart(builder):
    """Its loss is cut off, but not where it is what a step changes."""
    losses = {"a": 2.3, "b": 2.1, "c": 3.4, "d": 2.0, "e": 2.6, "f": 1.8}
    highest = builder["highest"]
    tops = [highest(losses, name) for name in "abcdef"]
    assert tops == [2.6, 2.6, 3.4, 3.4, 2.6, 2.6]
    assert highest({"a": 2.5, "b": 2.0}, "b") == 2.5


def test_what_was_not_measured_has_no_row(pages):
    page = (pages / "by_hand_2.html").read_text(encoding="utf-8")
    effect = page.split('class="effect"')[1].split("</section>")[0]
    assert "val loss" in effect
    assert "ms per step" not in effect and "not measured" not in effect


def test_the_diff_follows_what_is_said_of_it(pages):
    """It stands after "In the diff", and before one predicts and runs."""
    count = 0
    for path in pages.glob("*.html"):
        page = path.read_text(encoding="utf-8")
        if 'class="diff"' not in page:
            continue
        told = page.find("<strong>In the diff</strong>")
        diff = page.find('class="diff"')
        assert told < diff, path.name
        assert diff < page.find("<p><strong>Run</strong>", told) or (
            "<p><strong>Run</strong>" not in page[told:]
        ), path.name
        assert (
            page.find('class="predict"', diff) > 0
            or told < 0
            or ('class="predict"' not in page)
        ), path.name
        count += told >= 0
    assert count > 100


def test_a_change_of_the_docstring_is_folded(pages, diffs):
    page = diff_in((pages / "v2_attention_9.html").read_text(encoding="utf-8"))
    assert page.startswith("<details><summary>The docstring of the script")
    assert "Rung 2 of 5" in text(page.split("</details>")[0])
    old = '# a\n"""One.\n\nTwo.\n"""\nx = 1\n'
    new = old.replace("Two", "Three")
    assert diffs.end_of_docstring(old.splitlines()) == 5
    assert "<details>" not in diffs.diff(old, new, "a.py", "b.py")  # nothing else
    assert "<details>" in diffs.diff(old, new + "y = 2\n", "a.py", "b.py")


def test_a_live_model_follows_the_words_on_its_picture(pages):
    page = (pages / "v2_attention_9.html").read_text(encoding="utf-8")
    before = page.split('<div class="live"')[0]
    assert before.rindex("Look at the framed row") > before.rindex("<img")
    assert before.endswith("</p>\n")


def test_the_start_page_has_the_ladder_and_leads_to_every_page(pages):
    page = (pages / "index.html").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\w+\.py)\].*?\| ([\d.]+) \|.*`(.*)` \|$", readme, re.M)
    assert len(rows) == 5
    for script, loss, wrote in rows:
        assert script in page and loss in page
        assert wrote in text(page)
    found = set(re.findall(r'href="([^"#]+\.html)"', page))
    assert found == {path.name for path in pages.glob("*.html")}


def test_the_row_of_steps_has_a_list_for_each_part(pages):
    page = (pages / "gpt_char_15.html").read_text(encoding="utf-8")
    row = page.split('<nav class="dots"')[1].split("</nav>")[0]
    names = re.findall('<ol title="(Part [^"]*)"', row)
    assert len(names) == 3 and "training it well" in names[1]
    steps = [re.findall(r">(\w+)</a>", part) for part in row.split("<ol")[1:]]
    assert steps[0] == ["Start"] and steps[3][-1] == "End"
    assert steps[1] + steps[2] + steps[3][:-1] == [str(n) for n in range(1, 31)]


def test_a_link_below_the_title_leads_to_the_diff(pages):
    page = (pages / "v2_attention_9.html").read_text(encoding="utf-8")
    link = page.split("</h1>")[1].split("</p>")[0]
    come, gone = re.findall(r"[+−]\d+", link)
    assert 'href="#diff"' in link and 'id="diff"' in page
    assert f"{come}</span> " in page.split('class="tools"')[1]
    lines = lines_of(diff_in(page))
    assert int(come[1:]) == sum(kind == "b" for kind, *_ in lines)
    assert int(gone[1:]) == sum(kind == "a" for kind, *_ in lines)


def test_one_title_and_one_main_and_navigation_has_names(pages):
    for path in pages.glob("*.html"):
        page = path.read_text(encoding="utf-8")
        assert page.count("<h1") == 1, path.name
        assert page.count("<main") == 1, path.name
        labels = re.findall(r"<nav[^>]*?>", page)
        names = [re.search('aria-label="(.+?)"', label)[1] for label in labels]
        assert len(set(names)) == len(names) >= 2, path.name
        assert all('alt="' in image for image in re.findall("<img[^>]*>", page))


def luminance(color):
    """How bright a color like #a0b1c2 is, by the WCAG's definition."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = []
    for part in parts:
        if part <= 0.04045:
            linear.append(part / 12.92)
        else:
            linear.append(((part + 0.055) / 1.055) ** 2.4)
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_contrast_of_the_colors():
    css = (ROOT / "docs/tools/course.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", css, re.S)[:2]
    for block in (light, dark):
        colors = dict(re.findall(r"--(\w+): (#\w{6})", block))
        code = ["ink", "c", "s", "m", "k", "n", "f"]
        pairs = [(name, below) for name in code for below in ("paper", "box")]
        for below in ("old", "new", "oldword", "newword"):
            pairs += [(name, below) for name in code]
        pairs += [("soft", "paper"), ("soft", "box"), ("soft", "old"), ("soft", "new")]
        pairs += [("worse", "old"), ("better", "new"), ("worse", "box")]
        pairs += [("better", "box"), ("link", "paper"), ("link", "box")]
        pairs += [("paper", "accent"), ("better", "paper"), ("worse", "paper")]
        for name, below in pairs:
            bright = sorted([luminance(colors[name]), luminance(colors[below])])
            contrast = (bright[1] + 0.05) / (bright[0] + 0.05)
            assert contrast >= 4.5, f"{name} on {below}: {contrast:.2f}"


@pytest.mark.parametrize("below", ["", "/folder"])
def test_bad_folder(tmp_path, below):
    file = tmp_path / "file"
    file.write_text("")
    done = command(f"{file}{below}")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"{file}{below}")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--foo"], "unrecognized arguments: --foo"),
        (["a", "--foo=1"], "unrecognized arguments: --foo=1"),
        (["a", "b"], "unrecognized arguments: b"),
    ],
)
def test_bad_options(tmp_path, args, says):
    """A usage line and one that says what is wrong; nothing is written."""
    done = command(*args, cwd=tmp_path)
    lines = ["usage: pages.py [FOLDER]", f"pages.py: error: {says}", ""]
    assert (done.returncode, done.stderr.split("\n")) == (2, lines)
    assert list(tmp_path.iterdir()) == []


def test_help():
    assert "python docs/tools/pages.py [FOLDER]" in command("--help").stdout


@pytest.mark.long
def test_a_full_disk_leaves_nothing(tmp_path):
    """The last page cannot be written: one line, and no page of the others."""
    code = f"""
import runpy, sys
from pathlib import Path
real = Path.write_text
def full(path, *args, **kwargs):
    if path.name.startswith("course.css"):
        raise OSError(28, "No space left on device")
    return real(path, *args, **kwargs)
Path.write_text = full
sys.path.insert(0, {str(BUILD.parent)!r})
runpy.run_path({str(BUILD)!r}, run_name="__main__")
"""
    folder = tmp_path / "site"
    done = subprocess.run([sys.executable, "-c", code, folder], **RUN)
    assert done.returncode == 1
    assert done.stderr == f"{folder}/course.css: No space left on device\n"
    assert list(folder.iterdir()) == []


# -------------------------------------------------------------------------- In Chromium
WIDTHS = (390, 820, 1024, 1280, 1440)
IN_CHROMIUM = [
    pytest.mark.long,
    pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: apt-get install chromium"),
]


def in_chromium(test):
    for mark in IN_CHROMIUM:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="pip install playwright"
    )
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium
        browser = chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, pages):
    """visit(name, width=1440, ...): a page in a window. No error may occur in it."""
    problems = []
    contexts = []

    def visit(name, width=1440, scheme="light", **options):
        size = {"width": width, "height": 900}
        context = browser.new_context(viewport=size, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(request.url))
        page.goto((pages / name).as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    assert problems == []


BEYOND = """[...document.querySelectorAll("pre:not(.whole), .scroll")]
    .filter(box => box.scrollWidth > box.clientWidth)
    .map(box => box.textContent.slice(0, 200))"""


@in_chromium
def test_every_page_at_every_width(visit, pages):
    """No error, no scrolling sideways; the keys lead through all pages.

    Drawings may scroll in their box, on a telephone.
    """
    names = in_order(pages)
    page = visit("index.html")
    for name, after in zip(names, [*names[1:], names[-1]]):
        assert page.url.endswith(f"/{name}")
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            inside = "document.documentElement.scrollWidth <= innerWidth"
            assert page.evaluate(inside), f"{name} is wider than {width}"
            assert page.evaluate(BEYOND) == [], f"{name} at {width}"
        page.keyboard.press("ArrowRight")
        page.wait_for_url(f"**/{after}")
    for name in names[-2:-9:-1]:
        page.keyboard.press("p")
        page.wait_for_url(f"**/{name}")


LAYOUT = """() => {
    const first = document.querySelector(".hunk p.r");
    const style = getComputedStyle(first);
    const context = document.createElement("canvas").getContext("2d");
    context.font = style.font;
    const lefts = [...document.querySelectorAll(".hunk p")].map(p => p.offsetWidth);
    return {
        size: parseFloat(style.fontSize),
        side: getComputedStyle(document.querySelector(".hunk")).display === "grid",
        column: first.clientWidth / context.measureText("0").width,
        sizes: [...document.querySelectorAll("main *")]
            .filter(e => e.offsetParent && e.textContent.trim())
            .map(e => parseFloat(getComputedStyle(e).fontSize)),
    };
}"""


@in_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_diff_is_readable(visit, width, scheme):
    """Side by side only with 88 characters of at least 12 px in both columns."""
    page = visit("v2_attention_5.html", width, scheme)
    layout = page.evaluate(LAYOUT)
    assert layout["size"] >= 12 and min(layout["sizes"]) >= 11
    room = layout["column"] >= 88 + 7  # with the number and the sign
    assert not layout["side"] or room
    assert layout["side"] == (width >= 1440)
    signs = page.evaluate(
        "['.a', '.b'].map(kind => getComputedStyle("
        "document.querySelector(`.lines ${kind}`), '::before').content)"
    )
    assert "−" in signs[0] and "+" in signs[1]
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    expected = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}
    assert background == expected[scheme]


@in_chromium
def test_toggle_and_unfold(visit, pages):
    page = visit("v2_attention_5.html", 1280)
    assert not page.evaluate(LAYOUT)["side"]
    page.click("text=Side by side")
    assert page.evaluate(LAYOUT)["side"]
    page.reload()
    assert page.evaluate(LAYOUT)["side"], "it is kept"
    page.click(".tools >> text=Unified")
    assert not page.evaluate(LAYOUT)["side"]
    page.keyboard.press("v")
    assert page.evaluate(LAYOUT)["side"]
    page.click("text=Unfold all")
    assert page.locator(".lines details:not([open])").count() == 0
    column = "names => [...document.querySelectorAll(`.hunk :is(${names})`)]"
    column += ".map(p => [Number(p.dataset.n), p.textContent])"
    for names in (".a, .l", ".b, .r"):  # unfolded, the left column is complete, too
        numbers = [number for number, _ in page.evaluate(column, names)]
        assert sorted(numbers) == list(range(1, len(numbers) + 1))
    page.click("text=Fold again")
    assert page.locator(".lines details[open]").count() == 0


def drag(page, start, end):
    """Select with the mouse from the start of one line to the end of another."""
    page.locator(start).evaluate("line => line.scrollIntoView()")
    first = page.locator(start).bounding_box()
    last = page.locator(end).bounding_box()
    width = "s => getComputedStyle(document.querySelector(s), '::before').width"
    gutter = float(page.evaluate(width, start).removesuffix("px"))
    page.mouse.move(first["x"] + gutter + 3, first["y"] + 8)
    page.mouse.down()
    page.mouse.move(last["x"] + last["width"] - 3, last["y"] + 8, steps=8)
    page.mouse.up()


COPIED = """addEventListener("copy", (event) => {
    window.copied = event.clipboardData.getData("text");
})"""


@in_chromium
def test_a_selection_takes_one_column_only(visit, pairs):
    """Step 5 of chapter 2: lines 85 to 94 of the old file, 85 to 101 of the new."""
    old, new = (file.splitlines() for file in pairs[4])
    page = visit("v2_attention_5.html", 1440)
    page.evaluate(COPIED)
    drag(page, '.a[data-n="85"]', '.a[data-n="94"]')
    page.keyboard.press("Control+c")
    assert page.evaluate("copied").split("\n") == old[84:94]
    drag(page, '.b[data-n="85"]', '.b[data-n="101"]')
    page.keyboard.press("Control+c")
    assert page.evaluate("copied").split("\n") == new[84:101]
    page.keyboard.press("v")  # unified: what is copied is one of the files, too
    drag(page, '.b[data-n="85"]', '.b[data-n="101"]')
    page.keyboard.press("Control+c")
    assert page.evaluate("copied").split("\n") == new[84:101]
    drag(page, '.a[data-n="85"]', '.a[data-n="94"]')
    page.keyboard.press("Control+c")
    assert page.evaluate("copied").split("\n") == old[84:94]


@in_chromium
def test_commands_have_a_button_that_copies(visit):
    page = visit("index.html")
    page.evaluate("navigator.clipboard.writeText = async (text) => { copied = text }")
    page.click("pre .copy")
    commands = page.evaluate("copied").split("\n")
    assert commands[0] == "pip install -r requirements.txt"
    assert commands[1:] == [
        "python gpt_char.py",
        'python gpt_char.py --prompt="ROMEO:"',
    ]
    page = visit("v2_attention_5.html")
    page.evaluate("navigator.clipboard.writeText = async (text) => { copied = text }")
    page.locator(".run .copy").first.click()
    script = "python out/steps/v2_attention/05_query_key_value.py --prompt=ROMEO:"
    assert page.evaluate("copied") == script


@in_chromium
def test_keys(visit):
    page = visit("v2_attention_5.html", 390)
    stay = page.url
    modified = ("Shift", "Control", "Alt", "Meta")
    for keys in [f"{key}+n" for key in modified] + ["Shift+ArrowRight"]:
        page.keyboard.press(keys)
        page.wait_for_timeout(50)
        assert page.url == stay, keys
    repeat = "dispatchEvent(new KeyboardEvent('keydown', {key: 'n', repeat: true}))"
    page.evaluate(repeat)
    box = "document.querySelector('pre:not(.full)')"
    page.evaluate(f"{box}.insertAdjacentHTML('beforeend', '<p style=width:2000px>')")
    page.evaluate("dispatchEvent(new Event('resize'))")
    page.locator("pre[tabindex]").first.focus()
    page.keyboard.press("ArrowRight")  # scrolls the box that has the focus
    page.wait_for_timeout(50)
    assert page.url == stay
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    page.keyboard.press("n")  # not while the list is open
    page.keyboard.press("Escape")
    assert page.url == stay and not page.locator("#keys").is_visible()
    page.keyboard.press("/")
    page.keyboard.type("n?c")  # letters go to the field
    page.wait_for_function("window.course_index")
    assert page.url == stay
    page.keyboard.press("Escape")
    page.keyboard.press("c")
    page.wait_for_url("**/index.html")


@in_chromium
def test_glossary_and_search(visit, pages):
    page = visit("v2_attention.html")
    term = page.locator("a.term").first
    sentence = term.get_attribute("data-tip")
    glossary = " ".join(text((pages / "glossary.html").read_text("utf-8")).split())
    assert len(sentence) > 20 and sentence in glossary
    tip = page.locator("#tip")
    for show, hide in ((term.hover, lambda: page.mouse.move(5, 5)), (term.focus, None)):
        show()
        assert tip.is_visible() and tip.inner_text() == sentence
        if hide:
            hide()
            assert not tip.is_visible()
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    page.click("text=Search")
    page.wait_for_function("window.course_index")
    page.keyboard.type("softmax")
    first = page.locator("#results a").first
    assert first.get_attribute("href") == "glossary.html#softmax"
    page.fill("#search input", "square root entropy")
    hrefs = page.locator("#results a").evaluate_all("all => all.map(a => a.href)")
    assert any("v2_attention_6.html#6-the-square-root" in href for href in hrefs)
    page.fill("#search input", "xyzzy")
    assert page.locator("#results").inner_text() == "Nothing found."
    page.fill("#search input", "softmax")
    page.keyboard.press("Enter")  # leads to the first
    page.wait_for_url("**/glossary.html#softmax")


@in_chromium
def test_an_excerpt_marks_the_word_or_nothing(visit):
    page = visit("index.html")
    excerpt = "args => excerpt(...args).map(part => part.outerHTML ?? part).join('')"
    assert page.evaluate(excerpt, ["one word", "word"]) == "one <mark>word</mark>"
    assert page.evaluate(excerpt, ["one word", "title"]) == "one word"
    long = page.evaluate(
        excerpt, ["alpha beta " * 40 + "word " + "gamma " * 40, "word"]
    )
    assert re.fullmatch("… (alpha |beta )+<mark>word</mark>( gamma)+ …", long)


@in_chromium
def test_a_finger_reads_the_sentence_first(visit):
    page = visit("v2_attention.html", 390, has_touch=True)
    term = page.locator("a.term").first
    term.tap()
    assert page.locator("#tip").is_visible() and page.url.endswith("v2_attention.html")
    page.locator("h1").tap()
    assert not page.locator("#tip").is_visible()
    term.tap()
    term.tap()
    page.wait_for_url("**/glossary.html#*")


@in_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_code_has_a_background_in_every_box(visit, scheme):
    colors = """all => all.map(code => [code.textContent,
        getComputedStyle(code).backgroundColor,
        getComputedStyle(code.closest(".measured, .predict, details")).backgroundColor
    ])"""
    boxes = "p:is(.measured, .predict) > code, details :is(p, summary) > code"
    page = visit("v2_attention_9.html", 390, scheme)
    found = page.locator(boxes).evaluate_all(colors)
    page = visit("v2_attention_5.html", 390, scheme)
    found += page.locator(boxes).evaluate_all(colors)
    assert len(found) > 2
    for code, above, below in found:
        assert above != below, code


@in_chromium
@pytest.mark.parametrize("width", WIDTHS)
def test_the_buttons_of_a_diff_stay_together(visit, width):
    page = visit("gpt2_train_12.html", width)
    tops = "all => all.filter(b => b.offsetParent).map(b => b.offsetTop)"
    assert len(set(page.locator(".tools button").evaluate_all(tops))) == 1


@in_chromium
@pytest.mark.parametrize("width", WIDTHS)
def test_no_button_covers_a_command(visit, width):
    """Nor does a command wrap within the name of a file, where there is room for it."""
    page = visit("gpt2_train_12.html", width)
    overlaps = """code => {
        const button = code.querySelector(".copy").getBoundingClientRect();
        const range = document.createRange();
        let count = 0;
        for (const line of code.querySelectorAll(":scope > span")) {
            range.selectNodeContents(line);
            for (const box of range.getClientRects()) {
                if (box.right > button.left && box.top < button.bottom) count += 1;
            }
        }
        return count;
    }"""
    assert page.locator("pre > .language-sh").first.evaluate(overlaps) == 0
    names = "all => all.map(name => name.getClientRects()[0].height)"
    heights = page.locator(".language-sh .file").evaluate_all(names)
    assert len(heights) == 2 and max(heights) < 24


@in_chromium
def test_telephones_halve_the_indentation_of_a_diff(visit):
    """Of the first line and of those that it wraps into; numbers stay in place."""
    found = {}
    for width in (390, 1280):
        page = visit("gpt_char_15.html", width)
        found[width] = page.locator(".lines .b").evaluate_all(
            """all => all.filter(line => line.offsetHeight).map(line => {
                const range = document.createRange(), words = [];
                const walk = document.createTreeWalker(line, NodeFilter.SHOW_TEXT);
                while (walk.nextNode()) words.push(walk.currentNode);
                const node = words.find(node => node.data.trim());
                if (!node) return null;
                const at = node.data.search(/\\S/);
                range.setStart(node, at);
                range.setEnd(node, at + 1);
                const one = parseFloat(getComputedStyle(line).fontSize) * 0.602;
                const left = range.getBoundingClientRect().left;
                const start = left - line.getBoundingClientRect().left;
                const indent = Number(line.style.getPropertyValue("--i") || 0);
                return [indent, start / one];
            }).filter(Boolean)"""
        )
    for width, share in ((390, 0.5), (1280, 1)):
        assert max(indent for indent, _ in found[width]) >= 12
        starts = [start - share * indent for indent, start in found[width]]
        assert max(starts) - min(starts) < 0.3, width


@in_chromium
def test_how_far_you_have_come(visit):
    page = visit("index.html")
    assert not page.locator("#progress").is_visible()
    page.goto(page.url.replace("index", "v2_attention_1"))
    page.locator("footer").scroll_into_view_if_needed()
    page.wait_for_function("localStorage.getItem('course.seen')")
    page.keyboard.press("c")
    page.wait_for_url("**/index.html")
    words = page.locator("#progress").inner_text()
    assert words.startswith("You have read 1 of ") and "2. An average" in words
    # Where nothing may be kept, nothing fails
    page = visit("index.html")
    page.add_init_script(
        "Object.defineProperty(window, 'localStorage', { get() { throw Error('no') } })"
    )
    page.reload()
    assert not page.locator("#progress").is_visible()
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**/bigram.html")


@in_chromium
def test_without_javascript(visit):
    page = visit("v2_attention_9.html", java_script_enabled=False)
    assert page.locator("img[src='pictures/heads.svg']").is_visible()
    assert not page.locator(".live").is_visible()
    assert page.locator(".lines > .hunk p.b").first.is_visible()
    assert not page.locator("text=Unfold all").is_visible()


@in_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible(visit, scheme):
    """axe-core finds no violation of WCAG 2 A and AA, contrast included."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright",
        reason="pip install axe-playwright-python",
    )
    options = {"runOnly": ["wcag2a", "wcag2aa", "wcag21aa"], "preload": False}
    problems = []
    for name in ("index", "bigram", "v2_attention_5", "v2_attention_9", "glossary"):
        for width in (390, 1440):
            page = visit(f"{name}.html", width, scheme)
            if page.locator("text=Unfold all").count():
                page.click("text=Unfold all")
            found = axe.Axe().run(page, options=options).response["violations"]
            for violation in found:
                nodes = [node["html"][:150] for node in violation["nodes"][:3]]
                problems.append((name, width, violation["id"], nodes))
    assert problems == []


# -------------------------------------------------------------------------- Live models
def weights(name):
    script = (ROOT / f"docs/tools/weights_{name}.js").read_text(encoding="utf-8")
    return json.loads(script.split(" = ", 1)[1].rstrip(";\n"))


def numbers(packed, kind):
    return np.frombuffer(base64.b64decode(packed), kind)


def test_eight_bits_are_at_most_half_a_step_away():
    names = runpy.run_path(str(ROOT / "docs/tools/weights.py"), run_name="weights")
    matrix = np.random.default_rng(1).normal(size=(5, 40)).astype("float32")
    integers, scales = names["rounded"](matrix)
    assert integers.dtype == "int8" and abs(integers).max() == 127
    assert (abs(integers * scales - matrix) <= 0.5001 * scales).all()


def test_what_the_eight_bits_cost_is_written_down():
    facts = weights("attention")
    count = sum(np.prod(tensor["shape"]) for tensor in facts["tensors"].values())
    assert count == 90_880
    assert abs(facts["loss in 8 bits"] - facts["loss"]) < 0.01
    assert 0 < facts["mean error of a logit"] < facts["largest error of a logit"] < 0.5


@in_chromium
def test_the_live_bigram_has_pytorchs_probabilities(visit):
    facts = weights("bigram")
    table = torch.from_numpy(numbers(facts["table"], "<f4").copy()).view(65, 65)
    page = visit("index.html")
    page.fill(".live input[type=text]", "What")
    for temperature in (0.5, 1):
        page.locator(".live input[type=range]").fill(str(temperature))
        row = table[facts["chars"].index("t")]
        expected = (row / temperature).softmax(0).sort(descending=True)
        shown = page.locator(".bars").first.inner_text().split("\n")
        percents = [float(word[:-1]) for word in shown if word.endswith("%")]
        wanted = (100 * expected.values[: len(percents)]).tolist()
        assert len(percents) >= 5
        assert percents == pytest.approx(wanted, abs=0.051)
        best = facts["chars"][expected.indices[0]]
        assert shown[0] == {" ": "␣", "\n": "↵"}.get(best, best)
    page.locator(".live input[type=range]").fill("0")
    page.click("text=Write 100")
    written = page.locator(".live .written").inner_text()
    best = {i: int(table[i].argmax()) for i in range(65)}
    at = facts["chars"].index("t")
    wanted = "What"
    for _ in range(20):
        at = best[at]
        wanted += facts["chars"][at]
    assert written.startswith(wanted)


@in_chromium
def test_the_live_attention_has_pytorchs_logits(visit, load):
    facts = weights("attention")
    script = load("v2_attention.py")["get_batch"].__globals__
    script["vocab_size"] = 65
    model = script["AttentionLanguageModel"]()
    state = model.state_dict()
    for name, tensor in facts["tensors"].items():
        scales = numbers(tensor["scales"], "<f4")[:, None]
        integers = numbers(tensor["integers"], "int8").reshape(len(scales), -1)
        rows = torch.from_numpy(integers * scales)
        state[name] = rows.view(tensor["shape"]).float()
    model.load_state_dict(state)
    page = visit("v2_attention_9.html")
    sentence = "First Citizen: before we proceed any further, hear me speak.\nAll"
    ids = [facts["chars"].index(c) for c in sentence]
    found = page.evaluate(
        """ids => {
            const { logits, weights } = new Attention(attention_weights).run(ids);
            return { logits: logits.map(row => [...row]), weights };
        }""",
        ids,
    )
    with torch.no_grad():
        x = torch.tensor(ids)[None]
        expected = model.logits(x)[0]
        assert (torch.tensor(found["logits"]) - expected).abs().max() < 1e-3
        embedded = model.wte(x) + model.wpe(torch.arange(len(ids)))
        for head, table in zip(model.attn.heads, found["weights"]):
            scores = head.query(embedded) @ head.key(embedded).mT / 32**0.5
            for t, row in enumerate(table):
                wanted = scores[0, t, : t + 1].softmax(0)
                assert torch.tensor(row).tolist() == pytest.approx(
                    wanted.tolist(), abs=1e-5
                )
    # And the page shows them
    page.fill(".live input[type=text]", sentence[:20])
    assert page.locator(".head").count() == 4
    page.locator(".head span").nth(3).hover()
    assert "at place 3" in page.locator(".live").inner_text()
