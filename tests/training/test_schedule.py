"""The rate's curve, point by point."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmloop.training.schedule import rate_factor

SHARES = st.floats(0, 1, allow_subnormal=False)
WARMUPS = st.floats(0, 0.99, allow_subnormal=False)


@pytest.mark.parametrize(
    ("share", "factor"),
    [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.5, 1.0), (0.6, 1.0), (0.8, 0.5), (0.9, 0.25), (1, 0)],
)
def test_the_rate_rises_stays_and_falls_as_drawn_by_hand(share: float, factor: float) -> None:
    value = rate_factor(share, curve="wsd", warmup_share=0.1, decay_share=0.4)
    assert value == pytest.approx(factor, abs=1e-12)


def test_without_a_rise_the_rate_begins_at_its_peak() -> None:
    assert rate_factor(0.0, curve="wsd", warmup_share=0, decay_share=0.5) == 1.0


def test_without_a_fall_the_rate_stays_to_the_end() -> None:
    assert rate_factor(1.0, curve="wsd", warmup_share=0.1, decay_share=0) == 1.0


def test_a_fall_over_everything_begins_at_once() -> None:
    assert rate_factor(0.25, curve="wsd", warmup_share=0, decay_share=1.0) == 0.75


def test_where_rise_and_fall_overlap_the_lower_one_holds() -> None:
    assert rate_factor(0.5, curve="wsd", warmup_share=0.8, decay_share=1.0) == 0.5
    assert rate_factor(0.4, curve="wsd", warmup_share=0.8, decay_share=1.0) == 0.5


@given(share=SHARES, warmup=WARMUPS, decay=SHARES)
def test_the_factor_lies_between_nothing_and_the_peak(
    share: float, warmup: float, decay: float
) -> None:
    assert 0 <= rate_factor(share, curve="wsd", warmup_share=warmup, decay_share=decay) <= 1


CURVES = st.sampled_from(["wsd", "cosine", "linear", "constant"])


@pytest.mark.parametrize(
    ("curve", "at", "factor"),
    [
        ("cosine", 0.2, 1.0),
        ("cosine", 0.4, 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2),
        ("cosine", 0.6, 0.55),
        ("cosine", 1.0, 0.1),
        ("linear", 0.2, 1.0),
        ("linear", 0.6, 0.55),
        ("linear", 1.0, 0.1),
        ("wsd", 0.4, 1.0),
        ("wsd", 0.75, 0.55),
        ("wsd", 1.0, 0.1),
        ("constant", 0.1, 0.5),
        ("constant", 1.0, 1.0),
    ],
)
def test_each_curve_passes_the_points_of_its_definition(
    curve: str, at: float, factor: float
) -> None:
    value = rate_factor(at, curve=curve, warmup_share=0.2, decay_share=0.5, final_share=0.1)
    assert value == pytest.approx(factor, abs=1e-12)


@given(
    share=SHARES,
    curve=CURVES,
    warmup=WARMUPS,
    decay=SHARES,
    final=SHARES,
)
def test_no_curve_leaves_what_lies_between_nothing_and_the_peak(
    share: float, curve: str, warmup: float, decay: float, final: float
) -> None:
    value = rate_factor(
        share, curve=curve, warmup_share=warmup, decay_share=decay, final_share=final
    )
    assert 0 <= value <= 1 + 1e-12
    end = rate_factor(1, curve=curve, warmup_share=warmup, decay_share=decay, final_share=final)
    rests = curve == "constant" or (curve == "wsd" and decay == 0)
    assert end == pytest.approx(1.0 if rests else final, abs=1e-9)
