"""The memory of a search: its trials, as they lie in the database beside lmloop's own tables.

Takes: a home, what is searched, and what decides the figure. Gives: a study of Optuna's that goes
on where the last process left it, and its trials as plain records.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from lmloop.config import database_setting
from lmloop.errors import MissingExtraError
from lmloop.pipeline import open_home
from lmloop.store.database import WAIT_SECONDS, database_url
from lmloop.tuning.ranges import Choice, Range, Space, Value

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

PLACE, NOTE = "lmloop_place", "lmloop_note"
"""What lmloop notes of a trial: where it ran, and why it came to nothing."""
LOOKS = 20
"""Shares of a budget at which trials are compared: runs of other lengths and batches as well."""
EARLIEST_LOOK = 5
"""Before that much of the budget nobody is given up: rates that win late begin slowly."""
STARTUP_TRIALS = 4
"""Trials that come to their end before any is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One training of a search."""

    number: int
    state: str
    """`finished`, `pruned`, `failed` (it was refused, or diverged), `broken off` or `running`."""
    values: Mapping[str, Value]
    """By recipe key."""
    value: float | None
    """The figure that it came to; of a pruned one the last that was seen."""
    seconds: float | None
    note: str = ""
    """Why a failed one failed."""


@contextmanager
def open_study(
    home: Path, name: str, *, maximize: bool, seed: int, prune: bool
) -> Iterator[optuna.Study]:
    """The study `name`, new or as it was left; raises `MissingExtraError` without Optuna."""
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError(package="optuna", extra="tune") from error
    optuna.logging.disable_default_handler()
    open_home(home).dispose()
    storage = optuna.storages.RDBStorage(*_database(home))
    pruner = optuna.pruners.MedianPruner(
        n_startup_trials=STARTUP_TRIALS, n_warmup_steps=EARLIEST_LOOK, n_min_trials=2
    )
    try:
        yield optuna.create_study(
            storage=storage,
            study_name=name,
            load_if_exists=True,
            direction="maximize" if maximize else "minimize",
            pruner=pruner if prune else optuna.pruners.NopPruner(),
            sampler=optuna.samplers.TPESampler(seed=seed),
        )
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _database(home: Path) -> tuple[str, dict[str, object]]:
    """URL and options of the same database that `open_home` opens."""
    url = sa.make_url(database_setting() or database_url(home))
    if url.get_backend_name() == "sqlite":
        wait = {"timeout": WAIT_SECONDS}
        return url.render_as_string(hide_password=False), {"connect_args": wait}
    url = url.set(drivername="postgresql+psycopg")
    wait = {"connect_timeout": WAIT_SECONDS}
    text = url.render_as_string(hide_password=False)
    return text, {"pool_pre_ping": True, "connect_args": wait}


def place_of(home: Path) -> str:
    """Machine and home: a search whose database is elsewhere may run in several places."""
    return f"{platform.node()}:{home}"


def retire_dead(study: optuna.Study, place: str) -> list[int]:
    """Mark trials of this place that nobody is at any more, and queue their values again.

    Only for whoever holds the lock of the search. Gives the trials' numbers.
    """
    from optuna.trial import TrialState

    dead = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if trial.user_attrs.get(PLACE) == place
    ]
    for trial in dead:
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return [trial.number for trial in dead]


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space in Optuna's words."""
    return {key: _distribution(values) for key, values in space.items()}


def _distribution(values: Range | Choice) -> BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(values, Choice):
        return CategoricalDistribution(values.values)
    if not values.is_whole:
        return FloatDistribution(values.low, values.high, log=values.log, step=values.step)
    return IntDistribution(
        int(values.low), int(values.high), log=values.log, step=int(values.step or 1)
    )


def settle(space: Space, drawn: Mapping[str, Value]) -> dict[str, Value]:
    """What was drawn, as it is trained with, in the order that was asked for."""
    return {key: space[key].settle(drawn[key]) for key in space if key in drawn}


def read_trials(study: optuna.Study, space: Space) -> list[Trial]:
    """Every trial that was begun, in order."""
    from optuna.trial import TrialState

    names = {
        TrialState.COMPLETE: "finished",
        TrialState.PRUNED: "pruned",
        TrialState.FAIL: "broken off",
        TrialState.RUNNING: "running",
    }
    return [
        Trial(
            number=each.number + 1,
            state="failed" if NOTE in each.user_attrs else names[each.state],
            values=settle(space, each.params),
            value=each.value,
            seconds=None if each.duration is None else each.duration.total_seconds(),
            note=each.user_attrs.get(NOTE, ""),
        )
        for each in study.get_trials(deepcopy=False)
        if each.state in names
    ]


def measure_importance(study: optuna.Study, space: Space) -> dict[str, float]:
    """Share of each key in what tells good trials from bad ones, largest first; sums to 1.

    PED-ANOVA (Watanabe, Bansal & Hutter, 2023), which needs no forest of trees. Empty where too few
    trials have come to their end.
    """
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len({each.value for each in finished}) < STARTUP_TRIALS:
        return {}
    evaluator = PedAnovaImportanceEvaluator()
    return get_param_importances(study, evaluator=evaluator, params=list(space))
