"""A window beside a reference: what is found, what is not, and which requests are compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lmloop.monitoring.drift import Finding, compare
from lmloop.monitoring.sample import EMBEDDING, Request, Sample, build_sample
from lmloop.upkeep import MonitorConfig

CONFIG = MonitorConfig()


def make_sample(
    count: int, *, seed: int, weights: str = "a", group: str | None = None, **changes: Any
) -> Sample:
    """Requests whose signals follow one law; `changes` are functions of the random generator."""
    draw = np.random.default_rng(seed)

    def signals() -> dict[str, Any]:
        usual = {
            "prompt_characters": int(np.exp(draw.normal(3.5, 0.8))),
            "prompt_nats": float(draw.normal(4, 1)),
            "refusal": bool(draw.random() < 0.05),
            "language": str(draw.choice(["en", "de"], p=[0.9, 0.1])),
        }
        return {**usual, **{name: law(draw) for name, law in changes.items()}}

    return build_sample(
        Request(
            signals=signals(),
            embedding=draw.normal(size=64).astype("<f2").tobytes(),
            weights=weights,
            group=group,
        )
        for _ in range(count)
    )


def find(findings: list[Finding], signal: str) -> Finding:
    return next(each for each in findings if each.signal == signal)


REFERENCE = make_sample(1000, seed=0)


def test_unchanged_traffic_is_quiet() -> None:
    quiet = [
        compare(REFERENCE, make_sample(100, seed=seed), config=CONFIG) for seed in range(1, 31)
    ]
    assert not any(finding.changed for findings in quiet for finding in findings)
    assert {finding.signal for finding in quiet[0]} == {
        *("prompt_characters", "prompt_nats", "refusal", "language", EMBEDDING)
    }


def test_a_number_that_moves_is_found_with_its_distance_and_its_medians() -> None:
    window = make_sample(100, seed=1, prompt_nats=lambda draw: float(draw.normal(6, 1)))
    found = find(compare(REFERENCE, window, config=CONFIG), "prompt_nats")
    assert found.changed
    assert found.test == "kolmogorov_smirnov"
    assert found.effect == pytest.approx(0.68, abs=0.1)
    assert isinstance(found.before, float)
    assert isinstance(found.now, float)
    assert (found.before, found.now) == pytest.approx((4, 6), abs=0.3)
    assert found.more["low"] == pytest.approx(4 - 0.67, abs=0.15)
    assert found.more["stability_index"] > 1
    assert 0.3 < found.more["jensen_shannon"] < 1


def test_a_language_that_nobody_used_is_found_with_the_shares() -> None:
    window = make_sample(100, seed=2, language=lambda draw: "zh" if draw.random() < 0.3 else "en")
    found = find(compare(REFERENCE, window, config=CONFIG), "language")
    assert found.changed
    assert isinstance(found.before, dict)
    assert isinstance(found.now, dict)
    assert found.before["zh"] == 0.0
    assert found.now["zh"] == pytest.approx(0.3, abs=0.12)
    assert sum(found.now.values()) == pytest.approx(1)


def test_a_flag_that_rises_is_found_with_its_shares() -> None:
    window = make_sample(100, seed=3, refusal=lambda draw: bool(draw.random() < 0.4))
    found = find(compare(REFERENCE, window, config=CONFIG), "refusal")
    assert found.changed
    assert found.effect == pytest.approx(0.35, abs=0.12)


def test_embeddings_that_move_are_found() -> None:
    window = make_sample(100, seed=4)
    window.embeddings[:33, 5] += 6
    found = find(compare(REFERENCE, window, config=CONFIG), EMBEDDING)
    assert found.changed
    assert 0.6 < found.effect < 0.75


def test_a_certain_change_that_is_small_is_no_change() -> None:
    strict = MonitorConfig(min_effect=0.9, min_auc=1.0)
    window = make_sample(100, seed=5, prompt_nats=lambda draw: float(draw.normal(5.5, 1)))
    found = find(compare(REFERENCE, window, config=strict), "prompt_nats")
    assert found.corrected < 1e-6
    assert not found.changed


def test_every_p_value_is_corrected_for_all_of_them() -> None:
    findings = compare(REFERENCE, make_sample(100, seed=6), config=CONFIG)
    smallest = min(findings, key=lambda finding: finding.p)
    assert smallest.corrected == pytest.approx(min(1.0, len(findings) * smallest.p))


def test_signals_of_other_weights_are_not_compared() -> None:
    window = make_sample(
        100, seed=7, weights="b", prompt_nats=lambda draw: float(draw.normal(9, 1))
    )
    signals = {finding.signal for finding in compare(REFERENCE, window, config=CONFIG)}
    assert signals == {"prompt_characters", "language"}


def test_one_sender_who_writes_most_of_a_window_raises_nothing() -> None:
    usual = make_sample(40, seed=8)
    shout = make_sample(
        60, seed=9, group="ann", prompt_nats=lambda draw: 9.0, language=lambda draw: "zh"
    )
    window = Sample(
        numbers={
            name: np.concatenate([usual.numbers[name], shout.numbers[name]])
            for name in usual.numbers
        },
        labels={
            name: np.concatenate([usual.labels[name], shout.labels[name]]) for name in usual.labels
        },
        embeddings=np.concatenate([usual.embeddings, shout.embeddings + 4]),
        weights=np.concatenate([usual.weights, shout.weights]),
        groups=np.concatenate([usual.groups, np.full(60, 1000)]),
    )
    findings = compare(REFERENCE, window, config=CONFIG)
    assert not any(finding.changed for finding in findings)


def test_a_signal_that_few_requests_have_is_left_out() -> None:
    window = make_sample(100, seed=10, prompt_nats=lambda draw: None)
    signals = {finding.signal for finding in compare(REFERENCE, window, config=CONFIG)}
    assert "prompt_nats" not in signals


def test_many_rare_languages_count_as_one() -> None:
    window = make_sample(100, seed=11, language=lambda draw: f"x{draw.integers(60)}")
    found = find(compare(REFERENCE, window, config=CONFIG), "language")
    assert isinstance(found.now, dict)
    assert len(found.now) <= 13
    assert "other" in found.now


def test_a_constant_signal_is_quiet() -> None:
    reference = make_sample(300, seed=12, repetition=lambda draw: 0.0)
    window = make_sample(100, seed=13, repetition=lambda draw: 0.0)
    found = find(compare(reference, window, config=CONFIG), "repetition")
    assert (found.effect, found.changed) == (0.0, False)


def test_the_same_samples_give_the_same_findings() -> None:
    window = make_sample(100, seed=14)
    assert compare(REFERENCE, window, config=CONFIG) == compare(REFERENCE, window, config=CONFIG)


def test_a_finding_is_plain_data() -> None:
    finding = Finding(signal="entropy", test="fisher", effect=0.2, p=0.5, before=1.0, now=2.0)
    assert finding.to_json()["now"] == 2.0
