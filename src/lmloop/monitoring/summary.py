"""All that is known of a served model at one moment, as plain data.

Takes: the database and a model's name. Gives: a `Summary` that the terminal and the page show:
traffic, signals beside their reference, drift, servers, and what was decided lately.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa

from lmloop.monitoring.sample import EMBEDDING, NUMBERS
from lmloop.monitoring.traffic import Traffic, measure_traffic
from lmloop.monitoring.watch import ALARM, WINDOW
from lmloop.store.database import events_table, requests_table, servers_table
from lmloop.store.events import Event, read_events
from lmloop.upkeep import MonitorConfig

MAX_WINDOWS = 60
MAX_EVENTS = 20
MAX_ALARMS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A signal in one window."""

    window: float
    """When the window's last request ended."""
    now: float | None
    """Median or share; None for a signal that is no number."""
    effect: float
    p: float
    """Among all tests of the window."""
    changed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """A signal now and in the newest windows."""

    name: str
    now: float | None
    """Median, or share, of the newest requests; area under the curve for the embedding."""
    reference: float | None
    low: float | None
    """Quartiles of the reference."""
    high: float | None
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The verdict on a window."""

    first: float
    last: float
    requests: int
    weights: str
    reference: str
    """`text`, `live` or `none`."""
    changed: tuple[str, ...]
    alarmed: bool
    """Whether it belongs to an episode whose alarm has been raised."""
    raises_alarm: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """An event."""

    created: float
    kind: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server of this model."""

    id: str
    address: str
    generation: int
    live: str | None
    candidate: str | None
    candidate_state: str
    note: str | None
    silent_seconds: float
    """Since it was last heard of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One moment."""

    name: str
    created: float
    seconds: float
    """The span that `traffic` covers, up to `created`."""
    empty: bool
    """Whether nothing was ever served or decided under this name."""
    traffic: Traffic
    signals: tuple[Signal, ...]
    languages: Mapping[str, float]
    """Shares among the newest requests."""
    reference_languages: Mapping[str, float]
    reference: Mapping[str, Any] | None
    """What the newest window was compared with."""
    window_requests: int
    waiting: int
    """Requests since the newest window; at `window_requests` they are the next one."""
    windows: tuple[Window, ...]
    alarms: tuple[Happening, ...]
    servers: tuple[Server, ...]
    events: tuple[Happening, ...]
    """The newest, verdicts on windows left out."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def summarise(
    engine: sa.Engine,
    *,
    name: str,
    config: MonitorConfig,
    seconds: float,
    clock: Callable[[], float] = time.time,
) -> Summary:
    """Sum up the last `seconds` of a model's traffic, and what was decided about it."""
    now = clock()
    traffic = measure_traffic(engine, name=name, start=now - seconds, seconds=seconds)
    windows = read_events(engine, name=name, kinds=[WINDOW], limit=MAX_WINDOWS)
    newest = _read_newest(engine, name=name, limit=config.window_requests)
    events = _read_happenings(engine, name)
    findings = _newest_findings(windows)
    words = Counter(signals["language"] for signals in newest if signals.get("language"))
    return Summary(
        name=name,
        created=now,
        seconds=seconds,
        empty=not (newest or windows or events or any(row.requests for row in traffic.arms)),
        traffic=traffic,
        signals=tuple(_describe_signals(newest, windows, findings)),
        languages=_shares(words),
        reference_languages=findings.get("language", {}).get("before") or {},
        reference=windows[-1].data["reference"] if windows else None,
        window_requests=config.window_requests,
        waiting=_count_behind(engine, name, windows[-1].data["last"][0] if windows else 0.0),
        windows=tuple(map(_describe_window, windows)),
        alarms=tuple(
            _describe_event(event)
            for event in read_events(engine, name=name, kinds=[ALARM], limit=MAX_ALARMS)
        ),
        servers=tuple(_read_servers(engine, name, now)),
        events=events,
    )


