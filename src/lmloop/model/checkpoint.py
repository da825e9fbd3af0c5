"""The checkpoint folder: our model to and from Hugging Face's names, in safetensors.

Takes: a `Transformer`. Gives: `config.json`, `generation_config.json`, `model.safetensors` that
transformers opens unchanged; and back. Fused products are taken apart on the way out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmloop.errors import ArtifactError
from lmloop.model.config import DecoderConfig
from lmloop.model.quantized import empty_int8, pack_int8, unpack_int8
from lmloop.model.transformer import Transformer

WEIGHTS = "model.safetensors"
CONFIG = "config.json"

_OUTER: dict[str, tuple[str, ...]] = {
    "embedding.": ("model.embed_tokens.",),
    "norm.": ("model.norm.",),
    "head.": ("lm_head.",),
}
_INNER: dict[str, tuple[str, ...]] = {
    "attention_norm.": ("input_layernorm.",),
    "attention.qkv.": ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."),
    "attention.output.": ("self_attn.o_proj.",),
    "attention.q_norm": ("self_attn.q_norm.weight",),
    "attention.k_norm": ("self_attn.k_norm.weight",),
    "feed_forward_norm.": ("post_attention_layernorm.",),
    "feed_forward.gate_up.": ("mlp.gate_proj.", "mlp.up_proj."),
    "feed_forward.down.": ("mlp.down_proj.",),
}
_INT8 = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "channel",
                "dynamic": False,
            },
        }
    },
}


def save_model(model: Transformer, folder: Path, *, stop_id: int, document_id: int) -> None:
    """Write the model's three files into `folder`, weights in the dtype that they have."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == "head.weight" and model.config.tie_embeddings:
            continue
        theirs = _their_names(name)
        pieces = tensor.split(_rows(model.config, tensor, pieces=len(theirs)))
        for their_name, piece in zip(theirs, pieces, strict=True):
            tensors[their_name] = _shape_out(their_name, piece).contiguous().clone()
    save_file(_pack(tensors), folder / WEIGHTS, metadata={"format": "pt"})
    dtype = str(model.embedding.weight.dtype).removeprefix("torch.")
    config = model.config.to_hugging_face(stop_id=stop_id, pad_id=document_id, dtype=dtype)
    if model.config.int8:
        config["quantization_config"] = _INT8
    _write_json(folder / CONFIG, config)
    generation = {"eos_token_id": [stop_id, document_id], "pad_token_id": document_id}
    _write_json(folder / "generation_config.json", generation)


def load_model(folder: str | Path, *, dtype: torch.dtype | None = None) -> Transformer:
    """Read a model, in `dtype` or as it lies; raise `ArtifactError` naming the file that fails."""
    folder = Path(folder)
    config = load_config(folder)
    try:
        theirs = _unpack(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{folder / WEIGHTS} cannot be read: {error}") from error
    except (LookupError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{folder / WEIGHTS}: 8-bit weights are damaged: {error}") from error
    with torch.device("meta"):
        model = Transformer(config)
        if config.int8:
            empty_int8(model)
    if config.tie_embeddings:  # some folders hold the same matrix twice
        theirs.pop("lm_head.weight", None)
    state = {}
    for name, expected in model.state_dict().items():
        if name == "head.weight" and config.tie_embeddings:
            continue
        try:
            pieces = {their: theirs.pop(their) for their in _their_names(name)}
        except KeyError as error:
            raise ArtifactError(f"{folder / WEIGHTS} lacks the tensor {error}") from None
        tensor = _join(pieces, expected, config, path=folder / WEIGHTS)
        state[name] = tensor if dtype is None or tensor.dtype == torch.int8 else tensor.to(dtype)
    if theirs:
        raise ArtifactError(
            f"{folder / WEIGHTS} holds tensors that are not known: {sorted(theirs)}"
        )
    if config.tie_embeddings:
        state["head.weight"] = state["embedding.weight"]
    model.load_state_dict(state, assign=True)
    if config.tie_embeddings:
        model.head.weight = model.embedding.weight
    return model.eval()


def load_config(folder: Path) -> DecoderConfig:
    """Read `config.json`; raise `ArtifactError` where it is missing, damaged or unknown."""
    try:
        return DecoderConfig.from_hugging_face(json.loads((folder / CONFIG).read_text("utf-8")))
    except OSError:
        raise ArtifactError(f"{folder} is no checkpoint: it has no {CONFIG}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{folder / CONFIG} is damaged: {error!r}") from error


def _their_names(name: str) -> tuple[str, ...]:
    """Hugging Face's names of the tensor that we call `name`, in the order of its rows."""
    if name.startswith("blocks."):
        _, layer, inner = name.split(".", 2)
        ours = next(key for key in _INNER if inner.startswith(key))
        prefix, table = f"model.layers.{layer}.", _INNER
        rest = inner.removeprefix(ours)
    else:
        ours = next(key for key in _OUTER if name.startswith(key))
        prefix, table, rest = "", _OUTER, name.removeprefix(ours)
    rest = "weight_scale" if rest == "scale" else rest
    return tuple(prefix + theirs + rest for theirs in table[ours])


def _rows(config: DecoderConfig, tensor: Tensor, *, pieces: int) -> list[int]:
    """Rows of each piece of a tensor: queries, keys and values; gate and up; or the whole."""
    return list(config.qkv_rows) if pieces == 3 else [len(tensor) // pieces] * pieces


def _join(
    pieces: Mapping[str, Tensor], expected: Tensor, config: DecoderConfig, *, path: Path
) -> Tensor:
    """One tensor of ours from theirs; raise `ArtifactError` where shape or type is another."""
    parts = []
    wanted = torch.split(expected, _rows(config, expected, pieces=len(pieces)))
    for (their_name, piece), own in zip(pieces.items(), wanted, strict=True):
        part = _shape_in(their_name, piece)
        if part.shape != own.shape or (part.dtype == torch.int8) != (own.dtype == torch.int8):
            raise ArtifactError(
                f"{path}: {their_name} is {part.dtype} {list(part.shape)}, "
                f"{CONFIG} says {own.dtype} {list(own.shape)}"
            )
        parts.append(part)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _pack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """int8 matrices as compressed-tensors lays them on disk, all others as they are."""
    packed = {}
    for name, tensor in tensors.items():
        if tensor.dtype == torch.int8:
            packed[f"{name}_packed"] = pack_int8(tensor)
            packed[f"{name}_shape"] = torch.tensor(tensor.shape)
        else:
            packed[name] = tensor
    return packed


def _unpack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The opposite of `_pack`; raises LookupError or ValueError where a shape is missing or odd."""
    unpacked = dict(tensors)
    for name in [name for name in tensors if name.endswith(".weight_packed")]:
        plain = name.removesuffix("_packed")
        packed, shape = unpacked.pop(name), unpacked.pop(f"{plain}_shape").tolist()
        if packed.dtype != torch.int32 or list(packed.shape) != [shape[0], -(-shape[1] // 4)]:
            raise ValueError(f"{name} is {packed.dtype} {list(packed.shape)} for {shape}")
        unpacked[plain] = unpack_int8(packed, columns=shape[1])
    return unpacked


def _shape_out(their_name: str, piece: Tensor) -> Tensor:
    return piece[:, None] if their_name.endswith("weight_scale") else piece


def _shape_in(their_name: str, piece: Tensor) -> Tensor:
    # Only a column of one scale a row becomes flat; groups of scales fail the comparison of shapes.
    return piece.squeeze(-1) if their_name.endswith("weight_scale") else piece


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
