"""Streams that end with their clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from lmloop.serving.streaming import ClientGoneError, EventStream, until_gone


class Client:
    """ASGI's other side: hangs up when told, or stops reading."""

    def __init__(self, *, reads: int = 1_000_000) -> None:
        self.gone = asyncio.Event()
        self.reads = reads
        self.sent: list[Any] = []

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        if len(self.sent) > self.reads:
            await asyncio.Event().wait()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def is_complete(self) -> bool:
        return bool(self.sent) and self.sent[-1].get("more_body") is False


class Source:
    """Counts up for ever, or to an end, and notes when it is closed."""

    def __init__(self, *, length: int = 1_000_000, error: Exception | None = None) -> None:
        self.length = length
        self.error = error
        self.closed = 0

    async def events(self) -> AsyncGenerator[bytes, None]:
        for number in range(self.length):
            await asyncio.sleep(0.001)
            yield b"%d " % number
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self.closed += 1

    def stream(self, **options: Any) -> EventStream:
        return EventStream(self.events(), on_close=self.close, headers={"x-extra": "1"}, **options)


async def run(stream: EventStream, client: Client) -> None:
    async with asyncio.timeout(10):
        await stream({"type": "http"}, client.receive, client.send)


def test_work_that_is_done_gives_its_result() -> None:
    async def work() -> int:
        return 3

    async def scenario() -> None:
        assert await until_gone(Client().receive, work()) == 3

    asyncio.run(scenario())


def test_work_of_a_client_that_hung_up_is_cancelled() -> None:
    async def scenario() -> None:
        client, cancelled = Client(), asyncio.Event()

        async def work() -> None:
            try:
                client.gone.set()
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        with pytest.raises(ClientGoneError):
            await until_gone(client.receive, work())
        assert cancelled.is_set()

    asyncio.run(scenario())


def test_an_error_of_the_work_is_passed_on() -> None:
    async def work() -> None:
        raise ValueError("mine")

    async def scenario() -> None:
        with pytest.raises(ValueError, match="mine"):
            await until_gone(Client().receive, work())

    asyncio.run(scenario())


def test_a_stream_is_sent_to_its_end_with_headers_that_stop_proxies_from_waiting() -> None:
    async def scenario() -> None:
        client, source = Client(), Source(length=3)
        await run(source.stream(), client)
        headers = dict(client.sent[0]["headers"])
        assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
        assert headers[b"cache-control"] == b"no-cache"
        assert headers[b"x-accel-buffering"] == b"no"
        assert headers[b"x-extra"] == b"1"
        assert client.body == b"0 1 2 "
        assert client.is_complete
        assert source.closed == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("at_once", [True, False])
def test_a_client_that_leaves_closes_the_source(at_once: bool) -> None:
    async def scenario() -> None:
        client, source = Client(), Source()
        if at_once:
            client.gone.set()
        else:
            asyncio.get_running_loop().call_later(0.05, client.gone.set)
        await run(source.stream(), client)
        assert source.closed == 1
        assert not client.is_complete

    asyncio.run(scenario())


def test_a_client_that_does_not_read_is_cut_off() -> None:
    async def scenario() -> None:
        client, source = Client(reads=4), Source()
        await run(source.stream(stall_seconds=0.05), client)
        assert source.closed == 1
        assert not client.is_complete

    asyncio.run(scenario())


def test_an_error_of_the_source_closes_it_too() -> None:
    async def scenario() -> None:
        source = Source(length=1, error=ValueError("mine"))
        with pytest.raises(ValueError, match="mine"):
            await run(source.stream(), Client())
        assert source.closed == 1

    asyncio.run(scenario())
