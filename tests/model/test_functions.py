"""Written-out gradients against PyTorch's own of the same formula."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional as F

from lmloop.model.functions import rms_norm, rotate, swiglu

from .angles import angles_of


def plain_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def plain_swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def plain_rotation(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cosine - right * sine, right * cosine + left * sine], dim=-1)


CASES: dict[
    str, tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[tuple[int, ...], ...]]
] = {
    "rms_norm": (lambda x, w: rms_norm(x, w, epsilon=1e-6), plain_norm, ((5, 8), (8,))),
    "rms_norm of heads": (
        lambda x, w: rms_norm(x, w, epsilon=1e-6),
        plain_norm,
        ((5, 3, 8), (3, 8)),
    ),
    "rms_norm of rows": (lambda x, w: rms_norm(x, w, epsilon=1e-6), plain_norm, ((2, 5, 8), (8,))),
    "swiglu": (swiglu, plain_swiglu, ((5, 12),)),
    "rotate": (
        lambda x: rotate(x, *angles(x)),
        lambda x: plain_rotation(x, *angles(x)),
        ((5, 3, 8),),
    ),
}


def angles(x: Tensor) -> tuple[Tensor, Tensor]:
    return angles_of(torch.arange(3, 3 + len(x)), head_dim=8, theta=100.0, dtype=x.dtype)


def draw(shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [each.to(dtype).requires_grad_() for each in drawn]


@pytest.mark.parametrize("case", CASES)
def test_the_written_gradient_is_the_derivative(case: str) -> None:
    ours, _, shapes = CASES[case]
    assert gradcheck(ours, draw(shapes, torch.float64))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_equal_the_plain_formula(
    case: str, dtype: torch.dtype, tolerance: float
) -> None:
    ours, plain, shapes = CASES[case]
    inputs, exact = draw(shapes, dtype), draw(shapes, torch.float64)
    result, expected = ours(*inputs), plain(*exact)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    result.backward(grad.to(dtype))
    expected.backward(grad)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)
    for ours_in, plain_in in zip(inputs, exact, strict=True):
        assert ours_in.grad is not None
        scale = 4 * tolerance * float(plain_in.grad.abs().max())  # type: ignore[union-attr]
        torch.testing.assert_close(
            ours_in.grad.double(), plain_in.grad, rtol=4 * tolerance, atol=scale
        )


def test_no_input_is_changed() -> None:
    for ours, _, shapes in CASES.values():
        inputs = draw(shapes, torch.float32)
        before = [each.detach().clone() for each in inputs]
        ours(*inputs).sum().backward()
        for each, old in zip(inputs, before, strict=True):
            assert torch.equal(each, old)


def test_a_norm_of_zeros_is_zero_and_its_gradient_finite() -> None:
    x = torch.zeros(2, 4, requires_grad=True)
    result = rms_norm(x, torch.ones(4), epsilon=1e-6)
    result.sum().backward()
    assert torch.equal(result, torch.zeros(2, 4))
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_a_norm_written_by_hand() -> None:
    result = rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), epsilon=0.0)
    root = math.sqrt(12.5)
    torch.testing.assert_close(result, torch.tensor([[3 / root, 8 / root]]))


def test_a_quarter_turn_written_by_hand() -> None:
    # Pairs are (x[0], x[2]) and (x[1], x[3]); the first turns by 90 degrees, the second not at all.
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    cosine, sine = torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[1.0, 0.0]]])
    assert rotate(x, cosine, sine).tolist() == [[[-3.0, 2.0, 1.0, 4.0]]]


def test_a_rotation_depends_on_the_distance_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 8, generator=generator, dtype=torch.float64)

    def product(at_q: int, at_k: int) -> float:
        turned = [
            rotate(x, *angles_of(torch.tensor([at]), head_dim=8, theta=100.0, dtype=x.dtype))
            for x, at in ((q, at_q), (k, at_k))
        ]
        return float((turned[0] * turned[1]).sum())

    assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-5)
    assert product(7, 3) != pytest.approx(product(7, 4), abs=1e-3)
