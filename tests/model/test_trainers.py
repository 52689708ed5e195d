"""What gpt_char.py, gpt2_train.py and sparse_gpt.py have in common: how they learn.

Optimizer, schedule, training loop and evaluation, for all three alike. What only one of
them has is tested in its own file.
"""

import io
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from makers import (
    ARGS,
    LARGE,
    continued,
    read,
    run_here,
    shake,
    write_shard,
)
from torch.optim.optimizer import register_optimizer_step_pre_hook

# What is shared is run with two blocks, and in micro-steps of two windows
MORE = ["--n_layer=2", "--dropout=0.0", "--out_dir=out/run", "--eval_tokens=10000"]
OPTIMIZERS = ["muon", "adamw"]
# sparse_gpt.py has this from gpt2_train.py; the long tests see that it still does
LAST = pytest.param("sparse_gpt", marks=pytest.mark.long)
WITH_SHARDS = ["gpt2_train", LAST]


@pytest.fixture(params=["gpt_char", *WITH_SHARDS])
def script(request, folder, text, monkeypatch):
    """A script to run in a folder with the text, and with shards of its bytes."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    ids = list(text.encode())
    write_shard("tokens/t_train_000001.bin", ids[:-3000])
    write_shard("tokens/t_val_000000.bin", ids[-3000:])
    (folder / "data/shakespeare/input.txt").write_text(text[:30_000], encoding="utf-8")
    return Script(request.param)


class Script:
    def __init__(self, name):
        self.name = name
        self.args = [*ARGS[name], *MORE]
        if name in LARGE:
            self.args.append("--batch_size=2")
        else:
            self.args.pop(-1)  # it has no --eval_tokens

    def run(self, *args):
        """Run it to the end. Returns what it printed, and its names."""
        done = run_here(f"{self.name}.py", *self.args, *args)
        assert (done.code, done.err) == (0, "")
        return SimpleNamespace(out=done.out, names=done.names)

    def load(self, *args):
        """Its names, of an untrained model."""
        return self.run("--max_iters=0", *args).names

    def save(self, names, step=0):
        """Write last.pt, for a run to begin from."""
        Path("out/run").mkdir(parents=True, exist_ok=True)
        names["save_checkpoint"]("last.pt", step)

    def batch(self, names, step):
        """All inputs and targets of a step."""
        if self.name == "gpt_char":
            return names["get_batch"](step)
        batches = [names["get_batch"](step, i) for i in range(names["accumulation"])]
        return (torch.cat(side) for side in zip(*batches))

    def data(self, names, split):
        """The ids of the training or of the validation data."""
        if self.name == "gpt_char":
            return names[f"{split}_data"]
        (tokens,) = names["shards"][split]
        return torch.from_numpy(tokens.astype(np.int64))


def is_matrix_of_a_block(name):
    parts = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    return name.startswith("h.") and name.endswith(tuple(f"{p}.weight" for p in parts))


# ---------------------------------------------------------------------- A step in whole
@pytest.fixture
def in_float64(monkeypatch):
    """All of a script computes in double precision, so that rounding hides nothing."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    single = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(single)


def orthogonalize(x):
    """Newton-Schulz of a single matrix, by powers of x'x where the scripts take xx'."""
    x = x / (math.sqrt(sum(value * value for value in x.flatten())) + 1e-7)
    for _ in range(5):
        gram = x.T @ x
        x = 3.4445 * x - 4.7750 * (x @ gram) + 2.0315 * (x @ gram @ gram)
    return x


