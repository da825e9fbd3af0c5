"""Products in float8: by hand, within the rounding that the format has, and as a model learns."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lmloop.model.config import Experts, ModelConfig
from lmloop.model.fp8 import (
    E4M3,
    E5M2,
    Float8Linear,
    choose_unit,
    multiply,
    multiply_in_float8,
    round_to,
)
from lmloop.model.init import initialise
from lmloop.model.recompute import Checkpointing
from lmloop.model.transformer import Transformer

from ..conftest import random_model, tiny_shape
from ..elsewhere import ELSEWHERE, Elsewhere
from .kinds import decoder, encoder

WIDE = {"hidden_size": 32, "intermediate_size": 48}
"""Of a tiny shape all of whose matrices have sides that float8 can have."""


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def make_model(precision: str = "fp8", *, config: ModelConfig | None = None) -> Transformer:
    model = random_model(config or tiny_shape(**WIDE)).bfloat16().train()
    if precision == "fp8":
        multiply_in_float8(model)
    return model


def loss_of(model: Transformer, *, seed: int = 0) -> Tensor:
    """Of a text in which each token follows from the one before; 21 tokens fill no 16."""
    starts = torch.arange(3)[:, None] + 10 * seed
    tokens = (starts + 3 * torch.arange(8)) % model.config.vocab_size
    logits = model(tokens[:, :-1]).float()
    return F.cross_entropy(logits.flatten(0, -2), tokens[:, 1:].flatten())


def gradients(model: Transformer) -> dict[str, Tensor]:
    loss_of(model).backward()  # type: ignore[no-untyped-call]
    return {
        name: each.grad.float() for name, each in model.named_parameters() if each.grad is not None
    }


def learn(model: Transformer, *, steps: int) -> list[float]:
    """The losses on the way; leaves no gradient."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for step in range(steps):
        loss = loss_of(model, seed=step % 5)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def float8_layers(model: nn.Module) -> set[str]:
    return {name for name, each in model.named_modules() if isinstance(each, Float8Linear)}


@pytest.mark.parametrize(
    ("dtype", "largest", "unit"),
    [
        (E4M3, 448.0, 1.0),
        (E4M3, 7.0, 2.0**-6),
        (E4M3, 450.0, 2.0),
        (E4M3, 256.0, 1.0),
        (E5M2, 57344.0, 1.0),
        (E5M2, -3.0, 2.0**-14),
        (E4M3, 3e38, 2.0**120),
        (E4M3, 0.0, 2.0**-100),
    ],
)
def test_the_unit_is_the_smallest_power_of_two_that_the_largest_number_fits(
    dtype: torch.dtype, largest: float, unit: float
) -> None:
    x = torch.tensor([[0.0, largest], [largest / 3, 0.0]])
    assert choose_unit(dtype, x).item() == unit
    assert choose_unit(dtype, x.bfloat16()).item() == unit


def test_few_bits_pass_a_layer_and_its_gradients_exactly() -> None:
    linear = nn.Linear(16, 32).bfloat16()
    x = (torch.arange(-24, 24) % 15 - 7).repeat(16)[:256].view(16, 16).bfloat16() / 8
    weight = (torch.arange(512) % 7 - 3).view(32, 16).bfloat16() * 4
    gradient = torch.tensor([1.0, -2.0, 3.0, 0.5, 0.0]).repeat(103)[:512].view(16, 32).bfloat16()
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(torch.arange(32))
    given = x.clone().requires_grad_()
    y = Float8Linear(linear)(given)
    y.backward(gradient)
    assert torch.equal(y, (x.float() @ weight.float().t()).bfloat16() + linear.bias)
    assert given.grad is not None
    assert linear.weight.grad is not None
    assert linear.bias.grad is not None
    assert torch.equal(given.grad, (gradient.float() @ weight.float()).bfloat16())
    assert torch.equal(linear.weight.grad, (gradient.float().t() @ x.float()).bfloat16())
    assert torch.equal(linear.bias.grad, gradient.float().sum(0).bfloat16())


