"""Losses over a large vocabulary without ever holding all logits.

Takes: hidden states [N, D], the output matrix [V, D], targets [N]; with a teacher its hidden states
as well. Gives: the mean loss in nats; the gradients are made in the same pass, chunk by chunk,
while the logits are still in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from lmloop.model import kernels
from lmloop.model.transformer import Transformer

CHUNK_ELEMENTS = 1 << 21
"""Logits held at once: a chunk's tokens times the vocabulary."""
GROUP_ELEMENTS = 1 << 24
"""Gradients of logits held at once: the matrix's gradient is summed up once a group of chunks."""


Differentiate = Callable[[Tensor, slice], Tensor]
"""Summed loss (fp32) of the logits [n, V] of a slice of the states; its gradient takes their place.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What a teacher says of the states of a batch, and how much that counts."""

    states: Tensor
    """Its own hidden states [N, D'], without a gradient."""
    project: Callable[[Tensor], Tensor]
    """Its logits [n, V'] of n of them."""
    share: float
    """Weight of the divergence from it; the targets have the rest."""
    temperature: float
    """What both models' logits are divided by before they are compared."""

    def pick(self, index: Tensor) -> Lesson:
        """Of some of the states alone."""
        return replace(self, states=self.states[index])


class _ChunkedLoss(Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, differentiate: Differentiate) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        learns = ctx.needs_input_grad[1]  # a frozen matrix's share is a third of the work here
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if learns else None
        size = max(1, CHUNK_ELEMENTS // len(weight))
        group = max(size, GROUP_ELEMENTS // len(weight) // size * size)
        grads = hidden.new_empty(min(group, len(hidden)), len(weight))
        for first in range(0, len(hidden), group):
            last = min(first + group, len(hidden))
            for start in range(first, last, size):
                part = slice(start, min(start + size, last))
                grad = grads[part.start - first : part.stop - first]
                torch.mm(hidden[part], weight.t(), out=grad)
                total += differentiate(grad, part)
                torch.mm(grad, weight, out=grad_hidden[part])
            if grad_weight is not None:
                grad_weight += _sum_tokens(grads[: last - first], hidden[first:last])
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total / max(1, len(hidden))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grads[0] / max(1, len(grad_hidden))
        if grad_weight is not None:
            grad_weight = (grad_weight * scale).to(grad_hidden.dtype)
        return grad_hidden * scale, grad_weight, None


def _sum_tokens(grads: Tensor, hidden: Tensor) -> Tensor:
    """The gradient [V, D] of the output matrix of that of logits [n, V] and the states [n, D]."""
    if kernels.can_sum_tokens(hidden, rows=grads.shape[1]):
        return kernels.sum_tokens(grads, hidden)
    return grads.t() @ hidden


def _differentiate(logits: Tensor, wanted: Tensor, smoothing: float) -> Tensor:
    """Summed loss (fp32) of logits [n, V] for wanted [n]; its gradient takes their place."""
    if kernels.fits(logits):
        return kernels.cross_entropy_(logits, wanted, smoothing=smoothing)
    wanted = wanted[:, None]
    chances = torch.softmax(logits, dim=-1, dtype=torch.float32)
    found = chances.gather(1, wanted)
    loss = -found.clamp(min=1e-37).log().sum()
    if smoothing:
        # Of a target spread evenly: −mean(log p) = −log p(wanted) + its logit − mean of the logits.
        ahead = logits.gather(1, wanted).float() - logits.mean(
            -1, keepdim=True, dtype=torch.float32
        )
        loss += smoothing * ahead.sum()
        chances -= smoothing / logits.shape[1]
        found = chances.gather(1, wanted) + smoothing
    chances.scatter_(1, wanted, found - 1.0)
    logits.copy_(chances)
    return loss


def _learn(
    logits: Tensor, wanted: Tensor, states: Tensor, smoothing: float, lesson: Lesson
) -> Tensor:
    """As `_differentiate`, with what the teacher says of the same `states`.

    With p and q the student's and the teacher's chances at the temperature T, the gradient of
    T² · KL by the student's logits is T · (p - q).
    """
    said, given = _soften(logits, states, lesson)
    loss = _differentiate(logits, wanted, smoothing)
    apart = _diverge(said, given, lesson)
    mixed = said.exp_().sub_(given).mul_(lesson.share * lesson.temperature)
    logits.copy_(mixed.add_(logits, alpha=1 - lesson.share))
    return (1 - lesson.share) * loss + lesson.share * apart


def _soften(logits: Tensor, states: Tensor, lesson: Lesson) -> tuple[Tensor, Tensor]:
    """The student's log-chances and the teacher's chances, fp32 [n, V], at the temperature.

    An id that only one of both models has is never said by the teacher.
    """
    taught = lesson.project(states)
    more = logits.shape[1] - taught.shape[1]
    taught = F.pad(taught, (0, more), value=-math.inf) if more else taught
    said = torch.log_softmax(logits.float() / lesson.temperature, dim=-1)
    return said, torch.softmax(taught.float() / lesson.temperature, dim=-1)


def _diverge(said: Tensor, given: Tensor, lesson: Lesson) -> Tensor:
    """Summed T² · KL(teacher ‖ student)."""
    apart: Tensor = torch.special.xlogy(given, given).sum() - (given * said).sum()
    return apart * lesson.temperature**2


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    smoothing: float = 0.0,
    lesson: Lesson | None = None,
) -> Tensor:
    """Mean cross-entropy in nats (fp32 scalar) of hidden [N, D] · weight [V, D]ᵀ against [N].

    `smoothing` is the share of each target that is spread over the vocabulary (Szegedy et al. 2015,
    section 7). Of no targets the loss is 0: a batch of fine-tuning may hold no answer. A target
    whose probability is less than fp32 can hold counts as 85 nats; its gradient is exact.

    With a `lesson` of share s and temperature T the loss is (1 - s) · cross-entropy + s · T² ·
    KL(teacher ‖ student), both softened by T (Hinton et al. 2015, section 2). The logits of both
    models exist a chunk at a time.
    """

    def differentiate(logits: Tensor, part: slice) -> Tensor:
        if lesson is None:
            return _differentiate(logits, targets[part], smoothing)
        return _learn(logits, targets[part], lesson.states[part], smoothing, lesson)

    result: Tensor = _ChunkedLoss.apply(hidden, weight, differentiate)  # type: ignore[no-untyped-call]
    return result


def head_loss(
    model: Transformer,
    hidden: Tensor,
    targets: Tensor,
    *,
    smoothing: float = 0.0,
    lesson: Lesson | None = None,
) -> Tensor:
    """Mean cross-entropy in nats (fp32 scalar) of a model's hidden [N, D] against [N].

    `smoothing` and `lesson` as in `chunked_cross_entropy`. A head that is more than one matrix
    holds all logits at once.
    """
    head = model.head
    after = model.config.logit_scale, model.config.logit_cap
    is_matrix = model.transform is None and after == (1.0, None)
    if head is not None and head.bias is None and is_matrix:
        return chunked_cross_entropy(
            hidden, head.weight, targets, smoothing=smoothing, lesson=lesson
        )
    logits = model.project(hidden).float()
    total = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    if lesson is not None:
        said, given = _soften(logits, lesson.states, lesson)
        apart = _diverge(said, given, lesson)
        total = (1 - lesson.share) * total + lesson.share * apart
    return total / max(1, len(targets))
