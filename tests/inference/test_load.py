"""A folder becomes a model one can talk to, or one line that says why not."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from zlib import compress, crc32

import pytest
import torch

from lmloop.errors import ArtifactError, CorpusError, TokenizerError, UsageError
from lmloop.inference.load import load, load_tokenizer
from lmloop.model.config import Picture
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
        assert load_tokenizer(path).definition == model.require_tokenizer().definition


def test_a_gguf_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none\.gguf is no file"):
        load(tmp_path / "none.gguf")


def test_a_model_that_does_not_hear_says_so(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not hear: name a Whisper"):
        load(model_folder).transcribe(tmp_path / "speech.wav")


@pytest.fixture
def seeing_folder(model_folder: Path, tmp_path: Path) -> Path:
    """A random model that sees 6 pixels of gray on each side."""
    sizes = {"vocab_size": 340, "family": "lmloop"}
    picture = Picture(size=6, patch=2, channels=1)
    encoder = tiny_shape(**sizes, causal=False, head="none", picture=picture)
    shape = tiny_shape(**sizes, encoder=encoder, tie_embeddings=False, positions="learned")
    shutil.copytree(model_folder, tmp_path / "seeing")
    save_model(random_model(shape), tmp_path / "seeing", stop_id=1, document_id=0)
    return tmp_path / "seeing"


def write_png(path: Path, gray: list[list[int]]) -> Path:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data))

    head = struct.pack(">IIBBBBB", len(gray[0]), len(gray), 8, 0, 0, 0, 0)
    lines = compress(b"".join(b"\0" + bytes(line) for line in gray))
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path


def test_a_picture_is_put_into_words(seeing_folder: Path, tmp_path: Path) -> None:
    gray = [[40 * row + column for column in range(6)] for row in range(6)]
    path = write_png(tmp_path / "picture.png", gray)
    rules = {"image_mean": [0.2], "image_std": [0.4], "size": {"height": 6, "width": 6}}
    (seeing_folder / "preprocessor_config.json").write_text(json.dumps(rules))
    model = load(seeing_folder, dtype=torch.float32)
    tokenizer = model.require_tokenizer()
    picture = ((torch.tensor(gray) / 255 - 0.2) / 0.4)[None, None]
    for prompt in ("", "where is the sea?"):
        ids = [0, *tokenizer.encode(prompt)]
        for _ in range(5):
            with torch.no_grad():
                source = model.transformer.read(picture)
                logits = model.transformer(torch.tensor([ids]), source=source)[0, -1]
            ids.append(int(logits.argmax()))
        said = ids[-5:]
        stop = tokenizer.stop_ids[0]
        expected = tokenizer.decode(said[: [*said, stop].index(stop)]).strip()
        assert model.caption(path, prompt=prompt, max_tokens=5) == expected


def test_what_cannot_be_captioned_says_why(
    seeing_folder: Path, model_folder: Path, tmp_path: Path
) -> None:
    path = write_png(tmp_path / "picture.png", [[0, 1], [2, 3]])
    with pytest.raises(ArtifactError, match="does not see: name a pair"):
        load(model_folder).caption(path)
    model = load(seeing_folder)
    with pytest.raises(CorpusError, match=r"none\.png is no file"):
        model.caption(tmp_path / "none.png")
    with pytest.raises(UsageError, match="fewer than 64 leave room"):
        model.caption(path, prompt="sea " * 100)
    with pytest.raises(ArtifactError, match="writes no answer to a text"):
        model.answer(["sea"])
    (seeing_folder / "preprocessor_config.json").write_text('{"resample": 3}')
    with pytest.raises(ArtifactError, match=r"preprocessor_config\.json .* resample is 3"):
        load(seeing_folder).caption(path)


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


def test_the_tokenizer_of_a_folder_is_opened_without_its_weights(
    model_folder: Path, tmp_path: Path
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model_folder / name, tmp_path)
    assert load_tokenizer(tmp_path).vocab_size == load_tokenizer(model_folder).vocab_size
    with pytest.raises(TokenizerError, match="has no tokenizer"):
        load_tokenizer(tmp_path / "nowhere")
