"""What the routes share: one model's router, its events and its counters.

Takes: a router, a database and the settings. Gives: what belongs to one served model in one frozen
place, with the clocks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import sqlalchemy as sa

from lmloop.errors import RequestError
from lmloop.sections import ServeConfig
from lmloop.serving.events import EventWriter
from lmloop.serving.identity import Identity
from lmloop.serving.metrics import Metrics
from lmloop.serving.ratings import RatingLimit
from lmloop.serving.retention import Retention
from lmloop.serving.router import Router
from lmloop.serving.rows import warm_up
from lmloop.serving.shadow import Shadows


class ForwardClock:
    """Seconds since the epoch that never run backwards, whatever is done to the system's clock."""

    def __init__(self, read: Callable[[], float] = time.time) -> None:
        self._read = read
        self._last = 0.0

    def __call__(self) -> float:
        self._last = max(self._last, self._read())
        return self._last


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One served model."""

    model_name: str
    """What clients call it."""
    model_created: int
    """Seconds since the epoch."""
    config: ServeConfig
    router: Router
    identity: Identity
    events: EventWriter
    metrics: Metrics
    shadows: Shadows = field(default_factory=Shadows)
    rating_limit: RatingLimit = field(default_factory=RatingLimit)
    wall_clock: Callable[[], float] = field(default_factory=ForwardClock)
    """Seconds since the epoch."""
    clock: Callable[[], float] = time.monotonic
    """Seconds for measuring."""

    async def close(self) -> None:
        """End the copies that nobody sees, and write the events that wait."""
        await self.shadows.close()
        await asyncio.to_thread(self.events.close)

    def check_model(self, name: str) -> None:
        """Raise `RequestError` (404) unless this model is the one that is asked for."""
        if name != self.model_name:
            raise RequestError(
                f"The model {name[:100]!r} does not exist here; this server has "
                f"{self.model_name!r}.",
                status=404,
                code="model_not_found",
                param="model",
            )


def open_service(
    config: ServeConfig,
    *,
    router: Router,
    model_name: str,
    model_created: int,
    database: sa.Engine,
) -> Service:
    """Join a router with the events and metrics of one model; the caller closes the service."""
    metrics = Metrics(model=model_name)
    days = config.retention_days
    retention = None if days is None else Retention(database, days=days)
    return Service(
        model_name=model_name,
        model_created=model_created,
        config=config,
        router=router,
        identity=Identity.open(database),
        events=EventWriter(
            database,
            on_dropped=metrics.count_dropped,
            retention=retention,
            warm_up=warm_up if config.signals else None,
        ),
        metrics=metrics,
    )
