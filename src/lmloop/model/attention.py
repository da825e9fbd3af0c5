"""Grouped-query attention over packed tokens; who sees whom is decided by the view it is given.

Takes: hidden states [N, D] of packed tokens, rotary angles, a view. Gives: [N, D]. A view lays the
queries, keys and values of one layer out and attends: training uses `PackedRows`, generation the
cache in `cache.py`. Axes: N tokens, B rows, T positions, D width, H query heads, K key heads,
d width of a head.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from lmloop.model.config import DecoderConfig
from lmloop.model.functions import rms_norm, rotate


class AttentionView(Protocol):
    """How the packed tokens of one forward see each other and what came before."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [N, H, d], k and v [N, K, d] of one layer; gives [N, H, d]."""


class Attention(nn.Module):
    """Self-attention with rotary positions; queries and keys may be normalised (QK-norm)."""

    def __init__(self, config: DecoderConfig, *, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim, self.epsilon = config.head_dim, config.norm_epsilon
        width = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        self.qkv = nn.Linear(config.hidden_size, width, bias=config.qkv_bias)
        self.output = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=False)
        self.q_norm = nn.Parameter(torch.ones(self.head_dim)) if config.qk_norm else None
        self.k_norm = nn.Parameter(torch.ones(self.head_dim)) if config.qk_norm else None

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], view: AttentionView) -> Tensor:
        """x [N, D] -> [N, D]."""
        heads = self.qkv(x).view(len(x), -1, self.head_dim)
        qk, v = torch.split(heads, [self.num_heads + self.num_kv_heads, self.num_kv_heads], dim=1)
        # Queries and keys go through norm and rotation together: fewer and larger operators.
        qk = rotate(self._normalise(qk), *rotary)
        q, k = torch.split(qk, [self.num_heads, self.num_kv_heads], dim=1)
        attended = view.attend(self.layer, q, k, v)
        output: Tensor = self.output(attended.reshape(len(x), -1))
        return output

    def _normalise(self, qk: Tensor) -> Tensor:
        """Queries and keys [N, H + K, d], each head by itself."""
        if self.q_norm is None or self.k_norm is None:
            return qk
        weight = torch.cat(
            [self.q_norm.expand(self.num_heads, -1), self.k_norm.expand(self.num_kv_heads, -1)]
        )
        return rms_norm(qk, weight, epsilon=self.epsilon)


class PackedRows:
    """View of B rows of T tokens each: causal, and where `segments` differ, blind to each other."""

    def __init__(self, *, rows: int, length: int, segments: Tensor | None = None) -> None:
        """`segments` [B, T] numbers the documents within each row."""
        self.rows, self.length = rows, length
        self.hidden = None if segments is None else _hidden_pairs(segments)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [N, H, d], k and v [N, K, d], N = B·T; gives [N, H, d]."""
        # [N, H, d] -> [B, H, T, d]
        q, k, v = (t.view(self.rows, self.length, *t.shape[1:]).transpose(1, 2) for t in (q, k, v))
        if q.is_cuda:
            mask = None if self.hidden is None else ~self.hidden[:, None]
            attended = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=q.shape[1] != k.shape[1]
            )
        else:
            attended = dense_attention(q, k, v, hidden=self._hidden_on(q))
        return attended.transpose(1, 2).flatten(0, 1)

    def _hidden_on(self, q: Tensor) -> Tensor:
        if self.hidden is None:
            self.hidden = _hidden_pairs(torch.zeros(1, self.length, dtype=torch.int64))
        return self.hidden


def _hidden_pairs(segments: Tensor) -> Tensor:
    """True where the query (row) may not see the key (column): [B, T, T]."""
    future = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool).triu_(1)
    return (segments[:, :, None] != segments[:, None, :]) | future.to(segments.device)


class _DenseAttention(Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
        batch, heads, length, head_dim = q.shape
        groups = heads // k.shape[1]
        # Query heads of one group lie behind each other as more query positions of one key head.
        q = (q * head_dim**-0.5).reshape(batch, k.shape[1], groups * length, head_dim)
        k, v = k.contiguous(), v.contiguous()
        scores = q @ k.transpose(-1, -2)
        blocked = hidden[:, None, None]
        scores.view(batch, -1, groups, length, length).masked_fill_(blocked, float("-inf"))
        weights = scores.softmax(-1)
        ctx.save_for_backward(q, k, v, weights)
        return (weights @ v).view(batch, heads, length, head_dim)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, weights = ctx.saved_tensors
        (grad,) = grads
        shape, head_dim = grad.shape, grad.shape[-1]
        grad = grad.reshape(q.shape)
        grad_v = weights.transpose(-1, -2) @ grad
        grad_weights = grad @ v.transpose(-1, -2)
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        grad_q = (grad_scores @ k).mul_(head_dim**-0.5).view(shape)
        return grad_q, grad_scores.transpose(-1, -2) @ q, grad_v, None


def dense_attention(q: Tensor, k: Tensor, v: Tensor, *, hidden: Tensor) -> Tensor:
    """softmax(q·kᵀ / √d) · v; q [B, H, T, d], k and v [B, K, T, d], hidden [B or 1, T, T] bool.

    For short rows on a CPU the whole score matrix with a written-out gradient is three times as
    fast as the fused operator, whose backward is slow there. Every query must see at least itself.
    """
    result: Tensor = _DenseAttention.apply(q, k, v, hidden)  # type: ignore[no-untyped-call]
    return result
