"""A full disk and a place that bars writing are told as what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lmloop.errors import ArtifactError, DiskFullError
from lmloop.store.disk import FULL, free_space, refuse_barred, refuse_full_disk


@pytest.mark.parametrize("number", FULL)
def test_a_full_disk_is_told_with_the_file_and_the_room(tmp_path: Path, number: int) -> None:
    with pytest.raises(DiskFullError) as caught, refuse_full_disk(tmp_path / "a" / "b"):
        raise OSError(number, os.strerror(number))
    told = str(caught.value)
    assert told.startswith(f"no space is left for {tmp_path / 'a' / 'b'} ({os.strerror(number)}, ")
    assert " MB free): make room or choose another --home" in told
    assert "\n" not in told


def test_the_file_that_the_system_names_is_told(tmp_path: Path) -> None:
    named = str(tmp_path / "named")
    with pytest.raises(DiskFullError, match="named"), refuse_full_disk(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), named)


def test_a_library_that_says_so_in_words_is_understood(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match="File too large"), refuse_full_disk(tmp_path):
        raise RuntimeError("I/O error: File too large (os error 27)")
    with pytest.raises(DiskFullError, match="database or disk"), refuse_full_disk(tmp_path):
        raise RuntimeError("(sqlite3.OperationalError) database or disk is full")


@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O"), ArtifactError("x"), ValueError("y")])
def test_other_errors_are_none_of_the_disk(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, refuse_full_disk(tmp_path):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOENT, errno.ENAMETOOLONG])
def test_a_place_where_nothing_can_be_made_is_told(number: int) -> None:
    told = "folder x cannot be made .*: choose another --home"
    with pytest.raises(ArtifactError, match=told), refuse_barred("folder x"):
        raise OSError(number, os.strerror(number))


def test_a_full_disk_is_no_barred_place() -> None:
    with pytest.raises(OSError, match="No space left"), refuse_barred("folder x"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_room_is_counted_where_a_file_would_lie(tmp_path: Path) -> None:
    assert free_space(tmp_path / "not" / "yet") == pytest.approx(free_space(tmp_path), rel=0.1)
