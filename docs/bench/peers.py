"""Other repositories, to be measured beside ours: copies of your clones, with data.

--peers=DIR holds your clones of nanoGPT, build-nanogpt and ng-video-lecture. Nothing is
written there: they are copied to out/bench/peers, with Shakespeare in the form that
each wants. What is missing is left out of the report.
"""

import pickle
import shutil
from pathlib import Path

import lab
import numpy as np

PEERS = "out/bench/peers"  # below the root of the repository
VAL = f"{PEERS}/char_val.bin"  # the last tenth of Shakespeare, one uint16 each
# build-nanogpt evaluates HellaSwag after its last step: one short question is enough
NO_HELLASWAG = """import torch


def iterate_examples(split):
    yield None


def render_example(example):
    tokens = torch.zeros(4, 8, dtype=torch.long)
    return None, tokens, torch.ones(4, 8, dtype=torch.long), 0
"""


def copy(bench):
    """Copy the clones and prepare their data; returns the names of those copied."""
    work = lab.ROOT / PEERS
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    text = (lab.ROOT / "data/shakespeare/input.txt").read_text(encoding="utf-8")
    ids = np.unique(list(text), return_inverse=True)[1].astype("<u2")
    n = int(0.9 * len(ids))
    ids[n:].tofile(lab.ROOT / VAL)
    found = []
    if bench.args.peers is None:
        return found
    for name in ("nanoGPT", "build-nanogpt", "ng-video-lecture"):
        clone = Path(bench.args.peers, name)
        if clone.exists():
            ignored = shutil.ignore_patterns(".git")
            shutil.copytree(clone, work / name, ignore=ignored)
            found.append(name)
    if "nanoGPT" in found:
        data = work / "nanoGPT/data"
        for folder in ("char", "bpe"):
            (data / folder).mkdir(parents=True)
        ids[:n].tofile(data / "char/train.bin")
        ids[n:].tofile(data / "char/val.bin")
        meta = {"vocab_size": int(ids.max()) + 1}
        (data / "char/meta.pkl").write_bytes(pickle.dumps(meta))
        for split in ("train", "val"):
            gpt2_tokens(split).tofile(data / f"bpe/{split}.bin")
    if "build-nanogpt" in found:
        (work / "build-nanogpt/edu_fineweb10B").mkdir()
        for split in ("train", "val"):
            path = work / f"build-nanogpt/edu_fineweb10B/x_{split}_0.npy"
            np.save(path, gpt2_tokens(split))
        (work / "build-nanogpt/hellaswag.py").write_text(NO_HELLASWAG)
    if "ng-video-lecture" in found:
        (work / "ng-video-lecture/input.txt").write_text(text, encoding="utf-8")
    return found


def gpt2_tokens(split):
    """Shakespeare in GPT-2's tokens, from the shards that ours read."""
    shards = sorted((lab.ROOT / "data/shakespeare/gpt2").glob(f"*_{split}_*.bin"))
    return np.fromfile(shards[0], dtype="<u2", offset=1024)


def peer(name, script, flags="", **more):
    """A job that runs a script of a peer in its folder."""
    folder = str(lab.ROOT / PEERS / name)
    return lab.job(f"{PEERS}/{name}/{script}", flags, folder=folder, **more)


def nanogpt(bench, flags, **more):
    """A job that trains with nanoGPT."""
    if "gpu" not in bench.facts():
        flags += " --device=cpu --dtype=float32 --compile=False"
    return peer("nanoGPT", "train.py", flags, **more)


def models_of_characters(bench):
    """{name: function from a number of training steps to a job}, at the same size.

    Of the peers, those that copy has found.
    """
    size = {}
    if "gpu" not in bench.facts():  # nanoGPT's recipe for a CPU
        size = dict(block_size=64, batch_size=12, n_layer=4, n_head=4, n_embd=128)
        size["dropout"] = 0.0

    def gpt_char(n, flags="", **more):
        flags += f" --max_iters={n} --eval_interval={max(1, n)} --max_new_tokens=1"
        return lab.job("gpt_char.py", flags, **more)

    def nano(n, **more):  # it does one step more than max_iters
        flags = "config/train_shakespeare_char.py --dataset=char --out_dir=out"
        flags += f" --max_iters={max(0, n - 1)} --lr_decay_iters={max(1, n)}"
        flags += f" --warmup_iters={min(100, n // 10)} --eval_iters=1"
        flags += " --eval_interval=1000000000"
        for name, value in size.items():
            flags += f" --{name}={value}"
        return nanogpt(bench, flags, **more)

    def lecture(n, **more):  # it takes no flags
        settings = size | {"max_iters": n, "eval_interval": 10**9, "eval_iters": 1}
        return peer("ng-video-lecture", "gpt.py", settings=settings, **more)

    recipes = {"gpt_char": gpt_char, "nanoGPT": nano, "ng-video-lecture": lecture}
    for name in ("nanoGPT", "ng-video-lecture"):
        if not Path(lab.ROOT, PEERS, name).exists():
            del recipes[name]
    return recipes
