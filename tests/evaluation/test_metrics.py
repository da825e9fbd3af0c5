"""Figures about texts and samples, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lmloop.evaluation.metrics import (
    COPY_FIGURES,
    TEXT_FIGURES,
    Metric,
    bootstrap_ratio,
    distinct,
    ngrams,
    repeats,
    share,
    words,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I don't KNOW, do you?", ["i", "don't", "know", "do", "you"]),
        ("it’s 2 p.m. -- ok", ["it’s", "2", "p", "m", "ok"]),
        ("我很好。Thanks!", ["我", "很", "好", "thanks"]),
        ("カフェcafé", ["カ", "フ", "ェ", "café"]),
        ("snake_case 🐢 !?", ["snake_case"]),
        ("", []),
    ],
)
def test_a_text_is_cut_into_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_ngrams_are_runs_of_neighbours() -> None:
    assert ngrams(["a", "b", "c"], 2) == [("a", "b"), ("b", "c")]
    assert ngrams(["a"], 2) == []


def test_distinct_counts_over_all_texts_and_never_across_them() -> None:
    texts = ["a b a b", "A b", "c"]
    assert distinct(texts, n=1) == 3 / 7
    assert distinct(texts, n=2) == 2 / 4
    assert distinct(texts, n=4) == 1.0
    assert distinct(texts, n=5) is None


def test_four_words_that_come_twice_are_a_repetition() -> None:
    assert repeats("go on and on, oh go on and on")
    assert not repeats("go on and on, oh go on and")
    assert repeats("no no no no no")


def test_a_share_of_nothing_is_absent() -> None:
    assert share([True, False, False, True]) == 0.5
    assert share([]) is None


def test_the_interval_holds_the_ratio_and_narrows_with_more_units() -> None:
    draw = np.random.default_rng(0)
    widths = []
    for units in (20, 2000):
        parts = draw.binomial(10, 0.3, size=units)
        low, high = bootstrap_ratio(parts, np.full(units, 10), seed=0)
        assert low < 0.3 < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 5
    # 1.96 standard deviations of a share of 0.3 in 20,000 draws.
    assert widths[1] == pytest.approx(2 * 1.96 * (0.3 * 0.7 / 20_000) ** 0.5, rel=0.1)


def test_the_interval_weighs_units_by_their_size() -> None:
    low, high = bootstrap_ratio(np.array([0.0, 300.0]), np.array([100.0, 100.0]), seed=0)
    assert (low, high) == (0.0, 3.0)
    assert bootstrap_ratio(np.array([2.0]), np.array([4.0]), seed=0) == (0.5, 0.5)


def test_the_same_seed_gives_the_same_interval() -> None:
    parts, wholes = np.arange(30.0), np.ones(30)
    assert bootstrap_ratio(parts, wholes, seed=3) == bootstrap_ratio(parts, wholes, seed=3)
    assert bootstrap_ratio(parts, wholes, seed=3) != bootstrap_ratio(parts, wholes, seed=4)


def test_figures_of_texts_by_hand() -> None:
    texts = ["yes yes yes yes yes", "", "no"]
    values = {name: measure(texts) for name, _, measure, _ in TEXT_FIGURES}
    assert values == {
        "empty_share": 1 / 3,
        "answer_words": 2.0,
        "distinct_1": 2 / 6,
        "distinct_2": 1 / 4,
        "distinct_3": 1 / 3,
        "repetition_share": 1 / 3,
    }
    assert {measure([]) for _, _, measure, _ in TEXT_FIGURES} == {None}


def test_more_than_eight_words_are_a_copy() -> None:
    values = {name: measure([8, 9, 0, 3]) for name, _, measure, _ in COPY_FIGURES}
    assert values == {"longest_copy": 9, "copy_share": 0.25}
    assert {measure([]) for _, _, measure, _ in COPY_FIGURES} == {None}


def test_a_metric_is_written_with_all_that_belongs_to_it() -> None:
    metric = Metric(name="x", value=1.0, unit="share", explanation="y", interval=(0.5, 1.5))
    assert metric.to_json() == {
        "name": "x",
        "value": 1.0,
        "unit": "share",
        "explanation": "y",
        "interval": (0.5, 1.5),
        "base": None,
        "reference": None,
        "reference_name": None,
    }
