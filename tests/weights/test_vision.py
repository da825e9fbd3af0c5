"""Families that see, on disk: their spelling, their names, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmloop.errors import ArtifactError
from lmloop.model.config import ModelConfig, Picture
from lmloop.weights.checkpoint import load_model, save_model
from lmloop.weights.families import name_family, read_config, write_config
from lmloop.weights.stored import WEIGHTS
from lmloop.weights.vision import VISION

from ..conftest import random_model, tiny_shape

HEADS = {"num_heads": 4, "num_kv_heads": 4, "head_dim": 6}


def vit(family: str = "vit", **changes: Any) -> ModelConfig:
    given = {"picture": Picture(size=6, patch=2), "context_length": 10, **HEADS, **changes}
    return tiny_shape(**{**VISION["vit"].stack.shape, **given}, family=family)


def pair(**changes: Any) -> ModelConfig:
    shape = {
        "norm": "layer",
        "gated": False,
        "qk_norm": False,
        "activation": "gelu_tanh",
        "positions": "learned",
        "norm_epsilon": 1e-5,
        **HEADS,
        **dict.fromkeys(("feed_forward_bias", "qkv_bias", "output_bias"), True),
    }
    encoder = vit("vision-encoder-decoder", num_layers=1)
    given = {"encoder": encoder, "family": "vision-encoder-decoder", **changes}
    return tiny_shape(**{**shape, **given})


def spelt(config: ModelConfig) -> dict[str, Any]:
    entries = write_config(config, stop_id=1, pad_id=0, dtype="float32")
    return json.loads(json.dumps(entries))


@pytest.mark.parametrize(
    "config",
    [
        vit(),
        vit(qkv_bias=False, picture=Picture(size=6, patch=2, channels=1)),
        pair(),
        pair(tie_embeddings=False),
    ],
)
def test_a_config_comes_back_as_it_was(config: ModelConfig) -> None:
    assert read_config(spelt(config)) == config
    encoder = config.encoder and replace(config.encoder, family="lmloop")
    assert name_family(replace(config, encoder=encoder)) == config


def test_a_shape_that_no_vit_has_is_our_own() -> None:
    two = vit(picture=Picture(size=6, patch=2, leading=2), context_length=11)
    for config in (two, vit(context_length=12), pair(encoder=replace(two, num_layers=1))):
        named = name_family(config)
        assert named.family == "lmloop"
        assert read_config(spelt(named)) == named


def test_each_side_has_a_config_of_its_own() -> None:
    entries = spelt(pair(tie_embeddings=False))
    assert entries["encoder"]["model_type"] == "vit"
    assert (entries["encoder"]["image_size"], entries["encoder"]["patch_size"]) == (6, 2)
    assert entries["decoder"]["model_type"] == "gpt2"
    assert entries["decoder"]["add_cross_attention"] is True
    assert (entries["tie_word_embeddings"], entries["decoder"]["tie_word_embeddings"]) == (
        False,
        False,
    )


@pytest.mark.parametrize("config", [vit(), pair()])
@torch.no_grad()
def test_weights_come_back_as_they_were(config: ModelConfig, tmp_path: Path) -> None:
    model = random_model(config)
    save_model(model, tmp_path, stop_id=1, document_id=0)
    again = load_model(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_tensors_have_their_names_and_what_nothing_reads_is_ignored(tmp_path: Path) -> None:
    save_model(random_model(pair()), tmp_path, stop_id=1, document_id=0)
    tensors = load_file(tmp_path / WEIGHTS)
    assert tensors["encoder.embeddings.cls_token"].shape == (1, 1, 24)
    assert tensors["encoder.embeddings.position_embeddings"].shape == (1, 10, 24)
    assert tensors["encoder.embeddings.patch_embeddings.projection.weight"].shape == (24, 3, 2, 2)
    assert tensors["decoder.transformer.h.1.crossattention.c_attn.weight"].shape == (24, 48)
    assert "decoder.lm_head.weight" not in tensors
    unread = {"encoder.pooler.dense.weight": torch.ones(24, 24)}
    unread["decoder.transformer.h.0.crossattention.bias"] = torch.ones(1, 1, 64, 64)
    save_file({**tensors, **unread}, tmp_path / WEIGHTS)
    load_model(tmp_path)


def test_what_old_files_repeat_changes_nothing() -> None:
    entries = spelt(pair())
    for side in ("encoder", "decoder"):
        entries[side] |= {"top_k": 50, "pruned_heads": {}, "torchscript": False}
    assert read_config(entries) == pair()


@pytest.mark.parametrize(
    ("side", "entry", "told"),
    [
        ("encoder", {"model_type": "swin"}, "model_type 'swin' cannot be opened"),
        ("decoder", {"model_type": "bert"}, "model_type 'bert' cannot be opened"),
        ("decoder", {"add_cross_attention": False}, "add_cross_attention False"),
        ("encoder", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ("encoder", {"hidden_act": "relu"}, "hidden_act 'relu'"),
        ("encoder", {"depths": [2]}, "entries \\['depths'\\]"),
    ],
)
def test_what_is_computed_otherwise_is_refused(side: str, entry: dict[str, Any], told: str) -> None:
    entries = spelt(pair())
    entries[side] |= entry
    with pytest.raises(ArtifactError, match=told):
        read_config(entries)


@pytest.mark.parametrize(
    ("side", "entry", "told"),
    [
        ("encoder", {"image_size": [6, 6]}, "image_size is"),
        ("encoder", {"patch_size": 4}, "6 pixels make no whole patches of 4"),
        ("encoder", {"hidden_size": 48}, "differ in width"),
    ],
)
def test_sizes_that_do_not_fit_are_named(side: str, entry: dict[str, Any], told: str) -> None:
    entries = spelt(pair())
    entries[side] |= entry
    with pytest.raises(ValueError, match=told):
        read_config(entries)
