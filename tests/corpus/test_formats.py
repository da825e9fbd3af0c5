from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmloop.corpus import formats
from lmloop.corpus.formats import read_rows
from lmloop.corpus.rows import Skipped


def read(path: Path, content: bytes | str) -> list[Any]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_rows(path))


def test_a_text_file_is_one_document_with_its_bytes_untouched(tmp_path: Path) -> None:
    text = "one\r\n\r\ntwo\x00 \u4f60\u597d\rthree"
    assert read(tmp_path / "a.txt", text) == [{"text": text}]
    assert read(tmp_path / "a.md", b"\xef\xbb\xbf" + text.encode()) == [{"text": text}]
    assert read(tmp_path / "a.txt", "") == []


def test_a_huge_text_file_is_cut_at_blank_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "PIECE_BYTES", 40)
    text = "aaaa\nbbbb\n\ncccc\n\ndddddddddddddd\neeeeeeeeeeeeeeee\nffff\n"
    assert read(tmp_path / "a.txt", text) == [
        {"text": "aaaa\nbbbb\n\ncccc\n\n"},
        {"text": "dddddddddddddd\neeeeeeeeeeeeeeee\nffff\n"},
    ]


@pytest.mark.parametrize("text", ["\u4f60" * 5000, "a line\n" * 5000, "x" * 5000, "a\n\n" * 5000])
def test_pieces_are_small_and_make_up_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(formats, "PIECE_BYTES", 1000)
    pieces = [row["text"] for row in read(tmp_path / "a.txt", text)]
    assert "".join(pieces) == text
    assert all(0 < len(piece.encode()) <= 1000 for piece in pieces)
    assert len(pieces) < 2.5 * len(text.encode()) / 1000


def test_a_text_file_that_is_no_utf8_is_skipped_whole(tmp_path: Path) -> None:
    for content in ("caf\xe9".encode("latin-1"), b"a" * 3_000_000 + b"\xe4\xbd"):
        assert read(tmp_path / "a.txt", content) == [Skipped("not UTF-8", whole_file=True)]


def test_corrupt_lines_of_jsonl_are_skipped_one_by_one(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"a": 1}\r\n\n{"a": \n{"a": "\xff"}\n{"a": "\x00"}\n[1]\n' + b"[" * 9999
    assert read(tmp_path / "a.jsonl", content) == [
        {"a": 1},
        Skipped("no valid JSON"),
        Skipped("not UTF-8"),
        Skipped("no valid JSON"),
        [1],
        Skipped("no valid JSON"),
    ]


@pytest.mark.parametrize("ending", [b"", b"\n", b'\n{"a": 2}'])
def test_a_line_without_end_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: bytes
) -> None:
    monkeypatch.setattr(formats, "LINE_BYTES", 64)
    rows = read(tmp_path / "a.jsonl", b'{"a": 1}\n' + b"x" * 1000 + ending)
    assert rows == [{"a": 1}, Skipped(formats.LONG_LINE)] + [{"a": 2}] * (len(ending) > 1)


def test_a_json_file_may_hold_an_object_a_line(tmp_path: Path) -> None:
    assert read(tmp_path / "a.json", '{"a": 1}\n{"a": 2}\nbroken\n') == [
        {"a": 1},
        {"a": 2},
        Skipped("no valid JSON"),
    ]


def test_a_json_file_is_streamed(tmp_path: Path) -> None:
    data = {"x": {"text": "a"}, "y": {"text": "b"}}
    for indent in (None, 1):
        rows = read(tmp_path / "a.json", "\ufeff" + json.dumps(data, indent=indent) + "\n")
        assert rows == [{"text": "a"}, {"text": "b"}]


def test_a_damaged_json_file_gives_what_stands_before_the_damage(tmp_path: Path) -> None:
    first, skipped = read(tmp_path / "a.json", '[{"text": "a"}, {"text": ')
    assert first == {"text": "a"}
    assert isinstance(skipped, Skipped)
    assert skipped.whole_file
    [deep] = read(tmp_path / "a.json", "[" * 100_000)
    assert isinstance(deep, Skipped)
    [latin] = read(tmp_path / "a.json", b'[{"text": "caf\xe9"}]')
    assert latin == Skipped("not UTF-8", whole_file=True)


def test_csv_rows_have_the_columns_of_the_header(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbftext,label\r\n"one, ""two""\nthree",1\r\n\r\nfour\r\n'
    assert read(tmp_path / "a.csv", content) == [
        {"text": 'one, "two"\nthree', "label": "1"},
        {"text": "four"},
    ]


@pytest.mark.parametrize("delimiter", [";", "\t", ","])
def test_csv_may_be_separated_by_comma_semicolon_or_tab(tmp_path: Path, delimiter: str) -> None:
    assert read(tmp_path / "a.csv", f"text{delimiter}n\na{delimiter}1\n") == [
        {"text": "a", "n": "1"}
    ]


def test_bad_csv_rows_are_skipped_one_by_one(tmp_path: Path) -> None:
    content = b"text,n\ncaf\xe9,1\nfine,2\na,b,c\nlast\x00,3\n"
    assert read(tmp_path / "a.csv", content) == [
        Skipped("not UTF-8"),
        {"text": "fine", "n": "2"},
        Skipped("more fields than the header has"),
        {"text": "last\x00", "n": "3"},
    ]


def test_csv_takes_long_fields_and_leaves_the_global_limit_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = csv.field_size_limit()
    long = "a" * (before + 1)
    assert read(tmp_path / "a.csv", f"text\n{long}\n") == [{"text": long}]
    assert csv.field_size_limit() == before
    monkeypatch.setattr(formats, "LINE_BYTES", 100)
    rows = read(tmp_path / "a.csv", "text\nfirst\n" + '"' + "a b\n" * 100 + "\n" + "x" * 500 + "\n")
    assert rows[0] == {"text": "first"}
    assert all(isinstance(row, Skipped) or len(row["text"]) <= 100 for row in rows)
    assert any(isinstance(row, Skipped) for row in rows)


def test_parquet_gives_rows_of_the_known_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    messages = [[{"role": "user", "content": "hi"}], None]
    pq.write_table(pa.table({"messages": messages, "other": [1, 2]}), path)
    assert list(read_rows(path)) == [{"messages": each} for each in messages]


def test_parquet_without_known_columns_or_damaged_is_skipped_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"other": [1, 2]}), path)
    assert list(read_rows(path)) == [Skipped("none of the known columns", whole_file=True)]
    for content in (b"", b"PAR1", path.read_bytes()[:-20]):
        [skipped] = read(path, content)
        assert isinstance(skipped, Skipped)
        assert skipped.whole_file
        assert skipped.reason.startswith("no valid Parquet")


def test_parquet_with_text_that_is_no_utf8_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    broken = pa.array([b"caf\xe9"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": broken}), path)
    assert list(read_rows(path)) == [Skipped("not UTF-8", whole_file=True)]
