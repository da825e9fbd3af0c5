"""The circle: drift and feedback open rounds, a round makes a candidate, the gate decides, servers
follow.

Takes: a recipe whose model is live. Gives: events for every decision, and now and then a better
live model. Killed at any instant, the next turn goes on from the artifacts and the registry.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa

from lmloop import rounds
from lmloop.errors import (
    ArtifactError,
    BusyError,
    CompressionError,
    LmloopError,
    UpdateError,
)
from lmloop.pipeline import open_home
from lmloop.progress import Progress
from lmloop.recipe import Recipe
from lmloop.sections import parse_duration
from lmloop.stages import Workshop
from lmloop.store.artifact import Artifact, make_folder, open_artifact, write_json
from lmloop.store.events import read_events, record_event
from lmloop.store.registry import Registry, mirror_folder
from lmloop.updating.rollout import Rollout

if TYPE_CHECKING:
    from lmloop.monitoring.sample import Sample
    from lmloop.updating.collect import Selection

Wait = Callable[[float], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turned:
    """What one turn of the circle has come to."""

    result: Literal["nothing", "refused", "passed", "called back", "promoted"]
    """`passed`: through the gate, and no rollout was asked for."""
    reason: str
    verdict: Artifact | None = None
    candidate: Artifact | None = None


class Circle:
    """The circle of one recipe's model; a context manager that closes its database."""

    def __init__(
        self, recipe: Recipe, *, home: Path, progress: Progress, wait: Wait = time.sleep
    ) -> None:
        self._recipe = recipe
        self._home = home
        self._progress = progress
        self._wait = wait
        self._stamp: tuple[float | None, ...] | None = None
        """Of the feedback that was looked through last."""
        self._shop = Workshop(recipe=recipe, home=home, progress=progress)
        self._database: sa.Engine = open_home(home)
        self.registry = Registry(self._database, recipe.name, mirror=mirror_folder(home))

    def close(self) -> None:
        """Close the database."""
        self._database.dispose()

    def turn(self, *, cause: str, rollout: bool = True) -> Turned:
        """One round: collect, pledge, train, judge, roll out; every decision is an event.

        Raises `UpdateError` where there is not enough to learn from, `BusyError` where another
        round of this model is under way.
        """
        with self._alone():
            self._resume()
            self._record("round.started", {"cause": cause})
            try:
                return self._turn(rollout=rollout)
            except UpdateError as error:
                self._record("round.skipped", {"reason": str(error)})
                raise

    def _resume(self) -> None:
        """End a rollout that was cut short."""
        resumed = self._make_rollout().resume(open_artifact)
        if resumed is not None:
            self._progress.say(f"the rollout that was interrupted: {resumed.reason}")

    def _turn(self, *, rollout: bool) -> Turned:
        live = self._live()
        verdict, candidate = self._make_candidate(live)
        if verdict is None or candidate is None:
            return self._decide("refused", "the candidate could not be compressed")
        if not verdict.counts["passed"]:
            reason = "; ".join(verdict.counts["reasons"])
            return self._decide("refused", reason, verdict=verdict, candidate=candidate)
        self._record("gate.passed", {"verdict": str(verdict), "path": str(verdict.path)})
        if not rollout:
            return self._decide("passed", "the gate", verdict=verdict, candidate=candidate)
        pause = self._recipe.serve.swap == "pause"
        outcome = self._make_rollout().start(candidate, at_once=pause)
        result: Literal["promoted", "called back"] = (
            "promoted" if outcome.promoted else "called back"
        )
        return self._decide(result, outcome.reason, verdict=verdict, candidate=candidate)

    def _make_candidate(self, live: Artifact) -> tuple[Artifact | None, Artifact | None]:
        """A verdict on a candidate, both None where compression refused it."""
        from lmloop.updating.collect import check_enough

        shop = self._shop
        parents = rounds.find_parents(live, shop.store)
        selection = self._select(live)
        check_enough(selection)
        collected = rounds.collect(shop, parents, selection)
        pledged = rounds.pledge(shop, parents, collected)
        updated = rounds.update(shop, parents, collected, pledged)
        try:
            candidate = rounds.compress(shop, parents, updated)
        except CompressionError as refusal:
            self._progress.say(f"not compressed: {refusal}")
            return None, None
        return rounds.gate(shop, live=live, candidate=candidate, pledged=pledged), candidate

    def check_drift(self) -> list[str]:
        """Look at every window of traffic that is new; what they say, a line each."""
        from lmloop.monitoring.watch import check

        windows = check(
            self._database,
            name=self._recipe.name,
            config=self._recipe.monitor,
            text_reference=self._text_reference,
        )
        return [str(window) for window in windows]

    def run(self, *, once: bool, clock: Callable[[], float] = time.monotonic) -> None:
        """Turn by schedule, alarm or feedback until interrupted; with `once`, look once.

        A round that fails, or a database that is away, is told and tried again at its time.
        """
        config = self._recipe.loop
        every, pause = parse_duration(config.every), parse_duration(config.check_every)
        due = clock() if once else clock() + every
        with suppress(BusyError), self._alone():
            self._resume()
        while True:
            try:
                if self._look(due=clock() >= due):
                    due = clock() + every
            except (LmloopError, sa.exc.SQLAlchemyError) as error:
                if once:
                    raise
                due = clock() + every
                self._progress.say(f"this round failed: {error}")
            if once:
                return
            self._wait(pause)

    def _look(self, *, due: bool) -> bool:
        """Look at drift, and turn if there is a cause; whether it was tried."""
        for line in self.check_drift():
            self._progress.say(line)
        cause = self._cause(due=due)
        if cause is None:
            return False
        try:
            turned = self.turn(cause=cause)
            self._progress.say(f"{turned.result}: {turned.reason}")
        except UpdateError as error:
            self._progress.say(f"no update: {error}")
        return True

    def _cause(self, *, due: bool) -> str | None:
        """Why a round should begin now, or None."""
        config = self._recipe.loop
        if not config.updates:
            return None
        name = self._recipe.name
        rounds_before = read_events(self._database, name=name, kinds=["round.started"], limit=1)
        after = rounds_before[-1].number if rounds_before else 0
        if config.on_alarm and read_events(
            self._database, name=name, kinds=["alarm"], after=after, limit=1
        ):
            return "alarm"
        if config.on_feedback is not None and self._has_new_feedback(config.on_feedback):
            return "feedback"
        return "schedule" if due else None

    def _has_new_feedback(self, wanted: int) -> bool:
        """Whether so many exchanges can be learnt, and something came since the last look."""
        from lmloop.updating.exchanges import stamp_feedback

        stamp = stamp_feedback(self._database)
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        return self._select(self._live()).count >= wanted

    def _select(self, live: Artifact) -> Selection:
        """What could be learnt now, and how much of it is new to the live model."""
        from lmloop.updating.collect import select

        return select(
            self._recipe.collect,
            engine=self._database,
            name=self._recipe.name,
            seed=self._recipe.seed,
            learnt=rounds.learnt_exchanges(live, self._shop.store),
        )

    def _text_reference(self) -> Sample:
        """Signals of held-out prompts of the training corpus under the live model, kept in a cache.

        A cache that cannot be read is made anew.
        """
        from lmloop.monitoring.sample import Sample

        live, limit = self._live(), self._recipe.monitor.reference_requests
        name = f"reference-{live.fingerprint[:16]}-{limit}-{self._recipe.seed}.json"
        path = self._home / "cache" / name
        with suppress(OSError, ValueError, KeyError, TypeError):
            return Sample.from_json(json.loads(path.read_text(encoding="utf-8")))
        sample = self._measure_text(live, limit=limit)
        make_folder(path.parent)
        write_json(path, sample.to_json())
        return sample

    def _measure_text(self, live: Artifact, *, limit: int) -> Sample:
        from lmloop.corpus.splits import read_split
        from lmloop.inference.load import load
        from lmloop.monitoring.reference import text_reference

        corpus = rounds.find_parents(live, self._shop.store).corpus
        heldout = read_split(corpus.path, "heldout")
        return text_reference(load(live.path), heldout, limit=limit, seed=self._recipe.seed)

    def _live(self) -> Artifact:
        entry = self.registry.read().get("live")
        if entry is None:
            raise ArtifactError(
                f"{self._recipe.name} has no live model yet: run its recipe first (lmloop run)"
            )
        live = open_artifact(entry.path)
        if live.fingerprint != entry.fingerprint:
            raise ArtifactError(
                f"{entry.path} is not what the registry says is live: run lmloop reindex"
            )
        return live

    def _make_rollout(self) -> Rollout:
        return Rollout(self.registry, self._recipe.rollout, wait=self._wait)

    def _decide(
        self,
        result: Literal["refused", "passed", "called back", "promoted"],
        reason: str,
        *,
        verdict: Artifact | None = None,
        candidate: Artifact | None = None,
    ) -> Turned:
        """Record how the round ended."""
        data = {
            "result": result,
            "reason": reason,
            "verdict": None if verdict is None else str(verdict.path),
            "candidate": None if candidate is None else candidate.fingerprint,
        }
        if result == "refused" and verdict is not None:
            self._record("gate.refused", data)
        self._record("round.finished", data)
        return Turned(result=result, reason=reason, verdict=verdict, candidate=candidate)

    def _record(self, kind: str, data: Mapping[str, Any]) -> None:
        record_event(self._database, kind, name=self._recipe.name, data=data)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Only one round of a model at a time."""
        key = hashlib.sha256(self._recipe.name.encode()).hexdigest()
        with self._shop.store.lock(f"update of {self._recipe.name}".replace(" ", "-"), key):
            yield
