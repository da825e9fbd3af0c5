"""The database: made once, by whoever comes first, and never half."""

from __future__ import annotations

import fcntl
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
import sqlalchemy as sa

from lmloop.errors import ArtifactError, DatabaseError
from lmloop.store import database
from lmloop.store.database import (
    database_url,
    encode_messages,
    open_database,
    ratings_table,
    request_exists,
    requests_table,
    transaction,
    write_events,
)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    made = open_database(database_url(tmp_path))
    yield made
    made.dispose()


def request(identity: str) -> dict[str, Any]:
    return {
        "id": identity,
        "created": 1.0,
        "endpoint": "/v1/chat/completions",
        "model": "chat",
        "weights": "f" * 64,
        "stream": True,
        "prompt_tokens": 5,
        "completion_tokens": 7,
        "finish_reason": "stop",
        "total_seconds": 0.5,
        "consent": False,
    }


def rating(identity: str, value: int) -> dict[str, Any]:
    return {"request_id": identity, "created": 2.0, "rating": value}


def count(engine: sa.Engine, table: sa.Table) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0)


def numbers(engine: sa.Engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.scalars(sa.select(database.migrations_table.c.number)))


def test_a_new_home_gets_a_database_with_every_table_in_wal_mode(
    tmp_path: Path, engine: sa.Engine
) -> None:
    assert set(sa.inspect(engine).get_table_names()) == set(database.metadata.tables)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    assert (tmp_path / "lmloop.db").is_file()


def test_opening_again_applies_nothing_twice(tmp_path: Path, engine: sa.Engine) -> None:
    write_events(engine, [(requests_table, request("a"))])
    again = open_database(database_url(tmp_path))
    assert numbers(again) == list(range(1, len(database.MIGRATIONS) + 1))
    assert count(again, requests_table) == 1
    again.dispose()


def add_note(connection: sa.Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE requests ADD COLUMN note TEXT")


def test_an_old_database_gets_what_is_new_exactly_once(
    tmp_path: Path, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_events(engine, [(requests_table, request("a"))])
    monkeypatch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, add_note))
    for _ in range(2):
        newer = open_database(database_url(tmp_path))
        assert numbers(newer) == [1, 2]
        columns = [column["name"] for column in sa.inspect(newer).get_columns("requests")]
        assert columns.count("note") == 1
        assert count(newer, requests_table) == 1
        newer.dispose()


def test_a_new_database_is_made_in_the_newest_shape_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(connection: sa.Connection) -> None:
        raise AssertionError("the tables are already as this step would make them")

    monkeypatch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, refuse))
    made = open_database(database_url(tmp_path))
    assert numbers(made) == [1, 2]
    made.dispose()


def test_a_migration_that_fails_leaves_the_database_as_it_was(
    tmp_path: Path, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_halfway(connection: sa.Connection) -> None:
        add_note(connection)
        connection.exec_driver_sql("ALTER TABLE no_such_table ADD COLUMN note TEXT")

    before = sa.inspect(engine).get_columns("requests")
    monkeypatch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, fail_halfway))
    with pytest.raises(DatabaseError, match="no such table: no_such_table"):
        open_database(database_url(tmp_path))
    assert numbers(engine) == [1]
    after = sa.inspect(engine).get_columns("requests")
    assert [column["name"] for column in after] == [column["name"] for column in before]


def test_a_database_of_a_newer_lmloop_is_refused(tmp_path: Path, engine: sa.Engine) -> None:
    with transaction(engine) as connection:
        connection.execute(database.migrations_table.insert().values(number=99, applied=1.0))
    with pytest.raises(DatabaseError, match="is at migration 99 and this lmloop knows 1"):
        open_database(database_url(tmp_path))


def test_a_file_that_is_no_database_is_refused_and_named(tmp_path: Path) -> None:
    (tmp_path / "lmloop.db").write_text("no database " * 100)
    with pytest.raises(DatabaseError, match=r"lmloop\.db cannot be used: file is not a database"):
        open_database(database_url(tmp_path))


@pytest.mark.parametrize("url", ["", "lmloop.db", "nosuch://host/name", "postgresql+nosuch://a/b"])
def test_a_url_that_means_nothing_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(DatabaseError, match="write sqlite:///PATH") as caught:
        open_database(url)
    assert "\n" not in str(caught.value)


def test_a_password_in_a_url_is_never_told() -> None:
    with pytest.raises(DatabaseError) as caught:
        open_database("postgresql+nosuch://me:secret@host/name")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["a b#c%20é", "a?b=c", "a@b:c"])
def test_a_home_whose_name_a_url_would_read_otherwise_works(tmp_path: Path, name: str) -> None:
    open_database(database_url(tmp_path / name)).dispose()
    assert (tmp_path / name / "lmloop.db").is_file()
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_a_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be made"):
        open_database(database_url(tmp_path / "file"))


