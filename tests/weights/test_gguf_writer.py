"""The GGUF writer: the peer opens our files to the same values, and a failure leaves nothing."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFValueType, quants

from lmloop.errors import ArtifactError
from lmloop.weights.ggml import WRITABLE
from lmloop.weights.gguf import MAX_HEADER, open_gguf
from lmloop.weights.gguf_writer import write_gguf

VALUES: dict[str, Any] = {
    "general.architecture": "llama",
    "small": 3,
    "negative": -3,
    "large": 2**40,
    "lowest": -(2**63),
    "truth": True,
    "float": 0.25,
    "text": "né 中 \U0001f600\n",
    "texts": ["a", "", "né"],
    "flags": [True, False],
    "integers": [1, -2, 3],
    "unsigned": [0, 2**63],
    "floats": [0.5, 2],
    "typed": array("H", [1, 2]),
    "none": [],
}
TYPES = {
    "small": [GGUFValueType.UINT32],
    "negative": [GGUFValueType.INT32],
    "large": [GGUFValueType.UINT64],
    "lowest": [GGUFValueType.INT64],
    "truth": [GGUFValueType.BOOL],
    "float": [GGUFValueType.FLOAT32],
    "text": [GGUFValueType.STRING],
    "texts": [GGUFValueType.ARRAY, GGUFValueType.STRING],
    "flags": [GGUFValueType.ARRAY, GGUFValueType.BOOL],
    "integers": [GGUFValueType.ARRAY, GGUFValueType.INT32],
    "unsigned": [GGUFValueType.ARRAY, GGUFValueType.UINT64],
    "floats": [GGUFValueType.ARRAY, GGUFValueType.FLOAT32],
    "typed": [GGUFValueType.ARRAY, GGUFValueType.UINT16],
}


def weights(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("alignment", [None, 8, 4096])
def test_the_peer_opens_our_file_to_the_same_values_and_tensors(
    tmp_path: Path, alignment: int | None
) -> None:
    path = tmp_path / "ours.gguf"
    values = VALUES if alignment is None else {**VALUES, "general.alignment": alignment}
    originals = {name: weights(3, 256, seed=seed) for seed, name in enumerate(WRITABLE)}
    originals["norm"] = weights(5)
    tensors = {
        name: (each, name if name in WRITABLE else "F32") for name, each in originals.items()
    }
    write_gguf(path, metadata=values, tensors=tensors)

    theirs = GGUFReader(path)
    for key, value_types in TYPES.items():
        assert theirs.fields[key].types[: len(value_types)] == value_types, key
        assert theirs.fields[key].contents() == (
            list(values[key]) if isinstance(values[key], array) else values[key]
        )
    ours = open_gguf(path)
    assert ours.metadata.keys() == values.keys()
    for key in ("integers", "floats", "unsigned", "typed", "none"):
        assert list(ours.metadata[key]) == list(values[key])  # type: ignore[arg-type]
    assert ours.metadata["texts"] == values["texts"]
    assert [each.name for each in theirs.tensors] == list(originals) == list(ours.tensors)
    for each in theirs.tensors:
        expected = quants.dequantize(each.data, each.tensor_type).astype(np.float32)
        np.testing.assert_array_equal(ours.read(each.name).numpy(), expected)
        assert each.tensor_type.name == tensors[each.name][1]
    assert torch.equal(ours.read("norm"), originals["norm"])


def test_what_was_read_is_written_again_byte_for_byte(tmp_path: Path) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    tensors = {"a": (weights(2, 64), "Q8_0"), "b": (weights(7).bfloat16(), "BF16")}
    write_gguf(first, metadata=VALUES, tensors=tensors)
    file = open_gguf(first)
    again = {name: (file.read(name), entry.type.name) for name, entry in file.tensors.items()}
    write_gguf(second, metadata=file.metadata, tensors=again)
    assert first.read_bytes() == second.read_bytes()


def test_a_tensor_in_pieces_of_other_memory_is_written_whole(tmp_path: Path) -> None:
    original = weights(64, 3).T
    write_gguf(tmp_path / "t.gguf", metadata={}, tensors={"t": (original, "F32")})
    assert torch.equal(open_gguf(tmp_path / "t.gguf").read("t"), original)


def test_a_file_without_tensors_opens(tmp_path: Path) -> None:
    write_gguf(tmp_path / "t.gguf", metadata={"a": 1}, tensors={})
    assert open_gguf(tmp_path / "t.gguf").metadata == {"a": 1}
    assert not GGUFReader(tmp_path / "t.gguf").tensors


ONE = torch.ones(1)


@pytest.mark.parametrize(
    ("metadata", "tensors", "complaint"),
    [
        ({"k": 2**64}, {}, "'k' cannot be written: an integer takes more than 64 bits"),
        ({"k": [-1, 2**63]}, {}, "'k' cannot be written: an integer takes more"),
        ({"k": 1e300}, {}, "'k' cannot be written"),
        ({"k": ["a", 1]}, {}, "'k' cannot be written: a row of int, str"),
        ({"k": [[1]]}, {}, "'k' cannot be written: a row of list"),
        ({"k": None}, {}, "'k' cannot be written"),
        ({"k": "\ud800"}, {}, "'k' cannot be written"),
        ({"": 1}, {}, "the name '' has 0 characters"),
        ({"\ud800": 1}, {}, "is not Unicode"),
        ({"k" * 70_000: 1}, {}, "has 70000 characters, 1 to 65535"),
        ({"general.alignment": 12}, {}, "general.alignment is 12"),
        ({"k": "x" * MAX_HEADER}, {}, f"{MAX_HEADER} are allowed"),
        ({}, {"t": (ONE, "Q6_K")}, "'t' cannot be written as 'Q6_K'; allowed are F32"),
        ({}, {"t": (ONE, "Q9")}, "'t' cannot be written as 'Q9'"),
        ({}, {"t": (torch.ones(2, 48), "Q8_0")}, r"'t' of shape \(2, 48\) cannot be written as"),
        ({}, {"t": (torch.ones(1, 1, 1, 1, 1), "F32")}, "1 to 4 axes"),
        ({}, {"t": (torch.ones(0, 3), "F32")}, r"of shape \(0, 3\)"),
        ({}, {"a": (ONE, "F32"), "t": (ONE * 1e6, "F16")}, "'t' cannot be written: a weight is"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(
    tmp_path: Path, metadata: Any, tensors: Any, complaint: str
) -> None:
    path = tmp_path / "t.gguf"
    path.write_bytes(b"before")
    with pytest.raises(ArtifactError, match=complaint) as refusal:
        write_gguf(path, metadata=metadata, tensors=tensors)
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).startswith(str(path))
    assert [each.name for each in tmp_path.iterdir()] == ["t.gguf"]
    assert path.read_bytes() == b"before"
