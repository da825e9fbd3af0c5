"""The rate of plain products, by a clock that the test holds."""

from __future__ import annotations

import pytest
import torch

from lmloop.training import peak
from lmloop.training.peak import measure_peak

from .conftest import make_clock


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "SIZES", {"cpu": 4})


def test_the_rate_is_of_the_largest_product_within_the_time() -> None:
    # Each look at the clock is 1 ms: so long takes a product of 4, of 8 and of 16 rows.
    rate = measure_peak(torch.float32, seconds=1.0, clock=make_clock(0.001))
    assert rate == pytest.approx(2 * 16**3 / 0.001)


def test_a_slow_machine_does_two_products_and_no_larger_ones() -> None:
    looks = 0

    def clock() -> float:
        nonlocal looks
        looks += 1
        return float(looks)

    assert measure_peak(torch.float32, seconds=0.1, clock=clock) == pytest.approx(2 * 4**3)
    assert looks < 10


def test_no_generator_moves() -> None:
    before = torch.get_rng_state()
    measure_peak(torch.bfloat16, seconds=0.001)
    assert torch.equal(torch.get_rng_state(), before)
