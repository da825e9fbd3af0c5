"""Shards: token ids of a split on disk, memory-mapped, with where each document starts.

Takes: ids a document. Gives: `<split>-00000.tokens` (little-endian uint16 or uint32), `.answers`
(a byte a token: is it learnt in fine-tuning), `.starts` (int64), `.bytes` (int64: raw bytes a
document), and `shards.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
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
class ShardFile:
    """A file as it was when it was mapped."""

    path: Path
    stamp: tuple[int, int]
    """Size in bytes, and when it was last written (nanoseconds since the epoch)."""

    @staticmethod
    def of(path: Path) -> ShardFile:
        """The file as it is now; raises `OSError` where there is none."""
        found = path.stat()
        return ShardFile(path, (found.st_size, found.st_mtime_ns))

    def check(self) -> None:
        """Raise `ArtifactError` unless it is still the same."""
        try:
            if self == ShardFile.of(self.path):
                return
        except OSError:
            pass
        raise ArtifactError(
            f"{self.path} changed while it was read: run the same command again, which compares it "
            "with its hash and goes on from what is saved"
        )


@dataclass(frozen=True, slots=True)
class Shards:
    """One split, read through memory maps as if it were one array.

    A file that changes meanwhile is refused: where it got shorter, reading its map would end the
    process.
    """

    tokens: list[NDArray[Any]]
    """Ids, an array a shard."""
    answers: list[NDArray[np.uint8]]
    starts: NDArray[np.int64]
    """Where each document starts in the whole split; one more entry holds the end."""
    document_bytes: NDArray[np.int64]
    """Raw UTF-8 bytes that each document was made of."""
    token_files: tuple[ShardFile, ...] = ()
    """What `tokens` map; none where they lie in memory."""
    answer_files: tuple[ShardFile, ...] = ()
    """What `answers` map."""

    @staticmethod
    def open(folder: str | Path, split: str) -> Shards:
        """Map a split; raise `ArtifactError` where its files are missing or have odd sizes."""
        folder = Path(folder)
        try:
            entry = json.loads((folder / INDEX).read_text(encoding="utf-8"))["splits"][split]
            paths = [folder / name for name in entry["shards"]]
            files = [ShardFile.of(path.with_suffix(".tokens")) for path in paths]
            marks = [ShardFile.of(path.with_suffix(".answers")) for path in paths]
            tokens = [_map(file.path, entry["dtype"]) for file in files]
            answers = [_map(file.path, "uint8") for file in marks]
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
        return Shards(
            tokens=tokens,
            answers=answers,
            starts=whole,
            document_bytes=document_bytes,
            token_files=tuple(files),
            answer_files=tuple(marks),
        )

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
        """Ids from `start` to `stop` of the whole split, int64.

        Raises `ArtifactError` where their file changed since it was opened.
        """
        return _read(self.tokens, self.token_files, start, stop).astype(np.int64)

    def read_answers(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Which ids from `start` to `stop` are answers; raises as `read` does."""
        return _read(self.answers, self.answer_files, start, stop).astype(np.bool_)


def _map(path: Path, dtype: str) -> NDArray[Any]:
    return np.memmap(path, dtype=_little(dtype), mode="r")


def _little(dtype: str) -> np.dtype[Any]:
    return np.dtype(dtype).newbyteorder("<")


def _read(
    shards: Sequence[NDArray[Any]], files: Sequence[ShardFile], start: int, stop: int
) -> NDArray[Any]:
    pieces = []
    for shard, file in zip_longest(shards, files):
        if start < len(shard) and stop > 0:
            if file is not None:
                file.check()
            pieces.append(shard[max(start, 0) : stop])
        start, stop = start - len(shard), stop - len(shard)
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)
