"""The watch: each window once, alarms once an episode, whatever happens to the process."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import sqlalchemy as sa

from lmloop.monitoring.sample import Sample
from lmloop.monitoring.watch import DriftWindow, check
from lmloop.monitoring.windows import read_stretch
from lmloop.store.database import events_table, requests_table, transaction
from lmloop.store.events import read_events
from lmloop.upkeep import MonitorConfig

from . import simulated

CONFIG = MonitorConfig(window_requests=50, reference_requests=200)
LATER = simulated.START + 1e6
NEXT = "b" * 12


def look(engine: sa.Engine, *, now: float = LATER, text: Sample | None = None) -> list[DriftWindow]:
    return check(engine, name="chat", config=CONFIG, text_reference=lambda: text, clock=lambda: now)


def serve(engine: sa.Engine, count: int, *, first: int, **changes: Any) -> None:
    simulated.write(engine, *simulated.make_rows(count, seed=first + 1, first=first, **changes))


def alarms(engine: sa.Engine) -> list[dict[str, Any]]:
    return [dict(event.data) for event in read_events(engine, name="chat", kinds=["alarm"])]


def test_an_empty_database_has_no_windows(any_engine: sa.Engine) -> None:
    assert look(any_engine) == []


def test_every_complete_window_is_judged_once(any_engine: sa.Engine) -> None:
    serve(any_engine, 120, first=0)
    assert [window.requests for window in look(any_engine)] == [50, 50]
    assert look(any_engine) == []
    serve(any_engine, 40, first=120)
    assert len(look(any_engine)) == 1
    events = read_events(any_engine, name="chat", kinds=["drift.window"])
    assert len(events) == 3
    assert events[0].data["reference"]["kind"] == "none"
    assert str(look(any_engine)) == "[]"


def test_a_window_waits_for_its_long_answers(any_engine: sa.Engine) -> None:
    serve(any_engine, 50, first=0, total_seconds=30.0)
    last = simulated.START + 49
    assert look(any_engine, now=last + 30.5) == []
    assert len(look(any_engine, now=last + 31.5)) == 1


def test_a_third_of_other_traffic_raises_one_alarm_at_the_second_window(
    any_engine: sa.Engine,
) -> None:
    serve(any_engine, 300, first=0)
    serve(any_engine, 250, first=300, shifted=0.5)
    windows = look(any_engine)
    assert [window.reference.kind for window in windows] == ["none"] * 4 + ["live"] * 7
    assert [window.row for window in windows] == [0] * 6 + [1, 2, 3, 4, 5]
    assert [window.raises_alarm for window in windows].index(True) == 7
    (alarm,) = alarms(any_engine)
    assert "language" in alarm["signals"]
    assert alarm["windows"] == 2
    first = next(each for each in alarm["findings"] if each["signal"] == "language")
    assert first["before"]["en"] > 0.8 > first["now"]["en"]
    assert first["corrected"] < CONFIG.false_alarms
    assert alarm["first"] == simulated.START + 350
    assert str(windows[7]).startswith("ALARM: 50 requests: ")
    assert str(windows[5]) == "50 requests: quiet"
    assert str(windows[0]) == "50 requests: no reference yet"


def test_the_next_episode_raises_the_next_alarm(any_engine: sa.Engine) -> None:
    serve(any_engine, 200, first=0)
    for number, shifted in enumerate((0.6, 0.0, 0.6)):
        serve(any_engine, 150, first=200 + 150 * number, shifted=shifted)
    look(any_engine)
    assert len(alarms(any_engine)) == 2


def test_one_changed_window_alone_raises_nothing(any_engine: sa.Engine) -> None:
    serve(any_engine, 200, first=0)
    for number, shifted in enumerate((0.6, 0.0, 0.6, 0.0)):
        serve(any_engine, 50, first=200 + 50 * number, shifted=shifted)
    assert [window.row for window in look(any_engine)][4:] == [1, 0, 1, 0]
    assert alarms(any_engine) == []


def test_a_watch_that_looks_often_says_what_one_look_says(any_engine: sa.Engine) -> None:
    rows = [
        *simulated.make_rows(200, seed=1),
        *simulated.make_rows(200, seed=2, first=200, shifted=0.5),
    ]
    seen = []
    for row in range(0, len(rows), 25):
        simulated.write(any_engine, *rows[row : row + 25])
        seen += look(any_engine)
    assert [window.row for window in seen] == [0, 0, 0, 0, 1, 2, 3, 4]
    assert len(alarms(any_engine)) == 1


def test_training_text_is_the_reference_until_enough_requests_have_come(
    any_engine: sa.Engine,
) -> None:
    serve(any_engine, 250, first=0)
    stretch = read_stretch(any_engine, name="chat", limit=100)
    assert stretch is not None
    windows = look(any_engine, text=stretch.sample)
    assert [window.reference.kind for window in windows] == ["text"] * 4 + ["live"]
    assert windows[0].reference.weights == simulated.WEIGHTS
    assert not any(window.changed for window in windows)


def test_training_text_is_measured_once_a_look_and_only_if_needed(any_engine: sa.Engine) -> None:
    calls: list[int] = []

    def measure() -> None:
        calls.append(1)

    for _ in range(2):
        check(any_engine, name="chat", config=CONFIG, text_reference=measure, clock=lambda: LATER)
    assert calls == []
    serve(any_engine, 100, first=0)
    check(any_engine, name="chat", config=CONFIG, text_reference=measure, clock=lambda: LATER)
    assert calls == [1]


def test_new_weights_get_a_reference_of_their_own(any_engine: sa.Engine) -> None:
    serve(any_engine, 250, first=0)
    serve(any_engine, 250, first=250, weights=NEXT)
    windows = look(any_engine)
    kinds = [(window.weights[0], window.reference.weights[0]) for window in windows[4:]]
    assert kinds == [("a", "a")] + [("b", "a")] * 4 + [("b", "b")]
    of_the_prompt = {finding.signal for finding in windows[6].findings}
    assert of_the_prompt == {"prompt_characters", "language"}
    assert "embedding" in {finding.signal for finding in windows[9].findings}


def test_a_rollback_does_not_repeat_the_old_alarm(any_engine: sa.Engine) -> None:
    serve(any_engine, 200, first=0)
    serve(any_engine, 150, first=200, shifted=0.6)
    serve(any_engine, 250, first=350, shifted=0.6, weights=NEXT)
    serve(any_engine, 150, first=600, shifted=0.6)
    windows = look(any_engine)
    assert windows[-1].reference.weights == simulated.WEIGHTS
    assert windows[-1].alarmed
    assert len(alarms(any_engine)) == 1


def test_a_reference_that_was_deleted_is_taken_anew(any_engine: sa.Engine) -> None:
    serve(any_engine, 300, first=0)
    before = look(any_engine)[-1].reference
    table = requests_table
    with transaction(any_engine) as connection:
        connection.execute(table.delete().where(table.c.created < simulated.START + 80))
    serve(any_engine, 50, first=300)
    after = look(any_engine)[-1].reference
    assert before.first.created == simulated.START
    assert after.first.created == simulated.START + 80
    assert after.key != before.key


def test_a_clock_that_was_ahead_does_not_blind_the_watch(any_engine: sa.Engine) -> None:
    serve(any_engine, 50, first=0, start=LATER + 5000)
    assert len(look(any_engine, now=LATER + 6000)) == 1
    # The clock is set right: what comes now lies before the last window.
    serve(any_engine, 50, first=50, start=LATER)
    assert look(any_engine, now=LATER) == []
    assert len(look(any_engine, now=LATER - 0.5 + 102)) <= 1


def test_requests_of_the_future_wait_until_their_time(any_engine: sa.Engine) -> None:
    serve(any_engine, 25, first=0)
    serve(any_engine, 25, first=25, start=LATER + 100)
    assert look(any_engine) == []


def test_two_watches_at_once_judge_each_window_once(any_engine: sa.Engine) -> None:
    serve(any_engine, 300, first=0)
    serve(any_engine, 200, first=300, shifted=0.6)
    problems: list[BaseException] = []

    def run() -> None:
        try:
            look(any_engine)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert problems == []
    look(any_engine)
    events = read_events(any_engine, name="chat", kinds=["drift.window"])
    assert len(events) == 10
    assert len({event.data["last"][1] for event in events}) == 10
    assert len(alarms(any_engine)) == 1


def test_a_verdict_and_its_alarm_are_written_together_or_not_at_all(
    any_engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(any_engine, 200, first=0)
    serve(any_engine, 100, first=200, shifted=0.6)
    genuine = "lmloop.monitoring.watch.json.dumps"

    def fail(data: Any, **options: Any) -> str:
        raise OSError("killed")

    look(any_engine, now=simulated.START + 252)
    count = len(read_events(any_engine, name="chat"))
    with monkeypatch.context() as patch:
        patch.setattr(genuine, fail)
        with pytest.raises(OSError, match="killed"):
            look(any_engine)
    with any_engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(events_table)) == count
    assert look(any_engine)[-1].raises_alarm
    assert len(alarms(any_engine)) == 1
