"""What the routes share."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from lmloop.errors import RequestError
from lmloop.sections import ServeConfig
from lmloop.serving.router import Router
from lmloop.serving.service import ForwardClock, Service, open_service
from lmloop.store.database import open_database, requests_table

from .harness import fake_spec
from .rows_made import request_row


def test_the_clock_never_runs_backwards() -> None:
    times = iter([5.0, 7.0, 6.0, -1e9, 7.5])
    clock = ForwardClock(lambda: next(times))
    assert [clock() for _ in range(5)] == [5.0, 7.0, 7.0, 7.0, 7.5]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = open_database(f"sqlite:///{tmp_path / 'a.db'}")
    yield engine
    engine.dispose()


def make_service(tmp_path: Path, database: sa.Engine, **settings: Any) -> Service:
    return open_service(
        ServeConfig(**settings),
        router=Router(fake_spec(tmp_path)),
        model_name="m",
        model_created=1,
        database=database,
    )


@pytest.mark.parametrize(("days", "kept"), [(7.0, 0), (None, 1)])
def test_rows_are_kept_as_long_as_the_recipe_says(
    tmp_path: Path, database: sa.Engine, days: float | None, kept: int
) -> None:
    with database.begin() as connection:
        connection.execute(requests_table.insert().values(request_row(created=1.0)))
    service = make_service(tmp_path, database, retention_days=days)
    asyncio.run(service.close())
    with database.connect() as connection:
        assert len(connection.execute(sa.select(requests_table)).all()) == kept


def test_closing_writes_what_waits(tmp_path: Path, database: sa.Engine) -> None:
    service = make_service(tmp_path, database, retention_days=None)
    service.events.record(requests_table, request_row)
    asyncio.run(service.close())
    with database.connect() as connection:
        assert connection.scalars(sa.select(requests_table.c.id)).all() == ["a"]


def test_only_the_served_model_is_known_and_odd_names_are_cut(
    tmp_path: Path, database: sa.Engine
) -> None:
    service = make_service(tmp_path, database)
    service.check_model("m")
    for name in ("", "M", "m ", "x" * 10_000, "a\r\nb"):
        with pytest.raises(RequestError) as caught:
            service.check_model(name)
        assert (caught.value.status, caught.value.code) == (404, "model_not_found")
        assert len(str(caught.value)) < 250
        assert "\n" not in str(caught.value)
    service.events.close()
