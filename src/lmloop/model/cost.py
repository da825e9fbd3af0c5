"""What a decoder costs, before it exists: parameters, arithmetic and bytes as pure functions.

Takes: a `ModelConfig` and sizes. Gives: numbers. Arithmetic counts a multiply-add as two.
"""

from __future__ import annotations

from lmloop.model.config import ModelConfig


def count_parameters(config: ModelConfig) -> int:
    """Parameters, a tied head counted once."""
    attention = config.hidden_size * (sum(config.qkv_rows) + config.qkv_rows[0])
    feed_forward = 3 * config.hidden_size * config.intermediate_size
    norms = 2 * config.hidden_size + (2 * config.head_dim if config.qk_norm else 0)
    biases = sum(config.qkv_rows) if config.qkv_bias else 0
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_embeddings else 2)
    layers = config.num_layers * (attention + feed_forward + norms + biases)
    return layers + embeddings + config.hidden_size


def training_flops_per_token(config: ModelConfig, *, row_tokens: int) -> float:
    """Forward and backward of one token in a row of `row_tokens`: 6·N + 12·L·(H·d)·T.

    Source: Kaplan et al. 2020, section 2.1, with attention counted over the whole row.
    """
    attention = 12 * config.num_layers * config.qkv_rows[0] * row_tokens
    return 6 * count_parameters(config) + attention


def training_bytes(config: ModelConfig, *, batch_tokens: int, row_tokens: int) -> dict[str, int]:
    """Bytes of a training step in bfloat16 with fp32 masters, a part each."""
    parameters = count_parameters(config)
    per_token = 2 * (
        6 * config.hidden_size
        + 2 * sum(config.qkv_rows)
        + 2 * config.qkv_rows[0]
        + 4 * config.intermediate_size
        + config.num_heads * row_tokens
    )
    return {
        "weights": 2 * parameters,
        "gradients": 2 * parameters,
        "optimizer": 12 * parameters,
        "activations": batch_tokens * per_token * config.num_layers,
    }


def cache_bytes_per_token(config: ModelConfig, *, element_bytes: int = 2) -> int:
    """Bytes of keys and values that one token keeps in the cache."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * element_bytes
