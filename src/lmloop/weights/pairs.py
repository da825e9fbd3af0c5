"""Families of encoder-decoders: a row each. How a row is made: `family.py` and docs/models.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from lmloop.errors import ArtifactError
from lmloop.model.config import Activation, ModelConfig
from lmloop.weights.family import Change, Data, Family, Stack

Names = dict[str, Sequence[str]]
_PAIR: Data = {"is_encoder_decoder": True}
_T5_ACTIVATIONS: Mapping[str, tuple[Activation, bool]] = {
    "relu": ("relu", False),
    "gated-gelu": ("gelu_tanh", True),
    "gated-silu": ("silu", True),
}
"""What `feed_forward_proj` says, and whether such layers are gated."""


def _read_t5(data: Data, shape: dict[str, Any]) -> dict[str, Any]:
    told = data.get("feed_forward_proj", "relu")
    if told not in _T5_ACTIVATIONS:
        known = ", ".join(map(repr, _T5_ACTIVATIONS))
        raise ArtifactError(f"feed_forward_proj {told!r} cannot be opened: known here are {known}")
    activation, gated = _T5_ACTIVATIONS[told]
    return {
        "num_layers": data["num_layers"],
        "num_kv_heads": shape["num_heads"],
        "context_length": data.get("n_positions", 512),
        "relative_distance": data.get("relative_attention_max_distance", 128),
        "activation": activation,
        "gated": gated,
    }


def _read_t5_decoder(data: Data, shape: dict[str, Any]) -> dict[str, Any]:
    """The first T5 scales its last states; v1.1 does not, which older configs tell by the tie."""
    scaled = data.get("scale_decoder_outputs", data.get("tie_word_embeddings") is not False)
    return _read_t5(data, shape) | {
        "num_layers": data.get("num_decoder_layers") or data["num_layers"],
        "logit_scale": shape["hidden_size"] ** -0.5 if scaled else 1.0,
    }


def _write_t5_decoder(config: ModelConfig) -> dict[str, Any]:
    told = {pair: name for name, pair in _T5_ACTIVATIONS.items()}
    return {
        "num_decoder_layers": config.num_layers,
        "n_positions": config.context_length,
        "relative_attention_max_distance": config.relative_distance,
        "feed_forward_proj": told[config.activation, config.gated],
        "scale_decoder_outputs": config.logit_scale != 1.0,
    }


def _t5_names(ours: str, theirs: str, *, last: int) -> Names:
    """Names in one stack, of whose blocks the feed-forward layer is part `last`."""
    block, layer = f"{ours}blocks.{{}}", f"{theirs}.block.{{}}.layer"
    bias = f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return {
        f"{ours}norm": (f"{theirs}.final_layer_norm",),
        f"{ours}relative.weight": (bias,),
        f"{block}.mixer.norm": (f"{layer}.0.layer_norm",),
        f"{block}.mixer.part.qkv": tuple(f"{layer}.0.SelfAttention.{x}" for x in "qkv"),
        f"{block}.mixer.part.output": (f"{layer}.0.SelfAttention.o",),
        f"{block}.cross.norm": (f"{layer}.1.layer_norm",),
        f"{block}.cross.part.query": (f"{layer}.1.EncDecAttention.q",),
        f"{block}.cross.part.kv": tuple(f"{layer}.1.EncDecAttention.{x}" for x in "kv"),
        f"{block}.cross.part.output": (f"{layer}.1.EncDecAttention.o",),
        f"{block}.feed_forward.norm": (f"{layer}.{last}.layer_norm",),
        f"{block}.feed_forward.part.up": tuple(
            f"{layer}.{last}.DenseReluDense.wi_{x}" for x in "01"
        ),
        f"{block}.feed_forward.part.down": (f"{layer}.{last}.DenseReluDense.wo",),
    }


_T5_ENCODER = Stack(
    sizes={
        "vocab_size": "vocab_size",
        "hidden_size": "d_model",
        "num_heads": "num_heads",
        "head_dim": "d_kv",
        "intermediate_size": "d_ff",
        "relative_buckets": "relative_attention_num_buckets",
    },
    values={"norm_epsilon": "layer_norm_epsilon"},
    shape={"qk_norm": False, "attention_scale": 1.0, "positions": "relative"},
    read=_read_t5,
    write=lambda config: {"num_layers": config.num_layers},
)
_T5 = Family(
    architecture="T5ForConditionalGeneration",
    bare="T5Model",
    stack=replace(_T5_ENCODER, read=_read_t5_decoder, write=_write_t5_decoder),
    encoder=_T5_ENCODER,
    names={
        "embedding": ("shared",),
        "encoder.embedding": ("encoder.embed_tokens", "decoder.embed_tokens"),
        "head": ("lm_head",),
        **_t5_names("encoder.", "encoder", last=1),
        **_t5_names("", "decoder", last=2),
    },
    ungated={
        "encoder.blocks.{}.feed_forward.part.up": ("encoder.block.{}.layer.1.DenseReluDense.wi",),
        "blocks.{}.feed_forward.part.up": ("decoder.block.{}.layer.2.DenseReluDense.wi",),
    },
    # Old files have it, though nothing in T5 reads it.
    ignored=("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias",),
    fixed=_PAIR,
    settings=_PAIR,
    read=(
        *("num_layers", "num_decoder_layers", "n_positions", "relative_attention_max_distance"),
        *("feed_forward_proj", "scale_decoder_outputs"),
    ),
    harmless=(
        *("dense_act_fn", "is_gated_act"),  # they follow from feed_forward_proj
        *("is_decoder", "dropout_rate", "classifier_dropout", "initializer_factor"),
    ),
    tied=True,
)


def _read_bart(data: Data, shape: dict[str, Any]) -> dict[str, Any]:
    heads, width = shape["num_heads"], shape["hidden_size"]
    scale = width**0.5 if data.get("scale_embedding") else 1.0
    return {"num_kv_heads": heads, "head_dim": width // heads, "embedding_scale": scale}


def _bart_stack(side: str, sizes: Mapping[str, str], **shape: Any) -> Stack:
    """BART spells every size of a stack with the side that it is on."""
    return Stack(
        sizes={
            "vocab_size": "vocab_size",
            "hidden_size": "d_model",
            "num_layers": f"{side}_layers",
            "num_heads": f"{side}_attention_heads",
            "intermediate_size": f"{side}_ffn_dim",
            **sizes,
        },
        shape={
            **dict.fromkeys(("qkv_bias", "output_bias", "feed_forward_bias"), True),
            "qk_norm": False,
            "gated": False,
            "activation": "gelu",
            "positions": "learned",
            "norm": "layer",
            "norm_epsilon": 1e-5,
            **shape,
        },
        read=_read_bart,
        write=lambda config: {"scale_embedding": config.embedding_scale != 1.0},
    )


_BART_NORMS = {"mixer": "self_attn", "cross": "encoder_attn", "feed_forward": "final"}


def _bart_names(ours: str, theirs: str) -> Names:
    """Names in one stack, wherever its norms stand."""
    block, layer = f"{ours}blocks.{{}}", f"{theirs}.layers.{{}}"
    norms: Names = {
        f"{block}.{part}.{place}": (f"{layer}.{theirs_too}_layer_norm",)
        for part, theirs_too in _BART_NORMS.items()
        for place in ("norm", "sum_norm")
    }
    return norms | {
        f"{ours}input.positions": (f"{theirs}.embed_positions.weight",),
        f"{ours}input.norm": (f"{theirs}.layernorm_embedding",),
        f"{ours}norm": (f"{theirs}.layer_norm",),
        f"{block}.mixer.part.qkv": tuple(f"{layer}.self_attn.{x}_proj" for x in "qkv"),
        f"{block}.mixer.part.output": (f"{layer}.self_attn.out_proj",),
        f"{block}.cross.part.query": (f"{layer}.encoder_attn.q_proj",),
        f"{block}.cross.part.kv": tuple(f"{layer}.encoder_attn.{x}_proj" for x in "kv"),
        f"{block}.cross.part.output": (f"{layer}.encoder_attn.out_proj",),
        f"{block}.feed_forward.part.up": (f"{layer}.fc1",),
        f"{block}.feed_forward.part.down": (f"{layer}.fc2",),
    }


_BART_NAMES = _bart_names("encoder.", "model.encoder") | _bart_names("", "model.decoder")
_BART_LENGTH = {"context_length": "max_position_embeddings"}
_BART_FIXED: Data = {**_PAIR, "activation_function": "gelu", "is_decoder": False}
_BART_SETTINGS: Data = {**_PAIR, "activation_function": "gelu"}
_BART_HARMLESS = (
    *("num_hidden_layers", "dropout", "activation_dropout", "classifier_dropout", "init_std"),
    *("encoder_layerdrop", "decoder_layerdrop", "classif_dropout", "gradient_checkpointing"),
    *("_num_labels", "force_bos_token_to_be_generated"),
)
_POST_NORM: Data = {"norm_place": "post", "embedding_norm": True, "final_norm": False}
_OFFSET = Change(lambda rows, _: rows[2:], lambda rows, _: torch.cat([0 * rows[:2], rows]))
"""BART counts positions from two; the first two rows are never looked up."""
_BART = Family(
    architecture="BartForConditionalGeneration",
    bare="BartModel",
    prefix="model.",
    stack=_bart_stack("decoder", _BART_LENGTH, **_POST_NORM, head_bias=True),
    encoder=_bart_stack("encoder", _BART_LENGTH, **_POST_NORM),
    names={
        "embedding": ("model.shared",),
        "encoder.embedding": ("model.encoder.embed_tokens", "model.decoder.embed_tokens"),
        "head": ("lm_head",),
        "head.bias": ("final_logits_bias",),
        **_BART_NAMES,
    },
    changes={
        "input.positions": _OFFSET,
        "encoder.input.positions": _OFFSET,
        "head.bias": Change(lambda bias, _: bias[0], lambda bias, _: bias[None]),
    },
    fixed={
        **_BART_FIXED,
        **dict.fromkeys(("normalize_before", "add_final_layer_norm", "add_bias_logits"), False),
        "normalize_embedding": True,
        "static_position_embeddings": False,
        "extra_pos_embeddings": 2,
    },
    settings=_BART_SETTINGS,
    read=("scale_embedding",),
    harmless=_BART_HARMLESS,
    tied=True,
)
_WHISPER = Family(
    architecture="WhisperForConditionalGeneration",
    bare="WhisperModel",
    prefix="model.",
    stack=_bart_stack("decoder", {"context_length": "max_target_positions"}),
    encoder=_bart_stack(
        "encoder", {"context_length": "max_source_positions", "audio_bins": "num_mel_bins"}
    ),
    names={
        "embedding": ("model.decoder.embed_tokens",),
        "encoder.embedding.first": ("model.encoder.conv1",),
        "encoder.embedding.second": ("model.encoder.conv2",),
        "head": ("proj_out",),
        **_BART_NAMES,
    },
    absent=("k_proj.bias",),
    fixed={**_BART_FIXED, "scale_embedding": False, "use_weighted_layer_sum": False},
    settings=_BART_SETTINGS,
    harmless=(
        *_BART_HARMLESS,
        *("begin_suppress_tokens", "suppress_tokens", "median_filter_width", "apply_spec_augment"),
        *("mask_feature_length", "mask_feature_min_masks", "mask_feature_prob"),
        *("mask_time_length", "mask_time_min_masks", "mask_time_prob", "classifier_proj_size"),
    ),
    tied=True,
)
PAIRS: Mapping[str, Family] = {"t5": _T5, "bart": _BART, "whisper": _WHISPER}
