"""What a recipe may say, section by section."""

from __future__ import annotations

import re
from typing import Any, get_type_hints

import pytest
from pydantic import ValidationError

from lmloop import learning, sections
from lmloop.sections import (
    EvaluateConfig,
    ModelSection,
    PrepareConfig,
    Section,
    ServeConfig,
    TokenizeConfig,
    parse_duration,
    parse_size,
)

SOURCES = {"sources": ["data"]}


def all_sections() -> list[type[Section]]:
    return [
        each
        for each in (*vars(sections).values(), *vars(learning).values())
        if isinstance(each, type) and issubclass(each, Section) and each is not Section
    ]


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


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500MB", 500_000_000),
        ("20GB", 20_000_000_000),
        ("1.5 GB", 1_500_000_000),
        ("2T", 2_000_000_000_000),
        ("3kB", 3000),
        ("7", 7),
    ],
)
def test_a_size_is_a_number_and_a_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1 gigabyte", "1e9", "5gb", "9" * 400 + "GB"])
def test_anything_else_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)


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
        (ModelSection, {"freeze_embedding": True, "tie_embeddings": False}),
        (ModelSection, {"freeze_embedding": True, "vectors": "words.vec"}),
        (TokenizeConfig, {"kind": "words"}),
        (TokenizeConfig, {"segmenter": "none"}),
        (ModelSection, {"rope_theta": float("inf")}),
        (EvaluateConfig, {"candidates": 1}),
        (ServeConfig, {"port": 70_000}),
        (ServeConfig, {"content": "some"}),
        (ServeConfig, {"retention_days": 0}),
        (ServeConfig, {"retention_days": "forever"}),
        (ServeConfig, {"swap": "stop"}),
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


def test_requests_are_kept_for_ever_on_the_word_none() -> None:
    assert ServeConfig.model_validate({"retention_days": "none"}).retention_days is None
    assert ServeConfig().retention_days == 30


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"extra_tokens": ["mask"]}, "'mask' is no name of a special token: write '<|name|>'"),
        ({"extra_tokens": ["<|A b|>"]}, "is no name of a special token"),
        ({"extra_tokens": ["<|mask|>", "<|mask|>"]}, "names a token twice"),
        ({"extra_tokens": ["<|mask|>"], "vocab_size": 300}, "at least 301 is needed"),
    ],
)
def test_extra_tokens_are_names_of_their_own_with_room_beside_them(
    data: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValidationError, match=re.escape(told)):
        TokenizeConfig.model_validate(data)


def test_a_list_of_toml_names_a_mixer_a_layer() -> None:
    section = ModelSection.model_validate({"num_layers": 2, "mixers": ["gru", "attention"]})
    assert section.mixers == ("gru", "attention")


def test_beside_a_base_only_the_length_that_training_uses_is_given() -> None:
    assert ModelSection(base="theirs", context_length=256).context_length == 256
    with pytest.raises(ValidationError, match="base brings its own shape: leave out hidden_size"):
        ModelSection(base="theirs", hidden_size=64)
