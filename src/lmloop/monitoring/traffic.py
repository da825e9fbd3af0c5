"""Traffic in figures: how many requests, how fast, how they ended, how they were rated.

Takes: the database, a model's name, and a span of time. Gives: counts by stretches of time and by
arm, and percentiles of times. Counting is the database's work; times are read of the newest
requests only, so that a busy day costs no more than a quiet one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa

from lmloop.monitoring.statistics import Numbers
from lmloop.store.database import ratings_table, requests_table

NUM_BUCKETS = 60
"""Stretches that a span is cut into."""
MAX_TIMED = 20_000
"""Newest requests whose times are read."""
FAILURES = ("error", "cancelled")
"""Reasons of an end that is not the answer's."""


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Times in seconds."""

    median: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """One stretch of time."""

    start: float
    """Seconds since the epoch."""
    arms: Mapping[str, int]
    """Requests by arm."""
    failed: int
    up: int
    down: int
    first_token: Percentiles | None
    """From arrival to the first token."""
    between_tokens: Percentiles | None
    """Mean time between two tokens of an answer."""
    total: Percentiles | None
    """From arrival to the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """Requests that one version of the weights answered in one role."""

    arm: str
    """`live`, `canary` or `shadow`."""
    weights: str
    requests: int
    failed: int
    up: int
    down: int
    first_token: Percentiles | None
    between_tokens: Percentiles | None
    total: Percentiles | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """A span of time."""

    requests: int
    """Answered to somebody: without shadow answers."""
    prompt_tokens: int
    completion_tokens: int
    endings: Mapping[str, int]
    """Requests by how they ended: stop, length, cancelled, error."""
    up: int
    down: int
    corrections: int
    first_token: Percentiles | None
    between_tokens: Percentiles | None
    total: Percentiles | None
    bucket_seconds: float
    buckets: tuple[Bucket, ...]
    arms: tuple[Arm, ...]


@dataclass(frozen=True, slots=True)
class _Times:
    """Times of the newest requests, as columns [n]."""

    bucket: Numbers
    arm: Sequence[str]
    weights: Sequence[str]
    first_token: Numbers
    between_tokens: Numbers
    total: Numbers

    def percentiles(self, rows: Any) -> dict[str, Percentiles | None]:
        """Of the requests that `rows` picks."""
        return {
            name: _percentiles(getattr(self, name)[rows])
            for name in ("first_token", "between_tokens", "total")
        }


def measure_traffic(engine: sa.Engine, *, name: str, start: float, seconds: float) -> Traffic:
    """Count and time the requests of a model that arrived in `seconds` from `start` on."""
    width = seconds / NUM_BUCKETS
    with engine.connect() as connection:
        counted = _count(connection, name, start, seconds)
        rated = _count_ratings(connection, name, start, seconds)
        times = _read_times(connection, name, start, seconds)
    served = [row for row in counted if row["arm"] != "shadow"]
    seen = np.array([arm != "shadow" for arm in times.arm], dtype=np.bool_)
    endings: dict[str, int] = {}
    for row in served:
        endings[row["reason"]] = endings.get(row["reason"], 0) + row["requests"]
    return Traffic(
        requests=_sum(served, "requests"),
        prompt_tokens=_sum(served, "prompt_tokens"),
        completion_tokens=_sum(served, "completion_tokens"),
        endings=dict(sorted(endings.items())),
        up=_sum(rated, "up"),
        down=_sum(rated, "down"),
        corrections=_sum(rated, "corrections"),
        **times.percentiles(seen),
        bucket_seconds=width,
        buckets=tuple(
            _make_bucket(number, start + number * width, counted, rated, times, seen)
            for number in range(NUM_BUCKETS)
        ),
        arms=tuple(_make_arms(counted, rated, times)),
    )


def _make_bucket(
    number: int, start: float, counted: Any, rated: Any, times: _Times, seen: Any
) -> Bucket:
    inside = [row for row in counted if row["bucket"] == number]
    ratings = [row for row in rated if row["bucket"] == number]
    arms = sorted({row["arm"] for row in inside})
    return Bucket(
        start=start,
        arms={arm: _sum([row for row in inside if row["arm"] == arm], "requests") for arm in arms},
        failed=_sum(_failed([row for row in inside if row["arm"] != "shadow"]), "requests"),
        up=_sum(ratings, "up"),
        down=_sum(ratings, "down"),
        **times.percentiles(seen & (times.bucket == number)),
    )


