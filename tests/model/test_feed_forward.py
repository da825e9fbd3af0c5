"""Feed-forward layers: one, and many of which each token passes a few."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from lmloop.model.feed_forward import FeedForward

from ..conftest import tiny_shape


def test_gate_and_up_are_the_two_halves_of_one_product() -> None:
    config = tiny_shape()
    layer = FeedForward(config, size=config.intermediate_size)
    torch.nn.init.normal_(layer.up.weight)
    torch.nn.init.normal_(layer.down.weight)
    x = torch.randn(3, config.hidden_size, generator=torch.Generator().manual_seed(0))
    gate, up = layer.up.weight.split(config.intermediate_size)
    expected = (F.silu(x @ gate.T) * (x @ up.T)) @ layer.down.weight.T
    torch.testing.assert_close(layer(x), expected)
