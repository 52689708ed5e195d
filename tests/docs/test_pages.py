"""The web pages of docs/tools/pages.py: complete, linked, sound in a browser."""

import html
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert done.stdout == f"{count} pages; the first is s?te/index.html\n"
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
            assert (pages / file).is_file(), f"{path.name}: {target}"
            assert not place or f'id="{place}"' in (pages / file).read_text("utf-8"), (
                target
            )
    assert (
        "http"
        not in (pages / "course.css").read_text() + (pages / "course.js").read_text()
    )


def test_every_step_is_shown_in_full(pages, pairs):
    """Both columns, with the lines that are folded, are the two files to the letter."""
    shown = []
    for name in in_order(pages):
        if '<div class="diff">' in (pages / name).read_text("utf-8"):
            shown.append(name)
    assert len(shown) == len(pairs)
    for name, (old, new) in zip(shown, pairs):
        diff = (
            (pages / name)
            .read_text("utf-8")
            .split('<div class="diff">')[1]
            .split("<main>")[0]
        )
        left, right = {}, {}
        for row in diff.split('<div class="row">')[1:]:
            sides = re.findall(r'<div class="(\w+)">(.*?)</div>', row, re.S)
            columns = (
                (left, right) if len(sides) == 2 else (right,)
            )  # what is folded is there once
            found = []
            for column, (_, lines) in zip(columns, sides):
                lines = re.findall(r'<p data-n="(\d+)">(.*?)</p>', lines, re.S)
                found.append({int(number): text(line) for number, line in lines})
                assert not column.keys() & found[-1].keys(), "a line is there twice"
                column |= found[-1]
            if sides[0][0] == "same":
                assert [*found[0].values()] == [*found[-1].values()]
        assert "\n".join(right[n] for n in sorted(right)) + "\n" == new, name
        lines = old.splitlines()
        assert all(lines[number - 1] == line for number, line in left.items()), name
        gone = sum(
            len(re.findall("<p data", d))
            for d in re.findall('"old">.*?</div>', diff, re.S)
        )
        come = sum(
            len(re.findall("<p data", d))
            for d in re.findall('"new">.*?</div>', diff, re.S)
        )
        assert len(lines) - gone == len(new.splitlines()) - come, name


def test_prose_measure_and_changed_words(pages):
    page = (pages / "v2_attention_5.html").read_text(encoding="utf-8")
    assert "each position gets three vectors instead of one" in text(page)
    assert re.search('<p class="measured"><em>Measured:</em> .*[0-9]', page)
    marked = [html.unescape(word) for word in re.findall("<mark>(.*?)</mark>", page)]
    assert {"q", "k"} <= set(marked), "x @ x.transpose becomes q @ k.transpose"
    assert "class" not in marked, "a word that did not change"


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


@pytest.mark.long
@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: apt-get install chromium")
def test_in_a_browser(pages):
    """Every page at two widths: no error, no scrolling sideways; keys; pictures."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="pip install playwright"
    )
    pictures = ROOT / "out/screenshots"
    pictures.mkdir(parents=True, exist_ok=True)
    names, problems = in_order(pages), []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        for width, scheme in ((1400, "light"), (390, "dark")):
            page = browser.new_page(
                viewport={"width": width, "height": 900}, color_scheme=scheme
            )
            page.on("console", lambda message: problems.append(message.text))
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("requestfailed", lambda request: problems.append(request.url))
            page.goto((pages / "index.html").as_uri())
            for key, order in (("ArrowRight", names), ("p", names[::-1])):
                for name, after in zip(order, [*order[1:], order[-1]]):
                    assert page.url.endswith(f"/{name}")
                    if key == "ArrowRight":
                        inside = "document.documentElement.scrollWidth <= innerWidth"
                        assert page.evaluate(inside), f"{name} is wider than {width}"
                        seen = page.evaluate(
                            "getComputedStyle(document.body).backgroundColor"
                        )
                        assert (
                            seen
                            == {
                                "light": "rgb(255, 255, 255)",
                                "dark": "rgb(20, 24, 29)",
                            }[scheme]
                        )
                        page.screenshot(
                            path=pictures / f"{name}.{width}.png", full_page=True
                        )
                    page.keyboard.press(key)
                    page.wait_for_url(f"**/{after}")
            page.goto((pages / names[5]).as_uri())
            page.keyboard.press("c")
            page.wait_for_url("**/index.html")
        browser.close()
    assert problems == []
