"""What this machine multiplies at most: the rate that a run's own arithmetic is a share of.

Takes: a dtype and a device. Gives: operations a second of plain matrix products.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

SECONDS = 0.1
"""How long is measured: little beside the shortest run, enough for dozens of products."""
SIZES = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the first product, by kind of device."""
MOST_DOUBLINGS = 2


def measure_peak(
    dtype: torch.dtype,
    *,
    device: torch.device | None = None,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Operations a second of the best product within about `seconds`; a multiply-add counts as two.

    Products grow as long as the time allows. No state of any random generator changes.
    """
    device = device or torch.device("cpu")
    size = SIZES.get(device.type, 1024)
    best, start = 0.0, clock()
    for doubling in range(MOST_DOUBLINGS + 1):
        fill = torch.Generator(device).manual_seed(0)
        left, right = (
            torch.randn(size, size, generator=fill, device=device).to(dtype) for _ in range(2)
        )
        until = start + seconds * (doubling + 1) / (MOST_DOUBLINGS + 1)
        # The first product pays for memory and for the choice of a kernel.
        times = [_multiply(left, right, clock) for _ in range(2)]
        while clock() < until:
            times.append(_multiply(left, right, clock))
        best = max(best, 2 * size**3 / max(min(times), 1e-9))
        size *= 2
        if clock() + 2 * 8 * min(times) > start + seconds:
            break
    return best


def _multiply(left: torch.Tensor, right: torch.Tensor, clock: Callable[[], float]) -> float:
    """Seconds of one product."""
    begun = clock()
    torch.matmul(left, right)
    if left.is_cuda:
        torch.cuda.synchronize(left.device)
    return clock() - begun
