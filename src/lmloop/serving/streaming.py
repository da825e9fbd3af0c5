"""Answers that come as they are made, and work that ends when nobody waits for it any more.

Takes: ASGI's `receive` and `send`. Gives: `until_gone` for work of a client that may hang up, and
`EventStream`, a response of server-sent events that cancels its source when the client leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from typing import TypeVar

from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

STALL_SECONDS = 60.0
"""How long a client may leave a full buffer unread before it is cut off."""

Result = TypeVar("Result")


class ClientGoneError(Exception):
    """The client closed the connection before its answer was complete."""


async def until_gone(receive: Receive, work: Coroutine[None, None, Result]) -> Result:
    """Do `work`; cancel it and raise `ClientGoneError` where the client hangs up first."""
    task = asyncio.create_task(work)
    watch = asyncio.create_task(_wait_for_disconnect(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        for each in (task, watch):
            each.cancel()
        # Cancelled work gives its places back before anybody goes on.
        await asyncio.gather(task, watch, return_exceptions=True)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events from a generator, which is closed whatever happens."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        on_close: Callable[[], None],
        headers: Mapping[str, str],
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self.status_code = 200
        self.background: BackgroundTask | None = None
        self._events = events
        self._on_close = on_close
        self._stall_seconds = stall_seconds
        # A proxy that collects the stream would make it useless.
        kept = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        self.init_headers({**headers, **kept})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the events end or the client leaves."""
        try:
            async with contextlib.aclosing(self._events):
                with contextlib.suppress(ClientGoneError, TimeoutError):
                    await until_gone(receive, self._send_all(send))
        finally:
            self._on_close()

    async def _send_all(self, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        async for data in self._events:
            async with asyncio.timeout(self._stall_seconds):
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
