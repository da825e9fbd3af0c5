"""Rows that reach the database, and a server that does not mind when they cannot."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from lmloop.serving import events as events_module
from lmloop.serving.events import EventWriter
from lmloop.store.database import open_database, ratings_table, requests_table

from .harness import running_server, wait_until

ROW = {
    "id": "a",
    "created": 1.5,
    "endpoint": "chat",
    "model": "m",
    "weights": "0123456789ab",
    "stream": False,
    "prompt_tokens": 3,
    "completion_tokens": 4,
    "finish_reason": "stop",
    "first_token_seconds": 0.5,
    "total_seconds": 1.0,
    "consent": False,
    "prompt": None,
    "answer": None,
}
RATING = {"request_id": "a", "created": 2.0, "rating": 1, "correction": None, "comment": None}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = open_database(f"sqlite:///{tmp_path / 'events.db'}")
    yield engine
    engine.dispose()


@contextmanager
def writing(database: sa.Engine, **options: Any) -> Iterator[tuple[EventWriter, list[int]]]:
    dropped: list[int] = []
    writer = EventWriter(database, on_dropped=dropped.append, **options)
    try:
        yield writer, dropped
    finally:
        writer.close()


def rows(database: sa.Engine, table: sa.Table) -> list[dict[str, Any]]:
    with database.connect() as connection:
        return [dict(row) for row in connection.execute(sa.select(table)).mappings()]


def test_closing_writes_everything_that_waits(database: sa.Engine) -> None:
    with writing(database) as (writer, dropped):
        for number in range(700):
            writer.record_request({**ROW, "id": f"id-{number}"})
        writer.record_rating(RATING)
    assert len(rows(database, requests_table)) == 700
    assert rows(database, ratings_table) == [RATING]
    assert dropped == []


def test_a_row_arrives_without_closing(database: sa.Engine) -> None:
    with writing(database) as (writer, _):
        writer.record_request(ROW)
        assert wait_until(lambda: rows(database, requests_table)) == [ROW]


def test_a_later_rating_replaces_the_earlier_one(database: sa.Engine) -> None:
    with writing(database) as (writer, _):
        for rating in (1, -1, None):
            writer.record_rating({**RATING, "rating": rating})
    assert [row["rating"] for row in rows(database, ratings_table)] == [None]


def test_a_served_answer_is_known_at_once_and_from_the_database_later(
    database: sa.Engine,
) -> None:
    with writing(database, max_recent=2) as (writer, _):
        for response_id in ("a", "b", "c"):
            writer.remember(response_id)
        assert [writer.knows(each) for each in "abcd"] == [False, True, True, False]
        writer.record_request(ROW)
        wait_until(lambda: writer.knows("a"))


def test_a_row_that_cannot_be_written_does_not_take_the_others_along(
    database: sa.Engine,
) -> None:
    with writing(database) as (writer, dropped):
        writer.record_request({**ROW, "id": "before"})
        writer.record_request({**ROW, "created": "not a number"})
        writer.record_request({**ROW, "id": "half", "answer": "\ud800"})
        writer.record_request({**ROW, "id": "nul", "answer": "a\0b"})
    found = {row["id"]: row["answer"] for row in rows(database, requests_table)}
    assert found == {"before": None, "nul": "a\ufffdb"}
    assert sum(dropped) == 2


def test_a_database_without_tables_loses_events_and_counts_them() -> None:
    database = sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool)
    with writing(database) as (writer, dropped):
        for number in range(5):
            writer.record_request({**ROW, "id": str(number)})
    database.dispose()
    assert sum(dropped) == 5


def test_a_full_disk_loses_events_and_serving_goes_on_when_there_is_room_again(
    database: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "RETRY_SECONDS", 0.01)
    pages = f"PRAGMA max_page_count={database_pages(database)}"
    unlimited = "PRAGMA max_page_count=1000000"
    limit = [pages]
    sa.event.listen(database, "checkout", lambda connection, *_: connection.execute(limit[0]))
    with writing(database) as (writer, dropped):
        writer.record_request({**ROW, "answer": "a" * 100_000})
        wait_until(lambda: dropped == [1])
        limit[0] = unlimited
        writer.record_request({**ROW, "answer": "b"})
        assert wait_until(lambda: rows(database, requests_table))[0]["answer"] == "b"


def database_pages(database: sa.Engine) -> int:
    with database.connect() as connection:
        return int(connection.execute(sa.text("PRAGMA page_count")).scalar_one())


@contextmanager
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """A database whose first write waits until it is let go."""
    inside, gate = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        inside.set()
        assert gate.wait(20)

    monkeypatch.setattr(events_module, "write_events", wait)
    try:
        yield lambda: wait_until(inside.is_set)
    finally:
        gate.set()


def test_a_full_queue_drops_and_never_blocks(
    database: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writing(database, max_waiting=3) as (writer, dropped), stuck(monkeypatch) as wait:
        writer.record_request(ROW)
        wait()
        started = time.monotonic()
        for _ in range(10):
            writer.record_request(ROW)
        assert time.monotonic() - started < 1
        assert sum(dropped) == 7


def test_closing_does_not_wait_for_ever(
    database: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writing(database, max_waiting=1) as (writer, dropped), stuck(monkeypatch) as wait:
        writer.record_request(ROW)
        wait()
        writer.record_request(ROW)
        started = time.monotonic()
        writer.close(seconds=0.1)
        assert time.monotonic() - started < 2
        assert sum(dropped) == 1


def test_a_server_answers_while_its_database_is_away(tmp_path: Path) -> None:
    nowhere = sa.create_engine(f"sqlite:///{tmp_path / 'no' / 'such' / 'folder' / 'a.db'}")
    with running_server(tmp_path, database=nowhere) as server:
        answers = [server.chat() for _ in range(5)]
        assert [answer.status for answer in answers] == [200] * 5
        name = "llm_events_dropped_total"
        wait_until(lambda: server.metric(name, model="tiny/chat") == 5)
        # A rating of an answer that is still remembered is taken; another cannot be checked.
        known = {"response_id": answers[0].json["id"], "rating": 1}
        assert server.post("/v1/feedback", known).status == 200
        unknown = {"response_id": "chatcmpl-" + "0" * 24, "rating": 1}
        reply = server.post("/v1/feedback", unknown)
        assert (reply.status, reply.error["code"]) == (503, "database_unavailable")
        assert "sqlite" not in reply.error["message"].lower()
        assert server.is_ready()
