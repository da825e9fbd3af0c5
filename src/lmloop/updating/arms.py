"""How two versions of a model fare on live traffic: what each arm answered, read from its rows.

Takes: the database, a model's name, a weights version. Gives: an `Arm`: how many requests, how they
ended, how long a token took, how they were rated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from lmloop.store.database import ratings_table, requests_table
from lmloop.updating.timings import Timing


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """The requests of one weights version, one entry a request."""

    errors: tuple[bool, ...]
    empty: tuple[bool, ...]
    """Finished without a token; failed and cancelled requests are left out."""
    cut: tuple[bool, ...]
    """Ended by their length; of the finished ones."""
    repetition: tuple[float, ...]
    """Share of each answer that repeats itself; where it was measured."""
    answer_tokens: tuple[int, ...]
    """Of the finished ones."""
    timings: tuple[Timing, ...]
    """Of answers of two tokens or more."""
    disliked: tuple[bool, ...]
    """Of the rated ones."""

    @property
    def count(self) -> int:
        """Requests."""
        return len(self.errors)


def newest_moment(engine: sa.Engine, name: str) -> float:
    """When the newest request of a model arrived, by its server's clock; 0 where there is none."""
    query = sa.select(sa.func.max(requests_table.c.created))
    with engine.connect() as connection:
        return float(connection.scalar(query.where(requests_table.c.model == name)) or 0.0)


def count_arm(engine: sa.Engine, name: str, *, weights: str, arm: str, after: float) -> int:
    """Requests that `read_arm` would give."""
    query = sa.select(sa.func.count()).select_from(requests_table)
    with engine.connect() as connection:
        return int(connection.scalar(query.where(_chosen(name, weights, arm, after))) or 0)


def read_arm(engine: sa.Engine, name: str, *, weights: str, arm: str, after: float) -> Arm:
    """The requests that `weights` (12 hex digits) answered in this arm after a moment."""
    table, ratings = requests_table, ratings_table
    query = (
        sa.select(
            table.c.created,
            table.c.finish_reason,
            table.c.completion_tokens,
            table.c.first_token_seconds,
            table.c.total_seconds,
            table.c.signals,
            ratings.c.rating,
        )
        .select_from(table.outerjoin(ratings, ratings.c.request_id == table.c.id))
        .where(_chosen(name, weights, arm, after))
        .order_by(table.c.created)
    )
    with engine.connect() as connection:
        rows = [dict(row) for row in connection.execute(query).mappings()]
    return build_arm(rows)


def build_arm(rows: Sequence[Mapping[str, Any]]) -> Arm:
    """The arm of these rows of requests, each with its rating."""
    finished = [row for row in rows if row["finish_reason"] in ("stop", "length")]
    signals = [json.loads(row["signals"]) for row in finished if row["signals"]]
    return Arm(
        errors=tuple(row["finish_reason"] == "error" for row in rows),
        empty=tuple(row["completion_tokens"] == 0 for row in finished),
        cut=tuple(row["finish_reason"] == "length" for row in finished),
        repetition=tuple(
            float(each["repetition"]) for each in signals if each.get("repetition") is not None
        ),
        answer_tokens=tuple(int(row["completion_tokens"]) for row in finished),
        timings=tuple(
            _time(row)
            for row in finished
            if row["completion_tokens"] > 1 and row["first_token_seconds"] is not None
        ),
        disliked=tuple(row["rating"] == -1 for row in rows if row["rating"] is not None),
    )


def _time(row: Mapping[str, Any]) -> Timing:
    first, last = row["first_token_seconds"], row["total_seconds"]
    return Timing(
        start=row["created"] + first,
        stop=row["created"] + last,
        token_seconds=(last - first) / (row["completion_tokens"] - 1),
    )


def _chosen(name: str, weights: str, arm: str, after: float) -> sa.ColumnElement[bool]:
    table = requests_table
    return sa.and_(
        table.c.model == name,
        table.c.weights == weights,
        table.c.arm == arm,
        table.c.created > after,
    )
