"""Rows that reach the database, and a server that does not mind when they cannot."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from lmloop.serving import events as events_module
from lmloop.serving.events import EventWriter
from lmloop.serving.retention import Retention
from lmloop.store.database import open_database, ratings_table, requests_table

from .harness import fake_spec, read_events, running_server, wait_until
from .rows_made import request_row

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


def record(writer: EventWriter, **columns: Any) -> None:
    """Queue the row of a request."""
    writer.record(requests_table, lambda: {**request_row(), **columns})


def rows(database: sa.Engine, table: sa.Table = requests_table) -> list[dict[str, Any]]:
    with database.connect() as connection:
        return [dict(row) for row in connection.execute(sa.select(table)).mappings()]


def test_closing_writes_everything_that_waits(database: sa.Engine) -> None:
    with writing(database) as (writer, dropped):
        for number in range(700):
            record(writer, id=f"id-{number}")
        writer.record(ratings_table, lambda: RATING)
    assert len(rows(database)) == 700
    assert rows(database, ratings_table) == [RATING]
    assert dropped == []


def test_a_row_arrives_without_closing(database: sa.Engine) -> None:
    with writing(database) as (writer, _):
        record(writer, signals="{}", embedding=bytes(128))
        expected = request_row() | {"signals": "{}", "embedding": bytes(128)}
        assert wait_until(lambda: rows(database)) == [expected]


def test_rows_are_made_on_the_writers_thread(database: sa.Engine) -> None:
    names: list[str] = []

    def build() -> dict[str, Any]:
        names.append(threading.current_thread().name)
        return request_row()

    with writing(database) as (writer, _):
        writer.record(requests_table, build)
    assert names == ["events"]


def test_what_rows_need_is_opened_first_and_may_fail(
    database: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ImportError("no model of languages")

    with writing(database, warm_up=fail) as (writer, dropped):
        wait_until(lambda: "no model of languages" in caplog.text)
        record(writer)
    assert len(rows(database)) == 1
    assert dropped == []


def test_a_later_rating_replaces_the_earlier_one(database: sa.Engine) -> None:
    with writing(database) as (writer, _):
        for rating in (1, -1, None):
            writer.record(ratings_table, partial(dict, RATING, rating=rating))
    assert [row["rating"] for row in rows(database, ratings_table)] == [None]


def test_a_row_that_cannot_be_written_does_not_take_the_others_along(
    database: sa.Engine,
) -> None:
    with writing(database) as (writer, dropped):
        record(writer, id="before")
        record(writer, created="not a number")
        record(writer, id="half", answer="\ud800")
        record(writer, id="nul", answer="a\0b")
    found = {row["id"]: row["answer"] for row in rows(database)}
    assert found == {"before": None, "nul": "a\ufffdb"}
    assert sum(dropped) == 2


def test_a_row_that_cannot_be_made_is_dropped_and_its_words_are_in_no_log(
    database: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> dict[str, Any]:
        raise ValueError("ann@example.org")

    with writing(database) as (writer, dropped):
        writer.record(requests_table, fail)
        record(writer)
    assert [row["id"] for row in rows(database)] == ["a"]
    assert sum(dropped) == 1
    assert "ValueError" in caplog.text
    assert "ann@" not in caplog.text


def test_a_database_without_tables_loses_events_and_counts_them() -> None:
    database = sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool)
    with writing(database) as (writer, dropped):
        for number in range(5):
            record(writer, id=str(number))
    database.dispose()
    assert sum(dropped) == 5


def test_a_full_disk_loses_events_and_serving_goes_on_when_there_is_room_again(
    database: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "RETRY_SECONDS", 0.01)
    limit = [f"PRAGMA max_page_count={database_pages(database)}"]
    sa.event.listen(database, "checkout", lambda connection, *_: connection.execute(limit[0]))
    with writing(database) as (writer, dropped):
        record(writer, answer="a" * 100_000)
        wait_until(lambda: dropped == [1])
        limit[0] = "PRAGMA max_page_count=1000000"
        record(writer, answer="b")
        assert wait_until(lambda: rows(database))[0]["answer"] == "b"


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
        record(writer)
        wait()
        started = time.monotonic()
        for _ in range(10):
            record(writer)
        assert time.monotonic() - started < 1
        assert sum(dropped) == 7


def test_closing_does_not_wait_for_ever(
    database: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writing(database, max_waiting=1) as (writer, dropped), stuck(monkeypatch) as wait:
        record(writer)
        wait()
        record(writer)
        started = time.monotonic()
        writer.close(seconds=0.1)
        assert time.monotonic() - started < 2
        assert sum(dropped) == 1


def test_texts_that_wait_are_bounded_together(
    database: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writing(database, max_waiting_characters=100) as (writer, dropped):
        with stuck(monkeypatch) as wait:
            writer.record(requests_table, request_row, characters=60)
            wait()
            writer.record(requests_table, request_row, characters=41)
            assert dropped == [1]
            writer.record(requests_table, request_row, characters=40)
            writer.record(requests_table, request_row, characters=1)
            assert sum(dropped) == 2
        # What was written makes room.
        wait_until(lambda: writer._waiting_characters == 0)
        writer.record(requests_table, request_row, characters=100)
        assert sum(dropped) == 2


class Hourly(Retention):
    """Counts its looks, and is due when told to be."""

    def __init__(self) -> None:
        self.due = threading.Event()
        self.looks = 0
        self.due.set()

    def seconds_left(self) -> float:
        return 0.0 if self.due.is_set() else 0.02

    def enforce(self) -> None:
        self.due.clear()
        self.looks += 1


def test_the_retention_is_looked_after_at_first_and_whenever_it_is_time(
    database: sa.Engine,
) -> None:
    retention = Hourly()
    with writing(database, retention=retention) as (writer, _):
        wait_until(lambda: retention.looks == 1)
        record(writer)
        wait_until(lambda: rows(database))
        retention.due.set()
        wait_until(lambda: retention.looks == 2)


def lose(database: sa.Engine, how: str, file: Path) -> None:
    """Make a database useless while it is in use."""
    database.dispose()
    if how == "deleted":
        for path in file.parent.glob(f"{file.name}*"):
            path.unlink()
    elif how == "overwritten":
        file.write_bytes(b"no database " * 1000)
    statements = {
        "read-only": "PRAGMA query_only=1",
        "full disk": "PRAGMA max_page_count=1",
    }

    def prepare(connection: Any, _record: object) -> None:
        # A test has no five seconds to wait for a lock.
        connection.execute("PRAGMA busy_timeout=20")
        connection.execute(statements.get(how, "PRAGMA busy_timeout"))

    sa.event.listen(database, "connect", prepare)


@pytest.mark.parametrize("how", ["deleted", "overwritten", "locked", "read-only", "full disk"])
def test_sixteen_clients_stream_on_while_the_database_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(events_module, "RETRY_SECONDS", 0.01)
    file = tmp_path / "events.db"
    spec = fake_spec(tmp_path, "--max-running", "16", capacity=64)
    with running_server(tmp_path, spec) as server, contextlib.ExitStack() as stack:
        server.chat()
        lose(server.database, how, file)
        if how == "locked":
            other = stack.enter_context(contextlib.closing(sqlite3.connect(file)))
            other.execute("BEGIN EXCLUSIVE")
        ends: list[str] = []

        def talk(client: int) -> None:
            for turn in range(3):
                reply = server.chat(f"client {client} turn {turn}", stream=True)
                assert reply.status == 200, reply.body
                ends.append(read_events(reply.body.decode())[-1])

        clients = [threading.Thread(target=talk, args=(number,)) for number in range(16)]
        for client in clients:
            client.start()
        for client in clients:
            client.join(20)
        assert ends == ["[DONE]"] * 48
        rating = {"response_id": server.chat().json["id"], "rating": 1}
        assert server.post("/v1/feedback", rating).status == 200
        # A full disk still has room for a few rows in the pages that are there already.
        least = 36 if how == "full disk" else 48
        wait_until(lambda: server.metric("llm_events_dropped_total") >= least)
        assert server.is_ready()


def test_a_server_starts_and_answers_while_its_database_is_away(tmp_path: Path) -> None:
    nowhere = sa.create_engine(f"sqlite:///{tmp_path / 'no' / 'such' / 'folder' / 'a.db'}")
    with running_server(tmp_path, database=nowhere) as server:
        answers = [server.chat(user="ann") for _ in range(5)]
        assert [answer.status for answer in answers] == [200] * 5
        wait_until(lambda: server.metric("llm_events_dropped_total") == 5)
        for response_id, status in ((answers[0].json["id"], 200), ("chatcmpl-" + "0" * 48, 404)):
            rating = {"response_id": response_id, "rating": 1}
            assert server.post("/v1/feedback", rating).status == status
        assert server.is_ready()
