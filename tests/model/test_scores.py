"""Attention as arithmetic: one query at a time, and the gradient written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from lmloop.model.scores import Scoring, attend, make_mask


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def causal(length: int) -> Tensor:
    return torch.ones(1, length, length, dtype=torch.bool).triu(1)


def dense_attention(q: Tensor, k: Tensor, v: Tensor, *, hidden: Tensor) -> Tensor:
    mask = make_mask(hidden[:, None], dtype=q.dtype)
    return attend(q, k, v, scoring=Scoring(scale=q.shape[-1] ** -0.5), mask=mask)


def slow_attention(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    """One row, one head, one query at a time."""
    groups = q.shape[1] // k.shape[1]
    rows = []
    for row in range(len(q)):
        heads = []
        for head in range(q.shape[1]):
            places = []
            for place in range(q.shape[2]):
                seen = (~hidden[row % len(hidden), place]).nonzero()[:, 0]
                keys, values = k[row, head // groups, seen], v[row, head // groups, seen]
                scores = keys @ q[row, head, place] / math.sqrt(q.shape[3])
                places.append(scores.softmax(0) @ values)
            heads.append(torch.stack(places))
        rows.append(torch.stack(heads))
    return torch.stack(rows)


@pytest.mark.parametrize("keys", [1, 2, 4])
def test_dense_attention_equals_one_query_at_a_time(keys: int) -> None:
    inputs = [draw(2, heads, 5, 6, seed=seed) for seed, heads in enumerate((4, keys, keys))]
    ours = [each.clone().requires_grad_() for each in inputs]
    plain = [each.clone().requires_grad_() for each in inputs]
    result = dense_attention(*ours, hidden=causal(5))
    expected = slow_attention(*plain, hidden=causal(5))  # type: ignore[misc]
    torch.testing.assert_close(result, expected)
    grad = draw(*result.shape, seed=9)
    result.backward(grad)
    expected.backward(grad)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_the_written_gradient_is_the_derivative() -> None:
    segments = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    hidden = (segments[:, :, None] != segments[:, None]) | causal(4)
    inputs = [
        draw(2, heads, 4, 4, seed=seed).requires_grad_() for seed, heads in enumerate((4, 2, 2))
    ]
    assert gradcheck(lambda q, k, v: dense_attention(q, k, v, hidden=hidden), inputs)


def test_inputs_that_do_not_lie_contiguously_are_taken() -> None:
    q, k, v = (draw(2, 5, heads, 4, seed=heads).transpose(1, 2) for heads in (4, 2, 2))
    assert not q.is_contiguous()
    expected = slow_attention(q, k, v, causal(5))
    torch.testing.assert_close(dense_attention(q, k, v, hidden=causal(5)), expected)


def test_bfloat16_stays_within_two_percent() -> None:
    inputs = [draw(2, heads, 16, 8, seed=seed) for seed, heads in enumerate((4, 2, 2))]
    expected = slow_attention(*inputs, hidden=causal(16))  # type: ignore[misc]
    halves = [each.bfloat16().requires_grad_() for each in inputs]
    rounded = dense_attention(*halves, hidden=causal(16))
    torch.testing.assert_close(rounded.double(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("keys", [1, 2, 4])
def test_a_mask_of_its_own_for_each_head_reaches_the_heads_of_each_group(keys: int) -> None:
    q, k, v = (draw(2, heads, 5, 6, seed=seed) for seed, heads in enumerate((4, keys, keys)))
    mask = draw(1, 4, 5, 5, seed=7)
    expected = attend(q, k, v, scoring=Scoring(scale=0.4), mask=mask)
    written = attend(q.requires_grad_(), k, v, scoring=Scoring(scale=0.4), mask=mask)
    torch.testing.assert_close(written, expected)
