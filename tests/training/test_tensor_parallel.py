"""Which layers are cut between ranks that share a batch, and what cannot be."""

from __future__ import annotations

import pytest

from lmloop.errors import TrainingError
from lmloop.model.config import Experts
from lmloop.training.tensor_parallel import check_split, split_of

from ..conftest import tiny_shape


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("blocks.0.mixer.part.qkv.weight", "rows"),
        ("blocks.0.mixer.part.qkv.bias", "rows"),
        ("blocks.0.mixer.part.output.weight", "columns"),
        ("blocks.0.mixer.part.output.bias", None),
        ("encoder.blocks.1.feed_forward.part.up.weight", "rows"),
        ("encoder.blocks.1.feed_forward.part.down.weight", "columns"),
        ("blocks.0.cross.part.kv.weight", "rows"),
        ("blocks.0.mixer.part.q_norm", None),
        ("embedding.weight", None),
    ],
)
def test_heads_and_inner_features_are_cut_and_the_rest_is_not(name: str, split: str) -> None:
    assert split_of(name) == split


def test_a_number_of_heads_that_does_not_divide_is_named() -> None:
    check_split(tiny_shape(), 2)
    with pytest.raises(
        TrainingError, match=r"^tensor_parallel = 4 does not divide model.num_kv_heads = 2: "
    ):
        check_split(tiny_shape(), 4)


def test_experts_are_not_cut() -> None:
    config = tiny_shape(experts=Experts(count=2, active=1, size=8))  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="^tensor_parallel = 2 cuts attention .* leave it out"):
        check_split(config, 2)
