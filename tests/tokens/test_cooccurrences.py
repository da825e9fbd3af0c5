"""Cooccurrences: counts by hand, and equal to a plain double loop."""

from __future__ import annotations

import random

import numpy as np
import pytest

from lmloop.tokens import cooccurrences as module
from lmloop.tokens.cooccurrences import count_cooccurrences
from lmloop.tokens.words import index_words

from ..reference.glove import count_pairs


def test_cooccurrences_weigh_one_over_their_distance() -> None:
    stream = index_words([["a", "b", "a", "c"], ["c", "a"]], min_count=1)
    met = count_cooccurrences(stream, window=2)
    named = {
        (stream.words[row], stream.words[column]): weight
        for row, column, weight in zip(met.rows, met.columns, met.weights.tolist(), strict=True)
    }
    half = 1 / 2
    assert named == {
        ("a", "a"): 2 * half,  # from both sides
        ("a", "b"): 2.0,
        ("b", "a"): 2.0,
        ("a", "c"): 2.0,
        ("c", "a"): 2.0,
        ("b", "c"): half,
        ("c", "b"): half,
    }


def test_cooccurrences_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    sentences = [draw.choices("abcdef", k=draw.randrange(9)) for _ in range(40)]
    stream = index_words(sentences, min_count=1)
    whole = count_cooccurrences(stream, window=4)
    monkeypatch.setattr(module, "CHUNK_WORDS", 7)
    chunked = count_cooccurrences(stream, window=4)
    for name in ("rows", "columns", "weights"):
        np.testing.assert_allclose(getattr(whole, name), getattr(chunked, name), rtol=1e-12)


def test_cooccurrences_equal_those_of_a_double_loop() -> None:
    draw = random.Random(1)
    sentences = [draw.choices("abcdefgh", k=draw.randrange(12)) for _ in range(50)]
    stream = index_words(sentences, min_count=1)
    numbers = {word: number for number, word in enumerate(stream.words)}
    plain = count_pairs([[numbers[word] for word in each] for each in sentences], window=5)
    met = count_cooccurrences(stream, window=5)
    keys = list(zip(met.rows.tolist(), met.columns.tolist(), strict=True))
    assert keys == sorted(plain)
    np.testing.assert_allclose(met.weights, [plain[key] for key in keys], rtol=1e-12)
