"""The guards of a rollout, on arms made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lmloop.updating.arms import Arm
from lmloop.updating.guards import find_falls
from lmloop.updating.timings import Timing

HEALTHY: dict[str, Any] = {
    "errors": (False,) * 40,
    "empty": (False,) * 40,
    "cut": (False,) * 40,
    "repetition": (0.0,) * 40,
    "answer_tokens": tuple(range(10, 50)),
    "timings": tuple(
        Timing(start=n, stop=n + 0.5, token_seconds=0.01 + 0.0001 * n) for n in range(40)
    ),
    "disliked": (False,) * 40,
}


def arm(**changes: Any) -> Arm:
    return Arm(**(HEALTHY | changes))


def slowed(factor: float) -> tuple[Timing, ...]:
    return tuple(
        replace(each, token_seconds=factor * each.token_seconds) for each in HEALTHY["timings"]
    )


def fallen(candidate: Arm, *, chance: float = 0.01, live: Arm | None = None) -> list[str]:
    falls = find_falls(live or arm(), candidate, chance=chance, max_slowdown=0.5)
    return [fall.guard for fall in falls]


def test_equal_arms_lose_no_guard() -> None:
    assert fallen(arm()) == []


def test_a_share_that_rose_by_chance_loses_no_guard() -> None:
    assert fallen(arm(errors=(True,) * 2 + (False,) * 38)) == []


def test_a_share_that_rose_for_certain_loses_its_guard_with_its_numbers() -> None:
    (fall,) = find_falls(
        arm(), arm(errors=(True,) * 10 + (False,) * 10), chance=0.01, max_slowdown=0.5
    )
    assert (fall.live, fall.candidate, fall.live_count, fall.candidate_count) == (0.0, 0.5, 40, 20)
    # All 10 errors among the 20 of 60: C(20, 10) / C(60, 10).
    assert fall.p_value == 184_756 / 75_394_027_566 or abs(fall.p_value - 2.4505e-06) < 1e-9
    assert str(fall) == "errors 0 → 0.5 (p = 2.5e-06, 40 and 20 requests)"


def test_a_slower_arm_within_the_allowance_stays_and_beyond_it_falls() -> None:
    assert fallen(arm(timings=slowed(1.4))) == []
    assert fallen(arm(timings=slowed(2.0))) == ["seconds a token"]


def test_answers_half_as_long_fall_and_those_a_little_shorter_stay() -> None:
    assert fallen(arm(answer_tokens=tuple(range(8, 48)))) == []
    assert fallen(arm(answer_tokens=(3,) * 40)) == ["answer tokens"]


def test_few_values_say_nothing() -> None:
    assert fallen(arm(errors=(True,) * 4), chance=1.0) == []


def test_a_smaller_chance_lets_less_fall() -> None:
    candidate = arm(disliked=(True,) * 8 + (False,) * 32)
    assert fallen(candidate, chance=0.05) == ["thumbs down"]
    assert fallen(candidate, chance=0.0001) == []


def test_a_candidate_that_is_better_loses_no_guard() -> None:
    worse = arm(errors=(True,) * 20 + (False,) * 20, timings=slowed(30.0))
    assert fallen(arm(), live=worse) == []
