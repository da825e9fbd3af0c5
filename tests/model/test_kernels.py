"""Compiled passes against PyTorch's formulas in float64, and what happens without a compiler."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lmloop.model import kernels
from lmloop.model.compiled import are_native, tiles
from lmloop.model.functions import norm_rotate, rms_norm, rotate, swiglu
from lmloop.model.scores import Scoring, attend, make_mask
from lmloop.training.loss import chunked_cross_entropy

ROUNDING = 2.0**-7
"""Half a unit in the last place of bfloat16, four times: what is kept on the way, and given."""

compiled = pytest.mark.skipif(not are_native(), reason="no C++ compiler is here")
tiled = pytest.mark.skipif(not kernels.has_tiles(), reason="no tiles of bfloat16 are here")


@pytest.fixture(params=["AVX512_CORE_BF16", "as it is"])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Tiles by AVX-512, and by the best that the processor has."""
    if request.param != "as it is":
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", request.param)
    tiles.cache_clear()
    yield request.param
    monkeypatch.undo()
    tiles.cache_clear()
    tiles()


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


# One block of everything, none whole, several, heads that share keys, a head wider than a block.
HEADS = [
    (2, 4, 4, 32, 32, 32),
    (2, 4, 2, 5, 7, 16),
    (3, 6, 2, 70, 100, 40),
    (1, 2, 1, 33, 64, 96),
    (2, 2, 2, 1, 1, 8),
]


def draw_heads(
    sizes: tuple[int, ...],
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, int, int, int]]:
    """Queries, keys and values as projections leave them, and the sizes of a mask."""
    batch, heads, keys, length, source, width = sizes
    q = draw(batch, length, heads, width).transpose(1, 2)
    k, v = (draw(batch, source, keys, width, seed=seed).transpose(1, 2) for seed in (1, 2))
    return (q, k, v), (batch, heads, length, source)


@tiled
@pytest.mark.parametrize("masked", ["causal", "rows", "heads", "keys", "bias", "none"])
@pytest.mark.parametrize("sizes", HEADS)
def test_attention_by_tiles_is_that_of_the_formula(
    masked: str, sizes: tuple[int, ...], isa: str
) -> None:
    given, (batch, heads, length, source) = draw_heads(sizes)
    hidden = {
        "causal": torch.ones(1, 1, length, source).triu(1),
        "rows": torch.rand(batch, 1, length, source) < 0.4,
        "heads": torch.rand(1, heads, length, source) < 0.4,
        "keys": torch.rand(1, 1, 1, source) < 0.4,
    }.get(masked)
    mask = None
    if hidden is not None:
        hidden = hidden.bool()
        hidden[..., 0] = False  # who sees nothing comes below
        mask = make_mask(hidden, dtype=torch.bfloat16)
    elif masked == "bias":
        mask = draw(1, heads, length, source, seed=5)
    mine = [each.clone().requires_grad_() for each in given]
    theirs = [each.double().requires_grad_() for each in given]
    result = attend(*mine, scoring=Scoring(scale=0.25), mask=mask)
    assert "Tiled" in type(result.grad_fn).__name__
    expected = F.scaled_dot_product_attention(
        *theirs, attn_mask=None if mask is None else mask.double(), scale=0.25, enable_gqa=True
    )
    close(result, expected)
    result.backward(draw(*result.shape, seed=3))
    expected.backward(draw(*result.shape, seed=3).double())
    for one, other in zip(mine, theirs, strict=True):
        close(one.grad, other.grad, share=2)


@tiled
def test_a_query_that_sees_nothing_gathers_everything_alike(isa: str) -> None:
    (q, k, v), sizes = draw_heads((1, 2, 2, 70, 70, 32))
    hidden = torch.ones(sizes, dtype=torch.bool).triu(1)
    hidden[:, :, 40] = True
    q.requires_grad_()
    mask = make_mask(hidden, dtype=torch.bfloat16)
    result = attend(q, k, v, scoring=Scoring(scale=0.25), mask=mask)
    close(result[:, :, 40], v.double().mean(2))
    result[:, :, 40].float().sum().backward()
    assert q.grad is not None and q.grad[:, :, :40].abs().max() == 0


