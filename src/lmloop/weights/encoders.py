"""Families of encoders: a row each. How a row is made is in `family.py` and in docs/models.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from lmloop.errors import ArtifactError
from lmloop.model.config import ModelConfig
from lmloop.model.rotary import RopeScaling
from lmloop.weights.decoders import LLAMA_SIZES
from lmloop.weights.family import Change, Data, Family, ReadShape, Stack, WriteShape
from lmloop.weights.rope_entries import read_rope, write_rope

_SHAPE: Data = {
    "causal": False,
    "qk_norm": False,
    "norm": "layer",
    "embedding_norm": True,
    "activation": "gelu",
    "head": "transformed",
    "head_bias": True,
}
_BERT_SHAPE: Data = {
    **_SHAPE,
    "qkv_bias": True,
    "output_bias": True,
    "feed_forward_bias": True,
    "gated": False,
    "positions": "learned",
    "norm_place": "post",
    "final_norm": False,
}
_BERT_FIXED: Data = {
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
_PADDING = 1
"""Id of RoBERTa's padding; its table of positions begins behind a row of that number."""
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"
_MODERN_FIXED: Data = {
    "hidden_activation": "gelu",
    "classifier_activation": "gelu",
    "decoder_bias": True,
    **dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"), False),
}


def _name_bert(name: str) -> dict[str, tuple[str, ...]]:
    """Names without those of the head."""
    block = f"{name}.encoder.layer.{{}}"
    attention = f"{block}.attention.self"
    return {
        "embedding": (f"{name}.embeddings.word_embeddings",),
        "input.positions": (f"{name}.embeddings.position_embeddings.weight",),
        "input.types": (f"{name}.embeddings.token_type_embeddings.weight",),
        "input.norm": (f"{name}.embeddings.LayerNorm",),
        "blocks.{}.mixer.part.qkv": (
            *(f"{attention}.query", f"{attention}.key", f"{attention}.value"),
        ),
        "blocks.{}.mixer.part.output": (f"{block}.attention.output.dense",),
        "blocks.{}.mixer.sum_norm": (f"{block}.attention.output.LayerNorm",),
        "blocks.{}.feed_forward.part.up": (f"{block}.intermediate.dense",),
        "blocks.{}.feed_forward.part.down": (f"{block}.output.dense",),
        "blocks.{}.feed_forward.sum_norm": (f"{block}.output.LayerNorm",),
    }


_MODERN_NAMES: Mapping[str, tuple[str, ...]] = {
    "embedding": ("model.embeddings.tok_embeddings",),
    "input.norm": ("model.embeddings.norm",),
    "norm": ("model.final_norm",),
    "blocks.{}.mixer.norm": ("model.layers.{}.attn_norm",),
    "blocks.{}.mixer.part.qkv": ("model.layers.{}.attn.Wqkv",),
    "blocks.{}.mixer.part.output": ("model.layers.{}.attn.Wo",),
    "blocks.{}.feed_forward.norm": ("model.layers.{}.mlp_norm",),
    "blocks.{}.feed_forward.part.up": ("model.layers.{}.mlp.Wi",),
    "blocks.{}.feed_forward.part.down": ("model.layers.{}.mlp.Wo",),
    "transform": ("head",),
    "head": ("decoder",),
}


