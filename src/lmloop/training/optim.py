"""The optimizer: fp32 master weights, the rules that move them, and what holds for every rule.

Takes: a model whose parameters may be bfloat16. Gives: steps on fp32 master copies, rounded back
into the model. Parameters that take no gradient stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from lmloop.learning import TrainConfig
from lmloop.model import kernels
from lmloop.model.names import fused_rows
from lmloop.model.transformer import Transformer
from lmloop.training.compact import SMALL, Compact
from lmloop.training.muon import Part
from lmloop.training.placement import Whole
from lmloop.training.ranks import ALONE
from lmloop.training.rules import Elementwise, Rule, ScheduleFree
from lmloop.training.scales import rate_scales


class Optimizer:
    """Clips, decays, moves and averages; its whole state is named tensors."""

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
        l1: float = 0.0,
        ema: float | None = None,
        scales: Mapping[str, float] | None = None,
        placement: Whole | None = None,
        state_bits: int = 32,
        offload: bool = False,
    ) -> None:
        """`method` as in a recipe; `scales` multiply the rates of parameters by name.

        With a `placement` this is the part of one rank: it has and moves its own of everything.
        With `offload` masters and all that the rules keep lie in the machine's memory, wherever the
        model is, and are updated there.
        """
        self._placement = placement = Whole(model, ALONE) if placement is None else placement
        self._parameters = {
            name: each for name, each in model.named_parameters() if each.requires_grad
        }
        with torch.no_grad():
            self._shown = {name: placement.own(p) for name, p in self._parameters.items()}
        self.master = {
            name: p.detach().to("cpu" if offload else p.device, torch.float32, copy=True)
            for name, p in self._shown.items()
        }
        self._matrices = [name for name, p in self.master.items() if is_hidden_matrix(name, p)]
        self._decay, self._l1, self._ema = weight_decay, l1, ema
        by_muon = self._matrices if method == "muon" else []
        scales = {} if scales is None else scales
        self._rates = {
            name: (matrix_learning_rate if name in by_muon else learning_rate)
            * scales.get(name, 1.0)
            for name in self.master
        }
        rest = {name: master for name, master in self.master.items() if name not in by_muon}
        rates = {name: self._rates[name] for name in rest}
        self._points: Mapping[str, Tensor] = self.master
        self._average = None if ema is None else {n: p.clone() for n, p in self.master.items()}
        self._averaged_steps = torch.zeros((), dtype=torch.float64, device="cpu")
        self._rules: list[Rule] = []
        if method == "schedule-free":
            free = ScheduleFree(rest, rates=rates, betas=betas)
            self._points, self._average = free.points, free.average
            self._rules = [free]
        else:
            if by_muon:
                parts = take_apart(model, by_muon)
                self._rules.append(
                    placement.make_muon(
                        self.master,
                        parts,
                        rates=self._rates,
                        momentum=momentum,
                        state_bits=state_bits,
                    )
                )
            self._rules += _make_elementwise(
                rest,
                method="sgd" if method == "sgd" else "adamw",
                rates=rates,
                momentum=momentum,
                betas=betas,
                least=SMALL if state_bits == 8 else None,
            )
        self._flat: Tensor | None = None
        self._gathered: dict[str, Tensor] = {}

    @torch.no_grad()
    def gather(self, share: float) -> None:
        """Add `share` of the model's gradients to those of the batch, in fp32, and clear them."""
        if self._flat is None:
            sizes = [master.numel() for master in self.master.values()]
            self._flat = torch.zeros(sum(sizes), device=next(iter(self.master.values())).device)
            pieces = zip(self.master.items(), torch.split(self._flat, sizes), strict=True)
            self._gathered = {name: piece.view_as(master) for (name, master), piece in pieces}
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                gathered, grad = self._gathered[name], self._placement.own(parameter.grad)
                gathered.add_(grad.to(gathered.device), alpha=share)
                parameter.grad = None

    @property
    def gathered(self) -> Tensor:
        """What was gathered of all parameters, fp32 in one piece."""
        assert self._flat is not None, "nothing was gathered"
        return self._flat

    def add_up(self) -> None:
        """Put the sum of what all ranks have gathered in place of each."""
        self._placement.add_up(self._gathered, self.gathered)

    @torch.no_grad()
    def step(self, factor: float, *, clip: float) -> float:
        """One update at `factor` of the peak rates; gives the gradient's norm before clipping.

        A gradient whose norm is no finite number moves nothing.
        """
        grads = self._take_gradients()
        norm = self._placement.norm(_norms(grads)) if grads else 0.0
        if not math.isfinite(norm):
            return norm
        self._shrink_matrices(factor)
        shrink = min(1.0, clip / (norm + 1e-12))
        for rule in self._rules:
            rule.step(grads, factor, shrink=shrink)
        self._follow()
        self._show(self.master)
        return norm

    def discard(self) -> None:
        """Forget the gradients of this batch."""
        self._flat, self._gathered = None, {}
        for parameter in self._parameters.values():
            parameter.grad = None

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Meanwhile the model holds the average of its weights, if one is kept."""
        if self._average is None:
            yield
            return
        self._show(self._average)
        try:
            yield
        finally:
            self._show(self.master)

    @property
    def result(self) -> Mapping[str, Tensor]:
        """The weights that the run is about, fp32: the average where one is kept."""
        return self.master if self._average is None else self._average

    def settle(self, weights: Mapping[str, Tensor]) -> None:
        """Leave these weights, fp32, in the model."""
        self._show(weights)

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, as named tensors."""
        named = {f"master.{name}": tensor for name, tensor in self.master.items()}
        for rule in self._rules:
            named |= rule.state()
        if self._ema is not None and self._average is not None:
            named |= {f"ema.{name}": tensor for name, tensor in self._average.items()}
            named["ema.steps"] = self._averaged_steps
        return named

    @torch.no_grad()
    def load_state(self, named: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        for rule in self._rules:
            rule.load_state(named)
        for name, tensor in self.master.items():
            tensor.copy_(named[f"master.{name}"])
        if self._ema is not None and self._average is not None:
            self._averaged_steps.copy_(named["ema.steps"])
            for name, tensor in self._average.items():
                tensor.copy_(named[f"ema.{name}"])
        self._show(self.master)

    def _take_gradients(self) -> dict[str, Tensor]:
        """What was gathered, or else what lies in the model; zeros where nothing does."""
        grads = {
            name: self._gathered[name]
            if name in self._gathered
            else (torch.zeros_like(p) if p.grad is None else p.grad).to(self.master[name].device)
            for name, p in self._parameters.items()
        }
        self.discard()
        return grads

    def _shrink_matrices(self, factor: float) -> None:
        """Decoupled decay and pull to zero of the hidden matrices, at their own rates."""
        for name in self._matrices if self._decay or self._l1 else ():
            rate, point = self._rates[name] * factor, self._points[name]
            point.mul_(1 - rate * self._decay)
            if self._l1:
                point.sub_(point.clamp(-rate * self._l1, rate * self._l1))

    def _follow(self) -> None:
        """Let the moving average follow: faster at first, so that it forgets where it began."""
        if self._ema is None or self._average is None:
            return
        self._averaged_steps += 1
        steps = float(self._averaged_steps)
        share = 1 - min(self._ema, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(list(self._average.values()), list(self.master.values()), share)

    @torch.no_grad()
    def _show(self, weights: Mapping[str, Tensor]) -> None:
        """Round fp32 weights into the model."""
        torch._foreach_copy_(list(self._shown.values()), [weights[name] for name in self._shown])


def make_optimizer(
    model: Transformer, config: TrainConfig, *, placement: Whole | None = None
) -> Optimizer:
    """The optimizer that a recipe asks for; sets apart what it freezes.

    Raises `TrainingError` for a pattern that fits no parameter.
    """
    scales = rate_scales(model, frozen=config.frozen, layer_decay=config.layer_decay)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and scales[name] > 0)
    return Optimizer(
        model,
        learning_rate=config.learning_rate,
        matrix_learning_rate=config.matrix_learning_rate,
        weight_decay=config.weight_decay,
        method=config.optimizer,
        momentum=config.momentum,
        l1=config.l1,
        ema=config.ema,
        scales=scales,
        placement=placement,
        state_bits=config.state_bits,
        offload=config.offload,
    )


def _make_elementwise(
    masters: Mapping[str, Tensor],
    *,
    method: str,
    rates: Mapping[str, float],
    momentum: float,
    betas: tuple[float, float],
    least: int | None,
) -> list[Rule]:
    """AdamW or SGD; in 8 bits for tensors of `least` numbers and more, where it is given."""
    large = [name for name, p in masters.items() if least is not None and p.numel() >= least]
    small = [name for name in masters if name not in large]
    rules: list[Rule] = []
    for kind, names in ((Elementwise, small), (Compact, large)):
        if names:
            own = {name: masters[name] for name in names}
            peaks = {name: rates[name] for name in names}
            rules.append(kind(own, method=method, rates=peaks, momentum=momentum, betas=betas))
    return rules


def _norms(grads: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if kernels.fits(*grads.values()) and all(each.is_contiguous() for each in grads.values()):
        return {name: kernels.euclidean_norm(grad) for name, grad in grads.items()}
    norms = torch._foreach_norm(list(grads.values()), dtype=torch.float32)
    return dict(zip(grads, norms, strict=True))


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon may move it, and decay shrinks it: matrices of blocks."""
    return parameter.dim() == 2 and name.removeprefix("encoder.").startswith("blocks.")


def take_apart(model: Transformer, names: Sequence[str]) -> Iterator[Part]:
    """The matrices of which fused products are made."""
    parameters = dict(model.named_parameters())
    for name in names:
        start, (total, columns) = 0, parameters[name].shape
        for index, rows in enumerate(fused_rows(model.config, name, total)):
            yield Part(name, index, slice(start, start + rows), columns)
            start += rows
