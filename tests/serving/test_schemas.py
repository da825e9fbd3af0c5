"""What a client may send, and how each fault is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmloop.errors import RequestError
from lmloop.records import Turn
from lmloop.serving.schemas import (
    NEUTRAL,
    Feedback,
    parse_body,
    parse_chat,
    parse_completion,
    unknown_fields,
)

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION = {"model": "m", "prompt": "hi"}
ANSWER_ID = "chatcmpl-" + "0" * 24


def chat(**fields: Any) -> Any:
    return parse_chat(json.dumps({**CHAT, **fields}).encode())


def completion(**fields: Any) -> Any:
    return parse_completion(json.dumps({**COMPLETION, **fields}).encode())


def refusal(read: Any, **fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        read(**fields)
    assert caught.value.status == 400
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_plain_request_is_read_with_absent_fields_absent() -> None:
    request = chat()
    assert (request.count, request.stop, request.includes_usage) == (1, (), False)
    assert request.temperature is request.top_p is request.seed is request.max_tokens is None


@pytest.mark.parametrize("name", ["temperature", "top_p", "n", "seed", "stop", "stream_options"])
def test_null_means_absent(name: str) -> None:
    assert chat(**{name: None}) == chat()


@pytest.mark.parametrize(
    ("given_stop", "stops"),
    [(None, ()), ("", ()), ([], ()), ([""], ()), ("a", ("a",)), (["a", "", "b"], ("a", "b"))],
)
def test_stop_may_be_a_string_or_a_list(given_stop: Any, stops: tuple[str, ...]) -> None:
    assert chat(stop=given_stop).stop == stops


@pytest.mark.parametrize(
    ("given_prompt", "prompts"),
    [
        ("a", ("a",)),
        ("", ("",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
    ],
)
def test_a_prompt_may_be_text_or_ids_one_or_many(given_prompt: Any, prompts: Any) -> None:
    assert completion(prompt=given_prompt).prompt == prompts


def test_choices_are_counted_for_every_prompt() -> None:
    assert chat(n=3).count == 3
    assert completion(prompt=["a", "b"], n=3).count == 6


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = chat(messages=[{"role": "developer", "content": parts, "name": "x"}])
    assert request.messages[0].content == "a\nb"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"n": 1.5}, "n"),
        ({"seed": 2**63}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ["a" * 257]}, "stop.0"),
        ({"stop": 3}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"model": None}, "model"),
        ({"user": 5}, "user"),
        ({"safety_identifier": ["a"]}, "safety_identifier"),
        ({"model": ""}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [3]}]}, "messages.0.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages.0.content",
        ),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]},
            "messages.0.tool_calls",
        ),
    ],
)
def test_a_fault_is_named_by_its_field(fields: dict[str, Any], param: str) -> None:
    assert refusal(chat, **fields).param == param


@pytest.mark.parametrize("prompt", [None, 3, [], [[]], [True], ["a", 1], [1, "a"], {}, ["a"] * 65])
def test_a_prompt_that_is_none_is_refused(prompt: Any) -> None:
    assert refusal(completion, prompt=prompt).param == "prompt"


def test_a_missing_field_is_told_from_a_wrong_one() -> None:
    with pytest.raises(RequestError) as caught:
        parse_chat(b'{"model": "m"}')
    assert (caught.value.param, caught.value.code) == ("messages", "missing_required_parameter")


def test_parts_that_are_not_text_are_refused_by_their_type() -> None:
    parts = [{"type": "input_audio", "input_audio": {}}]
    error = refusal(chat, messages=[{"role": "user", "content": parts}])
    assert "'input_audio'" in str(error)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}),
        ("response_format", {"type": "json_object"}),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("logit_bias", {"1": 5}),
        ("presence_penalty", 0.5),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy"}),
        ("chat_template", "{{ 1 }}"),
        ("min_p", 0.1),
    ],
)
def test_what_would_change_the_answer_and_is_not_supported_is_refused(
    name: str, value: Any
) -> None:
    error = refusal(chat, **{name: value})
    assert (error.param, error.code) == (name, "unsupported_parameter")
    assert name in str(error)


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_what_asks_for_nothing_is_accepted(name: str) -> None:
    for value in (*NEUTRAL[name], "null"):
        assert unknown_fields(chat(**{name: json.loads(value)})) == []


@pytest.mark.parametrize(("name", "value"), [("logprobs", 0), ("echo", True), ("best_of", 2)])
def test_completions_refuse_what_they_cannot_do(name: str, value: Any) -> None:
    assert refusal(completion, **{name: value}).param == name


def test_unknown_fields_are_accepted_and_can_be_named() -> None:
    assert unknown_fields(chat(user="u", metadata={}, temperatur=1, foo=None)) == [
        "foo",
        "temperatur",
    ]


def test_a_chat_is_given_as_turns_with_its_opening_and_its_size() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "de"},
    ]
    request = chat(messages=messages)
    assert request.turns == [
        Turn("system", "be kind"),
        Turn("user", "a\nb"),
        Turn("assistant", "c"),
        Turn("user", "de"),
    ]
    assert (request.opening, request.characters) == ("a\nb", 13)
    assert chat(messages=messages[:1]).opening is None


def test_of_a_plain_text_the_first_prompt_is_what_a_user_says() -> None:
    request = completion(prompt=["ab", "c"])
    assert (request.turns, request.opening, request.characters) == ([Turn("user", "ab")], None, 3)
    assert completion(prompt=[[1, 2], [3]]).turns == []
    assert completion(prompt=[[1, 2], [3]]).characters == 3


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"model": "\\ud800"}'],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        parse_chat(body)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "-1e999"])
def test_numbers_that_are_none_are_refused(number: str) -> None:
    body = json.dumps(CHAT)[:-1] + f', "temperature": {number}}}'
    with pytest.raises(RequestError):
        parse_chat(body.encode())


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    for read in (parse_chat, parse_completion):
        with pytest.raises(RequestError) as caught:
            read(body)
        assert caught.value.status == 400


@pytest.mark.parametrize("rating", [1, -1, None])
def test_feedback_is_up_down_or_withdrawn(rating: int | None) -> None:
    body = json.dumps({"response_id": ANSWER_ID, "rating": rating}).encode()
    assert parse_body(Feedback, body).rating == rating


def test_feedback_knows_the_size_of_its_texts() -> None:
    body = {"response_id": ANSWER_ID, "correction": "abc", "comment": "<script>\x07"}
    feedback = parse_body(Feedback, json.dumps(body).encode())
    assert (feedback.characters, feedback.comment) == (12, "<script>\x07")
    assert parse_body(Feedback, json.dumps({"response_id": "a"}).encode()).characters == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"rating": 0}, "rating"),
        ({"rating": 2}, "rating"),
        ({"rating": True}, "rating"),
        ({"rating": "1"}, "rating"),
        ({"rating": 1.0}, "rating"),
        ({"correction": "a" * 20_001}, "correction"),
        ({"comment": "a" * 2_001}, "comment"),
        ({"response_id": 3}, "response_id"),
    ],
)
def test_feedback_is_bounded(fields: dict[str, Any], param: str) -> None:
    body = json.dumps({"response_id": ANSWER_ID, **fields}).encode()
    with pytest.raises(RequestError) as caught:
        parse_body(Feedback, body)
    assert caught.value.param == param
