"""Requests read from the database: in order, behind a mark, and by conversation."""

from __future__ import annotations

import numpy as np
import pytest
import sqlalchemy as sa

from lmloop.monitoring.windows import START, Mark, read_stretch

from . import simulated


def test_requests_come_in_the_order_of_their_arrival(any_engine: sa.Engine) -> None:
    rows = list(simulated.make_rows(5, seed=0))
    simulated.write(any_engine, *reversed(rows))
    stretch = read_stretch(any_engine, name="chat", limit=10)
    assert stretch is not None
    assert (stretch.first.id, stretch.last.id) == (rows[0]["id"], rows[-1]["id"])
    assert stretch.longest_seconds == max(row["total_seconds"] for row in rows)
    assert len(stretch.sample) == 5
    assert stretch.sample.embeddings[2].astype("<f2").tobytes() == rows[2]["embedding"]


def test_stretches_behind_marks_meet_without_gap_or_overlap(any_engine: sa.Engine) -> None:
    # All at one moment: their ids put them in order.
    simulated.write(any_engine, *simulated.make_rows(7, seed=0, spacing=0.0))
    sizes, mark = [], START
    while (found := read_stretch(any_engine, name="chat", limit=3, after=mark)) is not None:
        sizes.append(len(found.sample))
        mark = found.last
    assert sizes == [3, 3, 1]
    whole = read_stretch(any_engine, name="chat", limit=9, after=START, until=mark)
    assert whole is not None
    assert len(whole.sample) == 7


def test_what_nobody_saw_is_left_out(any_engine: sa.Engine) -> None:
    simulated.write(
        any_engine,
        *simulated.make_rows(1, seed=0, arm="shadow"),
        *simulated.make_rows(1, seed=0, first=1, model="other"),
        *simulated.make_rows(1, seed=0, first=2, signals=None),
        *simulated.make_rows(1, seed=0, first=3, arm="canary", weights="b" * 12),
    )
    found = read_stretch(any_engine, name="chat", limit=9)
    assert found is not None
    assert found.sample.weights.tolist() == ["b" * 12]
    assert read_stretch(any_engine, name="chat", limit=9, weights="a" * 12) is None


def test_ratings_are_joined_and_a_correction_alone_is_no_praise(any_engine: sa.Engine) -> None:
    rows = list(simulated.make_rows(5, seed=0))
    simulated.write(
        any_engine,
        *rows,
        simulated.rating(rows[0], rating=1),
        simulated.rating(rows[1], rating=-1),
        simulated.rating(rows[2], rating=None, correction="better"),
        simulated.rating(rows[3], rating=None),
    )
    found = read_stretch(any_engine, name="chat", limit=9)
    assert found is not None
    down = found.sample.numbers["thumbs_down"].tolist()
    assert down == pytest.approx([0, 1, 1, np.nan, np.nan], nan_ok=True)


def group_of(any_engine: sa.Engine, **changes: list[object]) -> list[int]:
    """Groups of requests whose columns and prompt lengths are given."""
    lengths = changes.pop("lengths")
    rows = list(simulated.make_rows(len(lengths), seed=0))
    for number, row in enumerate(rows):
        row["signals"] = f'{{"prompt_characters": {lengths[number]}}}'
        row.update({name: values[number] for name, values in changes.items()})
    simulated.write(any_engine, *rows)
    found = read_stretch(any_engine, name="chat", limit=99)
    assert found is not None
    names = list(dict.fromkeys(found.sample.groups.tolist()))
    return [names.index(group) for group in found.sample.groups.tolist()]


def test_requests_of_one_user_are_one_group(any_engine: sa.Engine) -> None:
    users = ["ann", "bob", "ann", "ann"]
    assert group_of(any_engine, lengths=[9, 9, 5, 9], user_hash=users) == [0, 1, 0, 0]


def test_strangers_who_open_with_the_same_words_are_not_one_group(any_engine: sa.Engine) -> None:
    sessions = ["hi", "hi", "hi", "hi"]
    # The second opens anew; the third and the fourth go on from there.
    assert group_of(any_engine, lengths=[2, 2, 40, 80], session_hash=sessions) == [0, 1, 1, 1]


def test_requests_of_nobody_stand_alone(any_engine: sa.Engine) -> None:
    assert group_of(any_engine, lengths=[2, 2], session_hash=[None, None]) == [0, 1]


@pytest.mark.parametrize("text", ["no json", "[1]", '"text"'])
def test_a_damaged_row_has_no_signals(any_engine: sa.Engine, text: str) -> None:
    simulated.write(any_engine, *simulated.make_rows(1, seed=0, signals=text))
    found = read_stretch(any_engine, name="chat", limit=9)
    assert found is not None
    assert np.isnan(found.sample.numbers["prompt_nats"]).all()


def test_a_mark_is_plain_data() -> None:
    mark = Mark(1.5, "x")
    assert Mark(*mark.to_json()) == mark > START
