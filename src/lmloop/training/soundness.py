"""What a run does not trust: numbers that are none, and losses that jump.

Takes: losses step by step; a model and a batch that went wrong. Gives: what is wrong, and where it
begins.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

REMEMBERED = 50
"""Losses whose median a spike is measured by."""


class Soundness:
    """Judges each loss by those before it."""

    def __init__(self, *, spike: float | None, before: Iterable[float] = ()) -> None:
        """`spike`: how many times the median a loss may be; `before`: losses of earlier steps."""
        self._spike = spike
        self._losses = deque(before, maxlen=REMEMBERED)

    def judge(self, loss: float) -> str | None:
        """What is wrong with the loss of this step; a sound one is remembered."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if self._spike is not None and len(self._losses) == REMEMBERED:
            median = statistics.median(self._losses)
            if loss > self._spike * median:
                times = f"{loss / median:.1f} times the median of the last {REMEMBERED}"
                return f"the loss is {loss:.3f}, {times}"
        self._losses.append(loss)
        return None


def find_unsound(
    model: nn.Module,
    compute_loss: Callable[[], Tensor],
    own: Callable[[Tensor], Tensor] = lambda grad: grad,
) -> str | None:
    """Where numbers first stop being any: the name of a module or, behind it, of a parameter.

    `compute_loss` runs the batch again. Forward the first module whose output is not finite is
    named, backward the parameter nearest to the loss whose gradient is not; `own` gives what this
    rank has of one. Always goes both ways, as other ranks may have to.
    """
    with _watch(model) as found:
        loss = compute_loss()
    model.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    unsound = [
        name
        for name, each in model.named_parameters()
        if each.grad is not None and not own(each.grad).isfinite().all()
    ]
    model.zero_grad(set_to_none=True)
    return next(iter(found + unsound[-1:]), None)


@contextmanager
def _watch(model: nn.Module) -> Iterator[list[str]]:
    """Meanwhile modules whose output is not finite enter their names, the innermost first."""
    found: list[str] = []

    def note(name: str) -> Callable[..., None]:
        def look(module: nn.Module, given: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(name)

        return look

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if name:
                hooks.callback(module.register_forward_hook(note(name)).remove)
        yield found
