"""The search for a recipe's best values: trial after trial, each a walk to one stage.

Takes: a recipe, ranges for some of its keys, a number of trials. Gives: the best values. What the
searched keys do not touch is made once. A search that was broken off goes on: finished trials
count, and the one that was under way is begun again from its snapshot.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmloop.auto import complete
from lmloop.config import home_directory, load_recipe
from lmloop.errors import DivergedError, PrunedError, RecipeError, UsageError
from lmloop.pipeline import walk
from lmloop.progress import Progress, Silent, Task
from lmloop.recipe import Recipe
from lmloop.stages import STAGES, Stage
from lmloop.store.artifact import ArtifactStore
from lmloop.tuning.page import write_page
from lmloop.tuning.ranges import Space, Value, parse_space
from lmloop.tuning.trials import (
    LOOKS,
    NOTE,
    PLACE,
    Trial,
    distributions,
    measure_importance,
    open_study,
    place_of,
    read_trials,
    retire_dead,
    settle,
)

if TYPE_CHECKING:
    import optuna

COUNTED = ("finished", "pruned", "failed")
"""States of trials that were had: what was broken off is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What a search has come to."""

    name: str
    metric: str
    maximize: bool
    trials: list[Trial]
    best: Trial
    importance: Mapping[str, float]
    """By key; empty where too few trials have come to their end."""
    page: Path
    """All of this as one HTML file."""

    def toml(self) -> str:
        """The best values as lines to put into the recipe."""
        sections: dict[str, list[str]] = {}
        for key, value in self.best.values.items():
            section, _, name = key.rpartition(".")
            sections.setdefault(section, []).append(f"{name} = {json.dumps(value)}")
        blocks = [
            "\n".join([f"[{section}]"] * bool(section) + lines)
            for section, lines in sorted(sections.items())
        ]
        return "\n\n".join(blocks)


def tune(
    recipe: str | Path,
    *,
    over: Iterable[str],
    trials: int,
    stage: str = "pretrain",
    metric: str | None = None,
    maximize: bool = False,
    prune: bool = True,
    home: str | Path | None = None,
    progress: Progress | None = None,
    **overrides: Any,
) -> Tuned:
    """Search the ranges `over`, such as `"pretrain.learning_rate=1e-4..1e-2:log"`.

    `metric` is a figure of the counts of the artifact that `stage` makes; without a word what that
    stage validates by. The recipe's own values are the first trial where they lie in the ranges.
    Raises `RecipeError` for what cannot be searched, `UsageError` where the metric is not there or
    every trial failed, `MissingExtraError` without Optuna, `BusyError` where another process is at
    the same search.
    """
    if stage not in STAGES:
        raise UsageError(f"--stage {stage} is none: give {', '.join(STAGES)}")
    space = parse_space(over)
    base = complete(load_recipe(recipe, overrides))
    _require_effect(space, STAGES[stage])
    search = _Search(
        recipe=recipe,
        overrides=overrides,
        base=base,
        space=space,
        stage=STAGES[stage],
        metric=metric or _default_metric(base, stage),
        maximize=maximize,
        home=home_directory(home),
        progress=progress or Silent(),
    )
    return search.run(trials, prune=prune and not maximize)


def _require_effect(space: Space, stage: Stage) -> None:
    """Raise `RecipeError` for a key that changes nothing of what `stage` makes."""
    way = _way_to(stage)
    parts = {part for each in way for part in each.sections}
    for key in space:
        if not any(_touches(key, each) for each in way):
            raise RecipeError(
                f"{key} does not change what {stage.name} makes: search keys of "
                f"{', '.join(sorted({part.partition('.')[0] for part in parts}))}, or give "
                "another --stage"
            )


def _touches(key: str, stage: Stage) -> bool:
    """Whether a recipe's key decides what `stage` makes."""
    return key in stage.sections or key.partition(".")[0] in stage.sections