def _read_newest(engine: sa.Engine, *, name: str, limit: int) -> list[dict[str, Any]]:
    """Signals of the newest requests."""
    table = requests_table
    query = (
        sa.select(table.c.signals)
        .where(table.c.model == name, table.c.arm != "shadow", table.c.signals.is_not(None))
        .order_by(table.c.created.desc())
        .limit(limit)
    )
    with engine.connect() as connection:
        return [json.loads(text) for text in connection.scalars(query)]


def _newest_findings(windows: Sequence[Event]) -> dict[str, Mapping[str, Any]]:
    """By signal, from the newest window that has one."""
    found: dict[str, Mapping[str, Any]] = {}
    for event in windows:
        found |= {each["signal"]: each for each in event.data["findings"]}
    return found


def _describe_signals(
    newest: Sequence[Mapping[str, Any]],
    windows: Sequence[Event],
    findings: Mapping[str, Mapping[str, Any]],
) -> list[Signal]:
    names = [
        *NUMBERS,
        "refusal",
        "length_stop",
        *(name for name in findings if name not in NUMBERS),
    ]
    return [
        _describe_signal(name, newest, windows, findings.get(name, {}))
        for name in dict.fromkeys(names)
    ]


def _describe_signal(
    name: str,
    newest: Sequence[Mapping[str, Any]],
    windows: Sequence[Event],
    finding: Mapping[str, Any],
) -> Signal:
    points = tuple(
        Point(
            window=event.data["last"][0],
            now=each["effect"] if name == EMBEDDING else _number(each["now"]),
            effect=each["effect"],
            p=each["corrected"],
            changed=each["changed"],
        )
        for event in windows
        for each in event.data["findings"]
        if each["signal"] == name
    )
    values = [value for signals in newest if (value := _number(signals.get(name))) is not None]
    now = points[-1].now if points else None
    if values:
        now = float(np.median(values) if name in NUMBERS else np.mean(values))
    more = finding.get("more", {})
    return Signal(
        name=name,
        now=now,
        reference=_number(finding.get("before")),
        low=more.get("low"),
        high=more.get("high"),
        points=points,
    )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, bool | int | float) else None


def _shares(words: Counter[str]) -> dict[str, float]:
    total = sum(words.values())
    return {word: count / total for word, count in words.most_common()}


def _count_behind(engine: sa.Engine, name: str, created: float) -> int:
    table = requests_table
    query = (
        sa.select(sa.func.count())
        .select_from(table)
        .where(table.c.model == name, table.c.arm != "shadow", table.c.signals.is_not(None))
        .where(table.c.created > created)
    )
    with engine.connect() as connection:
        return int(connection.scalar(query) or 0)


def _describe_window(event: Event) -> Window:
    data = event.data
    return Window(
        first=data["first"][0],
        last=data["last"][0],
        requests=data["requests"],
        weights=data["weights"],
        reference=data["reference"]["kind"],
        changed=tuple(data["changed"]),
        alarmed=data["alarmed"],
        raises_alarm=data["raises_alarm"],
    )


def _describe_event(event: Event) -> Happening:
    return Happening(created=event.created, kind=event.kind, data=event.data)


def _read_happenings(engine: sa.Engine, name: str) -> tuple[Happening, ...]:
    table = events_table
    query = (
        sa.select(table)
        .where(table.c.name == name, table.c.kind != WINDOW)
        .order_by(table.c.number.desc())
        .limit(MAX_EVENTS)
    )
    with engine.connect() as connection:
        rows = connection.execute(query).mappings().all()
    return tuple(
        Happening(created=row["created"], kind=row["kind"], data=json.loads(row["data"]))
        for row in rows
    )


def _read_servers(engine: sa.Engine, name: str, now: float) -> list[Server]:
    table = servers_table
    query = sa.select(table).where(table.c.name == name).order_by(table.c.heard.desc())
    with engine.connect() as connection:
        rows = connection.execute(query).mappings().all()
    kept = ("id", "address", "generation", "live", "candidate", "candidate_state", "note")
    return [
        Server(**{each: row[each] for each in kept}, silent_seconds=max(0.0, now - row["heard"]))
        for row in rows
    ]
