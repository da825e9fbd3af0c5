"""From a batch of packed rows to its loss.

Takes: a model, rows of a loader. Gives: nats a learnt target, with its gradient where asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lmloop.errors import TrainingError
from lmloop.model.rows import PackedRows, Source
from lmloop.model.transformer import Transformer
from lmloop.tokens.loader import Batch, PackedLoader
from lmloop.training.loss import CHUNK_ELEMENTS, Lesson, head_loss

Teach = Callable[[Batch], Lesson]
"""What a teacher makes of the places of a batch where the loss counts."""


def batch_loss(
    model: Transformer, batch: Batch, *, smoothing: float = 0.0, teach: Teach | None = None
) -> Tensor:
    """Mean cross-entropy in nats over the learnt targets of a batch of packed rows.

    `teach` says what a teacher makes of the batch, see `Lesson`.
    """
    lesson = None if teach is None else teach(batch)
    hidden = learnt_states(model, batch)
    targets = torch.from_numpy(batch.targets[batch.learnt]).to(hidden.device)
    return head_loss(model, hidden, targets, smoothing=smoothing, lesson=lesson)


def learnt_states(model: Transformer, batch: Batch) -> Tensor:
    """Hidden states [N, D] of the places of a batch where the loss counts."""
    rows, length = batch.tokens.shape
    device = model.device
    tokens, positions = (
        torch.from_numpy(part).flatten().to(device) for part in (batch.tokens, batch.positions)
    )
    view = PackedRows(
        rows=rows,
        length=length,
        segments=_read_segments(batch, device),
        order=None if batch.order is None else torch.from_numpy(batch.order).to(device),
        source=_read_source(model, batch),
    )
    hidden = model.encode(tokens, positions, view)
    if batch.learnt.all():
        return hidden
    return hidden[torch.from_numpy(batch.learnt).flatten().nonzero()[:, 0].to(device)]


def _read_segments(batch: Batch, device: torch.device) -> Tensor | None:
    """Which document each token is of; None where a row is of one alone: the mask is simpler then.

    A source knows its documents by these numbers, so that they stay where there is one.
    """
    segments = batch.segments
    if batch.source is None and (segments == segments[:, :1]).all():
        return None
    return torch.from_numpy(segments).to(device)


def _read_source(model: Transformer, batch: Batch) -> Source | None:
    """What the encoder makes of the batch's packed sources, if it has any."""
    if batch.source is None or batch.source_segments is None or batch.source_positions is None:
        return None
    if model.encoder is None:
        raise TrainingError("span corruption needs an encoder: set model.kind = 'encoder-decoder'")
    rows, length = batch.source.shape
    device = model.device
    segments = torch.from_numpy(batch.source_segments).to(device)
    tokens, positions = (
        torch.from_numpy(part).flatten().to(device)
        for part in (batch.source, batch.source_positions)
    )
    view = PackedRows(rows=rows, length=length, segments=segments, causal=False)
    return Source(model.encoder.encode(tokens, positions, view), segments)


@torch.no_grad()
def mean_loss(model: Transformer, loader: PackedLoader, *, rows: int, rows_at_once: int) -> float:
    """Nats a learnt target over the first `rows` of a loader."""
    total, count = 0.0, 0
    for batch in _cut(loader, rows, rows_at_once):
        learnt = int(batch.learnt.sum())
        total += batch_loss(model, batch).item() * learnt
        count += learnt
    return total / max(1, count)


@torch.no_grad()
def mean_accuracy(
    model: Transformer, loader: PackedLoader, *, rows: int, rows_at_once: int
) -> float:
    """Share of the learnt targets of the first `rows` of a loader that the model holds likeliest.

    Logits exist a chunk at a time.
    """
    right, count = 0, 0
    size = max(1, CHUNK_ELEMENTS // model.config.vocab_size)
    for batch in _cut(loader, rows, rows_at_once):
        states = learnt_states(model, batch)
        targets = torch.from_numpy(batch.targets[batch.learnt]).to(states.device)
        for part, wanted in zip(torch.split(states, size), torch.split(targets, size), strict=True):
            right += int((model.project(part).argmax(dim=-1) == wanted).sum())
        count += len(targets)
    return right / max(1, count)


def _cut(loader: PackedLoader, rows: int, rows_at_once: int) -> Iterator[Batch]:
    for start in range(0, rows, rows_at_once):
        yield loader.rows(start, min(rows_at_once, rows - start))
