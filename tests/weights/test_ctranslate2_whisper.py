"""Whisper out of CTranslate2's files: each tensor under its name, and nothing guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmloop.errors import ArtifactError
from lmloop.weights.ctranslate2 import CTranslate2File, open_ctranslate2
from lmloop.weights.ctranslate2_whisper import (
    read_whisper_config,
    read_whisper_tensors,
    their_names,
)

from .ctranslate2_made import draw_whisper, write_model

TIED = ("decoder/projection/weight", "decoder/embeddings/weight")


def make(folder: Path, *, tied: bool = True, **changes: Any) -> CTranslate2File:
    """A small Whisper with some variables changed, or gone (None); `__` stands for the slash."""
    values = draw_whisper() | {name.replace("__", "/"): each for name, each in changes.items()}
    kept = {name: each for name, each in values.items() if each is not None}
    return open_ctranslate2(write_model(folder / "model.bin", kept, *([TIED] if tied else [])))


def test_the_config_follows_from_the_shapes(tmp_path: Path) -> None:
    settings = {"suppress_ids": [1, 39], "suppress_ids_begin": [3], "lang_ids": [7]}
    config = read_whisper_config(make(tmp_path), settings)
    assert config == {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "vocab_size": 40,
        "d_model": 8,
        "num_mel_bins": 5,
        "max_source_positions": 6,
        "max_target_positions": 7,
        "activation_function": "gelu",
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "is_encoder_decoder": True,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "pad_token_id": 50256,
        "decoder_start_token_id": 50257,
        "suppress_tokens": [1, 39],
        "begin_suppress_tokens": [3],
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 12,
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 12,
    }


def test_a_vocabulary_of_many_languages_has_its_special_tokens_one_later(tmp_path: Path) -> None:
    many = make(tmp_path, decoder__embeddings__weight=np.zeros((51865, 1), np.float32))
    config = read_whisper_config(many, {})
    assert (config["eos_token_id"], config["decoder_start_token_id"]) == (50257, 50258)


def test_rows_of_one_tensor_become_queries_keys_and_values(tmp_path: Path) -> None:
    drawn, tensors = draw_whisper(), read_whisper_tensors(make(tmp_path))
    for side in ("encoder", "decoder"):
        rows = torch.from_numpy(drawn[f"{side}/layer_0/self_attention/linear_0/weight"])
        for place, name in enumerate("qkv"):
            got = tensors[f"model.{side}.layers.0.self_attn.{name}_proj.weight"]
            assert torch.equal(got, rows[8 * place : 8 * place + 8])
    bias = torch.from_numpy(drawn["decoder/layer_0/attention/linear_1/bias"])
    assert torch.equal(tensors["model.decoder.layers.0.encoder_attn.v_proj.bias"], bias[8:])
    assert not [name for name in tensors if "k_proj.bias" in name]


def test_every_other_variable_gets_one_name() -> None:
    assert their_names("encoder/conv1/weight") == ("model.encoder.conv1.weight",)
    assert their_names("decoder/embeddings/weight") == ("model.decoder.embed_tokens.weight",)
    encodings = their_names("encoder/position_encodings/encodings")
    assert encodings == ("model.encoder.embed_positions.weight",)
    layer = "decoder/layer_12"
    assert their_names(f"{layer}/ffn/linear_1/bias") == ("model.decoder.layers.12.fc2.bias",)
    assert their_names(f"{layer}/attention/layer_norm/gamma") == (
        "model.decoder.layers.12.encoder_attn_layer_norm.weight",
    )
    for unknown in ("other/conv1/weight", "encoder/conv3/weight", "encoder/conv1/gold", ""):
        assert their_names(unknown) == ()


def test_a_head_of_its_own_is_kept(tmp_path: Path) -> None:
    head = np.ones((40, 8), np.float16)
    file = make(tmp_path, tied=False, decoder__projection__weight=head)
    assert read_whisper_config(file, {})["tie_word_embeddings"] is False
    assert read_whisper_tensors(file)["proj_out.weight"].sum() == 320
    assert "proj_out.weight" not in read_whisper_tensors(make(tmp_path))


def test_weights_of_8_bits_are_unfolded(tmp_path: Path) -> None:
    name = "encoder/layer_0/ffn/linear_1/weight"
    changes: dict[str, Any] = {
        name: np.full((8, 12), 6, np.int8),
        f"{name}_scale": np.arange(1, 9, dtype=np.float32),
    }
    tensor = read_whisper_tensors(make(tmp_path, **changes), dtype=torch.bfloat16)[
        "model.encoder.layers.0.fc2.weight"
    ]
    assert tensor.dtype == torch.bfloat16
    assert tensor[:, 0].float().tolist()[:3] == [6, 3, 2]


BAD_SHAPES: dict[str, tuple[dict[str, Any], str]] = {
    "another activation": ({"decoder__activation": np.array(0, np.int8)}, "activation is not 3"),
    "no embedding": ({"decoder__embeddings__weight": None}, "no decoder/embeddings/weight of 2"),
    "flat positions": (
        {"encoder__position_encodings__encodings": np.zeros(3, np.float32)},
        "no encoder/position_encodings/encodings of 2 axes",
    ),
    "no heads": ({"encoder__num_heads": None}, "no variable 'encoder/num_heads'"),
}


@pytest.mark.parametrize("fault", BAD_SHAPES)
def test_a_file_that_is_no_whisper_is_refused(tmp_path: Path, fault: str) -> None:
    changes, why = BAD_SHAPES[fault]
    with pytest.raises(ArtifactError, match=why):
        read_whisper_config(make(tmp_path, tied=fault != "no embedding", **changes), {})


def test_another_specification_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.bin", {}, specification="TransformerSpec")
    with pytest.raises(ArtifactError, match="is a 'TransformerSpec': 'WhisperSpec' is read"):
        read_whisper_config(open_ctranslate2(path), {})


BAD_TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown names": (
        {"encoder__new": np.ones(1, np.float32), "x__weight_scale": np.ones(1, np.float32)},
        r"is no Whisper: it has \['encoder/new', 'x/weight_scale'\]",
    ),
    "rows that cannot be shared": (
        {"encoder__layer_0__self_attention__linear_0__weight": np.ones((10, 8), np.float32)},
        "linear_0/weight does not have 3 parts",
    ),
    "no rows": ({"encoder__conv1__bias": np.array(1, np.float32)}, "does not have 1 parts"),
    "a bias of the keys": (
        {"encoder__layer_0__self_attention__linear_0__bias": np.ones(24, np.float32)},
        "linear_0/bias gives the keys a bias",
    ),
}


@pytest.mark.parametrize("fault", BAD_TENSORS)
def test_tensors_that_are_not_whispers_are_refused(tmp_path: Path, fault: str) -> None:
    changes, why = BAD_TENSORS[fault]
    with pytest.raises(ArtifactError, match=why):
        read_whisper_tensors(make(tmp_path, **changes))


@pytest.mark.parametrize("ids", [[40], [-1], ["a"], [True], "abc", 7])
def test_settings_that_name_no_tokens_are_refused(tmp_path: Path, ids: Any) -> None:
    with pytest.raises(ArtifactError, match="suppress_ids is .*: ids of the vocabulary"):
        read_whisper_config(make(tmp_path), {"suppress_ids": ids})
