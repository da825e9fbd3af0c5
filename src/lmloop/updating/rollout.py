"""A rollout: a candidate answers unseen, then for a growing share of the sessions, then for all.

Takes: the registry and the rows that servers write. Gives: registry rows, one step after the other,
and an `Outcome`. It speaks to no server: servers watch the registry and acknowledge in the table
`servers`. Killed at any instant, `resume` goes on from what the registry says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lmloop.sections import parse_duration
from lmloop.store.artifact import Artifact
from lmloop.store.events import Event, read_events, record_event
from lmloop.store.registry import Phase, Registry, name_weights
from lmloop.store.servers import find_servers
from lmloop.updating.arms import count_arm, newest_moment, read_arm
from lmloop.updating.guards import Fall, find_falls
from lmloop.upkeep import RolloutConfig

POLL_SECONDS = 0.2
START_SECONDS = 300.0
"""Longest wait for servers to have the candidate ready."""
FIRST_LOOK = 10
"""Requests of the candidate at the first look of a step; each further look waits for twice that."""
CALLED_BACK = "it was called back by hand"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a rollout ended."""

    promoted: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """Who is compared with whom, and since when (by the servers' clock)."""

    candidate: str
    live: str
    after: float


class Rollout:
    """Takes candidates of one model to its users, or back."""

    def __init__(
        self,
        registry: Registry,
        config: RolloutConfig,
        *,
        wait: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry
        self._engine = registry.engine
        self._name = registry.name
        self._config = config
        self._wait, self._clock, self._wall_clock = wait, clock, wall_clock

    def start(self, candidate: Artifact, *, at_once: bool = False) -> Outcome:
        """Roll a candidate out from the beginning.

        `at_once` leaves shadow and canary out: for servers whose memory holds one model. So does a
        rollout that no server would see.
        """
        live = self._registry.read().get("live")
        if live is not None and live.fingerprint == candidate.fingerprint:
            return Outcome(promoted=False, reason="these weights are live already")
        contest = Contest(
            candidate=name_weights(candidate.fingerprint),
            live="" if live is None else name_weights(live.fingerprint),
            after=newest_moment(self._engine, self._name),
        )
        started = {"artifact": str(candidate), "path": str(candidate.path), **_plain(contest)}
        self._record("rollout.started", started)
        if live is None or at_once or not self._servers():
            self._registry.set_live(candidate)
            return self._watch(contest)
        return self._walk(candidate, contest, self._steps())

    def resume(self, find: Callable[[str], Artifact]) -> Outcome | None:
        """Go on with a rollout that was cut short; None where there is none.

        `find` opens the artifact at a path.
        """
        entry = self._registry.read().get("candidate")
        last = self._last_event()
        if last is None or last.kind in ("rollout.finished", "rollout.refused"):
            if entry is not None:  # a candidate that nobody is rolling out: out with it
                self._registry.drop_candidate()
            return None
        started = read_events(self._engine, name=self._name, kinds=["rollout.started"])[-1]
        contest = Contest(**{key: started.data[key] for key in ("candidate", "live", "after")})
        if entry is None:
            live = self._registry.read()["live"]
            if name_weights(live.fingerprint) == contest.candidate:
                return self._watch(contest)
            if last.kind == "rollout.started":
                return self.start(find(started.data["path"]))
            return self._refuse(contest, CALLED_BACK)
        steps = self._steps()
        current = (entry.phase, entry.share)
        begin = steps.index(current) if current in steps else 0
        return self._walk(find(entry.path), contest, steps[begin:])

    def _steps(self) -> list[tuple[Phase, int]]:
        shadow: list[tuple[Phase, int]] = [("shadow", 0)] if self._config.shadow_requests else []
        return [*shadow, *(("canary", share) for share in self._config.canary_shares)]

    def _walk(
        self, candidate: Artifact, contest: Contest, steps: list[tuple[Phase, int]]
    ) -> Outcome:
        for place, (phase, share) in enumerate(steps):
            if place and not self._is_current(contest):
                return self._refuse(contest, CALLED_BACK)
            generation = self._registry.set_candidate(candidate, phase=phase, share=share)
            self._record("rollout.step", {**_plain(contest), "phase": phase, "share": share})
            trouble = self._await_servers(generation)
            if trouble is None:
                needed = self._config.shadow_requests if phase == "shadow" else None
                trouble = self._judge(contest, phase, needed or self._config.step_requests)
            if trouble is not None:
                return self._refuse(contest, _place(phase, share) + trouble)
        self._registry.promote()
        return self._watch(contest)

    def _watch(self, contest: Contest) -> Outcome:
        """Look at the new live model a while longer; call the old one back where a guard falls."""
        self._record("rollout.promoted", _plain(contest))
        if contest.live and self._config.watch_requests and self._servers():
            trouble = self._judge(contest, "live", self._config.watch_requests)
            if trouble is not None:
                if self._is_current(contest):
                    self._registry.roll_back()
                return self._refuse(contest, _place("live", 100) + trouble)
        self._record("rollout.finished", _plain(contest))
        return Outcome(promoted=True, reason="no guard fell")

    def _judge(self, contest: Contest, arm: str, needed: int) -> str | None:
        """Wait for the candidate's requests, looking now and then; what speaks against it."""
        deadline = self._clock() + parse_duration(self._config.step_timeout)
        looks = _look_points(needed)
        began = newest_moment(self._engine, self._name)
        while looks:
            count = count_arm(
                self._engine, self._name, weights=contest.candidate, arm=arm, after=began
            )
            late = self._clock() >= deadline
            if count < looks[0] and not late:
                trouble = self._trouble(contest)
                if trouble is not None:
                    return trouble
                self._wait(POLL_SECONDS)
                continue
            fallen = self._look(contest, arm)
            if fallen or late:
                return "; ".join(map(str, fallen)) or None
            looks = [point for point in looks if point > count]
        return None if self._is_current(contest) else CALLED_BACK

    def _look(self, contest: Contest, arm: str) -> list[Fall]:
        """One look at all guards, with its share of the chance of a false call."""
        config = self._config
        steps = [config.shadow_requests, *[config.step_requests] * len(config.canary_shares)]
        looks = sum(len(_look_points(each)) for each in (*steps, config.watch_requests) if each)
        candidate = read_arm(
            self._engine, self._name, weights=contest.candidate, arm=arm, after=contest.after
        )
        live = read_arm(
            self._engine, self._name, weights=contest.live, arm="live", after=contest.after
        )
        return find_falls(
            live,
            candidate,
            chance=config.false_alarms / looks,
            max_slowdown=config.max_slowdown,
        )

    def _trouble(self, contest: Contest) -> str | None:
        """What ends a step before its time: other hands, or an engine that has failed for good."""
        if not self._is_current(contest):
            return CALLED_BACK
        for server in self._servers():
            if server["candidate"] == contest.candidate and server["candidate_state"] == "failed":
                return f"its engine has failed: {server['note'] or 'no reason given'}"
        return None

    def _is_current(self, contest: Contest) -> bool:
        """Whether the registry still has these weights as candidate, or live."""
        entries = self._registry.read()
        found = (entries[alias].fingerprint for alias in ("candidate", "live") if alias in entries)
        return any(name_weights(each) == contest.candidate for each in found)

    def _await_servers(self, generation: int) -> str | None:
        """Wait until every server has the candidate ready; else say what keeps one from it."""
        deadline = self._clock() + START_SECONDS
        while self._clock() < deadline:
            servers = self._servers()
            done = [server for server in servers if server["generation"] >= generation]
            for server in done:
                if server["candidate_state"] == "failed":
                    return f"the server cannot start it: {server['note'] or 'no reason given'}"
            ready = [server for server in done if server["candidate_state"] == "ready"]
            if servers and len(ready) == len(servers):
                return None
            self._wait(POLL_SECONDS)
        return f"no server had it ready within {START_SECONDS:.0f} s"

    def _servers(self) -> list[dict[str, Any]]:
        return find_servers(self._engine, self._name, now=self._wall_clock())

    def _refuse(self, contest: Contest, reason: str) -> Outcome:
        self._registry.drop_candidate()
        self._record("rollout.refused", {**_plain(contest), "reason": reason})
        return Outcome(promoted=False, reason=reason)

    def _last_event(self) -> Event | None:
        events = read_events(self._engine, name=self._name, kinds=["rollout"], limit=1)
        return events[-1] if events else None

    def _record(self, kind: str, data: Mapping[str, Any]) -> None:
        record_event(self._engine, kind, name=self._name, data=data)


def _look_points(needed: int) -> list[int]:
    """Requests at which a step is looked at: 10, 20, 40 … and at its end."""
    points = []
    point = FIRST_LOOK
    while point < needed:
        points.append(point)
        point *= 2
    return [*points, needed]


def _place(phase: str, share: int) -> str:
    return "in the shadow: " if phase == "shadow" else f"at {share} % of the sessions: "


def _plain(contest: Contest) -> dict[str, Any]:
    return {"candidate": contest.candidate, "live": contest.live, "after": contest.after}
