"""Rules that move each number by itself: AdamW, SGD, and AdamW without a schedule.

Takes: fp32 master weights, gradients by name. Gives: moved masters. Decay is the optimizer's part:
it is the same for every rule, and acts on the points that a rule moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

EPSILON = 1e-10


class Rule(Protocol):
    """Moves the masters that it was made with."""

    def step(self, grads: Mapping[str, Tensor], factor: float, *, shrink: float) -> None:
        """One step at `factor` of the peak rates; gradients count `shrink` times (clipping)."""

    def state(self) -> dict[str, Tensor]:
        """All that a resumed run needs, as named tensors."""

    def load_state(self, named: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""


class Elementwise:
    """One of PyTorch's own optimizers, fused."""

    def __init__(
        self,
        masters: Mapping[str, Tensor],
        *,
        method: str,
        rates: Mapping[str, float],
        momentum: float,
        betas: tuple[float, float],
    ) -> None:
        """`method` is "adamw" or "sgd"; `rates` are peak rates of all `masters`."""
        self._masters, self._method, self._peaks = masters, method, sorted(set(rates.values()))
        groups = [
            {"params": [masters[name] for name in masters if rates[name] == peak]}
            for peak in self._peaks
        ]
        self._inner: torch.optim.Optimizer
        if method == "sgd":
            self._inner = torch.optim.SGD(
                groups, lr=1.0, momentum=momentum, nesterov=momentum > 0, fused=True
            )
        else:
            self._inner = torch.optim.AdamW(
                groups, lr=1.0, betas=betas, eps=EPSILON, weight_decay=0.0, fused=True
            )

    def step(self, grads: Mapping[str, Tensor], factor: float, *, shrink: float) -> None:
        """As the rule says."""
        for name, master in self._masters.items():
            master.grad = grads[name].float().mul_(shrink)
        for group, peak in zip(self._inner.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        self._inner.step()
        for master in self._masters.values():
            master.grad = None

    def state(self) -> dict[str, Tensor]:
        """Moments by the parameter's name."""
        return {
            f"{self._method}.{key}.{name}": tensor
            for name, master in self._masters.items()
            for key, tensor in self._inner.state[master].items()
            if tensor is not None
        }

    def load_state(self, named: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        for name, master in self._masters.items():
            for key in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer"):
                tensor = named.get(f"{self._method}.{key}.{name}")
                if tensor is not None:
                    self._inner.state[master][key] = tensor.to(master.device, copy=True)


class ScheduleFree:
    """AdamW that needs no falling rate: gradients are taken between a fast point and its average.

    y = (1 − β) z + β x is what the master holds; z moves, x is the mean of all z so far, weighted
    by their rates squared. Source: Defazio et al. 2024, The Road Less Scheduled, algorithm 1.
    """

    def __init__(
        self,
        masters: Mapping[str, Tensor],
        *,
        rates: Mapping[str, float],
        betas: tuple[float, float],
    ) -> None:
        """`rates` are peak rates of all `masters`."""
        self._masters, self._rates, self._betas = masters, rates, betas
        self.points = {name: master.clone() for name, master in masters.items()}
        self.average = {name: master.clone() for name, master in masters.items()}
        self._squares = {name: torch.zeros_like(master) for name, master in masters.items()}
        # Steps taken and the sum of the weights of their points: one pair for all.
        self._counts = torch.zeros(2, dtype=torch.float64, device="cpu")

    def step(self, grads: Mapping[str, Tensor], factor: float, *, shrink: float) -> None:
        """As the rule says."""
        mix, second = self._betas
        steps, weights = float(self._counts[0]) + 1, float(self._counts[1]) + factor**2
        self._counts.copy_(torch.tensor([steps, weights], device="cpu"))
        share = factor**2 / weights if weights else 0.0
        correction = (1 - second**steps) ** 0.5
        for name, master in self._masters.items():
            grad = grads[name].float().mul_(shrink)
            squares, fast = self._squares[name], self.points[name]
            squares.mul_(second).addcmul_(grad, grad, value=1 - second)
            size = self._rates[name] * factor * correction
            fast.addcdiv_(grad, squares.sqrt().add_(EPSILON), value=-size)
            average = self.average[name].lerp_(fast, share)
            torch.lerp(fast, average, mix, out=master)

    def state(self) -> dict[str, Tensor]:
        """Fast points, averages and squares by the parameter's name."""
        parts = {"points": self.points, "average": self.average, "squares": self._squares}
        named = {
            f"free.{part}.{name}": tensor
            for part, tensors in parts.items()
            for name, tensor in tensors.items()
        }
        return named | {"free.counts": self._counts}

    def load_state(self, named: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        for name, tensor in self.state().items():
            tensor.copy_(named[name])
