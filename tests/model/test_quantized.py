"""Eight bits a weight: how far from the original, and the same result by either way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lmloop.model.quantized import (
    SMALL_BATCH,
    Int8Linear,
    empty_int8,
    pack_int8,
    quantize_int8,
    quantize_rows,
    unpack_int8,
)
from lmloop.model.transformer import Transformer

from ..conftest import random_model, tiny_shape


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def int8_layer(rows: int = 32, columns: int = 64) -> Int8Linear:
    layer = Int8Linear(columns, rows)
    layer.weight, layer.scale = quantize_rows(draw(rows, columns))
    return layer


def test_a_matrix_is_rounded_as_written_by_hand() -> None:
    weight, scale = quantize_rows(torch.tensor([[127.0, -63.6, 0.4], [0.5, -1.0, 0.25]]))
    assert weight.tolist() == [[127, -64, 0], [64, -127, 32]]
    torch.testing.assert_close(scale, torch.tensor([1.0, 1 / 127]))


def test_no_weight_is_further_off_than_half_a_step() -> None:
    matrix = draw(16, 40)
    weight, scale = quantize_rows(matrix)
    error = (weight.float() * scale[:, None] - matrix).abs()
    assert (error <= 0.5001 * scale[:, None]).all()
    assert weight.abs().amax(1).tolist() == [127] * 16


def test_four_weights_make_a_word_as_written_by_hand() -> None:
    weight = torch.tensor([[-128, 0, 127, -127, 1]], dtype=torch.int8)
    words = [0x00 | 128 << 8 | 255 << 16 | 1 << 24, 129]
    assert pack_int8(weight).tolist() == [words]
    assert torch.equal(unpack_int8(pack_int8(weight), columns=5), weight)


def test_a_row_of_zeros_stays_zero() -> None:
    weight, scale = quantize_rows(torch.zeros(2, 8))
    assert not weight.any()
    assert scale.isfinite().all()


def test_bfloat16_matrices_are_rounded_from_their_exact_values() -> None:
    matrix = draw(4, 8).bfloat16()
    for one, other in zip(quantize_rows(matrix), quantize_rows(matrix.float()), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("tokens", [1, 3, SMALL_BATCH, SMALL_BATCH + 1, 100])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_layer_equals_the_dequantised_product_for_any_number_of_tokens(
    tokens: int, dtype: torch.dtype, tolerance: float
) -> None:
    layer, x = int8_layer(), draw(tokens, 64, seed=1).to(dtype)
    expected = dequantised(layer, x)
    result = layer(x)
    assert result.dtype == dtype
    scale = float(expected.abs().max())
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance * scale)


def dequantised(layer: Int8Linear, x: torch.Tensor) -> torch.Tensor:
    return x.double() @ (layer.weight.double() * layer.scale[:, None].double()).T


@pytest.mark.parametrize("columns", [1, 8, 16, 24, 33, 48, 60, 80, 112, 704])
@pytest.mark.parametrize("rows", [1, 3, 25, 64])
def test_any_width_is_computed_though_the_fast_kernel_knows_only_some(
    rows: int, columns: int
) -> None:
    # PyTorch's kernel ends the process on widths that are no multiple of 16.
    layer = int8_layer(rows, columns)
    for tokens in (1, 4, 7, 32):
        x = draw(tokens, columns, seed=1).bfloat16()
        expected = dequantised(layer, x)
        atol = 2e-2 * float(expected.abs().max())
        torch.testing.assert_close(layer(x).double(), expected, rtol=2e-2, atol=atol)


@pytest.mark.parametrize(("of_weight", "of_input"), [(8, 0), (1, 0), (0, 1), (0, 8), (16, 16)])
def test_any_address_is_computed_though_the_fast_kernel_knows_only_some(
    of_weight: int, of_input: int
) -> None:
    # As it is with weights that are mapped from a file, and with slices of larger tensors.
    layer = int8_layer(32, 64)
    moved = torch.zeros(32 * 64 + 64, dtype=torch.int8)[of_weight : of_weight + 32 * 64]
    layer.weight = moved.view(32, 64).copy_(layer.weight)
    x = draw(4 * 64 + 64).bfloat16()[of_input : of_input + 4 * 64].view(4, 64)
    expected = dequantised(layer, x)
    atol = 2e-2 * float(expected.abs().max())
    torch.testing.assert_close(layer(x).double(), expected, rtol=2e-2, atol=atol)


def test_rows_that_do_not_lie_contiguously_are_taken() -> None:
    layer, x = int8_layer(), draw(64, 128, seed=1).bfloat16()
    torch.testing.assert_close(layer(x[::16, ::2]), layer(x[::16, ::2].contiguous()))


def linear_names(model: Transformer) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def test_every_matrix_of_the_blocks_is_replaced_and_the_head_stays() -> None:
    model = random_model(tiny_shape(tie_embeddings=False))
    assert len(linear_names(model)) == 9
    quantize_int8(model)
    assert linear_names(model) == {"head"}
    empty = Transformer(tiny_shape(tie_embeddings=False))
    empty_int8(empty)
    shapes = {name: each.shape for name, each in model.state_dict().items()}
    assert {name: each.shape for name, each in empty.state_dict().items()} == shapes


@torch.no_grad()
def test_the_model_answers_nearly_as_before() -> None:
    model, tokens = random_model(tiny_shape()), torch.arange(20)[None]
    exact = model(tokens)
    quantize_int8(model)
    error = (model(tokens) - exact).abs()
    assert 0 < error.max() < 0.1 * exact.abs().max()


@torch.no_grad()
def test_a_bias_is_kept_exactly() -> None:
    model = random_model(tiny_shape(qk_norm=False, qkv_bias=True, family="qwen2"))
    bias = torch.cat([block.mixer.part.qkv.bias.clone() for block in model.blocks])
    assert bias.abs().min() > 0
    x = draw(5, model.config.hidden_size)
    before = model.blocks[0].mixer.part.qkv(x)
    quantize_int8(model)
    layer = model.blocks[0].mixer.part.qkv
    assert isinstance(layer, Int8Linear)
    assert torch.equal(torch.cat([each.mixer.part.qkv.bias for each in model.blocks]), bias)
    torch.testing.assert_close(layer(x), before, rtol=0.05, atol=0.05)
