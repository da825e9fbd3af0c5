"""A folder becomes a model one can talk to, or one line that says why not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from lmloop.errors import ArtifactError, TokenizerError, UsageError
from lmloop.inference.load import load
from lmloop.model.hardware import fast_dtype
from lmloop.records import Turn
from lmloop.store.artifact import Artifact, ArtifactStore
from lmloop.weights.checkpoint import save_model
from lmloop.weights.gguf_writer import write_gguf

from ..conftest import random_model, tiny_shape
from ..tokens.test_gguf_vocabulary import metadata_of as vocabulary_of
from ..weights.test_gguf_decoder import metadata_of, tensors_of


@pytest.fixture
def artifact(model_folder: Path, tmp_path: Path) -> Artifact:
    with ArtifactStore(tmp_path).write("pretrain", "0" * 64) as draft:
        shutil.copytree(model_folder, draft.path, dirs_exist_ok=True)
        return draft.finish(
            kind="checkpoint",
            name="tiny",
            made_from=[],
            settings={},
            counts={},
            code_version="0",
            environment={},
            created=0.0,
        )


def test_model_tokenizer_and_template_are_bound(model_folder: Path) -> None:
    model = load(model_folder, dtype=torch.float32)
    assert model.fingerprint == "unversioned"
    assert model.config.vocab_size == model.require_tokenizer().vocab_size
    assert model.template.tokenizer is model.tokenizer
    logits = model(torch.tensor([[1, 2, 3], [4, 5, 6]]))
    assert logits.shape == (2, 3, model.config.vocab_size)
    assert not logits.requires_grad


def test_the_dtype_is_what_the_processor_computes_fastest(model_folder: Path) -> None:
    assert load(model_folder).transformer.embedding.weight.dtype == fast_dtype()


def test_a_folder_without_tokenizer_takes_ids_only(model_folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(model_folder / name, tmp_path / name)
    model = load(tmp_path, dtype=torch.float32)
    assert model(torch.tensor([[1]])).shape == (1, 1, model.config.vocab_size)
    for ask in (model.require_tokenizer, lambda: model.template):
        with pytest.raises(TokenizerError, match="takes ids only"):
            ask()


def test_an_artifact_is_verified_and_gives_its_fingerprint(artifact: Artifact) -> None:
    assert load(artifact.path).fingerprint == artifact.fingerprint


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_flipped_byte_is_refused_and_the_file_named(artifact: Artifact, file: str) -> None:
    path = artifact.path / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=f"{file} changed since it was written"):
        load(artifact.path)


def test_verification_can_be_left_out(artifact: Artifact) -> None:
    path = artifact.path / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert load(artifact.path, verify=False).fingerprint == artifact.fingerprint


def test_a_damaged_manifest_is_refused(artifact: Artifact) -> None:
    (artifact.path / "manifest.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged"):
        load(artifact.path)


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nowhere is no checkpoint"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_a_gguf_file_is_opened_with_the_tokenizer_it_holds(
    model_folder: Path, tmp_path: Path, with_tokenizer: bool
) -> None:
    folder = load(model_folder, dtype=torch.float32)
    metadata = metadata_of(folder.transformer)
    if with_tokenizer:
        metadata |= vocabulary_of(folder.require_tokenizer())
    path = tmp_path / "model.gguf"
    write_gguf(path, metadata=metadata, tensors=tensors_of(folder.transformer))
    model = load(path, dtype=torch.float32)
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(model(tokens), folder(tokens))
    assert (model.tokenizer is not None) == with_tokenizer
    if with_tokenizer:
        turns = [Turn("user", "where is the sea?")]
        assert model.template.encode(turns) == folder.template.encode(turns)


def test_a_gguf_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none\.gguf is no file"):
        load(tmp_path / "none.gguf")


def test_a_model_that_does_not_hear_says_so(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not hear: name a Whisper"):
        load(model_folder).transcribe(tmp_path / "speech.wav")


def test_an_encoder_decoder_answers_texts(model_folder: Path, tmp_path: Path) -> None:
    shape = tiny_shape(
        vocab_size=340,
        family="lmloop",
        encoder=tiny_shape(vocab_size=340, causal=False, head="none", family="lmloop"),
    )
    shutil.copytree(model_folder, tmp_path / "pair")
    save_model(random_model(shape), tmp_path / "pair", stop_id=1, document_id=0)
    model = load(tmp_path / "pair", dtype=torch.float32)
    texts = ["where is the sea?", "green tea"]
    together = model.answer(texts, max_tokens=6)
    assert together == [model.answer([text], max_tokens=6)[0] for text in texts]
    assert together[0] != together[1]
    tokenizer = model.require_tokenizer()
    ids = torch.tensor([tokenizer.encode(texts[0])])
    with torch.no_grad():
        first = model.transformer(torch.tensor([[0]]), source=model.transformer.read(ids))
    assert together[0].startswith(tokenizer.decode([int(first[0, -1].argmax())]))
    with pytest.raises(UsageError, match="text 1 is empty"):
        model.answer(["sea", ""])
    with pytest.raises(ArtifactError, match=r"use \.answer"):
        model(ids)
    with pytest.raises(ArtifactError, match="no encoder-decoder"):
        load(model_folder).answer(texts)
