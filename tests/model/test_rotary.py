"""Rotary frequencies by hand, and what scaling leaves alone."""

from __future__ import annotations

import math

import pytest
import torch

from lmloop.model.rotary import RopeScaling, rotary_angles, rotary_frequencies

from .angles import angles_of


def test_angles_are_positions_times_powers_of_theta() -> None:
    cosine, sine = angles_of(torch.tensor([0, 1, 10]), head_dim=4, theta=100.0, dtype=torch.float32)
    expected = torch.tensor([[0.0, 0.0], [1.0, 0.1], [10.0, 1.0]])
    assert cosine.shape == sine.shape == (3, 1, 2)
    torch.testing.assert_close(cosine[:, 0], expected.cos())
    torch.testing.assert_close(sine[:, 0], expected.sin())


def test_linear_scaling_divides_every_frequency() -> None:
    plain = rotary_frequencies(8, theta=1e4, scaling=None)
    scaled = rotary_frequencies(8, theta=1e4, scaling=RopeScaling(kind="linear", factor=4.0))
    torch.testing.assert_close(scaled, plain / 4)


@pytest.mark.parametrize("kind", ["llama3", "yarn"])
def test_fast_pairs_stay_and_slow_ones_are_scaled(kind: str) -> None:
    scaling = RopeScaling(
        kind=kind,  # type: ignore[arg-type]
        factor=8.0,
        original_length=8192,
        low=1.0,
        high=4.0,
    )
    plain = rotary_frequencies(64, theta=5e5, scaling=None)
    ratio = rotary_frequencies(64, theta=5e5, scaling=scaling) / plain
    turns = 8192 * plain / (2 * math.pi)
    torch.testing.assert_close(ratio[turns > 8], torch.ones(int((turns > 8).sum())))
    torch.testing.assert_close(ratio[turns < 0.5], torch.full((int((turns < 0.5).sum()),), 1 / 8))
    assert bool((ratio.diff() <= 1e-7).all())


def test_yarn_makes_angles_longer_by_its_factor_and_others_do_not() -> None:
    yarn = RopeScaling(kind="yarn", factor=4.0, original_length=64, high=32.0)
    assert yarn.magnitude == pytest.approx(0.1 * math.log(4) + 1)
    told = RopeScaling(kind="yarn", factor=4.0, original_length=64, attention_factor=0.5)
    assert told.magnitude == 0.5
    assert RopeScaling(kind="linear", factor=4.0).magnitude == 1.0
    cosine, sine = rotary_angles(
        torch.tensor([0, 3]), torch.tensor([1.0]), dtype=torch.float32, magnitude=2.0
    )
    torch.testing.assert_close((cosine**2 + sine**2).flatten(), torch.tensor([4.0, 4.0]))


def test_ntk_scales_the_slowest_pair_in_full_and_the_fastest_not_at_all() -> None:
    plain = rotary_frequencies(16, theta=1e4, scaling=None)
    scaled = rotary_frequencies(16, theta=1e4, scaling=RopeScaling(kind="ntk", factor=4.0))
    assert scaled[0] == plain[0]
    torch.testing.assert_close(scaled[-1], plain[-1] / 4)
    assert (scaled[1:-1] < plain[1:-1]).all()
    assert (scaled[1:-1] > plain[1:-1] / 4).all()
