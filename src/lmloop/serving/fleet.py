"""All engines of a server: which weights are live, tried or kept ready, and how that changes.

Takes: an `Aim`. Gives: lanes by role. New weights start beside the old ones and take over when they
are ready; where memory holds one engine, after a pause. What serves goes on serving while the new
cannot, and replaced weights finish what they began.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lmloop.errors import RequestError, ServingError
from lmloop.serving.lane import FIRST_DELAY_SECONDS, Lane
from lmloop.serving.process import EngineSpec
from lmloop.store.registry import name_weights

DRAIN_SECONDS = 600.0
"""How long replaced weights may work on what they began."""
PAUSE_DRAIN_SECONDS = 30.0
"""The same where new requests wait for it."""
MAX_TRIAL_STARTS = 4
"""A candidate whose engine had to be started so often is given up at its next end."""
NO_TRIAL = 'swap = "pause" holds one engine: no candidate can be tried beside the live model'

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What a server is to serve: the registry's rows of one generation."""

    live: EngineSpec
    candidate: EngineSpec | None = None
    phase: str | None = None
    """Of the candidate: `shadow` or `canary`."""
    share: int = 0
    """Percent of the sessions that go to the candidate while it is a canary."""
    refusal: str | None = None
    """Why the candidate must not be started."""
    previous: str | None = None
    """Fingerprint of the weights that a rollback would make live."""
    generation: int = 0


