"""Early stopping: the best weights so far, and how long nothing was better.

Takes: a figure that should fall, and weights. Gives: whether it is time to end, and what to keep.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


class Patience:
    """Keeps the weights of the lowest figure; its state goes into a run's snapshots."""

    def __init__(self, most: int) -> None:
        """`most` is how many looks in a row may bring nothing better."""
        self.value, self.waited, self._most = math.inf, 0, most
        self.weights: dict[str, Tensor] = {}

    @property
    def is_over(self) -> bool:
        """Whether the last `most` looks were all in vain."""
        return self.waited >= self._most

    def look(self, value: float, weights: Mapping[str, Tensor]) -> None:
        """Compare with the best so far; what is no number is never better."""
        if value < self.value:
            self.value, self.waited = value, 0
            self.weights = {name: tensor.clone() for name, tensor in weights.items()}
        else:
            self.waited += 1

    def state(self) -> dict[str, Tensor]:
        """Figure, looks in vain and weights, as named tensors."""
        counts = torch.tensor([self.value, self.waited], dtype=torch.float64)
        return {"best": counts} | {f"best.{name}": each for name, each in self.weights.items()}

    def load_state(self, named: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self.value, self.waited = float(named["best"][0]), int(named["best"][1])
        self.weights = {
            name.removeprefix("best."): tensor
            for name, tensor in named.items()
            if name.startswith("best.")
        }
