"""The GGUF reader: the peer's files open to the same values, and a hostile file is refused."""

from __future__ import annotations

import math
import struct
import tracemalloc
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, quants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmloop.errors import ArtifactError
from lmloop.weights.ggml import WEIGHT_TYPES
from lmloop.weights.gguf import MAX_HEADER, open_gguf

HUGE = 2**64 - 1
U8, U32, F32, BOOL, STRING, ARRAY = 0, 4, 6, 7, 8, 9


def text(value: str | bytes) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value)) + value


def value(key: str | bytes, type_id: int, payload: bytes) -> bytes:
    return text(key) + struct.pack("<I", type_id) + payload


def row(key: str, type_id: int, count: int, payload: bytes = b"") -> bytes:
    return value(key, ARRAY, struct.pack("<IQ", type_id, count) + payload)


def tensor(
    name: str | bytes, *dimensions: int, type_id: int = 0, offset: int = 0, axes: int | None = None
) -> bytes:
    axes = len(dimensions) if axes is None else axes
    return text(name) + struct.pack(f"<I{len(dimensions)}QIQ", axes, *dimensions, type_id, offset)


def file_of(
    values: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF\3\0\0\0",
    num_tensors: int | None = None,
    num_values: int | None = None,
) -> bytes:
    num_tensors = len(tensors) if num_tensors is None else num_tensors
    num_values = len(values) if num_values is None else num_values
    head = magic + struct.pack("<QQ", num_tensors, num_values) + b"".join([*values, *tensors])
    return head + bytes(-len(head) % 32) + data


GOOD = file_of(
    [
        value("general.architecture", STRING, text("llama")),
        value("n", U32, struct.pack("<I", 7)),
        row("tokens", STRING, 2, text("a") + text("né")),
        row("scores", F32, 2, struct.pack("<2f", 0.5, -1)),
        row("flags", BOOL, 3, b"\1\0\1"),
    ],
    [
        tensor("plain", 3, 2),
        tensor("packed", 32, 2, type_id=8, offset=32),
        tensor("one", offset=128),
    ],
    struct.pack("<8f", 1, 2, 3, 4, 5, 6, 0, 0)
    + (b"\0\x3c" + bytes(range(32)) + b"\0\x40" + bytes(range(32)) + bytes(28))
    + struct.pack("<f", 9),
)


def write(folder: Path, data: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(data)
    return path


def test_a_file_written_by_hand_says_what_it_holds(tmp_path: Path) -> None:
    file = open_gguf(write(tmp_path, GOOD))
    assert file.metadata == {
        "general.architecture": "llama",
        "n": 7,
        "tokens": ["a", "né"],
        "scores": array("f", [0.5, -1]),
        "flags": [True, False, True],
    }
    assert {name: entry.shape for name, entry in file.tensors.items()} == {
        "plain": (2, 3),
        "packed": (2, 32),
        "one": (),
    }
    assert file.read("plain").tolist() == [[1, 2, 3], [4, 5, 6]]
    assert file.read("packed", dtype=torch.bfloat16).tolist() == [
        [*range(32)],
        [2.0 * number for number in range(32)],
    ]
    assert file.read("one").item() == 9


def test_version_2_reads_the_same(tmp_path: Path) -> None:
    file = open_gguf(write(tmp_path, GOOD[:4] + b"\2" + GOOD[5:]))
    assert file.read("plain").sum() == 21


def test_a_tensor_is_read_into_memory_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    file = open_gguf(path)
    file.read("plain").zero_()
    assert file.read("plain").sum() == 21
    assert path.read_bytes() == GOOD


def test_a_name_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"model\.gguf has no tensor 'other'"):
        open_gguf(write(tmp_path, GOOD)).read("other")


SCALARS: dict[GGUFValueType, Any] = {
    GGUFValueType.UINT8: 255,
    GGUFValueType.INT8: -128,
    GGUFValueType.UINT16: 65535,
    GGUFValueType.INT16: -32768,
    GGUFValueType.UINT32: 2**32 - 1,
    GGUFValueType.INT32: -(2**31),
    GGUFValueType.FLOAT32: 0.25,
    GGUFValueType.BOOL: True,
    GGUFValueType.STRING: "né 中 \U0001f600\n",
    GGUFValueType.UINT64: HUGE,
    GGUFValueType.INT64: -(2**63),
    GGUFValueType.FLOAT64: 1e300,
}


