"""Tokenizers out of GGUF metadata beside the one that they were written from."""

from __future__ import annotations

import json
import time
from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from lmloop.errors import TokenizerError
from lmloop.tokens.gguf_vocabulary import read_vocabulary
from lmloop.tokens.tokenizer import SPECIAL_TOKENS, Tokenizer

from . import sentence_pieces
from .sentence_pieces import BYTE, FIXED, NORMAL, UNKNOWN, train_pieces

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


def test_words_that_are_tokens_are_taken_whole_where_the_file_says_llama_bpe() -> None:
    file = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["<eos>", "s", "e", "a", "sea"],
        "tokenizer.ggml.token_type": [3, 1, 1, 1, 1],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.eos_token_id": 0,
    }
    whole = read_vocabulary(file | {"tokenizer.ggml.pre": "llama-bpe"})
    assert (whole.encode("sea"), whole.encode_document("sea")) == ([4], [0, 4])
    joined = read_vocabulary(file | {"tokenizer.ggml.pre": "qwen2"})
    assert (joined.encode("sea"), joined.encode_document("sea")) == ([1, 2, 3], [1, 2, 3])


def test_text_is_cut_as_llama_cpp_cuts_it_by_default(tokenizer: Tokenizer) -> None:
    again = read_vocabulary(metadata_of(tokenizer, pre="default"))
    pieces = again._backend.pre_tokenizer.pre_tokenize_str("in 12345 days!?")
    assert [piece for piece, _ in pieces] == ["in", "Ġ", "123", "45", "Ġdays", "!?"]


@pytest.fixture(scope="module")
def plain() -> tuple[SentencePieceProcessor, Tokenizer]:
    """As Gemma's: no space in front, runs of spaces and lines fixed. The original and ours."""
    original = train_pieces(prefix=False, fixed=FIXED)
    file = sentence_pieces.metadata_of(original, add_space_prefix=False)
    return original, read_vocabulary(file)


@pytest.fixture(scope="module")
def prefixed() -> tuple[SentencePieceProcessor, Tokenizer]:
    """As Llama 2's: a space in front of every text, nothing fixed."""
    original = train_pieces(prefix=True, fixed=[])
    return original, read_vocabulary(sentence_pieces.metadata_of(original))


@pytest.mark.parametrize("text", sentence_pieces.TEXTS)
@pytest.mark.parametrize("kind", ["plain", "prefixed"])
def test_pieces_are_those_of_sentencepiece(
    kind: str, text: str, request: pytest.FixtureRequest
) -> None:
    original, ours = request.getfixturevalue(kind)
    ids = ours.encode(text)
    assert ids == original.encode(text)
    assert ours.encode_document(text) == [original.bos_id(), *ids]
    in_front = " " if kind == "prefixed" and text else ""
    assert ours.decode(ids) == in_front + text


@given(parts=st.lists(st.sampled_from([*"seatho \n火", "sea", "the", "<br>", "  "]), max_size=30))
def test_pieces_of_any_text_are_those_of_sentencepiece(
    plain: tuple[SentencePieceProcessor, Tokenizer], parts: list[str]
) -> None:
    original, ours = plain
    text = "".join(parts)
    assert ours.encode(text) == original.encode(text)


def test_markup_is_matched_in_a_template_and_never_in_a_text(
    plain: tuple[SentencePieceProcessor, Tokenizer],
) -> None:
    original, ours = plain
    turn = original.piece_to_id("<turn>")
    assert turn not in ours.encode("<turn>")
    assert ours.encode_markup("<turn>sea<unk>") == [turn, *ours.encode("sea"), original.unk_id()]


def test_what_no_piece_spells_is_unknown_where_the_file_has_no_bytes() -> None:
    file = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "</s>", "s", "e"],
        "tokenizer.ggml.scores": [0.0, 0.0, -1.0, -2.0],
        "tokenizer.ggml.token_type": [UNKNOWN, 3, NORMAL, NORMAL],
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_space_prefix": False,
    }
    assert read_vocabulary(file).encode("s你你e") == [2, 0, 3]


@pytest.mark.slow
def test_a_vocabulary_of_262144_pieces_is_read_in_seconds() -> None:
    letters = "abcdefghijklmnop"
    words = [*letters]
    words += [left + right for left in words for right in letters]
    words += [left + right for left in words[16:272] for right in words[16:272]]
    words += [left + right for left in words[272:1000] for right in words[16:272]]
    fixed = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens = [*fixed, *words]
    tokens += [f"<unused{place}>" for place in range(262_144 - len(tokens))]
    kinds = [UNKNOWN, 3] + [BYTE] * 256 + [NORMAL] * len(words)
    kinds += [3] * (len(tokens) - len(kinds))
    file = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": array("f", range(0, -len(tokens), -1)),
        "tokenizer.ggml.token_type": array("i", kinds),
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_space_prefix": False,
    }
    began = time.perf_counter()
    tokenizer = read_vocabulary(file)
    assert time.perf_counter() - began < 20
    assert tokenizer.vocab_size == 262_144
    assert tokenizer.encode("abcd") == [tokens.index("abcd")]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "t5"}, "tokenizer.ggml.model 't5'.*'gpt2', 'llama'"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, "its lists do not fit"),
        ({"model": "llama"}, "its lists do not fit"),
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


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"scores": None}, "its lists do not fit"),
        ({"scores": array("f", [0.0])}, "its lists do not fit"),
        ({"scores": ["high"] * 323}, "is damaged"),
        ({"unknown_token_id": 10**9}, "its lists do not fit"),
        ({"unknown_token_id": "none"}, "its lists do not fit"),
    ],
)
def test_what_cannot_be_pieces_is_refused(changes: dict[str, Any], told: str) -> None:
    original = train_pieces(prefix=False, fixed=[])
    file = sentence_pieces.metadata_of(original, **changes)
    with pytest.raises(TokenizerError, match=told):
        read_vocabulary(file)


def test_a_piece_that_would_take_hours_to_take_apart_is_refused() -> None:
    file = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "</s>", "x" * 100_000],
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0],
        "tokenizer.ggml.token_type": [UNKNOWN, 3, NORMAL],
        "tokenizer.ggml.eos_token_id": 1,
    }
    with pytest.raises(TokenizerError, match="a piece is longer than 256 characters"):
        read_vocabulary(file)
