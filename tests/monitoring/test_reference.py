"""Signals of training text: what they are, and that the engine's are those of live requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from lmloop.monitoring.reference import text_reference
from lmloop.records import Conversation, Document, Record, Turn

if TYPE_CHECKING:
    from lmloop.inference.load import LoadedModel


def talk(name: str, *contents: str) -> Conversation:
    turns = tuple(
        Turn("assistant" if number % 2 else "user", content)
        for number, content in enumerate(contents)
    )
    return Conversation(name, turns, 1)


def test_prompts_are_measured_as_live_ones_are(loaded: LoadedModel) -> None:
    sample = text_reference(
        loaded, [talk("a", "where is the green tea?", "no idea")], limit=5, seed=0
    )
    assert len(sample) == 1
    assert sample.numbers["prompt_characters"].tolist() == [23.0]
    assert sample.labels["language"].tolist() == ["en"]
    assert sample.numbers["prompt_nats"][0] > 0
    assert np.isfinite(sample.embeddings).all()
    assert sample.main_weights() == loaded.fingerprint[:12]
    assert np.isnan(sample.numbers["log_probability"]).all()
    assert sample.labels["answer_language"].tolist() == [""]


def test_each_conversation_gives_one_prompt_before_any_gives_two(loaded: LoadedModel) -> None:
    talks = [talk(str(n), "tea?", "yes", "more?", "yes", "all?") for n in range(4)]
    once = text_reference(loaded, talks, limit=4, seed=0)
    assert len(set(once.groups.tolist())) == 4
    whole = text_reference(loaded, talks, limit=99, seed=0)
    assert len(whole) == 12
    assert len(set(whole.groups.tolist())) == 4
    assert sorted(set(whole.numbers["prompt_characters"].tolist())) == [4.0, 12.0, 19.0]


def test_what_cannot_be_a_prompt_is_left_out(loaded: LoadedModel) -> None:
    records: list[Record] = [
        Document("d", "plain text", 10),
        Conversation("silent", (Turn("assistant", "hello"),), 5),
        talk("long", "tea " * 200),
    ]
    assert len(text_reference(loaded, records, limit=9, seed=0)) == 0


def test_the_same_seed_gives_the_same_sample(
    loaded: LoadedModel, splits: dict[str, list[Record]]
) -> None:
    first, second = (
        text_reference(loaded, splits["heldout"], limit=6, seed=3).to_json() for _ in range(2)
    )
    assert first == second
    other = text_reference(loaded, splits["heldout"], limit=6, seed=4).to_json()
    assert other["numbers"] != first["numbers"] or pytest.fail("the seed has no effect")
