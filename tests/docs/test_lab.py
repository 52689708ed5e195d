"""The laboratory in docs/bench: medians, ratios, turns, and going on where it was.

What is measured is made up here: no test waits for a measurement.
"""

import json
import random
import runpy
import statistics
import subprocess
import sys

import pytest
from makers import ROOT

BENCH = ROOT / "docs/bench"
sys.path.insert(0, str(BENCH))
import lab  # noqa: E402

ALL = runpy.run_path(str(BENCH / "all.py"), run_name="all")
PARTS = ALL["find_parts"]()


class Interrupted(Exception):
    """Stands for Ctrl-C, a time limit, or a machine that is switched off."""


class Fake:
    """Performs jobs: a value by the script's name; may stop after some of them."""

    def __init__(self, speeds, stop_after=None):
        self.speeds = speeds
        self.stop_after = stop_after
        self.order = []

    def __call__(self, job):
        if self.stop_after == len(self.order):
            raise Interrupted
        name = job["script"]
        self.order.append(name)
        if name == "broken.py":
            raise RuntimeError("broken.py is not there")
        count = self.order.count(name)
        return {"ms": self.speeds[name][count - 1], "wall s": 1.0}


SPEEDS = {"a.py": [10.0, 20.0, 90.0], "b.py": [30.0, 40.0, 90.0]}
JOBS = {"one": lab.job("a.py", "--x=1"), "two": lab.job("b.py")}


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """begin(perform, flags ...): a measurement whose files are in tmp_path."""
    monkeypatch.setattr(lab, "describe_machine", lambda: {"cpu": "made up"})

    def begin(perform, *flags):
        folders = dict(bench=tmp_path / "bench", out=tmp_path / "out")
        return lab.Lab("fake", "A title", perform=perform, args=list(flags), **folders)

    begin.report = tmp_path / "bench/fake.md"
    begin.values = tmp_path / "bench/fake.json"
    return begin


def measure(bench):
    rows = bench.in_turn(JOBS, ["ms"])
    bench.table("Speed", rows, ["ms"])
    bench.finish()


@pytest.mark.parametrize("seed", range(5))
def test_a_cell_is_the_median_with_its_range(seed):
    rng = random.Random(seed)
    values = [rng.uniform(1, 900) for _ in range(rng.randrange(2, 9))]
    median, low, high = statistics.median(values), min(values), max(values)
    assert lab.cell(values) == f"{median:.4g} ({low:.4g} - {high:.4g})"
    assert lab.cell(values[:1]) == f"{values[0]:.4g}"


def test_large_numbers_are_whole_and_have_commas():
    assert lab.cell([1234567.8]) == "1,234,568"


def test_jobs_run_in_turn(begin):
    fake = Fake(SPEEDS)
    measure(begin(fake))
    assert fake.order == ["a.py", "b.py"] * 3


def test_the_ratio_is_the_median_of_the_ratios_within_rounds(begin):
    """3, 2 and 1: not the ratio of the medians, which is 40 / 20."""
    bench = begin(Fake(SPEEDS | {"b.py": [30.0, 20.0, 270.0]}))
    measure(bench)
    rows = [line for line in begin.report.read_text().splitlines() if "|" in line]
    assert rows[0] == "|  | ms | ms, ratio |"
    assert rows[2] == "| one | 20 (10 - 90) | 1 (1 - 1) |"
    assert rows[3] == "| two | 30 (20 - 270) | 3 (1 - 3) |"


@pytest.mark.parametrize("after", range(6))
def test_an_interrupted_measurement_goes_on(begin, after):
    """Wherever it stops, nothing is measured twice, and the report is the same."""
    measure(begin(Fake(SPEEDS)))
    unbroken = begin.report.read_text()
    begin.report.unlink()
    begin.values.unlink()
    first = Fake(SPEEDS, stop_after=after)
    with pytest.raises(Interrupted):
        measure(begin(first))
    assert not begin.report.exists()
    rest = {name: SPEEDS[name][first.order.count(name) :] for name in SPEEDS}
    second = Fake(rest)
    measure(begin(second))
    assert first.order + second.order == ["a.py", "b.py"] * 3
    assert begin.report.read_text() == unbroken


