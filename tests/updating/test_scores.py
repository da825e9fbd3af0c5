"""Better, not worse, not learnt by heart: from nats by hand, and from a model's own."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from lmloop.inference.load import LoadedModel
from lmloop.progress import Silent
from lmloop.records import Document, Record
from lmloop.updating.scores import (
    Scores,
    check_guard,
    check_memorised,
    check_target,
    encode_set,
    score,
    score_sets,
)
from lmloop.upkeep import GateConfig

from ..conftest import random_model

CONFIG = GateConfig(min_documents=5, min_gain=0.01, max_loss=0.01)


def scores(
    name: str, change: float, *, count: int = 40, noise: float = 0.01, seed: int = 0
) -> Scores:
    """Documents on which the candidate changes by `change` on average, exactly."""
    random = np.random.default_rng(seed)
    live = np.full(count, 200.0)
    shifts = random.normal(0, noise, count)
    candidate = live * (1 + change + shifts - shifts.mean())
    return Scores(name=name, candidate=candidate, live=live, raw_bytes=np.full(count, 100))


def test_a_certain_gain_on_the_target_passes() -> None:
    check = check_target(CONFIG, scores("target", -0.05), seed=0)
    assert check.passed
    # 200 nats over 100 bytes are 2 / ln 2 = 2.8854 bits a byte; 5 % less is 2.7411.
    assert check.reason.startswith("better on target: bits per byte 2.8854 → 2.7411, -5.00% (-5.")
    assert check.reason.endswith("on 40 documents, wanted is a fall of 1.00% at least")
    assert check.measures[0].limit == -0.01
    assert check.measures[0].count == 40


@pytest.mark.parametrize("change", [0.0, -0.005, 0.02])
def test_less_than_the_wanted_gain_is_no_gain(change: float) -> None:
    check = check_target(CONFIG, scores("target", change), seed=0)
    assert not check.passed
    assert check.reason.startswith("no gain on target: ")


def test_a_gain_that_may_be_chance_says_how_many_documents_would_tell() -> None:
    check = check_target(CONFIG, scores("target", -0.05, count=6, noise=0.2), seed=0)
    assert not check.passed
    assert check.reason.startswith("no gain on target beyond chance: ")
    assert "documents would tell" in check.reason
    assert check.measures[0].needed is not None and check.measures[0].needed > 100


def test_any_gain_may_be_asked_for_but_no_gain_stays_none() -> None:
    config = CONFIG.model_copy(update={"min_gain": 0.0})
    assert check_target(config, scores("target", -0.005, noise=0.001), seed=0).passed
    equal = check_target(config, scores("target", 0.0, noise=0.0), seed=0)
    assert not equal.passed
    assert "no number of documents shows so small a margin" in equal.reason


@pytest.mark.parametrize(("change", "passed"), [(-0.1, True), (0.0, True), (0.005, True)])
def test_a_guard_allows_a_small_loss(change: float, passed: bool) -> None:
    check = check_guard(CONFIG, scores("general", change), seed=0)
    assert check.passed is passed
    assert check.reason.startswith("no worse on general: ")


def test_a_guard_counts_the_whole_interval() -> None:
    check = check_guard(CONFIG, scores("safety", 0.008), seed=0)
    assert not check.passed
    assert check.reason.startswith("may be worse on safety: ")
    assert "documents would tell" in check.reason


def test_more_than_the_allowed_loss_is_worse() -> None:
    check = check_guard(CONFIG, scores("general", 0.03), seed=0)
    assert not check.passed
    assert check.reason.startswith("worse on general: bits per byte 2.8854 → 2.9720, +3.00% (+2.")
    assert check.name == "general"


def test_too_few_documents_decide_nothing() -> None:
    few = scores("target", -0.5, count=4)
    for check in (check_target(CONFIG, few, seed=0), check_guard(CONFIG, few, seed=0)):
        assert not check.passed
        assert check.reason == "target decides nothing: it has 4 documents and needs 5"


def test_nats_that_are_no_numbers_are_told() -> None:
    broken = scores("general", 0.0)
    broken.candidate[3] = math.nan
    assert "not finite" in check_guard(CONFIG, broken, seed=0).reason
    sets = {"general": broken, "twin": scores("twin", 0.0)}
    assert "not finite" in check_memorised(CONFIG, sets, known=True, seed=0).reason


def sets(general: float, twin: float, **others: float) -> dict[str, Scores]:
    changes = {"general": general, "twin": twin, **others}
    return {
        name: scores(name, each, seed=place) for place, (name, each) in enumerate(changes.items())
    }


@pytest.mark.parametrize(
    ("general", "twin", "passed"),
    [
        (-0.2, -0.05, False),
        (-0.2, -0.2, True),
        (0.002, 0.05, False),  # a loss that learning by heart hides
        (0.05, -0.05, True),
        (-0.008, 0.0, True),
    ],
)
def test_a_gain_that_the_twin_does_not_share_is_learnt_by_heart(
    general: float, twin: float, passed: bool
) -> None:
    check = check_memorised(CONFIG, sets(general, twin), known=True, seed=0)
    assert check.passed is passed
    assert check.reason.startswith("leak: general was learnt by heart: ") is not passed
    assert f"move by {general:+.2%} on general and by {twin:+.2%} on its twin" in check.reason


def test_the_target_has_a_twin_where_the_feedback_was_sealed() -> None:
    honest = sets(0.0, 0.0, target=-0.2, target_twin=-0.4)
    assert check_memorised(CONFIG, honest, known=True, seed=0).passed
    cheat = sets(0.0, 0.0, target=-0.4, target_twin=-0.2)
    check = check_memorised(CONFIG, cheat, known=True, seed=0)
    assert not check.passed
    assert check.reason.startswith("leak: target was learnt by heart: ")
    assert len(check.measures) == 2


@pytest.mark.parametrize("known", [True, False])
def test_a_twin_too_small_to_tell_refuses_only_what_is_not_known_otherwise(known: bool) -> None:
    small = {"general": scores("general", 0.0), "twin": scores("twin", 0.0, count=3)}
    check = check_memorised(CONFIG, small, known=known, seed=0)
    assert check.passed is known


def test_a_model_costs_the_same_as_itself_and_every_document_counts(
    loaded: LoadedModel, splits: dict[str, list[Record]]
) -> None:
    records = {"target": splits["heldout"], "twin": [Document("d", "no idea, the sea", 16)]}
    found = score_sets(records, candidate=loaded, live=loaded, progress=Silent())
    assert len(found["target"]) == len(splits["heldout"])
    assert (found["target"].candidate == found["target"].live).all()
    assert found["twin"].raw_bytes.tolist() == [16]
    other = replace(loaded, transformer=random_model(loaded.config, seed=1))
    changed = score_sets(records, candidate=other, live=loaded, progress=Silent())
    assert (changed["target"].candidate != changed["target"].live).all()


def test_a_document_costs_the_sum_of_its_tokens(loaded: LoadedModel) -> None:
    import torch

    shards = encode_set([Document("d", "the sea", 7)], loaded)
    document_id = loaded.require_tokenizer().document_id
    ids = [document_id, *loaded.require_tokenizer().encode("the sea"), document_id]
    assert shards.document(0).tolist() == ids[:-1]
    logits = loaded(torch.tensor([ids[:-1]]))[0].double()
    wanted = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum")
    nats = score(loaded, shards, name="test", progress=Silent())
    assert nats[0] == pytest.approx(wanted.item(), rel=1e-5)


def test_an_empty_set_costs_nothing(loaded: LoadedModel) -> None:
    found = score_sets({"twin": []}, candidate=loaded, live=loaded, progress=Silent())
    assert len(found["twin"]) == 0
