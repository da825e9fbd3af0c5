from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from lmloop.errors import UpdateError
from lmloop.store.database import ratings_table, reviews_table, transaction
from lmloop.updating.collect import select
from lmloop.updating.review import MIN_PREFIX, decide, escape, list_reviews, pending
from lmloop.upkeep import CollectConfig

from .feedback import Feedback

CONFIG = CollectConfig(min_exchanges=1, max_user_share=1.0)


def states(engine: sa.Engine) -> list[str]:
    return sorted(each.state for each in list_reviews(engine, name="chat", config=CONFIG))


def count_ready(engine: sa.Engine) -> int:
    return select(CONFIG, engine=engine, name="chat", seed=0).count


def test_a_review_shows_what_would_be_learnt(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    prompt = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Mail ann@example.com?"},
    ]
    feedback.correct(prompt, "No,\x1b[31m call her.", answer="Yes.", user_hash="0123456789abcdef")
    feedback.praise("Where?", "Here.", user_hash=None)
    dropped, shown = sorted(
        pending(feedback.write(), name="chat", config=CONFIG), key=lambda each: each.question
    )
    assert (dropped.user, dropped.earlier_turns) == ("01234567", 2)
    assert dropped.question == "Mail <email>?"
    assert dropped.correction == "No,\\x1b[31m call her."
    assert dropped.dropped == "control_characters"
    assert (shown.user, shown.earlier_turns, shown.correction) == (None, 0, None)
    assert (shown.answer, shown.state, shown.dropped) == ("Here.", "pending", None)


def test_what_waits_comes_before_what_is_dropped_and_the_oldest_first(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    for number, text in enumerate(["<script>", "At pier one.", "At pier two."]):
        identity = feedback.request(f"Where is ferry {number}?")
        feedback.rate(identity, -1, text)
    engine = feedback.write()
    with transaction(engine) as connection:
        where = ratings_table.c.correction == "At pier two."
        connection.execute(ratings_table.update().where(where).values(created=5.0))
    shown = pending(engine, name="chat", config=CONFIG)
    assert [each.correction for each in shown] == ["At pier two.", "At pier one.", "<script>"]


def test_only_what_was_accepted_is_ready(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.correct_many(4)
    engine = feedback.write()
    first, second, *_ = pending(engine, name="chat", config=CONFIG)
    decide(engine, [first.id[:8]], name="chat", config=CONFIG, state="accepted")
    decide(engine, [second.id], name="chat", config=CONFIG, state="rejected", reason="wrong")
    assert states(engine) == ["accepted", "pending", "pending", "rejected"]
    assert count_ready(engine) == 1
    assert len(pending(engine, name="chat", config=CONFIG)) == 2
    with engine.connect() as connection:
        rows = {row.request_id: row for row in connection.execute(sa.select(reviews_table))}
    assert sorted(str(row.reason) for row in rows.values()) == ["None", "wrong"]


def test_all_means_what_waits_and_not_what_is_dropped(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.correct_many(3)
    feedback.correct("Well?", "<script>")
    engine = feedback.write()
    decided = decide(engine, None, name="chat", config=CONFIG, state="accepted")
    assert len(decided) == 3
    assert count_ready(engine) == 3
    assert [each.dropped for each in pending(engine, name="chat", config=CONFIG)] == ["markup"]
    assert decide(engine, None, name="chat", config=CONFIG, state="rejected") == []


def test_a_second_decision_replaces_the_first_on_either_database(any_engine: sa.Engine) -> None:
    feedback = Feedback(any_engine)
    feedback.correct_many(1)
    engine = feedback.write()
    (shown,) = decide(engine, None, name="chat", config=CONFIG, state="accepted")
    decide(engine, [shown.id], name="chat", config=CONFIG, state="rejected")
    assert (states(engine), count_ready(engine)) == (["rejected"], 0)
    open_config = CONFIG.model_copy(update={"review": False})
    assert select(open_config, engine=engine, name="chat", seed=0).count == 0


def test_a_correction_that_changes_after_it_was_accepted_waits_again(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.correct_many(1)
    engine = feedback.write()
    (shown,) = decide(engine, None, name="chat", config=CONFIG, state="accepted")
    with transaction(engine) as connection:
        connection.execute(ratings_table.update().values(correction="Something worse."))
    assert count_ready(engine) == 0
    (again,) = pending(engine, name="chat", config=CONFIG)
    assert again.correction == "Something worse."
    assert again.id != shown.id


def test_a_decision_upon_what_changed_since_it_was_shown_is_refused(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.correct_many(2)
    engine = feedback.write()
    shown, other = pending(engine, name="chat", config=CONFIG)
    with transaction(engine) as connection:
        where = ratings_table.c.correction == shown.correction
        connection.execute(ratings_table.update().where(where).values(correction="Worse."))
    with pytest.raises(UpdateError, match="its correction may have changed since"):
        decide(engine, [other.id, shown.id], name="chat", config=CONFIG, state="accepted")
    assert states(engine) == ["pending", "pending"]


def test_an_id_has_to_mean_one_exchange(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.correct_many(3)
    engine = feedback.write()
    shown = pending(engine, name="chat", config=CONFIG)[0]
    for wrong, why in [("zzzz", "no exchange"), (shown.id[: MIN_PREFIX - 1], "too short")]:
        with pytest.raises(UpdateError, match=why):
            decide(engine, [wrong], name="chat", config=CONFIG, state="accepted")
    twice = [shown.id.upper(), f" {shown.id[:10]} "]
    assert len(decide(engine, twice, name="chat", config=CONFIG, state="accepted")) == 1


def test_an_id_that_several_begin_with_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feedback = Feedback(tmp_path)
    feedback.correct_many(17)
    engine = feedback.write()
    monkeypatch.setattr("lmloop.updating.review.MIN_PREFIX", 1)
    firsts = [each.id[0] for each in pending(engine, name="chat", config=CONFIG)]
    shared = max(firsts, key=firsts.count)
    with pytest.raises(UpdateError, match=f"exchanges have ids that begin with {shared}: give"):
        decide(engine, [shared], name="chat", config=CONFIG, state="accepted")


def test_escaped_text_prints_nothing_but_itself() -> None:
    assert escape("a\n\x1b[2J\u202e\u200b\U000e0041") == "a\\n\\x1b[2J\\u202e\\u200b\\U000e0041"
    assert escape("你好\u3000é 🙂") == "你好\u3000é 🙂"
