"""Skip-gram and GloVe: right gradients, counts by hand, planted structure found, same bits."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from lmloop.errors import TrainingError
from lmloop.tokens.vectors import WordVectors
from lmloop.tokens.words import WordStream, index_words
from lmloop.training import vectors as module
from lmloop.training.vectors import (
    GloveOptions,
    SkipGramOptions,
    count_cooccurrences,
    glove_gradients,
    skip_gram_gradients,
    train_glove,
    train_skip_gram,
)

SKIP_GRAM = SkipGramOptions(
    dimensions=16, window=2, epochs=4, subsample=None, batch_places=32, learning_rate=0.05
)
GLOVE = GloveOptions(dimensions=16, window=2, epochs=25, batch_pairs=64)


def draw_doubles(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_skip_gram_gradients_are_those_of_autograd() -> None:
    around = draw_doubles(3, 4, 5, seed=0).requires_grad_()
    outputs = draw_doubles(3, 6, 5, seed=1).requires_grad_()
    counted = (draw_doubles(3, 4, seed=2) > -0.5).double()
    valid = (draw_doubles(3, 6, seed=3) > -0.5).double()
    loss = torch.zeros((), dtype=torch.float64)
    for b in range(3):
        for w in range(4):
            for k in range(6):
                sign = 1 if k == 0 else -1
                pair = logsigmoid(sign * around[b, w] @ outputs[b, k])
                loss = loss - counted[b, w] * valid[b, k] * pair
    loss.backward()
    with torch.no_grad():
        towards, away = skip_gram_gradients(around, outputs, counted=counted, valid=valid)
    torch.testing.assert_close(towards, around.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(away, outputs.grad, rtol=1e-12, atol=1e-12)


def test_the_glove_gradients_are_those_of_autograd() -> None:
    left = draw_doubles(7, 5, seed=0).requires_grad_()
    right = draw_doubles(7, 5, seed=1).requires_grad_()
    logs, shares = draw_doubles(7, seed=2), draw_doubles(7, seed=3).abs()
    products = (left[:, :4] * right[:, :4]).sum(1)
    errors = products + left[:, 4] + right[:, 4] - logs
    (shares * errors.square() / 2).sum().backward()
    with torch.no_grad():
        towards_left, towards_right = glove_gradients(left, right, logs=logs, shares=shares)
    torch.testing.assert_close(towards_left, left.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(towards_right, right.grad, rtol=1e-12, atol=1e-12)


def test_cooccurrences_weigh_one_over_their_distance() -> None:
    stream = index_words([["a", "b", "a", "c"], ["c", "a"]], min_count=1)
    rows, columns, weights = count_cooccurrences(stream, window=2)
    named = {
        (stream.words[row], stream.words[column]): weight
        for row, column, weight in zip(rows, columns, weights.tolist(), strict=True)
    }
    half = 1 / 2
    assert named == {
        ("a", "a"): 2 * half,  # from both sides
        ("a", "b"): 2.0,
        ("b", "a"): 2.0,
        ("a", "c"): 2.0,
        ("c", "a"): 2.0,
        ("b", "c"): half,
        ("c", "b"): half,
    }


def test_cooccurrences_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    sentences = [draw.choices("abcdef", k=draw.randrange(9)) for _ in range(40)]
    stream = index_words(sentences, min_count=1)
    whole = count_cooccurrences(stream, window=4)
    monkeypatch.setattr(module, "CHUNK_WORDS", 7)
    for one, other in zip(whole, count_cooccurrences(stream, window=4), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


CLASSES = {
    "animal": [f"animal{number}" for number in range(6)],
    "tool": [f"tool{number}" for number in range(6)],
    "town": [f"town{number}" for number in range(6)],
}


def make_class_language(*, count: int) -> WordStream:
    """Sentences in which every word of a class stands among the words that its class takes."""
    draw = random.Random(0)
    sentences = []
    for _ in range(count):
        kind = draw.choice(list(CLASSES))
        around = [f"{kind}-{side}{draw.randrange(4)}" for side in ("left", "right")]
        sentences.append([around[0], draw.choice(CLASSES[kind]), around[1]])
    return index_words(sentences, min_count=1)


def make_grid_language(*, count: int) -> WordStream:
    """A word of row r and column c stands beside words that tell r and words that tell c."""
    draw = random.Random(0)
    sentences = []
    for _ in range(count):
        row, column = draw.randrange(2), draw.randrange(4)
        beside = [f"row{row}-{draw.randrange(3)}", f"column{column}-{draw.randrange(3)}"]
        draw.shuffle(beside)
        sentences.append([beside[0], f"cell{row}{column}", beside[1]])
    return index_words(sentences, min_count=1)


def train(method: str, stream: WordStream, *, seed: int = 0) -> WordVectors:
    if method == "glove":
        return train_glove(stream, options=GLOVE, seed=seed)
    return train_skip_gram(stream, options=SKIP_GRAM, seed=seed)


@pytest.mark.parametrize("method", ["skip-gram", "glove"])
def test_words_of_a_class_are_each_others_neighbours(method: str) -> None:
    vectors = train(method, make_class_language(count=3000))
    for words in CLASSES.values():
        for word in words:
            # The words that they take are near as well; only those of a class are compared.
            nearest = [near for near, _ in vectors.nearest(word, 40) if "-" not in near]
            assert set(nearest[:5]) == set(words) - {word}


@pytest.mark.parametrize("method", ["skip-gram", "glove"])
def test_a_planted_analogy_is_recovered(method: str) -> None:
    vectors = train(method, make_grid_language(count=6000))
    for one in range(4):
        for other in range(4):
            if one != other:
                asked = (f"cell0{one}", f"cell1{one}", f"cell0{other}")
                assert vectors.analogy(*asked, k=1)[0][0] == f"cell1{other}"


@pytest.mark.parametrize("method", ["skip-gram", "glove"])
def test_the_same_seed_gives_the_same_bits_and_another_one_others(method: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        stream = make_class_language(count=100)
        first, second, third = (train(method, stream, seed=seed) for seed in (1, 1, 2))
    finally:
        torch.set_num_threads(threads)
    assert first.words == stream.words
    assert first.matrix.tobytes() == second.matrix.tobytes()
    assert first.matrix.tobytes() != third.matrix.tobytes()


def test_frequent_words_are_left_out_at_random() -> None:
    counts = np.array([10_000, 100, 1], dtype=np.int64)
    # 10,000 of 10,101 words are 990 times the share of 0.001: (sqrt(990.0) + 1) / 990.0.
    expected = [0.03279, 0.41883, 1.0]
    assert module._kept_shares(counts, 1e-3).tolist() == pytest.approx(expected, abs=1e-5)
    assert module._kept_shares(counts, None).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (lambda: SkipGramOptions(window=0), "window is 0"),
        (lambda: SkipGramOptions(learning_rate=0.0), "learning_rate is 0.0"),
        (lambda: SkipGramOptions(subsample=float("nan")), "subsample is nan"),
        (lambda: GloveOptions(epochs=-1), "epochs is -1"),
        (lambda: GloveOptions(largest_weight=float("inf")), "largest_weight is inf"),
    ],
)
def test_options_out_of_range_are_refused(options: object, complaint: str) -> None:
    with pytest.raises(TrainingError, match=complaint):
        options()  # type: ignore[operator]


def test_what_cannot_be_trained_on_is_refused() -> None:
    alone = index_words([["a", "a"]], min_count=1)
    for method in ("skip-gram", "glove"):
        with pytest.raises(TrainingError, match="1 word tell nothing"):
            train(method, alone)
    with pytest.raises(TrainingError, match="no two words stand in one sentence"):
        train("glove", index_words([["a"], ["b"]], min_count=1))


def test_a_run_that_diverges_is_told() -> None:
    options = SkipGramOptions(dimensions=4, learning_rate=1e38, subsample=None)
    with pytest.raises(TrainingError, match="lower learning_rate"):
        train_skip_gram(make_class_language(count=300), options=options, seed=0)
