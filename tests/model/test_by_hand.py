"""beyond/by_hand.py and the steps that lead to it compute what PyTorch computes."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from makers import ROOT, final_loss

SCRIPT = ROOT / "beyond" / "by_hand.py"
TINY = ["--block_size=8", "--batch_size=4", "--max_new_tokens=5"]
TINY_ATTENTION = [*TINY, "--n_embd=16", "--n_head=2"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The step files of the chapter, in order."""
    folder = tmp_path_factory.mktemp("steps")
    tool = ROOT / "docs/tools/steps.py"
    command = [sys.executable, tool, "unfold", folder]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return sorted(folder.rglob("by_hand/[0-9][0-9]_*.py"))


@pytest.fixture
def load(run_any):
    """load(script, *args): the names of an untrained script."""

    def load(script, *args):
        done = run_any(str(script), "--max_iters=0", *TINY, *args)
        assert (done.code, done.err) == (0, "")
        return done.names

    return load


@pytest.fixture
def names(load):
    return load(SCRIPT, "--n_embd=16", "--n_head=2")


# --------------------------------------------------------------------- The gradient
def pair(names, array):
    """The same array as our Tensor and as PyTorch's."""
    return names["Tensor"](array.copy()), torch.tensor(array, requires_grad=True)


KINDS = ["add", "sub", "mul", "div", "pow", "neg", "exp", "log", "constant", "sum"]
KINDS += ["axis", "matmul", "batched", "rows", "transpose", "cat", "softmax"]


def grow(names, rng, used):
    """A random graph, built twice. Returns its inputs and its sum, as pairs."""
    shapes = [(2, 3, 4), (3, 4), (3, 1), (1, 4), (4,), (2, 1, 1), ()]
    inputs = [pair(names, rng.normal(size=shape)) for shape in shapes]
    pool = list(inputs)

    def any_of(*dims):
        fitting = [p for p in pool if p[0].data.ndim in dims]
        return fitting[rng.integers(len(fitting))]

    def another(shape):
        inputs.append(pair(names, rng.normal(size=shape)))
        return inputs[-1]

    for _ in range(12):
        kind = str(rng.choice(KINDS))
        used.add(kind)
        a, A = any_of(0, 1, 2, 3)
        b, B = any_of(0, 1, 2, 3)
        if kind in ("add", "sub", "mul", "div"):
            try:
                np.broadcast_shapes(a.shape, b.shape)
            except ValueError:
                continue
        m, M = any_of(2, 3)
        if kind == "add":
            new = a + b, A + B
        elif kind == "sub":
            new = a - b, A - B
        elif kind == "mul":
            new = a * b, A * B
        elif kind == "div":
            new = a / (b * b + 1), A / (B * B + 1)
        elif kind == "pow":
            new = (a * a + 1) ** -1.5, (A * A + 1) ** -1.5
        elif kind == "neg":
            new = -a, -A
        elif kind == "exp":
            new = (-(a * a)).exp(), (-(A * A)).exp()
        elif kind == "log":
            new = (a * a + 1).log(), (A * A + 1).log()
        elif kind == "constant":
            array = rng.normal(size=(3, 1))
            if a.shape[-2:] not in [(3, 4), (3, 1), (1, 4), (4,), ()]:
                continue
            new = a * array - 0.5, A * torch.tensor(array) - 0.5
        elif kind == "sum":
            new = a.sum(), A.sum()
        elif kind == "axis":
            axis = int(rng.integers(-m.data.ndim, m.data.ndim))
            new = m.sum(axis), M.sum(axis, keepdim=True)
        elif kind == "matmul":
            w, W = another((m.shape[-1], 3))
            new = m @ w, M @ W
        elif kind == "batched":
            w, W = another((2, m.shape[-1], 4))
            new = m @ w, M @ W
        elif kind == "rows":
            ids = rng.integers(m.shape[0], size=(2, 3))
            if m.data.ndim == 3:
                continue
            new = m[ids], M[torch.tensor(ids)]
        elif kind == "transpose":
            new = m.transpose(-1, -2), M.transpose(-1, -2)
        elif kind == "cat":
            new = names["cat"]([m, m * m]), torch.cat([M, M * M], dim=-1)
        elif kind == "softmax":
            new = names["softmax"](m), F.softmax(M, dim=-1)
        pool.append(new)
    ours, theirs = pool[0][0].sum(), pool[0][1].sum()
    for t, T in pool[1:]:
        weight = float(rng.normal())
        ours, theirs = ours + t.sum() * weight, theirs + T.sum() * weight
    return inputs, ours, theirs


