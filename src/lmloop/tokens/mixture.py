"""Rows of several loaders mixed by weight, still a pure function of a cursor.

Takes: a loader of the text to learn and one of text to rehearse, or one a task; shares. Gives:
batches of both, or a batch a task.
"""

from __future__ import annotations

from collections.abc import Mapping
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

    @property
    def rows_per_epoch(self) -> int:
        """Rows of both texts."""
        return self.own.rows_per_epoch + self.rehearsed.rows_per_epoch

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Rows that one of several objectives is learnt from."""

    loader: PackedLoader
    share: float
    """How many of the rows are of it, beside the shares of the others."""
    weight: float = 1.0
    """How much each of its targets counts."""
    first_document: int = 0
    """Number of its split's first document among those of all tasks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Rows that are in memory together."""

    batch: Batch
    task: str = ""
    weight: float = 1.0
    """How much each of their targets counts."""


@dataclass(frozen=True, slots=True)
class TaskLoader:
    """Of any n rows from the first on, each task has its share, rounded."""

    tasks: Mapping[str, Task]

    @property
    def rows_per_epoch(self) -> int:
        """Rows of all tasks; those of one text count for each that reads it."""
        return sum(task.loader.rows_per_epoch for task in self.tasks.values())

    def pieces(self, start: int, count: int, *, at_once: int) -> list[Piece]:
        """Rows `start` to `start + count` of the endless sequence, task by task."""
        before, behind = self._dealt(start), self._dealt(start + count)
        return [
            Piece(
                batch=task.loader.rows(first, min(at_once, behind[name] - first)),
                task=name,
                weight=task.weight,
            )
            for name, task in self.tasks.items()
            for first in range(before[name], behind[name], at_once)
        ]

    def documents(self, start: int, count: int) -> list[int]:
        """Numbers of the documents that these rows are cut from; those of other text count on."""
        before, behind = self._dealt(start), self._dealt(start + count)
        found = {
            task.first_document + number
            for name, task in self.tasks.items()
            for number in task.loader.documents(before[name], behind[name] - before[name])
        }
        return sorted(found)

    def _dealt(self, rows: int) -> dict[str, int]:
        """How many of the first `rows` rows each task has: none of them ever gives one back."""
        dealt, shares = {}, sum(task.share for task in self.tasks.values())
        for name, task in reversed(list(self.tasks.items())):
            dealt[name] = floor(rows * (task.share / shares))
            rows, shares = rows - dealt[name], shares - task.share
        dealt[next(iter(self.tasks))] += rows  # what rounding has left
        return dealt


Loader = PackedLoader | MixedLoader | TaskLoader


def cut_rows(loader: Loader, start: int, count: int, *, at_once: int) -> list[Piece]:
    """Rows `start` to `start + count` in pieces of at most `at_once` rows of one task."""
    if isinstance(loader, TaskLoader):
        return loader.pieces(start, count, at_once=at_once)
    end = start + count
    return [
        Piece(batch=loader.rows(first, min(at_once, end - first)))
        for first in range(start, end, at_once)
    ]


def _join(parts: list[Batch]) -> Batch:
    """Batches of the same columns as one; all arrays have a row first."""
    names = [each.name for each in fields(Batch) if getattr(parts[0], each.name) is not None]
    return Batch(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})
