"""Models for a task in Hugging Face's layout: BertForSequenceClassification and its like.

Takes: a `TaskModel`. Gives: `config.json` and weights that transformers opens; and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lmloop.errors import ArtifactError
from lmloop.model.config import ModelConfig, Task
from lmloop.model.heads import HeadConfig, Pooling, TaskModel
from lmloop.weights import checkpoint
from lmloop.weights.families import FAMILIES, family_of, write_config
from lmloop.weights.family import Family
from lmloop.weights.stored import WEIGHTS, read_tensors

_CLASSES: Mapping[Task, str] = {
    "sequence": "ForSequenceClassification",
    "token": "ForTokenClassification",
    "span": "ForQuestionAnswering",
}
_POOLING = "classifier_pooling"


def usual_head(
    config: ModelConfig, *, kind: Task, labels: tuple[str, ...] = (), pooling: Pooling | None = None
) -> HeadConfig:
    """The head that the family's class for a task has; two labels where none is named.

    Raises `ArtifactError` where the family has no such class.
    """
    family = family_of(config)
    if kind not in family.heads:
        raise ArtifactError(
            f"{config.family} has no class with a head for {kind!r}: known here are "
            f"{', '.join(map(repr, family.heads)) or 'none'}"
        )
    names = family.heads[kind]
    layer = "tanh" if "layer.dense" in names else "none"
    chooses = _POOLING in family.harmless and pooling is not None
    return HeadConfig(
        kind=kind,
        num_labels=len(labels) or 2,
        labels=labels,
        pooling=pooling if chooses and pooling else "last" if config.causal else "cls",
        layer="transform" if "layer.norm" in names else layer,  # type: ignore[arg-type]
        bias="output" in names,
    )


def save_task(model: TaskModel, folder: Path, *, stop_id: int, pad_id: int) -> None:
    """Write both files; raise `ArtifactError` where the family's class has another head."""
    config, head = model.transformer.config, model.config
    family = family_of(config)
    labels = head.labels or tuple(f"LABEL_{label}" for label in range(head.num_labels))
    usual = usual_head(config, kind=head.kind, labels=labels, pooling=head.pooling)
    own = (head.layer, head.bias, head.pooling if head.kind == "sequence" else usual.pooling)
    if config.int8 or own != (usual.layer, usual.bias, usual.pooling):
        raise ArtifactError(
            f"{_class_of(family, head.kind)} has weights as floats and {usual}, this model {head}"
        )
    front, names = _names_of(family, head.kind)
    bare = checkpoint.take_apart(model.transformer)
    tensors = {front + name: tensor for name, tensor in bare.items()}
    tensors |= {_rename(name, names): each for name, each in model.head.state_dict().items()}
    dtype = str(model.transformer.embedding.weight.dtype).removeprefix("torch.")
    entries = write_config(config, stop_id=stop_id, pad_id=pad_id, dtype=dtype) | {
        "architectures": [_class_of(family, head.kind)],
        "id2label": {str(label): name for label, name in enumerate(labels)},
        "label2id": {name: label for label, name in enumerate(labels)},
    }
    if _POOLING in family.harmless:
        entries[_POOLING] = usual.pooling
    checkpoint.write_files(folder, tensors, entries)


def load_task(folder: str | Path, *, dtype: torch.dtype | None = None) -> TaskModel:
    """Read a model with its head; raise `ArtifactError` naming the file that fails."""
    folder = Path(folder)
    entries, path = checkpoint.read_entries(folder), folder / WEIGHTS
    try:
        kind, family = _find_task(entries)
        told = entries.get("id2label") or {}
        labels = tuple(str(told[str(label)]) for label in range(len(told)))
    except (LookupError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{folder / checkpoint.CONFIG} is damaged: {error!r}") from error
    config = checkpoint.parse_config(folder, {**entries, "architectures": [family.bare]})
    head = usual_head(config, kind=kind, labels=labels, pooling=entries.get(_POOLING))
    front, names = _names_of(family, kind)
    names, theirs = {each: ours for ours, each in names.items()}, read_tensors(folder)
    found = [name for name in theirs if name.startswith(tuple(names))]
    own = {_rename(name, names): theirs.pop(name) for name in found}
    bare = {name.removeprefix(front): each for name, each in theirs.items()}
    model = TaskModel(checkpoint.assemble(config, bare, path=path, dtype=dtype), head)
    try:
        model.head.load_state_dict(own)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ArtifactError(f"{path} does not fit {checkpoint.CONFIG}: {reason}") from error
    return model.to(model.transformer.embedding.weight.dtype).eval()


def _find_task(entries: Mapping[str, Any]) -> tuple[Task, Family]:
    """Task and family of a `config.json`."""
    name, family = str((entries.get("architectures") or [""])[0]), FAMILIES[entries["model_type"]]
    for kind in family.heads:
        if name == _class_of(family, kind):
            return kind, family
    known = [_class_of(family, kind) for kind in family.heads]
    raise ArtifactError(f"{name} has no head of a task that is known here: {', '.join(known)}")


def _class_of(family: Family, kind: Task) -> str:
    return str(family.bare).removesuffix("Model") + _CLASSES[kind]


def _names_of(family: Family, kind: Task) -> tuple[str, dict[str, str]]:
    """What the transformer's tensors begin with, and the names of the head's, ours and theirs."""
    names = dict(family.heads[kind])
    return names.pop("transformer", family.prefix), names


def _rename(name: str, names: Mapping[str, str]) -> str:
    """A tensor's name on the other side; the table has beginnings."""
    key = next(each for each in names if name.startswith(each))
    return names[key] + name.removeprefix(key)
