"""OpenAI's interface, over real sockets, by hand and with OpenAI's own client."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from lmloop.serving import openai as openai_module

from .harness import (
    MODEL,
    Reply,
    Server,
    chat_body,
    fake_spec,
    read_events,
    running_server,
    wait_until,
)


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as made:
        yield made


def user(content: str = "hi") -> Any:
    return [{"role": "user", "content": content}]


def stream_of(reply: Reply) -> list[Any]:
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/event-stream")
    return read_events(reply.body.decode())


def test_the_model_list_names_the_model(server: Server) -> None:
    model = {"id": MODEL, "object": "model", "created": 1_700_000_000, "owned_by": "lmloop"}
    assert server.get("/v1/models").json == {"object": "list", "data": [model]}
    assert server.get(f"/v1/models/{MODEL}").json == model


def test_an_unknown_model_is_not_found(server: Server) -> None:
    for reply in (server.get("/v1/models/a/b"), server.chat(model="a/b")):
        assert (reply.status, reply.error["code"]) == (404, "model_not_found")
        assert reply.error["param"] == "model"
        assert MODEL in reply.error["message"]


def test_ids_are_unguessable_and_never_the_same(server: Server) -> None:
    ids = [server.chat().json["id"] for _ in range(5)]
    body = {"model": MODEL, "prompt": "a"}
    ids += [server.post("/v1/completions", body).json["id"] for _ in range(5)]
    assert len(set(ids)) == 10
    assert all(re.fullmatch(r"chatcmpl-[0-9a-f]{48}", each) for each in ids[:5])
    assert all(re.fullmatch(r"cmpl-[0-9a-f]{48}", each) for each in ids[5:])


def test_a_stream_keeps_openais_contract(server: Server) -> None:
    events = stream_of(server.chat(stream=True, seed=3, n=2))
    assert events.pop() == "[DONE]"
    assert len({(event["id"], event["created"], event["model"]) for event in events}) == 1
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert {event["system_fingerprint"] for event in events} == {"0123456789ab"}
    assert not any("usage" in event for event in events)
    assert all(len(event["choices"]) == 1 for event in events)
    for index in range(2):
        mine = [e["choices"][0] for e in events if e["choices"][0]["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
        assert not any("role" in choice["delta"] for choice in mine[1:])
        assert [choice["finish_reason"] for choice in mine] == [None] * (len(mine) - 1) + ["stop"]
        assert mine[-1]["delta"] == {}
        assert all(choice["delta"]["content"] for choice in mine[1:-1])


def test_a_stream_with_usage_has_it_null_and_then_once(server: Server) -> None:
    options = {"include_usage": True}
    events = stream_of(server.chat(stream=True, seed=3, stream_options=options))
    assert events.pop() == "[DONE]"
    last = events.pop()
    assert last["choices"] == []
    assert last["usage"] == server.chat(seed=3).json["usage"]
    assert [event["usage"] for event in events] == [None] * len(events)


GRID = list(itertools.product((1, 3), (None, 1, 2, 50), ("chat", "completions"), range(4)))


def both_ways(server: Server, path: str, body: dict[str, Any]) -> tuple[Any, Any]:
    """The texts, reasons and usage of a request, whole and streamed."""
    reply = server.post(path, body)
    assert reply.status == 200, reply.body
    whole = [
        (choice.get("text", choice.get("message", {}).get("content")), choice["finish_reason"])
        for choice in reply.json["choices"]
    ]
    options = {"stream": True, "stream_options": {"include_usage": True}}
    events = stream_of(server.post(path, {**body, **options}))
    assert events.pop() == "[DONE]"
    usage = events.pop()["usage"]
    texts = [""] * len(whole)
    reasons = [None] * len(whole)
    for event in events:
        choice = event["choices"][0]
        texts[choice["index"]] += choice.get("text", choice.get("delta", {}).get("content", ""))
        reasons[choice["index"]] = choice["finish_reason"]
    return (whole, reply.json["usage"]), (list(zip(texts, reasons, strict=True)), usage)


@pytest.mark.parametrize(("n", "max_tokens", "endpoint", "seed"), GRID)
def test_a_stream_says_byte_for_byte_what_the_whole_answer_says(
    server: Server, n: int, max_tokens: int | None, endpoint: str, seed: int
) -> None:
    body: dict[str, Any] = {"model": MODEL, "n": n, "max_tokens": max_tokens, "seed": seed}
    if endpoint == "chat":
        whole, streamed = both_ways(server, "/v1/chat/completions", {**body, "messages": user()})
    else:
        whole, streamed = both_ways(server, "/v1/completions", {**body, "prompt": ["a", [98, 99]]})
    assert whole == streamed


def test_tokens_of_all_choices_are_counted_and_prompts_once(server: Server) -> None:
    body = {"model": MODEL, "prompt": ["ab", "c"], "n": 3, "max_tokens": 2, "seed": 1}
    usage = server.post("/v1/completions", body).json["usage"]
    assert usage == {"prompt_tokens": 3, "completion_tokens": 12, "total_tokens": 15}


def test_a_prompt_that_is_too_long_is_told_before_any_stream(server: Server) -> None:
    for stream in (False, True):
        reply = server.chat("a" * 400, stream=stream)
        assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")
        assert reply.error["param"] == "messages"
        body = {"model": MODEL, "prompt": "a" * 400, "stream": stream}
        reply = server.post("/v1/completions", body)
        assert (reply.error["code"], reply.error["param"]) == ("context_length_exceeded", "prompt")


def test_an_error_of_the_engine_before_the_first_token_is_a_plain_status(server: Server) -> None:
    for stream in (False, True):
        refused = server.chat("refuse", stream=stream)
        assert (refused.status, refused.error["message"]) == (400, "this prompt is refused")
        fault = server.chat("fault", stream=stream)
        assert (fault.status, fault.error["code"]) == (500, "engine_error")
        assert b"secret" not in fault.body
    assert server.chat().status == 200


def test_a_failed_step_is_an_error_in_the_log_and_the_server_goes_on(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    reply = server.chat("explode")
    assert reply.status == 500
    assert b"secret" not in reply.body
    assert server.chat().status == 200
    wait_until(lambda: "ArithmeticError: secret of the step" in caplog.text)


def test_unknown_fields_are_accepted_and_named_in_a_header(server: Server) -> None:
    reply = server.chat(temperatur=0.5, user="u", **{"bad\r\nname": 1})
    assert reply.status == 200
    assert reply.headers["x-lmloop-ignored-fields"] == "temperatur"
    assert "x-lmloop-ignored-fields" not in server.chat(user="u").headers


def test_a_stream_that_breaks_ends_with_an_error_and_without_done(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        events = stream_of(server.chat("die", stream=True))
        assert set(events[-1]) == {"error"}
        assert set(events[-1]["error"]) == {"message", "type", "param", "code"}
        assert events[-1]["error"]["code"] == "engine_lost"
        assert "[DONE]" not in events
        assert [e["choices"][0]["delta"].get("content") for e in events[:-1]][0] == ""
        wait_until(server.is_ready)
        with (
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client,
            pytest.raises(openai.APIError, match="engine stopped"),
        ):
            for _ in client.chat.completions.create(model=MODEL, messages=user("die"), stream=True):
                pass


def test_a_quiet_stream_is_kept_open_with_comments(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_module, "PING_SECONDS", 0.005)
    reply = server.chat("slow", seed=3, stream=True)
    assert b"\n\n: ping\n\n" in reply.body
    texts = [e["choices"][0]["delta"].get("content", "") for e in stream_of(reply)[:-1]]
    assert "".join(texts) == server.chat("slow", seed=3).json["choices"][0]["message"]["content"]


def leave_after(server: Server, content: str, *, stream: bool, n: int, until: bytes) -> None:
    """Ask, read until something was seen (nothing: only until it runs), and hang up."""
    before = server.metric("llm_requests_running")
    body = json.dumps(chat_body(content, stream=stream, n=n)).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        seen = b""
        while until not in seen:
            seen += connection.recv(4096)
        if not until:
            wait_until(lambda: server.metric("llm_requests_running") > before)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_hanging_up_frees_the_engine(server: Server, stream: bool, n: int) -> None:
    until = b"on " if stream else b""
    leave_after(server, "endless slow", stream=stream, n=n, until=until)
    # Well before the answer would have come to its own end.
    wait_until(lambda: server.metric("llm_requests_running") == 0, seconds=3)
    assert server.metric("llm_requests_waiting") == 0


def open_stream(server: Server, content: str) -> http.client.HTTPConnection:
    """A connection on which a stream has been asked for."""
    connection = server.connect()
    body = json.dumps(chat_body(content, stream=True))
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    return connection


def test_hanging_up_while_queued_frees_the_place(tmp_path: Path) -> None:
    spec = fake_spec(tmp_path, "--max-running", "1", capacity=2)
    with (
        running_server(tmp_path, spec) as server,
        contextlib.closing(open_stream(server, "endless slow")) as first,
    ):
        first.getresponse()
        with contextlib.closing(open_stream(server, "endless slow")):
            wait_until(lambda: server.metric("llm_requests_waiting") == 1)
        wait_until(lambda: server.metric("llm_requests_waiting") == 0)
        assert server.metric("llm_requests_running") == 1


def test_many_requests_at_once_get_the_answers_they_would_get_alone(server: Server) -> None:
    alone = {seed: server.chat(seed=seed).json["choices"] for seed in range(12)}
    together: dict[int, Any] = {}

    def ask(seed: int) -> None:
        while (reply := server.chat(seed=seed)).status == 503:
            time.sleep(0.01)
        together[seed] = reply.json["choices"]

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert together == alone


def test_a_full_queue_is_told_at_once_with_the_time_to_come_back(tmp_path: Path) -> None:
    with (
        running_server(tmp_path, fake_spec(tmp_path, capacity=1)) as server,
        contextlib.closing(open_stream(server, "endless slow")) as connection,
    ):
        connection.getresponse()
        started = time.monotonic()
        reply = server.chat("b" * 390)
        assert time.monotonic() - started < 1
        assert (reply.status, reply.error["code"]) == (503, "queue_full")
        assert int(reply.headers["retry-after"]) > 0
        assert server.chat(n=2).error["param"] == "n"


def test_openais_client_chats_whole(client: openai.OpenAI, server: Server) -> None:
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=user(), seed=3)
    assert raw.request_id is not None
    answer = raw.parse()
    again = client.chat.completions.create(model=MODEL, messages=user(), seed=3)
    assert answer.choices[0].message.content == again.choices[0].message.content
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.system_fingerprint == "0123456789ab"


def test_openais_client_chats_in_a_stream(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=user(), seed=3)
    text, finish_reason, usage = "", None, None
    for chunk in client.chat.completions.create(
        model=MODEL, messages=user(), seed=3, stream=True, stream_options={"include_usage": True}
    ):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish_reason = choice.finish_reason
        usage = chunk.usage
    assert text == whole.choices[0].message.content
    assert finish_reason == whole.choices[0].finish_reason
    assert usage == whole.usage


def test_openais_client_completes(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt=["a", "b"], seed=3, max_tokens=5, n=2)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    texts = [""] * 4
    for chunk in client.completions.create(
        model=MODEL, prompt=["a", "b"], seed=3, max_tokens=5, n=2, stream=True
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]


def test_openais_client_lists_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "lmloop"


def test_openais_client_understands_every_error(client: openai.OpenAI) -> None:
    ask = client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as unknown:
        ask(model="other", messages=user())
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as too_long:
        ask(model=MODEL, messages=user("a" * 400), stream=True)
    assert (too_long.value.code, too_long.value.param) == ("context_length_exceeded", "messages")
    with pytest.raises(openai.BadRequestError) as unsupported:
        ask(model=MODEL, messages=user(), logprobs=True)
    assert unsupported.value.param == "logprobs"
    with pytest.raises(openai.InternalServerError) as fault:
        ask(model=MODEL, messages=user("fault"))
    assert fault.value.request_id is not None
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=MODEL, input="a")
