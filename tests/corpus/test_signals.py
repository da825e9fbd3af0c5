"""What the words of an exchange show."""

from __future__ import annotations

import time

import pytest

from lmloop.corpus.signals import TextSignals, identify_asked, is_refusal, measure_exchange
from lmloop.records import Turn


def test_an_exchange_is_measured_by_hand() -> None:
    turns = [
        Turn("system", "Be kind."),
        Turn("user", "你好"),
        Turn("assistant", "你好！"),
        Turn("user", "What do you like to eat in the morning?"),
    ]
    assert measure_exchange(turns, "bread and tea " * 5) == TextSignals(
        prompt_characters=8 + 2 + 3 + 39,
        answer_characters=70,
        language="en",
        answer_language="en",
        # 11 runs of five words, 3 different ones.
        repetition=round(1 - 3 / 11, 4),
        refusal=False,
    )


def test_nothing_said_measures_as_nothing() -> None:
    assert measure_exchange([], "") == TextSignals(
        prompt_characters=0,
        answer_characters=0,
        language=None,
        answer_language=None,
        repetition=0.0,
        refusal=False,
    )


def test_where_the_newest_turn_is_too_short_the_one_before_it_speaks() -> None:
    turns = [
        Turn("user", "Wie geht es dir heute?"),
        Turn("assistant", "What do you mean by that, my friend?"),
        Turn("user", "ok"),
    ]
    assert identify_asked(turns) == "de"
    assert identify_asked(turns[2:]) is None


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, but I can\u2019t help with that.",
        "Sorry, I cannot assist with this request.",
        "I'm afraid that I am unable to do this.",
        "As an AI language model, I do not have the ability, so I cannot say.",
        "I won't provide that.",
        "Thank you for asking. I must decline.",
        "That is against my guidelines.",
        "抱歉，我不能帮助你做这件事。",
        "对不起，这个问题我无法回答。",
        "作为一个人工智能语言模型，我无法提供这些信息。",
        "我不能回答这个问题。",
    ],
)
def test_refusals_are_found(answer: str) -> None:
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I'm sorry to hear that. I hope it gets better soon!",
        "I can't wait to see you, it is not far.",
        "I do not like tea.",
        "No, I am not from there.",
        "He told me that he would help with it.",
        "You can't help me. Nobody can.",
        "我不喜欢喝茶。",
        "没关系，明天再来吧。",
        "我喜欢人工智能。",
    ],
)
def test_other_answers_are_none(answer: str) -> None:
    assert not is_refusal(answer)


def test_only_the_beginning_of_an_answer_refuses() -> None:
    assert not is_refusal("It was a fine day. " * 20 + "I cannot help with that.")


@pytest.mark.parametrize(
    "text",
    [
        "i " * 500_000,
        "as an ai " * 100_000,
        "i'm sorry i " * 50_000,
        "抱歉" * 500_000,
        "a b " * 250_000,
    ],
)
def test_the_longest_texts_take_no_time(text: str) -> None:
    started = time.thread_time()
    measured = measure_exchange([Turn("user", text)], text)
    assert time.thread_time() - started < 0.1
    assert measured.answer_characters == len(text)
    assert measured.repetition > 0.9
