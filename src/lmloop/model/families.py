"""The families of decoders whose checkpoints are read and written, and how each spells them.

Takes: a `config.json` as data. Gives: a `DecoderConfig`, and back; and the names of its tensors.
A family is a row of `FAMILIES`: what its shape fixes, and which entries may have one value only. An
entry that nobody here knows is an error: it could change what the model computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lmloop.errors import ArtifactError
from lmloop.model.config import DecoderConfig
from lmloop.model.rotary import RopeScaling


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What the checkpoints of one `model_type` have in common."""

    architecture: str
    qk_norm: bool = False
    qkv_bias: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Entries that change the computation, with the one value that is computed here."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What else is written, because other programs ask for it."""


FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        architecture="LlamaForCausalLM",
        fixed={"attention_bias": False, "mlp_bias": False, "rope_interleaved": False},
        settings={"attention_bias": False, "mlp_bias": False},
    ),
    "mistral": Family(
        architecture="MistralForCausalLM",
        fixed={"sliding_window": None},
        settings={"sliding_window": None},
    ),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM",
        qkv_bias=True,
        fixed={"use_sliding_window": False},
        settings={"use_sliding_window": False},
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        qk_norm=True,
        fixed={"attention_bias": False, "use_sliding_window": False},
        settings={"attention_bias": False, "use_sliding_window": False},
    ),
}
OUTER: Mapping[str, tuple[str, ...]] = {
    "embedding.": ("model.embed_tokens.",),
    "norm.": ("model.norm.",),
    "head.": ("lm_head.",),
}
"""Tensors outside the blocks: the beginning of our name, and of theirs in the order of the rows."""
INNER: Mapping[str, tuple[str, ...]] = {
    "attention_norm.": ("input_layernorm.",),
    "attention.qkv.": ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."),
    "attention.output.": ("self_attn.o_proj.",),
    "attention.q_norm": ("self_attn.q_norm.weight",),
    "attention.k_norm": ("self_attn.k_norm.weight",),
    "feed_forward_norm.": ("post_attention_layernorm.",),
    "feed_forward.gate_up.": ("mlp.gate_proj.", "mlp.up_proj."),
    "feed_forward.down.": ("mlp.down_proj.",),
}
"""Tensors of a block."""

_SIZES = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "context_length": "max_position_embeddings",
}
"""Whole numbers that every config has: our name, and theirs."""
_FIXED: Mapping[str, Any] = {"hidden_act": "silu", "pretraining_tp": 1}
_READ = {
    *_SIZES.values(),
    *("model_type", "head_dim", "num_key_value_heads", "rms_norm_eps", "tie_word_embeddings"),
    *("rope_theta", "rope_parameters", "rope_scaling", "layer_types", "quantization_config"),
}
_HARMLESS = {
    *("architectures", "bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype"),
    *("use_cache", "initializer_range", "attention_dropout", "transformers_version"),
    *(
        "sliding_window",
        "max_window_layers",
        "is_llama_config",
        "_name_or_path",
        "transformers.js_config",
    ),
    *("chunk_size_feed_forward", "output_attentions", "output_hidden_states", "return_dict"),
    *("id2label", "label2id", "problem_type", "is_encoder_decoder", "unsloth_fixed"),
}
"""Entries that change nothing about what the model computes (a window only where it is in use)."""


def their_names(name: str) -> tuple[str, ...]:
    """Their names of the tensor that we call `name`, in the order of its rows."""
    if name.startswith("blocks."):
        _, layer, rest = name.split(".", 2)
        prefix, table = f"model.layers.{layer}.", INNER
    else:
        prefix, table, rest = "", OUTER, name
    ours = next(key for key in table if rest.startswith(key))
    rest = rest.removeprefix(ours)
    rest = "weight_scale" if rest == "scale" else rest
    return tuple(prefix + theirs + rest for theirs in table[ours])


def write_config(config: DecoderConfig, *, stop_id: int, pad_id: int, dtype: str) -> dict[str, Any]:
    """The `config.json` that transformers, vLLM and the GGUF converter read."""
    family = FAMILIES[config.family]
    return {
        "architectures": [family.architecture],
        "model_type": config.family,
        **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rope_theta": config.rope_theta,
        "rope_parameters": _write_rope(config),
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        **family.settings,
        "bos_token_id": None,
        "eos_token_id": stop_id,
        "pad_token_id": pad_id,
        "dtype": dtype,
        "use_cache": True,
    }


