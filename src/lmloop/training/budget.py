"""How far a run is: by steps, by the clock, or as an earlier run's journal says.

A step budget is reproducible bit for bit. A clock's decisions are journaled a step, so that the run
can be resumed, and replayed exactly.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from lmloop.errors import TrainingError
from lmloop.learning import TrainConfig
from lmloop.sections import parse_duration

LEAST_STEPS = 2
"""Of a run by the clock."""


class Budget(Protocol):
    """Tells which share of a run is spent."""

    def share(self, step: int) -> float:
        """Spent share (0 to 1) before step number `step`, counted from 0; 1 means finished."""

    def elapsed(self) -> float:
        """Seconds spent so far, earlier parts of a resumed run included."""


class StepBudget:
    """A number of steps."""

    def __init__(self, steps: int, *, clock: Callable[[], float], before: float) -> None:
        self._steps, self._clock, self._start = steps, clock, clock() - before

    def share(self, step: int) -> float:
        """Done steps over all steps."""
        return min(1.0, step / self._steps)

    def elapsed(self) -> float:
        """Seconds since the run began."""
        return self._clock() - self._start


class ClockBudget:
    """A number of seconds; everything between the first and the last step counts."""

    def __init__(self, seconds: float, *, clock: Callable[[], float], before: float) -> None:
        self._seconds, self._clock, self._start = seconds, clock, clock() - before

    def share(self, step: int) -> float:
        """Elapsed seconds over all seconds."""
        return min(1.0, self.elapsed() / self._seconds)

    def elapsed(self) -> float:
        """Seconds since the run began."""
        return self._clock() - self._start


class ReplayBudget:
    """The shares that an earlier run journaled: gives the same weights again."""

    def __init__(self, journal: Path, *, clock: Callable[[], float], before: float) -> None:
        try:
            entries = list(map(json.loads, journal.read_text(encoding="utf-8").splitlines()))
            self._shares = [float(entry["share"]) for entry in entries]
            if [entry["step"] for entry in entries] != list(range(1, len(entries) + 1)):
                raise ValueError("it does not hold every step once and in order")
            if not entries:
                raise ValueError("it is empty")
            if not all(0 <= share < 1 for share in self._shares):
                raise ValueError("a share of the budget is not from 0 to 1")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"journal {journal} cannot be replayed: {error}") from error
        self._clock, self._start = clock, clock() - before

    def share(self, step: int) -> float:
        """What the journal says of this step; 1 behind its end."""
        return self._shares[step] if step < len(self._shares) else 1.0

    def elapsed(self) -> float:
        """Seconds since the run began."""
        return self._clock() - self._start


def make_budget(config: TrainConfig, *, clock: Callable[[], float], before: float) -> Budget:
    """The budget that a recipe's section asks for; `before` are seconds of earlier parts."""
    if config.replay is not None:
        return ReplayBudget(Path(config.replay), clock=clock, before=before)
    if config.steps is not None:
        return StepBudget(config.steps, clock=clock, before=before)
    assert config.budget is not None
    return ClockBudget(parse_duration(config.budget), clock=clock, before=before)


def require_steps(config: TrainConfig, steps: int) -> None:
    """Raise `TrainingError` where a wall clock was over before anything could be learnt.

    The first step stands at the very beginning of the warm-up, where the rates are next to zero.
    """
    if config.budget is not None and steps < LEAST_STEPS:
        raise TrainingError(
            f"budget = {config.budget!r} was over after {steps} of at least {LEAST_STEPS} steps, "
            f"and nothing was learnt: give more time, or lower batch_tokens = {config.batch_tokens}"
        )
