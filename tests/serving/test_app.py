"""The whole application: its files, and what any client may throw at it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.responses import PlainTextResponse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmloop.serving.app import GRACE_SECONDS, WEB_FOLDER, create_app, create_http_server
from lmloop.serving.router import Router
from lmloop.serving.service import Service, open_service
from lmloop.store.database import open_database

from .harness import MODEL, ServeConfig, Server, fake_spec

POSTS = ("/v1/chat/completions", "/v1/completions", "/v1/feedback")


def test_every_file_of_the_page_is_served_under_its_name(server: Server) -> None:
    files = [path for path in WEB_FOLDER.rglob("*") if path.is_file()]
    assert WEB_FOLDER / "index.html" in files
    for path in files:
        name = path.relative_to(WEB_FOLDER).as_posix()
        reply = server.get("/" if name == "index.html" else f"/{name}")
        assert (reply.status, reply.body) == (200, path.read_bytes())
        assert reply.headers["cache-control"] == "no-cache"
        kinds = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
        assert reply.headers["content-type"].startswith(kinds.get(path.suffix, ""))


def test_an_unchanged_file_is_not_sent_again(server: Server) -> None:
    tag = server.get("/").headers["etag"]
    reply = server.get("/", headers={"If-None-Match": tag})
    assert (reply.status, reply.body) == (304, b"")


def test_the_page_may_load_nothing_from_elsewhere(server: Server) -> None:
    policy = server.get("/").headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    assert "http" not in policy


def test_no_schema_page_is_served(server: Server) -> None:
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert server.get(path).status == 404


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
FIELDS = (
    *("temperature", "top_p", "top_k", "n", "stop", "seed", "stream", "stream_options"),
    *("max_tokens", "max_completion_tokens", "tools", "logit_bias", "response_format", "user"),
    *("logprobs", "presence_penalty", "response_id", "rating", "correction", "suffix"),
)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "model": st.just(MODEL) | json_values,
        "messages": st.just([{"role": "user", "content": "hi"}]) | json_values,
        "prompt": st.just("hi") | json_values,
        **dict.fromkeys(FIELDS, json_values),
    },
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(path=st.sampled_from(POSTS), body=bodies | json_values)
def test_no_json_brings_the_server_to_a_fault(server: Server, path: str, body: Any) -> None:
    reply = server.post(path, raw=json.dumps(body).encode("utf-8", "surrogatepass"))
    assert reply.status in (200, 400, 404)
    if reply.status != 200:
        assert reply.error["message"]


VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"model": MODEL, "prompt": "hi"},
}
in_range = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.none() | st.floats(0, 2),
        "top_p": st.none() | st.floats(0, 1),
        "top_k": st.none() | st.integers(-1, 2**70),
        "n": st.none() | st.integers(1, 8),
        "stop": st.none() | st.text(max_size=9) | st.lists(st.text(max_size=9), max_size=4),
        "seed": st.none() | st.integers(-(2**63), 2**63 - 1),
        "stream": st.none() | st.booleans(),
        "max_tokens": st.none() | st.integers(1, 2**70),
        "user": st.none() | st.text(max_size=20),
        "metadata": json_values,
    },
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(path=st.sampled_from(list(VALID)), fields=in_range)
def test_every_request_within_the_limits_is_answered(
    server: Server, path: str, fields: dict[str, Any]
) -> None:
    raw = json.dumps({**VALID[path], **fields}).encode("utf-8", "surrogatepass")
    reply = server.post(path, raw=raw)
    assert reply.status == 200, reply.body


@pytest.fixture
def service(tmp_path: Path) -> Any:
    database = open_database(f"sqlite:///{tmp_path / 'a.db'}")
    made = open_service(
        ServeConfig(),
        router=Router(fake_spec(tmp_path)),
        model_name="m",
        model_created=1,
        database=database,
    )
    yield made
    made.events.close()
    database.dispose()


def fetch(app: FastAPI, path: str) -> tuple[int, bytes]:
    """Status and body of a GET, without a socket."""
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


def test_a_page_folder_of_ones_own_can_be_served(service: Service, tmp_path: Path) -> None:
    (tmp_path / "web" / "deep").mkdir(parents=True)
    (tmp_path / "web" / "index.html").write_text("<p>mine</p>")
    (tmp_path / "web" / "deep" / "a.css").write_text("p {}")
    (tmp_path / "secret").write_text("no")
    app = create_app(service, web_folder=tmp_path / "web")
    assert fetch(app, "/") == (200, b"<p>mine</p>")
    assert fetch(app, "/deep/a.css") == (200, b"p {}")
    for path in ("/secret", "/../secret", "/deep", "/deep/"):
        assert fetch(app, path)[0] == 404


def test_a_page_of_another_stage_stands_beside_the_server_s_own(service: Service) -> None:
    page = APIRouter()

    @page.get("/monitor")
    async def monitor() -> PlainTextResponse:
        return PlainTextResponse("all is well")

    app = create_app(service, pages=[page])
    assert fetch(app, "/monitor") == (200, b"all is well")
    assert fetch(app, "/")[0] == 200
    assert fetch(create_app(service), "/monitor")[0] == 404


def test_the_http_server_leaves_signals_and_proxies_alone(service: Service) -> None:
    app = create_app(service)
    assert isinstance(app, FastAPI)
    config = create_http_server(app).config
    assert (config.proxy_headers, config.server_header, config.access_log) == (False, False, False)
    assert config.timeout_graceful_shutdown == GRACE_SECONDS
