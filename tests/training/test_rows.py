"""Rows added in place, and items made one ahead."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from lmloop.errors import TrainingError
from lmloop.tokens.words import index_words
from lmloop.training.rows import add_rows, finish, on_one_thread, one_ahead


def test_a_row_that_comes_twice_is_added_twice() -> None:
    matrix = np.zeros((4, 3), dtype=np.float32)
    ids = np.array([[2, 0], [2, 3]])
    add_rows(matrix, ids, np.arange(12, dtype=np.float32).reshape(2, 2, 3))
    assert matrix.tolist() == [[3, 4, 5], [0, 0, 0], [6, 8, 10], [9, 10, 11]]


def test_the_threads_of_torch_are_given_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), on_one_thread():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == before


def test_items_come_in_order_each_made_while_the_one_before_is_used() -> None:
    made = [threading.Event() for _ in range(3)]

    def make() -> Iterator[int]:
        for number, event in enumerate(made):
            event.set()
            yield number

    for number in one_ahead(make()):
        assert made[min(number + 1, 2)].wait(10)


def test_an_error_in_the_making_reaches_the_user_of_the_items() -> None:
    def make() -> Iterator[int]:
        yield 1
        raise KeyError("broken")

    items = one_ahead(make())
    assert next(items) == 1
    with pytest.raises(KeyError, match="broken"):
        next(items)


def test_vectors_that_are_not_finite_are_refused() -> None:
    stream = index_words([["a", "b"]], min_count=1)
    with pytest.raises(TrainingError, match="lower learning_rate"):
        finish(stream, np.array([[1], [np.inf]], dtype=np.float32))
