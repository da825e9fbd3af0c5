"""Tensors at rest: the safetensors files of a folder, mapped, so that only what is used is read.

Takes: a folder. Gives: its tensors by name, each a map of its own. Whoever keeps one copies it: a
file that is changed in place under a map ends the process.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lmloop.errors import ArtifactError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""Where a model in several files says which tensor lies in which."""
LONGEST_JSON = 100_000_000
"""Bytes of a JSON file that are read; a longer one describes no model."""
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_WHOLE = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8}
_DTYPES = {**_FLOATS, **_WHOLE, "U8": torch.uint8, "BOOL": torch.bool}


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder by their own names, from one file or from shards.

    Raises `ArtifactError` naming the file that is missing or damaged, and for pickles.
    """
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
        return read_safetensors(folder / WEIGHTS)
    try:
        places = read_json(folder / INDEX)["weight_map"]
        shards = sorted(set(places.values()))
        outside = [shard for shard in shards if Path(shard).name != shard]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{folder / INDEX} is damaged: {error!r}") from error
    if outside:
        raise ArtifactError(f"{folder / INDEX} names {outside[0]!r}, which is no file beside it")
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        found = read_safetensors(folder / shard)
        twice = sorted(tensors.keys() & found.keys())
        if twice:
            raise ArtifactError(f"{folder / shard} holds {twice[0]} a second time")
        tensors |= found
    missing = sorted(places.keys() - tensors.keys())
    if missing:
        raise ArtifactError(f"{folder}: no shard holds {missing[:3]}, which {INDEX} promises")
    return tensors


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of one file; raise `ArtifactError` where it is none, or where a pickle is."""
    start, header = _read_header(path)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise ArtifactError(
                f"{path}: {name} is of type {entry['dtype']}: known are {', '.join(_DTYPES)}"
            )
        first, last = entry["data_offsets"]
        data = _map(path, start=start + first, size=last - first)
        tensors[name] = data.view(_DTYPES[entry["dtype"]]).view(entry["shape"])
    return tensors


def read_json(path: Path) -> Any:
    """What a JSON file holds; raises OSError or ValueError where it is missing or damaged."""
    if path.stat().st_size > LONGEST_JSON:
        raise ValueError(f"it is longer than {LONGEST_JSON:,} bytes")
    try:
        return json.loads(path.read_text("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _read_header(path: Path) -> tuple[int, dict[str, Any]]:
    """Where the tensors of a file begin, and what it says of each."""
    try:
        with safe_open(path, framework="numpy"):
            pass  # that has compared every size and offset with the file's
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (OSError, SafetensorError) as error:
        pickles = sorted(each.name for each in path.parent.iterdir() if each.suffix in _PICKLES)
        if pickles and not path.exists():
            raise ArtifactError(
                f"{path.parent / pickles[0]} is a pickle, which can run code when it is opened: "
                "convert it where you trust it (transformers' save_pretrained writes safetensors)"
            ) from None
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    header.pop("__metadata__", None)
    return 8 + length, header


def _map(path: Path, *, start: int, size: int) -> Tensor:
    """Bytes of a file, read when they are used, and out of memory when the tensor is gone."""
    if size == 0:
        return torch.empty(0, dtype=torch.uint8)
    return torch.from_numpy(np.memmap(path, np.uint8, "c", offset=start, shape=(size,)))
