"""Where the numbers of a sharded tensor lie, by hand and without a gap on any grid."""

from __future__ import annotations

import pytest
import torch

from lmloop.training.pieces import Grid, Piece, Split, Spread


def test_rows_are_dealt_out_across_the_matrices_that_are_fused() -> None:
    spread, grid = Spread((6, 4), (4, 2)), Grid(2)
    assert spread.pieces(grid, 0) == [Piece(0, slice(0, 3), (0, 0), (3, 4))]
    assert spread.pieces(grid, 1) == [
        Piece(0, slice(0, 1), (3, 0), (1, 4)),
        Piece(1, slice(1, 3), (0, 0), (2, 4)),
    ]


def test_each_fused_matrix_is_cut_between_those_who_share_a_batch() -> None:
    grid = Grid(1, 2)
    assert Spread((6, 4), (4, 2), "rows").pieces(grid, 1) == [
        Piece(0, slice(0, 2), (2, 0), (2, 4)),
        Piece(1, slice(2, 3), (1, 0), (1, 4)),
    ]
    assert Spread((6, 4), (6,), "columns").pieces(grid, 1) == [
        Piece(0, slice(0, 6), (0, 2), (6, 2))
    ]


def test_the_last_ranks_may_have_no_rows() -> None:
    spread = Spread((5,), (5,))
    shapes = [spread.own_shape(Grid(4), rank) for rank in range(4)]
    assert shapes == [(2,), (2,), (1,), (0,)]
    assert spread.pieces(Grid(4), 3) == []


def test_a_piece_knows_how_many_numbers_it_has() -> None:
    assert Piece(0, slice(0, 3), (0, 0), (3, 4)).count == 12


@pytest.mark.parametrize("grid", [Grid(1), Grid(3), Grid(1, 2), Grid(2, 2), Grid(3, 4)])
@pytest.mark.parametrize("split", [None, "rows", "columns"])
def test_the_ranks_have_together_every_number_once(grid: Grid, split: Split | None) -> None:
    spread = Spread((24, 8, 2), (12, 8, 4), split)
    whole = torch.arange(24 * 8 * 2).view(24, 8, 2)
    again, seen = torch.zeros_like(whole), torch.zeros_like(whole)
    for rank in range(grid.size):
        own = spread.own(whole, grid, rank)
        assert own.shape == spread.own_shape(grid, rank)
        for piece in spread.pieces(grid, rank):
            assert own[piece.rows].shape == piece.sizes
            spread.find(again, piece).copy_(own[piece.rows])
            if spread.is_counted(grid, rank):
                spread.find(seen, piece).add_(1)
    assert torch.equal(again, whole)
    assert seen.eq(1).all()
