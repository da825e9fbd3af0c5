"""The decoder's shape in Hugging Face's spelling, and what is refused instead of misread."""

from __future__ import annotations

from typing import Any

import pytest

from lmloop.errors import ArtifactError
from lmloop.model.config import DecoderConfig

from ..conftest import tiny_shape


def spelt(config: DecoderConfig, **changes: Any) -> dict[str, Any]:
    return config.to_hugging_face(stop_id=1, pad_id=0, dtype="float32") | changes


@pytest.mark.parametrize("tied", [True, False])
def test_a_config_comes_back_as_it_was(tied: bool) -> None:
    config = tiny_shape(tie_embeddings=tied, rope_theta=5e5, norm_epsilon=1e-5)
    assert DecoderConfig.from_hugging_face(spelt(config)) == config


def test_the_spelling_is_that_of_qwen3() -> None:
    data = spelt(tiny_shape())
    assert (data["architectures"], data["model_type"]) == (["Qwen3ForCausalLM"], "qwen3")
    assert (data["eos_token_id"], data["pad_token_id"], data["dtype"]) == (1, 0, "float32")
    assert data["num_key_value_heads"] == 2
    assert data["rope_parameters"]["rope_theta"] == data["rope_theta"] == 10_000.0


def test_queries_keys_and_values_have_the_rows_of_their_heads() -> None:
    assert tiny_shape(num_heads=6, num_kv_heads=3, head_dim=4).qkv_rows == (24, 12, 12)


def test_an_older_config_gives_the_rotary_base_without_parameters() -> None:
    data = spelt(tiny_shape(), rope_theta=1e6)
    del data["rope_parameters"]
    assert DecoderConfig.from_hugging_face(data).rope_theta == 1e6


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "llama"}, "model_type 'llama'"),
        ({"model_type": None}, "model_type None"),
        ({"quantization_config": {"format": "pack-quantized"}}, "'pack-quantized'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type 'yarn'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "rope_type 'linear'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window True"),
    ],
)
def test_what_would_compute_something_else_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ArtifactError, match=told):
        DecoderConfig.from_hugging_face(spelt(tiny_shape(), **changes))


def test_int8_is_read_from_the_quantization_section() -> None:
    scheme = {"num_bits": 8, "strategy": "channel", "symmetric": True, "type": "int"}
    told = {"format": "pack-quantized", "config_groups": {"group_0": {"weights": scheme}}}
    data = spelt(tiny_shape(), quantization_config=told)
    assert DecoderConfig.from_hugging_face(data).int8
    scheme["num_bits"] = 4
    with pytest.raises(ArtifactError, match="symmetric 8-bit channels"):
        DecoderConfig.from_hugging_face(data)
    assert not DecoderConfig.from_hugging_face(spelt(tiny_shape())).int8
