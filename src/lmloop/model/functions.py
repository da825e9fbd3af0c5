"""The element-wise parts of a block, with gradients written out so that each is a few passes.

Takes and gives tensors alone. PyTorch's own backward of these composites costs two to five times as
many passes over memory on a CPU; `tests/model/test_functions.py` holds both equal. Where nobody
asks for a gradient they are computed plainly: recording costs as much as a small step. Axes: N
tokens, D width, H heads, d width of a head, I feed-forward width.
"""

# Annotations here are tensors' shapes in words; autograd's static methods are untyped in PyTorch.
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from lmloop.model import kernels

if TYPE_CHECKING:
    from jaxtyping import Float


class _RMSNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, *angles: Tensor) -> Tensor:
        """Turned by `angles`, cosine and sine, if they are given: where `kernels.py` can."""
        ctx.native = kernels.fits(x, weight)
        if ctx.native:
            result, normed, scale = kernels.norm(x, weight, epsilon=epsilon, angles=angles)
            ctx.save_for_backward(normed, weight, scale, *angles)
            return result
        scale = _inverse_rms(x, epsilon)
        normed = x * scale
        ctx.save_for_backward(normed, weight, scale)
        return normed * weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        normed, weight, scale, *angles = ctx.saved_tensors
        (grad,) = grads
        if ctx.native:
            moved = kernels.norm_backward(grad, normed, weight, scale, angles=angles)
            return *moved, None, *(None for _ in angles)
        product = grad * normed
        grad_weight = product.flatten(0, -1 - weight.dim()).sum(0)
        mean = product.mul_(weight).mean(-1, keepdim=True)
        grad_normed = grad * weight
        return grad_normed.addcmul_(normed, mean, value=-1).mul_(scale), grad_weight, None


def _inverse_rms(x: Tensor, epsilon: float) -> Tensor:
    exact = torch.promote_types(x.dtype, torch.float32)
    square: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact)
    return square.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_().to(x.dtype)


def rms_norm(
    x: Float[Tensor, "N *D"], weight: Float[Tensor, "*W"], *, epsilon: float
) -> Float[Tensor, "N *D"]:
    """x / sqrt(mean(x²) + epsilon) · weight over the last axis; x [N, …, D], weight [D] or [H, d].

    Source: Zhang and Sennrich 2019, Root Mean Square Layer Normalization.
    """
    if not torch.is_grad_enabled():
        return x * _inverse_rms(x, epsilon) * weight
    result: Tensor = _RMSNorm.apply(x, weight, epsilon)  # type: ignore[no-untyped-call]
    return result


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.native = kernels.fits(gate_up)
        if ctx.native:
            return kernels.swiglu(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        (grad,) = grads
        if ctx.native:
            return kernels.swiglu_backward(grad, gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        result = torch.empty_like(gate_up)
        grad_gate, grad_up = result.chunk(2, dim=-1)
        torch.mul(grad, F.silu(gate), out=grad_up)
        grad_gate.copy_(torch.ops.aten.silu_backward(grad * up, gate))
        return result


def swiglu(gate_up: Float[Tensor, "N gate_up"]) -> Float[Tensor, "N I"]:
    """silu(gate) · up for gate_up = [gate | up] of shape [N, 2I]; gives [N, I].

    Source: Shazeer 2020, GLU Variants Improve Transformer.
    """
    if not torch.is_grad_enabled():
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)
    result: Tensor = _SwiGLU.apply(gate_up)  # type: ignore[no-untyped-call]
    return result


class _Rotate(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        ctx.native = kernels.fits(x, cosine, sine)
        if ctx.native:
            return kernels.rotate(x, (cosine, sine))
        return _rotate_halves(x, cosine, sine)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        if ctx.native:
            return kernels.rotate(grads[0], (cosine, sine), back=True), None, None
        return _rotate_halves(grads[0], cosine, -sine), None, None


def _rotate_halves(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    if torch.compiler.is_compiling():  # a compiler joins the passes itself, and writes to no piece
        return torch.cat([left * cosine - right * sine, right * cosine + left * sine], dim=-1)
    result = torch.empty_like(x)
    first, second = result.chunk(2, dim=-1)
    torch.mul(left, cosine, out=first).addcmul_(right, sine, value=-1)
    torch.mul(right, cosine, out=second).addcmul_(left, sine)
    return result


def rotate(
    x: Float[Tensor, "N H d"], cosine: Float[Tensor, "N 1 half"], sine: Float[Tensor, "N 1 half"]
) -> Float[Tensor, "N H d"]:
    """Turn the pairs (x[i], x[i + d/2]) by their angles; x [N, H, d], angles [N, 1, d/2].

    Source: Su et al. 2021, RoFormer; halves, not neighbours, are paired, as in Llama and Qwen.
    """
    if not torch.is_grad_enabled():
        return _rotate_halves(x, cosine, sine)
    result: Tensor = _Rotate.apply(x, cosine, sine)  # type: ignore[no-untyped-call]
    return result


def norm_rotate(
    x: Float[Tensor, "N H d"],
    weight: Float[Tensor, "H d"],
    angles: tuple[Float[Tensor, "N 1 half"], Float[Tensor, "N 1 half"]],
    *,
    epsilon: float,
) -> Float[Tensor, "N H d"]:
    """Queries or keys [N, H, d] normed, each head by itself, and turned by their angles."""
    if torch.is_grad_enabled() and kernels.fits(x, weight, *angles):
        result: Tensor = _RMSNorm.apply(x, weight, epsilon, *angles)  # type: ignore[no-untyped-call]
        return result
    return rotate(rms_norm(x, weight, epsilon=epsilon), *angles)
