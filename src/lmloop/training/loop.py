"""The training loop: fetch, step, journal, validate, save; nothing else.

Takes: a model, a loader, a budget. Gives: the trained model in place. A run killed at any instant
goes on from its last snapshot and ends, with a step budget, in the very same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from lmloop.learning import TrainConfig
from lmloop.model.hardware import release_memory
from lmloop.model.transformer import Transformer
from lmloop.progress import Progress, Watch, unwatched
from lmloop.tokens.mixture import Loader
from lmloop.training.batch import Teach
from lmloop.training.budget import require_steps
from lmloop.training.figures import Figure, Validate
from lmloop.training.gauge import Gauge, describe_step
from lmloop.training.journal import final_loss
from lmloop.training.ranks import ALONE, Ranks
from lmloop.training.run import Run
from lmloop.training.samples import Sample
from lmloop.training.stopping import watch_for_sigterm

RELEASE_EVERY = 64
"""Steps between two returns of freed memory: rows with few answers and with many leave gaps."""
SHORT_SHARE = 0.02
"""Of a budget: where one step takes more, memory that would have to be asked for again is kept."""


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


def train(
    model: Transformer,
    loader: Loader,
    config: TrainConfig,
    *,
    folder: Path,
    validate: Validate,
    clock: Callable[[], float],
    progress: Progress,
    name: str,
    is_scored_in_bytes: bool = True,
    ranks: Ranks = ALONE,
    watch: Watch = unwatched,
    teach: Teach | None = None,
    figure: Figure | None = None,
    gauge: Gauge | None = None,
    sample: Sample | None = None,
) -> TrainResult:
    """Train `model` in place; `folder` holds journal and snapshots, and resumes if it has any.

    `validate` gives bits per byte, or else nats a learnt target; `sample` what the model says at
    each validation; `watch` is told each line of the journal with what `gauge` reads; `teach` says
    what a teacher makes of each batch; `figure` is what patience looks at in the place of
    `validate`. Raises `DivergedError` where the loss or the gradient is no number any more, and
    `StoppedError` after a SIGTERM, once saved. With many `ranks` each trains on its part of every
    batch; the first alone validates and writes.
    """
    run = Run(
        model,
        loader,
        config,
        folder=folder,
        clock=clock,
        progress=progress,
        ranks=ranks,
        teach=teach,
        figure=figure,
    )
    measured = "validation_bpb" if is_scored_in_bytes else "validation_loss"
    gauge = gauge or Gauge()
    with closing(run.journal), progress.task(name, total=1.0, unit="") as task:
        with watch_for_sigterm() as asked:
            while (share := run.share()) < 1.0:
                entry = run.step(share)
                if entry is None:
                    continue
                if entry["step"] % config.validate_every == 0:
                    entry |= run.look(measured, validate, sample)
                run.journal.append(entry)
                entry |= gauge.read(entry)
                task.update(entry["share"], note=describe_step(entry))
                watch(entry)
                if ranks.total(asked.is_set()):
                    run.stop(name)
                # Momenta of the first step lie between what is gone; a run of seconds lets them.
                is_settled = entry["step"] == 1 and run.share() < SHORT_SHARE
                if is_settled or entry["step"] % RELEASE_EVERY == 0:
                    release_memory()
                if entry["step"] % config.save_every == 0:
                    run.save()
        require_steps(config, run.position.step)
        run.save()
        value = run.finish(measured, validate)
        steps = run.position.step
        return TrainResult(
            steps=steps,
            tokens=steps * config.batch_tokens,
            seconds=run.budget.elapsed(),
            final_loss=final_loss(run.journal.entries()),
            validation_bits_per_byte=value if is_scored_in_bytes else None,
            validation_loss=None if is_scored_in_bytes else value,
        )
