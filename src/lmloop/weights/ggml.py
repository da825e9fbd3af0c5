"""Weights in ggml's blocks: a few shared scales, then small integers packed into bytes.

Takes: the bytes of a tensor and its type, or a tensor to pack. Gives: float weights, or bytes.
Layouts, their numbers and the two encoders' rules are ggml's (`ggml-common.h`, `ggml-quants.c`),
little endian. Axes: N blocks, B bytes a block, E elements a block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

CHUNK = 1 << 20
"""Weights that are worked on at a time: memory stays small, and threads seldom meet."""

_SMALLEST = torch.finfo(torch.float32).tiny
_SEARCH_STEPS = 21


@dataclass(frozen=True, slots=True)
class WeightType:
    """How one type of ggml lays weights in bytes; `encode` is None where we only read it."""

    name: str
    id: int
    elements: int
    """Weights in a block."""
    bytes: int
    """Bytes of a block."""
    decode: Callable[[Tensor], Tensor]
    """uint8 [N, B] -> float32 [N, E]."""
    encode: Callable[[Tensor], Tensor] | None = None
    """float32 [N, E] -> uint8 [N, B]."""

    def size(self, elements: int) -> int:
        """Bytes of so many weights, which are whole blocks."""
        return elements // self.elements * self.bytes


def decode_weights(
    data: UInt8[Tensor, "bytes"], kind: WeightType, *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "weights"]:
    """Weights [N·E] in `dtype` of the bytes uint8 [N·B] of N blocks; always memory of its own."""
    blocks = data.view(-1, kind.bytes)
    weights = torch.empty(len(blocks), kind.elements, dtype=dtype)
    step = CHUNK // kind.elements
    for start in range(0, len(blocks), step):
        weights[start : start + step] = kind.decode(blocks[start : start + step])
    return weights.view(-1)


def encode_weights(weights: Float[Tensor, "*shape"], kind: WeightType) -> UInt8[Tensor, "bytes"]:
    """Bytes uint8 [N·B] of a tensor whose last axis is made of whole blocks.

    Raises ValueError where the type is only read, rows are no whole blocks, or a weight is not
    finite or beyond what the type holds.
    """
    if kind.encode is None:
        raise ValueError(f"{kind.name} is only read; written are {', '.join(WRITABLE)}")
    if weights.dim() and weights.shape[-1] % kind.elements:
        raise ValueError(
            f"rows of {weights.shape[-1]} weights are no whole blocks of {kind.elements} "
            f"({kind.name})"
        )
    blocks = weights.detach().reshape(-1, kind.elements)
    data = torch.empty(len(blocks), kind.bytes, dtype=torch.uint8)
    step = CHUNK // kind.elements
    for start in range(0, len(blocks), step):
        data[start : start + step] = kind.encode(blocks[start : start + step].float().cpu())
    return data.view(-1)


def _half(data: Tensor) -> Tensor:
    """float32 [N, n] of the bytes uint8 [N, 2n] of half-precision numbers."""
    return data.contiguous().view(torch.float16).float()


def _as_half(values: Tensor) -> Tensor:
    """The bytes uint8 [N, 2n] of [N, n]; ValueError where half precision cannot hold one."""
    half = values.to(torch.float16)
    if not half.isfinite().all():
        raise ValueError("a weight is not a finite number, or too large for half precision")
    return half.view(torch.uint8)


def _nibbles(data: Tensor) -> Tensor:
    """uint8 [..., 2, n] of [..., n]: the lower four bits of each byte, then the upper four."""
    return torch.stack((data & 15, data >> 4), dim=-2)


def _pack_nibbles(numbers: Tensor) -> Tensor:
    """The opposite of `_nibbles`."""
    low, high = numbers.to(torch.uint8).unbind(-2)
    return low | high << 4


def _decode_f32(data: Tensor) -> Tensor:
    return data.view(torch.float32)


def _encode_f32(weights: Tensor) -> Tensor:
    return weights.contiguous().view(torch.uint8)


def _decode_bf16(data: Tensor) -> Tensor:
    return data.view(torch.bfloat16).float()


def _encode_bf16(weights: Tensor) -> Tensor:
    return weights.to(torch.bfloat16).view(torch.uint8)


def _decode_q8_0(data: Tensor) -> Tensor:
    """half d, int8 q[32]: w = d·q."""
    return data[:, 2:].contiguous().view(torch.int8).float().mul_(_half(data[:, :2]))


def _encode_q8_0(weights: Tensor) -> Tensor:
    scale = weights.abs().amax(dim=1, keepdim=True) / 127
    numbers = weights * _inverse(scale)
    whole = numbers.trunc()  # C's roundf: halves away from zero, where torch's go to even
    whole += (numbers - whole).mul_(2).trunc_()
    return torch.cat((_as_half(scale), whole.to(torch.int8).view(torch.uint8)), dim=1)


def _decode_q4_0(data: Tensor) -> Tensor:
    """half d, 16 bytes q: w = d·(q - 8); byte i has weight i below and weight i + 16 above."""
    numbers = _nibbles(data[:, 2:]).flatten(1).float()
    return numbers.sub_(8).mul_(_half(data[:, :2]))


def _encode_q4_0(weights: Tensor) -> Tensor:
    # The weight furthest from zero becomes exactly -8, the end that has one step more.
    furthest = weights.gather(1, weights.abs().argmax(dim=1, keepdim=True))
    scale = furthest / -8
    # ggml's compilers fuse this product and sum, which doubles do too: no bit is lost between.
    numbers = (weights.double() * _inverse(scale) + 8.5).trunc_().clamp_(0, 15)
    return torch.cat((_as_half(scale), _pack_nibbles(numbers.view(-1, 2, 16))), dim=1)


def _decode_q4_1(data: Tensor) -> Tensor:
    """half d, half m, 16 bytes q as in Q4_0: w = d·q + m."""
    scale, minimum = torch.split(_half(data[:, :4]), 1, dim=1)
    return _nibbles(data[:, 4:]).flatten(1).float().mul_(scale).add_(minimum)


def _fifth_bits(data: Tensor) -> Tensor:
    """uint8 [N, 32], 0 or 16: bit i of the four bytes [N, 4] is weight i's highest."""
    places = torch.arange(8, dtype=torch.uint8)
    return ((data[:, :, None] >> places & 1) << 4).flatten(1)


