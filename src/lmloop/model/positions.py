"""Where tokens stand: angles that turn queries and keys, vectors that are added, biases of scores.

Axes: N tokens, T queries, S keys, D width, H heads.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lmloop.model.config import ModelConfig
from lmloop.model.rotary import rotary_angles, rotary_frequencies
from lmloop.model.views import Place

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def sinusoids(positions: Int[Tensor, "N"], *, width: int) -> Float[Tensor, "N D"]:
    """Sines and cosines of `width` / 2 frequencies, neighbours of one frequency.

    Source: Vaswani et al. 2017, Attention Is All You Need, section 3.5.
    """
    frequencies = rotary_frequencies(width, theta=10_000.0, scaling=None)
    angles = positions.float()[:, None] * frequencies.to(positions.device)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


class Rotary:
    """The angles of each layer; local layers may turn at a speed of their own."""

    def __init__(self, config: ModelConfig) -> None:
        scaling, theta = config.rope_scaling, config.local_rope_theta
        with torch.device("cpu"):  # also where the weights are still without storage
            self._everywhere = rotary_frequencies(
                config.rotary_dim, theta=config.rope_theta, scaling=scaling
            )
            self._local = (
                None
                if theta is None
                else rotary_frequencies(config.rotary_dim, theta=theta, scaling=None)
            )
        self._magnitude = 1.0 if scaling is None else scaling.magnitude

    def places(self, positions: Int[Tensor, "N"], *, dtype: torch.dtype) -> tuple[Place, Place]:
        """Where tokens stand, for layers that see everything and for local ones."""
        angles = rotary_angles(positions, self._everywhere, dtype=dtype, magnitude=self._magnitude)
        if self._local is None:
            return Place(angles), Place(angles)
        return Place(angles), Place(rotary_angles(positions, self._local, dtype=dtype))


class RelativeBias(nn.Module):
    """A learnt number a head for every bucket of distances between query and key.

    Source: Raffel et al. 2020, T5, section 2.1: half of the buckets are single distances, the
    others grow as the logarithm.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.causal, self.farthest = config.causal, config.relative_distance
        self.weight = nn.Parameter(torch.zeros(config.relative_buckets, config.num_heads))

    def forward(self, distance: Int[Tensor, "*T S"]) -> Float[Tensor, "*H T S"]:
        """What scores gain where the key lies `distance` tokens before the query."""
        found: Tensor = nn.functional.embedding(self._bucket(distance), self.weight)
        return found.movedim(-1, -3)

    def _bucket(self, distance: Tensor) -> Tensor:
        count, first = len(self.weight), torch.zeros_like(distance)
        if not self.causal:  # the later half is for keys behind the query
            count //= 2
            first = (distance < 0) * count
            distance = distance.abs()
        distance = distance.clamp_min(0)
        exact = count // 2
        share = (distance.clamp_min(1).float() / exact).log() / math.log(self.farthest / exact)
        far = (exact + (share * (count - exact)).long()).clamp_max(count - 1)
        return first + torch.where(distance < exact, distance, far)
