"""What a recipe may say of training."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from lmloop.learning import FinetuneConfig, PretrainConfig, TrainConfig
from lmloop.sections import Section


@pytest.mark.parametrize(
    "data",
    [
        {"budget": "5 minutes"},
        {"steps": 0},
        {"steps": 1.5},
        {"steps": 5, "learning_rate": float("nan")},
        {"steps": 5, "precision": "float16"},
        {"steps": 5, "optimizer": "adam"},
        {"steps": 5, "schedule": "step"},
        {"steps": 5, "final_share": 1.5},
        {"steps": 5, "label_smoothing": 1.0},
        {"steps": 5, "ema": 1.0},
        {"steps": 5, "patience": 0},
        {"steps": 5, "layer_decay": 0.0},
        {"steps": 5, "spike": 1.0},
        {"steps": 5, "on_unsound": "ignore"},
    ],
)
def test_a_value_of_the_wrong_type_or_size_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PretrainConfig.model_validate(data)


def test_schedule_free_steps_keep_a_constant_rate_and_an_average_of_their_own() -> None:
    assert TrainConfig(steps=1).curve == "wsd"
    assert TrainConfig(steps=1, optimizer="schedule-free").curve == "constant"
    with pytest.raises(ValidationError, match="keeps its own average: leave ema out"):
        TrainConfig(steps=1, optimizer="schedule-free", ema=0.9)
    with pytest.raises(ValidationError, match="needs no schedule: leave schedule out"):
        TrainConfig(steps=1, optimizer="schedule-free", schedule="cosine")
    with pytest.raises(ValidationError, match="need 32 bits: leave state_bits out"):
        TrainConfig(steps=1, optimizer="schedule-free", state_bits=8)


@pytest.mark.parametrize("rows", [(32, 24), (32, 64)])
def test_rows_at_once_are_whole_rows_and_divide_the_batch(rows: tuple[int, int]) -> None:
    batch, at_once = rows
    with pytest.raises(ValidationError, match="micro_batch_tokens"):
        TrainConfig(steps=1, batch_tokens=batch, row_tokens=8, micro_batch_tokens=at_once)


@pytest.mark.parametrize("section", [PretrainConfig, FinetuneConfig])
def test_training_needs_exactly_one_of_steps_budget_and_replay(section: type[Section]) -> None:
    given = {"steps": 5, "budget": "5m", "replay": "journal.jsonl"}
    for key, value in given.items():
        made = section.model_validate({key: value}).model_dump()
        assert {name: made[name] for name in given} == {name: None for name in given} | {key: value}
    for data in ({}, {"steps": 5, "budget": "5m"}, {"steps": 5, "replay": "a"}, given):
        with pytest.raises(ValidationError, match="give exactly one of budget"):
            section.model_validate(data)


def test_a_recipe_that_says_nothing_of_an_objective_is_plainly_causal() -> None:
    config = PretrainConfig(steps=1)
    assert (config.objective, config.special_tokens) == ("causal", ())
    assert config.is_scored_in_bytes


@pytest.mark.parametrize("objective", ["masked", "permutation", "span-corruption"])
def test_what_makes_no_model_of_next_tokens_is_not_scored_in_bytes(objective: str) -> None:
    data = {"steps": 1, "objective": objective}
    assert not PretrainConfig.model_validate(data).is_scored_in_bytes


@pytest.mark.parametrize(
    "change",
    [
        {"objective": "guess"},
        {"mask_rate": 0.0},
        {"mask_rate": 1.0},
        {"causal_share": 1.1},
        {"middle_share": -0.1},
        {"span_length": 0.9},
    ],
)
def test_an_objective_and_its_shares_are_checked(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PretrainConfig.model_validate({"steps": 1, **change})


def test_a_micro_batch_can_be_left_open() -> None:
    config = TrainConfig(steps=1, batch_tokens=64, row_tokens=8, micro_batch_tokens="auto")
    assert config.micro_batch_rows == config.batch_rows == 8
    with pytest.raises(ValidationError, match="micro_batch_tokens"):
        TrainConfig.model_validate({"steps": 1, "micro_batch_tokens": "some"})


def test_options_of_an_adapter_need_its_rank() -> None:
    config = PretrainConfig(steps=1, lora_rank=4, lora_targets=("q_proj",), dora=True)
    assert (config.lora_rank, config.lora_alpha, config.lora_targets) == (4, 16.0, ("q_proj",))
    for option in ({"lora_alpha": 8.0}, {"lora_targets": ("q_proj",)}, {"dora": True}):
        with pytest.raises(ValidationError, match="needs lora_rank: add it"):
            PretrainConfig(steps=1, **option)  # type: ignore[arg-type]


def test_tasks_are_sections_of_one_objective_each() -> None:
    tasks = {"next": {}, "mask": {"objective": "masked", "mask_rate": 0.3}}
    config = PretrainConfig.model_validate({"steps": 1, "tasks": tasks})
    assert config.is_scored_in_bytes
    assert config.special_tokens == ("<|mask|>",)
    parts = config.by_task
    assert [parts[name].objective for name in parts] == ["causal", "causal+masked"]
    assert (parts["mask"].mask_rate, parts["mask"].causal_share) == (0.3, 0.0)
    assert not any(part.tasks for part in parts.values())
    alone = PretrainConfig.model_validate({"steps": 1, "tasks": {"mask": tasks["mask"]}})
    assert alone.by_task["mask"].objective == "masked"
    assert not alone.is_scored_in_bytes
    assert PretrainConfig(steps=1).by_task == {"": PretrainConfig(steps=1)}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"objective": "masked"}, "each of tasks has its own objective: leave it out here"),
        ({"rehearsal_share": 0.1}, "each of tasks has its own rehearsal_share"),
        ({"tasks": {"Next!": {}}}, "'Next!' is no name of a task"),
        ({"tasks": {"next": {"share": 0}}}, "greater than 0"),
    ],
)
def test_tasks_that_contradict_the_section_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        PretrainConfig.model_validate({"steps": 1, "tasks": {"next": {}}} | changes)


def test_rows_double_from_their_first_length_for_equal_parts_of_the_budget() -> None:
    config = PretrainConfig(steps=9, row_tokens=512, batch_tokens=1024, first_row_tokens=128)
    lengths = [config.row_length(share) for share in (0.0, 0.33, 0.34, 0.66, 0.67, 0.999, 1.0)]
    assert lengths == [128, 128, 256, 256, 512, 512, 512]
    assert PretrainConfig(steps=9, row_tokens=512).row_length(0.0) == 512
    whole = PretrainConfig(steps=9, row_tokens=512, first_row_tokens=512)
    assert whole.row_length(0.0) == 512


@pytest.mark.parametrize("first", [96, 384, 1024])
def test_a_first_length_that_does_not_double_to_the_last_is_refused(first: int) -> None:
    with pytest.raises(ValidationError, match=f"first_row_tokens = {first} must come to"):
        PretrainConfig(steps=9, row_tokens=512, first_row_tokens=first)


def test_rows_of_another_objective_are_not_cut() -> None:
    with pytest.raises(ValidationError, match="cuts rows of objective = 'causal'"):
        PretrainConfig(steps=9, row_tokens=512, first_row_tokens=128, objective="masked")
