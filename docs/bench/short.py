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


def measure(bench):
    peers.copy(bench)
    on_gpu = "gpu" in bench.facts()
    recipes = peers.models_of_characters(bench)
    target = 1.4697 if on_gpu else 1.88  # nanoGPT's
    some = (1000, 5000) if on_gpu else (1500, 3000)
    ours = (200, 1000) if on_gpu else (300, 600)
    if not on_gpu:  # a smaller model is there sooner
        small = "--n_layer=2 --adamw_share=0.5"
        gpt_char = recipes.pop("gpt_char")

        def smaller(n, **more):
            return gpt_char(n, small, **more)

        recipes = {f"gpt_char {small}": smaller} | recipes
    if bench.quick:
        target, some, ours = 3.3, (20, 40), (20, 40)
    jobs = {}
    for name, recipe in recipes.items():
        lengths = ours if name.startswith("gpt_char") else some
        runs = {}
        for n in lengths:
            runs[f"{name}, {n} steps"] = recipe(n, after=["whole_loss", peers.VAL])
        found = bench.in_turn(runs, ["val loss"], rounds=1)
        losses = [row["val loss"][0] for row in found.values()]
        n = fewest_steps(bench, name, recipe, list(zip(lengths, losses)), target)
        if n is None:
            bench.say(f"{name} did not reach {target} in {lengths[-1]} steps")
        else:
            jobs[name] = recipe(n, after=["whole_loss", peers.VAL])
    measures = ("val loss", "train s", "wall s", "steps", "peak MiB")
    title = f"Time to a validation loss of {target}: the shortest run that ends there"
    bench.table(title, bench.in_turn(jobs, measures), ["train s"])


if __name__ == "__main__":
    lab.main(measure, "short", "Models of characters: the time to a loss")
