"""Two optimisers on one model: Muon for the hidden matrices, AdamW for everything else (or all).

Takes: a model whose parameters may be bfloat16. Gives: steps on fp32 master copies, rounded back
into the model. Matrices of one shape are orthogonalised together in one batched product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lmloop.model.names import fused_rows
from lmloop.model.transformer import Transformer

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
        x = x.transpose(1, 2)
    x = x / (x.norm(dim=(1, 2), keepdim=True) * 1.01 + 1e-7)
    for a, b, c in POLAR_EXPRESS:
        square = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if tall else x


@dataclass(slots=True)
class _Part:
    """Rows of a parameter that are one matrix: queries, keys and values are three."""

    name: str
    rows: slice


class Optimizer:
    """Muon and AdamW with fp32 master weights; its whole state is named tensors."""

    def __init__(
        self,
        model: Transformer,
        *,
        learning_rate: float,
        matrix_learning_rate: float,
        weight_decay: float,
        method: str = "muon",
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
    ) -> None:
        self._parameters = dict(model.named_parameters())
        self.master = {name: p.detach().float().clone() for name, p in self._parameters.items()}
        self._matrix_rate, self._decay, self._momentum = (
            matrix_learning_rate,
            weight_decay,
            momentum,
        )
        self._groups = _group_matrices(model) if method == "muon" else {}
        matrices = {part.name for group in self._groups.values() for part in group}
        self.momenta = {
            shape: torch.zeros(len(group), *shape) for shape, group in self._groups.items()
        }
        self._rest = [name for name in self._parameters if name not in matrices]
        hidden = [name for name in self._rest if _is_hidden_matrix(name, self.master[name])]
        plain = [name for name in self._rest if name not in hidden]
        self._adamw = torch.optim.AdamW(
            [
                {"params": [self.master[name] for name in hidden], "weight_decay": weight_decay},
                {"params": [self.master[name] for name in plain], "weight_decay": 0.0},
            ],
            lr=learning_rate,
            betas=betas,
            eps=1e-10,
            fused=True,
        )
        self._rate = learning_rate

    @torch.no_grad()
    def step(self, factor: float, *, clip: float) -> float:
        """One update at `factor` of the peak rates; gives the gradient's norm before clipping."""
        grads = {
            name: torch.zeros_like(p) if p.grad is None else p.grad
            for name, p in self._parameters.items()
        }
        norms = torch._foreach_norm(list(grads.values()), dtype=torch.float32)
        norm = float(torch.stack(norms).norm())
        self._step_matrices(grads, factor)
        shrink = min(1.0, clip / (norm + 1e-12))
        for name in self._rest:
            self.master[name].grad = grads[name].float().mul_(shrink)
        for group in self._adamw.param_groups:
            group["lr"] = self._rate * factor
        self._adamw.step()
        torch._foreach_copy_(list(self._parameters.values()), list(self.master.values()))
        for parameter in self._parameters.values():
            parameter.grad = None
        return norm

    def _step_matrices(self, grads: Mapping[str, Tensor], factor: float) -> None:
        rate = self._matrix_rate * factor
        for shape, group in self._groups.items():
            grad = torch.stack([grads[part.name][part.rows] for part in group]).float()
            momentum = self.momenta[shape].lerp_(grad, 1 - self._momentum)
            update = orthogonalise(grad.lerp_(momentum, self._momentum))
            size = rate * max(1.0, shape[0] / shape[1]) ** 0.5
            for part, change in zip(group, update, strict=True):
                rows = self.master[part.name][part.rows]
                rows.mul_(1 - rate * self._decay).add_(change.float(), alpha=-size)

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, as named tensors."""
        named = {f"master.{name}": tensor for name, tensor in self.master.items()}
        named |= {f"momentum.{r}x{c}": tensor for (r, c), tensor in self.momenta.items()}
        for name in self._rest:
            for key, tensor in self._adamw.state[self.master[name]].items():
                named[f"adamw.{key}.{name}"] = tensor
        return named

    @torch.no_grad()
    def load_state(self, named: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        for name, tensor in self.master.items():
            tensor.copy_(named[f"master.{name}"])
            self._parameters[name].copy_(tensor)
        for (rows, columns), tensor in self.momenta.items():
            tensor.copy_(named[f"momentum.{rows}x{columns}"])
        for name in self._rest:
            self._adamw.state[self.master[name]] = {
                key: named[f"adamw.{key}.{name}"].clone()
                for key in ("step", "exp_avg", "exp_avg_sq")
            }


def _is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.dim() == 2 and name.removeprefix("encoder.").startswith("blocks.")


def _group_matrices(model: Transformer) -> dict[tuple[int, int], list[_Part]]:
    """Hidden matrices by shape; fused products are taken apart."""
    groups: dict[tuple[int, int], list[_Part]] = {}
    for name, parameter in model.named_parameters():
        if not _is_hidden_matrix(name, parameter):
            continue
        start = 0
        for rows in fused_rows(model.config, name, len(parameter)):
            part = _Part(name, slice(start, start + rows))
            groups.setdefault((rows, parameter.shape[1]), []).append(part)
            start += rows
    return groups
