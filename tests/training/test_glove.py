"""GloVe: right gradients, pair by pair as the published program, planted structure, same bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from lmloop.errors import TrainingError
from lmloop.progress import Silent, Task
from lmloop.tokens.cooccurrences import count_cooccurrences
from lmloop.tokens.vectors import WordVectors
from lmloop.tokens.words import WordStream, index_words
from lmloop.training import glove as module
from lmloop.training.glove import GloveOptions, glove_gradients, train_glove

from ..reference.glove import fit_pairs
from .conftest import CLASSES, make_class_language, make_grid_language

OPTIONS = GloveOptions(dimensions=6, window=2, epochs=25, batch_pairs=8)


def draw_doubles(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_glove_gradients_are_those_of_autograd() -> None:
    left = draw_doubles(7, 5, seed=0).requires_grad_()
    right = draw_doubles(7, 5, seed=1).requires_grad_()
    logs, shares = draw_doubles(7, seed=2), draw_doubles(7, seed=3).abs()
    products = (left[:, :4] * right[:, :4]).sum(1)
    errors = products + left[:, 4] + right[:, 4] - logs
    expected = (shares * errors.square() / 2).sum()
    expected.backward()
    towards_left, towards_right, loss = glove_gradients(
        left.detach().numpy(), right.detach().numpy(), logs=logs.numpy(), shares=shares.numpy()
    )
    np.testing.assert_allclose(towards_left, left.grad, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(towards_right, right.grad, rtol=1e-12, atol=1e-12)
    assert loss == pytest.approx(expected.item(), rel=1e-12)


def fit_reference(
    stream: WordStream, options: GloveOptions, *, seed: int
) -> tuple[np.ndarray, list[float]]:
    """The vectors that the oracle gets from the same start and order, and its losses."""
    met = count_cooccurrences(stream, window=options.window)
    draw, size = np.random.default_rng(seed), len(stream.words)
    table = draw.random((2 * size, options.dimensions + 1), dtype=np.float32) - np.float32(0.5)
    table = (table / (options.dimensions + 1)).astype(np.float64)
    squares, losses = np.ones_like(table), []
    pairs = list(zip(met.rows.tolist(), (met.columns + size).tolist(), met.weights, strict=True))
    for _ in range(options.epochs):
        order = draw.permutation(len(pairs))
        losses.append(
            fit_pairs(
                table,
                squares,
                (pairs[number] for number in order),
                rate=options.learning_rate,
                largest_weight=options.largest_weight,
                power=options.weight_power,
            )
            / len(pairs)
        )
    return table[:size, :-1] + table[size:, :-1], losses


def test_pair_by_pair_the_vectors_are_those_of_the_published_program() -> None:
    stream = make_class_language(count=60)
    options = replace(OPTIONS, epochs=3, batch_pairs=1, largest_weight=3.0)
    expected, _ = fit_reference(stream, options, seed=5)
    found = train_glove(stream, options=options, seed=5)
    np.testing.assert_allclose(found.matrix, expected, rtol=1e-4, atol=1e-5)


class Notes(Silent):
    """Progress that remembers the notes of its tasks."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def update(self, done: float, *, note: str = "") -> None:
        if note and note not in self.notes:
            self.notes.append(note)

    @contextmanager
    def task(self, name: str, *, total: float | None, unit: str) -> Iterator[Task]:
        yield self


def test_the_loss_falls_in_batches_as_it_does_pair_by_pair() -> None:
    stream = make_class_language(count=400)
    options = replace(OPTIONS, epochs=8, batch_pairs=64)
    progress = Notes()
    train_glove(stream, options=options, seed=0, progress=progress)
    losses = [float(note.removeprefix("loss ")) for note in progress.notes]
    _, expected = fit_reference(stream, options, seed=0)
    assert losses == sorted(losses, reverse=True)
    assert losses == pytest.approx(expected[:-1], rel=0.1)


def test_pairs_above_the_largest_weight_weigh_one() -> None:
    stream = index_words([["a", "b"]] * 200 + [["a", "c"]] * 25, min_count=1)
    met = count_cooccurrences(stream, window=1)
    options = GloveOptions(largest_weight=100.0)
    (batch,) = module._shuffled_batches(met, options, np.random.default_rng(0), size=3)
    assert sorted(batch.shares.tolist()) == pytest.approx([0.25**0.75] * 2 + [1, 1])


def train(stream: WordStream, *, seed: int = 0) -> WordVectors:
    return train_glove(stream, options=OPTIONS, seed=seed)


def test_words_of_a_class_are_each_others_neighbours() -> None:
    vectors = train(make_class_language(count=3000))
    for words in CLASSES.values():
        for word in words:
            # The words that they take are near as well; only those of a class are compared.
            nearest = [near for near, _ in vectors.nearest(word, 40) if "-" not in near]
            assert set(nearest[:5]) == set(words) - {word}


def test_a_planted_analogy_is_recovered() -> None:
    vectors = train(make_grid_language(count=6000))
    for one in range(4):
        for other in range(4):
            if one != other:
                asked = (f"cell0{one}", f"cell1{one}", f"cell0{other}")
                # The words beside it are near as well; only cells are compared.
                found = [word for word, _ in vectors.analogy(*asked, k=20) if "cell" in word]
                assert found[0] == f"cell1{other}"


def test_the_same_seed_gives_the_same_bits_and_another_one_others() -> None:
    stream = make_class_language(count=100)
    first, second, third = (train(stream, seed=seed) for seed in (1, 1, 2))
    assert first.words == stream.words
    assert first.matrix.tobytes() == second.matrix.tobytes()
    assert first.matrix.tobytes() != third.matrix.tobytes()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"epochs": -1}, "epochs is -1"),
        ({"largest_weight": float("inf")}, "largest_weight is inf"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, float], complaint: str) -> None:
    with pytest.raises(TrainingError, match=complaint):
        replace(OPTIONS, **changes)


def test_what_cannot_be_trained_on_is_refused() -> None:
    with pytest.raises(TrainingError, match="1 word tell nothing"):
        train(index_words([["a", "a"]], min_count=1))
    with pytest.raises(TrainingError, match="no two words stand in one sentence"):
        train(index_words([["a"], ["b"]], min_count=1))