@pytest.mark.parametrize(("dtype", "bits"), [(E4M3, 3), (E5M2, 2)])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_a_product_is_as_near_as_the_format_allows(
    dtype: torch.dtype, bits: int, size: float
) -> None:
    x, weight = draw(32, 48) * size, draw(64, 48, seed=1)
    left, right = round_to(dtype, x), round_to(E4M3, weight)
    y = multiply(left, right, dtype=torch.float32)
    # Half a step behind the last bit, or half of the smallest number that there is.
    least = torch.finfo(dtype).smallest_normal * 2.0**-bits / 2
    of_x = (x.double().abs() * 2.0 ** -(bits + 1)).clamp(min=least * left.unit.item())
    least = torch.finfo(E4M3).smallest_normal * 2.0**-3 / 2
    of_weight = (weight.double().abs() * 2.0**-4).clamp(min=least * right.unit.item())
    x_size, weight_size = x.double().abs() + of_x, weight.double().abs() + of_weight
    bound = x_size @ weight_size.t() - x.double().abs() @ weight.double().abs().t()
    bound += 48 * 2.0**-24 * (x_size @ weight_size.t())  # sums of 48 numbers in fp32
    wrong = (y.double() - x.double() @ weight.double().t()).abs()
    assert (wrong <= bound).all()
    assert (wrong > bound / 1000).any()


def test_both_sides_of_a_product_lie_row_by_row() -> None:
    for matrix in (draw(16, 32).t(), draw(32, 1).expand(32, 16), draw(64, 16)[::2]):
        rounded = round_to(E4M3, matrix)
        assert rounded.numbers.shape == (32, 16)
        assert rounded.numbers.is_contiguous()
        assert rounded.turn().numbers.is_contiguous()
        assert torch.equal(rounded.turn().numbers.float(), rounded.numbers.float().t())


def test_a_gradient_a_million_times_smaller_than_the_largest_is_not_lost() -> None:
    layer = Float8Linear(nn.Linear(16, 16, bias=False).bfloat16())
    gradient = torch.ones(16, 16, dtype=torch.bfloat16)
    gradient[:, 3] = 2.0**-20
    layer(torch.ones(16, 16, dtype=torch.bfloat16)).backward(gradient)
    assert layer.weight.grad is not None
    assert layer.weight.grad[3].tolist() == [16 * 2.0**-20] * 16


def test_nothing_comes_of_nothing() -> None:
    layer = Float8Linear(nn.Linear(16, 16, bias=False).bfloat16())
    x = torch.zeros(4, 16, dtype=torch.bfloat16, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert not y.any()
    assert layer.weight.grad is not None
    assert not layer.weight.grad.any()
    assert x.grad is not None
    assert x.grad.any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_does_not_become_the_largest_one(value: float) -> None:
    layer = Float8Linear(nn.Linear(16, 16, bias=False).bfloat16())
    x = draw(5, 16)
    x[2, 3] = value
    assert not layer(x).isfinite().any()
    given = draw(5, 16).requires_grad_()
    gradient = draw(5, 16)
    gradient[2, 3] = value
    layer(given).backward(gradient)
    assert given.grad is not None
    assert layer.weight.grad is not None
    assert not given.grad.isfinite().any()
    assert not layer.weight.grad.isfinite().any()


def test_a_product_of_any_number_of_tokens_is_that_of_each_token() -> None:
    layer = Float8Linear(nn.Linear(16, 32).bfloat16())
    x = draw(16, 16)
    x[0, 0] = 4.0  # is the largest of each part
    whole = layer(x)
    for count in (1, 7, 15):
        assert torch.equal(layer(x[:count]), whole[:count])


def test_while_a_model_answers_it_multiplies_as_it_will_be_kept() -> None:
    plain, model = make_model("bfloat16").eval(), make_model().eval()
    tokens = torch.arange(9)[None]
    assert torch.equal(model(tokens), plain(tokens))
    assert not torch.equal(model.train()(tokens), plain(tokens))


def test_parameters_stay_the_same_under_the_same_names() -> None:
    model = random_model(tiny_shape(**WIDE))
    before, kept = model.state_dict(keep_vars=True), list(model.named_parameters())
    multiply_in_float8(model)
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[name] is each for name, each in before.items())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in kept]


def test_the_matrices_of_the_blocks_are_multiplied_in_float8_and_nothing_else() -> None:
    layers = (
        "mixer.part.qkv",
        "mixer.part.output",
        "feed_forward.part.up",
        "feed_forward.part.down",
    )
    assert float8_layers(make_model()) == {
        f"blocks.{b}.{layer}" for b in (0, 1) for layer in layers
    }
    experts = Experts(count=16, active=2, size=16, shared_size=32)
    routed = make_model(config=tiny_shape(**WIDE, experts=experts))  # type: ignore[arg-type]
    assert float8_layers(routed) == {
        *(f"blocks.{b}.mixer.part.{layer}" for b in (0, 1) for layer in ("qkv", "output")),
        *(
            f"blocks.{b}.feed_forward.part.shared.{layer}"
            for b in (0, 1)
            for layer in ("up", "down")
        ),
    }


