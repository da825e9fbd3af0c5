from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmloop.corpus.read import read_sources
from lmloop.errors import SourceError
from lmloop.records import Conversation, Document


def test_records_come_with_the_label_of_their_file(tmp_path: Path, write_rows: Any) -> None:
    write_rows(["plain text"], "t/a.txt")
    write_rows([{"prompt": "hi", "completion": "hello"}], "t/b.jsonl")
    reading = read_sources([f"{tmp_path}/t"])
    first, second = reading
    assert first == ("t/a.txt", Document(id="t/a.txt#0", text="plain text\n", raw_bytes=11))
    assert second.source == "t/b.jsonl"
    assert isinstance(second.record, Conversation)
    assert (reading.records, reading.files, reading.ignored_files) == (2, 2, 0)


def test_the_form_of_the_demo_corpus_is_read(tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    said = [
        [{"text": "Hello", "timestamp": "t", "sender": "720840be"}],
        [{"text": "whats up", "timestamp": "t", "sender": "549cc1d1"}],
    ]
    path.write_text(json.dumps({"id-1": {"messages": said, "start": "t", "ratings": {}}}))
    [(_, record)] = read_sources([str(path)])
    assert isinstance(record, Conversation)
    assert [(turn.role, turn.content) for turn in record.turns] == [
        ("user", "Hello"),
        ("assistant", "whats up"),
    ]
    assert record.raw_bytes == 13


def test_what_is_skipped_is_counted_by_file_and_reason(tmp_path: Path, write_rows: Any) -> None:
    write_rows([{"text": "fine"}, "broken", "{", {"x": 1}], "t/a.jsonl")
    (tmp_path / "t/b.txt").write_bytes(b"caf\xe9")
    (tmp_path / "t/c.json").write_bytes(b'[{"text": "first"}, {"te')
    reading = read_sources([f"{tmp_path}/t"])
    assert len(list(reading)) == 2
    assert reading.skipped["t/a.jsonl"] == {"no valid JSON": 2, "none of the known columns": 1}
    assert reading.skipped["t/b.txt"] == {"not UTF-8": 1}
    [(reason, count)] = reading.skipped["t/c.json"].items()
    assert reason.startswith("no valid JSON (") and count == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "source a.txt has no readable record: it is empty"),
        ("a.txt", b"caf\xe9", "source a.txt: not UTF-8; mend or leave out the file"),
        ("a.json", b'[{"text": "x"}, {', "source a.json: no valid JSON ("),
        ("a.json", b"[]", "source a.json has no readable record: it is empty"),
        ("a.parquet", b"PAR1", "source a.parquet: no valid Parquet"),
        ("a.csv", b"label\n1\n", "has no readable record: none of the known columns (1)"),
        ("a.jsonl", b"{\nx\n\xff\n", "no readable record: no valid JSON (2), not UTF-8 (1)"),
    ],
)
def test_a_named_file_that_cannot_be_read_is_one_clear_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SourceError) as caught:
        list(read_sources([str(path)]))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_source_must_give_a_record(tmp_path: Path, write_rows: Any) -> None:
    good, bad = write_rows([{"text": "x"}], "a.jsonl"), write_rows(["bad"], "b.jsonl")
    with pytest.raises(SourceError, match=r"b\.jsonl has no readable record"):
        list(read_sources([str(good), str(bad)]))


def test_a_file_that_vanishes_is_one_clear_line(write_rows: Any) -> None:
    path = write_rows([{"text": "x"}])
    reading = read_sources([str(path)])
    path.unlink()
    with pytest.raises(SourceError, match=r"rows\.jsonl cannot be read: No such file"):
        list(reading)
