"""How long work reports itself: a stage opens a task, advances it, and never prints.

Takes: what a stage does and how far it is. Gives: a `Progress` that the command line draws as a
bar with rate and time left, and that library callers leave silent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

Watch = Callable[[Mapping[str, Any]], None]
"""Is told each line of a run's journal; may end the run with a `PrunedError`."""


def unwatched(entry: Mapping[str, Any]) -> None:
    """A watch that nobody keeps."""


class Task(Protocol):
    """One piece of work under way."""

    def update(self, done: float, *, note: str = "") -> None:
        """Set how much is done (in the task's unit); `note` is shown beside the bar."""


class Progress(Protocol):
    """Where tasks are drawn."""

    def say(self, line: str) -> None:
        """Show one line that stays."""

    def task(self, name: str, *, total: float | None, unit: str) -> AbstractContextManager[Task]:
        """Open a task of `total` units; None where the total is unknown."""
        ...


class _SilentTask:
    def update(self, done: float, *, note: str = "") -> None:
        """Say nothing."""


class Silent:
    """Progress that shows nothing: the default of every library function."""

    def say(self, line: str) -> None:
        """Say nothing."""

    @contextmanager
    def task(self, name: str, *, total: float | None, unit: str) -> Iterator[Task]:
        """Open a task that nobody sees."""
        yield _SilentTask()
