"""The door: Host, Origin, size and type of a body, and what no answer may carry."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.requests import Request

from lmloop.errors import RequestError
from lmloop.serving import access
from lmloop.serving.access import (
    LOOPBACK_NAMES,
    MAX_BODY_BYTES,
    SECURITY_HEADERS,
    Door,
    check_origin,
    is_loopback,
    read_body,
)
from lmloop.serving.metrics import Metrics

from .harness import Server, chat_body


def refused(names: frozenset[str] | None = LOOPBACK_NAMES, **headers: str) -> str | None:
    try:
        check_origin(Headers(headers), names=names)
    except RequestError as error:
        assert error.status == 403
        return error.code
    return None


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000"])
def test_this_machines_names_are_served(host: str) -> None:
    assert refused(host=host) is None


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "127.0.0.1.evil.example", "evil@127.0.0.2", "[::1", "a b", "localhost.x"],
)
def test_other_names_are_not_served_on_a_loopback_address(host: str) -> None:
    assert refused(host=host) == "host_not_allowed"


def test_any_name_is_served_where_the_address_is_public() -> None:
    assert refused(None, host="model.example") is None


@pytest.mark.parametrize("origin", ["http://localhost:8000", "https://LOCALHOST:8000"])
def test_the_servers_own_page_may_ask(origin: str) -> None:
    assert refused(host="localhost:8000", origin=origin) is None


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "", "http://localhost", "http://localhost:9", "file://", "//["],
)
@pytest.mark.parametrize("names", [LOOPBACK_NAMES, None])
def test_pages_of_other_sites_may_not(origin: str, names: frozenset[str] | None) -> None:
    assert refused(names, host="localhost:8000", origin=origin) == "origin_not_allowed"


def test_loopback_addresses_are_known() -> None:
    hosts = ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LocalHost", "0.0.0.0", "::", "10.0.0.1"]
    assert [is_loopback(host) for host in hosts] == [True] * 5 + [False] * 3


def body_request(
    *chunks: bytes, content_type: str = "application/json", ends: bool = True
) -> Request:
    messages: Iterator[dict[str, Any]] = iter(
        {"type": "http.request", "body": chunk, "more_body": index + 1 < len(chunks) or not ends}
        for index, chunk in enumerate(chunks)
    )

    async def receive() -> dict[str, Any]:
        for message in messages:
            return message
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    headers = [(b"content-type", content_type.encode())]
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


def refusal_of(request: Request) -> tuple[int, str | None]:
    with pytest.raises(RequestError) as caught:
        asyncio.run(read_body(request))
    return caught.value.status, caught.value.code


def test_a_body_is_put_together() -> None:
    request = body_request(b'{"a":', b"1}", content_type="Application/JSON; charset=utf-8")
    assert asyncio.run(read_body(request)) == b'{"a":1}'


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "json"])
def test_only_json_is_read(kind: str) -> None:
    assert refusal_of(body_request(b"{}", content_type=kind)) == (415, "unsupported_media_type")


def test_a_body_is_bounded_while_it_is_read() -> None:
    half = b" " * (MAX_BODY_BYTES // 2)
    assert len(asyncio.run(read_body(body_request(half, half)))) == MAX_BODY_BYTES
    assert refusal_of(body_request(half, half, b" ")) == (413, "body_too_large")
    # One that never ends is not read for ever.
    endless = body_request(*[half] * 40, ends=False)
    assert refusal_of(endless) == (413, "body_too_large")


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "BODY_SECONDS", 0.05)
    assert refusal_of(body_request(b"{", ends=False)) == (408, None)


@pytest.mark.parametrize("begun", [False, True])
def test_a_fault_of_ours_is_told_without_its_text(begun: bool) -> None:
    async def broken(_scope: Any, _receive: Any, send: Any) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("a secret")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    metrics = Metrics(model="m")
    door = Door(broken, host="127.0.0.1", metrics=metrics)
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"localhost")]}
    with pytest.raises(ValueError, match="a secret") if begun else contextlib.nullcontext():
        asyncio.run(door(scope, body_request().receive, send))
    assert b"secret" not in b"".join(message.get("body", b"") for message in sent)
    assert sent[0]["status"] == (200 if begun else 500)
    if not begun:
        assert json.loads(sent[1]["body"])["error"]["code"] == "internal_error"
        headers = dict(sent[0]["headers"])
        assert headers[b"x-request-id"].startswith(b"req-")
        assert headers[b"x-should-retry"] == b"false"


@pytest.mark.parametrize("path", ["/", "/ready", "/v1/models", "/nothing", "/v1/chat/completions"])
def test_every_answer_carries_an_id_of_its_own_and_the_security_headers(
    server: Server, path: str
) -> None:
    replies = [server.get(path, headers={"X-Request-Id": "mine"}) for _ in range(2)]
    assert len({reply.headers["x-request-id"] for reply in replies} | {"mine"}) == 3
    for name, value in SECURITY_HEADERS.items():
        assert replies[0].headers[name.lower()] == value
    assert "access-control-allow-origin" not in replies[0].headers
    assert "server" not in replies[0].headers


@pytest.mark.parametrize("path", ["/", "/info", "/v1/models", "/metrics", "/v1/feedback"])
def test_a_foreign_name_reaches_no_route(server: Server, path: str) -> None:
    reply = server.get(path, headers={"Host": f"evil.example:{server.port}"})
    assert (reply.status, reply.error["code"]) == (403, "host_not_allowed")


def test_another_sites_page_cannot_spend_our_time(server: Server) -> None:
    reply = server.chat(headers={"Origin": "http://evil.example"})
    assert (reply.status, reply.error["code"]) == (403, "origin_not_allowed")
    own = f"http://127.0.0.1:{server.port}"
    assert server.chat(headers={"Origin": own}).status == 200


def test_a_preflight_gets_no_permission(server: Server) -> None:
    headers = {"Access-Control-Request-Method": "POST"}
    reply = server.request("OPTIONS", "/v1/chat/completions", headers=headers)
    assert reply.status == 405
    assert not [name for name in reply.headers if name.startswith("access-control")]


def test_a_form_of_another_site_is_not_read(server: Server) -> None:
    body = json.dumps(chat_body()).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        reply = server.post("/v1/chat/completions", raw=body, headers={"Content-Type": kind})
        assert (reply.status, reply.error["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("size", [MAX_BODY_BYTES + 1, 4 * MAX_BODY_BYTES])
def test_a_client_hears_that_its_body_is_too_large(server: Server, size: int) -> None:
    reply = server.post("/v1/chat/completions", raw=b" " * size)
    assert (reply.status, reply.error["code"]) == (413, "body_too_large")
    assert server.chat().status == 200


def test_a_chunked_body_is_bounded_too(server: Server) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost:{server.port}\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head.encode() + chunk * 33 + b"0\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