class Reference:
    """Training by the formulas, one matrix after the other, with NumPy."""

    def __init__(self, weights, settings):
        self.weights = {name: p.numpy().copy() for name, p in weights.items()}
        self.settings = settings
        self.step = 0
        self.first = {name: np.zeros_like(p) for name, p in self.weights.items()}
        self.second = {name: np.zeros_like(p) for name, p in self.weights.items()}

    def rate(self):
        s = self.settings
        if self.step < s["warmup_iters"]:
            return s["learning_rate"] / s["warmup_iters"] * (self.step + 1)
        rest = s["max_iters"] - s["warmup_iters"]
        return s["learning_rate"] * (1 - (self.step - s["warmup_iters"]) / rest)

    def learn(self, grads):
        s, rate = self.settings, self.rate()
        norm = math.sqrt(sum((grad**2).sum() for grad in grads.values()))
        assert norm > 2 * s["grad_clip"]  # or clipping would go untested
        for name, grad in grads.items():
            grad = grad * s["grad_clip"] / norm
            decay = s["weight_decay"] if is_matrix_of_a_block(name) else 0
            if s["optimizer"] == "muon" and is_matrix_of_a_block(name):
                change = self.muon(name, grad)
                name_rate = rate
            else:
                change = self.adamw(name, grad)
                name_rate = rate
                if s["optimizer"] == "muon":
                    name_rate = rate * s["adamw_share"]
            self.weights[name] *= 1 - name_rate * decay
            self.weights[name] -= name_rate * change
        self.step += 1

    def muon(self, name, grad):
        """Jordan et al. 2024 with Nesterov momentum, scaled as in Liu et al. 2025."""
        mu = self.settings["momentum"]
        self.first[name] = mu * self.first[name] + (1 - mu) * grad
        ahead = mu * self.first[name] + (1 - mu) * grad
        rows = self.settings["n_embd"]
        pieces = [ahead[i : i + rows] for i in range(0, len(ahead), rows)]
        scaled = [0.2 * math.sqrt(max(x.shape)) * orthogonalize(x) for x in pieces]
        return np.concatenate(scaled)

    def adamw(self, name, grad):
        """Loshchilov and Hutter 2019, algorithm 2."""
        b1, b2 = self.settings["beta1"], self.settings["beta2"]
        self.first[name] = b1 * self.first[name] + (1 - b1) * grad
        self.second[name] = b2 * self.second[name] + (1 - b2) * grad**2
        first = self.first[name] / (1 - b1 ** (self.step + 1))
        second = self.second[name] / (1 - b2 ** (self.step + 1))
        return first / (np.sqrt(second) + 1e-8)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_by_the_formulas(script, in_float64, optimizer):
    """Five steps: clipping, schedule, decay, momentum, all parts of both optimizers."""
    flags = {"learning_rate": 0.02, "weight_decay": 0.4, "momentum": 0.8}
    flags |= {"adamw_share": 0.3, "beta1": 0.7, "beta2": 0.9, "grad_clip": 0.05}
    args = [f"--{name}={value}" for name, value in flags.items()]
    args += ["--dropout=0.0", f"--optimizer={optimizer}"]
    names = script.load(*args)
    model = names["model"]
    shake(model)
    script.save(names)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert all(p.dtype == torch.float64 for p in start.values())
    settings = {**names["config"], "max_iters": 5}
    assert settings["n_embd"] == 16 and settings["warmup_iters"] == 2
    reference = Reference(start, settings)
    for step in range(5):
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(torch.from_numpy(reference.weights[name]))
                p.grad = None
        model(*script.batch(names, step)).backward()
        reference.learn({k: p.grad.numpy() for k, p in model.named_parameters()})
    done = script.run(*args, "--max_iters=5")
    assert continued(done.out) == [("out/run/last.pt", 0)]
    after = read("out/run/last.pt")["model"]
    for name, expected in reference.weights.items():
        change = np.abs(expected - start[name].numpy()).max()
        assert change > 1e-3, name
        difference = np.abs(after[name].numpy() - expected).max()
        assert difference < 1e-7, (name, difference, change)


# ------------------------------------------------------------------------- Its parts
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_decay_is_for_matrices_only(script, optimizer):
    """Without any gradient, embeddings, biases and LayerNorms stay as they are."""
    names = script.load(f"--optimizer={optimizer}", "--weight_decay=0.5")
    shake(names["model"])
    before = {}
    for name, p in names["model"].named_parameters():
        before[name] = p.detach().clone()
        p.grad = torch.zeros_like(p)
    for opt in names["optimizers"]:
        for group in opt.param_groups:
            group["lr"] = 0.1
        opt.step()
    for name, p in names["model"].named_parameters():
        expected = before[name]
        if is_matrix_of_a_block(name):
            expected = expected * (1 - 0.1 * 0.5)
        torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_parameter_groups(script, optimizer):
    """Every parameter is in one group, all matrices of a width are in one."""
    names = script.load(f"--optimizer={optimizer}", "--adamw_share=0.3")
    name_of = {id(p): name for name, p in names["model"].named_parameters()}
    groups = []
    for opt in names["optimizers"]:
        for group in opt.param_groups:
            members = [name_of[id(p)] for p in group["params"]]
            groups.append((type(opt), group["lr_scale"], members))
    everything = [name for _, _, members in groups for name in members]
    assert sorted(everything) == sorted(name_of.values())
    *of_matrices, (kind, scale, others) = groups
    assert kind is torch.optim.AdamW
    matrices = [name for _, _, members in of_matrices for name in members]
    assert set(matrices) == set(filter(is_matrix_of_a_block, everything))
    assert all(scale == 1 for _, scale, _ in of_matrices)
    if optimizer == "muon":
        assert scale == 0.3
        assert {kind for kind, _, _ in of_matrices} == {names["Muon"]}
        assert [len(members) for _, _, members in of_matrices] == [6, 2]
    else:
        assert scale == 1 and len(of_matrices) == 1


