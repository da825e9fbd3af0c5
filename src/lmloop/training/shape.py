"""The shape that a recipe describes, under the family that others know it by."""

from __future__ import annotations

from dataclasses import replace

from lmloop.model.config import Experts, ModelConfig
from lmloop.sections import ModelSection
from lmloop.weights.families import name_family

_MIXTURE = {"experts", "experts_active", "expert_size", "balance"}
_ELSEWHERE = {"base", "kind", "vectors", "freeze_embedding"} | _MIXTURE


def model_config(section: ModelSection, *, vocab_size: int) -> ModelConfig:
    """The model that a recipe describes, for a tokenizer of `vocab_size` entries."""
    experts = None
    if section.experts is not None:
        experts = Experts(
            count=section.experts,
            active=section.experts_active,
            size=section.expert_size,
            balance=section.balance,
        )
    config = ModelConfig(
        vocab_size=vocab_size,
        experts=experts,
        causal=section.kind != "encoder",
        # Tokens begin at 0.02 and waves have size one: without a scale they drown the tokens.
        embedding_scale=50.0 if section.positions == "sinusoidal" else 1.0,
        **section.model_dump(exclude=_ELSEWHERE),
    )
    if section.kind == "encoder-decoder":
        encoder = replace(config, causal=False, head="none", family="lmloop")
        config = replace(config, encoder=encoder)
    return name_family(config)
