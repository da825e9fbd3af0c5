"""CTranslate2's files: each kind of value is read, and a hostile file is refused."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmloop.errors import ArtifactError
from lmloop.weights.ctranslate2 import MAX_VARIABLES, open_ctranslate2

from .ctranslate2_made import file_of, text, variable, write_model

VALUES = {
    "f32": np.array([[1, 2, 3], [4, 5, 6]], np.float32),
    "f16": np.array([0.5, -2], np.float16),
    "bf16": np.array([0x3F80, 0xC000], np.uint16),
    "rows": np.array([[2, -4], [9, 3]], np.int8),
    "rows_scale": np.array([2, 3], np.float32),
    "conv": np.array([[[2, -4]], [[9, 3]]], np.int8),
    "conv_scale": np.array([2, 3], np.float32),
    "one": np.array([8, -16], np.int16),
    "one_scale": np.array(4, np.float32),
    "flag": np.array(-1, np.int8),
    "heads": np.array(6, np.int32),
}


def write(folder: Path, data: bytes) -> Path:
    path = folder / "model.bin"
    path.write_bytes(data)
    return path


def test_values_of_every_kind_are_read(tmp_path: Path) -> None:
    file = open_ctranslate2(write_model(tmp_path / "model.bin", VALUES, ("head", "rows")))
    assert file.specification == "WhisperSpec"
    assert {*file.variables} == {*VALUES, "head", "head_scale"}
    assert file.variables["f32"].shape == (2, 3)
    assert file.read("f32").tolist() == [[1, 2, 3], [4, 5, 6]]
    assert file.read("f16").tolist() == [0.5, -2]
    assert file.read("bf16").tolist() == [1, -2]
    assert file.read("rows").tolist() == [[1, -2], [3, 1]]
    assert file.read("conv").tolist() == [[[1, -2]], [[3, 1]]]
    assert file.read("one", dtype=torch.bfloat16).tolist() == [2, -4]
    assert file.read("one", dtype=torch.bfloat16).dtype == torch.bfloat16
    assert (file.read("flag").item(), file.read("flag").dtype) == (-1, torch.int8)
    assert file.read("heads").item() == 6
    assert file.read("head").tolist() == [[1, -2], [3, 1]], "an alias is of the same scale"


def test_a_variable_is_read_into_memory_of_its_own(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.bin", VALUES)
    file = open_ctranslate2(path)
    file.read("f32").zero_()
    assert file.read("f32").sum() == 21
    with pytest.raises(ValueError, match="read-only"):
        file.variables["f32"][0] = 0


def test_opening_reads_no_values(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.bin", {"big": np.zeros(2_000_000, np.float32)})
    tracemalloc.start()
    open_ctranslate2(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


GOOD = file_of(variable("a", (2,), data=bytes(8)), variable("b"), aliases=(("c", "a"),))
BAD = {
    "another version": (file_of(version=5), "no CTranslate2 model of version 6"),
    "an empty file": (b"", "no CTranslate2 model"),
    "a beginning only": (GOOD[:5], "2 bytes are promised, 1 are left"),
    "a cut name": (GOOD[:12], "bytes are promised"),
    "bytes after the end": (GOOD + b"\0", "1 bytes follow its end"),
    "more variables than there are": (file_of(variable("a"), count=2), "are left"),
    "four billion variables": (file_of(variable("a"), count=2**32 - 1), "are left"),
    "a size beyond the file": (
        file_of(variable("a", (2**30,), size=2**32 - 4)),
        "4294967292 bytes of type 0|are left",
    ),
    "values beyond the file": (
        file_of(variable("a", (2**29,), size=2**31)),
        "2147483648 bytes are promised",
    ),
    "a size that lies": (file_of(variable("a", (2,), size=4)), r"4 bytes .* shape \(2,\)"),
    "no values": (file_of(variable("a", (0,), data=b"")), r"0 bytes .* shape \(0,\)"),
    "an unknown type": (file_of(variable("a", type_id=6)), "of type 6"),
    "too many axes": (file_of(variable("a", (1,) * 5)), r"shape \(1, 1, 1, 1, 1\)"),
    "a shape beyond all numbers": (file_of(variable("a", (2**32 - 1,) * 255)), "type 0 have"),
    "a name twice": (file_of(variable("a"), variable("a")), "'a' stands for nothing, comes twice"),
    "an alias that is a name": (
        file_of(variable("a"), aliases=(("a", "a"),)),
        "'a' stands for nothing, comes twice",
    ),
    "an alias of nothing": (file_of(variable("a"), aliases=(("b", "x"),)), "'b' stands for noth"),
    "an alias of itself": (file_of(aliases=(("b", "b"),)), "'b' stands for nothing"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, fault: str) -> None:
    data, why = BAD[fault]
    path = write(tmp_path, data)
    with pytest.raises(ArtifactError, match=why) as refusal:
        open_ctranslate2(path)
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value)) < 300 + len(str(path))
    assert "\n" not in str(refusal.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ArtifactError, match="is no file"):
            open_ctranslate2(path)


def test_more_variables_than_any_model_has_are_refused(tmp_path: Path) -> None:
    aliases = tuple((str(number), "a") for number in range(MAX_VARIABLES))
    with pytest.raises(ArtifactError, match="one too many"):
        open_ctranslate2(write(tmp_path, file_of(variable("a"), aliases=aliases)))


def test_a_name_that_is_not_there_is_told(tmp_path: Path) -> None:
    file = open_ctranslate2(write(tmp_path, GOOD))
    with pytest.raises(ArtifactError, match=r"model\.bin has no variable 'other'"):
        file.read("other")


@pytest.mark.parametrize(
    "scale", [np.ones(3, np.float32), np.ones((2, 1), np.float32), np.ones(2, np.int8)]
)
def test_a_scale_that_is_not_one_a_row_is_refused(tmp_path: Path, scale: np.ndarray) -> None:
    values = {"a": np.ones((2, 3), np.int8), "a_scale": scale}
    file = open_ctranslate2(write_model(tmp_path / "model.bin", values))
    with pytest.raises(ArtifactError, match="the scale of 'a' is not one a row"):
        file.read("a")


def test_a_name_that_is_no_utf_8_is_a_name_that_nobody_asks_for(tmp_path: Path) -> None:
    file = open_ctranslate2(write(tmp_path, file_of(variable(b"\xff"), variable("a"))))
    assert {*file.variables} == {"\ufffd", "a"}


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.integers(0, len(GOOD) - 1),
    byte=st.integers(0, 255),
    cut=st.integers(1, len(GOOD)),
)
def test_a_mutated_file_opens_or_is_refused(
    tmp_path: Path, place: int, byte: int, cut: int
) -> None:
    data = bytearray(GOOD)
    data[place] = byte
    try:
        file = open_ctranslate2(write(tmp_path, bytes(data[:cut])))
        for name in file.variables:
            file.read(name)
    except ArtifactError:
        pass


def test_text_is_written_as_ctranslate2_does() -> None:
    assert text("ab") == b"\3\0ab\0"
