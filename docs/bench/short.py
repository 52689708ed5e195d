"""How soon do gpt_char.py and its peers reach the loss of nanoGPT's recipe?

python docs/bench/short.py --peers=DIR       about half an hour on two cores

For each, the shortest run that ends there: its number of steps is searched first.
"""

import math

import lab
import peers


def fewest_steps(bench, name, recipe, tried, target):
    """About the fewest steps of a run that ends at the target, or None.

    tried: (steps, loss) of some runs, the shortest first.
    """
    below = [number for number, (_, loss) in enumerate(tried) if loss <= target]
    if not below:
        return None
    first = below[0]
    if first == 0:
        return tried[0][0]
    (n0, loss0), (n1, loss1) = tried[first - 1 : first + 1]
    share = (loss0 - target) / (loss0 - loss1)
    n = round(n0 * (n1 / n0) ** share)  # the loss falls with log(steps)
    while n < n1:
        job = recipe(n, after=["whole_loss", peers.VAL])
        if bench.result(f"{name}, {n} steps", job)["val loss"] <= target:
            return n
        n = math.ceil(1.03 * n)
    return n1


def shortest_runs(bench, recipes, lengths, target):
    """A table of the shortest run of each recipe that ends at the target.

    recipes: {name: function from a number of steps to a job}; lengths: {name: numbers
    of steps to begin the search with}.
    """
    jobs = {}
    for name, recipe in recipes.items():
        runs = {}
        for n in lengths[name]:
            runs[f"{name}, {n} steps"] = recipe(n, after=["whole_loss", peers.VAL])
        found = bench.in_turn(runs, ["val loss"], rounds=1)
        losses = [row["val loss"][0] for row in found.values()]
        tried = list(zip(lengths[name], losses))
        n = fewest_steps(bench, name, recipe, tried, target)
        if n is None:
            bench.say(f"{name} did not reach {target} in {lengths[name][-1]} steps")
        else:
            jobs[name] = recipe(n, after=["whole_loss", peers.VAL])
    measures = ("val loss", "train s", "wall s", "steps", "peak MiB")
    title = f"Time to a validation loss of {target}: the shortest run that ends there"
    bench.table(title, bench.in_turn(jobs, measures), ["train s"])


def with_flags(recipes, flags):
    """gpt_char.py with some flags, as a recipe by its name."""

    def gpt_char(n, **more):
        return recipes["gpt_char"](n, flags, **more)

    return {f"gpt_char {flags}": gpt_char}


def measure(bench):
    peers.copy(bench)
    recipes = peers.models_of_characters(bench)
    ours = {"gpt_char": recipes["gpt_char"]}
    theirs = {name: recipes[name] for name in recipes if name != "gpt_char"}
    if bench.quick:
        lengths = dict.fromkeys(recipes, (20, 40))
        shortest_runs(bench, recipes, lengths, target=3.3)
    elif "gpu" in bench.facts():
        lengths = dict.fromkeys(recipes, (1000, 5000))
        shortest_runs(bench, recipes, lengths, target=1.4697)
    else:
        # nanoGPT's recipe for a CPU ends at 1.88; a smaller model is there sooner
        small = with_flags(recipes, "--n_layer=2 --adamw_share=0.5")
        lengths = dict.fromkeys(small, (300, 600)) | dict.fromkeys(theirs, (1500, 3000))
        shortest_runs(bench, small | theirs, lengths, target=1.88)
        # Its recipe for an A100 ends at 1.4697
        shortest_runs(bench, ours, {"gpt_char": (2700, 3000)}, target=1.4697)


if __name__ == "__main__":
    lab.main(measure, "short", "Models of characters: the time to a loss")
