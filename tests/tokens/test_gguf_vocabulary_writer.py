"""Tokenizers into GGUF metadata: read back they are the same, or they are refused by reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, normalizers, pre_tokenizers

from lmloop.errors import TokenizerError
from lmloop.tokens.gguf_vocabulary import CUTS, cut, read_vocabulary
from lmloop.tokens.gguf_vocabulary_writer import describe_vocabulary
from lmloop.tokens.tokenizer import Tokenizer

from . import sentence_pieces
from .sentence_pieces import FIXED, NORMAL, TEXTS, UNKNOWN, train_pieces


def copy_of(tokenizer: Tokenizer, **changes: Any) -> Tokenizer:
    """The same tokenizer with other parts of its `tokenizer.json`."""
    told = tokenizer.definition
    model = {**told["model"], **changes.pop("model", {})}
    text = json.dumps({**told, **changes, "model": model})
    return Tokenizer(tokenizers.Tokenizer.from_str(text), config=dict(tokenizer._config))


def state_of(part: Any) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(part.__getstate__())
    return told


@pytest.mark.parametrize("text", TEXTS)
def test_our_tokenizer_comes_back_from_a_file(tokenizer: Tokenizer, text: str) -> None:
    again = read_vocabulary(describe_vocabulary(tokenizer, size=tokenizer.vocab_size))
    assert again.encode(text) == tokenizer.encode(text)
    assert again.encode_document(text) == tokenizer.encode_document(text)
    assert again.encode_markup(f"<|user|>{text}") == tokenizer.encode_markup(f"<|user|>{text}")
    assert again.decode(again.encode(text)) == text


def test_the_entries_are_those_of_llama_cpp(tokenizer: Tokenizer) -> None:
    entries = describe_vocabulary(tokenizer, size=tokenizer.vocab_size)
    assert entries["tokenizer.ggml.model"] == "gpt2"
    assert entries["tokenizer.ggml.pre"] == "qwen2"
    assert entries["tokenizer.ggml.tokens"][:2] == ["<|endoftext|>", "<|end|>"]
    assert entries["tokenizer.ggml.token_type"] == [3] * 5 + [1] * (tokenizer.vocab_size - 5)
    assert entries["tokenizer.ggml.bos_token_id"] == tokenizer.document_id
    assert entries["tokenizer.ggml.eos_token_id"] == tokenizer.stop_ids[0]
    assert entries["tokenizer.ggml.add_bos_token"] is True
    assert entries["tokenizer.chat_template"] == tokenizer.chat_template
    assert all(len(merge.split(" ")) == 2 for merge in entries["tokenizer.ggml.merges"])


@pytest.mark.parametrize("name", CUTS)
def test_every_known_cut_is_recognised(tokenizer: Tokenizer, name: str) -> None:
    told = state_of(cut(name))
    for each in told.get("pretokenizers", [told]):
        if "trim_offsets" in each:  # says nothing of the pieces
            each["trim_offsets"] = not each["trim_offsets"]
    whole = {"ignore_merges": name == "llama-bpe"}
    other = copy_of(tokenizer, pre_tokenizer=told, model=whole)
    entries = describe_vocabulary(other, size=tokenizer.vocab_size)
    assert entries["tokenizer.ggml.pre"] == name
    assert read_vocabulary(entries).encode("12345 sea-side's") == other.encode("12345 sea-side's")


def test_rows_of_the_model_without_a_token_are_filled(tokenizer: Tokenizer) -> None:
    size = tokenizer.vocab_size + 3
    entries = describe_vocabulary(tokenizer, size=size)
    assert entries["tokenizer.ggml.tokens"][-2:] == [f"[PAD{size - 2}]", f"[PAD{size - 1}]"]
    assert entries["tokenizer.ggml.token_type"][-4:] == [1, 5, 5, 5]
    assert read_vocabulary(entries).vocab_size == size


def test_an_added_token_that_is_no_markup_is_matched_in_every_text(tokenizer: Tokenizer) -> None:
    backend = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.definition))
    backend.add_tokens([AddedToken("  tab  ", normalized=False)])
    other = Tokenizer(backend, config=dict(tokenizer._config))
    entries = describe_vocabulary(other, size=other.vocab_size)
    assert entries["tokenizer.ggml.token_type"][-1] == 4
    assert read_vocabulary(entries).encode("a  tab  b") == other.encode("a  tab  b")


@pytest.mark.parametrize("prefix", [True, False])
def test_pieces_come_back_from_a_file(prefix: bool) -> None:
    original = train_pieces(prefix=prefix, fixed=[] if prefix else FIXED)
    file = sentence_pieces.metadata_of(original, add_space_prefix=prefix)
    entries = describe_vocabulary(read_vocabulary(file), size=original.vocab_size())
    for name in file.keys() - {"tokenizer.ggml.scores"}:
        assert entries[name] == file[name], name
    again = read_vocabulary(entries)
    for text in TEXTS:
        assert again.encode(text) == original.encode(text)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tokenizer: Tokenizer) -> None:
    last = tokenizer.vocab_size - 1
    with pytest.raises(TokenizerError, match=f"ids up to {last}, the model has {last}"):
        describe_vocabulary(tokenizer, size=last)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pre_tokenizer": state_of(pre_tokenizers.Whitespace())}, "cuts text.*qwen2"),
        ({"pre_tokenizer": None}, "cuts text"),
        ({"model": {"ignore_merges": True}}, "cuts text"),
        ({"normalizer": state_of(normalizers.Lowercase())}, "the normalizer Lowercase"),
        ({"model": {"dropout": 0.1}}, "a tokenizer of the type BPE with these settings"),
        ({"model": {"byte_fallback": True}}, "lays out spaces"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    tokenizer: Tokenizer, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(TokenizerError, match=rf"{told}.* cannot be written into a GGUF file"):
        describe_vocabulary(copy_of(tokenizer, **changes), size=tokenizer.vocab_size)


def test_a_token_that_takes_in_its_neighbours_is_refused(tokenizer: Tokenizer) -> None:
    backend = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.definition))
    backend.add_tokens([AddedToken("tab", lstrip=True)])
    other = Tokenizer(backend, config=dict(tokenizer._config))
    with pytest.raises(TokenizerError, match="the token 'tab', which takes in"):
        describe_vocabulary(other, size=other.vocab_size)


def test_pairs_in_an_order_of_no_scores_are_refused() -> None:
    file = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "</s>", "s", "e", "a", "se", "ea", "sea"],
        "tokenizer.ggml.scores": [0.0, 0.0, -9.0, -9.0, -9.0, -1.0, -2.0, -3.0],
        "tokenizer.ggml.token_type": [UNKNOWN, 3, *[NORMAL] * 6],
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_space_prefix": False,
    }
    ours = read_vocabulary(file)
    assert describe_vocabulary(ours, size=8)["tokenizer.ggml.scores"][5] == 0.0
    pairs = ours.definition["model"]["merges"]
    assert [*map(tuple, pairs)] == [("s", "e"), ("e", "a"), ("se", "a"), ("s", "ea")]
    mixed = copy_of(ours, model={"merges": [pairs[2], pairs[0], pairs[3], pairs[1]]})
    with pytest.raises(TokenizerError, match="follows from no scores"):
        describe_vocabulary(mixed, size=8)
