"""Weights of 4 bits for a base that stays as it is while an adapter learns beside it (QLoRA).

Takes: linear layers. Gives: `Nf4Linear` layers in their place, and dense ones back. A weight is one
of the 16 quantiles of a normal distribution, times the largest of its block of 64 along the row:
4.5 bits in all. Codes and blocks are those of bitsandbytes where a row is a multiple of 64.
Axes: N tokens, O outputs, I inputs, K blocks of a row.

Source: Dettmers et al. 2023, QLoRA, section 3 and appendix E.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from lmloop.model.quantized import replace_linears

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, UInt8

BLOCK = 64
"""Weights of one scale."""
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""What the 16 codes mean, before the scale."""


class Nf4Linear(nn.Module):
    """y = x · weightᵀ + bias, the weight [O, I] made anew each time; it takes no gradient."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        """Round a layer's weights; its bias stays."""
        super().__init__()
        codes, scale = quantize_nf4(linear.weight.detach())
        # PyTorch says that a linear layer always has a bias.
        bias: Tensor | None = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("weight", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: Float[Tensor, "N I"]) -> Float[Tensor, "N O"]:
        """x [N, I] -> [N, O]."""
        y: Tensor = _Multiply.apply(x, self.weight, self.scale)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def dense(self, rows: slice = slice(None)) -> Float32[Tensor, "O I"]:
        """The weights of some rows, fp32."""
        return dequantize_nf4(self.weight[rows], self.scale[rows], columns=self.in_features)


class _Multiply(Function):
    """A product that keeps the codes for the way back, and no weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(codes, scale)
        ctx.columns = x.shape[-1]
        return F.linear(x, dequantize_nf4(codes, scale, columns=x.shape[-1]).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        codes, scale = ctx.saved_tensors
        weight = dequantize_nf4(codes, scale, columns=ctx.columns)
        return grads[0] @ weight.to(grads[0].dtype), None, None


def quantize_nf4(
    weight: Float[Tensor, "O I"],
) -> tuple[UInt8[Tensor, "O half"], Float32[Tensor, "O K"]]:
    """Nearest codes, two a byte and the first in its higher half, and scales of a matrix [O, I].

    The last block of a row may be shorter.
    """
    outputs, inputs = weight.shape
    blocks = F.pad(weight.float(), (0, -inputs % BLOCK)).view(outputs, -1, BLOCK)
    scale = blocks.abs().amax(dim=2)
    levels = torch.tensor(LEVELS, device=weight.device)
    shares = (blocks / scale.clamp_min(1e-30)[:, :, None]).view(outputs, -1)
    codes = torch.bucketize(shares, (levels[1:] + levels[:-1]) / 2, out_int32=True)
    codes = codes[:, : inputs + inputs % 2].to(torch.uint8)
    return codes[:, ::2] << 4 | codes[:, 1::2], scale


def dequantize_nf4(
    codes: UInt8[Tensor, "O half"], scale: Float32[Tensor, "O K"], *, columns: int
) -> Float32[Tensor, "O I"]:
    """fp32 [O, `columns`] of what `quantize_nf4` made."""
    levels = torch.tensor(LEVELS, device=codes.device)
    # Both numbers of a byte at once: looking up is the work here.
    pairs = torch.stack([levels.repeat_interleave(16), levels.repeat(16)], dim=1)
    shares = F.embedding(codes.int(), pairs).flatten(1)[:, :columns]
    return shares * scale.repeat_interleave(BLOCK, dim=1)[:, :columns]


def shrink_to_nf4(model: nn.Module) -> None:
    """Round every linear layer of the blocks, in place, except routers; embedding and head stay."""
    replace_linears(model, lambda name, linear: None if name == "router" else Nf4Linear(linear))


def expand_from_nf4(model: nn.Module, *, dtype: torch.dtype) -> None:
    """Put dense layers of the same weights back, frozen."""
    for path, module in list(model.named_modules()):
        if isinstance(module, Nf4Linear):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, _expand(module, dtype))


def _expand(small: Nf4Linear, dtype: torch.dtype) -> nn.Linear:
    has_bias = small.bias is not None
    with torch.device("meta"):
        linear = nn.Linear(small.in_features, small.out_features, bias=has_bias)
    linear.weight = nn.Parameter(small.dense().to(dtype), requires_grad=False)
    if small.bias is not None:
        linear.bias = nn.Parameter(small.bias.to(dtype), requires_grad=False)
    return linear
