"""The database: made once, by whoever comes first, and never half; the same on both kinds."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
import sqlalchemy as sa

from lmloop.errors import ArtifactError, DatabaseError, MissingExtraError
from lmloop.store import database
from lmloop.store.database import (
    MIGRATIONS,
    aliases_table,
    database_url,
    open_database,
    ratings_table,
    requests_table,
    transaction,
)
from lmloop.store.events import write_events
from lmloop.store.registry import Registry

from .conftest import count, rating_row, request_row

NUMBERS = list(range(1, len(MIGRATIONS) + 1))
AT_MIGRATION_1 = """
CREATE TABLE aliases (name VARCHAR NOT NULL, alias VARCHAR NOT NULL, fingerprint VARCHAR NOT NULL,
    path VARCHAR NOT NULL, generation INTEGER NOT NULL, changed FLOAT NOT NULL,
    PRIMARY KEY (name, alias));
CREATE TABLE artifacts (path VARCHAR NOT NULL, fingerprint VARCHAR NOT NULL, kind VARCHAR NOT NULL,
    stage VARCHAR NOT NULL, name VARCHAR NOT NULL, created FLOAT NOT NULL, PRIMARY KEY (path));
CREATE INDEX ix_artifacts_fingerprint ON artifacts (fingerprint);
CREATE INDEX ix_artifacts_name ON artifacts (name);
CREATE TABLE migrations (number INTEGER NOT NULL, applied FLOAT NOT NULL, PRIMARY KEY (number));
CREATE TABLE ratings (request_id VARCHAR NOT NULL, created FLOAT NOT NULL, rating INTEGER,
    correction TEXT, comment TEXT, PRIMARY KEY (request_id));
CREATE TABLE requests (id VARCHAR NOT NULL, created FLOAT NOT NULL, endpoint VARCHAR NOT NULL,
    model VARCHAR NOT NULL, weights VARCHAR NOT NULL, stream BOOLEAN NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    finish_reason VARCHAR NOT NULL, first_token_seconds FLOAT, total_seconds FLOAT NOT NULL,
    consent BOOLEAN NOT NULL, prompt TEXT, answer TEXT, PRIMARY KEY (id));
CREATE INDEX ix_requests_created ON requests (created);
INSERT INTO migrations VALUES (1, 100.5);
INSERT INTO aliases VALUES ('chat', 'live', 'aaaa', '/a', 3, 1795332056.25);
INSERT INTO aliases VALUES ('chat', 'previous', 'bbbb', '/b', 2, 1795332000.0);
INSERT INTO aliases VALUES ('other', 'live', 'cccc', '/c', 1, 1795331000.125);
INSERT INTO ratings VALUES ('r1', 2.0, -1, 'better', NULL);
INSERT INTO requests VALUES ('r1', 1.0, '/v1/completions', 'chat', 'aaaa', true, 5, 7, 'stop', 0.1,
    0.5, true, '["hello"]', 'hi');
INSERT INTO requests VALUES ('r2', 2.0, '/v1/completions', 'chat', 'aaaa', false, 5, 7, 'length',
    NULL, 0.5, false, NULL, NULL)
