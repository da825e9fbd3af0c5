"""Snapshots in pieces: whole or absent, and the same on whatever grid they are opened."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lmloop.errors import DiskFullError
from lmloop.training import shard_files
from lmloop.training.pieces import Grid, Spread
from lmloop.training.ranks import Ranks
from lmloop.training.shard_files import load_shards, save_shards
from lmloop.training.snapshot import Position, load_snapshot, save_snapshot

SPREADS = {
    "master.qkv": Spread((14, 6), (8, 4, 2), "rows"),
    "master.output": Spread((6, 8), (6,), "columns"),
    "master.norm": Spread((3,), (3,)),
}
POSITION = Position(step=4, elapsed=1 / 3, skipped=2)
Found = tuple[Position, dict[str, Tensor]] | None


@dataclass
class Board:
    """Where the ranks of a test meet: they are threads."""

    size: int
    texts: list[str] = field(init=False)
    barrier: threading.Barrier = field(init=False)

    def __post_init__(self) -> None:
        self.texts = [""] * self.size
        self.barrier = threading.Barrier(self.size, timeout=30)


class Thread(Ranks):
    """One of several ranks in one process."""

    def __init__(self, rank: int, board: Board) -> None:
        self.rank, self.size, self._board = rank, board.size, board

    def collect(self, text: str) -> list[str]:
        self._board.texts[self.rank] = text
        self._board.barrier.wait()
        got = list(self._board.texts)
        self._board.barrier.wait()
        return got


def on_all(size: int, work: Callable[[Ranks], object]) -> None:
    board = Board(size)
    ranks = [threading.Thread(target=work, args=(Thread(rank, board),)) for rank in range(size)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join(timeout=60)
        assert not each.is_alive()


def whole(offset: float = 0.0) -> dict[str, Tensor]:
    counts = {"counts": torch.tensor([1 / 3, 5.0], dtype=torch.float64)}
    steps = {"steps.norm": torch.tensor(offset)}
    tensors = {
        name: torch.arange(float(torch.Size(spread.shape).numel())).view(spread.shape) + offset
        for name, spread in SPREADS.items()
    }
    return tensors | counts | steps


def spread_on(grid: Grid) -> Callable[[str, int], tuple[Spread, Grid] | None]:
    return lambda key, axes: (SPREADS[key], grid) if key in SPREADS else None


def cut(tensors: dict[str, Tensor], grid: Grid, rank: int) -> dict[str, Tensor]:
    return {
        name: SPREADS[name].own(tensor, grid, rank) if name in SPREADS else tensor
        for name, tensor in tensors.items()
    }


def save_on(grid: Grid, folder: Path, *, position: Position = POSITION) -> None:
    def work(ranks: Ranks) -> None:
        own = cut(whole(position.step), grid, ranks.rank)
        save_shards(folder, position, own, spread_of=spread_on(grid), ranks=ranks)

    on_all(grid.size, work)


def load_on(grid: Grid, folder: Path) -> tuple[list[Found], list[str]]:
    found: dict[int, Found] = {}
    told: list[str] = []

    def work(ranks: Ranks) -> None:
        tell = told.append if ranks.is_first else lambda line: None
        found[ranks.rank] = load_shards(folder, spread_of=spread_on(grid), ranks=ranks, tell=tell)

    on_all(grid.size, work)
    return [found[rank] for rank in range(grid.size)], told


def check(found: list[Found], grid: Grid, position: Position) -> None:
    for rank, each in enumerate(found):
        assert each is not None
        assert each[0] == position
        expected = cut(whole(position.step), grid, rank)
        assert each[1].keys() == expected.keys()
        for name, tensor in expected.items():
            assert each[1][name].dtype == tensor.dtype
            assert torch.equal(each[1][name], tensor), (name, rank)


GRIDS = [Grid(2), Grid(4), Grid(1, 2), Grid(2, 2), Grid(5)]


@pytest.mark.parametrize("written", GRIDS)
def test_a_snapshot_of_any_grid_opens_on_any_other_and_in_one_process(
    tmp_path: Path, written: Grid
) -> None:
    save_on(written, tmp_path)
    for grid in GRIDS:
        found, told = load_on(grid, tmp_path)
        check(found, grid, POSITION)
        assert told == []
    check([load_snapshot(tmp_path, tell=lambda line: None)], Grid(1), POSITION)


@pytest.mark.parametrize("grid", GRIDS)
def test_what_one_process_has_written_opens_on_many(tmp_path: Path, grid: Grid) -> None:
    save_snapshot(tmp_path, POSITION, whole(POSITION.step))
    check(load_on(grid, tmp_path)[0], grid, POSITION)


def test_each_rank_writes_its_own_rows_as_safetensors_and_nothing_else(tmp_path: Path) -> None:
    save_on(Grid(2), tmp_path)
    folder = tmp_path / "snapshot-00000004"
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        "seal.json",
        "shard-00001-model-00001-of-00001.safetensors",
        "shard-00002-model-00001-of-00001.safetensors",
    ]
    first, second = (load_file(folder / name) for name in names[1:])
    assert "counts" in first
    assert "counts" not in second
    assert first["master.output"].tolist() == whole(4)["master.output"][:3].tolist()
    assert {name for name in second if name.startswith("master.qkv")} == {
        "master.qkv/0",
        "master.qkv/1",
        "master.qkv/2",
    }


def test_a_part_that_is_damaged_is_named_and_all_fall_back(tmp_path: Path) -> None:
    before = Position(step=3, elapsed=1.0)
    save_on(Grid(2), tmp_path, position=before)
    save_on(Grid(2), tmp_path)
    part = tmp_path / "snapshot-00000004" / "shard-00002-model-00001-of-00001.safetensors"
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    for grid in (Grid(2), Grid(4)):
        found, told = load_on(grid, tmp_path)
        check(found, grid, before)
        (line,) = told
        assert line.startswith("snapshot-00000004 is damaged and passed over: ")
    told = []
    check([load_snapshot(tmp_path, tell=told.append)], Grid(1), before)
    assert len(told) == 1


def test_what_a_killed_save_has_left_is_no_snapshot_and_is_swept(tmp_path: Path) -> None:
    left = tmp_path / ".snapshot-00000003.shards"
    left.mkdir()
    (left / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"half")
    assert load_on(Grid(2), tmp_path) == ([None, None], [])
    save_on(Grid(2), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["snapshot-00000004"]


@pytest.mark.parametrize("guilty", [0, 1])
def test_a_disk_full_on_one_rank_is_told_by_all_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guilty: int
) -> None:
    before = Position(step=3, elapsed=1.0)
    save_on(Grid(2), tmp_path, position=before)
    real = shard_files.sync

    def sync(path: Path) -> None:
        if path.name.startswith(f"shard-0000{guilty + 1}-"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path)

    monkeypatch.setattr(shard_files, "sync", sync)
    told: dict[int, str] = {}

    def work(ranks: Ranks) -> None:
        own = cut(whole(), Grid(2), ranks.rank)
        with pytest.raises(DiskFullError) as raised:
            save_shards(tmp_path, POSITION, own, spread_of=spread_on(Grid(2)), ranks=ranks)
        told[ranks.rank] = str(raised.value)

    on_all(2, work)
    assert told[0] == told[1]
    assert told[0].startswith(f"rank {guilty}: no space is left for {tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["snapshot-00000003"]
    found, _ = load_on(Grid(2), tmp_path)
    check(found, Grid(2), before)


def test_only_the_newest_two_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_on(Grid(2), tmp_path, position=Position(step=step, elapsed=0.0))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["snapshot-00000002", "snapshot-00000003"]
