"""A training run in its folder: what moves, where it stands, and how it goes on or back.

Takes: a model, a loader, a recipe's section, the ranks. Gives: steps, measurements and snapshots,
one at a time; what was begun in the folder is taken up again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch

from lmloop.errors import DivergedError, StoppedError, TrainingError
from lmloop.learning import TrainConfig
from lmloop.model.hardware import release_memory
from lmloop.model.transformer import Transformer
from lmloop.progress import Progress
from lmloop.tokens.mixture import Loader, Piece, cut_rows
from lmloop.training.batch import Teach
from lmloop.training.budget import make_budget
from lmloop.training.figures import Figure, Validate
from lmloop.training.journal import JOURNAL, Journal, NoJournal
from lmloop.training.optim import make_optimizer
from lmloop.training.patience import Patience
from lmloop.training.placement import place
from lmloop.training.ranks import Ranks
from lmloop.training.samples import Sample
from lmloop.training.schedule import rate_factor
from lmloop.training.snapshot import Position
from lmloop.training.soundness import REMEMBERED, Soundness, find_unsound
from lmloop.training.tasks import TaskLosses

MOST_ROLLBACKS = 3
"""Returns to one and the same snapshot, after which a run ends."""
MOST_LEFT_OUT = 50
"""Batches left out in a row, after which a run ends: weights that went astray stay so."""

Answer = TypeVar("Answer")


class Run:
    """What `train` walks through, step by step."""

    def __init__(
        self,
        model: Transformer,
        loader: Loader,
        config: TrainConfig,
        *,
        folder: Path,
        clock: Callable[[], float],
        progress: Progress,
        ranks: Ranks,
        teach: Teach | None,
        figure: Figure | None,
    ) -> None:
        self._ranks = ranks
        self._placement = place(model, config, ranks)
        copies = self._placement.copies
        ranks.require_rows(loader.rows_per_epoch, row_tokens=config.row_tokens, copies=copies)
        ranks.part(0, config.batch_rows, copies=copies)
        self._model, self._loader, self._config = self._placement.model, loader, config
        self._folder, self._progress, self._figure = folder, progress, figure
        self._loss = partial(self._placement.loss, smoothing=config.label_smoothing, teach=teach)
        self._model.checkpoint(config.checkpointing)
        self._optimizer = make_optimizer(self._model, config, placement=self._placement)
        self._patience = None if config.patience is None else Patience(config.patience)
        self.position, self._saved = Position(step=0, elapsed=0.0), 0
        self._row_length = config.row_tokens
        self._returns: Counter[int] = Counter()
        self._left_out = 0  # batches in a row
        found = self._look_up()
        if found is not None:
            self._take_over(*found)
            progress.say(
                f"resumed at step {self.position.step} after {self.position.elapsed:.0f} s"
            )
        open_journal = partial(Journal, folder / JOURNAL, tell=progress.say)
        self.journal = open_journal(steps=self.position.step) if ranks.is_first else NoJournal()
        self.budget = make_budget(config, clock=clock, before=self.position.elapsed)
        self._soundness = self._remember()

    def share(self) -> float:
        """How much of the budget is spent; all of it where patience has come to its end.

        The first rank's clock counts for all.
        """
        is_over = self._patience is not None and self._patience.is_over
        return self._ranks.agree(1.0 if is_over else self.budget.share(self.position.step))

    def step(self, share: float) -> dict[str, Any] | None:
        """One step and what is to be journaled of it; None where the run went back instead."""
        step, config = self.position.step, self._config
        factor = rate_factor(
            share,
            curve=config.curve,
            warmup_share=config.warmup_share,
            decay_share=config.decay_share,
            final_share=config.final_share,
        )
        self._row_length = config.row_length(share)
        value, told = self._gradient()
        trouble, norm = self._soundness.judge(value), None
        if trouble is None:
            norm = self._optimizer.step(factor, clip=config.gradient_clip)
            trouble = None if math.isfinite(norm) else f"the gradient's norm is {norm}"
        if trouble is not None and not self._goes_on(trouble):
            return None
        self._left_out = 0 if trouble is None else self._left_out + 1
        self.position = replace(self.position, step=step + 1)
        entry = {"step": step + 1, "share": share, "seconds": self.budget.elapsed()}
        entry |= {"factor": factor, "tokens": (step + 1) * config.batch_tokens}
        entry |= {"micro_batch_tokens": config.micro_batch_rows * config.row_tokens}
        if trouble is not None:
            return entry | {"skipped": trouble}
        return entry | {"loss": value, "norm": norm} | told

    def look(self, name: str, validate: Validate, sample: Sample | None) -> dict[str, Any]:
        """What is journaled of a validation: figures by name, and samples where any are wanted."""
        found = self.measure(name, validate)
        return found if sample is None else found | {"samples": self.sample(sample)}

    def measure(self, name: str, validate: Validate) -> dict[str, float]:
        """Figures by name of the weights as they would be kept; the first rank alone measures."""
        measures = {name: validate}
        if self._figure is not None:
            measures[self._figure.name] = self._figure.measure
        found = self._ask(lambda model: {key: each(model) for key, each in measures.items()})
        values = {
            key: self._ranks.agree(math.nan if found is None else found[key]) for key in measures
        }
        if self._patience is not None:
            watched = values[name]
            if self._figure is not None:
                watched = self._figure.fall(values[self._figure.name])
            self._patience.look(watched, self._optimizer.result)
        return values

    def sample(self, sample: Sample) -> list[dict[str, str]]:
        """What the weights as they would be kept say; the first rank alone asks them."""
        said = self._ask(sample) or []
        self._ranks.collect("")  # However long that takes, the others wait.
        return said

    def _ask(self, question: Callable[[Transformer], Answer]) -> Answer | None:
        """What the weights as they would be kept answer the first rank; None on the others.

        No tensor of a question fits the gaps that a step leaves, and none of a step its own.
        """
        with self._optimizer.averaged():
            model = self._placement.gather(self._optimizer.result)
            release_memory()
            answer = question(model.eval()) if self._ranks.is_first else None
            release_memory()
            return answer

    def save(self) -> None:
        """Write a snapshot, if anything has been done since the last."""
        if self.position.step == self._saved:
            return
        before, self._saved = self._saved, self.position.step
        self.journal.sync()
        self.position = replace(self.position, elapsed=self.budget.elapsed())
        tensors = self._optimizer.state()
        if self._patience is not None:
            tensors |= self._patience.state()
        self._placement.save(self._folder, self.position, tensors, before=before)

    def stop(self, name: str) -> NoReturn:
        """Save, and end because somebody asked for it."""
        self.save()
        raise StoppedError(
            f"{name} was asked to stop and is saved at step {self.position.step}: the same command "
            "goes on"
        )

    def finish(self, name: str, validate: Validate) -> float:
        """Leave the weights to keep in the model and give what they validate by."""
        value, weights = self.measure(name, validate)[name], self._optimizer.result
        if self._patience is not None and self._patience.weights:
            value, weights = self._patience.value, self._patience.weights
        self._optimizer.settle(weights)
        model = self._placement.gather(weights).eval()
        if self._figure is not None:  # what patience knows of the best weights is the figure
            value = self._ranks.agree(validate(model) if self._ranks.is_first else math.nan)
        return value

    def _gradient(self) -> tuple[float, dict[str, float]]:
        """Loss of the next batch and of each task; leaves its gradient in the model, or gathered.

        The loss of a task is that of a target of it, whatever its targets weigh.
        """
        ranks = self._ranks
        if self._model.config.dropout or self._config.lora_dropout:
            # The same noise again after a resume, another on each rank.
            torch.manual_seed(
                self.position.step * ranks.size + ranks.rank // self._placement.copies
            )
        self._model.train()
        pieces = self._pieces()
        learnt = [int(piece.batch.learnt.sum()) for piece in pieces]
        weighed = [piece.weight * count for piece, count in zip(pieces, learnt, strict=True)]
        total, in_pieces = ranks.total(sum(weighed)) or 1, ranks.size * len(pieces) > 1
        value, told = 0.0, TaskLosses(self._loader)
        for piece, count, weight in zip(pieces, learnt, weighed, strict=True):
            share = weight / total
            loss = self._loss(piece.batch)
            value += share * loss.item() if share else 0.0
            if not math.isfinite(value) and not self._placement.in_step:
                break
            told.add(piece.task, loss.item(), count)
            left = self._placement.learn(loss, share)
            if in_pieces:
                self._optimizer.gather(left)
        value = ranks.total(value)
        if in_pieces and math.isfinite(value):
            self._optimizer.add_up()
        return value, told.means(ranks)

    def _pieces(self) -> list[Piece]:
        """This rank's part of the next batch, in the pieces that are in memory at once."""
        first, rows = self._ranks.part(*self._rows, copies=self._placement.copies)
        pieces = cut_rows(self._loader, first, rows, at_once=self._config.micro_batch_rows)
        return [replace(piece, batch=piece.batch.cut(self._row_length)) for piece in pieces]

    @property
    def _rows(self) -> tuple[int, int]:
        """The first row of the next batch, and how many it has."""
        rows = self._config.batch_rows
        return self.position.step * rows + self.position.skipped, rows

    def _goes_on(self, trouble: str) -> bool:
        """Deal with an unsound step as the recipe says: whether it counts, left out; else go back.

        Raises `DivergedError` where the recipe says to stop, or going back does not help.
        """
        self._optimizer.discard()
        policy, step = self._config.on_unsound, self.position.step
        where = f"{trouble} at step {step}"
        origin = f"documents {', '.join(map(str, self._loader.documents(*self._rows)[:8]))}"
        found: Iterable[str | None] = (
            find_unsound(self._model, partial(self._loss, piece.batch), self._placement.own)
            for piece in self._pieces()
        )
        if self._placement.in_step:
            found = list(found)
        layers = self._ranks.collect(next(filter(None, found), ""))
        layer = next(filter(None, layers), None)
        origin = origin if layer is None else f"first in {layer}, {origin}"
        if policy == "skip" and self._left_out < MOST_LEFT_OUT:
            self._progress.say(f"{where} ({origin}): the batch is left out")
            return True
        more = f"{MOST_LEFT_OUT} batches before it were left out; " if policy == "skip" else ""
        if policy == "rollback":
            refusal = self._roll_back(f"{where} ({origin})")
            if refusal is None:
                return False
            more = refusal
        sound = f"the last sound snapshot is in {self._folder}"
        saved = sound if self._saved > 0 else "no snapshot was due yet"
        raise DivergedError(
            f"{where}: lower matrix_learning_rate or learning_rate, or see on_unsound; it was "
            f"{origin}; {more}{saved}"
        )

    def _roll_back(self, trouble: str) -> str | None:
        """Return to the last snapshot, and pass over all rows up to the end of this batch.

        Gives None, or what is to be told where it cannot.
        """
        first, rows = self._rows
        found = self._look_up()
        if found is None:
            return ""
        if self._returns[found[0].step] == MOST_ROLLBACKS:
            return f"it went back to step {found[0].step} {MOST_ROLLBACKS} times; "
        self._take_over(*found)
        step = self.position.step
        self._returns[step] += 1
        self.position = replace(self.position, skipped=first + rows - step * rows)
        self.journal.cut(step)
        self._soundness = self._remember()
        self._saved = -1
        self.save()
        self._progress.say(f"{trouble}: back to step {step}, and on behind that batch")
        return None

    def _look_up(self) -> tuple[Position, dict[str, torch.Tensor]] | None:
        """The snapshot to go on from."""
        return self._placement.load(self._folder, tell=self._progress.say)

    def _take_over(self, position: Position, tensors: dict[str, torch.Tensor]) -> None:
        try:
            self._optimizer.load_state(tensors)
            if self._patience is not None:
                self._patience.load_state(tensors)
        except (KeyError, RuntimeError) as error:
            raise TrainingError(
                f"the snapshot of step {position.step} does not fit this model and optimizer "
                f"({error}): delete {self._folder} to begin anew"
            ) from error
        self.position, self._saved = position, position.step

    def _remember(self) -> Soundness:
        """A judge that knows the last losses of the first rank's journal."""
        entries = self.journal.entries()[-2 * REMEMBERED :]
        losses = [entry["loss"] for entry in entries if "loss" in entry][-REMEMBERED:]
        known = int(self._ranks.agree(len(losses)))
        losses = [self._ranks.agree(loss) for loss in losses or [math.nan] * known]
        return Soundness(spike=self._config.spike, before=losses)