"""
"""What lmloop 0.1.0 left, literally."""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    made = open_database(database_url(tmp_path))
    yield made
    made.dispose()


def numbers(engine: sa.Engine) -> list[int]:
    with engine.connect() as connection:
        return sorted(connection.scalars(sa.select(database.migrations_table.c.number)))


def columns(engine: sa.Engine, table: str) -> dict[str, str]:
    """Columns of a table with their types."""
    return {each["name"]: str(each["type"]) for each in sa.inspect(engine).get_columns(table)}


def indexes(engine: sa.Engine) -> set[tuple[str, ...]]:
    look = sa.inspect(engine)
    return {
        (table, *each["column_names"])
        for table in look.get_table_names()
        for each in look.get_indexes(table)
    }


def make_old(url: str) -> None:
    """A database as migration 1 left it."""
    old = sa.create_engine(sa.make_url(url).set(drivername=driver(url)))
    with old.begin() as connection:
        for statement in AT_MIGRATION_1.split(";"):
            connection.exec_driver_sql(statement)
    old.dispose()


def driver(url: str) -> str:
    return "postgresql+psycopg" if url.startswith("postgresql") else "sqlite"


def test_a_new_home_gets_a_database_with_every_table_in_wal_mode(
    tmp_path: Path, engine: sa.Engine
) -> None:
    assert set(sa.inspect(engine).get_table_names()) == set(database.metadata.tables)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    assert (tmp_path / "lmloop.db").is_file()


def test_every_table_is_there_whichever_database_it_is(any_engine: sa.Engine) -> None:
    assert set(sa.inspect(any_engine).get_table_names()) == set(database.metadata.tables)


def test_opening_again_applies_nothing_twice(any_url: str, any_engine: sa.Engine) -> None:
    write_events(any_engine, [(requests_table, request_row("a"))])
    again = open_database(any_url)
    assert numbers(again) == NUMBERS
    assert count(again, requests_table) == 1
    again.dispose()


def test_a_database_of_migration_1_becomes_what_a_new_one_is(
    any_url: str, engine: sa.Engine
) -> None:
    if any_url.startswith("sqlite"):
        any_url += ".old"
    make_old(any_url)
    migrated = open_database(any_url)
    assert numbers(migrated) == NUMBERS
    for table in database.metadata.tables:
        told, expected = columns(migrated, table), columns(engine, table)
        assert told.keys() == expected.keys()
        if migrated.dialect.name == engine.dialect.name:
            assert told == expected
    assert indexes(migrated) == indexes(engine)
    with migrated.connect() as connection:
        rows = connection.execute(sa.select(requests_table).order_by("id")).mappings().all()
        rated = connection.execute(sa.select(ratings_table)).one()
    assert [(row["prompt"], row["arm"], row["signals"]) for row in rows] == [
        ('["hello"]', "live", None),
        (None, "live", None),
    ]
    assert [row["content"] for row in rows] == ["full", "off"]
    assert tuple(rated) == ("r1", 2.0, -1, "better", None)
    migrated.dispose()


def test_rows_of_the_registry_stay_valid_through_the_migration(any_url: str) -> None:
    make_old(any_url)
    migrated = open_database(any_url)
    rows = Registry(migrated, "chat").read()
    assert {alias: (row.fingerprint, row.path) for alias, row in rows.items()} == {
        "live": ("aaaa", "/a"),
        "previous": ("bbbb", "/b"),
    }
    assert rows["live"].changed == 1795332056.25
    assert {row.generation for row in rows.values()} == {3}
    assert Registry(migrated, "chat").roll_back() == 4
    assert Registry(migrated, "other").read()["live"].generation == 1
    migrated.dispose()


def test_a_migration_that_was_broken_off_is_done_again(
    any_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_at_its_end(connection: sa.Connection) -> None:
        MIGRATIONS[1](connection)
        raise sa.exc.OperationalError("", {}, OSError("no space left"))

    make_old(any_url)
    monkeypatch.setattr(database, "MIGRATIONS", (MIGRATIONS[0], fail_at_its_end))
    with pytest.raises(DatabaseError, match="no space left"):
        open_database(any_url)
    monkeypatch.undo()
    migrated = open_database(any_url)
    assert numbers(migrated) == NUMBERS
    assert Registry(migrated, "chat").read()["live"].fingerprint == "aaaa"
    migrated.dispose()


def add_note(connection: sa.Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE requests ADD COLUMN note TEXT")


def test_an_old_database_gets_what_is_new_exactly_once(
    any_url: str, any_engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_events(any_engine, [(requests_table, request_row("a"))])
    monkeypatch.setattr(database, "MIGRATIONS", (*MIGRATIONS, add_note))
    for _ in range(2):
        newer = open_database(any_url)
        assert numbers(newer) == [*NUMBERS, len(NUMBERS) + 1]
        assert "note" in columns(newer, "requests")
        assert count(newer, requests_table) == 1
        newer.dispose()


def test_a_new_database_is_made_in_the_newest_shape_at_once(
    any_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(connection: sa.Connection) -> None:
        raise AssertionError("the tables are already as this step would make them")

    monkeypatch.setattr(database, "MIGRATIONS", (MIGRATIONS[0], refuse, refuse))
    made = open_database(any_url)
    assert numbers(made) == [1, 2, 3]
    made.dispose()


def test_a_migration_that_fails_leaves_the_database_as_it_was(
    any_url: str, any_engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_halfway(connection: sa.Connection) -> None:
        add_note(connection)
        connection.exec_driver_sql("ALTER TABLE no_such_table ADD COLUMN note TEXT")

    before = columns(any_engine, "requests")
    monkeypatch.setattr(database, "MIGRATIONS", (*MIGRATIONS, fail_halfway))
    with pytest.raises(DatabaseError, match="no_such_table") as caught:
        open_database(any_url)
    assert "\n" not in str(caught.value)
    assert numbers(any_engine) == NUMBERS
    assert columns(any_engine, "requests") == before


def test_a_database_of_a_newer_lmloop_is_refused(any_url: str, any_engine: sa.Engine) -> None:
    with transaction(any_engine) as connection:
        connection.execute(database.migrations_table.insert().values(number=99, applied=1.0))
    known = len(MIGRATIONS)
    with pytest.raises(DatabaseError, match=f"is at migration 99 and this lmloop knows {known}"):
        open_database(any_url)


def test_a_file_that_is_no_database_is_refused_and_named(tmp_path: Path) -> None:
    (tmp_path / "lmloop.db").write_text("no database " * 100)
    with pytest.raises(DatabaseError, match=r"lmloop\.db cannot be used: file is not a database"):
        open_database(database_url(tmp_path))


@pytest.mark.parametrize(
    "url",
    [
        *("", "lmloop.db", "nosuch://host/name", "postgresql+nosuch://a/b", "mysql://a/b"),
        *("postgresql://host:port/name", "postgresql+asyncpg://a/b", "://", "sqlite+nosuch:///a"),
    ],
)
def test_a_url_that_means_nothing_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(DatabaseError, match="write sqlite:///PATH") as caught:
        open_database(url)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+nosuch://me:secret@host/name",
        "postgresql:/me:secret@host/name",
        "postgresql://me:secret@host:port/name",
        "postgresql://me:secret@/name?host=/nowhere",
        "postgresql://me@/name?host=/nowhere&password=secret",
    ],
)
def test_a_password_in_a_url_is_never_told(url: str) -> None:
    with pytest.raises(DatabaseError) as caught:
        open_database(url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_database_that_is_not_there_is_told_in_one_line() -> None:
    with pytest.raises(
        DatabaseError, match=r"database postgresql:///name cannot be used: "
    ) as told:
        open_database("postgresql:///name?host=/nowhere")
    assert "\n" not in str(told.value)


def test_a_missing_driver_is_told_with_the_extra_that_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match=r"psycopg is not installed.*'lmloop\[postgres\]'"):
        open_database("postgresql://host/name")


@pytest.mark.parametrize("name", ["a b#c%20é", "a?b=c", "a@b:c"])
def test_a_home_whose_name_a_url_would_read_otherwise_works(tmp_path: Path, name: str) -> None:
    open_database(database_url(tmp_path / name)).dispose()
    assert (tmp_path / name / "lmloop.db").is_file()
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_a_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be made"):
        open_database(database_url(tmp_path / "file"))


def test_what_is_deleted_is_not_to_be_found_in_the_file(tmp_path: Path, engine: sa.Engine) -> None:
    words = "my telephone number is nobody's business"
    write_events(engine, [(requests_table, request_row("a", prompt=words * 500))])
    with transaction(engine) as connection:
        connection.execute(requests_table.delete())
    engine.dispose()  # the last connection brings the log into the file
    assert words.encode() not in (tmp_path / "lmloop.db").read_bytes()


def test_a_reader_does_not_wait_for_a_writer_and_sees_no_half_transaction(
    any_engine: sa.Engine,
) -> None:
    with transaction(any_engine) as writer:
        writer.execute(requests_table.insert().values(request_row("a")))
        assert count(any_engine, requests_table) == 0
    assert count(any_engine, requests_table) == 1


def test_a_database_is_opened_while_somebody_writes(any_url: str, any_engine: sa.Engine) -> None:
    with transaction(any_engine) as writer:
        writer.execute(requests_table.insert().values(request_row("a")))
        open_database(any_url).dispose()


def test_what_a_writer_has_read_stays_true_until_it_has_written(any_engine: sa.Engine) -> None:
    how_many = sa.select(sa.func.count()).select_from(ratings_table)
    began, done = threading.Event(), threading.Event()

    def write_too() -> None:
        began.set()
        with transaction(any_engine) as other:
            seen.append(other.scalar(how_many))
            other.execute(ratings_table.insert().values(rating_row("a")))
        done.set()

    seen: list[int | None] = []
    thread = threading.Thread(target=write_too)
    with transaction(any_engine) as writer:
        seen.append(writer.scalar(how_many))
        thread.start()
        assert began.wait(10)
        # Nothing that is certain to have happened says that it waits: that nothing came of it does.
        assert not done.wait(0.2)
        assert writer.scalar(how_many) == 0
        writer.execute(ratings_table.insert().values(rating_row("b")))
    thread.join(10)
    assert seen == [0, 1]
    assert count(any_engine, ratings_table) == 2


def test_a_writer_does_not_wait_for_ever(
    any_engine: sa.Engine, any_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "WAIT_SECONDS", 1)
    impatient = open_database(any_url)
    with transaction(any_engine), pytest.raises(sa.exc.OperationalError):
        transaction(impatient).__enter__()
    with transaction(impatient) as connection:
        connection.execute(ratings_table.insert().values(rating_row("a")))
    impatient.dispose()


OPEN_AND_WRITE = """
import json, sys
from lmloop.store.database import open_database, requests_table
from lmloop.store.events import write_events
sys.stdout.write("ready\\n")
sys.stdout.flush()
sys.stdin.readline()
engine = open_database(sys.argv[1])
for number in range(10):
    row = {**json.loads(sys.argv[3]), "id": f"{sys.argv[2]}-{number}"}
    write_events(engine, [(requests_table, row)])
