"""GPT-2 and GPT-NeoX (Pythia): layer norms and biases instead of Llama's gates.

How a row is made is in `family.py` and in docs/models.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lmloop.model.config import ModelConfig
from lmloop.weights.decoders import LLAMA_SIZES, Shape, read_llama, write_llama
from lmloop.weights.family import TRANSPOSED, Change, Data, Family, Stack

_SHAPE: Mapping[str, Any] = {
    "norm": "layer",
    "gated": False,
    "feed_forward_bias": True,
    "qk_norm": False,
}


def _read_gpt2(data: Data, shape: Shape) -> Shape:
    inner = data.get("n_inner") or 4 * shape["hidden_size"]
    return read_llama(data, shape) | {"intermediate_size": inner}


def _write_gpt2(config: ModelConfig) -> dict[str, Any]:
    return {"n_inner": config.intermediate_size}


_PLAIN: Data = {
    "activation_function": "gelu_new",
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
        shape={
            **_SHAPE,
            "activation": "gelu_tanh",
            "positions": "learned",
            "qkv_bias": True,
            "output_bias": True,
        },
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
    read=("n_inner",),
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


def _read_neox(data: Data, shape: Shape) -> Shape:
    told = {"rope_theta": data.get("rotary_emb_base", 10_000.0), **data}
    biased = bool(data.get("attention_bias", True))
    return {
        **read_llama(told, shape, share=data.get("rotary_pct", 0.25)),
        "qkv_bias": biased,
        "output_bias": biased,
        "parallel": bool(data.get("use_parallel_residual", True)),
    }


def _write_neox(config: ModelConfig) -> dict[str, Any]:
    return write_llama(config) | {
        "rotary_emb_base": config.rope_theta,
        "rotary_pct": config.rotary_share,
        "attention_bias": config.qkv_bias,
        "use_parallel_residual": config.parallel,
    }


GPT_NEOX = Family(
    architecture="GPTNeoXForCausalLM",
    bare="GPTNeoXModel",
    prefix="gpt_neox.",
    stack=Stack(
        sizes=LLAMA_SIZES,
        values={"norm_epsilon": "layer_norm_eps"},
        shape={**_SHAPE, "activation": "gelu"},
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
    fixed={"hidden_act": "gelu"},
    settings={"hidden_act": "gelu"},
    read=("rotary_emb_base", "rotary_pct", "attention_bias", "use_parallel_residual"),
    harmless=(
        *("hidden_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob"),
        *("classifier_dropout", "is_decoder"),
    ),
)
GPTS: Mapping[str, Family] = {"gpt2": GPT2, "gpt_neox": GPT_NEOX}
