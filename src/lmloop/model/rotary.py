"""How fast each pair of a head turns with the position: rotary frequencies, and their scaling.

Takes: a base, a width, a scaling. Gives: frequencies [d/2] in radians a token, and the cosines and
sines of positions. Axes: N tokens, d width of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """How a model that was trained on `original_length` positions reads `factor` times as many."""

    kind: Literal["linear", "ntk", "llama3", "yarn"]
    factor: float
    original_length: int = 0
    """Positions that the unscaled frequencies were trained on; linear and ntk need none."""
    low: float = 1.0
    """Turns over `original_length` below which a frequency is scaled in full (yarn: beta_slow)."""
    high: float = 4.0
    """Turns above which it is left alone (yarn: beta_fast)."""
    attention_factor: float | None = None
    """What yarn multiplies cosines and sines with; None: 0.1 ln(factor) + 1."""

    @property
    def magnitude(self) -> float:
        """Factor of cosines and sines."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


def rotary_frequencies(
    head_dim: int, *, theta: float, scaling: RopeScaling | None
) -> Float[Tensor, "half"]:
    """Radians a token of each pair, fp32 [d/2], the fastest first.

    Sources: Su et al. 2021, RoFormer; Chen et al. 2023, Positional Interpolation (linear); Peng et
    al. 2023, YaRN, sections 3.1 (ntk: the base grows, so that the slowest pair is scaled in full
    and the fastest not at all) and 3; Llama 3.1's published code (llama3).
    """
    if scaling is not None and scaling.kind == "ntk":
        theta, scaling = theta * scaling.factor ** (head_dim / (head_dim - 2)), None
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32)
    frequencies = theta ** (-exponents / head_dim)
    if scaling is None:
        return frequencies
    kept = _kept_share(frequencies, scaling, head_dim=head_dim, theta=theta)
    return frequencies * kept + frequencies / scaling.factor * (1 - kept)


def _kept_share(
    frequencies: Tensor, scaling: RopeScaling, *, head_dim: int, theta: float
) -> Tensor | float:
    """How much of each frequency is left as it is: 0 is scaled in full, 1 not at all."""
    if scaling.kind == "linear":
        return 0.0
    if scaling.kind == "llama3":
        turns = scaling.original_length * frequencies / (2 * math.pi)
        return ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)

    def pair_of(turns: float) -> float:
        """The pair, not rounded, that turns so often over the original length."""
        wavelength = scaling.original_length / (turns * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(theta))

    first = max(math.floor(pair_of(scaling.high)), 0)
    last = min(math.ceil(pair_of(scaling.low)), head_dim - 1)
    pairs = torch.arange(head_dim // 2, dtype=torch.float32)
    return 1 - ((pairs - first) / max(last - first, 0.001)).clamp(0, 1)


def rotary_angles(
    positions: Int[Tensor, "N"],
    frequencies: Float[Tensor, "half"],
    *,
    dtype: torch.dtype,
    magnitude: float = 1.0,
) -> tuple[Float[Tensor, "N 1 half"], Float[Tensor, "N 1 half"]]:
    """Cosine and sine [N, 1, d/2] for positions [N] and frequencies [d/2]."""
    angles = positions.float()[:, None] * frequencies.to(positions.device)
    cosine, sine = angles.cos()[:, None], angles.sin()[:, None]
    if magnitude != 1.0:
        cosine, sine = cosine * magnitude, sine * magnitude
    return cosine.to(dtype), sine.to(dtype)
