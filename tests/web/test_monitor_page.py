"""The monitor in a browser, behind the server's door: what it shows, languages, themes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from playwright.sync_api import Browser, Page, expect
from starlette.staticfiles import StaticFiles

import lmloop.serving
from lmloop.monitoring.pages import build_monitor_pages
from lmloop.monitoring.watch import check
from lmloop.serving.access import Door
from lmloop.serving.app import create_http_server
from lmloop.serving.metrics import Metrics
from lmloop.store.database import database_url, open_database
from lmloop.store.events import record_event
from lmloop.upkeep import MonitorConfig

from ..monitoring import simulated

WEB_FOLDER = Path(lmloop.serving.__file__).parent / "web"
CONFIG = MonitorConfig(window_requests=50, reference_requests=100)
HOSTILE = "<img src=x onerror=alert(1)>"


@dataclass
class Monitor:
    """The page, its server's database, and what the browser complained of."""

    page: Page
    url: str
    database: sa.Engine
    complaints: list[str] = field(default_factory=list)

    def open(self) -> Page:
        self.page.goto(f"{self.url}/monitor")
        expect(self.page.locator("#tiles .tile").first).to_be_visible()
        return self.page


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = open_database(database_url(tmp_path))
    yield engine
    engine.dispose()


@pytest.fixture
def url(database: sa.Engine) -> Iterator[str]:
    app = FastAPI()
    app.include_router(build_monitor_pages(database, name="chat", config=CONFIG))
    app.mount("/", StaticFiles(directory=WEB_FOLDER, html=True))
    app.add_middleware(Door, host="127.0.0.1", metrics=Metrics(model="chat"))
    server = create_http_server(app)
    server.config.port = 0
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.005)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(20)


@pytest.fixture
def monitor(
    browser: Browser, url: str, database: sa.Engine, request: pytest.FixtureRequest
) -> Iterator[Monitor]:
    usual = {"locale": "en-US", "color_scheme": "light", "viewport": {"width": 1280, "height": 900}}
    context = browser.new_context(**{**usual, **getattr(request, "param", {})})
    page = context.new_page()
    found = Monitor(page, url, database)
    page.on("console", lambda message: found.complaints.append(message.text))
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    yield found
    context.close()
    assert found.complaints == []


def fill(database: sa.Engine) -> None:
    """Ten minutes of traffic with an alarm at the end."""
    now = time.time()
    rows = [
        *simulated.make_rows(200, seed=0, start=now - 350),
        *simulated.make_rows(120, seed=1, first=200, start=now - 350, shifted=0.6),
    ]
    ratings = [
        simulated.rating(row, rating=int(rating))
        for row, rating in zip(rows[:20], np.resize([1, 1, 1, -1], 20), strict=True)
    ]
    simulated.write(database, *rows, *ratings)
    check(database, name="chat", config=CONFIG, text_reference=lambda: None)


def test_an_empty_database_is_told(monitor: Monitor) -> None:
    page = monitor.open()
    expect(page.locator("#notice")).to_contain_text("Nothing has been served")
    expect(page.locator("#tiles")).to_contain_text("No windows yet")


def test_traffic_signals_and_the_alarm_are_shown(monitor: Monitor) -> None:
    fill(monitor.database)
    page = monitor.open()
    expect(page.locator("#notice")).to_be_hidden()
    expect(page.locator("#tiles .tile").first).to_contain_text("320")
    expect(page.locator("#tiles .tile.bad .value")).to_have_text("Alarm")
    expect(page.locator("#strip i")).to_have_count(7)
    expect(page.locator("#strip i.alarm")).to_have_count(1)
    expect(page.locator("#alarms")).to_contain_text("Chinese")
    expect(page.locator("#signals .panel.changed").first).to_contain_text("Surprise of prompts")
    expect(page.locator("#traffic .plot svg path.line")).to_have_count(6)
    expect(page.locator("#arms")).to_contain_text(simulated.WEIGHTS)
    expect(page.locator("#tiles .tile").nth(4)).to_contain_text("75 %")


@pytest.mark.parametrize(
    "monitor", [{"locale": "zh-CN", "color_scheme": "dark"}], indirect=True, ids=["chinese"]
)
def test_a_chinese_reader_is_met_in_chinese_and_in_the_dark(monitor: Monitor) -> None:
    fill(monitor.database)
    page = monitor.open()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    expect(page.locator("#tiles .tile.bad .value")).to_have_text("警报")
    page.locator("#language").click()
    expect(page.locator("#tiles .tile.bad .value")).to_have_text("Alarm")
    page.locator("#theme").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "light")
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "light")
    expect(page.locator("#tiles .tile.bad .value")).to_have_text("Alarm")


def test_what_comes_from_outside_is_text(monitor: Monitor) -> None:
    fill(monitor.database)
    record_event(monitor.database, f"x{HOSTILE}", name="chat", data={"reason": HOSTILE})
    signals = f'{{"language": "{HOSTILE}", "prompt_nats": 3}}'
    odd = simulated.make_rows(
        60, seed=5, first=900, start=time.time() - 950, signals=signals, weights=HOSTILE
    )
    simulated.write(monitor.database, *odd)
    page = monitor.open()
    expect(page.locator("#events")).to_contain_text(HOSTILE)
    expect(page.locator("#arms")).to_contain_text(HOSTILE)
    expect(page.locator("#signals")).to_contain_text(HOSTILE)
    assert page.locator("img").count() == 0


def test_another_span_asks_again(monitor: Monitor) -> None:
    fill(monitor.database)
    page = monitor.open()
    with page.expect_response(lambda response: "minutes=1440" in response.url):
        page.get_by_role("button", name="24 h").click()
    expect(page.get_by_role("button", name="24 h")).to_have_attribute("aria-pressed", "true")


@pytest.mark.parametrize(
    "monitor", [{"viewport": {"width": 360, "height": 740}}], indirect=True, ids=["phone"]
)
def test_a_phone_needs_no_sideways_scrolling(monitor: Monitor) -> None:
    fill(monitor.database)
    page = monitor.open()
    expect(page.locator("#signals .plot svg").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_pointing_at_a_plot_tells_its_numbers(monitor: Monitor) -> None:
    fill(monitor.database)
    page = monitor.open()
    page.locator("#traffic .plot").first.hover()
    expect(page.locator("#traffic .readout").first).to_contain_text("live ")
