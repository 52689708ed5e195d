"""What happens in the process that is measured: run a script, then look at it.

lab.py starts it: python docs/bench/inside.py JOB RESULT, where JOB is JSON as lab.job
makes it, and RESULT the file that the measured values are written to.

The script runs as it is. The end of every optimizer step is noted by a hook of PyTorch,
so no line has to be added to a script. Memory is the most that was allocated on a GPU;
without one, the largest resident set.
"""

import ast
import json
import math
import runpy
import statistics
import sys
import time
import types
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

ROOT = Path(__file__).resolve().parents[2]


# -------------------------------------------------------------------- Running a script
def run_with_settings(path, settings):
    """Run a script that takes no flags: constants assigned to these names are replaced.

    A name of a class, such as GPTConfig.n_layer, is that of a default in the class.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    missing = set(settings)
    places = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            places.append((node.targets[0].id, node))
        if isinstance(node, ast.ClassDef):
            for line in node.body:
                if isinstance(line, ast.AnnAssign):
                    places.append((f"{node.name}.{line.target.id}", line))
    for name, node in places:
        if name in settings:
            node.value = ast.copy_location(ast.Constant(settings[name]), node.value)
            missing.discard(name)
    if missing:
        sys.exit(f"{path} is not the version known here: no {', '.join(missing)}")
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    module.__dict__["__file__"] = str(path)
    sys.argv = [str(path)]
    exec(compile(tree, str(path), "exec"), module.__dict__)
    return module.__dict__


class Watch:
    """Notes when each optimizer step ends; takes losses and samples in between."""

    def __init__(self, losses_at=(), samples_at=()):
        self.losses_at = set(losses_at)
        self.samples_at = set(samples_at)
        self.first = None  # the optimizer that counts
        self.ends = []
        self.backwards = []  # where there is no optimizer of PyTorch
        self.begin = None
        self.paused = 0.0
        self.points = []
        self.samples = {}
        register_optimizer_step_pre_hook(self.before)
        register_optimizer_step_post_hook(self.after)
        backward = torch.Tensor.backward

        def noted(loss, *args, **more):
            backward(loss, *args, **more)
            self.backwards.append(now())

        torch.Tensor.backward = noted

    def before(self, optimizer, *_):
        if self.first is None:
            self.first = optimizer
            self.begin = now()
            self.look(0)

    def after(self, optimizer, *_):
        if optimizer is not self.first:
            return
        self.ends.append(now())
        self.look(len(self.ends))

    def look(self, step):
        """The loss, and a sample, outside of the time and of the random numbers."""
        start = now()
        names = sys.modules["__main__"].__dict__
        with torch.random.fork_rng():
            if step in self.losses_at:
                seconds = start - self.begin - self.paused
                self.points.append([seconds, float(names["estimate_loss"]())])
            if step in self.samples_at:
                self.samples[step] = sample(names, 400)
        self.paused += now() - start

    def results(self):
        """The time of a step, and that of training without imports and evaluations."""
        ends = self.ends or self.backwards
        if len(ends) < 3:
            return {}
        between = [b - a for a, b in zip(ends, ends[1:])]
        # Without what stands between the first two steps, such as compilation
        share = len(ends) / (len(ends) - 2)
        return {
            "ms per step": 1000 * statistics.median(between),
            "train s": (ends[-1] - ends[1]) * share,
            "steps": len(ends),
        }


def now():
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def sample(names, length):
    """A text from a model of characters, at temperature 0.8."""
    start = torch.tensor([names["encode"](names["text"][0])], device=names["device"])
    ids = names["generate"](start, length, 0.8)[0].tolist()
    return names["decode"](ids)


def peak_memory():
    """The most MiB that were used so far, or None where it is not known."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


# --------------------------------------------------------- What is measured afterwards
def loss_of(model, x, y):
    """The loss of a model that returns it, as ours do, or (logits, loss)."""
    found = model(x, y)
    if torch.is_tensor(found):
        return found
    return found[1]


def whole_loss(names, path):
    """The loss over a file of uint16 tokens, by the same code for every model.

    path: below the root of the repository.
    """
    import numpy as np

    T = names["block_size"]
    tokens = np.fromfile(ROOT / path, "<u2").astype(int)
    tokens = torch.from_numpy(tokens).to(names["device"])
    end = (len(tokens) - 1) // T * T
    x = tokens[:end].view(-1, T).split(32)
    y = tokens[1 : end + 1].view(-1, T).split(32)
    model = names["model"].eval()
    total = 0.0
    with torch.no_grad(), names.get("ctx", nullcontext()):
        for xb, yb in zip(x, y):
            total += loss_of(model, xb, yb).item() * xb.numel()
    return {"val loss": total / end}


