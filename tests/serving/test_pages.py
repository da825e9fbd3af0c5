"""Pages alone on a port: over a real socket, until they are told to leave."""

from __future__ import annotations

import asyncio
import http.client
import threading
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import pytest
from fastapi import APIRouter

from lmloop.errors import ServingError
from lmloop.serving.pages import run_pages, serve_pages
from lmloop.serving.server import Signals, listen

SECONDS = 60


@pytest.fixture
def address() -> Iterator[str]:
    """Where a page is served from another thread."""
    routes = APIRouter()

    @routes.get("/")
    def read() -> str:
        return "here"

    found: list[str] = []
    ready, held = threading.Event(), []

    async def work(listener: object) -> None:
        signals = Signals()
        held.extend([asyncio.get_running_loop(), signals])
        await run_pages(
            listener,  # type: ignore[arg-type]
            pages=[routes],
            host="127.0.0.1",
            on_ready=lambda url: (found.append(url), ready.set()),
            signals=signals,
        )

    with closing(listen("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(work(listener)))
        thread.start()
        try:
            assert ready.wait(SECONDS)
            yield found[0]
        finally:
            loop, signals = held
            loop.call_soon_threadsafe(signals.receive)
            thread.join(SECONDS)
        assert not thread.is_alive()


def get(address: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=SECONDS)
    with closing(connection):
        connection.request("GET", "/", headers=headers)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()


def test_a_page_is_served_behind_the_door(address: str) -> None:
    status, headers, body = get(address)
    assert (status, body) == (200, b'"here"')
    assert "default-src 'self'" in headers["content-security-policy"]
    assert get(address, Host="elsewhere.example")[0] == 403
    assert get(address, Origin="http://elsewhere.example")[0] == 403


def test_a_port_that_is_taken_is_told() -> None:
    with closing(listen("127.0.0.1", 0)) as taken, pytest.raises(ServingError, match="--port"):
        port = taken.getsockname()[1]
        serve_pages([], host="127.0.0.1", port=port, on_ready=lambda url: None)
