"""Snapshots of a run: whole or absent, and the one before stays to fall back on.

Takes: named tensors and a few numbers. Gives: folders `snapshot-<step>` of a safetensors file that
holds both, and a JSON file with its size and hash. A damaged newest snapshot is passed over for the
one before.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmloop.errors import ArtifactError
from lmloop.store.artifact import hash_file, replace_folder, sync, verify_file, write_json

SEAL = "seal.json"
KEEP = 2
"""Snapshots that stay: the newest, and one to fall back on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a run stands, besides its tensors."""

    step: int
    """Steps done."""
    elapsed: float
    """Seconds spent."""
    skipped: int = 0
    """Packed rows that were passed over, because a run went back and on behind them."""

    @classmethod
    def parse(cls, numbers: Mapping[str, str]) -> Position:
        """Read what `repr` wrote of each number."""
        return cls(
            step=int(numbers["step"]),
            elapsed=float(numbers["elapsed"]),
            skipped=int(numbers["skipped"]),
        )


def save_snapshot(folder: Path, position: Position, tensors: Mapping[str, Tensor]) -> None:
    """Write a snapshot with its hash, durably, then drop all but the newest `KEEP`."""
    final = folder / f"snapshot-{position.step:08d}"
    beside = folder / f".{final.name}.{os.getpid()}"
    for left in folder.glob(".snapshot-*"):
        shutil.rmtree(left)
    beside.mkdir(parents=True)
    try:
        weights = beside / "state.safetensors"
        numbers = {name: repr(value) for name, value in asdict(position).items()}
        save_file(dict(tensors), weights, metadata=numbers)
        sync(weights)
        seal = {"bytes": weights.stat().st_size, "sha256": hash_file(weights)}
        write_json(beside / SEAL, seal)
        replace_folder(beside, final)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    for old in sorted(folder.glob("snapshot-*"))[:-KEEP]:
        shutil.rmtree(old)


def load_snapshot(
    folder: Path, *, tell: Callable[[str], None]
) -> tuple[Position, dict[str, Tensor]] | None:
    """The newest sound snapshot, None without any; `tell` gets a line for each damaged one."""
    for path in sorted(folder.glob("snapshot-*"), reverse=True):
        try:
            seal = json.loads((path / SEAL).read_text(encoding="utf-8"))
            if "files" in seal:
                return _read_shards(path, seal)
            weights = path / "state.safetensors"
            verify_file(weights, size=seal["bytes"], sha256=seal["sha256"])
            return _read_position(weights), load_file(weights)
        except (ArtifactError, OSError, ValueError, TypeError, KeyError) as error:
            tell(f"{path.name} is damaged and passed over: {error}")
    return None


def _read_shards(path: Path, seal: Mapping[str, Any]) -> tuple[Position, dict[str, Tensor]]:
    """What many ranks have written, each a part, as one process has it: whole."""
    from lmloop.training.shard_files import read_pieces

    for name, file in seal["files"].items():
        verify_file(path / name, size=file["bytes"], sha256=file["sha256"])
    whole = read_pieces(path, spread_of=lambda key, axes: None, rank=0)
    return Position.parse(seal["position"]), whole


def _read_position(weights: Path) -> Position:
    with safe_open(weights, framework="pt") as file:
        numbers = file.metadata()
    return Position.parse(numbers)
