"""Rotary positions in a config: both spellings, and what is refused."""

from __future__ import annotations

import pytest

from lmloop.errors import ArtifactError
from lmloop.model.rotary import RopeScaling
from lmloop.weights.rope_entries import read_rope, write_rope

YARN = RopeScaling(kind="yarn", factor=4.0, original_length=16, low=1.0, high=32.0)


def test_base_and_scaling_come_back() -> None:
    for scaling in (None, YARN, RopeScaling(kind="linear", factor=2.0)):
        told = {"rope_parameters": write_rope(5e5, scaling)}
        assert read_rope(told, context_length=64) == (5e5, scaling)


def test_an_older_config_has_the_base_beside_the_scaling() -> None:
    told = {"rope_theta": 7.0, "rope_scaling": {"type": "yarn", "factor": 4.0}}
    theta, scaling = read_rope(told, context_length=16)
    assert (theta, scaling) == (7.0, YARN)


def test_an_entry_that_is_not_read_is_refused() -> None:
    told = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "mscale": 1.0}}
    with pytest.raises(ArtifactError, match="mscale"):
        read_rope(told, context_length=16)
    assert read_rope(told, context_length=16, known=("mscale",))[1] is not None
