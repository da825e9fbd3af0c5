from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from lmloop.corpus.splits import (
    ROW_GROUP,
    SCHEMA,
    build_record,
    build_row,
    choose_split,
    read_split,
    write_split,
)
from lmloop.errors import ArtifactError
from lmloop.records import Conversation, Document, Turn

RECORDS = [
    Document(id="d", text="some text", raw_bytes=11),
    Conversation(id="c", turns=(Turn("user", "hi"), Turn("assistant", "\u4f60")), raw_bytes=7),
]


def make_table(count: int) -> pa.Table:
    rows = [
        {"source": "s", **build_row(RECORDS[number % 2]), "id": f"{number:05}"}
        for number in range(count)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def test_rows_and_records_are_each_others_inverse() -> None:
    for record in RECORDS:
        assert build_record(build_row(record)) == record


def test_a_split_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [{"source": "s", **build_row(record)} for record in RECORDS]
    write_split(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "train.parquet")
    assert list(read_split(tmp_path, "train")) == RECORDS


def test_the_bytes_do_not_depend_on_how_a_table_is_cut(tmp_path: Path) -> None:
    table = make_table(2 * ROW_GROUP + 100)
    pieces = pa.concat_tables([table.slice(0, 700), table.slice(700)])
    assert pieces["id"].num_chunks == 2
    write_split(table, tmp_path / "one.parquet")
    write_split(pieces, tmp_path / "two.parquet")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    assert [record.id for record in read_split(tmp_path, "two")] == table["id"].to_pylist()


def test_shares_are_met_and_more_share_only_adds() -> None:
    hashes = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(20_000)]
    small = [choose_split(each, validation_share=0.01, heldout_share=0.04) for each in hashes]
    large = [choose_split(each, validation_share=0.02, heldout_share=0.05) for each in hashes]
    counts = Counter(small)
    assert abs(counts["validation"] - 200) < 60
    assert abs(counts["heldout"] - 800) < 120
    assert all(one in ("train", other) for one, other in zip(small, large, strict=True))


def test_a_missing_split_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no heldout\.parquet: run lmloop prepare"):
        next(read_split(tmp_path, "heldout"))
