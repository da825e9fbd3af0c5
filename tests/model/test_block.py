"""One block: two branches, each behind a norm, each added to what came in."""

from __future__ import annotations

import torch

from lmloop.model.block import Block
from lmloop.model.rows import PackedRows
from lmloop.model.views import Place

from ..conftest import tiny_shape
from .angles import angles_of


def test_a_block_adds_attention_then_feed_forward() -> None:
    config = tiny_shape()
    block = Block(config, layer=0)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.dim() > 1 else None
    x = torch.randn(4, config.hidden_size, generator=torch.Generator().manual_seed(0))
    place = Place(angles_of(torch.arange(4), head_dim=8, theta=1e4, dtype=x.dtype))
    view = PackedRows(rows=1, length=4)
    mixer, feed_forward = block.mixer, block.feed_forward
    middle = x + mixer.part(mixer.norm(x), place, view)
    expected = middle + feed_forward.part(feed_forward.norm(middle))
    torch.testing.assert_close(block(x, place, view), expected)
    assert not torch.allclose(block(x, place, view), x)


def test_a_block_whose_branches_end_in_zeros_is_the_identity() -> None:
    config = tiny_shape()
    block = Block(config, layer=0)
    torch.nn.init.zeros_(block.mixer.part.output.weight)
    torch.nn.init.zeros_(block.feed_forward.part.down.weight)
    x = torch.randn(4, config.hidden_size, generator=torch.Generator().manual_seed(0))
    place = Place(angles_of(torch.arange(4), head_dim=8, theta=1e4, dtype=x.dtype))
    assert torch.equal(block(x, place, PackedRows(rows=1, length=4)), x)