@pytest.mark.parametrize("alignment", [None, 8, 256])
def test_the_peers_file_opens_to_the_same_values_and_tensors(
    tmp_path: Path, alignment: int | None
) -> None:
    path = tmp_path / "theirs.gguf"
    writer = GGUFWriter(path, "llama")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for kind, scalar in SCALARS.items():
        writer.add_key_value(f"one.{kind.name}", scalar, kind)
        writer.add_key_value(f"row.{kind.name}", [scalar] * 3, GGUFValueType.ARRAY, kind)
    generator = np.random.default_rng(0)
    blocks = {}
    for name, weight_type in WEIGHT_TYPES.items():
        blocks[name] = generator.integers(0, 100, (3, 2 * weight_type.bytes), dtype=np.uint8)
        writer.add_tensor(name, blocks[name], raw_dtype=GGMLQuantizationType[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    file = open_gguf(path)
    for kind, scalar in SCALARS.items():
        assert file.metadata[f"one.{kind.name}"] == scalar
        assert list(file.metadata[f"row.{kind.name}"]) == [scalar] * 3  # type: ignore[arg-type]
    assert file.metadata["general.architecture"] == "llama"
    for name, data in blocks.items():
        kind = GGMLQuantizationType[name]
        typed = data.view({"F32": np.float32, "F16": np.float16}.get(name, np.uint8))
        expected = quants.dequantize(typed, kind).astype(np.float32)
        np.testing.assert_array_equal(file.read(name).numpy(), expected)


HOSTILE = {
    "nothing": (b"", "is no GGUF file"),
    "another format": (b"PK\3\4" + bytes(64), r"is no GGUF file: it begins with b'PK"),
    "a stump": (b"GGUF\3", "it ends after 5 bytes"),
    "version 1": (b"GGUF\1\0\0\0" + bytes(64), "is GGUF version 1: versions 2 and 3"),
    "version 4": (b"GGUF\4\0\0\0" + bytes(64), "is GGUF version 4"),
    "big-endian": (b"GGUF\0\0\0\3" + bytes(64), "is big-endian: convert it"),
    "no counts": (b"GGUF\3\0\0\0" + bytes(15), "the file ends before"),
    "values without end": (file_of(num_values=HUGE), f"promises {HUGE} values, more than"),
    "tensors without end": (file_of(num_tensors=HUGE), f"promises {HUGE} tensors, more than"),
    "a key of gigabytes": (
        file_of([struct.pack("<Q", 3 << 30) + bytes(32)]),
        "promises 3221225472 bytes more",
    ),
    "a text without end": (
        file_of([value("k", STRING, struct.pack("<Q", HUGE))]),
        f"promises {HUGE} bytes more",
    ),
    "a row of numbers without end": (
        file_of([row("k", F32, HUGE)]),
        f"promises {HUGE * 4} bytes more",
    ),
    "a row of flags without end": (file_of([row("k", BOOL, HUGE)]), "bytes more"),
    "a row of strings without end": (
        file_of([row("k", STRING, HUGE)]),
        f"promises {HUGE} strings in 'k', more than",
    ),
    "rows in rows": (
        file_of([row("k", ARRAY, 1, struct.pack("<IQ", ARRAY, 1) * 10_000)]),
        "'k' is a row of rows",
    ),
    "an unknown value": (file_of([value("k", 13, bytes(8))]), "'k' is of the unknown type 13"),
    "an unknown row": (file_of([row("k", 99, 1, bytes(8))]), "'k' is of the unknown type 99"),
    "a flag of 2": (file_of([value("k", BOOL, b"\2")]), "'k' is neither true nor false"),
    "a key that is no text": (file_of([value(b"\xff\xfe", U8, b"\0")]), "a key is not UTF-8"),
    "a text that is none": (
        file_of([value("k", STRING, text(b"\xc3\x28"))]),
        "a text of 'k' is not UTF-8",
    ),
    "a key of two lines": (
        file_of([value("k\nError: all is well", 99, b"")]),
        r"'k\\nError: all is well' is of the unknown",
    ),
    "a long key": (file_of([value("k" * 70_000, U8, b"\0")]), "a key has 70000 characters"),
    "a key twice": (file_of([value("k", U8, b"\0")] * 2), "the key 'k' comes twice"),
    "an odd alignment": (
        file_of([value("general.alignment", U32, struct.pack("<I", 24))]),
        "general.alignment is 24, a power of two",
    ),
    "no alignment": (file_of([value("general.alignment", U32, bytes(4))]), "alignment is 0, a"),
    "an alignment of true": (
        file_of([value("general.alignment", BOOL, b"\1")]),
        "general.alignment is True, a power of two",
    ),
    "alignments": (
        file_of([row("general.alignment", U8, 900, bytes(900))]),
        "general.alignment is 'array', a power of two",
    ),
    "a tensor twice": (
        file_of((), [tensor("t", 1), tensor("t", 1, offset=32)], bytes(64)),
        "the tensor 't' comes twice",
    ),
    "a tensor's name that is no text": (file_of((), [tensor(b"\xff", 1)], bytes(4)), "not UTF-8"),
    "five axes": (file_of((), [tensor("t", 1, 1, 1, 1, 1)], bytes(4)), "'t' has 5 axes, 4 are"),
    "axes without end": (file_of((), [tensor("t", 1, axes=2**32 - 1)], bytes(4)), "4294967295"),
    "an empty tensor": (file_of((), [tensor("t", 0, 2**63)]), "is not made of blocks of F32"),
    "half a block": (
        file_of((), [tensor("t", 48, type_id=8)], bytes(64)),
        r"'t' of shape \(48,\) is not made of blocks of Q8_0",
    ),
    "a scalar of a block": (file_of((), [tensor("t", type_id=8)], bytes(64)), "not made of blocks"),
    "a shape beyond 64 bits": (
        file_of((), [tensor("t", *[HUGE] * 4)], bytes(64)),
        "'t' takes .* the file has",
    ),
    "a shape that comes to nothing in 64 bits": (
        file_of((), [tensor("t", 2**32, 2**32)], bytes(64)),
        "'t' takes .* the file has",
    ),
    "a type we do not read": (
        file_of((), [tensor("t", 256, type_id=10)], bytes(256)),
        "'t' has weights of ggml's type 10, which is not read; read are F32, F16",
    ),
    "an offset between": (
        file_of((), [tensor("t", 1, offset=4)], bytes(64)),
        "'t' lies at 4, no multiple of 32",
    ),
    "an offset outside": (
        file_of((), [tensor("t", 1, offset=2**64 - 32)], bytes(64)),
        "damaged or cut short: 't' takes 4 bytes from",
    ),
    "tensors in each other": (
        file_of((), [tensor("b", 1, offset=32), tensor("a", 9)], bytes(64)),
        "'a' and 'b' overlap",
    ),
    "tensors at one place": (file_of((), [tensor("a", 1), tensor("b", 1)], bytes(64)), "overlap"),
    "no data": (GOOD[:-132], "'plain' takes 24 bytes"),
    "data cut by a byte": (GOOD[:-1], "'one' takes 4 bytes"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    data, complaint = HOSTILE[case]
    path = write(tmp_path, data)
    with pytest.raises(ArtifactError, match=complaint) as refusal:
        open_gguf(path)
    said = str(refusal.value)
    assert said.startswith(str(path))
    assert "\n" not in said
    assert len(said) < len(str(path)) + 300


def test_every_file_cut_short_is_refused(tmp_path: Path) -> None:
    for length in range(len(GOOD)):
        with pytest.raises(ArtifactError):
            open_gguf(write(tmp_path, GOOD[:length]))


@pytest.mark.parametrize("name", [".", "missing.gguf"])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="is no file"):
        open_gguf(tmp_path / name)


def test_a_header_of_gigabytes_is_refused_although_the_file_is_as_long(tmp_path: Path) -> None:
    path = write(tmp_path, file_of([value("k", STRING, struct.pack("<Q", 4 << 30))]))
    with path.open("r+b") as stream:
        stream.truncate(5 << 30)  # a hole: no disk is used
    tracemalloc.start()
    with pytest.raises(ArtifactError, match=f"header is longer than the {MAX_HEADER} bytes"):
        open_gguf(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_opening_a_file_of_gigabytes_and_reading_one_tensor_takes_no_memory_of_the_rest(
    tmp_path: Path,
) -> None:
    length = 1 << 30
    head = file_of((), [tensor("big", length // 4), tensor("small", 2, offset=length)])
    path = write(tmp_path, head)
    with path.open("r+b") as stream:
        stream.seek(len(head) + length)
        stream.write(struct.pack("<2f", 3, 4))
    tracemalloc.start()
    file = open_gguf(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert file.read("small").tolist() == [3, 4]
    assert peak < 1 << 20


@pytest.mark.parametrize(
    "values",
    [
        [row("k", U8, 400_000, bytes(400_000))],
        [row("k", BOOL, 400_000, bytes(400_000))],
        [row("k", STRING, 40_000, text("ab") * 40_000)],
        [value(f"{number:x}", U8, b"\0") for number in range(10_000)],
    ],
    ids=["numbers", "flags", "strings", "keys"],
)
def test_a_header_takes_a_few_times_its_own_bytes(tmp_path: Path, values: list[bytes]) -> None:
    path = write(tmp_path, file_of(values))
    tracemalloc.start()
    file = open_gguf(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert file.metadata
    assert peak < 10 * path.stat().st_size


NUMBERS = st.one_of(
    st.integers(0, HUGE),
    st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, HUGE, HUGE - 31]),
)
CHANGES = st.lists(
    st.tuples(
        st.integers(0, len(GOOD) - 1),
        st.one_of(
            st.binary(min_size=1, max_size=9),
            NUMBERS.map(lambda number: struct.pack("<Q", number)),
            NUMBERS.map(lambda number: struct.pack("<I", number & 0xFFFFFFFF)),
        ),
    ),
    min_size=1,
    max_size=4,
)


@settings(
    max_examples=600,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(changes=CHANGES, length=st.one_of(st.just(len(GOOD)), st.integers(0, len(GOOD))))
def test_a_mutated_file_is_refused_or_read_within_its_own_size(
    tmp_path: Path, changes: list[tuple[int, bytes]], length: int
) -> None:
    data = bytearray(GOOD)
    for place, new in changes:
        data[place : place + len(new)] = new
    del data[length:]
    path = write(tmp_path, bytes(data))
    tracemalloc.start()
    try:
        file = open_gguf(path)
    except ArtifactError as refusal:
        assert "\n" not in str(refusal)
        return
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 64 * 1024
    assert sum(entry.size for entry in file.tensors.values()) <= len(data)
    for name, entry in file.tensors.items():
        read = file.read(name)
        assert read.shape == entry.shape
        assert read.numel() == math.prod(entry.shape)
        assert read.nbytes <= 8 * len(data)
