"""How ggml rounds what it multiplies with weights: the partner of each type of weights.

F16 and BF16 meet numbers of their own type. Q8_0 and Q4_0 meet blocks of 32 in Q8_0, as
`quantize_row_q8_0` makes them with AVX2: unlike the one for files it halves to even, and multiplies
with 127 / largest. Q4_K meets blocks of 256 in Q8_K (`quantize_row_q8_K_ref`), whose scale is fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Rounded(NamedTuple):
    """Numbers [..., B, E] in blocks and a scale [..., B, 1] of each."""

    numbers: Tensor
    scales: Tensor

    def values(self) -> Tensor:
        """What is multiplied with the weights, [..., B * E]."""
        return (self.numbers * self.scales).flatten(-2)


def as_type(dtype: torch.dtype) -> Callable[[Tensor], Rounded]:
    """Each number by itself, to the nearest of a shorter type."""
    return lambda x: Rounded(x.to(dtype).float()[..., None, :], torch.ones(*x.shape[:-1], 1, 1))


def to_q8_0(x: Tensor) -> Rounded:
    blocks = x.unflatten(-1, (-1, 32))
    largest = blocks.abs().amax(-1, keepdim=True)
    # A tensor before the slash: 127 / x is x.reciprocal() * 127 in torch, which is not the same.
    inverse = torch.where(largest > 0, torch.tensor(127.0) / largest, 0.0)
    return Rounded((blocks * inverse).round(), (largest / 127).half().float())


def to_q8_k(x: Tensor) -> Rounded:
    blocks = x.unflatten(-1, (-1, 256))
    furthest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    inverse = torch.where(furthest != 0, torch.tensor(-127.0) / furthest, 0.0)
    scales = torch.where(furthest != 0, 1 / inverse, 0.0)
    return Rounded((blocks * inverse).round().clamp_max(127), scales)


ROUNDINGS: Mapping[str, Callable[[Tensor], Rounded]] = {
    "F32": as_type(torch.float32),
    "F16": as_type(torch.float16),
    "BF16": as_type(torch.bfloat16),
    "Q8_0": to_q8_0,
    "Q4_0": to_q8_0,
    "Q4_K": to_q8_k,
}
"""By the type of the weights."""