engine.dispose()
"""


def start_together(commands: list[list[str]]) -> list[str]:
    """What processes wrote that were all let go at once; none of them may complain."""
    processes = [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ended = [process.communicate(timeout=120) for process in processes]
    assert [errors for _, errors in ended] == [""] * len(commands)
    return [output for output, _ in ended]


@pytest.mark.parametrize("make", [None, make_old], ids=["new", "old"])
def test_processes_that_open_a_database_at_once_all_write_to_it(
    any_url: str, make: Callable[[str], None] | None
) -> None:
    if make is not None:
        make(any_url)
    code = [sys.executable, "-c", OPEN_AND_WRITE, any_url]
    start_together([[*code, str(number), json.dumps(request_row("x"))] for number in range(3)])
    engine = open_database(any_url)
    assert count(engine, requests_table) == (30 if make is None else 32)
    assert numbers(engine) == NUMBERS
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


def test_a_killed_writer_leaves_what_it_committed_and_no_more(any_url: str) -> None:
    code = (
        "import json, os, signal, sys\n"
        "from lmloop.store.database import open_database, requests_table, transaction\n"
        "from lmloop.store.events import write_events\n"
        "engine = open_database(sys.argv[1])\n"
        "row = json.loads(sys.argv[2])\n"
        "write_events(engine, [(requests_table, row)])\n"
        "with transaction(engine) as connection:\n"
        "    connection.execute(requests_table.insert().values({**row, 'id': 'b'}))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", code, any_url, json.dumps(request_row("a"))]
    assert subprocess.run(command, timeout=60).returncode == -signal.SIGKILL
    engine = open_database(any_url)
    with engine.connect() as connection:
        assert connection.scalars(sa.select(requests_table.c.id)).all() == ["a"]
    # Its turn among the writers went with it.
    with transaction(engine) as connection:
        connection.execute(aliases_table.delete())
    engine.dispose()


def plan_of(engine: sa.Engine, query: sa.Select[Any]) -> str:
    """How SQLite means to answer a query."""
    text = query.compile(engine, compile_kwargs={"literal_binds": True})
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}").all()
    return "; ".join(str(row[-1]) for row in rows)


ID, CREATED = requests_table.c.id, requests_table.c.created
BEHIND = sa.tuple_(CREATED, ID) > sa.tuple_(5.0, "a")
OF_CHAT = requests_table.c.model == "chat"


@pytest.mark.parametrize(
    "query",
    [
        sa.select(ID).where(CREATED < 5.0).order_by(CREATED).limit(1000),
        sa.select(ID).where(requests_table.c.user_hash == "a"),
        sa.select(requests_table).where(OF_CHAT).order_by(CREATED.desc()).limit(10),
        sa.select(requests_table).where(OF_CHAT, BEHIND).order_by(CREATED, ID),
        sa.select(sa.func.count()).where(OF_CHAT, CREATED > 5.0, requests_table.c.arm == "canary"),
        sa.select(sa.func.max(CREATED)).where(OF_CHAT),
        sa.select(ratings_table).where(ratings_table.c.created > 5.0),
        sa.select(sa.func.max(aliases_table.c.generation)).where(aliases_table.c.name == "chat"),
        sa.select(database.events_table).where(database.events_table.c.kind == "alarm"),
    ],
)
def test_no_query_of_every_day_reads_a_whole_table(
    engine: sa.Engine, query: sa.Select[Any]
) -> None:
    plan = plan_of(engine, query)
    assert "SEARCH" in plan and "INDEX" in plan and "SCAN" not in plan
    assert "TEMP B-TREE" not in plan


def test_sqlite_is_the_only_database_that_needs_a_file(
    any_url: str, any_engine: sa.Engine, tmp_path: Path
) -> None:
    files = {path.name for path in tmp_path.iterdir()}
    expected = {"lmloop.db", "lmloop.db.lock"} if any_url.startswith("sqlite") else set()
    assert files - {"lmloop.db-wal", "lmloop.db-shm"} == expected
