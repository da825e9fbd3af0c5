"""Weights of 8 bits: one scale a row, symmetric, rounded to nearest.

Takes: linear layers. Gives: `Int8Linear` layers in their place, the same forward within rounding.
At rest they are in compressed-tensors' `pack-quantized` format, which transformers and vLLM open.
Axes: N tokens, O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Int8, Int32

SMALL_BATCH = 32
"""Up to this many tokens the weights' way from memory costs more than the arithmetic."""


class Int8Linear(nn.Module):
    """y = (x · weightᵀ) · scale + bias with int8 weight [O, I], scale [O] and bias [O], if any."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(out_features))
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)

    def forward(self, x: Float[Tensor, "N I"]) -> Float[Tensor, "N O"]:
        """x [N, I] -> [N, O]."""
        product = self._multiply(x.contiguous())
        return product if self.bias is None else product + self.bias.to(x.dtype)

    def _multiply(self, x: Tensor) -> Tensor:
        small = len(x) <= SMALL_BATCH and x.dtype == torch.bfloat16 and not x.is_cuda
        if small and _is_aligned(x) and _is_aligned(self.weight):
            return torch._weight_int8pack_mm(x, self.weight, self.scale.to(x.dtype))
        return F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)


def _is_aligned(matrix: Tensor) -> bool:
    """Whether PyTorch's int8 kernel may read it: any other width or address crashes the process."""
    return matrix.shape[1] % 16 == 0 and matrix.data_ptr() % 64 == 0


def quantize_rows(
    weight: Float[Tensor, "O I"],
) -> tuple[Int8[Tensor, "O I"], Float32[Tensor, "O"]]:
    """Nearest int8 [O, I] and scale [O] in fp32 of a matrix [O, I]."""
    scale = weight.float().abs().amax(dim=1).clamp_min(1e-8) / 127
    return (weight.float() / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def pack_int8(weight: Int8[Tensor, "O I"]) -> Int32[Tensor, "O words"]:
    """int32 [O, ⌈I/4⌉] of int8 [O, I]: four weights a word, the first lowest, plus 128 each."""
    raised = (weight.to(torch.int16) + 128).to(torch.uint8)
    return F.pad(raised, (0, -weight.shape[1] % 4)).contiguous().view(torch.int32)


def unpack_int8(packed: Int32[Tensor, "O words"], *, columns: int) -> Int8[Tensor, "O I"]:
    """int8 [O, `columns`] of what `pack_int8` made."""
    raised = packed.contiguous().view(torch.uint8)[:, :columns]
    return (raised.to(torch.int16) - 128).to(torch.int8)


def empty_int8(model: nn.Module) -> None:
    """Put an empty `Int8Linear` in the place of every linear layer of the blocks."""
    replace_linears(model, lambda name, linear: _empty_like(linear))


def quantize_int8(model: nn.Module) -> None:
    """Round every linear layer of the blocks to 8 bits, in place; embedding and head stay."""

    def convert(name: str, linear: nn.Linear) -> Int8Linear:
        small = _empty_like(linear)
        small.weight, small.scale = quantize_rows(linear.weight.detach())
        if small.bias is not None:
            small.bias.copy_(linear.bias.detach())
        return small

    replace_linears(model, convert)


def _empty_like(linear: nn.Linear) -> Int8Linear:
    # PyTorch says that a linear layer always has a bias.
    has_bias = bool(linear.bias is not None)
    return Int8Linear(linear.in_features, linear.out_features, bias=has_bias)


def replace_linears(
    model: nn.Module, convert: Callable[[str, nn.Linear], nn.Module | None]
) -> None:
    """Put something else in the place of the linear layers of the blocks.

    `convert` gets a layer and its own name; a layer that it gives None for stays.
    """
    blocks = model.get_submodule("blocks")
    for path, module in list(blocks.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, name = path.rpartition(".")
            other = convert(name, module)
            if other is not None:
                setattr(blocks.get_submodule(parent), name, other)
