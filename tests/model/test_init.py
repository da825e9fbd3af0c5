"""How a new model begins."""

from __future__ import annotations

import torch

from lmloop.model.init import initialise
from lmloop.model.transformer import Transformer

from ..conftest import tiny_shape


def make(seed: int, **changes: bool | int) -> Transformer:
    model = Transformer(tiny_shape(**changes))
    initialise(model, seed=seed)
    return model


def test_the_same_seed_gives_the_same_model_and_another_one_does_not() -> None:
    one, again, other = make(0), make(0), make(1)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert not torch.equal(one.embedding.weight, other.embedding.weight)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    initialise(Transformer(tiny_shape()).to_empty(device="cpu"), seed=0)
    model = Transformer(tiny_shape())
    after_construction = torch.get_rng_state()
    initialise(model, seed=3)
    assert torch.equal(torch.get_rng_state(), after_construction)
    torch.set_rng_state(before)


def test_every_parameter_starts_as_the_table_says() -> None:
    model = make(0, hidden_size=96, intermediate_size=200, vocab_size=400, tie_embeddings=False)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        elif name.startswith("embedding"):
            assert abs(parameter.std() - 0.02) < 0.001, name
        elif "qkv" in name or "part.up" in name:
            assert abs(parameter.std() - 96**-0.5) < 0.005, name
        else:
            assert not parameter.any(), name


def test_every_block_begins_as_the_identity() -> None:
    model, tokens = make(0), torch.tensor([[1, 2, 3]])
    expected = model.project(model.norm(model.embedding(tokens[0])))
    torch.testing.assert_close(model(tokens)[0], expected)


def test_an_untied_model_begins_with_no_opinion() -> None:
    logits = make(0, tie_embeddings=False)(torch.tensor([[1, 2, 3]]))
    assert not logits.any()
