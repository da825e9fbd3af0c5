"""The rate's curve, point by point."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmloop.training.schedule import warmup_stable_decay

SHARES = st.floats(0, 1)


@pytest.mark.parametrize(
    ("share", "factor"),
    [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.5, 1.0), (0.6, 1.0), (0.8, 0.5), (0.9, 0.25), (1, 0)],
)
def test_the_rate_rises_stays_and_falls_as_drawn_by_hand(share: float, factor: float) -> None:
    value = warmup_stable_decay(share, warmup_share=0.1, decay_share=0.4)
    assert value == pytest.approx(factor, abs=1e-12)


def test_without_a_rise_the_rate_begins_at_its_peak() -> None:
    assert warmup_stable_decay(0.0, warmup_share=0, decay_share=0.5) == 1.0


def test_without_a_fall_the_rate_stays_to_the_end() -> None:
    assert warmup_stable_decay(1.0, warmup_share=0.1, decay_share=0) == 1.0


def test_a_fall_over_everything_begins_at_once() -> None:
    assert warmup_stable_decay(0.25, warmup_share=0, decay_share=1.0) == 0.75


def test_where_rise_and_fall_overlap_the_lower_one_holds() -> None:
    assert warmup_stable_decay(0.5, warmup_share=0.8, decay_share=1.0) == 0.5
    assert warmup_stable_decay(0.4, warmup_share=0.8, decay_share=1.0) == 0.5


@given(share=SHARES, warmup=st.floats(0, 0.99), decay=SHARES)
def test_the_factor_lies_between_nothing_and_the_peak(
    share: float, warmup: float, decay: float
) -> None:
    assert 0 <= warmup_stable_decay(share, warmup_share=warmup, decay_share=decay) <= 1
