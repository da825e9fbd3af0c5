"""Every request and rating becomes a row in the database, and no request ever waits for it.

Takes: rows of `requests_table` and `ratings_table`. Gives: them to one thread that writes in
batches. A full queue, a full disk or a broken database loses events, counted, and nothing else.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa

from lmloop.store.database import (
    ratings_table,
    request_exists,
    requests_table,
    write_events,
)

MAX_WAITING = 10_000
"""Events that may wait for the writer."""
MAX_BATCH = 500
"""Events of one transaction."""
MAX_RECENT = 20_000
"""Answers whose ids are remembered, so that a rating may come before its request's row."""
RETRY_SECONDS = 0.2
"""Pause before the one retry of a batch that the database refused."""

Event = tuple[sa.Table, Mapping[str, Any]]
logger = logging.getLogger(__name__)


class EventWriter:
    """The thread between serving and the database."""

    def __init__(
        self,
        database: sa.Engine,
        *,
        on_dropped: Callable[[int], None],
        max_waiting: int = MAX_WAITING,
        max_recent: int = MAX_RECENT,
    ) -> None:
        self._database = database
        self._on_dropped = on_dropped
        self._queue: queue.Queue[Event | None] = queue.Queue(max_waiting)
        self._recent: OrderedDict[str, None] = OrderedDict()
        self._max_recent = max_recent
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._thread.start()

    def remember(self, response_id: str) -> None:
        """Note that an answer with this id is being served."""
        self._recent[response_id] = None
        if len(self._recent) > self._max_recent:
            self._recent.popitem(last=False)

    def knows(self, response_id: str) -> bool:
        """Whether this answer was ever served; raises SQLAlchemyError where nobody can tell.

        Blocks on the database for older answers: call it on a thread.
        """
        return response_id in self._recent or request_exists(self._database, response_id)

    def record_request(self, row: Mapping[str, Any]) -> None:
        """Queue a row of `requests_table`."""
        self._put(requests_table, row)

    def record_rating(self, row: Mapping[str, Any]) -> None:
        """Queue a row of `ratings_table`; it replaces an earlier one of the same answer."""
        self._put(ratings_table, row)

    def close(self, *, seconds: float = 5.0) -> None:
        """Write what waits, for at most so long."""
        self._closing.set()
        try:
            self._queue.put(None, timeout=seconds)
        except queue.Full:
            self._on_dropped(self._queue.qsize())
            return
        self._thread.join(seconds)

    def _put(self, table: sa.Table, row: Mapping[str, Any]) -> None:
        # PostgreSQL has no NUL in text.
        clean = {
            name: value.replace("\0", "\ufffd") if isinstance(value, str) else value
            for name, value in row.items()
        }
        try:
            self._queue.put_nowait((table, clean))
        except queue.Full:
            self._on_dropped(1)

    def _run(self) -> None:
        while True:
            batch = self._take()
            events = [event for event in batch if event is not None]
            if events:
                self._write(events)
            if len(events) < len(batch):
                return

    def _take(self) -> list[Event | None]:
        """At least one event, and what else waits; None marks the end."""
        batch = [self._queue.get()]
        while len(batch) < MAX_BATCH and batch[-1] is not None:
            try:
                batch.append(self._queue.get_nowait())
            except queue.Empty:
                break
        return batch

    def _write(self, events: list[Event]) -> None:
        try:
            self._try_twice(events)
        except sa.exc.OperationalError as error:
            # The database as a whole is away, locked or full: single rows would fare no better.
            self._drop(len(events), error)
        except Exception as error:
            if len(events) == 1:
                self._drop(1, error)
                return
            for event in events:
                self._write([event])

    def _try_twice(self, events: list[Event]) -> None:
        try:
            write_events(self._database, events)
        except sa.exc.OperationalError:
            self._closing.wait(RETRY_SECONDS)
            write_events(self._database, events)

    def _drop(self, count: int, error: Exception) -> None:
        self._on_dropped(count)
        logger.warning("%d events could not be recorded: %s", count, type(error).__name__)
