"""Chunked cross-entropy against PyTorch's over all logits at once."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lmloop.training import loss as module
from lmloop.training.loss import Lesson, chunked_cross_entropy, head_loss

from ..conftest import random_model, tiny_shape

N, D, V = 13, 6, 17


def draw(scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = scale * torch.randn(N, D, generator=generator)
    weight = torch.randn(V, D, generator=generator)
    return hidden, weight, torch.randint(0, V, (N,), generator=generator)


def both(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, upstream: float = 1.0
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Loss and both gradients, ours in the dtype given and PyTorch's in float64."""
    results = []
    for compute, dtype in ((chunked_cross_entropy, hidden.dtype), (plain, torch.float64)):
        leaves = [each.detach().to(dtype).requires_grad_() for each in (hidden, weight)]
        value = compute(*leaves, targets)
        (upstream * value).backward()
        grads = [leaf.grad for leaf in leaves]
        assert grads[0] is not None
        assert grads[1] is not None
        results.append((value.detach(), grads[0], grads[1]))
    return results


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ weight.T, targets)


@pytest.mark.parametrize("chunk_elements", [1, V, 3 * V, N * V, 10**6])
@pytest.mark.parametrize("upstream", [1.0, -2.5])
def test_value_and_gradients_equal_cross_entropy_for_any_chunk(
    monkeypatch: pytest.MonkeyPatch, chunk_elements: int, upstream: float
) -> None:
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk_elements)
    ours, expected = both(*draw(), upstream=upstream)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)


def test_bfloat16_stays_within_a_percent() -> None:
    hidden, weight, targets = draw()
    hidden, weight = hidden.bfloat16(), weight.bfloat16()
    ours, expected = both(hidden, weight, targets)
    assert ours[0].dtype == torch.float32
    assert ours[1].dtype == ours[2].dtype == torch.bfloat16
    torch.testing.assert_close(ours[0].double(), expected[0], rtol=1e-2, atol=0)
    for one, other in zip(ours[1:], expected[1:], strict=True):
        scale = float(other.abs().max())
        torch.testing.assert_close(one.double(), other, rtol=2e-2, atol=2e-2 * scale)


def test_large_logits_neither_overflow_nor_lose_their_gradient() -> None:
    ours, expected = both(*draw(scale=6.0))
    assert expected[0] > 15
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)


def test_an_impossible_target_costs_85_nats_and_has_its_whole_gradient() -> None:
    hidden = torch.tensor([[1.0]], requires_grad=True)
    value = chunked_cross_entropy(hidden, torch.tensor([[0.0], [1000.0]]), torch.tensor([0]))
    value.backward()
    assert value.item() == pytest.approx(85.2, abs=0.1)
    assert hidden.grad is not None
    assert hidden.grad.item() == 1000.0


def test_no_opinion_costs_the_logarithm_of_the_vocabulary() -> None:
    value = chunked_cross_entropy(torch.zeros(3, D), torch.ones(V, D), torch.tensor([0, 5, 16]))
    assert value.item() == pytest.approx(math.log(V))


def test_no_targets_cost_nothing_and_move_nothing() -> None:
    hidden = torch.zeros(0, D, requires_grad=True)
    weight = torch.ones(V, D, requires_grad=True)
    value = chunked_cross_entropy(hidden, weight, torch.zeros(0, dtype=torch.int64))
    value.backward()
    assert value.item() == 0
    assert weight.grad is not None
    assert not weight.grad.any()


def test_a_hidden_state_that_is_no_number_shows_in_the_loss() -> None:
    hidden, weight, targets = draw()
    hidden[3, 2] = math.nan
    assert chunked_cross_entropy(hidden, weight, targets).isnan()


def test_inputs_are_left_as_they_were() -> None:
    inputs = draw()
    before = [each.clone() for each in inputs]
    chunked_cross_entropy(*inputs)
    for each, old in zip(inputs, before, strict=True):
        assert torch.equal(each, old)


@pytest.mark.parametrize("smoothing", [0.1, 0.9])
@pytest.mark.parametrize("chunk_elements", [3 * V, 10**6])
def test_label_smoothing_equals_pytorchs(
    monkeypatch: pytest.MonkeyPatch, smoothing: float, chunk_elements: int
) -> None:
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk_elements)
    results = []
    for ours in (True, False):
        hidden, weight, targets = draw()
        leaves = [each.double().requires_grad_() for each in (hidden, weight)]
        if ours:
            leaves = [each.requires_grad_() for each in (hidden, weight)]
            value = chunked_cross_entropy(*leaves, targets, smoothing=smoothing)
        else:
            value = F.cross_entropy(leaves[0] @ leaves[1].T, targets, label_smoothing=smoothing)
        value.backward()
        results.append([value.detach().double(), *(leaf.grad.double() for leaf in leaves)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("group_elements", [V, 4 * V, 5 * V, 10**6])
def test_the_gradient_does_not_depend_on_the_size_of_a_group(
    monkeypatch: pytest.MonkeyPatch, group_elements: int
) -> None:
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 2 * V)
    monkeypatch.setattr(module, "GROUP_ELEMENTS", group_elements)
    ours, expected = both(*draw())
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)


