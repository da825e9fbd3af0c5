"""Decoders out of GGUF files: the same model as from a folder, or a refusal with its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lmloop.errors import ArtifactError
from lmloop.model.transformer import Transformer
from lmloop.weights.checkpoint import take_apart
from lmloop.weights.families import FAMILIES
from lmloop.weights.gguf import open_gguf
from lmloop.weights.gguf_decoder import read_decoder, read_shape
from lmloop.weights.gguf_writer import write_gguf

from ..conftest import random_model, tiny_shape

TOKENS = torch.tensor([[1, 2, 3, 4, 5]])
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Written out a second time: the converter's names, from Hugging Face's."""


GEMMA = {
    **NAMES,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def draw(family: str, **changes: Any) -> Transformer:
    shape = tiny_shape(
        family=family,
        norm_epsilon=1e-5,
        rope_theta=5e5,
        **FAMILIES[family].stack.shape,
        **changes,
    )
    return random_model(shape)


def interleave(rows: Tensor, *, head_dim: int) -> Tensor:
    """As llama.cpp's converter orders queries and keys: a head's halves row by row."""
    ordered = []
    for head in rows.split(head_dim):
        first, second = head.split(head_dim // 2)
        ordered += [row for pair in zip(first, second, strict=True) for row in pair]
    return torch.stack(ordered)


def tensors_of(model: Transformer) -> dict[str, tuple[Tensor, str]]:
    config = model.config
    tensors: dict[str, tuple[Tensor, str]] = {}
    for their_name, tensor in take_apart(model).items():
        stem, _, kind = their_name.rpartition(".")
        prefix = ""
        if stem.startswith("model.layers."):
            _, _, layer, stem = stem.split(".", 3)
            prefix = f"blk.{layer}."
        if config.family == "llama" and stem in ("self_attn.q_proj", "self_attn.k_proj"):
            tensor = interleave(tensor, head_dim=config.head_dim)
        if config.norm_place == "both":
            tensor = tensor + 1 if stem.endswith("norm") else tensor
            stem = GEMMA[stem]
        else:
            stem = NAMES[stem]
        tensors[f"{prefix}{stem}.{kind}"] = (tensor, "F32")
    return tensors


def metadata_of(model: Transformer) -> dict[str, Any]:
    config = model.config
    told = {
        "block_count": config.num_layers,
        "context_length": config.context_length,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_epsilon,
        "rope.freq_base": config.rope_theta,
    }
    if config.window is not None:
        told["attention.sliding_window"] = config.window
    name = config.family.removesuffix("_text")
    return {"general.architecture": name} | {f"{name}.{key}": told[key] for key in told}


def write(folder: Path, model: Transformer, **changes: Any) -> Path:
    path = folder / "model.gguf"
    metadata = {**metadata_of(model), **changes}
    metadata = {name: value for name, value in metadata.items() if value is not None}
    write_gguf(path, metadata=metadata, tensors=tensors_of(model))
    return path


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@torch.no_grad()
def test_a_model_out_of_a_file_is_the_model_that_went_in(
    tmp_path: Path, family: str, tied: bool
) -> None:
    model = draw(family, tie_embeddings=tied)
    again = read_decoder(open_gguf(write(tmp_path, model)))
    assert again.config == model.config
    assert torch.equal(again(TOKENS), model(TOKENS))


def test_entries_that_a_file_may_leave_out_have_their_defaults(tmp_path: Path) -> None:
    model = draw("llama", num_heads=4, num_kv_heads=4, head_dim=8, hidden_size=32)
    left_out = ("attention.head_count_kv", "attention.key_length", "rope.freq_base")
    path = write(tmp_path, model, **{f"llama.{name}": None for name in left_out})
    shape = read_shape(open_gguf(path))
    assert (shape.num_kv_heads, shape.head_dim, shape.rope_theta) == (4, 8, 10_000.0)


def draw_gemma(**changes: Any) -> Transformer:
    layers = 7
    particular: dict[str, Any] = {
        "num_layers": layers,
        "mixers": tuple("attention" if layer == 5 else "local" for layer in range(layers)),
        "window": 3,
        "local_rope_theta": 10_000.0,
        "attention_scale": 8**-0.5,
        "embedding_scale": 24**0.5,
    }
    return draw("gemma3_text", **{**particular, **changes})


@torch.no_grad()
def test_gemma_3_has_five_local_layers_to_one_and_norms_that_hold_the_one(tmp_path: Path) -> None:
    model = draw_gemma()
    again = read_decoder(open_gguf(write(tmp_path, model)))
    assert again.config == model.config
    torch.testing.assert_close(again(TOKENS), model(TOKENS))


def test_gemma_3_may_say_what_is_known_of_it(tmp_path: Path) -> None:
    said = {"attention.sliding_window_pattern": 2, "rope.freq_base_swa": 700.0}
    path = write(tmp_path, draw_gemma(), **{f"gemma3.{name}": each for name, each in said.items()})
    shape = read_shape(open_gguf(path))
    assert shape.mixers == ("local", "attention") * 3 + ("local",)
    assert shape.local_rope_theta == 700.0


def test_the_largest_gemma_3_divides_by_the_share_of_its_width(tmp_path: Path) -> None:
    path = write(tmp_path, draw_gemma(), **{"gemma3.block_count": 62})
    assert read_shape(open_gguf(path)).attention_scale == 6**-0.5


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"general.architecture": "mamba"}, "'mamba' cannot be opened: known here are 'llama'"),
        ({"general.architecture": None}, "general.architecture None"),
        ({"llama.block_count": None}, "llama.block_count is None"),
        ({"llama.attention.head_count": 0}, "llama.attention.head_count is 0"),
        ({"llama.embedding_length": "wide"}, "llama.embedding_length is 'wide'"),
        ({"llama.rope.freq_base": -1.0}, r"llama.rope.freq_base is -1\.0"),
        ({"llama.rope.scaling.type": "yarn"}, r"scaled rotary positions \(yarn\)"),
        ({"llama.block_count": 1}, "tensors that are not known"),
        ({"llama.block_count": 3}, "lacks the tensor 'model.layers.2"),
        ({"llama.feed_forward_length": 8}, "gate_proj.weight is torch.float32"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    path = write(tmp_path, draw("llama", num_layers=2), **changes)
    with pytest.raises(ArtifactError, match=told):
        read_decoder(open_gguf(path))
