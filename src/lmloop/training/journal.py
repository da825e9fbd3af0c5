"""The journal of a run: one JSON line a step, cut back to the snapshot that a run resumes from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmloop.errors import DivergedError, TrainingError
from lmloop.store.artifact import write_whole
from lmloop.store.disk import refuse_full_disk

JOURNAL = "journal.jsonl"
"""Its name in the folder of a run and, when that is over, beside the weights."""


class NoJournal:
    """The journal of a rank that keeps none: the first one's is the run's."""

    def cut(self, steps: int) -> int:
        """Do nothing."""
        return 0

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
    """Appends lines; what a crash or another hand left unreadable is dropped on opening."""

    def __init__(
        self, path: Path, *, steps: int, tell: Callable[[str], None] | None = None
    ) -> None:
        """Open the journal with the lines of the first `steps` steps kept.

        `tell` gets a line where some of them are lost. Raises `TrainingError` where a folder lies
        at the path.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        try:
            # Without a buffer nothing waits for a disk that was full to be written again.
            self._stream = path.open("a+b", buffering=0)
        except IsADirectoryError as error:
            raise TrainingError(
                f"{path} is a folder: remove it, a run keeps its journal there"
            ) from error
        lost = steps - self.cut(steps)
        if lost and tell is not None:
            tell(
                f"{path.name} lacks {lost} of {steps} steps, whose lines were damaged or removed: "
                "the run goes on, but its journal cannot be replayed"
            )

    def cut(self, steps: int) -> int:
        """Keep the lines of the first `steps` steps; give how many there are."""
        found = self._path.read_bytes()
        kept, last = [], 0
        for line in found.splitlines(keepends=True):
            step = _read_step(line)
            if last < step <= steps:
                kept.append(line)
                last = step
        whole = b"".join(kept)
        if found.startswith(whole):
            # In place: a process killed here leaves the old journal or the cut one, never less.
            self._stream.truncate(len(whole))
            return len(kept)
        with write_whole(self._path) as stream:
            stream.write(whole)
        self._stream.close()
        self._stream = self._path.open("a+b", buffering=0)
        return len(kept)

    def entries(self) -> list[dict[str, Any]]:
        """All lines, read back."""
        return list(map(json.loads, self._path.read_text(encoding="utf-8").splitlines()))

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one step's line and hand it to the operating system."""
        line = (json.dumps(entry) + "\n").encode()
        with refuse_full_disk(self._path):
            while line:
                line = line[self._stream.write(line) :]

    def sync(self) -> None:
        """Bring all lines to the disk (fsync), so that no snapshot knows of more steps."""
        with refuse_full_disk(self._path):
            os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def _read_step(line: bytes) -> int:
    """The number of the step that a line is of; 0 where it is no whole line of a journal."""
    try:
        step = json.loads(line)["step"] if line.endswith(b"\n") else 0
        return step if isinstance(step, int) else 0
    except (ValueError, LookupError, TypeError, RecursionError):
        return 0


def final_loss(entries: Sequence[Mapping[str, Any]]) -> float:
    """Mean loss of the last tenth of the steps, those before a resumption included.

    Raises `DivergedError` where every step was left out.
    """
    losses = [float(entry["loss"]) for entry in entries if "loss" in entry]
    if entries and not losses:
        raise DivergedError(
            f"all {len(entries)} batches were left out, and nothing was learnt: "
            f"{entries[-1].get('skipped')}; lower matrix_learning_rate or learning_rate"
        )
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / max(1, len(tail))


def read_micro_batch(path: Path) -> int | None:
    """Tokens at once in the run that a journal is of; None where it has no whole line of that."""
    try:
        with path.open(encoding="utf-8") as lines:
            return int(json.loads(next(lines))["micro_batch_tokens"])
    except (OSError, StopIteration, ValueError, KeyError, TypeError):
        return None
