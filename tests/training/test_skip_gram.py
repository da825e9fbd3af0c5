"""Skip-gram: right gradients, every place once, planted structure found, same bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from lmloop.errors import TrainingError
from lmloop.tokens.vectors import WordVectors
from lmloop.tokens.words import WordStream, index_words
from lmloop.training import skip_gram as module
from lmloop.training.skip_gram import SkipGramOptions, skip_gram_gradients, train_skip_gram

from .conftest import CLASSES, make_class_language, make_grid_language

OPTIONS = SkipGramOptions(
    dimensions=16, window=2, epochs=4, subsample=None, batch_places=32, learning_rate=0.05
)


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
    towards, away = skip_gram_gradients(
        around.detach().numpy(),
        outputs.detach().numpy(),
        counted=counted.numpy(),
        valid=valid.numpy(),
    )
    np.testing.assert_allclose(towards, around.grad, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(away, outputs.grad, rtol=1e-12, atol=1e-12)


def train(stream: WordStream, *, seed: int = 0) -> WordVectors:
    return train_skip_gram(stream, options=OPTIONS, seed=seed)


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
                assert vectors.analogy(*asked, k=1)[0][0] == f"cell1{other}"


def test_the_same_seed_gives_the_same_bits_and_another_one_others() -> None:
    stream = make_class_language(count=100)
    first, second, third = (train(stream, seed=seed) for seed in (1, 1, 2))
    assert first.words == stream.words
    assert first.matrix.tobytes() == second.matrix.tobytes()
    assert first.matrix.tobytes() != third.matrix.tobytes()


def test_several_threads_find_the_planted_structure_too() -> None:
    options = replace(OPTIONS, threads=2)
    vectors = train_skip_gram(make_class_language(count=3000), options=options, seed=0)
    near = [word for word, _ in vectors.nearest("tool0", 40) if "-" not in word]
    assert set(near[:5]) == {*CLASSES["tool"]} - {"tool0"}


@pytest.mark.parametrize("threads", [1, 3])
def test_many_chunks_are_learnt_as_one(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_WORDS", 700)
    options = replace(OPTIONS, threads=threads)
    vectors = train_skip_gram(make_class_language(count=3000), options=options, seed=0)
    near = [word for word, _ in vectors.nearest("town3", 40) if "-" not in word]
    assert set(near[:5]) == {*CLASSES["town"]} - {"town3"}


def test_every_place_is_drawn_once_with_the_words_of_its_sentence() -> None:
    stream = index_words([["a", "b", "c"], ["d", "e"], ["f"]], min_count=1)
    options = SkipGramOptions(window=2, negatives=1, subsample=None, batch_places=2)
    truths = []
    for _, batch in module._Batches(stream, options).draw(0, np.random.default_rng(0)):
        for truth, around, counted in zip(
            batch.outputs[:, 0], batch.around, batch.counted, strict=True
        ):
            beside = {stream.words[number] for number in around[counted > 0]}
            truths.append(stream.words[truth])
            window = len(around) // 2
            near = {"a": "bc", "b": "ac", "c": "ba", "d": "e", "e": "d", "f": ""}[truths[-1]]
            assert beside == set(near[:1] if window == 1 and truths[-1] != "b" else near)
    assert sorted(truths) == list("abcdef")


def test_a_negative_that_is_the_word_itself_does_not_count() -> None:
    stream = index_words([["a", "b"] * 40], min_count=1)
    options = SkipGramOptions(window=1, negatives=3, subsample=None)
    for _, batch in module._Batches(stream, options).draw(0, np.random.default_rng(0)):
        same = batch.outputs[:, 1:] == batch.outputs[:, :1]
        assert same.any()
        assert (batch.valid[:, 1:] == ~same).all()
        assert (batch.valid[:, 0] == 1).all()


def test_frequent_words_are_left_out_at_random() -> None:
    counts = np.array([10_000, 100, 1], dtype=np.int64)
    # 10,000 of 10,101 words are 990 times the share of 0.001: (sqrt(990.0) + 1) / 990.0.
    expected = [0.03279, 0.41883, 1.0]
    assert module._kept_shares(counts, 1e-3).tolist() == pytest.approx(expected, abs=1e-5)
    assert module._kept_shares(counts, None).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"window": 0}, "window is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"subsample": float("nan")}, "subsample is nan"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, float], complaint: str) -> None:
    with pytest.raises(TrainingError, match=complaint):
        replace(OPTIONS, **changes)


def test_one_word_is_refused() -> None:
    with pytest.raises(TrainingError, match="1 word tell nothing"):
        train(index_words([["a", "a"]], min_count=1))


@pytest.mark.filterwarnings("ignore:(overflow|invalid value):RuntimeWarning")
def test_a_run_that_diverges_is_told() -> None:
    options = SkipGramOptions(dimensions=4, learning_rate=1e38, subsample=None)
    with pytest.raises(TrainingError, match="lower learning_rate"):
        train_skip_gram(make_class_language(count=300), options=options, seed=0)