def parts_of_a_step(names, steps, *batch):
    """The parts of a training step in milliseconds, medians over some steps."""
    model = names["model"].train()
    optimizers = names.get("optimizers") or [names["optimizer"]]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("lr", 1e-3)  # where the training loop sets it
    parts = {"data ms": [], "forward ms": [], "backward ms": [], "optimizer ms": []}
    for _ in range(steps):
        times = [now()]
        x, y = names["get_batch"](*batch)
        times.append(now())
        with names.get("ctx", nullcontext()):
            loss = loss_of(model, x, y)
        times.append(now())
        model.zero_grad()
        loss.backward()
        times.append(now())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        times.append(now())
        for name, start, end in zip(parts, times, times[1:]):
            parts[name].append(1000 * (end - start))
    medians = {name: statistics.median(values) for name, values in parts.items()}
    return medians | {"step ms": sum(medians.values())}


def tokens_per_second(names, tokens, use_cache):
    """How fast one of our scripts samples."""
    first = torch.tensor([[min(50256, names["vocab_size"] - 1)]])
    first = first.to(names["device"])
    for n in (min(tokens, 4), tokens):  # the first warms up
        start = now()
        names["generate"](first, n, 0.8, 200, use_cache)
    return {"tokens/s": tokens / (now() - start)}


def nanogpt_samples(names, folder, tokens):
    """How fast nanoGPT's model samples, with random weights."""
    sys.path.insert(0, str(ROOT / folder))
    from model import GPT, GPTConfig

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = GPT(GPTConfig()).to(device).eval()
    first = torch.tensor([[50256]], device=device)
    for n in (min(tokens, 4), tokens):  # the first warms up
        start = now()
        with torch.no_grad():
            model.generate(first, n, temperature=0.8, top_k=200)
    return {"tokens/s": tokens / (now() - start)}


def attention_times(names, pattern, hop, lengths, repeats):
    """Forward and backward of attention in milliseconds: 6 heads of 64.

    hop: all of a pattern's hops if 0, each for its share of the heads; or the number
    of a hop, for 3 heads.
    """
    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    torch.set_num_threads(1)
    settings = names["attend"].__globals__
    hops = names["patterns"][pattern]
    if hop > 0:
        hops = [hops[hop - 1]]
    result = {}
    for T in lengths:
        names["layouts"].clear()
        names["lay_out"].cache_clear()
        settings["stride"] = 2 ** int(math.log2(T) / 2)
        settings["window"] = 2 * settings["stride"]
        settings["summary"] = 4 if T <= 1024 else 8
        heads = 3 if hop > 0 else 6
        shape = (1, heads, T, 64)
        kind = dict(device=names["device"], dtype=dtype)
        q, k, v = (torch.randn(shape, requires_grad=True, **kind) for _ in range(3))
        dy = torch.randn(shape, **kind)
        share = heads // len(hops)
        times = []
        for _ in range(repeats + 1):
            start = now()
            parts = []
            for number, one in enumerate(hops):
                of = slice(number * share, (number + 1) * share)
                y = names["attend"](q[:, of], k[:, of], v[:, of], one, 0.0)
                parts.append(y)
            torch.cat(parts, dim=1).backward(dy)
            times.append(1000 * (now() - start))
        result[f"T = {T}: ms"] = statistics.median(times[1:])  # the first warms up
    return result


def loss_of_counts(names, extra):
    """The val loss of the table that counting pairs of characters gives."""
    data, V = names["train_data"], names["vocab_size"]
    pairs = (data[:-1] * V + data[1:]).bincount(minlength=V * V).view(V, V)
    counts = pairs.double() + extra
    log_p = (counts / counts.sum(dim=1, keepdim=True)).log()
    val = names["val_data"]
    return {"final val loss": -log_p[val[:-1], val[1:]].mean().item()}


def windows_per_second(names, seconds):
    """How many tokens get_batch of rungs 4 and 5 reads in a second."""
    start = time.perf_counter()
    step = 0
    while time.perf_counter() < start + seconds:
        names["get_batch"](step, 0)
        step += 1
    read = step * names["total_batch_size"]
    return {"tokens/s": read / (time.perf_counter() - start)}


# -------------------------------------------------------------------------------- Main
MEASURES = [whole_loss, parts_of_a_step, tokens_per_second, nanogpt_samples]
MEASURES += [attention_times, loss_of_counts, windows_per_second]


def main():
    job = json.loads(sys.argv[1])
    result_file = Path(sys.argv[2])
    watch = Watch(*job.get("trace", []))
    names = {}
    if job["script"]:
        path = ROOT / job["script"]
        if not path.exists():
            sys.exit(f"{path} is not there")
        sys.path[0] = str(path.parent)
        if "settings" in job:
            names = run_with_settings(path, job["settings"])
        else:
            sys.argv = [str(path), *job["flags"]]
            names = runpy.run_path(str(path), run_name="__main__")
    result = watch.results()
    memory = peak_memory()
    if memory is not None:
        result["peak MiB"] = round(memory, 1)
    if "trace" in job:
        result["points"] = watch.points
        result["seconds"] = watch.ends[-1] - watch.begin - watch.paused
        result["samples"] = watch.samples
    if "after" in job:
        name, *args = job["after"]
        (measure,) = [f for f in MEASURES if f.__name__ == name]
        result |= measure(names, *args)
    result_file.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
