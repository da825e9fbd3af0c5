"""The feed-forward layer of a block, each token by itself: one, or the best of many.

Axes: N tokens, D width, I inner width, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from lmloop.model.config import Activation, Experts, ModelConfig
from lmloop.model.functions import swiglu
from lmloop.model.linear import Linear

if TYPE_CHECKING:
    from jaxtyping import Float, Int

ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}
"""Sources: Hendrycks and Gimpel 2016 (gelu, silu); So et al. 2021, Primer (relu2)."""


def activate(
    inner: Float[Tensor, "N I"], *, activation: Activation, gated: bool
) -> Float[Tensor, "N J"]:
    """activation(gate) · up of inner = [gate | up], or of the whole where nothing is gated.

    Source: Shazeer 2020, GLU Variants Improve Transformer.
    """
    if gated and activation == "silu":
        return swiglu(inner)
    if not gated:
        return ACTIVATIONS[activation](inner)
    gate, up = inner.chunk(2, dim=-1)
    return ACTIVATIONS[activation](gate) * up


class FeedForward(nn.Module):
    """down(activation(up(x))); where it is gated, gate and up are one product."""

    def __init__(self, config: ModelConfig, *, size: int) -> None:
        super().__init__()
        self.activation, self.gated = config.activation, config.gated
        width, bias = config.hidden_size, config.feed_forward_bias
        self.up = Linear(width, size * (2 if config.gated else 1), bias=bias)
        self.down = Linear(size, width, bias=bias)

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Each token by itself."""
        inner = activate(self.up(x), activation=self.activation, gated=self.gated)
        output: Tensor = self.down(inner)
        return output


class MixtureOfExperts(nn.Module):
    """Each token passes the few experts that a router gives it, weighted by its confidence.

    Source: Shazeer et al. 2017, Outrageously Large Neural Networks; the shares are those of Qwen3.
    """

    def __init__(self, config: ModelConfig, experts: Experts) -> None:
        super().__init__()
        self.experts, self.activation, self.gated = experts, config.activation, config.gated
        width, inner = config.hidden_size, experts.size * (2 if config.gated else 1)
        self.router = nn.Linear(width, experts.count, bias=False)
        self.up = nn.Parameter(torch.zeros(experts.count, inner, width))
        self.down = nn.Parameter(torch.zeros(experts.count, width, experts.size))
        self.shared = FeedForward(config, size=experts.shared_size) if experts.shared_size else None

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Each token by itself; while training, the balance loss hangs on the output."""
        chances = self.router(x).softmax(-1, dtype=torch.float32)
        shares, chosen = self.choose(chances)
        output = torch.zeros_like(x) if self.shared is None else self.shared(x)
        # One expert after the other: what a token gets depends on no other token of the batch.
        for expert in range(self.experts.count):
            rows, place = (chosen == expert).nonzero(as_tuple=True)
            if len(rows):
                inner = F.linear(x[rows], self.up[expert])
                inner = activate(inner, activation=self.activation, gated=self.gated)
                mixed = F.linear(inner, self.down[expert]) * shares[rows, place, None].to(x.dtype)
                output = output.index_add(0, rows, mixed)
        if self.training and self.experts.balance:
            loss = self.experts.balance * balance_loss(chances, chosen)
            output = _WithLoss.apply(output, loss)  # type: ignore[no-untyped-call]
        return output

    def choose(
        self, chances: Float[Tensor, "N E"]
    ) -> tuple[Float[Tensor, "N k"], Int[Tensor, "N k"]]:
        """The experts that each token passes, and the share that each of them has in it."""
        shares, chosen = chances.topk(self.experts.active, dim=-1)
        if self.experts.normalise:
            shares = shares / shares.sum(-1, keepdim=True)
        return shares, chosen


def balance_loss(chances: Float[Tensor, "N E"], chosen: Int[Tensor, "N k"]) -> Float[Tensor, ""]:
    """E · Σ (share of the choices) · (mean chance) over the experts: 1 where all are equally busy.

    Source: Fedus et al. 2021, Switch Transformers, equations 4 to 6.
    """
    count = chances.shape[1]
    busy = torch.bincount(chosen.flatten(), minlength=count) / max(1, chosen.numel())
    return count * (busy * chances.mean(0)).sum()


class _WithLoss(Function):
    """The output as it is, with a loss that is added to whatever is learnt from it."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, loss: Tensor) -> Tensor:
        ctx.like = loss
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0], torch.ones_like(ctx.like)
