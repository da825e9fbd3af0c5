"""Heads of tasks: whose state stands for a text, and what their losses are by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lmloop.model.heads import HeadConfig, TaskModel, pool
from lmloop.model.init import initialise

from ..conftest import random_model
from .kinds import decoder, encoder

TOKENS = torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([7, 4, 1])
STATES = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]]])


def task(**changes: Any) -> TaskModel:
    model = TaskModel(random_model(encoder("gpt2")), HeadConfig(**changes)).eval()
    with torch.no_grad():
        for number, parameter in enumerate(model.head.parameters()):
            parameter.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(number))
    return model


@pytest.mark.parametrize(
    ("pooling", "expected"), [("mean", [2.0, 4.0]), ("cls", [1.0, 2.0]), ("last", [3.0, 6.0])]
)
def test_one_state_stands_for_a_text_of_two_tokens(pooling: Any, expected: list[float]) -> None:
    found = pool(STATES, lengths=torch.tensor([2]), pooling=pooling)
    assert found.tolist() == [expected]


def test_without_lengths_all_tokens_count() -> None:
    assert pool(STATES, lengths=None, pooling="last").tolist() == [[9.0, 9.0]]
    assert pool(STATES, lengths=None, pooling="mean")[0, 0] == pytest.approx(13 / 3)


def test_a_text_without_tokens_has_the_mean_zero() -> None:
    assert pool(STATES, lengths=torch.tensor([0]), pooling="mean").tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({"kind": "sequence", "num_labels": 3, "layer": "tanh"}, (3, 3)),
        ({"kind": "sequence", "num_labels": 1, "pooling": "mean", "layer": "transform"}, (3, 1)),
        ({"kind": "token", "num_labels": 5, "bias": False}, (3, 7, 5)),
        ({"kind": "span"}, (3, 7, 2)),
        ({"kind": "embedding", "pooling": "mean"}, (3, 24)),
        ({"kind": "embedding", "pooling": "last", "normalise": True}, (3, 24)),
    ],
)
@torch.no_grad()
def test_padding_changes_nothing(changes: dict[str, Any], shape: tuple[int, ...]) -> None:
    model = task(**changes)
    found = model(TOKENS, lengths=LENGTHS)
    assert found.shape == shape
    for row, length in enumerate(LENGTHS.tolist()):
        alone = model(TOKENS[row : row + 1, :length])[0]
        together = found[row] if found.dim() == 2 else found[row, :length]
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    if changes.get("normalise"):
        torch.testing.assert_close(found.norm(dim=-1), torch.ones(3))


def test_a_language_models_weights_are_shared_and_its_head_left_out() -> None:
    language = random_model(decoder("gpt2", tie_embeddings=False))
    model = TaskModel(language, HeadConfig(kind="sequence", pooling="last", bias=False))
    assert model.transformer.head is None
    assert language.head is not None
    assert model.transformer.embedding.weight is language.embedding.weight
    assert torch.equal(model.transformer.states(TOKENS), language.states(TOKENS))
    names = {name.partition(".")[0] for name, _ in model.named_parameters()}
    assert names == {"transformer", "head"}


def test_a_new_head_begins_with_scores_of_zero() -> None:
    model = task(kind="sequence", num_labels=3, layer="tanh")
    initialise(model.head, seed=0)
    assert not model(TOKENS).any()


def test_losses_are_as_by_hand() -> None:
    labels = task(kind="sequence", num_labels=2)
    scores = torch.tensor([[0.0, math.log(3.0)]])
    assert labels.loss(scores, torch.tensor([1])).item() == pytest.approx(math.log(4 / 3))
    several = labels.loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
    assert several.item() == pytest.approx(math.log(2))
    number = task(kind="sequence", num_labels=1)
    assert number.loss(torch.tensor([[1.0], [2.0]]), torch.tensor([4.0, 2.0])).item() == 4.5
    tags = task(kind="token", num_labels=2)
    found = tags.loss(torch.stack([scores, 9 * scores], dim=1), torch.tensor([[1, -100]]))
    assert found.item() == pytest.approx(math.log(4 / 3))


def test_spans_outside_the_text_do_not_count() -> None:
    model = task(kind="span")
    output = torch.zeros(2, 4, 2)
    found = model.loss(output, torch.tensor([[0, 3], [4, -1]]))
    assert found.item() == pytest.approx(math.log(4))


def test_embeddings_learn_which_texts_belong_together() -> None:
    model = task(kind="embedding")
    own = torch.eye(2)
    assert model.loss(own, own * 3).item() == pytest.approx(0, abs=1e-6)
    assert model.loss(own, own.flip(0)).item() == pytest.approx(20, abs=1e-4)


def test_a_head_learns_to_tell_texts_apart() -> None:
    model = TaskModel(
        random_model(encoder("gpt2")), HeadConfig(kind="sequence", num_labels=3, pooling="mean")
    )
    initialise(model.head, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    wanted = torch.tensor([2, 0, 1])
    for _ in range(30):
        optimizer.zero_grad()
        loss = model.loss(model(TOKENS, lengths=LENGTHS), wanted)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    assert model(TOKENS, lengths=LENGTHS).argmax(-1).tolist() == [2, 0, 1]
