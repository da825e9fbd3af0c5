"""Where words begin, told from ids alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from lmloop.errors import TokenizerError
from lmloop.tokens.tokenizer import DOCUMENT, SPECIAL_TOKENS, STOP, WORDS, Tokenizer
from lmloop.tokens.word_edges import find_word_edges


def make_tokenizer(*, merges: tuple[tuple[str, str], ...] = ()) -> Tokenizer:
    """Byte-level BPE of these merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*SPECIAL_TOKENS, *alphabet, *("".join(pair) for pair in merges)]
    backend = tokenizers.Tokenizer(
        models.BPE({name: number for number, name in enumerate(names)}, list(merges))
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    return Tokenizer(backend, config={"bos_token": DOCUMENT, "eos_token": STOP})


def words(tokenizer: Tokenizer, text: str) -> Iterator[str]:
    """The text, cut where words begin."""
    ids = np.array(tokenizer.encode(text), dtype=np.int64)
    begins = np.flatnonzero(find_word_edges(tokenizer).starts(ids)).tolist()
    assert not len(ids) or begins[0] == 0
    for begin, end in zip(begins, [*begins[1:], len(ids)], strict=True):
        yield tokenizer.decode(ids[begin:end])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the old sea", ["the", " old", " sea"]),
        ("(the café)", ["(", "the", " café", ")"]),
        ("line\nnext", ["line", "\n", "next"]),
        ("don't", ["don", "'", "t"]),
        ("in 1984", ["in", " ", "1", "9", "8", "4"]),
        ("火车 abc", ["火", "车", " abc"]),
        ("ひら", ["ひ", "ら"]),
        ("하늘 땅", ["하늘", " 땅"]),
        ("a🐢!", ["a", "🐢", "!"]),
    ],
)
def test_words_begin_where_a_reader_says(text: str, expected: list[str]) -> None:
    assert list(words(make_tokenizer(), text)) == [
        each for word in expected for each in ([" ", word[1:]] if is_spaced(word) else [word])
    ]


def test_no_text_has_no_words() -> None:
    assert find_word_edges(make_tokenizer()).starts(np.zeros(0, dtype=np.int64)).tolist() == []


def is_spaced(word: str) -> bool:
    """Whether the space before a word is an id of its own, as without merges it is."""
    return len(word) > 1 and word[0] == " "


def test_a_space_joined_to_a_word_is_of_that_word() -> None:
    tokenizer = make_tokenizer(merges=(("Ġ", "s"), ("e", "a")))
    assert list(words(tokenizer, "the sea")) == ["the", " sea"]


def test_a_character_cut_between_ids_is_one_word() -> None:
    letters = "".join(cut for cut, _ in ByteLevel(False, use_regex=False).pre_tokenize_str("火"))
    tokenizer = make_tokenizer(merges=((letters[0], letters[1]),))
    assert len(tokenizer.encode("火车")) == 5
    assert list(words(tokenizer, "火车")) == ["火", "车"]


def test_a_tokenizer_whose_ids_are_no_bytes_is_refused() -> None:
    vocabulary = {name: number for number, name in enumerate([*SPECIAL_TOKENS, "a"])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    with pytest.raises(TokenizerError, match="byte-level tokenizers only: set pretrain.mask_words"):
        find_word_edges(Tokenizer(backend, config={"bos_token": DOCUMENT, "eos_token": STOP}))