def test_a_frozen_matrix_gets_no_gradient_and_changes_none() -> None:
    (_, expected, _), _ = both(*draw())
    hidden, weight, targets = draw()
    hidden.requires_grad_()
    chunked_cross_entropy(hidden, weight, targets).backward()
    assert weight.grad is None
    assert hidden.grad is not None
    assert torch.equal(hidden.grad, expected)


WIDER = 9
"""Width of the teacher's states."""


def draw_teacher(ids: int = V) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(N, WIDER, generator=generator)
    return states, torch.randn(ids, WIDER, generator=generator)


def teach(states: Tensor, matrix: Tensor, *, share: float, temperature: float) -> Lesson:
    return Lesson(
        states=states, project=lambda part: part @ matrix.T, share=share, temperature=temperature
    )


def distil_plainly(
    logits: Tensor, taught: Tensor, targets: Tensor, *, share: float, temperature: float
) -> Tensor:
    """Hinton's formula over all logits, as it is written."""
    apart = F.kl_div(
        F.log_softmax(logits / temperature, dim=-1),
        F.softmax(taught / temperature, dim=-1),
        reduction="batchmean",
    )
    return (1 - share) * F.cross_entropy(logits, targets) + share * temperature**2 * apart


@pytest.mark.parametrize("chunk_elements", [V, 3 * V, 10**6])
@pytest.mark.parametrize(("share", "temperature"), [(0.3, 1.0), (0.5, 2.5), (1.0, 4.0)])
def test_a_teachers_word_has_the_value_and_gradients_of_the_plain_formula(
    monkeypatch: pytest.MonkeyPatch, chunk_elements: int, share: float, temperature: float
) -> None:
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk_elements)
    states, matrix = draw_teacher()
    options = {"share": share, "temperature": temperature}
    results = []
    for ours in (True, False):
        hidden, weight, targets = draw()
        dtype = torch.float32 if ours else torch.float64
        leaves = [each.to(dtype).requires_grad_() for each in (hidden, weight)]
        if ours:
            lesson = teach(states, matrix, **options)
            value = chunked_cross_entropy(*leaves, targets, lesson=lesson)
        else:
            taught = states.double() @ matrix.double().T
            value = distil_plainly(leaves[0] @ leaves[1].T, taught, targets, **options)
        (-1.5 * value).backward()
        results.append([value.detach().double(), *(leaf.grad.double() for leaf in leaves)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ids", [V - 4, V + 3])
def test_ids_that_one_of_both_models_lacks_are_never_taught(ids: int) -> None:
    states, matrix = draw_teacher(ids)
    hidden, weight, targets = draw()
    lesson = teach(states, matrix, share=0.5, temperature=2.0)
    taught = (states @ matrix.T)[:, :V]
    taught = F.pad(taught, (0, V - taught.shape[1]), value=-1e30)
    expected = distil_plainly(hidden @ weight.T, taught, targets, share=0.5, temperature=2.0)
    value = chunked_cross_entropy(hidden, weight, targets, lesson=lesson)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)


def test_a_head_that_is_more_than_a_matrix_learns_the_same_from_a_teacher() -> None:
    states, matrix = draw_teacher(50)
    results = []
    for scale in (1.0, 0.5):
        model = random_model(tiny_shape(vocab_size=50, logit_scale=scale))
        hidden = torch.randn(
            N, model.config.hidden_size, generator=torch.Generator().manual_seed(2)
        )
        hidden = (hidden / scale).requires_grad_()
        lesson = teach(states, matrix, share=0.4, temperature=3.0)
        value = head_loss(model, hidden, torch.arange(N), smoothing=0.1, lesson=lesson)
        value.backward()
        assert hidden.grad is not None
        results.append([value.detach(), hidden.grad / scale])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_neither_models_logits_are_ever_held_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 2 * V)
    states, matrix = draw_teacher()
    asked = []

    def project(part: Tensor) -> Tensor:
        asked.append(len(part))
        return part @ matrix.T

    hidden, weight, targets = draw()
    lesson = Lesson(states=states, project=project, share=0.5, temperature=1.0)
    chunked_cross_entropy(hidden, weight, targets, lesson=lesson)
    assert max(asked) == 2
    assert sum(asked) == N
