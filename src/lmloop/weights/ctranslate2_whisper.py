"""Whisper out of a CTranslate2 file: its shape and tensors as Hugging Face has them.

Takes: an open file, and the settings of the `config.json` beside it. Gives: Hugging Face's
`config.json` as data, and tensors under Hugging Face's names. CTranslate2 keeps the rows of
queries, keys and values in one tensor, and gives the keys a bias of zeros, which is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lmloop.errors import ArtifactError
from lmloop.weights.ctranslate2 import CTranslate2File
from lmloop.weights.gguf import quote

if TYPE_CHECKING:
    from jaxtyping import Float

NAMES: Mapping[str, tuple[str, ...]] = {
    "conv1": ("conv1",),
    "conv2": ("conv2",),
    "embeddings": ("embed_tokens",),
    "position_encodings": ("embed_positions",),
    "layer_norm": ("layer_norm",),
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
"""CTranslate2's name of a module, and Hugging Face's in the order of the rows."""
KINDS = {
    "weight": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "encodings": "weight",
}
GELU = 3
FIXED = {
    "decoder/activation": GELU,
    "decoder/alibi": 0,
    "decoder/pre_norm": 1,
    "decoder/scale_embeddings": 0,
    "decoder/start_from_zero_embedding": 0,
}
"""Settings among the variables that change the computation, with what Whisper's are."""
HARMLESS = {
    *("encoder/num_heads", "decoder/num_heads"),
    *("decoder/alignment_heads", "decoder/alignment_layer"),
    *("decoder/alibi_use_positive_positions", "decoder/scale_alibi"),
}
EMBEDDING, HEAD = "decoder/embeddings/weight", "decoder/projection/weight"
MULTILINGUAL = 51_865
"""From this vocabulary on there are other languages, and one token more before the special ones."""


def read_whisper_config(file: CTranslate2File, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` that transformers reads; raise `ArtifactError` where this is no Whisper.

    `settings` are those beside the file: which tokens are never said, and never said first.
    """
    if file.specification != "WhisperSpec":
        raise ArtifactError(f"{file.path} is a {quote(file.specification)}: 'WhisperSpec' is read")
    for name, known in FIXED.items():
        if name in file.variables and file.variables[name].tolist() != known:
            raise ArtifactError(f"{file.path}: {name} is not {known} as in every Whisper")
    vocab_size, hidden_size = _shape(file, EMBEDDING, axes=2)
    end = 50_256 + (vocab_size >= MULTILINGUAL)
    config: dict[str, Any] = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "vocab_size": vocab_size,
        "d_model": hidden_size,
        "num_mel_bins": _shape(file, "encoder/conv1/weight", axes=3)[1],
        "max_source_positions": _shape(file, "encoder/position_encodings/encodings", axes=2)[0],
        "max_target_positions": _shape(file, "decoder/position_encodings/encodings", axes=2)[0],
        "activation_function": "gelu",
        "scale_embedding": False,
        "tie_word_embeddings": _is_tied(file),
        "is_encoder_decoder": True,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": end + 1,
        "suppress_tokens": _ids(settings, "suppress_ids", vocab_size=vocab_size),
        "begin_suppress_tokens": _ids(settings, "suppress_ids_begin", vocab_size=vocab_size),
    }
    for side in ("encoder", "decoder"):
        layers = {
            name.split("/")[1] for name in file.variables if name.startswith(f"{side}/layer_")
        }
        config[f"{side}_layers"] = len(layers - {"layer_norm"})
        config[f"{side}_attention_heads"] = int(file.read(f"{side}/num_heads").flatten()[0])
        config[f"{side}_ffn_dim"] = _shape(file, f"{side}/layer_0/ffn/linear_0/weight", axes=2)[0]
    return config


def read_whisper_tensors(
    file: CTranslate2File, *, dtype: torch.dtype = torch.float32
) -> dict[str, Float[Tensor, "*axes"]]:
    """Every tensor by Hugging Face's name; raise `ArtifactError` for what is none of Whisper's.

    A head that is the embedding itself is left out, as in Hugging Face's files.
    """
    _check_names(file)
    tensors = {}
    for name in file.variables:
        theirs = their_names(name)
        if not theirs:
            continue
        rows = file.read(name, dtype=dtype)
        if not rows.dim() or len(rows) % len(theirs):
            raise ArtifactError(f"{file.path}: {name} does not have {len(theirs)} parts")
        for their_name, part in zip(theirs, rows.chunk(len(theirs)), strict=True):
            if not their_name.endswith("k_proj.bias"):
                tensors[their_name] = part
            elif part.any():
                raise ArtifactError(f"{file.path}: {name} gives the keys a bias")
    if not _is_tied(file):
        tensors["proj_out.weight"] = file.read(HEAD, dtype=dtype)
    return tensors


def _check_names(file: CTranslate2File) -> None:
    """Raise `ArtifactError` for names that no Whisper has; a scale belongs to its variable."""
    told = {*FIXED, *HARMLESS, HEAD}
    scales = {f"{name}_scale" for name in file.variables}
    names = [name for name in file.variables if name not in told | scales]
    unknown = [name for name in names if not their_names(name)]
    if unknown:
        raise ArtifactError(f"{file.path} is no Whisper: it has {quote(unknown[:3])}")


def their_names(name: str) -> tuple[str, ...]:
    """Hugging Face's names of a variable in the order of its rows; none where it is unknown."""
    found = re.fullmatch(r"(encoder|decoder)/(?:layer_(\d+)/)?(.+)/(\w+)", name)
    if found is None or found[3] not in NAMES or found[4] not in KINDS:
        return ()
    prefix = f"model.{found[1]}." + (f"layers.{found[2]}." if found[2] else "")
    return tuple(f"{prefix}{module}.{KINDS[found[4]]}" for module in NAMES[found[3]])


def _is_tied(file: CTranslate2File) -> bool:
    return file.variables.get(HEAD) is file.variables.get(EMBEDDING)


def _shape(file: CTranslate2File, name: str, *, axes: int) -> tuple[int, ...]:
    found = file.variables.get(name)
    if found is None or found.ndim != axes:
        raise ArtifactError(f"{file.path} is no Whisper: it has no {name} of {axes} axes")
    return found.shape


def _ids(settings: Mapping[str, Any], name: str, *, vocab_size: int) -> list[int]:
    ids = settings.get(name) or []
    if not isinstance(ids, list) or any(type(i) is not int or not 0 <= i < vocab_size for i in ids):
        raise ArtifactError(
            f"config.json: {name} is {quote(ids)}: ids of the vocabulary are needed"
        )
    return ids
