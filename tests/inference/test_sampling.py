"""How one token is drawn: the shares by hand, and what is refused."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from lmloop.errors import RequestError
from lmloop.inference.sampling import Sampling, choose

SHARES = torch.tensor([0.1, 0.4, 0.2, 0.3])
LOGITS = SHARES.log() + 5.0
DRAWS = 2000


def draw(
    logits: Tensor = LOGITS, *, count: int = DRAWS, seed: int = 0, **asked: Any
) -> Counter[int]:
    generator = torch.Generator().manual_seed(seed)
    sampling = Sampling(**asked)
    return Counter(choose(logits, sampling, generator) for _ in range(count))


def shares(counts: Counter[int]) -> list[float]:
    return [counts[token] / counts.total() for token in range(4)]


# Two thousand draws: three standard deviations are less than four hundredths.
def near(expected: list[float]) -> Any:
    return pytest.approx(expected, abs=0.04)


def test_temperature_zero_takes_the_most_likely() -> None:
    assert draw(temperature=0, count=20) == {1: 20}


def test_temperature_one_draws_by_the_models_shares() -> None:
    assert shares(draw()) == near(SHARES.tolist())


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_temperature_bends_the_shares(temperature: float) -> None:
    expected = (LOGITS / temperature).softmax(0).tolist()
    assert shares(draw(temperature=temperature)) == near(expected)


def test_top_k_keeps_the_k_most_likely() -> None:
    assert shares(draw(top_k=2)) == near([0, 4 / 7, 0, 3 / 7])
    assert draw(top_k=1, count=20) == {1: 20}
    assert shares(draw(top_k=99)) == near(SHARES.tolist())


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.01, {1}), (0.39, {1}), (0.41, {1, 3}), (0.69, {1, 3}), (0.95, {0, 1, 2, 3})],
)
def test_the_nucleus_ends_with_the_token_that_reaches_the_share(
    top_p: float, kept: set[int]
) -> None:
    assert set(draw(top_p=top_p, count=300)) == kept


def test_the_nucleus_is_taken_of_the_bent_shares_of_the_top_k() -> None:
    # Of the two most likely the first has 4/7 = 0.571 of the share.
    assert set(draw(top_k=2, top_p=0.57, count=100)) == {1}
    assert set(draw(top_k=2, top_p=0.58, count=100)) == {1, 3}


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    def sequence(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return [choose(LOGITS, Sampling(), generator) for _ in range(30)]

    assert sequence(1) == sequence(1) != sequence(2)


@pytest.mark.parametrize("temperature", [1e-40, 1e-10, 9e-4])
def test_a_temperature_near_zero_takes_the_most_likely_and_does_not_overflow(
    temperature: float,
) -> None:
    assert draw(LOGITS * 1e4, temperature=temperature, top_p=0.5, count=3) == {1: 3}


@pytest.mark.parametrize("top_p", [1e-300, 5e-324, 1e-7])
def test_the_smallest_nucleus_still_holds_one_token(top_p: float) -> None:
    assert draw(top_p=top_p, count=3) == {1: 3}


def test_bfloat16_logits_are_drawn_from_in_single_precision() -> None:
    assert shares(draw(LOGITS.bfloat16())) == near(SHARES.tolist())


def test_the_logits_are_left_as_they_were() -> None:
    logits = LOGITS.clone()
    draw(logits, temperature=0.5, top_k=3, top_p=0.5, count=2)
    assert torch.equal(logits, LOGITS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("top_k", 0),
        ("top_k", -1),
    ],
)
def test_what_nothing_can_be_drawn_with_is_refused(field: str, value: float) -> None:
    with pytest.raises(RequestError, match=f"{field} is {value}") as caught:
        Sampling(**{field: value})  # type: ignore[arg-type]
    assert (caught.value.status, caught.value.param) == (400, field)