class Fleet:
    """Brings the lanes to what is aimed at, one pass after every change."""

    def __init__(
        self,
        spec: EngineSpec,
        *,
        swap: Literal["beside", "pause"],
        keep_previous: bool,
        first_delay_seconds: float = FIRST_DELAY_SECONDS,
        drain_seconds: float | None = None,
    ) -> None:
        self.aim = Aim(live=spec)
        self.generation = 0
        """Of the last aim whose live weights serve."""
        self.note: str | None = None
        """What keeps the aim from being reached."""
        self.open = asyncio.Event()
        """Not set during the pause of a swap."""
        self.open.set()
        self.draining = False
        self.failure: str | None = None
        """Why nothing serves and nothing will."""
        self._pauses, self._keep_previous = swap == "pause", keep_previous
        self._first_delay_seconds = first_delay_seconds
        usual = PAUSE_DRAIN_SECONDS if self._pauses else DRAIN_SECONDS
        self._drain_seconds = usual if drain_seconds is None else drain_seconds
        self._changed, self._passing = asyncio.Event(), asyncio.Lock()
        self._past_starts = 0
        self.live = self._make_lane(spec)
        self.trial: Lane | None = None
        self.standby: Lane | None = None
        self.lanes = [self.live]
        self._proven: EngineSpec | None = None
        self._hopeless: dict[str, str] = {}

    @property
    def starts(self) -> int:
        """Engine processes started so far."""
        return self._past_starts + sum(lane.starts for lane in self.lanes)

    @property
    def roles(self) -> Mapping[str, Lane]:
        """The lanes that have one: live, candidate, previous."""
        found = {"live": self.live, "candidate": self.trial, "previous": self.standby}
        return {role: lane for role, lane in found.items() if lane is not None}

    @property
    def refusal(self) -> str | None:
        """Why the candidate is not tried, if there is one and it is not."""
        if self.aim.candidate is None:
            return None
        if self._pauses:
            return NO_TRIAL
        return self.aim.refusal or self._hopeless.get(self.aim.candidate.fingerprint)

    async def start(self) -> None:
        """Start the live engine's process; raise `ServingError` where the system cannot."""
        await self.live.start()
        if self.live.failure is not None:
            raise _unstartable(self.live.failure)

    async def apply(self, aim: Aim) -> None:
        """Aim at something else from now on, and do what can be done about it at once."""
        for new, old in ((aim.live, self.aim.live), (aim.candidate, self.aim.candidate)):
            if new is not None and (old is None or new.fingerprint != old.fingerprint):
                self._hopeless.pop(new.fingerprint, None)
        self.aim = aim
        self._changed.set()
        await self._pass()

    async def steer(self) -> None:
        """Go on towards the aim after every change, until cancelled.

        Raises `ServingError` where nothing serves and nothing will.
        """
        try:
            while self.failure is None:
                await self._changed.wait()
                self._changed.clear()
                await self._pass()
            raise _unstartable(self.failure)
        finally:
            self.open.set()

    async def drain(self, seconds: float, *, error: RequestError) -> None:
        """Change nothing more, let what is under way finish for so long, then fail the rest."""
        self.draining = True
        self.open.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for lane in self.lanes:
                    await lane.engine.idle.wait()
        for lane in self.lanes:
            lane.engine.abort(error)

    async def close(self) -> None:
        """End all engine processes."""
        self.draining = True
        async with self._passing:
            await asyncio.gather(*(lane.close() for lane in self.lanes))

    async def _pass(self) -> None:
        """Do what can be done now; waits for no engine, for each of their changes brings a pass."""
        async with self._passing:
            if self.draining:
                return
            self._take_stock()
            wanted = self._choose_live()
            if wanted is None:
                self.failure = self.live.failure or "it ended"
            elif self._pauses:
                await self._replace(wanted)
            else:
                await self._place(wanted)
            if self.live.fingerprint == self.aim.live.fingerprint and self.live.state == "ready":
                self.generation = self.aim.generation
            reason = self._hopeless.get(self.aim.live.fingerprint)
            self.note = self.refusal if reason is None else _explain(self.aim.live, reason)

    def _take_stock(self) -> None:
        """Forget lanes that are closed, and give up those that have failed."""
        gone = [lane for lane in self.lanes if lane.closed and lane is not self.live]
        self._past_starts += sum(lane.starts for lane in gone)
        self.lanes = [lane for lane in self.lanes if lane not in gone]
        if self.live.state == "ready":
            self._proven = self.live.spec
        for lane in self.lanes:
            if lane.leaving:
                continue
            reason = lane.failure
            if lane is self.trial and lane is not self.live and lane.starts > MAX_TRIAL_STARTS:
                reason = f"its engine died {MAX_TRIAL_STARTS} times ({lane.last_end})"
            if reason is not None:
                self._hopeless[lane.fingerprint] = reason
                lane.leave(0)

    def _choose_live(self) -> EngineSpec | None:
        """The aim's weights or, where they cannot be started, those that served before."""
        for spec in (self.aim.live, self._proven):
            if spec is not None and spec.fingerprint not in self._hopeless:
                return spec
        return None

    async def _place(self, wanted: EngineSpec) -> None:
        """Have these weights live, and beside them the candidate or what a rollback needs."""
        aim = self.aim
        coming = self._find(wanted.fingerprint) or await self._start(wanted)
        coming.spec = wanted
        if coming.state == "ready" and coming is not self.live:
            logger.info("weights %s are live", _name(wanted))
            self.live = coming
        candidate = None if self.refusal else aim.candidate
        self.trial = None if candidate is None else self._find(candidate.fingerprint)
        # A candidate takes the place of the engine that is kept for a rollback.
        keeps = self._keep_previous and candidate is None and aim.previous != wanted.fingerprint
        self.standby = self._find(aim.previous) if keeps and aim.previous is not None else None
        for lane in self.lanes:
            if lane not in (self.live, coming, self.trial, self.standby):
                lane.leave(self._drain_seconds)
        settled = coming is self.live and coming.state == "ready"
        if candidate is not None and self.trial is None and settled:
            self.trial = await self._start(candidate)

    async def _replace(self, wanted: EngineSpec) -> None:
        """Have these weights live and no others: first the old ones end, then the new begin."""
        live = self.live
        if live.fingerprint == wanted.fingerprint and live.stay():
            live.spec = wanted
            if live.state == "ready":
                self.open.set()
            return
        self.open.clear()
        live.leave(self._drain_seconds)
        if live.closed:
            self.live = await self._start(wanted)

    def _find(self, fingerprint: str) -> Lane | None:
        """The lane of these weights, called back where it was about to leave."""
        alike = (lane for lane in self.lanes if lane.fingerprint == fingerprint)
        return next((lane for lane in alike if lane.stay()), None)

    async def _start(self, spec: EngineSpec) -> Lane:
        lane = self._make_lane(spec)
        self.lanes.append(lane)
        await lane.start()
        return lane

    def _make_lane(self, spec: EngineSpec) -> Lane:
        return Lane(
            spec, on_change=self._changed.set, first_delay_seconds=self._first_delay_seconds
        )


def _name(spec: EngineSpec) -> str:
    return name_weights(spec.fingerprint) or "(unnamed)"


def _unstartable(reason: str) -> ServingError:
    return ServingError(f"the engine cannot be started: {reason}")


def _explain(spec: EngineSpec, reason: str) -> str:
    return f"the engine of {_name(spec)} cannot be started: {reason}"
