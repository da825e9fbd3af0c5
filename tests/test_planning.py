"""The verb `plan` from Python: guessed text, counted text, and the loss to expect."""

from __future__ import annotations

from pathlib import Path

import pytest

import lmloop
from lmloop.errors import RecipeError
from lmloop.planning import plan_cluster
from lmloop.tokens.shards import Shards

from .conftest import Walked, make_conversations, write_recipe


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmloop.training.plan.CALIBRATION_SECONDS", 0.01)
    monkeypatch.setattr("lmloop.training.pilot.PROBE_SECONDS", 0.01)
    monkeypatch.setattr("lmloop.training.pilot.FEWEST_STEPS", 2)
    monkeypatch.setattr("lmloop.planning.tune", lambda: None)


def test_a_plan_is_made_before_any_work(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    plan = lmloop.plan(recipe, home=tmp_path / "home", **{"pretrain.steps": 30})
    conversations = make_conversations(150, seed=9)
    assert plan.text.bytes == sum(each.raw_bytes for each in conversations)
    assert [stage.stage for stage in plan.stages] == ["pretrain", "finetune"]
    assert plan.stages[0].tokens == 30 * 64
    assert plan.expected is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["talks.jsonl", "tiny.toml"]


def test_what_auto_chose_is_told(tmp_path: Path) -> None:
    recipe, change = write_recipe(tmp_path), {"pretrain.steps": 30}
    assert lmloop.plan(recipe, home=tmp_path / "home", **change).chosen is None
    plan = lmloop.plan(recipe, home=tmp_path / "home", **change, **{"model.auto": True})
    assert plan.chosen is not None
    assert "a vocabulary of" in plan.chosen


def test_auto_is_not_planned_for_many_gpus(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"for this machine, not for --gpus: give a \[model\]"):
        plan_cluster(write_recipe(tmp_path), gpus=8, tokens=1e9, **{"model.auto": True})


def test_text_that_is_tokenized_is_counted(walked: Walked) -> None:
    plan = lmloop.plan(walked.recipe, home=walked.home)
    train = Shards.open(walked.made.artifacts["tokenize"].path, "train")
    assert plan.text.is_tokenized
    assert plan.text.tokens == train.num_tokens
    assert 0 < plan.text.answer_tokens < plan.text.tokens


def test_small_runs_tell_the_loss_to_expect(tmp_path: Path) -> None:
    recipe, home = write_recipe(tmp_path), tmp_path / "home"
    wide = {"model.head_dim": 16, "model.hidden_size": 32}
    plan = lmloop.plan(recipe, home=home, fit=True, fit_seconds=0.1, **wide)
    assert plan.expected is not None
    assert 0 < plan.expected.low < plan.expected.loss < plan.expected.high
    assert plan.text.is_tokenized


def test_a_loss_that_is_not_told_in_bytes_is_refused(tmp_path: Path) -> None:
    change = {"pretrain.objective": "masked", "tokenize.extra_tokens": ["<|mask|>"]}
    with pytest.raises(RecipeError, match=r"--fit foresees bits per byte.*'masked'"):
        lmloop.plan(write_recipe(tmp_path), fit=True, home=tmp_path / "home", **change)


def test_many_gpus_are_planned_without_running_anything(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    change = {"pretrain.steps": 30, "pretrain.budget": None, "pretrain.batch_tokens": 4096}
    made = plan_cluster(recipe, home=tmp_path / "home", gpus=16, gpu="h200", **change)
    assert made.tokens == 30 * 4096
    assert made.trials[0].fits
    assert made.trials[0].step.layout.gpus == 16
    assert not (tmp_path / "home").exists()


def test_a_fit_of_several_tasks_is_refused_whatever_they_are(tmp_path: Path) -> None:
    change = {
        "pretrain.tasks": {"hidden": {"objective": "masked"}},
        "tokenize.extra_tokens": ["<|mask|>"],
    }
    with pytest.raises(RecipeError, match=r"pretrain\.tasks has more"):
        lmloop.plan(write_recipe(tmp_path), fit=True, home=tmp_path / "home", **change)


def test_many_gpus_need_a_number_of_tokens(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    change = {"pretrain.steps": None, "pretrain.budget": "2m"}
    with pytest.raises(RecipeError, match=r"a number of tokens.*--tokens, or pretrain\.steps"):
        plan_cluster(recipe, gpus=1, home=tmp_path, **change)
    assert plan_cluster(recipe, gpus=1, tokens=1e9, home=tmp_path, **change).tokens == 1e9
