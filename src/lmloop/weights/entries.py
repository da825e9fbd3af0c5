"""The entries of a `config.json`, read and written by the tables of a family.

Takes: entries as data, of which nothing is believed. Gives: the fields of a `ModelConfig`, and
back.
"""

from __future__ import annotations

import math
from typing import Any

from lmloop.errors import ArtifactError
from lmloop.model.config import ModelConfig
from lmloop.weights.family import Data, Family, Stack, check_size, read_size
from lmloop.weights.rope_entries import ROPE_ENTRIES

_COMMON = {
    *("model_type", "num_key_value_heads", "head_dim", "tie_word_embeddings"),
    *("layer_types", "quantization_config", *ROPE_ENTRIES),
}
_HARMLESS = {
    *("architectures", "bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype"),
    *("use_cache", "initializer_range", "attention_dropout", "transformers_version"),
    *("_name_or_path", "transformers.js_config", "decoder_start_token_id"),
    *("chunk_size_feed_forward", "output_attentions", "output_hidden_states", "return_dict"),
    *("id2label", "label2id", "problem_type", "is_encoder_decoder", "unsloth_fixed"),
    *("num_beams", "length_penalty", "early_stopping", "max_length", "min_length", "prefix"),
    *("no_repeat_ngram_size", "forced_bos_token_id", "forced_eos_token_id", "output_past"),
    *("forced_decoder_ids", "task_specific_params"),
}
"""Entries that change nothing about what the model computes."""


def read_stack(stack: Stack, data: Data) -> dict[str, Any]:
    """Fields of the shape of one stack.

    Raises `KeyError`, `TypeError` or `ValueError` where an entry is missing or makes no sense.
    """
    shape = dict(stack.shape)
    shape |= {ours: read_size(data, theirs) for ours, theirs in stack.sizes.items()}
    shape |= {ours: _value(data, theirs, ours) for ours, theirs in stack.values.items()}
    if stack.read is not None:
        shape |= stack.read(data, shape)
    for name in ("num_layers", "num_kv_heads", "head_dim", "context_length"):
        check_size(name, shape[name])
    return shape


def write_stack(stack: Stack | None, config: ModelConfig) -> dict[str, Any]:
    """The entries of one stack, none where the family has no such stack."""
    if stack is None:
        return {}
    entries = {**stack.sizes, **stack.values}
    told = {theirs: getattr(config, ours) for ours, theirs in entries.items()}
    return told if stack.write is None else told | stack.write(config)


def check_entries(data: Data, family: Family) -> None:
    """Raise `ArtifactError` for an entry whose value or name is not known."""
    for name, known in family.fixed.items():
        if data.get(name, known) != known:
            raise ArtifactError(f"{name} {data[name]!r} cannot be opened: known here is {known!r}")
    kinds = set(data.get("layer_types") or ()) - set(family.layer_types)
    if kinds:
        raise ArtifactError(
            f"layer_types {sorted(kinds)} cannot be opened: known here are "
            f"{', '.join(map(repr, family.layer_types))}"
        )
    stacks = [family.stack] if family.encoder is None else [family.stack, family.encoder]
    read = {each for stack in stacks for each in (*stack.sizes.values(), *stack.values.values())}
    known = _COMMON | _HARMLESS | read | {*family.fixed, *family.harmless, *family.read}
    unknown = sorted(set(data) - known)
    if unknown:
        raise ArtifactError(
            f"entries {unknown[:5]} of a {data['model_type']} are not known here and could change "
            "what the model computes: remove them from config.json if they do not"
        )


def _value(data: Data, name: str, ours: str) -> Any:
    """An entry of the kind that our field has; raises `ValueError` for any other."""
    value, kind = data[name], type(ModelConfig.__dataclass_fields__[ours].default)
    if kind is float and (isinstance(value, bool) or not math.isfinite(value)):
        raise ValueError(f"{name} is {value!r}, no number")
    if kind is bool and not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}: true or false")
    return value
