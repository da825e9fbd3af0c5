"""Costs foretold against costs counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lmloop.model.cache import Chunk, SlotCache
from lmloop.model.config import ModelConfig, Picture
from lmloop.model.cost import (
    cache_bytes_per_sequence,
    cache_bytes_per_token,
    count_parameters,
    decode_flops,
    prefill_flops,
    source_flops,
    training_flops_per_token,
)
from lmloop.model.transformer import Transformer

from ..conftest import random_model, tiny_shape
from ..reference.core import states_of
from .kinds import DECODERS, decoder, draw_pictures, encoder, pair, seeing

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


@pytest.mark.parametrize("make", [decoder, encoder, pair])
@pytest.mark.parametrize("kind", DECODERS)
def test_parameters_are_as_many_as_the_model_has(kind: str, make: type) -> None:
    for changes in (
        {"tie_embeddings": False},
        {"num_kv_heads": tiny_shape(**DECODERS[kind]).num_heads},
    ):
        config = make(kind, **changes)
        model = Transformer(config)
        assert count_parameters(config) == sum(each.numel() for each in model.parameters())


def test_what_heads_inputs_and_stems_have_is_counted() -> None:
    read = encoder("gpt2", audio_bins=7, head="none", hidden_size=32, embedding_norm=True)
    for config in (
        encoder("gpt2", head="transformed", token_types=2, embedding_norm=True),
        decoder("gpt2", encoder=read),
        decoder("gpt2", encoder=seeing(hidden_size=32)),
        seeing(picture=Picture(size=6, patch=2, leading=0)),
        encoder("gpt2", head="none"),
    ):
        model = Transformer(config)
        assert count_parameters(config) == sum(each.numel() for each in model.parameters())


def test_the_reference_decoder_has_fourteen_million() -> None:
    assert count_parameters(REFERENCE) == pytest.approx(13.77e6, rel=1e-3)


COUNTED = [kind for kind in DECODERS if not {"lstm", "gru"} & {*DECODERS[kind].get("mixers", ())}]
"""PyTorch counts no arithmetic inside recurrent layers."""
RECURRENT = [
    *(make(kind, head="none") for kind in ("lstm", "gru") for make in (decoder, encoder)),
    decoder("convolution, then recurrent", head="none", pooling=1),
    encoder("recurrent, then attention", head="none"),
]


def count_flops(run: Callable[[], object]) -> int:
    # PyTorch does not count inside its fused attention for the CPU.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("make", [decoder, encoder])
@pytest.mark.parametrize("kind", COUNTED)
def test_the_arithmetic_of_training_is_what_pytorch_counts(kind: str, make: type) -> None:
    config, rows, length = make(kind, tie_embeddings=False), 2, 16
    model = random_model(config)
    tokens = torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(0))
    counted = count_flops(lambda: model(tokens).sum().backward()) / (rows * length)
    told = training_flops_per_token(config, row_tokens=length)
    assert told == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize("kind", COUNTED)
def test_the_arithmetic_of_pairs_is_what_pytorch_counts(kind: str) -> None:
    config, length, source_tokens = pair(kind, context_length=96), 64, 96
    model = random_model(config).train()
    source = torch.randint(0, 50, (1, source_tokens), generator=torch.Generator().manual_seed(0))
    tokens = source[:, :length]
    counted = count_flops(lambda: model(tokens, source=model.read(source)).sum().backward())
    told = training_flops_per_token(config, row_tokens=length, source_tokens=source_tokens)
    assert told == pytest.approx(counted / length, rel=0.02)


def test_the_arithmetic_of_seeing_is_what_pytorch_counts() -> None:
    config, length = decoder("gpt2", encoder=seeing()), 64
    model, pictures = random_model(config), draw_pictures(1)
    tokens = torch.zeros(1, length, dtype=torch.int64)
    counted = count_flops(lambda: model(tokens, source=model.read(pictures)))
    told = training_flops_per_token(config, row_tokens=length, source_tokens=10) / 3
    assert told == pytest.approx(counted / length, rel=0.02)
    # Of the picture alone, where it weighs: 9 patches of 8 numbers each, one vector in front.
    counted = count_flops(lambda: model.encoder.embedding(pictures))
    blind = replace(config, encoder=encoder("gpt2", head="none", context_length=10))
    told = source_flops(config, source_tokens=10) - source_flops(blind, source_tokens=10)
    assert told == pytest.approx(counted) == 2 * 9 * 8 * 24


@pytest.mark.parametrize("kind", sorted({*COUNTED} - {"convolution"}))
@torch.no_grad()
def test_the_arithmetic_of_generation_is_what_pytorch_counts(kind: str) -> None:
    config = decoder(kind)
    model, length = random_model(config).eval(), 16
    cache = SlotCache(config, slots=1, length=length + 1, dtype=torch.float32)

    def step(start: int, count: int) -> Tensor:
        view = cache.view([Chunk(0, start, count)])
        states = model.encode(torch.zeros(count, dtype=torch.int64), view.positions, view)
        return model.project(states[-1:])

    assert prefill_flops(config, length=length) == pytest.approx(
        count_flops(lambda: step(0, length)), rel=0.02
    )
    assert decode_flops(config, keys=length + 1) == pytest.approx(
        count_flops(lambda: step(length, 1)), rel=0.02
    )


@pytest.mark.parametrize("config", RECURRENT)
def test_the_arithmetic_of_recurrences_is_that_of_their_slow_form(config: ModelConfig) -> None:
    # What PyTorch does not count in its recurrent layers it counts in the products of the oracle,
    # a token after the other.
    model, tokens = random_model(config), list(range(12))
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    vectors = {torch.ops.aten.mv: lambda matrix, vector, **_: 2 * matrix[0] * matrix[1]}
    vectors[torch.ops.aten.dot] = lambda one, other, **_: 2 * one[0]
    with FlopCounterMode(display=False, custom_mapping=vectors) as counter:
        states_of(state, config, tokens)
    told = decode_flops(config, keys=len(tokens)) * len(tokens)
    assert told == counter.get_total_flops()


def test_the_arithmetic_of_a_plain_decoder_is_that_of_the_papers() -> None:
    told = training_flops_per_token(REFERENCE, row_tokens=256)
    expected = 6 * count_parameters(REFERENCE) + 12 * 6 * 384 * 256
    assert told == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("kind", DECODERS)
def test_the_cache_holds_as_many_bytes_as_foretold(kind: str) -> None:
    config = pair(kind)
    cache = SlotCache(config, slots=3, length=10, source_length=7, dtype=torch.bfloat16)
    held = sum(t.nbytes for store in (*cache.layers, *cache.sources) for t in store.tensors())
    for size, bytes_held in ((2, held), (4, 2 * held)):
        a_token = cache_bytes_per_token(config, element_bytes=size)
        a_sequence = cache_bytes_per_sequence(config, source_tokens=7, element_bytes=size)
        assert 3 * (10 * a_token + a_sequence) == bytes_held
