"""What skip-gram and GloVe share: steps that move few rows of a large matrix.

Takes: matrices, the rows that a step touches, options. Gives: moved rows, and the checks before the
first step and after the last.
Axes: V rows of the matrix, N rows of a step (a row may come several times), D numbers a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from lmloop.errors import TrainingError
from lmloop.tokens.vectors import WordVectors
from lmloop.tokens.words import WordStream

Item = TypeVar("Item")


def add_rows(
    matrix: NDArray[np.float32], ids: NDArray[np.int64], moves: NDArray[np.float32]
) -> None:
    """Add moves [..., D] to the rows ids [...] of a matrix [V, D], in place and in their order."""
    width = matrix.shape[1]
    # With an index that repeats along a row torch sorts and sums: 25 times as fast as np.add.at.
    repeated = torch.from_numpy(ids).flatten()[:, None].expand(-1, width)
    torch.from_numpy(matrix).scatter_add_(0, repeated, torch.from_numpy(moves).view(-1, width))


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Run torch on one thread meanwhile: for products this small a second one costs more time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, each made by another thread while the one before is worked on."""
    with ThreadPoolExecutor(max_workers=1) as worker:
        coming = worker.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = worker.submit(next, items, None)
            yield item


def refuse_below_one(options: object, *names: str) -> None:
    """Raise `TrainingError` where one of these options is below 1."""
    for name in names:
        if getattr(options, name) < 1:
            raise TrainingError(f"{name} is {getattr(options, name)}: allowed is 1 and more")


def refuse_not_positive(options: object, *names: str) -> None:
    """Raise `TrainingError` where one of these options, if given, is no finite number above 0."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise TrainingError(f"{name} is {value}: allowed is a number above 0")


def refuse_too_few(stream: WordStream) -> None:
    """Raise `TrainingError` where there are no two words to tell apart."""
    if len(stream.words) < 2:
        raise TrainingError(
            f"vectors of {len(stream.words)} word tell nothing: add text or lower min_count"
        )


def finish(stream: WordStream, matrix: NDArray[np.float32]) -> WordVectors:
    """The trained matrix [V, D] as vectors; `TrainingError` where it is not finite."""
    if not np.isfinite(matrix).all():
        raise TrainingError("the vectors became infinite: lower learning_rate or the batch")
    return WordVectors(stream.words, matrix)
