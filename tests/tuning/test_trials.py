"""The memory of a search: in lmloop's database, whoever asks."""

from __future__ import annotations

import sys
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from lmloop.errors import MissingExtraError
from lmloop.store.database import open_database
from lmloop.tuning.ranges import Choice, Range
from lmloop.tuning.trials import (
    NOTE,
    PLACE,
    distributions,
    measure_importance,
    open_study,
    place_of,
    read_trials,
    retire_dead,
)

SPACE = {
    "pretrain.learning_rate": Range(low=1e-4, high=1, log=True),
    "model.num_layers": Range(low=2, high=8, step=2, is_whole=True),
    "pretrain.optimizer": Choice(("muon", "adamw")),
}


def test_a_study_lies_beside_our_tables_and_is_there_again(
    tmp_path: Path, any_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMLOOP_DATABASE", any_url)
    for number in (1, 2):
        with open_study(tmp_path, "tiny", maximize=False, seed=0, prune=True) as study:
            study.tell(study.ask(distributions(SPACE)), number)
            told = [each.value for each in read_trials(study, SPACE)]
    engine = open_database(any_url)
    tables = set(sa.inspect(engine).get_table_names())
    engine.dispose()
    assert {"artifacts", "studies", "trials"} <= tables
    assert told == [1, 2]


def test_trials_are_told_in_the_words_of_the_recipe(tmp_path: Path) -> None:
    with open_study(tmp_path, "tiny", maximize=False, seed=0, prune=True) as study:
        for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL):
            trial = study.ask(distributions(SPACE))
            trial.report(3.0, 1)
            study.tell(trial, 2.5 if state is TrialState.COMPLETE else None, state=state)
        trial = study.ask(distributions(SPACE))
        trial.set_user_attr(NOTE, "too wide")
        study.tell(trial, state=TrialState.PRUNED)
        study.ask(distributions(SPACE))
        trials = read_trials(study, SPACE)
    assert [each.state for each in trials] == [
        *("finished", "pruned", "broken off", "failed", "running")
    ]
    assert [each.value for each in trials[:2]] == [2.5, 3.0]
    assert trials[3].note == "too wide"
    for each in trials:
        assert list(each.values) == list(SPACE)
        assert each.values["model.num_layers"] in (2, 4, 6, 8)


def test_only_the_dead_of_this_place_are_retired_and_their_values_come_again(
    tmp_path: Path,
) -> None:
    here = place_of(tmp_path)
    with open_study(tmp_path, "tiny", maximize=False, seed=0, prune=True) as study:
        for place in (here, "elsewhere"):
            study.ask(distributions(SPACE)).set_user_attr(PLACE, place)
        assert retire_dead(study, here) == [0]
        assert [each.state for each in read_trials(study, SPACE)] == ["broken off", "running"]
        again = study.ask(distributions(SPACE))
        assert again.params == study.get_trials()[0].params


def test_importance_says_which_key_mattered_and_nothing_of_few_trials(tmp_path: Path) -> None:
    with open_study(tmp_path, "tiny", maximize=False, seed=0, prune=True) as study:
        for number in range(40):
            trial = study.ask(distributions(SPACE))
            study.tell(trial, trial.params["model.num_layers"] + 0.01 * number)
            if number == 2:
                assert measure_importance(study, SPACE) == {}
        told = measure_importance(study, SPACE)
    assert next(iter(told)) == "model.num_layers"
    assert told["model.num_layers"] > 0.5
    assert sum(told.values()) == pytest.approx(1)


def test_a_missing_optuna_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with (
        pytest.raises(MissingExtraError, match=r"lmloop\[tune\]"),
        open_study(tmp_path, "tiny", maximize=False, seed=0, prune=True),
    ):
        pass
    assert optuna.__name__ == "optuna"
