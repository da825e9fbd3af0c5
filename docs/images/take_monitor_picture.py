"""Takes the README's picture of the monitor, with made-up traffic of one hour.

Two versions, a canary, ratings, a change of topic and language, and its alarm. Gives: monitor.png
beside this file. Run: python docs/images/take_monitor_picture.py
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from fastapi import FastAPI
from playwright.sync_api import expect, sync_playwright
from starlette.staticfiles import StaticFiles
from take_chat_picture import ARGUMENTS, CHROMIUM

import lmloop.serving
from lmloop.monitoring.pages import build_monitor_pages
from lmloop.monitoring.watch import check
from lmloop.serving.app import create_http_server
from lmloop.store.database import (
    database_url,
    open_database,
    ratings_table,
    requests_table,
    servers_table,
    transaction,
)
from lmloop.store.events import record_event
from lmloop.upkeep import MonitorConfig

PICTURE = Path(__file__).with_name("monitor.png")
WIDTH, HEIGHT = 1320, 1200
LARGEST_BYTES = 300_000
REQUESTS = 6000
SECONDS = 3500.0
CHANGE = 0.75
"""Share of the hour after which a third of the traffic is about something else."""
CANARY = (0.3, 0.45)
LIVE, CANDIDATE = "5be0c4a9d2f1", "91f7d03ce8ab"


def make_row(
    generator: np.random.Generator, number: int, created: float, at: float
) -> dict[str, Any]:
    """One request at `at`, a share of the hour."""
    other = at > CHANGE and generator.random() < 1 / 3
    canary = CANARY[0] < at < CANARY[1] and generator.random() < 0.2
    tokens = int(np.clip(generator.gamma(3, 8), 1, 120))
    signals = {
        "prompt_characters": int(np.exp(generator.normal(3.6, 0.7))),
        "answer_characters": 4 * tokens,
        "language": "zh"
        if other
        else str(generator.choice(["en", "de", "fr"], p=[0.93, 0.05, 0.02])),
        "answer_language": "en",
        "prompt_nats": float(generator.normal(3.6 + 2.2 * other, 0.6)),
        "log_probability": float(generator.normal(-1.9 - 0.5 * other, 0.35)),
        "entropy": float(generator.normal(2.1 + 0.3 * other, 0.35)),
        "repetition": float(generator.beta(1, 12)),
        "refusal": bool(generator.random() < 0.02),
        "length_stop": bool(generator.random() < 0.08),
    }
    place = generator.normal(size=64) + 0.8 * other * np.sin(np.arange(64))
    first_token = float(np.exp(generator.normal(-3.2 + 0.3 * np.sin(9 * at), 0.35)))
    failed = generator.random() < 0.002
    return {
        "id": f"chatcmpl-{number:024x}",
        "created": created,
        "endpoint": "/v1/chat/completions",
        "model": "chat",
        "weights": CANDIDATE if canary else LIVE,
        "stream": True,
        "prompt_tokens": 14,
        "completion_tokens": tokens,
        "finish_reason": "error" if failed else "length" if signals["length_stop"] else "stop",
        "first_token_seconds": first_token,
        "total_seconds": first_token + tokens * float(generator.normal(0.006, 0.0006)),
        "consent": False,
        "arm": "canary" if canary else "live",
        "session_hash": f"{number}",
        "signals": json.dumps(signals),
        "embedding": place.astype("<f2").tobytes(),
    }


def fill(database: sa.Engine, now: float) -> None:
    """Write an hour of requests and ratings, a server, and what was decided."""
    generator = np.random.default_rng(3)
    pace = 1 + 0.35 * np.sin(np.linspace(0, 7, REQUESTS)) + 0.1 * generator.random(REQUESTS)
    shares = np.cumsum(pace) / pace.sum()
    rows = [
        make_row(generator, number, now - SECONDS + SECONDS * at, at)
        for number, at in enumerate(shares.tolist())
    ]
    ratings = [
        {"request_id": row["id"], "created": row["created"], "rating": 1 if up else -1}
        for row, at in zip(rows, shares, strict=True)
        if generator.random() < 0.12
        for up in [generator.random() < (0.55 if at > CHANGE else 0.8)]
    ]
    server = {
        "id": "one",
        "name": "chat",
        "address": "http://127.0.0.1:8000",
        "started": now - 7200,
        "heard": now,
        "generation": 4,
        "live": LIVE,
        "candidate_state": "absent",
    }
    with transaction(database) as connection:
        connection.execute(requests_table.insert(), rows)
        connection.execute(ratings_table.insert(), ratings)
        connection.execute(servers_table.insert(), [server])
    for kind, data in (
        ("round.started", {"cause": "schedule"}),
        ("rollout.step", {"phase": "canary", "share": 20, "requests": 171}),
        ("rollout.rolled_back", {"reason": "rated down more often than the live model"}),
    ):
        record_event(database, kind, name="chat", data=data)
    check(database, name="chat", config=MonitorConfig(), text_reference=lambda: None)


@contextmanager
def serve(database: sa.Engine) -> Iterator[str]:
    """The page and the files that it shares with the chat, on a free port; the address."""
    app = FastAPI()
    app.include_router(build_monitor_pages(database, name="chat", config=MonitorConfig()))
    app.mount("/", StaticFiles(directory=Path(lmloop.serving.__file__).parent / "web"))
    server = create_http_server(app)
    server.config.port = 0
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def take_picture(url: str, picture: Path, *, scheme: str, locale: str, width: int) -> int:
    """Write the picture and return its size in bytes."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(
            viewport={"width": width, "height": HEIGHT},
            color_scheme=scheme,  # type: ignore[arg-type]
            reduced_motion="reduce",
            locale=locale,
        )
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{url}/monitor")
        expect(page.locator("#tiles .tile").first).to_be_visible(timeout=20_000)
        page.wait_for_function("document.querySelectorAll('.plot path').length > 5")
        page.screenshot(path=picture)
        browser.close()
    if complaints:
        raise SystemExit("\n".join(complaints))
    return picture.stat().st_size


def main() -> None:
    """Read the arguments and take the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PICTURE, help="file to write")
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    parser.add_argument("--locale", default="en-US", help="such as zh-CN")
    parser.add_argument("--width", type=int, default=WIDTH, help="of the window, in pixels")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database = open_database(database_url(Path(folder)))
        fill(database, time.time() - 2)
        with serve(database) as url:
            size = take_picture(
                url, options.out, scheme=options.scheme, locale=options.locale, width=options.width
            )
        database.dispose()
    if size > LARGEST_BYTES:
        parser.error(f"{options.out} has {size} bytes, more than {LARGEST_BYTES}")


if __name__ == "__main__":
    main()
