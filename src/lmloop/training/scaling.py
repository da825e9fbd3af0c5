"""What a larger run will come to, from small ones: the scaling law of loss.

Takes: sizes, tokens and losses of runs. Gives: L(N, D) = E + A / N^a + B / D^b, and how sure it is.
Source: Hoffmann et al. 2022, section 3.3. Five numbers are more than a few small runs can fix, so
the exponents begin at what Besiroglu et al. 2024 found for text, and leave it as far as the runs
ask for. Axes: R runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from lmloop.errors import TrainingError

Numbers = NDArray[np.float64]
FEWEST_RUNS = 4
EXPONENTS, EXPONENT_SPREAD = (0.35, 0.37), 0.1
FLOOR_SPREAD = 1.0
"""Of ln E, about a third of the lowest loss: hardly more than its order of magnitude."""
NOISE = 0.01
"""Relative scatter of a run's loss between seeds, at least."""
REPETITION = 15.4
"""Passes after which more of the same text is worth little. Source: Muennighoff et al. 2023, R*."""
WITHIN_90 = 1.645
"""Standard deviations that hold 90 % of a normal distribution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A run that is over."""

    parameters: int
    tokens: float
    """As they count: see `count_repeated`."""
    loss: float
    """In bits per byte or nats: the law does not mind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """A loss, and between what 90 % of such runs should end."""

    loss: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ScalingLaw:
    """The fitted law."""

    values: Numbers
    """ln E, ln A, ln B, a, b, [5]."""
    covariance: Numbers
    """[5, 5]."""
    center: Numbers
    """ln N and ln D to which A and B refer, [2]."""
    scatter: float
    """Relative standard deviation of the runs around the law."""

    def predict(self, *, parameters: int, tokens: float) -> Expected:
        """The expected loss of a run; raises nothing, but far away the range is wide."""
        place = np.log([[parameters, tokens]]) - self.center

        def logarithm(values: Numbers) -> float:
            return float(_log_loss(values, place)[0])

        steps = 1e-5 * np.eye(len(self.values))
        slope = np.array(
            [
                (logarithm(self.values + step) - logarithm(self.values - step)) / 2e-5
                for step in steps
            ]
        )
        middle = logarithm(self.values)
        spread = math.sqrt(slope @ self.covariance @ slope + self.scatter**2)
        low, high = (math.exp(middle + side * WITHIN_90 * spread) for side in (-1, 1))
        return Expected(loss=math.exp(middle), low=low, high=high)


def fit_scaling(runs: Sequence[Measured]) -> ScalingLaw:
    """The likeliest law of some runs, with the covariance of its numbers (Laplace).

    Raises `TrainingError` for too few runs or a loss that is no positive number.
    """
    if len(runs) < FEWEST_RUNS or not all(0 < run.loss < math.inf for run in runs):
        raise TrainingError(
            f"{len(runs)} runs fix no scaling law: at least {FEWEST_RUNS} with finite losses are "
            "needed, give --fit-seconds more"
        )
    places = np.log([[run.parameters, run.tokens] for run in runs])
    center = places.mean(axis=0)
    losses = np.log([run.loss for run in runs])
    third = math.log(min(run.loss for run in runs) / 3)
    prior = np.array([third, third, third, *EXPONENTS])
    spread = np.array([FLOOR_SPREAD, 3.0, 3.0, EXPONENT_SPREAD, EXPONENT_SPREAD])

    def residuals(values: Numbers) -> Numbers:
        missed = (_log_loss(values, places - center) - losses) / NOISE
        return np.concatenate([missed, (values - prior) / spread])

    found = least_squares(residuals, prior, x_scale=spread)
    missed = _log_loss(found.x, places - center) - losses
    # What five numbers explain of themselves is no evidence: count at least one run as free.
    free = max(1, len(runs) - 3)
    scatter = max(NOISE, math.sqrt(float(missed @ missed) / free))
    covariance = np.linalg.inv(found.jac.T @ found.jac) * (scatter / NOISE) ** 2
    return ScalingLaw(found.x, covariance, center, scatter)


def count_repeated(tokens: float, *, unique: int) -> float:
    """What so many tokens are worth where the text has fewer and is read again.

    U + U · R* · (1 − e^(−R / R*)) for R passes beyond the first. Source: Muennighoff et al. 2023,
    Scaling Data-Constrained Language Models, equation 5.
    """
    again = tokens / unique - 1
    if again <= 0:
        return tokens
    return unique * (1 + REPETITION * (1 - math.exp(-again / REPETITION)))


def _log_loss(values: Numbers, places: Numbers) -> Numbers:
    """ln L of ln E, ln A, ln B, a, b [5] at centered ln N, ln D [R, 2]."""
    floor = np.full(len(places), values[0])
    by_size, by_tokens = (values[1 + i] - values[3 + i] * places[:, i] for i in range(2))
    return np.asarray(np.logaddexp(np.logaddexp(floor, by_size), by_tokens))
