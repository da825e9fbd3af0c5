"""Layers that read in order, beside PyTorch's own and counted by hand."""

from __future__ import annotations

import pytest
import torch

from lmloop.model.mixers import Convolution, Recurrent, state_size

from .kinds import decoder


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_text_in_two_parts_ends_as_in_one(kind: str) -> None:
    mixer, x = Recurrent(decoder(kind), layer=0), draw(3, 7, 24)
    whole, last = mixer.run(x)
    first, state = mixer.run(x[:, :4])
    second, end = mixer.run(x[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    torch.testing.assert_close(end, last)
    assert last.shape[1] == state_size(decoder(kind), layer=0)


def test_a_pooled_convolution_by_hand() -> None:
    config = decoder("convolution", hidden_size=1, kernel_size=2, pooling=2)
    mixer = Convolution(config, layer=0)
    with torch.no_grad():
        mixer.convolution.weight.copy_(torch.tensor([[[1.0, 2.0]]]))
        mixer.convolution.bias.fill_(-1.0)
    # relu(x[t-1] + 2 x[t] - 1) over 0, 3, -1, 1: 5 (0+6-1), 0 (3-2-1), 0 (-1+2-1); the place
    # before the text gives relu(-1) = 0.
    y, state = mixer.run(torch.tensor([[[3.0], [-1.0], [1.0]]]))
    assert y.flatten().tolist() == [5.0, 5.0, 0.0]
    assert state.flatten().tolist() == [-1.0, 1.0]


@pytest.mark.parametrize(
    ("kind", "size"), [("lstm", 48), ("gru", 24), ("convolution", 3 * 24), ("qwen3", None)]
)
def test_what_a_sequence_keeps(kind: str, size: int | None) -> None:
    assert state_size(decoder(kind), layer=0) == size