def _make_arms(counted: Any, rated: Any, times: _Times) -> list[Arm]:
    made = []
    for key in sorted({(row["arm"], row["weights"]) for row in counted}):
        inside = [row for row in counted if (row["arm"], row["weights"]) == key]
        ratings = [row for row in rated if (row["arm"], row["weights"]) == key]
        rows = np.array([pair == key for pair in zip(times.arm, times.weights, strict=True)])
        made.append(
            Arm(
                arm=key[0],
                weights=key[1],
                requests=_sum(inside, "requests"),
                failed=_sum(_failed(inside), "requests"),
                up=_sum(ratings, "up"),
                down=_sum(ratings, "down"),
                **times.percentiles(rows.astype(np.bool_)),
            )
        )
    return made


def _sum(rows: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(row[name] or 0 for row in rows)


def _failed(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["reason"] in FAILURES]


def _inside(name: str, start: float, seconds: float) -> sa.ColumnElement[bool]:
    table = requests_table
    return sa.and_(
        table.c.model == name, table.c.created >= start, table.c.created < start + seconds
    )


def _bucket_of(start: float, seconds: float) -> sa.ColumnElement[Any]:
    # Both databases round, and not all know the floor.
    place = (requests_table.c.created - start) * (NUM_BUCKETS / seconds)
    return sa.func.round(place - 0.5).label("bucket")


def _count(
    connection: sa.Connection, name: str, start: float, seconds: float
) -> list[dict[str, Any]]:
    table = requests_table
    keys = (
        _bucket_of(start, seconds),
        table.c.arm,
        table.c.weights,
        table.c.finish_reason.label("reason"),
    )
    query = (
        sa.select(
            *keys,
            sa.func.count().label("requests"),
            sa.func.sum(table.c.prompt_tokens).label("prompt_tokens"),
            sa.func.sum(table.c.completion_tokens).label("completion_tokens"),
        )
        .where(_inside(name, start, seconds))
        .group_by(*(key.name for key in keys[:1]), table.c.arm, table.c.weights, keys[3].name)
    )
    return _plain(connection, query)


def _count_ratings(
    connection: sa.Connection, name: str, start: float, seconds: float
) -> list[dict[str, Any]]:
    """Ratings by the time of the answers that they are of."""
    table, ratings = requests_table, ratings_table
    bucket = _bucket_of(start, seconds)
    query = (
        sa.select(
            bucket,
            table.c.arm,
            table.c.weights,
            sa.func.sum(sa.case((ratings.c.rating > 0, 1), else_=0)).label("up"),
            sa.func.sum(sa.case((ratings.c.rating < 0, 1), else_=0)).label("down"),
            sa.func.count(ratings.c.correction).label("corrections"),
        )
        .select_from(ratings.join(table, table.c.id == ratings.c.request_id))
        .where(_inside(name, start, seconds))
        .group_by(bucket.name, table.c.arm, table.c.weights)
    )
    return _plain(connection, query)


def _plain(connection: sa.Connection, query: sa.Select[Any]) -> list[dict[str, Any]]:
    rows = [dict(row) for row in connection.execute(query).mappings()]
    for row in rows:
        row["bucket"] = min(max(int(row["bucket"]), 0), NUM_BUCKETS - 1)
    return rows


def _read_times(connection: sa.Connection, name: str, start: float, seconds: float) -> _Times:
    table = requests_table
    query = (
        sa.select(
            table.c.created,
            table.c.arm,
            table.c.weights,
            table.c.first_token_seconds,
            table.c.total_seconds,
            table.c.completion_tokens,
        )
        .where(_inside(name, start, seconds))
        .order_by(table.c.created.desc())
        .limit(MAX_TIMED)
    )
    rows = connection.execute(query).all()
    created, arms, weights, first, total, tokens = zip(*rows, strict=True) if rows else [()] * 6
    first_token = np.array([np.nan if each is None else each for each in first], dtype=np.float64)
    totals = np.array(total, dtype=np.float64)
    gaps = np.array(tokens, dtype=np.float64) - 1
    places = (np.array(created, dtype=np.float64) - start) * (NUM_BUCKETS / seconds)
    between = np.where(gaps > 0, (totals - first_token) / np.maximum(gaps, 1), np.nan)
    return _Times(np.floor(places), arms, weights, first_token, between, totals)


def _percentiles(values: Numbers) -> Percentiles | None:
    known = values[~np.isnan(values)]
    return Percentiles(*np.quantile(known, (0.5, 0.95, 0.99)).tolist()) if len(known) else None
