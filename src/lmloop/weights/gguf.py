"""The GGUF file, metadata and tensors in one, as llama.cpp keeps models: read and checked.

Takes: a path, of which nothing is believed. Gives: its metadata, its table of tensors, and any
tensor on request. The format is ggml's `docs/gguf.md`, versions 2 and 3, little endian.
"""

from __future__ import annotations

import mmap
import struct
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lmloop.errors import ArtifactError
from lmloop.weights.ggml import WEIGHT_TYPES, WeightType, decode_weights

if TYPE_CHECKING:
    from jaxtyping import Float

Scalar = bool | int | float | str
Value = Scalar | Sequence[Scalar]
"""A value of the metadata; a row of numbers is an `array.array`, a row of others a list."""

MAGIC = b"GGUF"
MAX_HEADER = 100_000_000
"""Bytes of header that are read, safetensors' limit too: the largest vocabularies take 20 MB."""
MAX_DIMENSIONS = 4

ALIGNMENT = "general.alignment"
MAX_KEY = 65_535
BOOL, STRING, ARRAY = 7, 8, 9
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
"""GGUF's number of each type of value, and its letter in `struct` and `array`."""
_TYPES_BY_ID = {kind.id: kind for kind in WEIGHT_TYPES.values()}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies in the file."""

    shape: tuple[int, ...]
    """In torch's order: the last axis is the one whose weights lie side by side."""
    type: WeightType
    offset: int
    """Bytes from the beginning of the file."""

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self.type.size(prod(self.shape))


class GgufFile:
    """An open file: its header is read and checked, its tensors stay on disk until asked for.

    The file is mapped: as with any mapping, nobody may cut it short while it is open.
    """

    def __init__(
        self,
        path: Path,
        *,
        metadata: Mapping[str, Value],
        tensors: Mapping[str, TensorEntry],
        data: Tensor,
    ) -> None:
        self.path = path
        self.metadata = metadata
        self.tensors = tensors
        self._data = data

    def read(self, name: str, *, dtype: torch.dtype = torch.float32) -> Float[Tensor, "*shape"]:
        """The tensor in its shape, in memory of its own; raise `ArtifactError` where none is."""
        entry = self.tensors.get(name)
        if entry is None:
            raise ArtifactError(f"{self.path} has no tensor {quote(name)}")
        data = self._data[entry.offset : entry.offset + entry.size]
        return decode_weights(data, entry.type, dtype=dtype).view(entry.shape)


def open_gguf(path: str | Path) -> GgufFile:
    """Map a file and check its header; raise `ArtifactError` naming file and fault.

    The result takes at most about nine times the header's own bytes (a row of flags: one byte in
    the file, a pointer in memory; a vocabulary seven times), whatever the header promises.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise ArtifactError(f"{path} is no file: give the path of a .gguf file")
        with path.open("rb") as stream:
            head = stream.read(8)
            _check_beginning(path, head)
            # A private copy on writing: torch wants memory it may write to, the file stays whole.
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    header = _Header(path, data)
    num_tensors, num_values = header.number("Q"), header.number("Q")
    metadata = _read_metadata(header, num_values)
    alignment = read_alignment(path, metadata)
    tensors = _read_table(header, num_tensors, alignment=alignment)
    _check_extents(path, tensors, size=len(data))
    return GgufFile(
        path,
        metadata=metadata,
        tensors=tensors,
        data=torch.frombuffer(data, dtype=torch.uint8),
    )


class _Header:
    """Reads a header from front to back, and never past its end or past `MAX_HEADER`."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.offset = 8
        self._data = data
        self._end = min(len(data), MAX_HEADER)

    def fail(self, what: str) -> ArtifactError:
        """The error that says what is wrong at this place of the file."""
        return ArtifactError(f"{self.path} is damaged: {what} (at byte {self.offset})")

    def take(self, size: int) -> int:
        """Where the next `size` bytes begin; the header goes on after them."""
        start = self.offset
        if size > self._end - start:
            if self._end < len(self._data):
                raise self.fail(f"its header is longer than the {MAX_HEADER} bytes allowed")
            raise self.fail(f"its header promises {size} bytes more, the file ends before")
        self.offset = start + size
        return start

    def number(self, letter: str) -> int:
        """The next integer, of one of `struct`'s types."""
        form = f"<{letter}"
        value: int = struct.unpack_from(form, self._data, self.take(struct.calcsize(form)))[0]
        return value

    def bytes(self, size: int) -> bytes:
        """The next `size` bytes."""
        start = self.take(size)
        return self._data[start : start + size]

    def text(self, what: str) -> str:
        """The next string; `what` says what it is, should it be none."""
        try:
            return self.bytes(self.number("Q")).decode()
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8") from None

    def name(self, what: str) -> str:
        """The next string that is a key or a tensor's name."""
        name = self.text(what)
        if len(name) > MAX_KEY:
            raise self.fail(f"{what} has {len(name)} characters, {MAX_KEY} are allowed")
        return name

    def check_count(self, count: int, *, size: int, what: str) -> None:
        """Refuse a count of things of at least `size` bytes that the rest cannot hold."""
        if count * size > self._end - self.offset:
            raise self.fail(f"it promises {count} {what}, more than it has room for")


