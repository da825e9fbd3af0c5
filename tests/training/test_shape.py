"""Recipes' shapes: the family that others know, and our own where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lmloop.sections import ModelSection
from lmloop.training.shape import model_config
from lmloop.weights.checkpoint import load_model, save_model

from ..conftest import random_model

SMALL: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 16,
    "num_heads": 2,
    "num_kv_heads": 2,
    "head_dim": 8,
    "intermediate_size": 24,
}
SHAPES: dict[str, tuple[dict[str, Any], str]] = {
    "as it stands": ({}, "qwen3"),
    "no norm of queries": ({"qk_norm": False}, "llama"),
    "recurrent": ({"mixers": ("lstm", "gru"), "positions": "none"}, "lmloop"),
    "convolutions": ({"mixers": ("convolution", "lstm"), "intermediate_size": 0}, "lmloop"),
    "cosine": ({"beta": 5.0, "learn_beta": True, "qk_norm": False}, "lmloop"),
    "the first one": (
        {"positions": "sinusoidal", "norm": "layer", "norm_place": "post", "dropout": 0.1},
        "lmloop",
    ),
    "pair": ({"kind": "encoder-decoder", "positions": "relative"}, "lmloop"),
    "encoder": ({"kind": "encoder", "activation": "gelu"}, "lmloop"),
}


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_a_shape_has_a_family_and_comes_back_from_disk(name: str, tmp_path: Path) -> None:
    changes, family = SHAPES[name]
    config = model_config(ModelSection(**(SMALL | changes)), vocab_size=40)
    assert config.family == family
    model = random_model(config).eval()
    save_model(model, tmp_path, stop_id=1, document_id=0)
    again = load_model(tmp_path)
    assert again.config == config
    tokens = torch.tensor([[1, 2, 3, 4]])
    source = None if config.encoder is None else model.read(tokens)
    assert torch.equal(again(tokens, source=source), model(tokens, source=source))


def test_experts_are_those_of_the_recipe() -> None:
    section = ModelSection(**SMALL, experts=4, experts_active=3, expert_size=8, balance=0.5)
    experts = model_config(section, vocab_size=40).experts
    assert experts is not None
    assert (experts.count, experts.active, experts.size, experts.balance) == (4, 3, 8, 0.5)
