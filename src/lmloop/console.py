"""What the command line shows: progress bars on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from lmloop.progress import Progress, Task

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from lmloop.store.lineage import Ancestor
    from lmloop.training.plan import Plan

SECONDS_BETWEEN_LINES = 5.0


def make_progress() -> Progress:
    """Bars on a terminal, plain lines where the output goes elsewhere."""
    return TerminalProgress() if sys.stderr.isatty() else PlainProgress(time.monotonic)


class PlainProgress(Progress):
    """Lines on standard error, at most one every few seconds a task."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def say(self, line: str) -> None:
        """Print one line."""
        print(line, file=sys.stderr, flush=True)

    @contextmanager
    def task(self, name: str, *, total: float | None, unit: str) -> Iterator[Task]:
        """Open a task that prints how far it is."""
        yield _PlainTask(self, name, total, unit, self._clock)


class _PlainTask:
    def __init__(
        self,
        progress: PlainProgress,
        name: str,
        total: float | None,
        unit: str,
        clock: Callable[[], float],
    ) -> None:
        self._progress, self._name, self._total, self._unit = progress, name, total, unit
        self._clock, self._shown = clock, clock()
        self._first: tuple[float, float] | None = None
        """When the first amount was told, and what it was: a resumed run does not begin at 0."""

    def update(self, done: float, *, note: str = "") -> None:
        """Print a line if the last one is some seconds old."""
        now = self._clock()
        self._first = self._first or (now, done)
        if now - self._shown < SECONDS_BETWEEN_LINES:
            return
        self._shown = now
        amount = f"{done:,.0f} {self._unit}".rstrip()
        if self._total:
            amount = f"{done / self._total:4.0%}{self._time_left(now, done, self._total)}"
        self._progress.say(f"{self._name}: {amount}  {note}".rstrip())

    def _time_left(self, now: float, done: float, total: float) -> str:
        assert self._first is not None
        started, begun = self._first
        if done <= begun:
            return ""
        return f", {(now - started) * (total - done) / (done - begun):.0f} s left"


class TerminalProgress(Progress):
    """Bars with rate and time left, drawn by rich."""

    def say(self, line: str) -> None:
        """Print one line that stays."""
        print(line, file=sys.stderr, flush=True)

    @contextmanager
    def task(self, name: str, *, total: float | None, unit: str) -> Iterator[Task]:
        """Open a bar."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description:<16}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Bars(*columns, console=Console(stderr=True)) as bars:
            yield _TerminalTask(bars, bars.add_task(name, total=total, note=""), unit)


class _TerminalTask:
    def __init__(self, bars: Bars, task: TaskID, unit: str) -> None:
        self._bars, self._task, self._unit = bars, task, unit

    def update(self, done: float, *, note: str = "") -> None:
        """Move the bar."""
        note = note or (f"{done:,.0f} {self._unit}" if self._unit else "")
        self._bars.update(self._task, completed=done, note=note)


def show_ancestry(ancestor: Ancestor) -> None:
    """Print the tree from an artifact back to its raw files; what is drawn once is then named."""
    from rich.console import Console
    from rich.tree import Tree

    drawn: set[Ancestor] = set()

    def grow(tree: Tree, node: Ancestor) -> None:
        for parent in node.parents:
            if parent.parents and parent in drawn:
                tree.add(_label(replace(parent, detail="see above")))
            else:
                drawn.add(parent)
                grow(tree.add(_label(parent)), parent)

    root = Tree(_label(ancestor))
    grow(root, ancestor)
    Console(highlight=False).print(root)


def _label(node: Ancestor) -> str:
    from rich.markup import escape

    detail = f"  [dim]{escape(node.detail)}[/dim]" if node.detail else ""
    return f"[bold]{escape(node.label)}[/bold]{detail}"


def show_plan(plan: Plan) -> None:
    """Print what a recipe will cost."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(
        f"{plan.parameters / 1e6:.2f} M parameters, "
        f"checkpoint {plan.checkpoint_bytes / 1e6:.1f} MB, "
        f"{plan.cache_bytes_per_token / 1e3:.1f} kB of cache a token"
    )
    console.print(
        f"text {plan.text_bytes / 1e6:.1f} MB, about {plan.text_tokens / 1e6:.1f} M tokens; "
        f"measured here {plan.tokens_per_second:,.0f} tokens/s, "
        f"{plan.flops_per_second / 1e9:,.0f} GFLOP/s"
    )
    table = Table()
    for column in ("stage", "time", "steps", "tokens", "epochs", "memory"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage in plan.stages:
        parts = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in stage.memory.items())
        table.add_row(
            stage.stage,
            f"{stage.seconds:,.0f} s",
            f"{stage.steps:,}",
            f"{stage.tokens / 1e6:.2f} M",
            f"{stage.epochs:.2f}",
            f"{sum(stage.memory.values()) / 1e6:,.0f} MB ({parts})",
        )
    console.print(table)
