"""Shapes of every kind, small: what the tests of the core are run over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lmloop.model.cache import Chunk, SlotCache
from lmloop.model.config import Experts, ModelConfig, Picture
from lmloop.model.rows import Source
from lmloop.model.transformer import Transformer

from ..conftest import random_model, tiny_shape

LENGTH = 11

PLAIN: dict[str, Any] = {"qk_norm": False, "gated": False, "activation": "gelu"}
DECODERS: Mapping[str, dict[str, Any]] = {
    "qwen3": {},
    "gpt2": {
        **PLAIN,
        "positions": "learned",
        "norm": "layer",
        "qkv_bias": True,
        "output_bias": True,
        "feed_forward_bias": True,
        "head_bias": True,
        "num_kv_heads": 4,
    },
    "neox": {**PLAIN, "rotary_share": 0.5, "norm": "layer", "parallel": True},
    "gemma": {
        "mixers": ("local", "attention"),
        "window": 3,
        "local_rope_theta": 100.0,
        "norm_place": "both",
        "attention_cap": 5.0,
        "logit_cap": 3.0,
        "embedding_scale": 4.9,
        "activation": "gelu_tanh",
        "attention_scale": 0.2,
    },
    "first transformer": {
        **PLAIN,
        "positions": "sinusoidal",
        "norm": "layer",
        "norm_place": "post",
        "final_norm": False,
        "activation": "relu",
    },
    "relative": {"positions": "relative", "attention_scale": 1.0, "relative_buckets": 8},
    "relative, local": {
        "positions": "relative",
        "relative_buckets": 8,
        "relative_distance": 12,
        "mixers": ("local", "attention"),
        "window": 4,
    },
    "no positions": {"positions": "none", "norm_bias": False, "activation": "relu2"},
    "cosine": {"beta": 6.0, "qk_norm": False, "embedding_norm": True},
    "cosine, learnt": {"beta": 6.0, "learn_beta": True, "qk_norm": False, "first_norm": False},
    "cosine, bare": {
        "beta": 4.0,
        "projections": False,
        "qk_norm": False,
        "num_heads": 3,
        "num_kv_heads": 3,
        "positions": "none",
        "intermediate_size": 0,
    },
    "lstm": {"mixers": ("lstm", "lstm"), "positions": "none"},
    "gru": {"mixers": ("gru", "gru"), "positions": "none", "output_bias": True},
    "convolution": {"mixers": ("convolution", "convolution"), "kernel_size": 3, "pooling": 2},
    "convolution, then recurrent": {
        "mixers": ("convolution", "lstm"),
        "kernel_size": 4,
        "pooling": 3,
        "intermediate_size": 0,
        "positions": "none",
    },
    "recurrent, then attention": {"mixers": ("gru", "attention")},
    "experts": {"experts": Experts(count=4, active=2, size=10, shared_size=6, balance=0.01)},
    "batch norm": {"norm": "batch"},
}


def decoder(kind: str, **changes: Any) -> ModelConfig:
    """A decoder of a kind."""
    return tiny_shape(**{**DECODERS[kind], **changes})


def encoder(kind: str, **changes: Any) -> ModelConfig:
    """An encoder of the same parts."""
    return tiny_shape(**{**DECODERS[kind], "causal": False, **changes})


def pair(kind: str, **changes: Any) -> ModelConfig:
    """An encoder-decoder of the same parts."""
    mixers = DECODERS[kind].get("mixers", ())[:1]
    read = encoder(kind, head="none", num_layers=1, mixers=mixers, context_length=128)
    return decoder(kind, encoder=read, **changes)


def seeing(**changes: Any) -> ModelConfig:
    """An encoder of pictures, as ViT."""
    given = {"head": "none", "picture": Picture(size=6, patch=2, channels=2), **changes}
    return encoder("gpt2", context_length=10, **given)


def draw_pictures(count: int, *, seed: int = 0) -> Tensor:
    """Such as `seeing` reads."""
    return torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


def draw_model(config: ModelConfig) -> Transformer:
    model = random_model(config).eval()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point():  # running mean and variance of batch norms
                buffer.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    return model


def require_close(found: Tensor, expected: Tensor) -> None:
    """Equal within rounding of the largest number: kinds differ in how large states become."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def draw_tokens(rows: int, length: int, *, seed: int = 0) -> Tensor:
    return torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def decode(
    model: Transformer, texts: list[Tensor], *, cuts: list[int], sources: list[Source | None]
) -> list[Tensor]:
    """States of texts [T] that run together, each in the pieces that `cuts` says."""
    cache = SlotCache(model.config, slots=len(texts) + 1, length=LENGTH, dtype=torch.float32)
    parts: list[list[Tensor]] = [[] for _ in texts]
    start = 0
    for count in cuts:
        # Slots out of order, one of them free.
        chunks = [Chunk(len(texts) - i, start, count) for i in range(len(texts))]
        begun = {}
        if start == 0:
            begun = {len(texts) - i: s.states for i, s in enumerate(sources) if s is not None}
        view = cache.view(chunks, sources=begun)
        tokens = torch.cat([text[start : start + count] for text in texts])
        states = model.encode(tokens, view.positions, view)
        for part, piece in zip(parts, states.split(count), strict=True):
            part.append(piece)
        start += count
    return [torch.cat(part) for part in parts]
