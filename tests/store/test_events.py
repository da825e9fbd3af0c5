"""Events: written all or none, read back in their order."""

from __future__ import annotations

import json
import threading

import pytest
import sqlalchemy as sa

from lmloop.store.database import events_table, ratings_table, requests_table, secrets_table
from lmloop.store.events import (
    Event,
    encode_messages,
    read_events,
    read_secret,
    record_event,
    write_events,
)

from .conftest import count, rating_row, request_row


def test_a_second_row_of_a_key_takes_the_place_of_the_first(any_engine: sa.Engine) -> None:
    first = rating_row("a", correction="what I meant")
    write_events(any_engine, [(requests_table, request_row("a")), (ratings_table, first)])
    again = [rating_row("a", rating=-1), rating_row("b"), rating_row("b", rating=0)]
    write_events(any_engine, [(ratings_table, row) for row in again])
    with any_engine.connect() as connection:
        rows = connection.execute(sa.select(ratings_table).order_by("request_id")).all()
    assert [tuple(row) for row in rows] == [("a", 2.0, -1, None, None), ("b", 2.0, 0, None, None)]


def test_rows_of_different_columns_go_together(any_engine: sa.Engine) -> None:
    rows = [
        request_row("plain"),
        request_row("told", prompt="[]", answer="yes", content="full"),
        request_row("known", user_hash="u", embedding=b"\x00\x3c" * 64),
    ]
    write_events(any_engine, [(requests_table, row) for row in rows])
    with any_engine.connect() as connection:
        found = {row["id"]: row for row in connection.execute(sa.select(requests_table)).mappings()}
    assert found["plain"]["content"] == "off" and found["told"]["content"] == "full"
    assert found["known"]["embedding"] == b"\x00\x3c" * 64
    assert [found[key]["arm"] for key in ("plain", "told", "known")] == ["live"] * 3


def test_events_are_written_all_or_none(any_engine: sa.Engine) -> None:
    broken = request_row("b", model=None)
    with pytest.raises(sa.exc.IntegrityError):
        write_events(any_engine, [(requests_table, row) for row in (request_row("a"), broken)])
    assert count(any_engine, requests_table) == 0


def test_nothing_is_nothing(any_engine: sa.Engine) -> None:
    write_events(any_engine, [])
    assert count(any_engine, requests_table) == 0


def test_messages_keep_their_characters() -> None:
    messages = [{"role": "user", "content": "水 é \x00 \U0001f600"}]
    assert json.loads(encode_messages(messages)) == messages
    assert "水" in encode_messages(messages)


def test_an_event_comes_back_as_it_was_told(any_engine: sa.Engine) -> None:
    data = {"reasons": ["no gain", "水 \x00"], "gain": -0.25, "of": {"bits": 1.5}, "who": None}
    record_event(any_engine, "gate.refused", name="chat", data=data)
    (event,) = read_events(any_engine, name="chat")
    assert event == Event(event.number, event.created, "gate.refused", "chat", data)


def test_the_newest_events_come_oldest_first(any_engine: sa.Engine) -> None:
    for number in range(5):
        record_event(any_engine, "alarm", name="chat", data={"n": number})
        record_event(any_engine, "alarm", name="other", data={"n": -1})
    found = read_events(any_engine, name="chat", limit=3)
    assert [event.data["n"] for event in found] == [2, 3, 4]
    later = read_events(any_engine, name="chat", after=found[1].number)
    assert [event.data["n"] for event in later] == [4]
    assert sorted(event.number for event in found) == [event.number for event in found]


def test_a_kind_means_all_that_begin_with_it_and_a_dot(any_engine: sa.Engine) -> None:
    kinds = [
        "rollout",
        "rollout.step",
        "rollouts",
        "rollback",
        "gate.passed",
        "roll_out.x",
        "roll-out.x",
    ]
    for kind in kinds:
        record_event(any_engine, kind, name="chat", data={})

    def found(*wanted: str) -> list[str]:
        return [event.kind for event in read_events(any_engine, name="chat", kinds=wanted)]

    assert found("rollout") == ["rollout", "rollout.step"]
    assert found("rollback", "gate") == ["rollback", "gate.passed"]
    assert found("gate.passed") == ["gate.passed"]
    assert found("roll_out") == ["roll_out.x"]
    assert found() == kinds


def test_data_that_json_lacks_is_refused_before_anything_is_written(
    any_engine: sa.Engine,
) -> None:
    with pytest.raises(TypeError):
        record_event(any_engine, "alarm", name="chat", data={"path": object()})
    assert count(any_engine, events_table) == 0


def test_a_secret_is_made_once_and_each_purpose_has_its_own(any_engine: sa.Engine) -> None:
    first = read_secret(any_engine, "users")
    assert len(first) == 32
    assert read_secret(any_engine, "users") == first
    assert read_secret(any_engine, "sessions") != first


def test_all_who_ask_first_at_once_get_the_same_secret(any_engine: sa.Engine) -> None:
    together, found = threading.Barrier(4), []

    def ask() -> None:
        together.wait(10)
        found.append(read_secret(any_engine, "users"))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 4 and len(set(found)) == 1
    assert count(any_engine, secrets_table) == 1
