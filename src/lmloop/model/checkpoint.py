"""The checkpoint folder: our model to and from Hugging Face's names, in safetensors.

Takes: a `Transformer`. Gives: `config.json`, `generation_config.json`, `model.safetensors` that
transformers opens unchanged; and back. Fused products are taken apart on the way out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmloop.errors import ArtifactError
from lmloop.model.config import ModelConfig
from lmloop.model.families import family_of, read_config, write_config
from lmloop.model.family import Family
from lmloop.model.names import fused_rows, stack_of, tied_names
from lmloop.model.quantized import empty_int8, pack_int8, unpack_int8
from lmloop.model.transformer import Transformer

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
"""Where a model in several files says which tensor lies in which."""
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}

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


def save_model(
    model: Transformer,
    folder: Path,
    *,
    stop_id: int,
    document_id: int,
    start_id: int | None = None,
) -> None:
    """Write the model's three files into `folder`, weights in the dtype that they have.

    `start_id` is what an encoder-decoder's answer begins with; None: `document_id`.
    """
    dtype = str(model.embedding.weight.dtype).removeprefix("torch.")
    config = write_config(
        model.config, stop_id=stop_id, pad_id=document_id, dtype=dtype, start_id=start_id
    )
    if model.config.int8:
        config["quantization_config"] = _INT8
    write_files(folder, take_apart(model), config)
    generation = {"eos_token_id": [stop_id, document_id], "pad_token_id": document_id}
    begun = "decoder_start_token_id"
    generation |= {begun: config[begun]} if begun in config else {}
    _write_json(folder / "generation_config.json", generation)


def write_files(folder: Path, tensors: Mapping[str, Tensor], entries: Mapping[str, Any]) -> None:
    """Write weights and `config.json`."""
    save_file(_pack(tensors), folder / WEIGHTS, metadata={"format": "pt"})
    _write_json(folder / CONFIG, entries)


def take_apart(model: Transformer) -> dict[str, Tensor]:
    """A model's tensors by the names of its family; raise `ArtifactError` where it has none."""
    family, tied = family_of(model.config), tied_names(model.config)
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name not in tied:
            tensors |= _take_apart(name, tensor, model.config, family)
    return tensors


