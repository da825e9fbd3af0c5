"""Nats of documents: every target once, and the same as one token at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmloop.inference import score
from lmloop.inference.score import cut_windows, score_windows, token_nats
from lmloop.model.transformer import Transformer

from ..conftest import random_model, tiny_shape


@pytest.fixture(scope="module")
def model() -> Transformer:
    return random_model(tiny_shape()).eval()


def draw_documents(*lengths: int) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 50, length) for length in lengths]


@given(lengths=st.lists(st.integers(2, 60), min_size=1, max_size=5), context=st.integers(1, 20))
def test_every_target_counts_exactly_once_with_at_least_half_a_context(
    lengths: list[int], context: int
) -> None:
    counted: list[list[int]] = [[] for _ in lengths]
    documents = [np.arange(length) for length in lengths]
    for window in cut_windows(documents, context_length=context):
        assert 2 <= len(window.ids) <= context + 1
        begin = int(window.ids[0])
        assert window.ids.tolist() == list(range(begin, begin + len(window.ids)))
        targets = window.ids[1:].tolist()[window.first :]
        assert targets
        counted[window.document] += targets
        # What is counted in a later window has at least half a context in front of it.
        if begin:
            assert window.first + 1 >= context / 2
    assert counted == [list(range(1, length)) for length in lengths]


def test_a_document_of_one_id_has_no_window() -> None:
    assert list(cut_windows([np.array([3]), np.array([], dtype=np.int64)], context_length=4)) == []


def naive_nats(model: Transformer, ids: list[int], context: int) -> list[float]:
    """One forward a target, each with the context that its window gives it."""
    nats = []
    for window in cut_windows([np.array(ids)], context_length=context):
        for place in range(window.first, len(window.ids) - 1):
            past = torch.tensor([window.ids[: place + 1].tolist()])
            logits = model(past)[0, -1].double()
            nats.append(float(logits.logsumexp(0) - logits[window.ids[place + 1]]))
    return nats


@torch.no_grad()
def test_windows_together_equal_one_token_at_a_time(model: Transformer) -> None:
    documents = draw_documents(2, 9, 25, 3, 40)
    windows = list(cut_windows(documents, context_length=12))
    nats = score_windows(model, windows)
    for number, ids in enumerate(documents):
        own = [
            value for window, value in zip(windows, nats, strict=True) if window.document == number
        ]
        expected = naive_nats(model, ids.tolist(), 12)
        assert len(expected) == len(ids) - 1
        assert sum(own) == pytest.approx(sum(expected), rel=1e-5)


@pytest.mark.parametrize("at_once", [1, 13, 30, 10_000])
def test_the_size_of_a_batch_changes_nothing(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    windows = list(cut_windows(draw_documents(5, 30, 2, 17, 9), context_length=12))
    expected = score_windows(model, windows)
    monkeypatch.setattr(score, "TOKENS_AT_ONCE", at_once)
    assert score_windows(model, windows) == pytest.approx(expected, rel=1e-5)


def test_no_windows_are_no_nats(model: Transformer) -> None:
    assert score_windows(model, []) == []


def test_many_targets_are_projected_in_parts(model: Transformer) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2500, model.config.hidden_size, generator=generator)
    targets = torch.randint(0, 50, (2500,), generator=generator)
    expected = torch.nn.functional.cross_entropy(model.project(hidden), targets, reduction="none")
    torch.testing.assert_close(token_nats(model, hidden, targets), expected)
    assert token_nats(model, hidden[:0], targets[:0]).shape == (0,)


def test_a_model_without_an_opinion_needs_the_logarithm_of_the_vocabulary() -> None:
    model = Transformer(tiny_shape())
    torch.nn.init.zeros_(model.embedding.weight)
    windows = list(cut_windows(draw_documents(11), context_length=64))
    assert score_windows(model, windows) == pytest.approx([10 * math.log(50)])
