from __future__ import annotations

import io
import json
from typing import Any

import pytest

from lmloop.corpus import json_stream
from lmloop.corpus.json_stream import stream_json

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def rows(text: str) -> list[object]:
    return list(stream_json(io.StringIO(text)))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([{"text": "a"}, {"text": "b"}], [{"text": "a"}, {"text": "b"}]),
        ({"x": {"text": "a"}, "y": {"text": "b"}}, [{"text": "a"}, {"text": "b"}]),
        ({"messages": CHAT, "rating": 5}, [{"messages": CHAT, "rating": 5}]),
        ({"version": 1, "data": [{"text": "a"}, {"text": "b"}]}, [{"text": "a"}, {"text": "b"}]),
        ({"conversations": [{"turns": CHAT}]}, [{"turns": CHAT}]),
        ({"a": {"b": 1}, "messages": CHAT}, [{"b": 1}, CHAT]),
        ([], []),
        ({}, []),
    ],
)
def test_a_file_is_a_list_of_rows_or_id_to_row_or_one_row(
    data: object, expected: list[object]
) -> None:
    assert rows(json.dumps(data)) == expected
    assert rows(" \n" + json.dumps(data, indent=2) + "\n") == expected


def test_rows_that_cross_the_buffer_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "CHUNK_CHARACTERS", 7)
    data: list[Any] = [{"text": "word " * count, "n": 12345678901} for count in range(30)]
    assert rows(json.dumps([*data, 123456789, "a string", None])) == [
        *data,
        123456789,
        "a string",
        None,
    ]


def test_rows_come_before_the_end_is_read() -> None:
    class Endless(io.StringIO):
        opening = "["

        def read(self, size: int | None = -1, /) -> str:
            opening, self.opening = self.opening, ""
            return opening + '{"text": "a"},' * 1000

    stream = stream_json(Endless())
    assert [next(stream) for _ in range(5000)] == [{"text": "a"}] * 5000


@pytest.mark.parametrize(
    "text",
    [
        '[{"text": "a"}',
        '[{"text": "a"} {"text": "b"}]',
        '[{"text": "a"}] more',
        '{"a": {"text": "a"}',
        '{"a" {"text": "a"}}',
        "[1, 2",
        "[tru]",
        "hello",
        "5",
    ],
)
def test_damage_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="character|begins with"):
        rows(text)


def test_an_empty_file_has_no_rows() -> None:
    assert rows("") == rows(" \n ") == []


def test_a_row_without_end_is_taken_for_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "CHUNK_CHARACTERS", 10)
    monkeypatch.setattr(json_stream, "ROW_CHARACTERS", 100)
    stream = io.StringIO('["' + "a" * 10_000 + '"]')
    with pytest.raises(ValueError, match="damaged after character 1"):
        list(stream_json(stream))
    assert stream.tell() < 1000