def test_learning_rate_at_its_ends(script):
    names = script.load("--learning_rate=0.5", "--warmup_iters=10")
    names["max_iters"] = 110  # as if it trained
    rates = [names["get_lr"](step) for step in range(111)]
    assert rates[:10] == pytest.approx([0.05 * (i + 1) for i in range(10)])
    assert max(rates) == rates[9] == rates[10] == 0.5
    assert rates[10:] == pytest.approx([0.5 * (110 - i) / 100 for i in range(10, 111)])
    assert rates[109] > 0 == rates[110]  # the last step still learns
    names["max_iters"] = 5  # all of it is warm-up
    assert [names["get_lr"](step) for step in range(5)] == rates[:5]
    names["warmup_iters"], names["max_iters"] = 0, 110
    assert names["get_lr"](0) == 0.5


class Steps:
    """Notes something at every step of every optimizer, before it changes a weight."""

    def __init__(self, note):
        self.noted = []
        self.hook = register_optimizer_step_pre_hook(
            lambda opt, *_: self.noted.append(note(opt))
        )

    def __enter__(self):
        return self.noted

    def __exit__(self, *_):
        self.hook.remove()


def squares(opt):
    """The squared norm of all gradients that an optimizer uses."""
    params = [p for group in opt.param_groups for p in group["params"]]
    return sum(p.grad.square().sum().item() for p in params)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_gradient_is_clipped_before_the_step(script, optimizer):
    """The gradient of the whole model, as it is when an optimizer comes to use it.

    With --grad_clip=0 it is left alone.
    """
    for grad_clip, max_iters in ((0.01, 3), (1e6, 1), (0, 1)):
        with Steps(squares) as noted:
            script.run(
                f"--optimizer={optimizer}",
                f"--max_iters={max_iters}",
                f"--grad_clip={grad_clip}",
                "--init_from=scratch",
            )
        if optimizer == "muon":
            noted = [a + b for a, b in zip(noted[::2], noted[1::2])]
        norms = [math.sqrt(total) for total in noted]
        if grad_clip == 0.01:
            assert norms == pytest.approx([0.01] * 3, rel=1e-3)
        else:  # left alone, it is that of the mean loss of the whole batch
            untrained = script.load("--init_from=scratch")
            untrained["model"](*script.batch(untrained, 0)).backward()
            grads = [p.grad for p in untrained["model"].parameters()]
            expected = math.sqrt(sum(grad.square().sum().item() for grad in grads))
            assert norms == [pytest.approx(expected, rel=1e-4)] and expected > 0.05


@pytest.mark.parametrize("script", WITH_SHARDS, indirect=True)
def test_float16_is_clipped_by_its_true_gradient(script):
    """Not by the one that is scaled so that it does not underflow."""
    norms = {}
    for precision in ("--float16", "--no-float16"):
        for grad_clip in (0.01, 1e6):
            args = [f"--grad_clip={grad_clip}", "--max_iters=1", "--optimizer=adamw"]
            with Steps(squares) as noted:
                script.run(precision, *args, "--init_from=scratch")
            norms[precision, grad_clip] = math.sqrt(noted[0])
    assert norms["--float16", 0.01] == pytest.approx(0.01, rel=1e-3)
    expected = norms["--no-float16", 1e6]
    assert norms["--float16", 1e6] == pytest.approx(expected, rel=0.02)


