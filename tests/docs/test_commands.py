"""Every command of README.md and docs/, typed as printed, in the order in which they
stand there.

The scripts are copies in which the section "Settings" has small numbers, and the data
is a small text. What needs more than this machine has (eight GPUs, a second node, the
Hub, a package index) is exchanged for what it has, or left out: see REPLACE and
LEFT_OUT.
"""

import contextlib
import io
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
from makers import ABORTED, capture, markov_text

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
DOCUMENTS += sorted(ROOT.glob("docs/*.md"))
SMALL = dict(device='"cpu"', bfloat16=False, max_iters=2, eval_interval=1)
SMALL |= dict(
    n_layer=1, n_head=2, n_embd=16, block_size=16, batch_size=2, max_new_tokens=3
)
LARGE = {**SMALL, "batch_size": 0, "eval_tokens": 64}
# GPT-2's tokens stand for those of FineWeb-Edu
GPT2 = {**LARGE, "total_batch_size": 12 * 16, "data_dir": '"data/shakespeare/gpt2"'}
SPARSE = {**LARGE, "total_batch_size": 256, "block_size": 32, "stride": 4, "summary": 1}
CONSTANTS = {"bigram": SMALL, "v2_attention": SMALL, "gpt_char": SMALL}
CONSTANTS |= {"gpt2_train": GPT2, "sparse_gpt": SPARSE, "by_hand": SMALL}
REPLACE = {"FILE": "text.txt", "NAME": "mine", "DIR": "none", "--nproc_per_node=8": ""}
OF_STEPS = re.compile("out/steps/|^python -c")
LEFT_OUT = (
    # need a package index or the Hub
    r"pip install|python -m venv|pytest|prepare_fineweb\.py( |$)"
    r"|prepare_shakespeare\.py$"  # the same; it has tests of its own
    # have tests of their own, take minutes, or need matplotlib
    r"|docs/tools/\w+\.py|docs/bench/\w+\.py|uv run|--compile"
    # need a folder of weights: test_chat_weights.py runs these files
    r"|beyond/(chat|prepare_smollm2)\.py|steps/chat/(1[1-9]|2\d)_"
    r"|'r\+b'"  # the small checkpoint of this test has no byte at that place
)


def commands(documents=DOCUMENTS):
    """Every command, in order: those in blocks of shell, and whole ones in a line."""
    found, text = [], "\n".join(path.read_text(encoding="utf-8") for path in documents)
    for kind, block, inline in re.findall(
        r"^ *```(\w*)\n(.*?)^ *```$|`([^`]+)`", text, re.M | re.S
    ):
        if block and kind != "sh":
            continue
        lines = block.replace("\\\n", " ").splitlines() or [" ".join(inline.split())]
        for line in lines:
            for command in re.split(" && ", line.split("  #")[0].strip()):
                command = re.sub(r"^(\w+=\S+ )+", "", command)  # variables before it
                if re.match(r"(python|torchrun|git|export|pip|pytest|\.) ", command):
                    found.append(re.sub(" +", " ", command))
    return found


def make_small(path, target, constants):
    """Write a copy of a script with other constants; files in between may lack some of
    them.
    """
    head, line, rest = path.read_text(encoding="utf-8").partition("\n# ---")
    source = line + rest
    for name, value in (constants or {}).items():
        if name == "data_dir" and path == target:
            continue  # not all files in between know GPT-2's tokens
        if name == "batch_size" and value == 0 and "\nbatch_size = 0" not in source:
            value = 2  # and not all choose it themselves
        source = re.sub(
            rf"^{name} = .*?(?=  #|$)", f"{name} = {value}", source, 1, re.M
        )
    # The defaults of presets and of a table would take the place of these
    block = re.M | re.S
    source = re.sub(r"^(\w+_preset) = \{.*?^\}", r"\1 = {}", source, flags=block)
    table = re.search(r"^sizes = \{.*?^\}", source, flags=block)
    if table:
        size = "({n_layer}, {n_head}, {n_embd}".format(**constants)
        rows = re.sub(r"\(\d+, \d+, \d+(?=[,)])", size, table[0])
        source = source.replace(table[0], rows)
    target.write_text(head + source, encoding="utf-8")


