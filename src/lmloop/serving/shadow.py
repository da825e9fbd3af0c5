"""Copies of live requests that a candidate answers and nobody sees.

Takes: a request that has just begun. Gives: a row of how the candidate did, and nothing else: a
copy runs in a task of its own, and one that finds no place, fails or is late is the copy's loss.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

from lmloop.errors import RequestError
from lmloop.serving.exchange import Call, Exchange

if TYPE_CHECKING:
    from lmloop.serving.service import Service

MAX_SHADOWS = 64
"""Copies under way at once; the candidate's places bound them as well."""

logger = logging.getLogger(__name__)


class Shadows:
    """The copies under way."""

    def __init__(self, *, max_running: int = MAX_SHADOWS) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._max_running = max_running
        self._closed = False

    def mirror(self, service: Service, call: Call, *, live: str) -> None:
        """Let the candidate answer the same request, if there is one in this phase with a place.

        `live` is the id of the answer that the client gets. Never raises.
        """
        if self._closed or len(self._tasks) >= self._max_running:
            return
        generation = service.router.mirror(call.request.count)
        if generation is None:
            return
        exchange = Exchange(
            service,
            call,
            response_id=service.identity.issue(call.shape.prefix),
            generation=generation,
            shadow_of=live,
        )
        task = asyncio.create_task(_follow(exchange))
        self._tasks.add(task)
        task.add_done_callback(partial(self._end, exchange))

    async def close(self) -> None:
        """Cancel all of them, wait for their end, and take no more."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _end(self, exchange: Exchange, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        # Here and not in the task: one that is cancelled before it began never runs.
        exchange.close()


async def _follow(exchange: Exchange) -> None:
    try:
        await exchange.begin()
        while await exchange.next_piece() is not None:
            pass
    except RequestError as error:
        logger.info("the copy %s failed: %s", exchange.head.id, error.code)
    except Exception:
        logger.exception("the copy %s failed", exchange.head.id)
