"""What is computed twice is the same the second time, to the last bit of every gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from lmloop.model.activations import Batch, activation_bytes
from lmloop.model.config import ModelConfig
from lmloop.model.recompute import Checkpointing
from lmloop.model.transformer import Transformer

from ..conftest import random_model
from .kinds import DECODERS, decoder, encoder, pair

ROWS, LENGTH, SOURCE_LENGTH = 3, 7, 5


def run(config: ModelConfig, checkpointing: Checkpointing) -> tuple[Tensor, Transformer]:
    model = random_model(config).train()
    model.checkpoint(checkpointing)
    torch.manual_seed(3)
    drawn = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, config.vocab_size, (ROWS, LENGTH), generator=drawn)
    source = None if config.encoder is None else model.read(tokens[:, :SOURCE_LENGTH])
    states = model.states(tokens, source=source)
    (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
    return states.detach(), model


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("make", [decoder, encoder, pair])
@pytest.mark.parametrize("kind", [each for each in DECODERS if each != "batch norm"])
def test_gradients_are_the_same_bit_for_bit(
    kind: str, make: Callable[..., ModelConfig], dropout: float
) -> None:
    config = make(kind, dropout=dropout)
    expected, plain = run(config, "none")
    for checkpointing in ("selective", "full"):
        states, model = run(config, checkpointing)
        assert torch.equal(states, expected)
        for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None), name
            assert one.grad is None or torch.equal(one.grad, other.grad), name


def test_less_is_kept_the_more_is_computed_again() -> None:
    config = decoder("qwen3")
    kept = {}
    for checkpointing in get_args(Checkpointing):
        model = random_model(config).train()
        model.checkpoint(checkpointing)
        held: dict[int, int] = {}

        def keep(tensor: Tensor, held: dict[int, int] = held) -> Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.states(torch.zeros(ROWS, LENGTH, dtype=torch.int64))
        kept[checkpointing] = sum(held.values())
    # Products that selective keeps lie in a cache that these hooks do not see.
    assert kept["full"] <= kept["selective"] < kept["none"]


def test_bytes_are_those_of_the_states_between_blocks_and_of_products() -> None:
    batch = Batch(rows=2, row_tokens=100, element_bytes=4)
    config = decoder("qwen3")
    base = activation_bytes(config, batch, checkpointing="full")
    # Of a block: one state a token, and where its noise began.
    deeper = decoder("qwen3", num_layers=config.num_layers + 1)
    added = activation_bytes(deeper, batch, checkpointing="full") - base
    assert added == 200 * config.hidden_size * 4 + len(torch.get_rng_state())
    products = sum(config.qkv_rows) + 2 * config.hidden_size + 2 * config.intermediate_size
    selective = activation_bytes(config, batch, checkpointing="selective") - base
    assert selective == config.num_layers * 200 * products * 4
    assert base + selective < activation_bytes(config, batch)


def test_nothing_is_computed_twice_where_nothing_learns() -> None:
    model = random_model(decoder("qwen3")).eval()
    model.checkpoint("full")
    calls = []
    model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model.states(torch.zeros(1, LENGTH, dtype=torch.int64))
    assert calls == [1]
