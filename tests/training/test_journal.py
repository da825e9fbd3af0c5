"""A line a step, and no line more than the snapshot knows."""

from __future__ import annotations

import builtins
import json
import os
from pathlib import Path
from typing import Any

import pytest

from lmloop.errors import DivergedError, TrainingError
from lmloop.training.journal import Journal, NoJournal, final_loss, read_micro_batch


def write(path: Path, count: int) -> None:
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, count + 1)))


def path_of(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_every_line_is_there_as_soon_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "journal.jsonl"
    journal = Journal(path, steps=0)
    for step in (1, 2, 3):
        journal.append({"step": step})
        assert steps(path) == list(range(1, step + 1))
    journal.close()


@pytest.mark.parametrize("kept", [0, 1, 3, 5])
def test_an_old_journal_is_cut_back_to_the_steps_of_the_snapshot(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, 5)
    journal = Journal(path, steps=kept)
    journal.append({"step": kept + 1})
    journal.close()
    assert steps(path) == list(range(1, kept + 2))


@pytest.mark.parametrize("torn", ['{"step": 4', '{"step": 4}', "{"])
def test_a_torn_line_is_dropped(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, 3)
    with path.open("a") as stream:
        stream.write(torn)
    journal = Journal(path, steps=9)
    journal.append({"step": 4})
    journal.close()
    assert steps(path) == [1, 2, 3, 4]


def test_what_is_kept_is_never_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A process killed while it opens the journal must not lose the lines of earlier steps.
    path = tmp_path / "journal.jsonl"
    write(path, 5)
    modes: list[str] = []

    def spy(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        modes.append(mode)
        return real(file, mode, *rest, **options)

    real = builtins.open
    monkeypatch.setattr("io.open", spy)
    Journal(path, steps=5).close()
    assert modes
    assert not any("w" in mode for mode in modes)
    assert steps(path) == [1, 2, 3, 4, 5]


def test_syncing_brings_the_file_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(path_of(fd)))
    journal = Journal(tmp_path / "journal.jsonl", steps=0)
    journal.append({"step": 1})
    journal.sync()
    journal.close()
    assert synced == [tmp_path / "journal.jsonl"]


def test_the_micro_batch_of_a_run_is_read_from_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    assert read_micro_batch(path) is None
    for text, expected in (
        ('{"step": 1, "micro_batch_tokens": 64}\n{"step": 2}\n', 64),
        ('{"step": 1}\n', None),
        ('{"step": 1, "micro', None),
        ("", None),
    ):
        path.write_text(text)
        assert read_micro_batch(path) == expected


def test_a_rank_that_keeps_no_journal_writes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    journal = NoJournal()
    journal.append({"step": 1})
    journal.cut(0)
    journal.sync()
    assert journal.entries() == []
    journal.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("alien", [b"garbage \xff\xfe\n", b"[1, 2]\n", b'{"step": "2"}\n', b"7\n"])
def test_alien_lines_are_dropped_and_told(tmp_path: Path, alien: bytes) -> None:
    path, told = tmp_path / "journal.jsonl", list[str]()
    write(path, 5)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], alien, *lines[2:]]))
    journal = Journal(path, steps=4, tell=told.append)
    assert [entry["step"] for entry in journal.entries()] == [1, 3, 4]
    journal.append({"step": 5})
    journal.close()
    assert steps(path) == [1, 3, 4, 5]
    assert len(told) == 1
    assert told[0].startswith("journal.jsonl lacks 1 of 4 steps")


def test_lines_are_kept_by_their_step_where_some_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 4, 5, 6)))
    Journal(path, steps=5).close()
    assert steps(path) == [1, 4, 5]


def test_a_whole_journal_is_not_talked_about(tmp_path: Path) -> None:
    path, told = tmp_path / "journal.jsonl", list[str]()
    write(path, 5)
    Journal(path, steps=5, tell=told.append).close()
    assert told == []


def test_a_folder_in_the_place_of_a_journal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="is a folder: remove it"):
        Journal(tmp_path, steps=0)


def test_the_final_loss_is_the_mean_of_the_last_tenth() -> None:
    entries: list[dict[str, Any]] = [{"loss": float(step)} for step in range(20)]
    assert final_loss(entries) == 18.5
    assert final_loss([*entries, {"skipped": "x"}]) == 18.5
    assert final_loss([]) == 0.0


def test_where_every_step_was_left_out_there_is_no_final_loss() -> None:
    with pytest.raises(DivergedError, match="all 2 batches were left out, .*: the loss is nan"):
        final_loss([{"step": 1, "skipped": "x"}, {"step": 2, "skipped": "the loss is nan"}])
