"""The longest run of words that an answer shares with the training text, exactly."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest

from lmloop.evaluation import copying
from lmloop.evaluation.copying import longest_copies
from lmloop.records import Conversation, Document, Record, Turn


def documents(*texts: str) -> list[Record]:
    return [Document(str(number), text, 0) for number, text in enumerate(texts)]


def test_the_longest_run_is_counted_in_words_not_in_spelling() -> None:
    training = documents("The cat sat on the mat.", "On the other hand: nothing!")
    answers = ["the CAT, sat!", "on the mat on the other hand", "dogs", "", "mat nothing"]
    assert longest_copies(answers, training) == [3, 4, 0, 0, 1]


def test_a_run_does_not_cross_from_one_turn_to_the_next() -> None:
    turns = (Turn("user", "one two"), Turn("assistant", "three four"))
    training = [Conversation("a", turns, 0), Document("b", "five six", 0)]
    assert longest_copies(["one two three four five six"], training) == [2]
    assert longest_copies(["two three", "four five"], training) == [1, 1]


def test_a_run_does_not_cross_a_word_that_no_answer_has() -> None:
    assert longest_copies(["a b c"], documents("a b x c", "b c")) == [2]


def test_answers_are_not_compared_with_each_other() -> None:
    assert longest_copies(["a b", "c d", "b c"], documents("a b c d")) == [2, 2, 2]
    assert longest_copies(["q r", "r s"], documents("x")) == [0, 0]


def test_repeated_words_are_matched_as_often_as_they_stand_there() -> None:
    training = documents("no no no")
    assert longest_copies(["no", "no no no no no", "oh no no"], training) == [1, 3, 2]


def test_records_are_read_once_and_may_stream() -> None:
    def stream() -> Iterator[Record]:
        yield from documents("a b c", "c d")

    assert longest_copies(["b c d"], stream()) == [2]
    assert longest_copies([], stream()) == []
    assert longest_copies(["a"], []) == [0]


def plain(answer: Sequence[str], training: Sequence[Sequence[str]]) -> int:
    runs = {
        tuple(text[start:stop])
        for text in training
        for start in range(len(text))
        for stop in range(start + 1, len(text) + 1)
    }
    return max(
        (
            stop - start
            for start in range(len(answer))
            for stop in range(start + 1, len(answer) + 1)
            if tuple(answer[start:stop]) in runs
        ),
        default=0,
    )


@pytest.mark.parametrize("words_at_once", [1, 50, 1 << 20])
def test_random_texts_agree_with_all_runs_compared(
    monkeypatch: pytest.MonkeyPatch, words_at_once: int
) -> None:
    monkeypatch.setattr(copying, "WORDS_AT_ONCE", words_at_once)
    draw = random.Random(0)
    training = [[draw.choice("abc") for _ in range(draw.randrange(40))] for _ in range(20)]
    answers = [[draw.choice("abcd") for _ in range(draw.randrange(20))] for _ in range(30)]
    expected = [plain(answer, training) for answer in answers]
    assert max(expected) > 5
    records = documents(*(" ".join(text) for text in training))
    assert longest_copies([" ".join(answer) for answer in answers], records) == expected
