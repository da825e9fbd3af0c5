"""A Qwen3 decoder as slow and plain as can be, straight from Hugging Face's tensor names.

Takes: the tensors of `model.safetensors` and the entries of `config.json`. Gives: logits. Shares
no code with lmloop: one head, one position at a time. Axes: T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def logits_of(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], tokens: Sequence[int]
) -> Tensor:
    """Logits [T, V] in float64 of one text of T tokens."""
    weights = {name: tensor.double() for name, tensor in tensors.items()}
    embedding = weights["model.embed_tokens.weight"]
    epsilon = config["rms_norm_eps"]
    x = torch.stack([embedding[token] for token in tokens])
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        own = {
            name.removeprefix(prefix).removesuffix(".weight"): tensor
            for name, tensor in weights.items()
            if name.startswith(prefix)
        }
        x = x + attend(normalise(x, own["input_layernorm"], epsilon), own, config)
        x = x + feed_forward(normalise(x, own["post_attention_layernorm"], epsilon), own)
    head = embedding if config["tie_word_embeddings"] else weights["lm_head.weight"]
    return normalise(x, weights["model.norm.weight"], epsilon) @ head.T


def normalise(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Root-mean-square norm of the last axis."""
    return x / (x.pow(2).mean(-1, keepdim=True) + epsilon).sqrt() * weight


def feed_forward(x: Tensor, own: Mapping[str, Tensor]) -> Tensor:
    """SwiGLU, [T, D] -> [T, D]."""
    gate, up = x @ own["mlp.gate_proj"].T, x @ own["mlp.up_proj"].T
    return (gate / (1 + (-gate).exp()) * up) @ own["mlp.down_proj"].T


def attend(x: Tensor, own: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    """Causal grouped-query attention, [T, D] -> [T, D]."""
    heads, keys, width = (
        config[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    theta, epsilon = config["rope_parameters"]["rope_theta"], config["rms_norm_eps"]
    length = len(x)
    outputs = []
    for head in range(heads):
        group = head // (heads // keys)
        q = x @ own["self_attn.q_proj"][head * width : (head + 1) * width].T
        k = x @ own["self_attn.k_proj"][group * width : (group + 1) * width].T
        v = x @ own["self_attn.v_proj"][group * width : (group + 1) * width].T
        q = turn(normalise(q, own["self_attn.q_norm"], epsilon), theta)
        k = turn(normalise(k, own["self_attn.k_norm"], epsilon), theta)
        rows = []
        for place in range(length):
            scores = torch.stack([q[place] @ k[past] for past in range(place + 1)])
            chances = (scores / math.sqrt(width)).exp()
            chances = chances / chances.sum()
            rows.append(sum(chances[past] * v[past] for past in range(place + 1)))
        outputs.append(torch.stack(rows))  # type: ignore[arg-type]
    return torch.cat(outputs, dim=1) @ own["self_attn.o_proj"].T


def turn(x: Tensor, theta: float) -> Tensor:
    """Rotary positions, [T, d] -> [T, d]: pair i is (x[i], x[i + d/2])."""
    half = x.shape[1] // 2
    result = torch.empty_like(x)
    for place in range(len(x)):
        for pair in range(half):
            angle = place * theta ** (-2 * pair / x.shape[1])
            a, b = x[place, pair], x[place, pair + half]
            result[place, pair] = a * math.cos(angle) - b * math.sin(angle)
            result[place, pair + half] = b * math.cos(angle) + a * math.sin(angle)
    return result
