"""Runs in the database: what is kept of them, while they go on and after every kind of end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from lmloop.errors import DatabaseError, PrunedError, StoppedError
from lmloop.store.database import open_database
from lmloop.store.runs import POINTS, Run, RunLog, is_alive, read_runs


def make_entry(step: int, *, of: int = 100, **more: Any) -> dict[str, Any]:
    figures = {"loss": 4.0 - step / of, "norm": 1.0, "factor": 1.0}
    place = {"share": (step - 1) / of, "seconds": step / 2, "tokens": 32 * step}
    return {"step": step, **place, **figures, **more}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def make_log(any_url: str) -> Callable[..., RunLog]:
    def make(run: str = "pretrain-0", clock: Clock | None = None) -> RunLog:
        return RunLog(
            lambda: open_database(any_url),
            run=run,
            name="tiny",
            stage="pretrain",
            tell=pytest.fail,
            clock=clock or Clock(),
        )

    return make


def test_a_run_is_seen_while_it_goes_on_at_most_a_second_late(
    make_log: Callable[..., RunLog], any_engine: sa.Engine
) -> None:
    clock = Clock()
    with make_log(clock=clock) as log:
        log.write(make_entry(1))
        log.write(make_entry(2))
        (run,) = read_runs(any_engine)
        assert (run.state, run.last("step"), run.started) == ("running", 1, 1000)
        clock.now += 1
        log.write(make_entry(3, validation_bpb=2.5))
        (run,) = read_runs(any_engine)
        assert (run.last("step"), run.last("validation_bpb"), run.heard) == (3, 2.5, 1001)
        assert run.tokens_a_second == 64
    (run,) = read_runs(any_engine)
    assert (run.state, run.note) == ("finished", None)


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (StoppedError("saved"), "stopped"),
        (KeyboardInterrupt(), "stopped"),
        (PrunedError("worse"), "pruned"),
        (ValueError("broken"), "failed"),
    ],
)
def test_how_a_run_ended_is_kept_with_the_reason(
    make_log: Callable[..., RunLog], any_engine: sa.Engine, error: BaseException, state: str
) -> None:
    with pytest.raises(type(error)), make_log() as log:
        log.write(make_entry(1))
        raise error
    (run,) = read_runs(any_engine)
    assert (run.state, run.note) == (state, str(error))


def test_a_stage_that_journals_nothing_has_no_row(
    make_log: Callable[..., RunLog], any_engine: sa.Engine
) -> None:
    with make_log():
        pass
    assert read_runs(any_engine) == []


def test_steps_that_are_done_again_replace_what_was_there(
    make_log: Callable[..., RunLog], any_engine: sa.Engine
) -> None:
    with make_log() as log:
        for step in range(1, 8):
            log.write(make_entry(step))
        for step in range(5, 7):  # a rollback within the run
            log.write(make_entry(step, loss=9.0))
    with make_log() as log:  # a second process after a kill
        log.write(make_entry(6, loss=8.0))
    (run,) = read_runs(any_engine)
    told = {step["step"]: step["loss"] for step in run.steps}
    assert list(told) == [1, 2, 3, 4, 5, 6]
    assert (told[4], told[5], told[6]) == (4.0 - 4 / 100, 9.0, 8.0)


def test_a_long_run_is_thinned_and_keeps_its_validations(
    make_log: Callable[..., RunLog], any_engine: sa.Engine
) -> None:
    with make_log() as log:
        for step in range(1, 3001):
            more = {"validation_bpb": 2.0} if step % 1000 == 7 else {}
            log.write(make_entry(step, of=3000, **more))
    (run,) = read_runs(any_engine)
    assert POINTS * 0.9 < len(run.steps) <= POINTS + 3
    assert [each["step"] for each in run.steps if each["validation_bpb"]] == [7, 1007, 2007]


def test_the_newest_runs_come_first_by_name_if_asked(
    make_log: Callable[..., RunLog], any_engine: sa.Engine
) -> None:
    clock = Clock()
    for number in range(3):
        clock.now += 1
        with make_log(f"pretrain-{number}", clock) as log:
            log.write(make_entry(1))
    assert [run.id for run in read_runs(any_engine, most=2)] == ["pretrain-2", "pretrain-1"]
    assert len(read_runs(any_engine, name="tiny")) == 3
    assert read_runs(any_engine, name="other") == []


def test_a_database_that_is_away_is_told_once_and_does_not_end_the_run() -> None:
    said: list[str] = []

    def away() -> sa.Engine:
        raise DatabaseError("cannot be reached")

    with RunLog(away, run="r", name="n", stage="s", tell=said.append) as log:
        for step in range(1, 4):
            log.write(make_entry(step))
    assert len(said) == 1
    assert "cannot be reached" in said[0]


@pytest.mark.parametrize(
    ("state", "is_held", "silent", "expected"),
    [
        ("running", True, 1000.0, True),
        ("running", False, 5.0, True),
        ("running", False, 1000.0, False),
        ("finished", True, 0.0, False),
    ],
)
def test_a_run_is_alive_while_it_is_held_or_heard_of(
    state: str, is_held: bool, silent: float, expected: bool
) -> None:
    place = {"id": "r", "name": "n", "stage": "s", "note": None, "steps": ()}
    run = Run(state=state, started=0.0, heard=2000.0 - silent, **place)  # type: ignore[arg-type]
    assert is_alive(run, is_held=is_held, now=2000.0) is expected


def test_speed_and_samples_of_a_step_are_kept(
    make_log: Callable[..., RunLog], any_engine: sa.Engine
) -> None:
    said = [{"prompt": "the", "text": "cat"}]
    with make_log() as log:
        log.write(make_entry(1, bpb=2.5))
        log.write(make_entry(2, tokens_per_second=100.0, peak_share=0.5))
        log.write(make_entry(3, validation_bpb=2.0, samples=said))
    (run,) = read_runs(any_engine)
    assert (run.last("bpb"), run.last("tokens_per_second"), run.last("peak_share")) == (
        *(2.5, 100.0),
        0.5,
    )
    assert [step["samples"] for step in run.steps] == [[], [], said]
