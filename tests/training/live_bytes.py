"""Bytes that training takes: of live tensors as PyTorch counts, of a process as Linux does."""

from __future__ import annotations

import ctypes
import gc
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from lmloop.learning import PretrainConfig, TrainConfig
from lmloop.model.config import ModelConfig
from lmloop.model.hardware import fast_dtype
from lmloop.model.init import initialise
from lmloop.model.transformer import Transformer
from lmloop.training.adapting import adapt
from lmloop.training.batch import batch_loss
from lmloop.training.calibrate import draw_batch
from lmloop.training.optim import make_optimizer
from lmloop.training.teacher import Teacher


def make_shape(width: int, layers: int, vocabulary: int, **changes: Any) -> ModelConfig:
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "num_layers": layers,
        "hidden_size": width,
        "num_heads": width // 32,
        "num_kv_heads": max(1, width // 64),
        "head_dim": 32,
        "intermediate_size": 3 * width,
        "context_length": 256,
    }
    return ModelConfig(**(sizes | changes))


def make_section(batch: int = 256, row: int = 64, **changes: Any) -> PretrainConfig:
    sizes = {"steps": 1, "batch_tokens": batch, "row_tokens": row, "precision": "float32"}
    return PretrainConfig(**(sizes | changes))


def make_step(
    config: ModelConfig, section: TrainConfig, *, teacher: ModelConfig | None = None
) -> tuple[Callable[[], None], Callable[[], list[Tensor]]]:
    """A training step, and what lies there between two of them."""
    model = Transformer(config)
    initialise(model, seed=0)
    model.to(getattr(torch, section.precision))
    model.checkpoint(section.checkpointing)
    adapt(model, section, seed=0)
    optimizer = make_optimizer(model, section)
    taught = None if teacher is None else make_teacher(teacher)
    teach = None if taught is None else taught.teach
    pieces = section.batch_rows // section.micro_batch_rows
    model.train()
    batch = draw_batch(config, section.micro_batch_rows, section.row_tokens)
    # As packed rows have: two documents, so that a mask is due.
    segments = np.zeros_like(batch.segments)
    segments[:, section.row_tokens // 2 :] = 1
    batch = replace(batch, segments=segments)

    def step() -> None:
        for _ in range(pieces):
            batch_loss(model, batch, teach=teach).backward()
            if pieces > 1:
                optimizer.gather(1 / pieces)
        optimizer.step(1.0, clip=1.0)

    asked = [] if taught is None else [*taught.model.parameters()]
    held = [*model.parameters(), *model.buffers(), *asked]
    return step, lambda: [*held, *optimizer.state().values()]


def make_teacher(config: ModelConfig) -> Teacher:
    """A teacher of random weights, as `open_teacher` lays one out."""
    model = Transformer(config)
    initialise(model, seed=1)
    model.to(fast_dtype()).requires_grad_(False)
    return Teacher(model=model.eval(), share=0.5, temperature=2.0)


def count_live_bytes(
    config: ModelConfig, section: TrainConfig, *, teacher: ModelConfig | None = None
) -> int:
    """The most tensors at any time of a second step."""
    step, keep = make_step(config, section, teacher=teacher)
    step()
    gc.collect()  # what is freed while it is watched would count as less than nothing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            step()
    held = highest = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    return highest + sum(each.nbytes for each in keep())


def print_resident_bytes(optimizer: str, precision: str) -> None:
    """What a process holds at most beyond what a tiny model needs."""
    torch.set_num_threads(1)
    changes = {"optimizer": optimizer, "precision": precision}
    make_step(make_shape(64, 1, 64), make_section(64, 32, **changes))[0]()
    ctypes.CDLL(None).malloc_trim(0)
    before = _read_status("VmRSS")
    step, _ = make_step(RESIDENT, make_section(4096, 256, **changes))
    step()
    step()
    print(_read_status("VmHWM") - before)


RESIDENT = make_shape(512, 4, 4000)
"""About 15 million parameters."""


def _read_status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


if __name__ == "__main__":
    print_resident_bytes(*sys.argv[1:])
