"""Rotary angles for tests that turn something."""

from __future__ import annotations

import torch
from torch import Tensor

from lmloop.model.rotary import rotary_angles, rotary_frequencies


def angles_of(
    positions: Tensor, *, head_dim: int, theta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosine and sine [N, 1, d/2] of positions [N], not scaled."""
    frequencies = rotary_frequencies(head_dim, theta=theta, scaling=None)
    return rotary_angles(positions, frequencies, dtype=dtype)
