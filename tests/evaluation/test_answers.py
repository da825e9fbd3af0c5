"""Answers to people the model has never met: who is asked, what is kept, what is measured."""

from __future__ import annotations

from dataclasses import replace

import torch

from lmloop.evaluation.answers import (
    Exchange,
    Opener,
    answer_openers,
    choose_openers,
    hold_exchanges,
    measure_answers,
)
from lmloop.inference.load import LoadedModel
from lmloop.inference.sampling import Sampling
from lmloop.progress import Silent
from lmloop.records import Conversation, Document, Record, Turn
from lmloop.sections import EvaluateConfig

from ..conftest import random_model


def exchange(answer: str, *, reason: str = "stop", reference: str | None = None) -> Exchange:
    return Exchange("hi", answer, reason, 3, reference)


def test_the_first_user_turns_are_asked_in_order(loaded: LoadedModel) -> None:
    greeting = (Turn("assistant", "welcome"), Turn("user", "one?"), Turn("assistant", "yes"))
    records = [
        Conversation("a", greeting, 0),
        Conversation("b", (Turn("assistant", "alone"),), 0),
        Conversation("c", (Turn("user", "two?"),), 0),
        Conversation("d", (Turn("user", "three?"), Turn("user", "hm")), 0),
        Document("e", "no talk", 0),
    ]
    openers = choose_openers(records, loaded, limit=2, max_tokens=8)
    assert [(each.text, each.reference) for each in openers] == [("one?", "yes"), ("two?", None)]
    assert openers[0].tokens == loaded.template.encode(greeting[1:2])
    assert openers[1].tokens == loaded.template.encode([Turn("user", "two?")])
    assert len(choose_openers(records, loaded, limit=9, max_tokens=8)) == 3


def test_an_opener_that_leaves_no_room_for_an_answer_is_not_asked(loaded: LoadedModel) -> None:
    long = "what is the sea? " * 9
    records = [
        Conversation(text, (Turn("user", text), Turn("assistant", "yes")), 0)
        for text in (long, "one?")
    ]
    for max_tokens in (8, 60, 1000):
        openers = choose_openers(records, loaded, limit=9, max_tokens=max_tokens)
        assert [each.text for each in openers] == ["one?"]


def test_documents_are_continued_where_there_is_no_conversation(loaded: LoadedModel) -> None:
    text = " ".join(str(number) for number in range(18))
    (first, short) = choose_openers(
        [Document("a", text, 0), Document("b", "2 3", 0)], loaded, limit=9, max_tokens=16
    )
    assert first.text == " ".join(str(number) for number in range(16))
    assert first.reference == "16 17"
    assert first.tokens == loaded.require_tokenizer().encode_document(first.text)
    assert (short.text, short.reference) == ("2 3", None)


def openers_of(loaded: LoadedModel, count: int) -> list[Opener]:
    tokens = loaded.template.encode([Turn("user", "one?")])
    return [Opener("one?", tokens, "yes") for _ in range(count)]


def test_answers_repeat_with_the_seed_and_differ_from_each_other(loaded: LoadedModel) -> None:
    openers, sampling = openers_of(loaded, 40), Sampling(max_tokens=6)
    one, again, other = (
        answer_openers(loaded, openers, sampling=sampling, seed=seed, progress=Silent())
        for seed in (0, 0, 1000)
    )
    assert one == again != other
    assert len(one) == 40
    assert len({each.answer for each in one}) > 20
    assert {each.reference for each in one} == {"yes"}


def test_an_answer_tells_why_it_ended(loaded: LoadedModel) -> None:
    openers, sampling = openers_of(loaded, 3), Sampling(max_tokens=4, temperature=0)
    cut = answer_openers(loaded, openers, sampling=sampling, seed=0, progress=Silent())
    assert {(each.finish_reason, each.num_tokens) for each in cut} == {("length", 4)}
    silent = random_model(loaded.config)
    with torch.no_grad():
        # All logits are zero then, and the first of the vocabulary is the document token.
        silent.norm.weight.zero_()
    model = replace(loaded, transformer=silent)
    ended = answer_openers(model, openers, sampling=sampling, seed=0, progress=Silent())
    assert ended == [Exchange("one?", "", "stop", 0, "yes")] * 3


def test_copies_from_training_are_found_for_answers_and_true_replies(
    loaded: LoadedModel, splits: dict[str, list[Record]]
) -> None:
    asked = [Conversation("a", (Turn("user", "one?"), Turn("assistant", "we sail far away")), 0)]
    seen = 0

    def train_records() -> list[Record]:
        nonlocal seen
        seen += 1
        return [Document("b", "tomorrow we sail far north", 0)]

    config = EvaluateConfig(openers=5, max_tokens=5)
    (one,) = hold_exchanges(config, loaded, asked, train_records, seed=0, progress=Silent())
    assert one.reference_copied_words == 3
    assert one.copied_words is not None
    assert seen == 1


def test_figures_stand_beside_those_of_the_true_replies() -> None:
    exchanges = [
        replace(exchange("a b", reference="c d e f"), copied_words=1, reference_copied_words=9),
        replace(exchange("a b c d", reason="length"), copied_words=12, reference_copied_words=0),
        replace(exchange(" ", reference="c"), copied_words=0, reference_copied_words=1),
    ]
    found = {each.name: (each.value, each.reference) for each in measure_answers(exchanges)}
    assert found == {
        "stop_share": (2 / 3, None),
        "empty_share": (1 / 3, 0.0),
        "answer_words": (2.0, 2.5),
        "distinct_1": (4 / 6, 4 / 5),
        "distinct_2": (3 / 4, 1.0),
        "distinct_3": (1.0, 1.0),
        "repetition_share": (0.0, 0.0),
        "longest_copy": (12, 9),
        "copy_share": (1 / 3, 0.5),
    }


def test_no_exchange_gives_no_figure() -> None:
    assert {(each.value, each.reference) for each in measure_answers([])} == {(None, None)}


def test_an_exchange_is_written_whole() -> None:
    assert exchange("yes", reference="no").to_json() == {
        "opener": "hi",
        "answer": "yes",
        "finish_reason": "stop",
        "num_tokens": 3,
        "reference": "no",
        "copied_words": None,
        "reference_copied_words": None,
    }
