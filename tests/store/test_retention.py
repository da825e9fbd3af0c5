"""Retention: what is over goes with all that was said of it, and nothing else."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from lmloop.store import retention
from lmloop.store.database import ratings_table, requests_table, reviews_table
from lmloop.store.events import write_events
from lmloop.store.retention import delete_expired

from .conftest import count, rating_row, request_row


def review_row(identity: str, *, decided: float) -> dict[str, object]:
    return {
        "request_id": identity,
        "content_sha": "0" * 64,
        "state": "accepted",
        "decided": decided,
    }


def left(engine: sa.Engine, column: sa.Column[str]) -> list[str]:
    with engine.connect() as connection:
        return sorted(connection.scalars(sa.select(column)))


def fill(engine: sa.Engine, moments: dict[str, float]) -> None:
    """A request a moment, each rated and reviewed much later."""
    for identity, created in moments.items():
        rows = [
            (requests_table, request_row(identity, created=created)),
            (ratings_table, rating_row(identity, created=1000.0)),
            (reviews_table, review_row(identity, decided=1000.0)),
        ]
        write_events(engine, rows)


def test_requests_go_with_their_ratings_and_reviews_and_younger_ones_stay(
    any_engine: sa.Engine,
) -> None:
    fill(any_engine, {"old": 99.0, "edge": 100.0, "new": 101.0})
    assert delete_expired(any_engine, older_than=100.0) == 1
    for column in (
        requests_table.c.id,
        ratings_table.c.request_id,
        reviews_table.c.request_id,
    ):
        assert left(any_engine, column) == ["edge", "new"]
    assert delete_expired(any_engine, older_than=100.0) == 0


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6])
def test_batches_of_any_size_leave_the_same(
    any_engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(retention, "BATCH", size)
    # Five are over, three of them of the same moment.
    fill(any_engine, {"a": 1.0, "b": 1.0, "c": 1.0, "d": 2.0, "e": 3.0, "f": 9.0})
    assert delete_expired(any_engine, older_than=5.0) == 5
    assert left(any_engine, requests_table.c.id) == ["f"]
    assert left(any_engine, ratings_table.c.request_id) == ["f"]


def test_old_words_about_requests_that_never_came_go_as_well(any_engine: sa.Engine) -> None:
    write_events(
        any_engine,
        [
            (requests_table, request_row("kept", created=500.0)),
            (ratings_table, rating_row("kept", created=1.0)),
            (ratings_table, rating_row("lost", created=1.0)),
            (ratings_table, rating_row("waiting", created=500.0)),
            (reviews_table, review_row("lost", decided=1.0)),
            (reviews_table, review_row("waiting", decided=500.0)),
        ],
    )
    assert delete_expired(any_engine, older_than=100.0) == 0
    assert left(any_engine, ratings_table.c.request_id) == ["kept", "waiting"]
    assert left(any_engine, reviews_table.c.request_id) == ["waiting"]


def test_an_empty_database_has_nothing_to_delete(any_engine: sa.Engine) -> None:
    assert delete_expired(any_engine, older_than=float("inf")) == 0


def test_a_transaction_deletes_no_more_than_a_batch(
    any_engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    fill(any_engine, {"a": 1.0, "b": 2.0, "c": 3.0})
    delete, calls = retention.delete_requests, []

    def watch(connection: sa.Connection, ids: list[str]) -> tuple[int, int, int]:
        calls.append(len(ids))
        return delete(connection, ids)

    monkeypatch.setattr(retention, "delete_requests", watch)
    assert delete_expired(any_engine, older_than=5.0) == 3
    assert calls == [2, 1]
    assert count(any_engine, requests_table) == 0
