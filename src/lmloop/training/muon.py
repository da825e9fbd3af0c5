"""Muon: momentum whose matrices are made orthogonal before they move the weights.

Takes: fp32 master weights, gradients by name. Gives: moved masters. Matrices of one shape are
orthogonalised together in one batched product. Source: Jordan et al. 2024, Muon.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmloop.model import kernels

# Coefficients of five quintic steps towards the polar factor, each optimal for what the one before
# leaves. Source: Amsel et al. 2025, The Polar Express, algorithm 1; like there, each is flattened a
# little, or a singular value that bfloat16 has rounded to just above 1 would grow without end.
_FLATTER = 1.01
_OPTIMAL = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
POLAR_EXPRESS = tuple((a / _FLATTER, b / _FLATTER**3, c / _FLATTER**5) for a, b, c in _OPTIMAL)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Nearest semi-orthogonal matrices of [G, R, C], computed in bfloat16; gives the same shape."""
    x = matrices.to(torch.bfloat16)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2).contiguous()
    x = x / (x.norm(dim=(1, 2), keepdim=True) * 1.01 + 1e-7)
    if kernels.can_orthogonalise(x):
        kernels.orthogonalise_(x, POLAR_EXPRESS)
    else:
        for a, b, c in POLAR_EXPRESS:
            square = x @ x.transpose(1, 2)
            x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2).contiguous() if tall else x


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a parameter that are one matrix: queries, keys and values are three."""

    name: str
    index: int
    """Which of the parameter's matrices."""
    rows: slice
    columns: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows.stop - self.rows.start, self.columns


class Muon:
    """Moves matrices by their orthogonalised momentum."""

    def __init__(
        self,
        masters: Mapping[str, Tensor],
        parts: Iterable[Part],
        *,
        rates: Mapping[str, float],
        momentum: float,
    ) -> None:
        """`rates` are the peak rates of the parameters that `parts` name."""
        self._masters, self._rates, self._momentum = masters, rates, momentum
        self._groups: dict[tuple[int, int], list[Part]] = {}
        for part in parts:
            self._groups.setdefault(part.shape, []).append(part)
        self.momenta = {
            shape: torch.zeros(len(self._own(group)), *shape, device=masters[group[0].name].device)
            for shape, group in self._groups.items()
        }

    def step(self, grads: Mapping[str, Tensor], factor: float, *, shrink: float) -> None:
        """One step at `factor` of the rates; how long a gradient is does not matter (`shrink`)."""
        for (rows, columns), group in self._groups.items():
            grad = self._collect(grads, group)
            update = orthogonalise(self._follow((rows, columns), grad))
            self._move(group, update, factor * max(1.0, rows / columns) ** 0.5)

    def state(self) -> dict[str, Tensor]:
        """Momenta by the shape of their matrices."""
        return {f"momentum.{r}x{c}": tensor for (r, c), tensor in self.momenta.items()}

    def load_state(self, named: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        for name, tensor in self.state().items():
            tensor.copy_(named[name])

    def _own(self, group: Sequence[Part]) -> Sequence[Part]:
        """Those of one shape that are made orthogonal here."""
        return group

    def _collect(self, grads: Mapping[str, Tensor], group: Sequence[Part]) -> Tensor:
        """Whole gradients of this process's own of a group, [g, R, C]."""
        return torch.stack([grads[part.name][part.rows] for part in group])

    def _move(self, group: Sequence[Part], update: Tensor, size: float) -> None:
        """Move the masters of a group against the update [g, R, C] of this process's own."""
        for part, change in zip(group, update, strict=True):
            matrix, rate = self._masters[part.name][part.rows], size * self._rates[part.name]
            if kernels.fits(change):
                kernels.move_(matrix, change, rate)
            else:
                matrix.add_(change.float(), alpha=-rate)

    def _follow(self, shape: tuple[int, int], grad: Tensor) -> Tensor:
        """The direction of one shape, in the place of its gradient: Nesterov's look ahead."""
        if kernels.fits(grad):
            return kernels.follow_(self.momenta[shape], grad, 1 - self._momentum)
        grad = grad.float()
        momentum = self.momenta[shape].lerp_(grad, 1 - self._momentum)
        return grad.lerp_(momentum, self._momentum)
