"""The worked examples of docs/gpt2_train.md, computed again.

Every number is read from the chapter, so a typing error in an example fails a test.
"""

import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import torch

ROOT = Path(__file__).parents[2]
CHAPTER = (ROOT / "docs/gpt2_train.md").read_text(encoding="utf-8")
SIZES = {"gpt2": (12, 768), "gpt2-xl": (48, 1600)}  # layers and channels


def section(title):
    """The prose of a step, without its diff."""
    body = re.search(
        rf"^## (?:\d+\. )?{title}.*?\n(.*?)(?:^```diff|^## |\Z)", CHAPTER, re.M | re.S
    )
    return " ".join(body[1].split())


def number(title, pattern):
    """The number that stands in a step where the pattern has (#)."""
    pattern = re.escape(pattern).replace(r"\(\#\)", r"([\d.,]*\d)")
    found = re.search(pattern, section(title))
    assert found, f"{title}: {pattern}"
    return float(found[1].replace(",", ""))


def close(said, computed, digits=2):
    """Equal to so many significant digits."""
    return abs(said - computed) <= 0.51 * 10 ** (
        math.floor(math.log10(computed)) - digits + 1
    )


# -------------------------------------------------------------------------------- Data
def test_bytes_of_characters():
    text = section("Bytes instead of characters")
    for character in "ROù?🙂":
        assert " ".join(str(byte) for byte in character.encode()) in text


def merge(tokens, pair):
    """The tokens with every occurrence of a pair joined, from the left."""
    joined = []
    for token in tokens:
        if joined and (joined[-1], token) == pair:
            joined[-1] += token
        else:
            joined.append(token)
    return joined


def merges_of(text, count):
    """The first merges of byte-pair encoding, and the tokens after each of them."""
    tokens = list(text)
    found = [(tokens, None, 0)]
    for _ in range(count):
        pair, times = Counter(zip(tokens, tokens[1:])).most_common(1)[0]
        tokens = merge(tokens, pair)
        found.append((tokens, pair, times))
    return found


def test_byte_pair_encoding_by_hand():
    text = section("Byte-pair encoding")
    states = merges_of("the_thin_other", 2)
    for (tokens, _, _), (_, pair, times) in zip(states, states[1:]):
        words = {3: "3 times", 2: "twice"}[times]
        assert (
            f"{' '.join(tokens)} {len(tokens)} tokens {' '.join(pair)}, {words}" in text
        )
    last = states[-1][0]
    assert f"{' '.join(last)} {len(last)} tokens" in text
    assert max(Counter(zip(last, last[1:])).values()) == 1  # nothing is left to merge
    tokens = list("thin_the")  # the question
    for _, pair, _ in states[1:]:
        tokens = merge(tokens, pair)
    assert f"`{' '.join(tokens)}`: {len(tokens)} tokens" in text


def test_byte_pair_encoding_of_the_exercise():
    tokens, _, _ = merges_of("low_lower_lowest", 2)[-1]
    text = " ".join(section("Exercises").split())
    assert f"`{' '.join(tokens)}`: {len(tokens)} tokens" in text


def test_tokens_of_gpt2(encoding):
    shown = "ROM|EO|:|\\n|How| are| you"
    assert shown in CHAPTER
    pieces = shown.replace("\\n", "\n").split("|")
    ids = encoding.encode_ordinary("".join(pieces))
    assert [encoding.decode([i]) for i in ids] == pieces
    assert isinstance(encoding, tiktoken.Encoding)


# ------------------------------------------------------------------------------- Sizes
def parameters(size, context=1024, vocabulary=50304):
    layers, C = SIZES[size]
    return (vocabulary + context) * C + layers * (12 * C * C + 13 * C) + 2 * C


def test_parameters_of_gpt2():
    blocks = number("Sizes by name", "12 blocks x 12 x 768² = (#) million")
    table = number("Sizes by name", "1024 x 768 = (#) million")
    small = number("Sizes by name", "LayerNorms (#) million")
    assert close(blocks, 12 * 12 * 768**2 / 1e6, 3)
    assert close(table, (50304 + 1024) * 768 / 1e6, 3)
    assert f"{blocks + table + small:.1f}" == f"{parameters('gpt2') / 1e6:.1f}"


def test_first_loss_by_hand():
    logit = 768 * 0.02**2 / (0.02 * math.sqrt(2))
    spread = 0.02 * math.sqrt(768)
    others = 50257 * math.exp(spread**2 / 2)
    title = "Sizes by name"
    assert close(number(title, "/ 0.0283 = (#) other"), logit, 4)
    assert close(number(title, "0.02 * sqrt(768) = (#)"), spread)
    loss = number(title, "+ 52,000) = (#)")
    assert close(loss, math.log(others + math.exp(logit)), 3)
    largest = number(title, "0.0283 = (#), and e^")
    assert close(largest, 1600 * 0.02**2 / (0.02 * math.sqrt(2)), 3)


