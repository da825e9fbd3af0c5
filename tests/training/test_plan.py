"""What is foretold of a recipe: sizes exactly, times from a few steps."""

from __future__ import annotations

from typing import Any

import pytest

from lmloop.errors import RecipeError
from lmloop.learning import FinetuneConfig, PretrainConfig
from lmloop.model.config import ModelConfig
from lmloop.model.cost import count_parameters, training_flops_per_token
from lmloop.sections import ModelSection
from lmloop.training import plan as module
from lmloop.training.calibrate import Speed
from lmloop.training.fitting import usable_bytes
from lmloop.training.memory import plan_memory
from lmloop.training.plan import Plan, Text, estimate_text, make_plan
from lmloop.training.shape import model_config

SHAPE = ModelSection(
    num_layers=2,
    hidden_size=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    intermediate_size=24,
    context_length=32,
)
STAGES = {
    "pretrain": PretrainConfig(steps=50, batch_tokens=64, row_tokens=32, validate_every=25),
    "finetune": FinetuneConfig(budget="10s", batch_tokens=128, row_tokens=16),
}
PLENTY = 10**12


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A machine that takes 1 ms a token and 0.1 s an update; what it was asked to measure."""
    calls: list[dict[str, Any]] = []

    def measure(config: Any, section: Any, **options: Any) -> Speed:
        calls.append({"layers": config.num_layers, "rows": section.micro_batch_rows, **options})
        return Speed(token_seconds=0.001, update_seconds=0.1)

    monkeypatch.setattr(module, "measure_speed", measure)
    monkeypatch.setattr(module, "VALIDATION_TOKENS", 3000)
    return calls


def plan_of(stages: dict[str, Any], *, free: int = PLENTY, text: Text | None = None) -> Plan:
    return make_plan(
        SHAPE, vocab_size=300, stages=stages, text=text or estimate_text(34_000), free=free
    )


def test_sizes_are_those_of_the_model(asked: list[dict[str, Any]]) -> None:
    config, plan = model_config(SHAPE, vocab_size=300), plan_of(STAGES)
    assert plan.parameters == count_parameters(config)
    assert plan.checkpoint_bytes == 2 * plan.parameters
    assert plan.cache_bytes_per_token == 2 * 2 * 1 * 8 * 2
    assert (plan.text.bytes, plan.text.tokens, plan.text.is_tokenized) == (34_000, 10_000, False)
    assert plan.stages[0].memory == plan_memory(config, STAGES["pretrain"])


def test_a_step_budget_fixes_the_tokens_and_the_speed_the_time(
    asked: list[dict[str, Any]],
) -> None:
    stage = plan_of(STAGES).stages[0]
    assert (stage.stage, stage.steps, stage.tokens, stage.epochs) == ("pretrain", 50, 3200, 0.32)
    # 50 steps of 64 ms and an update of 100 ms; validations of 1 s after 25, 50 and at the end.
    assert stage.seconds == pytest.approx(50 * 0.164 + 3 * 1.0)
    assert stage.tokens_per_second == pytest.approx(64 / 0.164)
    a_token = training_flops_per_token(model_config(SHAPE, vocab_size=300), row_tokens=32)
    assert stage.flops == pytest.approx(3200 * a_token)
    assert stage.flops_per_second == pytest.approx(a_token * 64 / 0.164)


def test_a_clock_budget_fixes_the_time_and_the_speed_the_tokens(
    asked: list[dict[str, Any]],
) -> None:
    stage = plan_of(STAGES).stages[1]
    assert (stage.stage, stage.seconds) == ("finetune", 10)
    assert stage.steps == int(10 / (0.228 + 1.0 / 200))
    assert stage.tokens == stage.steps * 128


def test_the_price_is_that_of_all_stages(asked: list[dict[str, Any]]) -> None:
    plan = plan_of(STAGES)
    assert plan.seconds == pytest.approx(50 * 0.164 + 3.0 + 10)
    assert plan.cost(3.6) == pytest.approx(plan.seconds / 1000)


def test_fine_tuning_is_measured_with_its_share_of_answers(asked: list[dict[str, Any]]) -> None:
    text = Text(bytes=40_000, tokens=10_000, answer_tokens=4_000, is_tokenized=True)
    plan_of(STAGES, text=text)
    assert [call["learnt_share"] for call in asked] == [1.0, 0.4]
    assert sum(call["seconds"] for call in asked) == pytest.approx(module.CALIBRATION_SECONDS)


def test_what_is_too_large_is_measured_by_its_first_layer_and_told_what_to_change(
    asked: list[dict[str, Any]],
) -> None:
    stages = {"pretrain": STAGES["pretrain"]}
    stage = plan_of(stages, free=100_000).stages[0]
    assert asked[0]["layers"] == 1
    assert stage.advice[-1].startswith("a model of")
    assert stage.tokens_per_second < 64 / 0.164
    assert plan_of(stages).stages[0].advice == ()


def test_auto_is_planned_as_it_would_be_chosen(asked: list[dict[str, Any]]) -> None:
    section = STAGES["pretrain"].model_copy(
        update={"batch_tokens": 1 << 20, "micro_batch_tokens": "auto"}
    )
    assert plan_of({"pretrain": section}).stages[0].micro_batch_tokens == 1 << 20
    small = plan_of({"pretrain": section}, free=10**9).stages[0]
    assert small.micro_batch_tokens < 1 << 20
    assert small.memory.resident <= 0.9 * 10**9


@pytest.mark.parametrize("free", [PLENTY, 1000])
def test_a_model_with_an_encoder_is_foretold_on_this_machine(
    monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    monkeypatch.setattr(module, "CALIBRATION_SECONDS", 0.02)
    shape = SHAPE.model_copy(update={"kind": "encoder-decoder"})
    stages = {"pretrain": PretrainConfig(steps=5, batch_tokens=64, row_tokens=32)}
    plan = make_plan(shape, vocab_size=300, stages=stages, text=estimate_text(34_000), free=free)
    assert plan.parameters > 0
    assert plan.stages[0].tokens_per_second > 0


def test_a_recipe_that_begins_with_an_open_model_has_its_shape(
    asked: list[dict[str, Any]],
) -> None:
    theirs = model_config(SHAPE, vocab_size=700)
    stages = {"pretrain": STAGES["pretrain"].model_copy(update={"lora_rank": 4})}
    begin = ModelSection(base="theirs")
    plan = make_plan(begin, vocab_size=300, stages=stages, text=estimate_text(1), base=theirs)
    assert plan.parameters == count_parameters(theirs)
    assert plan.stages[0].memory.masters < 4 * plan.parameters
    with pytest.raises(RecipeError, match="planned by that one's shape"):
        make_plan(begin, vocab_size=300, stages={}, text=estimate_text(1))


def test_growing_rows_take_the_time_of_their_lengths_and_the_memory_of_the_longest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def measure(config: Any, section: Any, **options: Any) -> Speed:
        return Speed(token_seconds=section.row_tokens / 1000, update_seconds=0.0)

    monkeypatch.setattr(module, "measure_speed", measure)
    monkeypatch.setattr(module, "VALIDATION_TOKENS", 0)
    growing = STAGES["pretrain"].model_copy(update={"first_row_tokens": 8})
    stage = plan_of({"pretrain": growing}).stages[0]
    # Of 50 steps of 64 tokens a third each has rows of 8, 16 and 32.
    assert stage.seconds == pytest.approx(50 * 64 * (8 + 16 + 32) / 3 / 1000)
    assert stage.memory == plan_of({"pretrain": STAGES["pretrain"]}).stages[0].memory
    clock = growing.model_copy(update={"steps": None, "budget": "10s"})
    assert plan_of({"pretrain": clock}).stages[0].steps == int(
        10 / 0.064 * (1 / 8 + 1 / 16 + 1 / 32) / 3
    )


def test_a_teacher_and_a_frozen_embedding_are_planned(asked: list[dict[str, Any]]) -> None:
    teacher = model_config(SHAPE, vocab_size=300)
    stages = {"finetune": STAGES["finetune"]}
    plain, taught = (
        make_plan(
            SHAPE, vocab_size=300, stages=stages, text=estimate_text(34_000), free=PLENTY, **more
        )
        for more in ({}, {"teachers": {"finetune": teacher}})
    )
    assert plain.stages[0].memory.teacher == 0
    assert taught.stages[0].memory.teacher > 0
    assert [call["teacher"] for call in asked] == [None, teacher]
    frozen = make_plan(
        SHAPE.model_copy(update={"freeze_embedding": True}),
        vocab_size=300,
        stages=stages,
        text=estimate_text(34_000),
        free=PLENTY,
    )
    assert plain.stages[0].memory.masters - frozen.stages[0].memory.masters == 4 * 300 * 16


def test_a_layer_too_large_to_be_tried_is_stood_for_by_a_narrower_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[ModelConfig] = []

    def measure(config: ModelConfig, section: Any, **options: Any) -> Speed:
        tried.append(config)
        return Speed(token_seconds=0.001, update_seconds=0.1)

    monkeypatch.setattr(module, "measure_speed", measure)
    wide = SHAPE.model_copy(update={"hidden_size": 2**16, "intermediate_size": 2**18})
    stages = {"pretrain": STAGES["pretrain"]}
    text, free = estimate_text(34_000), 50_000_000
    plan = make_plan(wide, vocab_size=300, stages=stages, text=text, free=free)
    assert plan_memory(tried[0], STAGES["pretrain"]).peak <= usable_bytes(free)
    assert 64 <= tried[0].hidden_size < 2**16
    assert plan.stages[0].tokens_per_second < 1
