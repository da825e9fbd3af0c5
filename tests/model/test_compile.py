"""torch.compile'd models equal eager ones, forward and backward."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch._dynamo.utils import counters

from lmloop.model.cache import Chunk, SlotCache
from lmloop.model.config import ModelConfig
from lmloop.model.transformer import Transformer

from .kinds import (
    decoder,
    draw_model,
    draw_pictures,
    draw_tokens,
    encoder,
    pair,
    require_close,
    seeing,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    # PyTorch's compiler warns of its own parts.
    pytest.mark.filterwarnings("ignore"),
]


# One of each part that is not in the others: a compilation takes seconds.
KINDS = [
    *("qwen3", "gpt2", "gemma", "relative", "cosine, learnt", "gru", "experts", "batch norm"),
    "convolution, then recurrent",
]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_compiled_forward_equals_the_eager_one(kind: str) -> None:
    torch.compiler.reset()
    model, tokens = draw_model(decoder(kind)), draw_tokens(2, 9)
    require_close(torch.compile(model)(tokens), model(tokens))


@pytest.mark.parametrize("kind", ["qwen3", "gru"])
@torch.no_grad()
def test_compiled_encoders_and_pairs_equal_eager_ones(kind: str) -> None:
    torch.compiler.reset()
    tokens = draw_tokens(2, 9)
    model = draw_model(encoder(kind))
    lengths = torch.tensor([9, 4])
    require_close(torch.compile(model)(tokens, lengths=lengths), model(tokens, lengths=lengths))
    model = draw_model(pair(kind))
    source = model.read(tokens)
    require_close(torch.compile(model)(tokens, source=source), model(tokens, source=source))


@torch.no_grad()
def test_a_compiled_encoder_of_pictures_equals_the_eager_one() -> None:
    torch.compiler.reset()
    model, pictures = draw_model(seeing()), draw_pictures(2)
    require_close(torch.compile(model.states)(pictures), model.states(pictures))


def gradients(model: Transformer, run: torch.nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    run(draw_tokens(2, 9)).logsumexp(-1).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["qwen3", "gpt2", "gemma"])
def test_compiled_gradients_equal_the_eager_ones(kind: str) -> None:
    torch.compiler.reset()
    model = draw_model(decoder(kind))
    expected = gradients(model, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = gradients(model, torch.compile(model))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        require_close(found[name], gradient)


def require_equal_steps(config: ModelConfig, *, backend: str) -> None:
    """A prompt in each of two slots, then five tokens together, compiled and eager."""
    torch.compiler.reset()
    counters.clear()
    model, texts = draw_model(config), draw_tokens(2, 10)
    compiled = torch.compile(model.encode, backend=backend)
    caches = [
        SlotCache(config, slots=3, length=16, dtype=torch.float32) for _ in ("eager", "compiled")
    ]
    steps = [[Chunk(2, 0, 5), Chunk(0, 0, 3)]]
    steps += [[Chunk(2, 5 + i, 1), Chunk(0, 3 + i, 1)] for i in range(5)]
    graphs = []
    for chunks in steps:
        tokens = torch.cat([text[c.start : c.stop] for text, c in zip(texts, chunks, strict=True)])
        views = [cache.view(chunks) for cache in caches]
        expected = model.encode(tokens, views[0].positions, views[0])
        require_close(compiled(tokens, views[1].positions, views[1]), expected)
        graphs.append(counters["stats"]["unique_graphs"])
    for store, other in zip(caches[0].layers, caches[1].layers, strict=True):
        for kept, found in zip(store.tensors(), other.tensors(), strict=True):
            require_close(found, kept)
    # A prompt and a token differ in how they are grouped. Further tokens compile nothing, however
    # long the texts become; the first of them may make a number of a layer a variable.
    assert graphs[2:] == graphs[2:3] * 4


def one_of_each_layer(kind: str) -> ModelConfig:
    mixers = tuple(dict.fromkeys(decoder(kind).mixers))
    return decoder(kind, num_layers=len(mixers) or 1, mixers=mixers)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_cached_steps_of_a_traced_model_equal_eager_ones(kind: str) -> None:
    # Traced, with writes to the cache made functional, as every compiler gets it.
    require_equal_steps(one_of_each_layer(kind), backend="aot_eager")


@pytest.mark.parametrize("kind", ["qwen3", "cosine, learnt"])
@torch.no_grad()
def test_cached_steps_of_a_compiled_model_equal_eager_ones(kind: str) -> None:
    require_equal_steps(one_of_each_layer(kind), backend="inductor")


@torch.no_grad()
def test_a_step_of_a_decoder_is_one_graph() -> None:
    torch.compiler.reset()
    model = draw_model(decoder("qwen3"))
    cache = SlotCache(model.config, slots=2, length=8, dtype=torch.float32)
    view = cache.view([Chunk(0, 0, 1), Chunk(1, 0, 1)])
    whole = torch.compile(model.encode, backend="aot_eager", fullgraph=True)
    whole(draw_tokens(1, 2)[0], view.positions, view)
