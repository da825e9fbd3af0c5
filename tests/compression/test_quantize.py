"""Eight bits a weight: what is written is what was measured, and too much loss writes nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmloop.compression import quantize
from lmloop.compression.quantize import compare_predictions, compress, measure_loss, refuse_loss
from lmloop.errors import CompressionError
from lmloop.inference.load import LoadedModel, load
from lmloop.inference.speed import compare_speed
from lmloop.model.quantized import Int8Linear, quantize_int8
from lmloop.model.transformer import Transformer
from lmloop.progress import Silent
from lmloop.sections import CompressConfig
from lmloop.tokens.shards import Shards
from lmloop.weights.checkpoint import save_model

from ..conftest import random_model


@pytest.fixture
def shards(shards_folder: Path) -> Shards:
    return Shards.open(shards_folder, "heldout")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds are measured in `test_speed.py`."""
    speeds = {"1": {"before": 2.0, "after": 3.0}}
    monkeypatch.setattr(quantize, "compare_speed", lambda *_, **__: speeds)


def run(
    model_folder: Path, shards: Shards, folder: Path, *, max_loss: float = 0.01
) -> dict[str, Any]:
    folder.mkdir()
    return compress(
        CompressConfig(max_loss=max_loss),
        model_folder=model_folder,
        shards=shards,
        folder=folder,
        progress=Silent(),
    )


def test_the_folder_opens_and_holds_what_the_report_says(
    tmp_path: Path, model_folder: Path, shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "compare_speed", partial(compare_speed, rounds=1))
    report = run(model_folder, shards, tmp_path / "small")
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == [
        "compression.json",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert json.loads((tmp_path / "small" / "compression.json").read_text()) == report
    model = load(tmp_path / "small")
    assert model.config.int8
    weights = [each.weight for each in model.transformer.modules() if isinstance(each, Int8Linear)]
    assert sum(each.numel() for each in weights) == report["parameters_rounded"]
    assert report["weight_bytes"] == {
        "before": (model_folder / "model.safetensors").stat().st_size,
        "after": (tmp_path / "small" / "model.safetensors").stat().st_size,
    }
    assert report["weight_bytes"]["after"] < 0.9 * report["weight_bytes"]["before"]
    assert model.template.source == load(model_folder).template.source
    again = measure_loss(load(model_folder), model, shards, progress=Silent())
    assert {key: report[key] for key in again} == again


@pytest.mark.usefixtures("quick")
def test_the_loss_is_small_and_both_figures_are_told(
    tmp_path: Path, model_folder: Path, shards: Shards
) -> None:
    report = run(model_folder, shards, tmp_path / "small", max_loss=0.05)
    before, after = report["bits_per_byte"]["before"], report["bits_per_byte"]["after"]
    assert before != after
    assert report["relative_loss"] == pytest.approx(after / before - 1)
    assert abs(report["relative_loss"]) < 0.05
    assert 0 < report["predictions"]["mean_divergence_nats"] < 0.1
    assert report["decode_tokens_per_second"] == {"1": {"before": 2.0, "after": 3.0}}


@pytest.mark.usefixtures("quick")
def test_too_much_loss_is_refused_with_figures_and_writes_nothing(
    tmp_path: Path, model_folder: Path, shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(model: Transformer) -> None:
        quantize_int8(model)
        for module in model.modules():
            if isinstance(module, Int8Linear):
                module.scale = module.scale * 3

    monkeypatch.setattr(quantize, "quantize_int8", spoil)
    with pytest.raises(CompressionError, match=r"from \d\.\d{4} to .*allowed is \+1.00%"):
        run(model_folder, shards, tmp_path / "small")
    assert not list((tmp_path / "small").iterdir())


@pytest.mark.parametrize(
    ("before", "after", "allowed"), [(2.0, 2.02, 0.0101), (2.0, 1.9, 0.0), (2.0, 2.0, 0.0)]
)
def test_a_loss_within_the_limit_passes(before: float, after: float, allowed: float) -> None:
    refuse_loss(quality(before, after), max_loss=allowed)


def quality(before: float, after: float) -> dict[str, Any]:
    return {
        "bits_per_byte": {"before": before, "after": after},
        "relative_loss": after / before - 1,
    }


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (2.0, 2.02, r"from 2.0000 to 2.0200 \(\+1.00%\), allowed is \+0.90%"),
        (2.0, math.nan, "nan after .* not finite"),
        (math.nan, 2.0, "nan before .* not finite"),
        (2.0, math.inf, "inf after .* not finite"),
    ],
)
def test_a_loss_above_the_limit_or_no_number_is_refused(
    before: float, after: float, told: str
) -> None:
    with pytest.raises(CompressionError, match=told):
        refuse_loss(quality(before, after), max_loss=0.009)


