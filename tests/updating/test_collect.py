from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from lmloop.corpus.decontaminate import overlap
from lmloop.corpus.rules import join_text
from lmloop.corpus.splits import read_split
from lmloop.errors import UpdateError
from lmloop.records import Conversation, Record, Turn
from lmloop.store.database import requests_table, transaction
from lmloop.updating.collect import Selection, check_enough, read_members, select, split, write
from lmloop.updating.screening import screen
from lmloop.upkeep import CollectConfig

from .feedback import OPEN, Feedback, ask, conversation, exchange, reply

LONG = "the ferry to Adalun leaves at nine from the old pier behind the market hall"


def pick(engine: sa.Engine, **changes: Any) -> Selection:
    learnt = changes.pop("learnt", ())
    config = CollectConfig(**{**OPEN.model_dump(), **changes})
    return select(config, engine=engine, name="chat", seed=0, learnt=learnt)


def save(
    selection: Selection,
    folder: Path,
    *,
    against: dict[str, Sequence[Record]] | None = None,
    hold_out: bool = True,
) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return write(selection, folder, against=against or {}, hold_out=hold_out)


def read(folder: Path) -> dict[str, list[Record]]:
    return {name: list(read_split(folder, name)) for name in ("train", "heldout")}


def test_a_selection_becomes_two_splits_pairs_members_and_reports(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.correct_many(40, users=4)
    up = feedback.praise("Is it nice there?", "Very nice.", user_hash=None)
    counts = save(pick(feedback.write()), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        *("train.parquet", "heldout.parquet", "pairs.jsonl", "members.jsonl"),
        *("report.json", "report.md"),
    }
    splits = read(tmp_path / "out")
    assert len(splits["train"]) + len(splits["heldout"]) == 41
    assert 3 <= len(splits["heldout"]) <= 18
    pairs = [json.loads(line) for line in (tmp_path / "out/pairs.jsonl").read_text().splitlines()]
    taught = {each.turns[-1].content for each in splits["train"] if isinstance(each, Conversation)}
    assert {each["chosen"] for each in pairs} == taught - {"Very nice."}
    assert all(each["rejected"] == "I do not know." for each in pairs)
    assert all(each["prompt"][0]["role"] == "user" for each in pairs)
    members = read_members(tmp_path / "out")
    assert len(members) == 41
    assert [each.user_hash for each in members if each.request_id == up] == [None]
    assert Counter(each.split for each in members) == {
        name: len(records) for name, records in splits.items()
    }
    assert counts["taken"]["exchanges"] == 41
    assert counts["taken"]["pairs"] == len(pairs)


def test_equal_selections_give_equal_bytes_in_whatever_order_the_rows_came(tmp_path: Path) -> None:
    written = []
    for name, backwards in (("one", False), ("two", True)):
        feedback = Feedback(tmp_path / name)
        feedback.correct_many(30, users=3)
        feedback.correct(ask(0), reply(0), user_hash="copier")
        feedback.correct("Hm?", "<script>")
        selection = pick(feedback.write(backwards=backwards), max_per_user=8)
        save(selection, tmp_path / "out")
        files = sorted((tmp_path / "out").iterdir())
        written.append((selection.fingerprint, [path.read_bytes() for path in files]))
    assert written[0] == written[1]


def test_the_fingerprint_changes_with_what_is_learnt_and_only_then(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.correct_many(5)
    first = pick(feedback.write()).fingerprint
    feedback.rate(feedback.request("Why?"), -1)
    feedback.correct("Hm?", "<script>")
    assert pick(feedback.write()).fingerprint == first
    feedback.correct_many(1, start=7)
    assert pick(feedback.write()).fingerprint != first


def test_equal_questions_never_stand_on_both_sides(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    for number in range(40):
        for other, question in enumerate((ask(number), ask(number).upper())):
            feedback.correct(question, f"{reply(number)} Indeed it is so, said person {other}.")
    save(pick(feedback.write(), max_per_answer=5), tmp_path / "out")
    splits = read(tmp_path / "out")
    asked = {
        name: {each.turns[0].content.lower() for each in records if isinstance(each, Conversation)}
        for name, records in splits.items()
    }
    assert len(asked["heldout"]) > 3
    assert not asked["train"] & asked["heldout"]


def test_nothing_that_is_held_out_can_be_read_in_the_training_text() -> None:
    said = [f"{LONG}, my dear number {number}" for number in range(4)]
    found = [
        screen(
            exchange(
                request_id=str(number),
                turns=(Turn("user", ask(number)),),
                correction=said[number % 4] if number < 40 else reply(number),
            ),
            config=OPEN,
        )
        for number in range(60)
    ]
    splits, moved = split(found, heldout_share=0.4)
    records = {name: [each.record for each in group] for name, group in splits.items()}
    assert len(splits["train"]) + len(splits["heldout"]) == 60
    assert moved > 0
    assert splits["heldout"]
    assert overlap(records["train"], {"heldout": records["heldout"]})["heldout"].records == 0


def test_more_feedback_moves_nothing_out_of_training(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.correct_many(30)
    save(pick(feedback.write()), tmp_path / "out")
    before = {each.id for each in read(tmp_path / "out")["train"]}
    feedback.correct_many(30, start=30)
    save(pick(feedback.write()), tmp_path / "out")
    assert before <= {each.id for each in read(tmp_path / "out")["train"]}


def test_nothing_is_held_out_where_the_gate_has_its_own_target(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.correct_many(20)
    save(pick(feedback.write()), tmp_path / "out", hold_out=False)
    assert {name: len(each) for name, each in read(tmp_path / "out").items()} == {
        "train": 20,
        "heldout": 0,
    }


def test_what_the_gate_asks_is_dropped_and_reported_by_set(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.correct_many(10)
    feedback.correct("When?", f"I looked it up: {LONG}.")
    feedback.praise("Who is it, then?", "It is the harbour master's cat.")
    against = {
        "target": [conversation("At what time?", LONG)],
        "guard": [conversation("Who?", "it is the harbour master's cat"), conversation("a", "b")],
        "clean": [conversation("Is it?", "It is not, and it never was, as far as we can tell.")],
    }
    counts = save(pick(feedback.write()), tmp_path / "out", against=against)
    assert counts["gate_sets"] == {"target": 1, "guard": 1, "clean": 0}
    assert counts["dropped"]["in_gate_set"] == 2
    assert counts["taken"]["exchanges"] == 10
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["gate_sets"]["target"]["examples"] == [LONG.lower().rsplit(" ", 2)[0]]
    for records in read(tmp_path / "out").values():
        assert all(each.records == 0 for each in overlap(records, against).values())


def test_one_user_who_sends_a_thousand_gets_no_more_than_the_cap(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.correct_many(60, users=6)
    for number in range(1000):
        feedback.correct(f"{ask(number)} And {number}?", f"Buy {number * 31}!", user_hash="mallory")
    selection = pick(feedback.write(), max_per_user=50, max_user_share=0.25)
    counts = save(selection, tmp_path / "out")
    taken = Counter(each.user_hash for each in read_members(tmp_path / "out"))
    assert taken["mallory"] == 20
    assert taken["mallory"] <= 0.25 * taken.total()
    assert counts["dropped"]["max_per_user"] == 950
    assert counts["dropped"]["max_user_share"] == 30
    assert selection.count == taken.total() == 80


def test_a_thousand_users_with_one_text_teach_one_exchange(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.correct_many(10)
    for number in range(1000):
        feedback.correct("Who won?", "Purple won.", user_hash=f"user-{number}")
    counts = save(pick(feedback.write()), tmp_path / "out")
    assert counts["taken"]["exchanges"] == 11
    assert counts["dropped"]["exact_duplicate"] == 999


def test_nothing_poisonous_and_nothing_personal_reaches_a_file(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.correct_many(20)
    emails = ["ann@example.com", "bob.smith+tag@mail.example.org"]
    phones = ["+44 20 7946 0958", "(415) 555-2671"]
    for number, private in enumerate(emails + phones):
        feedback.correct(f"How do I reach no. {number}, {private}?", f"Use {private} {number}.")
        feedback.praise(f"And no. {number} or {private}?", f"It is {private}, number {number}.")
        feedback.correct(f"Bad {number}?", f"Use\x00 {private}", answer=f"No {private}")
        feedback.correct(f"Worse {number}?", f"<script>{private}</script>")
        feedback.correct(f"Worst {number}?", "x" * 30_000, answer=private)
        feedback.correct(f"{private} " * 60_000, f"All of {private}.")
        feedback.correct(f"Long {number}?", f"{private}, " * 60_000)
        feedback.rate("chatcmpl-never", -1, private)
    counts = save(pick(feedback.write()), tmp_path / "out")
    folder = tmp_path / "out"
    records = [join_text(each) for split in read(folder).values() for each in split]
    texts = [path.read_text() for path in folder.iterdir() if path.suffix != ".parquet"]
    for text in [*records, *texts]:
        for private in emails + phones:
            assert private not in text
        for fragment in ("@example", "@mail", "7946", "2671", "\x00", "\x1b"):
            assert fragment not in text
    assert not any("<script>" in text for text in records)
    assert counts["dropped"]["control_characters"] == 4
    assert counts["dropped"]["markup"] == 4
    assert counts["dropped"]["max_characters"] == 12
    assert counts["masked"]["emails"] > 0
    assert counts["masked"]["phones"] > 0


def test_broken_rows_are_counted_and_harm_nobody(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.correct_many(10)
    broken = feedback.correct("What?", "That.")
    feedback.rate("chatcmpl-never", 1)
    engine = feedback.write()
    with transaction(engine) as connection:
        where = requests_table.c.id == broken
        connection.execute(requests_table.update().where(where).values(prompt='[{"role": "us'))
    counts = save(pick(engine), tmp_path / "out")
    assert counts["dropped"]["unreadable"] == 1
    assert counts["left_out"]["no_request"] == 1
    assert counts["taken"]["exchanges"] == 10


def test_what_was_learnt_before_is_taken_again_and_opens_no_update(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.correct_many(10)
    save(pick(feedback.write()), tmp_path / "out")
    learnt = [each.content for each in read_members(tmp_path / "out")]
    again = pick(feedback.engine, learnt=learnt)
    assert (again.count, len(again.taken)) == (0, 10)
    with pytest.raises(UpdateError, match="^0 new .*; 10 more were learnt before; an update needs"):
        check_enough(again)
    feedback.correct_many(3, start=10)
    selection = pick(feedback.write(), learnt=learnt, min_exchanges=3)
    counts = save(selection, tmp_path / "out")
    assert (counts["taken"]["exchanges"], counts["taken"]["new"]) == (13, 3)


def test_members_of_a_folder_without_any_are_none(tmp_path: Path) -> None:
    assert read_members(tmp_path) == []


@pytest.mark.parametrize(
    ("prepare", "changes", "told"),
    [
        (lambda _: None, {}, "0 new .* with consent"),
        (
            lambda feedback: feedback.correct("a?", "b", consent=False),
            {},
            "1 of the ratings came without consent; send the header X-Lmloop-Consent: yes",
        ),
        (
            lambda feedback: feedback.correct_many(30),
            {"review": True},
            "30 wait for a review; an update needs 20 .*: decide .* with lmloop review",
        ),
        (
            lambda feedback: feedback.correct_many(30),
            {"max_user_share": 0.25},
            r"30 are above the caps \(max_per_user = 1000, max_user_share = 0.25, 1 users\)",
        ),
        (
            lambda feedback: feedback.correct_many(19),
            {},
            "19 new rated exchanges of chat can be learnt; an update needs 20",
        ),
    ],
)
def test_too_little_is_told_with_what_to_do(
    tmp_path: Path, prepare: Any, changes: dict[str, Any], told: str
) -> None:
    feedback = Feedback(tmp_path)
    prepare(feedback)
    selection = pick(feedback.write(), min_exchanges=20, **changes)
    for refuse in (lambda: check_enough(selection), lambda: save(selection, tmp_path / "out")):
        with pytest.raises(UpdateError, match=told):
            refuse()
    assert list((tmp_path / "out").iterdir()) == []


def test_too_little_beside_the_gates_sets_is_told(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.correct_many(20)
    selection = pick(feedback.write(), min_exchanges=20)
    check_enough(selection)
    against = {"target": [conversation(ask(0), reply(0))]}
    with pytest.raises(UpdateError, match="^19 new .*; 1 stand in the gate's own sets; an update"):
        save(selection, tmp_path / "out", against=against)
    assert list((tmp_path / "out").iterdir()) == []


def test_holding_all_out_is_refused(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.correct("Where is the ferry?", "At the old pier.")
    selection = pick(feedback.write(), heldout_share=0.89)
    with pytest.raises(UpdateError, match=r"held out .* lower collect\.heldout_share"):
        save(selection, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_empty_answer_is_no_worse_one_of_a_pair(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.correct("Where is the ferry?", "At the old pier.", answer=" ")
    counts = save(pick(feedback.write()), tmp_path / "out", hold_out=False)
    assert (counts["taken"]["corrections"], counts["taken"]["pairs"]) == (1, 0)
    assert (tmp_path / "out/pairs.jsonl").read_text() == ""


def test_a_selection_says_what_it_is(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.correct_many(3)
    assert pick(feedback.write()).describe() == "3 rated exchanges of chat"
