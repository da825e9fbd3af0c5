"""Which requests of two engines may be compared for speed: those that were served in like company.

Takes: when each request of both arms was answered, and how fast. Gives: seconds a token of both,
side by side. Two engines on one machine slow each other: a small share of the traffic is hardly
ever alone, the large share mostly is, and an equal candidate would seem two or three times as slow.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

MIN_BESIDE = 0.5
"""A live request was answered beside the candidate's that had such company for so much of its time.

Of the candidate's own any company counts: a slow one outlives it.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How one request was answered."""

    start: float
    """Moment of its first token, in seconds by its server's clock."""
    stop: float
    """Moment of its last."""
    token_seconds: float
    """Mean time for a token after the first."""


def match_timings(
    live: Sequence[Timing], candidate: Sequence[Timing], *, fewest: int
) -> tuple[list[float], list[float]]:
    """Seconds a token of requests of both arms that were answered beside the other arm's.

    Where either arm has fewer than `fewest` of these: of requests that had no such company at all.
    """
    of_live, of_candidate = _company(live, candidate), _company(candidate, live)
    beside = (
        [each.token_seconds for each, share in of_live if share >= MIN_BESIDE],
        [each.token_seconds for each, share in of_candidate if share > 0],
    )
    if min(map(len, beside)) >= fewest:
        return beside
    return (
        [each.token_seconds for each, share in of_live if share == 0],
        [each.token_seconds for each, share in of_candidate if share == 0],
    )


def _company(own: Sequence[Timing], others: Sequence[Timing]) -> list[tuple[Timing, float]]:
    """Each request with the share of its time during which another of `others` was answered."""
    starts, stops = _join(others)
    before = [0.0, *accumulate(stop - start for start, stop in zip(starts, stops, strict=True))]

    def busy_until(moment: float) -> float:
        count = bisect_right(starts, moment)
        return before[count] - (max(0.0, stops[count - 1] - moment) if count else 0.0)

    return [
        (each, (busy_until(each.stop) - busy_until(each.start)) / (each.stop - each.start))
        for each in own
        if each.stop > each.start
    ]


def _join(timings: Sequence[Timing]) -> tuple[list[float], list[float]]:
    """Begins and ends of the stretches during which any of them was answered, in their order."""
    starts: list[float] = []
    stops: list[float] = []
    for each in sorted(timings, key=lambda each: each.start):
        if stops and each.start <= stops[-1]:
            stops[-1] = max(stops[-1], each.stop)
        else:
            starts.append(each.start)
            stops.append(each.stop)
    return starts, stops
