"""The checkpoint folder: our model to and from Hugging Face's names, in safetensors.

Takes: a `Transformer`. Gives: `config.json`, `generation_config.json`, `model.safetensors` that
transformers opens unchanged; and back. Fused products are taken apart on the way out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lmloop.errors import ArtifactError
from lmloop.model.config import ModelConfig
from lmloop.model.names import fused_rows, stack_of, tied_names
from lmloop.model.quantized import empty_int8, pack_int8, unpack_int8
from lmloop.model.transformer import Transformer
from lmloop.weights.families import family_of, read_config, write_config
from lmloop.weights.family import Change, Family
from lmloop.weights.stored import WEIGHTS, read_json, read_tensors

CONFIG = "config.json"
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
        theirs = read_tensors(folder)
        _unpack(theirs)
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
    model = _empty(config, theirs, path=path)
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


def load_config(folder: Path) -> ModelConfig:
    """Read `config.json`; raise `ArtifactError` where it is missing, damaged or unknown."""
    return parse_config(folder, read_entries(folder))


def read_entries(folder: Path) -> Any:
    """What `config.json` says; raise `ArtifactError` where it is missing or no JSON."""
    try:
        return read_json(folder / CONFIG)
    except OSError:
        raise ArtifactError(f"{folder} is no checkpoint: it has no {CONFIG}") from None
    except ValueError as error:
        raise ArtifactError(f"{folder / CONFIG} is damaged: {error!r}") from error


def parse_config(folder: Path, entries: Any) -> ModelConfig:
    """The shape that entries tell; raise `ArtifactError` where they make no sense."""
    try:
        return read_config(entries)
    except ArtifactError as error:
        raise ArtifactError(f"{folder / CONFIG}: {error}") from error
    except (ArithmeticError, ValueError, LookupError, TypeError, AttributeError) as error:
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


def _empty(config: ModelConfig, theirs: Mapping[str, Tensor], *, path: Path) -> Transformer:
    """The model without weights; nothing is begun that the file cannot fill."""
    numbers = sum(tensor.numel() for tensor in theirs.values())
    for stack in (config, config.encoder or config):
        experts = 0 if stack.experts is None else stack.experts.count
        if stack.num_layers > len(theirs) or max(stack.head_dim, experts) > numbers:
            raise ArtifactError(
                f"{path} lacks the tensors of {stack.num_layers} layers with heads of "
                f"{stack.head_dim} numbers and {experts} experts"
            )
    try:
        with torch.device("meta"):
            model = Transformer(config)
            if config.int8:
                empty_int8(model)
    except (ArithmeticError, ValueError, TypeError, RuntimeError) as error:
        told = str(error).partition("\n")[0]
        raise ArtifactError(f"{path}: the sizes of its {CONFIG} make no model: {told}") from error
    return model


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
    """One tensor of ours, in memory of its own, of theirs that are used up.

    Raises `ArtifactError` where one is missing or has another shape or type.
    """
    names, change = family.names_of(name, config), family.change_of(name)
    # A model with a tied head may have been saved without it, and so without the prefix.
    ways = [(each, each.removeprefix(family.prefix)) for each in names]
    found = [next((each for each in way if each in theirs), way[0]) for way in ways]
    pieces = partial(_split, name, config=config, pieces=len(names))
    for their_name, own in zip(found, pieces(expected), strict=True):
        if their_name in theirs:
            _check(their_name, theirs[their_name], own, change, stack_of(config, name), path=path)
        elif not their_name.endswith(tuple(family.absent)):
            raise ArtifactError(f"{path} lacks the tensor {their_name!r}")
    stored = next((theirs[each].dtype for each in found if each in theirs), dtype or torch.float32)
    wanted = dtype if dtype and stored.is_floating_point else stored
    joined = torch.zeros(expected.shape, dtype=wanted)
    for their_name, place in zip(found, pieces(joined), strict=True):
        if their_name in theirs:
            part = _shape_in(their_name, theirs.pop(their_name))
            if change is not None:  # in the wanted type, as a change may round
                part = change.read(part.to(wanted), stack_of(config, name))
            place.copy_(part)
    return joined


def _check(
    their_name: str,
    given: Tensor,
    own: Tensor,
    change: Change | None,
    stack: ModelConfig,
    *,
    path: Path,
) -> None:
    """Raise `ArtifactError` where a tensor of theirs has another shape or type than its place."""
    part = _shape_in(their_name, given.to("meta"))
    if change is not None:
        with suppress(RuntimeError):  # of a shape that does not fit, which is told below
            part = change.read(part, stack)
    if part.shape != own.shape or (part.dtype == torch.int8) != (own.dtype == torch.int8):
        raise ArtifactError(
            f"{path}: {their_name} is {given.dtype} {list(given.shape)}, "
            f"{CONFIG} says {own.dtype} {list(own.shape)}"
        )


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


def _unpack(tensors: dict[str, Tensor]) -> None:
    """Undo `_pack` in place; raises LookupError or ValueError where a shape is missing or odd."""
    for name in [name for name in tensors if name.endswith(".weight_packed")]:
        plain = name.removesuffix("_packed")
        packed, shape = tensors.pop(name), tensors.pop(f"{plain}_shape").tolist()
        if packed.dtype != torch.int32 or list(packed.shape) != [shape[0], -(-shape[1] // 4)]:
            raise ValueError(f"{name} is {packed.dtype} {list(packed.shape)} for {shape}")
        tensors[plain] = unpack_int8(packed, columns=shape[1])


def _shape_out(their_name: str, piece: Tensor) -> Tensor:
    return piece[:, None] if their_name.endswith("weight_scale") else piece


def _shape_in(their_name: str, piece: Tensor) -> Tensor:
    # Only a column of one scale a row becomes flat; groups of scales fail the comparison of shapes.
    return piece.squeeze(-1) if their_name.endswith("weight_scale") else piece


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
