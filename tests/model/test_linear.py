"""A product with weights against PyTorch's own, forward and back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lmloop.model import kernels
from lmloop.model.linear import Linear


def make(rows: int, columns: int, *, bias: bool) -> tuple[Linear, nn.Linear]:
    """The same weights, in bfloat16 and in float64."""
    torch.manual_seed(0)
    ours, theirs = Linear(columns, rows, bias=bias).bfloat16(), nn.Linear(columns, rows, bias=bias)
    theirs.double().load_state_dict({k: v.double() for k, v in ours.state_dict().items()})
    return ours, theirs


def near(given: Tensor | None, expected: Tensor | None) -> bool:
    assert given is not None and expected is not None
    return bool((given.double() - expected).abs().max() <= expected.abs().max() * 2**-7)


# Whole tiles, and sizes that are none.
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(96, 64), (5, 7)])
def test_values_and_gradients_are_those_of_a_plain_product(
    rows: int, columns: int, bias: bool
) -> None:
    ours, theirs = make(rows, columns, bias=bias)
    x = torch.randn(70, columns, generator=torch.Generator().manual_seed(1)).bfloat16()
    mine, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    grad = torch.randn(70, rows, generator=torch.Generator().manual_seed(2)).bfloat16()
    result, expected = ours(mine), theirs(exact)
    assert near(result, expected)
    result.backward(grad)
    expected.backward(grad.double())
    assert near(mine.grad, exact.grad)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert near(one.grad, other.grad)


def test_frozen_weights_and_inputs_get_no_gradient() -> None:
    layer, _ = make(32, 32, bias=False)
    x = torch.ones(4, 32, dtype=torch.bfloat16)
    layer(x).sum().backward()
    assert layer.weight.grad is not None and x.grad is None
    frozen = layer.requires_grad_(False)
    assert not frozen(x).requires_grad
    y = x.clone().requires_grad_()
    frozen(y).sum().backward()
    assert y.grad is not None


@pytest.mark.skipif(
    not kernels.can_sum_tokens(torch.ones(1, 32, dtype=torch.bfloat16), rows=32),
    reason="the processor has no AMX",
)
def test_a_gradient_that_is_spread_out_is_taken() -> None:
    layer, plain = make(32, 32, bias=False)
    x = torch.ones(4, 32, dtype=torch.bfloat16)
    layer(x).sum().backward()  # the gradient is one number, expanded
    plain(x.double()).sum().backward()
    assert near(layer.weight.grad, plain.weight.grad)
