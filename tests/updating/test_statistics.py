"""Differences, intervals and sample sizes, against values by hand and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lmloop.updating.statistics import (
    chance_of_more,
    difference_of_changes,
    documents_needed,
    median_change,
    relative_change,
    widen,
)


def array(*values: float) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)


def test_the_change_is_of_sums_not_a_mean_of_ratios() -> None:
    change = relative_change(array(1, 90), array(2, 100), confidence=0.95, seed=0)
    assert change.value == pytest.approx(91 / 102 - 1)
    assert change.documents == 2


def test_equal_models_differ_by_nothing_with_certainty() -> None:
    nats = array(3, 5, 7, 11)
    change = relative_change(nats, nats, confidence=0.95, seed=0)
    assert (change.value, change.low, change.high, change.deviation) == (0, 0, 0, 0)


def test_the_same_share_on_every_document_leaves_no_doubt() -> None:
    live = array(3, 5, 7, 11)
    change = relative_change(0.9 * live, live, confidence=0.95, seed=0)
    assert change.low == pytest.approx(-0.1) == change.high


def test_pairs_are_drawn_together() -> None:
    random = np.random.default_rng(0)
    live = random.lognormal(3, 1.5, size=50)
    candidate = live * random.normal(1, 0.01, size=50)
    paired = relative_change(candidate, live, confidence=0.95, seed=0)
    torn = relative_change(random.permutation(candidate), live, confidence=0.95, seed=0)
    assert paired.high - paired.low < 0.02
    assert torn.high - torn.low > 0.5


def test_the_same_seed_gives_the_same_interval_and_another_one_nearly_so() -> None:
    random = np.random.default_rng(1)
    live, candidate = random.normal(10, 1, 40), random.normal(10, 1, 40)
    first, again, other = (
        relative_change(candidate, live, confidence=0.95, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again != other
    assert other.low == pytest.approx(first.low, abs=0.1 * (first.high - first.low))


def test_the_deviation_gives_the_standard_error() -> None:
    # With live all 1 the change is the mean of the differences: their deviation is the sample's.
    candidate = array(1.1, 0.9, 1.3, 0.7)
    change = relative_change(candidate, np.ones(4), confidence=0.95, seed=0)
    assert change.deviation == pytest.approx(math.sqrt(0.2 / 3))


def test_few_documents_leave_out_less_at_the_ends() -> None:
    # Student's quantile at 4 degrees is 2.776, times √(5 / 4) is 3.104: beyond it lie 0.095 %.
    assert widen(0.95, documents=5) == pytest.approx(0.00095, abs=0.00002)
    assert widen(0.95, documents=10_000) == pytest.approx(0.025, abs=0.0001)


@pytest.mark.slow
@pytest.mark.parametrize("documents", [10, 20, 60])
def test_an_interval_misses_as_seldom_as_it_says(documents: int) -> None:
    # Documents of very different lengths, candidate and live the same on average.
    random = np.random.default_rng(2)
    above = below = 0
    repeats = 1000
    for seed in range(repeats):
        live = random.lognormal(5, 0.8, documents)
        candidate = live * random.normal(1.0, 0.05, documents)
        change = relative_change(candidate, live, confidence=0.95, seed=seed, rounds=1000)
        above += change.low > 0
        below += change.high < 0
    # 2.5 % a side are promised; three standard deviations of 1,000 throws are 1.5 %.
    assert max(above, below) / repeats <= 0.04


def test_a_gain_on_one_set_alone_shows_in_the_difference() -> None:
    random = np.random.default_rng(3)
    live = random.normal(100, 20, 40), random.normal(100, 20, 30)
    noise = random.normal(1, 0.02, 40), random.normal(1, 0.02, 30)
    alone = difference_of_changes(
        (0.9 * live[0] * noise[0], live[0]),
        (live[1] * noise[1], live[1]),
        confidence=0.95,
        seed=0,
    )
    assert alone.value == pytest.approx(0.1, abs=0.015)
    assert 0.05 < alone.low < alone.value < alone.high
    both = difference_of_changes(
        (0.9 * live[0] * noise[0], live[0]),
        (0.9 * live[1] * noise[1], live[1]),
        confidence=0.95,
        seed=0,
    )
    assert both.low < 0 < both.high
    assert both.documents == 30


def test_the_needed_number_follows_deviation_and_margin() -> None:
    # (1.960 + 0.842)² · (0.05 / 0.01)² = 7.849 · 25 = 196.2.
    assert documents_needed(0.05, 0.01, confidence=0.95) == 197
    assert documents_needed(0.05, 0.02, confidence=0.95) == 50
    assert documents_needed(0.0, 0.01, confidence=0.95) == 2
    assert documents_needed(0.05, 0.0, confidence=0.95) is None


@pytest.mark.slow
def test_the_needed_number_shows_the_margin_in_four_of_five_cases() -> None:
    random = np.random.default_rng(4)
    count = documents_needed(0.05, 0.02, confidence=0.95)
    assert count is not None
    seen = 0
    for seed in range(500):
        candidate = random.normal(0.98, 0.05, count)
        change = relative_change(candidate, np.ones(count), confidence=0.95, seed=seed, rounds=1000)
        seen += change.high < 0
    assert 0.74 <= seen / 500 <= 0.86


@pytest.mark.parametrize(
    ("now", "before", "chance"),
    [
        # Nothing changed; two that turned bad of two; two bad and one good: (3 + 1) of 8.
        ([True, False], [True, False], 1.0),
        ([True, True, False], [False, False, False], 0.25),
        ([True, True, False], [False, False, True], 0.5),
        ([False, False], [True, True], 1.0),
        ([True] * 6, [False] * 6, 1 / 64),
    ],
)
def test_the_chance_counts_what_changed_only(
    now: list[bool], before: list[bool], chance: float
) -> None:
    assert chance_of_more(now, before) == chance


def test_the_middle_of_six_lies_between_all_six() -> None:
    change = median_change([1.3, 1.1, 1.2, 1.4, 1.5, 1.0], confidence=0.95)
    assert change.value == pytest.approx(0.25)
    assert (change.low, change.high) == (0.0, 0.5)
    assert change.documents == 6


def test_nine_values_may_lose_one_at_each_end() -> None:
    # P(at most 1 of 9 below the middle) = 10 / 512 = 1.95 %; at most 2 would be 9 %.
    change = median_change([1 + each / 10 for each in range(9)], confidence=0.95)
    assert change.low == pytest.approx(0.1)
    assert change.high == pytest.approx(0.7)


def test_a_single_value_is_its_own_interval() -> None:
    change = median_change([1.5], confidence=0.95)
    assert (change.low, change.value, change.high, change.deviation) == (0.5, 0.5, 0.5, 0)
