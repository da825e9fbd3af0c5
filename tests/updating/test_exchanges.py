from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from lmloop.records import Turn
from lmloop.store.database import ratings_table, requests_table, reviews_table, transaction
from lmloop.updating.exchanges import (
    LEFT_OUT,
    Exchange,
    read_exchanges,
    read_messages,
    stamp_feedback,
)
from lmloop.upkeep import CollectConfig

from .feedback import OPEN, Feedback


def read(engine: sa.Engine, config: CollectConfig = OPEN) -> list[Exchange]:
    found = read_exchanges(engine, name="chat", config=config)
    return [each for each in found if isinstance(each, Exchange)]


def reasons(engine: sa.Engine, config: CollectConfig = OPEN) -> Counter[str]:
    found = read_exchanges(engine, name="chat", config=config)
    return Counter(each for each in found if isinstance(each, str))


def test_an_exchange_has_the_prompts_turns_the_answer_and_the_correction(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    prompt = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Where?"},
    ]
    identity = feedback.correct(prompt, "There.", answer="Here.", user_hash="ann", arm="canary")
    (found,) = read(feedback.write())
    assert found.request_id == identity
    roles = ("system", "user", "assistant", "user")
    assert found.turns == tuple(map(Turn, roles, ("Be kind.", "Hi", "Hello", "Where?")))
    assert (found.answer, found.correction, found.taught) == ("Here.", "There.", "There.")
    assert (found.user, found.person, found.state, found.fault) == ("ann", "ann", "pending", None)


def test_an_answer_that_was_rated_up_teaches_itself(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.praise("Where?", "Here.")
    engine = feedback.write()
    assert [each.taught for each in read(engine)] == ["Here."]
    assert reasons(engine, OPEN.model_copy(update={"thumbs": False})) == {"rated_up": 1}


@pytest.mark.parametrize(
    ("reason", "rating", "correction", "changes"),
    [
        ("shadow", 1, None, {"arm": "shadow"}),
        ("not_chat", 1, None, {"endpoint": "completions"}),
        ("no_consent", None, "Better.", {"consent": False}),
        ("no_content", 1, None, {"stored": None}),
        ("no_content", -1, "Better.", {"answer": None}),
        ("only_comment", None, None, {}),
        ("rated_down", -1, None, {}),
        ("rated_down", -1, "  ", {}),
    ],
)
def test_a_rating_that_teaches_nothing_is_counted(
    tmp_path: Path, reason: str, rating: int, correction: str | None, changes: dict[str, Any]
) -> None:
    feedback = Feedback(tmp_path)
    prompt = changes.pop("stored", "Where?")
    feedback.rate(feedback.request(prompt, **changes), rating, correction)
    engine = feedback.write()
    assert reasons(engine) == {reason: 1}
    assert reason in LEFT_OUT
    assert read(engine) == []


def test_a_rating_of_an_answer_without_a_row_is_counted_and_another_models_is_not(
    tmp_path: Path,
) -> None:
    feedback = Feedback(tmp_path)
    feedback.rate("chatcmpl-never", 1, "planted")
    feedback.correct("Where?", "There.", model="other")
    engine = feedback.write()
    assert reasons(engine) == {"no_request": 1}
    assert read(engine) == []


def test_consent_can_be_left_to_the_operator(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.correct("Where?", "There.", consent=False)
    engine = feedback.write()
    assert len(read(engine, OPEN.model_copy(update={"require_consent": False}))) == 1


def test_an_empty_form_beside_a_thumb_up_corrects_nothing(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.rate(feedback.request("Where?", "Here."), 1, " \n")
    (found,) = read(feedback.write())
    assert (found.correction, found.taught) == (None, "Here.")


@pytest.mark.parametrize(
    "prompt",
    [
        "[{broken",
        "null",
        "[]",
        "{}",
        '["text"]',
        '[{"role": "user"}]',
        '[{"role": "user", "content": 1}]',
        '[{"role": "king", "content": "a"}]',
        '[{"role": "user", "content": "\\ud800"}]',
        "[" * 5000,
    ],
)
def test_a_prompt_that_is_no_list_of_messages_is_unreadable(tmp_path: Path, prompt: str) -> None:
    feedback = Feedback(tmp_path)
    identity = feedback.praise("Where?", "Here.")
    engine = feedback.write()
    with transaction(engine) as connection:
        where = requests_table.c.id == identity
        connection.execute(requests_table.update().where(where).values(prompt=prompt))
    (found,) = read(engine)
    assert (found.fault, found.turns) == ("unreadable", ())
    with pytest.raises(ValueError, match="message"):
        read_messages(prompt)


def test_far_too_long_text_is_cut_before_it_costs_anything(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.correct("Where? " * 200_000, "There.")
    feedback.correct("Where?", "There. " * 200_000)
    found = read(feedback.write())
    assert [each.fault for each in found] == ["max_characters"] * 2
    assert all(len(each.taught) < 40_000 and each.turns == () for each in found)


def test_a_review_holds_for_the_content_that_was_reviewed(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    identity = feedback.correct("Where?", "There.")
    engine = feedback.write()
    (before,) = read(engine)
    review = {"request_id": identity, "content_sha": before.content_sha, "state": "accepted"}
    with transaction(engine) as connection:
        connection.execute(reviews_table.insert().values(**review, decided=0.0))
    assert [each.state for each in read(engine)] == ["accepted"]
    with transaction(engine) as connection:
        connection.execute(ratings_table.update().values(correction="Somewhere else."))
    (after,) = read(engine)
    assert after.state == "pending"
    assert after.content_sha != before.content_sha


def test_people_without_a_user_are_told_apart_by_their_session(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.praise("Where?", "Here.", user_hash=None, session_hash="s1")
    feedback.praise("When?", "Now.", user_hash=None)
    assert sorted(each.person for each in read(feedback.write())) == ["", "s1"]


def test_messages_are_read_as_they_were_stored() -> None:
    text = json.dumps([{"role": "user", "content": "你好", "name": "x"}])
    assert read_messages(text) == (Turn("user", "你好"),)


def test_the_stamp_changes_with_ratings_and_reviews_and_only_with_them(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    stamps = [stamp_feedback(feedback.engine)]
    identity = feedback.request("Where?")
    stamps.append(stamp_feedback(feedback.write()))
    assert stamps[0] == stamps[1]
    feedback.rate(identity, 1)
    stamps.append(stamp_feedback(feedback.write()))
    with transaction(feedback.engine) as connection:
        connection.execute(ratings_table.update().values(created=2e6))
    stamps.append(stamp_feedback(feedback.engine))
    review = {"request_id": identity, "content_sha": "0", "state": "accepted", "decided": 1.0}
    with transaction(feedback.engine) as connection:
        connection.execute(reviews_table.insert().values(review))
    stamps.append(stamp_feedback(feedback.engine))
    assert len(set(stamps)) == 4