def test_an_old_report_stays_until_the_new_one_is_complete(begin):
    begin.report.parent.mkdir()
    begin.report.write_text("old")
    begin.values.write_text('{"tables": {"old": {}}}')
    with pytest.raises(Interrupted):
        measure(begin(Fake(SPEEDS, stop_after=3)))
    assert begin.report.read_text() == "old"
    assert json.loads(begin.values.read_text()) == {"tables": {"old": {}}}


def test_what_is_there_is_not_measured_again_unless_asked(begin):
    measure(begin(Fake(SPEEDS)))
    fake = Fake(SPEEDS)
    measure(begin(fake))
    assert fake.order == []
    fake = Fake(SPEEDS, stop_after=4)
    with pytest.raises(Interrupted):
        measure(begin(fake, "--again"))
    rest = Fake({"a.py": [5.0], "b.py": [6.0]})
    measure(begin(rest, "--again"))  # goes on, too
    assert rest.order == ["a.py", "b.py"]
    values = json.loads(begin.values.read_text())["tables"]["Speed"]
    assert values["one"]["ms"] == [10.0, 20.0, 5.0]


def test_a_changed_script_or_flag_is_measured_again(tmp_path, monkeypatch):
    monkeypatch.setattr(lab, "ROOT", tmp_path)
    script = tmp_path / "a.py"
    script.write_text('"""Doc."""\nx = 1\n')
    first = lab.fingerprint(lab.job("a.py", "--x=1"))
    script.write_text('"""Other words."""\nx = 1  # a comment\n')
    assert lab.fingerprint(lab.job("a.py", "--x=1")) == first
    assert lab.fingerprint(lab.job("a.py", "--x=2")) != first
    script.write_text('"""Doc."""\nx = 2\n')
    assert lab.fingerprint(lab.job("a.py", "--x=1")) != first
    peer = lab.job("", after=["nanogpt_samples"])  # no script of ours
    assert lab.fingerprint(peer) != lab.fingerprint(lab.job("", after=["other"]))


def test_what_fails_is_left_out_and_said(begin):
    bench = begin(Fake(SPEEDS))
    jobs = JOBS | {"gone": lab.job("broken.py")}
    rows = bench.in_turn(jobs, ["ms"])
    bench.table("Speed", rows, ["ms"])
    bench.finish()
    assert list(rows) == ["one", "two"]
    assert "gone is left out: broken.py is not there" in begin.report.read_text()


def test_minutes_end_it_between_two_jobs(begin):
    bench = begin(Fake(SPEEDS), "--minutes=1")
    bench.result("one", JOBS["one"])
    bench.begin -= 61
    with pytest.raises(SystemExit) as error:
        bench.result("two", JOBS["two"])
    assert "the same command continues" in str(error.value)
    assert len(begin(Fake(SPEEDS)).runs) == 1


