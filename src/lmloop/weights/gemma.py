"""Gemma 2 and 3: Llama with more norms, local layers between the others, and capped scores.

How a row is made is in `family.py` and in docs/models.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lmloop.errors import ArtifactError
from lmloop.model.config import ModelConfig
from lmloop.weights.decoders import (
    BOTH_KINDS,
    LLAMA,
    LLAMA_NAMES,
    NO_BIAS,
    Shape,
    llama_stack,
    read_layer_types,
    read_llama,
    read_window,
    write_layer_types,
    write_llama,
)
from lmloop.weights.family import PLUS_ONE, Data, Family
from lmloop.weights.rope_entries import read_rope, write_rope

_NAMES: Mapping[str, tuple[str, ...]] = {
    **LLAMA_NAMES,
    "blocks.{}.mixer.part_norm": ("model.layers.{}.post_attention_layernorm",),
    "blocks.{}.feed_forward.norm": ("model.layers.{}.pre_feedforward_layernorm",),
    "blocks.{}.feed_forward.part_norm": ("model.layers.{}.post_feedforward_layernorm",),
}
_NORMS = (
    *("norm", "blocks.{}.mixer.norm", "blocks.{}.mixer.part_norm", "blocks.{}.mixer.part.q_norm"),
    *("blocks.{}.mixer.part.k_norm", "blocks.{}.feed_forward.norm"),
    "blocks.{}.feed_forward.part_norm",
)


def _read_gemma(data: Data, shape: Shape, *, window: object, absent: Sequence[bool]) -> Shape:
    return {
        **read_llama(data, shape),
        **read_window(window, read_layer_types(data, absent=absent)),
        "attention_scale": data["query_pre_attn_scalar"] ** -0.5,
        "embedding_scale": shape["hidden_size"] ** 0.5,
    }


def _read_gemma2(data: Data, shape: Shape) -> Shape:
    every_second = [layer % 2 == 0 for layer in range(shape["num_layers"])]
    return _read_gemma(data, shape, window=data["sliding_window"], absent=every_second)


def _write_gemma2(config: ModelConfig) -> dict[str, Any]:
    scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
    told = write_llama(config) | write_layer_types(config)
    return told | {"query_pre_attn_scalar": round(scale**-2)}


_GEMMA: Data = {"hidden_activation": "gelu_pytorch_tanh", **NO_BIAS}
GEMMA2 = replace(
    LLAMA,
    architecture="Gemma2ForCausalLM",
    bare="Gemma2Model",
    stack=replace(
        llama_stack(norm_place="both", activation="gelu_tanh"),
        values={
            "norm_epsilon": "rms_norm_eps",
            "attention_cap": "attn_logit_softcapping",
            "logit_cap": "final_logit_softcapping",
        },
        read=_read_gemma2,
        write=_write_gemma2,
    ),
    names=_NAMES,
    changes=dict.fromkeys(_NORMS, PLUS_ONE),
    fixed={**_GEMMA, "hidden_act": "gelu_pytorch_tanh", "use_bidirectional_attention": None},
    settings=_GEMMA,
    read=("sliding_window", "query_pre_attn_scalar"),
    harmless=("cache_implementation",),
    layer_types=BOTH_KINDS,
    tied=True,
)


def _read_gemma3(data: Data, shape: Shape) -> Shape:
    pattern = data.get("sliding_window_pattern", 6)
    all_but_each_last = [(layer + 1) % pattern != 0 for layer in range(shape["num_layers"])]
    rope = data.get("rope_parameters") or {}
    older = {"rope_theta": data.get("rope_local_base_freq", 10_000.0)}
    nearby = {"rope_parameters": rope.get("sliding_attention", older)}
    local_theta, scaling = read_rope(nearby, context_length=shape["context_length"])
    if scaling is not None:
        raise ArtifactError("scaled rotary positions of sliding layers cannot be opened")
    told = {"rope_theta": 1e6, **data, "rope_parameters": rope.get("full_attention")}
    causal = not data.get("use_bidirectional_attention")
    # A width to both sides together, where a token sees both sides.
    window = data["sliding_window"] if causal else data["sliding_window"] // 2 + 1
    return {
        **_read_gemma(told, shape, window=window, absent=all_but_each_last),
        "local_rope_theta": local_theta,
        "causal": causal,
    }


def _write_gemma3(config: ModelConfig) -> dict[str, Any]:
    theta = config.rope_theta if config.local_rope_theta is None else config.local_rope_theta
    told = _write_gemma2(config)
    if config.window is not None and not config.causal:
        told["sliding_window"] = (config.window - 1) * 2
    return told | {
        "rope_parameters": {
            "full_attention": write_rope(config.rope_theta, config.rope_scaling),
            "sliding_attention": write_rope(theta, None),
        },
        "rope_local_base_freq": theta,
        "use_bidirectional_attention": not config.causal,
    }


GEMMA3 = replace(
    GEMMA2,
    architecture="Gemma3ForCausalLM",
    bare="Gemma3TextModel",
    stack=replace(
        GEMMA2.stack,
        shape={**GEMMA2.stack.shape, "qk_norm": True},
        values={"norm_epsilon": "rms_norm_eps", "logit_cap": "final_logit_softcapping"},
        read=_read_gemma3,
        write=_write_gemma3,
    ),
    fixed={**_GEMMA, "attn_logit_softcapping": None},
    settings={**_GEMMA, "attn_logit_softcapping": None},
    read=(
        *("sliding_window", "sliding_window_pattern", "query_pre_attn_scalar"),
        *("rope_local_base_freq", "use_bidirectional_attention"),
    ),
    harmless=("cache_implementation", "_sliding_window_pattern"),
)
GEMMAS: Mapping[str, Family] = {"gemma2": GEMMA2, "gemma3_text": GEMMA3}
