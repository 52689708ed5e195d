"""Puts faults into the scripts, one at a time, and looks whether a test notices.

    python docs/bench/mutants.py            run what has not been run yet, then report
    python docs/bench/mutants.py NAME ...   run these again

Each fault changes a line or two and leaves every shape as it is, so nothing crashes:
the model learns, only not what it should. The tests that are run compare behavior.
Those that compare texts to the letter (scripts with chapters, chapters with reports)
are left out, for they would notice any change, and so is the comparison of
sparse_gpt.py with gpt2_train.py. Results are kept in out/mutants.json after each fault,
so the program can be interrupted; a result counts as long as script and tests stay.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parents[1]
KEPT = ROOT / "out" / "mutants.json"
COPIED = ["*.py", "*.toml", "*.txt", "beyond/*.py", "docs/*.md", "docs/tools/*.py"]
COPIED += ["tests/*.py", "tests/*/*.py"]

# The tests that are run against a fault, by the script that it is in
TRAINERS = "tests/model/test_trainers.py"
MODEL = "tests/model/test_bigram.py tests/model/test_attention.py"
TESTS = {
    "bigram.py": MODEL,
    "v2_attention.py": MODEL,
    "gpt_char.py": f"{TRAINERS} {MODEL} tests/model/test_gpt_char.py",
    "gpt2_train.py": f"{TRAINERS} tests/model/test_gpt2_train.py",
    "sparse_gpt.py": f"{TRAINERS} tests/model/test_sparse_gpt.py",
    "docs/tools/steps.py": "tests/docs/test_steps.py",
}
RESUME = "tests/runs/test_resume.py"
FILES = "tests/runs/test_faults.py"
REFUSALS = "tests/refusals/test_refusals.py"
RUNS = "tests/runs/test_gpt2_runs.py"
PROCESSES = "tests/runs/test_gpt2_distributed.py"


OPTIONS = ["-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider"]
OPTIONS += ["-m", "long or not long"]  # some of sparse_gpt.py are long ones
NAMES = ["gpt_char", "gpt2_train", "sparse_gpt"]  # in the names of their tests


class Fault(NamedTuple):
    """old, which the script has once, becomes new. tests: run besides the others."""

    name: str
    script: str
    old: str
    new: str
    tests: str = ""


STEP = """\
    if grad_clip > 0:
        nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    for opt in optimizers:
        for group in opt.param_groups:
            group["lr"] = get_lr(step) * group["lr_scale"]
        opt.step()
"""
STEP_CLIPPED_LATE = """\
    for opt in optimizers:
        for group in opt.param_groups:
            group["lr"] = get_lr(step) * group["lr_scale"]
        opt.step()
    if grad_clip > 0:
        nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
"""
TARGETS = "torch.stack([train_data[i + 1 : i + 1 + block_size] for i in starts])"
TARGETS_LATE = "torch.stack([train_data[i + 2 : i + 2 + block_size] for i in starts])"
UNSCALED = """\
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    overflow"""
UNCLIPPED = """\
    norm = nn.utils.clip_grad_norm_(model.parameters(), math.inf)
    overflow"""
REST = """\
    rest = {"params": others, "lr_scale": 1.0, "weight_decay": 0.0}
"""
BEST = """\
        best_val_loss = val_loss
        save_checkpoint("best.pt", step)
    save_checkpoint("last.pt", step)
"""
BEST_OF_TWO = """\
        save_checkpoint("best.pt", step)
    best_val_loss = val_loss
    save_checkpoint("last.pt", step)
