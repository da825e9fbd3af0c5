"""Attention over packed rows: who sees whom, and the gradient written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from lmloop.model.attention import Attention, PackedRows, dense_attention

from ..conftest import tiny_shape
from .angles import angles_of


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def causal(length: int) -> Tensor:
    return torch.ones(1, length, length, dtype=torch.bool).triu(1)


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
    rounded = dense_attention(*(each.bfloat16() for each in inputs), hidden=causal(16))
    torch.testing.assert_close(rounded.double(), expected, rtol=2e-2, atol=2e-2)


def test_a_view_of_packed_rows_shows_only_the_own_past() -> None:
    segments = torch.tensor([[1, 1, 2, 2, 2], [0, 0, 0, 1, 2]])
    view = PackedRows(rows=2, length=5, segments=segments)
    q, k, v = draw(10, 4, 6), draw(10, 2, 6, seed=1), draw(10, 2, 6, seed=2)
    result = view.attend(0, q, k, v)
    for row in range(2):
        for place in range(5):
            seen = [
                5 * row + past
                for past in range(place + 1)
                if segments[row, past] == segments[row, place]
            ]
            for head in range(4):
                scores = k[seen, head // 2] @ q[5 * row + place, head] / math.sqrt(6)
                torch.testing.assert_close(
                    result[5 * row + place, head], scores.softmax(0) @ v[seen, head // 2]
                )


def test_a_view_without_segments_is_causal() -> None:
    q, k, v = draw(6, 2, 4), draw(6, 1, 4, seed=1), draw(6, 1, 4, seed=2)
    result = PackedRows(rows=2, length=3).attend(0, q, k, v)
    one = PackedRows(rows=2, length=3, segments=torch.zeros(2, 3, dtype=torch.int64))
    torch.testing.assert_close(result, one.attend(0, q, k, v))
    torch.testing.assert_close(result[0], v[0].expand(2, 4))


def test_the_layer_gives_its_view_normalised_and_rotated_queries_and_keys() -> None:
    class Spy:
        seen: tuple[Tensor, ...] = ()

        def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.seen = (torch.tensor(layer), q, k, v)
            return torch.zeros_like(q)

    config, spy = tiny_shape(), Spy()
    attention = Attention(config, layer=3)
    torch.nn.init.normal_(attention.qkv.weight)
    x = draw(5, config.hidden_size, dtype=torch.float32)
    rotary = angles_of(torch.arange(5), head_dim=8, theta=1e4, dtype=x.dtype)
    assert attention(x, rotary, spy).shape == x.shape
    layer, q, k, v = spy.seen
    assert layer == 3
    assert (q.shape, k.shape, v.shape) == ((5, 4, 8), (5, 2, 8), (5, 2, 8))
    # A norm with weight one makes the mean square one, and a rotation keeps it.
    ones = torch.ones(())
    torch.testing.assert_close(q.pow(2).mean(-1), ones.expand(5, 4), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(k.pow(2).mean(-1), ones.expand(5, 2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(v.flatten(1), attention.qkv(x)[:, -16:])
