"""Served requests in the order in which they came, cut into samples.

Takes: the database, a model's name, and marks. Gives: samples of their signals. A mark is the place
of a request in that order; it stays true however many rows are added or deleted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from lmloop.monitoring.sample import Request, Sample, build_sample
from lmloop.store.database import ratings_table, requests_table


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """The place of a request."""

    created: float
    """When it came, in seconds since the epoch."""
    id: str

    def to_json(self) -> list[Any]:
        """Plain data: `Mark(*data)` reads it back."""
        return [self.created, self.id]


START = Mark(0.0, "")
"""Before all requests."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Requests that follow each other, and where they lie."""

    sample: Sample
    first: Mark
    last: Mark
    longest_seconds: float
    """Of the request that took longest."""


def read_stretch(
    engine: sa.Engine,
    *,
    name: str,
    limit: int,
    after: Mark = START,
    until: Mark | None = None,
    weights: str | None = None,
) -> Stretch | None:
    """The first `limit` measured requests behind `after`, up to `until`; None where there are none.

    Shadow answers, which nobody saw, do not count. With `weights`, only that version's answers.
    """
    table = requests_table
    query = _query(name, after=after, until=until, weights=weights)
    query = query.order_by(table.c.created, table.c.id).limit(limit)
    with engine.connect() as connection:
        rows = connection.execute(query).mappings().all()
    if not rows:
        return None
    first, last = (Mark(row["created"], row["id"]) for row in (rows[0], rows[-1]))
    longest = max(float(row["total_seconds"]) for row in rows)
    return Stretch(build_sample(_requests(rows)), first, last, longest)


def _query(
    name: str, *, after: Mark, until: Mark | None, weights: str | None
) -> sa.Select[tuple[Any, ...]]:
    table, ratings = requests_table, ratings_table
    columns = (
        *(table.c.id, table.c.created, table.c.total_seconds, table.c.weights),
        *(table.c.signals, table.c.embedding, table.c.user_hash, table.c.session_hash),
    )
    place = sa.tuple_(table.c.created, table.c.id)
    query = (
        sa.select(*columns, ratings.c.rating, ratings.c.correction)
        .select_from(table.outerjoin(ratings, ratings.c.request_id == table.c.id))
        .where(table.c.model == name, table.c.arm != "shadow", table.c.signals.is_not(None))
        .where(place > sa.tuple_(after.created, after.id))
    )
    if until is not None:
        query = query.where(place <= sa.tuple_(until.created, until.id))
    return query if weights is None else query.where(table.c.weights == weights)


def _requests(rows: Sequence[Mapping[Any, Any]]) -> Iterator[Request]:
    conversations = _Conversations()
    for row in rows:
        signals = _parse(row["signals"])
        signals["thumbs_down"] = _thumbs_down(row["rating"], row["correction"])
        user, session = row["user_hash"], row["session_hash"]
        yield Request(
            signals=signals,
            embedding=row["embedding"],
            weights=row["weights"],
            group=user or conversations.place(session, signals.get("prompt_characters")),
        )


class _Conversations:
    """Which requests without a user belong to one conversation.

    A session may be told by its opening alone, and many people open with the same words. Inside one
    conversation each prompt is longer than the one before: where it is not, another one begins.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, float]] = {}

    def place(self, session: str | None, characters: Any) -> str | None:
        """A name for the conversation; None where nothing tells."""
        if session is None or not isinstance(characters, int | float):
            return None
        number, before = self._seen.get(session, (0, float("-inf")))
        number += characters <= before
        self._seen[session] = number, characters
        return f"{session}:{number}"


def _parse(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _thumbs_down(rating: int | None, correction: str | None) -> bool | None:
    """Whether the user was unhappy; who corrects an answer is."""
    if rating:
        return rating < 0
    return None if correction is None else True
