"""How fast this machine trains a model: a few real micro-batches and updates, by the clock.

Takes: a shape, a recipe's section, how long it may take. Gives: seconds a token and an update, from
which the time of any batch follows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lmloop.learning import TaughtConfig, TrainConfig
from lmloop.model.config import ModelConfig
from lmloop.model.cost import training_flops_per_token
from lmloop.model.hardware import best_device, fast_dtype, settle_model, wait_for
from lmloop.model.init import initialise
from lmloop.model.transformer import Transformer
from lmloop.tokens.loader import Batch
from lmloop.training.adapting import adapt
from lmloop.training.batch import batch_loss
from lmloop.training.optim import make_optimizer
from lmloop.training.teacher import Teacher

LARGEST_PROBE = 2e11
"""Operations of one measured micro-batch at most: about a second of two processor cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What a step is made of."""

    token_seconds: float
    """Forward and backward of one token."""
    update_seconds: float
    """The optimizer's part, once a step."""

    def step_seconds(self, section: TrainConfig) -> float:
        """Of one whole step."""
        return self.token_seconds * section.batch_tokens + self.update_seconds


def measure_speed(
    config: ModelConfig,
    section: TrainConfig,
    *,
    seconds: float,
    learnt_share: float = 1.0,
    source_tokens: int = 0,
    teacher: ModelConfig | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Speed:
    """Train on random tokens for about `seconds`; two steps at least.

    `learnt_share` is that of the tokens in the loss; `source_tokens` the length of a source's rows;
    `teacher` the shape of a model that is asked about each batch.
    """
    model = Transformer(config)
    initialise(model, seed=0)
    device = best_device()
    settle_model(model, section.precision)
    model.train().checkpoint(section.checkpointing)
    adapt(model, section, seed=0)
    teach = None if teacher is None else _make_teacher(teacher, section).teach
    optimizer = make_optimizer(model, section)
    row = section.row_tokens * training_flops_per_token(config, row_tokens=section.row_tokens)
    rows = min(section.micro_batch_rows, max(1, int(LARGEST_PROBE / row)))
    batch = draw_batch(
        config,
        rows,
        section.row_tokens,
        learnt_share=learnt_share,
        source_tokens=source_tokens,
    )
    times: list[tuple[float, float]] = []
    start = clock()
    while len(times) < 2 or clock() - start < seconds:
        begun = clock()
        batch_loss(model, batch, teach=teach).backward()  # type: ignore[no-untyped-call]
        wait_for(device)
        between = clock()
        optimizer.step(0.0, clip=1.0)
        wait_for(device)
        times.append((between - begun, clock() - between))
    # The first step pays for memory and for the choice of kernels.
    learning, updating = np.median(np.array(times[1:]), axis=0)
    tokens = rows * section.row_tokens
    return Speed(token_seconds=float(learning) / tokens, update_seconds=float(updating))


def _make_teacher(config: ModelConfig, section: TrainConfig) -> Teacher:
    """Random weights take as long as learnt ones."""
    model = Transformer(config)
    initialise(model, seed=0)
    model.to(device=best_device(), dtype=fast_dtype()).requires_grad_(False)
    heard = section if isinstance(section, TaughtConfig) else None
    return Teacher(
        model=model.eval(),
        share=0.5 if heard is None else heard.teacher_share,
        temperature=1.0 if heard is None else heard.teacher_temperature,
    )


def draw_batch(
    config: ModelConfig,
    rows: int,
    length: int,
    *,
    learnt_share: float = 1.0,
    source_tokens: int = 0,
) -> Batch:
    """Rows of random tokens, one document each; the sources as long where nothing else is said."""
    draw = np.random.default_rng(0)
    ids = draw.integers(0, config.vocab_size, (rows, length))
    learnt = draw.random((rows, length)) < learnt_share
    positions = np.broadcast_to(np.arange(length), (rows, length)).copy()
    segments = np.zeros((rows, length), dtype=np.int64)
    batch = Batch(ids, ids, learnt, segments, positions)
    if config.encoder is None:
        return batch
    shape = (rows, source_tokens or length)
    source = draw.integers(0, config.vocab_size, shape)
    places = np.broadcast_to(np.arange(shape[1]), shape).copy()
    return replace(
        batch,
        source=source,
        source_segments=np.zeros(shape, dtype=np.int64),
        source_positions=places,
    )