def test_a_side_that_is_no_multiple_of_16_stays_in_bfloat16() -> None:
    assert not float8_layers(make_model(config=tiny_shape()))
    odd = float8_layers(make_model(config=tiny_shape(**WIDE | {"intermediate_size": 40})))
    assert float8_layers(make_model()) - odd == {
        f"blocks.{b}.feed_forward.part.down" for b in (0, 1)
    }


def test_the_encoder_of_a_pair_is_multiplied_in_float8_as_well() -> None:
    read = encoder("qwen3", head="none", num_layers=1, **WIDE)
    found = float8_layers(make_model(config=decoder("qwen3", encoder=read, **WIDE)))
    assert {"encoder.blocks.0.mixer.part.qkv", "blocks.0.cross.part.kv"} <= found
    assert not any("head" in name or "embedding" in name for name in found)


def test_gradients_point_where_those_of_bfloat16_do() -> None:
    models = [Transformer(tiny_shape(**WIDE)) for _ in range(2)]  # type: ignore[arg-type]
    initialise(models[0], seed=0)
    models[0].bfloat16().train()
    learn(models[0], steps=20)  # or most gradients would be zero
    models[1].bfloat16().train().load_state_dict(models[0].state_dict())
    multiply_in_float8(models[1])
    plain, rounded = (gradients(model) for model in models)
    assert rounded.keys() == plain.keys()
    assert any(not torch.equal(rounded[name], plain[name]) for name in plain)
    one, other = (
        torch.cat([each.flatten() for each in found.values()]) for found in (plain, rounded)
    )
    assert F.cosine_similarity(one, other, dim=0) > 0.99


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_what_is_computed_again_has_the_same_gradients(checkpointing: Checkpointing) -> None:
    expected, model = gradients(make_model()), make_model()
    model.checkpoint(checkpointing)
    found = gradients(model)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class Count(TorchDispatchMode):
    """How many products in float8 are computed meanwhile."""

    products = 0

    def __torch_dispatch__(
        self, operator: Any, types: Any, given: Any = (), named: Any = None
    ) -> Any:
        self.products += operator is torch.ops.aten._scaled_mm.default
        return operator(*given, **(named or {}))


@pytest.mark.parametrize(("checkpointing", "times"), [("none", 3), ("selective", 3), ("full", 4)])
def test_selective_checkpointing_keeps_products_in_float8(
    checkpointing: Checkpointing, times: int
) -> None:
    model = make_model()
    model.checkpoint(checkpointing)
    with Count() as count:
        gradients(model)
    assert count.products == times * len(float8_layers(model))


def test_what_is_kept_for_the_way_back_is_what_bfloat16_keeps() -> None:
    kept = []
    for precision in ("bfloat16", "fp8"):
        model, held = make_model(precision), {}

        def keep(tensor: Tensor, held: dict[int, int] = held) -> Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            states = model.states(torch.arange(32).view(2, 16))
        kept.append(sum(held.values()))
        del states
    units = 4 * 2 * len(float8_layers(model))
    assert kept[1] == kept[0] + units


def test_frozen_weights_take_no_gradient_and_let_that_of_their_input_pass() -> None:
    layer = Float8Linear(nn.Linear(16, 16).bfloat16()).requires_grad_(False)
    x = draw(8, 16).requires_grad_()
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None


def test_a_model_learns_as_it_does_in_bfloat16() -> None:
    ends = {}
    for precision in ("bfloat16", "fp8"):
        losses = learn(make_model(precision), steps=30)
        ends[precision] = sum(losses[-5:]) / 5
        assert ends[precision] < 0.5 * losses[0]
    assert ends["fp8"] == pytest.approx(ends["bfloat16"], rel=0.1)


@pytest.mark.parametrize("checkpointing", ["none", "selective"])
def test_a_gpu_finds_all_it_multiplies_as_it_needs_it(
    monkeypatch: pytest.MonkeyPatch, checkpointing: Checkpointing
) -> None:
    # PyTorch checks sizes and order of what has no storage as CUDA would, if it is told so.
    monkeypatch.setattr(torch._meta_registrations, "device_hint", lambda tensor: "cuda")
    few = torch.empty(24, 16, dtype=E4M3, device=ELSEWHERE)
    with pytest.raises(RuntimeError, match="divisible by 16"):
        torch._scaled_mm(few[:16], few.t(), few[0, 0].float(), few[0, 0].float())
    model = make_model().to(ELSEWHERE)
    model.checkpoint(checkpointing)
    tokens = torch.zeros(3, 7, dtype=torch.long, device=ELSEWHERE)
    with Elsewhere():
        model.states(tokens).sum().backward()
    learnt = model.blocks.parameters()
    assert all(each.grad is not None and each.grad.device == ELSEWHERE for each in learnt)
