"""GPT-2 and GPT-NeoX (Pythia): layer norms and biases instead of Llama's gates.

How a row is made is in `family.py` and in docs/models.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lmloop.errors import ArtifactError
from lmloop.model.config import Activation, ModelConfig
from lmloop.model.decoders import LLAMA_SIZES
from lmloop.model.family import TRANSPOSED, Change, Data, Family, Stack
from lmloop.model.rope_entries import read_rope, read_share, write_rope

_SHAPE: Mapping[str, Any] = {
    "norm": "layer",
    "gated": False,
    "feed_forward_bias": True,
    "qk_norm": False,
}
_ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
}


def _read_activation(name: str) -> Activation:
    try:
        return _ACTIVATIONS[name]
    except KeyError:
        raise ArtifactError(
            f"activation {name!r} cannot be opened: known here are "
            f"{', '.join(map(repr, _ACTIVATIONS))}"
        ) from None


def _write_activation(activation: Activation) -> str:
    return next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == activation)


def _read_heads(shape: Mapping[str, Any]) -> dict[str, Any]:
    """As many keys as queries, which share the width."""
    heads = shape["num_heads"]
    return {"num_kv_heads": heads, "head_dim": shape["hidden_size"] // heads}


def _read_gpt2(data: Data, shape: dict[str, Any]) -> dict[str, Any]:
    return {
        **_read_heads(shape),
        "intermediate_size": data.get("n_inner") or 4 * shape["hidden_size"],
        "activation": _read_activation(data.get("activation_function", "gelu_new")),
    }


def _write_gpt2(config: ModelConfig) -> dict[str, Any]:
    return {
        "n_inner": config.intermediate_size,
        "activation_function": _write_activation(config.activation),
    }


_PLAIN: Data = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
GPT2 = Family(
    architecture="GPT2LMHeadModel",
    bare="GPT2Model",
    prefix="transformer.",
    stack=Stack(
        sizes={
            "vocab_size": "vocab_size",
            "num_layers": "n_layer",
            "hidden_size": "n_embd",
            "num_heads": "n_head",
            "context_length": "n_positions",
        },
        values={"norm_epsilon": "layer_norm_epsilon"},
        shape={**_SHAPE, "positions": "learned", "qkv_bias": True, "output_bias": True},
        read=_read_gpt2,
        write=_write_gpt2,
    ),
    names={
        "embedding": ("transformer.wte",),
        "input.positions": ("transformer.wpe.weight",),
        "norm": ("transformer.ln_f",),
        "head": ("lm_head",),
        "blocks.{}.mixer.norm": ("transformer.h.{}.ln_1",),
        "blocks.{}.mixer.part.qkv": ("transformer.h.{}.attn.c_attn",),
        "blocks.{}.mixer.part.output": ("transformer.h.{}.attn.c_proj",),
        "blocks.{}.feed_forward.norm": ("transformer.h.{}.ln_2",),
        "blocks.{}.feed_forward.part.up": ("transformer.h.{}.mlp.c_fc",),
        "blocks.{}.feed_forward.part.down": ("transformer.h.{}.mlp.c_proj",),
    },
    changes={
        "blocks.{}.mixer.part.qkv": TRANSPOSED,
        "blocks.{}.mixer.part.output": TRANSPOSED,
        "blocks.{}.feed_forward.part.up": TRANSPOSED,
        "blocks.{}.feed_forward.part.down": TRANSPOSED,
    },
    ignored=(".attn.bias", ".attn.masked_bias"),
    fixed=_PLAIN,
    settings=_PLAIN,
    read=("n_inner", "activation_function"),
    harmless=(
        *("resid_pdrop", "embd_pdrop", "attn_pdrop", "n_ctx", "reorder_and_upcast_attn"),
        *("summary_activation", "summary_first_dropout", "summary_proj_to_labels"),
        *("summary_type", "summary_use_proj", "task_specific_params", "gradient_checkpointing"),
    ),
    tied=True,
)


def _split_heads(rows: Tensor, config: ModelConfig) -> Tensor:
    """Rows that lie head by head, its query, key and value: all queries, all keys, all values."""
    return rows.view(config.num_heads, 3, -1, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape)


def _join_heads(rows: Tensor, config: ModelConfig) -> Tensor:
    """The opposite."""
    return rows.view(3, config.num_heads, -1, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape)


def _read_neox(data: Data, shape: dict[str, Any]) -> dict[str, Any]:
    theta, scaling = read_rope(
        {"rope_theta": data.get("rotary_emb_base", 10_000.0), **data},
        context_length=shape["context_length"],
        known=("partial_rotary_factor",),
    )
    biased = bool(data.get("attention_bias", True))
    return {
        **_read_heads(shape),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "rotary_share": read_share(data, absent=data.get("rotary_pct", 0.25)),
        "qkv_bias": biased,
        "output_bias": biased,
        "parallel": bool(data.get("use_parallel_residual", True)),
        "activation": _read_activation(data.get("hidden_act", "gelu")),
    }


def _write_neox(config: ModelConfig) -> dict[str, Any]:
    share = config.rotary_share
    return {
        "rope_parameters": write_rope(
            config.rope_theta, config.rope_scaling, partial_rotary_factor=share
        ),
        "rotary_emb_base": config.rope_theta,
        "rotary_pct": share,
        "attention_bias": config.qkv_bias,
        "use_parallel_residual": config.parallel,
        "hidden_act": _write_activation(config.activation),
    }


GPT_NEOX = Family(
    architecture="GPTNeoXForCausalLM",
    bare="GPTNeoXModel",
    prefix="gpt_neox.",
    stack=Stack(
        sizes=LLAMA_SIZES,
        values={"norm_epsilon": "layer_norm_eps"},
        shape=_SHAPE,
        read=_read_neox,
        write=_write_neox,
    ),
    names={
        "embedding": ("gpt_neox.embed_in",),
        "norm": ("gpt_neox.final_layer_norm",),
        "head": ("embed_out",),
        "blocks.{}.mixer.norm": ("gpt_neox.layers.{}.input_layernorm",),
        "blocks.{}.mixer.part.qkv": ("gpt_neox.layers.{}.attention.query_key_value",),
        "blocks.{}.mixer.part.output": ("gpt_neox.layers.{}.attention.dense",),
        "blocks.{}.feed_forward.norm": ("gpt_neox.layers.{}.post_attention_layernorm",),
        "blocks.{}.feed_forward.part.up": ("gpt_neox.layers.{}.mlp.dense_h_to_4h",),
        "blocks.{}.feed_forward.part.down": ("gpt_neox.layers.{}.mlp.dense_4h_to_h",),
    },
    changes={"blocks.{}.mixer.part.qkv": Change(_split_heads, _join_heads)},
    ignored=(".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"),
    read=(
        *("rotary_emb_base", "rotary_pct", "attention_bias"),
        *("use_parallel_residual", "hidden_act"),
    ),
    harmless=(
        *("hidden_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob"),
        *("classifier_dropout", "is_decoder"),
    ),
)
GPTS: Mapping[str, Family] = {"gpt2": GPT2, "gpt_neox": GPT_NEOX}
