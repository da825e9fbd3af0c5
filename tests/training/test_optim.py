"""Muon and AdamW: each against its definition, and a state that is the whole state."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lmloop.learning import TrainConfig
from lmloop.model.transformer import Transformer
from lmloop.training.optim import Optimizer, make_optimizer

from ..conftest import random_model, tiny_shape
from .test_muon import polar

RATES = {"learning_rate": 0.01, "matrix_learning_rate": 0.02, "weight_decay": 0.0}


def make(model: Transformer, **changes: Any) -> Optimizer:
    return Optimizer(model, **(RATES | changes))


def set_gradients(model: Transformer, *, seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    grads = {}
    for name, parameter in model.named_parameters():
        drawn = scale * torch.randn(parameter.shape, generator=generator)
        parameter.grad = drawn.to(parameter.dtype)
        grads[name] = parameter.grad.float().clone()
    return grads


def test_the_first_step_of_muon_follows_the_polar_factor_of_each_part() -> None:
    model = random_model(tiny_shape(num_layers=1))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    grads = set_gradients(model, seed=1)
    make(model).step(0.5, clip=1e9)
    parts = {
        "blocks.0.mixer.part.qkv.weight": (32, 16, 16),
        "blocks.0.mixer.part.output.weight": (24,),
        "blocks.0.feed_forward.part.up.weight": (40, 40),
        "blocks.0.feed_forward.part.down.weight": (24,),
    }
    for name, rows in parts.items():
        change = (dict(model.named_parameters())[name] - before[name]).detach()
        for moved, grad in zip(change.split(rows), grads[name].split(rows), strict=True):
            size = 0.02 * 0.5 * math.sqrt(max(1.0, grad.shape[0] / grad.shape[1]))
            # Momentum of the first step is a multiple of the gradient: the direction is the same.
            expected = -size * polar(grad)
            error = (moved.double() - expected).norm() / expected.norm()
            assert error < 0.15, name


def test_momentum_carries_the_direction_of_earlier_gradients_on() -> None:
    model = random_model(tiny_shape(num_layers=1))
    optimizer = make(model)
    name = "blocks.0.mixer.part.output.weight"
    momentum = torch.zeros(24, 32)
    for seed in [1] * 20 + [2]:
        before = dict(model.named_parameters())[name].detach().clone()
        grad = set_gradients(model, seed=seed)[name]
        optimizer.step(1.0, clip=1e9)
        momentum = 0.95 * momentum + 0.05 * grad
        moved = dict(model.named_parameters())[name].detach() - before
    expected = polar(0.05 * grad + 0.95 * momentum)
    # After twenty steps one way, a single gradient the other way turns the direction little.
    assert cosine(-moved, expected) > 0.98
    assert cosine(-moved, polar(grad)) < 0.5


def cosine(one: Tensor, other: Tensor) -> float:
    return float((one.double() * other.double()).sum() / (one.norm() * other.norm()))


def run_adamw(
    start: Tensor, grads: list[Tensor], factors: list[float], *, weight_decay: float = 0.0
) -> Tensor:
    """PyTorch's own, one parameter, unfused."""
    parameter = start.clone().requires_grad_()
    adamw = torch.optim.AdamW(
        [parameter], betas=(0.9, 0.95), eps=1e-10, weight_decay=weight_decay, fused=False
    )
    for grad, factor in zip(grads, factors, strict=True):
        adamw.param_groups[0]["lr"] = 0.01 * factor
        parameter.grad = grad.clone()
        adamw.step()
    return parameter.detach()


FACTORS = [0.0, 0.5, 1.0, 1.0, 0.3]


@pytest.mark.parametrize(("method", "matrices"), [("muon", False), ("adamw", True)])
def test_what_is_adamw_equals_pytorchs(method: str, matrices: bool) -> None:
    model = random_model(tiny_shape(num_layers=1, tie_embeddings=False))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make(model, method=method, weight_decay=0.1)
    history = []
    for number, factor in enumerate(FACTORS):
        history.append(set_gradients(model, seed=number, scale=1e-3))
        optimizer.step(factor, clip=1.0)
    for name, parameter in model.named_parameters():
        hidden = parameter.dim() == 2 and name.startswith("blocks.")
        if hidden and not matrices:
            continue
        grads = [each[name] for each in history]
        expected = run_adamw(before[name], grads, FACTORS, weight_decay=0.1 if hidden else 0.0)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-6, msg=name)


def test_muon_decays_the_hidden_matrices_by_their_rate() -> None:
    model, plain = random_model(tiny_shape()), random_model(tiny_shape())
    for each, decay in ((model, 0.5), (plain, 0.0)):
        optimizer = make(each, weight_decay=decay)
        set_gradients(each, seed=0)
        optimizer.step(1.0, clip=1.0)
    start = dict(random_model(tiny_shape()).named_parameters())
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        hidden = one.dim() == 2 and name.startswith("blocks.")
        lost = 0.02 * 0.5 * start[name] if hidden else torch.zeros(())
        torch.testing.assert_close(other - one, lost.expand_as(one), rtol=1e-3, atol=1e-6)


