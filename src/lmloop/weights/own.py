"""The family of all shapes that no other family has: every entry of the shape as it is called here.

Takes: a `config.json` of which nothing is believed. Gives: a `ModelConfig`, and back. The tensors
keep our names. No other program opens these folders: such models leave as ONNX.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lmloop.model.config import ModelConfig
from lmloop.weights.family import Data, Family, Stack

_ELSEWHERE = ("family", "int8", "tie_embeddings")
"""Entries that every family's config has."""


def read_shape(data: Data, shape: dict[str, Any]) -> dict[str, Any]:
    """The shape under `shape`; raise `ValueError` where an entry is wrong or not known."""
    told = data["shape"]
    known = {field.name for field in fields(ModelConfig)}
    unknown = sorted(set(told) - known)
    if unknown:
        raise ValueError(f"shape has the unknown entries {unknown[:5]}")
    try:
        config = TypeAdapter(ModelConfig).validate_python(told)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"shape.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return {name: getattr(config, name) for name in known if name not in _ELSEWHERE}


def write_shape(config: ModelConfig) -> dict[str, Any]:
    """The entries of that."""
    shape = asdict(config)
    kind = "CausalLM" if config.causal else "MaskedLM"
    kind = kind if config.encoder is None else "ConditionalGeneration"
    return {
        "architectures": [f"LmloopFor{kind}"],
        "shape": {name: value for name, value in shape.items() if name not in _ELSEWHERE},
    }


OWN = Family(
    architecture="LmloopForCausalLM",
    stack=Stack(sizes={}, read=read_shape, write=write_shape),
    names={"": ("",)},
    read=("shape",),
    tied=True,
)
