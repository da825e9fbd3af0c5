"""Shards: token ids of a split on disk, memory-mapped, with where each document starts.

Takes: ids a document. Gives: `<split>-00000.tokens` (little-endian uint16 or uint32), `.answers`
(a byte a token: is it learnt in fine-tuning), `.starts` (int64), `.bytes` (int64: raw bytes a
document), and `shards.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lmloop.errors import ArtifactError

INDEX = "shards.json"
SHARD_TOKENS = 1 << 26


class ShardWriter:
    """Appends documents to the shards of one split."""

    def __init__(self, folder: Path, split: str, *, vocab_size: int) -> None:
        self._folder, self._split = folder, split
        self.dtype = "uint16" if vocab_size <= 1 << 16 else "uint32"
        self.names: list[str] = []
        self.num_tokens = self.num_answer_tokens = self.num_documents = self.raw_bytes = 0
        self._open: tuple[BinaryIO, BinaryIO] | None = None
        self._starts: list[int] = []
        self._bytes: list[int] = []

    def append(self, ids: Sequence[int], answers: Sequence[bool], *, raw_bytes: int) -> None:
        """Add one document: its ids, which of them are answers, and the bytes it was made of."""
        if self._open is None or self._starts[-1] >= SHARD_TOKENS:
            self._begin()
        assert self._open is not None
        tokens, marks = self._open
        tokens.write(np.asarray(ids, dtype=_little(self.dtype)).tobytes())
        marks.write(np.asarray(answers, dtype=np.uint8).tobytes())
        self._starts.append(self._starts[-1] + len(ids))
        self._bytes.append(raw_bytes)
        self.num_tokens += len(ids)
        self.num_answer_tokens += sum(answers)
        self.num_documents += 1
        self.raw_bytes += raw_bytes

    def close(self) -> dict[str, Any]:
        """Finish the last shard; give the split's entry in `shards.json`."""
        self._end()
        return {
            "shards": self.names,
            "dtype": self.dtype,
            "documents": self.num_documents,
            "tokens": self.num_tokens,
            "answer_tokens": self.num_answer_tokens,
            "raw_bytes": self.raw_bytes,
        }

    def _begin(self) -> None:
        self._end()
        self.names.append(f"{self._split}-{len(self.names):05d}")
        path = self._folder / self.names[-1]
        self._open = path.with_suffix(".tokens").open("wb"), path.with_suffix(".answers").open("wb")
        self._starts, self._bytes = [0], []

    def _end(self) -> None:
        if self._open is not None:
            for stream in self._open:
                stream.close()
            path = self._folder / self.names[-1]
            for suffix, values in ((".starts", self._starts), (".bytes", self._bytes)):
                path.with_suffix(suffix).write_bytes(np.asarray(values, dtype="<i8").tobytes())
            self._open = None


@dataclass(frozen=True, slots=True)
class Shards:
    """One split, read through memory maps as if it were one array."""

    tokens: list[NDArray[Any]]
    """Ids, an array a shard."""
    answers: list[NDArray[np.uint8]]
    starts: NDArray[np.int64]
    """Where each document starts in the whole split; one more entry holds the end."""
    document_bytes: NDArray[np.int64]
    """Raw UTF-8 bytes that each document was made of."""

    @staticmethod
    def open(folder: str | Path, split: str) -> Shards:
        """Map a split; raise `ArtifactError` where its files are missing or have odd sizes."""
        folder = Path(folder)
        try:
            entry = json.loads((folder / INDEX).read_text(encoding="utf-8"))["splits"][split]
            paths = [folder / name for name in entry["shards"]]
            tokens = [_map(path.with_suffix(".tokens"), entry["dtype"]) for path in paths]
            answers = [_map(path.with_suffix(".answers"), "uint8") for path in paths]
            bytes_of = [np.fromfile(path.with_suffix(".bytes"), dtype="<i8") for path in paths]
            starts = [np.zeros(1, dtype=np.int64)]
            for path in paths:
                local = np.fromfile(path.with_suffix(".starts"), dtype="<i8")
                starts.append(local[1:] + starts[-1][-1])
        except (OSError, LookupError, TypeError, ValueError) as error:
            raise ArtifactError(f"{folder} holds no readable split {split!r}: {error}") from error
        whole = np.concatenate(starts)
        document_bytes = np.concatenate([np.zeros(0, dtype=np.int64), *bytes_of])
        if not whole[-1] == sum(map(len, tokens)) == sum(map(len, answers)) or len(
            whole
        ) - 1 != len(document_bytes):
            raise ArtifactError(f"{folder}: the sizes of split {split!r} disagree; tokenize again")
        return Shards(tokens=tokens, answers=answers, starts=whole, document_bytes=document_bytes)

    @property
    def raw_bytes(self) -> int:
        """Raw UTF-8 bytes of the split."""
        return int(self.document_bytes.sum())

    @property
    def num_documents(self) -> int:
        """Documents in the split."""
        return len(self.starts) - 1

    @property
    def num_tokens(self) -> int:
        """Tokens in the split."""
        return int(self.starts[-1])

    def document(self, index: int) -> NDArray[np.int64]:
        """Ids of one document, int64 [length]."""
        return self.read(int(self.starts[index]), int(self.starts[index + 1]))

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Ids from `start` to `stop` of the whole split, int64."""
        return _read(self.tokens, start, stop).astype(np.int64)

    def read_answers(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Which ids from `start` to `stop` are answers."""
        return _read(self.answers, start, stop).astype(np.bool_)


def _map(path: Path, dtype: str) -> NDArray[Any]:
    return np.memmap(path, dtype=_little(dtype), mode="r")


def _little(dtype: str) -> np.dtype[Any]:
    return np.dtype(dtype).newbyteorder("<")


def _read(shards: Sequence[NDArray[Any]], start: int, stop: int) -> NDArray[Any]:
    pieces = []
    for shard in shards:
        if start < len(shard) and stop > 0:
            pieces.append(shard[max(start, 0) : stop])
        start, stop = start - len(shard), stop - len(shard)
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)
