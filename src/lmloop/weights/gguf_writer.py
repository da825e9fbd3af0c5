"""The GGUF file, written: what llama.cpp and `gguf.py` open.

Takes: metadata and tensors, each with the name of a weight type. Gives: one file, version 3.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from lmloop.errors import ArtifactError
from lmloop.store.artifact import write_whole
from lmloop.weights.ggml import WEIGHT_TYPES, WRITABLE, WeightType, encode_weights
from lmloop.weights.gguf import (
    ARRAY,
    BOOL,
    MAGIC,
    MAX_DIMENSIONS,
    MAX_HEADER,
    MAX_KEY,
    NUMBERS,
    STRING,
    Scalar,
    Value,
    align,
    quote,
    read_alignment,
)

_TYPE_OF = {letter: number for number, letter in NUMBERS.items()}


def write_gguf(
    path: str | Path,
    *,
    metadata: Mapping[str, Value],
    tensors: Mapping[str, tuple[Tensor, str]],
) -> None:
    """Write a file of version 3: values by key, and (tensor, name of its weight type) by name.

    Integers are written as uint32 where they fit, else as int32, uint64 or int64; floats as
    float32; rows of integers as int32 where they fit; an `array.array` as the type that it has.
    Tensors are packed one at a time. The file appears when it is whole. Raises `ArtifactError`
    where a value or tensor cannot be written.
    """
    path = Path(path)
    alignment = read_alignment(path, metadata)
    head = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        head += [_pack_name(path, key), _pack_value(path, key, value)]
    end = 0
    for name, (tensor, type_name) in tensors.items():
        kind = _writable_type(path, name, tensor, type_name)
        dimensions = tuple(reversed(tensor.shape))
        head += [_pack_name(path, name), struct.pack("<I", len(dimensions))]
        head += [struct.pack(f"<{len(dimensions)}QIQ", *dimensions, kind.id, end)]
        end = align(end + kind.size(tensor.numel()), alignment)
    header = b"".join(head)
    if len(header) > MAX_HEADER:
        raise ArtifactError(f"{path}: a header of {len(header)} bytes, {MAX_HEADER} are allowed")
    with write_whole(path) as stream:
        stream.write(header + bytes(-len(header) % alignment))
        for name, (tensor, type_name) in tensors.items():
            data = _encode(path, name, tensor, type_name)
            stream.write(data.numpy().data)
            stream.write(bytes(-len(data) % alignment))


def _pack_text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _pack_name(path: Path, name: str) -> bytes:
    if not 0 < len(name) <= MAX_KEY:
        raise ArtifactError(
            f"{path}: the name {quote(name)} has {len(name)} characters, 1 to {MAX_KEY} are allowed"
        )
    try:
        return _pack_text(name)
    except UnicodeEncodeError:
        raise ArtifactError(f"{path}: the name {quote(name)} is not Unicode") from None


def _pack_value(path: Path, key: str, value: Value) -> bytes:
    """A value behind the number of its type."""
    try:
        if isinstance(value, bool | int | float | str):
            type_id = _scalar_type(value)
            return struct.pack("<I", type_id) + _pack_row(type_id, [value])
        type_id = _row_type(value)
        return struct.pack("<IIQ", ARRAY, type_id, len(value)) + _pack_row(type_id, value)
    except (TypeError, ValueError, OverflowError, struct.error) as error:
        raise ArtifactError(f"{path}: {quote(key)} cannot be written: {error}") from error


def _scalar_type(value: Scalar) -> int:
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, str):
        return STRING
    if isinstance(value, float):
        return _TYPE_OF["f"]
    return _integer_type([value], order="IiQq")


def _row_type(values: Sequence[Scalar]) -> int:
    """The narrowest type of those that llama.cpp reads; an empty list is one of strings."""
    if isinstance(values, array):
        return _TYPE_OF[values.typecode]
    kinds = {type(value) for value in values}
    if kinds <= {str}:
        return STRING
    if kinds == {bool}:
        return BOOL
    if kinds == {int}:
        return _integer_type(values, order="iIqQ")
    if kinds <= {int, float}:
        return _TYPE_OF["f"]
    raise TypeError(f"a row of {', '.join(sorted(kind.__name__ for kind in kinds))}")


def _integer_type(values: Sequence[Scalar], *, order: str) -> int:
    """The first type, by its letter, that all the integers fit in."""
    low, high = int(min(values)), int(max(values))
    for letter in order:
        bits = 8 * struct.calcsize(f"<{letter}")
        least = -(1 << bits - 1) if letter.islower() else 0
        if least <= low and high < least + (1 << bits):
            return _TYPE_OF[letter]
    raise OverflowError("an integer takes more than 64 bits")


def _pack_row(type_id: int, values: Sequence[Scalar]) -> bytes:
    if type_id == STRING:
        return b"".join(_pack_text(str(value)) for value in values)
    return struct.pack(f"<{len(values)}{NUMBERS.get(type_id, '?')}", *values)


def _writable_type(path: Path, name: str, tensor: Tensor, type_name: str) -> WeightType:
    kind = WEIGHT_TYPES.get(type_name)
    if kind is None or kind.encode is None:
        raise ArtifactError(
            f"{path}: {quote(name)} cannot be written as {quote(type_name)}; "
            f"allowed are {', '.join(WRITABLE)}"
        )
    rows = tensor.shape[-1] if tensor.dim() else 1
    if tensor.dim() > MAX_DIMENSIONS or not tensor.numel() or rows % kind.elements:
        raise ArtifactError(
            f"{path}: {quote(name)} of shape {tuple(tensor.shape)} cannot be written as "
            f"{kind.name}: 1 to {MAX_DIMENSIONS} axes, the last of whole blocks of {kind.elements}"
        )
    return kind


def _encode(path: Path, name: str, tensor: Tensor, type_name: str) -> Tensor:
    try:
        return encode_weights(tensor, WEIGHT_TYPES[type_name])
    except ValueError as error:
        raise ArtifactError(f"{path}: {quote(name)} cannot be written: {error}") from error
