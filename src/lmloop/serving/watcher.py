"""Follows the registry: what its rows say is what this server aims at, once it has been checked.

Takes: a registry that is polled, and a router. Gives: aims to the router, and this server's row in
the table `servers`: what it serves, and why it does not serve what it should. A row or a folder
that cannot be trusted changes nothing here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from lmloop.errors import ArtifactError, LmloopError, RegistryError
from lmloop.serving.fleet import Aim
from lmloop.serving.process import EngineSpec
from lmloop.serving.router import Router
from lmloop.store.artifact import open_artifact
from lmloop.store.database import servers_table, transaction
from lmloop.store.events import record_event
from lmloop.store.registry import Entry, Registry
from lmloop.store.servers import STALE_SECONDS

POLL_SECONDS = 0.25
"""Time between two looks at the registry's generation."""
HEARTBEAT_SECONDS = 5.0
"""Longest time between two writes of this server's row."""

MakeSpec = Callable[[Entry], EngineSpec]
logger = logging.getLogger(__name__)


def read_aim(registry: Registry, make_spec: MakeSpec, *, running: Collection[str] = ()) -> Aim:
    """What the registry's rows ask of a server; reads the database and hashes weights.

    Weights whose fingerprint is in `running` are in memory already and are not read again. Raises
    `RegistryError` where a row is missing or was changed by other hands, `ArtifactError` where the
    live weights are not what the row says; a candidate that is not makes a refusal in the aim.
    """
    entries = registry.read()
    live, candidate = entries.get("live"), entries.get("candidate")
    if live is None:
        raise RegistryError(f"{registry.name} has no live model: run a recipe first")
    if live.fingerprint not in running:
        _verify(live)
    refusal = None
    if candidate is not None and candidate.fingerprint not in running:
        try:
            _verify(candidate)
        except (ArtifactError, OSError) as error:
            refusal = str(error)
    return Aim(
        live=make_spec(live),
        candidate=None if candidate is None else make_spec(candidate),
        phase=None if candidate is None else candidate.phase,
        share=0 if candidate is None else candidate.share or 0,
        refusal=refusal,
        previous=entries["previous"].fingerprint if "previous" in entries else None,
        generation=max(entry.generation for entry in entries.values()),
    )


def _verify(entry: Entry) -> None:
    artifact = open_artifact(Path(entry.path))
    if artifact.fingerprint != entry.fingerprint:
        raise ArtifactError(
            f"{entry.path} holds {artifact.fingerprint[:12]} and the registry's row "
            f"{entry.name}/{entry.alias} says {entry.fingerprint[:12]}: make it live again"
        )
    artifact.verify()


