"""A PostgreSQL of one's own: in a temporary folder, on a UNIX socket only, gone with the tests."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

START_SECONDS = 60
STOP_SECONDS = 30
SETTINGS = {
    # Nobody needs these data after a power cut.
    **{name: "off" for name in ("fsync", "synchronous_commit", "full_page_writes", "autovacuum")},
    "listen_addresses": "",
    "max_connections": "60",
    "shared_buffers": "16MB",
    "log_min_messages": "fatal",
}


class Postgres:
    """A running server; every `database()` is a new, empty one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count(1)
        self._admin = sa.create_engine(self._url("postgres"), isolation_level="AUTOCOMMIT")

    def _url(self, name: str) -> sa.URL:
        return sa.URL.create(
            "postgresql+psycopg",
            username="postgres",
            database=name,
            query={"host": str(self._folder)},
        )

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """The URL of an empty database, which is dropped afterwards."""
        name = f"test_{next(self._numbers)}"
        self.run(f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY file_copy")
        url = self._url(name).set(drivername="postgresql")
        try:
            yield url.render_as_string(hide_password=False)
        finally:
            self.run(f"DROP DATABASE {name} WITH (FORCE)")

    def run(self, statement: str) -> None:
        """Run one statement as the server's administrator."""
        with self._admin.connect() as connection:
            connection.exec_driver_sql(statement)

    def close(self) -> None:
        """Close the administrator's connection."""
        self._admin.dispose()


def why_absent() -> str | None:
    """Why there is no PostgreSQL to test with; None where there is one."""
    if importlib.util.find_spec("psycopg") is None:
        return "psycopg is not installed: pip install 'lmloop[postgres]'"
    if _programs() is None:
        return "PostgreSQL is not installed: apt-get install postgresql"
    return None


@contextlib.contextmanager
def start_postgres() -> Iterator[Postgres]:
    """Make a cluster, start its server, and stop it whatever happens."""
    programs = _programs()
    assert programs is not None
    # The path of a UNIX socket is at most 107 bytes long: pytest's own folders are too deep.
    folder = Path(tempfile.mkdtemp(prefix="lmloop-postgres-", dir="/tmp"))
    try:
        # PostgreSQL refuses to run as root.
        user = "postgres" if os.geteuid() == 0 else None
        if user is not None:
            shutil.chown(folder, user, user)
        command = [programs / "initdb", "--pgdata", folder / "data", "--username", "postgres"]
        command += ["--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync"]
        subprocess.run(
            command,
            user=user,
            group=user,
            extra_groups=[] if user else None,
            cwd=folder,
            check=True,
            capture_output=True,
            timeout=START_SECONDS,
        )
        with _serve(programs / "postgres", folder, user) as server:
            yield server
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def _serve(program: Path, folder: Path, user: str | None) -> Iterator[Postgres]:
    options = [f"--{name}={value}" for name, value in SETTINGS.items()]
    options.append(f"--unix_socket_directories={folder}")
    log = folder / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [program, "-D", folder / "data", *options],
            user=user,
            group=user,
            extra_groups=[] if user else None,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            preexec_fn=_die_with_parent,
        )
    server = Postgres(folder)
    try:
        _wait_until_ready(server, process, log)
        yield server
    finally:
        server.close()
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGQUIT)
            process.wait(STOP_SECONDS)


def _die_with_parent() -> None:
    # Tests that are killed stop nothing: PR_SET_PDEATHSIG lets the kernel do it.
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT)


def _wait_until_ready(server: Postgres, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            server.run("SELECT 1")
            return
        except sa.exc.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"PostgreSQL did not start: {log.read_text()}") from None
            time.sleep(0.05)


def _programs() -> Path | None:
    """The folder of the newest `initdb` and `postgres`."""
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(versions, key=lambda path: float(path.parts[-3]), default=None)
    found = newest or shutil.which("initdb")
    return None if found is None else Path(found).resolve().parent