# ------------------------------------------------------------ In the measured process
SCRIPT = """
import sys
import torch

device, text = "cpu", "ab"
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
inputs = torch.eye(2)
rate = 7

def estimate_loss():
    torch.rand(1)  # must not change what is drawn in training
    with torch.no_grad():
        return model(inputs).square().mean()

def encode(s):
    return [0]

def decode(ids):
    return "sample " + str(len(ids))

def generate(idx, n, temperature):
    return torch.cat((idx, torch.randint(9, (1, n))), dim=1)

for step in range(int(sys.argv[1].partition("=")[2])):
    optimizer.zero_grad()
    (model(inputs) - torch.rand(2, 1)).square().mean().backward()
    optimizer.step()
print(f"final val loss {estimate_loss():.4f}")
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "data").mkdir()
    path = tmp_path / "script.py"
    path.write_text("import torch\n\ntorch.manual_seed(1)\n" + SCRIPT)
    return path


@pytest.mark.long
def test_a_job_measures_a_script_as_it_is(script):
    """Taking losses and samples meanwhile changes nothing of what follows."""
    here = str(script.parent)
    found = lab.perform(lab.job(script, "--n=6", folder=here, trace=[[0, 3], [0, 3]]))
    assert found["steps"] == 6
    assert 0 < found["ms per step"] < 1000 * found["wall s"]
    assert found["peak MiB"] > 10
    assert set(found["samples"]) == {"0", "3"}
    assert found["samples"]["3"] == "sample 401"
    (start, _), (later, loss) = found["points"]
    assert 0 <= start < later
    short = lab.perform(lab.job(script, "--n=3", folder=here))
    assert f"{loss:.4f}" == f"{short['final val loss']:.4f}"


@pytest.mark.long
def test_a_job_that_fails_says_its_last_line(script):
    script.write_text("raise SystemExit('no such pattern')")
    with pytest.raises(RuntimeError, match="no such pattern"):
        lab.perform(lab.job(script, folder=str(script.parent)))
    with pytest.raises(RuntimeError, match="is not there"):
        lab.perform(lab.job(script.with_name("other.py"), folder=str(script.parent)))


@pytest.mark.long
def test_settings_of_a_script_that_takes_no_flags(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "class Config:\n    n_layer: int = 12\n\n\nsteps = 50\nfor i in range(1):\n"
        "    inner = 20\nprint(f'final val loss {Config.n_layer}.{steps}{inner}')\n"
    )
    settings = {"steps": 3, "Config.n_layer": 2, "inner": 4}
    job = lab.job(script, settings=settings, folder=str(tmp_path))
    assert lab.perform(job)["final val loss"] == 2.34
    job = lab.job(script, settings={"stepz": 3}, folder=str(tmp_path))
    with pytest.raises(RuntimeError, match="no stepz"):
        lab.perform(job)


# ---------------------------------------------------------------------- All of them
def test_every_report_has_a_part_or_a_reason():
    known = {part.report for part in PARTS} | set(ALL["HISTORY"])
    reports = {path.stem for path in BENCH.glob("*.md")}
    assert reports <= known, "name its program in docs/bench/all.py"
    assert {"ladder", "char", "by_hand", "steps_gpt_char"} <= known
    with_lab = {part.report for part in PARTS if part.has_lab}
    assert "ladder" in with_lab and "by_hand" not in with_lab


def test_all_lists_its_parts():
    done = subprocess.run(
        [sys.executable, BENCH / "all.py"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [
        part.report for part in PARTS
    ] + list(ALL["HISTORY"])


def test_all_chooses_what_is_missing_or_asked_for(tmp_path):
    Part, choose = ALL["Part"], ALL["choose"]
    parts = [Part(name, "", "") for name in ("a", "b", "c")]
    (tmp_path / "b.md").touch()

    def chosen(names=(), missing=False, everything=False, done=()):
        found = choose(parts, names, missing, everything, done, bench=tmp_path)
        return [part.report for part in found]

    assert chosen(names=["b"]) == ["b"]
    assert chosen(missing=True) == ["a", "c"]
    assert chosen(names=["b"], missing=True) == ["a", "b", "c"]
    assert chosen(everything=True) == ["a", "b", "c"]
    assert chosen(everything=True, done=["a"]) == ["b", "c"]


def test_all_adds_up_the_time_of_an_interrupted_part(tmp_path, monkeypatch):
    names = ALL["run"].__globals__
    monkeypatch.setitem(names, "TIMES", tmp_path / "times.json")
    monkeypatch.setitem(names, "UNFINISHED", tmp_path / "unfinished.json")
    part = ALL["Part"]("x", "", str(tmp_path / "program.py"))
    (tmp_path / "unfinished.json").write_text('{"x": 1000}')
    (tmp_path / "program.py").write_text("raise SystemExit(1)")
    assert not ALL["run"](part, [])
    assert not (tmp_path / "times.json").exists()
    (tmp_path / "program.py").write_text("")
    assert ALL["run"](part, [])
    assert 1000 <= json.loads((tmp_path / "times.json").read_text())["x"] < 1100
    assert json.loads((tmp_path / "unfinished.json").read_text()) == {}
