"""What an optimizer remembers of gradients, in a byte a number: codes, and a scale for each block.

Takes and gives fp32 numbers, a piece of a tensor at a time, so that the whole never exists in fp32.
Source: Dettmers et al. 2021, 8-bit Optimizers via Block-wise Quantization; its blocks of 2,048 are
256 here, as in its published code, for which a scale costs 1.6 % of the codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 256
"""Numbers that share a scale."""
PIECE = 1 << 18
"""Numbers that are fp32 at once; whole blocks."""
_DECADES = 7
"""Powers of ten that the levels reach down from the largest of a block."""


class Moment:
    """`count` numbers as codes, uint8 [count], and scales, fp32 [blocks]; zeros at first."""

    def __init__(self, count: int, *, signed: bool, device: torch.device) -> None:
        """`signed` spends half of the levels below zero."""
        self.codes = torch.zeros(count, dtype=torch.uint8, device=device)
        self.scales = torch.zeros(-(-count // BLOCK), device=device)
        self._lowest = 0 if signed else 1
        self._levels = torch.tensor(make_levels(signed=signed), device=device)
        self._borders = (self._levels[1:] + self._levels[:-1]) / 2

    def read(self, part: slice) -> Tensor:
        """The numbers of a part that begins with a block, fp32."""
        values = self._levels.index_select(0, self.codes[part].int())
        return values.mul_(self._spread(self.scales[_blocks(part)], len(values)))

    def write(self, part: slice, values: Tensor) -> None:
        """Round fp32 numbers to the nearest level; those without a sign never to zero.

        What a step is divided by must not vanish beside what is divided.
        """
        padded = F.pad(values.abs(), (0, -len(values) % BLOCK)).view(-1, BLOCK)
        scales = padded.amax(1)
        self.scales[_blocks(part)] = scales
        tiny = torch.finfo(torch.float32).tiny
        scaled = values / self._spread(scales.clamp_min(tiny), len(values))
        found = torch.bucketize(scaled, self._borders, out_int32=True)
        self.codes[part] = found.clamp_min_(self._lowest).to(torch.uint8)

    def state(self, name: str) -> dict[str, Tensor]:
        """Codes and scales, as named tensors."""
        return {f"{name}.codes": self.codes, f"{name}.scales": self.scales}

    def _spread(self, scales: Tensor, count: int) -> Tensor:
        return scales.repeat_interleave(BLOCK)[:count]


def pieces(count: int) -> Iterator[slice]:
    """The parts of so many numbers that are fp32 at once."""
    return (slice(start, min(start + PIECE, count)) for start in range(0, count, PIECE))


@cache
def make_levels(*, signed: bool) -> tuple[float, ...]:
    """256 numbers up to 1, dense where they are small: more digits the larger the power of ten.

    Source: Dettmers et al. 2021, section 2.3, dynamic tree quantization; without a sign its bit
    doubles the levels of each power of ten.
    """
    levels = [0.0, 1.0]
    for decade in range(_DECADES):
        count = 2**decade if signed else 2 ** (decade + 1)
        # Middles of `count` equal stretches between a tenth and one.
        middles = [0.1 + 0.9 * (2 * index + 1) / (2 * count) for index in range(count)]
        found = [middle * 10.0 ** (decade + 1 - _DECADES) for middle in middles]
        levels += found + ([-each for each in found] if signed else [])
    return tuple(sorted(levels))


def _blocks(part: slice) -> slice:
    return slice(part.start // BLOCK, -(-part.stop // BLOCK))
