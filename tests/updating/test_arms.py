"""Arms: what the rows of a weights version say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lmloop.store.database import ratings_table, requests_table
from lmloop.store.events import write_events
from lmloop.updating.arms import count_arm, newest_moment, read_arm

from .world import NAME, World, make_world, request_row

OLD, NEW = "1" * 12, "2" * 12


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with make_world(tmp_path) as made:
        rows = [
            request_row("early", 10.0, NEW, "canary"),
            request_row("stopped", 20.0, NEW, "canary", completion_tokens=11, total_seconds=1.05),
            request_row("cut", 21.0, NEW, "canary", finish_reason="length"),
            request_row("failed", 22.0, NEW, "canary", finish_reason="error", completion_tokens=0),
            request_row("gone", 23.0, NEW, "canary", finish_reason="cancelled", signals=None),
            request_row("empty", 24.0, NEW, "canary", completion_tokens=0, signals=None),
            request_row("seen", 25.0, NEW, "shadow"),
            request_row("old", 26.0, OLD, "live"),
            request_row("other", 27.0, NEW, "canary", model="another"),
        ]
        write_events(made.engine, [(requests_table, row) for row in rows])
        ratings = [("stopped", -1), ("cut", 1), ("empty", None), ("seen", -1)]
        write_events(
            made.engine,
            [
                (ratings_table, {"request_id": name, "created": 30.0, "rating": value})
                for name, value in ratings
            ],
        )
        yield made


def test_an_arm_holds_the_requests_of_its_weights_and_arm_after_the_moment(world: World) -> None:
    arm = read_arm(world.engine, NAME, weights=NEW, arm="canary", after=10.0)
    assert arm.count == 5
    assert count_arm(world.engine, NAME, weights=NEW, arm="canary", after=10.0) == 5
    assert arm.errors == (False, False, True, False, False)
    assert arm.cut == (False, True, False)
    assert arm.empty == (False, False, True)
    assert arm.answer_tokens == (11, 20, 0)
    assert [each.token_seconds for each in arm.timings] == pytest.approx([0.1, 0.05])
    assert [each.stop for each in arm.timings] == pytest.approx([21.05, 22.0])
    assert arm.repetition == (0.0, 0.0)
    assert arm.disliked == (True, False)


def test_the_newest_moment_is_that_of_the_models_own_requests(world: World) -> None:
    assert newest_moment(world.engine, NAME) == 26.0
    assert newest_moment(world.engine, "nobody") == 0.0
