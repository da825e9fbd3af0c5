"""Early stopping by a figure of evaluation: real runs that it ends, and one that it does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import lmloop
from lmloop.config import build_recipe, load_recipe
from lmloop.errors import CorpusError, RecipeError
from lmloop.progress import Silent
from lmloop.recipe import Recipe
from lmloop.store.artifact import Artifact, ArtifactStore
from lmloop.watching import make_figure

from .conftest import Walked

STEPS = {"pretrain.steps": 3, "finetune.steps": 3}
WATCHED = {"finetune.validate_every": 1, "finetune.save_every": 1}
Learn = Callable[..., Artifact]


class BrokenOffError(Exception):
    """Stands for a process that is killed."""


@pytest.fixture
def learn(walked: Walked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Learn:
    """Fine-tune the tiny recipe in a home of its own."""
    monkeypatch.setattr("lmloop.stages.tune", lambda: None)

    def learn(name: str, **changes: Any) -> Artifact:
        home = tmp_path / name
        if not home.exists():
            shutil.copytree(walked.home, home)
        keys = {f"finetune.{key}": value for key, value in changes.items()}
        return lmloop.finetune(walked.recipe, home=home, **WATCHED, **keys)

    return learn


def journal(made: Artifact) -> list[dict[str, Any]]:
    text = (made.path / "journal.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_a_run_ends_where_the_true_replies_are_found_no_more_often(learn: Learn) -> None:
    made = learn("home", steps=40, patience=2, patience_metric="hits_at_1")
    found = [entry["validation_hits_at_1"] for entry in journal(made)]
    best = max(range(len(found)), key=lambda step: (found[step], -step))
    assert len(found) == best + 3 < 40
    assert made.counts["steps"] == len(found)
    assert 0 <= min(found) <= max(found) <= 1


def test_a_run_that_is_given_time_is_not_ended(learn: Learn) -> None:
    made = learn("home", steps=4, patience=50, patience_metric="hits_at_1")
    assert [entry["step"] for entry in journal(made)] == [1, 2, 3, 4]
    assert all("validation_hits_at_1" in entry for entry in journal(made))


def test_a_run_that_was_killed_ends_by_the_same_figures_in_the_same_weights(
    learn: Learn, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmloop.training.run import Run

    asked = {"steps": 40, "patience": 2, "patience_metric": "distinct_2"}
    whole = learn("whole", **asked)
    step = Run.step

    def step_or_die(run: Run, share: float) -> dict[str, Any] | None:
        if run.position.step == 2:
            raise BrokenOffError
        return step(run, share)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", step_or_die)
        with pytest.raises(BrokenOffError):
            learn("broken", **asked)
    resumed = learn("broken", **asked)
    weights = [(each.path / "model.safetensors").read_bytes() for each in (whole, resumed)]
    assert weights[0] == weights[1]
    key = "validation_distinct_2"
    assert [each[key] for each in journal(whole)] == [each[key] for each in journal(resumed)]
    assert whole.counts["steps"] < 40


def recipe_of(walked: Walked, **changes: Any) -> Recipe:
    return load_recipe(walked.recipe, {"finetune.patience": 1, **changes})


@pytest.mark.parametrize(
    ("metric", "highest"), [("hits_at_1", True), ("empty_share", False), ("stop_share", True)]
)
def test_which_way_is_better_follows_from_the_figure(
    walked: Walked, metric: str, highest: bool
) -> None:
    recipe = recipe_of(walked, **{"finetune.patience_metric": metric})
    shards, store = walked.made.artifacts["tokenize"], ArtifactStore(walked.home)
    figure = make_figure(recipe, "finetune", shards, store)
    assert figure is not None
    assert (figure.name, figure.highest_is_best) == (f"validation_{metric}", highest)
    assert make_figure(recipe, "pretrain", shards, store) is None


def test_other_text_is_watched_on_its_own_validation_split(walked: Walked, tmp_path: Path) -> None:
    from lmloop.inference.load import load
    from lmloop.stages import Workshop, make_validation

    shards = walked.made.artifacts["tokenize"]
    recipe = recipe_of(
        walked,
        **{
            "prepare.outside": ["other.txt"],
            "finetune.patience_metric": "outside_bits_per_byte",
        },
    )
    store = ArtifactStore(walked.home)
    with pytest.raises(CorpusError, match="validation split of prepare.outside, which has no"):
        make_figure(recipe, "finetune", shards, store)
    copied = tmp_path / "shards"
    shutil.copytree(shards.path, copied)
    shutil.copytree(shards.path, copied / "outside")
    figure = make_figure(recipe, "finetune", replace(shards, path=copied), store)
    assert figure is not None and not figure.highest_is_best
    model = load(walked.made.artifacts["finetune"].path).transformer
    shop = Workshop(recipe=recipe, home=walked.home, progress=Silent())
    assert figure.measure(model) == pytest.approx(make_validation(shop, copied)(model))


def test_text_that_is_gone_is_told_in_one_line(walked: Walked, tmp_path: Path) -> None:
    recipe = recipe_of(walked, **{"finetune.patience_metric": "hits_at_1"})
    shards = walked.made.artifacts["tokenize"]
    with pytest.raises(CorpusError, match="no longer on disk") as caught:
        make_figure(recipe, "finetune", shards, ArtifactStore(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"finetune.patience_metric": "speed"}, r"'hits_at_1'.*'outside_bits_per_byte', given"),
        ({"finetune.patience_metric": "outside_bits_per_byte"}, r"needs prepare\.outside"),
        (
            {
                "pretrain.patience": 1,
                "pretrain.patience_metric": "hits_at_1",
                "pretrain.objective": "masked",
                "tokenize.extra_tokens": ["<|mask|>"],
            },
            "needs a model that continues text, and 'masked' makes none",
        ),
    ],
)
def test_what_cannot_be_watched_is_refused_in_one_line(changes: dict[str, Any], told: str) -> None:
    data = {"name": "tiny", "prepare": {"sources": ["a.txt"]}}
    with pytest.raises(RecipeError, match=told) as caught:
        build_recipe(data, {**STEPS, "finetune.patience": 1, **changes})
    assert "\n" not in str(caught.value)
