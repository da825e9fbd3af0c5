"""Costs foretold against costs counted."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lmloop.model.cache import SlotCache
from lmloop.model.config import ModelConfig
from lmloop.model.cost import (
    cache_bytes_per_token,
    count_parameters,
    training_bytes,
    training_flops_per_token,
)
from lmloop.model.transformer import Transformer

from ..conftest import tiny_shape

REFERENCE = ModelConfig(
    vocab_size=8192,
    num_layers=6,
    hidden_size=384,
    num_heads=6,
    num_kv_heads=6,
    head_dim=64,
    intermediate_size=1024,
    context_length=256,
)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("keys", [1, 2, 4])
def test_parameters_are_as_many_as_the_model_has(tied: bool, keys: int) -> None:
    config = tiny_shape(tie_embeddings=tied, num_kv_heads=keys)
    model = Transformer(config)
    assert count_parameters(config) == sum(each.numel() for each in model.parameters())


@pytest.mark.parametrize(("norm", "bias"), [(False, False), (False, True), (True, True)])
def test_norms_and_biases_of_queries_and_keys_are_counted(norm: bool, bias: bool) -> None:
    config = tiny_shape(qk_norm=norm, qkv_bias=bias)
    model = Transformer(config)
    assert count_parameters(config) == sum(each.numel() for each in model.parameters())


def test_the_reference_decoder_has_fourteen_million() -> None:
    assert count_parameters(REFERENCE) == pytest.approx(13.77e6, rel=1e-3)


def test_arithmetic_is_what_the_operators_do() -> None:
    config = tiny_shape(tie_embeddings=False)
    model, rows, length = Transformer(config), 2, 16
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(rows, length, dtype=torch.int64)).sum().backward()
    counted = counter.get_total_flops() / (rows * length)
    told = training_flops_per_token(config, row_tokens=length)
    # The formula counts norms and the embedding's look-up as if they were products, and the first
    # layer's input needs no gradient.
    looked_up = 6 * config.vocab_size * config.hidden_size
    assert told - looked_up == pytest.approx(counted, rel=0.05)


def test_arithmetic_written_by_hand() -> None:
    told = training_flops_per_token(REFERENCE, row_tokens=256)
    assert told == 6 * count_parameters(REFERENCE) + 12 * 6 * 384 * 256


def test_the_cache_holds_as_many_bytes_a_token_as_foretold() -> None:
    config = tiny_shape()
    cache = SlotCache(config, slots=3, length=10, dtype=torch.bfloat16)
    held = sum(tensor.nbytes for layer in cache.layers for tensor in layer.tensors())
    assert cache_bytes_per_token(config) * 30 == held
    assert cache_bytes_per_token(config, element_bytes=4) * 30 == 2 * held


def test_training_needs_sixteen_bytes_a_parameter_and_activations_by_the_token() -> None:
    parts = training_bytes(REFERENCE, batch_tokens=4096, row_tokens=256)
    parameters = count_parameters(REFERENCE)
    assert sum(parts.values()) - parts["activations"] == 16 * parameters
    double = training_bytes(REFERENCE, batch_tokens=8192, row_tokens=256)
    assert double["activations"] == 2 * parts["activations"]
