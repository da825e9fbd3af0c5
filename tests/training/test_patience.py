"""Early stopping: what is best, and when it is enough."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lmloop.training.patience import Patience


def weights(value: float) -> dict[str, Tensor]:
    return {"a": torch.full((2,), value)}


def test_the_lowest_figure_keeps_a_copy_of_its_weights() -> None:
    patience, live = Patience(2), weights(0.0)
    for step, figure in enumerate([3.0, 2.0, 2.5, math.nan]):
        live["a"].fill_(step)
        patience.look(figure, live)
    assert patience.value == 2.0
    assert patience.weights["a"].tolist() == [1.0, 1.0]
    assert patience.is_over


def test_something_better_begins_the_waiting_anew() -> None:
    patience = Patience(2)
    for figure in (3.0, 3.5, 2.0, 2.0):
        assert not patience.is_over
        patience.look(figure, weights(figure))
    assert patience.waited == 1
    patience.look(2.0, weights(0))
    assert patience.is_over


def test_its_state_is_all_that_it_knows() -> None:
    patience = Patience(3)
    for figure in (3.0, 2.0, 2.5):
        patience.look(figure, weights(figure))
    other = Patience(3)
    other.load_state({name: each.clone() for name, each in patience.state().items()})
    assert (other.value, other.waited) == (2.0, 1)
    assert torch.equal(other.weights["a"], patience.weights["a"])
    fresh = Patience(3)
    fresh.load_state(Patience(3).state())
    assert (fresh.value, fresh.waited, fresh.weights) == (math.inf, 0, {})
