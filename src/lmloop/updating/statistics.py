"""Whether a difference between two models is more than chance, and how much text it takes to tell.

Takes: what both models cost on the same documents, or how both did the same things. Gives: changes
with intervals, exact tests and sample sizes. Nothing here knows of models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

ROUNDS = 4000
"""Samples drawn again for an interval: its ends move by a tenth of its width from seed to seed."""
POWER = 0.8
"""Chance that a set of the needed size shows what there is to see."""
_DRAWN_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A difference between two models with its interval."""

    value: float
    low: float
    high: float
    documents: int
    """Units that it rests on."""
    deviation: float
    """Standard deviation of one unit's share in it; over √documents: its standard error."""

    def to_json(self) -> dict[str, Any]:
        """As written into a verdict."""
        return asdict(self)


def relative_change(
    candidate: NDArray[np.float64],
    live: NDArray[np.float64],
    *,
    confidence: float,
    seed: int,
    rounds: int = ROUNDS,
) -> Change:
    """sum(candidate) / sum(live) − 1, documents drawn again in pairs; both [documents].

    With nats of the same documents it is the relative change of bits per byte: the bytes cancel.
    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13 (percentiles);
    widened for few documents as in `widen`.
    """
    ratio = float(candidate.sum() / live.sum())
    drawn = _draw_ratios(candidate, live, seed=seed, rounds=rounds)
    low, high = _ends(drawn, documents=len(live), confidence=confidence)
    return Change(
        value=ratio - 1,
        low=low - 1,
        high=high - 1,
        documents=len(live),
        deviation=_deviation(candidate, live),
    )


def difference_of_changes(
    first: tuple[NDArray[np.float64], NDArray[np.float64]],
    second: tuple[NDArray[np.float64], NDArray[np.float64]],
    *,
    confidence: float,
    seed: int,
    rounds: int = ROUNDS,
) -> Change:
    """How much more a candidate gains on one set of documents than on another.

    Each set is `(candidate, live)`, both [documents of the set]; positive where the relative fall
    on the first is larger. The sets are drawn again independently.
    """
    pairs = (first, second)
    ratios = [float(candidate.sum() / live.sum()) for candidate, live in pairs]
    drawn = [
        _draw_ratios(candidate, live, seed=seed + place, rounds=rounds)
        for place, (candidate, live) in enumerate(pairs)
    ]
    smaller = min(len(live) for _, live in pairs)
    low, high = _ends(drawn[1] - drawn[0], documents=smaller, confidence=confidence)
    variance = sum(_deviation(candidate, live) ** 2 / len(live) for candidate, live in pairs)
    return Change(
        value=ratios[1] - ratios[0],
        low=low,
        high=high,
        documents=smaller,
        deviation=math.sqrt(variance * smaller),
    )


def widen(confidence: float, *, documents: int) -> float:
    """The share of drawn samples to leave out at each end, so that few documents claim no more.

    Plain percentiles are too narrow by √((n − 1) / n), and use the normal curve where Student's is
    due. Source: Hesterberg 2015, What Teachers Should Know About the Bootstrap (the "expanded"
    percentile interval).
    """
    quantile = stdtrit(documents - 1, (1 - confidence) / 2)
    return float(ndtr(math.sqrt(documents / (documents - 1)) * quantile))


def documents_needed(deviation: float, margin: float, *, confidence: float) -> int | None:
    """Documents with which a change as large as `margin` is seen in `POWER` of all cases.

    The same number shows that a change of nothing stays within `margin`. None for a margin of zero,
    which no number can show. Source: Chow, Shao and Wang 2008, Sample Size Calculations, 3.1.
    """
    if margin == 0:
        return None
    normal = NormalDist()
    reach = normal.inv_cdf((1 + confidence) / 2) + normal.inv_cdf(POWER)
    return max(2, math.ceil((reach * deviation / margin) ** 2))


def chance_of_more(worse: Sequence[bool], before: Sequence[bool]) -> float:
    """Chance that as many or more things turn bad, and no more turn good, if all is as before.

    `worse` and `before` say of the same things whether they are bad now and were before. Source:
    McNemar 1947, with the binomial distribution instead of its approximation, one-sided.
    """
    pairs = list(zip(worse, before, strict=True))
    fallen = sum(now and not then for now, then in pairs)
    risen = sum(then and not now for now, then in pairs)
    total = fallen + risen
    ways = sum(math.comb(total, count) for count in range(fallen, total + 1))
    return math.ldexp(ways, -total)


def median_change(ratios: Sequence[float], *, confidence: float) -> Change:
    """The middle of paired ratios, less one, with an interval that asks nothing of their shape.

    Its ends are order statistics; where there are too few for `confidence`, the outermost. Source:
    Conover 1999, Practical Nonparametric Statistics, section 3.2 (binomial interval of a quantile).
    """
    ordered = np.sort(np.asarray(ratios, dtype=np.float64)) - 1
    count = len(ordered)
    below, place = 0.5**count, 0
    # The outermost values may go as long as the middle lies beyond them so rarely.
    while below + math.comb(count, place + 1) / 2**count <= (1 - confidence) / 2:
        place += 1
        below += math.comb(count, place) / 2**count
    return Change(
        value=float(np.median(ordered)),
        low=float(ordered[place]),
        high=float(ordered[count - 1 - place]),
        documents=count,
        deviation=float(ordered.std(ddof=1)) if count > 1 else 0.0,
    )


def _draw_ratios(
    parts: NDArray[np.float64], wholes: NDArray[np.float64], *, seed: int, rounds: int
) -> NDArray[np.float64]:
    """sum(parts) / sum(wholes) of `rounds` samples drawn with replacement; both [documents]."""
    random = np.random.default_rng(seed)
    found = []
    while rounds:
        now = min(rounds, max(1, _DRAWN_AT_ONCE // len(parts)))
        draws = random.integers(len(parts), size=(now, len(parts)))
        found.append(parts[draws].sum(axis=1) / wholes[draws].sum(axis=1))
        rounds -= now
    return np.concatenate(found)


def _ends(drawn: NDArray[np.float64], *, documents: int, confidence: float) -> tuple[float, float]:
    outside = widen(confidence, documents=documents)
    low, high = np.quantile(drawn, [outside, 1 - outside])
    return float(low), float(high)


def _deviation(candidate: NDArray[np.float64], live: NDArray[np.float64]) -> float:
    """Of the linear part of a ratio's error, document by document (the delta method)."""
    ratio = candidate.sum() / live.sum()
    return float(((candidate - ratio * live) / live.mean()).std(ddof=1))
