"""The training loop: fetch, step, journal, validate, save; nothing else.

Takes: a model, a loader, a budget. Gives: the trained model in place. A run killed at any instant
goes on from its last snapshot and ends, with a step budget, in the very same weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmloop.errors import TrainingError
from lmloop.model.hardware import release_memory
from lmloop.model.rows import PackedRows, Source
from lmloop.model.transformer import Transformer
from lmloop.progress import Progress, Task
from lmloop.sections import TrainConfig
from lmloop.tokens.loader import Batch, PackedLoader
from lmloop.training.budget import Budget, make_budget
from lmloop.training.journal import Journal
from lmloop.training.loss import head_loss
from lmloop.training.optim import Optimizer
from lmloop.training.schedule import warmup_stable_decay
from lmloop.training.snapshot import Position, load_snapshot, save_snapshot

JOURNAL = "journal.jsonl"
RELEASE_EVERY = 32
"""Steps between two returns of freed memory: rows with few answers and with many leave gaps."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a finished run has come to."""

    steps: int
    tokens: int
    seconds: float
    final_loss: float
    """Mean loss of the last tenth of the steps, nats a learnt token."""
    validation_bits_per_byte: float | None = None
    validation_loss: float | None = None
    """Nats a learnt target, where the objective makes no model of next tokens."""


def batch_loss(model: Transformer, batch: Batch) -> Tensor:
    """Mean cross-entropy in nats over the learnt targets of a batch of packed rows."""
    rows, length = batch.tokens.shape
    tokens, targets, positions = (
        torch.from_numpy(part).flatten() for part in (batch.tokens, batch.targets, batch.positions)
    )
    view = PackedRows(
        rows=rows,
        length=length,
        segments=torch.from_numpy(batch.segments),
        order=None if batch.order is None else torch.from_numpy(batch.order),
        source=_read_source(model, batch),
    )
    hidden = model.encode(tokens, positions, view)
    if not batch.learnt.all():
        learnt = torch.from_numpy(batch.learnt).flatten().nonzero()[:, 0]
        hidden, targets = hidden[learnt], targets[learnt]
    return head_loss(model, hidden, targets)


def _read_source(model: Transformer, batch: Batch) -> Source | None:
    """What the encoder makes of the batch's packed sources, if it has any."""
    if batch.source is None or batch.source_segments is None or batch.source_positions is None:
        return None
    if model.encoder is None:
        raise TrainingError("span corruption needs an encoder: set model.kind = 'encoder-decoder'")
    rows, length = batch.source.shape
    segments = torch.from_numpy(batch.source_segments)
    tokens, positions = (
        torch.from_numpy(part).flatten() for part in (batch.source, batch.source_positions)
    )
    view = PackedRows(rows=rows, length=length, segments=segments, causal=False)
    return Source(model.encoder.encode(tokens, positions, view), segments)


@torch.no_grad()
def mean_loss(model: Transformer, loader: PackedLoader, *, rows: int, rows_at_once: int) -> float:
    """Nats a learnt target over the first `rows` of a loader."""
    total, count = 0.0, 0
    for start in range(0, rows, rows_at_once):
        batch = loader.rows(start, min(rows_at_once, rows - start))
        learnt = int(batch.learnt.sum())
        total += batch_loss(model, batch).item() * learnt
        count += learnt
    return total / max(1, count)


def train(
    model: Transformer,
    loader: PackedLoader,
    config: TrainConfig,
    *,
    folder: Path,
    validate: Callable[[Transformer], float],
    clock: Callable[[], float],
    progress: Progress,
    name: str,
    is_scored_in_bytes: bool = True,
) -> TrainResult:
    """Train `model` in place; `folder` holds journal and snapshots, and resumes if it has any.

    `validate` gives bits per byte, or else nats a learnt target. Raises `TrainingError` where the
    loss or the gradient is no number any more.
    """
    optimizer = Optimizer(
        model,
        learning_rate=config.learning_rate,
        matrix_learning_rate=config.matrix_learning_rate,
        weight_decay=config.weight_decay,
        method=config.optimizer,
    )
    position = _resume(optimizer, folder, progress)
    budget = make_budget(config, clock=clock, before=position.elapsed)
    journal = Journal(folder / JOURNAL, steps=position.step)
    rows = config.batch_tokens // config.row_tokens
    step, saved = position.step, position.step
    measured = "validation_bpb" if is_scored_in_bytes else "validation_loss"
    with closing(journal), progress.task(name, total=1.0, unit="") as task:
        while (share := budget.share(step)) < 1.0:
            factor = warmup_stable_decay(
                share, warmup_share=config.warmup_share, decay_share=config.decay_share
            )
            if model.config.dropout:  # the same noise again after a resume
                torch.manual_seed(step)
            loss = batch_loss(model.train(), loader.rows(step * rows, rows))
            value = loss.item()
            _refuse_unsound("loss", value, step, folder)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = optimizer.step(factor, clip=config.gradient_clip)
            _refuse_unsound("gradient's norm", norm, step, folder)
            step += 1
            entry = {"step": step, "share": share, "seconds": budget.elapsed(), "loss": value}
            entry |= {"factor": factor, "norm": norm, "tokens": step * config.batch_tokens}
            if step % config.validate_every == 0:
                entry[measured] = validate(model.eval())
            journal.append(entry)
            _report(task, share, entry)
            if step % RELEASE_EVERY == 0:
                release_memory()
            if step % config.save_every == 0:
                _save(folder, step, budget, optimizer, journal)
                saved = step
        if step > saved:
            _save(folder, step, budget, optimizer, journal)
    value = validate(model.eval())
    return TrainResult(
        steps=step,
        tokens=step * config.batch_tokens,
        seconds=budget.elapsed(),
        final_loss=_final_loss(folder / JOURNAL),
        validation_bits_per_byte=value if is_scored_in_bytes else None,
        validation_loss=None if is_scored_in_bytes else value,
    )


def _resume(optimizer: Optimizer, folder: Path, progress: Progress) -> Position:
    found = load_snapshot(folder, tell=progress.say)
    if found is None:
        return Position(step=0, elapsed=0.0)
    position, tensors = found
    optimizer.load_state(tensors)
    progress.say(f"resumed at step {position.step} after {position.elapsed:.0f} s")
    return position


def _save(folder: Path, step: int, budget: Budget, optimizer: Optimizer, journal: Journal) -> None:
    journal.sync()
    save_snapshot(folder, Position(step=step, elapsed=budget.elapsed()), optimizer.state())


def _refuse_unsound(what: str, value: float, step: int, folder: Path) -> None:
    if not math.isfinite(value):
        raise TrainingError(
            f"the {what} is {value} at step {step}: lower matrix_learning_rate or "
            f"learning_rate; the last sound snapshot is in {folder}"
        )


def _report(task: Task, share: float, entry: dict[str, Any]) -> None:
    rate = entry["tokens"] / max(entry["seconds"], 1e-9)
    task.update(share, note=f"step {entry['step']}  loss {entry['loss']:.3f}  {rate:,.0f} tok/s")


def _final_loss(journal: Path) -> float:
    """Mean loss of the last tenth of the steps, those before a resumption included."""
    losses = [float(json.loads(line)["loss"]) for line in journal.read_text("utf-8").splitlines()]
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / max(1, len(tail))
