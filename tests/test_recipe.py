"""The whole recipe: what every one needs, and what its sections ask of each other."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from lmloop.recipe import Recipe
from lmloop.sections import ServeConfig
from lmloop.upkeep import GateConfig

SOURCES = {"sources": ["data"]}


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate({"name": "chat", "prepare": SOURCES, **changes})


def test_a_recipe_needs_a_name_and_sources_and_nothing_else() -> None:
    made = recipe()
    assert made.prepare.sources == ("data",)
    assert made.pretrain.budget is not None
    assert (made.serve, made.gate) == (ServeConfig(), GateConfig())
    for data in ({"name": "chat"}, {"prepare": SOURCES}):
        with pytest.raises(ValidationError, match="Field required"):
            Recipe.model_validate(data)


def test_what_is_no_mapping_is_no_recipe() -> None:
    for data in ([], "chat", 3, None):
        with pytest.raises(ValidationError):
            Recipe.model_validate(data)


@pytest.mark.parametrize("name", ["", "Chat", "a/b", "../a", ".a", "a b", "a\n", "x" * 97])
def test_a_name_that_no_path_or_url_can_hold_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="should match pattern"):
        recipe(name=name)


@pytest.mark.parametrize("name", ["chat", "chat-v1.2_b", "0", "x" * 96])
def test_a_plain_name_is_taken(name: str) -> None:
    assert recipe(name=name).name == name


@pytest.mark.parametrize("stage", ["pretrain", "finetune", "update"])
def test_a_row_fits_the_context_and_a_batch_holds_whole_rows(stage: str) -> None:
    fitting = {"steps": 1, "row_tokens": 64, "batch_tokens": 128}
    stages = {"pretrain": fitting, "finetune": fitting, "update": fitting}
    recipe(model={"context_length": 64}, **stages)
    for change, message in (
        ({"row_tokens": 128}, f"{stage}.row_tokens = 128 exceeds model.context_length = 64"),
        ({"batch_tokens": 100}, f"{stage}.batch_tokens = 100 is no multiple"),
    ):
        with pytest.raises(ValidationError, match=message):
            recipe(model={"context_length": 64}, **{**stages, stage: {**fitting, **change}})


@pytest.mark.parametrize(
    ("context", "update", "row", "batch"),
    [
        (64, {}, 64, 2048),
        (100, {"steps": 5}, 100, 2000),
        (64, {"batch_tokens": 128}, 64, 128),
        (64, {"row_tokens": 32}, 32, 2048),
        (256, {}, 256, 2048),
        (512, {}, 256, 2048),
    ],
)
def test_an_update_that_says_nothing_of_its_rows_fits_a_short_context(
    context: int, update: dict[str, int], row: int, batch: int
) -> None:
    fitting = {"steps": 1, "row_tokens": 32, "batch_tokens": 128}
    made = recipe(
        model={"context_length": context}, pretrain=fitting, finetune=fitting, update=update
    )
    assert (made.update.row_tokens, made.update.batch_tokens) == (row, batch)


def test_the_mapping_that_a_recipe_is_made_from_stays_as_it_was() -> None:
    fitting = {"steps": 1, "row_tokens": 32, "batch_tokens": 128}
    data: dict[str, Any] = {
        "name": "chat",
        "prepare": SOURCES,
        "model": {"context_length": 64},
        "pretrain": fitting,
        "finetune": fitting,
        "update": {"steps": 5},
    }
    Recipe.model_validate(data)
    assert data["update"] == {"steps": 5}
