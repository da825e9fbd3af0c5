"""What is foretold of a recipe: sizes exactly, times from a few steps."""

from __future__ import annotations

import pytest

from lmloop.learning import FinetuneConfig, PretrainConfig
from lmloop.model.cost import count_parameters, training_bytes, training_flops_per_token
from lmloop.sections import ModelSection
from lmloop.training import plan as module
from lmloop.training.plan import Plan, make_plan
from lmloop.training.shape import model_config

SHAPE = ModelSection(
    num_layers=1,
    hidden_size=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    intermediate_size=24,
    context_length=32,
)


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr(module, "CALIBRATION_SECONDS", 0.02)
    return make_plan(
        SHAPE,
        vocab_size=300,
        stages={
            "pretrain": PretrainConfig(steps=50, batch_tokens=64, row_tokens=32),
            "finetune": FinetuneConfig(budget="10s", batch_tokens=128, row_tokens=16),
        },
        text_bytes=34_000,
    )


def test_sizes_are_those_of_the_model(plan: Plan) -> None:
    config = model_config(SHAPE, vocab_size=300)
    assert plan.parameters == count_parameters(config)
    assert plan.checkpoint_bytes == 2 * plan.parameters
    assert plan.cache_bytes_per_token == 2 * 1 * 1 * 8 * 2
    assert (plan.text_bytes, plan.text_tokens) == (34_000, 10_000)
    assert plan.stages[0].memory == training_bytes(config, batch_tokens=64, row_tokens=32)


def test_a_step_budget_fixes_the_tokens_and_the_speed_the_time(plan: Plan) -> None:
    stage = plan.stages[0]
    assert (stage.stage, stage.steps, stage.tokens, stage.epochs) == ("pretrain", 50, 3200, 0.32)
    assert stage.seconds == pytest.approx(3200 / plan.tokens_per_second)


def test_a_clock_budget_fixes_the_time_and_the_speed_the_tokens(plan: Plan) -> None:
    stage = plan.stages[1]
    assert (stage.stage, stage.seconds) == ("finetune", 10)
    assert stage.tokens == stage.steps * 128
    assert stage.steps == int(10 * plan.tokens_per_second / 128) > 0


def test_the_speed_is_measured(plan: Plan) -> None:
    assert plan.tokens_per_second > 0
    config = model_config(SHAPE, vocab_size=300)
    arithmetic = training_flops_per_token(config, row_tokens=32)
    assert plan.flops_per_second == pytest.approx(plan.tokens_per_second * arithmetic)


def test_a_model_with_an_encoder_is_foretold_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CALIBRATION_SECONDS", 0.02)
    shape = SHAPE.model_copy(update={"kind": "encoder-decoder"})
    stages = {"pretrain": PretrainConfig(steps=5, batch_tokens=64, row_tokens=32)}
    plan = make_plan(shape, vocab_size=300, stages=stages, text_bytes=34_000)
    assert plan.parameters > 0
    assert plan.tokens_per_second > 0
