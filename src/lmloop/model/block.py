"""One block of the decoder: attention, then feed-forward, each behind a norm, each added."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lmloop.model.attention import Attention, AttentionView
from lmloop.model.config import DecoderConfig
from lmloop.model.functions import rms_norm, swiglu


class RMSNorm(nn.Module):
    """Root-mean-square normalisation of the last axis with a learnt scale."""

    def __init__(self, width: int, *, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """x [N, D] -> [N, D]."""
        return rms_norm(x, self.weight, epsilon=self.epsilon)


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x)), gate and up as one product."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, D] -> [N, D]."""
        output: Tensor = self.down(swiglu(self.gate_up(x)))
        return output


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: DecoderConfig, *, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, epsilon=config.norm_epsilon)
        self.attention = Attention(config, layer=layer)
        self.feed_forward_norm = RMSNorm(config.hidden_size, epsilon=config.norm_epsilon)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], view: AttentionView) -> Tensor:
        """x [N, D] -> [N, D]."""
        x = x + self.attention(self.attention_norm(x), rotary, view)
        mixed: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return mixed
