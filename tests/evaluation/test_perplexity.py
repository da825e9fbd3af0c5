"""Bits per byte: by hand, against a plain loop, and with the right bytes where text is left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from lmloop.errors import ArtifactError, CorpusError
from lmloop.evaluation import perplexity
from lmloop.evaluation.perplexity import (
    bits_per_byte_of,
    document_nats,
    measure_elsewhere,
    measure_prediction,
)
from lmloop.inference.load import LoadedModel
from lmloop.model.transformer import Transformer
from lmloop.progress import Silent
from lmloop.tokens.shards import Shards

from ..conftest import random_model, tiny_shape

DOCUMENT = 0


def shards_of(documents: Sequence[Sequence[int]], raw_bytes: Sequence[int]) -> Shards:
    starts = np.cumsum([0, *map(len, documents)])
    flat = np.array([token for document in documents for token in document], dtype=np.uint16)
    return Shards(
        tokens=[flat],
        answers=[np.zeros(len(flat), dtype=np.uint8)],
        starts=starts,
        document_bytes=np.array(raw_bytes, dtype=np.int64),
    )


def random_documents(*lengths: int) -> list[list[int]]:
    draw = np.random.default_rng(0)
    return [[DOCUMENT, *map(int, draw.integers(1, 50, size=length - 1))] for length in lengths]


def measure(model: Transformer, shards: Shards, *, max_tokens: int | None = None) -> float:
    return bits_per_byte_of(
        model, shards, document_id=DOCUMENT, context_length=16, max_tokens=max_tokens
    )


@pytest.fixture
def even_model() -> Transformer:
    """Finds each of its 50 tokens equally likely."""
    model = random_model(tiny_shape(tie_embeddings=False))
    torch.nn.init.zeros_(model.head.weight)
    return model


def test_a_model_that_knows_nothing_pays_log2_of_the_vocabulary_a_token(
    even_model: Transformer,
) -> None:
    # The first token is given; the document token behind the last is predicted: 5 + 3 tokens.
    shards = shards_of([[0, 1, 2, 3, 4], [0, 5, 6]], raw_bytes=[9, 7])
    assert measure(even_model, shards) == pytest.approx(8 * math.log2(50) / 16, rel=1e-6)


def test_only_the_bytes_of_the_documents_that_are_read_count(even_model: Transformer) -> None:
    shards = shards_of(random_documents(5, 3, 4), raw_bytes=[9, 7, 100])
    for max_tokens, documents, raw_bytes in [(5, 5, 9), (7, 5, 9), (8, 8, 16), (12, 12, 116)]:
        expected = documents * math.log2(50) / raw_bytes
        assert measure(even_model, shards, max_tokens=max_tokens) == pytest.approx(expected)


def test_a_first_document_that_is_too_long_is_read_all_the_same(even_model: Transformer) -> None:
    shards = shards_of(random_documents(5, 3), raw_bytes=[9, 7])
    assert measure(even_model, shards, max_tokens=2) == pytest.approx(5 * math.log2(50) / 9)


@torch.no_grad()
def plain_nats(model: Transformer, ids: Sequence[int], *, context_length: int) -> float:
    """One forward a token: what stands before it in the first window that holds it."""
    ids = [*ids, DOCUMENT]
    total = 0.0
    for target in range(1, len(ids)):
        start = 0
        while start + context_length < target:
            start += context_length // 2
        logits = model(torch.tensor([ids[start:target]]))[0, -1].double()
        total += float(logits.logsumexp(-1) - logits[ids[target]])
    return total


def test_nats_equal_those_of_one_forward_a_token() -> None:
    model = random_model(tiny_shape())
    documents = random_documents(2, 15, 16, 17, 18, 40, 61)
    shards = shards_of(documents, raw_bytes=[1] * len(documents))
    nats = document_nats(model, shards, document_id=DOCUMENT, context_length=16)
    expected = [plain_nats(model, each, context_length=16) for each in documents]
    np.testing.assert_allclose(nats, expected, rtol=1e-5)


@pytest.mark.parametrize("tokens_at_once", [1, 20, 45, 1000])
def test_it_does_not_matter_how_documents_are_grouped(
    monkeypatch: pytest.MonkeyPatch, tokens_at_once: int
) -> None:
    model = random_model(tiny_shape())
    shards = shards_of(random_documents(9, 20, 3, 30, 12), raw_bytes=[1] * 5)
    whole = document_nats(model, shards, document_id=DOCUMENT, context_length=16)
    monkeypatch.setattr(perplexity, "TOKENS_AT_ONCE", tokens_at_once)
    grouped = document_nats(model, shards, document_id=DOCUMENT, context_length=16)
    np.testing.assert_allclose(grouped, whole, rtol=1e-6)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(CorpusError, match="no document"):
        measure(random_model(tiny_shape()), shards_of([], raw_bytes=[]))


def test_the_metric_has_an_interval_and_the_bases_figure(
    loaded: LoadedModel, shards_folder: Path
) -> None:
    shards = Shards.open(shards_folder, "heldout")
    base = replace(loaded, transformer=random_model(loaded.config, seed=1))
    metric, arithmetic = measure_prediction(loaded, base, shards, seed=0, progress=Silent())
    assert metric.value is not None and metric.interval is not None
    assert metric.interval[0] < metric.value < metric.interval[1]
    assert metric.base is not None and metric.base != metric.value
    # In fp32 the check repeats the measurement.
    assert arithmetic == {
        "dtype": "float32",
        "documents_checked": shards.num_documents,
        "bits_per_byte_minus_float32": 0.0,
    }
    alone, _ = measure_prediction(loaded, None, shards, seed=0, progress=Silent())
    assert (alone.base, alone.interval) == (None, metric.interval)


def test_faster_arithmetic_is_compared_with_fp32(loaded: LoadedModel, shards_folder: Path) -> None:
    shards = Shards.open(shards_folder, "heldout")
    exact, _ = measure_prediction(loaded, None, shards, seed=0, progress=Silent())
    rounded = random_model(loaded.config)
    rounded.load_state_dict(loaded.transformer.state_dict())
    model = replace(loaded, transformer=rounded.bfloat16())
    metric, arithmetic = measure_prediction(model, None, shards, seed=0, progress=Silent())
    assert arithmetic["dtype"] == "bfloat16"
    assert 0 < abs(arithmetic["bits_per_byte_minus_float32"]) < 0.1
    assert metric.value != exact.value
    assert metric.value == pytest.approx(exact.value, rel=0.02)


def test_a_model_without_finite_predictions_is_refused(
    loaded: LoadedModel, shards_folder: Path
) -> None:
    broken = random_model(loaded.config)
    with torch.no_grad():
        broken.norm.weight[3] = float("nan")
    model = replace(loaded, transformer=broken)
    shards = Shards.open(shards_folder, "heldout")
    with pytest.raises(ArtifactError, match="nothing finite .*lower learning rate"):
        measure_prediction(model, None, shards, seed=0, progress=Silent())


def test_other_text_is_measured_for_both_models_with_the_same_tokens(
    loaded: LoadedModel, shards_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perplexity, "OTHER_TOKENS", 100)
    shards = Shards.open(shards_folder, "heldout")
    base = replace(loaded, transformer=random_model(loaded.config, seed=1), tokenizer=None)
    work = partial(measure_elsewhere, "outside", shards=shards, seed=0, progress=Silent())
    metric, same = work(loaded, base), work(loaded, loaded)
    tokenizer = loaded.require_tokenizer()
    expected = [
        bits_per_byte_of(
            model.transformer,
            shards,
            document_id=tokenizer.document_id,
            context_length=loaded.config.context_length,
            max_tokens=100,
        )
        for model in (loaded, base)
    ]
    assert [metric.value, metric.base] == expected
    assert same.base == same.value == metric.value
    assert (metric.name, work(loaded, None).base) == ("outside_bits_per_byte", None)


def test_a_report_gives_no_more_context_than_its_longest_window(
    loaded: LoadedModel, shards_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perplexity, "LONGEST_WINDOW", 16)
    shards = Shards.open(shards_folder, "heldout")
    metric, _ = measure_prediction(loaded, None, shards, seed=0, progress=Silent())
    document_id = loaded.require_tokenizer().document_id
    expected = bits_per_byte_of(
        loaded.transformer, shards, document_id=document_id, context_length=16
    )
    assert metric.value == expected
