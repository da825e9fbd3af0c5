"""Attention block by block beside the whole score matrix: the same rules, the same result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lmloop.model.positions import RelativeBias
from lmloop.model.rows import PackedRows
from lmloop.model.scores import Scoring

from .kinds import decoder, encoder

# Spelt out on a processor without CUDA, which PyTorch warns is slow.
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

SEGMENTS = torch.tensor([[0] * 9 + [1] * 11 + [2] * 12, [0] * 32])
ORDER = torch.stack(
    [torch.randperm(32, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
)
RULES: dict[str, dict[str, Any]] = {
    "causal": {},
    "both ways": {"causal": False},
    "packed": {"segments": SEGMENTS},
    "packed, both ways": {"segments": SEGMENTS, "causal": False},
    "an order": {"segments": SEGMENTS, "order": ORDER},
}
SCORINGS = {
    "plain": Scoring(scale=0.3),
    "a window": Scoring(scale=0.3, window=4),
    "a cap": Scoring(scale=0.3, cap=2.0),
}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_blocks_gather_what_the_whole_matrix_does(rule: str, scoring: str, biased: bool) -> None:
    view = PackedRows(rows=2, length=32, **RULES[rule])
    q, k, v = (draw(2, heads, 32, 16, seed=seed) for seed, heads in enumerate((4, 2, 2)))
    make = decoder if RULES[rule].get("causal", True) else encoder
    bias = RelativeBias(make("relative")) if biased else None
    if bias is not None:
        bias.weight.copy_(draw(*bias.weight.shape, seed=5))
    options = {"scoring": SCORINGS[scoring], "bias": bias}
    found = view._attend_blocks(q, k, v, **options)
    packed = [each.transpose(1, 2).flatten(0, 1) for each in (q, k, v)]
    expected = view.attend(0, *packed, **options).view(2, 32, 4, 16).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
