"""The loss of a batch: over what is learnt, of texts that do not see each other."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lmloop.errors import TrainingError
from lmloop.model.rows import PackedRows
from lmloop.model.transformer import Transformer
from lmloop.tokens.arrangement import make_arrangement
from lmloop.tokens.loader import Batch, PackedLoader
from lmloop.tokens.objectives import visible
from lmloop.tokens.shards import Shards
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.training import batch as module
from lmloop.training.batch import batch_loss, mean_loss

from ..conftest import VOCAB_SIZE, random_model, tiny_shape
from .conftest import make_config


@pytest.mark.parametrize("answers_only", [False, True])
def test_the_loss_of_a_batch_is_the_mean_over_its_learnt_targets(
    shards_folder: Path, answers_only: bool
) -> None:
    loader = PackedLoader(
        Shards.open(shards_folder, "train"),
        row_tokens=24,
        document_id=0,
        answers_only=answers_only,
        seed=0,
    )
    batch = loader.rows(0, 3)
    model = random_model(tiny_shape(vocab_size=VOCAB_SIZE))
    nats = []
    with torch.no_grad():
        for row in range(3):
            for place in range(24):
                if not batch.learnt[row, place]:
                    continue
                first = place - int(batch.positions[row, place])
                past = torch.from_numpy(batch.tokens[row : row + 1, first : place + 1])
                target = torch.tensor([batch.targets[row, place]])
                nats.append(F.cross_entropy(model(past)[0, -1:], target).item())
    assert len(nats) == batch.learnt.sum() > 0
    assert batch_loss(model, batch).item() == pytest.approx(sum(nats) / len(nats), rel=1e-4)


def test_rows_of_one_document_each_need_no_segments(shards_folder: Path) -> None:
    """Told or not, the loss is the same number: one document hides nothing from itself."""
    ids = np.arange(2 * 8).reshape(2, 8) % VOCAB_SIZE
    places, learnt = np.tile(np.arange(8), (2, 1)), np.ones((2, 8), dtype=np.bool_)
    model = random_model(tiny_shape(vocab_size=VOCAB_SIZE))
    segments = np.array([[0] * 8, [1] * 8]), np.array([[0] * 8, [1] * 7 + [2]])
    losses = [batch_loss(model, Batch(ids, ids, learnt, each, places)) for each in segments]
    hidden = model.encode(
        torch.from_numpy(ids).flatten(),
        torch.from_numpy(places).flatten(),
        PackedRows(rows=2, length=8, segments=torch.from_numpy(segments[0])),
    )
    expected = F.cross_entropy(model.project(hidden), torch.from_numpy(ids).flatten())
    assert losses[0].item() == pytest.approx(expected.item(), rel=1e-6)
    assert losses[0].item() != losses[1].item()


def test_a_batch_without_answers_moves_nothing(shards_folder: Path) -> None:
    loader = PackedLoader(
        Shards.open(shards_folder, "train"), row_tokens=8, document_id=0, answers_only=True, seed=0
    )
    batch = next(
        batch for batch in (loader.rows(row, 1) for row in range(99)) if not batch.learnt.any()
    )
    model = random_model(tiny_shape(vocab_size=VOCAB_SIZE))
    loss = batch_loss(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert not any(each.grad.any() for each in model.parameters() if each.grad is not None)


OBJECTIVES = (
    *("causal", "masked", "causal+masked", "prefix", "fill-in-the-middle", "permutation"),
    "span-corruption",
)


def arranged_batch(folder: Path, objective: str, *, rows: int, **changes: Any) -> Batch:
    config = make_config(objective=objective, row_tokens=32, **changes)
    tokenizer = Tokenizer.open(folder)
    loader = PackedLoader(
        Shards.open(folder, "train"),
        row_tokens=32,
        document_id=tokenizer.document_id,
        answers_only=False,
        seed=0,
        arrangement=make_arrangement(config, tokenizer),
    )
    return loader.rows(0, rows)


def model_for(objective: str) -> Transformer:
    shape = tiny_shape(vocab_size=VOCAB_SIZE)
    if objective == "span-corruption":
        shape = replace(shape, encoder=replace(shape, causal=False, head="none"))
    return random_model(shape)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_place_sees_what_its_order_says_and_never_the_token_that_it_predicts(
    extended_shards_folder: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    batch = arranged_batch(extended_shards_folder, objective, rows=2)
    model, embedded, states = model_for(objective), [], []
    model.embedding.register_forward_hook(lambda *given: embedded.append(given[-1]))
    monkeypatch.setattr(
        module,
        "head_loss",
        lambda model, hidden, targets, smoothing, lesson: states.append(hidden) or hidden.sum(),
    )
    batch_loss(model, batch)
    length = batch.tokens.shape[1]
    order = batch.positions if batch.order is None else batch.order
    for number, flat in enumerate(np.flatnonzero(batch.learnt)):
        row, place = divmod(int(flat), length)
        grads = torch.autograd.grad(states[0][number].square().sum(), embedded, retain_graph=True)
        seen = grads[-1].abs().sum(-1).view(len(batch.tokens), length).numpy() > 0
        expected = np.zeros_like(seen)
        expected[row] = visible(order[row], segments=batch.segments[row])[place]
        assert np.array_equal(seen, expected)
        if batch.source_segments is not None:
            read = grads[0].abs().sum(-1).view(batch.source_segments.shape).numpy() > 0
            same = batch.source_segments == batch.segments[row, place]
            assert np.array_equal(read, same & (np.arange(len(read)) == row)[:, None])
        hidden = answer_places(batch, objective, row, place)
        assert not seen[row, hidden].any()


def answer_places(batch: Batch, objective: str, row: int, place: int) -> list[int]:
    """Where the row itself shows the token that a place predicts, in what it must not see."""
    segments, positions = batch.segments[row], batch.positions[row]
    text = segments == segments[place]
    if objective == "permutation":
        alike = np.flatnonzero(text & (positions == positions[place]) & ~batch.learnt[row])
        assert batch.tokens[row, alike].tolist() == [batch.targets[row, place]]
        return alike.tolist()
    if objective == "masked" or (batch.order is not None and not batch.order[row, text].any()):
        return []  # it sees its own place and all others: what is hidden there is the collation's
    behind = np.flatnonzero(text & (positions == positions[place] + 1))
    assert batch.tokens[row, behind].tolist() in ([], [batch.targets[row, place]])
    return behind.tolist()


@pytest.mark.parametrize("objective", ["masked", "span-corruption", "permutation"])
def test_texts_of_a_row_give_the_loss_that_they_give_alone(
    extended_shards_folder: Path, objective: str
) -> None:
    batch = arranged_batch(extended_shards_folder, objective, rows=3)
    model, total, count = model_for(objective), 0.0, 0
    with torch.no_grad():
        whole = batch_loss(model, batch).item()
        for row, segments in enumerate(batch.segments):
            for segment in np.unique(segments):
                alone = take_text(batch, row, segment)
                if alone.learnt.any():
                    total += batch_loss(model, alone).item() * alone.learnt.sum()
                    count += alone.learnt.sum()
    assert whole == pytest.approx(total / count, rel=1e-5)


def take_text(batch: Batch, row: int, segment: int) -> Batch:
    """One text of a batch as a batch of its own."""
    parts = {}
    for field in fields(Batch):
        whole = getattr(batch, field.name)
        if whole is not None:
            read = field.name.startswith("source")
            home = batch.source_segments if read else batch.segments
            assert home is not None
            parts[field.name] = whole[row, home[row] == segment][None]
    return Batch(**parts)


def test_a_batch_with_sources_needs_a_model_that_reads_them(extended_shards_folder: Path) -> None:
    batch = arranged_batch(extended_shards_folder, "span-corruption", rows=1)
    with pytest.raises(TrainingError, match="needs an encoder: set model.kind"):
        batch_loss(model_for("causal"), batch)


def test_the_mean_loss_of_many_rows_is_over_all_that_is_learnt(
    extended_shards_folder: Path,
) -> None:
    tokenizer = Tokenizer.open(extended_shards_folder)
    config = make_config(objective="masked", row_tokens=32)
    loader = PackedLoader(
        Shards.open(extended_shards_folder, "train"),
        row_tokens=32,
        document_id=tokenizer.document_id,
        answers_only=False,
        seed=0,
        arrangement=make_arrangement(config, tokenizer),
    )
    model = model_for("masked")
    with torch.no_grad():
        whole = batch_loss(model, loader.rows(0, 7)).item()
    for rows_at_once in (1, 3, 7, 100):
        found = mean_loss(model, loader, rows=7, rows_at_once=rows_at_once)
        assert found == pytest.approx(whole, rel=1e-5)
