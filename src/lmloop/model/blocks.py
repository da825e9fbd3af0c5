"""Attention of packed rows block by block, for CUDA: what nobody sees is not computed.

Takes: queries, keys and values of rows, and who sees whom as a rule instead of a mask. Gives: what
each query gathers, as `scores.attend` does. Source: Dong et al. 2024, FlexAttention. Axes: B rows,
H query heads, K key heads, T places, d width of a head.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lmloop.model.scores import Scoring

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch.nn.attention.flex_attention import BlockMask


def make_blocks(
    *,
    rows: int,
    length: int,
    segments: Int[Tensor, "B T"] | None,
    order: Int[Tensor, "B T"] | None,
    causal: bool,
    window: int | None,
    device: torch.device,
) -> BlockMask:
    """Which blocks hold anything that is seen; the rule is that of `rows.PackedRows`."""
    # Imported here: it brings a compiler along, which a processor without CUDA never needs.
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = query >= 0
        if segments is not None:
            seen = seen & (segments[row, query] == segments[row, key])
        if order is not None:
            seen = seen & (order[row, key] <= order[row, query])
        elif causal:
            seen = seen & (key <= query)
        if window is not None:
            seen = seen & ((query - key).abs() < window)
        return seen

    alike = segments is None and order is None
    return create_block_mask(
        sees, None if alike else rows, None, length, length, device=str(device)
    )


def attend_blocks(
    q: Float[Tensor, "B H T d"],
    k: Float[Tensor, "B K T d"],
    v: Float[Tensor, "B K T d"],
    *,
    scoring: Scoring,
    blocks: BlockMask,
    bias: Float[Tensor, "H T T"] | None = None,
) -> Float[Tensor, "B H T d"]:
    """softmax(cap(q·kᵀ · scale) + bias) · v over what each query sees; compiled on CUDA."""

    def change(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if scoring.cap is not None:
            score = scoring.cap * torch.tanh(score / scoring.cap)
        return score if bias is None else score + bias[head, query, key]

    is_plain = scoring.cap is None and bias is None
    attended: Tensor = _operator(compiled=q.is_cuda)(
        q,
        k,
        v,
        score_mod=None if is_plain else change,
        block_mask=blocks,
        scale=scoring.scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return attended


@cache
def _operator(*, compiled: bool) -> Any:
    """PyTorch's operator: compiled once, or spelt out."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention
