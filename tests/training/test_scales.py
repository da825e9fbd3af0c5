"""Frozen parts and layer-wise rates, by name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lmloop.errors import TrainingError
from lmloop.model.transformer import Transformer
from lmloop.training.scales import rate_scales

from ..conftest import tiny_shape

QKV = "mixer.part.qkv.weight"


def test_lower_layers_learn_more_slowly() -> None:
    scales = rate_scales(Transformer(tiny_shape(num_layers=3)), layer_decay=0.5)
    assert scales["norm.weight"] == 1.0
    assert [scales[f"blocks.{layer}.{QKV}"] for layer in range(3)] == [0.25, 0.5, 1.0]
    assert scales["embedding.weight"] == 0.125


def test_an_encoder_counts_its_own_layers() -> None:
    shape = tiny_shape(num_layers=2)
    encoder = replace(shape, causal=False, head="none", num_layers=3)
    scales = rate_scales(Transformer(replace(shape, encoder=encoder)), layer_decay=0.5)
    assert [scales[f"encoder.blocks.{layer}.{QKV}"] for layer in range(3)] == [0.25, 0.5, 1.0]
    assert [scales[f"blocks.{layer}.{QKV}"] for layer in range(2)] == [0.5, 1.0]


def test_patterns_freeze_what_they_fit_and_nothing_else() -> None:
    model = Transformer(tiny_shape(num_layers=3))
    scales = rate_scales(model, frozen=("embedding.*", "blocks.[01].*"))
    still = {name for name, scale in scales.items() if scale == 0}
    assert "embedding.weight" in still
    assert {name.split(".")[1] for name in still if name.startswith("blocks.")} == {"0", "1"}
    assert scales["norm.weight"] == scales[f"blocks.2.{QKV}"] == 1.0


def test_a_pattern_that_fits_nothing_is_told_with_names_that_exist() -> None:
    with pytest.raises(TrainingError, match=r"frozen = 'layers.0' fits no parameter: .*'embedding"):
        rate_scales(Transformer(tiny_shape()), frozen=("layers.0",))


def test_there_must_be_something_left_to_learn() -> None:
    with pytest.raises(TrainingError, match="leaves nothing to learn"):
        rate_scales(Transformer(tiny_shape()), frozen=("*",))
