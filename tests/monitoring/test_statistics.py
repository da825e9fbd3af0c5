"""Distances and p-values: hand values, and scipy's where it has them."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.spatial
import scipy.stats

from lmloop.monitoring.statistics import (
    area_under_curve,
    bin_shares,
    design_effects,
    holm,
    jensen_shannon,
    ks_distance,
    ks_p,
    midranks,
    quantile_edges,
    stability_index,
)


def numbers(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def test_the_ks_distance_of_a_hand_made_pair() -> None:
    assert ks_distance(numbers(1, 2, 3, 4), numbers(3, 4, 5, 6)) == 0.5
    assert ks_distance(numbers(1, 2), numbers(1, 2)) == 0.0
    assert ks_distance(numbers(1), numbers(2)) == 1.0


def test_tied_values_do_not_raise_the_ks_distance() -> None:
    assert ks_distance(numbers(0, 0, 0, 1), numbers(0, 0, 1, 1)) == 0.25


@pytest.mark.parametrize("seed", range(4))
def test_ks_is_scipys(seed: int) -> None:
    draw = np.random.default_rng(seed)
    first, second = draw.normal(size=400).round(1), draw.normal(0.1, 1, size=150).round(1)
    theirs = scipy.stats.ks_2samp(first, second, method="asymp")
    assert ks_distance(first, second) == pytest.approx(theirs.statistic)
    # scipy corrects the limit law for the sizes, which matters little at these.
    assert ks_p(float(theirs.statistic), n=400, m=150) == pytest.approx(theirs.pvalue, rel=0.2)


def test_ks_p_never_promises_more_than_the_exact_law() -> None:
    draw = np.random.default_rng(1)
    for shift in (0.3, 0.5, 0.8):
        first, second = draw.normal(size=200), draw.normal(shift, 1, size=100)
        exact = scipy.stats.ks_2samp(first, second, method="exact")
        assert ks_p(float(exact.statistic), n=200, m=100) >= exact.pvalue


@pytest.mark.parametrize("seed", range(3))
def test_jensen_shannon_is_scipys(seed: int) -> None:
    draw = np.random.default_rng(seed)
    first, second = draw.dirichlet(np.ones(6)), draw.dirichlet(np.ones(6))
    first[0], first[1] = 0.0, first[0] + first[1]
    theirs = scipy.spatial.distance.jensenshannon(first, second, base=2)
    assert jensen_shannon(first, second) == pytest.approx(theirs)


def test_jensen_shannon_reaches_from_nothing_to_one() -> None:
    assert jensen_shannon(numbers(0.5, 0.5), numbers(0.5, 0.5)) == 0.0
    assert jensen_shannon(numbers(1, 0), numbers(0, 1)) == pytest.approx(1.0)


def test_the_stability_index_by_hand() -> None:
    by_hand = (0.6 - 0.5) * np.log(0.6 / 0.5) + (0.4 - 0.5) * np.log(0.4 / 0.5)
    assert stability_index(numbers(0.5, 0.5), numbers(0.6, 0.4)) == pytest.approx(by_hand)
    assert np.isfinite(stability_index(numbers(1, 0), numbers(0, 1)))


def test_bins_hold_like_shares_of_the_reference_and_fewer_where_it_is_tied() -> None:
    reference = np.arange(100, dtype=np.float64)
    edges = quantile_edges(reference, bins=4)
    assert bin_shares(reference, edges).tolist() == [0.25, 0.25, 0.25, 0.25]
    tied = quantile_edges(np.zeros(50))
    assert bin_shares(np.array([0.0, 0.0, 1.0, 1.0]), tied).tolist() == [0.5, 0.5]


def test_the_area_is_scipys_u_over_the_number_of_pairs() -> None:
    draw = np.random.default_rng(2)
    negatives, positives = draw.integers(0, 9, 40) * 1.0, draw.integers(2, 11, 30) * 1.0
    u = scipy.stats.mannwhitneyu(positives, negatives).statistic
    assert area_under_curve(negatives, positives) == pytest.approx(u / (40 * 30))


def test_midranks_are_scipys() -> None:
    values = numbers(3, 1, 3, 2, 3)
    assert midranks(values).tolist() == scipy.stats.rankdata(values).tolist() == [4, 1, 4, 2, 4]


def test_holms_correction_by_hand() -> None:
    # 3 · 0.01, then 2 · 0.02, then what is before at least.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_values_of_strangers_are_worth_their_number() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert design_effects((values, values), (np.arange(30), np.arange(30))) == (1.0, 1.0)


def test_values_that_each_sender_repeats_are_worth_the_number_of_senders() -> None:
    groups = np.repeat(np.arange(10), 5)
    values = np.random.default_rng(0).normal(size=10)[groups]
    assert design_effects((values, values), (groups, groups)) == pytest.approx((5.0, 5.0))


def test_senders_that_have_nothing_in_common_with_themselves_cost_little() -> None:
    groups = np.repeat(np.arange(200), 5)
    values = np.random.default_rng(3).normal(size=1000)
    assert design_effects((values,), (groups,))[0] < 1.2


def test_a_shift_between_samples_is_no_likeness_within_senders() -> None:
    draw = np.random.default_rng(4)
    groups = np.repeat(np.arange(100), 3)
    low, high = draw.normal(0, 1, 300), draw.normal(9, 1, 300)
    assert max(design_effects((low, high), (groups, groups))) < 1.3


def test_one_sender_alone_is_one_value() -> None:
    groups = np.zeros(40, dtype=np.int64)
    values = np.random.default_rng(5).normal(size=40)
    assert design_effects((values,), (groups,)) == pytest.approx((40.0,))
