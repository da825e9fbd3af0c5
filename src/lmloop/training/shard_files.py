"""Snapshots that all ranks write together, a safetensors file each, and that open on any grid.

Takes: each rank's own pieces of named tensors. Gives: folders as `snapshot.py` writes them, whole
or absent, with PyTorch's own writer and reader of sharded safetensors: no pickle, and none on the
way, as each rank plans for itself what it writes and reads.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from lmloop.errors import ArtifactError, DiskFullError
from lmloop.store.artifact import hash_file, replace_folder, sync, verify_file, write_json
from lmloop.store.disk import refuse_full_disk
from lmloop.training.pieces import Grid, Spread
from lmloop.training.ranks import Ranks
from lmloop.training.snapshot import (
    SEAL,
    UNSOUND,
    Position,
    drop_others,
    find_snapshots,
    remove_snapshot,
)

SpreadOf = Callable[[str, int], tuple[Spread, Grid] | None]
"""How a tensor of a name and so many axes lies on the ranks; None: each has all of it."""

_NO_ROOM = "no room: "
"""Begins what a rank tells the others that could not write."""


class _Writing(DefaultSavePlanner):
    """Gives the writer what it asks for by name."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._tensors = tensors

    def lookup_object(self, index: MetadataIndex) -> Any:
        return self._tensors[index.fqn]


class _Reading(DefaultLoadPlanner):
    """Gives the reader the tensors to fill, by name."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._tensors = tensors

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self._tensors[index.fqn]


def save_shards(
    folder: Path,
    position: Position,
    tensors: Mapping[str, Tensor],
    *,
    spread_of: SpreadOf,
    ranks: Ranks,
    before: int | None = None,
) -> None:
    """Write a snapshot durably, each rank its pieces; the first seals it and drops older ones.

    `before` and what is raised: see `save_snapshot`; where one rank has no room, all raise.
    """
    final = folder / f"snapshot-{position.step:08d}"
    beside = folder / f".{final.name}.shards"
    if ranks.is_first:
        for left in folder.glob(".snapshot-*"):
            remove_snapshot(left)
        with refuse_full_disk(final):
            beside.mkdir(parents=True)
    ranks.collect("")  # Nobody writes before the folder is there.
    told = ranks.collect(_write(beside, tensors, spread_of=spread_of, ranks=ranks))
    if ranks.is_first:
        _seal(beside, final, position, told)
    _require_all(told)
    if ranks.is_first:
        drop_others(folder, position.step, before=before)
    ranks.collect("")  # Nobody goes on before it is whole.


def _write(
    beside: Path, tensors: Mapping[str, Tensor], *, spread_of: SpreadOf, ranks: Ranks
) -> str:
    """Write this rank's file; what the others are to know of it: nothing, a seal, or no room."""
    try:
        with refuse_full_disk(beside):
            written = _write_pieces(beside, tensors, spread_of=spread_of, ranks=ranks)
            if written is None:
                return ""
            sync(written)
            return json.dumps([written.name, written.stat().st_size, hash_file(written)])
    except DiskFullError as error:
        return f"{_NO_ROOM}rank {ranks.rank}: {error}"


def _seal(beside: Path, final: Path, position: Position, told: Sequence[str]) -> None:
    """Make a snapshot of what all have written; nothing stays of it where one had no room."""
    try:
        if not any(each.startswith(_NO_ROOM) for each in told):
            pieces = [json.loads(each) for each in told if each]
            files = {name: {"bytes": size, "sha256": sha256} for name, size, sha256 in pieces}
            seal = {"position": position.spell(final.parent), "files": files}
            with refuse_full_disk(final):
                write_json(beside / SEAL, seal)
                replace_folder(beside, final)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _require_all(told: Sequence[str]) -> None:
    """Raise the `DiskFullError` of the first rank that had no room."""
    for each in told:
        if each.startswith(_NO_ROOM):
            raise DiskFullError(each.removeprefix(_NO_ROOM))


def _write_pieces(
    folder: Path, tensors: Mapping[str, Tensor], *, spread_of: SpreadOf, ranks: Ranks
) -> Path | None:
    """Write what this rank stands for; gives its file, None where it stands for nothing."""
    items, held = [], {}
    for key, tensor in tensors.items():
        for name, offsets, part in _own_pieces(key, tensor, spread_of, ranks):
            held[name] = part
            chunk = ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=part.shape)
            properties = TensorProperties.create_from_tensor(part)
            data = TensorWriteData(chunk=chunk, properties=properties, size=part.shape)
            index = MetadataIndex(name, torch.Size(offsets))
            items.append(WriteItem(index=index, type=WriteItemType.SHARD, tensor_data=data))
    if not items:
        return None
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    # The writer numbers its files by the place of a plan in this list.
    (*_, plan) = writer.prepare_global_plan([SavePlan([])] * ranks.rank + [SavePlan(items)])
    results = writer.write_data(plan, _Writing(held)).wait()
    return folder / str(results[0].storage_data.relative_path)


