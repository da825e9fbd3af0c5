"""Norms: what they divide by."""

from __future__ import annotations

import torch

from lmloop.model.norms import RMSNorm


def test_a_norm_divides_by_the_root_of_the_mean_square() -> None:
    norm = RMSNorm(4, epsilon=0.0)
    x = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    assert norm(x).tolist() == [[1.0, -1.0, 1.0, -1.0]]