# ------------------------------------------------------------------------------- Muon
@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (64, 16), (16, 64)])
def test_muon_is_that_of_torch(script, monkeypatch, shape):
    """The same weights as torch.optim.Muon's with a matrix for every n_embd rows.

    Each piece has a norm of its own, whatever the others' are. Torch's does its
    products in bfloat16 always; here they are in float64 on both sides, so that
    rounding hides nothing. What is left is that it divides by max(norm, 1e-7), and we
    by norm + 1e-7.
    """
    settings = {"learning_rate": 0.03, "momentum": 0.8, "weight_decay": 0.2}
    names = script.load(*[f"--{name}={value}" for name, value in settings.items()])
    assert names["bfloat16"] is False and names["n_embd"] == 16
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch, "bfloat16", torch.float64)
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.double)
    generator = torch.Generator().manual_seed(1)
    for count in (1, 3):
        start = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
        ours = [torch.nn.Parameter(p.clone()) for p in start]
        parts = [part for p in start for part in p.split(16)]
        theirs = [torch.nn.Parameter(part.clone()) for part in parts]
        a = names["Muon"]([{"params": ours, "lr": 0.03}], {})
        kinds = {"adjust_lr_fn": "match_rms_adamw", "nesterov": True}
        b = torch.optim.Muon(theirs, lr=0.03, momentum=0.8, weight_decay=0.2, **kinds)
        scales = 10.0 ** -(torch.arange(len(parts)) % 4)
        scales = scales.view(count, -1).repeat_interleave(16, dim=1)[..., None]
        for step in range(5):
            for opt in (a, b):
                opt.param_groups[0]["lr"] = 0.03 / (step + 1)  # a schedule
            grads = torch.randn(start.shape, generator=generator, dtype=torch.float64)
            grads = 1000 * grads * scales * 10.0**-step  # of any length
            for p, grad in zip(ours, grads):
                p.grad = grad.mT.contiguous().mT  # in whatever order in memory
            for q, grad in zip(theirs, (part for g in grads for part in g.split(16))):
                q.grad = grad.clone()
            a.step()
            b.step()
            for p, q in zip(torch.cat(ours).split(16), theirs):
                torch.testing.assert_close(p, q, rtol=0, atol=3e-8)


def test_muon_continues_after_a_checkpoint(script):
    """Its mean gradient is kept for each group, and a state_dict has all of it."""
    names = script.load()
    results = []
    for reload in (False, True):
        generator = torch.Generator().manual_seed(1)
        params = []
        for _ in range(4):
            p = torch.randn(32, 16, generator=generator)
            params.append(torch.nn.Parameter(p))
        groups = [{"params": params[:3], "lr": 0.1}, {"params": params[3:], "lr": 0.1}]
        opt = names["Muon"](groups, {})
        for step in range(4):
            for p in params:
                p.grad = torch.randn(32, 16, generator=generator)
            opt.step()
            if reload and step == 1:
                buffer = io.BytesIO()
                torch.save(opt.state_dict(), buffer)
                buffer.seek(0)
                groups = [{"params": params[:3]}, {"params": params[3:]}]
                opt = names["Muon"](groups, {})
                opt.load_state_dict(torch.load(buffer, weights_only=True))
        results.append(torch.stack([p.detach() for p in params]))
    assert torch.equal(*results)


# ------------------------------------------------------------------ Data and evaluation
def test_targets_are_the_next_tokens(script):
    """Of windows of the training data, and of other ones in every step."""
    names = script.load()
    train = script.data(names, "train").tolist()
    text = bytes(train)
    seen = set()
    for step in range(8):
        x, y = script.batch(names, step)
        assert x.shape == y.shape == (4, 16)
        for inputs, targets in zip(x.tolist(), y.tolist()):
            assert inputs[1:] == targets[:-1]
            window = bytes([*inputs, targets[-1]])
            assert window in text
            seen.add(window)
    assert len(seen) == 32


