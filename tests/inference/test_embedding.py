"""Vectors of texts, and the files that say how they are made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lmloop.errors import ArtifactError, TokenizerError
from lmloop.inference.embedding import Embedding, read_embedding, write_embedding
from lmloop.inference.load import LoadedModel, load
from lmloop.model.config import ModelConfig
from lmloop.tokens.tokenizer import Tokenizer

from ..conftest import random_model, tiny_shape

TEXTS = ["do you like tea", "", "no", "火车 is late", "where is the sea? " * 30]


def encoder_of(tokenizer: Tokenizer) -> ModelConfig:
    return tiny_shape(vocab_size=tokenizer.vocab_size, causal=False, head="none", context_length=64)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> LoadedModel:
    return LoadedModel(random_model(encoder_of(tokenizer)), tokenizer, "unversioned")


@pytest.mark.parametrize("settings", [None, Embedding(pooling="last", normalise=True)])
def test_each_text_has_the_vector_that_it_has_alone(
    model: LoadedModel, settings: Embedding | None
) -> None:
    model = LoadedModel(model.transformer, model.tokenizer, "unversioned", settings)
    together = model.embed(TEXTS)
    assert together.shape == (5, 24)
    assert together.dtype == torch.float32
    for text, vector in zip(TEXTS, together, strict=True):
        torch.testing.assert_close(model.embed([text])[0], vector, rtol=1e-5, atol=1e-6)


def test_the_mean_of_the_last_states_is_the_usual_vector(model: LoadedModel) -> None:
    ids = torch.tensor([model.require_tokenizer().encode(TEXTS[0])])
    torch.testing.assert_close(model.embed(TEXTS[:1]), model.encode(ids).mean(1))


def test_texts_are_cut_where_the_settings_or_the_model_end(model: LoadedModel) -> None:
    tokenizer, text = model.require_tokenizer(), TEXTS[-1]
    ids = torch.tensor([tokenizer.encode(text)])
    assert ids.shape[1] > 64
    for length, settings in [(64, None), (5, Embedding(max_length=5))]:
        short = LoadedModel(model.transformer, tokenizer, "unversioned", settings)
        torch.testing.assert_close(short.embed([text]), model.encode(ids[:, :length]).mean(1))


def test_no_texts_have_no_vectors(model: LoadedModel) -> None:
    assert model.embed([]).shape == (0, 24)
    assert not model.embed(["", ""]).any()


def test_a_model_without_tokenizer_embeds_no_text(model: LoadedModel) -> None:
    with pytest.raises(TokenizerError, match="it takes ids only"):
        LoadedModel(model.transformer, None, "unversioned").embed(["no"])


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("length", [None, 16])
def test_settings_come_back_as_they_were(
    tmp_path: Path, pooling: Any, normalise: bool, length: int | None
) -> None:
    settings = Embedding(pooling=pooling, normalise=normalise, max_length=length)
    write_embedding(tmp_path, settings, width=24)
    assert read_embedding(tmp_path) == settings


def test_the_files_say_how_a_folder_embeds(model_folder: Path, tmp_path: Path) -> None:
    assert load(model_folder).embedding is None
    for path in model_folder.iterdir():
        if path.name != "manifest.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    write_embedding(tmp_path, Embedding(normalise=True), width=24)
    model = load(tmp_path, dtype=torch.bfloat16)
    assert model.embedding == Embedding(normalise=True)
    torch.testing.assert_close(model.embed(TEXTS[:1]).norm(dim=-1), torch.ones(1))


def test_the_newer_spelling_of_pooling_is_read(tmp_path: Path) -> None:
    write_embedding(tmp_path, Embedding(), width=24)
    told = {"embedding_dimension": 24, "pooling_mode": "lasttoken", "include_prompt": True}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(told))
    assert read_embedding(tmp_path) == Embedding(pooling="last")


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("modules.json", [{"type": "x.Transformer", "path": ""}], r"names \['Transformer'\]"),
        ("modules.json", {"type": 1}, "damaged"),
        (
            "modules.json",
            [{"type": "Transformer", "path": "0_T"}, {"type": "Pooling", "path": "1_Pooling"}],
            "must lie in the folder itself",
        ),
        (
            "modules.json",
            [{"type": "Transformer", "path": ""}, {"type": "Pooling", "path": "../1_Pooling"}],
            "must lie in the folder itself",
        ),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, r"pooling \['max'\]"),
        ("1_Pooling/config.json", {"pooling_mode": ["cls", "mean"]}, r"pooling \['cls', 'mean'\]"),
        ("1_Pooling/config.json", {}, r"pooling \[\]"),
        ("1_Pooling/config.json", 3, "damaged"),
        ("sentence_bert_config.json", {"max_seq_length": "long"}, "max_seq_length is 'long'"),
        ("sentence_bert_config.json", {"max_seq_length": 0}, "max_seq_length is 0"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case True"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "'query'"),
    ],
)
def test_files_that_say_something_else_are_refused(
    tmp_path: Path, name: str, data: Any, told: str
) -> None:
    write_embedding(tmp_path, Embedding(), width=24)
    (tmp_path / name).write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match=told):
        read_embedding(tmp_path)
