"""How much of a run is spent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmloop.errors import TrainingError
from lmloop.learning import PretrainConfig
from lmloop.training.budget import (
    ClockBudget,
    ReplayBudget,
    StepBudget,
    make_budget,
    require_steps,
)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def write_journal(path: Path, shares: list[float]) -> Path:
    entries = [{"step": number, "share": share} for number, share in enumerate(shares, start=1)]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_steps_are_shared_out_evenly() -> None:
    budget = StepBudget(4, clock=Clock(), before=0.0)
    assert [budget.share(step) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]


def test_a_clock_tells_the_share_of_its_seconds_whatever_the_step() -> None:
    clock = Clock()
    budget = ClockBudget(10.0, clock=clock, before=0.0)
    shares = []
    for clock.now in (100.0, 102.5, 109.0, 110.0, 999.0):
        shares.append(budget.share(7))
    assert shares == [0, 0.25, 0.9, 1, 1]


def test_seconds_of_earlier_parts_count() -> None:
    clock = Clock()
    budget = ClockBudget(10.0, clock=clock, before=4.0)
    assert (budget.elapsed(), budget.share(0)) == (4.0, 0.4)
    clock.now += 6
    assert (budget.elapsed(), budget.share(0)) == (10.0, 1.0)
    assert StepBudget(2, clock=clock, before=3.0).elapsed() == 3.0


def test_a_replay_repeats_the_shares_of_the_journal_exactly(tmp_path: Path) -> None:
    shares = [0.0, 0.1 + 0.2, 1 / 3, 0.9999999999999999]
    journal = write_journal(tmp_path / "journal.jsonl", shares)
    budget = ReplayBudget(journal, clock=Clock(), before=2.0)
    assert [budget.share(step) for step in range(6)] == [*shares, 1.0, 1.0]
    assert budget.elapsed() == 2.0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "No such file"),
        ("", "empty"),
        ('{"step": 1, "share": 0.0}\n{"step": 2, "sh', "Unterminated"),
        ('{"step": 1}\n', "share"),
        ('{"share": 0.5}\n', "step"),
        ('{"step": 1, "share": 0.0}\n{"step": 3, "share": 0.2}\n', "every step once"),
        ('{"step": 2, "share": 0.5}\n', "every step once"),
        ("[1]\n", "indices"),
        ('{"step": 1, "share": null}\n', "float"),
    ],
)
def test_a_journal_that_cannot_be_replayed_is_told(
    tmp_path: Path, text: str | None, told: str
) -> None:
    path = tmp_path / "journal.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(TrainingError, match=f"journal .* cannot be replayed: .*{told}"):
        ReplayBudget(path, clock=Clock(), before=0.0)


def test_a_recipe_asks_for_one_of_the_three(tmp_path: Path) -> None:
    journal = write_journal(tmp_path / "journal.jsonl", [0.0])
    for given, kind in (
        ({"steps": 3}, StepBudget),
        ({"budget": "2m"}, ClockBudget),
        ({"replay": str(journal)}, ReplayBudget),
    ):
        config = PretrainConfig.model_validate(given)
        assert isinstance(make_budget(config, clock=Clock(), before=0.0), kind)


def test_the_clocks_seconds_are_those_of_the_recipe() -> None:
    clock = Clock()
    budget = make_budget(PretrainConfig(budget="2m"), clock=clock, before=0.0)
    clock.now += 30
    assert budget.share(0) == 0.25


@pytest.mark.parametrize("share", [float("nan"), 1.0, -0.1])
def test_a_journal_with_shares_that_are_none_is_not_replayed(tmp_path: Path, share: float) -> None:
    journal = write_journal(tmp_path / "journal.jsonl", [0.0, share])
    with pytest.raises(TrainingError, match="cannot be replayed: a share .* not from 0 to 1"):
        ReplayBudget(journal, clock=Clock(), before=0.0)


@pytest.mark.parametrize("steps", [0, 1])
def test_a_clock_that_was_over_before_anything_was_learnt_is_refused(steps: int) -> None:
    with pytest.raises(TrainingError, match=f"budget = '1s' was over after {steps} of .*batch_tok"):
        require_steps(PretrainConfig(budget="1s"), steps)


def test_few_steps_that_were_asked_for_are_no_mistake() -> None:
    require_steps(PretrainConfig(steps=1), 1)
    require_steps(PretrainConfig(replay="journal.jsonl"), 1)
    require_steps(PretrainConfig(budget="1s"), 2)
