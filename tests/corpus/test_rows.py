from __future__ import annotations

import json

import pytest

from lmloop.corpus.rows import Skipped, parse_row
from lmloop.records import Conversation, Document, Record


def parse(row: object) -> Record | Skipped:
    return parse_row(row, record_id="r")


def turns(row: object) -> list[tuple[str, str]]:
    record = parse(row)
    assert isinstance(record, Conversation), record
    return [(turn.role, turn.content) for turn in record.turns]


CHAT = [("user", "hi"), ("assistant", "hello")]


@pytest.mark.parametrize("key", ["messages", "conversations", "conversation", "turns", "Messages"])
@pytest.mark.parametrize(
    "names", [("role", "content"), ("from", "value"), ("speaker", "text"), ("sender", "text")]
)
def test_conversations_are_recognised_under_their_usual_names(
    key: str, names: tuple[str, str]
) -> None:
    speaker, text = names
    row = {key: [{speaker: "human", text: "hi"}, {speaker: "gpt", text: "hello"}], "id": 5}
    assert turns(row) == CHAT


def test_a_list_or_json_text_can_be_the_conversation() -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "bot", "content": "hello"}]
    assert turns(messages) == turns({"messages": json.dumps(messages)}) == CHAT


def test_system_messages_keep_their_role() -> None:
    row = {"messages": [{"role": "System", "content": "be kind"}, {"role": "user", "content": "x"}]}
    assert turns(row) == [("system", "be kind"), ("user", "x")]


def test_unknown_speakers_are_user_and_assistant_in_order_of_appearance() -> None:
    row = {
        "messages": [
            [{"sender": "7f3a", "text": "hi"}, {"sender": "7f3a", "text": "there"}],
            [{"sender": "90bc", "text": "hello"}],
            [{"sender": "7f3a", "text": "bye"}],
        ]
    }
    assert turns(row) == [("user", "hi\nthere"), ("assistant", "hello"), ("user", "bye")]


def test_an_unknown_speaker_takes_the_role_that_is_free() -> None:
    row = {"turns": [{"speaker": "gpt", "text": "a"}, {"speaker": "Bob", "text": "b"}]}
    assert turns(row) == [("assistant", "a"), ("user", "b")]


def test_a_third_speaker_skips_the_conversation() -> None:
    for names in ("abc", ["user", "gpt", "tool"]):
        row = {"turns": [{"speaker": name, "text": "x"} for name in names]}
        assert parse(row) == Skipped("more than two speakers")


def test_raw_bytes_are_those_of_the_utterances_as_read() -> None:
    row = {
        "messages": [
            {"role": "user", "content": "  caf\u00e9\r\n"},
            {"role": "user", "content": "\u4f60"},
            {"role": "assistant", "content": "ok"},
        ]
    }
    record = parse(row)
    assert isinstance(record, Conversation)
    assert record.raw_bytes == 9 + 3 + 2
    assert record.turns[0].content == "  caf\u00e9\r\n\n\u4f60"


def test_content_may_come_in_text_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert turns([{"role": "user", "content": parts}]) == [("user", "a\nb")]
    picture = [{"type": "image_url", "image_url": "x"}]
    assert parse([{"role": "user", "content": picture}]) == Skipped("a message without text")


@pytest.mark.parametrize(
    ("row", "question"),
    [
        ({"prompt": "hi", "completion": "hello"}, "hi"),
        ({"instruction": "hi", "input": "", "output": "hello"}, "hi"),
        ({"instruction": "hi", "input": "all", "output": "hello"}, "hi\nall"),
        ({"question": "hi", "answer": "hello", "text": "both"}, "hi"),
    ],
)
def test_a_question_with_its_answer_is_a_conversation_of_two_turns(
    row: dict[str, str], question: str
) -> None:
    assert turns(row) == [("user", question), ("assistant", "hello")]
    record = parse(row)
    assert isinstance(record, Conversation)
    assert record.raw_bytes == len(question.replace("\n", "")) + 5


@pytest.mark.parametrize("row", [{"text": "some"}, {"content": "some", "n": 1}, {"Text": "some"}])
def test_a_text_column_is_a_document(row: dict[str, object]) -> None:
    assert parse(row) == Document(id="r", text="some", raw_bytes=4)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (5, "not an object with named columns"),
        ("text", "not an object with named columns"),
        ({"title": "x"}, "none of the known columns"),
        ({"question": "x", "answer": {"text": "y"}}, "none of the known columns"),
        ({"text": 5}, "none of the known columns"),
        ({"text": ""}, "empty"),
        ({"messages": []}, "empty"),
        ({"messages": "hello"}, "a conversation that is no list of messages"),
        ({"messages": {"role": "user"}}, "a conversation that is no list of messages"),
        ({"messages": ["hi"]}, "a message that is no object"),
        ({"messages": [{"content": "x"}]}, "a message without a speaker"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "a message without a speaker"),
        ({"messages": [{"role": "user", "content": None}]}, "a message without text"),
        ({"role": "user", "content": "x"}, "a single message: a row must hold the whole"),
        ({"text": "\ud83d"}, "no valid Unicode"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "no valid Unicode"),
    ],
)
def test_what_is_no_record_is_skipped_with_the_reason(row: object, reason: str) -> None:
    skipped = parse(row)
    assert isinstance(skipped, Skipped)
    assert skipped.reason.startswith(reason)
