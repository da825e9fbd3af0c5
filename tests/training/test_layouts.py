"""Layouts that are tried: all fill the cluster, the fastest that fits comes first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lmloop.errors import RecipeError
from lmloop.model.config import ModelConfig
from lmloop.training.cluster import GPUS, Cluster, make_cluster
from lmloop.training.layouts import USABLE_SHARE, try_layouts

CONFIG = ModelConfig(
    vocab_size=32_000,
    num_layers=16,
    hidden_size=2048,
    num_heads=16,
    num_kv_heads=4,
    head_dim=128,
    intermediate_size=5632,
    context_length=2048,
)


def test_layouts_fill_the_cluster_and_the_batch() -> None:
    trials = try_layouts(CONFIG, make_cluster("h100", gpus=16), batch_rows=64, row_tokens=2048)
    for trial in trials:
        assert trial.step.layout.gpus == 16
        assert trial.step.layout.step_tokens == 64 * 2048
    assert {trial.step.layout.tensor_parallel for trial in trials} == {1, 2, 4}
    assert {trial.step.layout.shards for trial in trials} >= {1, 8, 16}


def test_the_fastest_that_fits_comes_first() -> None:
    cluster = make_cluster("h100", gpus=16)
    trials = try_layouts(CONFIG, cluster, batch_rows=64, row_tokens=2048)
    rates = [trial.step.tokens_per_gpu for trial in trials if trial.fits]
    assert rates == sorted(rates, reverse=True)
    room = USABLE_SHARE * cluster.gpu.memory_bytes
    assert all(trial.fits == (trial.step.memory <= room) for trial in trials)


def test_what_is_too_large_is_told_behind_the_rest() -> None:
    tight = Cluster(gpu=replace(GPUS["h100"], memory_bytes=10e9), gpus=8)
    trials = try_layouts(CONFIG, tight, batch_rows=64, row_tokens=2048)
    fits = [trial.fits for trial in trials]
    assert fits == sorted(fits, reverse=True)
    assert fits[0] and not fits[-1]
    assert trials[-1].step.layout.rows == 1


def test_a_degree_that_is_asked_for_is_the_only_one() -> None:
    cluster = make_cluster("h100", gpus=8)
    trials = try_layouts(CONFIG, cluster, batch_rows=8, row_tokens=2048, tensor_parallel=4)
    assert {trial.step.layout.tensor_parallel for trial in trials} == {4}


def test_a_batch_that_cannot_be_dealt_out_is_refused_with_the_size_that_can() -> None:
    with pytest.raises(RecipeError, match="3 rows cannot be dealt to 64 GPUs.*multiple of 131072"):
        try_layouts(
            CONFIG, make_cluster("h100", gpus=64), batch_rows=3, row_tokens=2048, tensor_parallel=1
        )