@pytest.fixture(scope="module")
def small(tmp_path_factory, encoding):
    """A folder with small scripts, data for them, and a small model that is called
    gpt2.
    """
    folder = tmp_path_factory.mktemp("small")
    between = folder / "out/steps"
    with contextlib.redirect_stdout(io.StringIO()):
        runpy.run_path(str(ROOT / "docs/tools/steps.py"))["unfold"](between)
    (folder / "beyond").mkdir()
    for path in [*ROOT.glob("*.py"), *ROOT.glob("beyond/*.py")]:
        make_small(path, folder / path.relative_to(ROOT), CONSTANTS.get(path.stem))
    for path in between.rglob("*.py"):
        make_small(path, path, CONSTANTS.get(path.parent.name))
    (folder / "docs/bench").mkdir(parents=True)
    for path in ROOT.glob("docs/bench/*.py"):
        shutil.copy(path, folder / "docs/bench")
    text = (
        markov_text(20_000, seed=1) + "ROMEO:"
    )  # a character of a prompt must be in the text
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
            transformers.GPT2LMHeadModel(
                transformers.GPT2Config(**size)
            ).save_pretrained("gpt2")
    return folder


def run_all(found, codes=(0,)):
    """Run every python command of a list in this process; returns how many."""
    count = 0
    for command in found:
        for old, new in REPLACE.items():
            command = re.sub(rf"\b{old}\b", new, command)
        command = re.sub(r"--max_(iters|new_tokens)=\d\d+", r"--max_\1=3", command)
        program, *args = shlex.split(command)
        if re.search(LEFT_OUT, command) or program != "python":
            continue
        if not Path("gpt2").exists() and re.search(
            "--(init_from=gpt2|export_dir)", command
        ):
            continue  # transformers is not installed
        if args[0] == "-c":
            done = capture(args, lambda: exec(args[1], {}))
        else:
            done = capture(args, lambda: runpy.run_path(args[0], run_name="__main__"))
        assert done.code in codes, (
            f"{command}\n{done.err[-2000:]}"
        )  # transformers writes its progress there
        count += 1
    return count


@pytest.mark.long
def test_python_commands_run(small, monkeypatch):
    monkeypatch.chdir(small)
    assert run_all([c for c in commands() if not OF_STEPS.search(c)]) > 18


@pytest.mark.long
def test_commands_of_the_steps_run(small, monkeypatch):
    monkeypatch.chdir(small)
    # Some of them are there to be refused: that is a line, and not a traceback
    found = [c.removesuffix("&") for c in commands() if OF_STEPS.search(c)]
    assert run_all(found, codes=(0, 1, 2)) > 25


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_git_commands_run():
    found = [shlex.split(c) for c in commands() if c.startswith("git diff --no-index")]
    assert len(found) >= 1
    for command in found:
        assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 1, (
            command
        )


@pytest.mark.long
def test_torchrun_commands_run(small):
    """On several nodes: two groups of a process, which meet at the address."""
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
        for _ in range(3):
            running = []
            for _ in range(nodes):
                running.append(subprocess.Popen(command, cwd=small, env=env, **pipes))
            outputs = [process.communicate(timeout=300)[0] for process in running]
            said = "\n".join(outputs)  # pytest would cut a list
            if ABORTED not in said:
                break
        assert [process.returncode for process in running] == [0] * nodes, said
        assert said.count("2 x cpu") == 1, said


def test_measurements_are_there_and_know_their_flags():
    """They take minutes; their engine has tests of its own (test_lab.py)."""
    found = [c for c in commands() if "docs/bench/" in c]
    assert len(found) >= 3
    for command in found:
        program, *flags = shlex.split(command)[1:]
        assert (ROOT / program).exists(), command
        if not flags:
            continue
        help_text = subprocess.run(
            [sys.executable, ROOT / program, "--help"], capture_output=True, text=True
        )
        for flag in flags:
            if flag.startswith("-"):
                assert flag.partition("=")[0] in help_text.stdout, command


@pytest.mark.long
def test_a_measurement_runs(small):
    command = [sys.executable, "docs/bench/char.py", "--quick", "--rounds=1"]
    done = subprocess.run(
        command, cwd=small, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| gpt_char |" in done.stdout
