"""What the configs of Gemma say, those of today and older ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmloop.errors import ArtifactError
from lmloop.model.config import ModelConfig
from lmloop.weights.checkpoint import take_apart
from lmloop.weights.families import FAMILIES, read_config, write_config

from ..conftest import random_model, tiny_shape

OLDER = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "vocab_size": 50,
    "num_hidden_layers": 7,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 40,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "sliding_window": 12,
    "sliding_window_pattern": 3,
    "rope_theta": 1e5,
    "rope_local_base_freq": 500.0,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    "cache_implementation": "hybrid",
}


def written(name: str, **changes: Any) -> dict[str, Any]:
    shape = tiny_shape(
        **FAMILIES[name].stack.shape,
        family=name,
        num_layers=7,
        mixers=("local",) * 7,
        window=12,
        attention_scale=1 / 16,
        embedding_scale=24**0.5,
        local_rope_theta=1e4 if name == "gemma3_text" else None,
    )
    return write_config(shape, stop_id=1, pad_id=0, dtype="float32") | changes


def places(config: ModelConfig) -> str:
    return "".join(mixer[0] for mixer in config.mixers)


def test_an_older_config_of_gemma_3_says_the_same() -> None:
    config = read_config(OLDER)
    assert (places(config), config.window) == ("llallal", 12)
    assert (config.rope_theta, config.local_rope_theta) == (1e5, 500.0)
    assert config.rope_scaling is not None
    assert config.rope_scaling.factor == 8.0
    assert (config.attention_scale, config.embedding_scale) == (1 / 16, 8.0)
    assert config.tie_embeddings
    assert (config.attention_cap, config.logit_cap) == (None, None)
    assert read_config(write_config(config, stop_id=1, pad_id=0, dtype="float32")) == config


def test_without_a_list_gemma_2_has_every_second_layer_local_and_gemma_3_five_of_six() -> None:
    assert places(read_config(written("gemma2", layer_types=None))) == "lalalal"
    assert places(read_config(written("gemma3_text", layer_types=None))) == "lllllal"


def test_without_bases_gemma_3_turns_by_its_own() -> None:
    told = written("gemma3_text", rope_parameters=None)
    del told["rope_theta"], told["rope_local_base_freq"]
    config = read_config(told)
    assert (config.rope_theta, config.local_rope_theta) == (1e6, 1e4)


def test_a_gemma_that_sees_both_sides_has_half_its_window_on_each() -> None:
    kinds = ["sliding_attention"] * 7
    config = read_config(
        written("gemma3_text", use_bidirectional_attention=True, layer_types=kinds)
    )
    assert (config.causal, config.window) == (False, 7)
    again = write_config(config, stop_id=1, pad_id=0, dtype="float32")
    assert (again["use_bidirectional_attention"], again["sliding_window"]) == (True, 12)


def test_scaled_local_rotation_is_refused() -> None:
    scaled = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    rope = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": scaled}
    with pytest.raises(ArtifactError, match="sliding layers"):
        read_config(written("gemma3_text", rope_parameters=rope))


def test_its_norms_lie_as_what_is_added_to_one() -> None:
    shape = tiny_shape(family="gemma3_text", **FAMILIES["gemma3_text"].stack.shape)
    model = random_model(shape)
    theirs, state = take_apart(model), model.state_dict()
    norms = {
        "norm.weight": "model.norm.weight",
        "blocks.1.mixer.norm.weight": "model.layers.1.input_layernorm.weight",
        "blocks.1.mixer.part_norm.weight": "model.layers.1.post_attention_layernorm.weight",
        "blocks.1.mixer.part.q_norm": "model.layers.1.self_attn.q_norm.weight",
        "blocks.1.mixer.part.k_norm": "model.layers.1.self_attn.k_norm.weight",
        "blocks.1.feed_forward.norm.weight": "model.layers.1.pre_feedforward_layernorm.weight",
        "blocks.1.feed_forward.part_norm.weight": (
            "model.layers.1.post_feedforward_layernorm.weight"
        ),
    }
    for ours, their_name in norms.items():
        assert torch.equal(theirs[their_name], state[ours] - 1)
