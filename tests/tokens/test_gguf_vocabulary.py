"""Tokenizers out of GGUF metadata beside the one that they were written from."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lmloop.errors import TokenizerError
from lmloop.tokens.gguf_vocabulary import read_vocabulary
from lmloop.tokens.tokenizer import SPECIAL_TOKENS, Tokenizer

TEXTS = ["do you like the sea?", "火车 is a train", "12345 green  tea\n\n", "🐢", ""]


def metadata_of(tokenizer: Tokenizer, **changes: Any) -> dict[str, Any]:
    """As a converter lays the tokenizer into a file."""
    told = json.loads(tokenizer._backend.to_str())
    vocabulary = {**told["model"]["vocab"], **{t["content"]: t["id"] for t in told["added_tokens"]}}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in told["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL_TOKENS else 1 for token in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": tokenizer.document_id,
        "tokenizer.ggml.eos_token_id": tokenizer.stop_ids[0],
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": tokenizer.chat_template,
    } | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_are_those_of_the_original(tokenizer: Tokenizer, text: str) -> None:
    again = read_vocabulary(metadata_of(tokenizer))
    assert again.encode(text) == tokenizer.encode(text)
    assert again.encode_document(text) == tokenizer.encode_document(text)
    assert again.decode(again.encode(text)) == text
    assert (again.stop_ids, again.vocab_size) == (tokenizer.stop_ids, tokenizer.vocab_size)
    assert again.chat_template == tokenizer.chat_template


def test_special_tokens_spelt_in_text_stay_text(tokenizer: Tokenizer) -> None:
    again = read_vocabulary(metadata_of(tokenizer))
    assert tokenizer.document_id not in again.encode("a <|endoftext|> b")
    assert again.encode_markup("<|endoftext|>") == [tokenizer.document_id]


def test_nothing_stands_in_front_where_the_file_says_so(tokenizer: Tokenizer) -> None:
    again = read_vocabulary(metadata_of(tokenizer, add_bos_token=False))
    assert again.encode_document("the sea") == tokenizer.encode("the sea")


def test_digits_are_cut_one_by_one_where_the_file_says_smollm(tokenizer: Tokenizer) -> None:
    again = read_vocabulary(metadata_of(tokenizer, pre="smollm"))
    pieces = again._backend.pre_tokenizer.pre_tokenize_str("in 123 days")
    assert [piece for piece, _ in pieces] == ["in", "Ġ", "1", "2", "3", "Ġdays"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "llama"}, "tokenizer.ggml.model 'llama'"),
        ({"pre": "unheard-of"}, "tokenizer.ggml.pre 'unheard-of'.*smollm"),
        ({"tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"tokens": [1, 2]}, "tokenizer.ggml.tokens is missing"),
        ({"token_type": [1]}, "its lists do not fit"),
        ({"merges": ["a"]}, "its lists do not fit"),
        ({"merges": ["zq zq"]}, "is damaged"),
        ({"eos_token_id": 10**9}, "which token ends an answer"),
    ],
)
def test_what_cannot_be_a_tokenizer_is_refused(
    tokenizer: Tokenizer, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(TokenizerError, match=told):
        read_vocabulary(metadata_of(tokenizer, **changes))
