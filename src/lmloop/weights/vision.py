"""Families that see: ViT, and a ViT whose pictures a GPT-2 puts into words.

How a row is made is in `family.py` and in docs/models.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lmloop.model.config import ModelConfig, Picture
from lmloop.weights.entries import check_entries, read_stack, write_stack
from lmloop.weights.family import TRANSPOSED, Change, Data, Family, Stack, read_size
from lmloop.weights.gpt import GPT2

_PAIR = "vision-encoder-decoder"


def _read_vit(data: Data, shape: dict[str, Any]) -> dict[str, Any]:
    sizes = {"size": "image_size", "patch": "patch_size", "channels": "num_channels"}
    picture = Picture(**{ours: read_size(data, theirs) for ours, theirs in sizes.items()})
    return {
        "num_kv_heads": shape["num_heads"],
        "head_dim": shape["hidden_size"] // shape["num_heads"],
        "context_length": picture.length,
        "picture": picture,
    }


def _write_vit(config: ModelConfig) -> dict[str, Any]:
    assert config.picture is not None
    return {
        "image_size": config.picture.size,
        "patch_size": config.picture.patch,
        "num_channels": config.picture.channels,
    }


_FIRST_OF_ONE = Change(lambda tensor, _: tensor[0], lambda tensor, _: tensor[None])
"""What lies as one row of a batch."""
_LAYER = "encoder.layer.{}"
_VIT = Family(
    architecture="ViTModel",
    stack=Stack(
        sizes={
            "num_layers": "num_hidden_layers",
            "hidden_size": "hidden_size",
            "num_heads": "num_attention_heads",
            "intermediate_size": "intermediate_size",
        },
        values={"norm_epsilon": "layer_norm_eps", "qkv_bias": "qkv_bias"},
        shape={
            "vocab_size": 1,
            "causal": False,
            "head": "none",
            "norm": "layer",
            "positions": "learned",
            "qk_norm": False,
            "output_bias": True,
            "activation": "gelu",
            "gated": False,
            "feed_forward_bias": True,
        },
        read=_read_vit,
        write=_write_vit,
    ),
    names={
        "embedding.leading": ("embeddings.cls_token",),
        "embedding.projection": ("embeddings.patch_embeddings.projection",),
        "input.positions": ("embeddings.position_embeddings",),
        "norm": ("layernorm",),
        "blocks.{}.mixer.norm": (f"{_LAYER}.layernorm_before",),
        "blocks.{}.mixer.part.qkv": tuple(
            f"{_LAYER}.attention.attention.{each}" for each in ("query", "key", "value")
        ),
        "blocks.{}.mixer.part.output": (f"{_LAYER}.attention.output.dense",),
        "blocks.{}.feed_forward.norm": (f"{_LAYER}.layernorm_after",),
        "blocks.{}.feed_forward.part.up": (f"{_LAYER}.intermediate.dense",),
        "blocks.{}.feed_forward.part.down": (f"{_LAYER}.output.dense",),
    },
    changes={"embedding.leading": _FIRST_OF_ONE, "input.positions": _FIRST_OF_ONE},
    ignored=("pooler.dense.", "embeddings.mask_token"),
    fixed={"hidden_act": "gelu"},
    settings={"hidden_act": "gelu"},
    read=("image_size", "patch_size", "num_channels"),
    harmless=(
        *("hidden_dropout_prob", "attention_probs_dropout_prob", "encoder_stride"),
        *("pooler_act", "pooler_output_size"),
    ),
    tied=True,
)
_CROSS = {
    "blocks.{}.cross.norm": ("transformer.h.{}.ln_cross_attn",),
    "blocks.{}.cross.part.query": ("transformer.h.{}.crossattention.q_attn",),
    "blocks.{}.cross.part.kv": ("transformer.h.{}.crossattention.c_attn",),
    "blocks.{}.cross.part.output": ("transformer.h.{}.crossattention.c_proj",),
}
_OLD_DUMP = (
    *("bad_words_ids", "cross_attention_hidden_size", "diversity_penalty", "do_sample"),
    *("encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "finetuning_task"),
    *("begin_suppress_tokens", "suppress_tokens", "num_beam_groups", "num_return_sequences"),
    *("output_scores", "remove_invalid_values", "repetition_penalty", "return_dict_in_generate"),
    *("sep_token_id", "temperature", "tf_legacy_loss", "tokenizer_class", "top_k", "top_p"),
    *("torchscript", "typical_p", "use_bfloat16", "predict_special_tokens"),
)
"""What older files repeat on both sides, most of it of generation."""
_UNUSED: Data = {"pruned_heads": {}, "tie_encoder_decoder": False}
_SEES = replace(
    _VIT,
    fixed={**_VIT.fixed, **_UNUSED, "model_type": "vit", "is_decoder": False},
    settings={**_VIT.settings, "model_type": "vit"},
    harmless=(*_VIT.harmless, *_OLD_DUMP, "add_cross_attention"),
)
_TELLS_AS: Data = {"model_type": "gpt2", "add_cross_attention": True, "is_decoder": True}
_TELLS = replace(
    GPT2,
    fixed={**GPT2.fixed, **_UNUSED, **_TELLS_AS},
    settings={**GPT2.settings, **_TELLS_AS},
    harmless=(*GPT2.harmless, *_OLD_DUMP),
)
_SIDES: Mapping[str, Family] = {"encoder": _SEES, "decoder": _TELLS}
"""By the entries that hold the config of each."""


def _read_pair(data: Data, _: dict[str, Any]) -> dict[str, Any]:
    told = {}
    for side, family in _SIDES.items():
        check_entries(data[side], family)
        told[side] = read_stack(family.stack, data[side])
    encoder, decoder = told.values()
    if encoder["hidden_size"] != decoder["hidden_size"]:
        raise ValueError("encoder and decoder differ in width: a map between them is not known")
    tied = bool(data["decoder"].get("tie_word_embeddings", True))
    return {
        **decoder,
        "encoder": ModelConfig(**encoder, family=_PAIR),
        "tie_embeddings": tied,
    }


def _write_pair(config: ModelConfig) -> dict[str, Any]:
    assert config.encoder is not None
    written = {}
    for side, stack in (("encoder", config.encoder), ("decoder", config)):
        family = _SIDES[side]
        written[side] = write_stack(family.stack, stack) | dict(family.settings)
    written["decoder"]["tie_word_embeddings"] = config.tie_embeddings
    return written


_PAIR_ENTRIES: Data = {"is_encoder_decoder": True, "tie_word_embeddings": False}
"""The tie of embedding and head is the decoder's; this one would be of both sides."""
VISION: Mapping[str, Family] = {
    "vit": _VIT,
    _PAIR: Family(
        architecture="VisionEncoderDecoderModel",
        stack=Stack(sizes={}, read=_read_pair, write=_write_pair),
        names={
            **{f"encoder.{o}": tuple(f"encoder.{t}" for t in ts) for o, ts in _VIT.names.items()},
            **{o: tuple(f"decoder.{t}" for t in ts) for o, ts in {**GPT2.names, **_CROSS}.items()},
        },
        changes={
            **{f"encoder.{ours}": each for ours, each in _VIT.changes.items()},
            **GPT2.changes,
            **dict.fromkeys([name for name in _CROSS if ".part." in name], TRANSPOSED),
        },
        ignored=(
            *_VIT.ignored,
            *GPT2.ignored,
            ".crossattention.bias",
            ".crossattention.masked_bias",
        ),
        fixed={"is_encoder_decoder": True},
        settings=_PAIR_ENTRIES,
        read=("encoder", "decoder"),
        harmless=(*_OLD_DUMP, "pad_token_id"),
    ),
}
