"""A run that is asked to end: the first SIGTERM lets it save, a second one ends it at once.

Takes: this process's signals. Gives: an event that a run looks at; or an end that none disturbs.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def watch_for_sigterm() -> Iterator[threading.Event]:
    """Meanwhile the first SIGTERM sets the event; whoever has a handler of their own keeps it."""
    asked = threading.Event()
    if not _is_ours():
        yield asked
        return

    def note(number: int, frame: object) -> None:
        asked.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def end_undisturbed() -> None:
    """Let no SIGTERM end this process any more, unless somebody has a handler of their own.

    `torchrun` sends one to all as soon as a rank has ended. The others are then on their way out as
    well, and the first has to tell why.
    """
    if _is_ours():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _is_ours() -> bool:
    """Whether SIGTERM has no handler, and this thread may give it one."""
    in_main = threading.current_thread() is threading.main_thread()
    return in_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
