"""The guards of a rollout: whether a candidate fares worse on live traffic than the live model.

Takes: two arms and the chance of a false call that one look may spend. Gives: the guards that fell,
each with its numbers. A look at a guard is one one-sided test; the looks share the chance equally,
so that an equal candidate is called back no oftener than the recipe allows, however often we look.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lmloop.updating.arms import Arm
from lmloop.updating.timings import match_timings

MIN_VALUES = 5
"""Fewer values on either side say nothing."""
MIN_RISE = 0.02
"""A share has to rise by so much beside being significant."""
MIN_SHRINKING = 0.5
"""Median length of the candidate's answers over the live model's below which they are too short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fall:
    """One guard that fell."""

    guard: str
    live: float
    candidate: float
    p_value: float
    """Chance of such a difference, or a larger one, between equal models."""
    live_count: int
    candidate_count: int

    def __str__(self) -> str:
        return (
            f"{self.guard} {self.live:.4g} → {self.candidate:.4g} "
            f"(p = {self.p_value:.2g}, {self.live_count} and {self.candidate_count} requests)"
        )

    def to_json(self) -> dict[str, Any]:
        """As stored with an event."""
        return asdict(self)


def find_falls(live: Arm, candidate: Arm, *, chance: float, max_slowdown: float) -> list[Fall]:
    """The guards that the candidate fails; `chance` is what this look may spend on all of them."""
    falls = [
        _compare_shares("errors", live.errors, candidate.errors),
        _compare_shares("empty answers", live.empty, candidate.empty),
        _compare_shares("answers cut by length", live.cut, candidate.cut),
        _compare_shares("thumbs down", live.disliked, candidate.disliked),
        _compare_medians(
            "seconds a token",
            *match_timings(live.timings, candidate.timings, fewest=MIN_VALUES),
            factor=1 + max_slowdown,
        ),
        _compare_medians("repetition", live.repetition, candidate.repetition, factor=1.0),
        _find_shortening(live.answer_tokens, candidate.answer_tokens),
    ]
    spent = chance / len(falls)
    return [fall for fall in falls if fall is not None and fall.p_value < spent]


def _compare_shares(name: str, live: Sequence[bool], candidate: Sequence[bool]) -> Fall | None:
    """Whether a share rose: Fisher's exact test (Fisher 1935, The Design of Experiments, II)."""
    from scipy.stats import fisher_exact

    if min(len(live), len(candidate)) < MIN_VALUES:
        return None
    before, after = sum(live) / len(live), sum(candidate) / len(candidate)
    if after < before + MIN_RISE:
        return None
    table = [
        [sum(candidate), len(candidate) - sum(candidate)],
        [sum(live), len(live) - sum(live)],
    ]
    return _fall(name, before, after, fisher_exact(table, alternative="greater").pvalue, table)


def _compare_medians(
    name: str, live: Sequence[float], candidate: Sequence[float], *, factor: float
) -> Fall | None:
    """Whether values lie above `factor` times the live ones (Mann and Whitney 1947)."""
    from numpy import median
    from scipy.stats import mannwhitneyu

    if min(len(live), len(candidate)) < MIN_VALUES:
        return None
    scaled = [factor * value for value in live]
    if median(candidate) <= median(scaled):
        return None
    p_value = mannwhitneyu(candidate, scaled, alternative="greater").pvalue
    sizes = [[len(candidate)], [len(live)]]
    return _fall(name, float(median(live)), float(median(candidate)), p_value, sizes)


def _find_shortening(live: Sequence[int], candidate: Sequence[int]) -> Fall | None:
    """Whether answers became less than half as long."""
    from numpy import median
    from scipy.stats import mannwhitneyu

    if min(len(live), len(candidate)) < MIN_VALUES:
        return None
    halves = [MIN_SHRINKING * value for value in live]
    if median(candidate) >= median(halves):
        return None
    p_value = mannwhitneyu(candidate, halves, alternative="less").pvalue
    sizes = [[len(candidate)], [len(live)]]
    before, after = float(median(live)), float(median(candidate))
    return _fall("answer tokens", before, after, p_value, sizes)


def _fall(
    name: str, live: float, candidate: float, p_value: float, table: Sequence[Sequence[int]]
) -> Fall:
    return Fall(
        guard=name,
        live=live,
        candidate=candidate,
        p_value=float(p_value),
        live_count=sum(table[1]),
        candidate_count=sum(table[0]),
    )
