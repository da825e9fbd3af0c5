"""What a hostile or unlucky user meets while a model is trained: one line, and nothing lost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import lmloop
from lmloop.config import load_recipe
from lmloop.errors import ArtifactError, DivergedError, TrainingError
from lmloop.pipeline import walk
from lmloop.progress import Silent

from ..conftest import Walked


def pretrain(recipe: Path, home: Path, watch: Callable[[Mapping[str, Any]], None]) -> None:
    """Pre-train for 12 steps with a snapshot every 5; `watch` sees each line of the journal."""
    walk(load_recipe(recipe), home=home, until="pretrain", progress=Silent(), watch=watch)


@pytest.fixture
def home(walked: Walked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home in which the tiny recipe's text is tokenized, and nothing trained."""
    monkeypatch.setattr("lmloop.stages.tune", lambda: None)
    for path in (walked.home / "artifacts").iterdir():
        if path.name.startswith(("prepare-", "tokenize-")):
            shutil.copytree(path, tmp_path / "home" / "artifacts" / path.name)
    return tmp_path / "home"


@pytest.mark.parametrize("change", ["cut off", "one bit", "deleted", "ids of no token"])
def test_shards_that_change_during_a_run_end_it_and_the_mended_run_is_the_unbroken_one(
    walked: Walked, home: Path, change: str
) -> None:
    (tokens,) = home.glob("artifacts/tokenize-*/train-00000.tokens")

    def change_at_step_seven(entry: Mapping[str, Any]) -> None:
        if entry["step"] != 7:
            return
        whole = tokens.read_bytes()
        if change == "deleted":
            tokens.unlink()
        elif change == "cut off":
            os.truncate(tokens, 0)
        elif change == "one bit":
            tokens.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        else:
            tokens.write_bytes(b"\xfe\xff" * (len(whole) // 2))

    with pytest.raises(ArtifactError, match="changed while it was read: run the same command"):
        pretrain(walked.recipe, home, change_at_step_seven)
    assert [path.name for path in home.glob("runs/*/snapshot-*")] == ["snapshot-00000005"]
    with pytest.raises(ArtifactError, match="remove .* and run the stage again"):
        pretrain(walked.recipe, home, lambda entry: None)
    shutil.rmtree(tokens.parent)
    steps: list[int] = []
    pretrain(walked.recipe, home, lambda entry: steps.append(entry["step"]))
    assert steps == list(range(6, 13))
    one, other = (
        next(each.glob("artifacts/pretrain-*/model.safetensors")) for each in (home, walked.home)
    )
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
def test_rates_that_diverge_give_no_model(walked: Walked, home: Path, policy: str) -> None:
    rates = {"pretrain.learning_rate": 1e30, "pretrain.matrix_learning_rate": 1e30}
    more = {"pretrain.on_unsound": policy, "pretrain.warmup_share": 0.0, "pretrain.steps": 60}
    with pytest.raises(DivergedError, match="at step .*lower matrix_learning_rate or learning_ra"):
        lmloop.pretrain(walked.recipe, home=home, **rates, **more)
    assert not list(home.glob("artifacts/pretrain-*"))
    assert not list(home.glob("artifacts/.*"))


def test_a_budget_shorter_than_a_step_is_refused_and_a_longer_one_works(
    walked: Walked, home: Path
) -> None:
    with pytest.raises(TrainingError, match="budget = '0.0001s' was over .*: give more time"):
        lmloop.pretrain(walked.recipe, home=home, **{"pretrain.budget": "0.0001s"})
    assert not list(home.glob("artifacts/pretrain-*"))
    lmloop.pretrain(walked.recipe, home=home, **{"pretrain.budget": "2s"})


@pytest.mark.slow
def test_a_model_beyond_all_memory_is_refused_and_planned(walked: Walked, home: Path) -> None:
    huge = {"model.hidden_size": 2**18, "model.intermediate_size": 2**20, "model.num_layers": 99}
    with pytest.raises(TrainingError, match=r"training needs .* are free: .*a model of "):
        lmloop.pretrain(walked.recipe, home=home, **huge)
    plan = lmloop.plan(walked.recipe, home=home, **huge)
    assert plan.stages[0].advice[-1].startswith("a model of 0% of the parameters")
