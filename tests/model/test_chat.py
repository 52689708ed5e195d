"""The steps that lead to beyond/chat.py, up to a Llama that is trained at home.

Its cache, its tokenizer. What real weights bring is in test_chat_weights.py.
"""

import random
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
HOME = "chat/09_byte_pair_encoding.py"  # the last step with a tokenizer of its own
TINY = ["--n_layer=2", "--n_head=2", "--n_embd=16", "--n_hidden=24", "--n_kv_head=1"]
TINY += ["--block_size=16", "--batch_size=4", "--n_merges=20", "--no-bfloat16"]
# n_head, n_kv_head, n_embd, n_hidden, n_layer, block_size
SIZES = [(1, 1, 2, 1, 1, 1), (6, 2, 36, 37, 3, 19), (4, 4, 24, 5, 2, 7)]


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """The folder with the file after each step."""
    found = tmp_path_factory.mktemp("steps")
    tool = ROOT / "docs/tools/steps.py"
    command = [sys.executable, tool, "unfold", found]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return found


@pytest.fixture
def names(load, steps):
    return load(steps / HOME, *TINY)


def randomize(model):
    """No weight stays 0 or 1: a missing one would show."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3 + 0.1)


def copy_weights(names, theirs, to_ours):
    """Copy all weights between our model and one of transformers."""
    model, hs = names["model"], names["n_embd"] // names["n_head"]
    heads = [names["n_head"] * hs, names["n_kv_head"] * hs, names["n_kv_head"] * hs]
    pairs = [(model.wte.weight, theirs.model.embed_tokens.weight)]
    pairs += [(model.ln_f.weight, theirs.model.norm.weight)]
    for ours, layer in zip(model.h, theirs.model.layers):
        attn, mlp = layer.self_attn, layer.mlp
        qkv = [attn.q_proj.weight, attn.k_proj.weight, attn.v_proj.weight]
        pairs += zip(ours.attn.c_attn.weight.split(heads), qkv)
        both = [mlp.gate_proj.weight, mlp.up_proj.weight]
        pairs += zip(ours.mlp.c_fc.weight.chunk(2), both)
        pairs += [(ours.attn.c_proj.weight, attn.o_proj.weight)]
        pairs += [(ours.mlp.c_proj.weight, mlp.down_proj.weight)]
        pairs += [(ours.ln_1.weight, layer.input_layernorm.weight)]
        pairs += [(ours.ln_2.weight, layer.post_attention_layernorm.weight)]
        if names["qk_norm"]:
            pairs += [(ours.attn.q_norm.weight, attn.q_norm.weight)]
            pairs += [(ours.attn.k_norm.weight, attn.k_norm.weight)]
    count = sum(p.numel() for p in theirs.parameters())
    assert sum(ours.numel() for ours, _ in pairs) == count
    with torch.no_grad():
        for a, b in pairs:
            if to_ours:
                a.copy_(b)
            else:
                b.copy_(a)


@pytest.mark.parametrize("to_ours", [True, False], ids=["to ours", "to theirs"])
@pytest.mark.parametrize("qk_norm", [False, True], ids=["Llama", "Qwen3"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_logits_are_those_of_transformers(load, steps, sizes, qk_norm, to_ours):
    transformers = pytest.importorskip("transformers")
    n_head, n_kv_head, n_embd, n_hidden, n_layer, block_size = sizes
    args = [f"--n_head={n_head}", f"--n_kv_head={n_kv_head}", f"--n_embd={n_embd}"]
    args += [f"--n_hidden={n_hidden}", f"--n_layer={n_layer}", "--rope_base=500"]
    args += [f"--block_size={block_size}", "--n_merges=9", "--no-bfloat16"]
    args += ["--qk_norm" if qk_norm else "--no-qk_norm", "--batch_size=64"]
    names = load(steps / HOME, *args)
    kind = "Qwen3" if qk_norm else "Llama"
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=names["vocab_size"],
        hidden_size=n_embd,
        intermediate_size=n_hidden,
        num_hidden_layers=n_layer,
        num_attention_heads=n_head,
        num_key_value_heads=n_kv_head,
        head_dim=n_embd // n_head,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    randomize(theirs if to_ours else names["model"])
    copy_weights(names, theirs, to_ours)
    generator = torch.Generator().manual_seed(2)
    shape = (3, block_size)
    idx = torch.randint(names["vocab_size"], shape, generator=generator)
    with torch.no_grad():
        ours, expected = names["model"].logits(idx), theirs(idx).logits
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * scale)


# ------------------------------------------------------------------------- The cache
@pytest.mark.parametrize("pieces", [[16], [1] * 16, [5, 1, 7, 3]], ids=str)
def test_the_cache_changes_no_logits(names, pieces):
    model = names["model"]
    randomize(model)
    idx = torch.randint(names["vocab_size"], (2, 16))
    size = (names["n_layer"], 2, 2, names["n_kv_head"], 16, 8)
    cache = torch.full(size, torch.nan)  # what was not written must not be read
    start, found = 0, []
    with torch.no_grad():
        for piece in idx.split(pieces, dim=1):
            found.append(model.logits(piece, cache, start))
            start += piece.shape[1]
        expected = model.logits(idx)
    torch.testing.assert_close(torch.cat(found, dim=1), expected)


def test_generate_is_greedy_decoding_without_a_cache(names):
    model = names["model"]
    randomize(model)
    ids = names["encode"]("Ab")
    found = list(names["generate"](ids, 40, temperature=0))
    for token in found:
        if len(ids) > 16:
            ids = ids[-8:]
        with torch.no_grad():
            assert token == model.logits(torch.tensor([ids]))[0, -1].argmax()
        ids = ids + [token]


def test_a_context_of_one_token(load, steps):
    names = load(steps / HOME, *TINY, "--block_size=1")
    assert len(list(names["generate"]([1, 2, 3], 5))) == 5


# --------------------------------------------------------------------- The tokenizer
def slowly(names, text, n_merges):
    """Byte-pair encoding by the book: count everything again after every merge."""
    words = Counter(names["word_pattern"].findall(text))
    parts = {word: [bytes([b]) for b in word.encode()] for word in words}
    merges = []
    for _ in range(n_merges):
        counts = Counter()
        for word, n in words.items():
            for pair in zip(parts[word], parts[word][1:]):
                counts[pair] += n
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        for word, old in parts.items():
            new, i = [], 0
            while i < len(old):
                both = tuple(old[i : i + 2]) == best
                new.append(b"".join(best) if both else old[i])
                i += 2 if both else 1
            parts[word] = new
    return merges


def test_the_merges_are_the_most_frequent_pairs(names, text):
    train = text[: int(0.9 * len(text))]
    assert names["merges"] == slowly(names, train, 20)


def random_strings(count, assigned=False):
    """Strings of all of Unicode, with letters, digits and spaces more often.

    assigned: only of characters that this Python knows. Which category the newest ones
    have depends on the version of Unicode, and so on the library.
    """
    rng = random.Random(3)
    common = "abcdeABC  \n\t'ls é0123456789.,!"
    for _ in range(count):
        chars = []
        for _ in range(rng.randrange(20)):
            c = chr(rng.randrange(0x110000))
            if rng.random() < 0.7 or "\ud800" <= c <= "\udfff":
                c = rng.choice(common)
            if assigned and unicodedata.category(c) == "Cn":
                c = chr(rng.randrange(0xA0, 0x300))
            chars.append(c)
        yield "".join(chars)


def test_the_encoding_is_tiktokens_with_the_same_merges(names):
    tiktoken = pytest.importorskip("tiktoken")
    theirs = tiktoken.Encoding(
        "ours",
        pat_str=names["word_pattern"].pattern,
        mergeable_ranks=names["token_ids"],
        special_tokens={},
    )
    for s in random_strings(10_000):
        ids = names["encode"](s)
        assert ids == theirs.encode_ordinary(s), ascii(s)
        assert names["decode"](ids) == s


def test_words_are_cut_as_by_the_tokenizers_library(names):
    """SmolLM2's rule: digits one by one, then GPT-2's pattern."""
    rules = pytest.importorskip("tokenizers").pre_tokenizers
    digits = rules.Digits(individual_digits=True)
    theirs = rules.Sequence([digits, rules.ByteLevel(add_prefix_space=False)])
    for s in random_strings(10_000, assigned=True):
        spans = [span for _, span in theirs.pre_tokenize_str(s)]
        ours = [m.span() for m in names["word_pattern"].finditer(s)]
        assert ours == spans, ascii(s)


def test_broken_characters_are_shown_as_such(names):
    assert names["decode"]([0xC3]) == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.long
# ---------------------------------------------------------------------- It runs at all
def test_every_step_runs(run, steps):
    files = sorted((steps / "chat").glob("*.py"))
    assert files[-1].read_bytes() == (ROOT / "beyond/chat.py").read_bytes()
    for number, file in enumerate(files[:10], start=1):
        sizes = ["--n_layer=2", "--n_embd=16", "--block_size=16", "--batch_size=64"]
        if number >= 6:
            sizes += ["--n_hidden=32"]
        sizes += ["--max_iters=3", "--max_new_tokens=30", "--init_from=scratch"]
        done = run(str(file), *sizes)
        assert (done.code, done.err) == (0, ""), file
        assert "final val loss" in done.out, file


def test_a_run_that_was_interrupted_continues(run, steps):
    script = str(steps / HOME)
    sizes = ["--n_layer=1", "--n_embd=16", "--n_hidden=32", "--block_size=16"]
    sizes += ["--n_merges=20", "--no-bfloat16", "--eval_interval=4", "--seed=3"]
    sizes += ["--max_new_tokens=5", "--max_iters=8", "--batch_size=16"]
    whole = run(script, *sizes, "--out_dir=a")
    half = run(script, *sizes, "--out_dir=b")
    Path("b/last.pt").unlink()
    again = run(script, *sizes, "--out_dir=b")  # from best.pt
    assert (whole.code, half.code, again.code) == (0, 0, 0)
    assert again.out.splitlines()[-1] == whole.out.splitlines()[-1]


@pytest.mark.parametrize(
    "flag, word",
    [
        ("--n_kv_head=3", "n_kv_head"),
        ("--n_hidden=0", "n_hidden"),
        ("--n_merges=-1", "n_merges"),
        ("--n_embd=6", "even"),
    ],
)
def test_bad_sizes_are_refused(run, steps, flag, word):
    done = run(str(steps / HOME), *TINY, flag)
    assert done.code == 2 and word in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
