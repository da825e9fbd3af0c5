"""The three splits of a corpus: who belongs to which, and how they rest on disk.

Takes: content hashes and rows. Gives: `train`, `validation` and `heldout` as Parquet, and records
read back one row group at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lmloop.errors import ArtifactError
from lmloop.records import Conversation, Document, Record, Turn

SPLITS = ("train", "validation", "heldout")
ROW_GROUP = 1024
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("text", pa.string()),
        ("roles", pa.list_(pa.string())),
        ("contents", pa.list_(pa.string())),
        ("raw_bytes", pa.int64()),
    ]
)


def locate(content_hash: str) -> float:
    """Where a record lies between 0 and 1: the last 64 bits of its hash.

    The first bits decide which of two near duplicates stays, so they would not be a fair draw.
    """
    return int(content_hash[-16:], 16) / 2**64


def choose_split(content_hash: str, *, validation_share: float, heldout_share: float) -> str:
    """The split of a record: its content alone decides, so that adding data moves nobody."""
    place = locate(content_hash)
    if place < heldout_share:
        return "heldout"
    return "validation" if place >= 1 - validation_share else "train"


def write_split(table: Any, path: Path) -> None:
    """Write a pyarrow table with the columns of `SCHEMA`; equal rows give equal bytes."""
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for start in range(0, table.num_rows, ROW_GROUP):
            group = table.slice(start, ROW_GROUP).select(SCHEMA.names).cast(SCHEMA)
            writer.write_table(group.combine_chunks(), row_group_size=ROW_GROUP)


def read_split(folder: Path, split: str) -> Iterator[Record]:
    """Yield the records of a corpus artifact's split (one of `SPLITS`), ordered by content hash.

    Raises `ArtifactError` where the folder has no such split.
    """
    path = folder / f"{split}.parquet"
    if not path.is_file():
        raise ArtifactError(f"{folder} has no {path.name}: run lmloop prepare to make it again")
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=ROW_GROUP):
            yield from map(build_record, batch.to_pylist())


def build_record(row: dict[str, Any]) -> Record:
    """The record of one row."""
    if row["roles"] is None:
        return Document(id=row["id"], text=row["text"], raw_bytes=row["raw_bytes"])
    turns = tuple(map(Turn, row["roles"], row["contents"]))
    return Conversation(id=row["id"], turns=turns, raw_bytes=row["raw_bytes"])


def build_row(record: Record) -> dict[str, Any]:
    """The row of one record: `build_record` turned round, without `source`."""
    conversation = record if isinstance(record, Conversation) else None
    return {
        "id": record.id,
        "text": record.text if isinstance(record, Document) else None,
        "roles": conversation and [turn.role for turn in conversation.turns],
        "contents": conversation and [turn.content for turn in conversation.turns],
        "raw_bytes": record.raw_bytes,
    }
