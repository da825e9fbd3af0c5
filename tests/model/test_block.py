"""One block: two branches, each behind a norm, each added to what came in."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from lmloop.model.attention import PackedRows
from lmloop.model.block import Block, FeedForward, RMSNorm

from ..conftest import tiny_shape
from .angles import angles_of


def test_a_norm_divides_by_the_root_of_the_mean_square() -> None:
    norm = RMSNorm(4, epsilon=0.0)
    x = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    assert norm(x).tolist() == [[1.0, -1.0, 1.0, -1.0]]


def test_gate_and_up_are_the_two_halves_of_one_product() -> None:
    config = tiny_shape()
    layer = FeedForward(config)
    torch.nn.init.normal_(layer.gate_up.weight)
    torch.nn.init.normal_(layer.down.weight)
    x = torch.randn(3, config.hidden_size, generator=torch.Generator().manual_seed(0))
    gate, up = layer.gate_up.weight.split(config.intermediate_size)
    expected = (F.silu(x @ gate.T) * (x @ up.T)) @ layer.down.weight.T
    torch.testing.assert_close(layer(x), expected)


def test_a_block_adds_attention_then_feed_forward() -> None:
    config = tiny_shape()
    block = Block(config, layer=0)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.dim() > 1 else None
    x = torch.randn(4, config.hidden_size, generator=torch.Generator().manual_seed(0))
    rotary = angles_of(torch.arange(4), head_dim=8, theta=1e4, dtype=x.dtype)
    view = PackedRows(rows=1, length=4)
    middle = x + block.attention(block.attention_norm(x), rotary, view)
    expected = middle + block.feed_forward(block.feed_forward_norm(middle))
    torch.testing.assert_close(block(x, rotary, view), expected)
    assert not torch.allclose(block(x, rotary, view), x)


def test_a_block_whose_branches_end_in_zeros_is_the_identity() -> None:
    config = tiny_shape()
    block = Block(config, layer=0)
    torch.nn.init.zeros_(block.attention.output.weight)
    torch.nn.init.zeros_(block.feed_forward.down.weight)
    x = torch.randn(4, config.hidden_size, generator=torch.Generator().manual_seed(0))
    rotary = angles_of(torch.arange(4), head_dim=8, theta=1e4, dtype=x.dtype)
    assert torch.equal(block(x, rotary, PackedRows(rows=1, length=4)), x)
