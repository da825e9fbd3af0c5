"""A training step of ours on the reference decoder, or the matrix rate: a child script."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from lmloop.model.config import ModelConfig
from lmloop.model.hardware import tune_process
from lmloop.model.init import initialise
from lmloop.model.transformer import Transformer
from lmloop.tokens.loader import Batch
from lmloop.training.batch import batch_loss
from lmloop.training.optim import Optimizer
from reference import (
    FEED_FORWARD,
    HEADS,
    LAYERS,
    ROW,
    ROWS,
    VOCABULARY,
    WIDTH,
    time_steps,
)


def measure_matrix_rate() -> None:
    """GFLOP/s of the best of a few large bfloat16 products."""
    rates = []
    for size in (1024, 2048, 4096):
        left, right = (torch.randn(size, size, dtype=torch.bfloat16) for _ in range(2))
        for _ in range(5):
            start = time.perf_counter()
            left @ right
            rates.append(2 * size**3 / (time.perf_counter() - start) / 1e9)
    print(json.dumps({"gflops": max(rates)}))


def measure_training(method: str, dtype: torch.dtype = torch.bfloat16) -> None:
    """Whole steps as `lmloop pretrain` takes them; with method "gradient" no update."""
    config = ModelConfig(
        vocab_size=VOCABULARY,
        num_layers=LAYERS,
        hidden_size=WIDTH,
        num_heads=HEADS,
        num_kv_heads=HEADS,
        head_dim=WIDTH // HEADS,
        intermediate_size=FEED_FORWARD,
        context_length=ROW,
    )
    model = Transformer(config)
    initialise(model, seed=0)
    model.to(dtype)
    ids = np.random.default_rng(0).integers(1, VOCABULARY, (ROWS, ROW + 1))
    positions = np.tile(np.arange(ROW), (ROWS, 1))
    learnt = np.ones((ROWS, ROW), dtype=np.bool_)
    batch = Batch(ids[:, :-1], ids[:, 1:], learnt, np.zeros_like(positions), positions)

    def gradient() -> None:
        batch_loss(model, batch).backward()
        model.zero_grad(set_to_none=True)

    if method == "gradient":
        time_steps(gradient)
        return
    optimizer = Optimizer(
        model, learning_rate=1e-3, matrix_learning_rate=0.02, weight_decay=0.0, method=method
    )

    def step() -> None:
        batch_loss(model, batch).backward()
        optimizer.step(1.0, clip=1.0)

    time_steps(step)


if __name__ == "__main__":
    tune_process()
    if sys.argv[1] == "matrix":
        measure_matrix_rate()
    else:
        measure_training(sys.argv[1], *(getattr(torch, name) for name in sys.argv[2:]))
