"""Adapters on disk: the same again, and what does not fit is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmloop.errors import ArtifactError
from lmloop.model.transformer import Transformer
from lmloop.weights import families
from lmloop.weights.adapter_files import CONFIG, WEIGHTS, load_adapter, save_adapter
from lmloop.weights.adapters import Adapter, LoraConfig, make_adapter
from lmloop.weights.family import TRANSPOSED, Change

from ..conftest import random_model, tiny_shape

START = "base_model.model.model.layers.0.self_attn"


@pytest.fixture
def model() -> Transformer:
    return random_model(tiny_shape())


def drawn(model: Transformer, config: LoraConfig) -> Adapter:
    adapter = make_adapter(model, config, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return adapter


def change_config(folder: Path, **changes: Any) -> None:
    data = json.loads((folder / CONFIG).read_text("utf-8"))
    (folder / CONFIG).write_text(json.dumps(data | changes), "utf-8")


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(),
        LoraConfig(rank=3, alpha=5.0, dropout=0.1, targets=("v_proj",), rslora=True),
        LoraConfig(rank=2, targets=("up_proj", "o_proj"), dora=True),
    ],
)
def test_what_was_saved_is_exactly_what_is_loaded(
    model: Transformer, tmp_path: Path, config: LoraConfig
) -> None:
    adapter = drawn(model, config)
    save_adapter(adapter, tmp_path, model=model)
    again = load_adapter(tmp_path, model)
    assert again.config == adapter.config
    for one, other in zip(adapter.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    assert sorted(each.name for each in tmp_path.iterdir()) == [CONFIG, WEIGHTS]


def test_the_files_are_those_of_peft(model: Transformer, tmp_path: Path) -> None:
    config = LoraConfig(rank=2, targets=("q_proj", "v_proj"), dora=True)
    save_adapter(drawn(model, config), tmp_path, model=model)
    shapes = {name: list(each.shape) for name, each in load_file(tmp_path / WEIGHTS).items()}
    assert shapes == {
        f"base_model.model.model.layers.{layer}.self_attn.{matrix}.lora_{kind}": shape
        for layer in range(2)
        for matrix, rows in (("q_proj", 32), ("v_proj", 16))
        for kind, shape in (
            ("A.weight", [2, 24]),
            ("B.weight", [rows, 2]),
            ("magnitude_vector", [rows]),
        )
    }
    assert json.loads((tmp_path / CONFIG).read_text("utf-8")) == {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 16.0,
        "lora_dropout": 0.0,
        "target_modules": ["q_proj", "v_proj"],
        "use_dora": True,
        "use_rslora": False,
        "bias": "none",
        "inference_mode": True,
    }


def test_rows_lie_in_the_order_of_the_family(
    model: Transformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A family that keeps rows in another order, and one that keeps matrices transposed."""
    swapped = Change(lambda tensor, _: tensor.roll(-1, 0), lambda tensor, _: tensor.roll(1, 0))
    changes = {"blocks.{}.mixer.part.qkv": swapped, "blocks.{}.mixer.part.output": TRANSPOSED}
    row = replace(families.FAMILIES["qwen3"], changes=changes)
    monkeypatch.setattr(families, "FAMILIES", {"qwen3": row})
    adapter = drawn(model, LoraConfig(rank=2, targets=("k_proj", "o_proj"), dora=True))
    save_adapter(adapter, tmp_path, model=model)
    theirs = load_file(tmp_path / WEIGHTS)
    pair = adapter.pairs["blocks.0.mixer.part.qkv"]["model.layers.0.self_attn.k_proj"]
    assert torch.equal(theirs[f"{START}.k_proj.lora_A.weight"], pair.a)
    assert torch.equal(theirs[f"{START}.k_proj.lora_B.weight"], pair.b.roll(1, 0))
    assert pair.magnitude is not None
    assert torch.equal(theirs[f"{START}.k_proj.lora_magnitude_vector"], pair.magnitude.roll(1))
    pair = adapter.pairs["blocks.0.mixer.part.output"]["model.layers.0.self_attn.o_proj"]
    assert torch.equal(theirs[f"{START}.o_proj.lora_B.weight"], pair.b)
    again = load_adapter(tmp_path, model)
    for one, other in zip(adapter.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_pattern_of_names_means_what_the_file_holds(model: Transformer, tmp_path: Path) -> None:
    adapter = drawn(model, LoraConfig(targets=("layers.1.mlp.up_proj",)))
    save_adapter(adapter, tmp_path, model=model)
    change_config(tmp_path, target_modules="(x+x+)+y|.*up_proj")
    again = load_adapter(tmp_path, model)
    assert again.config.targets == ("model.layers.1.mlp.up_proj",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA', known here is 'LORA'"),
        ({"peft_type": None}, "peft_type is None, known here is 'LORA'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save is .'embed_tokens'., .* none"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"unheard_of": 1}, "unheard_of is 1, known here is none"),
        ({"r": 0}, "rank 0"),
        ({"r": 10**12}, "rank 1000000000000"),
        ({"r": "many"}, "damaged"),
        ({"r": float("inf")}, "damaged"),
        ({"lora_alpha": None}, "damaged"),
        ({"target_modules": None}, "damaged"),
        ({"target_modules": ["query"]}, "'query'.*there are down_proj"),
        ({"target_modules": []}, "there are down_proj"),
        ({"target_modules": ["q_proj", "k_proj"]}, r"k_proj.lora_A.weight is absent, .* \[8, 24\]"),
        ({"target_modules": ["v_proj"]}, r"q_proj.lora_A.weight is \[8, 24\], .* absent"),
        ({"r": 5}, r"lora_A.weight is \[8, 24\], .* \[5, 24\]"),
        ({"use_dora": True}, "magnitude_vector is absent"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_in_one_line(
    model: Transformer, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    save_adapter(drawn(model, LoraConfig(targets=("q_proj", "v_proj"))), tmp_path, model=model)
    change_config(tmp_path, **changes)
    with pytest.raises(ArtifactError, match=message) as caught:
        load_adapter(tmp_path, model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(f"{START}.q_proj.lora_B.weight"), "q_proj.lora_B.* is absent"),
        (lambda tensors: tensors.update(more=torch.ones(3)), r"more is \[3\], .* absent"),
        (
            lambda tensors: tensors.update(
                {f"{START}.q_proj.lora_B.weight": torch.ones(32, 8, dtype=torch.int8)}
            ),
            r"torch.int8 \[32, 8\]",
        ),
        (
            lambda tensors: tensors.update({f"{START}.q_proj.lora_B.weight": torch.ones(16, 8)}),
            r"is \[16, 8\], .* \[32, 8\]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    model: Transformer,
    tmp_path: Path,
    change: Callable[[dict[str, Tensor]], object],
    message: str,
) -> None:
    save_adapter(drawn(model, LoraConfig(targets=("q_proj",))), tmp_path, model=model)
    change_tensors(tmp_path, change)
    with pytest.raises(ArtifactError, match=message):
        load_adapter(tmp_path, model)


def test_pickles_and_damaged_files_are_refused(model: Transformer, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="adapter_config.json cannot be read"):
        load_adapter(tmp_path / "nowhere", model)
    save_adapter(drawn(model, LoraConfig(targets=("q_proj",))), tmp_path, model=model)
    (tmp_path / WEIGHTS).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ArtifactError, match=r"adapter_model\.bin is a pickle"):
        load_adapter(tmp_path, model)
    (tmp_path / WEIGHTS).write_bytes(b"\xff" * 40)
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_adapter(tmp_path, model)
    (tmp_path / CONFIG).write_text("[]", "utf-8")
    with pytest.raises(ArtifactError, match="damaged"):
        load_adapter(tmp_path, model)
