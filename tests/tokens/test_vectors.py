"""Neighbours, analogies and rows for a vocabulary, on vectors set by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lmloop.errors import ArtifactError, UsageError
from lmloop.tokens.vectors import WordVectors

GRID = WordVectors(
    ("man", "woman", "king", "queen", "stone"),
    np.array([[1, 0, 0], [1, 1, 0], [1, 0, 2], [1, 1, 2], [-1, 0, 0]], dtype=np.float32),
)


def test_the_nearest_words_are_those_of_the_largest_cosine() -> None:
    (first, cosine), *_, (last, opposite) = GRID.nearest("man")
    assert (first, last) == ("woman", "stone")
    assert cosine == pytest.approx(0.5**0.5)
    assert opposite == pytest.approx(-1)
    assert [word for word, _ in GRID.nearest("man", 2)] == ["woman", "king"]


def test_the_length_of_a_vector_does_not_count() -> None:
    scales = np.array([[1e30], [1e-30], [1], [7], [3]], dtype=np.float32)
    scaled = WordVectors(GRID.words, GRID.matrix * scales)
    for (word, cosine), (other, same) in zip(
        GRID.nearest("king"), scaled.nearest("king"), strict=True
    ):
        assert word == other
        assert cosine == pytest.approx(same, abs=1e-6)


def test_words_as_near_as_each_other_stand_in_their_order() -> None:
    same = WordVectors(tuple("abcdef"), np.ones((6, 2), dtype=np.float32))
    assert [word for word, _ in same.nearest("c")] == ["a", "b", "d", "e", "f"]


def test_an_analogy_is_completed_without_its_own_words() -> None:
    found = GRID.analogy("man", "woman", "king")
    assert [word for word, _ in found] == ["queen", "stone"]
    first, second, third = (row / np.linalg.norm(row) for row in GRID.matrix[:3])
    wanted = second - first + third
    queen = GRID.matrix[3]
    cosine = wanted @ queen / np.linalg.norm(wanted) / np.linalg.norm(queen)
    assert found[0][1] == pytest.approx(cosine, abs=1e-6)


def test_a_row_of_zeros_is_near_to_nothing() -> None:
    vectors = WordVectors(("a", "zero"), np.array([[1, 2], [0, 0]], dtype=np.float32))
    assert vectors.nearest("a") == [("zero", 0.0)]
    assert vectors.nearest("zero") == [("a", 0.0)]


@pytest.mark.parametrize(
    ("word", "advice"),
    [("quen", "did you mean 'queen'"), ("Stone", "'stone'"), ("xyzzy", "ask for"), ("", "ask for")],
)
def test_an_unknown_word_is_answered_with_the_nearest_spelling(word: str, advice: str) -> None:
    for ask in (lambda: GRID.nearest(word), lambda: GRID.analogy("man", "woman", word)):
        with pytest.raises(UsageError, match=advice) as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_less_than_one_neighbour_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        GRID.nearest("man", 0)


def test_rows_follow_a_vocabulary_and_say_which_were_found() -> None:
    matrix, found = GRID.align(["queen", "unheard", "Man", "king"])
    assert found.tolist() == [True, False, True, True]
    assert matrix.tolist() == [[1, 1, 2], [0, 0, 0], [1, 0, 0], [1, 0, 2]]
    assert matrix.dtype == np.float32
    matrix, found = GRID.align([])
    assert (matrix.shape, found.shape) == ((0, 3), (0,))


@pytest.mark.parametrize(
    ("words", "matrix", "complaint"),
    [
        (("a",), np.zeros((1, 2)), "float64"),
        (("a",), np.zeros(2, dtype=np.float32), r"\[2\]"),
        ((), np.zeros((0, 2), dtype=np.float32), "at least one"),
        (("a", "b"), np.zeros((1, 2), dtype=np.float32), "2 words have 1 vectors"),
        (("a", "a"), np.zeros((2, 2), dtype=np.float32), "1 words occur twice"),
        (("a",), np.full((1, 2), np.nan, dtype=np.float32), "not finite"),
    ],
)
def test_words_and_rows_that_do_not_fit_are_refused(
    words: tuple[str, ...], matrix: np.ndarray, complaint: str
) -> None:
    with pytest.raises(ArtifactError, match=complaint):
        WordVectors(words, matrix)
