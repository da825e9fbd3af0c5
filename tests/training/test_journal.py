"""A line a step, and no line more than the snapshot knows."""

from __future__ import annotations

import builtins
import json
import os
from pathlib import Path
from typing import Any

import pytest

from lmloop.training.journal import Journal, NoJournal, read_micro_batch


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
