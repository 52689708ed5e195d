"""gpt_char.py beside nanoGPT and ng-video-lecture: loss against time, time per step.

python docs/bench/char.py --peers=DIR        about half an hour on two cores

A schedule belongs to its length, so every budget of time is a run of its own.
"""

import lab
import peers


def measure(bench):
    peers.copy(bench)
    recipes = peers.models_of_characters(bench)
    steps = 2 if bench.quick else 40
    jobs = {}
    for name, recipe in recipes.items():
        batch = 0 if name == "gpt_char" else "train"
        jobs[name] = recipe(0, after=["parts_of_a_step", steps, batch])
    measures = ("data ms", "forward ms", "backward ms", "optimizer ms", "step ms")
    rows = bench.in_turn(jobs, measures)
    bench.table("The parts of a training step", rows, ["step ms"])

    jobs = {name: recipe(20) for name, recipe in recipes.items()}
    first = bench.in_turn(jobs, ["ms per step"], rounds=1)
    pace = {name: row["ms per step"][0] / 1000 for name, row in first.items()}
    measures = ("val loss", "train s", "steps", "peak MiB")
    rows = {}
    for budget in (0.3, 1) if bench.quick else (7.5, 15, 30, 60, 120, 240):
        jobs = {}
        for name, seconds in pace.items():
            n = max(4, round(budget / seconds))
            jobs[name] = recipes[name](n, after=["whole_loss", peers.VAL])
        for name, row in bench.in_turn(jobs, measures, rounds=1).items():
            rows[f"{budget:g} s, {name}"] = row
            pace[name] = row["train s"][0] / row["steps"][0]
    bench.table("Validation loss after a run of so many seconds of training", rows)


if __name__ == "__main__":
    lab.main(measure, "char", "Models of characters: loss against time")
