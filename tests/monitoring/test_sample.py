"""Signals as columns: what is absent, what is odd, and the way to JSON and back."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lmloop.monitoring.sample import EMBEDDING_SIZE, Request, Sample, build_sample

EMBEDDING = np.arange(EMBEDDING_SIZE, dtype="<f2").tobytes()


def three() -> Sample:
    return build_sample(
        [
            Request(
                signals={"prompt_nats": 2.5, "refusal": True, "language": "en"},
                embedding=EMBEDDING,
                weights="a",
                group="ann",
            ),
            Request(signals={"prompt_nats": None, "language": None}, weights="b", group="ann"),
            Request(signals={}, weights="a"),
        ]
    )


def test_what_is_not_known_is_absent() -> None:
    sample = three()
    assert sample.numbers["prompt_nats"].tolist() == pytest.approx(
        [2.5, np.nan, np.nan], nan_ok=True
    )
    assert sample.numbers["refusal"][0] == 1.0
    assert np.isnan(sample.numbers["thumbs_down"]).all()
    assert sample.labels["language"].tolist() == ["en", "", ""]
    assert sample.embeddings[0].tolist() == list(range(EMBEDDING_SIZE))
    assert np.isnan(sample.embeddings[1:]).all()


def test_requests_of_one_sender_share_a_group_and_others_have_their_own() -> None:
    groups = three().groups
    assert groups[0] == groups[1] != groups[2]


def test_odd_signals_count_as_absent() -> None:
    odd = {"prompt_nats": "high", "entropy": float("inf"), "language": 7}
    sample = build_sample([Request(signals=odd, embedding=b"short")])
    assert np.isnan(sample.numbers["prompt_nats"][0])
    assert np.isnan(sample.numbers["entropy"][0])
    assert sample.labels["language"][0] == ""
    assert np.isnan(sample.embeddings[0]).all()


def test_the_main_weights_are_those_of_most_requests() -> None:
    assert three().main_weights() == "a"
    assert build_sample([]).main_weights() == ""


def test_a_sample_survives_json() -> None:
    sample = three()
    back = Sample.from_json(json.loads(json.dumps(sample.to_json())))
    np.testing.assert_equal(back.numbers, sample.numbers)
    np.testing.assert_equal(back.embeddings, sample.embeddings)
    assert back.labels["language"].tolist() == sample.labels["language"].tolist()
    assert back.weights.tolist() == ["a", "b", "a"]
    assert back.groups.tolist() == sample.groups.tolist()
    assert len(Sample.from_json(build_sample([]).to_json())) == 0


def test_columns_of_different_lengths_are_refused() -> None:
    data = three().to_json()
    data["groups"] = [0]
    with pytest.raises(ValueError, match="differ in length"):
        Sample.from_json(data)


def test_a_selection_keeps_the_columns_together() -> None:
    chosen = three().select(np.array([False, True, True]))
    assert len(chosen) == 2
    assert chosen.weights.tolist() == ["b", "a"]
