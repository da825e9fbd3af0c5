"""Learning-rate curves as pure functions of the share of the budget that is spent."""

from __future__ import annotations


def warmup_stable_decay(share: float, *, warmup_share: float, decay_share: float) -> float:
    """Factor of the peak rate at `share` (0 to 1): rises, stays at 1, falls linearly to 0.

    Source: Hu et al. 2024, MiniCPM, section 4 (WSD), with a linear fall (Hägele et al. 2024).
    """
    rise = 1.0 if warmup_share == 0 else min(1.0, share / warmup_share)
    fall = 1.0 if decay_share == 0 else min(1.0, (1.0 - share) / decay_share)
    return max(0.0, min(rise, fall))