@tiled
def test_what_a_mask_hides_has_no_weight_at_all(isa: str) -> None:
    (q, k, v), _ = draw_heads((1, 1, 1, 1, 33, 32))
    hidden = torch.ones(1, 1, 1, 33, dtype=torch.bool)
    hidden[..., 32] = False
    v[:, :, :32] = 1e30
    result = attend(
        q.requires_grad_(),
        k,
        v,
        scoring=Scoring(scale=1.0),
        mask=make_mask(hidden, dtype=torch.bfloat16),
    )
    assert torch.equal(result[0, 0, 0], v[0, 0, 32])


@tiled
def test_keys_that_are_no_number_spoil_their_own_row_alone(isa: str) -> None:
    given, _ = draw_heads((2, 2, 2, 40, 40, 32))
    given[1][1, 0, 3, 3] = math.nan
    inputs = [each.requires_grad_() for each in given]
    result = attend(*inputs, scoring=Scoring(scale=0.25), mask=None)
    result.float().sum().backward()
    for each in (result, *(each.grad for each in inputs)):
        assert each is not None and each[1, 0].isnan().any() and each[0].isfinite().all()


@tiled
def test_heads_that_tiles_cannot_take_stay_with_pytorch() -> None:
    (q, k, v), _ = draw_heads((1, 2, 2, 4, 4, 32))
    assert kernels.can_attend(q, k, v, None)
    assert not kernels.can_attend(q, k, v[..., :16], None)
    assert not kernels.can_attend(q, k[:, :, :0], v[:, :, :0], None)
    assert not kernels.can_attend(q[..., ::2], k[..., ::2], v[..., ::2], None)


@tiled
@pytest.mark.parametrize("sizes", [(1, 32, 64), (257, 64, 32), (300, 96, 128), (64, 2080, 32)])
def test_weights_get_the_sum_over_all_tokens(sizes: tuple[int, int, int], isa: str) -> None:
    tokens, rows, columns = sizes
    left, right = draw(tokens, rows), draw(tokens, 2 * columns, seed=1)[:, columns:]
    close(kernels.sum_tokens(left, right), left.double().t() @ right.double(), share=0.5)


@tiled
def test_tiles_give_the_same_with_any_number_of_threads(isa: str) -> None:
    (q, k, v), _ = draw_heads((2, 4, 2, 50, 50, 32))
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            out, kept = kernels.attend(q, k, v, mask=None, scale=0.2)
            grads = kernels.attend_backward(q, q, k, v, out, kept, mask=None, scale=0.2)
            found.append((out, *grads, kernels.sum_tokens(draw(300, 96), draw(300, 160))))
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            assert torch.equal(one, other)


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


@compiled
@pytest.mark.parametrize("count", [1, 1 << 14, (1 << 15) + 5])
def test_a_norm_is_the_root_of_all_squares(count: int) -> None:
    x = draw(count)
    assert float(kernels.euclidean_norm(x)) == pytest.approx(float(x.double().norm()), rel=1e-6)


@tiled
@pytest.mark.parametrize("sizes", [(2, 32, 32), (5, 64, 160), (3, 128, 96)])
def test_matrices_take_the_steps_that_the_formula_takes(
    sizes: tuple[int, int, int], isa: str
) -> None:
    x = draw(*sizes) / 20
    expected, factors = x.double(), ((3.0, -2.0, 0.5), (2.0, -1.5, 0.4))
    for a, b, c in factors:
        square = expected @ expected.mT
        expected = a * expected + (b * square + c * square @ square) @ expected
    close(kernels.orthogonalise_(x, factors), expected, share=2)


@compiled
def test_few_or_ragged_matrices_stay_with_pytorch() -> None:
    assert not kernels.can_orthogonalise(draw(8, 33, 64))
    assert not kernels.can_orthogonalise(draw(8, 64, 32).transpose(1, 2))
    assert not kernels.can_orthogonalise(draw(torch.get_num_threads() - 1, 32, 32))


def close(given: Tensor | None, expected: Tensor | None, *, share: float = 1.0) -> None:
    """Within rounding of the largest number."""
    assert given is not None and expected is not None and given.shape == expected.shape
    if given.numel():
        apart = (given.double() - expected).abs().max()
        assert apart <= share * ROUNDING * expected.abs().max()
