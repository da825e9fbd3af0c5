"""Rows that go when their time is over, and stay when the clock is wrong."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from lmloop.serving import retention as retention_module
from lmloop.serving.retention import EVERY_SECONDS, Retention
from lmloop.store.database import open_database, requests_table

from .rows_made import request_row

DAY = 86_400.0
NOW = 1000 * DAY


class Clocks:
    """Both clocks of a machine, moved by hand."""

    def __init__(self) -> None:
        self.wall = NOW
        self.steady = 5.0

    def pass_seconds(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = open_database(f"sqlite:///{tmp_path / 'events.db'}")
    ages = {"old": 8, "week": 6.99, "new": 0}
    with engine.begin() as connection:
        for name, days in ages.items():
            row = request_row(id=name, created=NOW - days * DAY)
            connection.execute(requests_table.insert().values(row))
    yield engine
    engine.dispose()


def make_retention(database: sa.Engine, clocks: Clocks) -> Retention:
    return Retention(database, days=7, wall_clock=lambda: clocks.wall, clock=lambda: clocks.steady)


def kept(database: sa.Engine) -> set[str]:
    with database.connect() as connection:
        return set(connection.scalars(sa.select(requests_table.c.id)))


def test_what_is_too_old_goes_at_once_and_the_rest_when_its_hour_comes(
    database: sa.Engine, clocks: Clocks, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    retention = make_retention(database, clocks)
    assert retention.seconds_left() <= 0
    retention.enforce()
    assert kept(database) == {"week", "new"}
    assert "1 expired" in caplog.text
    assert retention.seconds_left() == EVERY_SECONDS
    clocks.pass_seconds(EVERY_SECONDS)
    assert retention.seconds_left() == 0
    retention.enforce()
    assert kept(database) == {"new"}


@pytest.mark.parametrize("jump", [400 * DAY, 61.0, -61.0, -400 * DAY])
def test_a_clock_that_was_moved_deletes_nothing_that_time(
    database: sa.Engine, clocks: Clocks, jump: float, caplog: pytest.LogCaptureFixture
) -> None:
    retention = make_retention(database, clocks)
    clocks.wall += jump
    retention.enforce()
    assert kept(database) == {"old", "week", "new"}
    assert f"moved by {jump:.0f} s" in caplog.text
    # The clock is set right again: that is a jump as well, and the hour after all is as usual.
    clocks.wall -= jump
    retention.enforce()
    assert kept(database) == {"old", "week", "new"}
    clocks.pass_seconds(EVERY_SECONDS)
    retention.enforce()
    assert kept(database) == {"new"}


def test_a_clock_that_is_corrected_by_seconds_does_not_matter(
    database: sa.Engine, clocks: Clocks
) -> None:
    retention = make_retention(database, clocks)
    clocks.wall += 59
    retention.enforce()
    assert kept(database) == {"week", "new"}


def test_a_database_that_is_away_is_tried_again_an_hour_later(
    database: sa.Engine,
    clocks: Clocks,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    retention = make_retention(database, clocks)
    with monkeypatch.context() as patch:

        def fail(*_: object, **__: object) -> int:
            raise sa.exc.OperationalError("delete alice@example.org", None, OSError("full"))

        patch.setattr(retention_module, "delete_expired", fail)
        retention.enforce()
    assert "OperationalError" in caplog.text
    assert "alice" not in caplog.text
    assert retention.seconds_left() == EVERY_SECONDS
    clocks.pass_seconds(EVERY_SECONDS)
    retention.enforce()
    assert kept(database) == {"new"}
