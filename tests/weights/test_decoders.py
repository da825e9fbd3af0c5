"""What the configs of Llama and its relatives say of windows, experts and rotation."""

from __future__ import annotations

from typing import Any

import pytest

from lmloop.model.config import ModelConfig
from lmloop.weights.families import FAMILIES, read_config, write_config

from ..conftest import tiny_shape

LAYERS = 3


def read(name: str, **changes: Any) -> ModelConfig:
    shape = tiny_shape(family=name, **FAMILIES[name].stack.shape, num_layers=LAYERS)
    data = write_config(shape, stop_id=1, pad_id=0, dtype="float32") | changes
    return read_config({entry: value for entry, value in data.items() if value != "left out"})


@pytest.mark.parametrize(
    ("name", "told", "window", "local"),
    [
        ("llama", {"sliding_window": 9}, None, ""),
        ("mistral", {"sliding_window": None}, None, ""),
        ("mistral", {"sliding_window": 9}, 9, "lll"),
        ("mistral", {"sliding_window": "left out"}, 4096, "lll"),
        ("phi3", {"sliding_window": 9}, 9, "lll"),
        ("phi3", {"sliding_window": "left out"}, None, ""),
        ("qwen2", {"sliding_window": 9}, None, ""),
        ("qwen2", {"sliding_window": 9, "use_sliding_window": True}, None, ""),
        (
            "qwen2",
            {"sliding_window": 9, "use_sliding_window": True, "max_window_layers": 1},
            9,
            "all",
        ),
        (
            "qwen3",
            {
                "sliding_window": 9,
                "use_sliding_window": True,
                "max_window_layers": 0,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            },
            9,
            "ala",
        ),
    ],
)
def test_who_sees_how_far(name: str, told: dict[str, Any], window: int | None, local: str) -> None:
    config = read(name, **told)
    assert config.window == window
    assert "".join(mixer[0] for mixer in config.mixers) == local


@pytest.mark.parametrize("window", [None, 0, -1, "wide", True])
def test_layers_that_are_local_need_a_window(window: object) -> None:
    kinds = ["sliding_attention"] * LAYERS
    with pytest.raises(ValueError, match="sliding_window is"):
        read("qwen3", use_sliding_window=True, sliding_window=window, layer_types=kinds)


def test_the_experts_of_a_config_have_an_older_and_a_newer_name() -> None:
    sizes = {"num_experts_per_tok": 2, "moe_intermediate_size": 6}
    told: dict[str, Any] = {
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],
        "router_aux_loss_coef": 0.5,
    }
    older = read("qwen3", **told, **sizes, num_experts=4)
    newer = read("qwen3", **told, **sizes, num_local_experts=4)
    assert older == newer
    assert older.experts is not None
    assert (older.experts.count, older.experts.active, older.experts.size) == (4, 2, 6)
    assert not older.experts.normalise
    assert older.experts.balance == 0.0  # which is for those who ask for the router's logits
    asked = read("qwen3", **told, **sizes, num_experts=4, output_router_logits=True)
    assert asked.experts is not None
    assert asked.experts.balance == 0.5


def test_phi_says_beside_its_rotation_or_within_how_much_is_turned() -> None:
    assert read("phi3", rope_parameters=None, partial_rotary_factor=0.5).rotary_share == 0.5
    within = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}
    assert read("phi3", rope_parameters=within).rotary_share == 0.25
    assert read("phi3", rope_parameters=None, partial_rotary_factor="left out").rotary_share == 1.0
