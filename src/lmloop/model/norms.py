"""Norms of the hidden states: root mean square, layer, batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lmloop.model.config import ModelConfig
from lmloop.model.functions import rms_norm

if TYPE_CHECKING:
    from jaxtyping import Float


class RMSNorm(nn.Module):
    """Root-mean-square normalisation of the last axis with a learnt scale."""

    def __init__(self, width: int, *, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """x / rms(x) · weight."""
        return rms_norm(x, self.weight, epsilon=self.epsilon)


def make_norm(config: ModelConfig) -> nn.Module:
    """A norm [N, D] -> [N, D] of the kind that the shape says.

    While training, a batch norm looks at all tokens of the batch, those of the future included, and
    its running mean is no parameter: recipes do not offer it.
    """
    if config.norm == "rms":
        return RMSNorm(config.hidden_size, epsilon=config.norm_epsilon)
    if config.norm == "layer":
        return nn.LayerNorm(config.hidden_size, eps=config.norm_epsilon, bias=config.norm_bias)
    return nn.BatchNorm1d(config.hidden_size, eps=config.norm_epsilon)