def test_a_large_gradient_is_clipped_to_the_norm_for_adamw() -> None:
    model = random_model(tiny_shape(num_layers=1))
    before = model.norm.weight.detach().clone()
    history = []
    optimizer = make(model)
    for number in range(3):
        grads = set_gradients(model, seed=number, scale=10.0**number)
        norm = math.sqrt(sum(float(each.pow(2).sum()) for each in grads.values()))
        assert optimizer.step(1.0, clip=2.0) == pytest.approx(norm, rel=1e-5)
        history.append(grads["norm.weight"] * 2.0 / norm)
    expected = run_adamw(before, history, [1.0] * 3)
    torch.testing.assert_close(model.norm.weight.detach(), expected, rtol=1e-5, atol=1e-6)


def test_a_parameter_without_gradient_is_taken_as_zero() -> None:
    model = random_model(tiny_shape())
    optimizer = make(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert optimizer.step(1.0, clip=1.0) == 0
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_gradients_are_gone_after_a_step() -> None:
    model = random_model(tiny_shape())
    set_gradients(model, seed=0)
    make(model).step(1.0, clip=1.0)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bfloat16_parameters_follow_masters_that_gather_what_they_cannot_hold() -> None:
    model = random_model(tiny_shape()).to(torch.bfloat16)
    optimizer = make(model, learning_rate=1e-4)
    before = model.norm.weight.detach().clone()
    for _ in range(100):
        set_gradients(model, seed=0)
        optimizer.step(1.0, clip=1.0)
    master = optimizer.master["norm.weight"]
    # A hundred steps of 1e-4: each too small for bfloat16, together not.
    assert not torch.equal(model.norm.weight, before)
    assert torch.equal(model.norm.weight, master.bfloat16())
    assert (master - before.float()).abs().max() == pytest.approx(1e-2, rel=0.1)


@pytest.mark.parametrize("method", ["muon", "adamw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_state_goes_on_bit_for_bit(method: str, dtype: torch.dtype) -> None:
    one, other = (random_model(tiny_shape(), seed=seed).to(dtype) for seed in (0, 1))
    unbroken = make(one, method=method, weight_decay=0.1)
    for number in range(3):
        set_gradients(one, seed=number)
        unbroken.step(1.0, clip=1.0)
    state = {name: tensor.clone() for name, tensor in unbroken.state().items()}
    resumed = make(other, method=method, weight_decay=0.1)
    resumed.load_state(state)
    for number in range(3, 6):
        for model, optimizer in ((one, unbroken), (other, resumed)):
            set_gradients(model, seed=number)
            optimizer.step(0.7, clip=1.0)
    for first, second in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(first, second)
    for name, tensor in unbroken.state().items():
        assert torch.equal(tensor, resumed.state()[name]), name
    assert all(isinstance(tensor, Tensor) for tensor in state.values())


def test_a_restored_state_is_a_copy() -> None:
    model = random_model(tiny_shape())
    optimizer = make(model)
    set_gradients(model, seed=0)
    optimizer.step(1.0, clip=1.0)
    state = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    kept = {name: tensor.clone() for name, tensor in state.items()}
    optimizer.load_state(state)
    set_gradients(model, seed=1)
    optimizer.step(1.0, clip=1.0)
    for name, tensor in state.items():
        assert torch.equal(tensor, kept[name]), name


def test_the_matrices_of_an_encoder_are_orthogonalised_beside_the_others() -> None:
    shape = tiny_shape()
    encoder = replace(shape, causal=False, head="none", num_layers=1)
    model = random_model(replace(shape, encoder=encoder))
    optimizer = make(model)
    # Two blocks, and one of the encoder: their down matrices are [24, 40].
    assert optimizer.state()["momentum.24x40"].shape == (3, 24, 40)
    set_gradients(model, seed=0)
    optimizer.step(1.0, clip=1.0)
    left = {name.split(".", 2)[2] for name in optimizer.state() if name.startswith("adamw.")}
    assert not [each for each in left if "blocks" in each and optimizer.master[each].dim() == 2]


def test_gathered_gradients_add_up_to_those_of_the_batch() -> None:
    one, other = random_model(tiny_shape()), random_model(tiny_shape())
    whole, pieces = make(one), make(other)
    parts = [set_gradients(other, seed=seed) for seed in range(3)]
    other.zero_grad()
    for seed, share in enumerate((0.5, 0.3, 0.2)):
        set_gradients(other, seed=seed)
        pieces.gather(share)
        assert all(parameter.grad is None for parameter in other.parameters())
    for name, parameter in one.named_parameters():
        parameter.grad = 0.5 * parts[0][name] + 0.3 * parts[1][name] + 0.2 * parts[2][name]
    assert pieces.step(1.0, clip=1.0) == pytest.approx(whole.step(1.0, clip=1.0), rel=1e-6)
    for first, second in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["muon", "adamw", "sgd", "schedule-free"])
def test_a_gradient_that_is_no_number_moves_nothing(method: str) -> None:
    model = random_model(tiny_shape())
    optimizer = make(model, method=method, weight_decay=0.1, ema=0.9)
    set_gradients(model, seed=0)
    optimizer.step(1.0, clip=1.0)
    before = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    set_gradients(model, seed=1)
    model.norm.weight.grad[0] = math.nan  # type: ignore[union-attr, index]
    assert math.isnan(optimizer.step(1.0, clip=1.0))
    for name, tensor in optimizer.state().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_average_follows_the_weights_and_stands_in_for_them_on_demand() -> None:
    model = random_model(tiny_shape())
    optimizer = make(model, ema=0.6)
    average = model.norm.weight.detach().clone()
    for step in range(1, 5):
        set_gradients(model, seed=step)
        optimizer.step(1.0, clip=1.0)
        stays = min(0.6, (1 + step) / (10 + step))
        average = stays * average + (1 - stays) * optimizer.master["norm.weight"]
    live = model.norm.weight.detach().clone()
    with optimizer.averaged():
        torch.testing.assert_close(model.norm.weight.detach(), average)
    assert torch.equal(model.norm.weight, live)
    assert not torch.equal(live, average)
    optimizer.settle(optimizer.result)
    torch.testing.assert_close(model.norm.weight.detach(), average)


def test_l1_brings_small_numbers_of_hidden_matrices_to_exactly_zero() -> None:
    model = random_model(tiny_shape())
    optimizer = make(model, method="adamw", l1=1.0)
    name = "blocks.0.mixer.part.output.weight"
    before = optimizer.master[name].clone()
    optimizer.step(1.0, clip=1.0)  # no gradient: only the pull
    expected = before.sign() * (before.abs() - 0.01).clamp(min=0)
    torch.testing.assert_close(optimizer.master[name], expected, rtol=0, atol=1e-6)
    assert (optimizer.master[name] == 0).any()
    assert torch.equal(optimizer.master["norm.weight"], random_model(tiny_shape()).norm.weight)


def test_frozen_parameters_stay_byte_for_byte_and_lower_layers_move_less() -> None:
    model = random_model(tiny_shape(num_layers=3, tie_embeddings=False))
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    config = TrainConfig(
        steps=1,
        optimizer="adamw",
        frozen=("embedding.*", "blocks.0.*"),
        layer_decay=0.5,
        weight_decay=0.1,
    )
    optimizer = make_optimizer(model, config)
    set_gradients(model, seed=0)
    optimizer.step(1.0, clip=1.0)
    moved = {
        name: (each.detach() - before[name]).abs().max().item()
        for name, each in model.named_parameters()
    }
    for name, far in moved.items():
        if name.startswith(("embedding.", "blocks.0.")):
            assert far == 0, name
    norms = [moved[f"blocks.{layer}.mixer.norm.weight"] for layer in (1, 2)]
    assert norms[0] == pytest.approx(norms[1] / 2, rel=1e-2)
    assert moved["norm.weight"] == pytest.approx(norms[1], rel=1e-2)


@pytest.mark.parametrize("change", [{"method": "sgd"}, {"method": "schedule-free"}, {"ema": 0.9}])
def test_every_kind_of_state_goes_on_bit_for_bit(change: dict[str, Any]) -> None:
    one, other = random_model(tiny_shape(), seed=0), random_model(tiny_shape(), seed=1)
    unbroken = make(one, weight_decay=0.1, **change)
    for number in range(3):
        set_gradients(one, seed=number)
        unbroken.step(1.0, clip=1.0)
    resumed = make(other, weight_decay=0.1, **change)
    resumed.load_state({name: tensor.clone() for name, tensor in unbroken.state().items()})
    for number in range(3, 5):
        for model, optimizer in ((one, unbroken), (other, resumed)):
            set_gradients(model, seed=number)
            optimizer.step(0.7, clip=1.0)
    for name, tensor in unbroken.state().items():
        assert torch.equal(tensor, resumed.state()[name]), name


def test_what_is_gathered_lies_in_one_piece_that_ranks_can_add_up() -> None:
    model, twin = random_model(tiny_shape()), random_model(tiny_shape())
    whole, parts = make(model), make(twin)
    grads = set_gradients(model, seed=1)
    set_gradients(twin, seed=1)
    parts.gather(0.25)
    assert parts.gathered.dtype == torch.float32
    expected = torch.cat([grads[name].flatten() for name in parts.master])
    torch.testing.assert_close(parts.gathered, 0.25 * expected, rtol=0, atol=0)
    parts.gathered.mul_(4)
    assert parts.step(1.0, clip=1e9) == whole.step(1.0, clip=1e9)
    for name, master in whole.master.items():
        assert master.equal(parts.master[name])


def test_a_parameter_without_a_gradient_is_gathered_as_zeros() -> None:
    model = random_model(tiny_shape())
    optimizer = make(model)
    set_gradients(model, seed=1)
    model.embedding.weight.grad = None
    optimizer.gather(1.0)
    size = model.embedding.weight.numel()
    assert list(optimizer.master)[0] == "embedding.weight"
    assert not optimizer.gathered[:size].any()
    assert optimizer.gathered[size:].any()
