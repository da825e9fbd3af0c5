"""How each file type gives its rows, one at a time and in bounded memory.

Takes: a .txt, .md, .json, .jsonl, .csv or .parquet file. Gives: rows for `rows.parse_row`, and a
`Skipped` with the reason for each line, row or rest of a file that cannot be read.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from lmloop.corpus.json_stream import stream_json
from lmloop.corpus.rows import KNOWN_KEYS, Skipped

LINE_BYTES = 32 * 2**20
"""A line longer than this is skipped, so that one broken file cannot take the memory."""
PIECE_BYTES = 20_000
"""A longer text file becomes several documents, cut at blank lines where there are any; small
enough for one book to reach every split."""
PARQUET_ROWS = 1024

BAD_UTF8 = "not UTF-8"
LONG_LINE = f"a line of more than {LINE_BYTES // 2**20} MiB"


def read_rows(path: Path) -> Iterator[object]:
    """Rows of a file by its type; `Skipped` stands where something could not be read."""
    readers = {
        ".json": _read_json,
        ".jsonl": _read_jsonl,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
    }
    return readers.get(path.suffix.lower(), _read_text)(path)


def _read_text(path: Path) -> Iterator[object]:
    if not _is_utf8(path):
        yield Skipped(BAD_UTF8, whole_file=True)
        return
    lines: list[str] = []
    size = cut = 0  # `cut`: how many of `lines` go up to the last blank line.
    with path.open(encoding="utf-8-sig", newline="") as stream:
        # A character has at most four bytes, so that a line without end is cut in time.
        while line := stream.readline(PIECE_BYTES // 4):
            length = len(line.encode())
            while lines and size + length > PIECE_BYTES:
                cut = cut or len(lines)
                yield {"text": "".join(lines[:cut])}
                lines, cut = lines[cut:], 0
                size = sum(len(each.encode()) for each in lines)
            lines.append(line)
            size += length
            cut = cut if line.strip() else len(lines)
    if lines:
        yield {"text": "".join(lines)}


def _is_utf8(path: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(2**20):
                decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _read_json(path: Path) -> Iterator[object]:
    if _holds_lines(path):
        yield from _read_jsonl(path)
        return
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            yield from stream_json(stream)
    except UnicodeDecodeError:
        yield Skipped(BAD_UTF8, whole_file=True)
    except (ValueError, RecursionError) as error:
        yield Skipped(f"no valid JSON ({error})", whole_file=True)


def _holds_lines(path: Path) -> bool:
    """Whether a .json file holds an object a line, as many data sets do."""
    with path.open("rb") as stream:
        line = stream.readline(LINE_BYTES)
        if not line.endswith(b"\n") or not stream.read(2**10).strip():
            return False
    try:
        return isinstance(json.loads(line.decode("utf-8-sig")), dict)
    except (ValueError, RecursionError):
        return False


def _read_jsonl(path: Path) -> Iterator[object]:
    for line in _read_lines(path):
        if isinstance(line, Skipped):
            yield line
        elif line.strip():
            try:
                yield json.loads(line.decode())
            except UnicodeDecodeError:
                yield Skipped(BAD_UTF8)
            except (ValueError, RecursionError):
                yield Skipped("no valid JSON")


def _read_lines(path: Path) -> Iterator[bytes | Skipped]:
    """Lines without a byte order mark; an endless one is passed over in bounded memory."""
    with path.open("rb") as stream:
        if stream.read(3) != codecs.BOM_UTF8:
            stream.seek(0)
        while line := stream.readline(LINE_BYTES):
            if len(line) == LINE_BYTES and not line.endswith(b"\n"):
                _pass_line(stream)
                yield Skipped(LONG_LINE)
            else:
                yield line


def _pass_line(stream: BinaryIO) -> None:
    while (rest := stream.readline(LINE_BYTES)) and not rest.endswith(b"\n"):
        pass


def _read_csv(path: Path) -> Iterator[object]:
    long_lines = 0

    def decode() -> Iterator[str]:
        nonlocal long_lines
        for line in _read_lines(path):
            if isinstance(line, Skipped):
                long_lines += 1
            else:
                # Undecodable bytes become half surrogates: found again in the parsed row below.
                yield line.decode("utf-8", "surrogateescape")

    lines = decode()
    header = next(lines, "")
    delimiter = max(",;\t", key=header.count)
    names = next(csv.reader([header], delimiter=delimiter), [])
    with _field_limit(LINE_BYTES):
        reader = csv.reader(lines, delimiter=delimiter)
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                yield Skipped(f"no valid CSV ({error})")
                continue
            if fields:
                yield _build_row(names, fields)
    yield from (Skipped(LONG_LINE) for _ in range(long_lines))


@contextlib.contextmanager
def _field_limit(limit: int) -> Iterator[None]:
    before = csv.field_size_limit(limit)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _build_row(names: list[str], fields: list[str]) -> object:
    if len(fields) > len(names):
        return Skipped("more fields than the header has")
    if not all(field.isascii() or _is_valid(field) for field in fields):
        return Skipped(BAD_UTF8)
    return dict(zip(names, fields, strict=False))


def _is_valid(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_parquet(path: Path) -> Iterator[object]:
    try:
        with pq.ParquetFile(path) as file:
            columns = [
                name for name in file.schema_arrow.names if name.strip().lower() in KNOWN_KEYS
            ]
            if not columns:
                yield Skipped("none of the known columns", whole_file=True)
                return
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=columns):
                rows: list[Any] = batch.to_pylist()
                yield from rows
    except UnicodeDecodeError:
        yield Skipped(BAD_UTF8, whole_file=True)
    except (pa.ArrowException, OSError) as error:
        yield Skipped(f"no valid Parquet ({str(error).splitlines()[0][:100]})", whole_file=True)
