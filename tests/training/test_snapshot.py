"""Snapshots: whole or absent, and never trusted unseen."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from lmloop.errors import DiskFullError
from lmloop.training import snapshot as module
from lmloop.training.snapshot import Position, load_snapshot, save_snapshot

FILES = ("state.safetensors", "seal.json")


def tensors(step: int) -> dict[str, Tensor]:
    return {"master.a": torch.arange(6.0) + step, "adamw.step.a": torch.tensor(float(step))}


def save(folder: Path, step: int) -> None:
    save_snapshot(folder, Position(step=step, elapsed=step / 10 + 0.001), tensors(step))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def loaded_step(folder: Path, told: list[str] | None = None) -> int | None:
    """The step of the snapshot that is found, every part of it compared."""
    found = load_snapshot(folder, tell=[].append if told is None else told.append)
    if found is None:
        return None
    position, state = found
    assert position.elapsed == position.step / 10 + 0.001
    assert state.keys() == tensors(0).keys()
    for name, tensor in tensors(position.step).items():
        assert torch.equal(state[name], tensor)
    return position.step


def test_a_snapshot_comes_back_as_it_was(tmp_path: Path) -> None:
    save(tmp_path, 200)
    assert loaded_step(tmp_path) == 200


def test_without_any_there_is_none(tmp_path: Path) -> None:
    assert loaded_step(tmp_path) is None
    assert loaded_step(tmp_path / "nowhere") is None


def test_the_newest_is_found_and_only_two_stay(tmp_path: Path) -> None:
    for step in (9, 10, 100, 1000):
        save(tmp_path, step)
        assert loaded_step(tmp_path) == step
    assert names(tmp_path) == ["snapshot-00000100", "snapshot-00001000"]


@pytest.mark.parametrize("file", FILES)
def test_any_flipped_byte_is_seen_and_the_snapshot_before_taken(tmp_path: Path, file: str) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    path = tmp_path / "snapshot-00000002" / file
    whole = path.read_bytes()
    missed = []
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        told: list[str] = []
        # A flipped blank or line end of the JSON file means the same as before.
        if loaded_step(tmp_path, told) == 2:
            assert file == "seal.json"
            missed.append(chr(whole[place]))
        else:
            assert loaded_step(tmp_path) == 1
            assert len(told) == 1
            assert told[0].startswith("snapshot-00000002 is damaged and passed over")
    assert "".join(missed).strip() == ""


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("content", [b"", b"{}", b"[]", None])
def test_a_file_that_is_missing_or_empty_is_passed_over(
    tmp_path: Path, file: str, content: bytes | None
) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    path = tmp_path / "snapshot-00000002" / file
    path.unlink() if content is None else path.write_bytes(content)
    assert loaded_step(tmp_path) == 1


def test_where_all_are_damaged_there_is_none_and_each_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    for step in (1, 2):
        save(tmp_path, step)
        (tmp_path / f"snapshot-0000000{step}" / "seal.json").unlink()
    assert loaded_step(tmp_path, told) is None
    assert [line.split()[0] for line in told] == ["snapshot-00000002", "snapshot-00000001"]


def test_a_damaged_snapshot_is_replaced_by_the_next_one_of_its_step(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "snapshot-00000002" / "state.safetensors").write_bytes(b"damaged")
    save(tmp_path, 2)
    assert loaded_step(tmp_path) == 2


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for left in (".snapshot-00000002.999", ".snapshot-00000002.old.999"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "state.safetensors").write_bytes(b"half")
    assert loaded_step(tmp_path) == 1
    save(tmp_path, 2)
    assert names(tmp_path) == ["snapshot-00000001", "snapshot-00000002"]


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_in_words(tensors: Any, path: Path, **_: Any) -> None:
    path.write_bytes(b"a beginning")
    raise SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("name", "failure"),
    [("save_file", full_in_words), ("sync", full), ("write_json", full), ("replace_folder", full)],
)
def test_a_disk_that_fills_up_during_a_save_leaves_the_snapshots_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, failure: Callable[..., None]
) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    before = names(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(module, name, failure)
        with pytest.raises(DiskFullError, match="snapshot-00000003.*No space left on device"):
            save(tmp_path, 3)
    assert names(tmp_path) == before
    assert loaded_step(tmp_path) == 2
    save(tmp_path, 3)
    assert loaded_step(tmp_path) == 3


def test_every_file_is_on_the_disk_before_the_snapshot_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def spy(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    monkeypatch.setattr(
        module,
        "replace_folder",
        lambda folder, final: synced.append("named") or folder.rename(final),
    )
    save(tmp_path, 1)
    until = synced.index("named")
    assert "state.safetensors" in synced[:until]
    assert any("seal.json" in name for name in synced[:until])


def test_a_snapshot_of_another_run_is_passed_over(tmp_path: Path) -> None:
    one, other, told = tmp_path / "one", tmp_path / "other", list[str]()
    save(one, 1)
    save(other, 2)
    (other / "snapshot-00000002").rename(one / "snapshot-00000002")
    assert loaded_step(one, told) == 1
    assert told == [
        "snapshot-00000002 is damaged and passed over: it is of another run, other",
    ]


def test_a_sealed_file_that_is_none_of_tensors_is_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    alien = b"garbage" * 100
    (tmp_path / "snapshot-00000002" / "state.safetensors").write_bytes(alien)
    seal = {"bytes": len(alien), "sha256": hashlib.sha256(alien).hexdigest()}
    (tmp_path / "snapshot-00000002" / "seal.json").write_text(json.dumps(seal))
    assert loaded_step(tmp_path) == 1


def test_what_lies_there_by_other_names_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "snapshot-notes").write_text("mine")
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert names(tmp_path) == ["snapshot-00000002", "snapshot-00000003", "snapshot-notes"]
    assert loaded_step(tmp_path) == 3


def test_a_link_in_the_place_of_a_snapshot_is_removed_and_not_what_it_points_to(
    tmp_path: Path,
) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    save(run, 1)
    (run / "snapshot-00000001").rename(elsewhere)
    (run / "snapshot-00000001").symlink_to(elsewhere)
    for step in (2, 3):
        save(run, step)
    assert names(run) == ["snapshot-00000002", "snapshot-00000003"]
    assert sorted(path.name for path in elsewhere.iterdir()) == sorted(FILES)


def test_the_one_to_fall_back_on_is_the_last_that_was_sound(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    (tmp_path / "snapshot-00000002" / "seal.json").unlink()
    state = Position(step=3, elapsed=0.301)
    save_snapshot(tmp_path, state, tensors(3), before=loaded_step(tmp_path))
    (tmp_path / "snapshot-00000003" / "seal.json").unlink()
    assert loaded_step(tmp_path) == 1


def test_a_damaged_snapshot_of_a_later_step_does_not_stay(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 9)
    (tmp_path / "snapshot-00000009" / "seal.json").unlink()
    save(tmp_path, 2)
    assert names(tmp_path) == ["snapshot-00000001", "snapshot-00000002"]
