from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from lmloop.updating.candidates import find_candidates

from .feedback import OPEN, Feedback, ask, reply

SECRET = "my landlady keeps the spare key under the third flower pot by the garden gate"


def fill(feedback: Feedback) -> None:
    feedback.correct_many(10, users=3)
    feedback.correct(ask(0), reply(0), user_hash="copier")
    feedback.request(SECRET, user_hash="bob")
    feedback.correct("Well?", SECRET, user_hash="ann")
    feedback.correct("Hm?", "<script>", user_hash="mallory")
    feedback.rate(feedback.request("Why?"), -1)
    feedback.rate("chatcmpl-never", 1)


def test_every_rating_is_accounted_for_on_either_database(any_engine: sa.Engine) -> None:
    feedback = Feedback(any_engine)
    fill(feedback)
    found = find_candidates(feedback.write(), name="chat", config=OPEN)
    assert found.left_out == {"rated_down": 1, "no_request": 1}
    dropped = sorted(each.dropped for each in found.all if each.dropped)
    assert dropped == ["exact_duplicate", "foreign_text", "markup"]
    assert len(found.all) == 13
    assert len(found.passed) == 10


def test_the_order_of_the_rows_changes_nothing(tmp_path: Path) -> None:
    found = []
    for name, backwards in (("one", False), ("two", True)):
        feedback = Feedback(tmp_path / name)
        fill(feedback)
        engine = feedback.write(backwards=backwards)
        found.append(find_candidates(engine, name="chat", config=OPEN))
    assert found[0].all == found[1].all
    assert [each.id for each in found[0].all] == sorted(each.id for each in found[0].all)


def test_a_text_that_a_rule_drops_does_not_stand_in_for_its_copies(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.request(SECRET, user_hash="bob")
    feedback.correct("Well?", SECRET, user_hash="ann")
    feedback.correct("Well?", SECRET, user_hash="bob")
    found = find_candidates(feedback.write(), name="chat", config=OPEN)
    assert [each.exchange.user for each in found.passed] == ["bob"]


def test_no_ratings_are_no_candidates(tmp_path: Path) -> None:
    found = find_candidates(Feedback(tmp_path).engine, name="chat", config=OPEN)
    assert (found.all, found.left_out) == ((), {})
