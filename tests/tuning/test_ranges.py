"""What may be searched, and what is said of everything else."""

from __future__ import annotations

import pytest

from lmloop.errors import RecipeError
from lmloop.tuning.ranges import Choice, Range, parse_space


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pretrain.learning_rate=1e-4..1e-2:log", Range(low=1e-4, high=1e-2, log=True)),
        ("pretrain.momentum=0..0.9", Range(low=0, high=0.9)),
        ("pretrain.ema=0.9..0.99", Range(low=0.9, high=0.99)),
        ("model.num_layers=2..8", Range(low=2, high=8, is_whole=True)),
        ("model.hidden_size=64..256:32", Range(low=64, high=256, step=32, is_whole=True)),
        ("seed=0..9", Range(low=0, high=9, is_whole=True)),
        ("pretrain.optimizer=muon, adamw", Choice(("muon", "adamw"))),
        ("pretrain.schedule=wsd,cosine", Choice(("wsd", "cosine"))),
        ("model.qk_norm=true,false", Choice((True, False))),
        ("pretrain.batch_tokens=1024,4096", Choice((1024, 4096))),
        ("pretrain.budget=30s,60s", Choice(("30s", "60s"))),
    ],
)
def test_a_range_is_read_as_the_key_is_typed(text: str, expected: Range | Choice) -> None:
    assert parse_space([text]) == {text.partition("=")[0]: expected}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("pretrain.learning_rat=1..2", "did you mean pretrain.learning_rate?"),
        ("pretran.learning_rate=1..2", "unknown key pretran; did you mean pretrain?"),
        ("pretrain.steps.more=1..2", "pretrain.steps.more: steps is a value and has no keys"),
        ("pretrain=1..2", "pretrain cannot be searched"),
        ("prepare.sources=a,b", "prepare.sources cannot be searched"),
        ("name=a,b", "name cannot be searched"),
        ("model.num_layers=8..2", "model.num_layers=8..2 is empty"),
        ("model.num_layers=2..2", "is empty"),
        ("model.num_layers=1.5..3", "valid integer, given 1.5"),
        ("model.num_layers=0..3", "greater than or equal to 1, given 0"),
        ("model.num_layers=2", "one value, there is nothing to search"),
        ("model.num_layers=2..9:2", "steps of 2 do not lead from one end to the other"),
        ("model.num_layers=2..8:0", "steps of 0 do not lead"),
        ("pretrain.learning_rate=0..1:log", "a logarithmic range begins above 0"),
        ("pretrain.learning_rate=low..high", "is no range: write KEY=LOW..HIGH"),
        ("pretrain.learning_rate=1..inf", "is no range"),
        ("pretrain.learning_rate=1..2..3", "is no range"),
        ("pretrain.optimizer=muon,adam", "given 'adam'"),
        ("pretrain.optimizer=1..2", "given 1"),
        ("pretrain.optimizer=muon,muon", "names a value twice"),
        ("pretrain.optimizer", "--over pretrain.optimizer is no range"),
    ],
)
def test_what_cannot_be_searched_is_told_in_one_line(text: str, complaint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_space([text])
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_search_of_nothing_and_a_key_twice_are_refused() -> None:
    with pytest.raises(RecipeError, match="nothing to search: give --over"):
        parse_space([])
    with pytest.raises(RecipeError, match="seed twice"):
        parse_space(["seed=0..1", "seed=2..3"])


def test_a_drawn_number_keeps_four_digits_and_stays_inside() -> None:
    values = Range(low=0.12341, high=0.2)
    assert values.settle(0.1876543) == 0.1877
    assert values.settle(0.123411) == 0.12341
    assert Range(low=1, high=90_000, is_whole=True).settle(12_345) == 12_345
    assert Choice(("a", "b")).settle("b") == "b"


@pytest.mark.parametrize(
    ("value", "is_allowed"), [(64, True), (96, True), (80, False), (32, False), (None, False)]
)
def test_a_value_is_allowed_on_a_step_of_the_range(value: object, is_allowed: bool) -> None:
    assert Range(low=64, high=128, step=32, is_whole=True).allows(value) is is_allowed
    assert not Range(low=0, high=2).allows(True)
    assert Choice(("a", True)).allows("a")
    assert not Choice(("a", True)).allows("c")
