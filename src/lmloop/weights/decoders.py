"""Llama, and the decoders that are Llama with something replaced: a row each says what.

How a row is made is in `family.py` and in docs/models.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lmloop.model.config import Experts, ModelConfig, Task
from lmloop.weights.family import Data, Family, Stack, check_size, read_size
from lmloop.weights.rope_entries import read_rope, write_rope

Shape = dict[str, Any]
"""Fields of a `ModelConfig`."""

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
_HEADS: Mapping[Task, Mapping[str, str]] = {
    "sequence": {"output.weight": "score.weight"},
    "token": {"output": "score"},
    "span": {"output": "qa_outputs"},
}


def read_llama(data: Data, shape: Shape, *, share: float | None = None) -> Shape:
    """Heads, and how positions turn; `share` of a head unless told, and all of it for None."""
    known = () if share is None else ("partial_rotary_factor",)
    theta, scaling = read_rope(data, context_length=shape["context_length"], known=known)
    told = data.get("rope_parameters") or {}
    heads = shape["num_heads"]
    return {
        "num_kv_heads": data.get("num_key_value_heads") or heads,
        "head_dim": data.get("head_dim") or shape["hidden_size"] // heads,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "rotary_share": 1.0 if share is None else told.get("partial_rotary_factor", share),
    }


def write_llama(config: ModelConfig) -> dict[str, Any]:
    """The entries of that."""
    part = {} if config.rotary_share == 1 else {"partial_rotary_factor": config.rotary_share}
    return {
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rope_theta": config.rope_theta,
        "rope_parameters": write_rope(config.rope_theta, config.rope_scaling, **part),
        "attention_dropout": 0.0,
    }


def read_window(window: object, local: Sequence[bool]) -> Shape:
    """Layers that see no farther than `window`: the token itself and those right before it.

    Raises `ValueError` where such layers have no window.
    """
    if not any(local):
        return {}
    mixers = tuple("local" if near else "attention" for near in local)
    return {"window": check_size("sliding_window", window), "mixers": mixers}


def read_layer_types(data: Data, *, absent: Sequence[bool]) -> Sequence[bool]:
    """Which layers are local; `absent` where they are not listed."""
    told = data.get("layer_types")
    return [kind == "sliding_attention" for kind in told] if told else absent


def write_layer_types(config: ModelConfig) -> dict[str, Any]:
    """The entries of both."""
    kinds = ("sliding_attention", "full_attention")
    layers = range(config.num_layers)
    return {
        "layer_types": [kinds[config.mixer(layer) != "local"] for layer in layers],
        "sliding_window": config.window,
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


_SILU: dict[str, Any] = {"hidden_act": "silu"}
NO_BIAS: Data = {"attention_bias": False}
_NO_BIASES: dict[str, Any] = {"attention_bias": False, "mlp_bias": False}
BOTH_KINDS = ("full_attention", "sliding_attention")
LLAMA = Family(
    architecture="LlamaForCausalLM",
    bare="LlamaModel",
    prefix="model.",
    stack=llama_stack(),
    names=LLAMA_NAMES,
    # Most of Llama's kin call the body of the class for spans so.
    heads={**_HEADS, "span": {**_HEADS["span"], "transformer": "transformer."}},
    fixed={**_SILU, **_NO_BIASES, "rope_interleaved": False, "pretraining_tp": 1},
    settings={**_SILU, **_NO_BIASES},
    harmless=("is_llama_config", "sliding_window", "max_window_layers"),
    ignored=(".rotary_emb.inv_freq",),
)


def _read_mistral(data: Data, shape: Shape) -> Shape:
    window = data.get("sliding_window", 4096)
    everywhere = [window is not None] * shape["num_layers"]
    return read_llama(data, shape) | read_window(window, everywhere)


def _write_mistral(config: ModelConfig) -> dict[str, Any]:
    return write_llama(config) | {"sliding_window": config.window}


MISTRAL = replace(
    LLAMA,
    architecture="MistralForCausalLM",
    bare="MistralModel",
    stack=replace(LLAMA.stack, read=_read_mistral, write=_write_mistral),
    heads=_HEADS,
    fixed=_SILU,
    settings=_SILU,
    read=("sliding_window",),
    harmless=(),
)


def _read_qwen(data: Data, shape: Shape) -> Shape:
    window = data.get("sliding_window", 4096) if data.get("use_sliding_window") else None
    first = shape["num_layers"] if window is None else data.get("max_window_layers", 28)
    local = [layer >= first for layer in range(shape["num_layers"])]
    return read_llama(data, shape) | read_window(window, read_layer_types(data, absent=local))


def _write_qwen(config: ModelConfig) -> dict[str, Any]:
    told = write_llama(config) | {"use_sliding_window": config.window is not None}
    return told if config.window is None else told | write_layer_types(config)


QWEN2 = replace(
    LLAMA,
    architecture="Qwen2ForCausalLM",
    bare="Qwen2Model",
    stack=replace(llama_stack(qkv_bias=True), read=_read_qwen, write=_write_qwen),
    fixed=_SILU,
    settings=_SILU,
    read=("use_sliding_window", "sliding_window", "max_window_layers"),
    harmless=(),
    layer_types=BOTH_KINDS,
)
QWEN3 = replace(
    QWEN2,
    architecture="Qwen3ForCausalLM",
    bare="Qwen3Model",
    stack=replace(QWEN2.stack, shape={"qk_norm": True}),
    fixed={**_SILU, **NO_BIAS},
    settings={**_SILU, **NO_BIAS},
)


def _read_qwen3_moe(data: Data, shape: Shape) -> Shape:
    windowed = bool(data.get("use_sliding_window"))
    count = "num_experts" if "num_experts" in data else "num_local_experts"
    balances = bool(data.get("output_router_logits"))
    experts = Experts(
        count=read_size(data, count),
        active=read_size(data, "num_experts_per_tok"),
        size=read_size(data, "moe_intermediate_size"),
        normalise=bool(data.get("norm_topk_prob", False)),
        balance=float(data.get("router_aux_loss_coef", 0.001)) if balances else 0.0,
    )
    local = read_window(data.get("sliding_window", 4096), [windowed] * shape["num_layers"])
    return read_llama(data, shape) | local | {"experts": experts}


def _write_qwen3_moe(config: ModelConfig) -> dict[str, Any]:
    if config.experts is None:
        raise ValueError("a qwen3_moe has experts")
    return write_llama(config) | {
        "use_sliding_window": config.window is not None,
        "sliding_window": config.window,
        "num_experts": config.experts.count,
        "num_experts_per_tok": config.experts.active,
        "moe_intermediate_size": config.experts.size,
        "norm_topk_prob": config.experts.normalise,
        "output_router_logits": config.experts.balance > 0,
        "router_aux_loss_coef": config.experts.balance,
    }


_ALL_SPARSE: Data = {"decoder_sparse_step": 1, "mlp_only_layers": []}
QWEN3_MOE = replace(
    QWEN3,
    architecture="Qwen3MoeForCausalLM",
    bare="Qwen3MoeModel",
    stack=replace(QWEN3.stack, read=_read_qwen3_moe, write=_write_qwen3_moe),
    names={
        **LLAMA_NAMES,
        "blocks.{}.feed_forward.part.router": ("model.layers.{}.mlp.gate",),
        "blocks.{}.feed_forward.part.up": (
            "model.layers.{}.mlp.experts.{expert}.gate_proj.weight",
            "model.layers.{}.mlp.experts.{expert}.up_proj.weight",
        ),
        "blocks.{}.feed_forward.part.down": (
            "model.layers.{}.mlp.experts.{expert}.down_proj.weight",
        ),
    },
    fixed={**QWEN3.fixed, **_ALL_SPARSE},
    settings={**QWEN3.settings, **_ALL_SPARSE},
    read=(
        *("use_sliding_window", "sliding_window", "num_experts", "num_local_experts"),
        *("num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob"),
        *("output_router_logits", "router_aux_loss_coef"),
    ),
    harmless=("max_window_layers",),
    layer_types=("full_attention",),
)


def _read_phi3(data: Data, shape: Shape) -> Shape:
    share = data.get("partial_rotary_factor", 1.0)
    local = _read_mistral({"sliding_window": None, **data}, shape)
    return local | read_llama(data, shape, share=share)


PHI3 = replace(
    LLAMA,
    architecture="Phi3ForCausalLM",
    bare="Phi3Model",
    stack=replace(LLAMA.stack, read=_read_phi3, write=_write_mistral),
    names={
        **LLAMA_NAMES,
        "blocks.{}.mixer.part.qkv": ("model.layers.{}.self_attn.qkv_proj",),
        "blocks.{}.feed_forward.part.up": ("model.layers.{}.mlp.gate_up_proj",),
    },
    fixed=_SILU | _NO_BIASES | {"lm_head_bias": False, "full_attn_mod": 1, "interpolate_factor": 1},
    settings=_SILU,
    read=("sliding_window", "partial_rotary_factor"),
    harmless=("resid_pdrop", "embd_pdrop", "original_max_position_embeddings", "auto_map"),
)


DECODERS: Mapping[str, Family] = {
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "qwen3_moe": QWEN3_MOE,
    "phi3": PHI3,
}