def _read_heads(shape: Data) -> dict[str, Any]:
    """Every head has its own keys, and together they are as wide as the states."""
    heads = shape["num_heads"]
    return {"num_kv_heads": heads, "head_dim": shape["hidden_size"] // heads}


def _read_bert(data: Data, shape: dict[str, Any]) -> dict[str, Any]:
    return _read_heads(shape) | {"dropout": float(data.get("hidden_dropout_prob", 0.1))}


def _write_bert(config: ModelConfig) -> dict[str, Any]:
    return {"hidden_dropout_prob": config.dropout, "attention_probs_dropout_prob": 0.0}


def _read_roberta(data: Data, shape: dict[str, Any]) -> dict[str, Any]:
    length = shape["context_length"] - _PADDING - 1
    return _read_bert(data, shape) | {"context_length": length}


def _write_roberta(config: ModelConfig) -> dict[str, Any]:
    length = config.context_length + _PADDING + 1
    return _write_bert(config) | {"max_position_embeddings": length}


def _cut_padding(positions: Tensor, _: ModelConfig) -> Tensor:
    return positions[_PADDING + 1 :]


def _add_padding(positions: Tensor, _: ModelConfig) -> Tensor:
    return F.pad(positions, (0, 0, _PADDING + 1, 0))


def _read_modern(data: Data, shape: dict[str, Any]) -> dict[str, Any]:
    """Which layers see a window, half of it each way, and how positions turn in both kinds."""
    every = data.get("global_attn_every_n_layers") or 3
    kinds = data.get("layer_types") or [
        _LOCAL if layer % every else _GLOBAL for layer in range(shape["num_layers"])
    ]
    theta, scaling = _read_rope(data, _GLOBAL, {"rope_theta": data.get("global_rope_theta", 16e4)})
    local, local_scaling = _read_rope(
        data, _LOCAL, {"rope_theta": data.get("local_rope_theta", 1e4)}
    )
    if local_scaling is not None:
        raise ArtifactError(
            f"rope_parameters of {_LOCAL} cannot be opened: known here is no scaling"
        )
    return _read_heads(shape) | {
        "mixers": tuple("local" if kind == _LOCAL else "attention" for kind in kinds),
        "window": data["local_attention"] // 2 + 1,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "local_rope_theta": local,
    }


def _read_rope(data: Data, kind: str, older: Data) -> tuple[float, RopeScaling | None]:
    told = (data.get("rope_parameters") or {}).get(kind) or {}
    length = data["max_position_embeddings"]
    return read_rope({"rope_parameters": {**older, **told}}, context_length=length)


def _write_modern(config: ModelConfig) -> dict[str, Any]:
    mixers = [config.mixer(layer) for layer in range(config.num_layers)]
    local = config.local_rope_theta or config.rope_theta
    return {
        "layer_types": [_LOCAL if mixer == "local" else _GLOBAL for mixer in mixers],
        "local_attention": 2 * ((config.window or 1) - 1),
        "rope_parameters": {
            _GLOBAL: write_rope(config.rope_theta, config.rope_scaling),
            _LOCAL: write_rope(local, None),
        },
    }


def _like_bert(
    name: str,
    *,
    names: Mapping[str, tuple[str, ...]],
    sequence: Mapping[str, str],
    read: ReadShape = _read_bert,
    write: WriteShape = _write_bert,
    fixed: Data = _BERT_FIXED,
    changes: Mapping[str, Change] | None = None,
) -> Family:
    prefix, spare = f"{name.lower()}.", ("pooler.", "embeddings.position_ids")
    return Family(
        architecture=f"{name}ForMaskedLM",
        bare=f"{name}Model",
        prefix=prefix,
        stack=Stack(
            sizes={**LLAMA_SIZES, "token_types": "type_vocab_size"},
            values={"norm_epsilon": "layer_norm_eps"},
            shape=_BERT_SHAPE,
            read=read,
            write=write,
        ),
        names={**_name_bert(name.lower()), **names},
        heads={
            "sequence": sequence,
            "token": {"output": "classifier"},
            "span": {"output": "qa_outputs"},
        },
        changes=changes or {},
        ignored=(
            *(*spare, *(prefix + each for each in spare)),
            *("cls.seq_relationship.", "cls.predictions.decoder.bias", "lm_head.decoder.bias"),
        ),
        older={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
        fixed=fixed,
        settings=fixed,
        read=("hidden_dropout_prob",),
        harmless=("attention_probs_dropout_prob", "classifier_dropout", "gradient_checkpointing"),
        tied=True,
    )


_MODERN_HEAD = {"layer.dense": "head.dense", "layer.norm": "head.norm", "output": "classifier"}
ENCODERS: Mapping[str, Family] = {
    "bert": _like_bert(
        "Bert",
        names={
            "transform.dense": ("cls.predictions.transform.dense",),
            "transform.norm": ("cls.predictions.transform.LayerNorm",),
            "head.weight": ("cls.predictions.decoder.weight",),
            "head.bias": ("cls.predictions.bias",),
        },
        sequence={"layer.dense": "bert.pooler.dense", "output": "classifier"},
    ),
    "roberta": _like_bert(
        "Roberta",
        names={
            "transform.dense": ("lm_head.dense",),
            "transform.norm": ("lm_head.layer_norm",),
            "head.weight": ("lm_head.decoder.weight",),
            "head.bias": ("lm_head.bias",),
        },
        sequence={"layer.dense": "classifier.dense", "output": "classifier.out_proj"},
        read=_read_roberta,
        write=_write_roberta,
        fixed={**_BERT_FIXED, "pad_token_id": _PADDING},
        changes={"input.positions": Change(_cut_padding, _add_padding)},
    ),
    "modernbert": Family(
        architecture="ModernBertForMaskedLM",
        bare="ModernBertModel",
        prefix="model.",
        stack=Stack(
            sizes=LLAMA_SIZES,
            values={"norm_epsilon": "norm_eps"},
            shape={**_SHAPE, "norm_bias": False, "first_norm": False},
            read=_read_modern,
            write=_write_modern,
        ),
        names=_MODERN_NAMES,
        heads={"sequence": _MODERN_HEAD, "token": _MODERN_HEAD, "span": _MODERN_HEAD},
        fixed=_MODERN_FIXED,
        settings=_MODERN_FIXED,
        read=(
            *("local_attention", "global_attn_every_n_layers"),
            *("global_rope_theta", "local_rope_theta"),
        ),
        harmless=(
            *("classifier_pooling", "classifier_dropout", "embedding_dropout", "mlp_dropout"),
            *("initializer_cutoff_factor", "deterministic_flash_attn", "reference_compile"),
            *("sparse_prediction", "sparse_pred_ignore_index", "cls_token_id", "sep_token_id"),
            *("layer_norm_eps", "position_embedding_type", "gradient_checkpointing"),
        ),
        layer_types=(_GLOBAL, _LOCAL),
        tied=True,
    ),
}
