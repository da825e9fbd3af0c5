"""What a run does not trust, and where it begins."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lmloop.training.soundness import REMEMBERED, Soundness, find_unsound

from ..conftest import random_model, tiny_shape


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_finite_number_is_unsound(value: float) -> None:
    assert Soundness(spike=None).judge(value) == f"the loss is {value}"


def test_a_spike_is_measured_by_the_median_of_the_last_losses() -> None:
    judge = Soundness(spike=2.0, before=[9.0] * 10 + [1.0] * (REMEMBERED - 1))
    assert judge.judge(1.9) is None
    assert judge.judge(2.1) == "the loss is 2.100, 2.1 times the median of the last 50"
    assert judge.judge(2.1) is not None  # what is unsound is not remembered
    assert Soundness(spike=2.0, before=[1.0] * (REMEMBERED - 1)).judge(100.0) is None
    assert Soundness(spike=None, before=[1.0] * REMEMBERED).judge(100.0) is None


def test_the_first_module_that_gives_no_numbers_is_named() -> None:
    model = random_model(tiny_shape(num_layers=2))
    tokens = torch.arange(6)[None]
    with torch.no_grad():
        model.blocks[1].feed_forward.part.up.weight[0, 0] = math.nan  # type: ignore[union-attr, index]

    def loss() -> Tensor:
        return model(tokens).float().mean()

    assert find_unsound(model, loss) == "blocks.1.feed_forward.part.up"
    assert not any(module._forward_hooks for module in model.modules())


def test_the_parameter_nearest_to_the_loss_is_named_where_only_gradients_are_none() -> None:
    model = random_model(tiny_shape(num_layers=2))
    tokens = torch.arange(6)[None]
    model.blocks[0].mixer.norm.weight.register_hook(lambda grad: grad * math.inf)  # type: ignore[union-attr]
    found = find_unsound(model, lambda: model(tokens).square().mean())
    assert found == "blocks.0.mixer.norm.weight"
    assert all(each.grad is None for each in model.parameters())


def test_of_a_sound_batch_nothing_is_named() -> None:
    model = random_model(tiny_shape())
    assert find_unsound(model, lambda: model(torch.arange(6)[None]).square().mean()) is None