def test_a_second_rating_takes_the_place_of_the_first(engine: sa.Engine) -> None:
    write_events(engine, [(requests_table, request("a")), (ratings_table, rating("a", 1))])
    write_events(engine, [(ratings_table, rating("a", -1)), (ratings_table, rating("b", 1))])
    with engine.connect() as connection:
        rows = connection.execute(sa.select(ratings_table.c.request_id, ratings_table.c.rating))
        assert sorted(tuple(row) for row in rows) == [("a", -1), ("b", 1)]


def test_events_are_written_all_or_none(engine: sa.Engine) -> None:
    broken = {**request("b"), "model": None}
    with pytest.raises(sa.exc.IntegrityError):
        write_events(engine, [(requests_table, request("a")), (requests_table, broken)])
    assert count(engine, requests_table) == 0


def test_a_request_exists_once_it_was_written(engine: sa.Engine) -> None:
    assert not request_exists(engine, "a")
    write_events(engine, [(requests_table, request("a"))])
    assert request_exists(engine, "a")


def test_messages_keep_their_characters() -> None:
    messages = [{"role": "user", "content": "水 é \x00 \U0001f600"}]
    assert json.loads(encode_messages(messages)) == messages
    assert "水" in encode_messages(messages)


def test_a_reader_does_not_wait_for_a_writer_and_sees_no_half_transaction(
    engine: sa.Engine,
) -> None:
    with transaction(engine) as writer:
        writer.execute(requests_table.insert().values(request("a")))
        assert count(engine, requests_table) == 0
    assert count(engine, requests_table) == 1


def test_what_a_writer_has_read_stays_true_until_it_has_written(
    tmp_path: Path, engine: sa.Engine
) -> None:
    other = sqlite3.connect(tmp_path / "lmloop.db", timeout=0)
    with transaction(engine) as writer:
        assert writer.scalar(sa.select(sa.func.count()).select_from(ratings_table)) == 0
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("INSERT INTO ratings (request_id, created) VALUES ('a', 1.0)")
        writer.execute(ratings_table.insert().values(rating("b", 1)))
    other.execute("INSERT INTO ratings (request_id, created) VALUES ('a', 1.0)")
    other.commit()
    other.close()
    assert count(engine, ratings_table) == 2


OPEN_AND_WRITE = """
import json, sys
from lmloop.store.database import open_database, requests_table, write_events
sys.stdout.write("ready\\n")
sys.stdout.flush()
sys.stdin.readline()
engine = open_database(sys.argv[1])
for number in range(25):
    row = {**json.loads(sys.argv[3]), "id": f"{sys.argv[2]}-{number}"}
    write_events(engine, [(requests_table, row)])
engine.dispose()
"""


def test_processes_that_open_a_new_database_at_once_all_write_to_it(tmp_path: Path) -> None:
    url = database_url(tmp_path)
    code = [sys.executable, "-c", OPEN_AND_WRITE, url]
    writers = [
        subprocess.Popen(
            [*code, str(number), json.dumps(request("x"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    errors = [writer.communicate(timeout=120)[1] for writer in writers]
    assert errors == ["", "", "", ""]
    engine = open_database(url)
    assert count(engine, requests_table) == 100
    assert numbers(engine) == [1]
    engine.dispose()


def test_a_new_database_is_made_under_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without it about one opening in a hundred found the new file locked, when four came at once.
    taken = []
    lock = fcntl.flock

    def watch(stream: TextIO, operation: int) -> None:
        taken.append((stream.name, operation, (tmp_path / "lmloop.db").exists()))
        lock(stream, operation)

    monkeypatch.setattr(fcntl, "flock", watch)
    open_database(database_url(tmp_path)).dispose()
    assert taken == [(str(tmp_path / "lmloop.db.lock"), fcntl.LOCK_EX, False)]


def test_a_killed_writer_leaves_what_it_committed_and_no_more(tmp_path: Path) -> None:
    code = (
        "import json, os, signal, sys\n"
        "from lmloop.store.database import *\n"
        "from lmloop.store.database import requests_table\n"
        "engine = open_database(sys.argv[1])\n"
        "row = json.loads(sys.argv[2])\n"
        "write_events(engine, [(requests_table, row)])\n"
        "with transaction(engine) as connection:\n"
        "    connection.execute(requests_table.insert().values({**row, 'id': 'b'}))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    url = database_url(tmp_path)
    command = [sys.executable, "-c", code, url, json.dumps(request("a"))]
    assert subprocess.run(command, timeout=60).returncode == -9
    engine = open_database(url)
    assert request_exists(engine, "a")
    assert not request_exists(engine, "b")
    engine.dispose()