"""

FAULTS = [
    # bigram.py and v2_attention.py
    Fault(
        "no zero_grad",
        "bigram.py",
        "    model.zero_grad()  # otherwise new gradients are added to the old ones\n",
        "",
    ),
    Fault(
        "targets two tokens later",
        "bigram.py",
        "len(train_data) - block_size, (batch_size,))\n"
        "    x = torch.stack([train_data[i : i + block_size] for i in starts])\n"
        f"    y = {TARGETS}",
        "len(train_data) - block_size - 1, (batch_size,))\n"
        "    x = torch.stack([train_data[i : i + block_size] for i in starts])\n"
        f"    y = {TARGETS_LATE}",
    ),
    Fault(
        "the last window is never drawn",
        "bigram.py",
        "torch.randint(len(train_data) - block_size, (batch_size,))",
        "torch.randint(len(train_data) - block_size - 1, (batch_size,))",
    ),
    Fault(
        "a small last batch counts as a whole one",
        "bigram.py",
        "        total += loss * len(xb)  # the last batch can be smaller\n"
        "    return total / len(x)",
        "        total += loss * batch_size\n    return total / len(x)",
    ),
    Fault(
        "temperature multiplies",
        "bigram.py",
        "F.softmax(logits / temperature, dim=-1)",
        "F.softmax(logits * temperature, dim=-1)",
    ),
    Fault(
        "one token too many in top_k",
        "bigram.py",
        "logits.topk(min(top_k, vocab_size)).values[:, -1:]",
        "logits.topk(min(top_k + 1, vocab_size)).values[:, -1:]",
    ),
    Fault(
        "validation data overlaps the training data",
        "bigram.py",
        "val_data = torch.tensor(encode(text[n:]))",
        "val_data = torch.tensor(encode(text[n - len(text) // 20 :]))",
    ),
    Fault(
        "the mask lets one position of the future through",
        "v2_attention.py",
        "torch.ones(block_size, block_size).tril().bool()",
        "torch.ones(block_size, block_size).tril(1).bool()",
    ),
    Fault(
        "scores are divided by the head size, not its root",
        "v2_attention.py",
        "/ k.shape[-1] ** 0.5  # (B, T, T)",
        "/ k.shape[-1] ** 1.0  # (B, T, T)",
    ),
    Fault(
        "softmax over the queries",
        "v2_attention.py",
        "weights = F.softmax(scores, dim=-1)  # each row sums to 1",
        "weights = F.softmax(scores, dim=-2).nan_to_num()",
    ),
    Fault(
        "no positions",
        "v2_attention.py",
        "x = self.wte(idx) + self.wpe(positions)  # (B, T, C)",
        "x = self.wte(idx) + 0 * self.wpe(positions)  # (B, T, C)",
    ),
    # gpt_char.py
    Fault("clipping after the step", "gpt_char.py", STEP, STEP_CLIPPED_LATE),
    Fault(
        "the order is the same in every epoch",
        "gpt_char.py",
        "rng = np.random.default_rng((seed, epoch))",
        "rng = np.random.default_rng((seed, 0))",
    ),
    Fault(
        "no shuffle",
        "gpt_char.py",
        "starts = shift + block_size * rng.permutation(windows)",
        "starts = shift + block_size * np.arange(windows)",
    ),
    Fault(
        "AdamW decays biases and embeddings",
        "gpt_char.py",
        REST,
        REST.replace('"weight_decay": 0.0', '"weight_decay": weight_decay'),
    ),
    Fault(
        "the schedule is a step late",
        "gpt_char.py",
        "return learning_rate * (step + 1) / warmup_iters",
        "return learning_rate * step / warmup_iters",
    ),
    Fault(
        "best.pt against the last evaluation",
        "gpt_char.py",
        BEST,
        BEST_OF_TWO,
    ),
    Fault(
        "Muon: one norm for all pieces",
        "gpt_char.py",
        "x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)",
        "x = x / (x.norm() + 1e-7)",
    ),
    Fault(
        "Muon: no Nesterov",
        "gpt_char.py",
        "x = x.lerp_(mean, momentum)",
        "x = mean.clone()",
    ),
    Fault(
        "the same dropout in every step",
        "gpt_char.py",
        "torch.manual_seed(hash((seed, step)))",
        "torch.manual_seed(hash((seed, 0)))",
    ),
    Fault(
        "checksum ignored",
        "gpt_char.py",
        "if zipfile.ZipFile(path).testzip() is not None:",
        "if zipfile.ZipFile(path).testzip() is False:",
        FILES,
    ),
    Fault(
        "the optimizers' state is not restored",
        "gpt_char.py",
        "            opt.load_state_dict(state)\n",
        "",
        RESUME,
    ),
    # gpt2_train.py
    Fault("no clipping", "gpt2_train.py", UNSCALED, UNCLIPPED),
    Fault(
        "the gradient is a sum over micro-steps",
        "gpt2_train.py",
        "loss = wrapped(x, y) / accumulation",
        "loss = wrapped(x, y)",
    ),
    Fault(
        "the first micro-batch of the next step comes twice",
        "gpt2_train.py",
        "batch = get_batch(step, micro_step + 1)",
        "batch = get_batch(step, micro_step)",
    ),
    Fault(
        "every process takes the same windows",
        "gpt2_train.py",
        "number = (step * accumulation + micro_step) * world_size + rank",
        "number = (step * accumulation + micro_step) * world_size",
    ),
    Fault(
        "AdamW decays biases and embeddings",
        "gpt2_train.py",
        REST,
        REST.replace('"weight_decay": 0.0', '"weight_decay": weight_decay'),
    ),
    Fault(
        "best.pt against the last evaluation",
        "gpt2_train.py",
        BEST,
        BEST_OF_TWO,
    ),
    Fault(
        "Muon: one norm for all pieces",
        "gpt2_train.py",
        "x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)",
        "x = x / (x.norm() + 1e-7)",
    ),
    Fault(
        "Muon: the decay is not scaled by the learning rate",
        "gpt2_train.py",
        'p.mul_(1 - group["lr"] * weight_decay)',
        "p.mul_(1 - learning_rate * weight_decay)",
    ),
    Fault(
        "the cache is a position behind",
        "gpt2_train.py",
        "past = caches[0].length",
        "past = max(0, caches[0].length - 1)",
    ),
    Fault(
        "the padding gets probability",
        "gpt2_train.py",
        "self.padding[vocab_size:] = -torch.inf",
        "self.padding[vocab_size:] = 0",
    ),
    Fault(
        "the decay of the schedule ignores the warm-up",
        "gpt2_train.py",
        "return learning_rate * (max_iters - step) / (max_iters - warmup_iters)",
        "return learning_rate * (max_iters - step) / max_iters",
    ),
    Fault(
        "HellaSwag: sums, not means",
        "gpt2_train.py",
        "losses = losses.sum(dim=1) / (y >= 0).sum(dim=1)  # (rows,): means",
        "losses = losses.sum(dim=1)",
    ),
    Fault(
        "dropout while evaluating",
        "gpt2_train.py",
        "    model.eval()  # no dropout\n    windows =",
        "    windows =",
    ),
    Fault(
        "other data is not noticed",
        "gpt2_train.py",
        '"data": zlib.crc32(shards["val"][0][:1_000_000]),',
        '"data": zlib.crc32(shards["val"][0][:0]),',
        REFUSALS,
    ),
    Fault(
        "checksum ignored",
        "gpt2_train.py",
        "if zipfile.ZipFile(path).testzip() is not None:",
        "if zipfile.ZipFile(path).testzip() is False:",
        FILES,
    ),
    Fault(
        "a resumed run begins a step late",
        "gpt2_train.py",
        "for step in range(first_step, max_iters):",
        "for step in range(first_step + (first_step > 0), max_iters):",
        RESUME,
    ),
    Fault(
        "windows are always cut at the same places",
        "gpt2_train.py",
        "shift = int(rng.integers(block_size))",
        "shift = 0 * int(rng.integers(block_size))",
    ),
    Fault(
        "a part of the last window is not evaluated",
        "gpt2_train.py",
        "math.ceil(eval_tokens / block_size)",
        "max(1, eval_tokens // block_size)",
    ),
    Fault(
        "float16: clipping sees scaled gradients",
        "gpt2_train.py",
        "    for opt in optimizers:\n        scaler.unscale_(opt)\n",
        "",
    ),
    Fault(
        "dropout is the same in all processes",
        "gpt2_train.py",
        "torch.manual_seed(hash((seed, step, rank)))",
        "torch.manual_seed(hash((seed, step, 0)))",
        PROCESSES,
    ),
    Fault(
        "log.csv has the learning rate of the next step",
        "gpt2_train.py",
        "lr = get_lr(step - 1)",
        "lr = get_lr(step)",
        RUNS,
    ),
    # sparse_gpt.py, in what it shares with gpt2_train.py
    Fault(
        "float16: clipping sees scaled gradients",
        "sparse_gpt.py",
        "    for opt in optimizers:\n        scaler.unscale_(opt)\n",
        "",
    ),
    Fault("no clipping", "sparse_gpt.py", UNSCALED, UNCLIPPED),
    Fault(
        "the share of another process",
        "sparse_gpt.py",
        "return x[rank * size : (rank + 1) * size]",
        "return x[:size]",
    ),
    Fault(
        "windows of the validation data are skipped",
        "sparse_gpt.py",
        "for i in range(rank * micro_batch_size, windows,",
        "for i in range(rank, windows,",
    ),
    Fault(
        "dropout while evaluating",
        "sparse_gpt.py",
        "    model.eval()  # no dropout\n    windows =",
        "    windows =",
    ),
    Fault(
        "best.pt against the last evaluation",
        "sparse_gpt.py",
        BEST,
        BEST_OF_TWO,
    ),
    Fault(
        "the seed does not count for the order",
        "sparse_gpt.py",
        "rng = np.random.default_rng((seed, epoch))",
        "rng = np.random.default_rng((0, epoch))",
    ),
    Fault(
        "the last weights write the sample",
        "sparse_gpt.py",
        'if max_iters > 0 and Path(out_dir, "best.pt").exists():',
        "if False:",
    ),
    # sparse_gpt.py, in what it adds
    Fault(
        "dropout of attention while evaluating",
        "sparse_gpt.py",
        "p = dropout if self.training else 0.0",
        "p = dropout",
    ),
    Fault(
        "the window holds one position more",
        "sparse_gpt.py",
        "def in_window(i, j):\n    return i - j < window",
        "def in_window(i, j):\n    return i - j <= window",
    ),
    Fault(
        "one row back is a position short",
        "sparse_gpt.py",
        "return i - j <= stride",
        "return i - j < stride",
    ),
    Fault(
        "the summary is one column wider",
        "sparse_gpt.py",
        "return j % stride >= stride - summary",
        "return j % stride >= stride - summary - 1",
    ),
    Fault(
        "a query that sees nobody gets something",
        "sparse_gpt.py",
        "blind, 0.0)",
        "blind, 0.5)",
    ),
    Fault(
        "every layer takes the first hop",
        "sparse_gpt.py",
        "Block([hops[i % len(hops)]])",
        "Block([hops[0 * i]])",
    ),
    Fault(
        "selection: the own tile counts as one of those selected",
        "sparse_gpt.py",
        "scores.masked_fill(numbers >= own, -torch.inf)",
        "scores.masked_fill(numbers > own, -torch.inf)",
    ),
    Fault(
        "selection while sampling: the own tile begins a position early",
        "sparse_gpt.py",
        "self.length // tile",
        "(self.length + 1) // tile",
    ),
    Fault(
        "a cache overwrites a key that is still seen",
        "sparse_gpt.py",
        "freed[last_use + 1].append(slot)",
        "freed[max(j + 1, last_use)].append(slot)",
    ),
    # docs/tools/steps.py
    Fault(
        "two insertions at one place",
        "docs/tools/steps.py",
        "    if a.start == b.start or (a.start < b.end and b.start < a.end):",
        "    if a.start < b.end and b.start < a.end:",
    ),
]


def texts():
    """{path: text} of what a fault is put into, and of its tests."""
    found = {}
    for pattern in COPIED:
        for path in sorted(ROOT.glob(pattern)):
            found[path.relative_to(ROOT).as_posix()] = path.read_text(encoding="utf-8")
    return found


def tests_of(fault):
    """The arguments for pytest: quick tests first."""
    files = f"{TESTS[fault.script]} {fault.tests}".split()
    args = [*OPTIONS, *files]
    stem = Path(fault.script).stem
    if stem in NAMES:
        others = [f"not {name}" for name in NAMES if name != stem]
        args += ["-k", " and ".join(others)]
    return args


def key_of(fault, files):
    """Changes with the script, the fault and the tests."""
    digest = hashlib.sha256(repr(fault).encode())
    digest.update(files[fault.script].encode())
    names = ["tests/conftest.py", "tests/makers.py"]
    names += f"{TESTS[fault.script]} {fault.tests}".split()
    for name in names:
        digest.update(files[name].encode())
    return digest.hexdigest()[:16]


def run_tests(folder, args):
    """Run pytest in a folder. Returns the name of a test that fails, or ""."""
    command = [sys.executable, "-m", "pytest", *args]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    line = r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$"
    found = re.search(line, done.stdout, flags=re.M)
    if done.returncode != 1 or not found:
        sys.exit(f"pytest {args}: {done.stdout}{done.stderr}")
    return found[1]


def test(fault, files, folder):
    """Run the tests in a folder that has the fault. Returns the one that fails.

    Without the fault, the same test has to pass.
    """
    text = files[fault.script]
    if text.count(fault.old) != 1:
        sys.exit(f"{fault.script} has {fault.old!r} {text.count(fault.old)} times")
    for name, content in files.items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    script = Path(folder, fault.script)
    script.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
    found = run_tests(folder, tests_of(fault))
    script.write_text(text, encoding="utf-8")
    if found and run_tests(folder, [*OPTIONS, found]):
        sys.exit(f"{found} fails without the fault, too")
    return found.rpartition("/")[2]


def name_of(test):
    """A test, or that there was none, as a cell of the table."""
    if test == "":
        return "**nothing**"
    return f"`{test}`"


def report(results):
    """Write mutants.md."""
    caught = sum(1 for entry in results if entry["test"])
    lines = [
        "# Faults put into the scripts",
        "",
        "One fault at a time, each in a copy of the repository, and the tests of its",
        "script on top. Tests that compare texts to the letter are left out: these",
        "compare behavior. Without the fault, each test that is named passes.",
        "`python docs/bench/mutants.py` runs what has changed.",
        "",
        f"{caught} of {len(results)} are caught.",
        "",
        "| script | fault | caught by |",
        "|---|---|---|",
    ]
    for entry in results:
        row = [entry["script"], entry["name"], name_of(entry["test"])]
        lines.append("| " + " | ".join(row) + " |")
    (BENCH / "mutants.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main():
    files = texts()
    again = sys.argv[1:]
    kept = {}
    if KEPT.exists():
        kept = json.loads(KEPT.read_text(encoding="utf-8"))
    results = []
    for fault in FAULTS:
        title = f"{fault.script}, {fault.name}"
        key = key_of(fault, files)
        entry = kept.get(title, {})
        if entry.get("key") != key or fault.name in again:
            folder = tempfile.mkdtemp()
            try:
                found = test(fault, files, folder)
            finally:
                shutil.rmtree(folder)
            entry = {"key": key, "script": fault.script, "name": fault.name}
            entry["test"] = found
            kept[title] = entry
            KEPT.parent.mkdir(exist_ok=True)
            KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
            print(f"{title}: {found or 'LIVES'}", flush=True)
        results.append(entry)
    report(results)
    lives = [entry["name"] for entry in results if not entry["test"]]
    print(f"{len(results) - len(lives)} of {len(results)} caught")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues")
