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


class _ChunkedCrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        size = max(1, CHUNK_ELEMENTS // len(weight))
        count = max(1, len(hidden))
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            logits = hidden[part] @ weight.t()
            chances = torch.softmax(logits, dim=-1, dtype=torch.float32)
            wanted = targets[part, None]
            total -= chances.gather(1, wanted).clamp_min_(1e-37).log_().sum()
            chances.scatter_add_(1, wanted, chances.new_full(wanted.shape, -1.0))
            grad = chances.to(logits.dtype)
            torch.mm(grad, weight, out=grad_hidden[part])
            grad_weight += grad.t() @ hidden[part]
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total / count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grads[0] / max(1, len(grad_hidden))
        return grad_hidden * scale, (grad_weight * scale).to(grad_hidden.dtype), None


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats (fp32 scalar) of hidden [N, D] · weight [V, D]ᵀ against [N].

    Of no targets it is 0: a batch of fine-tuning may hold no answer. A target whose probability is
    less than fp32 can hold counts as 85 nats; its gradient is exact.
    """
    result: Tensor = _ChunkedCrossEntropy.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    return result


def head_loss(model: Transformer, hidden: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats (fp32 scalar) of a model's hidden [N, D] against [N].

    A head that is more than one matrix holds all logits at once.
    """
    head = model.head
    after = model.config.logit_scale, model.config.logit_cap
    is_matrix = model.transform is None and after == (1.0, None)
    if head is not None and head.bias is None and is_matrix:
        return chunked_cross_entropy(hidden, head.weight, targets)
    total = F.cross_entropy(model.project(hidden).float(), targets, reduction="sum")
    return total / max(1, len(targets))
