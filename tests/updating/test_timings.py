"""Which requests of two engines are compared for speed, on moments set by hand."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmloop.updating import timings as module
from lmloop.updating.timings import Timing, match_timings


def timing(start: float, stop: float, token_seconds: float = 0.01) -> Timing:
    return Timing(start=start, stop=stop, token_seconds=token_seconds)


def test_requests_beside_the_other_arms_are_compared_with_such() -> None:
    live = [timing(0, 1, 0.1), timing(5, 6, 0.5), timing(5.5, 6.5, 0.6), timing(20, 21, 0.2)]
    candidate = [timing(5, 6, 0.7), timing(5.2, 6.2, 0.8), timing(30, 31, 0.3)]
    assert match_timings(live, candidate, fewest=2) == ([0.5, 0.6], [0.7, 0.8])


def test_without_enough_of_them_requests_without_any_company_are_compared() -> None:
    live = [timing(0, 1, 0.1), timing(5, 6, 0.5), timing(20, 21, 0.2)]
    candidate = [timing(5.9, 6.9, 0.7), timing(30, 31, 0.3)]
    assert match_timings(live, candidate, fewest=2) == ([0.1, 0.2], [0.3])


def test_half_of_a_live_requests_time_in_company_is_enough_and_less_is_not() -> None:
    live = [timing(0, 10)]
    assert match_timings(live, [timing(5, 12, 0.5)], fewest=1) == ([0.01], [0.5])
    assert match_timings(live, [timing(6, 20, 0.5)], fewest=1) == ([], [])


def test_a_slow_candidate_that_outlives_its_company_is_not_left_out() -> None:
    live = [timing(second, second + 1) for second in range(0, 50, 10)]
    candidate = [timing(second, second + 9, 0.09) for second in range(0, 50, 10)]
    assert match_timings(live, candidate, fewest=5) == ([0.01] * 5, [0.09] * 5)


def test_arms_without_requests_or_of_no_length_give_nothing() -> None:
    assert match_timings([], [], fewest=1) == ([], [])
    assert match_timings([timing(1, 1)], [timing(0, 2, 0.5)], fewest=1) == ([], [0.5])


def test_an_equal_engine_that_is_never_alone_does_not_seem_slower() -> None:
    """A token takes three times as long while both engines are at work."""
    draw = random.Random(0)
    moments = [(float(second), draw.random() < 0.1) for second in range(3000)]
    candidate = [timing(moment, moment + 0.9, 0.03) for moment, taken in moments if taken]
    live = [timing(moment, moment + 0.9, 0.03 if taken else 0.01) for moment, taken in moments]
    of_live, of_candidate = match_timings(live, candidate, fewest=5)
    assert set(of_live) == set(of_candidate) == {0.03}
    assert len(of_live) == len(of_candidate) == len(candidate)


stretches = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 9)).map(lambda pair: timing(pair[0], sum(pair))),
    max_size=12,
)


@given(own=stretches, others=stretches)
def test_company_is_the_share_of_seconds_in_which_another_was_answered(
    own: list[Timing], others: list[Timing]
) -> None:
    busy = {second for each in others for second in range(int(each.start), int(each.stop))}
    for each, share in module._company(own, others):
        seconds = range(int(each.start), int(each.stop))
        assert share == pytest.approx(len(busy.intersection(seconds)) / len(seconds))
