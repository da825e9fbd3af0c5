"""The live page's routes: what they give, and what they do when the database is away."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from lmloop.errors import DatabaseError
from lmloop.serving.failures import install_failures
from lmloop.store.runs import Run
from lmloop.tracking import live
from lmloop.tracking.live import build_runs_pages

from .runs_made import make_run, make_step


class Runs:
    """Runs that grow."""

    def __init__(self) -> None:
        self.found: Sequence[Run] = [make_run(make_step(1, 4.0), make_step(2, 3.0))]
        self.is_away = False

    def __call__(self) -> Sequence[Run]:
        if self.is_away:
            raise DatabaseError("cannot be reached")
        return self.found


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.setattr(live, "FRESH_SECONDS", 0.0)
    return Runs()


@pytest.fixture
def client(runs: Runs) -> TestClient:
    app = FastAPI()
    install_failures(app)
    app.include_router(build_runs_pages(runs))
    return TestClient(app)


def test_the_page_and_its_files_are_given(client: TestClient) -> None:
    assert "runs.js" in client.get("/").text
    assert client.get("/runs.css").headers["content-type"].startswith("text/css")
    assert client.get("/runs.js").headers["content-type"].startswith("text/javascript")
    assert client.get("/inside.html").status_code == 404


def test_the_inside_follows_the_runs_and_is_sent_once(client: TestClient, runs: Runs) -> None:
    first = client.get("/inside")
    assert "3.000" in first.text
    again = client.get("/inside", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    runs.found = [make_run(make_step(1, 4.0), make_step(2, 3.0), make_step(3, 2.5))]
    later = client.get("/inside", headers={"If-None-Match": first.headers["etag"]})
    assert (later.status_code, "2.500" in later.text) == (200, True)


def test_a_reader_chooses_runs_and_axis(client: TestClient, runs: Runs) -> None:
    runs.found = [
        make_run(make_step(1, 4.0), make_step(2, 3.0), id=f"run-{number}") for number in range(2)
    ]
    text = client.get("/inside?run=run-1&axis=tokens").text
    assert 'over tokens"' in text
    assert text.count('class="line c') == 2


def test_a_database_that_is_away_is_told_as_such(client: TestClient, runs: Runs) -> None:
    runs.is_away = True
    answer = client.get("/inside")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_unavailable")
    runs.is_away = False
    assert client.get("/inside").status_code == 200
