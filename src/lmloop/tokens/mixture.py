"""Rows of two loaders mixed by weight, still a pure function of a cursor.

Takes: a loader of the text to learn, one of text to rehearse, a share. Gives: batches of both.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import floor

import numpy as np

from lmloop.tokens.loader import Batch, PackedLoader


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedLoader:
    """Of any n rows from the first on, `share` · n are rehearsed, rounded down."""

    own: PackedLoader
    rehearsed: PackedLoader
    share: float

    def rows(self, start: int, count: int) -> Batch:
        """Rows `start` to `start + count` of the endless sequence, rehearsed ones last."""
        first, last = self._rehearsed_before(start), self._rehearsed_before(start + count)
        parts = [
            loader.rows(begin, rows)
            for loader, begin, rows in (
                (self.own, start - first, count - (last - first)),
                (self.rehearsed, first, last - first),
            )
            if rows
        ]
        return parts[0] if len(parts) == 1 else _join(parts)

    def documents(self, start: int, count: int) -> list[int]:
        """Numbers of the documents that these rows are cut from; rehearsed ones count on."""
        first, last = self._rehearsed_before(start), self._rehearsed_before(start + count)
        own = self.own.documents(start - first, count - (last - first))
        rehearsed = self.rehearsed.documents(first, last - first)
        return own + [self.own.num_documents + number for number in rehearsed]

    def _rehearsed_before(self, row: int) -> int:
        return floor(row * self.share)


Loader = PackedLoader | MixedLoader


def _join(parts: list[Batch]) -> Batch:
    """Batches of the same columns as one; all arrays have a row first."""
    names = [each.name for each in fields(Batch) if getattr(parts[0], each.name) is not None]
    return Batch(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})
