"""A decoder as metadata and tensors of a GGUF file, the opposite of `gguf_decoder`.

Takes: a shape, and tensors by Hugging Face's names. Gives: what `write_gguf` takes. Norms and
biases stay in F32; a matrix whose rows are no whole blocks of the chosen type is kept in a finer
one. Axes: R rows, D columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lmloop.errors import ArtifactError
from lmloop.model.config import ModelConfig
from lmloop.weights.ggml import WEIGHT_TYPES
from lmloop.weights.gguf_decoder import INNER, OUTER, PERMUTED, SIZES

if TYPE_CHECKING:
    from jaxtyping import Shaped
    from torch import Tensor

FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K": 14, "BF16": 32}
"""Types of weights that a whole file can have, and llama.cpp's number of each (`llama.h`)."""
_WRITTEN = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "mistral": "llama"}
"""Families, and the architecture as which llama.cpp computes each."""
_FINER = {"Q4_K": "Q8_0", "Q4_0": "F16", "Q8_0": "F16"}
_BY_HUGGING_FACE = {theirs: ours for table in (OUTER, INNER) for ours, theirs in table.items()}


def describe_decoder(config: ModelConfig, *, name: str, weight_type: str) -> dict[str, Any]:
    """The file's metadata; `ArtifactError` for a shape or a type that a GGUF file cannot hold."""
    if weight_type not in FILE_TYPES:
        raise ArtifactError(
            f"the type {weight_type!r} cannot be written: allowed are {', '.join(FILE_TYPES)}"
        )
    family = _architecture(config)
    if config.int8:
        raise ArtifactError(
            "8-bit weights would be rounded a second time in a GGUF file: name the checkpoint that "
            "they were made from, which `lmloop show` tells"
        )
    if config.rope_scaling is not None:
        raise ArtifactError(
            f"rotary positions with {config.rope_scaling.kind} scaling cannot be written into a "
            "GGUF file: export the model with --format hf instead"
        )
    if config.mixers:
        raise ArtifactError(
            "layers with a sliding window cannot be written into a GGUF file: export the model "
            "with --format hf instead"
        )
    told = {
        **{theirs: getattr(config, ours) for ours, theirs in SIZES.items()},
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_epsilon,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_theta,
        "vocab_size": config.vocab_size,
    }
    return {
        "general.architecture": family,
        "general.type": "model",
        "general.name": name,
        "general.file_type": FILE_TYPES[weight_type],
        "general.quantization_version": 2,
        **{f"{family}.{entry}": value for entry, value in told.items()},
    }


def name_tensors(
    config: ModelConfig, theirs: Mapping[str, Tensor], *, weight_type: str
) -> dict[str, tuple[Tensor, str]]:
    """Each tensor with the type of its weights, by ggml's names."""
    permuted = _architecture(config) in PERMUTED
    tensors = {}
    for their_name, tensor in theirs.items():
        name = _our_name(their_name)
        if permuted and name.endswith(("attn_q.weight", "attn_k.weight")):
            tensor = _pair_rows(tensor, head_dim=config.head_dim)
        tensors[name] = tensor, _choose_type(name, tensor, config, weight_type=weight_type)
    return tensors


def _architecture(config: ModelConfig) -> str:
    if config.family not in _WRITTEN:
        raise ArtifactError(
            f"a model of the family {config.family!r} cannot be written into a GGUF file: known "
            f"here are {', '.join(map(repr, _WRITTEN))}; export it with --format hf"
        )
    return _WRITTEN[config.family]


def _our_name(their_name: str) -> str:
    """ggml's name of a tensor that the shape has."""
    stem, _, kind = their_name.rpartition(".")
    prefix = ""
    if stem.startswith("model.layers."):
        _, _, layer, stem = stem.split(".", 3)
        prefix = f"blk.{layer}."
    return f"{prefix}{_BY_HUGGING_FACE[stem]}.{kind}"


def _pair_rows(tensor: Shaped[Tensor, "R D"], *, head_dim: int) -> Shaped[Tensor, "R D"]:
    """Rows of each head as pairs instead of as two halves."""
    halves = tensor.view(-1, 2, head_dim // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _choose_type(
    name: str, tensor: Shaped[Tensor, "*S"], config: ModelConfig, *, weight_type: str
) -> str:
    if tensor.dim() < 2:
        return "F32"
    # What scores the vocabulary feels rounding most; llama.cpp keeps it finer as well.
    last = "token_embd.weight" if config.tie_embeddings else "output.weight"
    chosen = "Q8_0" if name == last and weight_type in ("Q4_0", "Q4_K") else weight_type
    while tensor.shape[-1] % WEIGHT_TYPES[chosen].elements:
        chosen = _FINER[chosen]
    return chosen
