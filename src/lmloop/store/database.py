"""The one database of a home: which artifacts there are, which model is live, what was served.

Takes: a URL (SQLite in WAL mode by default, PostgreSQL by URL). Gives: an engine whose schema is at
the newest migration. Manifests are the truth for artifacts; events live here alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from lmloop.errors import DatabaseError
from lmloop.store.artifact import make_folder

metadata = sa.MetaData()

migrations_table = sa.Table(
    "migrations",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("applied", sa.Float, nullable=False),
)

artifacts_table = sa.Table(
    "artifacts",
    metadata,
    sa.Column("path", sa.String, primary_key=True),
    sa.Column("fingerprint", sa.String, nullable=False, index=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("stage", sa.String, nullable=False),
    sa.Column("name", sa.String, nullable=False, index=True),
    sa.Column("created", sa.Float, nullable=False),
)

aliases_table = sa.Table(
    "aliases",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("alias", sa.String, primary_key=True),
    sa.Column("fingerprint", sa.String, nullable=False),
    sa.Column("path", sa.String, nullable=False),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("changed", sa.Float, nullable=False),
)

requests_table = sa.Table(
    "requests",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("created", sa.Float, nullable=False, index=True),
    sa.Column("endpoint", sa.String, nullable=False),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("weights", sa.String, nullable=False),
    sa.Column("stream", sa.Boolean, nullable=False),
    sa.Column("prompt_tokens", sa.Integer, nullable=False),
    sa.Column("completion_tokens", sa.Integer, nullable=False),
    sa.Column("finish_reason", sa.String, nullable=False),
    sa.Column("first_token_seconds", sa.Float),
    sa.Column("total_seconds", sa.Float, nullable=False),
    sa.Column("consent", sa.Boolean, nullable=False),
    sa.Column("prompt", sa.Text),
    sa.Column("answer", sa.Text),
)

ratings_table = sa.Table(
    "ratings",
    metadata,
    sa.Column("request_id", sa.String, primary_key=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("rating", sa.Integer),
    sa.Column("correction", sa.Text),
    sa.Column("comment", sa.Text),
)


def _create_all(connection: sa.Connection) -> None:
    metadata.create_all(connection)


MIGRATIONS: tuple[Callable[[sa.Connection], None], ...] = (_create_all,)
"""Applied once each, in order; a new one is appended and never changed afterwards."""


def database_url(home: Path) -> str:
    """The default database of a home."""
    return sa.URL.create("sqlite", database=str(home / "lmloop.db")).render_as_string()


def open_database(url: str) -> sa.Engine:
    """Connect and bring the schema to the newest migration; safe in several processes at once.

    Raises `DatabaseError` where the URL, its driver or the file cannot be used, or where a newer
    lmloop has been at it.
    """
    try:
        parsed = sa.make_url(url)
        engine = sa.create_engine(parsed)
    except (sa.exc.ArgumentError, ImportError) as error:
        raise DatabaseError(
            f"the database URL cannot be used ({error}): "
            "write sqlite:///PATH, or postgresql://… with its driver installed"
        ) from error
    file = parsed.database if engine.dialect.name == "sqlite" else None
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    try:
        with _alone(file), transaction(engine) as connection:
            _migrate(connection)
    except sa.exc.DBAPIError as error:
        engine.dispose()
        raise DatabaseError(f"database {parsed} cannot be used: {error.orig}") from error
    except DatabaseError:
        engine.dispose()
        raise
    return engine


@contextlib.contextmanager
def transaction(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that writes: what it reads stays true until it is over.

    SQLite takes its one write lock at the start; a reader that only later wants to write would be
    refused, or would write over what another process wrote in between.
    """
    with engine.connect().execution_options(lmloop_writes=True) as connection, connection.begin():
        yield connection


@contextlib.contextmanager
def _alone(file: str | None) -> Iterator[None]:
    # SQLite does not wait for its turn when two processes switch a new file to WAL at once.
    if file is None or file == ":memory:":
        yield
        return
    make_folder(Path(file).parent)
    with Path(f"{file}.lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _migrate(connection: sa.Connection) -> None:
    migrations_table.create(connection, checkfirst=True)
    done = set(connection.scalars(sa.select(migrations_table.c.number)))
    if max(done, default=0) > len(MIGRATIONS):
        raise DatabaseError(
            f"the database is at migration {max(done)} and this lmloop knows {len(MIGRATIONS)}: "
            "install the newer lmloop that made it, or choose another --home"
        )
    for number, migrate in enumerate(MIGRATIONS, start=1):
        if number in done:
            continue
        # A new database is made in the newest shape at once; only an old one needs the later steps.
        if done or number == 1:
            migrate(connection)
        connection.execute(migrations_table.insert().values(number=number, applied=time.time()))


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # Python's own handling opens transactions late and not for reads; `_begin_sqlite` does it.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout=5000")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("lmloop_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def write_events(engine: sa.Engine, events: list[tuple[sa.Table, Mapping[str, Any]]]) -> None:
    """Write requests and ratings in one transaction; a second rating replaces the first."""
    with transaction(engine) as connection:
        for table, row in events:
            key = next(iter(table.primary_key.columns))
            connection.execute(table.delete().where(key == row[key.name]))
            connection.execute(table.insert().values(dict(row)))


def request_exists(engine: sa.Engine, request_id: str) -> bool:
    """Whether a request with this id was served and recorded."""
    query = sa.select(requests_table.c.id).where(requests_table.c.id == request_id)
    with engine.connect() as connection:
        return connection.execute(query).first() is not None


def encode_messages(messages: object) -> str:
    """Messages as the JSON text that an event stores."""
    return json.dumps(messages, ensure_ascii=False)
