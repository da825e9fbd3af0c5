"""Rules that move each number by itself: AdamW, SGD, and AdamW without a schedule.

Takes: fp32 master weights, gradients by name. Gives: moved masters. Decay is the optimizer's part:
it is the same for every rule, and acts on the points that a rule moves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

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
    """PyTorch's own AdamW or SGD with Nesterov's momentum, fused.

    Their functions are called, not the classes: making one of those imports PyTorch's compiler,
    which takes a second, and a short run has few of them.
    """

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
        self._masters, self._method = masters, method
        self._momentum, self._betas = momentum, betas
        self._groups = {
            peak: [name for name in masters if rates[name] == peak]
            for peak in sorted(set(rates.values()))
        }
        self._moments: dict[str, dict[str, Tensor]] = {name: {} for name in masters}

    def step(self, grads: Mapping[str, Tensor], factor: float, *, shrink: float) -> None:
        """As the rule says."""
        move = self._move_sgd if self._method == "sgd" else self._move_adamw
        for peak, names in self._groups.items():
            move(names, [grads[name].float().mul_(shrink) for name in names], rate=peak * factor)

    def state(self) -> dict[str, Tensor]:
        """Moments by the parameter's name."""
        return {
            f"{self._method}.{key}.{name}": tensor
            for name, moments in self._moments.items()
            for key, tensor in moments.items()
        }

    def load_state(self, named: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        for name, master in self._masters.items():
            for key in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer"):
                tensor = named.get(f"{self._method}.{key}.{name}")
                if tensor is not None:
                    self._moments[name][key] = tensor.to(master.device, copy=True)

    @torch.no_grad()
    def _move_adamw(self, names: Sequence[str], grads: list[Tensor], *, rate: float) -> None:
        for name in names:
            if not self._moments[name]:
                master = self._masters[name]
                self._moments[name] = {
                    "step": torch.zeros((), dtype=torch.float32, device=master.device),
                    "exp_avg": torch.zeros_like(master),
                    "exp_avg_sq": torch.zeros_like(master),
                }
        adamw(
            [self._masters[name] for name in names],
            grads,
            [self._moments[name]["exp_avg"] for name in names],
            [self._moments[name]["exp_avg_sq"] for name in names],
            [],
            [self._moments[name]["step"] for name in names],
            fused=True,
            amsgrad=False,
            beta1=self._betas[0],
            beta2=self._betas[1],
            lr=rate,
            weight_decay=0.0,
            eps=EPSILON,
            maximize=False,
        )

    @torch.no_grad()
    def _move_sgd(self, names: Sequence[str], grads: list[Tensor], *, rate: float) -> None:
        kept = [self._moments[name].get("momentum_buffer") for name in names]
        sgd(
            [self._masters[name] for name in names],
            grads,
            kept,
            fused=True,
            weight_decay=0.0,
            momentum=self._momentum,
            lr=rate,
            dampening=0.0,
            nesterov=self._momentum > 0,
            maximize=False,
        )
        for name, momentum in zip(names, kept, strict=True):
            if momentum is not None:
                self._moments[name]["momentum_buffer"] = momentum


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
