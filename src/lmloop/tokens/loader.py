"""Batches as a pure function of a cursor: the same rows whatever the world size, without state.

Takes: shards, a row length, a seed, an objective. Gives: packed rows. An epoch lays all documents
end to end in a shuffled order, cuts the whole into rows, and shuffles the rows; row r of the
endless sequence needs nothing but r to be made, so a resumed run sees exactly what an unbroken one
would have seen.
Axes: B rows, T tokens a row, S tokens of an encoder's row.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from lmloop.errors import CorpusError
from lmloop.tokens.arrangement import Arrangement
from lmloop.tokens.pack import Packed
from lmloop.tokens.shards import Shards


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed rows, all arrays [B, T] but those of the source."""

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    """What to say at each place: in causal rows the next token, which behind a document's last is
    the next document's first."""
    learnt: NDArray[np.bool_]
    """Where the loss counts."""
    segments: NDArray[np.int64]
    """Number of the document within its row; different documents do not see each other."""
    positions: NDArray[np.int64]
    """Distance from the document's first token in the row."""
    order: NDArray[np.int64] | None = None
    """When a token is revealed, see `Example.order`; absent where all rows are plainly causal."""
    source: NDArray[np.int64] | None = None
    """What an encoder reads, [B, S]; absent where there is one stack only."""
    source_segments: NDArray[np.int64] | None = None
    """Number of the document that a token of `source` is from, [B, S]."""
    source_positions: NDArray[np.int64] | None = None
    """[B, S]."""

    def cut(self, length: int) -> Batch:
        """The same tokens in rows of `length`, which divides T: more rows, and shorter sight.

        Positions stay those of the documents. Rows of an order of their own, and those with a
        source, stay whole: what they ask for lies anywhere in them.
        """
        if length == self.tokens.shape[1] or self.order is not None or self.source is not None:
            return self
        return Batch(
            tokens=self.tokens.reshape(-1, length),
            targets=self.targets.reshape(-1, length),
            learnt=self.learnt.reshape(-1, length),
            segments=self.segments.reshape(-1, length),
            positions=self.positions.reshape(-1, length),
        )


class PackedLoader:
    """Endless rows over one split: plainly causal ones, or as an arrangement lays them out."""

    def __init__(
        self,
        shards: Shards,
        *,
        row_tokens: int,
        document_id: int,
        answers_only: bool,
        seed: int,
        arrangement: Arrangement | None = None,
    ) -> None:
        self._shards = shards
        self._arrangement = arrangement
        self._row_tokens = row_tokens if arrangement is None else arrangement.text_tokens
        self._document_id = document_id
        self._answers_only = answers_only
        self._seed = seed
        self.rows_per_epoch = shards.num_tokens // self._row_tokens
        if self.rows_per_epoch == 0:
            raise CorpusError(
                f"the split has {shards.num_tokens} tokens, fewer than one row of {row_tokens}: "
                "add text or lower row_tokens"
            )
        self._epoch = -1
        self._documents = self._offsets = self._rows = np.zeros(0, dtype=np.int64)

    @property
    def num_documents(self) -> int:
        """Documents of the split."""
        return self._shards.num_documents

    def rows(self, start: int, count: int) -> Batch:
        """Rows `start` to `start + count` of the endless sequence."""
        if self._arrangement is not None:
            return self._arranged(self._arrangement, range(start, start + count))
        made = [self._row(row) for row in range(start, start + count)]
        tokens, targets, learnt, firsts = (np.stack(parts) for parts in zip(*made, strict=True))
        segments = np.cumsum(firsts, axis=1)
        columns = np.arange(self._row_tokens)
        begun = np.maximum.accumulate(np.where(firsts, columns, 0), axis=1)
        return Batch(tokens, targets, learnt, segments, columns - begun)

    def documents(self, start: int, count: int) -> list[int]:
        """Numbers of the documents that these rows are cut from, in the order of the split."""
        found: set[int] = set()
        for row in range(start, start + count):
            begin = self._place(row)
            first = int(np.searchsorted(self._offsets, begin, side="right")) - 1
            last = int(np.searchsorted(self._offsets, begin + self._row_tokens, side="left"))
            found.update(map(int, self._documents[first:last]))
        return sorted(found)

    def _arranged(self, arrangement: Arrangement, rows: range) -> Batch:
        """Rows by an objective, each from a generator of its own."""
        made = [
            arrangement.arrange(
                self._stream(row)[0], generator=np.random.default_rng([self._seed, row, 1])
            )
            for row in rows
        ]
        names = [field.name for field in fields(Packed)]
        whole = {name: np.stack([getattr(row, name) for row in made]) for name in names}
        has_source = bool(arrangement.source_tokens)
        return Batch(
            **{name: part for name, part in whole.items() if has_source or "source" not in name}
        )

    def _row(self, row: int) -> tuple[NDArray[np.generic], ...]:
        stream, answers = self._stream(row)
        tokens, targets = stream[:-1], stream[1:]
        learnt = answers[1:] if self._answers_only else np.ones(len(tokens), dtype=np.bool_)
        return tokens, targets, learnt, self._begins(row)

    def _stream(self, row: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Ids of a row and the one that follows them, and which of them are answers."""
        begin = self._place(row)
        return self._cut(begin, begin + self._row_tokens + 1)

    def _begins(self, row: int) -> NDArray[np.bool_]:
        """Where in a row documents begin.

        The ids do not tell: some chat templates begin every turn with the token that begins a
        document.
        """
        begin = self._place(row)
        first, last = np.searchsorted(self._offsets[:-1], (begin, begin + self._row_tokens))
        firsts = np.zeros(self._row_tokens, dtype=np.bool_)
        firsts[self._offsets[first:last] - begin] = True
        return firsts

    def _place(self, row: int) -> int:
        """Where a row begins in its epoch's stream."""
        self._enter(row // self.rows_per_epoch)
        return int(self._rows[row % self.rows_per_epoch]) * self._row_tokens

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
