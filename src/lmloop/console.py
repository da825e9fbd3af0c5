"""What the command line shows: progress bars on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from textwrap import shorten
from typing import TYPE_CHECKING

from lmloop.errors import UsageError
from lmloop.progress import Progress, Task

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from lmloop.monitoring.summary import Signal, Summary
    from lmloop.monitoring.traffic import Percentiles, Traffic
    from lmloop.store.catalogue import Entry
    from lmloop.store.garbage import Collected
    from lmloop.store.lineage import Ancestor
    from lmloop.store.reindex import Counts
    from lmloop.tokens.vectors import WordVectors
    from lmloop.updating.review import Review
    from lmloop.updating.rollback import RolledBack

SECONDS_BETWEEN_LINES = 5.0
SHOWN_DROPPED = 10
"""Exchanges that rules drop which a list of reviews shows; of the others it tells the number."""


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


def show_ready(address: str) -> None:
    """Say where the server is, at once, also into a pipe."""
    print(f"\nReady: chat at {address} (Ctrl-C stops the server)\n", flush=True)


def show_page(address: str) -> None:
    """Say where a page is, at once, also into a pipe."""
    print(f"\nThe page is at {address} (Ctrl-C stops it)\n", flush=True)


def show_catalogue(entries: Sequence[Entry]) -> None:
    """Print a line for each of the weights that can be pulled: name, size, licence, what it is."""
    rows = [(each.name, f"{each.bytes / 1e6:.1f} MB", each.licence, each.what) for each in entries]
    names, sizes, licences = (max(len(row[at]) for row in rows) for at in range(3))
    for name, size, licence, what in rows:
        print(f"{name:<{names}}  {size:>{sizes}}  {licence:<{licences}}  {what}")


def show_vectors(
    vectors: WordVectors, *, nearest: Sequence[str], analogies: Sequence[str], count: int
) -> None:
    """Print neighbours and analogies, a line a word with its cosine.

    Raises `UsageError` where a word is unknown or an analogy is not three words; then nothing is
    printed.
    """
    found = [vectors.nearest(word, count) for word in nearest]
    for analogy in analogies:
        words = analogy.split()
        if len(words) != 3:
            raise UsageError(f'"{analogy}" is no analogy: give three words, as "man king woman"')
        first, second, third = words
        found.append(vectors.analogy(first, second, third, count))
    for asked, answers in zip((*nearest, *analogies), found, strict=True):
        print(asked)
        for word, cosine in answers:
            print(f"  {cosine:6.3f}  {word}")


def show_rollback(rolled: RolledBack) -> None:
    """Print which model is live again, and whether the servers have followed."""
    told = f"{rolled.name}: live is {rolled.fingerprint[:12]} (generation {rolled.generation})"
    if not rolled.servers:
        print(f"{told}; no server is running")
    elif rolled.waiting:
        print(f"{told}; {rolled.waiting} of {rolled.servers} servers have not followed yet")
    else:
        print(f"{told}; served after {rolled.seconds:.2f} s")


def show_collected(collected: Collected, *, dry_run: bool) -> None:
    """Print what was removed, or would be, and what stays.

    Raises `UsageError` where that is more than was allowed.
    """
    for piece in collected.removed:
        print(piece)
    print(
        f"{'would free' if dry_run else 'freed'} {collected.freed / 1e6:.1f} MB, "
        f"{collected.bytes / 1e6:.1f} MB stay"
    )
    if collected.excess:
        largest = "; ".join(str(piece) for piece in collected.kept[:3])
        raise UsageError(
            f"what has to stay is {collected.excess / 1e6:.1f} MB above --max-size; "
            f"the largest: {largest}"
        )


def show_reindexed(counts: Counts) -> None:
    """Print what a rebuilt index has, and what it had to leave out or give up."""
    for line in counts.left_out:
        print(f"left out: {line}")
    print(f"{counts.artifacts} artifacts in the index")
    for title, rows in (("restored", counts.restored), ("given up", counts.given_up)):
        if rows:
            print(f"{title}: {', '.join(rows)}")


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


def show_reviews(reviews: Sequence[Review]) -> None:
    """Print what waits for a review in full, and what the rules drop anyway in a few lines."""
    from rich.console import Console

    from lmloop.updating.review import SHOWN_ID

    console = Console(highlight=False, markup=False, soft_wrap=True)
    waiting = [each for each in reviews if each.dropped is None]
    for each in waiting:
        turns = f", after {each.earlier_turns} earlier turns" if each.earlier_turns else ""
        console.print(f"{each.id[:SHOWN_ID]}  user {each.user or 'unknown'}{turns}", style="bold")
        console.print(f"  asked      {each.question}")
        console.print(f"  answered   {each.answer}")
        console.print(f"  correction {each.correction}" if each.correction else "  rated up")
    dropped = Counter(each.dropped for each in reviews if each.dropped is not None)
    for each in [each for each in reviews if each.dropped is not None][:SHOWN_DROPPED]:
        text = each.answer if each.correction is None else each.correction
        shown = f"user {each.user or 'unknown'}: {text}"
        console.print(f"{each.id[:SHOWN_ID]}  dropped by {each.dropped}, {shorten(shown, 60)}")
    told = ", ".join(f"{reason} {count:,}" for reason, count in dropped.most_common())
    console.print(f"{len(waiting):,} wait for a decision: lmloop review ID… --accept or --reject")
    if told:
        console.print(f"{dropped.total():,} more are dropped by the rules: {told}")


def show_monitor(summary: Summary) -> None:
    """Print a summary: traffic and times, versions, signals beside their reference, drift."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    minutes = summary.seconds / 60
    console.print(f"{summary.name}, last {minutes:,.0f} minutes", style="bold")
    if summary.empty:
        console.print("nothing has been served under this name yet")
        return
    _show_traffic(console, summary.traffic, minutes)
    if summary.signals:
        _show_table(
            console,
            ("signal", "now", "reference", "effect", "p", ""),
            [_signal_row(signal) for signal in summary.signals],
        )
    told = ", ".join(f"{code} {share:.0%}" for code, share in summary.languages.items())
    console.print(f"languages: {told or 'unknown'}")
    changed = sum(bool(window.changed) for window in summary.windows)
    size = summary.window_requests
    looks = ": name the recipe to have it looked at" if summary.waiting >= size else ""
    console.print(
        f"drift: {len(summary.windows)} windows, {changed} changed; "
        f"{min(summary.waiting, size)} of {size} requests for the next{looks}"
    )
    for alarm in summary.alarms:
        signals = ", ".join(alarm.data["signals"])
        console.print(f"ALARM {_moment(alarm.created)}: {signals}", style="bold red")
    for server in summary.servers:
        note = f", {server.note}" if server.note else ""
        console.print(
            f"server {server.address}: {server.live}, generation {server.generation}, candidate "
            f"{server.candidate_state}{note}; heard {server.silent_seconds:.0f} s ago"
        )
    for event in summary.events:
        console.print(f"{_moment(event.created)}  {event.kind}")


