"""Shapes of every kind, small: what the tests of the core are run over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmloop.model.config import Experts, ModelConfig

from ..conftest import tiny_shape

PLAIN: dict[str, Any] = {"qk_norm": False, "gated": False, "activation": "gelu"}
DECODERS: Mapping[str, dict[str, Any]] = {
    "qwen3": {},
    "gpt2": {
        **PLAIN,
        "positions": "learned",
        "norm": "layer",
        "qkv_bias": True,
        "output_bias": True,
        "feed_forward_bias": True,
        "head_bias": True,
        "num_kv_heads": 4,
    },
    "neox": {**PLAIN, "rotary_share": 0.5, "norm": "layer", "parallel": True},
    "gemma": {
        "mixers": ("local", "attention"),
        "window": 3,
        "local_rope_theta": 100.0,
        "norm_place": "both",
        "attention_cap": 5.0,
        "logit_cap": 3.0,
        "embedding_scale": 4.9,
        "activation": "gelu_tanh",
        "attention_scale": 0.2,
    },
    "first transformer": {
        **PLAIN,
        "positions": "sinusoidal",
        "norm": "layer",
        "norm_place": "post",
        "final_norm": False,
        "activation": "relu",
    },
    "relative": {"positions": "relative", "attention_scale": 1.0, "relative_buckets": 8},
    "relative, local": {
        "positions": "relative",
        "relative_buckets": 8,
        "relative_distance": 12,
        "mixers": ("local", "attention"),
        "window": 4,
    },
    "no positions": {"positions": "none", "norm_bias": False, "activation": "relu2"},
    "cosine": {"beta": 6.0, "qk_norm": False, "embedding_norm": True},
    "cosine, learnt": {"beta": 6.0, "learn_beta": True, "qk_norm": False, "first_norm": False},
    "cosine, bare": {
        "beta": 4.0,
        "projections": False,
        "qk_norm": False,
        "num_heads": 3,
        "num_kv_heads": 3,
        "positions": "none",
        "intermediate_size": 0,
    },
    "lstm": {"mixers": ("lstm", "lstm"), "positions": "none"},
    "gru": {"mixers": ("gru", "gru"), "positions": "none", "output_bias": True},
    "convolution": {"mixers": ("convolution", "convolution"), "kernel_size": 3, "pooling": 2},
    "convolution, then recurrent": {
        "mixers": ("convolution", "lstm"),
        "kernel_size": 4,
        "pooling": 3,
        "intermediate_size": 0,
        "positions": "none",
    },
    "recurrent, then attention": {"mixers": ("gru", "attention")},
    "experts": {"experts": Experts(count=4, active=2, size=10, shared_size=6, balance=0.01)},
    "batch norm": {"norm": "batch"},
}


def decoder(kind: str, **changes: Any) -> ModelConfig:
    """A decoder of a kind."""
    return tiny_shape(**{**DECODERS[kind], **changes})


def encoder(kind: str, **changes: Any) -> ModelConfig:
    """An encoder of the same parts."""
    return tiny_shape(**{**DECODERS[kind], "causal": False, **changes})


def pair(kind: str, **changes: Any) -> ModelConfig:
    """An encoder-decoder of the same parts."""
    mixers = DECODERS[kind].get("mixers", ())[:1]
    read = encoder(kind, head="none", num_layers=1, mixers=mixers, context_length=128)
    return decoder(kind, encoder=read, **changes)