def test_evaluation_is_direct_and_without_dropout(script):
    """Each position of the validation data once, in whole windows, by the formula."""
    names = script.load("--dropout=0.5")
    model = names["model"]
    shake(model)
    ids = script.data(names, "val")
    losses = []
    plain = script.load("--dropout=0.0")["model"]
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        for i in range(0, (len(ids) - 1) // 16 * 16, 16):
            log_probs = plain.logits(ids[None, i : i + 16])[0].double().log_softmax(-1)
            for t in range(16):
                losses.append(-log_probs[t, ids[i + t + 1]].item())
    assert len(ids) - 17 < len(losses) <= len(ids) - 1
    expected = sum(losses) / len(losses)
    for _ in range(2):
        assert names["estimate_loss"]() == pytest.approx(expected, rel=1e-5)
        assert model.training  # again


def test_dropout_is_for_training_only(script):
    """Each place alone: the embedding, the attention weights, both parts of a block."""
    names = script.load("--dropout=0.5")
    model = names["model"]
    shake(model)
    idx = script.data(names, "val")[None, :16]
    drops = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    assert len(drops) == 3 and model.training
    silent = {"embedding": [0], "attention": [], "block": [1]}
    with torch.no_grad():
        model.eval()
        expected = model.logits(idx)
        model.train()
        for place, indices in silent.items():
            for i, drop in enumerate(drops):
                drop.p = 0.5 if i in indices else 0.0
            names["dropout"] = 0.5 if place == "attention" else 0.0
            assert not torch.equal(model.logits(idx), model.logits(idx)), place
            model.eval()
            assert torch.equal(model.logits(idx), expected), place
            model.train()
    for drop in drops:
        drop.p = 0.5
    names["dropout"] = 0.5
    samples = [names["generate"](idx, 8, temperature=0) for _ in range(2)]
    assert torch.equal(*samples) and model.training


def windows_of(script, names, steps):
    """The windows of some steps as tuples, in their order."""
    found = []
    for step in steps:
        x, y = script.batch(names, step)
        for inputs, targets in zip(x.tolist(), y.tolist()):
            found.append((*inputs, targets[-1]))
    return found


def test_an_epoch_is_shuffled(script):
    """Each window once, in an order that depends on the seed and on the epoch."""
    names = script.load()
    epochs = [windows_of(script, names, range(i, i + 600)) for i in (0, 600)]
    ids = script.data(names, "train").tolist()
    count = len(ids) // 16 - 1
    if script.name in LARGE:
        count = (len(ids) - 16) // 16
    places = {}
    for i in range(len(ids) - 16):
        places.setdefault(tuple(ids[i : i + 17]), i)
    starts = [places[window] for window in epochs[0]]
    assert len({i % 16 for i in starts[: count // 4 * 4]}) == 1  # one cut, then another
    first = starts[: count // 4 * 4]
    assert len(set(first)) > 0.95 * len(first)  # the text may have a window twice
    ordered = sum(a < b for a, b in zip(first, first[1:])) / len(first)
    assert 0.4 < ordered < 0.6
    assert epochs[0] != epochs[1]
    other = script.load("--seed=5")
    assert windows_of(script, other, range(3)) != epochs[0][:12]
    assert windows_of(script, script.load(), range(3)) == epochs[0][:12]


@pytest.mark.parametrize("script", WITH_SHARDS, indirect=True)
def test_processes_share_the_data(script):
    """Two processes together take the windows of one, in training and evaluation."""
    names = script.load()
    shake(names["model"])
    whole = windows_of(script, names, range(5))
    loss = names["estimate_loss"]()
    names["world_size"], names["accumulation"] = 2, 1
    shares, sums = [], []
    names["add_up"] = lambda *numbers: sums.append(numbers) or (1, 1)
    for rank in range(2):
        names["rank"] = rank
        shares.append(windows_of(script, names, range(5)))
        names["estimate_loss"]()
    for step in range(5):
        mine = [share[2 * step : 2 * step + 2] for share in shares]
        assert mine[0] + mine[1] == whole[4 * step : 4 * step + 4]
    total, count = (sum(column) for column in zip(*sums))
    assert total / count == pytest.approx(loss, rel=1e-6) and sums[0] != sums[1]


@pytest.mark.parametrize("script", WITH_SHARDS, indirect=True)
def test_muon_shares_its_pieces(script, monkeypatch):
    """Two processes that put together what each has computed equal one process."""
    names = script.load()
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(3, 16, 16, generator=generator)
    grads = torch.randn(4, 3, 16, 16, generator=generator)

    def train(world_size, rank, joined):
        names["world_size"], names["rank"] = world_size, rank
        params = [torch.nn.Parameter(p.clone()) for p in start]
        opt = names["Muon"]([{"params": params, "lr": 0.1}], {})
        shares = []
        really = names["join_shares"]
        for step in range(4):

            def join(share, length, step=step):
                shares.append(share.clone())
                return share.new_zeros(length, 16, 16) if not joined else joined[step]

            names["join_shares"] = join
            for p, grad in zip(params, grads[step]):
                p.grad = grad.clone()
            opt.step()
        names["join_shares"] = really
        return shares, torch.stack([p.detach() for p in params])

    (first, _), (second, _) = (train(2, rank, None) for rank in range(2))
    assert [len(share) for share in first + second] == [2] * 4 + [1] * 4
    whole, _ = train(1, 0, None)
    together = [torch.cat(pair) for pair in zip(first, second)]
    for a, b in zip(together, whole):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(train(2, 1, together)[1], train(1, 0, whole)[1])


def test_every_step_has_a_dropout_of_its_own(script, monkeypatch):
    """And the same one again in another run of the same seed."""
    masks = []

    def noting(self, x, forward=torch.nn.Dropout.forward):
        y = forward(self, x)
        if self.training:
            masks.append(y == 0)
        return y

    monkeypatch.setattr(torch.nn.Dropout, "forward", noting)
    runs = []
    for _ in range(2):
        masks.clear()
        script.run("--dropout=0.5", "--max_iters=4", "--init_from=scratch")
        count = len(masks) // 4
        runs.append([torch.stack(masks[i * count : i * count + 1]) for i in range(4)])
    for i in range(4):
        assert torch.equal(runs[0][i], runs[1][i])
        for j in range(i):
            assert not torch.equal(runs[0][i], runs[0][j])


# -------------------------------------------------------------------------- Checkpoints
def test_best_is_the_best_so_far(script):
    """Not the better of the last two; last.pt knows the best, too."""
    names = script.load()
    Path("out/run").mkdir(parents=True)
    val_losses = [3.0, 2.0, 2.5, 2.2, 2.0, 1.9, 2.1]
    best_steps = [1, 2, 2, 2, 2, 6, 6]
    remaining = iter(val_losses)
    names["estimate_loss"] = lambda: next(remaining)
    names["sample"] = lambda *_: "no text"  # that takes time
    for step, expected in enumerate(best_steps, start=1):
        names["evaluate_and_save"](step)
        best, last = read("out/run/best.pt"), read("out/run/last.pt")
        assert (best["step"], last["step"]) == (expected, step)
        assert best["best_val_loss"] == val_losses[expected - 1]
        assert last["best_val_loss"] == val_losses[expected - 1]


@pytest.mark.long
def test_best_so_far_is_resumed(script):
    """A continued run replaces best.pt only where it is better than all of the run."""
    script.run("--max_iters=1")
    for name in ("best.pt", "last.pt"):
        checkpoint = read(Path("out/run", name))
        checkpoint["best_val_loss"] = 0.01  # never again
        torch.save(checkpoint, Path("out/run", name))
    before = Path("out/run/best.pt").read_bytes()
    script.run("--max_iters=3", "--eval_interval=1")
    assert Path("out/run/best.pt").read_bytes() == before
    last = read("out/run/last.pt")
    assert last["step"] == 3 and last["best_val_loss"] == 0.01
    # From scratch, what was there before counts no more
    script.run("--max_iters=1", "--init_from=scratch")
    best = read("out/run/best.pt")
    assert best["step"] == 1 and best["best_val_loss"] > 1


def test_the_best_weights_write_the_sample(script):
    """A complete run loads best.pt, not what the last step left."""
    script.run("--max_iters=2")
    best = read("out/run/best.pt")
    for p in best["model"].values():
        p.mul_(1.5)
    torch.save(best, "out/run/best.pt")
    weights = script.run("--max_iters=2").names["model"].state_dict()
    for name, p in best["model"].items():
        assert torch.equal(weights[name], p), name


def test_a_resumed_run_evaluates_when_an_unbroken_one_does(script):
    """Steps count from the start of the training, not from where a run continues."""

    def evaluated(*args):
        out = script.run("--eval_interval=3", *args).out
        words = [line.split() for line in out.splitlines() if "| val loss" in line]
        return [int(line[1].partition("/")[0]) for line in words]

    first, rest = evaluated("--max_iters=4"), evaluated("--max_iters=9")
    assert first[-2:] == [3, 4] and rest == [6, 9]
