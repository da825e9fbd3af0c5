"""How far a copy is from its original: by hand, and when it is refused."""

from __future__ import annotations

import math

import pytest
import torch

from lmloop.errors import ArtifactError
from lmloop.inference.parity import LONGEST, Difference, choose_tokens, compare

from ..conftest import tiny_shape


def test_the_difference_is_told_in_logits_nats_and_places() -> None:
    tokens = torch.tensor([[0, 1, 0]])
    original = torch.tensor([[0.0, 0.0], [2.0, 1.0], [0.0, 5.0]])
    copy = torch.tensor([[0.0, 0.0], [1.0, 2.0], [0.0, 5.5]])
    found = compare(original, copy, tokens, are_logits=True)
    # The first place gives ln 2 both times; the second tells 0, by a lead of 1 and then of -1.
    lead, behind = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    assert found.largest == 1.0
    assert found.before == pytest.approx((math.log(2) + lead) / 2)
    assert found.after == pytest.approx((math.log(2) + behind) / 2)
    assert (found.agreement, found.places) == (pytest.approx(2 / 3), 3)
    assert "differ by at most 1, nats a token 0.50" in str(found)
    with pytest.raises(ArtifactError, match="nothing was written"):
        found.require(max_loss=0.05)
    found.require(max_loss=1.0)


def test_states_are_compared_by_their_numbers_alone() -> None:
    found = compare(
        torch.zeros(2, 3), torch.full((2, 3), 1e-9), torch.tensor([[0, 1]]), are_logits=False
    )
    found.require(max_loss=0.0)
    one = torch.ones(2, 3)
    far = compare(one, one * 1.2, torch.tensor([[0, 1]]), are_logits=False)
    assert str(far) == "states of up to 1 differ by at most 0.2"
    far.require(max_loss=0.3)
    with pytest.raises(ArtifactError):
        far.require(max_loss=0.1)


def test_a_copy_that_is_no_number_is_refused() -> None:
    with pytest.raises(ArtifactError):
        Difference(math.nan, 1.0, math.nan, 0.0, 4).require(max_loss=9.0)


def test_a_model_without_tokenizer_is_asked_about_ids_of_its_own() -> None:
    tokens = choose_tokens(tiny_shape(context_length=1000), None)
    assert tokens.shape == (1, LONGEST)
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < 50
    assert choose_tokens(tiny_shape(context_length=9), None).shape == (1, 9)
