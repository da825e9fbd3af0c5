"""Rules that move each number: against PyTorch's own, and against the paper's text."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lmloop.training.rules import EPSILON, Elementwise, ScheduleFree

FACTORS = [0.1, 0.5, 1.0, 1.0]
RATES = {"a": 0.02, "b": 0.01}


def draw(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(3, 4, generator=generator) for name in RATES}


def run(rule: Elementwise | ScheduleFree, steps: range = range(len(FACTORS))) -> None:
    for step in steps:
        rule.step(draw(step + 1), FACTORS[step], shrink=0.5)


def test_sgd_is_nesterovs_momentum_at_the_rate_of_each_parameter() -> None:
    masters = draw(0)
    run(Elementwise(masters, method="sgd", rates=RATES, momentum=0.9, betas=(0.9, 0.95)))
    for name, rate in RATES.items():
        x, velocity = draw(0)[name], torch.zeros(3, 4)
        for step, factor in enumerate(FACTORS):
            grad = 0.5 * draw(step + 1)[name]
            velocity = grad.clone() if step == 0 else 0.9 * velocity + grad
            x = x - rate * factor * (grad + 0.9 * velocity)
        torch.testing.assert_close(masters[name], x, rtol=1e-5, atol=1e-6)


def test_schedule_free_follows_algorithm_1_of_the_paper() -> None:
    masters = draw(0)
    rule = ScheduleFree(masters, rates=RATES, betas=(0.9, 0.95))
    run(rule)
    for name, rate in RATES.items():
        x, z, v, weights = draw(0)[name], draw(0)[name], torch.zeros(3, 4), 0.0
        for step, factor in enumerate(FACTORS):
            grad = 0.5 * draw(step + 1)[name]
            v = 0.95 * v + 0.05 * grad * grad
            gamma = rate * factor * (1 - 0.95 ** (step + 1)) ** 0.5
            z = z - gamma * grad / (v.sqrt() + EPSILON)
            weights += factor**2
            c = factor**2 / weights
            x = (1 - c) * x + c * z
        torch.testing.assert_close(rule.average[name], x, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(masters[name], 0.1 * z + 0.9 * x, rtol=1e-5, atol=1e-6)


def test_schedule_free_comes_to_the_minimum_without_a_falling_rate() -> None:
    target = torch.tensor([1.0, -2.0, 0.5])
    masters = {"a": torch.zeros(3)}
    rule = ScheduleFree(masters, rates={"a": 0.05}, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(0)
    for _ in range(800):
        noise = torch.randn(3, generator=generator)
        rule.step({"a": masters["a"] - target + noise}, 1.0, shrink=1.0)
    average = (rule.average["a"] - target).norm()
    assert average < 0.15
    assert average < (rule.points["a"] - target).norm() / 2


@pytest.mark.parametrize("method", ["sgd", "adamw", "free"])
def test_a_rule_that_took_over_a_state_goes_on_bit_for_bit(method: str) -> None:
    def make(masters: dict[str, Tensor]) -> Elementwise | ScheduleFree:
        if method == "free":
            return ScheduleFree(masters, rates=RATES, betas=(0.9, 0.95))
        return Elementwise(masters, method=method, rates=RATES, momentum=0.9, betas=(0.9, 0.95))

    whole, first = draw(0), draw(0)
    run(make(whole))
    begun = make(first)
    run(begun, range(2))
    state = {name: tensor.clone() for name, tensor in begun.state().items()}
    second = {name: tensor.clone() for name, tensor in first.items()}
    resumed = make(second)
    resumed.load_state(state)
    run(resumed, range(2, 4))
    for name in RATES:
        assert torch.equal(second[name], whole[name])
