"""What of an update's exchanges is watched: a part that cannot be read in the rest."""

from __future__ import annotations

import pytest

from lmloop.corpus.decontaminate import overlap
from lmloop.errors import UpdateError
from lmloop.records import Conversation, Document, Record, Turn
from lmloop.updating.watched import set_aside

THING = ("dome", "roof", "shed", "lift", "pond", "hall", "yard", "tram", "pier", "barn")


def ask(question: str, answer: str) -> Conversation:
    turns = (Turn("user", question), Turn("assistant", answer))
    return Conversation(f"{question} {answer}", turns, len(question) + len(answer))


def ask_many(count: int) -> list[Record]:
    return [ask(f"who has key {n}?", f"key {n} hangs in the {THING[n % 10]}") for n in range(count)]


def test_a_fifth_is_watched_and_the_order_decides_nothing() -> None:
    feedback = ask_many(50)
    learnt, watched = set_aside(feedback)
    assert (len(learnt), len(watched)) == (40, 10)
    assert sorted([*learnt, *watched], key=feedback.index) == feedback
    backwards = set_aside(feedback[::-1])
    assert backwards == (learnt[::-1], watched[::-1])


@pytest.mark.parametrize("count", [2, 3, 4])
def test_of_few_exchanges_one_is_watched(count: int) -> None:
    learnt, watched = set_aside(ask_many(count))
    assert (len(learnt), len(watched)) == (count - 1, 1)


def test_equal_questions_stay_together() -> None:
    feedback = [
        ask(f"Who has key {n}{sign}", f"{name} does so")
        for n in range(20)
        for sign, name in (("?", "Ann"), ("!", "Ben"))
    ]
    learnt, watched = set_aside(feedback)
    assert len(watched) == 8
    sides = [{each.turns[0].content[:-1] for each in side} for side in (learnt, watched)]
    assert not sides[0] & sides[1]


def test_answers_that_share_text_stay_together() -> None:
    words = " ".join(f"word{n}" for n in range(14))
    feedback = [
        ask(f"question {n} {part}", f"{words.replace('word', f'w{n}x')} {part}")
        for n in range(10)
        for part in ("one", "two")
    ]
    learnt, watched = set_aside(feedback)
    assert len(watched) == 4
    assert overlap(learnt, {"watched": watched})["watched"].records == 0


def test_a_group_larger_than_the_share_is_learnt() -> None:
    feedback = [*(ask("who?", f"answer {n} of many") for n in range(8)), *ask_many(2)]
    _, watched = set_aside(feedback)
    assert sorted(watched, key=feedback.index) == feedback[8:]


def test_what_has_no_answer_is_not_watched() -> None:
    lone = Conversation("lone", (Turn("user", "hello?"),), 6)
    feedback = [Document("d", "plain text", 10), lone, *ask_many(2)]
    _, (watched,) = set_aside(feedback)
    assert watched in feedback[2:]
    assert set_aside([lone]) == ([lone], [])


def test_one_question_alone_is_refused_with_what_to_do() -> None:
    feedback = [ask("who?", "Ivo does."), ask("Who", "Benno does.")]
    with pytest.raises(UpdateError, match="all 2 here have one question.*= 'validation'$"):
        set_aside(feedback)
