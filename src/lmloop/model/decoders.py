"""Families of decoders: a row each. How a row is made is in `family.py` and in docs/models.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmloop.model.config import ModelConfig
from lmloop.model.family import Data, Family, Stack
from lmloop.model.rope_entries import read_rope, write_rope

LLAMA_NAMES: Mapping[str, tuple[str, ...]] = {
    "embedding": ("model.embed_tokens",),
    "norm": ("model.norm",),
    "head": ("lm_head",),
    "blocks.{}.mixer.norm": ("model.layers.{}.input_layernorm",),
    "blocks.{}.mixer.part.qkv": (
        "model.layers.{}.self_attn.q_proj",
        "model.layers.{}.self_attn.k_proj",
        "model.layers.{}.self_attn.v_proj",
    ),
    "blocks.{}.mixer.part.output": ("model.layers.{}.self_attn.o_proj",),
    "blocks.{}.mixer.part.q_norm": ("model.layers.{}.self_attn.q_norm.weight",),
    "blocks.{}.mixer.part.k_norm": ("model.layers.{}.self_attn.k_norm.weight",),
    "blocks.{}.feed_forward.norm": ("model.layers.{}.post_attention_layernorm",),
    "blocks.{}.feed_forward.part.up": (
        "model.layers.{}.mlp.gate_proj",
        "model.layers.{}.mlp.up_proj",
    ),
    "blocks.{}.feed_forward.part.down": ("model.layers.{}.mlp.down_proj",),
}
LLAMA_SIZES: Mapping[str, str] = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "context_length": "max_position_embeddings",
}
_FIXED: Data = {"hidden_act": "silu", "pretraining_tp": 1}


def read_llama(data: Data, shape: dict[str, Any]) -> dict[str, Any]:
    """Heads, and how positions turn."""
    theta, scaling = read_rope(data, context_length=shape["context_length"])
    heads = shape["num_heads"]
    return {
        "num_kv_heads": data.get("num_key_value_heads") or heads,
        "head_dim": data.get("head_dim") or shape["hidden_size"] // heads,
        "rope_theta": theta,
        "rope_scaling": scaling,
    }


def write_llama(config: ModelConfig) -> dict[str, Any]:
    """The entries of that."""
    return {
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rope_theta": config.rope_theta,
        "rope_parameters": write_rope(config.rope_theta, config.rope_scaling),
        "hidden_act": "silu",
        "attention_dropout": 0.0,
    }


def llama_stack(**shape: Any) -> Stack:
    """The stack of Llama with what a family changes of it."""
    return Stack(
        sizes=LLAMA_SIZES,
        values={"norm_epsilon": "rms_norm_eps"},
        shape={"qk_norm": False, **shape},
        read=read_llama,
        write=write_llama,
    )


def _like_llama(name: str, *, fixed: Data, settings: Data, **shape: Any) -> Family:
    return Family(
        architecture=f"{name}ForCausalLM",
        bare=f"{name}Model",
        prefix="model.",
        stack=llama_stack(**shape),
        names=LLAMA_NAMES,
        fixed={**_FIXED, **fixed},
        settings=settings,
        harmless=("num_key_value_heads", "is_llama_config", "sliding_window", "max_window_layers"),
    )


_NO_BIAS: Data = {"attention_bias": False, "mlp_bias": False}
_NO_WINDOW: Data = {"use_sliding_window": False}
DECODERS: Mapping[str, Family] = {
    "llama": _like_llama("Llama", fixed={**_NO_BIAS, "rope_interleaved": False}, settings=_NO_BIAS),
    "mistral": _like_llama(
        "Mistral", fixed={"sliding_window": None}, settings={"sliding_window": None}
    ),
    "qwen2": _like_llama("Qwen2", qkv_bias=True, fixed=_NO_WINDOW, settings=_NO_WINDOW),
    "qwen3": _like_llama(
        "Qwen3",
        qk_norm=True,
        fixed={**_NO_WINDOW, "attention_bias": False},
        settings={**_NO_WINDOW, "attention_bias": False},
    ),
}