def _show_traffic(console: Console, traffic: Traffic, minutes: float) -> None:
    ends = ", ".join(f"{reason} {count:,}" for reason, count in traffic.endings.items())
    console.print(
        f"{traffic.requests:,} requests ({traffic.requests / minutes:,.1f} a minute): {ends}; "
        f"{traffic.prompt_tokens:,} tokens read, {traffic.completion_tokens:,} made"
    )
    console.print(
        f"rated {traffic.up:,} up, {traffic.down:,} down, {traffic.corrections:,} corrected"
    )
    _show_table(
        console,
        ("time", "median", "95 %", "99 %"),
        [
            ("first token", *_times(traffic.first_token)),
            ("between tokens", *_times(traffic.between_tokens)),
            ("whole answer", *_times(traffic.total)),
        ],
    )
    _show_table(
        console,
        ("role", "weights", "requests", "failed", "up", "down"),
        [
            (each.arm, each.weights, *map(str, (each.requests, each.failed, each.up, each.down)))
            for each in traffic.arms
        ],
    )


def _show_table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table

    table = Table()
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _times(seconds: Percentiles | None) -> tuple[str, str, str]:
    if seconds is None:
        return "-", "-", "-"
    median, p95, p99 = (
        f"{1000 * each:,.1f} ms" for each in (seconds.median, seconds.p95, seconds.p99)
    )
    return median, p95, p99


def _signal_row(signal: Signal) -> tuple[str, ...]:
    now, reference = (
        "-" if value is None else f"{value:,.3g}" for value in (signal.now, signal.reference)
    )
    if not signal.points:
        return signal.name, now, reference, "-", "-", ""
    last = signal.points[-1]
    changed = "changed" if last.changed else ""
    return signal.name, now, reference, f"{last.effect:.2f}", f"{last.p:.2g}", changed


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
