"""What a disk refuses, told as what to do: no room, or no place to write at.

Takes: what is written, and where. Gives: errors of lmloop in place of the system's.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lmloop.errors import ArtifactError, DiskFullError, LmloopError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a system says where a file cannot grow: the disk is full, or a quota or limit is met."""

SQLITE_FULL = "database or disk is full"


@contextmanager
def refuse_full_disk(place: Path) -> Iterator[None]:
    """Turn what the system says of a full disk into a `DiskFullError` that names file and room.

    `place` is what is written, where the error does not tell.
    """
    try:
        yield
    except LmloopError:
        raise
    except Exception as error:
        number = getattr(error, "errno", None)
        # Libraries written in Rust and C++ say so in words only.
        said = [
            os.strerror(each) for each in FULL if number == each or os.strerror(each) in str(error)
        ]
        said += [SQLITE_FULL] if SQLITE_FULL in str(error) else []
        if not said:
            raise
        place = Path(getattr(error, "filename", None) or place)
        raise DiskFullError(
            f"no space is left for {place} ({said[0]}, {free_space(place) / 1e6:.1f} "
            "MB free): make room or choose another --home; what was there before is as it was"
        ) from error


@contextmanager
def refuse_barred(what: str) -> Iterator[None]:
    """Turn what the system says of a place to which nothing can be written into `ArtifactError`."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise
        raise ArtifactError(
            f"{what} cannot be made ({error.strerror}): choose another --home"
        ) from error


def free_space(place: Path) -> int:
    """Bytes free on the disk on which a file lies or would lie."""
    return shutil.disk_usage(next(path for path in (place, *place.parents) if path.exists())).free
