"""An adapter on disk, in PEFT's two files, which PEFT, transformers and vLLM open.

Takes: an adapter. Gives: `adapter_config.json` and `adapter_model.safetensors`; and back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lmloop.errors import ArtifactError
from lmloop.model.names import stack_of
from lmloop.model.transformer import Transformer
from lmloop.weights.adapters import ALL_LINEAR, Adapter, LoraConfig
from lmloop.weights.families import family_of
from lmloop.weights.family import TRANSPOSED
from lmloop.weights.stored import read_safetensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NAMES = {
    "rank": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "targets": "target_modules",
    "dora": "use_dora",
    "rslora": "use_rslora",
}
_KNOWN: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian"),
}
"""Entries of theirs that change the computation, with the values that are computed here."""
_HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "fan_in_fan_out", "inference_mode", "revision"),
    *("megatron_core", "peft_version", "qalora_group_size", "task_type", *_NAMES.values()),
}
"""Entries that may say anything; all others must be empty."""


def save_adapter(adapter: Adapter, folder: Path, *, model: Transformer) -> None:
    """Write PEFT's two files into `folder`."""
    told = {theirs: getattr(adapter.config, ours) for ours, theirs in _NAMES.items()}
    told |= {"peft_type": "LORA", "bias": "none", "inference_mode": True}
    entries = _entries(adapter, model).items()
    tensors = {name: each.detach()[order.argsort()] for name, (each, order) in entries}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def load_adapter(folder: str | Path, model: Transformer) -> Adapter:
    """Read PEFT's two files; raise `ArtifactError` naming what is damaged or does not fit."""
    folder = Path(folder)
    config, theirs = _read_config(folder / CONFIG), read_safetensors(folder / WEIGHTS)
    if isinstance(config.targets, str) and config.targets != ALL_LINEAR:
        # A pattern, which is not run: what it found is what there is.
        found = (name.removesuffix(".lora_A.weight") for name in theirs if ".lora_A." in name)
        names = tuple(name.removeprefix("base_model.model.") for name in found)
        config = replace(config, targets=names)
    with torch.device("meta"):  # a damaged config may promise more than fits into memory
        adapter = Adapter(model, config)
    ours = {name: each for name, (each, _) in _entries(adapter, model).items()}
    for name in sorted(ours.keys() | theirs.keys()):
        given, known = (_describe(tensors.get(name)) for tensors in (theirs, ours))
        if given != known:
            raise ArtifactError(f"{folder / WEIGHTS}: {name} is {given}, by {CONFIG} {known}")
    adapter.to_empty(device=model.embedding.weight.device)
    with torch.no_grad():
        for name, (parameter, order) in _entries(adapter, model).items():
            parameter.copy_(theirs[name][order])
    return adapter


def _describe(tensor: Tensor | None) -> str:
    if tensor is None:
        return "absent"
    kind = "" if tensor.is_floating_point() else f"{tensor.dtype} "
    return f"{kind}{list(tensor.shape)}"


def _entries(adapter: Adapter, model: Transformer) -> dict[str, tuple[nn.Parameter, Tensor]]:
    """What is learnt, by PEFT's names, and which row of theirs each of its rows is."""
    family, found = family_of(model.config), {}
    for path, pairs in adapter.pairs.items():
        change = family.change_of(f"{path}.weight")
        for name, pair in pairs.items():
            start = f"base_model.model.{name}.lora_"
            order = torch.arange(len(pair.b), device="cpu")
            found[f"{start}A.weight"] = pair.a, torch.arange(len(pair.a), device="cpu")
            if change is not None and change is not TRANSPOSED:
                order = change.read(order[:, None], stack_of(model.config, path))[:, 0]
            found[f"{start}B.weight"] = pair.b, order
            if pair.magnitude is not None:
                found[f"{start}magnitude_vector"] = pair.magnitude, order
    return found


def _read_config(path: Path) -> LoraConfig:
    try:
        data = json.loads(path.read_text("utf-8"))
        for name, value in data.items():
            known = _KNOWN.get(name, ())
            told = value or name == "peft_type"
            if told and name not in _HARMLESS and value not in known:
                names = " or ".join(map(repr, known)) or "none"
                raise ArtifactError(f"{path}: {name} is {value!r}, known here is {names}")
        targets, _ = data["target_modules"], data["peft_type"]  # both must be there
        return LoraConfig(
            rank=int(data["r"]),
            alpha=float(data["lora_alpha"]),
            dropout=float(data.get("lora_dropout", 0)),
            targets=targets if isinstance(targets, str) else tuple(map(str, targets)),
            dora=bool(data.get("use_dora")),
            rslora=bool(data.get("use_rslora")),
        )
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged: {error!r}") from error
