"""Positions: waves, angles of each layer, buckets of distances."""

from __future__ import annotations

import math

import torch

from lmloop.model.positions import RelativeBias, Rotary, sinusoids

from .angles import angles_of
from .kinds import decoder, encoder


def test_waves_are_those_of_the_paper() -> None:
    found = sinusoids(torch.tensor([0, 3]), width=4)
    expected = [[0.0, 1.0, 0.0, 1.0], [math.sin(3), math.cos(3), math.sin(0.03), math.cos(0.03)]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_local_layers_turn_at_a_speed_of_their_own() -> None:
    rotary = Rotary(decoder("gemma", rope_theta=1e4, local_rope_theta=100.0))
    places = torch.arange(5)
    everywhere, local = rotary.places(places, dtype=torch.float32)
    for place, theta in ((everywhere, 1e4), (local, 100.0)):
        assert place.angles is not None
        for found, expected in zip(
            place.angles,
            angles_of(places, head_dim=8, theta=theta, dtype=torch.float32),
            strict=True,
        ):
            assert torch.equal(found, expected)


def buckets(causal: bool, distances: list[int]) -> list[int]:
    make = decoder if causal else encoder
    bias = RelativeBias(make("relative", relative_buckets=8, relative_distance=32, num_heads=4))
    with torch.no_grad():
        bias.weight.copy_(torch.arange(8.0)[:, None].expand(8, 4))
    found = bias(torch.tensor([distances]))
    assert found.shape == (4, 1, len(distances))
    return [int(number) for number in found[0, 0]]


def test_near_distances_have_buckets_of_their_own_and_far_ones_share() -> None:
    # Four exact, then four up to 32 by their logarithm: 4-6, 7-11, 12-19, 20 and more.
    assert buckets(True, [0, 1, 2, 3, 4, 6, 7, 11, 12, 19, 20, 31, 500]) == [
        *(0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7, 7)
    ]
    assert buckets(True, [-1, -7]) == [0, 0]


def test_an_encoder_tells_before_from_behind() -> None:
    assert buckets(False, [0, 1, 2, 40, -1, -2, -40]) == [0, 1, 2, 3, 5, 6, 7]
