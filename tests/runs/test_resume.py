"""Killed and resumed equals unbroken: to the bit, wherever a run is interrupted.

One property over the scripts that write checkpoints and lists of interruptions, each a
step and what happens there. Most cases are random ones from a fixed seed.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from makers import (
    ARGS,
    LARGE,
    STOP_SIGNALS,
    TRAINERS,
    Killed,
    advice,
    assert_same_runs,
    command,
    continued,
    final_loss,
    finish,
    popen,
    read,
    read_log,
    run_here,
    samples,
)

STEPS = 12
ARGS_OF_A_RUN = [f"--max_iters={STEPS}", "--eval_interval=4", "--dropout=0.2"]
VARIANTS = {  # name: scripts, flags
    "muon": (TRAINERS, []),
    "adamw": (TRAINERS, ["--optimizer=adamw"]),
    "accumulation": (LARGE, ["--batch_size=2"]),
    "float16": (LARGE, ["--float16"]),
}
SIGNALS = {script: [s.name for s in STOP_SIGNALS] for script in LARGE}
SIGNALS["gpt_char"] = ["SIGINT", "SIGTERM"]  # its runs don't outlive a terminal
KILLS = ["in a step", "while saving", "before it has its name", "after saving"]


class Interruption:
    """Is patched into what a script calls once a step, and once a checkpoint."""

    def __init__(self, monkeypatch):
        self.step = 0  # the one under way, counted from 1
        self.due = None  # (step, how), or (number of a save, how)
        self.saves = 0
        for module, name, patch in (
            (torch.nn.utils, "clip_grad_norm_", self.clip),
            (torch, "save", self.save),
            (os, "replace", self.replace),
        ):
            monkeypatch.setattr(module, name, patch(getattr(module, name)))

    def is_due(self, how):
        return self.due in ((self.step, how), (f"save {self.saves}", how))

    def clip(self, really):
        def clipping(*args):
            self.step += 1
            if self.is_due("in a step"):
                raise Killed
            if self.due and self.due[0] == self.step and self.due[1] not in KILLS:
                signal.raise_signal(getattr(signal, self.due[1]))
            return really(*args)

        return clipping

    def save(self, really):
        def saving(checkpoint, file):
            self.saves += 1
            if self.is_due("while saving"):
                file.write(b"half of a checkpoint")
                raise Killed
            return really(checkpoint, file)

        return saving

    def replace(self, really):
        def replacing(source, target):
            if Path(target).suffix != ".pt":  # log.csv
                return really(source, target)
            if self.is_due("before it has its name"):
                raise Killed
            really(source, target)
            if self.is_due("after saving"):
                raise Killed

        return replacing


def step_of(folder):
    """From which step a run in this folder continues."""
    for name in ("last.pt", "best.pt"):
        if Path(folder, name).exists():
            return read(Path(folder, name))["step"]
    return 0


class Runs:
    """Runs of a script that is interrupted, and one that is not."""

    def __init__(self, script, flags, monkeypatch):
        self.script = script
        self.args = [*ARGS[script], *ARGS_OF_A_RUN, *flags]
        self.interruption = Interruption(monkeypatch)

    def run(self, folder, due=None, more=()):
        """Start it, or let it continue, until it ends or is interrupted."""
        self.interruption.due = due
        self.interruption.step = step_of(folder)
        if list(more) == ["--init_from=scratch"]:
            self.interruption.step = 0
        self.interruption.saves = 0
        args = [*self.args, f"--out_dir={folder}", *more]
        try:
            return run_here(f"{self.script}.py", *args)
        except Killed:
            assert due[1] in KILLS
        for path in Path(folder).glob("*.pt"):
            read(path)  # what has its name is complete

    def interrupt(self, folder, step, how, more=()):
        """A signal: the step is finished and saved, and the run says how to go on.

        Returns what must be added to the command.
        """
        done = self.run(folder, (step, how), more)
        if how in KILLS:
            return []
        assert (done.code, done.err) == (130, ""), how
        assert final_loss(done.out) is None
        assert read(Path(folder, "last.pt"))["step"] == step
        return advice(done.out)

    def equal(self, parts, whole, more=()):
        """Let the first run end. Is it the same as the other one in all it left?"""
        done = self.run(parts, more=more)
        assert (done.code, done.err) == (0, "")
        assert_same_runs(parts, whole.folder)
        assert final_loss(done.out) == final_loss(whole.out) is not None
        assert samples(done.out) == samples(whole.out)
        if self.script in LARGE:
            assert read_log(parts) == read_log(whole.folder)
            assert list(read_log(parts)[0]) == list(range(1, STEPS + 1))

    def unbroken(self, folder="whole"):
        done = self.run(folder)
        assert (done.code, done.err) == (0, "")
        done.folder = folder
        return done


def cases(long=()):
    """Scripts with flags; the scripts and cases in long are for the long tests."""
    found = []
    for name, (scripts, flags) in VARIANTS.items():
        for script in scripts:
            marks = ()
            case = f"{script}-{name}"
            if script in long or case in long:
                marks = pytest.mark.long
            case = pytest.param(script, flags, id=case, marks=marks)
            found.append(case)
    return found


def interrupt_at_random(runs, whole, seed, count):
    """Every list of interruptions ends as the run without any."""
    rng = random.Random(seed)
    folder = f"parts_{seed}"
    said = []
    for _ in range(count):
        first = step_of(folder) + 1
        if first > STEPS:
            break
        step = min(STEPS, rng.choice([first, first + 1, first + 3]))
        how = rng.choice([*SIGNALS[runs.script], *KILLS])
        said.append((step, how))
        print(said)  # shown where the test fails
        runs.interrupt(folder, step, how)
    runs.equal(folder, whole)
    return said


# sparse_gpt.py has this code from gpt2_train.py
LONG = ["sparse_gpt", "gpt2_train-float16", "gpt2_train-adamw", "gpt_char-adamw"]


@pytest.mark.parametrize("script, flags", cases(long=LONG))
def test_interrupted_equals_unbroken(place, monkeypatch, script, flags):
    runs = Runs(script, flags, monkeypatch)
    whole = runs.unbroken()
    # Before the first checkpoint; where the last one is some steps old; at the end
    fixed = [(2, "in a step"), (6, "SIGTERM"), (8, "SIGINT"), (9, "in a step")]
    for step, how in [*fixed, (9, "SIGTERM"), (STEPS, "SIGINT")]:
        runs.interrupt("parts", step, how)
    runs.equal("parts", whole)
    interrupt_at_random(runs, whole, seed=f"{script} {flags}", count=4)


@pytest.mark.long
@pytest.mark.parametrize("script, flags", cases())
def test_many_lists_of_interruptions(place, monkeypatch, script, flags):
    runs = Runs(script, flags, monkeypatch)
    whole = runs.unbroken()
    seen = set()
    for seed in range(12):
        seen |= {how for _, how in interrupt_at_random(runs, whole, seed, count=5)}
    assert seen == {*SIGNALS[script], *KILLS}


@pytest.mark.long
@pytest.mark.parametrize("script", TRAINERS)
def test_killed_at_every_save(place, monkeypatch, script):
    """In, before and after each of them."""
    runs = Runs(script, [], monkeypatch)
    whole = runs.unbroken()
    saves = runs.interruption.saves
    assert saves >= 5
    for number in range(1, saves + 1):
        for how in KILLS[1:]:
            folder = f"{number}_{how.replace(' ', '_')}"
            runs.run(folder, (f"save {number}", how))
            runs.equal(folder, whole)


@pytest.mark.parametrize("script", TRAINERS)
def test_interrupted_after_scratch(place, monkeypatch, script):
    """The same command would begin anew: the message says what continues."""
    runs = Runs(script, [], monkeypatch)
    whole = runs.unbroken()
    runs.run("parts", (5, "SIGINT"), ["--seed=5"])  # what is to be forgotten
    scratch = ["--init_from=scratch"]
    more = runs.interrupt("parts", 3, "SIGINT", scratch)
    assert more
    runs.equal("parts", whole, [*scratch, *more])


# ----------------------------------------------------------------------- Real processes
@pytest.mark.parametrize(
    "script, name", [(script, name) for script in SIGNALS for name in SIGNALS[script]]
)
def test_a_process_told_to_stop(place, start, script, name):
    """As from a terminal or a scheduler, at any moment."""
    args = [*ARGS[script], "--max_iters=1000000", "--eval_interval=1000000"]
    process = start(f"{script}.py", *args, "--log_interval=1", "--out_dir=run")
    for line in process.stdout:
        if "| loss" in line:
            break
    if name == "SIGHUP":  # what is printed reaches nobody any more
        process.stdout.close()
        time.sleep(0.1)
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (130, "")
    step = read("run/last.pt")["step"]
    assert 0 < step < 1_000_000
    if name != "SIGHUP":
        assert advice(out) == [] and final_loss(out) is None
    if script in LARGE:
        assert max(read_log("run")[0]) == step


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("script", TRAINERS)
def test_sigkill_thirty_times(place, script, optimizer):
    """At random moments of a run that saves most of the time; random in every run."""
    seed = time.time_ns()
    print("seed", seed)
    rng = random.Random(seed)
    args = ["--max_iters=300", "--eval_interval=1", f"--optimizer={optimizer}"]
    args = command(script, *args)
    killed = 0
    while killed < 30:
        process = popen([*args, "--out_dir=parts"])
        for line in process.stdout:
            if line.startswith("step "):
                break
        time.sleep(rng.uniform(0, 0.15))
        process.kill()
        process.communicate()
        if process.returncode != -signal.SIGKILL:
            break  # this process was held up, and the run was done first
        killed += 1
        for path in Path("parts").glob("*.pt"):
            read(path)  # what has its name is complete
    assert killed > 15
    out, err = finish([*args, "--out_dir=parts"])
    assert continued(out) and err == ""
    finish([*args, "--out_dir=whole"])
    assert_same_runs("parts", "whole")