def _check_beginning(path: Path, head: bytes) -> None:
    if head[:4] != MAGIC:
        raise ArtifactError(f"{path} is no GGUF file: it begins with {head[:4]!r}, not {MAGIC!r}")
    if len(head) < 8:
        raise ArtifactError(f"{path} is damaged: it ends after {len(head)} bytes")
    version = int.from_bytes(head[4:], "little")
    if version in (2, 3):
        return
    if int.from_bytes(head[4:], "big") in (2, 3):
        raise ArtifactError(f"{path} is big-endian: convert it to little-endian GGUF first")
    raise ArtifactError(f"{path} is GGUF version {version}: versions 2 and 3 are read")


def _read_metadata(header: _Header, count: int) -> dict[str, Value]:
    header.check_count(count, size=13, what="values")
    metadata: dict[str, Value] = {}
    for _ in range(count):
        key = header.name("a key")
        if key in metadata:
            raise header.fail(f"the key {quote(key)} comes twice")
        metadata[key] = _read_value(header, key)
    return metadata


def _read_value(header: _Header, key: str) -> Value:
    type_id = header.number("I")
    if type_id != ARRAY:
        return _read_row(header, key, type_id, count=1)[0]
    type_id, count = header.number("I"), header.number("Q")
    if type_id == ARRAY:
        raise header.fail(f"{quote(key)} is a row of rows, which no model has")
    return _read_row(header, key, type_id, count=count)


def _read_row(header: _Header, key: str, type_id: int, *, count: int) -> Sequence[Scalar]:
    """`count` values of one type, none of which is a row itself."""
    if type_id in NUMBERS:
        row = array(NUMBERS[type_id])
        row.frombytes(header.bytes(count * row.itemsize))
        return row
    if type_id == BOOL:
        flags = header.bytes(count)
        if flags.strip(b"\0\1"):
            raise header.fail(f"{quote(key)} is neither true nor false")
        return [flag == 1 for flag in flags]
    if type_id == STRING:
        header.check_count(count, size=8, what=f"strings in {quote(key)}")
        what = f"a text of {quote(key)}"
        return [header.text(what) for _ in range(count)]
    raise header.fail(f"{quote(key)} is of the unknown type {type_id}")


def _read_table(header: _Header, count: int, *, alignment: int) -> dict[str, TensorEntry]:
    header.check_count(count, size=24, what="tensors")
    tensors: dict[str, TensorEntry] = {}
    for _ in range(count):
        name = header.name("a tensor's name")
        if name in tensors:
            raise header.fail(f"the tensor {quote(name)} comes twice")
        tensors[name] = _read_entry(header, name, alignment=alignment)
    start = align(header.offset, alignment)
    return {
        name: TensorEntry(entry.shape, entry.type, start + entry.offset)
        for name, entry in tensors.items()
    }


def _read_entry(header: _Header, name: str, *, alignment: int) -> TensorEntry:
    """One row of the table; its offset counts from where the tensors begin."""
    num_dimensions = header.number("I")
    if num_dimensions > MAX_DIMENSIONS:
        raise header.fail(f"{quote(name)} has {num_dimensions} axes, {MAX_DIMENSIONS} are allowed")
    shape = tuple(header.number("Q") for _ in range(num_dimensions))[::-1]
    type_id, offset = header.number("I"), header.number("Q")
    kind = _TYPES_BY_ID.get(type_id)
    if kind is None:
        raise ArtifactError(
            f"{header.path}: {quote(name)} has weights of ggml's type {type_id}, "
            f"which is not read; read are {', '.join(WEIGHT_TYPES)}"
        )
    if 0 in shape or (shape[-1] if shape else 1) % kind.elements:
        raise header.fail(f"{quote(name)} of shape {shape} is not made of blocks of {kind.name}")
    if offset % alignment:
        raise header.fail(f"{quote(name)} lies at {offset}, no multiple of {alignment}")
    return TensorEntry(shape, kind, offset)


def _check_extents(path: Path, tensors: Mapping[str, TensorEntry], *, size: int) -> None:
    """Refuse tensors that reach beyond the file, or into each other."""
    for name, entry in tensors.items():
        if entry.offset + entry.size > size:
            raise ArtifactError(
                f"{path} is damaged or cut short: {quote(name)} takes {entry.size} bytes from "
                f"{entry.offset} on, the file has {size}"
            )
    rows = sorted(tensors.items(), key=lambda item: item[1].offset)
    for (name, entry), (next_name, next_entry) in pairwise(rows):
        if entry.offset + entry.size > next_entry.offset:
            raise ArtifactError(f"{path} is damaged: {quote(name)} and {quote(next_name)} overlap")


def read_alignment(path: Path, metadata: Mapping[str, Value]) -> int:
    """Bytes of whose multiple every tensor begins; `ArtifactError` where it is no power of two."""
    alignment = metadata.get(ALIGNMENT, 32)
    if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1):
        given = quote(alignment if isinstance(alignment, Scalar) else type(alignment).__name__)
        raise ArtifactError(f"{path}: {ALIGNMENT} is {given}, a power of two from 8 on is allowed")
    return alignment


def align(offset: int, alignment: int) -> int:
    """The next multiple of the alignment, or the offset itself."""
    return -(-offset // alignment) * alignment


def quote(what: object) -> str:
    """One short line for an error of what a file says, however long and odd that is."""
    text = repr(what[:64] if isinstance(what, str) else what)
    return text if len(text) <= 80 else f"{text[:77]}..."
