"""Every mixer in every kind of model: what must hold whatever it is made of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lmloop.model.cache import Chunk, SlotCache
from lmloop.model.rows import PackedRows

from ..reference.core import states_of
from .kinds import (
    DECODERS,
    LENGTH,
    decode,
    decoder,
    draw_model,
    draw_pictures,
    draw_tokens,
    encoder,
    pair,
    require_close,
    seeing,
)


@pytest.mark.parametrize("make", [decoder, encoder])
@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_the_forward_equals_the_slow_reference(kind: str, make: type) -> None:
    model = draw_model(make(kind))
    tokens = draw_tokens(1, LENGTH)
    expected = states_of(model.state_dict(), model.config, tokens[0].tolist())
    require_close(model.states(tokens)[0].double(), expected)


@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_a_pair_equals_the_slow_reference(kind: str) -> None:
    model = draw_model(pair(kind))
    tokens, source = draw_tokens(1, 6), draw_tokens(1, 7, seed=1)
    assert model.encoder is not None
    read = states_of(model.encoder.state_dict(), model.encoder.config, source[0].tolist())
    expected = states_of(model.state_dict(), model.config, tokens[0].tolist(), source=read)
    require_close(model.states(tokens, source=model.read(source))[0].double(), expected)


@pytest.mark.parametrize("cuts", [[1] * LENGTH, [6, 1, 1, 3], [LENGTH]])
@pytest.mark.parametrize("kind", DECODERS)
def test_cached_decoding_equals_the_full_forward(kind: str, cuts: list[int]) -> None:
    model = draw_model(decoder(kind))
    texts = list(draw_tokens(3, LENGTH))
    got = decode(model, texts, cuts=cuts, sources=[None] * 3)
    for text, states in zip(texts, got, strict=True):
        with torch.no_grad():
            expected = model.states(text[None])[0]
        require_close(states, expected)


@pytest.mark.parametrize("kind", DECODERS)
def test_cached_decoding_with_a_source_equals_the_full_forward(kind: str) -> None:
    model = draw_model(pair(kind))
    texts, lengths = list(draw_tokens(2, LENGTH)), [7, 4]
    with torch.no_grad():
        sources = [model.read(draw_tokens(1, n, seed=n)) for n in lengths]
    got = decode(model, texts, cuts=[5, 1, 1, 4], sources=[*sources])
    for text, source, states in zip(texts, sources, got, strict=True):
        with torch.no_grad():
            expected = model.states(text[None], source=source)[0]
        require_close(states, expected)


@pytest.mark.parametrize("make", [decoder, encoder])
@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_packed_texts_equal_separate_ones(kind: str, make: type) -> None:
    model = draw_model(make(kind))
    lengths = (3, 1, 5, 2)
    texts = [draw_tokens(1, length, seed=length) for length in lengths]
    rows = torch.cat(texts, dim=1)
    segments = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None]
    positions = torch.cat([torch.arange(length) for length in lengths])
    view = PackedRows(rows=1, length=LENGTH, segments=segments, causal=model.config.causal)
    together = model.encode(rows[0], positions, view)
    alone = torch.cat([model.states(text)[0] for text in texts])
    require_close(together, alone)


@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_padded_sources_equal_separate_ones(kind: str) -> None:
    model = draw_model(pair(kind))
    rows, lengths = draw_tokens(2, 8, seed=4), torch.tensor([8, 5])
    tokens = draw_tokens(2, 6)
    together = model.states(tokens, source=model.read(rows, lengths=lengths))
    for row, length in enumerate(lengths.tolist()):
        source = model.read(rows[row : row + 1, :length])
        alone = model.states(tokens[row : row + 1], source=source)
        require_close(together[row], alone[0])


@pytest.mark.parametrize("make", [decoder, pair])
@pytest.mark.parametrize("kind", DECODERS)
def test_no_gradient_comes_from_the_future(kind: str, make: type) -> None:
    model = draw_model(make(kind))
    source = model.read(torch.tensor([[40, 41]])) if model.encoder is not None else None
    embedded = torch.tensor([[1, 2, 3, 4, 5, 6]])
    model.zero_grad()
    model.states(embedded, source=source)[0, 2].sum().backward()
    grad = model.embedding.weight.grad
    assert grad is not None
    touched = set(grad.abs().sum(1).nonzero()[:, 0].tolist())
    assert touched <= {1, 2, 3, 40, 41}
    assert 3 in touched
    assert model.encoder is None or 40 in touched


@pytest.mark.parametrize("kind", DECODERS)
def test_an_encoder_sees_both_ways(kind: str) -> None:
    model = draw_model(encoder(kind))
    model.states(torch.tensor([[1, 2, 3, 4]]))[0, 1].sum().backward()
    grad = model.embedding.weight.grad
    assert grad is not None
    assert grad[1].abs().sum() > 0
    assert grad[3].abs().sum() > 0


def test_a_picture_is_decoded_with_a_cache_and_gives_every_parameter_a_gradient() -> None:
    model = draw_model(decoder("gpt2", encoder=seeing()))
    texts, pictures = list(draw_tokens(2, LENGTH)), draw_pictures(2)
    source = model.read(pictures)
    states = model.states(torch.stack(texts), source=source)
    with torch.no_grad():
        each = [model.read(picture[None]) for picture in pictures]
    got = decode(model, texts, cuts=[5, 1, 1, 4], sources=[*each])
    for found, expected in zip(got, states, strict=True):
        require_close(found, expected.detach())
    model.project(states.flatten(0, 1)).logsumexp(-1).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("kind", DECODERS)
def test_training_gives_every_parameter_a_gradient(kind: str) -> None:
    model = draw_model(pair(kind)).train()
    source = model.read(draw_tokens(2, 7, seed=2))
    model(draw_tokens(2, 6), source=source).logsumexp(-1).sum().backward()
    missing = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    assert missing == []


@pytest.mark.parametrize("make", [decoder, encoder, pair])
@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_bfloat16_stays_near_single_precision(kind: str, make: type) -> None:
    model, tokens = draw_model(make(kind)), draw_tokens(2, 9)

    def logits() -> Tensor:
        source = None if model.encoder is None else model.read(tokens)
        return model(tokens, source=source)

    exact = logits()
    model.to(torch.bfloat16)
    rounded = logits()
    assert rounded.dtype == torch.bfloat16
    error = (rounded.float() - exact).abs() / exact.abs().max()
    # A router may choose another expert for a rounded token: that is the largest error of all.
    assert error.mean() < 0.02
    assert error.max() < 0.2


@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_a_forked_slot_goes_on_as_its_origin(kind: str) -> None:
    model, text = draw_model(decoder(kind)), draw_tokens(1, LENGTH)[0]
    cache = SlotCache(model.config, slots=3, length=LENGTH, dtype=torch.float32)
    view = cache.view([Chunk(0, 0, 6)])
    model.encode(text[:6], view.positions, view)
    cache.fork(0, into=2)
    view = cache.view([Chunk(2, 6, 1)])
    state = model.encode(text[6:7], view.positions, view)
    expected = model.states(text[None, :7])[0, -1:]
    require_close(state, expected)
