"""The words of OpenAI's answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lmloop.serving.replies import (
    DONE,
    PING,
    ChatShape,
    CompletionShape,
    Head,
    Shape,
    Usage,
    answer_object,
    chunk_event,
    event,
    usage_event,
)

HEAD = Head(id="chatcmpl-1", created=5, model="m", weights="0123456789ab")
USAGE = Usage(prompt_tokens=3, completion_tokens=4)


def data_of(sent: bytes) -> Any:
    assert sent.startswith(b"data: ")
    assert sent.endswith(b"\n\n")
    return json.loads(sent[6:])


def test_a_chat_answer_is_openais_object() -> None:
    choice = ChatShape().whole(0, "hi", "stop")
    assert answer_object(HEAD, ChatShape(), choices=[choice], usage=USAGE) == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 5,
        "model": "m",
        "system_fingerprint": "0123456789ab",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hi", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    }


def test_a_completion_is_openais_object() -> None:
    choice = CompletionShape().whole(1, "hi", "length")
    assert choice == {"index": 1, "text": "hi", "logprobs": None, "finish_reason": "length"}
    answer = answer_object(HEAD, CompletionShape(), choices=[choice], usage=USAGE)
    assert answer["object"] == "text_completion"


def test_a_chats_stream_opens_with_the_role_and_ends_with_an_empty_delta() -> None:
    shape = ChatShape()
    assert shape.opening(0)["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert shape.delta(0, "a")["delta"] == {"content": "a"}
    assert shape.final(0, "stop")["delta"] == {}
    assert shape.final(0, "stop")["finish_reason"] == "stop"


@pytest.mark.parametrize("shape", [ChatShape(), CompletionShape()])
def test_a_chunk_on_the_way_says_that_it_is_not_the_last(shape: Shape) -> None:
    chunk = data_of(chunk_event(HEAD, shape, shape.delta(0, "a"), includes_usage=False))
    assert chunk["choices"][0]["finish_reason"] is None
    assert "usage" not in chunk
    assert (chunk["id"], chunk["created"]) == ("chatcmpl-1", 5)


def test_usage_is_null_until_its_own_last_chunk() -> None:
    shape = ChatShape()
    chunk = data_of(chunk_event(HEAD, shape, shape.delta(0, "a"), includes_usage=True))
    assert chunk["usage"] is None
    last = data_of(usage_event(HEAD, shape, USAGE))
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 7)


def test_an_event_is_one_line_for_every_kind_of_line_reader() -> None:
    text = "a\nb\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\U0001f600"
    sent = event({"text": text})
    assert len(sent.decode().splitlines()) == 2
    assert data_of(sent) == {"text": text}


def test_done_and_ping_end_with_a_blank_line() -> None:
    assert DONE == b"data: [DONE]\n\n"
    assert PING.startswith(b":")
    assert PING.endswith(b"\n\n")
