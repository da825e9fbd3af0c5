"""The families whose checkpoints are read and written: their `config.json` and our shape.

Takes: a `config.json` as data. Gives: a `ModelConfig`, and back. An entry that nobody here knows is
an error: it could change what the model computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lmloop.errors import ArtifactError
from lmloop.model.config import ModelConfig
from lmloop.weights.decoders import DECODERS
from lmloop.weights.encoders import ENCODERS
from lmloop.weights.entries import check_entries, read_stack, write_stack
from lmloop.weights.family import Data, Family
from lmloop.weights.gemma import GEMMAS
from lmloop.weights.gpt import GPTS
from lmloop.weights.own import OWN
from lmloop.weights.pairs import PAIRS
from lmloop.weights.vision import VISION

FAMILIES: Mapping[str, Family] = {
    **DECODERS,
    **GEMMAS,
    **GPTS,
    **ENCODERS,
    **PAIRS,
    **VISION,
    "lmloop": OWN,
}


def family_of(config: ModelConfig) -> Family:
    """The row of a shape's family; raise `ArtifactError` where it belongs to none."""
    try:
        return FAMILIES[config.family]
    except KeyError:
        raise ArtifactError(
            f"a model of family {config.family!r} has no place in Hugging Face's layout: known "
            f"here are {', '.join(map(repr, FAMILIES))}"
        ) from None


def name_family(config: ModelConfig) -> ModelConfig:
    """The shape as one of the first family that has it: whose checkpoints others open unchanged."""
    for name in ("qwen3", *FAMILIES):
        encoder = config.encoder and replace(config.encoder, family=name)
        named = replace(config, family=name, encoder=encoder)
        try:
            write_config(named, stop_id=1, pad_id=0, dtype="float32")
        except ArtifactError:
            continue
        return named
    raise ArtifactError(f"no family has the shape {config}")


def write_config(
    config: ModelConfig, *, stop_id: int, pad_id: int, dtype: str, start_id: int | None = None
) -> dict[str, Any]:
    """The `config.json` that transformers, vLLM and the GGUF converter read.

    `start_id` is what an encoder-decoder's answer begins with; None: `pad_id`, as in T5. Raises
    `ArtifactError` where the family has no words for the shape: read back it would be another.
    """
    plain = replace(config, int8=False, dropout=0.0)  # one is said elsewhere, one is of training
    start = pad_id if start_id is None else start_id
    try:
        told = _write_entries(plain, stop_id=stop_id, pad_id=pad_id, dtype=dtype, start_id=start)
        same = replace(read_config(told), dropout=0.0) == plain
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError):
        same = False
    if not same:
        raise ArtifactError(f"the family {config.family!r} has no words for the shape {plain}")
    return _write_entries(config, stop_id=stop_id, pad_id=pad_id, dtype=dtype, start_id=start)


def _write_entries(
    config: ModelConfig, *, stop_id: int, pad_id: int, dtype: str, start_id: int
) -> dict[str, Any]:
    family = family_of(config)
    bare = config.head == "none" and family.bare is not None
    return {
        "architectures": [family.bare if bare else family.architecture],
        "model_type": config.family,
        **(write_stack(family.encoder, config.encoder) if config.encoder else {}),
        **write_stack(family.stack, config),
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": stop_id,
        "pad_token_id": pad_id,
        **({"decoder_start_token_id": start_id} if config.encoder else {}),
        "dtype": dtype,
        "use_cache": True,
        **family.settings,
    }


def read_config(data: Data) -> ModelConfig:
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
    check_entries(data, family)
    shape = read_stack(family.stack, data)
    if family.encoder is not None:
        encoder = {"causal": False, "head": "none", **read_stack(family.encoder, data)}
        shape["encoder"] = ModelConfig(**encoder, family=name)
    if family.bare is not None and data.get("architectures") == [family.bare]:
        shape["head"] = "none"
    shape.setdefault("tie_embeddings", bool(data.get("tie_word_embeddings", family.tied)))
    return ModelConfig(**shape, int8=_is_int8(data.get("quantization_config")), family=name)


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
