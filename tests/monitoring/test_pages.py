"""The monitor's routes: the page, its files, its data, and the dashboard for Grafana."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from lmloop.monitoring import pages
from lmloop.monitoring.pages import WEB_FOLDER, build_monitor_pages
from lmloop.serving.access import Door
from lmloop.serving.metrics import Metrics
from lmloop.store.database import database_url, open_database
from lmloop.upkeep import MonitorConfig

from . import simulated


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = open_database(database_url(tmp_path))
    yield engine
    engine.dispose()


@pytest.fixture
def client(database: sa.Engine) -> TestClient:
    app = FastAPI()
    app.include_router(build_monitor_pages(database, name="chat", config=MonitorConfig()))
    app.add_middleware(Door, host="127.0.0.1", metrics=Metrics(model="chat"))
    return TestClient(app, base_url="http://127.0.0.1")


def test_the_page_and_all_its_files_are_served(client: TestClient) -> None:
    page = client.get("/monitor")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    linked = re.findall(r'(?:href|src)="(/monitor/[^"]+)"', page.text)
    modules = re.findall(r'from "\./([^"]+)"', client.get("/monitor/monitor.js").text)
    assert len(linked) == 3
    for url in (*linked, *(f"/monitor/{name}" for name in modules)):
        assert client.get(url).status_code == 200, url
    assert client.head("/monitor").status_code == 200


def test_nothing_is_inline_or_from_elsewhere() -> None:
    for path in WEB_FOLDER.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text, path
        assert "https://" not in text, path
        assert "innerHTML" not in text, path
    page = (WEB_FOLDER / "monitor.html").read_text(encoding="utf-8")
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=", page) == []


def test_every_word_of_the_page_is_there_in_both_languages() -> None:
    text = (WEB_FOLDER / "words.js").read_text(encoding="utf-8")
    english, chinese = (
        set(re.findall(r"^  (\w+):", re.split(r"const TABLES", part)[0], re.MULTILINE))
        for part in text.split("const CHINESE")
    )
    assert english == chinese
    used = {"drift_none", "drift_quiet", "drift_changed", "drift_alarm", "drift_learning"}
    for path in WEB_FOLDER.iterdir():
        page = path.read_text(encoding="utf-8")
        used |= {
            *re.findall(r'data-(?:text|label)="(\w+)"', page),
            *re.findall(r'\bt\("(\w+)"', page),
        }
    assert used <= english


def test_the_data_are_those_of_the_summary(client: TestClient, database: sa.Engine) -> None:
    simulated.write(database, *simulated.make_rows(3, seed=0))
    response = client.get("/monitor/data.json", params={"minutes": 15})
    assert response.headers["cache-control"] == "no-store"
    data = response.json()
    assert (data["name"], data["seconds"], data["empty"]) == ("chat", 900.0, False)
    assert data["waiting"] == 3


def test_data_are_kept_for_a_moment(
    client: TestClient, database: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.get("/monitor/data.json").json()["empty"]
    simulated.write(database, *simulated.make_rows(3, seed=0))
    assert client.get("/monitor/data.json").json()["empty"]
    assert not client.get("/monitor/data.json?minutes=15").json()["empty"]
    monkeypatch.setattr(pages, "FRESH_SECONDS", 0.0)
    assert not client.get("/monitor/data.json").json()["empty"]


@pytest.mark.parametrize(
    "minutes", ["0", "-5", "many", "1.5", "99999999999999999999", "", "\u0663"]
)
def test_odd_spans_are_refused(client: TestClient, minutes: str) -> None:
    response = client.get("/monitor/data.json", params={"minutes": minutes})
    assert response.status_code == 400
    assert "whole number from 1 to 44640" in response.json()["error"]["message"]


def test_a_database_that_is_away_is_told(client: TestClient, database: sa.Engine) -> None:
    with database.begin() as connection:
        connection.exec_driver_sql("DROP TABLE requests")
    response = client.get("/monitor/data.json")
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "database_unavailable"


def exposed() -> set[str]:
    """Names of the time series of a server's /metrics."""
    text = generate_latest(Metrics(model="chat").registry).decode()
    families = {family.name: family.type for family in text_string_to_metric_families(text)}
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
    return {name + ending for name, kind in families.items() for ending in endings[kind]}


def unknown_metrics(dashboard: dict[str, Any]) -> set[str]:
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [each["query"]["query"] for each in dashboard["templating"]["list"][1:]]
    names = [re.findall(r"\b(?:llm|http|process)_\w+", expression) for expression in asked]
    assert all(names)
    return {name for each in names for name in each} - exposed()


def test_grafanas_dashboard_asks_for_metrics_that_the_server_has(client: TestClient) -> None:
    dashboard = client.get("/monitor/grafana.json").json()
    assert len(dashboard["panels"]) > 12
    assert unknown_metrics(dashboard) == set()
    dashboard["panels"][0]["targets"][0]["expr"] = "sum(llm_no_such_metric)"
    assert unknown_metrics(dashboard) == {"llm_no_such_metric"}
