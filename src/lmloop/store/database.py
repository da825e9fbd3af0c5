"""The one database of a home: which artifacts there are, which model is live, what was served.

Takes: a URL (SQLite in WAL mode by default, PostgreSQL by URL). Gives: an engine whose schema is at
the newest migration. Manifests are the truth for artifacts; events live here alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from lmloop.errors import DatabaseError, MissingExtraError
from lmloop.store.artifact import make_folder
from lmloop.store.seal import seal

WAIT_SECONDS = 5
"""How long a writer waits for its turn, and everybody for a connection."""
WRITE_LOCK = 0x6C6D6C6F6F70
"""PostgreSQL's number of the one write lock ("lmloop" as bytes)."""
URL_FORMS = "write sqlite:///PATH or postgresql://USER@HOST/NAME"
REGISTRY_SECRET = "registry"
"""Name of the secret that seals the registry's rows."""

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
    sa.Column("phase", sa.String),
    sa.Column("share", sa.Integer),
    sa.Column("seal", sa.String),
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
    sa.Column("arm", sa.String, nullable=False, server_default="live"),
    sa.Column("shadow_of", sa.String),
    sa.Column("user_hash", sa.String, index=True),
    sa.Column("session_hash", sa.String),
    sa.Column("content", sa.String, nullable=False, server_default="off"),
    sa.Column("signals", sa.Text),
    sa.Column("embedding", sa.LargeBinary),
    # Whoever watches a model reads its requests in their order, from a moment on or the newest.
    sa.Index("ix_requests_place", "model", "created", "id"),
)

ratings_table = sa.Table(
    "ratings",
    metadata,
    sa.Column("request_id", sa.String, primary_key=True),
    sa.Column("created", sa.Float, nullable=False, index=True),
    sa.Column("rating", sa.Integer),
    sa.Column("correction", sa.Text),
    sa.Column("comment", sa.Text),
)

