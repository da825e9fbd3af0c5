"""What a request leaves behind, however it ended."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from .harness import MODEL, Server, chat_body, running_server, wait_until

CONSENT = {"X-Lmloop-Consent": "yes"}


def row_of(server: Server, response_id: str) -> dict[str, Any]:
    def find() -> dict[str, Any] | None:
        return next((row for row in server.rows() if row["id"] == response_id), None)

    return wait_until(find)


def newest_row(server: Server, count: int) -> dict[str, Any]:
    wait_until(lambda: len(server.rows()) > count)
    return max(server.rows(), key=lambda row: row["created"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_finished_request_leaves_its_numbers_and_no_text(server: Server, stream: bool) -> None:
    before = len(server.rows())
    assert server.chat("my secret", seed=1, stream=stream, max_tokens=2).status == 200
    row = newest_row(server, before)
    assert row["prompt"] is row["answer"] is None
    assert (row["consent"], row["stream"], row["endpoint"]) == (False, stream, "chat")
    assert (row["model"], row["weights"]) == (MODEL, "0123456789ab")
    assert (row["prompt_tokens"], row["completion_tokens"]) == (len("user: my secret\n"), 2)
    assert row["finish_reason"] == "length"
    assert 0 < row["first_token_seconds"] <= row["total_seconds"] < 30


@pytest.mark.parametrize("stream", [False, True])
def test_text_is_kept_with_consent_only(server: Server, stream: bool) -> None:
    before = len(server.rows())
    reply = server.chat("你好", seed=4, headers=CONSENT, stream=stream)
    whole = server.chat("你好", seed=4).json["choices"][0]["message"]["content"]
    assert reply.status == 200
    wait_until(lambda: len(server.rows()) == before + 2)
    row = next(row for row in server.rows()[before:] if row["consent"])
    assert json.loads(row["prompt"]) == [{"role": "user", "content": "你好"}]
    assert row["answer"] == whole


@pytest.mark.parametrize("value", ["no", "", "true", "yes please"])
def test_consent_is_the_word_yes_and_nothing_else(server: Server, value: str) -> None:
    reply = server.chat(headers={"X-Lmloop-Consent": value})
    assert row_of(server, reply.json["id"])["prompt"] is None


def test_of_several_choices_all_tokens_count_and_the_first_is_kept(server: Server) -> None:
    body = {"model": MODEL, "prompt": ["a", "bc"], "n": 2, "seed": 5, "max_tokens": 3}
    reply = server.post("/v1/completions", body, headers=CONSENT).json
    row = row_of(server, reply["id"])
    assert row["endpoint"] == "completions"
    assert json.loads(row["prompt"]) == ["a", "bc"]
    assert row["answer"] == reply["choices"][0]["text"]
    assert row["prompt_tokens"] == reply["usage"]["prompt_tokens"] == 3
    assert row["completion_tokens"] == reply["usage"]["completion_tokens"]


def test_a_client_that_leaves_leaves_a_cancelled_request(server: Server) -> None:
    before = len(server.rows())
    with contextlib.closing(server.connect()) as connection:
        body = json.dumps(chat_body("endless slow", stream=True))
        headers = {"Content-Type": "application/json", **CONSENT}
        connection.request("POST", "/v1/chat/completions", body, headers)
        response = connection.getresponse()
        while b"on " not in response.readline():
            pass
    row = newest_row(server, before)
    assert row["finish_reason"] == "cancelled"
    assert row["completion_tokens"] >= 1
    assert row["answer"].startswith("on ")


def test_a_refused_request_leaves_nothing(server: Server) -> None:
    before = len(server.rows())
    assert server.chat("a" * 1000).status == 400
    assert server.chat(model="other").status == 404
    row = row_of(server, server.chat().json["id"])
    assert len(server.rows()) == before + 1
    assert row["finish_reason"] in ("stop", "length")


def test_a_request_that_dies_with_its_engine_leaves_an_error(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        assert server.chat("die").status == 503
        row = newest_row(server, 0)
        assert (row["finish_reason"], row["completion_tokens"]) == ("error", 2)
        assert server.metric("llm_requests_finished_total", reason="error") == 1
