"""What a recipe will cost, told before any work: parameters, memory, tokens and time.

Takes: a recipe's sections and the size of the text. Gives: a `Plan`; speed comes from a few steps
on this machine, so nothing has to be known about it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from lmloop.learning import TrainConfig
from lmloop.model.config import ModelConfig
from lmloop.model.cost import (
    cache_bytes_per_token,
    count_parameters,
    training_bytes,
    training_flops_per_token,
)
from lmloop.model.hardware import fast_dtype
from lmloop.model.init import initialise
from lmloop.model.transformer import Transformer
from lmloop.sections import ModelSection, parse_duration
from lmloop.tokens.loader import Batch
from lmloop.training.batch import batch_loss
from lmloop.training.optim import Optimizer
from lmloop.training.shape import model_config

CALIBRATION_SECONDS = 2.0
BYTES_PER_TOKEN = 3.4
"""Of English under a byte-level BPE of a few thousand entries; only for text not yet tokenized."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One training stage."""

    stage: str
    seconds: float
    steps: int
    tokens: int
    epochs: float
    """Passes over the text, from an estimate of its tokens."""
    memory: dict[str, int]
    """Bytes, a part each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that is foreseen."""

    parameters: int
    checkpoint_bytes: int
    cache_bytes_per_token: int
    text_bytes: int
    text_tokens: int
    tokens_per_second: float
    flops_per_second: float
    stages: tuple[StagePlan, ...]


def make_plan(
    shape: ModelSection, *, vocab_size: int, stages: dict[str, TrainConfig], text_bytes: int
) -> Plan:
    """Foresee the training stages; takes about three seconds for the calibration."""
    config = model_config(shape, vocab_size=vocab_size)
    parameters = count_parameters(config)
    text_tokens = int(text_bytes / BYTES_PER_TOKEN)
    first = next(iter(stages.values()))
    speed = _calibrate(config, first)
    return Plan(
        parameters=parameters,
        checkpoint_bytes=2 * parameters,
        cache_bytes_per_token=cache_bytes_per_token(config),
        text_bytes=text_bytes,
        text_tokens=text_tokens,
        tokens_per_second=speed,
        flops_per_second=speed * training_flops_per_token(config, row_tokens=first.row_tokens),
        stages=tuple(
            _plan_stage(name, section, config, speed, text_tokens)
            for name, section in stages.items()
        ),
    )


def _plan_stage(
    name: str, section: TrainConfig, config: ModelConfig, speed: float, text_tokens: int
) -> StagePlan:
    if section.steps is not None:
        steps = section.steps
        seconds = steps * section.batch_tokens / speed
    else:
        seconds = parse_duration(section.budget) if section.budget else 0.0
        steps = int(seconds * speed / section.batch_tokens)
    tokens = steps * section.batch_tokens
    memory = training_bytes(
        config, batch_tokens=section.batch_tokens, row_tokens=section.row_tokens
    )
    return StagePlan(
        stage=name,
        seconds=seconds,
        steps=steps,
        tokens=tokens,
        epochs=tokens / max(1, text_tokens),
        memory=memory,
    )


def _calibrate(config: ModelConfig, section: TrainConfig) -> float:
    """Tokens a second of whole training steps on random tokens."""
    model = Transformer(config)
    initialise(model, seed=0)
    model.to(fast_dtype() if section.precision == "auto" else getattr(torch, section.precision))
    optimizer = Optimizer(
        model,
        learning_rate=1e-4,
        matrix_learning_rate=1e-4,
        weight_decay=0.0,
        method=section.optimizer,
    )
    batch = _random_batch(config, section)
    seconds: list[float] = []
    while not seconds or sum(seconds) < CALIBRATION_SECONDS:
        start = time.perf_counter()
        batch_loss(model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step(1.0, clip=1.0)
        seconds.append(time.perf_counter() - start)
    # The first steps pay for memory and for the choice of kernels.
    return section.batch_tokens / float(np.median(seconds[1:] or seconds))


def _random_batch(config: ModelConfig, section: TrainConfig) -> Batch:
    shape = (section.batch_tokens // section.row_tokens, section.row_tokens)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, shape)
    learnt = np.ones(shape, dtype=np.bool_)
    positions = np.broadcast_to(np.arange(section.row_tokens), shape).copy()
    segments = np.zeros(shape, dtype=np.int64)
    batch = Batch(ids, ids, learnt, segments, positions)
    if config.encoder is None:
        return batch
    return replace(batch, source=ids, source_segments=segments, source_positions=positions)
