"""An adapter hung in for training: it alone learns, and folded in it computes the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lmloop.errors import ArtifactError
from lmloop.model.nf4 import expand_from_nf4, shrink_to_nf4
from lmloop.model.transformer import Transformer
from lmloop.training.adapting import FOLDER, adapt, fold, held_bytes
from lmloop.training.optim import make_optimizer
from lmloop.weights.adapter_files import load_adapter

from ..conftest import random_model, tiny_shape
from .conftest import make_config

TOKENS = torch.arange(20)[None] % 50


@pytest.fixture
def model() -> Transformer:
    return random_model(tiny_shape())


def move(model: Transformer, **changes: Any) -> None:
    """A few steps on a loss of no meaning."""
    optimizer = make_optimizer(model, make_config(**changes))
    for _ in range(3):
        model(TOKENS).square().mean().backward()
        optimizer.step(1.0, clip=1.0)


def test_without_a_rank_the_model_stays_as_it_is(model: Transformer) -> None:
    assert adapt(model, make_config(), seed=0) is None
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_new_adapter_changes_nothing_and_alone_learns(model: Transformer) -> None:
    before = {name: each.clone() for name, each in model.state_dict().items()}
    expected = model(TOKENS)
    assert adapt(model, make_config(lora_rank=2), seed=0) is not None
    assert torch.equal(model(TOKENS), expected)
    learnt = {name for name, each in model.named_parameters() if each.requires_grad}
    assert learnt and all(name.startswith(f"{FOLDER}.") for name in learnt)
    move(model, lora_rank=2)
    for name, tensor in before.items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert not torch.equal(model(TOKENS), expected)


@pytest.mark.parametrize("dora", [False, True])
def test_what_is_folded_in_computes_as_what_hung_beside(
    model: Transformer, tmp_path: Path, dora: bool
) -> None:
    names = set(model.state_dict())
    options: dict[str, Any] = {"lora_rank": 3, "lora_alpha": 6.0, "dora": dora}
    bank = adapt(model, make_config(**options), seed=0)
    assert bank is not None
    move(model, **options)
    with torch.no_grad():
        expected = model(TOKENS)
    fold(bank, tmp_path)
    assert set(model.state_dict()) == names
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS), expected, rtol=1e-4, atol=1e-5)
    told = json.loads((tmp_path / FOLDER / "adapter_config.json").read_text("utf-8"))
    assert (told["r"], told["lora_alpha"], told["use_dora"]) == (3, 6.0, dora)
    assert load_adapter(tmp_path / FOLDER, random_model(tiny_shape())).config.rank == 3


def test_the_same_seed_draws_the_same_adapter() -> None:
    drawn = []
    for seed in (0, 0, 1):
        model = random_model(tiny_shape())
        adapt(model, make_config(lora_rank=2), seed=seed)
        drawn.append(
            torch.cat([each.flatten() for each in model.get_submodule(FOLDER).parameters()])
        )
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_target_that_no_matrix_is_called_is_named(model: Transformer) -> None:
    with pytest.raises(ArtifactError, match="no matrix has a name that ends in"):
        adapt(model, make_config(lora_rank=2, lora_targets=("w_proj",)), seed=0)
    bank = adapt(model, make_config(lora_rank=2, lora_targets=("q_proj",)), seed=0)
    assert bank is not None
    assert all(".q_proj" in name for pairs in bank.adapters[0].pairs.values() for name in pairs)


@pytest.mark.parametrize("dora", [False, True])
def test_beside_four_bits_an_adapter_learns_as_beside_the_same_dense_weights(dora: bool) -> None:
    options: dict[str, Any] = {"lora_rank": 3, "dora": dora}
    adapters = []
    for bits in (4, None):
        model = random_model(tiny_shape())
        if bits is None:
            shrink_to_nf4(model)
            expand_from_nf4(model, dtype=torch.float32)
        assert adapt(model, make_config(**options, base_bits=bits), seed=0) is not None
        move(model, **options)
        adapters.append(dict(model.get_submodule(FOLDER).named_parameters()))
    assert adapters[0].keys() == adapters[1].keys()
    for name, tensor in adapters[0].items():
        assert torch.equal(tensor, adapters[1][name]), name


def test_what_was_learnt_beside_four_bits_is_folded_into_them(
    model: Transformer, tmp_path: Path
) -> None:
    names, whole = set(model.state_dict()), held_bytes(model)
    bank = adapt(model, make_config(lora_rank=1, base_bits=4), seed=0)
    assert bank is not None
    assert held_bytes(model) < whole
    move(model, lora_rank=1)
    with torch.no_grad():
        expected = model(TOKENS)
    fold(bank, tmp_path)
    assert set(model.state_dict()) == names
    assert held_bytes(model) == whole
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS), expected, rtol=1e-4, atol=1e-5)
    assert load_adapter(tmp_path / FOLDER, random_model(tiny_shape())).config.rank == 1


def test_four_bits_need_an_adapter() -> None:
    with pytest.raises(ValueError, match="base_bits needs lora_rank"):
        make_config(base_bits=4)
