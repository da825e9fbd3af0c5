"""One weights version kept alive: its engine process, and another whenever that one ends.

Takes: how the engine is started. Gives: an `EngineProcess` that is starting, ready or given up for
good. Each failed start is followed by a longer pause, and there are not many of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Literal

from lmloop.errors import RequestError
from lmloop.serving.process import ENGINE_LOST, EngineProcess, EngineSpec

MAX_FAILED_STARTS = 5
"""So many starts in a row without getting ready, and the weights are given up."""
FIRST_DELAY_SECONDS = 0.2
"""Pause after the first failed start; it doubles with each further one."""

State = Literal["starting", "ready", "failed"]
logger = logging.getLogger(__name__)


class Lane:
    """The engine of one weights version, from its first start to its end."""

    def __init__(
        self,
        spec: EngineSpec,
        *,
        on_change: Callable[[], None],
        first_delay_seconds: float = FIRST_DELAY_SECONDS,
    ) -> None:
        """`on_change` is called after every change of `state` or `closed`."""
        self.spec = spec
        """How the next engine is started; may be replaced by another way to the same weights."""
        self.engine = EngineProcess(spec, on_ready=on_change)
        self.starts = 0
        """Engine processes started so far."""
        self.failure: str | None = None
        """Why these weights were given up."""
        self.last_end: str | None = None
        """Why the last engine process ended that did."""
        self.closed = False
        self._on_change = on_change
        self._first_delay_seconds = first_delay_seconds
        self._supervision: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def fingerprint(self) -> str:
        """Of the weights."""
        return self.spec.fingerprint

    @property
    def state(self) -> State:
        """Whether requests can be taken, or will be."""
        if self.failure is not None or self.closed:
            return "failed"
        return "ready" if self.engine.state == "ready" else "starting"

    @property
    def leaving(self) -> bool:
        """Whether it is about to close."""
        return self._leaving is not None or self._closing

    async def start(self) -> None:
        """Start the first engine process, and look after it from then on."""
        await self._spawn()
        self._supervision = asyncio.create_task(self._supervise())
        self._supervision.add_done_callback(self._note_end)

    def leave(self, seconds: float) -> None:
        """Close once nothing is under way, or after so long: then what is left fails."""
        if self._leaving is None:
            self._leaving = asyncio.create_task(self._leave(seconds))

    def stay(self) -> bool:
        """Call off `leave`, if there was one; False where it is too late."""
        if self._closing or self.failure is not None:
            return False
        if self._leaving is not None:
            if self.state != "ready":
                return False
            self._leaving.cancel()
            self._leaving = None
        return True

    async def close(self) -> None:
        """End the engine process at once."""
        self._closing = True
        tasks = [task for task in (self._supervision, self._leaving) if task is not None]
        others = [task for task in tasks if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.engine.close()
        self.closed = True

    async def _leave(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.engine.idle.wait()
        self._closing = True
        self.engine.abort(
            RequestError(
                "The weights that worked on this request were replaced and it took too long. "
                "Send the request again.",
                status=503,
                code=ENGINE_LOST,
            )
        )
        await self.close()
        self._on_change()

    async def _supervise(self) -> None:
        """Keep an engine alive until cancelled or given up."""
        failures = 0
        while self.failure is None:
            await self.engine.run()
            self.last_end = self.engine.failure
            failures = 0 if self.engine.was_ready else failures + 1
            if self.engine.permanent or failures >= MAX_FAILED_STARTS:
                self.failure = self.last_end
                return
            logger.warning("the engine is gone, another is started: %s", self.last_end)
            self._on_change()
            if failures:
                await asyncio.sleep(self._first_delay_seconds * 2 ** (failures - 1))
            self.engine = EngineProcess(self.spec, on_ready=self._on_change)
            await self._spawn()

    async def _spawn(self) -> None:
        self.starts += 1
        try:
            await self.engine.spawn()
        except OSError as error:
            self.failure = str(error)

    def _note_end(self, supervision: asyncio.Task[None]) -> None:
        """A lane that nobody looks after any more is no lane."""
        if not supervision.cancelled() and (error := supervision.exception()) is not None:
            logger.error("the engine is not looked after any more", exc_info=error)
            self.failure = self.failure or repr(error)
        self._on_change()
