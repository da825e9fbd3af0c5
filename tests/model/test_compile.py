"""torch.compile'd models equal eager ones, forward and backward."""

from __future__ import annotations

import warnings

import pytest
import torch

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