def _own_pieces(
    key: str, tensor: Tensor, spread_of: SpreadOf, ranks: Ranks
) -> list[tuple[str, tuple[int, ...], Tensor]]:
    """Stored name, offsets and numbers of each piece that this rank stands for."""
    found = spread_of(key, tensor.dim())
    if found is None:
        return [(key, (0,) * tensor.dim(), tensor)] if ranks.is_first else []
    spread, grid = found
    if not spread.is_counted(grid, ranks.rank):
        return []
    return [
        (_stored_name(key, spread, piece.matrix), piece.offsets, tensor[piece.rows])
        for piece in spread.pieces(grid, ranks.rank)
    ]


def _stored_name(key: str, spread: Spread, matrix: int) -> str:
    """Fused matrices are stored each by itself: grids cut them at other rows."""
    return key if len(spread.matrices) == 1 else f"{key}/{matrix}"


def load_shards(
    folder: Path, *, spread_of: SpreadOf, ranks: Ranks, tell: Callable[[str], None]
) -> tuple[Position, dict[str, Tensor]] | None:
    """This rank's own of the newest snapshot that is sound for all; `tell` of each damaged one.

    The snapshot may be of any number of ranks, or of one process that had everything.
    """
    names = " ".join(path.name for _, path in sorted(find_snapshots(folder).items(), reverse=True))
    for name in ranks.collect(names)[0].split():
        path, found, trouble = folder / name, None, ""
        try:
            found = _read(path, spread_of=spread_of, ranks=ranks)
        except UNSOUND as error:
            trouble = str(error) or type(error).__name__
        troubles = list(filter(None, ranks.collect(trouble)))
        if found is not None and not troubles:
            return found
        tell(f"{name} is damaged and passed over: {troubles[0]}")
    return None


def _read(path: Path, *, spread_of: SpreadOf, ranks: Ranks) -> tuple[Position, dict[str, Tensor]]:
    seal = json.loads((path / SEAL).read_text(encoding="utf-8"))
    whole = path / "state.safetensors"
    if "files" not in seal:
        if ranks.is_first:
            verify_file(whole, size=seal["bytes"], sha256=seal["sha256"])
        return _cut(whole, spread_of=spread_of, rank=ranks.rank)
    for name in sorted(seal["files"])[ranks.rank :: ranks.size]:
        verify_file(
            path / name, size=seal["files"][name]["bytes"], sha256=seal["files"][name]["sha256"]
        )
    position = Position.parse(seal["position"], folder=path.parent)
    return position, read_pieces(path, spread_of=spread_of, rank=ranks.rank)


def _cut(file: Path, *, spread_of: SpreadOf, rank: int) -> tuple[Position, dict[str, Tensor]]:
    """A rank's own of whole tensors, of which one at a time is in memory."""
    own = {}
    with safe_open(file, framework="pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118  # no mapping: it has no other way to its keys
            tensor = tensors.get_tensor(key)
            found = spread_of(key, tensor.dim())
            own[key] = tensor if found is None else found[0].own(tensor, found[1], rank)
        return Position.parse(tensors.metadata(), folder=file.parent.parent), own


def read_pieces(folder: Path, *, spread_of: SpreadOf, rank: int) -> dict[str, Tensor]:
    """A rank's own of what several have written; matrices stored apart come back as one tensor.

    Raises `ArtifactError` where a part of it is in no file.
    """
    reader = HuggingFaceStorageReader(str(folder))
    metadata = reader.read_metadata()
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    own: dict[str, Tensor] = {}
    loose: dict[str, dict[int, Tensor]] = {}
    targets, items = {}, []
    for name, stored in metadata.state_dict_metadata.items():
        assert isinstance(stored, TensorStorageMetadata), "safetensors hold tensors only"
        key, _, number = name.partition("/")
        shape, dtype = tuple(stored.size), stored.properties.dtype
        found = spread_of(key, len(shape))
        if found is None:
            target, offsets = torch.empty(shape, dtype=dtype), (0,) * len(shape)
            loose.setdefault(key, {})[int(number or 0)] = target
        else:
            spread, grid = found
            if key not in own:
                own[key] = torch.empty(spread.own_shape(grid, rank), dtype=dtype)
            pieces = {piece.matrix: piece for piece in spread.pieces(grid, rank)}
            if int(number or 0) not in pieces:
                continue
            piece = pieces[int(number or 0)]
            target, offsets = own[key][piece.rows], piece.offsets
        chunk = ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=target.shape)
        wanted = create_read_items_for_chunk_list(name, stored, [chunk])
        if sum(torch.Size(each.lengths).numel() for each in wanted) != target.numel():
            raise ArtifactError(
                f"{folder} lacks a part of {key}: remove it, and the run begins anew"
            )
        targets[name] = target
        items += wanted
    reader.read_data(LoadPlan(items), _Reading(targets)).wait()
    for key, parts in loose.items():
        own[key] = parts[0] if len(parts) == 1 else torch.cat([parts[i] for i in sorted(parts)])
    return own
