"""What a recipe may say, section by section."""

from __future__ import annotations

from typing import Any, get_type_hints

import pytest
from pydantic import ValidationError

from lmloop import sections
from lmloop.sections import (
    EvaluateConfig,
    FinetuneConfig,
    ModelSection,
    PrepareConfig,
    PretrainConfig,
    Recipe,
    Section,
    ServeConfig,
    TokenizeConfig,
    parse_duration,
)

SOURCES = {"sources": ["data"]}


def all_sections() -> list[type[Section]]:
    return [
        each
        for each in vars(sections).values()
        if isinstance(each, type) and issubclass(each, Section) and each is not Section
    ]


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate({"name": "chat", "prepare": SOURCES, **changes})


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("5m", 300), ("2h", 7200), ("1.5m", 90)]
)
def test_a_duration_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "5", "m", "-5m", "0s", "5 m", "5d", "1e3s", "5m5s", "9" * 400 + "h"]
)
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        parse_duration(text)


def test_every_field_of_every_section_is_documented() -> None:
    undocumented = [
        f"{section.__name__}.{name}"
        for section in all_sections()
        for name, field in section.model_fields.items()
        if not (field.description or "").strip()
        and not (
            isinstance(kind := get_type_hints(section)[name], type) and issubclass(kind, Section)
        )
    ]
    assert undocumented == []


def test_a_section_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ModelSection().num_layers = 3  # type: ignore[misc]


@pytest.mark.parametrize("section", all_sections())
def test_no_section_takes_an_unknown_key(section: type[Section]) -> None:
    with pytest.raises(ValidationError) as caught:
        section.model_validate({"no_such_key": 1})
    assert ("no_such_key",) in [each["loc"] for each in caught.value.errors()]


@pytest.mark.parametrize(
    ("section", "data"),
    [
        (PrepareConfig, {"sources": []}),
        (PrepareConfig, {"sources": "data"}),
        (PrepareConfig, {"sources": [1]}),
        (PrepareConfig, {**SOURCES, "validation_share": 0.0}),
        (PrepareConfig, {**SOURCES, "heldout_share": 0.5}),
        (PrepareConfig, {**SOURCES, "mask_personal_data": "yes"}),
        (PrepareConfig, {**SOURCES, "near_duplicate_similarity": "some"}),
        (PrepareConfig, {**SOURCES, "min_characters": 30, "max_characters": 20}),
        (TokenizeConfig, {"vocab_size": 299}),
        (TokenizeConfig, {"vocab_size": "4096"}),
        (TokenizeConfig, {"vocab_size": True}),
        (ModelSection, {"num_layers": 0}),
        (ModelSection, {"num_heads": 6, "num_kv_heads": 4}),
        (ModelSection, {"head_dim": 63}),
        (ModelSection, {"rope_theta": float("inf")}),
        (PretrainConfig, {"budget": "5 minutes"}),
        (PretrainConfig, {"steps": 0}),
        (PretrainConfig, {"steps": 1.5}),
        (PretrainConfig, {"steps": 5, "learning_rate": float("nan")}),
        (PretrainConfig, {"steps": 5, "precision": "float16"}),
        (EvaluateConfig, {"candidates": 1}),
        (ServeConfig, {"port": 70_000}),
    ],
)
def test_a_value_of_the_wrong_type_or_size_is_refused(
    section: type[Section], data: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError):
        section.model_validate(data)


def test_near_duplicates_are_kept_on_the_word_none() -> None:
    data = {**SOURCES, "near_duplicate_similarity": "none"}
    assert PrepareConfig.model_validate(data).near_duplicate_similarity is None


@pytest.mark.parametrize("section", [PretrainConfig, FinetuneConfig])
def test_training_needs_exactly_one_of_steps_budget_and_replay(section: type[Section]) -> None:
    given = {"steps": 5, "budget": "5m", "replay": "journal.jsonl"}
    for key, value in given.items():
        made = section.model_validate({key: value}).model_dump()
        assert {name: made[name] for name in given} == {name: None for name in given} | {key: value}
    for data in ({}, {"steps": 5, "budget": "5m"}, {"steps": 5, "replay": "a"}, given):
        with pytest.raises(ValidationError, match="give exactly one of budget"):
            section.model_validate(data)


def test_a_recipe_needs_a_name_and_sources_and_nothing_else() -> None:
    made = recipe()
    assert made.prepare.sources == ("data",)
    assert made.pretrain.budget is not None
    for data in ({"name": "chat"}, {"prepare": SOURCES}):
        with pytest.raises(ValidationError, match="Field required"):
            Recipe.model_validate(data)


@pytest.mark.parametrize("name", ["", "Chat", "a/b", "../a", ".a", "a b", "a\n", "x" * 97])
def test_a_name_that_no_path_or_url_can_hold_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="should match pattern"):
        recipe(name=name)


@pytest.mark.parametrize("name", ["chat", "chat-v1.2_b", "0", "x" * 96])
def test_a_plain_name_is_taken(name: str) -> None:
    assert recipe(name=name).name == name


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_row_fits_the_context_and_a_batch_holds_whole_rows(stage: str) -> None:
    fitting = {"steps": 1, "row_tokens": 64, "batch_tokens": 128}
    recipe(model={"context_length": 64}, pretrain=fitting, finetune=fitting)
    for change, message in (
        ({"row_tokens": 128}, f"{stage}.row_tokens = 128 exceeds model.context_length = 64"),
        ({"batch_tokens": 100}, f"{stage}.batch_tokens = 100 is no multiple"),
    ):
        sections_of_training = {"pretrain": fitting, "finetune": fitting}
        sections_of_training[stage] = {**fitting, **change}
        with pytest.raises(ValidationError, match=message):
            recipe(model={"context_length": 64}, **sections_of_training)
