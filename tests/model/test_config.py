"""What follows from a decoder's shape."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lmloop.model.config import Picture

from ..conftest import tiny_shape
from .kinds import seeing


def test_queries_keys_and_values_have_the_rows_of_their_heads() -> None:
    assert tiny_shape(num_heads=6, num_kv_heads=3, head_dim=4).qkv_rows == (24, 12, 12)


def test_a_picture_becomes_a_vector_a_patch_and_those_in_front() -> None:
    assert Picture(size=224, patch=16).length == 197
    assert Picture(size=12, patch=4, leading=0).length == 9


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"size": 30, "patch": 4}, "30 pixels make no whole patches of 4"),
        ({"size": 8, "patch": 0}, "patch is 0: at least 1"),
        ({"size": 8, "patch": 4, "channels": 0}, "channels is 0: at least 1"),
        ({"size": 8, "patch": 4, "leading": -1}, "leading is -1: at least 0"),
    ],
)
def test_a_picture_has_whole_patches(entries: dict[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Picture(**entries)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"picture": Picture(size=8, patch=2)}, "becomes 17 vectors, context_length is 10"),
        ({"audio_bins": 4}, "one of audio_bins and picture"),
        ({"head": "plain"}, "its head is 'none'"),
    ],
)
def test_a_stack_that_sees_fits_its_pictures(changes: dict[str, Any], told: str) -> None:
    assert not seeing().reads_tokens
    with pytest.raises(ValueError, match=re.escape(told)):
        seeing(**changes)
