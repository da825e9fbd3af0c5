"""Four bits a weight: the codes by hand, how far off, and the same product and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lmloop.model.config import Experts
from lmloop.model.nf4 import (
    BLOCK,
    LEVELS,
    Nf4Linear,
    dequantize_nf4,
    expand_from_nf4,
    quantize_nf4,
    shrink_to_nf4,
)
from lmloop.model.transformer import Transformer

from ..conftest import random_model, tiny_shape

TOKENS = torch.arange(20)[None] % 50


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_two_codes_make_a_byte_and_the_largest_of_a_block_is_its_scale() -> None:
    codes, scale = quantize_nf4(torch.tensor([[-2.0, 0.0, 2.0, 0.9]]))
    assert codes.tolist() == [[0 << 4 | 7, 15 << 4 | 12]]
    assert scale.tolist() == [[2.0]]
    found = dequantize_nf4(codes, scale, columns=4)
    torch.testing.assert_close(found, torch.tensor([[-2.0, 0.0, 2.0, 2 * LEVELS[12]]]))


def test_each_level_stays_itself_in_blocks_of_their_own() -> None:
    matrix = torch.tensor(LEVELS).repeat(2 * BLOCK // 16)[None] * torch.tensor([[1.0], [0.25]])
    matrix[:, BLOCK:] *= 8
    codes, scale = quantize_nf4(matrix)
    assert codes[0, :8].tolist() == [0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF]
    assert scale.tolist() == [[1.0, 8.0], [0.25, 2.0]]
    assert torch.equal(dequantize_nf4(codes, scale, columns=2 * BLOCK), matrix)


@pytest.mark.parametrize("columns", [1, 7, BLOCK, BLOCK + 1, 3 * BLOCK - 2])
def test_every_weight_goes_to_the_nearest_level(columns: int) -> None:
    matrix = draw(5, columns)
    codes, scale = quantize_nf4(matrix)
    assert codes.shape == (5, -(-columns // 2))
    assert scale.shape == (5, -(-columns // BLOCK))
    found = dequantize_nf4(codes, scale, columns=columns)
    largest = scale.repeat_interleave(BLOCK, 1)[:, :columns]
    nearest = (matrix[..., None] - torch.tensor(LEVELS) * largest[..., None]).abs().amin(-1)
    torch.testing.assert_close((found - matrix).abs(), nearest, rtol=0, atol=1e-6)


def test_a_block_of_zeros_stays_zero() -> None:
    codes, scale = quantize_nf4(torch.zeros(2, 70))
    assert not dequantize_nf4(codes, scale, columns=70).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product_and_gradient_are_those_of_the_dense_layer(dtype: torch.dtype) -> None:
    linear = nn.Linear(70, 6).to(dtype)
    small = Nf4Linear(linear)
    x = draw(9, 70).to(dtype)
    results = []
    for layer in (small, lambda x: F.linear(x, small.dense().to(dtype)) + linear.bias):
        given = x.clone().requires_grad_()
        y = layer(given)
        y.square().sum().backward()
        results.append((y.detach(), given.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert not list(small.parameters())


def test_a_weight_takes_four_and_a_half_bits() -> None:
    small = Nf4Linear(nn.Linear(256, 32, bias=False))
    held = sum(each.numel() * each.element_size() for each in small.buffers())
    assert held * 8 == 4.5 * 256 * 32


def test_a_model_shrinks_but_for_embedding_and_head_and_becomes_dense_again() -> None:
    model = random_model(tiny_shape())
    names, before = set(model.state_dict()), model(TOKENS)
    shrink_to_nf4(model)
    small = [each for each in model.modules() if isinstance(each, Nf4Linear)]
    assert len(small) == 4 * model.config.num_layers
    rounded = model(TOKENS)
    assert not torch.equal(rounded, before)
    expand_from_nf4(model, dtype=torch.float32)
    assert set(model.state_dict()) == names
    torch.testing.assert_close(model(TOKENS), rounded)


def test_routers_choose_with_all_their_bits() -> None:
    model: Transformer = random_model(tiny_shape(experts=Experts(count=4, active=2, size=8)))  # type: ignore[arg-type]
    shrink_to_nf4(model)
    kept = [name for name, each in model.named_modules() if isinstance(each, nn.Linear)]
    assert sum(name.endswith("router") for name in kept) == model.config.num_layers