def _decode_q5_0(data: Tensor) -> Tensor:
    """half d, 32 highest bits, 16 bytes as in Q4_0: w = d·(q - 16)."""
    numbers = _nibbles(data[:, 6:]).flatten(1) | _fifth_bits(data[:, 2:6])
    return numbers.float().sub_(16).mul_(_half(data[:, :2]))


def _decode_q5_1(data: Tensor) -> Tensor:
    """half d, half m, 32 highest bits, 16 bytes as in Q4_0: w = d·q + m."""
    scale, minimum = torch.split(_half(data[:, :4]), 1, dim=1)
    numbers = _nibbles(data[:, 8:]).flatten(1) | _fifth_bits(data[:, 4:8])
    return numbers.float().mul_(scale).add_(minimum)


def _group_scales(data: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minima float32 [N, 8, 1] of 16 bytes: half d, half dmin, 8 pairs of six bits.

    The pairs' twelve bytes: scales 0-3, minima 0-3, then the lower four bits of scale and minimum
    4-7 together; their upper two are the upper two of the first eight bytes.
    """
    first, second, third = torch.split(data[:, 4:16], 4, dim=1)
    scales = torch.cat((first & 63, third & 15 | first >> 6 << 4), dim=1)
    minima = torch.cat((second & 63, third >> 4 | second >> 6 << 4), dim=1)
    scale, minimum = torch.split(_half(data[:, :4]), 1, dim=1)
    return (scale * scales.float())[..., None], (minimum * minima.float())[..., None]


def _decode_q4_k(data: Tensor) -> Tensor:
    """`_group_scales`, then 4 times 32 bytes: w = d·q - m in 8 groups of 32, two a run of bytes."""
    scales, minima = _group_scales(data)
    numbers = _nibbles(data[:, 16:].reshape(-1, 4, 32)).view(-1, 8, 32)
    return numbers.float().mul_(scales).sub_(minima).flatten(1)


def _decode_q5_k(data: Tensor) -> Tensor:
    """Q4_K with 32 bytes before the nibbles: bit g of byte i is weight i's highest in group g."""
    scales, minima = _group_scales(data)
    numbers = _nibbles(data[:, 48:].reshape(-1, 4, 32)).view(-1, 8, 32)
    groups = torch.arange(8, dtype=torch.uint8)[:, None]
    numbers |= (data[:, None, 16:48] >> groups & 1) << 4
    return numbers.float().mul_(scales).sub_(minima).flatten(1)


def _decode_q6_k(data: Tensor) -> Tensor:
    """128 bytes of lower fours, 64 of upper twos, int8 scales[16], half d: w = d·scale·(q - 32).

    Either half of the block has 64 bytes of fours, as in Q4_K, and 32 of twos: pair p of byte i
    belongs to weight 32·p + i.
    """
    fours = _nibbles(data[:, :128].reshape(-1, 2, 64)).view(-1, 2, 4, 32)
    pairs = torch.arange(0, 8, 2, dtype=torch.uint8)[:, None]
    twos = data[:, 128:192].reshape(-1, 2, 1, 32) >> pairs & 3
    numbers = (fours | twos << 4).view(-1, 16, 16).float().sub_(32)
    scales = _half(data[:, 208:]) * data[:, 192:208].contiguous().view(torch.int8).float()
    return numbers.mul_(scales[..., None]).flatten(1)


def _inverse(scale: Tensor) -> Tensor:
    """1/scale, and zero for a scale that is too small to have one."""
    return torch.where(scale.abs() < _SMALLEST, 0.0, 1 / scale)


def _encode_q4_k(weights: Tensor) -> Tensor:
    groups = weights.view(-1, 32)
    scale, minimum = (found.view(-1, 8) for found in _search_affine(groups))
    six_bits = []
    halves = []
    for values in (scale, minimum):
        largest = values.amax(dim=1, keepdim=True).clamp_min(0)
        halves.append(_as_half(largest / 63))
        numbers = (values * (63 * _inverse(largest))).round_().clamp_(0, 63)
        six_bits.append(torch.split(numbers.to(torch.uint8), 4, dim=1))
    (scales, scales_above), (minima, minima_above) = six_bits
    head = (
        *halves,
        scales | scales_above >> 4 << 6,
        minima | minima_above >> 4 << 6,
        scales_above & 15 | minima_above << 4,
    )
    packed = torch.cat(head, dim=1)
    true_scale, true_minimum = _group_scales(packed)
    shifted = groups.view(-1, 8, 32) + true_minimum
    numbers = (shifted * 0).where(true_scale == 0, shifted / true_scale).round_().clamp_(0, 15)
    return torch.cat((packed, _pack_nibbles(numbers.view(-1, 4, 2, 32)).flatten(1)), dim=1)


def _search_affine(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and minus the minimum, [G] each, of groups [G, 32] in 4 bits: x ~ scale·q - minimum.

    `make_qkx2_quants` of ggml: around the plain range it tries 21 grids, solves each for the least
    squares weighted by size, and keeps the best; the minimum is never above zero.
    """
    importance = x.square().mean(dim=1, keepdim=True).sqrt() + x.abs()
    low, high = x.amin(dim=1).clamp_max(0), x.amax(dim=1)
    span = high - low
    flat = span == 0
    span = span.masked_fill(flat, 1)
    sum_w, sum_x = importance.sum(dim=1), (importance * x).sum(dim=1)
    scale, minimum = span / 15, low

    def round_to(steps: float) -> Tensor:
        shifted = x - low[:, None]
        return (shifted * (steps / span)[:, None]).round_().clamp_(0, 15)

    def error_of(numbers: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
        off = numbers * scale[:, None] + minimum[:, None] - x
        return (importance * off.square_()).sum(dim=1)

    best = error_of(round_to(15), scale, minimum)
    for step in range(_SEARCH_STEPS):
        numbers = round_to(14 + 0.1 * step)
        weighted = importance * numbers
        sum_q, sum_qx = weighted.sum(dim=1), (weighted * x).sum(dim=1)
        sum_qq = (weighted * numbers).sum(dim=1)
        determinant = sum_w * sum_qq - sum_q.square()
        new_scale = (sum_w * sum_qx - sum_x * sum_q) / determinant
        new_minimum = (sum_qq * sum_x - sum_q * sum_qx) / determinant
        above = new_minimum > 0
        new_scale = torch.where(above, sum_qx / sum_qq, new_scale)
        new_minimum = new_minimum.masked_fill(above, 0)
        error = error_of(numbers, new_scale, new_minimum)
        better = (determinant > 0) & (error < best)
        scale, minimum = scale.where(~better, new_scale), minimum.where(~better, new_minimum)
        best = best.where(~better, error)
    return scale.masked_fill(flat, 0), -minimum


_ALL = (
    WeightType("F32", 0, 1, 4, _decode_f32, _encode_f32),
    WeightType("F16", 1, 1, 2, _half, _as_half),
    WeightType("Q4_0", 2, 32, 18, _decode_q4_0, _encode_q4_0),
    WeightType("Q4_1", 3, 32, 20, _decode_q4_1),
    WeightType("Q5_0", 6, 32, 22, _decode_q5_0),
    WeightType("Q5_1", 7, 32, 24, _decode_q5_1),
    WeightType("Q8_0", 8, 32, 34, _decode_q8_0, _encode_q8_0),
    WeightType("Q4_K", 12, 256, 144, _decode_q4_k, _encode_q4_k),
    WeightType("Q5_K", 13, 256, 176, _decode_q5_k),
    WeightType("Q6_K", 14, 256, 210, _decode_q6_k),
    WeightType("BF16", 30, 1, 2, _decode_bf16, _encode_bf16),
)
WEIGHT_TYPES: Mapping[str, WeightType] = MappingProxyType({kind.name: kind for kind in _ALL})
"""The types that are read, by ggml's names."""
WRITABLE = tuple(kind.name for kind in _ALL if kind.encode is not None)
"""The names of those that are written too."""
