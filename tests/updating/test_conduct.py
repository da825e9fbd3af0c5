"""Answers side by side: shorter, empty, endless, repeating, and golden prompts left open."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lmloop.evaluation.answers import Exchange
from lmloop.inference.load import LoadedModel
from lmloop.progress import Silent
from lmloop.records import Record
from lmloop.updating.conduct import (
    GOLDEN_ANSWERS,
    Conduct,
    Pair,
    check_answers,
    check_endings,
    choose_questions,
    compare_answers,
)
from lmloop.upkeep import GateConfig

CONFIG = GateConfig(golden=("hi", "bye"))
LENGTHS = (6, 14, 9, 11, 8, 12, 10, 10)


def exchange(length: int, *, reason: str = "stop", text: str | None = None) -> Exchange:
    words = " ".join(f"w{place}" for place in range(length)) if text is None else text
    return Exchange("how are you?", words, reason, length, None)


def conduct(
    candidate: Sequence[Exchange],
    *,
    golden: Sequence[Exchange] = (),
    live: Sequence[Exchange] | None = None,
) -> Conduct:
    before = live or [exchange(length) for length in LENGTHS * 4]
    return Conduct(
        openers=tuple(
            Pair(live=old, candidate=new) for old, new in zip(before, candidate, strict=True)
        ),
        golden=tuple(Pair(live=each, candidate=each) for each in golden),
    )


def test_the_same_answers_pass() -> None:
    check = check_answers(CONFIG, conduct([exchange(length) for length in LENGTHS * 4]), seed=0)
    assert check.passed
    assert check.reason == (
        "mean length 10.0 → 10.0 tokens, 100% (100% to 100%), wanted is 60%; 0% → 0% empty; "
        "32 openers"
    )


def test_answers_of_half_the_length_are_refused() -> None:
    check = check_answers(CONFIG, conduct([exchange(5) for _ in LENGTHS * 4]), seed=0)
    assert not check.passed
    assert check.reason.startswith("shorter answers: mean length 10.0 → 5.0 tokens, 50% (4")


def test_longer_answers_pass() -> None:
    assert check_answers(CONFIG, conduct([exchange(30) for _ in LENGTHS * 4]), seed=0).passed


def test_the_lower_end_of_the_interval_counts() -> None:
    # A mean of 65 %: three of four answers as before, the others hardly there.
    mixed = [exchange(1 if place % 5 < 2 else 11) for place in range(32)]
    check = check_answers(CONFIG, conduct(mixed), seed=0)
    assert 0.6 < check.measures[0].value < 0.75
    assert not check.passed


def test_answers_of_spaces_are_empty_however_long() -> None:
    spaces = [exchange(10, text="  " if place < 8 else None) for place in range(32)]
    check = check_answers(CONFIG, conduct(spaces), seed=0)
    assert not check.passed
    assert check.reason.startswith("more empty answers: ")
    assert "0% → 25% empty" in check.reason


def test_as_many_empty_answers_as_before_are_no_fault() -> None:
    some = [exchange(10, text="" if place < 8 else None) for place in range(32)]
    assert check_answers(CONFIG, conduct(some, live=some), seed=0).passed


@pytest.mark.parametrize("count", [0, 3])
def test_too_few_openers_decide_nothing(count: int) -> None:
    pair = Pair(live=exchange(5), candidate=exchange(5))
    few = Conduct(openers=(pair,) * count, golden=())
    check = check_answers(CONFIG, few, seed=0)
    assert not check.passed
    assert check.reason == f"answers decide nothing: the held-out text has {count} openers"


def test_a_live_model_that_says_nothing_measures_nothing() -> None:
    silent = [exchange(0) for _ in range(8)]
    check = check_answers(CONFIG, conduct([exchange(5)] * 8, live=silent), seed=0)
    assert not check.passed
    assert "the live model gives none" in check.reason


def test_ended_answers_without_repetition_pass() -> None:
    good = [exchange(3) for _ in range(2 * GOLDEN_ANSWERS)]
    same = [exchange(length) for length in LENGTHS * 4]
    check = check_endings(CONFIG, conduct(same, golden=good))
    assert check.passed
    assert check.reason == (
        "0% → 0% cut by length, 0% → 0% repeat four words; 32 openers; "
        "2 of 2 golden prompts answered"
    )


def test_answers_that_do_not_end_are_refused() -> None:
    endless = [exchange(10, reason="length" if place < 8 else "stop") for place in range(32)]
    check = check_endings(CONFIG, conduct(endless))
    assert not check.passed
    assert check.reason.startswith("answers that do not end: 0% → 25% cut by length")


def test_two_more_endless_answers_may_be_chance() -> None:
    endless = [exchange(10, reason="length" if place < 2 else "stop") for place in range(32)]
    assert check_endings(CONFIG, conduct(endless)).passed


def test_answers_that_repeat_are_refused() -> None:
    said = "I like the sea and I like the sea"
    check = check_endings(CONFIG, conduct([exchange(9, text=said) for _ in range(32)]))
    assert not check.passed
    assert check.reason.startswith("answers that repeat: ")


@pytest.mark.parametrize(
    ("bad", "passed"),
    [
        ([], True),
        ([exchange(3, reason="length")], True),
        ([exchange(3, reason="length")] * 2, False),
        ([exchange(1, text="?!")] * 2, False),
        ([exchange(0)] * 3, False),
    ],
)
def test_a_golden_prompt_needs_two_good_answers_of_three(bad: list[Exchange], passed: bool) -> None:
    good = [exchange(3)] * (GOLDEN_ANSWERS - len(bad))
    same = [exchange(length) for length in LENGTHS * 4]
    check = check_endings(CONFIG, conduct(same, golden=[exchange(3)] * 3 + bad + good))
    assert check.passed is passed
    assert ("golden prompt 'how are you?' is not answered" in check.reason) is not passed


def test_both_models_answer_the_same_questions_with_the_same_seeds(
    loaded: LoadedModel, splits: dict[str, list[Record]]
) -> None:
    config = GateConfig(openers=5, golden=("hello",))
    openers, golden = choose_questions(config, splits["heldout"], loaded)
    assert (len(openers), len(golden)) == (5, GOLDEN_ANSWERS)
    found = compare_answers(
        openers, golden, candidate=loaded, live=loaded, seed=7, progress=Silent()
    )
    assert [pair.live for pair in found.openers] == [pair.candidate for pair in found.openers]
    assert [pair.live.opener for pair in found.golden] == ["hello"] * GOLDEN_ANSWERS
    assert len({pair.live.answer for pair in found.golden}) > 1
    assert found.openers[0].to_json()["live_finish_reason"] in ("stop", "length")
