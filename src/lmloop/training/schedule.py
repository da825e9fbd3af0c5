"""Learning-rate curves as pure functions of the share of the budget that is spent."""

from __future__ import annotations

import math


def rate_factor(
    share: float, *, curve: str, warmup_share: float, decay_share: float, final_share: float = 0.0
) -> float:
    """Factor of the peak rate at `share` (0 to 1): rises, then follows its curve to `final_share`.

    `wsd` stays at 1 and falls linearly over the last `decay_share` (Hu et al. 2024, MiniCPM,
    section 4, with the linear fall of Hägele et al. 2024); `linear` and `cosine` (Loshchilov &
    Hutter 2016, SGDR, equation 5) fall from the end of the warm-up on; `constant` stays.
    """
    rise = 1.0 if warmup_share == 0 else min(1.0, share / warmup_share)
    if curve == "constant":
        return rise
    spent = max(0.0, (share - warmup_share) / (1.0 - warmup_share))
    if curve == "cosine":
        left = (1.0 + math.cos(math.pi * min(1.0, spent))) / 2
    elif curve == "linear":
        left = max(0.0, 1.0 - spent)
    else:
        left = 1.0 if decay_share == 0 else max(0.0, min(1.0, (1.0 - share) / decay_share))
    return min(rise, final_share + (1.0 - final_share) * left)
