"""The door to the engines: which weights take a request, and which requests are turned away.

Takes: how many sequences a request asks for, and whose session it is. Gives: a `Generation` for
every admitted request; it stays with the engine that began it, so no answer mixes weights.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

from lmloop.errors import RequestError, ServingError
from lmloop.serving.fleet import Aim, Fleet
from lmloop.serving.lane import FIRST_DELAY_SECONDS, Lane
from lmloop.serving.process import EngineProcess, EngineSpec, Generation
from lmloop.store.registry import name_weights

PAUSE_SECONDS = 60.0
"""Longest wait of a request for the end of a pause."""
BUCKETS = 10_000
"""Sessions fall into so many parts of equal chance."""

Status = Literal["loading", "ready", "draining", "failed"]


def falls_under(share: int, *, name: str, fingerprint: str, session: str) -> bool:
    """Whether a session of the model `name` goes to a candidate at `share` percent.

    A session that does goes on doing so while the share grows: each has one fixed place among the
    10,000, by SHA-256 of the model's name, the candidate's fingerprint and the session.
    """
    text = f"{name}\0{fingerprint}\0{session}".encode("utf-8", "surrogatepass")
    bucket = int.from_bytes(hashlib.sha256(text).digest()) % BUCKETS
    return bucket < share * BUCKETS // 100


class Router:
    """Admits requests to the engines of a fleet."""

    def __init__(
        self,
        spec: EngineSpec,
        *,
        name: str = "",
        swap: Literal["beside", "pause"] = "beside",
        keep_previous: bool = True,
        first_delay_seconds: float = FIRST_DELAY_SECONDS,
        pause_seconds: float = PAUSE_SECONDS,
        drain_seconds: float | None = None,
    ) -> None:
        """`name` is the model's; `swap` and `keep_previous` are those of `ServeConfig`.

        `pause_seconds` bounds a request's wait for a swap, `drain_seconds` the time that replaced
        weights may take to finish what they began.
        """
        self.fleet = Fleet(
            spec,
            swap=swap,
            keep_previous=keep_previous,
            first_delay_seconds=first_delay_seconds,
            drain_seconds=drain_seconds,
        )
        self.supervision: asyncio.Task[None] | None = None
        """Runs from `start` to `close`; ends early, with `ServingError`, where no engine starts."""
        self._name = name
        self._pause_seconds = pause_seconds
        self._held = 0

    @property
    def live(self) -> EngineProcess:
        """The engine of the weights that serve."""
        return self.fleet.live.engine

    @property
    def status(self) -> Status:
        """Whether requests are taken, and if not, why."""
        if self.supervision is not None and self.supervision.done():
            return "failed"
        if self.fleet.draining:
            return "draining"
        return "ready" if self.live.state == "ready" and self.fleet.open.is_set() else "loading"

    @property
    def starts(self) -> int:
        """Engine processes started so far."""
        return self.fleet.starts

    @property
    def running(self) -> int:
        """Sequences that the engines decode."""
        return sum(lane.engine.running for lane in self.fleet.lanes)

    @property
    def waiting(self) -> int:
        """Sequences that were admitted and are not yet decoded, and requests held by a pause."""
        engines = [lane.engine for lane in self.fleet.lanes]
        return self._held + sum(max(0, each.in_flight - each.running) for each in engines)

    def engines(self) -> Mapping[str, EngineProcess]:
        """The engines by role: live, candidate, previous."""
        return {role: lane.engine for role, lane in self.fleet.roles.items()}

    def describe(self) -> dict[str, Any]:
        """What serves and what is tried, as plain data; weights are 12 digits of a fingerprint."""
        fleet, aim = self.fleet, self.fleet.aim
        found = {role: _describe(lane) for role, lane in fleet.roles.items()}
        if aim.candidate is not None:
            weights = name_weights(aim.candidate.fingerprint)
            state = "failed" if fleet.refusal else "starting"
            found.setdefault("candidate", {"weights": weights, "state": state})
        return {
            "generation": fleet.generation,
            "phase": aim.phase,
            "share": aim.share,
            "note": fleet.note,
            **{role: found.get(role) for role in ("live", "candidate", "previous")},
        }

    def admit(self, count: int, session: str | None = None) -> Generation:
        """Reserve places for `count` sequences, before any work is done for them.

        A session that falls under the candidate's share goes to the candidate, unless that is gone
        or full. Raises `RequestError`: 503 where there is no engine or no place, 400 where there
        never will be one.
        """
        canary = self._trial("canary")
        if canary is not None and canary.has_place(count) and self._is_chosen(session):
            refuge = self._refuge_of(canary)
            return Generation(canary, count=count, arm="canary", find_refuge=refuge)
        if self.status != "ready":
            raise _unavailable(self.status)
        capacity = self.live.spec.capacity
        if count > capacity:
            raise RequestError(
                f"This request asks for {count} sequences and the server holds "
                f"{capacity} at once: lower n or send fewer prompts.",
                param="n",
            )
        if not self.live.has_place(count):
            raise _full()
        return Generation(self.live, count=count)

    def mirror(self, count: int) -> Generation | None:
        """Places at a candidate that answers unseen; None while that is not its phase, or full."""
        shadow = self._trial("shadow")
        if shadow is None or not shadow.has_place(count):
            return None
        return Generation(shadow, count=count, arm="shadow")

    async def wait_open(self) -> None:
        """Return at once, or after the pause of a swap; `RequestError` (503) where that is long."""
        if self.fleet.open.is_set():
            return
        if self._held >= self.live.spec.capacity:
            raise _full()
        self._held += 1
        try:
            async with asyncio.timeout(self._pause_seconds):
                await self.fleet.open.wait()
        except TimeoutError:
            raise _unavailable("loading") from None
        finally:
            self._held -= 1

    async def apply(self, aim: Aim) -> None:
        """Aim at other weights from now on, and do at once what can be done at once."""
        await self.fleet.apply(aim)

    async def start(self) -> None:
        """Start the live engine's process, and look after all engines from then on.

        Raises `ServingError` where the system cannot even start it.
        """
        await self.fleet.start()
        self.supervision = asyncio.create_task(self.fleet.steer())

    async def wait_ready(self) -> None:
        """Return once an engine is ready; raise `ServingError` where none can be started."""
        while self.live.state != "ready":
            await self._watch(0.01)

    async def watch(self) -> None:
        """Return never while engines can be started; raise `ServingError` when they cannot."""
        while True:
            await self._watch(None)

    async def drain(self, seconds: float) -> None:
        """Take nothing more, let what is under way finish for so long, then fail the rest."""
        await self.fleet.drain(seconds, error=_unavailable("draining"))

    async def close(self) -> None:
        """End all engine processes."""
        if self.supervision is not None:
            self.supervision.cancel()
            with contextlib.suppress(asyncio.CancelledError, ServingError):
                await self.supervision
        await self.fleet.close()

    async def _watch(self, seconds: float | None) -> None:
        if self.supervision is None:
            raise RuntimeError("start() comes first")
        done, _ = await asyncio.wait({self.supervision}, timeout=seconds)
        for task in done:
            task.result()

    def _trial(self, phase: str) -> EngineProcess | None:
        """The candidate's engine, while that is its phase and requests are taken at all."""
        fleet = self.fleet
        lane, spec = fleet.trial, fleet.aim.candidate
        if lane is None or spec is None or lane.fingerprint != spec.fingerprint:
            return None
        return None if fleet.aim.phase != phase or fleet.draining else lane.engine

    def _is_chosen(self, session: str | None) -> bool:
        aim = self.fleet.aim
        if session is None or aim.candidate is None:
            return False
        fingerprint = aim.candidate.fingerprint
        return falls_under(aim.share, name=self._name, fingerprint=fingerprint, session=session)

    def _refuge_of(self, lost: EngineProcess) -> Callable[[int], EngineProcess | None]:
        """Where requests of a lost canary go: to the live engine, if both read tokens alike."""

        def find(count: int) -> EngineProcess | None:
            live = self.live
            if self.status != "ready" or live is lost or not live.has_place(count):
                return None
            return live if live.texts.fingerprint == lost.texts.fingerprint else None

        return find


def _describe(lane: Lane) -> dict[str, str]:
    weights = lane.engine.weights or name_weights(lane.fingerprint)
    return {"weights": weights, "state": lane.state}


def _full() -> RequestError:
    return RequestError("All places are taken: try again shortly.", status=503, code="queue_full")


def _unavailable(status: Status) -> RequestError:
    reasons = {
        "loading": "The engine is being started: try again shortly.",
        "draining": "The server is shutting down: send the request to another or try again later.",
        "failed": "The engine cannot be started; see the server's log.",
    }
    return RequestError(reasons[status], status=503, code=status)
