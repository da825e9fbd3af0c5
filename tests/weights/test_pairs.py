"""Encoder-decoders on disk: each family's spelling and names, and the copies that files hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmloop.errors import ArtifactError
from lmloop.model.config import ModelConfig
from lmloop.weights.checkpoint import CONFIG, load_model, save_model
from lmloop.weights.families import FAMILIES, read_config, write_config
from lmloop.weights.pairs import PAIRS
from lmloop.weights.stored import WEIGHTS

from ..conftest import random_model, tiny_shape

ATTENTION = {"num_heads": 4, "num_kv_heads": 4}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("t5", {"activation": "relu", "gated": False, "logit_scale": 24**-0.5}),
    "t5 v1.1": ("t5", {"activation": "gelu_tanh", "tie_embeddings": False}),
    "bart": ("bart", {"head_dim": 6}),
    "bart, scaled": ("bart", {"head_dim": 6, "embedding_scale": 24**0.5}),
    "whisper": ("whisper", {"head_dim": 6}),
}


def shape(case: str) -> ModelConfig:
    name, changes = CASES[case]
    family = PAIRS[name]
    assert family.encoder is not None
    drawn = {key: value for key, value in changes.items() if key not in ("logit_scale",)}
    encoder = {**drawn, "num_layers": 1, "head": "none", "causal": False, "tie_embeddings": True}
    encoder |= {"audio_bins": 5} if name == "whisper" else {}
    return tiny_shape(
        **{**ATTENTION, **changes, **family.stack.shape, **changes},
        family=name,
        encoder=tiny_shape(**{**ATTENTION, **family.encoder.shape, **encoder}, family=name),
    )


def saved(case: str, folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """Write a random model of a case; gives its tensors by their names."""
    model = random_model(shape(case))
    for name, tensor in model.state_dict().items():
        if case == "whisper" and name.endswith(("qkv.bias", "kv.bias")):
            queries = 24 if "qkv" in name else 0
            tensor[queries : queries + 24] = 0
    save_model(model, folder, stop_id=1, document_id=0, **changes)
    return load_file(folder / WEIGHTS)


@pytest.mark.parametrize("case", CASES)
def test_a_config_comes_back_as_it_was(case: str) -> None:
    config = shape(case)
    data = write_config(config, stop_id=1, pad_id=0, dtype="float32")
    assert read_config(json.loads(json.dumps(data))) == config
    assert data["is_encoder_decoder"] is True
    assert FAMILIES[config.family] is PAIRS[config.family]


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_weights_come_back_as_they_were(case: str, tmp_path: Path) -> None:
    saved(case, tmp_path)
    once = load_model(tmp_path)
    again = tmp_path / "again"
    again.mkdir()
    save_model(once, again, stop_id=1, document_id=0)
    expected = once.state_dict()
    for name, tensor in load_model(again).state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert once.encoder is not None
    assert (once.encoder.embedding is once.embedding) == (case != "whisper")


def test_tensors_have_their_names(tmp_path: Path) -> None:
    assert {name for name in saved("t5", tmp_path) if "block" not in name} == {
        "shared.weight",
        "encoder.final_layer_norm.weight",
        "decoder.final_layer_norm.weight",
    }
    names = set(saved("t5 v1.1", tmp_path))
    assert "lm_head.weight" in names
    assert "decoder.block.1.layer.2.DenseReluDense.wi_1.weight" in names
    assert "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight" in names
    tensors = saved("bart", tmp_path)
    assert tensors["model.decoder.embed_positions.weight"].shape == (66, 24)
    assert tensors["final_logits_bias"].shape == (1, 50)
    assert "lm_head.weight" not in tensors
    tensors = saved("whisper", tmp_path)
    assert "model.encoder.conv2.bias" in tensors
    assert "model.encoder.embed_tokens.weight" not in tensors
    assert not any(name.endswith("k_proj.bias") for name in tensors)


def test_an_answer_begins_where_it_is_told(tmp_path: Path) -> None:
    for told, expected in ((7, 7), (None, 0)):
        saved("bart", tmp_path, start_id=told)
        for file in (CONFIG, "generation_config.json"):
            data = json.loads((tmp_path / file).read_text())
            assert data["decoder_start_token_id"] == expected


def test_an_embedding_under_another_name_is_read_once(tmp_path: Path) -> None:
    tensors = saved("t5", tmp_path)
    shared = tensors.pop("shared.weight")
    expected = load_model(tmp_path).state_dict()
    for names in (["lm_head"], ["decoder.embed_tokens", "encoder.embed_tokens", "lm_head"]):
        copies = {f"{name}.weight": shared.clone() for name in names}
        save_file({**tensors, **copies}, tmp_path / WEIGHTS)
        model = load_model(tmp_path)
        assert model.head is not None
        assert model.head.weight is model.embedding.weight
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, expected[name])


def test_a_head_that_differs_is_one_of_its_own(tmp_path: Path) -> None:
    tensors = saved("t5", tmp_path)
    head = torch.randn(50, 24)
    save_file({**tensors, "lm_head.weight": head}, tmp_path / WEIGHTS)
    model = load_model(tmp_path)
    assert model.config == replace(shape("t5"), tie_embeddings=False)
    assert model.head is not None
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.embedding.weight, tensors["shared.weight"])


def test_an_encoder_with_an_embedding_of_its_own_is_refused(tmp_path: Path) -> None:
    other = {"encoder.embed_tokens.weight": torch.randn(50, 24)}
    save_file({**saved("t5", tmp_path), **other}, tmp_path / WEIGHTS)
    with pytest.raises(ArtifactError, match=r"encoder\.embed_tokens\.weight .* differ"):
        load_model(tmp_path)


def test_what_older_t5_configs_leave_out_is_known() -> None:
    data = write_config(shape("t5 v1.1"), stop_id=1, pad_id=0, dtype="float32")
    for name in ("scale_decoder_outputs", "relative_attention_max_distance", "n_positions"):
        del data[name]
    assert read_config(data).logit_scale == 1.0
    assert read_config(data).context_length == 512
    del data["tie_word_embeddings"], data["feed_forward_proj"], data["num_decoder_layers"]
    config = read_config(data)
    assert (config.tie_embeddings, config.logit_scale) == (True, 24**-0.5)
    assert (config.activation, config.gated, config.num_layers) == ("relu", False, 1)


@pytest.mark.parametrize(
    ("case", "entry"),
    [
        ("t5", {"feed_forward_proj": "gated-relu"}),
        ("bart", {"normalize_before": True}),
        ("bart", {"activation_function": "relu"}),
        ("whisper", {"scale_embedding": True}),
        ("whisper", {"is_encoder_decoder": False}),
    ],
)
def test_what_is_computed_otherwise_is_refused(case: str, entry: dict[str, Any]) -> None:
    data = write_config(shape(case), stop_id=1, pad_id=0, dtype="float32") | entry
    with pytest.raises(ArtifactError, match=f"{next(iter(entry))} .* cannot be opened"):
        read_config(data)
