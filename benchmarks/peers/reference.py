"""The 14M reference decoder's sizes, and how a training step is timed: the same for all."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

LAYERS, WIDTH, HEADS, FEED_FORWARD, VOCABULARY = 6, 384, 6, 1024, 8192
ROW, ROWS = 256, 16
PARAMETERS = VOCABULARY * WIDTH + LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * FEED_FORWARD)
FLOPS_A_STEP = ROW * ROWS * (6 * PARAMETERS + 12 * LAYERS * WIDTH * ROW)


def time_model(model: Any, compute_loss: Callable[[], Any]) -> None:
    """Time whole steps under bfloat16 autocast, or the gradient alone: `gradient DTYPE` asks so."""
    import torch

    if sys.argv[1] == "gradient":
        model.to(getattr(torch, sys.argv[2]))

        def step() -> None:
            compute_loss().backward()
            model.zero_grad(set_to_none=True)

        time_steps(step)
        return
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def whole_step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = compute_loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    time_steps(whole_step)


def time_steps(step: Callable[[], None], *, warmup: int = 3, repeats: int = 8) -> None:
    """Run steps and print the median's seconds, tokens and GFLOP a second as JSON."""
    for _ in range(warmup):
        step()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    middle = statistics.median(seconds)
    result = {
        "seconds": middle,
        "tokens_per_second": ROW * ROWS / middle,
        "gflops": FLOPS_A_STEP / middle / 1e9,
    }
    print(json.dumps(result))
