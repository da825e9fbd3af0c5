"""What the tensors of a model are called here: which of them are the same, which hold several.

Takes: a shape and a name. Gives: names, and rows.
"""

from __future__ import annotations

from lmloop.model.config import ModelConfig


def tied_names(config: ModelConfig) -> dict[str, str]:
    """Tensors that are others under a second name, and those others."""
    tied = {}
    if config.tie_embeddings and config.head != "none":
        tied["head.weight"] = "embedding.weight"
    if config.encoder is not None and config.encoder.reads_tokens:
        tied["encoder.embedding.weight"] = "embedding.weight"
    return tied


def stack_of(config: ModelConfig, name: str) -> ModelConfig:
    """The shape of the stack that a tensor belongs to."""
    is_encoder = config.encoder is not None and name.startswith("encoder.")
    return config.encoder if is_encoder and config.encoder is not None else config


def fused_rows(config: ModelConfig, name: str, rows: int) -> list[int]:
    """Rows of each matrix in a tensor: queries, keys and values; gate and up; gates; or one."""
    stack, stem = stack_of(config, name), name.rpartition(".")[0]
    if stem.endswith("mixer.part.qkv"):
        return list(stack.qkv_rows)
    parts = 1
    if stem.endswith(("feed_forward.part.up", "shared.up")):
        parts = 2 if stack.gated else 1
    elif stem.endswith("cross.part.kv"):
        parts = 2
    elif stem.endswith("mixer.part.cell"):
        parts = 3 if rows % (2 * stack.hidden_size) else 4
    return [rows // parts] * parts
