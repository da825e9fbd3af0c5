"""Engine processes behind one door: which one takes a request, and what happens when one dies.

Takes: how an engine is started. Gives: a `Generation` for every admitted request. One engine is
`live`; when it ends, another is started, slower after each failed start and not for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Literal

from lmloop.errors import RequestError, ServingError
from lmloop.serving.process import EngineProcess, EngineSpec, Generation

MAX_FAILED_STARTS = 5
"""So many starts in a row without getting ready, and the server gives up."""
FIRST_DELAY_SECONDS = 0.2
"""Pause after the first failed start; it doubles with each further one."""

Status = Literal["loading", "ready", "draining", "failed"]
logger = logging.getLogger(__name__)


class Router:
    """Holds the live engine and keeps one alive."""

    def __init__(
        self, spec: EngineSpec, *, first_delay_seconds: float = FIRST_DELAY_SECONDS
    ) -> None:
        self.spec = spec
        self.live = EngineProcess(spec)
        self.starts = 0
        """Engine processes started so far."""
        self.supervision: asyncio.Task[None] | None = None
        """Runs from `start` to `close`; ends early, with `ServingError`, where no engine starts."""
        self._first_delay_seconds = first_delay_seconds
        self._draining = False

    @property
    def status(self) -> Status:
        """Whether requests are taken, and if not, why."""
        if self.supervision is not None and self.supervision.done():
            return "failed"
        if self._draining:
            return "draining"
        return "ready" if self.live.state == "ready" else "loading"

    @property
    def running(self) -> int:
        """Sequences that the live engine decodes."""
        return self.live.running

    @property
    def waiting(self) -> int:
        """Sequences that were admitted and are not yet decoded."""
        return max(0, self.live.in_flight - self.live.running)

    def admit(self, count: int) -> Generation:
        """Reserve places for `count` sequences, before any work is done for them.

        Raises `RequestError`: 503 where there is no engine or no place, 400 where there never will
        be one.
        """
        if self.status != "ready":
            raise _unavailable(self.status)
        if count > self.spec.capacity:
            raise RequestError(
                f"This request asks for {count} sequences and the server holds "
                f"{self.spec.capacity} at once: lower n or send fewer prompts.",
                param="n",
            )
        if self.live.in_flight + count > self.spec.capacity:
            raise RequestError(
                "All places are taken: try again shortly.", status=503, code="queue_full"
            )
        return self.live.open(count)

    async def start(self) -> None:
        """Start the first engine's process, and look after it from then on."""
        await self._spawn()
        self.supervision = asyncio.create_task(self._supervise())

    async def wait_ready(self) -> None:
        """Return once an engine is ready; raise `ServingError` where none can be started."""
        while self.live.state != "ready":
            await self._watch(0.01)

    async def drain(self, seconds: float) -> None:
        """Take nothing more, let what is under way finish for so long, then fail the rest."""
        self._draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.live.idle.wait()
        self.live.abort(_unavailable("draining"))

    async def close(self) -> None:
        """End the live engine's process."""
        self._draining = True
        if self.supervision is not None:
            self.supervision.cancel()
            with contextlib.suppress(asyncio.CancelledError, ServingError):
                await self.supervision
        await self.live.close()

    async def watch(self) -> None:
        """Return never while engines can be started; raise `ServingError` when they cannot."""
        while True:
            await self._watch(None)

    async def _watch(self, seconds: float | None) -> None:
        if self.supervision is None:
            raise RuntimeError("start() comes first")
        done, _ = await asyncio.wait({self.supervision}, timeout=seconds)
        for task in done:
            task.result()

    async def _supervise(self) -> None:
        """Keep an engine alive until cancelled; raise `ServingError` where none can be started."""
        failures = 0
        while True:
            await self.live.run()
            failures = 0 if self.live.was_ready else failures + 1
            if self.live.permanent or failures >= MAX_FAILED_STARTS:
                raise ServingError(f"the engine cannot be started: {self.live.failure}")
            logger.warning("the engine is gone, another is started: %s", self.live.failure)
            if failures:
                await asyncio.sleep(self._first_delay_seconds * 2 ** (failures - 1))
            self.live = EngineProcess(self.spec)
            await self._spawn()

    async def _spawn(self) -> None:
        self.starts += 1
        try:
            await self.live.spawn()
        except OSError as error:
            raise ServingError(f"the engine cannot be started: {error}") from error


def _unavailable(status: Status) -> RequestError:
    reasons = {
        "loading": "The engine is being started: try again shortly.",
        "draining": "The server is shutting down: send the request to another or try again later.",
        "failed": "The engine cannot be started; see the server's log.",
    }
    return RequestError(reasons[status], status=503, code=status)
