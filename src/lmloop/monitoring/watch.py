"""The watch: every complete window of new traffic is judged once, and alarms are raised.

Takes: the database and a recipe's thresholds. Gives: verdicts, each an event `drift.window` with
its numbers, and events `alarm`. These events are all the state there is: a watch that is killed
goes on where it was, and several watches of one model share the work.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from lmloop.monitoring.drift import Finding, compare
from lmloop.monitoring.sample import Sample
from lmloop.monitoring.windows import START, Mark, Stretch, read_stretch
from lmloop.store.database import events_table, transaction
from lmloop.store.events import Event, read_events
from lmloop.upkeep import MonitorConfig

WINDOW = "drift.window"
ALARM = "alarm"
SETTLING_SECONDS = 1.0
"""How long a row may take into the database once its answer is over."""
LEAST_LEFT = 0.8
"""A live reference of which less is left (retention, `lmloop forget`) is taken anew."""
REMEMBERED = 200
"""Windows in which an earlier episode of a reference is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What windows are compared with."""

    kind: str
    """`text`, `live`, or `none` where there is nothing to compare with yet."""
    weights: str
    """Version that its answers and embeddings are of."""
    first: Mark = START
    last: Mark = START
    """Where the requests of a live reference lie."""
    size: int = 0
    """Its requests when it was taken."""

    @property
    def key(self) -> tuple[str, str, float]:
        """Equal for the same reference."""
        return self.kind, self.weights, self.first.created

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        marks = {"first": self.first.to_json(), "last": self.last.to_json()}
        return {"kind": self.kind, "weights": self.weights, "size": self.size, **marks}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Reference:
        """What `to_json` wrote."""
        marks = {"first": Mark(*data["first"]), "last": Mark(*data["last"])}
        return cls(kind=data["kind"], weights=data["weights"], size=data["size"], **marks)


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftWindow:
    """The verdict on one window."""

    reference: Reference
    weights: str
    """Version that answered most of its requests."""
    requests: int
    first: Mark
    last: Mark
    findings: tuple[Finding, ...]
    row: int
    """Changed windows up to this one, one after the other; 0 for one that is not changed."""
    alarmed: bool
    """Whether this episode's alarm has been raised, by this window or before."""
    raises_alarm: bool

    @property
    def changed(self) -> list[Finding]:
        """What is different."""
        return [each for each in self.findings if each.changed]

    def __str__(self) -> str:
        told = ", ".join(f"{each.signal} ({each.effect:.2f})" for each in self.changed) or "quiet"
        if self.reference.kind == "none":
            told = "no reference yet"
        return f"{'ALARM: ' if self.raises_alarm else ''}{self.requests} requests: {told}"

    def to_json(self) -> dict[str, Any]:
        """Plain data, as the event has it."""
        return {
            "reference": self.reference.to_json(),
            "weights": self.weights,
            "requests": self.requests,
            "first": self.first.to_json(),
            "last": self.last.to_json(),
            "changed": [each.signal for each in self.changed],
            "findings": [each.to_json() for each in self.findings],
            "row": self.row,
            "alarmed": self.alarmed,
            "raises_alarm": self.raises_alarm,
        }


def check(
    engine: sa.Engine,
    *,
    name: str,
    config: MonitorConfig,
    text_reference: Callable[[], Sample | None],
    clock: Callable[[], float] = time.time,
) -> list[DriftWindow]:
    """Judge every complete window of a model's requests since the last look; give the verdicts.

    `text_reference` gives signals of training text under the live weights, None where there is no
    text; it is called at most once, and only where a window has to be compared with it.
    """
    watch = _Watch(engine, name, config, text_reference)
    return list(watch.judge_all(now=clock()))