def read_config(data: Mapping[str, Any]) -> DecoderConfig:
    """The shape that a `config.json` tells.

    Raises `ArtifactError` for a family or an entry that is not known here, `KeyError`, `TypeError`
    or `ValueError` where an entry is missing or makes no sense.
    """
    name = data.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ArtifactError(
            f"model_type {name!r} cannot be opened: known here are {', '.join(map(repr, FAMILIES))}"
        )
    family = FAMILIES[name]
    _check_entries(data, family)
    sizes = {ours: _size(data, theirs) for ours, theirs in _SIZES.items()}
    heads = sizes["num_heads"]
    theta, scaling = _read_rope(data, context_length=sizes["context_length"])
    return DecoderConfig(
        **sizes,
        num_kv_heads=heads
        if _absent(data, "num_key_value_heads")
        else _size(data, "num_key_value_heads"),
        head_dim=sizes["hidden_size"] // heads
        if _absent(data, "head_dim")
        else _size(data, "head_dim"),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_epsilon=data["rms_norm_eps"],
        qk_norm=family.qk_norm,
        qkv_bias=family.qkv_bias,
        tie_embeddings=bool(data.get("tie_word_embeddings", False)),
        int8=_is_int8(data.get("quantization_config")),
        family=name,
    )


def _check_entries(data: Mapping[str, Any], family: Family) -> None:
    """Raise `ArtifactError` for an entry whose value or name is not known."""
    fixed = {**_FIXED, **family.fixed}
    for name, known in fixed.items():
        if data.get(name, known) != known:
            raise ArtifactError(f"{name} {data[name]!r} cannot be opened: known here is {known!r}")
    kinds = set(data.get("layer_types") or ()) - {"full_attention"}
    if kinds:
        raise ArtifactError(
            f"layer_types {sorted(kinds)} cannot be opened: known here is 'full_attention'"
        )
    unknown = sorted(set(data) - _READ - _HARMLESS - set(fixed))
    if unknown:
        raise ArtifactError(
            f"entries {unknown[:5]} of a {data['model_type']} are not known here and could change "
            "what the model computes: remove them from config.json if they do not"
        )


def _absent(data: Mapping[str, Any], name: str) -> bool:
    return data.get(name) is None


def _size(data: Mapping[str, Any], name: str) -> int:
    if type(data[name]) is not int or data[name] < 1:
        raise ValueError(f"{name} is {data[name]!r}, no positive whole number")
    return int(data[name])


def _write_rope(config: DecoderConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    told: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if scaling is None:
        return told
    told |= {"rope_type": scaling.kind, "factor": scaling.factor}
    low, high = _TURNS[scaling.kind]
    if low:
        told |= {low: scaling.low, high: scaling.high}
        told["original_max_position_embeddings"] = scaling.original_length
    if scaling.attention_factor is not None:
        told["attention_factor"] = scaling.attention_factor
    return told


_TURNS = {
    "linear": ("", ""),
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "yarn": ("beta_slow", "beta_fast"),
}
"""What each scaling calls the turns below and above which it scales in full or not at all."""
_YARN = {"beta_slow": 1.0, "beta_fast": 32.0}
"""Where a config does not say (YaRN, section 3.2)."""


def _read_rope(data: Mapping[str, Any], *, context_length: int) -> tuple[float, RopeScaling | None]:
    """Base and scaling; older configs have the base beside the scaling, newer ones within."""
    told = data.get("rope_parameters") or data.get("rope_scaling") or {}
    theta = float(told.get("rope_theta", data.get("rope_theta", 10_000.0)))
    kind = told.get("rope_type", told.get("type", "default"))
    if kind == "default":
        return theta, None
    known = {"rope_type", "type", "rope_theta", "factor", "attention_factor"}
    known |= {"original_max_position_embeddings", *_TURNS.get(kind, ())}
    if kind not in _TURNS or set(told) - known:
        raise ArtifactError(
            f"rope_type {kind!r} with {sorted(set(told) - known)} cannot be opened: known here are "
            f"'default', {', '.join(map(repr, _TURNS))}"
        )
    low, high = _TURNS[kind]
    return theta, RopeScaling(
        kind=kind,
        factor=float(told["factor"]),
        original_length=int(told.get("original_max_position_embeddings") or context_length)
        if low
        else 0,
        low=float((_YARN | dict(told))[low]) if low else 1.0,
        high=float((_YARN | dict(told))[high]) if low else 4.0,
        attention_factor=told.get("attention_factor"),
    )


def _is_int8(quantization: Mapping[str, Any] | None) -> bool:
    if quantization is None:
        return False
    told = quantization.get("format"), *_weight_schemes(quantization)
    if told != ("pack-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": True}):
        raise ArtifactError(
            f"quantization {told} cannot be opened: known here is 'pack-quantized' of "
            "compressed-tensors with symmetric 8-bit channels"
        )
    return True


def _weight_schemes(quantization: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What decides how weights are read, a group each."""
    groups = quantization.get("config_groups", {}).values()
    known = ("num_bits", "strategy", "symmetric")
    return [{key: group["weights"].get(key) for key in known} for group in groups]
