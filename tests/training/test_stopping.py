"""SIGTERM while a run goes on."""

from __future__ import annotations

import os
import signal
import threading

from lmloop.training.stopping import end_undisturbed, watch_for_sigterm


def test_the_first_sigterm_is_noted_and_the_next_would_end_the_process() -> None:
    with watch_for_sigterm() as asked:
        assert not asked.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.wait(5)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_whoever_has_a_handler_keeps_it() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with watch_for_sigterm() as asked:
            os.kill(os.getpid(), signal.SIGTERM)
        assert (heard, asked.is_set()) == ([signal.SIGTERM], False)
        end_undisturbed()
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_end_that_nobody_disturbs() -> None:
    try:
        end_undisturbed()
        os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_in_another_thread_nothing_is_touched() -> None:
    found: list[object] = []

    def look() -> None:
        with watch_for_sigterm():
            found.append(signal.getsignal(signal.SIGTERM))
        end_undisturbed()
        found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join(5)
    assert found == [signal.SIG_DFL] * 2
