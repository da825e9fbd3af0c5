"""Packing: examples of any objective, end to end in one row.

Takes: examples. Gives: one row with the names that `loader.Batch` has, the order in which tokens
are revealed, and what an encoder reads. Rows of one length can be stacked to [B, T].
Axes: N tokens, M tokens of the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmloop.errors import TrainingError
from lmloop.tokens.objectives import Example


@dataclass(frozen=True, slots=True)
class Packed:
    """Examples end to end: [N], and [M] for the encoder."""

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    learnt: NDArray[np.bool_]
    """Where the loss counts; never on padding."""
    order: NDArray[np.int64]
    """See `Example.order`: it orders the tokens of one segment."""
    segments: NDArray[np.int64]
    """Number of the example; that of padding is one more than the last."""
    positions: NDArray[np.int64]
    """Distance from the example's first token, or what the example says."""
    source: NDArray[np.int64]
    """What the encoder reads, [M]; empty where no example has a source."""
    source_segments: NDArray[np.int64]
    """Number of the example that a token of `source` belongs to, [M]."""
    source_positions: NDArray[np.int64]
    """[M]."""


def pack(
    examples: Sequence[Example],
    *,
    length: int | None = None,
    source_length: int | None = None,
    padding_id: int = 0,
) -> Packed:
    """Lay examples end to end; pad to `length` and `source_length` where these are given.

    Padding is a causal text of its own, in the encoder too. Raises `TrainingError` where the
    examples are longer than the row.
    """
    sources = [_no_ids() if each.source is None else each.source for each in examples]
    lengths = _fill([len(each.tokens) for each in examples], length, "length")
    source_lengths = _fill([len(each) for each in sources], source_length, "source_length")
    blank, source_blank = (np.full(filled[-1], padding_id) for filled in (lengths, source_lengths))
    unlearnt = np.zeros(len(blank), dtype=np.bool_)
    return Packed(
        tokens=np.concatenate([*(each.tokens for each in examples), blank]),
        targets=np.concatenate([*(each.targets for each in examples), blank]),
        learnt=np.concatenate([*(each.learnt for each in examples), unlearnt]),
        order=np.concatenate([*(each.order for each in examples), np.arange(len(blank))]),
        segments=np.repeat(np.arange(len(lengths)), lengths),
        positions=np.concatenate([*map(_positions, examples), np.arange(len(blank))]),
        source=np.concatenate([*sources, source_blank]),
        source_segments=np.repeat(np.arange(len(source_lengths)), source_lengths),
        source_positions=_count_from_zero(source_lengths),
    )


def _fill(lengths: list[int], length: int | None, name: str) -> list[int]:
    """The lengths, and that of the padding behind them."""
    total = sum(lengths)
    if length is not None and total > length:
        raise TrainingError(
            f"the examples have {total} tokens, more than {name} {length}: pack fewer or cut them"
        )
    return [*lengths, 0 if length is None else length - total]


def _positions(example: Example) -> NDArray[np.int64]:
    told = example.positions
    return np.arange(len(example.tokens)) if told is None else told


def _count_from_zero(lengths: list[int]) -> NDArray[np.int64]:
    return np.concatenate([_no_ids(), *(np.arange(length) for length in lengths)])


def _no_ids() -> NDArray[np.int64]:
    return np.zeros(0, dtype=np.int64)
