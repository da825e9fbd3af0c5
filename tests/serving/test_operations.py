"""Health, facts and ratings."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from lmloop.sections import ServeConfig

from .harness import MODEL, Server, fake_spec, running_server, wait_until

UNKNOWN = "chatcmpl-" + "0" * 24


def rate(server: Server, response_id: str, **fields: Any) -> Any:
    return server.post("/v1/feedback", {"response_id": response_id, **fields})


def test_a_server_is_alive_while_it_loads_and_ready_when_the_engine_is(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with running_server(tmp_path, fake_spec(tmp_path, "--gate", str(gate)), wait=False) as server:
        assert server.get("/health").status == 200
        reply = server.get("/ready")
        assert (reply.status, reply.json) == (503, {"status": "loading"})
        assert int(reply.headers["retry-after"]) > 0
        assert server.get("/v1/models").json["data"][0]["id"] == MODEL
        assert server.get("/info").json["weights"] is None
        refused = server.chat()
        assert (refused.status, refused.error["code"]) == (503, "loading")
        gate.touch()
        wait_until(server.is_ready)
        assert server.chat().status == 200


def test_a_dead_engine_is_told_within_a_second_and_replaced(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    with running_server(tmp_path, fake_spec(tmp_path, "--gate", str(gate))) as server:
        gate.unlink()
        server.kill_engine()
        killed = time.monotonic()
        wait_until(lambda: not server.is_ready(), seconds=1)
        assert time.monotonic() - killed < 1
        assert server.get("/health").status == 200
        assert server.metric("llm_engine_up") == 0
        gate.touch()
        wait_until(server.is_ready)
        assert server.metric("llm_engine_up") == 1
        assert server.metric("llm_engine_starts") == 2
        assert len(set(server.process_ids)) == 2
        assert server.chat().status == 200


def test_the_engine_may_be_killed_again_and_again(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        for count in range(2, 9):
            server.kill_engine()
            wait_until(lambda: len(server.process_ids) == count)  # noqa: B023
            wait_until(server.is_ready)
        assert server.chat().status == 200


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/info", "/"])
def test_head_is_answered_like_get_without_a_body(server: Server, path: str) -> None:
    reply = server.request("HEAD", path)
    assert (reply.status, reply.body) == (200, b"")


def test_info_tells_the_page_what_it_needs(tmp_path: Path) -> None:
    config = ServeConfig(
        port=0, max_running=4, max_waiting=8, max_tokens=99, temperature=0.4, top_p=0.8
    )
    with running_server(tmp_path, config=config) as server:
        assert server.get("/info").json == {
            "model": MODEL,
            "weights": "0123456789ab",
            "status": "ready",
            "context_length": 400,
            "max_tokens": 99,
            "limits": {
                "max_running": 4,
                "max_waiting": 8,
                "max_choices": 8,
                "max_body_bytes": 2 * 1024 * 1024,
            },
            "defaults": {"temperature": 0.4, "top_p": 0.8, "max_tokens": 99},
        }
        assert server.chat("endless").json["usage"]["completion_tokens"] == 99


def test_a_rating_right_after_its_answer_is_taken(server: Server) -> None:
    response_id = server.chat().json["id"]
    reply = rate(server, response_id, rating=-1, correction="better", comment="why")
    assert (reply.status, reply.json) == (200, {"response_id": response_id, "rating": -1})

    def find() -> Any:
        return [row for row in server.ratings() if row["request_id"] == response_id]

    (row,) = wait_until(find)
    assert (row["rating"], row["correction"], row["comment"]) == (-1, "better", "why")


def test_a_rating_may_be_sent_again_and_replaces_the_first(server: Server) -> None:
    response_id = server.chat().json["id"]
    for rating in (1, 1, -1, None):
        assert rate(server, response_id, rating=rating).status == 200

    def ratings() -> list[Any]:
        rows = server.ratings()
        return [row["rating"] for row in rows if row["request_id"] == response_id]

    wait_until(lambda: ratings() == [None])


def test_a_completion_can_be_rated(server: Server) -> None:
    answer = server.post("/v1/completions", {"model": MODEL, "prompt": "a"}).json
    assert rate(server, answer["id"], rating=1).status == 200


def test_an_answer_of_an_earlier_run_can_be_rated(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        response_id = server.chat().json["id"]
    with running_server(tmp_path) as server:
        assert rate(server, response_id, rating=1).status == 200
        assert rate(server, UNKNOWN, rating=1).status == 404


@pytest.mark.parametrize("response_id", [UNKNOWN, "", "a'; drop table ratings", "../x", "é" * 50])
def test_an_answer_that_was_never_given_cannot_be_rated(server: Server, response_id: str) -> None:
    reply = rate(server, response_id, rating=1)
    assert (reply.status, reply.error["code"]) == (404, "response_not_found")
    assert reply.error["param"] == "response_id"


@pytest.mark.parametrize("body", [{}, [], {"response_id": UNKNOWN, "rating": 5}, "x"])
def test_malformed_feedback_is_400(server: Server, body: Any) -> None:
    reply = server.post("/v1/feedback", body)
    assert reply.status == 400
    assert reply.error["type"] == "invalid_request_error"
