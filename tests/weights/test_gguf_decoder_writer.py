"""Decoders into GGUF entries: the names, rows and types that llama.cpp expects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lmloop.errors import ArtifactError
from lmloop.model.rotary import RopeScaling
from lmloop.model.transformer import Transformer
from lmloop.weights.checkpoint import save_model
from lmloop.weights.gguf import open_gguf
from lmloop.weights.gguf_decoder import read_decoder
from lmloop.weights.gguf_decoder_writer import FILE_TYPES, describe_decoder, name_tensors
from lmloop.weights.gguf_writer import write_gguf
from lmloop.weights.stored import read_tensors

from ..conftest import tiny_shape
from .test_gguf_decoder import draw, metadata_of, tensors_of

TOKENS = torch.tensor([[1, 2, 3, 4, 5]])


def theirs_of(model: Transformer, folder: Path) -> dict[str, Tensor]:
    """The tensors as a Hugging Face folder names them."""
    save_model(model, folder, stop_id=0, document_id=1)
    return read_tensors(folder)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_names_rows_and_entries_are_the_converters(tmp_path: Path, family: str, tied: bool) -> None:
    model = draw(family, tie_embeddings=tied)
    named = name_tensors(model.config, theirs_of(model, tmp_path), weight_type="F32")
    expected = tensors_of(model)
    assert named.keys() == expected.keys()
    for name, (tensor, kind) in named.items():
        assert torch.equal(tensor, expected[name][0]), name
        assert kind == "F32"
    entries = describe_decoder(model.config, name="sea", weight_type="F32")
    assert metadata_of(model).items() <= entries.items()
    assert entries["general.name"] == "sea"


@torch.no_grad()
def test_mistral_is_written_as_llama_and_computes_the_same(tmp_path: Path) -> None:
    model = draw("mistral", tie_embeddings=False)
    write_gguf(
        tmp_path / "model.gguf",
        metadata=describe_decoder(model.config, name="sea", weight_type="F32"),
        tensors=name_tensors(model.config, theirs_of(model, tmp_path), weight_type="F32"),
    )
    again = read_decoder(open_gguf(tmp_path / "model.gguf"))
    assert again.config.family == "llama"
    assert torch.equal(again(TOKENS), model(TOKENS))


@pytest.mark.parametrize(
    ("weight_type", "hidden_size", "tied", "expected"),
    [
        ("F16", 24, True, {"token_embd": "F16", "attn_q": "F16", "ffn_down": "F16"}),
        ("BF16", 24, False, {"token_embd": "BF16", "output": "BF16", "ffn_down": "BF16"}),
        ("Q8_0", 24, True, {"token_embd": "F16", "attn_q": "F16", "ffn_down": "Q8_0"}),
        ("Q8_0", 32, False, {"token_embd": "Q8_0", "output": "Q8_0", "ffn_down": "Q8_0"}),
        ("Q4_0", 32, True, {"token_embd": "Q8_0", "attn_q": "Q4_0", "ffn_down": "Q4_0"}),
        ("Q4_0", 32, False, {"token_embd": "Q4_0", "output": "Q8_0", "ffn_down": "Q4_0"}),
        ("Q4_K", 256, True, {"token_embd": "Q8_0", "attn_q": "Q4_K", "ffn_down": "Q8_0"}),
        ("Q4_K", 24, False, {"token_embd": "F16", "output": "F16", "ffn_down": "Q8_0"}),
    ],
)
def test_each_matrix_has_the_type_that_its_rows_allow(
    tmp_path: Path, weight_type: str, hidden_size: int, tied: bool, expected: dict[str, str]
) -> None:
    shape = {"hidden_size": hidden_size, "intermediate_size": 64, "num_layers": 1}
    model = draw("qwen3", tie_embeddings=tied, **shape)
    tensors = name_tensors(model.config, theirs_of(model, tmp_path), weight_type=weight_type)
    found = {name.split(".")[-2]: kind for name, (_, kind) in tensors.items()}
    assert expected.items() <= found.items()
    assert {kind for name, kind in found.items() if name.endswith("norm")} == {"F32"}
    entries = describe_decoder(model.config, name="sea", weight_type=weight_type)
    assert entries["general.file_type"] == FILE_TYPES[weight_type]


@pytest.mark.parametrize(
    ("changes", "weight_type", "told"),
    [
        ({"int8": True}, "Q8_0", "8-bit weights would be rounded a second time"),
        ({"family": "gpt_neox"}, "Q8_0", "family 'gpt_neox' cannot be written.*'qwen3', 'mistral'"),
        ({}, "Q6_K", "type 'Q6_K' cannot be written: allowed are F32, F16, Q4_0"),
        (
            {"rope_scaling": RopeScaling(kind="yarn", factor=4.0)},
            "F16",
            "yarn scaling cannot be written",
        ),
    ],
)
def test_what_a_file_cannot_hold_is_refused(
    changes: dict[str, Any], weight_type: str, told: str
) -> None:
    with pytest.raises(ArtifactError, match=told):
        describe_decoder(tiny_shape(**changes), name="sea", weight_type=weight_type)