class Pulse:
    """Tells next to nothing, at next to no cost: that a database may have changed.

    Of SQLite it asks `PRAGMA data_version`, which changes when another connection has committed, on
    a connection that it keeps; any other database may always have changed.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._is_sqlite = engine.dialect.name == "sqlite"
        self._connection: sa.PoolProxiedConnection | None = None
        self._version: int | None = None

    def has_changed(self) -> bool:
        """Whether something may have been written since the last call."""
        if not self._is_sqlite:
            return True
        try:
            version = self._read()
        except (sqlite3.Error, sa.exc.SQLAlchemyError):
            # Whoever looks next meets the same trouble and can say what it is.
            self.close()
            return True
        changed, self._version = version != self._version, version
        return changed

    def close(self) -> None:
        """Give the connection back."""
        if self._connection is not None:
            self._connection.invalidate()
        self._connection = self._version = None

    def _read(self) -> int:
        if self._connection is None:
            self._connection = self._engine.raw_connection()
            self._connection.cursor().execute("PRAGMA busy_timeout=0").close()
        cursor = self._connection.cursor()
        (version,) = cursor.execute("PRAGMA data_version").fetchone()
        cursor.close()
        return int(version)


class Watcher:
    """Keeps one router at what one name of the registry says."""

    def __init__(
        self,
        registry: Registry,
        router: Router,
        *,
        make_spec: MakeSpec,
        address: str,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`address` is what the server's row calls it by."""
        self.id = uuid.uuid4().hex
        self._registry = registry
        self._router = router
        self._make_spec = make_spec
        self._clock = wall_clock
        self._address = address
        self._started = wall_clock()
        self._pulse = Pulse(registry.engine)
        self._seen = 0
        self._refusal: str | None = None
        self._announced: tuple[int, str] | None = None
        self._told: Mapping[str, Any] = {}
        self._heard = 0.0
        self._is_away = False

    async def run(self) -> None:
        """Follow and acknowledge until cancelled; a database that is away is waited for."""
        while True:
            try:
                if self._is_away or self._pulse.has_changed():
                    await self._follow()
                await self._tell()
                self._is_away = False
            except sa.exc.SQLAlchemyError as error:
                if not self._is_away:
                    logger.warning("the registry cannot be read: %s", type(error).__name__)
                self._is_away = True
            await asyncio.sleep(POLL_SECONDS)

    async def close(self) -> None:
        """Take this server's row away."""
        self._pulse.close()
        with contextlib.suppress(sa.exc.SQLAlchemyError):
            await asyncio.to_thread(self._remove)

    async def _follow(self) -> None:
        """Take over what is new in the registry, or note why it cannot be."""
        running = {lane.fingerprint for lane in self._router.fleet.roles.values()}
        try:
            found = await asyncio.to_thread(self._look, running)
        except (LmloopError, OSError) as error:
            self._refusal = str(error)
            return
        if found is not None:
            self._refusal = None
            await self._router.apply(found)

    def _look(self, running: Collection[str]) -> Aim | None:
        """The aim of a generation that was not seen yet; on a thread."""
        # Until it has been read it was not seen: a database that is away is asked again.
        seen, self._seen = self._seen, 0
        generation = self._registry.generation()
        try:
            new = generation != seen
            aim = read_aim(self._registry, self._make_spec, running=running) if new else None
        except (LmloopError, OSError):
            self._seen = generation
            raise
        self._seen = generation
        return aim

    async def _tell(self) -> None:
        """Write this server's row where it says something new or is about to look old."""
        row = self._describe()
        now = self._clock()
        if row != self._told or not 0 <= now - self._heard < HEARTBEAT_SECONDS:
            await asyncio.to_thread(self._write, {**row, "heard": now})
            self._told, self._heard = row, now
        news = (self._seen, row["note"])
        if row["note"] is not None and news != self._announced:
            await asyncio.to_thread(self._announce, row["note"])
            self._announced = news

    def _announce(self, reason: str) -> None:
        data = {"generation": self._seen, "reason": reason, "server": self._address}
        registry = self._registry
        record_event(registry.engine, "registry.refused", name=registry.name, data=data)
        logger.warning("generation %d of the registry is not followed: %s", self._seen, reason)

    def _describe(self) -> dict[str, Any]:
        found = self._router.describe()
        candidate = found["candidate"]
        return {
            "id": self.id,
            "name": self._registry.name,
            "address": self._address,
            "started": self._started,
            "generation": found["generation"],
            "live": found["live"]["weights"],
            "candidate": None if candidate is None else candidate["weights"],
            "candidate_state": "absent" if candidate is None else candidate["state"],
            "note": self._refusal or found["note"],
        }

    def _write(self, row: Mapping[str, Any]) -> None:
        """Replace this server's row, and sweep those of servers that were killed."""
        table = servers_table
        is_stale = sa.and_(
            table.c.name == row["name"], table.c.heard < row["heard"] - STALE_SECONDS
        )
        with transaction(self._registry.engine) as connection:
            connection.execute(table.delete().where(sa.or_(table.c.id == self.id, is_stale)))
            connection.execute(table.insert().values(dict(row)))

    def _remove(self) -> None:
        table = servers_table
        with transaction(self._registry.engine) as connection:
            connection.execute(table.delete().where(table.c.id == self.id))
