"""One moment of a model, as plain data."""

from __future__ import annotations

import json
import time

import pytest
import sqlalchemy as sa

from lmloop.monitoring.summary import Summary, summarise
from lmloop.monitoring.watch import check
from lmloop.store.database import servers_table, transaction
from lmloop.store.events import record_event
from lmloop.upkeep import MonitorConfig

from . import simulated

CONFIG = MonitorConfig(window_requests=50, reference_requests=100)


def sum_up(engine: sa.Engine, *, now: float, seconds: float = 3600) -> Summary:
    return summarise(engine, name="chat", config=CONFIG, seconds=seconds, clock=lambda: now)


def fill(engine: sa.Engine) -> float:
    """Traffic whose last third is something else, looked at; the time then."""
    simulated.write(
        engine,
        *simulated.make_rows(200, seed=0),
        *simulated.make_rows(120, seed=1, first=200, shifted=0.6),
    )
    now = simulated.START + 400
    check(engine, name="chat", config=CONFIG, text_reference=lambda: None, clock=lambda: now)
    return now


def test_an_empty_database_says_so(any_engine: sa.Engine) -> None:
    summary = sum_up(any_engine, now=simulated.START)
    assert summary.empty
    assert summary.windows == summary.alarms == summary.events == ()
    assert summary.reference is None
    assert all(signal.now is None for signal in summary.signals)
    json.dumps(summary.to_json(), allow_nan=False)


def test_signals_stand_beside_their_reference(any_engine: sa.Engine) -> None:
    summary = sum_up(any_engine, now=fill(any_engine))
    signals = {signal.name: signal for signal in summary.signals}
    nats = signals["prompt_nats"]
    assert nats.reference == pytest.approx(4, abs=0.3)
    assert nats.now is not None
    assert nats.now > 4.4
    assert nats.low is not None
    assert nats.high is not None
    assert nats.low < nats.reference < nats.high
    assert [point.changed for point in nats.points][-1]
    assert signals["embedding"].now == signals["embedding"].points[-1].effect > 0.55
    assert summary.languages["zh"] > 0.3
    assert summary.reference_languages["en"] > 0.8
    json.dumps(summary.to_json(), allow_nan=False)


def test_windows_and_alarms_are_told(any_engine: sa.Engine) -> None:
    summary = sum_up(any_engine, now=fill(any_engine))
    assert [window.raises_alarm for window in summary.windows] == [False] * 5 + [True]
    assert [window.reference for window in summary.windows] == ["none"] * 2 + ["live"] * 4
    assert summary.windows[-1].alarmed
    assert summary.waiting == 20
    assert len(summary.alarms) == 1
    assert summary.reference is not None
    assert summary.reference["weights"] == simulated.WEIGHTS
    assert [event.kind for event in summary.events] == ["alarm"]


def test_the_newest_events_come_first_and_windows_are_no_events(any_engine: sa.Engine) -> None:
    for number in range(25):
        record_event(any_engine, "round.started", name="chat", data={"number": number})
    record_event(any_engine, "drift.window", name="other", data={})
    summary = sum_up(any_engine, now=time.time())
    assert not summary.empty
    assert [event.data["number"] for event in summary.events] == list(range(24, 4, -1))


def test_servers_are_told_with_their_silence(any_engine: sa.Engine) -> None:
    row = {
        "id": "one",
        "name": "chat",
        "address": "http://127.0.0.1:8000",
        "started": 1.0,
        "heard": simulated.START - 7,
        "generation": 3,
        "live": "a" * 12,
        "candidate_state": "absent",
    }
    with transaction(any_engine) as connection:
        connection.execute(servers_table.insert(), [row, {**row, "id": "two", "name": "other"}])
    (server,) = sum_up(any_engine, now=simulated.START).servers
    assert (server.address, server.generation) == ("http://127.0.0.1:8000", 3)
    assert server.silent_seconds == pytest.approx(7)


@pytest.mark.slow
def test_a_hundred_thousand_requests_are_summed_up_within_a_second(any_engine: sa.Engine) -> None:
    rows = list(simulated.make_rows(100_000, seed=0, spacing=0.03))
    simulated.write(any_engine, *rows)
    simulated.write(any_engine, *(simulated.rating(row, rating=1) for row in rows[::10]))
    # The least of three: others may be at work on this machine.
    spent = []
    for _ in range(3):
        started = time.perf_counter()
        summary = sum_up(any_engine, now=simulated.START + 3100)
        spent.append(time.perf_counter() - started)
    assert summary.traffic.requests == 100_000
    assert min(spent) < 1.0
