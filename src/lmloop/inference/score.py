"""How likely the model finds given text: the nats of every token, exactly once each.

Takes: documents as ids. Gives: nats. A document longer than the context is read in windows that
overlap by half; each token is counted in the first window that holds it. Axes: B windows, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmloop.model.rows import PackedRows
from lmloop.model.transformer import Transformer

TOKENS_AT_ONCE = 8192


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of a document: ids, and from which target on they count."""

    ids: NDArray[np.int64]
    """Inputs and, shifted by one, targets: length T + 1."""
    first: int
    """Targets before this one were counted in an earlier window."""
    document: int


def cut_windows(documents: Iterable[NDArray[np.int64]], *, context_length: int) -> Iterator[Window]:
    """Windows over documents of at least two ids; every target counts exactly once."""
    step = max(1, context_length // 2)
    for index, ids in enumerate(documents):
        start, counted = 0, 0
        while counted < len(ids) - 1:
            stop = min(start + context_length, len(ids) - 1)
            yield Window(ids[start : stop + 1], counted - start, index)
            start, counted = start + step, stop


@torch.inference_mode()
def score_windows(model: Transformer, windows: Sequence[Window]) -> list[float]:
    """Nats of the counted targets of each window, computed in the model's dtype, summed in fp64."""
    order = sorted(range(len(windows)), key=lambda index: len(windows[index].ids))
    nats = [0.0] * len(windows)
    while order:
        longest = len(windows[order[-1]].ids) - 1
        chosen = [order.pop() for _ in range(min(len(order), max(1, TOKENS_AT_ONCE // longest)))]
        batch = [windows[index] for index in chosen]
        for index, value in zip(chosen, _score(model, batch, longest), strict=True):
            nats[index] = value
    return nats


def _score(model: Transformer, batch: Sequence[Window], length: int) -> list[float]:
    ids = np.zeros((len(batch), length + 1), dtype=np.int64)
    counted = np.zeros((len(batch), length), dtype=np.bool_)
    for row, window in enumerate(batch):
        ids[row, : len(window.ids)] = window.ids
        counted[row, window.first : len(window.ids) - 1] = True
    rows = torch.from_numpy(ids).to(model.device)
    chosen = torch.from_numpy(np.flatnonzero(counted)).to(model.device)
    positions = torch.arange(length, device=model.device).repeat(len(batch))
    view = PackedRows(rows=len(batch), length=length)
    hidden = model.encode(rows[:, :-1].flatten(), positions, view)[chosen]
    surprise = token_nats(model, hidden, rows[:, 1:].flatten()[chosen])
    per_row = np.split(surprise.cpu().double().numpy(), np.cumsum(counted.sum(axis=1))[:-1])
    return [float(values.sum()) for values in per_row]


def token_nats(model: Transformer, hidden: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats, fp32 [N], of hidden states [N, D] against ids [N]."""
    parts = []
    for states, wanted in zip(torch.split(hidden, 1024), torch.split(targets, 1024), strict=True):
        logits = model.project(states).float()
        parts.append(torch.nn.functional.cross_entropy(logits, wanted, reduction="none"))
    return torch.cat(parts) if parts else torch.zeros(0)
