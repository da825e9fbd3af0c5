"""Word vectors fitted to how often words meet: GloVe.

Takes: a `WordStream`, options, a seed. Gives: `WordVectors`. The loss is a sum over pairs of words,
so its gradients are written out and added to the rows of those words alone. The same seed gives the
same bits.
Axes: V words, D numbers a word, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lmloop.errors import TrainingError
from lmloop.progress import Progress, Silent
from lmloop.tokens.cooccurrences import Cooccurrences, count_cooccurrences
from lmloop.tokens.vectors import WordVectors
from lmloop.tokens.words import WordStream
from lmloop.training.rows import (
    add_rows,
    finish,
    on_one_thread,
    one_ahead,
    refuse_below_one,
    refuse_not_positive,
    refuse_too_few,
)

Real = TypeVar("Real", bound=np.floating)


@dataclass(frozen=True, kw_only=True, slots=True)
class GloveOptions:
    """Names and defaults of Pennington et al. 2014, section 4.2."""

    dimensions: int = 100
    window: int = 10
    epochs: int = 50
    learning_rate: float = 0.05
    largest_weight: float = 100.0
    """Cooccurrences from which on a pair weighs 1 (x_max)."""
    weight_power: float = 0.75
    batch_pairs: int = 4096
    """Pairs whose steps are taken at once."""

    def __post_init__(self) -> None:
        refuse_below_one(self, "dimensions", "window", "epochs", "batch_pairs")
        refuse_not_positive(self, "learning_rate", "largest_weight", "weight_power")


def train_glove(
    stream: WordStream,
    *,
    options: GloveOptions,
    seed: int,
    progress: Progress | None = None,
) -> WordVectors:
    """Vectors whose products give the logarithms of how often words meet.

    Pennington et al. 2014, "GloVe"; the sum of a word's two vectors. The progress shows the mean
    loss of a pair in each epoch. Raises `TrainingError`.
    """
    refuse_too_few(stream)
    met = count_cooccurrences(stream, window=options.window)
    if not len(met.rows):
        raise TrainingError("no two words stand in one sentence: give longer sentences")
    size, count = len(stream.words), len(met.rows)
    draw = np.random.default_rng(seed)
    # One matrix for both sides, the bias as the last number of each row.
    table = draw.random((2 * size, options.dimensions + 1), dtype=np.float32) - np.float32(0.5)
    table /= options.dimensions + 1
    squares = np.ones_like(table)
    said = ""
    shown = (progress or Silent()).task("glove", total=options.epochs * count, unit="pairs")
    with on_one_thread(), shown as task:
        for epoch in range(options.epochs):
            loss, done = 0.0, epoch * count
            for pairs in one_ahead(_shuffled_batches(met, options, draw, size=size)):
                loss += _step(table, squares, pairs, rate=options.learning_rate)
                done += len(pairs.logs)
                task.update(done, note=said)
            said = f"loss {loss / count:.5f}"
    return finish(stream, table[:size, :-1] + table[size:, :-1])


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Pairs of words as the step needs them."""

    ids: NDArray[np.int64]
    """[2, P] rows of the table, words above contexts."""
    logs: NDArray[np.float32]
    """[P] logarithms of how often the words meet."""
    shares: NDArray[np.float32]
    """[P] weights of the pairs in the loss, up to 1."""


def _shuffled_batches(
    met: Cooccurrences, options: GloveOptions, draw: np.random.Generator, *, size: int
) -> Iterator[PairBatch]:
    order = draw.permutation(len(met.rows))
    for begin in range(0, len(order), options.batch_pairs):
        chosen = order[begin : begin + options.batch_pairs]
        weights = met.weights[chosen]
        shares = np.minimum(weights / options.largest_weight, 1.0) ** options.weight_power
        yield PairBatch(
            ids=np.stack([met.rows[chosen], met.columns[chosen] + size]),
            logs=np.log(weights).astype(np.float32),
            shares=shares.astype(np.float32),
        )


def glove_gradients(
    left: NDArray[Real], right: NDArray[Real], *, logs: NDArray[Real], shares: NDArray[Real]
) -> tuple[NDArray[Real], NDArray[Real], float]:
    """Gradients for both sides, and the sum itself: share · (w·c + b + b' - log x)² / 2.

    left, right: [P, D + 1], the bias last; logs and shares: [P] (Pennington et al. 2014,
    equation 8; the half is the published program's).
    """
    products = np.einsum("pd,pd->p", left[:, :-1], right[:, :-1])
    errors = products + left[:, -1] + right[:, -1] - logs
    slopes = shares * errors
    towards_left, towards_right = slopes[:, None] * right, slopes[:, None] * left
    towards_left[:, -1] = towards_right[:, -1] = slopes
    return towards_left, towards_right, float(slopes @ errors) / 2


def _step(
    table: NDArray[np.float32], squares: NDArray[np.float32], pairs: PairBatch, *, rate: float
) -> float:
    """AdaGrad: every pair moves its rows by its own gradient; gives the loss before the step.

    As in the published program the squares begin at 1 and take the gradient times the rate, so that
    in the long run the rate cancels out; with plain gradients the steps would be 20 times as short.
    """
    left, right = table.take(pairs.ids, axis=0)
    *gradients, loss = glove_gradients(left, right, logs=pairs.logs, shares=pairs.shares)
    moves = np.stack(gradients)
    moves *= -rate
    before = squares.take(pairs.ids, axis=0)
    add_rows(squares, pairs.ids, np.square(moves))
    moves /= np.sqrt(before, out=before)
    add_rows(table, pairs.ids, moves)
    return loss
