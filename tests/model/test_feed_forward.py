"""Feed-forward layers: one, and many of which each token passes a few."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from lmloop.model.config import Experts
from lmloop.model.feed_forward import FeedForward, MixtureOfExperts, balance_loss

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


def mixture(**changes: float) -> MixtureOfExperts:
    experts = Experts(count=4, active=2, size=6, **changes)  # type: ignore[arg-type]
    layer = MixtureOfExperts(tiny_shape(), experts)
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return layer


def test_the_balance_is_one_where_all_are_equally_busy_and_more_where_not() -> None:
    even = torch.full((4, 4), 0.25)
    chosen = torch.tensor([[0, 1], [2, 3], [1, 0], [3, 2]])
    assert balance_loss(even, chosen).item() == 1.0
    # All tokens choose 0 and 1, with chances of 0.7 and 0.1: 4 · (0.5 · 0.7 + 0.5 · 0.1).
    chances = torch.tensor([[0.7, 0.1, 0.1, 0.1]]).expand(4, 4)
    torch.testing.assert_close(balance_loss(chances, torch.tensor([[0, 1]] * 4)), torch.tensor(1.6))


def test_the_balance_is_learnt_beside_whatever_hangs_on_the_output() -> None:
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(1))
    plain, balanced = mixture(), mixture(balance=0.5)
    for layer in (plain, balanced):
        layer.train()(x).sum().backward()
    chances = balanced.router(x).softmax(-1)
    chosen = balanced.choose(chances)[1]
    (added,) = torch.autograd.grad(0.5 * balance_loss(chances, chosen), balanced.router.weight)
    found = balanced.router.weight.grad
    assert found is not None
    assert added.abs().sum() > 0
    torch.testing.assert_close(found, plain.router.weight.grad + added)
    assert torch.equal(balanced.eval()(x), plain.eval()(x))


def test_what_a_token_gets_does_not_depend_on_its_batch() -> None:
    x = torch.randn(7, 24, generator=torch.Generator().manual_seed(2))
    layer = mixture(shared_size=4).eval()
    together = layer(x)
    for row in range(7):
        alone = layer(x[row : row + 1])[0]
        assert (together[row] - alone).abs().max() <= 1e-5 * alone.abs().max()
