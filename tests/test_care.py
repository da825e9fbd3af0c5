"""The verbs that look after a served model, from Python."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import lmloop
from lmloop import care
from lmloop.errors import ArtifactError, RegistryError, UpdateError, UsageError
from lmloop.store.database import database_url, open_database, ratings_table, requests_table
from lmloop.store.events import write_events

from .conftest import Walked, write_recipe


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Walked:
    """A walked recipe that the tests of this file may change."""
    folder = tmp_path_factory.mktemp("care")
    recipe, home = write_recipe(folder), folder / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmloop.stages.tune", lambda: None)
        made = lmloop.run(recipe, home=home)
    prompt = json.dumps([{"role": "user", "content": "where is the train number 7?"}])
    request = {
        "id": "chatcmpl-1",
        "created": 1.0,
        "endpoint": "chat",
        "model": "tiny",
        "weights": "f" * 12,
        "stream": False,
        "prompt_tokens": 5,
        "completion_tokens": 7,
        "finish_reason": "stop",
        "total_seconds": 0.5,
        "consent": True,
        "content": "full",
        "prompt": prompt,
        "answer": "no idea",
    }
    rating = {"request_id": "chatcmpl-1", "created": 2.0, "rating": -1}
    correction = "It stands at the second platform and leaves at noon."
    engine = open_database(database_url(home))
    write_events(
        engine, [(requests_table, request), (ratings_table, rating | {"correction": correction})]
    )
    engine.dispose()
    return Walked(recipe, home, made)


def test_what_waits_for_review_is_decided_by_the_beginning_of_its_id(own: Walked) -> None:
    (waiting,) = care.review("tiny", home=own.home)
    assert waiting.correction == "It stands at the second platform and leaves at noon."
    assert [each.id for each in care.review(own.recipe, home=own.home)] == [waiting.id]
    (decided,) = care.decide([waiting.id[:8]], accept=True, name="tiny", home=own.home)
    assert decided.id == waiting.id
    assert care.review("tiny", home=own.home) == []


def test_an_update_with_too_little_to_learn_from_says_how_much_there_is(own: Walked) -> None:
    with pytest.raises(UpdateError, match=r"an update needs 48 \(collect.min_exchanges\)"):
        care.update(own.recipe, home=own.home)


def test_the_loop_survives_a_round_that_has_too_little(own: Walked) -> None:
    care.loop(own.recipe, home=own.home, once=True)


def test_a_model_is_watched_by_its_name_or_by_its_recipe(own: Walked) -> None:
    by_name = care.monitor("tiny", home=own.home)
    by_recipe = care.monitor(own.recipe, home=own.home)
    assert by_name.to_json()["name"] == by_recipe.to_json()["name"] == "tiny"


def test_a_model_that_was_live_once_cannot_be_rolled_back(own: Walked) -> None:
    with pytest.raises(RegistryError, match="no previous model"):
        care.rollback("tiny", home=own.home)


def test_an_unknown_model_or_home_is_told(own: Walked, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no live model called other; live are: tiny"):
        care.monitor("other", home=own.home)
    with pytest.raises(ArtifactError, match="does not exist"):
        care.rollback(home=tmp_path / "nowhere")


def test_collecting_garbage_keeps_what_the_live_model_came_from(own: Walked) -> None:
    kept = care.gc(home=own.home, max_size="10GB").kept
    made = own.made.artifacts
    needed = {made[stage].path for stage in ("compress", "finetune", "tokenize", "prepare")}
    assert needed <= {piece.path for piece in kept}
    assert all(path.is_dir() for path in needed)


def test_a_size_that_is_none_is_refused(own: Walked) -> None:
    with pytest.raises(UsageError, match="such as '20GB'"):
        care.gc(home=own.home, max_size="much")


def test_the_index_is_rebuilt_from_the_home(own: Walked) -> None:
    assert care.reindex(home=own.home).artifacts == len(own.made.artifacts)


def test_a_user_whom_nobody_knows_changes_nothing(own: Walked) -> None:
    assert not care.forget("nobody", home=own.home)
