"""Attention as arithmetic: what queries, keys and values come to, whoever may see whom.

Takes: tensors, a mask, how scores are made. Gives: what each query gathers. Axes: B rows, H query
heads, K key heads, T queries, S keys, d width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from lmloop.model import kernels

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


@dataclass(frozen=True, slots=True)
class Scoring:
    """How the scores of one layer are made of its queries and keys."""

    scale: float
    """What products of queries and keys are multiplied with."""
    cap: float | None = None
    """Scores are kept within ± this by a tanh."""
    window: int | None = None
    """Keys this far away and farther are not seen."""


def make_mask(
    hidden: Bool[Tensor, "*T S"], *, dtype: torch.dtype, bias: Float[Tensor, "*T S"] | None = None
) -> Float[Tensor, "*T S"]:
    """What is added to scores: a bias, and so little where the key is hidden that it has no weight.

    It is finite, so that a query that sees nothing gathers everything instead of no number.
    """
    seen = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device) if bias is None else bias
    return seen.to(dtype).masked_fill(hidden, torch.finfo(dtype).min / 2)


def attend(
    q: Float[Tensor, "B H T d"],
    k: Float[Tensor, "B K S d"],
    v: Float[Tensor, "B K S d"],
    *,
    scoring: Scoring,
    mask: Float[Tensor, "b h T S"] | None = None,
) -> Float[Tensor, "B H T d"]:
    """softmax(cap(q·kᵀ · scale) + mask) · v.

    For short rows on a CPU the whole score matrix with a written-out gradient is three times as
    fast to train as the fused operator, whose backward is slow there; a processor that multiplies
    tiles is twice as fast without the matrix.
    """
    if scoring.cap is not None:
        return _spelt_out(q, k, v, scoring, mask)
    if q.requires_grad and not q.is_cuda and not (mask is not None and mask.requires_grad):
        way = _TiledAttention if kernels.can_attend(q, k, v, mask) else _DenseAttention
        result: Tensor = way.apply(q, k, v, mask, scoring.scale)  # type: ignore[no-untyped-call]
        return result
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=scoring.scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def _spelt_out(q: Tensor, k: Tensor, v: Tensor, scoring: Scoring, mask: Tensor | None) -> Tensor:
    """As the formula says, with gradients from PyTorch."""
    groups = q.shape[1] // k.shape[1]
    scores = (q @ k.repeat_interleave(groups, dim=1).transpose(-1, -2)) * scoring.scale
    if scoring.cap is not None:
        scores = scoring.cap * torch.tanh(scores / scoring.cap)
    weights = (scores if mask is None else scores + mask).softmax(-1, dtype=torch.float32)
    return weights.to(v.dtype) @ v.repeat_interleave(groups, dim=1)


class _TiledAttention(Function):
    """A block of queries after the other (`native/attention.cpp`)."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        out, kept = kernels.attend(q, k, v, mask=mask, scale=scale)
        ctx.save_for_backward(q, k, v, out, kept, mask)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        *tensors, mask = ctx.saved_tensors
        moved = kernels.attend_backward(grads[0], *tensors, mask=mask, scale=ctx.scale)
        return *moved, None, None


class _DenseAttention(Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        batch, heads, length, head_dim = q.shape
        groups = heads // k.shape[1]
        # Query heads of one group lie behind each other as more query positions of one key head.
        q = (q * scale).reshape(batch, k.shape[1], groups * length, head_dim)
        k, v = k.contiguous(), v.contiguous()
        scores = q @ k.transpose(-1, -2)
        if mask is not None:
            # One mask for all heads, or one a head, which lie in their groups.
            split = (-1, groups) if mask.shape[1] == heads else (1, 1)
            scores.view(batch, -1, groups, length, k.shape[2]).add_(
                mask.view(len(mask), *split, *mask.shape[2:])
            )
        weights = scores.softmax(-1)
        ctx.save_for_backward(q, k, v, weights)
        ctx.scale = scale
        return (weights @ v).view(batch, heads, length, head_dim)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, weights = ctx.saved_tensors
        (grad,) = grads
        shape = grad.shape
        grad = grad.reshape(q.shape)
        grad_v = weights.transpose(-1, -2) @ grad
        grad_weights = grad @ v.transpose(-1, -2)
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        grad_q = (grad_scores @ k).mul_(ctx.scale).view(shape)
        return grad_q, grad_scores.transpose(-1, -2) @ q, grad_v, None, None
