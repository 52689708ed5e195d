"""Each script runs by itself: its dependencies, its presets, where it prints to."""

import ast
import contextlib
import importlib.metadata
import io
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from makers import (
    ARGS,
    ROOT,
    capture,
    continued,
    final_loss,
    popen,
    run_here,
    samples,
)

LADDER = [f"{name}.py" for name in ARGS]
PREPARE = ["prepare_shakespeare.py", "prepare_fineweb.py"]


# ------------------------------------------------------------------------ Dependencies
def metadata(source):
    """The block of PEP 723, word for word, and its dependencies as {name: the whole
    line}.
    """
    (block,) = re.findall(r"(?m)^# /// script$\n(?:^#(?: .*)?$\n)+?^# ///$\n", source)
    assert source.startswith(block)
    (listed,) = re.findall(r"^# dependencies = (\[.*\])$", block, flags=re.M)
    listed = ast.literal_eval(listed)
    assert '\n# requires-python = ">=3.10"\n' in block
    return block, {name_of(line): line for line in listed}


def name_of(requirement):
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("-", "_")


def packages(nodes):
    """What these nodes of a syntax tree import that is not part of Python."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0  # nothing comes from another script
            found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names


def imported(script):
    """The packages that a script always imports, and those it imports when it comes to
    it.
    """
    tree = ast.parse((ROOT / script).read_text(encoding="utf-8"))
    always = packages(tree.body)
    return always, packages(ast.walk(tree)) - always


def requirements():
    lines = (ROOT / "requirements.txt").read_text().split()
    return {name_of(line): line for line in lines}


@pytest.mark.parametrize("script", LADDER)
def test_dependencies_are_what_is_imported(script):
    _, dependencies = metadata((ROOT / script).read_text(encoding="utf-8"))
    always, sometimes = imported(script)
    assert dependencies.keys() == always | {"numpy"}  # torch warns where it is missing
    assert sometimes <= {"transformers"}  # optional: the script says how to install it
    # requirements.txt asks for the same versions
    assert dependencies.items() <= requirements().items()


@pytest.mark.parametrize("script", PREPARE)
def test_dependencies_of_the_prepare_scripts(script):
    _, dependencies = metadata((ROOT / script).read_text(encoding="utf-8"))
    always, sometimes = imported(script)
    assert dependencies.keys() == always | sometimes
    # requirements.txt has all but what prepare_fineweb.py imports only when it comes to
    # it
    others = dependencies.keys() - requirements().keys()
    assert others <= sometimes and others <= {"pyarrow", "huggingface_hub"}
    assert {
        name: dependencies[name] for name in dependencies.keys() - others
    }.items() <= (requirements().items())


def test_bounds_fit_what_is_installed():
    """The tests run with versions that the blocks allow."""
    packaging = pytest.importorskip("packaging.requirements")
    for script in [*LADDER, *PREPARE]:
        for line in metadata((ROOT / script).read_text(encoding="utf-8"))[1].values():
            requirement = packaging.Requirement(line)
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                version = importlib.metadata.version(requirement.name)
                assert requirement.specifier.contains(version, prereleases=True), line


def test_blocks_are_the_same_where_the_imports_are():
    """To the letter: the diff between two scripts shows no more than it must."""
    blocks = [
        metadata((ROOT / script).read_text(encoding="utf-8"))[0] for script in LADDER
    ]
    assert blocks[0] == blocks[1] == blocks[2] and blocks[3] == blocks[4]
    starts = [re.sub(r"\[.*\]", "[]", block) for block in blocks]
    assert len(set(starts)) == 1


@pytest.mark.long
def test_uv_run(folder):
    """A script alone in a folder, with what uv installs for it: a large download."""
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    uv = [uv] if uv else [sys.executable, "-m", "uv"]
    if subprocess.run([*uv, "--version"], capture_output=True).returncode != 0:
        pytest.skip("uv is not installed")
    shutil.copy(ROOT / "bigram.py", folder)
    env = {
        k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")
    }
    args = ["--device=cpu", "--max_iters=2", "--max_new_tokens=5"]
    done = subprocess.run(
        [*uv, "run", "bigram.py", *args], env=env, capture_output=True, encoding="utf-8"
    )
    if "Failed to fetch" in done.stderr:
        pytest.skip(f"uv reaches no package index: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    assert final_loss(done.stdout) is not None
    assert "Warning" not in done.stderr  # that of torch without numpy


# ----------------------------------------------------------------------------- Presets
def presets(script, *args):
    """The settings of a script, as its section "Command line" leaves them."""
    source = (ROOT / script).read_text(encoding="utf-8")
    end = re.search(r"^# -{10,} Data$", source, flags=re.M).start()
    names = {"__name__": "__main__", "__file__": str(ROOT / script), "__doc__": ""}
    code = compile(source[:end], script, "exec")
    done = capture([script, *args], lambda: exec(code, names))
    assert (done.code, done.err) == (0, "")
    kinds = (bool, int, float, str)
    return {k: v for k, v in names.items() if isinstance(v, kinds) and k[0] != "_"}


@pytest.fixture
def with_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: True
    )


# What a preset is there for, (CPU, GPU); the rest of the names is compared with each
# other
SIZES = {
    "gpt_char.py": {"n_layer": (5, 6), "n_embd": (128, 384), "dropout": (0.0, 0.2)},
    "gpt2_train.py": {
        "model_size": ("char", "gpt2"),
        "data_dir": ("data/shakespeare/bytes", "data/fineweb_edu"),
        "block_size": (128, 1024),
        "compile": (False, True),
        "float16": (False, False),
    },
    "sparse_gpt.py": {
        "model_size": ("char", "gpt2"),
        "data_dir": ("data/shakespeare/bytes", "data/fineweb_edu"),
        "block_size": (1024, 8192),
        "compile": (False, True),
    },
}


@pytest.mark.parametrize("script", SIZES)
def test_preset_goes_by_the_device(script, with_gpu, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    names = [*SIZES[script], "device"]
    small = [cpu for cpu, _ in SIZES[script].values()] + ["cpu"]
    large = [gpu for _, gpu in SIZES[script].values()] + ["cuda"]
    cpu, gpu = presets(script, "--device=cpu"), presets(script)
    assert [cpu[name] for name in names] == small
    assert [gpu[name] for name in names] == large and gpu["bfloat16"] is True
    assert presets(script, "--device", "cpu") == cpu
    assert presets(script, "--device=cpu:0") == {**cpu, "device": "cpu:0"}
    assert presets(script, "--device", "cuda") == gpu
    assert presets(script, "--device=cuda:1") == {**gpu, "device": "cuda:1"}
    # What is given counts more, wherever it stands
    args = ["--n_layer=2", "--no-bfloat16"]
    for words in (["--device=cuda", *args], [*args, "--device=cuda"]):
        assert presets(script, *words) == {**gpu, "n_layer": 2, "bfloat16": False}
    # Without a GPU all is small
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert presets(script) == cpu


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("script", SIZES)
def test_fewer_steps_without_bfloat16(script, half, monkeypatch):
    """On a CPU, so that it ends within five minutes; what is asked for counts more."""
    capabilities = {"avx512_bf16": half}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    default = presets(script, "--device=cpu")
    assert default["bfloat16"] is half
    fast = presets(script, "--device=cpu", "--bfloat16")
    slow = presets(script, "--device=cpu", "--no-bfloat16")
    assert default == (fast if half else slow)
    assert slow["max_iters"] < fast["max_iters"]
    asked = presets(script, "--device=cpu", "--no-bfloat16", "--max_iters=5")
    assert asked == {**slow, "max_iters": 5}
    # On a GPU, the number of steps is that of its own preset
    on_gpu = presets(script, "--device=cuda", "--no-bfloat16")
    with_half = presets(script, "--device=cuda", "--bfloat16")
    assert on_gpu["max_iters"] == with_half["max_iters"]


@pytest.mark.parametrize("script", LADDER[3:])
def test_older_gpu_gets_float16(script, with_gpu, monkeypatch):
    """Asked is for bfloat16 in hardware, not for an emulation that is slow."""
    asked = []

    def is_supported(including_emulation=True):
        asked.append(including_emulation)
        return False

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    gpu = presets(script)
    assert (gpu["bfloat16"], gpu["float16"]) == (False, True)
    assert set(asked) == {False}
    assert presets(script, "--device=cpu")["float16"] is False


@pytest.mark.parametrize("script", LADDER[:2])
def test_first_steps_have_one_preset(script, with_gpu):
    assert presets(script)["device"] == "cuda"
    one, other = presets(script), presets(script, "--device=cpu")
    assert one == {**other, "device": "cuda"}


@pytest.mark.parametrize("script", LADDER)
def test_help_shows_every_setting(script):
    """Each on a line of its own, with its default."""
    done = run_here(script, "--device=cpu", "--help")
    assert (done.code, done.err) == (0, "")
    found = re.findall(r"^  --(\w+)(.*(?:\n    .*)?)", done.out, flags=re.M)
    shown = dict(found)
    shown.pop("help", None)
    defaults = presets(script, "--device=cpu")
    assert shown.keys() < defaults.keys() and len(shown) > 10
    derived = {"device", "stride", "window", "tile"}  # 0: sparse_gpt.py computes them
    for name, text in shown.items():
        if name not in derived:
            assert text.rstrip().endswith(f"{defaults[name]!r}"), name


# ------------------------------------------------------------------ Wherever it prints
@pytest.mark.parametrize("script", LADDER)
def test_twice_in_one_process(script, place, monkeypatch):
    """As in a notebook: print goes to an object, and the names are there afterwards."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    for max_iters in (2, 4):  # the second run trains on, where there is a checkpoint
        args = [*ARGS[script[:-3]], f"--max_iters={max_iters}"]
        monkeypatch.setattr(sys, "argv", [str(ROOT / script), *args])
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            names = runpy.run_path(str(ROOT / script), run_name="__main__")
        assert final_loss(out.getvalue()) is not None
        assert (
            signal.getsignal(signal.SIGINT),
            signal.getsignal(signal.SIGTERM),
        ) == before
        # What the next cell of a notebook would do
        assert isinstance(names["model"], torch.nn.Module)
        idx = torch.tensor([names["encode"]("AB")])
        longer = names["generate"](idx, 5, temperature=0)
        assert (
            longer.shape == (1, 7) and names["decode"](longer[0].tolist())[:2] == "AB"
        )
        assert 0 < names["estimate_loss"]() < 10
    assert bool(continued(out.getvalue())) == (script in LADDER[2:])


@pytest.mark.long
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize("script", LADDER[2:])
def test_console_without_a_character(script, encoding, place, text):
    """A redirected stdout on Windows is cp1252: no reason to lose a run.

    The characters are of a text (rung 3), or come with the prompt (4 and 5).
    """
    Path("data/letters").mkdir()
    other = text.replace("A", "ő")
    Path("data/letters/input.txt").write_text(other, encoding="utf-8")
    args = [*ARGS[script[:-3]], "--max_iters=3", "--prompt=őBő"]
    args += ["--data_dir=data/letters"] if script in LADDER[:3] else []
    process = popen([sys.executable, ROOT / script, *args], encoding=encoding)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert "B" in samples(out)[0] and final_loss(out) is not None