class _Watch:
    """One look."""

    def __init__(
        self,
        engine: sa.Engine,
        name: str,
        config: MonitorConfig,
        text_reference: Callable[[], Sample | None],
    ) -> None:
        self._engine, self._name, self._config = engine, name, config
        self._make_text = text_reference
        self._text: Sample | None = None
        self._text_made = False
        self._live: tuple[Reference, Sample] | None = None
        """The live reference read last."""

    def judge_all(self, *, now: float) -> Iterator[DriftWindow]:
        """Verdicts on all windows that are complete `now`."""
        while True:
            newest = self._read_windows(limit=1)
            # A clock that was ahead must not blind the watch until its time comes.
            after = min(_end_of(newest), Mark(now, ""))
            stretch = read_stretch(
                self._engine,
                name=self._name,
                limit=self._config.window_requests,
                after=after,
                until=Mark(now, ""),
            )
            if stretch is None or not self._is_complete(stretch, now):
                return
            window = self._judge(stretch, self._read_windows(limit=REMEMBERED), after=after)
            if not self._record(window, behind=newest[-1].number if newest else 0):
                # Another watch was faster: it goes on.
                return
            yield window

    def _is_complete(self, stretch: Stretch, now: float) -> bool:
        """Whether all its requests are over: the row of a long answer comes late."""
        settled = stretch.last.created + stretch.longest_seconds + SETTLING_SECONDS <= now
        return settled and len(stretch.sample) == self._config.window_requests

    def _read_windows(self, *, limit: int) -> list[Event]:
        return read_events(self._engine, name=self._name, kinds=[WINDOW], limit=limit)

    def _judge(self, stretch: Stretch, events: Sequence[Event], *, after: Mark) -> DriftWindow:
        weights = stretch.sample.main_weights()
        reference, sample = self._find_reference(weights, events, after=after)
        findings: list[Finding] = []
        if sample is not None:
            seed = int(1000 * stretch.last.created)
            findings = compare(sample, stretch.sample, config=self._config, seed=seed)
        row, alarmed = 0, False
        if any(each.changed for each in findings):
            before = _state_before(reference, events)
            row = before.row + 1
            alarmed = before.alarmed
        raises_alarm = row >= self._config.windows_in_a_row and not alarmed
        return DriftWindow(
            reference=reference,
            weights=weights,
            requests=len(stretch.sample),
            first=stretch.first,
            last=stretch.last,
            findings=tuple(findings),
            row=row,
            alarmed=alarmed or raises_alarm,
            raises_alarm=raises_alarm,
        )

    def _find_reference(
        self, weights: str, events: Sequence[Event], *, after: Mark
    ) -> tuple[Reference, Sample | None]:
        """What a window answered by `weights` is compared with.

        The first live requests that this version answered; until there are enough of them, those of
        the version before; before all that, training text.
        """
        known = [Reference.from_json(event.data["reference"]) for event in reversed(events)]
        live = [reference for reference in known if reference.kind == "live"]
        own = next((reference for reference in live if reference.weights == weights), None)
        found = None if own is None else self._read_live(own)
        if found is None and self._has_enough(weights, events):
            found = self._take_live(weights, after=after)
        if found is None and live:
            found = self._read_live(live[0])
        if found is not None:
            return found
        text = self._read_text()
        if text is None:
            return Reference(kind="none", weights=weights), None
        return Reference(kind="text", weights=text.main_weights(), size=len(text)), text

    def _read_live(self, reference: Reference) -> tuple[Reference, Sample] | None:
        """A live reference's requests, None where too few of them are left."""
        if self._live is not None and self._live[0] == reference:
            return self._live
        stretch = read_stretch(
            self._engine,
            name=self._name,
            limit=reference.size,
            after=Mark(reference.first.created, ""),
            until=reference.last,
            weights=reference.weights,
        )
        if stretch is None or len(stretch.sample) < LEAST_LEFT * reference.size:
            return None
        self._live = reference, stretch.sample
        return self._live

    def _has_enough(self, weights: str, events: Sequence[Event]) -> bool:
        """Whether a version's requests may suffice for a reference: a look at them costs more."""
        judged = sum(each.data["requests"] for each in events if each.data["weights"] == weights)
        return judged >= self._config.reference_requests or len(events) == REMEMBERED

    def _take_live(self, weights: str, *, after: Mark) -> tuple[Reference, Sample] | None:
        """The first requests of a version as its reference, None where it has too few so far."""
        size = self._config.reference_requests
        stretch = read_stretch(
            self._engine, name=self._name, limit=size, until=after, weights=weights
        )
        if stretch is None or len(stretch.sample) < size:
            return None
        reference = Reference(
            kind="live", weights=weights, first=stretch.first, last=stretch.last, size=size
        )
        self._live = reference, stretch.sample
        return self._live

    def _read_text(self) -> Sample | None:
        if not self._text_made:
            self._text, self._text_made = self._make_text(), True
        return self._text if self._text is not None and len(self._text) else None

    def _record(self, window: DriftWindow, *, behind: int) -> bool:
        """Write a verdict and its alarm together, unless a newer verdict than `behind` is there."""
        table = events_table
        ours = sa.and_(table.c.name == self._name, table.c.kind == WINDOW)
        with transaction(self._engine) as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.text("LOCK TABLE events IN SHARE ROW EXCLUSIVE MODE"))
            newest = connection.scalar(sa.select(sa.func.max(table.c.number)).where(ours))
            if (newest or 0) != behind:
                return False
            for kind, data in _events_of(window):
                row = {"created": time.time(), "kind": kind, "name": self._name}
                text = json.dumps(data, ensure_ascii=False)
                connection.execute(table.insert().values(data=text, **row))
        return True


def _events_of(window: DriftWindow) -> Iterator[tuple[str, dict[str, Any]]]:
    yield WINDOW, window.to_json()
    if window.raises_alarm:
        changed = [each.to_json() for each in window.changed]
        yield (
            ALARM,
            {
                "signals": [each["signal"] for each in changed],
                "findings": changed,
                "reference": window.reference.to_json(),
                "weights": window.weights,
                "requests": window.requests,
                "windows": window.row,
                "first": window.first.created,
                "last": window.last.created,
            },
        )


def _end_of(events: Sequence[Event]) -> Mark:
    return Mark(*events[-1].data["last"]) if events else START


@dataclass(frozen=True, slots=True)
class _State:
    row: int
    alarmed: bool


def _state_before(reference: Reference, events: Sequence[Event]) -> _State:
    """How the last window of a reference stood: the row counts neighbours only, an episode lasts.

    A rollback brings an older reference back; an alarm raised under it is not raised again.
    """
    for distance, event in enumerate(reversed(events)):
        if Reference.from_json(event.data["reference"]).key == reference.key:
            row = event.data["row"] if distance == 0 else 0
            return _State(row=row, alarmed=event.data["alarmed"])
    return _State(row=0, alarmed=False)
