"""Products of training in numbers of 8 bits, which newer GPUs multiply twice as fast as bfloat16.

Takes: the linear layers of a model's blocks. Gives: `Float8Linear` layers in their place, with the
same parameters under the same names. Weights, gradients and all that lies between two products stay
as they are; the numbers of a product alone are rounded, each tensor in a unit that its largest
number sets. While a model answers it multiplies as ever: what is measured is what is kept.
Axes: N tokens, O outputs, I inputs, R and C rows and columns of any matrix.

Sources: Micikevicius et al. 2022, FP8 Formats for Deep Learning (E4M3 forward, E5M2 for gradients);
torchao.float8's recipe `tensorwise`, and of its recipe `rowwise` the scales that are powers of two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from lmloop.model.quantized import replace_linears

if TYPE_CHECKING:
    from jaxtyping import Float, Float32

    from lmloop.model.transformer import Transformer

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
"""Three bits behind the point for what goes forward, two and a wider range for gradients."""
STEP = 16
"""What the sides of a product must be multiples of."""
_EXPONENT = 0x7F800000
"""Bits of the exponent of an fp32 number: alone they are the next power of two towards zero."""
_SMALLEST_UNIT = 2.0**-100


class Float8Linear(nn.Linear):
    """y = x · weightᵀ + bias with the parameters of another layer; in float8 while it trains."""

    def __init__(self, linear: nn.Linear) -> None:
        """Take over a layer's parameters, not copies of them."""
        with torch.device("meta"):
            super().__init__(linear.in_features, linear.out_features)
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Float[Tensor, "N I"]) -> Float[Tensor, "N O"]:
        """x [N, I] -> [N, O]; rows of zeros fill up what the gradient's product needs of N."""
        if not self.training:
            return super().forward(x)
        lacking = -len(x) % STEP
        rows = F.pad(x, (0, 0, 0, lacking)) if lacking else x
        product: Tensor = _Multiply.apply(rows, self.weight)  # type: ignore[no-untyped-call]
        y = product[: len(x)] if lacking else product
        return y if self.bias is None else y + self.bias


class _Multiply(Function):
    """x · weightᵀ and its gradients; it keeps what bfloat16 keeps and rounds that again later."""

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "N I"], weight: Float[Tensor, "O I"]
    ) -> Float[Tensor, "N O"]:
        left, right = round_to(E4M3, x), round_to(E4M3, weight)
        ctx.save_for_backward(x, weight, left.unit, right.unit)
        return multiply(left, right, dtype=x.dtype)

    @staticmethod
    def backward(
        ctx: Any, *grads: Float[Tensor, "N O"]
    ) -> tuple[Float[Tensor, "N I"] | None, Float[Tensor, "O I"] | None]:
        x, weight, x_unit, weight_unit = ctx.saved_tensors
        gradient = round_to(E5M2, grads[0])
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            turned = round_to(E4M3, weight, unit=weight_unit).turn()
            of_x = multiply(gradient, turned, dtype=x.dtype)
        if ctx.needs_input_grad[1]:
            turned = round_to(E4M3, x, unit=x_unit).turn()
            of_weight = multiply(gradient.turn(), turned, dtype=weight.dtype)
        return of_x, of_weight


@dataclass(frozen=True, slots=True)
class Rounded:
    """A matrix in float8."""

    numbers: Float[Tensor, "R C"]
    """In row-major order, as a GPU's units read both sides of a product."""
    unit: Float32[Tensor, ""]
    """What a one among the numbers means."""

    def turn(self) -> Rounded:
        """The transposed matrix, its rows in one piece."""
        return Rounded(self.numbers.t().contiguous(), self.unit)


def multiply(left: Rounded, right: Rounded, *, dtype: torch.dtype) -> Float[Tensor, "M R"]:
    """left [M, C] · right [R, C]ᵀ in fp32, rounded to `dtype`; C and R are multiples of `STEP`."""
    # Fast sums keep 14 bits on Hopper (DeepSeek-V3, section 3.3.2): these go over to fp32 in time.
    return torch._scaled_mm(
        left.numbers,
        right.numbers.t(),
        scale_a=left.unit,
        scale_b=right.unit,
        out_dtype=dtype,
        use_fast_accum=False,
    )


def round_to(
    dtype: torch.dtype, x: Float[Tensor, "R C"], *, unit: Float32[Tensor, ""] | None = None
) -> Rounded:
    """Nearest numbers of float8 in a unit, that of `choose_unit` where none is given."""
    unit = choose_unit(dtype, x) if unit is None else unit
    return Rounded((x / unit).to(dtype).contiguous(), unit)


def choose_unit(dtype: torch.dtype, x: Float[Tensor, "R C"]) -> Float32[Tensor, ""]:
    """The smallest power of two in which no number of x exceeds what `dtype` can hold.

    Such a unit rounds nothing by itself. It is NaN where a number of x is infinite or NaN: a cast
    would make the largest number of it, and hide what is unsound.
    """
    largest = torch.linalg.vector_norm(x, ord=math.inf).float()
    # All zeros fit any unit; and the smallest leaves room for the product of two.
    times = (torch.finfo(dtype).max / largest).clamp(max=1 / _SMALLEST_UNIT)
    power = (times.view(torch.int32) & _EXPONENT).view(torch.float32)
    return torch.where(largest.isfinite(), power.reciprocal(), math.nan)


def multiply_in_float8(model: Transformer) -> None:
    """Let the linear layers of a model's blocks train in float8, in place.

    Embedding, head and routers stay, and layers with a side that is no multiple of `STEP`.
    """

    def convert(name: str, linear: nn.Linear) -> Float8Linear | None:
        fits = linear.in_features % STEP == 0 and linear.out_features % STEP == 0
        return Float8Linear(linear) if fits and name != "router" else None

    for stack in (model.encoder, model):
        if stack is not None:
            replace_linears(stack, convert)
