"""Word vectors as the start of an embedding, learnt further or frozen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lmloop.errors import TrainingError
from lmloop.model.config import ModelConfig
from lmloop.model.init import initialise
from lmloop.model.transformer import Transformer
from lmloop.tokens.loader import Batch
from lmloop.tokens.vectors import WordVectors
from lmloop.training.batch import batch_loss
from lmloop.training.embeddings import initialise_embedding
from lmloop.training.optim import Optimizer

VECTORS = WordVectors(("sea", "海"), np.arange(16, dtype=np.float32).reshape(2, 8) / np.float32(16))
VOCABULARY = ["<unk>", "Sea", "stone", "海"]


def make_model(*, tied: bool) -> Transformer:
    model = Transformer(
        ModelConfig(
            vocab_size=4,
            num_layers=1,
            hidden_size=8,
            num_heads=2,
            num_kv_heads=1,
            head_dim=4,
            intermediate_size=16,
            context_length=8,
            rope_theta=10_000.0,
            norm_epsilon=1e-6,
            tie_embeddings=tied,
        )
    )
    initialise(model, seed=0)
    return model


def test_known_words_get_their_vectors_and_others_keep_their_start() -> None:
    weight = nn.Parameter(torch.ones(4, 8, dtype=torch.bfloat16))
    assert initialise_embedding(weight, vocabulary=VOCABULARY, vectors=VECTORS) == 2
    assert weight[[0, 2]].tolist() == [[1.0] * 8] * 2
    # Brought to the matrix's root mean square, one: 16 numbers k/16 have sqrt(1240 / 16) / 16.
    expected = torch.from_numpy(VECTORS.matrix) * 16 / 77.5**0.5
    torch.testing.assert_close(weight[[1, 3]], expected.bfloat16())
    assert weight.requires_grad


def test_an_empty_matrix_takes_the_vectors_as_they_are() -> None:
    weight = nn.Parameter(torch.zeros(4, 8))
    initialise_embedding(weight, vocabulary=VOCABULARY, vectors=VECTORS)
    assert weight[[1, 3]].tolist() == VECTORS.matrix.tolist()


@pytest.mark.parametrize("method", ["muon", "adamw"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("freeze", [True, False])
def test_a_frozen_embedding_stays_as_it_is_while_the_rest_learns(
    freeze: bool, tied: bool, method: str
) -> None:
    model = make_model(tied=tied)
    initialise_embedding(
        model.embedding.weight, vocabulary=VOCABULARY, vectors=VECTORS, freeze=freeze
    )
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    optimizer = Optimizer(
        model, learning_rate=0.01, matrix_learning_rate=0.01, weight_decay=0.1, method=method
    )
    ids = np.array([[0, 1, 2, 3, 1, 3, 2, 0]])
    positions = np.arange(8)[None]
    batch = Batch(ids, np.roll(ids, -1), np.ones_like(ids, dtype=bool), ids * 0, positions)
    assert ("master.embedding.weight" in optimizer.state()) == (not freeze)
    for _ in range(3):
        batch_loss(model, batch).backward()
        optimizer.step(1.0, clip=1.0)
    changed = {name for name, each in model.named_parameters() if not each.equal(before[name])}
    assert ("embedding.weight" in changed) == (not freeze)
    assert changed - {"embedding.weight"}


@pytest.mark.parametrize(
    ("shape", "vocabulary", "complaint"),
    [
        ((4, 6), VOCABULARY, "8 numbers a word and the embedding 6"),
        ((5, 8), VOCABULARY, "5 rows for 4 words"),
        ((2, 8), ["a", "b"], "none of 2 words"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_changed(
    shape: tuple[int, int], vocabulary: list[str], complaint: str
) -> None:
    weight = nn.Parameter(torch.ones(shape))
    with pytest.raises(TrainingError, match=complaint) as caught:
        initialise_embedding(weight, vocabulary=vocabulary, vectors=VECTORS, freeze=True)
    assert "\n" not in str(caught.value)
    assert weight.requires_grad
    assert (weight == 1).all()
