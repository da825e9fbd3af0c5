"""How often words stand near each other: what GloVe is fitted to.

Takes: a `WordStream` and a window. Gives: `Cooccurrences`, each pair of words once, in both orders.
Axes: P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmloop.tokens.words import CHUNK_WORDS, WordStream


@dataclass(frozen=True, slots=True)
class Cooccurrences:
    """Pairs of words, sorted by row and column."""

    rows: NDArray[np.int64]
    """[P] number of one word."""
    columns: NDArray[np.int64]
    """[P] number of the other."""
    weights: NDArray[np.float64]
    """[P] sum over their meetings."""


def count_cooccurrences(stream: WordStream, *, window: int) -> Cooccurrences:
    """Pairs of words within `window` of each other in a sentence, each meeting at distance d 1/d.

    Source: Pennington et al. 2014, section 4.2.
    """
    keys, weights = np.zeros(0, dtype=np.int64), np.zeros(0)
    for begin in range(0, len(stream.ids), CHUNK_WORDS):
        met = [(keys, weights), *_meetings(stream, begin, window)]
        keys, weights = _merge(*map(np.concatenate, zip(*met, strict=True)))
    low, high = np.divmod(keys, len(stream.words))
    apart = low != high
    # A word beside itself is met from both sides.
    weights = np.where(apart, weights, 2 * weights)
    rows, columns = np.concatenate([low, high[apart]]), np.concatenate([high, low[apart]])
    order = np.lexsort((columns, rows))
    return Cooccurrences(
        rows[order], columns[order], np.concatenate([weights, weights[apart]])[order]
    )


def _meetings(
    stream: WordStream, begin: int, window: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Keys and weights of a chunk's words with those after them, a distance at a time.

    A key is the smaller number of a pair times the size of the vocabulary, plus the larger one.
    """
    # The windows of the chunk's last words reach into the next one.
    words, sentences = stream.cut(begin, CHUNK_WORDS + window)
    for distance in range(1, window + 1):
        count = min(CHUNK_WORDS, len(words) - distance)
        if count < 1:
            return
        same = sentences[:count] == sentences[distance : distance + count]
        left, right = words[:count][same], words[distance : distance + count][same]
        low, high = np.minimum(left, right).astype(np.int64), np.maximum(left, right)
        yield low * len(stream.words) + high, np.full(len(low), 1.0 / distance)


def _merge(
    keys: NDArray[np.int64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Each key once, sorted, with the sum of its weights."""
    order = np.argsort(keys, kind="stable")
    keys, weights = keys[order], weights[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[first], np.add.reduceat(weights, first) if len(first) else weights