def load_model(folder: str | Path, *, dtype: torch.dtype | None = None) -> Transformer:
    """Read a model, in `dtype` or as it lies; raise `ArtifactError` naming the file that fails."""
    folder = Path(folder)
    config = load_config(folder)
    try:
        theirs = _unpack(read_tensors(folder))
    except (LookupError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{folder / WEIGHTS}: 8-bit weights are damaged: {error}") from error
    return assemble(config, theirs, path=folder / WEIGHTS, dtype=dtype)


def assemble(
    config: ModelConfig,
    theirs: dict[str, Tensor],
    *,
    path: Path,
    dtype: torch.dtype | None = None,
    family: Family | None = None,
) -> Transformer:
    """The model of a shape and of tensors by their names, which are used up.

    `family` says how they are called and lie where that is not as in a folder.

    Raises `ArtifactError` naming `path` and what of it is missing, too much or of another shape.
    """
    family = family or family_of(config)
    for older, newer in family.older.items():
        for name in [name for name in theirs if name.endswith(older)]:
            theirs[name.removesuffix(older) + newer] = theirs.pop(name)
    config = _drop_copies(theirs, config, family, path=path)
    with torch.device("meta"):
        model = Transformer(config)
        if config.int8:
            empty_int8(model)
    state, tied = {}, tied_names(config)
    for name, expected in model.state_dict().items():
        if name not in tied:
            state[name] = _join(name, expected, theirs, config, family, path=path, dtype=dtype)
    unknown = [name for name in theirs if not any(part in name for part in family.ignored)]
    if unknown:
        raise ArtifactError(f"{path} holds tensors that are not known: {sorted(unknown)[:5]}")
    state |= {name: state[other] for name, other in tied.items()}
    model.load_state_dict(state, assign=True)
    if "head.weight" in tied and model.head is not None:
        model.head.weight = model.embedding.weight
    if "encoder.embedding.weight" in tied and model.encoder is not None:
        model.encoder.embedding = model.embedding
    return model.eval()


def _drop_copies(
    theirs: dict[str, Tensor], config: ModelConfig, family: Family, *, path: Path
) -> ModelConfig:
    """Leave one of the tensors that some folders hold several times.

    A head that differs from the embedding is one of its own, whatever the shape says; gives the
    shape without that tie. Raises `ArtifactError` for other copies that differ.
    """
    for name, other in tied_names(config).items():
        (first,) = family.names_of(other, config)
        for again in (each for each in family.names_of(name, config) if each in theirs):
            if torch.equal(theirs.setdefault(first, theirs[again]), theirs[again]):
                del theirs[again]
            elif name == "head.weight":
                config = replace(config, tie_embeddings=False)
            else:
                raise ArtifactError(f"{path}: {again} and {first} should be the same, but differ")
    return config


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder by their own names, from one file or from shards.

    Raises `ArtifactError` naming the file that is missing or damaged, and for pickles.
    """
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
        return read_safetensors(folder / WEIGHTS)
    try:
        places = json.loads((folder / INDEX).read_text("utf-8"))["weight_map"]
        shards = sorted(set(places.values()))
        outside = [shard for shard in shards if Path(shard).name != shard]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{folder / INDEX} is damaged: {error!r}") from error
    if outside:
        raise ArtifactError(f"{folder / INDEX} names {outside[0]!r}, which is no file beside it")
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        found = read_safetensors(folder / shard)
        twice = sorted(tensors.keys() & found.keys())
        if twice:
            raise ArtifactError(f"{folder / shard} holds {twice[0]} a second time")
        tensors |= found
    missing = sorted(places.keys() - tensors.keys())
    if missing:
        raise ArtifactError(f"{folder}: no shard holds {missing[:3]}, which {INDEX} promises")
    return tensors


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of one file; raise `ArtifactError` where it is none, or where a pickle is."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        pickles = sorted(each.name for each in path.parent.iterdir() if each.suffix in _PICKLES)
        if pickles and not path.exists():
            raise ArtifactError(
                f"{path.parent / pickles[0]} is a pickle, which can run code when it is opened: "
                "convert it where you trust it (transformers' save_pretrained writes safetensors)"
            ) from None
        raise ArtifactError(f"{path} cannot be read: {error}") from error


def load_config(folder: Path) -> ModelConfig:
    """Read `config.json`; raise `ArtifactError` where it is missing, damaged or unknown."""
    return parse_config(folder, read_entries(folder))


def read_entries(folder: Path) -> Any:
    """What `config.json` says; raise `ArtifactError` where it is missing or no JSON."""
    try:
        return json.loads((folder / CONFIG).read_text("utf-8"))
    except OSError:
        raise ArtifactError(f"{folder} is no checkpoint: it has no {CONFIG}") from None
    except ValueError as error:
        raise ArtifactError(f"{folder / CONFIG} is damaged: {error!r}") from error


def parse_config(folder: Path, entries: Any) -> ModelConfig:
    """The shape that entries tell; raise `ArtifactError` where they make no sense."""
    try:
        return read_config(entries)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{folder / CONFIG} is damaged: {error!r}") from error


def _take_apart(
    name: str, tensor: Tensor, config: ModelConfig, family: Family
) -> dict[str, Tensor]:
    """The tensors of theirs that one of ours becomes."""
    names, change = family.names_of(name, config), family.change_of(name)
    parts = _split(name, tensor, config, pieces=len(names))
    changed = (
        parts if change is None else [change.write(each, stack_of(config, name)) for each in parts]
    )
    return {
        their_name: _shape_out(their_name, each).contiguous().clone()
        for their_name, each in zip(names, changed, strict=True)
        if not their_name.endswith(tuple(family.absent))
    }


def _split(name: str, tensor: Tensor, config: ModelConfig, *, pieces: int) -> list[Tensor]:
    """The parts of a tensor, as many as others have names for."""
    if pieces == 1:
        return [tensor]
    if tensor.dim() == 3:  # experts behind each other, and each in as many parts
        return list(tensor.flatten(0, 1).chunk(pieces))
    return list(torch.split(tensor, fused_rows(config, name, len(tensor))))


def _join(
    name: str,
    expected: Tensor,
    theirs: dict[str, Tensor],
    config: ModelConfig,
    family: Family,
    *,
    path: Path,
    dtype: torch.dtype | None,
) -> Tensor:
    """One tensor of ours, of theirs that are used up.

    Raises `ArtifactError` where one is missing or has another shape or type.
    """
    parts = []
    names, change = family.names_of(name, config), family.change_of(name)
    for their_name, own in zip(
        names, _split(name, expected, config, pieces=len(names)), strict=True
    ):
        if their_name not in theirs and their_name.endswith(tuple(family.absent)):
            like = next(tensor for tensor in theirs.values() if tensor.is_floating_point())
            parts.append(torch.zeros(own.shape, dtype=like.dtype))
            continue
        # A model with a tied head may have been saved without it, and so without the prefix.
        found = their_name if their_name in theirs else their_name.removeprefix(family.prefix)
        try:
            given = theirs.pop(found)
        except KeyError:
            raise ArtifactError(f"{path} lacks the tensor {their_name!r}") from None
        part = _shape_in(their_name, given)
        if dtype is not None and part.is_floating_point():
            part = part.to(dtype)  # before it is changed, which may round
        if change is not None:
            with suppress(RuntimeError):  # of a shape that does not fit, which is told below
                part = change.read(part, stack_of(config, name))
        if part.shape != own.shape or (part.dtype == torch.int8) != (own.dtype == torch.int8):
            raise ArtifactError(
                f"{path}: {their_name} is {given.dtype} {list(given.shape)}, "
                f"{CONFIG} says {own.dtype} {list(own.shape)}"
            )
        parts.append(part)
    return parts[0] if len(parts) == 1 else torch.cat(parts).view(expected.shape)


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
