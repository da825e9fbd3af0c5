"""Where the numbers of a sharded tensor lie: which rows and columns of it each rank has.

Takes: a tensor's shape, the matrices that are fused in it, a grid of ranks. Gives: the rectangle of
each matrix that lies on a rank. A snapshot of any grid opens on any other by this arithmetic alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Split = Literal["rows", "columns"]


@dataclass(frozen=True, slots=True)
class Grid:
    """Ranks as a table: rank = data · tensor_parallel + its place among those that share a batch.

    Along a column rows of tensors are dealt out; along a row heads and inner features are.
    """

    data: int
    """Parts that a batch and the rows of a tensor are dealt out in."""
    tensor_parallel: int = 1
    """Ranks that compute one part of a batch together."""

    @property
    def size(self) -> int:
        """All ranks."""
        return self.data * self.tensor_parallel


@dataclass(frozen=True, slots=True)
class Piece:
    """A rectangle of one matrix, as it lies in a rank's own tensor."""

    matrix: int
    """Which of the tensor's matrices."""
    rows: slice
    """Rows of the rank's own tensor."""
    offsets: tuple[int, ...]
    """Where the rectangle begins in its matrix."""
    sizes: tuple[int, ...]

    @property
    def count(self) -> int:
        """Numbers in it."""
        return torch.Size(self.sizes).numel()


@dataclass(frozen=True, slots=True)
class Spread:
    """How a tensor lies on a grid: each matrix cut by `split`, then all rows dealt out."""

    shape: tuple[int, ...]
    """Of the whole tensor, at least one axis."""
    matrices: tuple[int, ...]
    """Rows of each matrix that is fused in it."""
    split: Split | None = None
    """What ranks that share a batch cut; None: each has all of it."""

    def own_shape(self, grid: Grid, rank: int) -> tuple[int, ...]:
        """Shape of a rank's own tensor; it may have no rows."""
        first, last = self._bounds(grid, rank)
        return (last - first, *self._tail(grid))

    def pieces(self, grid: Grid, rank: int) -> list[Piece]:
        """What a rank has, in the order of its own rows."""
        first, last = self._bounds(grid, rank)
        place = rank % grid.tensor_parallel
        tail, found, start = self._tail(grid), [], 0
        for matrix, rows in enumerate(self._dealt_rows(grid)):
            begin, end = max(first, start), min(last, start + rows)
            if begin < end:
                row = begin - start + (place * rows if self.split == "rows" else 0)
                columns = (0,) * len(tail)
                if self.split == "columns":
                    columns = (place * tail[0], *columns[1:])
                own = slice(begin - first, end - first)
                found.append(Piece(matrix, own, (row, *columns), (end - begin, *tail)))
            start += rows
        return found

    def is_counted(self, grid: Grid, rank: int) -> bool:
        """Whether a rank's part stands for itself, and is no copy of another's."""
        return self.split is not None or rank % grid.tensor_parallel == 0

    def own(self, whole: Tensor, grid: Grid, rank: int) -> Tensor:
        """A rank's own of a whole tensor."""
        own = whole.new_empty(self.own_shape(grid, rank))
        for piece in self.pieces(grid, rank):
            own[piece.rows] = self.find(whole, piece)
        return own

    def find(self, whole: Tensor, piece: Piece) -> Tensor:
        """The rectangle of a whole tensor, to be read or written."""
        start = sum(self.matrices[: piece.matrix])
        for axis, (offset, size) in enumerate(zip(piece.offsets, piece.sizes, strict=True)):
            whole = whole.narrow(axis, offset + (start if axis == 0 else 0), size)
        return whole

    def _dealt_rows(self, grid: Grid) -> list[int]:
        """Rows of each matrix that lie with one of those who share a batch."""
        cut = grid.tensor_parallel if self.split == "rows" else 1
        return [rows // cut for rows in self.matrices]

    def _tail(self, grid: Grid) -> tuple[int, ...]:
        """The axes behind the rows."""
        tail = self.shape[1:]
        if self.split == "columns":
            tail = (tail[0] // grid.tensor_parallel, *tail[1:])
        return tail

    def _bounds(self, grid: Grid, rank: int) -> tuple[int, int]:
        """First and last row, of those of the ranks who share a batch; equal parts, rounded up."""
        rows = sum(self._dealt_rows(grid))
        part, place = -(-rows // grid.data), rank // grid.tensor_parallel
        return min(place * part, rows), min((place + 1) * part, rows)
