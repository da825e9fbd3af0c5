"""The journal of a run: one JSON line a step, cut back to the snapshot that a run resumes from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class NoJournal:
    """The journal of a rank that keeps none: the first one's is the run's."""

    def cut(self, steps: int) -> None:
        """Do nothing."""

    def entries(self) -> list[dict[str, Any]]:
        """No lines."""
        return []

    def append(self, entry: Mapping[str, Any]) -> None:
        """Do nothing."""

    def sync(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Journal:
    """Appends lines; a line torn by a crash is dropped on the next opening."""

    def __init__(self, path: Path, *, steps: int) -> None:
        """Open the journal with the first `steps` whole lines kept."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._stream = path, path.open("a+", encoding="utf-8")
        self.cut(steps)

    def cut(self, steps: int) -> None:
        """Keep the first `steps` whole lines."""
        # Cut in place: a process killed here leaves the old journal or the cut one, never less.
        lines = self._path.read_bytes().splitlines(keepends=True)[:steps]
        self._stream.truncate(sum(len(line) for line in lines if line.endswith(b"\n")))

    def entries(self) -> list[dict[str, Any]]:
        """All lines, read back."""
        return list(map(json.loads, self._path.read_text(encoding="utf-8").splitlines()))

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one step's line and hand it to the operating system."""
        self._stream.write(json.dumps(entry) + "\n")
        self._stream.flush()

    def sync(self) -> None:
        """Bring all lines to the disk (fsync), so that no snapshot knows of more steps."""
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def read_micro_batch(path: Path) -> int | None:
    """Tokens at once in the run that a journal is of; None where it has no whole line of that."""
    try:
        with path.open(encoding="utf-8") as lines:
            return int(json.loads(next(lines))["micro_batch_tokens"])
    except (OSError, StopIteration, ValueError, KeyError, TypeError):
        return None
