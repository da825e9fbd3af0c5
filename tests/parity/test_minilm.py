"""all-MiniLM-L6-v2 as pulled: the same vectors as sentence-transformers."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

import lmloop
from lmloop.inference.embedding import write_embedding
from lmloop.inference.load import LoadedModel, load
from lmloop.weights.checkpoint import save_model

pytestmark = pytest.mark.slow

PHRASES = (
    *("The cat sits outside", "A man is playing guitar", "I love pasta!", "E = mc^2", "naïve café"),
    *(
        "今天天气很好，我们去公园吧。",
        "機械学習 is fun",
        "Привет, мир",
        "مرحبا بالعالم",
        "한국어 문장입니다",
    ),
    *(
        "🙂👩‍👩‍👧‍👦🐢",
        "tabs\tand\nnewlines\r\n",
        "a" * 150,
        "x",
        "   ",
        "...",
        "#!/bin/sh -e",
        "\u200d\ufeff",
    ),
)


def make_texts() -> list[str]:
    """More than a hundred: each phrase, mixtures, empty ones and very long ones."""
    generator = random.Random(0)
    mixed = [" ".join(generator.choices(PHRASES, k=generator.randint(1, 30))) for _ in range(100)]
    long = ["word " * 5000, "很长的文章" * 1000, " ".join(PHRASES) * 40]
    return ["", *PHRASES, *mixed, *long, ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lmloop.pull("all-minilm-l6-v2", home=tmp_path_factory.mktemp("home")).path


@pytest.fixture(scope="module")
def ours(folder: Path) -> LoadedModel:
    return load(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def sentence_transformers() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sentence_transformers

        return sentence_transformers


def embed(sentence_transformers: Any, folder: Path, texts: list[str]) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
        return model.encode(texts, convert_to_tensor=True, show_progress_bar=False)


def test_vectors_are_those_of_sentence_transformers(
    sentence_transformers: Any, folder: Path, ours: LoadedModel
) -> None:
    texts = make_texts()
    found, expected = ours.embed(texts), embed(sentence_transformers, folder, texts)
    assert found.shape == (len(texts), 384)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= 1e-5
    alone = torch.cat([ours.embed([text]) for text in texts[:5]])
    torch.testing.assert_close(alone, found[:5], rtol=0, atol=1e-6)


def test_what_we_save_sentence_transformers_opens(
    sentence_transformers: Any, tmp_path: Path, ours: LoadedModel
) -> None:
    save_model(ours.transformer, tmp_path, stop_id=102, document_id=0)
    ours.require_tokenizer().save(tmp_path)
    assert ours.embedding is not None
    write_embedding(tmp_path, ours.embedding, width=384)
    texts = make_texts()
    assert load(tmp_path).embedding == ours.embedding
    assert (embed(sentence_transformers, tmp_path, texts) - ours.embed(texts)).abs().max() <= 1e-5


def test_ids_are_those_of_the_tokenizer(folder: Path, ours: LoadedModel) -> None:
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.no_padding()
    texts = make_texts()
    for length in (256, 128, 12):
        theirs.enable_truncation(length)
        expected = [each.ids for each in theirs.encode_batch(texts)]
        assert ours.require_tokenizer().encode_inputs(texts, max_length=length) == expected
        assert ours.require_tokenizer().encode_inputs([], max_length=length) == []
