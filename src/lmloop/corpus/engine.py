"""The data engine: Daft cleans, compares and sorts the records of a corpus.

Takes: records as read. Gives: a verdict for each (the split it goes to, or what drops it), sums and
samples per verdict, and the splits as Parquet. Equal sets of records give equal bytes, whatever
their order. In memory stand the keys (hash, file, size, signature) and, while it is sorted, one
split; the rest rests on disk.
Daft is imported here and in pictures.py alone. No expression here holds a Python literal: making
one imports torch, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lmloop.config import silence_telemetry
from lmloop.corpus.clean import clean_record
from lmloop.corpus.dedupe import NUM_HASHES, find_near_duplicates
from lmloop.corpus.read import SourcedRecord
from lmloop.corpus.rules import NGRAM
from lmloop.corpus.splits import SCHEMA, SPLITS, build_record, build_row, choose_split, write_split
from lmloop.records import Conversation
from lmloop.sections import PrepareConfig

SPOOL_ROWS = 1024
SPOOL_BYTES = 32 * 2**20
SAMPLES = 5
EXACT_DUPLICATE = "exact_duplicate"
NEAR_DUPLICATE = "near_duplicate"

_SPOOL_SCHEMA = pa.schema([("row", pa.int64()), *((each.name, each.type) for each in SCHEMA)])


class Engine:
    """One corpus on its way through the engine; the methods are called in the order they stand."""

    def __init__(self, work: Path, *, config: PrepareConfig, seed: int) -> None:
        """`work`: an empty folder for intermediate files; `seed`: of the MinHash permutations."""
        self._daft = _import_daft()
        self._config = config
        self._seed = seed
        self._spool = work / "spool.parquet"
        self._cleaned = work / "cleaned"
        self._keys: Any = None  # A pyarrow table: row, id, verdict; ordered by id.

    def spool(self, records: Iterable[SourcedRecord], *, advance: Callable[[int], None]) -> None:
        """Write records to disk as they come; `advance` gets how many there are so far."""
        chunk: list[dict[str, Any]] = []
        size = row = 0
        with pq.ParquetWriter(self._spool, _SPOOL_SCHEMA) as writer:
            for row, (source, record) in enumerate(records, start=1):
                chunk.append({"row": row, "source": source, **build_row(record)})
                size += record.raw_bytes
                if len(chunk) == SPOOL_ROWS or size > SPOOL_BYTES:
                    writer.write_table(pa.Table.from_pylist(chunk, schema=_SPOOL_SCHEMA))
                    advance(row)
                    chunk, size = [], 0
            writer.write_table(pa.Table.from_pylist(chunk, schema=_SPOOL_SCHEMA))
        advance(row)

    def clean(self) -> None:
        """Normalise, mask and judge every record by the rules; compute MinHash signatures."""
        col = self._daft.col
        frame = self._daft.read_parquet(str(self._spool)).select(
            col("row"),
            col("source"),
            col("raw_bytes"),
            self._clean_rows()(col("text"), col("roles"), col("contents"), col("raw_bytes")),
        )
        signature = col("shingles").minhash(
            num_hashes=NUM_HASHES, ngram_size=NGRAM, seed=self._seed % 2**32
        )
        if self._config.near_duplicate_similarity is not None:
            frame = frame.with_column("signature", signature)
        frame.exclude("shingles").write_parquet(str(self._cleaned))

    def judge(self) -> int:
        """Decide for every record where it goes; give the number of near-duplicate pairs."""
        keys = self._read_cleaned().exclude("text", "roles", "contents").to_arrow()
        # Copies of one content are alike but for their file and raw size: the least of them stays.
        names = ("id", "source", "raw_bytes", "row")
        keys = keys.sort_by([(name, "ascending") for name in names]).combine_chunks()
        verdicts = np.array(keys["dropped"].to_pylist(), dtype=object)
        ids = np.array(keys["id"].to_pylist(), dtype=object)
        left = np.flatnonzero(keys["dropped"].is_null().to_numpy())
        copies = left[1:][ids[left[1:]] == ids[left[:-1]]]
        verdicts[copies] = EXACT_DUPLICATE
        left = np.setdiff1d(left, copies)
        pairs = 0
        if self._config.near_duplicate_similarity is not None:
            found = find_near_duplicates(
                _stack_signatures(keys["signature"].take(left)),
                similarity=self._config.near_duplicate_similarity,
            )
            verdicts[left[found.survivors != np.arange(len(left))]] = NEAR_DUPLICATE
            left, pairs = left[found.survivors == np.arange(len(left))], found.pairs
        for index in left:
            verdicts[index] = choose_split(
                ids[index],
                validation_share=self._config.validation_share,
                heldout_share=self._config.heldout_share,
            )
        self._keys = keys.select(["row", "id"]).append_column(
            "verdict", pa.array(verdicts, pa.string())
        )
        return pairs

    def summarise(self) -> dict[str, dict[str, int]]:
        """Verdict → records, conversations, turns, raw_bytes, changed, emails, phones."""
        col = self._daft.col
        sums = [col(name).cast("int64").sum().alias(name) for name in _SUMS]
        table = (
            self._read_judged()
            .select("row", "verdict", *_SUMS)
            .groupby("verdict")
            .agg(col("row").count().alias("records"), *sums)
            .to_arrow()
        )
        return {row.pop("verdict"): row for row in table.to_pylist()}

    def sample(self) -> dict[str, list[str]]:
        """Verdict of those dropped → text of the few victims whose hashes are smallest."""
        chosen: dict[str, dict[str, int]] = {}
        columns = (self._keys[name].to_pylist() for name in ("id", "verdict"))
        for index, (content, verdict) in enumerate(zip(*columns, strict=True)):
            victims = chosen.setdefault(verdict, {})
            if verdict not in SPLITS and len(victims) < SAMPLES:
                victims.setdefault(content, index)
        indices = [index for victims in chosen.values() for index in victims.values()]
        samples: dict[str, list[str]] = {}
        for each in (
            self._read_judged(self._keys.take(pa.array(indices, pa.int64())))
            .sort("id")
            .to_arrow()
            .to_pylist()
        ):
            samples.setdefault(each["verdict"], []).append(_render(each))
        return samples

    def survivors(self) -> list[str]:
        """Content hashes of the records that stay, in order."""
        kept = self._keys.filter(pc.is_in(self._keys["verdict"], pa.array(SPLITS)))
        return [str(each) for each in kept["id"].to_pylist()]

    def write(self, split: str, path: Path) -> None:
        """Write a split to `path`, ordered by content hash."""
        keys = self._keys.filter(pc.equal(self._keys["verdict"], split))
        frame = self._read_judged(keys).select(*SCHEMA.names).sort("id")
        write_split(frame.to_arrow(), path)

    def _read_cleaned(self) -> Any:
        return self._daft.read_parquet(f"{self._cleaned}/*.parquet")

    def _read_judged(self, keys: Any | None = None) -> Any:
        """The cleaned records of `keys`, all by default, with their verdicts."""
        verdicts = (self._keys if keys is None else keys).select(["row", "verdict"])
        return self._read_cleaned().join(self._daft.from_arrow(verdicts), on="row")

    def _clean_rows(self) -> Any:
        """A Daft function: columns as read → the columns of `_CLEAN_TYPES`."""
        config, types = self._config, self._daft.DataType
        fields = {name: types.from_arrow_type(each) for name, each in _CLEAN_TYPES.items()}

        @self._daft.func.batch(  # type: ignore[untyped-decorator]
            return_dtype=types.struct(fields),
            unnest=True,
            use_process=False,
            batch_size=SPOOL_ROWS,
        )
        def clean_rows(text: Any, roles: Any, contents: Any, raw_bytes: Any) -> Any:
            names = ("text", "roles", "contents", "raw_bytes")
            columns = (series.to_pylist() for series in (text, roles, contents, raw_bytes))
            rows = (
                dict(zip(names, values, strict=True), id="")
                for values in zip(*columns, strict=True)
            )
            return pa.array(
                [_clean_row(row, config) for row in rows], pa.struct(_CLEAN_TYPES.items())
            )

        return clean_rows


_SUMS = ("conversations", "turns", "raw_bytes", "changed", "emails", "phones")

_CLEAN_TYPES = {
    "id": pa.string(),
    "text": pa.string(),
    "roles": pa.list_(pa.string()),
    "contents": pa.list_(pa.string()),
    "conversations": pa.int64(),
    "turns": pa.int64(),
    "changed": pa.bool_(),
    "emails": pa.int64(),
    "phones": pa.int64(),
    "dropped": pa.string(),
    "shingles": pa.string(),
}


def _clean_row(row: dict[str, Any], config: PrepareConfig) -> dict[str, Any]:
    cleaned = clean_record(build_record(row), config=config)
    record = cleaned.record
    return {
        **build_row(record),
        "conversations": int(isinstance(record, Conversation)),
        "turns": len(record.turns) if isinstance(record, Conversation) else 0,
        "changed": cleaned.changed,
        "emails": cleaned.emails,
        "phones": cleaned.phones,
        "dropped": cleaned.dropped,
        "shingles": cleaned.shingles,
    }


def _stack_signatures(column: Any) -> npt.NDArray[np.uint32]:
    """[N, NUM_HASHES] of a column of fixed-size lists."""
    values: npt.NDArray[np.uint32] = column.combine_chunks().flatten().to_numpy()
    return values.reshape(-1, NUM_HASHES)


def _render(row: dict[str, Any]) -> str:
    if row["roles"] is None:
        return str(row["text"])
    pairs = zip(row["roles"], row["contents"], strict=True)
    return "\n".join(f"{role}: {content}" for role, content in pairs)


def _import_daft() -> Any:
    silence_telemetry()
    import daft

    return daft
