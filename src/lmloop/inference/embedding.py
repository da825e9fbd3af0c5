"""Vectors of texts, and the files in which sentence-transformers keeps how they are made.

Takes: a transformer, its tokenizer, texts. Gives: one vector a text. Axes: n texts, D width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lmloop.errors import ArtifactError
from lmloop.model.heads import Pooling, pool
from lmloop.model.transformer import Transformer
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.weights.stored import read_json

MODULES = "modules.json"
_LENGTH = "sentence_bert_config.json"
_PROMPTS = "config_sentence_transformers.json"
_MODES: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
"""Their names of a pooling, and ours."""
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""How older files say the same."""
_TOKENS_AT_ONCE = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """How a text becomes a vector."""

    pooling: Pooling = "mean"
    normalise: bool = False
    """Whether vectors have length one."""
    max_length: int | None = None
    """Tokens at which texts are cut; None: as many as the model can read."""


@torch.inference_mode()
def embed(
    transformer: Transformer, tokenizer: Tokenizer, texts: Sequence[str], *, settings: Embedding
) -> Tensor:
    """A vector for each text, fp32 [n, D], in their order; texts of like lengths run together."""
    longest = min(settings.max_length or 2**63, transformer.config.context_length)
    ids = tokenizer.encode_inputs(texts, max_length=longest)
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    vectors = torch.zeros(len(ids), transformer.config.hidden_size)
    while order:
        length = max(1, len(ids[order[-1]]))
        chosen = order[-max(1, _TOKENS_AT_ONCE // length) :]
        del order[-len(chosen) :]
        lengths = torch.tensor([len(ids[index]) for index in chosen])
        rows = torch.zeros(len(chosen), length, dtype=torch.int64)
        for row, index in zip(rows, chosen, strict=True):
            row[: len(ids[index])] = torch.tensor(ids[index], dtype=torch.int64)
        rows, lengths = rows.to(transformer.device), lengths.to(transformer.device)
        states = transformer.states(rows, lengths=lengths).float()
        pooled = pool(states, lengths=lengths, pooling=settings.pooling)
        vectors[chosen] = (F.normalize(pooled, dim=-1) if settings.normalise else pooled).cpu()
    return vectors


def read_embedding(folder: Path) -> Embedding | None:
    """What a folder's files say, None where there are none.

    Raises `ArtifactError` for a damaged file and for what is not computed here.
    """
    if not (folder / MODULES).exists():
        return None
    try:
        modules = [
            (each["type"].rpartition(".")[2], each["path"]) for each in _read(folder, MODULES)
        ]
        kinds = [kind for kind, _ in modules]
        if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
            raise ArtifactError(
                f"{folder / MODULES} names {kinds}: known here are Transformer, Pooling and then "
                "Normalize or nothing"
            )
        if modules[0][1] or Path(modules[1][1]).name != modules[1][1]:
            raise ArtifactError(
                f"{folder / MODULES}: the transformer must lie in the folder itself"
            )
        told = _read(folder, _LENGTH)
        _require(folder / _LENGTH, told.get("do_lower_case", False), "do_lower_case", False)
        prompts = _read(folder, _PROMPTS)
        named = prompts.get("default_prompt_name")
        _require(folder / _PROMPTS, named, "default_prompt_name", None)
        return Embedding(
            pooling=_read_pooling(folder, f"{modules[1][1]}/config.json"),
            normalise="Normalize" in kinds,
            max_length=_length(told.get("max_seq_length")),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{folder / MODULES} or what it names is damaged: {error!r}") from error


def write_embedding(folder: Path, settings: Embedding, *, width: int) -> None:
    """Write the files beside a checkpoint, in the spelling that all versions read."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if settings.normalise else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for at, (kind, path) in enumerate(zip(kinds, paths, strict=False))
    ]
    mode = next(theirs for theirs, ours in _MODES.items() if ours == settings.pooling)
    flags = {flag: each == mode for flag, each in _FLAGS.items()}
    _write(folder / MODULES, modules)
    _write(folder / _LENGTH, {"max_seq_length": settings.max_length, "do_lower_case": False})
    (folder / paths[1]).mkdir()
    _write(folder / paths[1] / "config.json", {"word_embedding_dimension": width, **flags})


def _read_pooling(folder: Path, name: str) -> Pooling:
    told = read_json(folder / name)
    modes = told.get("pooling_mode") or [mode for flag, mode in _FLAGS.items() if told.get(flag)]
    modes = [modes] if isinstance(modes, str) else modes
    if len(modes) != 1 or modes[0] not in _MODES:
        raise ArtifactError(
            f"{folder / name} asks for pooling {modes}: known here is one of {', '.join(_MODES)}"
        )
    return _MODES[modes[0]]


def _read(folder: Path, name: str) -> Any:
    """What a file says; nothing where it is missing."""
    path = folder / name
    return read_json(path) if path.exists() else {}


def _require(path: Path, told: object, name: str, known: object) -> None:
    if told != known:
        raise ArtifactError(f"{path}: {name} {told!r} cannot be opened: known here is {known!r}")


def _length(told: object) -> int | None:
    if told is None or (type(told) is int and told > 0):
        return told
    raise ValueError(f"max_seq_length is {told!r}, no positive whole number")


def _write(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
