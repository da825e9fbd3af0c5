"""Compiled passes against PyTorch's formulas in float64, and what happens without a compiler."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lmloop.model import kernels
from lmloop.model.functions import norm_rotate, rms_norm, rotate, swiglu
from lmloop.model.scores import Scoring, attend, make_mask
from lmloop.training.loss import chunked_cross_entropy

ROUNDING = 2.0**-7
"""Half a unit in the last place of bfloat16, four times: what is kept on the way, and given."""

compiled = pytest.mark.skipif(not kernels.are_native(), reason="no C++ compiler is here")


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(torch.bfloat16)


def plain_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def plain_rotation(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    cosine, sine = (each.to(x.dtype) for each in angles)
    return torch.cat([left * cosine - right * sine, right * cosine + left * sine], dim=-1)


def angles(tokens: int, half: int) -> tuple[Tensor, Tensor]:
    turns = torch.linspace(0, 7, tokens * half).view(tokens, 1, half)
    return turns.cos().to(torch.bfloat16), turns.sin().to(torch.bfloat16)


def plain_swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


# Widths that are no multiple of sixteen, one that is, fewer tokens than threads, and none.
CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]] = {
    f"{name} {'x'.join(map(str, given[0].shape))}": (ours, plain, given)
    for name, ours, plain, inputs in (
        (
            "norm",
            lambda x, w: rms_norm(x, w, epsilon=1e-6),
            plain_norm,
            ([draw(5, 7), draw(7)], [draw(9, 3, 34), draw(3, 34)], [draw(1, 64), draw(64)]),
        ),
        (
            "rotate",
            lambda x: rotate(x, *angles(len(x), x.shape[-1] // 2)),
            lambda x: plain_rotation(x, angles(len(x), x.shape[-1] // 2)),
            ([draw(5, 3, 10)], [draw(4, 2, 64)]),
        ),
        (
            "norm and rotate",
            lambda x, w: norm_rotate(x, w, angles(len(x), x.shape[-1] // 2), epsilon=1e-6),
            lambda x, w: plain_rotation(plain_norm(x, w), angles(len(x), x.shape[-1] // 2)),
            ([draw(5, 3, 10), draw(3, 10)], [draw(4, 2, 64), draw(2, 64)]),
        ),
        ("swiglu", swiglu, plain_swiglu, ([draw(5, 14)], [draw(3, 1280)], [draw(0, 8)])),
    )
    for given in inputs
}


@compiled
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_formula(case: str) -> None:
    ours, plain, given = CASES[case]
    mine = [each.clone().requires_grad_() for each in given]
    theirs = [each.double().requires_grad_() for each in given]
    result, expected = ours(*mine), plain(*theirs)
    assert result.dtype == torch.bfloat16
    close(result, expected)
    direction = draw(*result.shape, seed=1)
    result.backward(direction)
    expected.backward(direction.double())
    for one, other in zip(mine, theirs, strict=True):
        close(one.grad, other.grad)


@compiled
def test_heads_that_are_cut_from_a_wider_product_are_read_where_they_lie() -> None:
    whole = draw(6, 5, 8)
    weight, turns = draw(3, 8), angles(6, 4)
    cut, copied = whole[:, 1:4], whole[:, 1:4].contiguous()
    for one, other in zip(
        kernels.norm(cut, weight, epsilon=1e-6, angles=turns),
        kernels.norm(copied, weight, epsilon=1e-6, angles=turns),
        strict=True,
    ):
        assert torch.equal(one, other)
    assert torch.equal(kernels.rotate(cut, turns), kernels.rotate(copied, turns))


@compiled
@pytest.mark.parametrize("masked", ["one", "heads", "none"])
@pytest.mark.parametrize("keys", [7, 48])
def test_attention_sees_what_the_mask_shows(masked: str, keys: int) -> None:
    q, k, v = draw(2, 4, 5, 16), draw(2, 2, keys, 16, seed=1), draw(2, 2, keys, 16, seed=2)
    hidden = torch.rand(2, 4 if masked == "heads" else 1, 5, keys) < 0.3
    mask = None if masked == "none" else make_mask(hidden, dtype=torch.bfloat16)
    mine = [each.clone().requires_grad_() for each in (q, k, v)]
    theirs = [each.double().requires_grad_() for each in (q, k, v)]
    result = attend(*mine, scoring=Scoring(scale=0.25), mask=mask)
    expected = F.scaled_dot_product_attention(
        *theirs, attn_mask=None if mask is None else mask.double(), scale=0.25, enable_gqa=True
    )
    close(result, expected, share=4)
    result.backward(draw(*result.shape, seed=3))
    expected.backward(draw(*result.shape, seed=3).double())
    for one, other in zip(mine, theirs, strict=True):
        close(one.grad, other.grad, share=4)


@compiled
def test_a_hidden_key_has_no_weight_at_all() -> None:
    mask = make_mask(torch.tensor([[False, True, True]]), dtype=torch.bfloat16)[None, None]
    weights = kernels.softmax_(torch.tensor([[[[-50.0, 50, 0]]]]).bfloat16(), mask)
    assert weights.flatten().tolist() == [1.0, 0.0, 0.0]


@compiled
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("vocabulary", [11, 512])
def test_the_loss_is_exact_and_its_gradient_rounded_once(smoothing: float, vocabulary: int) -> None:
    logits, wanted = draw(9, vocabulary) * 3, torch.arange(9)
    exact = logits.double().requires_grad_()
    expected = F.cross_entropy(exact, wanted, reduction="sum", label_smoothing=smoothing)
    expected.backward()
    loss = kernels.cross_entropy_(logits, wanted, smoothing=smoothing)
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert (logits - exact.grad).abs().max() <= exact.grad.abs().max() * 2**-8


@compiled
@pytest.mark.parametrize("wanted", [-1, 11])
def test_an_id_without_a_logit_is_refused_and_nothing_is_written(wanted: int) -> None:
    logits = draw(2, 11)
    before = logits.clone()
    with pytest.raises(IndexError, match="below 11"):
        kernels.cross_entropy_(logits, torch.tensor([0, wanted]), smoothing=0.0)
    assert torch.equal(logits, before)


@compiled
def test_a_mask_of_keys_alone_is_that_of_every_query() -> None:
    scores, hidden = draw(2, 3, 4, 9), torch.rand(2, 1, 1, 9) < 0.3
    mask = make_mask(hidden, dtype=torch.bfloat16)
    weights = kernels.softmax_(scores.clone(), mask)
    close(weights, (scores.double() + mask.double()).softmax(-1))


@compiled
def test_an_impossible_target_costs_as_much_as_in_the_formula() -> None:
    states, matrix = torch.tensor([[1.0]]), torch.tensor([[0.0], [300.0]])
    losses = [
        chunked_cross_entropy(states.to(dtype), matrix.to(dtype), torch.tensor([0])).item()
        for dtype in (torch.bfloat16, torch.float32)
    ]
    assert losses[0] == pytest.approx(losses[1]) == pytest.approx(-math.log(1e-37))


@compiled
@pytest.mark.parametrize("count", [5, 160])
def test_a_momentum_follows_and_masters_move_as_pytorch_does_it(count: int) -> None:
    grad, momentum = draw(3, count), draw(3, count, seed=1).float()
    expected = momentum.lerp(grad.float(), 0.1)
    ahead = kernels.follow_(momentum, grad.clone(), 0.1)
    assert torch.allclose(momentum, expected, rtol=1e-6, atol=1e-7)
    close(ahead, grad.float().lerp(expected, 0.9).double(), share=0.5)
    moved = expected - 0.02 * grad.float()
    kernels.move_(momentum, grad, 0.02)
    assert torch.allclose(momentum, moved, rtol=1e-6, atol=1e-7)


@compiled
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_no_number_is_none_afterwards(broken: float) -> None:
    """A loss that hid it would go on learning."""
    x = draw(2, 32)
    x[1, 5] = broken
    for result in (
        kernels.norm(x, draw(32), epsilon=1e-6)[0],
        kernels.swiglu_backward(draw(2, 16), x),
        kernels.softmax_(x.clone().view(1, 1, 2, 32), None),
    ):
        assert result.isnan().any() or result.isinf().any()
        assert result.flatten()[: result.numel() // 2].isfinite().all()
    assert kernels.cross_entropy_(x.clone(), torch.tensor([0, 1]), smoothing=0.0).isnan()


@compiled
def test_a_result_depends_on_no_number_of_threads() -> None:
    x, weight = draw(37, 40), draw(40)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            normed, *kept = kernels.norm(x, weight, epsilon=1e-6)
            back, _ = kernels.norm_backward(x, kept[0], weight, kept[1])
            loss = kernels.cross_entropy_(x.clone(), torch.arange(37), smoothing=0.1)
            found.append((normed, back, kernels.swiglu(x), loss))
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@compiled
def test_what_is_no_plain_bfloat16_of_a_processor_stays_with_pytorch() -> None:
    fine = draw(2, 4)
    assert kernels.fits(fine, torch.nn.Parameter(fine))
    assert not kernels.fits(fine, fine.float())
    assert not kernels.fits(fine.to("meta"))


OFF = """
import torch
from lmloop.model import kernels
from lmloop.model.functions import rms_norm
x = torch.ones(2, 4, dtype=torch.bfloat16).requires_grad_()
y = rms_norm(x, torch.ones(4).bfloat16(), epsilon=0.0)
print(kernels.are_native(), float(y.sum().detach()))
"""


@pytest.mark.parametrize("unset", [{"LMLOOP_KERNELS": "off"}, {"CXX": "no-such-compiler"}])
def test_without_them_the_formulas_in_pytorch_serve(
    unset: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in unset.items():
        monkeypatch.setenv(name, value)
    told = subprocess.run(
        [sys.executable, "-c", OFF], capture_output=True, text=True, check=True
    ).stdout
    assert told.split() == ["False", "8.0"]


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder for compiled passes, and nothing that was found before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels._library.cache_clear()
    yield tmp_path / "lmloop"
    kernels._library.cache_clear()


@compiled
def test_they_are_compiled_once(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.are_native()
    (built,) = fresh.iterdir()
    kernels._library.cache_clear()
    monkeypatch.setattr(kernels, "_compile", None)
    assert kernels.are_native()
    assert list(fresh.iterdir()) == [built]


@compiled
def test_a_compiler_that_fails_is_said_and_leaves_nothing(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels, "_FLAGS", ("--no-such-flag",))
    with caplog.at_level(logging.WARNING):
        assert not kernels.are_native()
    assert "could not be compiled" in caplog.text
    assert list(fresh.iterdir()) == []


@compiled
def test_code_from_a_folder_that_others_write_to_is_not_run(
    fresh: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fresh.mkdir()
    fresh.chmod(0o777)
    assert not kernels.are_native()
    assert "can be written to by others" in caplog.text


@compiled
def test_an_older_processor_computes_the_same(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding by whole numbers instead of the instruction, vectors in more pieces."""
    inputs = draw(33, 60), draw(33, 30, seed=1)
    native = kernels.swiglu_backward(inputs[1], inputs[0])
    baseline = [flag for flag in kernels._FLAGS if flag != "-march=native"]
    monkeypatch.setattr(kernels, "_FLAGS", (*baseline, "-ffp-contract=off"))
    kernels._library.cache_clear()
    close(kernels.swiglu_backward(inputs[1], inputs[0]), native.double(), share=0.25)


def close(given: Tensor | None, expected: Tensor | None, *, share: float = 1.0) -> None:
    """Within rounding of the largest number."""
    assert given is not None and expected is not None and given.shape == expected.shape
    if given.numel():
        apart = (given.double() - expected).abs().max()
        assert apart <= share * ROUNDING * expected.abs().max()
