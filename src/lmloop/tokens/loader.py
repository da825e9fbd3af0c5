"""Batches as a pure function of a cursor: the same rows whatever the world size, without state.

Takes: shards, a row length, a seed. Gives: packed rows. An epoch lays all documents end to end in a
shuffled order, cuts the whole into rows, and shuffles the rows; row r of the endless sequence needs
nothing but r to be made, so a resumed run sees exactly what an unbroken one would have seen.
Axes: B rows, T tokens a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmloop.errors import CorpusError
from lmloop.tokens.shards import Shards


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed rows, all arrays [B, T]."""

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    """The next token; that of a document's last token is the next document's first."""
    learnt: NDArray[np.bool_]
    """Where the loss counts."""
    segments: NDArray[np.int64]
    """Number of the document within its row; different documents do not see each other."""
    positions: NDArray[np.int64]
    """Distance from the document's first token in the row."""


class PackedLoader:
    """Endless rows over one split."""

    def __init__(
        self, shards: Shards, *, row_tokens: int, document_id: int, answers_only: bool, seed: int
    ) -> None:
        self._shards = shards
        self._row_tokens = row_tokens
        self._document_id = document_id
        self._answers_only = answers_only
        self._seed = seed
        self.rows_per_epoch = shards.num_tokens // row_tokens
        if self.rows_per_epoch == 0:
            raise CorpusError(
                f"the split has {shards.num_tokens} tokens, fewer than one row of {row_tokens}: "
                "add text or lower row_tokens"
            )
        self._epoch = -1
        self._documents = self._offsets = self._rows = np.zeros(0, dtype=np.int64)

    def rows(self, start: int, count: int) -> Batch:
        """Rows `start` to `start + count` of the endless sequence."""
        made = [self._row(row) for row in range(start, start + count)]
        tokens, targets, learnt, firsts = (np.stack(parts) for parts in zip(*made, strict=True))
        segments = np.cumsum(firsts, axis=1)
        columns = np.arange(self._row_tokens)
        begun = np.maximum.accumulate(np.where(firsts, columns, 0), axis=1)
        return Batch(tokens, targets, learnt, segments, columns - begun)

    def _row(self, row: int) -> tuple[NDArray[np.generic], ...]:
        self._enter(row // self.rows_per_epoch)
        begin = int(self._rows[row % self.rows_per_epoch]) * self._row_tokens
        stream, answers = self._cut(begin, begin + self._row_tokens + 1)
        tokens, targets = stream[:-1], stream[1:]
        learnt = answers[1:] if self._answers_only else np.ones(len(tokens), dtype=np.bool_)
        return tokens, targets, learnt, tokens == self._document_id

    def _enter(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        order = np.random.default_rng([self._seed, epoch])
        self._documents = order.permutation(self._shards.num_documents)
        lengths = np.diff(self._shards.starts)[self._documents]
        self._offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
        self._rows = order.permutation(self.rows_per_epoch)
        self._epoch = epoch

    def _cut(self, begin: int, end: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Ids and answer marks from `begin` to `end` of this epoch's stream."""
        tokens: list[NDArray[np.int64]] = []
        answers: list[NDArray[np.bool_]] = []
        place = int(np.searchsorted(self._offsets, begin, side="right")) - 1
        while begin < end and place < len(self._documents):
            start = int(self._shards.starts[self._documents[place]])
            inside = begin - int(self._offsets[place])
            length = min(end, int(self._offsets[place + 1])) - begin
            tokens.append(self._shards.read(start + inside, start + inside + length))
            answers.append(self._shards.read_answers(start + inside, start + inside + length))
            begin += length
            place += 1
        if begin < end:  # the last row's last target: what follows the last document is a new one
            tokens.append(np.full(end - begin, self._document_id))
            answers.append(np.zeros(end - begin, dtype=np.bool_))
        return np.concatenate(tokens), np.concatenate(answers)
