"""Adapters: what they add, what is learnt, many beside one model, and nothing left behind."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from lmloop.errors import ArtifactError
from lmloop.model.quantized import quantize_int8
from lmloop.model.rows import PackedRows
from lmloop.model.transformer import Transformer
from lmloop.weights.adapters import Adapter, AdapterBank, LoraConfig, make_adapter

from ..conftest import random_model, tiny_shape

TOKENS = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(3))
KINDS = {"LoRA": LoraConfig(rank=3), "DoRA": LoraConfig(rank=3, dora=True)}
SOME = ("v_proj", "up_proj", "o_proj")


def small_model(**changes: bool) -> Transformer:
    return random_model(tiny_shape(**changes)).eval()


def drawn(model: Transformer, config: LoraConfig, *, seed: int = 0) -> Adapter:
    """An adapter that has learnt something."""
    generator = torch.Generator().manual_seed(seed)
    adapter = make_adapter(model, config, generator=generator)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return adapter


def state_of(model: Transformer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(model: Transformer, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_what_is_added_is_that_of_the_paper() -> None:
    model = small_model()
    adapter = drawn(model, LoraConfig(rank=4, alpha=6.0, targets=("down_proj",)))
    layer, pair = model.get_submodule("blocks.1.feed_forward.part.down"), None
    pair = adapter.pairs["blocks.1.feed_forward.part.down"]["model.layers.1.mlp.down_proj"]
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(1))
    plain = layer(x)
    AdapterBank(model, adapter)
    torch.testing.assert_close(layer(x), plain + 6 / 4 * x @ pair.a.T @ pair.b.T)
    assert drawn(model, LoraConfig(rank=4, alpha=6.0, rslora=True)).pairs[
        "blocks.0.mixer.part.output"
    ]["model.layers.0.self_attn.o_proj"].scale == pytest.approx(3.0)


def test_rows_of_dora_are_as_long_as_their_magnitudes() -> None:
    model = small_model(qkv_bias=True)
    layer = model.get_submodule("blocks.0.mixer.part.qkv")
    assert isinstance(layer, nn.Linear)
    bias = layer.bias.clone()
    adapter = drawn(model, LoraConfig(rank=2, dora=True, targets=("q_proj",)))
    (pair,) = adapter.pairs["blocks.0.mixer.part.qkv"].values()
    before = layer.weight.clone()
    bank = AdapterBank(model, adapter)
    rows = (layer(torch.eye(24)) - bias).T
    torch.testing.assert_close(rows[:32].norm(dim=1), pair.magnitude)
    torch.testing.assert_close(rows[32:], before[32:])
    bank.merge()
    torch.testing.assert_close(layer.weight, rows, rtol=0, atol=1e-5)


@pytest.mark.parametrize("targets", ["all-linear", SOME])
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_adapter_changes_nothing(kind: str, targets: tuple[str, ...] | str) -> None:
    model = small_model()
    plain = model(TOKENS)
    config = LoraConfig(rank=3, dora=kind == "DoRA", targets=targets)
    adapter = make_adapter(model, config, generator=torch.Generator().manual_seed(0))
    AdapterBank(model, adapter)
    torch.testing.assert_close(model(TOKENS), plain)
    for pair in adapter.modules():
        if hasattr(pair, "a"):
            assert 0 < pair.a.abs().max() <= 1 / math.sqrt(pair.a.shape[1])
            assert not pair.b.any()


def test_the_same_generator_draws_the_same_adapter() -> None:
    first, again = drawn(small_model(), LoraConfig()), drawn(small_model(), LoraConfig())
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_adapter_learns(kind: str) -> None:
    model = small_model()
    adapter = drawn(model, KINDS[kind])
    AdapterBank(model, adapter)
    model(TOKENS).square().mean().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(
        parameter.grad is not None and parameter.grad.any() for parameter in adapter.parameters()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_detached_model_is_exactly_what_it_was(kind: str) -> None:
    model = small_model()
    model.embedding.weight.requires_grad_(False)
    before, plain = state_of(model), model(TOKENS)
    learnt = [parameter.requires_grad for parameter in model.parameters()]
    bank = AdapterBank(model, drawn(model, KINDS[kind]))
    assert not torch.equal(model(TOKENS), plain)
    assert_same_state(model, before)
    bank.detach()
    assert torch.equal(model(TOKENS), plain)
    assert [parameter.requires_grad for parameter in model.parameters()] == learnt
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("targets", ["all-linear", SOME])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_merged_model_computes_what_the_attached_one_did(
    kind: str, targets: tuple[str, ...] | str
) -> None:
    model = small_model()
    config = LoraConfig(rank=3, dora=kind == "DoRA", targets=targets)
    bank = AdapterBank(model, drawn(model, config))
    x = torch.randn(9, 24, generator=torch.Generator().manual_seed(1))
    up = model.get_submodule("blocks.1.feed_forward.part.up")
    attached, logits = up(x), model(TOKENS)
    bank.merge()
    torch.testing.assert_close(up(x), attached, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(model(TOKENS), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_learn_on_a_base_of_eight_bits(kind: str) -> None:
    model = small_model()
    quantize_int8(model)
    before = state_of(model)
    adapter = drawn(model, KINDS[kind])
    bank = AdapterBank(model, adapter)
    logits = model(TOKENS)
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in adapter.parameters())
    assert_same_state(model, before)
    floats = small_model()
    with torch.no_grad():
        for path, module in floats.blocks.named_modules():
            if isinstance(module, nn.Linear):
                small = model.blocks.get_submodule(path)
                module.weight.copy_(small.weight * small.scale[:, None])
    AdapterBank(floats, adapter)
    torch.testing.assert_close(floats(TOKENS), logits, rtol=1e-4, atol=1e-4)
    bank.merge()
    small = model.get_submodule("blocks.0.feed_forward.part.down")
    pairs = adapter.pairs["blocks.0.feed_forward.part.down"]
    pair = pairs["model.layers.0.mlp.down_proj"]
    large = floats.get_submodule("blocks.0.feed_forward.part.down")
    exact = large.weight + pair.scale * pair.b @ pair.a
    if pair.magnitude is not None:
        exact *= (pair.magnitude / exact.norm(dim=1))[:, None]
    step = exact.detach().abs().amax(1, keepdim=True) / 127
    assert ((small.weight * small.scale[:, None] - exact).abs() <= 0.51 * step).all()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_tokens_of_one_step_pass_the_adapters_that_are_chosen_for_them(kind: str) -> None:
    """Packed texts of different requests beside each of them alone."""
    model = small_model()
    adapters = [
        drawn(model, KINDS[kind], seed=1),
        drawn(model, LoraConfig(rank=5, targets=SOME), seed=2),
        drawn(model, KINDS[kind], seed=3),
    ]
    bank = AdapterBank(model, *adapters)
    texts = torch.randint(0, 50, (5, 4), generator=torch.Generator().manual_seed(4))
    choice = [1, None, 0, 2, 1]
    alone = []
    for text, number in zip(texts, choice, strict=True):
        bank.choose(number)
        alone.append(model.states(text[None])[0])
    bank.choose(
        torch.tensor([-1 if number is None else number for number in choice]).repeat_interleave(4)
    )
    view = PackedRows(rows=1, length=20, segments=torch.arange(5).repeat_interleave(4)[None])
    packed = model.encode(texts.flatten(), torch.arange(4).repeat(5), view)
    torch.testing.assert_close(packed.view(5, 4, -1), torch.stack(alone), rtol=1e-5, atol=1e-5)
    bank.detach()
    torch.testing.assert_close(alone[1], model.states(texts[1:2])[0], rtol=0, atol=0)


def test_gradients_reach_every_adapter_of_a_step_and_no_other() -> None:
    model = small_model()
    adapters = [drawn(model, LoraConfig(targets=SOME), seed=seed) for seed in range(3)]
    bank = AdapterBank(model, *adapters)
    bank.choose(torch.tensor([0] * 7 + [2] * 7))
    model(TOKENS).square().mean().backward()
    learns = [all(each.grad is not None for each in one.parameters()) for one in adapters]
    assert learns == [True, False, True]


def test_numbers_and_counts_that_do_not_fit_are_refused() -> None:
    model = small_model()
    bank = AdapterBank(model, drawn(model, LoraConfig()))
    with pytest.raises(ValueError, match=r"adapters \[1\] of 1"):
        bank.choose(1)
    bank.choose(torch.tensor([0, -1, 0]))
    with pytest.raises(ValueError, match="chosen for 3 tokens, not for 14"):
        model(TOKENS)


def test_dropout_acts_only_while_the_model_trains() -> None:
    model = small_model()
    AdapterBank(model, drawn(model, LoraConfig(dropout=0.5)))
    assert torch.equal(model(TOKENS), model(TOKENS))
    model.train()
    assert not torch.equal(model(TOKENS), model(TOKENS))


def test_a_model_in_bfloat16_takes_an_adapter_in_float32() -> None:
    model = small_model()
    adapter = drawn(model, LoraConfig(dora=True))
    half = copy.deepcopy(model).to(torch.bfloat16)
    AdapterBank(model, adapter)
    AdapterBank(half, adapter)
    assert half(TOKENS).dtype == torch.bfloat16
    error = (half(TOKENS) - model(TOKENS)).norm() / model(TOKENS).norm()
    assert error < 0.05


def test_a_target_that_nothing_has_is_refused_with_what_there_is() -> None:
    model = small_model()
    with pytest.raises(ArtifactError, match="'query'.*there are down_proj, gate_proj, k_proj, o_"):
        Adapter(model, LoraConfig(targets=("q_proj", "query")))
    with pytest.raises(ArtifactError, match="'roj'"):
        Adapter(model, LoraConfig(targets=("roj",)))


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"dropout": 1.0}, {"alpha": math.nan}])
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        LoraConfig(**wrong)  # type: ignore[arg-type]
