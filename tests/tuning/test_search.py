"""The search: what it draws, gives up, takes up again, and finds."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from lmloop.api import existing_database
from lmloop.config import load_recipe
from lmloop.errors import DivergedError, RecipeError, StoppedError, UsageError
from lmloop.recipe import Recipe
from lmloop.store.artifact import ArtifactStore
from lmloop.store.runs import read_runs
from lmloop.tuning import search

from .conftest import BEST_RATE, RATES, Search, figure


def test_the_recipes_own_values_come_first_and_the_best_are_found(searched: Search) -> None:
    tuned = searched.tune(trials=8, prune=False)
    assert [each.state for each in tuned.trials] == ["finished"] * 8
    own = load_recipe(searched.folder / "recipe.toml").pretrain.learning_rate
    assert tuned.trials[0].values == {"pretrain.learning_rate": own}
    assert tuned.best.value == min(each.value or 9 for each in tuned.trials)
    rate = float(tuned.best.values["pretrain.learning_rate"])
    assert tuned.best.value == figure(rate, 1)
    assert BEST_RATE / 3 < rate < BEST_RATE * 3


def test_the_best_values_are_lines_that_the_recipe_takes(searched: Search) -> None:
    over = (RATES, "pretrain.optimizer=muon,adamw", "seed=0..3", "model.qk_norm=true,false")
    tuned = searched.tune(*over, trials=3)
    told = tomllib.loads(tuned.toml())
    for key, value in tuned.best.values.items():
        section, _, name = key.rpartition(".")
        assert (told[section] if section else told)[name] == value
    assert tuned.page.is_file()


def test_what_the_searched_keys_do_not_touch_is_made_once(searched: Search) -> None:
    searched.tune(RATES, "model.num_layers=1..4", trials=4, prune=False)
    assert searched.worked == ["prepare", "tokenize", *["pretrain"] * 4]
    searched.worked.clear()
    searched.tune("finetune.learning_rate=1e-3..1:log", stage="finetune", trials=2, prune=False)
    assert searched.worked == ["pretrain", "finetune", "finetune"]
    searched.worked.clear()
    searched.tune("model.context_length=512,1024", trials=2, prune=False)
    assert searched.worked.count("tokenize") == 1
    assert "prepare" not in searched.worked


def test_a_trial_worse_than_the_median_is_given_up_and_leaves_nothing(searched: Search) -> None:
    tuned = searched.tune(trials=8)
    pruned = [each for each in tuned.trials if each.state == "pruned"]
    assert pruned
    assert any("pruned at 30% of the budget" in line for line in searched.said)
    finished = sum(each.state == "finished" for each in tuned.trials)
    assert len(list(searched.home.glob("artifacts/pretrain-*"))) == finished
    assert list((searched.home / "runs").glob("*")) == []
    for each in pruned:
        rate = float(each.values["pretrain.learning_rate"])
        assert figure(rate, 1) > (tuned.best.value or 0)


def test_the_runs_of_trials_are_told_apart_and_found_by_the_recipes_name(
    searched: Search,
) -> None:
    name = searched.tune(trials=3, prune=False).name.partition("/")[0]
    with existing_database(searched.home) as database:
        found = read_runs(database, name=name)
        assert read_runs(database, name=name[:-1]) == []
    assert [run.name for run in found] == [f"{name}/{number}" for number in (3, 2, 1)]


def test_trials_of_other_lengths_are_compared_at_the_same_shares() -> None:
    class Told:
        def __init__(self) -> None:
            self.seen: list[tuple[int, float]] = []

        def report(self, value: float, step: int) -> None:
            self.seen.append((step, value))

        def should_prune(self) -> bool:
            return False

    trial = Told()
    looks = search._Looks(trial)  # type: ignore[arg-type]
    for share, value in ((0.12, 4.0), (0.13, 3.9), (0.32, 2.0), (0.36, 1.8)):
        looks.look({"share": share, "validation_bpb": value})
        looks.look({"share": share, "loss": 5.0})
    # Between 3.9 at 0.13 and 2.0 at 0.32 a line falls by 0.1 a hundredth.
    expected = [(2, 4.0), (3, 3.7), (4, 3.2), (5, 2.7), (6, 2.2), (7, 1.85)]
    assert [step for step, _ in trial.seen] == [step for step, _ in expected]
    assert [value for _, value in trial.seen] == pytest.approx([value for _, value in expected])


def test_the_same_command_goes_on_with_what_is_missing(searched: Search) -> None:
    first = searched.tune(trials=3, prune=False)
    searched.worked.clear()
    again = searched.tune(trials=3, prune=False)
    assert searched.worked == []
    assert again.trials == first.trials
    more = searched.tune(trials=5, prune=False)
    assert more.trials[:3] == first.trials
    assert len({each.values["pretrain.learning_rate"] for each in more.trials}) == 5


def test_a_trial_that_was_asked_to_end_is_taken_up_again(searched: Search) -> None:
    def stop(recipe: Recipe) -> None:
        if searched.worked.count("pretrain") == 2:
            raise StoppedError("saved at step 5")

    searched.during = stop
    with pytest.raises(StoppedError):
        searched.tune(trials=3, prune=False)
    tuned = searched.tune(trials=3, prune=False)
    assert [each.state for each in tuned.trials] == [
        *("finished", "broken off", "finished", "finished")
    ]
    assert tuned.trials[2].values == tuned.trials[1].values


def test_what_diverges_or_is_refused_counts_and_is_told(searched: Search) -> None:
    def diverge(recipe: Recipe) -> None:
        if recipe.pretrain.learning_rate > BEST_RATE:
            raise DivergedError("the loss is nan at step 5")

    searched.during = diverge
    over = (RATES, "pretrain.row_tokens=512,1024")
    tuned = searched.tune(*over, trials=6, prune=False)
    assert len(tuned.trials) == 6
    notes = {each.note for each in tuned.trials if each.state == "failed"}
    assert any("the loss is nan" in note for note in notes)
    assert any("exceeds model.context_length" in note for note in notes)
    assert tuned.best.state == "finished"


def test_a_search_in_which_everything_fails_says_why(searched: Search) -> None:
    def diverge(recipe: Recipe) -> None:
        raise DivergedError("the loss is nan at step 5")

    searched.during = diverge
    with pytest.raises(UsageError, match="none of 2 trials came to its end.*nan at step 5"):
        searched.tune(trials=2, prune=False)


def test_any_figure_of_the_counts_is_a_metric_either_way(searched: Search) -> None:
    tuned = searched.tune(trials=3, metric="parts.loss", maximize=True)
    assert tuned.best.value == max(each.value or -9 for each in tuned.trials)


@pytest.mark.parametrize("metric", ["nothing", "precision", "parts", "parts.nothing"])
def test_a_metric_that_is_not_there_names_those_that_are(searched: Search, metric: str) -> None:
    with pytest.raises(UsageError, match="it has validation_bits_per_byte, parts.loss, stage_sec"):
        searched.tune(trials=1, metric=metric)


def test_a_key_without_effect_and_an_unknown_stage_are_refused_before_any_work(
    searched: Search,
) -> None:
    with pytest.raises(RecipeError, match="finetune.learning_rate does not change what pretrain"):
        searched.tune("finetune.learning_rate=1e-4..1e-2")
    with pytest.raises(UsageError, match="--stage train is none: give prepare, tokenize"):
        searched.tune(stage="train")
    assert searched.worked == []


def test_another_recipe_or_range_is_another_search(searched: Search) -> None:
    names = {
        searched.tune(trials=1).name,
        searched.tune(trials=1, **{"pretrain.batch_tokens": 512}).name,
        searched.tune("pretrain.learning_rate=1e-3..1:log", trials=1).name,
        searched.tune(trials=1, **{"pretrain.learning_rate": 0.5}).name,
    }
    assert len(names) == 3  # what a searched key says in the recipe does not count


def test_two_processes_do_not_search_the_same(searched: Search, tmp_path: Path) -> None:
    refused: list[str] = []

    def again(recipe: Recipe) -> None:
        if not refused:
            refused.append("")
            with pytest.raises(UsageError, match="another process is running tune") as caught:
                searched.tune(trials=1)
            refused[0] = str(caught.value)

    searched.during = again
    searched.tune(trials=1)
    assert refused[0]
    assert ArtifactStore(searched.home).is_free("tune-none")
