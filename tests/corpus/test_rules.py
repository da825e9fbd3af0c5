from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmloop.corpus.rules import (
    RULES,
    find_broken_rule,
    measure_repetition,
    normalise_text,
    normalise_turns,
    split_words,
)
from lmloop.records import Conversation, Document, Turn
from lmloop.sections import PrepareConfig


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("plain text", "plain text"),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("  a  b \t c  \n", "a b c"),
        ("if x:\n    y =  1", "if x:\n    y = 1"),
        ("a\n\n\n\n\nb\n\nc", "a\n\n\nb\n\nc"),
        ("a\n \n\t\n \n \nb", "a\n\n\nb"),
        ("nul\x00 bell\x07 bom\ufeff del\x7f", "nul bell bom del"),
        ("schÃ¶n, itâ€™s", "schön, it\u2019s"),
        ("cafe\u0301", "caf\u00e9"),
        ("\u201cquoted\u201d \uff0c\uff11", "\u201cquoted\u201d \uff0c\uff11"),
        ("a\xa0b", "a b"),
        ("\u3000\u3000\u4f60\u597d\u3000\u3000\u4e16", "\u4f60\u597d \u4e16"),
        ("\U0001f468\u200d\U0001f469", "\U0001f468\u200d\U0001f469"),
        (" \n\x00 ", ""),
    ],
)
def test_text_is_normalised(raw: str, clean: str) -> None:
    assert normalise_text(raw) == clean


@given(st.text(alphabet="ab \t\n\r\x00\x7f\x1c.", max_size=40))
def test_normalised_text_stays_as_it_is(text: str) -> None:
    once = normalise_text(text)
    assert normalise_text(once) == once
    assert once == normalise_text(once + "\u00e9")[:-1].strip()


@pytest.mark.parametrize(
    "text", [" " * 300_000 + "b", "a " * 150_000, "\n" * 300_000, "\t" * 300_000]
)
def test_normalising_takes_linear_time(text: str) -> None:
    start = time.process_time()
    normalise_text(f"a{text}b\u00e9")
    assert time.process_time() - start < 2


def test_empty_turns_vanish_and_their_neighbours_join() -> None:
    turns = [Turn("user", "a "), Turn("assistant", " \x00"), Turn("user", "b"), Turn("user", "")]
    assert normalise_turns(turns) == (Turn("user", "a\nb"),)


def test_words_are_lower_case_and_han_characters_are_words() -> None:
    assert split_words("It's a Test, caf\u00e9!") == ["it", "s", "a", "test", "caf\u00e9"]
    assert split_words("GPT\u4f60\u597d4") == ["gpt", "\u4f60", "\u597d", "4"]
    assert split_words("?!") == []


def test_repetition_is_the_share_of_repeated_lines() -> None:
    assert measure_repetition("abcd\nabcd\nefgh\nabcd") == 0.5
    assert measure_repetition("one two three four five six seven") == 0
    assert measure_repetition("") == 0


def test_repetition_is_the_share_of_repeated_ngrams() -> None:
    # Six 5-grams in ten words, all "a b a b a" or "b a b a b".
    assert measure_repetition("a b a b a b a b a b") == pytest.approx(4 / 6)
    assert measure_repetition("\u4f60" * 104) == pytest.approx(0.99)


def chat(*contents: str) -> Conversation:
    roles = ("user", "assistant") * len(contents)
    return Conversation("c", tuple(map(Turn, roles, contents)), raw_bytes=1)


CONFIG = PrepareConfig(
    sources=("x",), min_characters=5, max_characters=30, min_turns=2, max_repetition=0.5
)


@pytest.mark.parametrize(
    ("record", "rule"),
    [
        (Document("d", "", 1), "empty"),
        (Document("d", "four", 1), "min_characters"),
        (Document("d", "fives", 1), None),
        (Document("d", "x" * 30, 1), None),
        (Document("d", "x" * 31, 1), "max_characters"),
        (Document("d", "same\nsame\nsame", 1), "max_repetition"),
        (chat(), "empty"),
        (chat("hello there"), "min_turns"),
        (chat("hello", "there"), None),
        (chat("a", "b"), "min_characters"),
        (
            Conversation("c", (Turn("system", "be kind"), Turn("user", "hello")), 1),
            "min_turns",
        ),
    ],
)
def test_a_record_is_dropped_by_the_first_rule_that_it_breaks(
    record: Document | Conversation, rule: str | None
) -> None:
    assert find_broken_rule(record, CONFIG) == rule


def test_every_rule_is_called_after_its_recipe_key() -> None:
    assert set(RULES) - {"empty"} <= set(PrepareConfig.model_fields)
