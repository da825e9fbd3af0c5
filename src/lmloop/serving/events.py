"""Every request and rating becomes a row in the database, and no request ever waits for it.

Takes: functions that make rows. Gives: their rows to one thread that makes and writes them in
batches. A full queue, a full disk or a broken database loses events, counted, and nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from lmloop.serving.retention import Retention
from lmloop.store.events import write_events

MAX_WAITING = 10_000
"""Events that may wait for the writer."""
MAX_WAITING_CHARACTERS = 64 * 1024 * 1024
"""Size of their texts together."""
MAX_BATCH = 500
"""Events of one transaction."""
GATHER_SECONDS = 0.5
"""How long the first event of a batch waits for others: a transaction costs more than ten rows."""
RETRY_SECONDS = 0.2
"""Pause before the one retry of a batch that the database refused."""

Row = Mapping[str, Any]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """An event on its way to the writer's thread, where its row is made."""

    table: sa.Table
    build: Callable[[], Row]
    characters: int


class EventWriter:
    """The thread between serving and the database."""

    def __init__(
        self,
        database: sa.Engine,
        *,
        on_dropped: Callable[[int], None],
        retention: Retention | None = None,
        warm_up: Callable[[], object] | None = None,
        max_waiting: int = MAX_WAITING,
        max_waiting_characters: int = MAX_WAITING_CHARACTERS,
    ) -> None:
        """`warm_up` is called first on the thread, so that no request's row waits for it."""
        self._database = database
        self._on_dropped = on_dropped
        self._retention = retention
        self._warm_up = warm_up
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(max_waiting)
        self._max_waiting_characters = max_waiting_characters
        self._waiting_characters = 0
        self._counting = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._thread.start()

    def record(self, table: sa.Table, build: Callable[[], Row], *, characters: int = 0) -> None:
        """Queue an event whose row `build` makes; a later row of the same key replaces it.

        `characters` is about the size of the texts that wait with it.
        """
        if not self._has_room(characters):
            self._on_dropped(1)
            return
        try:
            self._queue.put_nowait(_Waiting(table, build, characters))
        except queue.Full:
            self._give_room(characters)
            self._on_dropped(1)

    def close(self, *, seconds: float = 5.0) -> None:
        """Write what waits, for at most so long."""
        self._closing.set()
        try:
            self._queue.put(None, timeout=seconds)
        except queue.Full:
            self._on_dropped(self._queue.qsize())
            return
        self._thread.join(seconds)

    def _has_room(self, characters: int) -> bool:
        with self._counting:
            if self._waiting_characters + characters > self._max_waiting_characters:
                return False
            self._waiting_characters += characters
            return True

    def _give_room(self, characters: int) -> None:
        with self._counting:
            self._waiting_characters -= characters

    def _run(self) -> None:
        self._prepare()
        while True:
            if self._retention is not None and self._retention.seconds_left() <= 0:
                self._retention.enforce()
            batch = self._take()
            events = [event for event in batch if event is not None]
            rows = [row for row in map(self._build, events) if row is not None]
            if rows:
                self._write(rows)
            self._give_room(sum(event.characters for event in events))
            if len(events) < len(batch):
                return

    def _prepare(self) -> None:
        if self._warm_up is None:
            return
        try:
            self._warm_up()
        except Exception:
            logger.exception("what events need cannot be opened")

    def _take(self) -> list[_Waiting | None]:
        """What waits, or nothing where it is time to look at the retention; None marks the end."""
        seconds = None if self._retention is None else max(0.0, self._retention.seconds_left())
        batch: list[_Waiting | None] = []
        with contextlib.suppress(queue.Empty):
            batch.append(self._queue.get(timeout=seconds))
            self._closing.wait(GATHER_SECONDS)
            while len(batch) < MAX_BATCH and batch[-1] is not None:
                batch.append(self._queue.get_nowait())
        return batch

    def _build(self, event: _Waiting) -> tuple[sa.Table, Row] | None:
        try:
            row = event.build()
        except Exception as error:
            self._drop(1, error)
            return None
        # PostgreSQL has no NUL in text.
        return event.table, {
            name: value.replace("\0", "\ufffd") if isinstance(value, str) else value
            for name, value in row.items()
        }

    def _write(self, rows: list[tuple[sa.Table, Row]]) -> None:
        try:
            self._try_twice(rows)
        except sa.exc.OperationalError as error:
            # The database as a whole is away, locked or full: single rows would fare no better.
            self._drop(len(rows), error)
        except Exception as error:
            if len(rows) == 1:
                self._drop(1, error)
                return
            for row in rows:
                self._write([row])

    def _try_twice(self, rows: list[tuple[sa.Table, Row]]) -> None:
        try:
            write_events(self._database, rows)
        except sa.exc.OperationalError:
            self._closing.wait(RETRY_SECONDS)
            write_events(self._database, rows)

    def _drop(self, count: int, error: Exception) -> None:
        self._on_dropped(count)
        # The kind of the error only: its text may hold what the rows hold.
        logger.warning("%d events could not be recorded: %s", count, type(error).__name__)