reviews_table = sa.Table(
    "reviews",
    metadata,
    sa.Column("request_id", sa.String, primary_key=True),
    sa.Column("content_sha", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("decided", sa.Float, nullable=False),
)

events_table = sa.Table(
    "events",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("created", sa.Float, nullable=False, index=True),
    sa.Column("kind", sa.String, nullable=False, index=True),
    sa.Column("name", sa.String, nullable=False, index=True),
    sa.Column("data", sa.Text, nullable=False),
)

servers_table = sa.Table(
    "servers",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("name", sa.String, nullable=False, index=True),
    sa.Column("address", sa.String, nullable=False),
    sa.Column("started", sa.Float, nullable=False),
    sa.Column("heard", sa.Float, nullable=False),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("live", sa.String),
    sa.Column("candidate", sa.String),
    sa.Column("candidate_state", sa.String, nullable=False),
    sa.Column("note", sa.Text),
)

runs_table = sa.Table(
    "runs",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("name", sa.String, nullable=False, index=True),
    sa.Column("stage", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("note", sa.Text),
    sa.Column("started", sa.Float, nullable=False, index=True),
    sa.Column("heard", sa.Float, nullable=False),
)

run_steps_table = sa.Table(
    "run_steps",
    metadata,
    sa.Column("run", sa.String, primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("share", sa.Float, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("loss", sa.Float),
    sa.Column("norm", sa.Float),
    sa.Column("validation_bpb", sa.Float),
    sa.Column("validation_loss", sa.Float),
    sa.Column("bpb", sa.Float),
    sa.Column("tokens_per_second", sa.Float),
    sa.Column("peak_share", sa.Float),
    sa.Column("samples", sa.Text),
)

secrets_table = sa.Table(
    "secrets",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("value", sa.String, nullable=False),
)


def _create_all(connection: sa.Connection) -> None:
    metadata.create_all(connection)


def _close_the_circle(connection: sa.Connection) -> None:
    """Migration 2: reviews, events, servers and secrets; new columns of requests and aliases."""
    _complete(connection)
    # Words were kept in full where the request's header allowed it, and else not at all.
    kept = requests_table.update().where(requests_table.c.prompt.is_not(None))
    connection.execute(kept.values(content="full"))
    secret = secrets.token_hex(32)
    connection.execute(secrets_table.insert().values(name=REGISTRY_SECRET, value=secret))
    # Rows of one name carry one generation from now on: the newest, which servers have seen.
    table = aliases_table
    newest: dict[str, int] = {}
    rows = connection.execute(sa.select(table)).mappings().all()
    for row in rows:
        newest[row["name"]] = max(row["generation"], newest.get(row["name"], 0))
    for row in rows:
        fields = {name: value for name, value in row.items() if name != "seal"}
        fields["generation"] = newest[row["name"]]
        changes = {"generation": fields["generation"], "seal": seal(bytes.fromhex(secret), fields)}
        one = sa.and_(table.c.name == row["name"], table.c.alias == row["alias"])
        connection.execute(table.update().where(one).values(changes))


def _complete(connection: sa.Connection) -> None:
    """Make what is missing of the tables as they are described above: they only ever grow."""
    metadata.create_all(connection)
    for table in metadata.sorted_tables:
        there = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                text = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
                connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {text}")
        for index in table.indexes:
            index.create(connection, checkfirst=True)


MIGRATIONS: tuple[Callable[[sa.Connection], None], ...] = (
    _create_all,
    _close_the_circle,
    _complete,  # 3: runs and their steps
    _complete,  # 4: speed, share of the peak and samples of a step
)
"""Applied once each, in order; a new one is appended and never changed afterwards."""


def database_url(home: Path) -> str:
    """The default database of a home."""
    return sa.URL.create("sqlite", database=str(home / "lmloop.db")).render_as_string()


def open_database(url: str) -> sa.Engine:
    """Connect and bring the schema to the newest migration; safe in several processes at once.

    Raises `DatabaseError` where the URL or the database cannot be used, or where a newer lmloop has
    been at it; `MissingExtraError` where PostgreSQL's driver is not installed.
    """
    engine, file = _make_engine(url)
    try:
        with _alone(file):
            if not _is_newest(engine):
                with transaction(engine) as connection:
                    _migrate(connection)
    except sa.exc.DBAPIError as error:
        engine.dispose()
        reason = " ".join(str(error.orig).split())
        raise DatabaseError(f"database {_describe(engine.url)} cannot be used: {reason}") from error
    except DatabaseError:
        engine.dispose()
        raise
    return engine


def _make_engine(url: str) -> tuple[sa.Engine, str | None]:
    """An engine, not connected yet, and SQLite's file."""
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError) as error:
        # The URL itself may hold a password: it is not told.
        raise DatabaseError(f"the database URL cannot be read: {URL_FORMS}") from error
    if parsed.drivername not in ("sqlite", "postgresql", "postgresql+psycopg"):
        raise DatabaseError(f"the database URL begins with {parsed.drivername}: {URL_FORMS}")
    if parsed.drivername == "sqlite":
        engine = sa.create_engine(parsed)
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine, parsed.database
    try:
        engine = sa.create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            # Whoever was away for an hour finds out before the work, not in it.
            pool_pre_ping=True,
            connect_args={"connect_timeout": WAIT_SECONDS},
        )
    except ImportError as error:
        raise MissingExtraError(package="psycopg", extra="postgres") from error
    sa.event.listen(engine, "begin", _begin_postgresql)
    return engine, None


def _describe(url: sa.URL) -> str:
    """A URL without what nobody else should read."""
    return url.set(drivername=url.get_backend_name(), query={}).render_as_string()


@contextlib.contextmanager
def transaction(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that writes: what it reads stays true until it is over.

    Writers take turns: each takes the one write lock at its start, since one that only later wants
    to write would be refused, or would write over what another process wrote in between. It waits
    for its turn `WAIT_SECONDS`; readers never do.
    """
    with engine.connect().execution_options(lmloop_writes=True) as connection, connection.begin():
        yield connection


def scrub(engine: sa.Engine) -> None:
    """Bring SQLite's log into its file, so that the log has no more of what was deleted.

    Where readers are in the way it happens a little later, by itself. PostgreSQL has no such file.
    """
    if engine.dialect.name != "sqlite":
        return
    connection = engine.raw_connection()
    try:
        connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()


@contextlib.contextmanager
def _alone(file: str | None) -> Iterator[None]:
    # SQLite does not wait for its turn when two processes switch a new file to WAL at once.
    if not file or file == ":memory:":
        yield
        return
    make_folder(Path(file).parent)
    with Path(f"{file}.lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _is_newest(engine: sa.Engine) -> bool:
    """Whether every migration was applied; to find that out takes no turn among the writers."""
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table(migrations_table.name):
            return False
        done = set(connection.scalars(sa.select(migrations_table.c.number)))
    return done == set(range(1, len(MIGRATIONS) + 1))


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
    cursor.execute(f"PRAGMA busy_timeout={WAIT_SECONDS * 1000}")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    # What is deleted is overwritten: deleted words are nobody's to read.
    cursor.execute("PRAGMA secure_delete=ON")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if _writes(connection) else "BEGIN")


def _begin_postgresql(connection: sa.Connection) -> None:
    if _writes(connection):
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{WAIT_SECONDS}s'")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITE_LOCK})")


def _writes(connection: sa.Connection) -> bool:
    return bool(connection.get_execution_options().get("lmloop_writes", False))
