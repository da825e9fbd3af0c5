"""The Python face of the verbs that look after a served model: watch, review, update, roll back.

They are to `lmloop.circle` what `lmloop.api` is to the pipeline.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmloop.api import existing_database
from lmloop.circle import Circle
from lmloop.config import home_directory, load_recipe
from lmloop.errors import UsageError
from lmloop.progress import Progress, Silent
from lmloop.recipe import Recipe
from lmloop.sections import parse_size
from lmloop.store.artifact import ArtifactStore
from lmloop.store.registry import Registry, find_live, mirror_folder
from lmloop.upkeep import CollectConfig, MonitorConfig

if TYPE_CHECKING:
    import sqlalchemy as sa

    from lmloop.circle import Turned
    from lmloop.monitoring.summary import Summary
    from lmloop.store.forget import Forgotten
    from lmloop.store.garbage import Collected
    from lmloop.store.reindex import Counts
    from lmloop.store.runs import Run
    from lmloop.updating.review import Review
    from lmloop.updating.rollback import RolledBack


def update(
    recipe: str | Path,
    *,
    home: str | Path | None = None,
    progress: Progress | None = None,
    rollout: bool = True,
    **overrides: Any,
) -> Turned:
    """One round of the circle now: collect, train, judge, and with `rollout` take it to the users.

    Raises `UpdateError` where there is not enough to learn from.
    """
    with _open_circle(recipe, home, progress, overrides) as circle:
        return circle.turn(cause="hand", rollout=rollout)


def loop(
    recipe: str | Path,
    *,
    home: str | Path | None = None,
    progress: Progress | None = None,
    once: bool = False,
    **overrides: Any,
) -> None:
    """Turn the circle by schedule, alarm and feedback until interrupted; `once` looks once."""
    with _open_circle(recipe, home, progress, overrides) as circle:
        circle.run(once=once)


def monitor(
    name: str | Path | None = None, *, home: str | Path | None = None, seconds: float = 3600.0
) -> Summary:
    """What a model's traffic of the last `seconds` is like: counts, times, ratings, signals, drift.

    `name` is a live model, or a recipe: then windows that are new are looked at for drift first.
    """
    from lmloop.monitoring.summary import summarise

    recipe = _read_recipe(name)
    if recipe is not None:
        with closing(Circle(recipe, home=home_directory(home), progress=Silent())) as circle:
            circle.check_drift()
    with _model(name, recipe, home) as (database, model):
        config = MonitorConfig() if recipe is None else recipe.monitor
        return summarise(database, name=model, config=config, seconds=seconds)


def rollback(name: str | None = None, *, home: str | Path | None = None) -> RolledBack:
    """Make the previous model of `name` live again, and wait for the servers to follow."""
    from lmloop.updating.rollback import roll_back

    with _model(name, None, home) as (database, model):
        return roll_back(Registry(database, model, mirror=mirror_folder(home_directory(home))))


def review(name: str | Path | None = None, *, home: str | Path | None = None) -> list[Review]:
    """Rated and corrected exchanges of a model, or of a recipe's, that nobody has decided upon."""
    from lmloop.updating.review import pending

    recipe = _read_recipe(name)
    with _model(name, recipe, home) as (database, model):
        config = CollectConfig() if recipe is None else recipe.collect
        return pending(database, name=model, config=config)


def decide(
    ids: Sequence[str] | None,
    *,
    accept: bool,
    reason: str | None = None,
    name: str | Path | None = None,
    home: str | Path | None = None,
) -> list[Review]:
    """Accept or reject exchanges by the beginnings of their ids; None means all that wait."""
    from lmloop.updating.review import decide as work

    recipe = _read_recipe(name)
    with _model(name, recipe, home) as (database, model):
        return work(
            database,
            ids,
            name=model,
            config=CollectConfig() if recipe is None else recipe.collect,
            state="accepted" if accept else "rejected",
            reason=reason,
        )


def gc(
    *, home: str | Path | None = None, max_size: str | None = None, dry_run: bool = False
) -> Collected:
    """Remove what neither a model of the registry nor its ancestry needs, down to `max_size`."""
    from lmloop.store.garbage import collect_garbage

    try:
        bound = None if max_size is None else parse_size(max_size)
    except ValueError as error:
        raise UsageError(str(error)) from error
    with existing_database(home) as database:
        return collect_garbage(home_directory(home), database, max_bytes=bound, dry_run=dry_run)


def reindex(*, home: str | Path | None = None) -> Counts:
    """Rebuild the index of artifacts and the registry's rows from what lies in the home."""
    from lmloop.store.reindex import reindex as work

    with existing_database(home) as database:
        return work(home_directory(home), database)


def runs(*, home: str | Path | None = None, name: str | None = None, most: int = 20) -> list[Run]:
    """The trainings begun last, the newest first; one that ended without a word is `lost`."""
    from lmloop.store.runs import is_alive, read_runs

    store, now = ArtifactStore(home_directory(home)), time.time()
    with existing_database(home) as database:
        found = read_runs(database, name=name, most=most)
    return [
        replace(run, state="lost")
        if run.state == "running" and not is_alive(run, is_held=not store.is_free(run.id), now=now)
        else run
        for run in found
    ]


def forget(user: str, *, home: str | Path | None = None) -> Forgotten:
    """Delete a user's requests, ratings and what was collected of them; see `Forgotten`."""
    from lmloop.store.forget import forget as work

    with existing_database(home) as database:
        return work(home_directory(home), database, user)


def _open_circle(
    recipe: str | Path,
    home: str | Path | None,
    progress: Progress | None,
    overrides: Mapping[str, Any],
) -> closing[Circle]:
    checked = load_recipe(recipe, overrides)
    return closing(Circle(checked, home=home_directory(home), progress=progress or Silent()))


def _read_recipe(name: str | Path | None) -> Recipe | None:
    """The recipe where `name` is a TOML file's, else None."""
    return load_recipe(name) if name is not None and str(name).endswith(".toml") else None


@contextmanager
def _model(
    name: str | Path | None, recipe: Recipe | None, home: str | Path | None
) -> Iterator[tuple[sa.Engine, str]]:
    """The database and the model's name; `ArtifactError` where no model of this name is live."""
    with existing_database(home) as database:
        wanted = name if recipe is None else recipe.name
        yield database, find_live(database, None if wanted is None else str(wanted)).name
