"""A decoder out of a GGUF file: shape from its metadata, tensors under Hugging Face's names.

Takes: an open file. Gives: a `Transformer`. llama.cpp rotates neighbours where Hugging Face rotates
halves, so the rows of queries and keys of its `llama` files come back in the other order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lmloop.errors import ArtifactError
from lmloop.model.config import ModelConfig
from lmloop.model.transformer import Transformer
from lmloop.weights.checkpoint import assemble
from lmloop.weights.decoders import read_window
from lmloop.weights.families import FAMILIES
from lmloop.weights.gguf import GgufFile

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}
"""Values of `general.architecture` that are read, and their families; `llama` is Mistral's too."""
PERMUTED = ("llama",)
"""Those whose queries and keys lie in the other order of rows."""
OUTER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
"""Tensors outside the blocks: ggml's name, and Hugging Face's."""
INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Tensors of a block."""
_GEMMA = {
    **INNER,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
SIZES = {
    "num_layers": "block_count",
    "hidden_size": "embedding_length",
    "num_heads": "attention.head_count",
    "intermediate_size": "feed_forward_length",
    "context_length": "context_length",
}
"""Whole numbers that every file has: our name, and ggml's."""


def read_decoder(file: GgufFile, *, dtype: torch.dtype = torch.float32) -> Transformer:
    """The file's model in `dtype`; `ArtifactError` where it is of a kind that is not known here."""
    config = read_shape(file)
    # Tensors have the family's names here, but lie as ours do: a norm's weight holds the one.
    family = replace(FAMILIES[config.family], changes={})
    tensors = read_named(file, config, dtype=dtype)
    return assemble(config, tensors, path=file.path, dtype=dtype, family=family)


def read_named(
    file: GgufFile, config: ModelConfig, *, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """All tensors in `dtype` by the names, and with the rows, that Hugging Face's folder has."""
    inner = _GEMMA if config.norm_place == "both" else INNER
    return {
        _their_name(name, inner): _order_rows(file.read(name, dtype=dtype), name, config)
        for name in file.tensors
    }


def read_shape(file: GgufFile) -> ModelConfig:
    """What the metadata says of the model; `ArtifactError` where an entry is missing or unknown."""
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ArtifactError(
            f"{file.path}: general.architecture {name!r} cannot be opened: known here are "
            f"{', '.join(map(repr, ARCHITECTURES))}"
        )
    family, told = ARCHITECTURES[name], _Told(file, name)
    _check_rotation(told, file)
    sizes: dict[str, Any] = {ours: told.size(theirs) for ours, theirs in SIZES.items()}
    heads = sizes["num_heads"]
    sizes["head_dim"] = told.size("attention.key_length", absent=sizes["hidden_size"] // heads)
    embedding = file.tensors.get("token_embd.weight")
    return ModelConfig(
        **{**FAMILIES[family].stack.shape, **sizes},
        **(_read_gemma(told, sizes) if name == "gemma3" else {}),
        vocab_size=embedding.shape[0] if embedding is not None else 1,
        num_kv_heads=told.size("attention.head_count_kv", absent=heads),
        rope_theta=told.number("rope.freq_base", absent=10_000.0),
        rope_scaling=None,
        norm_epsilon=_shorten(told.number("attention.layer_norm_rms_epsilon")),
        tie_embeddings="output.weight" not in file.tensors,
        int8=False,
        family=family,
    )


def _read_gemma(told: _Told, sizes: Mapping[str, int]) -> dict[str, Any]:
    """What llama.cpp knows of Gemma 3, beside what the file says."""
    layers, width = sizes["num_layers"], sizes["hidden_size"]
    pattern = told.size("attention.sliding_window_pattern", absent=6)
    local = [(layer + 1) % pattern != 0 for layer in range(layers)]
    # Only the largest, of 62 layers, divides by the width that a head would have.
    scaled = width // sizes["num_heads"] if layers == 62 else sizes["head_dim"]
    return {
        **read_window(told.size("attention.sliding_window"), local),
        "local_rope_theta": told.number("rope.freq_base_swa", absent=10_000.0),
        "attention_scale": scaled**-0.5,
        "embedding_scale": width**0.5,
    }


class _Told:
    """The entries of one architecture."""

    def __init__(self, file: GgufFile, family: str) -> None:
        self._file = file
        self._family = family

    def get(self, name: str) -> Any:
        """What is said, or None."""
        return self._file.metadata.get(f"{self._family}.{name}")

    def size(self, name: str, *, absent: int | None = None) -> int:
        """A positive whole number."""
        found = self.get(name)
        found = absent if found is None else found
        if type(found) is not int or found < 1:
            raise self._refuse(name, found)
        return found

    def number(self, name: str, *, absent: float | None = None) -> float:
        """A positive number."""
        found = self.get(name)
        found = absent if found is None else found
        if isinstance(found, bool) or not isinstance(found, int | float) or not found > 0:
            raise self._refuse(name, found)
        return float(found)

    def _refuse(self, name: str, found: object) -> ArtifactError:
        return ArtifactError(
            f"{self._file.path}: {self._family}.{name} is {found!r}: a positive number is needed"
        )


def _check_rotation(told: _Told, file: GgufFile) -> None:
    kind = told.get("rope.scaling.type")
    if kind not in (None, "none") or "rope_freqs.weight" in file.tensors:
        raise ArtifactError(
            f"{file.path}: scaled rotary positions ({kind or 'rope_freqs.weight'}) in a GGUF file "
            "cannot be opened: open the Hugging Face folder of this model instead"
        )


def _shorten(value: float) -> float:
    """The shortest decimal that single precision cannot tell from `value`: 1e-05 for 9.99…e-06."""
    single = torch.tensor(value, dtype=torch.float32)
    for digits in range(1, 9):
        short = float(f"{value:.{digits}g}")
        if torch.tensor(short, dtype=torch.float32) == single:
            return short
    return value


def _their_name(name: str, inner: Mapping[str, str]) -> str:
    """Hugging Face's name of a tensor; what is not known keeps its own, and is refused with it."""
    table: Mapping[str, str] = OUTER
    prefix, rest = "", name
    if name.startswith("blk."):
        _, layer, rest = [*name.split(".", 2), ""][:3]
        prefix, table = f"model.layers.{layer}.", inner
    stem, _, kind = rest.partition(".")
    return f"{prefix}{table[stem]}.{kind}" if stem in table else name


def _order_rows(tensor: Tensor, name: str, config: ModelConfig) -> Tensor:
    """Queries and keys with the rows of each head as two halves instead of as pairs."""
    stem = name.split(".")[-2] if "." in name else ""
    if config.family not in PERMUTED or stem not in ("attn_q", "attn_k"):
        return tensor
    if len(tensor) % config.head_dim:
        return tensor  # of a wrong shape, which is told when the model is put together
    pairs = tensor.view(-1, config.head_dim // 2, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)
