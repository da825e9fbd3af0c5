"""Models with the head of a task, on disk and back, and what does not fit a family's classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmloop.errors import ArtifactError
from lmloop.model.config import ModelConfig
from lmloop.model.heads import HeadConfig, TaskModel
from lmloop.weights.families import FAMILIES
from lmloop.weights.head_files import load_task, save_task, usual_head

from ..conftest import random_model, tiny_shape

TOKENS = torch.randint(0, 50, (2, 6), generator=torch.Generator().manual_seed(0))
KINDS = ("sequence", "token", "span")


def shape_of(name: str) -> ModelConfig:
    shape = {**FAMILIES[name].stack.shape, "num_kv_heads": 4, "hidden_size": 32, "head_dim": 8}
    if name == "bert":
        shape["token_types"] = 2
    return tiny_shape(**shape, family=name)


def make(name: str, kind: Any, *, labels: tuple[str, ...] = ()) -> TaskModel:
    config = shape_of(name)
    model = TaskModel(random_model(config), usual_head(config, kind=kind, labels=labels)).eval()
    with torch.no_grad():
        for number, parameter in enumerate(model.head.parameters()):
            parameter.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(number))
    return model


def save(model: TaskModel, folder: Path) -> dict[str, Any]:
    save_task(model, folder, stop_id=3, pad_id=0)
    entries: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return entries


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["bert", "qwen3"])
@torch.no_grad()
def test_a_model_comes_back_as_it_was(tmp_path: Path, name: str, kind: str) -> None:
    model = make(name, kind)
    save(model, tmp_path)
    again = load_task(tmp_path)
    assert torch.equal(again(TOKENS), model(TOKENS))


def test_the_names_of_labels_are_kept(tmp_path: Path) -> None:
    entries = save(make("bert", "sequence", labels=("no", "perhaps", "yes")), tmp_path)
    assert entries["architectures"] == ["BertForSequenceClassification"]
    assert entries["id2label"] == {"0": "no", "1": "perhaps", "2": "yes"}
    assert entries["label2id"] == {"no": 0, "perhaps": 1, "yes": 2}
    assert load_task(tmp_path).config.labels == ("no", "perhaps", "yes")


def test_another_dtype_is_that_of_the_head_too(tmp_path: Path) -> None:
    save(make("bert", "sequence"), tmp_path)
    model = load_task(tmp_path, dtype=torch.bfloat16)
    assert {each.dtype for each in model.parameters()} == {torch.bfloat16}


def test_a_head_that_the_familys_class_lacks_is_refused(tmp_path: Path) -> None:
    transformer = random_model(shape_of("bert"))
    head = HeadConfig(kind="sequence", layer="tanh", pooling="mean")
    with pytest.raises(ArtifactError, match="BertForSequenceClassification has"):
        save(TaskModel(transformer, head), tmp_path)
    with pytest.raises(ArtifactError, match="no class with a head for 'embedding'"):
        save(TaskModel(transformer, HeadConfig(kind="embedding")), tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM has no head of a task"),
        ({"architectures": []}, "has no head of a task"),
        ({"architectures": 3}, "is damaged"),
        ({"model_type": "mamba"}, "is damaged"),
        ({"id2label": {"1": "yes"}}, "is damaged"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, "size mismatch for output.weight"),
        ({"surprise": 1}, r"entries \['surprise'\]"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    entries = save(make("bert", "sequence"), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(entries | changes))
    with pytest.raises(ArtifactError, match=told):
        load_task(tmp_path)


def test_a_missing_or_spare_tensor_is_named(tmp_path: Path) -> None:
    save(make("bert", "sequence"), tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"surprise": torch.zeros(1)}, path)
    with pytest.raises(ArtifactError, match=r"not known: \['surprise'\]"):
        load_task(tmp_path)
    save_file({name: each for name, each in tensors.items() if name != "classifier.bias"}, path)
    with pytest.raises(ArtifactError, match="output.bias"):
        load_task(tmp_path)
