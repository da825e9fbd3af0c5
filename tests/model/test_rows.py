"""Packed rows: who sees whom."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lmloop.model.rows import PackedRows
from lmloop.model.scores import Scoring


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def test_a_view_of_packed_rows_shows_only_the_own_past() -> None:
    segments = torch.tensor([[1, 1, 2, 2, 2], [0, 0, 0, 1, 2]])
    view = PackedRows(rows=2, length=5, segments=segments)
    q, k, v = draw(10, 4, 6), draw(10, 2, 6, seed=1), draw(10, 2, 6, seed=2)
    result = view.attend(0, q, k, v, scoring=Scoring(scale=6**-0.5), bias=None)
    for row in range(2):
        for place in range(5):
            seen = [
                5 * row + past
                for past in range(place + 1)
                if segments[row, past] == segments[row, place]
            ]
            for head in range(4):
                scores = k[seen, head // 2] @ q[5 * row + place, head] / math.sqrt(6)
                torch.testing.assert_close(
                    result[5 * row + place, head], scores.softmax(0) @ v[seen, head // 2]
                )


def test_a_view_without_segments_is_causal() -> None:
    q, k, v = draw(6, 2, 4), draw(6, 1, 4, seed=1), draw(6, 1, 4, seed=2)
    plain = Scoring(scale=0.5)
    result = PackedRows(rows=2, length=3).attend(0, q, k, v, scoring=plain, bias=None)
    one = PackedRows(rows=2, length=3, segments=torch.zeros(2, 3, dtype=torch.int64))
    torch.testing.assert_close(result, one.attend(0, q, k, v, scoring=plain, bias=None))
    torch.testing.assert_close(result[0], v[0].expand(2, 4))
