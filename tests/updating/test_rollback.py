"""A rollback, and the servers that follow it or do not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lmloop.errors import RegistryError
from lmloop.store.events import read_events
from lmloop.updating.rollback import RolledBack, roll_back

from .world import NAME, World, fake_artifact, make_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with make_world(tmp_path, requests_per_tick=0) as made:
        made.registry.set_live(fake_artifact(2))
        made.acknowledge()
        yield made


def call(world: World) -> RolledBack:
    return roll_back(
        world.registry, wait=world.wait, clock=world.clock, wall_clock=world.clock, timeout=5.0
    )


def test_the_previous_model_is_live_once_the_server_says_so(world: World) -> None:
    rolled = call(world)
    assert (rolled.fingerprint[:1], rolled.servers, rolled.waiting) == ("1", 1, 0)
    assert rolled.seconds == 1.0
    assert world.registry.read()["live"].fingerprint[:1] == "1"
    (event,) = read_events(world.engine, name=NAME, kinds=["rollback"])
    assert event.data == {"by": "hand", "generation": 3, "live": "1" * 64}


def test_a_server_that_does_not_follow_is_said_to_wait(world: World) -> None:
    world.alive = False
    rolled = call(world)
    assert (rolled.servers, rolled.waiting) == (1, 1)
    assert rolled.seconds == 5.0


def test_a_candidate_is_dropped_with_it(world: World) -> None:
    world.registry.set_candidate(fake_artifact(3), phase="canary", share=20)
    call(world)
    assert set(world.registry.read()) == {"live", "previous"}


def test_without_a_previous_model_it_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    with make_world(tmp_path) as world:
        with pytest.raises(RegistryError, match="no previous model"):
            call(world)
        assert world.registry.generation() == 1
