"""The whole decoder against a slow one that shares no code, and what packing must not change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lmloop.model.rows import PackedRows
from lmloop.model.transformer import Transformer
from lmloop.weights.checkpoint import save_model
from lmloop.weights.families import write_config

from ..conftest import random_model, tiny_shape
from ..reference.decoder import logits_of

SHAPES = {
    "tied": tiny_shape(),
    "untied": tiny_shape(tie_embeddings=False, num_heads=4, num_kv_heads=4, rope_theta=500.0),
    "one key head": tiny_shape(num_heads=3, num_kv_heads=1, head_dim=6, num_layers=1),
}


def draw_tokens(rows: int, length: int, *, seed: int = 0) -> Tensor:
    return torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(seed))


def encode_rows(model: Transformer, tokens: Tensor, segments: Tensor, positions: Tensor) -> Tensor:
    view = PackedRows(rows=tokens.shape[0], length=tokens.shape[1], segments=segments)
    return model.encode(tokens.flatten(), positions.flatten(), view).view(*tokens.shape, -1)


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_the_forward_equals_the_slow_reference(name: str, tmp_path: Path) -> None:
    model = random_model(SHAPES[name])
    save_model(model, tmp_path, stop_id=1, document_id=0)
    config = write_config(SHAPES[name], stop_id=1, pad_id=0, dtype="float32")
    tokens = draw_tokens(1, 9)
    expected = logits_of(load_file(tmp_path / "model.safetensors"), config, tokens[0].tolist())
    torch.testing.assert_close(model(tokens)[0].double(), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_rows_of_a_batch_do_not_see_each_other() -> None:
    model, tokens = random_model(SHAPES["tied"]), draw_tokens(3, 7)
    together = model(tokens)
    for row in range(3):
        torch.testing.assert_close(together[row], model(tokens[row : row + 1])[0])


@torch.no_grad()
def test_packed_documents_equal_separate_ones() -> None:
    model = random_model(SHAPES["tied"])
    lengths = (3, 1, 5)
    texts = [draw_tokens(1, length, seed=length) for length in lengths]
    packed = torch.cat(texts, dim=1)
    segments = torch.tensor([[number for number, n in enumerate(lengths) for _ in range(n)]])
    positions = torch.tensor([[place for n in lengths for place in range(n)]])
    together = model.project(encode_rows(model, packed, segments, positions)[0])
    alone = torch.cat([model(text)[0] for text in texts])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_later_token_does_not_change_an_earlier_logit() -> None:
    model, tokens = random_model(SHAPES["tied"]), draw_tokens(1, 8)
    changed = tokens.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 50
    before, after = model(tokens)[0], model(changed)[0]
    assert torch.equal(before[:5], after[:5])
    assert not torch.allclose(before[5:], after[5:])


def test_no_gradient_comes_from_the_future_or_from_another_document() -> None:
    model = random_model(SHAPES["untied"])
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6]])
    segments = torch.tensor([[0, 0, 0, 1, 1, 1]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]])
    for place, seen in ((1, {1, 2}), (4, {4, 5})):
        model.zero_grad()
        encode_rows(model, tokens, segments, positions)[0, place].sum().backward()
        grad = model.embedding.weight.grad
        assert grad is not None
        assert set(grad.abs().sum(1).nonzero()[:, 0].tolist()) == seen


def test_every_parameter_has_a_gradient() -> None:
    for config in SHAPES.values():
        model = random_model(config)
        model(draw_tokens(2, 6)).logsumexp(-1).sum().backward()
        missing = [
            name
            for name, parameter in model.named_parameters()
            if parameter.grad is None or not parameter.grad.abs().sum() > 0
        ]
        assert missing == []


@torch.no_grad()
def test_the_order_of_the_words_matters() -> None:
    model = random_model(SHAPES["tied"])
    one, other = model(torch.tensor([[1, 2, 3]]))[0, -1], model(torch.tensor([[2, 1, 3]]))[0, -1]
    assert not torch.allclose(one, other, atol=1e-3)


@torch.no_grad()
def test_positions_count_from_their_distance_alone() -> None:
    model, tokens = random_model(SHAPES["tied"]), draw_tokens(1, 6)
    segments = torch.zeros(1, 6, dtype=torch.int64)
    near = encode_rows(model, tokens, segments, torch.arange(6)[None])
    far = encode_rows(model, tokens, segments, torch.arange(20, 26)[None])
    torch.testing.assert_close(near, far, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_bfloat16_stays_near_single_precision() -> None:
    model, tokens = random_model(SHAPES["tied"]), draw_tokens(2, 16)
    exact = model(tokens)
    rounded = model.to(torch.bfloat16)(tokens)
    assert rounded.dtype == torch.bfloat16
    # Logits are of size one to three; two layers of 8-bit mantissas leave a few hundredths.
    error = (rounded.float() - exact).abs()
    assert error.max() < 0.15 * exact.abs().max()
    assert error.mean() < 0.02 * exact.abs().max()


def test_a_tied_head_is_the_embedding_itself() -> None:
    tied, untied = Transformer(SHAPES["tied"]), Transformer(SHAPES["untied"])
    assert tied.head.weight is tied.embedding.weight
    assert untied.head.weight is not untied.embedding.weight
