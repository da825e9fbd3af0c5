"""Rules in 8 bits against the exact ones: steps, learning, bytes and a whole state."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lmloop.model.init import initialise
from lmloop.model.transformer import Transformer
from lmloop.training import compact, moments
from lmloop.training.batch import batch_loss
from lmloop.training.calibrate import draw_batch
from lmloop.training.optim import Optimizer, make_optimizer

from .live_bytes import make_section, make_shape

SHAPE = make_shape(64, 2, 300)


def make(method: str, *, bits: int, seed: int = 0) -> tuple[Transformer, Optimizer]:
    model = Transformer(SHAPE)
    initialise(model, seed=seed)
    section = make_section(optimizer=method, state_bits=bits, learning_rate=0.01)
    return model, make_optimizer(model, section)


def set_gradients(model: Transformer, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = 1e-3 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("method", ["adamw", "sgd", "muon"])
def test_the_first_step_is_the_exact_one(method: str) -> None:
    # Nothing is remembered yet that could have been rounded.
    (exact, one), (model, other) = make(method, bits=32), make(method, bits=8)
    for each, optimizer in ((exact, one), (model, other)):
        set_gradients(each, seed=1)
        optimizer.step(1.0, clip=1e9)
    for (name, expected), got in zip(one.master.items(), other.master.values(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("method", ["adamw", "sgd", "muon"])
def test_the_loss_falls_as_with_exact_moments(method: str) -> None:
    batch = draw_batch(SHAPE, 2, 64)
    losses: dict[int, list[float]] = {}
    for bits in (32, 8):
        model, optimizer = make(method, bits=bits)
        losses[bits] = []
        for _ in range(20):
            loss = batch_loss(model, batch)
            loss.backward()
            losses[bits].append(loss.item())
            optimizer.step(1.0, clip=1.0)
    exact, rounded = losses[32], losses[8]
    assert exact[-1] < exact[0] - 0.05
    # At no step does rounding cost more than a twentieth of what was learnt.
    worst = max(one - other for one, other in zip(rounded, exact, strict=True))
    assert worst < 0.05 * (exact[0] - exact[-1])


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    masters = {}
    for piece in (moments.PIECE, 1024):
        monkeypatch.setattr(moments, "PIECE", piece)
        for method in ("adamw", "muon"):
            model, optimizer = make(method, bits=8)
            for seed in range(3):
                set_gradients(model, seed=seed)
                optimizer.step(1.0, clip=1.0)
            masters[piece, method] = optimizer.master
    for method in ("adamw", "muon"):
        whole, cut = masters[1 << 18, method], masters[1024, method]
        assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.parametrize("method", ["adamw", "sgd", "muon"])
def test_the_state_is_small_and_is_all_of_it(method: str) -> None:
    model, optimizer = make(method, bits=8)
    other, resumed = make(method, bits=8, seed=1)
    for seed in range(3):
        set_gradients(model, seed=seed)
        optimizer.step(1.0, clip=1.0)
    state = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    coded = {name: each for name, each in state.items() if name.endswith(".codes")}
    assert coded
    assert all(each.dtype == torch.uint8 for each in coded.values())
    numbers = sum(each.numel() for each in coded.values())
    large = sum(p.numel() for p in model.parameters() if p.numel() >= compact.SMALL)
    assert numbers == large * (2 if method == "adamw" else 1) + _embedding(model) * (
        method == "muon"
    )
    resumed.load_state(state)
    for seed in (3, 4):
        for each, moved in ((model, optimizer), (other, resumed)):
            set_gradients(each, seed=seed)
            moved.step(1.0, clip=1.0)
    ended = resumed.state()
    assert all(torch.equal(tensor, ended[name]) for name, tensor in optimizer.state().items())


def _embedding(model: Transformer) -> int:
    """AdamW's second moment of the embedding, which is no hidden matrix."""
    return model.embedding.weight.numel()


def test_a_rare_gradient_makes_no_larger_step_than_exact_moments() -> None:
    # A number whose gradients are tiny beside those of its block, as of a rare token.
    def run(bits: int) -> Tensor:
        model, optimizer = make("adamw", bits=bits)
        for _ in range(5):
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            assert model.embedding.weight.grad is not None
            model.embedding.weight.grad[0, 0] = 1.0
            model.embedding.weight.grad[0, 1] = 3e-5
            before = optimizer.master["embedding.weight"].clone()
            optimizer.step(1.0, clip=math.inf)
        return (optimizer.master["embedding.weight"] - before)[0]

    exact, rounded = run(32), run(8)
    assert rounded.abs().max() <= 2 * exact.abs().max()
    assert torch.equal(rounded[2:], torch.zeros_like(rounded[2:]))
