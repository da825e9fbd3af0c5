"""Codes stand in a tokenizer, a token of its own for each code of each level."""

from __future__ import annotations

import pytest

from lmloop.errors import TokenizerError
from lmloop.tokens.code_tokens import CodeTokens, name_codes
from lmloop.tokens.tokenizer import Tokenizer, train_tokenizer


def make(names: tuple[str, ...]) -> Tokenizer:
    return train_tokenizer([""], vocab_size=261 + len(names), extra_tokens=names)


def test_codes_are_tokens_behind_the_special_ones() -> None:
    names = name_codes(4, num_levels=2)
    assert names[:2] == ("<|c0|>", "<|c1|>")
    tokenizer = make(names)
    tokens = CodeTokens(tokenizer, num_codes=4, num_levels=2)
    ids = tokens.encode([[3, 0], [1, 2]])
    assert ids == [5 + 3, 5 + 4, 5 + 1, 5 + 6]
    assert ids == tokenizer.encode_markup("<|c3|><|c4|><|c1|><|c6|>")
    assert tokens.decode(ids).tolist() == [[3, 0], [1, 2]]


def test_reading_ends_where_the_ids_are_codes_no_more() -> None:
    tokens = CodeTokens(make(name_codes(4, num_levels=2)), num_codes=4, num_levels=2)
    assert tokens.decode([5, 9, 6]).tolist() == [[0, 0]]  # half a step
    assert tokens.decode([5, 9, 6, 6, 5, 9]).tolist() == [[0, 0]]  # a level twice
    assert tokens.decode([5, 9, 4, 9]).tolist() == [[0, 0]]  # a role
    assert tokens.decode([5, 9, 5, 13]).tolist() == [[0, 0]]  # a letter
    assert tokens.decode([]).shape == (0, 2)


def test_text_that_spells_a_code_stays_text() -> None:
    tokenizer = make(name_codes(4))
    tokens = CodeTokens(tokenizer, num_codes=4)
    ids = tokenizer.encode("<|c1|>")
    assert len(ids) == 6
    assert tokens.decode(ids).size == 0


def test_a_tokenizer_without_them_or_in_another_order_is_refused() -> None:
    with pytest.raises(TokenizerError, match=r"no token '<\|c2\|>'"):
        CodeTokens(make(name_codes(2)), num_codes=3)
    with pytest.raises(TokenizerError, match="in another order"):
        CodeTokens(make(("<|c1|>", "<|c0|>")), num_codes=2)
