"""Every command of the README, typed as printed, in the order in which it stands there.

The scripts are copies in which the section "Hyperparameters" has small numbers, and the data is a
small text. What needs more than this machine has (eight GPUs, a second node, the Hub, a package
index) is exchanged for what it has, or left out: see REPLACE and LEFT_OUT.
"""

import contextlib
import os
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import capture, markov_text

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = dict(device='"cpu"', bfloat16=False, max_iters=2, eval_interval=1, eval_iters=2)
SMALL |= dict(n_layer=1, n_head=2, n_embd=16, block_size=16, batch_size=2, max_new_tokens=3)
LARGE = {**SMALL, "batch_size": 0, "eval_tokens": 64}
# GPT-2's tokens stand for those of FineWeb-Edu
GPT2 = {**LARGE, "total_batch_size": 12 * 16, "data_dir": '"data/shakespeare/gpt2"'}
SPARSE = {**LARGE, "total_batch_size": 256, "block_size": 32, "stride": 4, "summary": 1}
CONSTANTS = {"bigram": SMALL, "v2_attention": SMALL, "gpt_char": SMALL}
CONSTANTS |= {"gpt2_train": GPT2, "sparse_gpt": SPARSE}
REPLACE = {"FILE": "text.txt", "NAME": "mine", "DIR": "none", "--nproc_per_node=8": ""}
LEFT_OUT = (
    r"pip install|python -m venv|pytest|prepare_fineweb\.py( |$)"  # need a package index or the Hub
    r"|prepare_shakespeare\.py$"  # the same; it has tests of its own
)


def commands():
    """Every command of the README, in order: those in blocks of shell, and whole ones in a line."""
    found = []
    for kind, block, inline in re.findall(
        r"^ *```(\w*)\n(.*?)^ *```$|`([^`]+)`", README, re.M | re.S
    ):
        if block and kind != "sh":
            continue
        lines = block.replace("\\\n", " ").splitlines() or [" ".join(inline.split())]
        for line in lines:
            for command in re.split(" && ", line.split("  #")[0].strip()):
                if re.match(r"(python|torchrun|git|export|pip|pytest|\.) ", command):
                    found.append(re.sub(" +", " ", command))
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory, encoding):
    """A folder with small scripts, data for them, and a small model that is called gpt2."""
    folder = tmp_path_factory.mktemp("small")
    for path in ROOT.glob("*.py"):
        head, line, rest = path.read_text(encoding="utf-8").partition("\n# ---")
        source = line + rest
        for name, value in CONSTANTS.get(path.stem, {}).items():
            source = re.sub(rf"^{name} = .*?(?=  #|$)", f"{name} = {value}", source, 1, re.M)
        (folder / path.name).write_text(head + source, encoding="utf-8")
    (folder / "tests").mkdir()
    shutil.copy(ROOT / "tests/bench.py", folder / "tests")
    text = markov_text(20_000, seed=1) + "ROMEO:"  # a character of a prompt must be in the text
    (folder / "text.txt").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare = "prepare_shakespeare.py"
        main = runpy.run_path(prepare, run_name="prepare_shakespeare")["main"]
        done = capture([prepare, "--source=text.txt", "--name=text"], main)
        assert (done.code, done.err) == (0, "")
        Path("data/text").rename("data/shakespeare")
        with contextlib.suppress(ImportError):
            import transformers

            size = dict(n_positions=32, n_layer=1, n_head=2, n_embd=16)
            transformers.GPT2LMHeadModel(transformers.GPT2Config(**size)).save_pretrained("gpt2")
    return folder


def test_python_commands_run(small, monkeypatch):
    monkeypatch.chdir(small)
    count = 0
    for command in commands():
        for old, new in REPLACE.items():
            command = re.sub(rf"\b{old}\b", new, command)
        program, *args = shlex.split(command)
        if re.search(LEFT_OUT, command) or program != "python" or "tests/bench.py" in args:
            continue
        if "--init_from=gpt2" in args and not Path("gpt2").exists():
            continue  # transformers is not installed
        done = capture(args, lambda: runpy.run_path(args[0], run_name="__main__"))
        assert done.code == 0, command + done.err  # transformers writes its progress there
        count += 1
    assert count > 25


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_git_commands_run():
    found = [shlex.split(c) for c in commands() if c.startswith("git diff")]
    assert len(found) >= 2
    for command in found:
        assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 1, command


@pytest.mark.long
def test_torchrun_commands_run(small):
    """On several nodes: two groups of a process, which find each other by the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    found = [shlex.split(c) for c in commands() if re.match("torchrun|export", c)]
    assert len(found) >= 5
    for i, (program, *args) in enumerate(found):
        if program == "export":
            env.update([args[0].split("=")])
            continue
        nodes = 2 if "--nnodes=2" in args else 1
        command = " ".join([*args, f"--init_from=scratch --out_dir=out/torchrun{i}"])
        command = command.replace("nproc_per_node=8", f"nproc_per_node={2 // nodes}")
        command = command.replace("HOST:29500", f"127.0.0.1:{port}")
        command = [*torchrun, *command.split()]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        running = [subprocess.Popen(command, cwd=small, env=env, **pipes) for _ in range(nodes)]
        outputs = [process.communicate(timeout=120)[0] for process in running]
        assert [process.returncode for process in running] == [0] * nodes, outputs
        assert sum("2 x cpu" in output for output in outputs) == 1, outputs


@pytest.mark.long
def test_bench_runs(small):
    command = next(c for c in commands() if "tests/bench.py" in c).replace("DIR", "none")
    command = [sys.executable, *shlex.split(command)[1:], "--quick", "--rounds=1"]
    done = subprocess.run(command, cwd=small, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| gpt_char" in done.stdout
