"""Cross-entropy over a large vocabulary without ever holding all logits.

Takes: hidden states [N, D], the output matrix [V, D], targets [N]. Gives: the mean loss in nats;
the gradients are made in the same pass, chunk by chunk, while the logits are still in the cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from lmloop.model.transformer import Transformer

CHUNK_ELEMENTS = 1 << 21
"""Logits held at once: a chunk's tokens times the vocabulary."""
GROUP_ELEMENTS = 1 << 24
"""Gradients of logits held at once: the matrix's gradient is summed up once a group of chunks."""


class _ChunkedCrossEntropy(Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float
    ) -> Tensor:
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
                total += _differentiate(
                    hidden[part] @ weight.t(), targets[part, None], grad, smoothing
                )
                torch.mm(grad, weight, out=grad_hidden[part])
            if grad_weight is not None:
                grad_weight += grads[: last - first].t() @ hidden[first:last]
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total / max(1, len(hidden))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grads[0] / max(1, len(grad_hidden))
        if grad_weight is not None:
            grad_weight = (grad_weight * scale).to(grad_hidden.dtype)
        return grad_hidden * scale, grad_weight, None, None


def _differentiate(logits: Tensor, wanted: Tensor, grad: Tensor, smoothing: float) -> Tensor:
    """Summed loss (fp32) of logits [n, V] for wanted [n, 1]; its gradient is written to `grad`."""
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
    grad.copy_(chances)
    return loss


def chunked_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy in nats (fp32 scalar) of hidden [N, D] · weight [V, D]ᵀ against [N].

    `smoothing` is the share of each target that is spread over the vocabulary (Szegedy et al. 2015,
    section 7). Of no targets the loss is 0: a batch of fine-tuning may hold no answer. A target
    whose probability is less than fp32 can hold counts as 85 nats; its gradient is exact.
    """
    result: Tensor = _ChunkedCrossEntropy.apply(hidden, weight, targets, smoothing)  # type: ignore[no-untyped-call]
    return result


def head_loss(
    model: Transformer, hidden: Tensor, targets: Tensor, *, smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy in nats (fp32 scalar) of a model's hidden [N, D] against [N].

    `smoothing` as in `chunked_cross_entropy`. A head that is more than one matrix holds all logits
    at once.
    """
    head = model.head
    after = model.config.logit_scale, model.config.logit_cap
    is_matrix = model.transform is None and after == (1.0, None)
    if head is not None and head.bias is None and is_matrix:
        return chunked_cross_entropy(hidden, head.weight, targets, smoothing=smoothing)
    total = F.cross_entropy(
        model.project(hidden).float(), targets, reduction="sum", label_smoothing=smoothing
    )
    return total / max(1, len(targets))
