"""Health, facts and ratings."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from lmloop.sections import ServeConfig

from .harness import MODEL, Server, fake_spec, running_server, wait_until

UNKNOWN = "chatcmpl-" + "0" * 48


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
            "content": "off",
            "rollout": {
                "generation": 0,
                "phase": None,
                "share": 0,
                "note": None,
                "live": {"weights": "0123456789ab", "state": "ready"},
                "candidate": None,
                "previous": None,
            },
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

    wait_until(lambda: ratings_of(server, response_id) == [None])


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


def test_strangers_who_guess_never_reach_the_database(server: Server) -> None:
    response_id = server.chat().json["id"]
    asked: list[str] = []
    sa.event.listen(
        server.database,
        "before_cursor_execute",
        lambda _connection, _cursor, _statement, parameters, *_: asked.append(str(parameters)),
    )
    for number in range(50):
        guess = response_id[:-4] + f"{(int(response_id[-4:], 16) + 1 + number) % 65_536:04x}"
        assert rate(server, guess, rating=1).status == 404
        assert not any(guess in each for each in asked)
    wait_until(lambda: response_id in str(asked))


def test_a_million_ratings_of_one_answer_are_twenty(server: Server) -> None:
    response_id = server.chat().json["id"]
    replies = [rate(server, response_id, rating=(1, -1)[n % 2]) for n in range(25)]
    assert [reply.status for reply in replies] == [200] * 20 + [429] * 5
    assert replies[-1].error["code"] == "too_many_ratings"
    assert rate(server, server.chat().json["id"], rating=1).status == 200
    wait_until(lambda: ratings_of(server, response_id) == [-1])


def ratings_of(server: Server, response_id: str) -> list[Any]:
    return [row["rating"] for row in server.ratings() if row["request_id"] == response_id]


@pytest.mark.parametrize(
    ("word", "kept"),
    [(None, "mail <email>"), ("no", "mail <email>"), ("redacted", "mail <email>"), ("full", None)],
)
def test_a_correction_is_masked_unless_its_sender_says_full(
    server: Server, word: str | None, kept: str | None
) -> None:
    text = "mail ann@example.org"
    response_id = server.chat().json["id"]
    body = {"response_id": response_id, "correction": text, "comment": text}
    headers = {} if word is None else {"X-Lmloop-Consent": word}
    assert server.post("/v1/feedback", body, headers=headers).status == 200
    row = wait_until(lambda: [r for r in server.ratings() if r["request_id"] == response_id])[0]
    assert (row["correction"], row["comment"]) == (kept or text, kept or text)


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "\x07\x1b[31mred\x7f",
        "'; drop table ratings; --",
        "a\r\nb\u2028",
    ],
)
def test_what_a_correction_says_is_data(server: Server, text: str) -> None:
    response_id = server.chat().json["id"]
    assert rate(server, response_id, correction=text, comment=text).status == 200
    row = wait_until(lambda: [r for r in server.ratings() if r["request_id"] == response_id])[0]
    assert (row["correction"], row["comment"]) == (text, text)


def test_a_correction_has_a_longest_length(server: Server) -> None:
    response_id = server.chat().json["id"]
    assert rate(server, response_id, correction="a" * 20_000).status == 200
    for size, status in ((20_001, 400), (1_000_000, 400), (3_000_000, 413)):
        reply = rate(server, response_id, correction="a" * size)
        assert reply.status == status
        assert b"aaaa" not in reply.body
    row = wait_until(lambda: [r for r in server.ratings() if r["request_id"] == response_id])[0]
    assert row["correction"] == "a" * 20_000


@pytest.mark.parametrize("body", [{}, [], {"response_id": UNKNOWN, "rating": 5}, "x"])
def test_malformed_feedback_is_400(server: Server, body: Any) -> None:
    reply = server.post("/v1/feedback", body)
    assert reply.status == 400
    assert reply.error["type"] == "invalid_request_error"
