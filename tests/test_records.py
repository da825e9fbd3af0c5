"""The records that travel between the layers."""

from __future__ import annotations

import dataclasses

import pytest

from lmloop.records import ROLES, Conversation, Document, Record, Turn


def test_a_conversation_keeps_its_roles_in_order() -> None:
    turns = (Turn("user", "Hello"), Turn("assistant", "Hi"))
    conversation = Conversation(id="a", turns=turns, raw_bytes=7)
    assert [turn.role for turn in conversation.turns] == ["user", "assistant"]
    assert {turn.role for turn in turns} <= set(ROLES)


@pytest.mark.parametrize(
    ("record", "field"),
    [
        (Turn("user", "Hello"), "content"),
        (Document(id="a", text="Hello", raw_bytes=5), "text"),
        (Conversation(id="a", turns=(), raw_bytes=0), "turns"),
    ],
)
def test_a_record_does_not_change(record: Record, field: str) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, field, "other")


def test_records_of_the_same_content_are_equal_and_hash_alike() -> None:
    first, second = (Conversation("a", (Turn("user", "Hi"),), 2) for _ in range(2))
    assert first == second
    assert len({first, second}) == 1
    assert first != Conversation("a", (Turn("assistant", "Hi"),), 2)
