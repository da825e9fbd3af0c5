"""What the routes share: one model's router, its events and its counters.

Takes: a router, a database and the settings. Gives: what belongs to one served model in one frozen
place, with the clocks and the source of ids.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa

from lmloop.errors import RequestError
from lmloop.sections import ServeConfig
from lmloop.serving.events import EventWriter
from lmloop.serving.metrics import Metrics
from lmloop.serving.router import Router


def random_token() -> str:
    """96 random bits as hex: an id that a stranger cannot guess."""
    return secrets.token_hex(12)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One served model."""

    model_name: str
    """What clients call it."""
    model_created: int
    """Seconds since the epoch."""
    config: ServeConfig
    router: Router
    events: EventWriter
    metrics: Metrics
    wall_clock: Callable[[], float] = time.time
    """Seconds since the epoch."""
    clock: Callable[[], float] = time.monotonic
    """Seconds for measuring."""
    make_token: Callable[[], str] = random_token
    """Second half of an answer's id."""

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
    """Join a router with the events and metrics of one model; the caller closes `events`."""
    metrics = Metrics(model=model_name)
    return Service(
        model_name=model_name,
        model_created=model_created,
        config=config,
        router=router,
        events=EventWriter(database, on_dropped=metrics.count_dropped),
        metrics=metrics,
    )
