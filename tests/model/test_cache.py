"""Cached decoding against the full forward, whatever shares the step and whoever had the slot."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lmloop.model.cache import Chunk, SlotCache
from lmloop.model.transformer import Transformer

from ..conftest import random_model, tiny_shape

SLOTS, LENGTH = 3, 20


@pytest.fixture(scope="module")
def model() -> Transformer:
    return random_model(tiny_shape()).eval()


def make_cache(model: Transformer) -> SlotCache:
    return SlotCache(model.config, slots=SLOTS, length=LENGTH, dtype=torch.float32)


def draw_text(length: int, *, seed: int) -> list[int]:
    return torch.randint(0, 50, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def run(
    model: Transformer, cache: SlotCache, chunks: Sequence[tuple[Chunk, Sequence[int]]]
) -> list[Tensor]:
    """Logits of each chunk's new tokens, [count, V] each; `chunks` come with their whole text."""
    view = cache.view([chunk for chunk, _ in chunks])
    tokens = [token for chunk, text in chunks for token in text[chunk.start : chunk.stop]]
    hidden = model.encode(torch.tensor(tokens), view.positions, view)
    return list(model.project(hidden).split([chunk.count for chunk, _ in chunks]))


@torch.no_grad()
def full(model: Transformer, text: Sequence[int]) -> Tensor:
    return model(torch.tensor([text]))[0]


@pytest.mark.parametrize(
    "cuts",
    [[12], [1] * 12, [5, 7], [5, 1, 1, 5], [1, 11], [11, 1], [2, 2, 2, 2, 2, 2]],
)
def test_cached_decoding_equals_full_forward(model: Transformer, cuts: list[int]) -> None:
    text, cache = draw_text(12, seed=0), make_cache(model)
    start, parts = 0, []
    for count in cuts:
        parts += run(model, cache, [(Chunk(1, start, count), text)])
        start += count
    torch.testing.assert_close(torch.cat(parts), full(model, text), rtol=1e-4, atol=1e-5)


def test_a_mixed_batch_equals_each_sequence_alone(model: Transformer) -> None:
    texts = [draw_text(length, seed=length) for length in (12, 9, 7)]
    # Every step mixes a chunk of a prompt with single tokens, in slots out of order.
    steps = (
        [(2, 0, 0, 5)],
        [(2, 0, 5, 1), (0, 1, 0, 6)],
        [(0, 1, 6, 1), (2, 0, 6, 4), (1, 2, 0, 1)],
        [(1, 2, 1, 6), (2, 0, 10, 1), (0, 1, 7, 2)],
        [(2, 0, 11, 1)],
    )
    cache = make_cache(model)
    got: dict[int, list[Tensor]] = {0: [], 1: [], 2: []}
    for step in steps:
        chunks = [(Chunk(slot, start, count), texts[text]) for slot, text, start, count in step]
        for (_, text, _, _), part in zip(step, run(model, cache, chunks), strict=True):
            got[text].append(part)
    for number, text in enumerate(texts):
        expected = full(model, text)
        torch.testing.assert_close(torch.cat(got[number]), expected, rtol=1e-4, atol=1e-5)


def test_a_slot_used_again_shows_nothing_of_who_had_it(model: Transformer) -> None:
    used, fresh = make_cache(model), make_cache(model)
    run(model, used, [(Chunk(0, 0, LENGTH), draw_text(LENGTH, seed=1))])
    neighbour = draw_text(15, seed=3)
    for cache in (used, fresh):
        run(model, cache, [(Chunk(1, 0, 14), neighbour)])
    text = draw_text(6, seed=2)
    # The neighbour's longer text makes the step look past the end of this one.
    for start, count in ((0, 4), (4, 1)):
        own = (Chunk(0, start, count), text)
        other = (Chunk(1, 14, 1), neighbour)
        in_used, in_fresh = (run(model, cache, [own, other]) for cache in (used, fresh))
        assert torch.equal(in_used[0], in_fresh[0])


def test_a_sequence_may_fill_its_slot_to_the_last_place(model: Transformer) -> None:
    text, cache = draw_text(LENGTH, seed=4), make_cache(model)
    run(model, cache, [(Chunk(0, 0, LENGTH - 1), text)])
    (last,) = run(model, cache, [(Chunk(0, LENGTH - 1, 1), text)])
    torch.testing.assert_close(last[0], full(model, text)[-1], rtol=1e-4, atol=1e-5)


def test_a_step_writes_into_the_slots_of_its_chunks_alone(model: Transformer) -> None:
    cache = make_cache(model)
    run(model, cache, [(Chunk(1, 0, 3), draw_text(3, seed=0))])
    for layer in cache.layers:
        for store in layer.tensors():
            assert store[1, :, :3].abs().sum() > 0
            assert not store[[0, 2]].any()
            assert not store[1, :, 3:].any()


def test_positions_follow_the_chunks(model: Transformer) -> None:
    view = make_cache(model).view([Chunk(0, 7, 1), Chunk(2, 3, 4)])
    assert view.positions.tolist() == [7, 3, 4, 5, 6]
    assert Chunk(0, 3, 4).stop == 7


@torch.no_grad()
def test_cached_decoding_in_bfloat16_stays_near_the_full_forward() -> None:
    model = random_model(tiny_shape()).eval()
    text = draw_text(12, seed=0)
    exact = full(model, text)
    model.to(torch.bfloat16)
    cache = SlotCache(model.config, slots=1, length=LENGTH, dtype=torch.bfloat16)
    parts = run(model, cache, [(Chunk(0, 0, 6), text)])
    for place in range(6, 12):
        parts += run(model, cache, [(Chunk(0, place, 1), text)])
    error = (torch.cat(parts).float() - exact).abs()
    assert error.mean() < 0.02 * exact.abs().max()
