"""A round of the circle: what a live model came from, as far as an update needs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lmloop import rounds
from lmloop.config import load_recipe
from lmloop.errors import UpdateError
from lmloop.progress import Silent
from lmloop.rounds import find_parents
from lmloop.stages import Workshop
from lmloop.store.artifact import ArtifactStore
from lmloop.updating.collect import select

from .conftest import Walked
from .updating.feedback import OPEN, Feedback


def test_a_compressed_model_is_updated_from_what_it_was_before(walked: Walked) -> None:
    live = walked.made.artifacts["compress"]
    parents = find_parents(live, ArtifactStore(walked.home))
    made = walked.made.artifacts
    assert parents.live == live
    assert parents.base == made["finetune"]
    assert parents.corpus == made["prepare"]
    assert parents.shards == made["tokenize"]


def test_an_uncompressed_model_is_updated_from_itself(walked: Walked) -> None:
    tuned = walked.made.artifacts["finetune"]
    assert find_parents(tuned, ArtifactStore(walked.home)).base == tuned


def test_a_model_whose_text_is_gone_is_refused(walked: Walked, tmp_path: Path) -> None:
    with pytest.raises(UpdateError, match="no longer on disk; run its recipe again"):
        find_parents(walked.made.artifacts["compress"], ArtifactStore(tmp_path))


def test_an_update_ends_early_by_exchanges_that_it_does_not_learn(
    walked: Walked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmloop.stages.tune", lambda: None)
    shutil.copytree(walked.home / "artifacts", tmp_path / "artifacts")
    keys = {"steps": 40, "patience": 1, "patience_metric": "loss", "validate_every": 2}
    sizes = {"batch_tokens": 128, "row_tokens": 32, "learning_rate": 1.0}
    changes = {f"update.{key}": value for key, value in {**keys, **sizes}.items()}
    recipe = load_recipe(walked.recipe, changes)
    shop = Workshop(recipe=recipe, home=tmp_path, progress=Silent())
    parents = find_parents(walked.made.artifacts["compress"], ArtifactStore(tmp_path))
    feedback = Feedback(tmp_path / "feedback")
    feedback.correct_many(60)
    found = select(OPEN, engine=feedback.write(), name="chat", seed=0)
    collected = rounds.collect(shop, parents, found)
    made = rounds.update(shop, parents, collected, rounds.pledge(shop, parents, collected))
    mixed, learnt = made.counts["mixture"], collected.counts["splits"]["train"]["exchanges"]
    assert mixed["feedback_records"] + mixed["feedback_watched"] == learnt
    assert mixed["feedback_watched"] == round(learnt / 5)
    lines = (made.path / "journal.jsonl").read_text("utf-8").splitlines()
    assert len(lines) < 40
    assert {"validation_loss", "validation_bpb"} <= json.loads(lines[1]).keys()