def test_the_gradients_of_random_graphs_are_pytorchs(names):
    used = set()
    for seed in range(40):
        inputs, ours, theirs = grow(names, np.random.default_rng(seed), used)
        ours.backward()
        theirs.backward()
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-10)
        for t, T in inputs:
            assert t.grad.shape == t.shape
            scale = max(1.0, T.grad.abs().max().item())
            np.testing.assert_allclose(
                t.grad, T.grad.numpy(), rtol=0, atol=1e-10 * scale
            )
    assert used == set(KINDS)


def test_a_tensor_that_is_used_twice_receives_both_gradients(names):
    Tensor = names["Tensor"]
    a, b = Tensor(np.array(2.0)), Tensor(np.array(3.0))
    c = a * b
    e = c * (c + a)
    e.backward()
    assert (e.item(), a.grad, b.grad) == (48, 48, 28)  # the chapter's example


def test_the_gradient_check_finds_a_wrong_derivative(names):
    assert names["check_gradient"]() < 1e-9
    Tensor = names["Tensor"]

    def wrong(self):
        return Tensor(np.exp(self.data), [self], lambda g: [g])

    Tensor.exp = wrong
    assert names["check_gradient"]() > 1e-4


def test_the_gradient_check_leaves_weights_and_batches_alone(names):
    before = [p.data.copy() for p in names["model"].parameters()]
    state = names["rng"].bit_generator.state
    names["check_gradient"]()
    for p, data in zip(names["model"].parameters(), before):
        assert p.data.dtype == np.float32 and np.array_equal(p.data, data)
    assert names["rng"].bit_generator.state == state


# ------------------------------------------------------------------- The optimizers
OPTIMIZERS = {
    2: ("SGD", lambda w, lr: torch.optim.SGD(w, lr)),
    3: ("SGD", lambda w, lr: torch.optim.SGD(w, lr, momentum=0.9)),
    4: ("Adam", torch.optim.Adam),
    5: ("AdamW", torch.optim.AdamW),
}


def step_both(make_ours, make_theirs, tensor_type):
    """50 steps with random gradients: ours and theirs must stay together."""
    rng = np.random.default_rng(1)
    starts = [rng.normal(size=(4, 3)), rng.normal(size=3)]
    ours = [tensor_type(start.copy()) for start in starts]
    theirs = [torch.nn.Parameter(torch.tensor(start)) for start in starts]
    our_optimizer, their_optimizer = make_ours(ours, 0.03), make_theirs(theirs, 0.03)
    for _ in range(50):
        for p, P in zip(ours, theirs):
            grad = rng.normal(size=p.data.shape) * 10 ** rng.uniform(-3, 1)
            P.grad = torch.tensor(grad)
            p.grad = P.grad.clone() if isinstance(p, torch.Tensor) else grad
        our_optimizer.step()
        their_optimizer.step()
        for p, P in zip(ours, theirs):
            difference = np.abs(np.asarray(p.data) - P.detach().numpy()).max()
            assert difference < 1e-6


@pytest.mark.parametrize("number", OPTIMIZERS)
def test_the_optimizers_are_pytorchs(load, files, number):
    name, theirs = OPTIMIZERS[number]
    ours = load(files[number - 1])[name]
    step_both(ours, theirs, lambda start: torch.nn.Parameter(torch.tensor(start)))


def test_the_optimizer_in_numpy_is_pytorchs_adamw(names):
    step_both(names["AdamW"], torch.optim.AdamW, names["Tensor"])