def _way_to(stage: Stage) -> list[Stage]:
    """The stage and all that it needs, in the order of the way."""
    needed = {stage.name}
    for each in reversed(list(STAGES.values())):
        if each.name in needed:
            needed |= set(each.needs)
    return [each for name, each in STAGES.items() if name in needed]


def _default_metric(recipe: Recipe, stage: str) -> str:
    if stage == "evaluate":
        return "bits_per_byte"
    is_in_bytes = stage != "pretrain" or recipe.pretrain.is_scored_in_bytes
    return "validation_bits_per_byte" if is_in_bytes else "validation_loss"


@dataclass(frozen=True, kw_only=True)
class _Search:
    recipe: str | Path
    overrides: Mapping[str, Any]
    base: Recipe
    space: Space
    stage: Stage
    metric: str
    maximize: bool
    home: Path
    progress: Progress

    def run(self, wanted: int, *, prune: bool) -> Tuned:
        """Trials until there are as many as wanted."""
        key = self._key()
        name = f"{self.base.name}/{self.stage.name}/{key[:12]}"
        with (
            ArtifactStore(self.home).lock("tune", key),
            open_study(
                self.home, name, maximize=self.maximize, seed=self.base.seed, prune=prune
            ) as study,
        ):
            dead = retire_dead(study, place_of(self.home))
            if dead:
                told = ", ".join(str(number + 1) for number in dead)
                self.progress.say(f"trial {told} was broken off: its values are taken up again")
            if self._had(study) < wanted:
                self._make_shared()
            while (had := self._had(study)) < wanted:
                self._one(study, number=had + 1, wanted=wanted)
            return self._conclude(study, name)

    def _make_shared(self) -> None:
        """Make what comes before the first stage that the searched keys touch."""
        shared = None
        for stage in _way_to(self.stage):
            if any(_touches(key, stage) for key in self.space):
                break
            shared = stage.name
        if shared is not None:
            walk(self.base, home=self.home, until=shared, progress=self.progress)

    def _key(self) -> str:
        """Hash of what decides the figure, the values that are searched left out."""
        settings: dict[str, Any] = {}
        for stage in _way_to(self.stage):
            settings |= stage.settings(self.base)
            settings[f"{stage.name} from"] = stage.sources(self.base, ArtifactStore(self.home))
        for dotted in self.space:
            section, _, key = dotted.rpartition(".")
            (settings[section] if section else settings).pop(key, None)
        ranges = {key: repr(values) for key, values in self.space.items()}
        text = json.dumps(
            [settings, ranges, self.stage.name, self.metric, self.maximize], sort_keys=True
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def _had(self, study: optuna.Study) -> int:
        return sum(each.state in COUNTED for each in read_trials(study, self.space))

    def _one(self, study: optuna.Study, *, number: int, wanted: int) -> None:
        """One trial, told to the study however it ends."""
        from optuna.samplers import TPESampler
        from optuna.trial import TrialState

        begun = len(study.get_trials(deepcopy=False))
        if not begun:
            self._begin_with_recipe(study)
        # A process that goes on must not draw what the one before it drew.
        study.sampler = TPESampler(seed=self.base.seed + begun)
        trial = study.ask(distributions(self.space))
        trial.set_user_attr(PLACE, place_of(self.home))
        values = settle(self.space, trial.params)
        started = time.monotonic()
        try:
            figure = self._train(trial, values, number=number, title=f"trial {number} of {wanted}")
            study.tell(trial, figure)
            told = f"{self.metric} {figure:.4f}"
        except PrunedError as pruned:
            study.tell(trial, state=TrialState.PRUNED)
            told = str(pruned)
        except (RecipeError, DivergedError) as error:
            trial.set_user_attr(NOTE, str(error))
            study.tell(trial, state=TrialState.PRUNED)
            told = f"failed: {error}"
        except BaseException:
            study.tell(trial, state=TrialState.FAIL)
            study.enqueue_trial(trial.params)
            raise
        shown = "  ".join(f"{key}={value}" for key, value in values.items())
        seconds = time.monotonic() - started
        self.progress.say(f"trial {number} of {wanted}: {told}  ({shown}; {seconds:.0f} s)")

    def _begin_with_recipe(self, study: optuna.Study) -> None:
        """Queue the recipe's own values: what is found then shows what it is better than."""
        data: Any = self.base.model_dump()
        own = {}
        for dotted in self.space:
            value = data
            for part in dotted.split("."):
                value = value[part]
            own[dotted] = value
        if all(self.space[key].allows(value) for key, value in own.items()):
            study.enqueue_trial(own)

    def _train(
        self, trial: optuna.Trial, values: Mapping[str, Value], *, number: int, title: str
    ) -> float:
        """Walk to the stage with these values; the metric of what it makes."""
        recipe = load_recipe(self.recipe, {**self.overrides, **values})
        made = walk(
            recipe,
            home=self.home,
            until=self.stage.name,
            progress=_Titled(self.progress, title),
            watch=_Looks(trial).look,
            trial=number,
        )
        return _read_metric(made.artifacts[self.stage.name].counts, self.metric, self.stage.name)

    def _conclude(self, study: optuna.Study, name: str) -> Tuned:
        trials = read_trials(study, self.space)
        finished = [each for each in trials if each.state == "finished" and each.value is not None]
        if not finished:
            reason = next((each.note for each in reversed(trials) if each.note), "all were pruned")
            raise UsageError(f"none of {len(trials)} trials came to its end; the last: {reason}")
        sign = -1 if self.maximize else 1
        tuned = Tuned(
            name=name,
            metric=self.metric,
            maximize=self.maximize,
            trials=trials,
            best=min(finished, key=lambda each: sign * (each.value or 0.0)),
            importance=measure_importance(study, self.space),
            page=self.home / "tuning" / f"{name.replace('/', '-')}.html",
        )
        write_page(tuned, self.space)
        return tuned


class _Looks:
    """Tells a trial its validation figures at fixed shares of its budget, and ends it early."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial, self._last = trial, (0.0, math.nan)

    def look(self, entry: Mapping[str, Any]) -> None:
        """Between two validations a straight line is drawn; see `lmloop.progress.Watch`."""
        value = entry.get("validation_bpb", entry.get("validation_loss"))
        if value is None:
            return
        (share, before), now = self._last, entry["share"]
        self._last = now, value
        last = math.floor(now * LOOKS)
        # Before the first validation nothing is known, of a trial that was resumed as well.
        first = last if math.isnan(before) else math.floor(share * LOOKS) + 1
        for place in range(max(1, first), last + 1):
            part = 1.0 if math.isnan(before) else (place / LOOKS - share) / (now - share)
            self._trial.report(value if part == 1.0 else before + part * (value - before), place)
            if self._trial.should_prune():
                raise PrunedError(f"pruned at {now:.0%} of the budget, {value:.4f} there")


class _Titled(Progress):
    """Progress of a trial: bars carry its title, and what was made before is not told again."""

    def __init__(self, inner: Progress, title: str) -> None:
        self._inner, self._title = inner, title

    def say(self, line: str) -> None:
        """Pass on what training says; which artifacts there are is the same each time."""
        stage, _, rest = line.partition(": ")
        if stage not in STAGES or not rest.startswith(("made ", "already made")):
            self._inner.say(f"{self._title}: {line}")

    def task(self, name: str, *, total: float | None, unit: str) -> AbstractContextManager[Task]:
        """Open a task that says which trial it is of."""
        return self._inner.task(f"{self._title}: {name}", total=total, unit=unit)


def _read_metric(counts: Mapping[str, Any], metric: str, stage: str) -> float:
    """A figure of an artifact's counts, `a.b` where they are nested; raises `UsageError`."""
    value: Any = counts
    for part in metric.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(
            f"--metric {metric} is no figure of what {stage} makes: it has "
            f"{', '.join(_figures(counts))}"
        )
    if not math.isfinite(value):
        raise DivergedError(f"{metric} is {value}")
    return float(value)


def _figures(counts: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name, value in counts.items():
        if isinstance(value, Mapping):
            found += _figures(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append(prefix + name)
    return found
