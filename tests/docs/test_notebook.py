"""The scripts in a real Jupyter kernel, by %run, as in Colab.

Needs ipykernel and nbclient, which are optional: pip install ipykernel nbclient
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from makers import ROOT, TINY, advice, continued, final_loss

nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
import nbformat  # noqa: E402

SHORT = "--device=cpu --max_iters=2 --max_new_tokens=3"
BYTES = (
    f"{SHORT} --data_dir=data/text/bytes --total_batch_size=64 --n_embd=16 --n_head=2"
)
BYTES += " --n_layer=1 --block_size=32 --batch_size=2 --no-bfloat16"
FLAGS = {
    "bigram.py": SHORT,
    "v2_attention.py": SHORT,
    "gpt_char.py": f"{SHORT} {' '.join(TINY)}",
    "gpt2_train.py": BYTES,
    "sparse_gpt.py": f"{BYTES} --stride=8 --summary=2",
}


@pytest.fixture
def kernel(folder, monkeypatch):
    """kernel(code): run a cell in a kernel that is there for the whole test; its
    outputs.
    """
    # The kernel says this at every start where the debugger's files are frozen into
    # Python
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    notebook = nbformat.v4.new_notebook()
    client = nbclient.NotebookClient(
        notebook, kernel_name="python3", timeout=120, allow_errors=True
    )

    def run(code):
        notebook.cells.append(nbformat.v4.new_code_cell(code))
        return client.execute_cell(notebook.cells[-1], len(notebook.cells) - 1).outputs

    with client.setup_kernel(cwd=str(folder)):
        run.client = client
        yield run


def text_of(outputs, stream="stdout"):
    return "".join(out.text for out in outputs if out.get("name") == stream)


def errors(outputs):
    return [
        out
        for out in outputs
        if out.output_type == "error" and out.ename != "SystemExit"
    ]


@pytest.mark.long
def test_every_script_twice_in_one_kernel(kernel):
    prepare = [
        sys.executable,
        ROOT / "prepare_shakespeare.py",
        "--source=text.txt",
        "--name=text",
    ]
    Path("text.txt").write_bytes(Path("data/shakespeare/input.txt").read_bytes())
    env = {**os.environ, "https_proxy": "http://127.0.0.1:9"}
    subprocess.run(
        prepare, env=env, capture_output=True
    )  # without a network: the bytes are made
    for script, flags in FLAGS.items():
        for again in ("", " --init_from=scratch"):
            flags += again * (
                script in ("gpt_char.py", "gpt2_train.py", "sparse_gpt.py")
            )
            outputs = kernel(f"%run {ROOT / script} {flags}")
            assert errors(outputs) == [], script
            assert final_loss(text_of(outputs)) is not None, script
            assert text_of(outputs, "stderr") == "", script
        # What the script has made is at hand in the next cell
        code = "import torch\nidx = torch.tensor([encode('A')])\n"
        code += (
            "print(type(model).__name__, len(decode(generate(idx, 3)[0].tolist())) > 0)"
        )
        name = {
            "bigram.py": "BigramLanguageModel",
            "v2_attention.py": "AttentionLanguageModel",
        }
        assert text_of(kernel(code)).split() == [name.get(script, "GPT"), "True"]


def test_wrong_flag_is_one_line(kernel):
    for script in FLAGS:
        outputs = kernel(f"%run {ROOT / script} --nonsense=1")
        assert errors(outputs) == []
        lines = text_of(outputs, "stderr").splitlines()
        (found,) = [line for line in lines if "error" in line]
        assert found.startswith(f"{script}: error: ") and "--nonsense=1" in found
        assert "Traceback" not in str(outputs)


@pytest.mark.long
def test_interrupting_saves_and_the_next_run_goes_on(kernel):
    flags = f"--device=cpu --max_new_tokens=3 --log_interval=1 {' '.join(TINY)}"
    cell = f"%run {ROOT / 'gpt_char.py'} {flags} --max_iters=1000000"
    pid = int(text_of(kernel("import os; print(os.getpid())")))
    seen = []  # progress appears while it runs; at step 3 the button is pressed

    def on_message(message, *more):
        if message["msg_type"] == "stream":
            seen.append(message["content"]["text"])
            if "step     3/" in seen[-1]:
                os.kill(pid, signal.SIGINT)  # as the button "interrupt" does
        return process_message(message, *more)

    process_message, kernel.client.process_message = (
        kernel.client.process_message,
        on_message,
    )
    outputs = kernel(cell)
    assert advice(text_of(outputs)) == []
    assert errors(outputs) == []
    outputs = kernel(cell.replace("=1000000", "=1"))
    (start,) = continued(text_of(outputs))
    assert start[0] == "out/gpt_char/last.pt"
    assert final_loss(text_of(outputs)) is not None