# -------------------------------------------------------------------- The same losses
@pytest.mark.parametrize(
    "script, model_name, lr",
    [
        ("bigram.py", "BigramLanguageModel", 5e-2),
        ("v2_attention.py", "AttentionLanguageModel", 5e-3),
    ],
)
def test_training_gives_the_losses_of_pytorch(load, names, script, model_name, lr):
    sizes = ["--n_embd=16", "--n_head=2"] if script != "bigram.py" else []
    theirs = load(script, "--device=cpu", *sizes)["model"]
    names["rng"] = np.random.default_rng(1)
    ours = names[model_name]()
    named = list(theirs.named_parameters())
    assert len(named) == len(ours.parameters())
    for p, (name, P) in zip(ours.parameters(), named):
        array = torch.tensor(p.data.copy())
        linear = P.ndim == 2 and not name.startswith(("table", "wte", "wpe"))
        assert P.shape == (array.T if linear else array).shape
        P.data = array.T.contiguous() if linear else array
    our_optimizer = names["AdamW"](ours.parameters(), lr)
    their_optimizer = torch.optim.AdamW(theirs.parameters(), lr=lr)
    losses = []
    for _ in range(200):
        x, y = names["get_batch"]()
        our_loss, their_loss = ours(x, y), theirs(torch.tensor(x), torch.tensor(y))
        assert our_loss.item() == pytest.approx(their_loss.item(), abs=1e-4)
        losses.append(our_loss.item())
        ours.zero_grad()
        our_loss.backward()
        our_optimizer.step()
        theirs.zero_grad()
        their_loss.backward()
        their_optimizer.step()
    assert sum(losses[-20:]) < sum(losses[:20]) - 2  # it has learned something


def printed(out):
    """All losses that a script has printed."""
    words = out.replace("|", " ").split()
    return [float(word) for last, word in zip(words, words[1:]) if last == "loss"]


def test_from_our_own_dice_on_all_losses_are_the_same(run_any, files):
    args = [*TINY, "--max_iters=200", "--eval_interval=50", "--block_size=32"]
    expected = printed(run_any(str(files[5]), "--device=cpu", *args).out)
    assert len(expected) == 9 and expected[-1] < expected[1] - 0.5
    for file in files[6:12]:
        assert printed(run_any(str(file), *args).out) == pytest.approx(
            expected, abs=2e-4
        )


# -------------------------------------------------------------------- Numbers too large
def test_softmax_and_loss_are_safe_from_overflow(names):
    logits = np.array([[[1e4, 0, -1e4], [-1e4, -1e4, -1e4]]], dtype=np.float32)
    y = np.array([[1, 2]])
    names["vocab_size"] = 3
    t = names["Tensor"](logits)
    T = torch.tensor(logits, requires_grad=True)
    probs, loss = names["softmax"](t), names["cross_entropy"](t, y)
    their_loss = F.cross_entropy(T[0], torch.tensor(y)[0])
    loss.backward()
    their_loss.backward()
    np.testing.assert_allclose(probs.data, F.softmax(T, dim=-1).detach().numpy())
    np.testing.assert_allclose(loss.item(), their_loss.item(), rtol=1e-6)
    np.testing.assert_allclose(t.grad, T.grad.numpy(), atol=1e-7)


@pytest.mark.filterwarnings("ignore")
def test_the_textbook_softmax_overflows_as_the_chapter_says(load, files):
    large = np.array([[200.0, 0.0]], dtype=np.float32)
    assert np.isnan(load(files[6])["softmax"](large)).any()
    assert load(files[7])["softmax"](large).tolist() == [[1.0, 0.0]]


# ---------------------------------------------------------------------- It runs at all
def test_every_step_runs(run_any, files):
    assert files[-1].read_bytes() == SCRIPT.read_bytes()
    for number, file in enumerate(files, start=1):
        sizes = TINY_ATTENTION if number >= 14 else TINY
        done = run_any(str(file), *sizes, "--max_iters=3", "--top_k=5")
        assert (done.code, done.err) == (0, ""), file
        assert final_loss(done.out) is not None, file


def test_it_needs_no_torch(folder):
    (folder / "torch.py").write_text("raise ImportError('there is no torch')")
    command = [sys.executable, str(SCRIPT), *TINY_ATTENTION, "--max_iters=3"]
    env = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("final val loss") == 2


def test_it_starts_prepare_shakespeare_of_the_repository(folder, monkeypatch, run_any):
    (folder / "data" / "shakespeare" / "input.txt").unlink()
    started = []
    monkeypatch.setattr(subprocess, "run", lambda command: started.append(command))
    done = run_any(str(SCRIPT))
    assert started == [[sys.executable, ROOT / "prepare_shakespeare.py"]]
    assert done.code == 1 and "input.txt is missing" in done.err
