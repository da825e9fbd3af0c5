"""A product with a matrix of weights, as `torch.nn.Linear` has it, with a gradient of its own.

Takes and gives tensors alone. A processor with AMX sums the gradient of the weights over tokens
half as fast again as PyTorch's product does, which turns one factor around first. Axes: N tokens,
C numbers of a token before, R after.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from lmloop.model import kernels

if TYPE_CHECKING:
    from jaxtyping import Float


class Linear(nn.Linear):
    """x · weightᵀ + bias."""

    def forward(self, x: Float[Tensor, "N C"]) -> Float[Tensor, "N R"]:
        """Each token by itself."""
        learns = torch.is_grad_enabled() and self.weight.requires_grad
        fits = learns and kernels.fits(self.weight)
        if not fits or not kernels.can_sum_tokens(x, rows=self.out_features):
            return F.linear(x, self.weight, self.bias)
        result: Tensor = _Linear.apply(x, self.weight)  # type: ignore[no-untyped-call]
        return result if self.bias is None else result + self.bias


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor]:
        x, weight = ctx.saved_tensors
        grad = grads[0].contiguous()
        return grad @ weight if ctx.needs_input_grad[0] else None, kernels.sum_tokens(grad, x)