@pytest.mark.usefixtures("quick")
def test_a_damaged_checkpoint_is_refused(
    tmp_path: Path, loaded: LoadedModel, shards: Shards
) -> None:
    broken = random_model(loaded.config)
    with torch.no_grad():
        broken.blocks[0].mixer.part.qkv.weight[2, 3] = math.nan
    folder = tmp_path / "broken"
    folder.mkdir()
    save_model(broken, folder, stop_id=1, document_id=0)
    loaded.require_tokenizer().save(folder)
    with pytest.raises(CompressionError, match="not finite: the checkpoint is damaged"):
        run(folder, shards, tmp_path / "small")
    assert not list((tmp_path / "small").iterdir())


@pytest.mark.usefixtures("quick")
def test_what_is_compressed_already_is_refused(
    tmp_path: Path, model_folder: Path, shards: Shards
) -> None:
    run(model_folder, shards, tmp_path / "small", max_loss=1.0)
    with pytest.raises(CompressionError, match="is compressed already"):
        run(tmp_path / "small", shards, tmp_path / "smaller")
    assert not list((tmp_path / "smaller").iterdir())


def damage(change: Callable[[Path], object]) -> Callable[..., None]:
    """`save_model`, and then something happens to the folder."""

    def save(model: Transformer, folder: Path, **ids: int) -> None:
        save_model(model, folder, **ids)
        change(folder)

    return save


def swap_scales(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight_scale"
    tensors[name] = tensors[name].flip(0)
    save_file({key: each.clone() for key, each in tensors.items()}, folder / "model.safetensors")


@pytest.mark.usefixtures("quick")
def test_a_folder_that_predicts_otherwise_than_measured_is_refused(
    tmp_path: Path, model_folder: Path, shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "save_model", damage(swap_scales))
    with pytest.raises(CompressionError, match="predicts otherwise than the one measured"):
        run(model_folder, shards, tmp_path / "small", max_loss=1.0)


def test_predictions_are_compared_token_by_token() -> None:
    before = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    after = torch.log(torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]]))
    assert compare_predictions(before, before) == {
        "largest_logit_difference": 0.0,
        "mean_divergence_nats": 0.0,
        "same_first_choice": 1.0,
    }
    assert compare_predictions(before, after) == {
        "largest_logit_difference": round(math.log(2), 4),
        # (0.5 ln 2 - 0.25 ln 2 + 0) / 2 tokens.
        "mean_divergence_nats": round(0.125 * math.log(2), 6),
        "same_first_choice": 0.5,
    }


@pytest.mark.usefixtures("quick")
def test_the_original_stays_as_it_was(
    loaded: LoadedModel, shards: Shards, model_folder: Path, tmp_path: Path
) -> None:
    before = {path.name: path.read_bytes() for path in model_folder.iterdir()}
    small = quantize._round(replace(loaded))
    assert small.config.int8 and not loaded.config.int8
    assert not [each for each in loaded.transformer.modules() if isinstance(each, Int8Linear)]
    run(model_folder, shards, tmp_path / "small", max_loss=1.0)
    assert {path.name: path.read_bytes() for path in model_folder.iterdir()} == before
