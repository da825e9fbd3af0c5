"""The 14M reference decoder's sizes, and how a training step is timed: the same for all."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

LAYERS, WIDTH, HEADS, FEED_FORWARD, VOCABULARY = 6, 384, 6, 1024, 8192
ROW, ROWS = 256, 16
PARAMETERS = VOCABULARY * WIDTH + LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * FEED_FORWARD)
FLOPS_A_STEP = ROW * ROWS * (6 * PARAMETERS + 12 * LAYERS * WIDTH * ROW)


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
