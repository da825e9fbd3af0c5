"""Attention layers: what they give their view."""

from __future__ import annotations

import torch
from torch import Tensor

from lmloop.model.attention import Attention
from lmloop.model.scores import Scoring
from lmloop.model.views import Bias, Place

from ..conftest import tiny_shape
from .angles import angles_of


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def test_the_layer_gives_its_view_normalised_and_rotated_queries_and_keys() -> None:
    class Spy:
        seen: tuple[Tensor, ...] = ()

        def attend(
            self,
            layer: int,
            q: Tensor,
            k: Tensor,
            v: Tensor,
            *,
            scoring: Scoring,
            bias: Bias | None,
        ) -> Tensor:
            self.seen = (torch.tensor(layer), q, k, v)
            return torch.zeros_like(q)

    config, spy = tiny_shape(), Spy()
    attention = Attention(config, layer=3)
    torch.nn.init.normal_(attention.qkv.weight)
    x = draw(5, config.hidden_size, dtype=torch.float32)
    place = Place(angles_of(torch.arange(5), head_dim=8, theta=1e4, dtype=x.dtype))
    assert attention(x, place, spy).shape == x.shape
    layer, q, k, v = spy.seen
    assert layer == 3
    assert (q.shape, k.shape, v.shape) == ((5, 4, 8), (5, 2, 8), (5, 2, 8))
    # A norm with weight one makes the mean square one, and a rotation keeps it.
    ones = torch.ones(())
    torch.testing.assert_close(q.pow(2).mean(-1), ones.expand(5, 4), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(k.pow(2).mean(-1), ones.expand(5, 2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(v.flatten(1), attention.qkv(x)[:, -16:])
