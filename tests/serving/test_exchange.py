"""What a request leaves behind, however it ended."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers

from lmloop.sections import ServeConfig
from lmloop.serving.exchange import admit
from lmloop.serving.openai import read_chat
from lmloop.serving.prompts import Plan
from lmloop.serving.rows import ENGINE_SIGNALS

from .harness import (
    MODEL,
    Server,
    chat_body,
    fingerprint_of,
    running_server,
    version_spec,
    wait_until,
)
from .inside import inside
from .test_process import reach

CONSENT = {"X-Lmloop-Consent": "yes"}
ANN = "ann.lee@example.org"
TROUBLE = ("refuse", "fault", "explode")


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


@pytest.mark.parametrize(
    ("word", "kept", "given"),
    [("no", None, False), ("", None, False), ("redacted", "<email>", True), ("full", ANN, True)],
)
def test_a_request_says_itself_what_is_kept_of_it(
    server: Server, word: str, kept: str | None, given: bool
) -> None:
    row = row_of(server, server.chat(ANN, headers={"X-Lmloop-Consent": word}).json["id"])
    expected = None if kept is None else [{"role": "user", "content": kept}]
    assert row["prompt"] == (None if expected is None else json.dumps(expected))
    assert row["consent"] == given


@pytest.mark.parametrize("word", ["true", "yes please", "off"])
def test_a_wish_that_nobody_understands_is_refused(server: Server, word: str) -> None:
    before = len(server.rows())
    for path, body in [
        ("/v1/chat/completions", chat_body()),
        ("/v1/completions", {"model": MODEL, "prompt": "a"}),
        ("/v1/feedback", {"response_id": "x", "rating": 1}),
    ]:
        reply = server.post(path, body, headers={"X-Lmloop-Consent": word})
        assert (reply.status, reply.error["param"]) == (400, "x-lmloop-consent")
        assert "no, redacted or full" in reply.error["message"]
    assert len(server.rows()) == before


def test_the_recipe_says_what_is_kept_of_requests_that_say_nothing(tmp_path: Path) -> None:
    config = ServeConfig(port=0, content="redacted")
    with running_server(tmp_path, config=config) as server:
        assert server.get("/info").json["content"] == "redacted"
        quiet = row_of(server, server.chat(ANN).json["id"])
        assert (quiet["content"], quiet["consent"]) == ("redacted", False)
        assert json.loads(quiet["prompt"])[0]["content"] == "<email>"
        loud = row_of(server, server.chat(ANN, headers={"X-Lmloop-Consent": "no"}).json["id"])
        assert (loud["content"], loud["prompt"], loud["answer"]) == ("off", None, None)


def test_who_asks_is_a_pseudonym(server: Server) -> None:
    def find(**options: Any) -> tuple[str | None, str | None]:
        row = row_of(server, server.chat(**options).json["id"])
        return row["user_hash"], row["session_hash"]

    ann = find(user="ann")
    assert ann == find(user="ann", content="another day")
    assert ann == find(headers={"X-Lmloop-User": "ann"})
    assert ann != find(user="bob")
    assert find(user="ann", headers={"X-Lmloop-Session": "7"})[0] == ann[0]
    assert find(user="ann", headers={"X-Lmloop-Session": "7"})[1] != ann[1]
    nobody = find(content="good day")
    assert nobody[0] is None
    assert nobody == find(content="good day")
    assert nobody[1] != find(content="good night")[1]
    plain = server.post("/v1/completions", {"model": MODEL, "prompt": "a"}).json["id"]
    assert row_of(server, plain)["session_hash"] is None


@pytest.mark.parametrize("content", ["off", "redacted"])
@pytest.mark.parametrize("stream", [False, True])
def test_planted_personal_data_is_in_no_row_no_metric_and_no_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: Any, stream: bool
) -> None:
    caplog.set_level(logging.DEBUG)
    planted = ["ann.lee@example.org", "+44 20 7946 0958", "138-1234-5678", "(808) 782-1557"]
    text = "Mail " + ", ".join(planted) + "."
    config = ServeConfig(port=0, content=content, max_running=4)
    names = {"user": planted[0], "safety_identifier": planted[1]}
    headers = {"X-Lmloop-User": planted[0], "X-Lmloop-Session": planted[2]}
    with running_server(tmp_path, version_spec(tmp_path, text), config=config) as server:
        chats = [server.chat(text, stream=stream, headers=headers) for _ in range(2)]
        chats += [server.chat(f"{text} {word}", stream=stream, **names) for word in TROUBLE]
        plain = {"model": MODEL, "prompt": [text, text], "stream": stream, **names}
        server.post("/v1/completions", plain, headers=headers)
        server.post("/v1/completions", {**plain, "n": 99}, headers=headers)
        server.chat("a" * 1000 + text)
        server.chat(model=text)
        server.chat(text, headers={"X-Lmloop-Consent": text})
        server.get(f"/{planted[0]}")
        given = next(iter(server.rows()))["id"] if wait_until(server.rows) else ""
        for response_id in (given, planted[0]):
            rating = {"response_id": response_id, "correction": text, "comment": text}
            server.post("/v1/feedback", rating)
        wait_until(lambda: len(server.rows()) >= 4 and len(server.ratings()) == 1)
        wait_until(server.is_ready)
        seen = server.get("/metrics").body.decode() + server.get("/info").body.decode()
        assert len(chats) == 5
    seen += caplog.text
    for path in tmp_path.glob("events.db*"):
        seen += path.read_bytes().decode("utf-8", "replace")
    assert "<email>" in seen
    assert [each for each in planted if each in seen] == []


def test_signals_of_a_request_are_in_its_row(server: Server) -> None:
    asked = "What do you like to eat in the morning?"
    row = row_of(server, server.chat(asked, seed=1, max_tokens=2).json["id"])
    signals = json.loads(row["signals"])
    assert (signals["prompt_characters"], signals["language"]) == (39, "en")
    assert signals["length_stop"] is True
    assert all(isinstance(signals[name], float) for name in ENGINE_SIGNALS)
    assert len(row["embedding"]) == 2 * 64
    assert (row["arm"], row["shadow_of"]) == ("live", None)


def test_signals_can_be_left_out(tmp_path: Path) -> None:
    with running_server(tmp_path, config=ServeConfig(port=0, signals=False)) as server:
        row = row_of(server, server.chat(headers=CONSENT).json["id"])
        assert (row["signals"], row["embedding"]) == (None, None)
        assert row["answer"] is not None


def test_what_the_engine_measured_of_the_first_choice_is_kept(tmp_path: Path) -> None:
    embedding = base64.b64encode(bytes(range(128))).decode()
    measured = {"prompt_nats": 2.5, "log_probability": -0.5, "entropy": 1.0, "embedding": embedding}

    async def scenario() -> None:
        async with inside(tmp_path) as running:
            body = json.dumps(chat_body("slow endless", n=2)).encode()
            exchange = admit(running.service, read_chat(running.service, Headers({}), body))
            for index, signals in ((1, {**measured, "entropy": 9.0}), (0, measured)):
                piece = {"text": "a", "num_tokens": 3, "finish_reason": "stop"}
                exchange._generation.take(index, {**piece, "signals": signals})
            exchange._plan = Plan(sequences=[], prompt_tokens=3)
            while await exchange.next_piece() is not None:
                pass
            exchange.close()
            (row,) = await running.wait_rows(1)
            found = json.loads(row["signals"])
            assert {name: found[name] for name in measured if name != "embedding"} == {
                name: measured[name] for name in measured if name != "embedding"
            }
            assert row["embedding"] == bytes(range(128))

    asyncio.run(scenario())


def test_a_session_of_the_candidates_share_is_recorded_as_such(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with inside(tmp_path) as running:
            await running.aim(version_spec(tmp_path, "B"), phase="canary", share=50)
            for name in range(12):
                for _ in range(2):
                    reply = await running.chat(headers={"X-Lmloop-Session": str(name)})
                    assert reply.status_code == 200
            rows = await running.wait_rows(24)
            arms = {(row["arm"], row["weights"]) for row in rows}
            assert arms == {
                ("live", fingerprint_of("A")[:12]),
                ("canary", fingerprint_of("B")[:12]),
            }
            sessions: dict[str, set[str]] = {}
            for row in rows:
                sessions.setdefault(row["session_hash"], set()).add(row["arm"])
            assert len(sessions) == 12
            assert all(len(found) == 1 for found in sessions.values())

    asyncio.run(scenario())


def test_plain_texts_take_their_share_of_a_candidate_as_well(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with inside(tmp_path) as running:
            await running.aim(version_spec(tmp_path, "B"), phase="canary", share=50)
            body = {"model": MODEL, "prompt": "a"}
            for _ in range(20):
                assert (await running.client.post("/v1/completions", json=body)).is_success
            rows = await running.wait_rows(20)
            assert {row["arm"] for row in rows} == {"live", "canary"}

    asyncio.run(scenario())


def test_requests_wait_for_the_end_of_a_pause(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with inside(tmp_path) as running:
            running.service.router.fleet.open.clear()
            waiting = asyncio.create_task(running.chat())
            await reach(lambda: running.service.router.waiting == 1)
            assert not waiting.done()
            running.service.router.fleet.open.set()
            assert (await waiting).status_code == 200

    asyncio.run(scenario())


def test_time_in_the_rows_never_runs_backwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_server(tmp_path) as server:
        first = row_of(server, server.chat().json["id"])
        with monkeypatch.context() as patch:
            patch.setattr("time.time", lambda: 1000.0)
            second = row_of(server, server.chat().json["id"])
        assert second["created"] >= first["created"]


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
