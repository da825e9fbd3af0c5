"""How long a request is kept: its row is deleted so many days later, while the server runs.

Takes: a database and a number of days. Gives: `enforce`, which the events' thread calls when it is
time. A clock that jumped deletes nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import sqlalchemy as sa

from lmloop.store.retention import delete_expired

EVERY_SECONDS = 3600.0
MAX_DRIFT_SECONDS = 60.0
"""So far may the wall clock and the clock that only goes forward part between two looks."""
DAY_SECONDS = 86_400.0

logger = logging.getLogger(__name__)


class Retention:
    """Deletes what is older than it may be, at first and then every hour."""

    def __init__(
        self,
        database: sa.Engine,
        *,
        days: float,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._seconds = days * DAY_SECONDS
        self._wall_clock = wall_clock
        self._clock = clock
        self._offset = wall_clock() - clock()
        self._due = clock()

    def seconds_left(self) -> float:
        """Until the next look; 0 or less where it is time."""
        return self._due - self._clock()

    def enforce(self) -> None:
        """Delete what is too old, unless the clock was moved since the last look; never raise."""
        self._due = self._clock() + EVERY_SECONDS
        now = self._wall_clock()
        offset = now - self._clock()
        moved, self._offset = offset - self._offset, offset
        if abs(moved) > MAX_DRIFT_SECONDS:
            logger.warning("the clock was moved by %.0f s: nothing is deleted this time", moved)
            return
        try:
            deleted = delete_expired(self._database, older_than=now - self._seconds)
        except Exception as error:
            logger.warning("expired requests could not be deleted: %s", type(error).__name__)
            return
        if deleted:
            logger.info("%d expired requests were deleted", deleted)
