"""What opening a model costs this process: the same measure for ours and the peer."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

REPEATS = 5


def measure(load: Callable[[], torch.nn.Module]) -> dict[str, float]:
    """Median seconds of opening, and with every weight read; MB at the peak beyond the weights."""
    torch.set_num_threads(2)
    before = _kept("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark begins here
    model = load()
    _read(model)
    own = sum(parameter.nbytes for parameter in model.parameters())
    beyond = _kept("VmHWM") - before - own
    loads, reads = [], []
    for _ in range(REPEATS):
        del model
        start = time.perf_counter()
        model = load()
        loads.append(time.perf_counter() - start)
        _read(model)
        reads.append(time.perf_counter() - start)
    return {
        "load": statistics.median(loads),
        "load_and_read": statistics.median(reads),
        "beyond": max(beyond, 1) / 1e6,
    }


@torch.no_grad()
def _read(model: torch.nn.Module) -> None:
    for parameter in model.parameters():
        parameter.sum()


def _kept(name: str) -> int:
    found = re.search(name + r":\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
