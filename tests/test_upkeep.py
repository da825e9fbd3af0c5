"""What a recipe may say of the time after serving, section by section."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from lmloop import upkeep
from lmloop.learning import TrainConfig
from lmloop.sections import Section
from lmloop.upkeep import (
    OWN_SETS,
    CollectConfig,
    GateConfig,
    LoopConfig,
    MonitorConfig,
    RolloutConfig,
    UpdateConfig,
)


def all_sections() -> list[type[Section]]:
    return [
        each
        for each in vars(upkeep).values()
        if isinstance(each, type) and issubclass(each, Section)
        if each not in (Section, TrainConfig)
    ]


def test_six_sections_look_after_a_served_model() -> None:
    assert len(all_sections()) == 6
    for section in all_sections():
        assert section.model_validate({}) == section()


def test_every_field_of_every_section_is_documented() -> None:
    undocumented = [
        f"{section.__name__}.{name}"
        for section in all_sections()
        for name, field in section.model_fields.items()
        if not (field.description or "").strip()
    ]
    assert undocumented == []


@pytest.mark.parametrize("section", all_sections())
def test_no_section_takes_an_unknown_key_or_changes(section: type[Section]) -> None:
    with pytest.raises(ValidationError) as caught:
        section.model_validate({"no_such_key": 1})
    assert ("no_such_key",) in [each["loc"] for each in caught.value.errors()]
    made = section()
    name = next(iter(section.model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(made, name, getattr(made, name))


@pytest.mark.parametrize(
    ("section", "data"),
    [
        (MonitorConfig, {"window_requests": 29}),
        (MonitorConfig, {"false_alarms": 0.0}),
        (MonitorConfig, {"min_auc": 0.4}),
        (CollectConfig, {"max_user_share": 0.0}),
        (CollectConfig, {"max_per_user": 0}),
        (CollectConfig, {"heldout_share": 0.9}),
        (CollectConfig, {"review": "no"}),
        (UpdateConfig, {"replay_share": 1.0}),
        (UpdateConfig, {"anchor": 1.0}),
        (UpdateConfig, {"passes": 0}),
        (GateConfig, {"confidence": 0.5}),
        (GateConfig, {"max_loss": 0.0}),
        (GateConfig, {"min_documents": 1}),
        (GateConfig, {"golden": "Hello?"}),
        (GateConfig, {"guards": {"Law": "law.jsonl"}}),
        (GateConfig, {"guards": {"a/b": "law.jsonl"}}),
        (RolloutConfig, {"shadow_requests": -1}),
        (RolloutConfig, {"step_timeout": "soon"}),
        (LoopConfig, {"on_feedback": 0}),
        (LoopConfig, {"every": "1 day"}),
        (LoopConfig, {"check_every": ""}),
    ],
)
def test_a_value_of_the_wrong_type_or_size_is_refused(
    section: type[Section], data: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError):
        section.model_validate(data)


@pytest.mark.parametrize("name", OWN_SETS)
def test_no_guard_is_called_like_a_set_of_the_gates_own(name: str) -> None:
    assert GateConfig(guards={"law": "law.jsonl"}).guards == {"law": "law.jsonl"}
    with pytest.raises(ValidationError, match=f"'{name}' cannot name a guard"):
        GateConfig(guards={name: "law.jsonl"})


def test_an_update_needs_no_budget_and_takes_one() -> None:
    assert not UpdateConfig().has_budget
    for budget in ({"budget": "1m"}, {"steps": 5}, {"replay": "journal.jsonl"}):
        assert UpdateConfig.model_validate(budget).has_budget
    with pytest.raises(ValidationError, match="give at most one of budget"):
        UpdateConfig(budget="1m", steps=5)


@pytest.mark.parametrize("shares", [[0], [100], [20, 5], [5, 5], [5, 20, 20]])
def test_shares_of_a_rollout_rise_from_1_to_99(shares: list[int]) -> None:
    assert RolloutConfig.model_validate({"canary_shares": [5, 20]}).canary_shares == (5, 20)
    assert RolloutConfig.model_validate({"canary_shares": []}).canary_shares == ()
    with pytest.raises(ValidationError, match="give rising whole percents from 1 to 99"):
        RolloutConfig.model_validate({"canary_shares": shares})


def test_a_loop_looks_at_drift_at_least_once_a_round() -> None:
    LoopConfig(every="10s", check_every="10s")
    with pytest.raises(ValidationError, match="check_every is longer than every"):
        LoopConfig(every="1m", check_every="2m")
