"""Orthogonal momentum against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lmloop.training.muon import orthogonalise


def polar(matrix: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    return left @ right


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 16, 40), (2, 40, 16), (1, 64, 64)])
def test_orthogonalising_brings_every_singular_value_near_one(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalise(matrices)
    assert result.shape == matrices.shape
    values = torch.linalg.svdvals(result.double())
    # Five steps lift the smallest values of a square matrix part of the way only.
    assert values.max() < 1.2
    assert values.median() > 0.85
    if shape[1] != shape[2]:
        assert values.min() > 0.8
    for one, other in zip(result, matrices, strict=True):
        expected = polar(other)
        cosine = (one.double() * expected).sum() / (one.double().norm() * expected.norm())
        assert cosine > 0.98


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("rank", [1, 2, 12])
def test_no_singular_value_runs_away(seed: int, rank: int) -> None:
    # Rounding to bfloat16 may put a value above the range in which the steps converge.
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(4, 24, rank, generator=generator) for _ in range(2))
    values = torch.linalg.svdvals(orthogonalise(left @ right.transpose(1, 2)).double())
    assert values.max() < 1.25


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_size_of_a_gradient_does_not_matter(scale: float) -> None:
    matrices = torch.randn(2, 12, 20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        orthogonalise(scale * matrices), orthogonalise(matrices), rtol=0.1, atol=0.05
    )


def test_a_gradient_of_zero_stays_zero() -> None:
    assert not orthogonalise(torch.zeros(2, 4, 6)).any()


def test_matrices_of_one_group_do_not_touch_each_other() -> None:
    matrices = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    together = orthogonalise(matrices)
    for number in range(3):
        alone = orthogonalise(matrices[number : number + 1])[0]
        torch.testing.assert_close(together[number], alone, rtol=0.05, atol=0.02)