def test_float16_loses_what_the_chapter_says():
    lost = torch.tensor(1e-9)
    kept = torch.tensor(1e-9 * 65536)
    assert lost.half() == 0
    assert close(number("Loss scaling", "65536 * gradient (#)e-5"), kept.item() * 1e5)
    assert abs(kept.half().float() / 65536 / 1e-9 - 1) < 1e-3
    assert torch.finfo(torch.float16).max == 65504


# -------------------------------------------------------------------------- Processes
def test_windows_of_two_processes():
    """The rows of the example in step 12, by the formula of get_batch."""
    for rank in range(2):
        rows = []
        for micro_step in range(2):
            first = (micro_step * 2 + rank) * 2
            rows.append(f"{first} {first + 1}")
        line = f"rank {rank} {' '.join(rows)}"
        assert line in section("One gradient from all processes")


def test_micro_batches_after_losing_half_of_the_gpus():
    text = section("One gradient from all processes")
    windows = 524_288 // 1024
    for processes, words in ((8, "4 micro-batches"), (4, "8 micro-batches")):
        assert f"{windows // processes // 16} micro-batches" == words
        assert words in text


def test_batch_size_that_fits_by_hand():
    title = "A batch size that fits"
    memory = 0.9 * 24 * 2**30
    fixed = 20 * parameters("gpt2")
    per_token = 34 * 12 * 768 + 13 * 50304
    sequences = int((memory - fixed) / per_token / 1024)
    largest = max(n for n in range(1, sequences + 1) if 512 % n == 0)
    assert close(number(title, "24 GiB (#) GB"), memory / 1e9, 3)
    assert close(number(title, "million x 20 - (#) GB"), fixed / 1e9)
    assert close(number(title, "13 x 50304 = (#) bytes"), per_token, 3)
    assert number(title, "or (#) sequences") == sequences
    assert number(title, "divisor of 512 below = (#)") == largest
    assert "41 sequences fit" in section(title)
    assert int((memory - fixed) / per_token / 512) == 41


def test_operations_of_gpt2():
    title = "MFU"
    per_token = 6 * parameters("gpt2") + 12 * 12 * 768 * 1024
    per_step = 524_288 * per_token
    assert close(number(title, "768 x 1024 = (#) billion"), per_token / 1e9)
    assert close(number(title, "tokens = (#) x 10^12"), per_step / 1e12)
    assert close(number(title, "-> (#) s at best"), per_step / 989e12)
    assert close(number(title, "step takes (#) s"), 2 * per_step / 989e12)


# ------------------------------------------------------------------------- Checkpoints
def test_size_of_a_checkpoint():
    title = "Checkpoints of gigabytes"
    weights = parameters("gpt2")
    matrices = 12 * 12 * 768**2
    parts = [4 * weights, 4 * matrices, 8 * (weights - matrices)]
    said = []
    for start in ("million weights", "one mean each", "two means each"):
        said.append(number(title, f"{start} x 4 bytes = (#) MB"))
    assert all(close(a, b / 1e6, 3) for a, b in zip(said, parts))
    assert f"{sum(said):.0f} MB" in section(title).replace(",", "")


def test_noise_of_guessing():
    title = "HellaSwag"
    share = number(title, "10042) = (#) percentage")
    assert close(share, 100 * math.sqrt(0.25 * 0.75 / 10042))
    assert close(
        number(title, "With 200 questions it is (#)"), 100 * math.sqrt(0.1875 / 200)
    )


def test_memory_of_the_cache():
    assert number("The KV cache", "1024 · 2 = (#) MB") == round(
        2 * 12 * 768 * 1024 * 2 / 1e6
    )


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_order_of_an_epoch_has_every_window_once(epoch):
    (order,) = re.findall(rf"epoch {epoch} reads them as +((?:\d )+)", CHAPTER)
    assert sorted(int(n) for n in order.split()) == list(range(9))
    assert np.cumsum([4, 3, 2])[0] == 4  # window 5 is number 1 of the second shard


# ------------------------------------------------------------------------------- Form
def steps():
    """{title: prose} of all steps."""
    found = re.split(r"^## \d+\. (.+)$", CHAPTER, flags=re.M)
    return dict(zip(found[1::2], found[2::2]))


@pytest.mark.parametrize("title", steps())
def test_every_step_has_the_same_parts(title):
    prose = steps()[title].split("```diff")[0].replace("*Not measured", "*Measured")
    parts = ["**In the diff**", "**Predict**", "**Run**", "*Measured", "<details>"]
    places = [prose.index(part) for part in parts]
    assert places == sorted(places)
    assert " and " not in title


def test_every_picture_of_the_chapter_is_there():
    pictures = re.findall(r"\]\((pictures/\w+\.svg)\)", CHAPTER)
    assert len(pictures) == 5
    assert all((ROOT / "docs" / path).exists() for path in pictures)
