"""Bytes foretold against bytes that autograd holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lmloop.model.activations import Batch, activation_bytes
from lmloop.model.config import ModelConfig
from lmloop.model.hardware import fast_dtype
from lmloop.model.transformer import Transformer

from ..conftest import random_model
from .kinds import DECODERS, decoder, draw_pictures, encoder, pair, seeing

LENGTH, SOURCE_LENGTH = 7, 5


def count_kept(model: Transformer, source: Tensor | None, *, rows: int) -> int:
    """Bytes of all storages that the forward saves and that are not the model's own."""
    own = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.zeros(rows, LENGTH, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.states(tokens, source=None if source is None else model.read(source))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def require_foretold(
    config: ModelConfig,
    dtype: torch.dtype,
    *,
    source: Tensor | None = None,
    source_tokens: int = SOURCE_LENGTH,
    rows: int = 3,
) -> None:
    model = random_model(config).train().to(dtype)
    if source is None and config.encoder is not None:
        source = torch.zeros(rows, source_tokens, dtype=torch.int64)
    batch = Batch(
        rows=rows, row_tokens=LENGTH, source_tokens=source_tokens, element_bytes=dtype.itemsize
    )
    kept, told = count_kept(model, source, rows=rows), activation_bytes(config, batch)
    if "lstm" in config.mixers and dtype != torch.float32 and dtype != fast_dtype():
        assert kept <= told  # PyTorch's own steps keep less than the library's workspace
    else:
        assert kept == told


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [decoder, encoder, pair])
@pytest.mark.parametrize("kind", DECODERS)
def test_training_keeps_what_was_foretold(kind: str, make: type, dtype: torch.dtype) -> None:
    require_foretold(make(kind), dtype)
    require_foretold(make(kind, dropout=0.1), dtype, rows=1)
    require_foretold(make(kind, attention_cap=4.0), dtype, rows=1)


# What no kind has, or not together.
MIXED: list[dict[str, Any]] = [
    *({"gated": gated, "activation": a} for gated in (True, False) for a in ("relu", "relu2")),
    *({"norm": "layer", "norm_place": place} for place in ("pre", "post", "both")),
    *({"norm": "batch", "norm_place": place} for place in ("post", "both")),
    {"norm": "batch", "parallel": True},
    {"positions": "relative", "attention_cap": 4.0},
    {"beta": 2.0, "learn_beta": True, "attention_cap": 4.0, "num_kv_heads": 4},
    {"positions": "relative", "beta": 2.0, "num_kv_heads": 4},
    {"positions": "relative", "beta": 2.0, "num_kv_heads": 4, "qk_norm": False},
    {"positions": "relative", "num_kv_heads": 4, "qk_norm": False, "attention_scale": 1.0},
    {"positions": "none", "qk_norm": False, "attention_cap": 4.0},
    {"embedding_norm": True, "norm": "layer", "first_norm": False},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", MIXED)
def test_training_keeps_what_was_foretold_of_mixed_parts(
    changes: dict[str, Any], dtype: torch.dtype
) -> None:
    require_foretold(pair("qwen3", **changes), dtype)
    require_foretold(pair("qwen3", **changes), dtype, rows=1)


@pytest.mark.parametrize("make", [decoder, encoder])
@pytest.mark.parametrize("width", [100, 128, 256])
def test_rows_of_a_recurrent_workspace_are_padded_as_foretold(make: type, width: int) -> None:
    config = make("lstm", hidden_size=width, intermediate_size=0, num_layers=1, mixers=("lstm",))
    require_foretold(config, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_sound_and_pictures_is_kept_what_was_foretold(dtype: torch.dtype) -> None:
    hears = encoder("gpt2", audio_bins=6, head="none", positions="sinusoidal")
    sound = torch.zeros(3, 6, 2 * SOURCE_LENGTH, dtype=dtype)
    require_foretold(decoder("gpt2", encoder=hears), dtype, source=sound)
    sees, pictures = decoder("gpt2", encoder=seeing()), draw_pictures(3).to(dtype)
    require_foretold(sees, dtype, source=pictures, source_tokens=10)
