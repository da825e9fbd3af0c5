"""GloVe pair by pair, as its paper and its published program have it: slow, plain, in float64."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Pair = tuple[int, int, float]
"""Row of a word, row of a context, how often they meet."""


def count_pairs(sentences: list[list[int]], *, window: int) -> dict[tuple[int, int], float]:
    """Every meeting at distance d counts 1/d, to the left and to the right."""
    counts: dict[tuple[int, int], float] = {}
    for sentence in sentences:
        for here, word in enumerate(sentence):
            for there, other in enumerate(sentence):
                if 0 < abs(here - there) <= window:
                    key = word, other
                    counts[key] = counts.get(key, 0.0) + 1 / abs(here - there)
    return counts


def fit_pairs(
    table: NDArray[np.float64],
    squares: NDArray[np.float64],
    pairs: Iterable[Pair],
    *,
    rate: float,
    largest_weight: float,
    power: float,
) -> float:
    """One pass of AdaGrad over the pairs in their order, in place; gives the summed loss.

    A row of `table` is a vector and its bias. `squares` sums the gradients times the rate.
    """
    total = 0.0
    for left, right, met in pairs:
        word, context = table[left].copy(), table[right].copy()
        error = word[:-1] @ context[:-1] + word[-1] + context[-1] - np.log(met)
        share = min(met / largest_weight, 1.0) ** power
        total += share * error**2 / 2
        towards_word = rate * share * error * np.append(context[:-1], 1.0)
        towards_context = rate * share * error * np.append(word[:-1], 1.0)
        table[left] -= towards_word / np.sqrt(squares[left])
        table[right] -= towards_context / np.sqrt(squares[right])
        squares[left] += towards_word**2
        squares[right] += towards_context**2
    return total
