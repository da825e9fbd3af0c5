"""`kill -9` at a hundred random moments, also inside a save: the same weights, byte by byte.

Each run is a forked process, so that none begins with seconds of imports.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable

import pytest
import torch

from .conftest import Run, make_config

pytestmark = pytest.mark.slow

KILLS = 100
SAVE_EVERY = 2
DONE = "weights"


def start(run: Run) -> int:
    """Fork a process that trains, leaves its weights in the folder, and ends."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        run.go(clock=time.monotonic)
        (run.folder / DONE).write_bytes(b"".join(run.weights().values()))
        code = 0
    finally:
        os._exit(code)


def finish(run: Run) -> float:
    """Let a run end by itself; seconds that it took."""
    began = time.monotonic()
    _, status = os.waitpid(start(run), 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return time.monotonic() - began


def last_step(run: Run) -> int:
    return max((int(name[-8:]) for name in run.snapshots() if name[0] != "."), default=0)


def test_a_hundred_kills_change_nothing(make_run: Callable[..., Run]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # a process with running worker threads must not be forked
    try:
        config = make_config(steps=16, save_every=SAVE_EVERY, validate_every=5, ema=0.9)
        unbroken = make_run("unbroken", config=config)
        seconds = finish(unbroken)
        expected = (unbroken.folder / DONE).read_bytes()
        draw, kills, torn, number = random.Random(0), 0, 0, 0
        while kills < KILLS:
            number += 1
            run = make_run(f"broken-{number}", config=config)
            while not (run.folder / DONE).exists():
                if kills == KILLS:
                    finish(run)
                    break
                child = start(run)
                time.sleep(draw.uniform(0, seconds))  # when to kill is what is tried
                os.kill(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
                if os.WIFSIGNALED(status):
                    kills += 1
                    torn += any(name.startswith(".") for name in run.snapshots())
                    if (run.folder / "journal.jsonl").exists():
                        lines = (run.folder / "journal.jsonl").read_bytes().count(b"\n")
                        assert lines - last_step(run) <= SAVE_EVERY
            assert (run.folder / DONE).read_bytes() == expected, f"run {number}"
        assert torn > 0, "no kill came inside a save"
    finally:
        torch.set_num_threads(before)
