"""Snapshots of a run: whole or absent, and the one before stays to fall back on.

Takes: named tensors and a few numbers. Gives: folders `snapshot-<step>` of a safetensors file that
holds both, and a JSON file with its size and hash. A damaged newest snapshot is passed over for the
one before.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmloop.errors import ArtifactError
from lmloop.store.artifact import hash_file, replace_folder, sync, verify_file, write_json
from lmloop.store.disk import refuse_full_disk

SEAL = "seal.json"
UNSOUND = (
    ArtifactError,
    SafetensorError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
)
"""What reading a snapshot raises that was cut off, changed, or is of other hands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a run stands, besides its tensors."""

    step: int
    """Steps done."""
    elapsed: float
    """Seconds spent."""
    skipped: int = 0
    """Packed rows that were passed over, because a run went back and on behind them."""

    def spell(self, folder: Path) -> dict[str, str]:
        """What is written of it into a run's folder."""
        numbers = {name: repr(value) for name, value in asdict(self).items()}
        return {**numbers, "run": folder.name}

    @classmethod
    def parse(cls, numbers: Mapping[str, str], *, folder: Path) -> Position:
        """Read what `spell` gave; raises `ArtifactError` where that was for another run."""
        if numbers.get("run", folder.name) != folder.name:
            raise ArtifactError(f"it is of another run, {numbers['run']}")
        return cls(
            step=int(numbers["step"]),
            elapsed=float(numbers["elapsed"]),
            skipped=int(numbers["skipped"]),
        )


def save_snapshot(
    folder: Path, position: Position, tensors: Mapping[str, Tensor], *, before: int | None = None
) -> None:
    """Write a snapshot with its hash, durably, then drop all but it and one to fall back on.

    That is the one of the step `before`, which is known to be sound, else the newest of an earlier
    step. Raises `DiskFullError` where there is no room; the others are then as they were.
    """
    final = folder / f"snapshot-{position.step:08d}"
    beside = folder / f".{final.name}.{os.getpid()}"
    for left in folder.glob(".snapshot-*"):
        remove_snapshot(left)
    with refuse_full_disk(final):
        try:
            beside.mkdir(parents=True)
            weights = beside / "state.safetensors"
            save_file(dict(tensors), weights, metadata=position.spell(folder))
            sync(weights)
            seal = {"bytes": weights.stat().st_size, "sha256": hash_file(weights)}
            write_json(beside / SEAL, seal)
            replace_folder(beside, final)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    drop_others(folder, position.step, before=before)


def load_snapshot(
    folder: Path, *, tell: Callable[[str], None]
) -> tuple[Position, dict[str, Tensor]] | None:
    """The newest sound snapshot, None without any; `tell` gets a line for each damaged one."""
    for _, path in sorted(find_snapshots(folder).items(), reverse=True):
        try:
            seal = json.loads((path / SEAL).read_text(encoding="utf-8"))
            if "files" in seal:
                return _read_shards(path, seal)
            weights = path / "state.safetensors"
            verify_file(weights, size=seal["bytes"], sha256=seal["sha256"])
            return _read_position(weights), load_file(weights)
        except UNSOUND as error:
            tell(f"{path.name} is damaged and passed over: {error}")
    return None


def drop_others(folder: Path, step: int, *, before: int | None) -> None:
    """Remove all snapshots but that of a step and one to fall back on; see `save_snapshot`."""
    found = find_snapshots(folder)
    earlier = [each for each in found if each < step]
    kept = {step, before if before in earlier else max(earlier, default=-1)}
    for each, old in found.items():
        if each not in kept:
            remove_snapshot(old)


def _read_shards(path: Path, seal: Mapping[str, Any]) -> tuple[Position, dict[str, Tensor]]:
    """What many ranks have written, each a part, as one process has it: whole."""
    from lmloop.training.shard_files import read_pieces

    for name, file in seal["files"].items():
        verify_file(path / name, size=file["bytes"], sha256=file["sha256"])
    whole = read_pieces(path, spread_of=lambda key, axes: None, rank=0)
    return Position.parse(seal["position"], folder=path.parent), whole


def find_snapshots(folder: Path) -> dict[int, Path]:
    """What lies in the places of snapshots, by step."""
    names = (re.fullmatch(r"snapshot-(\d{8,})", path.name) for path in folder.glob("snapshot-*"))
    return {int(name[1]): folder / name[0] for name in names if name is not None}


def remove_snapshot(path: Path) -> None:
    """Remove a folder, or whatever another hand has put in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _read_position(weights: Path) -> Position:
    with safe_open(weights, framework="pt") as file:
        numbers = file.metadata()
    return Position.parse(numbers, folder=weights.parent.parent)
