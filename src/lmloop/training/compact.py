"""The rules with their memory of gradients in 8 bits: AdamW, SGD and Muon.

Takes: fp32 master weights, gradients by name. Gives: moved masters. What is remembered is rounded
once a step; the step itself is fp32. Small tensors gain nothing from it and are left to the exact
rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lmloop.training.moments import Moment, pieces
from lmloop.training.muon import Muon, Part
from lmloop.training.rules import EPSILON

SMALL = 4096
"""Numbers of a tensor below which its state stays fp32."""


class Compact:
    """AdamW, or SGD with Nesterov's momentum, on tensors of at least `SMALL` numbers.

    Of AdamW's second moment the root is kept: it is what a step is divided by, and in 7 powers of
    ten a root reaches down as far as its square does in 14.
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
        self._masters, self._method, self._rates = masters, method, rates
        self._momentum, self._betas = momentum, betas
        signs = {"momentum": True} if method == "sgd" else {"first": True, "root": False}
        self._moments = {
            name: {
                kind: Moment(master.numel(), signed=signed, device=master.device)
                for kind, signed in signs.items()
            }
            for name, master in masters.items()
        }
        self._steps = torch.zeros((), dtype=torch.int64, device="cpu")

    def step(self, grads: Mapping[str, Tensor], factor: float, *, shrink: float) -> None:
        """As the rule says, piece by piece."""
        self._steps += 1
        move = self._move_sgd if self._method == "sgd" else self._move_adamw
        for name, master in self._masters.items():
            numbers, grad = master.view(-1), grads[name].reshape(-1)
            for part in pieces(len(numbers)):
                move(
                    numbers[part],
                    grad[part].float() * shrink,
                    self._moments[name],
                    part,
                    size=self._rates[name] * factor,
                )

    def state(self) -> dict[str, Tensor]:
        """Codes and scales by the parameter's name."""
        named = {f"{self._method}8.steps": self._steps}
        for name, moments in self._moments.items():
            for kind, moment in moments.items():
                named |= moment.state(f"{self._method}8.{kind}.{name}")
        return named

    def load_state(self, named: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        for name, tensor in self.state().items():
            tensor.copy_(named[name])

    def _move_adamw(
        self,
        numbers: Tensor,
        grad: Tensor,
        moments: Mapping[str, Moment],
        part: slice,
        *,
        size: float,
    ) -> None:
        (share, second), steps = self._betas, int(self._steps)
        first = moments["first"].read(part).lerp_(grad, 1 - share)
        root = moments["root"].read(part).square_().mul_(second)
        root.addcmul_(grad, grad, value=1 - second).sqrt_()
        moments["first"].write(part, first)
        moments["root"].write(part, root)
        below = root.div_((1 - second**steps) ** 0.5).add_(EPSILON)
        numbers.addcdiv_(first, below, value=-size / (1 - share**steps))

    def _move_sgd(
        self,
        numbers: Tensor,
        grad: Tensor,
        moments: Mapping[str, Moment],
        part: slice,
        *,
        size: float,
    ) -> None:
        direction = moments["momentum"].read(part).mul_(self._momentum).add_(grad)
        moments["momentum"].write(part, direction)
        numbers.add_(grad.add_(direction, alpha=self._momentum), alpha=-size)


class CompactMuon(Muon):
    """Muon whose momenta are kept in 8 bits."""

    def __init__(
        self,
        masters: Mapping[str, Tensor],
        parts: Iterable[Part],
        *,
        rates: Mapping[str, float],
        momentum: float,
    ) -> None:
        """As of Muon."""
        super().__init__(masters, parts, rates=rates, momentum=momentum)
        self._moments = {
            shape: Moment(each.numel(), signed=True, device=each.device)
            for shape, each in self.momenta.items()
        }
        self.momenta = {}

    def state(self) -> dict[str, Tensor]:
        """Codes and scales by the shape of the matrices."""
        named: dict[str, Tensor] = {}
        for (rows, columns), moment in self._moments.items():
            named |= moment.state(f"momentum8.{rows}x{columns}")
        return named

    def _follow(self, shape: tuple[int, int], grad: Tensor) -> Tensor:
        """Of the exact momentum of this step; what is kept of it is rounded."""
        grad = grad.float()
        moment, numbers = self._moments[shape], grad.view(-1)
        for part in pieces(len(numbers)):
            momentum = moment.read(part).lerp_(numbers[part], 1 - self._momentum)
            moment.write(part, momentum)
            numbers[part].lerp_(momentum, self._momentum)
        return grad
