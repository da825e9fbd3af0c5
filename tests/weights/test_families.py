"""Shapes in Hugging Face's spelling, family by family, and what is refused instead of misread."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from lmloop.errors import ArtifactError
from lmloop.model.config import Experts, ModelConfig
from lmloop.model.rotary import RopeScaling
from lmloop.weights.checkpoint import assemble, take_apart
from lmloop.weights.families import FAMILIES, read_config, write_config

from ..conftest import random_model, tiny_shape


def spelt(config: ModelConfig, **changes: Any) -> dict[str, Any]:
    return write_config(config, stop_id=1, pad_id=0, dtype="float32") | changes


DECODERS = (
    *("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "phi3"),
    *("gemma2", "gemma3_text", "gpt2", "gpt_neox"),
)
PARTICULAR: Mapping[str, dict[str, Any]] = {
    "mistral": {"mixers": ("local", "local"), "window": 3},
    "qwen2": {"mixers": ("attention", "local"), "window": 3},
    "qwen3": {"mixers": ("local", "attention"), "window": 3},
    "qwen3_moe": {"experts": Experts(count=4, active=2, size=10, normalise=False, balance=0.01)},
    "phi3": {"mixers": ("local", "local"), "window": 3, "rotary_share": 0.5},
    "gemma2": {
        "mixers": ("local", "attention"),
        "window": 3,
        "attention_scale": 12**-0.5,
        "attention_cap": 5.0,
        "logit_cap": 3.0,
        "embedding_scale": 24**0.5,
    },
    "gemma3_text": {
        "mixers": ("local", "attention"),
        "window": 3,
        "local_rope_theta": 100.0,
        "rope_scaling": RopeScaling(kind="linear", factor=8.0),
        "attention_scale": 12**-0.5,
        "embedding_scale": 24**0.5,
    },
    "gpt2": {"num_kv_heads": 4, "head_dim": 6},
    "gpt_neox": {
        "num_kv_heads": 4,
        "head_dim": 6,
        "rotary_share": 1 / 3,
        "parallel": True,
        "qkv_bias": True,
        "output_bias": True,
    },
}
"""What a config of each family tells beside sizes."""


def shape_of(name: str, **changes: Any) -> ModelConfig:
    return tiny_shape(
        **{"family": name, **FAMILIES[name].stack.shape, **PARTICULAR.get(name, {}), **changes}
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", ["plain", "none"])
@pytest.mark.parametrize("name", DECODERS)
def test_a_row_comes_back_as_it_was(name: str, head: str, tied: bool) -> None:
    family = FAMILIES[name]
    config = shape_of(name, tie_embeddings=tied, head=head, norm_epsilon=1e-5)
    data = spelt(config)
    assert data["model_type"] == name
    assert data["architectures"] == [family.architecture if head == "plain" else family.bare]
    assert read_config(data) == config


@pytest.mark.parametrize("name", DECODERS)
def test_every_tensor_of_a_row_has_a_name_of_its_own(name: str) -> None:
    model = random_model(shape_of(name, tie_embeddings=False))
    theirs = take_apart(model)
    again = assemble(model.config, dict(theirs), path=Path("made"))
    tokens = torch.tensor([[1, 2, 3, 4, 5]])
    torch.testing.assert_close(again(tokens), model(tokens))
    for lost in theirs:
        less = {other: tensor for other, tensor in theirs.items() if other != lost}
        with pytest.raises(ArtifactError, match=f"lacks the tensor '{lost}'"):
            assemble(model.config, less, path=Path("made"))


@pytest.mark.parametrize("name", DECODERS)
def test_what_is_fixed_may_have_no_other_value(name: str) -> None:
    data = spelt(shape_of(name))
    for entry in FAMILIES[name].fixed:
        with pytest.raises(ArtifactError, match=f"{entry} 'other' cannot be opened"):
            read_config(data | {entry: "other"})
    for entry in FAMILIES[name].harmless:
        assert read_config(data | {entry: "other"}) == read_config(data)


@pytest.mark.parametrize("tied", [True, False])
def test_a_config_comes_back_as_it_was(tied: bool) -> None:
    config = tiny_shape(tie_embeddings=tied, rope_theta=5e5, norm_epsilon=1e-5)
    assert read_config(spelt(config)) == config


SCALINGS = {
    "linear": RopeScaling(kind="linear", factor=4.0),
    "llama3": RopeScaling(kind="llama3", factor=8.0, original_length=16, low=1.0, high=4.0),
    "yarn": RopeScaling(kind="yarn", factor=4.0, original_length=16, low=1.0, high=32.0),
    "yarn with a factor": RopeScaling(
        kind="yarn", factor=4.0, original_length=16, low=2.0, high=8.0, attention_factor=1.25
    ),
}


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "gpt_neox"])
def test_every_family_comes_back_with_its_scaling(name: str, scaling: str) -> None:
    config = shape_of(name, rope_scaling=SCALINGS[scaling])
    assert read_config(spelt(config)) == config


def test_entries_that_older_configs_lack_have_the_familys_defaults() -> None:
    data = spelt(tiny_shape(family="llama", qk_norm=False, num_heads=4, head_dim=8, hidden_size=32))
    for name in ("head_dim", "num_key_value_heads", "tie_word_embeddings", "hidden_act"):
        del data[name]
    config = read_config(data)
    assert (config.head_dim, config.num_kv_heads, config.tie_embeddings) == (8, 4, False)


def test_the_spelling_is_that_of_qwen3() -> None:
    data = spelt(tiny_shape())
    assert (data["architectures"], data["model_type"]) == (["Qwen3ForCausalLM"], "qwen3")
    assert (data["eos_token_id"], data["pad_token_id"], data["dtype"]) == (1, 0, "float32")
    assert data["num_key_value_heads"] == 2
    assert data["rope_parameters"]["rope_theta"] == data["rope_theta"] == 10_000.0


def test_an_older_config_gives_the_rotary_base_without_parameters() -> None:
    data = spelt(tiny_shape(), rope_theta=1e6)
    del data["rope_parameters"]
    assert read_config(data).rope_theta == 1e6


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba'"),
        ({"model_type": ["llama"]}, "known here are 'llama'"),
        ({"model_type": None}, "model_type None"),
        ({"quantization_config": {"format": "pack-quantized"}}, "'pack-quantized'"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0}},
            r"rope_type 'yarn' with \['mscale'\]",
        ),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "'chunked_attention'"),
        ({"attention_bias": True}, "attention_bias True"),
        ({"surprise": 1}, r"entries \['surprise'\] of a qwen3"),
    ],
)
def test_what_would_compute_something_else_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ArtifactError, match=told):
        read_config(spelt(tiny_shape(), **changes))


def test_int8_is_read_from_the_quantization_section() -> None:
    scheme = {"num_bits": 8, "strategy": "channel", "symmetric": True, "type": "int"}
    told = {"format": "pack-quantized", "config_groups": {"group_0": {"weights": scheme}}}
    data = spelt(tiny_shape(), quantization_config=told)
    assert read_config(data).int8
    scheme["num_bits"] = 4
    with pytest.raises(ArtifactError, match="symmetric 8-bit channels"):
        read_config(data)
    assert not read_config(spelt(tiny_shape())).int8
