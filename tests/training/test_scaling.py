"""The scaling law: found again where it is known, and unsure where it must be."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lmloop.errors import TrainingError
from lmloop.training.scaling import Measured, count_repeated, fit_scaling

SIZES, TOKENS = (4e5, 8e5, 1.6e6), (1e5, 2e5, 4e5, 8e5)


def law(parameters: float, tokens: float) -> float:
    return 1.2 + 20 / parameters**0.33 + 60 / tokens**0.4


def make_runs(*, noise: float = 0.0, seed: int = 0) -> list[Measured]:
    draw = np.random.default_rng(seed)
    return [
        Measured(parameters=int(size), tokens=tokens, loss=law(size, tokens) * scatter)
        for size in SIZES
        for tokens in TOKENS
        for scatter in [math.exp(noise * draw.standard_normal())]
    ]


def test_a_run_four_times_as_large_and_long_is_foretold_within_three_per_cent() -> None:
    expected = fit_scaling(make_runs()).predict(parameters=6_400_000, tokens=3.2e6)
    assert expected.loss == pytest.approx(law(6.4e6, 3.2e6), rel=0.03)
    assert expected.low < law(6.4e6, 3.2e6) < expected.high


def test_runs_that_were_made_are_met() -> None:
    fitted = fit_scaling(make_runs())
    for run in make_runs():
        told = fitted.predict(parameters=run.parameters, tokens=run.tokens)
        assert told.loss == pytest.approx(run.loss, rel=0.01)


def test_the_range_holds_the_truth_nine_times_of_ten() -> None:
    truth, held = law(6.4e6, 3.2e6), 0
    for seed in range(40):
        told = fit_scaling(make_runs(noise=0.01, seed=seed)).predict(
            parameters=6_400_000, tokens=3.2e6
        )
        held += told.low < truth < told.high
    assert held >= 34


def test_farther_away_is_less_sure_and_more_scatter_too() -> None:
    def width(noise: float, times: float) -> float:
        told = fit_scaling(make_runs(noise=noise)).predict(
            parameters=int(1.6e6 * times), tokens=8e5 * times
        )
        return told.high / told.low

    assert 1 < width(0.01, 1) < width(0.01, 10) < width(0.01, 100)
    assert width(0.01, 10) < width(0.05, 10)


def test_text_that_is_read_again_counts_for_less() -> None:
    assert count_repeated(50, unique=100) == 50
    assert count_repeated(100, unique=100) == 100
    # Equation 5 with one pass more: 100 · (1 + 15.4 · (1 − e^(−1/15.4))).
    assert count_repeated(200, unique=100) == pytest.approx(196.8, abs=0.1)
    assert count_repeated(1e9, unique=100) == pytest.approx(1640)


@pytest.mark.parametrize(
    "runs", [make_runs()[:3], [Measured(parameters=1, tokens=1, loss=0.0)] * 5]
)
def test_runs_that_fix_nothing_are_refused(runs: list[Measured]) -> None:
    with pytest.raises(TrainingError, match=r"\d runs fix no scaling law"):
        fit_scaling(runs)
