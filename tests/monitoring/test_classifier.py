"""Embeddings told apart: honestly, surely, and by more than a single sender."""

from __future__ import annotations

import numpy as np
import pytest

from lmloop.monitoring.classifier import Separation, separate

SIZE = 16


def compare(
    reference: np.ndarray,
    window: np.ndarray,
    *,
    senders: np.ndarray | None = None,
    seed: int = 0,
) -> Separation | None:
    groups = np.arange(len(window)) if senders is None else senders
    return separate(
        reference,
        window,
        reference_groups=np.arange(len(reference)) + 10_000,
        window_groups=groups,
        generator=np.random.default_rng(seed),
    )


def heavy(generator: np.random.Generator, count: int) -> np.ndarray:
    """Embeddings with heavy tails and unlike spreads."""
    return generator.standard_t(4, size=(count, SIZE)) * np.exp(-np.arange(SIZE) / 5)


def test_p_values_of_unchanged_embeddings_are_as_common_as_they_say() -> None:
    draw = np.random.default_rng(0)
    found = [compare(heavy(draw, 200), heavy(draw, 50), seed=number) for number in range(400)]
    p = np.array([each.p for each in found if each is not None])
    assert len(p) == 400
    # Three standard deviations of a count around 5 % of 400 are 13.
    assert 7 <= (p < 0.05).sum() <= 33
    assert (p < 0.001).sum() <= 4
    assert np.mean([each.auc for each in found if each is not None]) == pytest.approx(0.5, abs=0.02)


def test_p_values_stay_honest_where_senders_write_several_times() -> None:
    draw = np.random.default_rng(1)
    small = 0
    for number in range(200):
        senders = np.repeat(np.arange(25), 3)
        window = heavy(draw, 25)[senders] + 0.3 * heavy(draw, 75)
        single = heavy(draw, 200) + 0.3 * heavy(draw, 200)
        found = compare(single, window, senders=senders, seed=number)
        assert found is not None
        small += found.p < 0.01
    assert small <= 8


def test_a_third_that_lies_elsewhere_is_found() -> None:
    draw = np.random.default_rng(2)
    window = draw.normal(size=(60, SIZE))
    window[:20, 3] += 5
    found = compare(draw.normal(size=(300, SIZE)), window)
    assert found is not None
    assert found.p < 1e-6
    assert found.auc > 0.6


def test_embeddings_that_are_all_the_same_are_no_change() -> None:
    found = compare(np.ones((40, SIZE)), np.ones((30, SIZE)))
    assert found == Separation(auc=0.5, p=1.0)


def test_few_senders_decide_nothing() -> None:
    draw = np.random.default_rng(3)
    window = draw.normal(size=(60, SIZE)) + 9
    senders = np.repeat(np.arange(6), 10)
    assert compare(draw.normal(size=(300, SIZE)), window, senders=senders) is None


def test_the_same_seed_gives_the_same_finding() -> None:
    draw = np.random.default_rng(4)
    reference, window = draw.normal(size=(100, SIZE)), draw.normal(size=(40, SIZE))
    assert compare(reference, window, seed=7) == compare(reference, window, seed=7)
