"""A model that begins with bigrams says what the counts say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lmloop.errors import TrainingError
from lmloop.model.config import ModelConfig
from lmloop.model.init import initialise
from lmloop.model.transformer import Transformer
from lmloop.training.bigrams import SMOOTHING, begin_with_bigrams, count_pairs


def make_model(*, vocab_size: int, width: int, tied: bool = False) -> Transformer:
    config = ModelConfig(
        vocab_size=vocab_size,
        num_layers=2,
        hidden_size=width,
        num_heads=2,
        num_kv_heads=2,
        head_dim=width // 2,
        intermediate_size=2 * width,
        context_length=16,
        tie_embeddings=tied,
    )
    model = Transformer(config)
    initialise(model, seed=0)
    return model.eval()


def draw_chain(vocab_size: int, length: int) -> np.ndarray:
    """A text in which each token is mostly followed by the same one."""
    draw = np.random.default_rng(0)
    followers = draw.permutation(vocab_size)
    ids = [0]
    for _ in range(length - 1):
        likely = draw.random() < 0.8
        ids.append(int(followers[ids[-1]]) if likely else int(draw.integers(vocab_size)))
    return np.array(ids)


def smoothed(ids: np.ndarray, vocab_size: int) -> torch.Tensor:
    counts = np.zeros((vocab_size, vocab_size))
    np.add.at(counts, (ids[:-1], ids[1:]), 1)
    frequency = np.bincount(ids, minlength=vocab_size) + 0.5
    chances = frequency / frequency.sum()
    total = counts.sum(1, keepdims=True)
    return torch.from_numpy((counts + SMOOTHING * chances) / (total + SMOOTHING)).float()


def test_pairs_are_counted_by_hand() -> None:
    rows, columns, counts = count_pairs(np.array([1, 2, 1, 2, 0]), vocab_size=3)
    assert list(zip(rows, columns, counts, strict=True)) == [(1, 2, 2), (2, 0, 1), (2, 1, 1)]


def test_wide_enough_it_predicts_the_smoothed_bigrams_themselves() -> None:
    vocab_size = 24
    ids = draw_chain(vocab_size, 4000)
    model = make_model(vocab_size=vocab_size, width=32)
    begin_with_bigrams(model, ids, seed=0)
    with torch.no_grad():
        tokens = torch.arange(vocab_size)[:, None]
        found = model(tokens)[:, 0].softmax(-1)
    expected = smoothed(ids, vocab_size)
    # States of tokens whose followers are very certain are cut to the length of the others.
    divergence = (expected * (expected.log() - found.log())).sum(-1)
    assert divergence.median() < 0.01
    assert divergence.max() < 0.2


def test_a_narrow_model_is_between_frequencies_and_bigrams() -> None:
    vocab_size = 96
    ids = draw_chain(vocab_size, 20_000)
    model = make_model(vocab_size=vocab_size, width=32)
    begin_with_bigrams(model, ids, seed=0)
    with torch.no_grad():
        logits = model(torch.from_numpy(ids[:-1])[:, None])[:, 0]
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(ids[1:]))
    best = -smoothed(ids, vocab_size)[ids[:-1], ids[1:]].log().mean()
    frequency = np.bincount(ids, minlength=vocab_size) / len(ids)
    worst = float(-(frequency * np.log(frequency)).sum())
    assert best < loss < best + 0.75 * (worst - best)


def test_every_state_has_the_length_that_norms_leave() -> None:
    model = make_model(vocab_size=64, width=16)
    begin_with_bigrams(model, draw_chain(64, 2000), seed=0)
    sizes = model.embedding.weight.square().mean(1)
    torch.testing.assert_close(sizes, torch.ones(64), rtol=1e-4, atol=1e-4)


def test_the_same_seed_and_text_make_the_same_model() -> None:
    ids, models = draw_chain(64, 2000), [make_model(vocab_size=64, width=16) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        begin_with_bigrams(model, ids, seed=seed)
    first, second, other = (model.head.weight for model in models)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_text_of_one_pair_is_no_trouble() -> None:
    model = make_model(vocab_size=64, width=16)
    begin_with_bigrams(model, np.array([3, 4]), seed=0)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_tied_matrices_are_refused() -> None:
    with pytest.raises(TrainingError, match="head beside the embedding"):
        begin_with_bigrams(
            make_model(vocab_size=64, width=16, tied=True), draw_chain(64, 100), seed=0
        )
