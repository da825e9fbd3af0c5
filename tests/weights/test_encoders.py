"""Shapes of encoders in Hugging Face's spelling, and what their checkpoints hold besides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmloop.errors import ArtifactError
from lmloop.model.config import ModelConfig
from lmloop.weights.checkpoint import load_model, save_model
from lmloop.weights.families import FAMILIES, read_config, write_config

from ..conftest import random_model, tiny_shape

SHAPES: dict[str, dict[str, Any]] = {
    "bert": {"token_types": 2, "dropout": 0.1},
    "roberta": {"token_types": 1},
    "modernbert": {
        "mixers": ("attention", "local"),
        "window": 65,
        "rope_theta": 160_000.0,
        "local_rope_theta": 10_000.0,
    },
}


def shape_of(name: str, **changes: Any) -> ModelConfig:
    """A small shape of a family."""
    shape = {**FAMILIES[name].stack.shape, "num_kv_heads": 4, **SHAPES[name], **changes}
    return tiny_shape(**shape, hidden_size=32, head_dim=8, family=name)


def spelt(config: ModelConfig, **changes: Any) -> dict[str, Any]:
    return write_config(config, stop_id=3, pad_id=0, dtype="float32") | changes


@pytest.mark.parametrize("head", ["transformed", "none"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_config_comes_back_as_it_was(name: str, head: str) -> None:
    config = shape_of(name, head=head)
    assert read_config(spelt(config)) == config


@pytest.mark.parametrize("head", ["transformed", "none"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path, name: str, head: str) -> None:
    model = random_model(shape_of(name, head=head))
    save_model(model, tmp_path, stop_id=3, document_id=0)
    again = load_model(tmp_path)
    assert again.config == model.config
    for found, expected in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_robertas_table_of_positions_begins_behind_that_of_padding(tmp_path: Path) -> None:
    model = random_model(shape_of("roberta"))
    save_model(model, tmp_path, stop_id=3, document_id=0)
    data = spelt(model.config)
    assert (data["max_position_embeddings"], data["pad_token_id"]) == (66, 1)
    table = load_file(tmp_path / "model.safetensors")[
        "roberta.embeddings.position_embeddings.weight"
    ]
    assert not table[:2].any()
    assert torch.equal(table[2:], model.input.positions)


def test_a_window_of_128_reaches_64_tokens_each_way() -> None:
    data = spelt(shape_of("modernbert"))
    assert data["local_attention"] == 128
    assert read_config(data).window == 65


def test_every_third_layer_sees_everything_where_a_config_is_silent() -> None:
    data = spelt(shape_of("modernbert", num_layers=5, mixers=("local",) * 5))
    del data["layer_types"], data["rope_parameters"]
    config = read_config(data | {"global_rope_theta": 5e4})
    assert config.mixers == ("attention", "local", "local", "attention", "local")
    assert (config.rope_theta, config.local_rope_theta) == (5e4, 1e4)


def test_poolers_and_other_heads_are_passed_over(tmp_path: Path) -> None:
    save_model(random_model(shape_of("bert")), tmp_path, stop_id=3, document_id=0)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    spare = (
        "bert.pooler.dense.weight",
        "cls.seq_relationship.bias",
        "bert.embeddings.position_ids",
    )
    save_file(tensors | {name: torch.zeros(2) for name in spare}, path)
    load_model(tmp_path)
    save_file(tensors | {"classifier.weight": torch.zeros(2)}, path)
    with pytest.raises(ArtifactError, match=r"not known: \['classifier.weight'\]"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("bert", {"hidden_act": "relu"}, "hidden_act 'relu'"),
        ("bert", {"position_embedding_type": "relative_key"}, "'relative_key'"),
        ("bert", {"is_decoder": True}, "is_decoder True"),
        ("bert", {"tie_word_embeddings": False}, "tie_word_embeddings False"),
        ("roberta", {"pad_token_id": 0}, "pad_token_id 0"),
        ("modernbert", {"attention_bias": True}, "attention_bias True"),
        ("modernbert", {"layer_types": ["chunked_attention"]}, "chunked_attention"),
        (
            "modernbert",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "rope_parameters of sliding_attention",
        ),
    ],
)
def test_what_would_compute_something_else_is_refused(
    name: str, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ArtifactError, match=told):
        read_config(spelt(shape_of(name), **changes))
