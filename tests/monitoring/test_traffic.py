"""Counts and times of a span, by stretch and by arm."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from lmloop.monitoring.traffic import NUM_BUCKETS, Percentiles, measure_traffic

from . import simulated

NOW = simulated.START + 600


def row(number: int, *, at: float, **changes: object) -> dict[str, object]:
    (made,) = simulated.make_rows(
        1, seed=number, first=number, start=simulated.START + at - number, **changes
    )
    return made


def test_a_span_without_requests_is_all_zeros(any_engine: sa.Engine) -> None:
    traffic = measure_traffic(any_engine, name="chat", start=NOW - 600, seconds=600)
    assert traffic.requests == traffic.up == traffic.prompt_tokens == 0
    assert traffic.endings == {}
    assert traffic.total is None
    assert len(traffic.buckets) == NUM_BUCKETS
    assert traffic.arms == ()


def test_requests_are_counted_by_how_they_ended_and_in_their_stretch(any_engine: sa.Engine) -> None:
    fixed = {"prompt_tokens": 10, "completion_tokens": 5}
    simulated.write(
        any_engine,
        row(0, at=0, finish_reason="stop", **fixed),
        row(1, at=9.9, finish_reason="length", **fixed),
        row(2, at=10.1, finish_reason="error", **fixed),
        row(3, at=599.9, finish_reason="stop", arm="shadow", **fixed),
        row(4, at=-1, finish_reason="stop", **fixed),
        row(5, at=5, finish_reason="stop", model="other", **fixed),
    )
    traffic = measure_traffic(any_engine, name="chat", start=simulated.START, seconds=600)
    assert traffic.requests == 3
    assert (traffic.prompt_tokens, traffic.completion_tokens) == (30, 15)
    assert traffic.endings == {"error": 1, "length": 1, "stop": 1}
    assert traffic.bucket_seconds == 10
    counted = {n: dict(each.arms) for n, each in enumerate(traffic.buckets) if each.arms}
    assert counted == {0: {"live": 2}, 1: {"live": 1}, 59: {"shadow": 1}}
    assert [each.failed for each in traffic.buckets[:3]] == [0, 1, 0]


def test_times_are_percentiles_of_answers_that_somebody_got(any_engine: sa.Engine) -> None:
    times = {"first_token_seconds": 0.1, "completion_tokens": 11}
    simulated.write(
        any_engine,
        *(row(n, at=n, total_seconds=1.1 + n, **times) for n in range(3)),
        row(3, at=3, total_seconds=900.0, arm="shadow", **times),
        row(4, at=4, total_seconds=2.1, first_token_seconds=None, completion_tokens=0),
    )
    traffic = measure_traffic(any_engine, name="chat", start=simulated.START, seconds=600)
    assert traffic.first_token == pytest.approx(Percentiles(0.1, 0.1, 0.1))
    assert traffic.between_tokens is not None
    assert traffic.between_tokens.median == pytest.approx(0.2)
    assert traffic.total is not None
    assert traffic.total.median == pytest.approx(2.1)
    assert traffic.buckets[0].total == traffic.total
    assert traffic.buckets[1].total is None


def test_ratings_count_where_their_answers_lie(any_engine: sa.Engine) -> None:
    rows = [row(n, at=n, arm="canary" if n == 2 else "live") for n in range(4)]
    simulated.write(
        any_engine,
        *rows,
        simulated.rating(rows[0], rating=1),
        simulated.rating(rows[1], rating=-1, correction="better"),
        simulated.rating(rows[2], rating=1),
        simulated.rating(rows[3], rating=None, correction="better"),
    )
    traffic = measure_traffic(any_engine, name="chat", start=simulated.START, seconds=600)
    assert (traffic.up, traffic.down, traffic.corrections) == (2, 1, 2)
    assert (traffic.buckets[0].up, traffic.buckets[0].down) == (2, 1)
    assert [(arm.arm, arm.requests, arm.up, arm.down) for arm in traffic.arms] == [
        ("canary", 1, 1, 0),
        ("live", 3, 1, 1),
    ]
