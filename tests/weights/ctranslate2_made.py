"""CTranslate2's files, written by hand."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TYPES = ("float32", "int8", "int16", "int32", "float16", "uint16")
"""The last holds the bits of bfloat16."""


def text(name: str | bytes) -> bytes:
    name = name.encode() if isinstance(name, str) else name
    return struct.pack("<H", len(name) + 1) + name + b"\0"


def variable(
    name: str | bytes,
    shape: tuple[int, ...] = (),
    *,
    type_id: int = 0,
    size: int | None = None,
    data: bytes = b"\0\0\0\0",
) -> bytes:
    head = struct.pack(f"<B{len(shape)}I", len(shape), *shape)
    size = len(data) if size is None else size
    return text(name) + head + struct.pack("<BI", type_id, size) + data


def file_of(
    *variables: bytes,
    aliases: tuple[tuple[str, str], ...] = (),
    specification: str = "WhisperSpec",
    version: int = 6,
    count: int | None = None,
) -> bytes:
    count = len(variables) if count is None else count
    head = struct.pack("<I", version) + text(specification) + struct.pack("<II", 3, count)
    ends = [text(alias) + text(name) for alias, name in aliases]
    return head + b"".join([*variables, struct.pack("<I", len(ends)), *ends])


def write_model(
    path: Path, values: Mapping[str, NDArray[Any]], *aliases: tuple[str, str], **told: str
) -> Path:
    """Arrays as the variables of a file."""
    rows = [
        variable(name, each.shape, type_id=TYPES.index(str(each.dtype)), data=each.tobytes())
        for name, each in values.items()
    ]
    path.write_bytes(file_of(*rows, aliases=aliases, **told))
    return path


def draw_whisper(*, seed: int = 0) -> dict[str, NDArray[Any]]:
    """The variables of a Whisper of one layer each side: V 40, D 8, 2 heads, ffn 12, 5 bands."""
    generator = np.random.default_rng(seed)
    sizes: dict[str, tuple[int, ...]] = {"decoder/embeddings/weight": (40, 8)}
    sizes |= {"encoder/conv1/weight": (8, 5, 3), "encoder/conv2/weight": (8, 8, 3)}
    sizes |= {"encoder/conv1/bias": (8,), "encoder/conv2/bias": (8,)}
    attention = {"self_attention": (24, 8), "attention": (8, 16, 8)}
    for side, length in (("encoder", 6), ("decoder", 7)):
        sizes[f"{side}/position_encodings/encodings"] = (length, 8)
        sizes |= norm(f"{side}/layer_norm")
        layer = f"{side}/layer_0"
        for name, rows in attention.items():
            if name == "attention" and side == "encoder":
                continue
            sizes |= norm(f"{layer}/{name}/layer_norm")
            for number, count in enumerate(rows):
                sizes |= linear(f"{layer}/{name}/linear_{number}", count, 8)
        sizes |= norm(f"{layer}/ffn/layer_norm")
        sizes |= linear(f"{layer}/ffn/linear_0", 12, 8) | linear(f"{layer}/ffn/linear_1", 8, 12)
    made: dict[str, NDArray[Any]] = {
        name: generator.normal(size=size).astype(np.float32) for name, size in sizes.items()
    }
    for side in ("encoder", "decoder"):
        made[f"{side}/layer_0/self_attention/linear_0/bias"][8:16] = 0
        made[f"{side}/num_heads"] = np.array(2, np.int16)
    made["decoder/layer_0/attention/linear_1/bias"][:8] = 0
    settings = {"activation": 3, "alibi": 0, "pre_norm": 1, "scale_embeddings": 0}
    settings |= {"start_from_zero_embedding": 0, "alignment_layer": -1}
    return made | {f"decoder/{name}": np.array(each, np.int8) for name, each in settings.items()}


def norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}/gamma": (8,), f"{name}/beta": (8,)}


def linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}/weight": (outputs, inputs), f"{name}/bias": (outputs,)}
