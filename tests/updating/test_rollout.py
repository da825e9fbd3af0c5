"""A rollout: its way, and what calls it back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmloop.store.events import read_events
from lmloop.updating.rollout import CALLED_BACK, Outcome, Rollout
from lmloop.upkeep import RolloutConfig

from .world import NAME, World, fake_artifact, make_world

CONFIG = RolloutConfig(
    shadow_requests=20, canary_shares=(5, 20), step_requests=40, watch_requests=50
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with make_world(tmp_path) as made:
        made.acknowledge()
        yield made


def rollout_of(world: World, config: RolloutConfig = CONFIG) -> Rollout:
    return Rollout(
        world.registry, config, wait=world.wait, clock=world.clock, wall_clock=world.clock
    )


def live_of(world: World) -> str:
    return world.registry.read()["live"].fingerprint[:1]


def kinds_of(world: World) -> list[str]:
    return [event.kind for event in read_events(world.engine, name=NAME)]


def test_an_equal_candidate_goes_through_shadow_and_canaries_to_live(world: World) -> None:
    outcome = rollout_of(world).start(fake_artifact(2))
    assert outcome == Outcome(promoted=True, reason="no guard fell")
    assert world.seen == [("shadow", 0), ("canary", 5), ("canary", 20)]
    entries = world.registry.read()
    assert {alias: entry.fingerprint[:1] for alias, entry in entries.items()} == {
        "live": "2",
        "previous": "1",
    }
    assert kinds_of(world) == [
        "rollout.started",
        *["rollout.step"] * 3,
        "rollout.promoted",
        "rollout.finished",
    ]


def spoil(**changes: Any) -> Any:
    """Version 2 answers like this; version 1 as ever."""

    def answer(weights: str, draw: random.Random) -> dict[str, Any]:
        healthy = {"completion_tokens": draw.randint(10, 30), "total_seconds": 1.0}
        return healthy | (changes if weights == "2" else {})

    return answer


@pytest.mark.parametrize(
    ("changes", "guard"),
    [
        ({"finish_reason": "error"}, "errors"),
        ({"completion_tokens": 0}, "empty answers"),
        ({"finish_reason": "length"}, "answers cut by length"),
        ({"total_seconds": 4.0}, "seconds a token"),
        ({"signals": '{"repetition": 0.6}'}, "repetition"),
        ({"completion_tokens": 4, "total_seconds": 0.2}, "answer tokens"),
    ],
)
def test_a_worse_candidate_is_called_back_in_the_shadow_and_no_session_sees_it(
    world: World, changes: dict[str, Any], guard: str
) -> None:
    world.answer = spoil(**changes)
    outcome = rollout_of(world).start(fake_artifact(2))
    assert not outcome.promoted
    assert outcome.reason.startswith("in the shadow: ")
    assert guard in outcome.reason
    assert world.seen == [("shadow", 0)]
    assert "candidate" not in world.registry.read()
    assert live_of(world) == "1"
    assert kinds_of(world)[-1] == "rollout.refused"


def test_a_candidate_that_people_dislike_is_called_back_as_a_canary(world: World) -> None:
    def rate(weights: str, draw: random.Random) -> dict[str, Any]:
        return {"rating": -1 if weights == "2" or draw.random() < 0.1 else 1}

    world.answer = rate
    outcome = rollout_of(world, RolloutConfig(shadow_requests=0)).start(fake_artifact(2))
    assert not outcome.promoted
    assert outcome.reason.startswith("at 5 % of the sessions: thumbs down 0.")
    assert live_of(world) == "1"


def test_what_only_shows_under_full_traffic_brings_the_old_model_back(world: World) -> None:
    def fail_alone(weights: str, draw: random.Random) -> dict[str, Any]:
        full = "candidate" not in world.registry.read()
        return {"finish_reason": "error" if weights == "2" and full else "stop"}

    world.answer = fail_alone
    outcome = rollout_of(world).start(fake_artifact(2))
    assert outcome.reason.startswith("at 100 % of the sessions: errors 0 → 1")
    assert live_of(world) == "1"
    assert world.registry.read()["previous"].fingerprint[:1] == "2"


@pytest.mark.slow
def test_an_equal_candidate_is_called_back_no_oftener_than_the_recipe_allows(
    tmp_path: Path,
) -> None:
    def noisy(weights: str, draw: random.Random) -> dict[str, Any]:
        return {
            "finish_reason": draw.choices(["stop", "length", "error"], [70, 25, 5])[0],
            "completion_tokens": draw.choice([0, 5, 10, 20, 40]),
            "total_seconds": draw.expovariate(1.0) + 0.1,
            "rating": draw.choice([None, 1, -1]),
        }

    config = RolloutConfig(
        shadow_requests=20, canary_shares=(20,), step_requests=20, false_alarms=0.2
    )
    called_back = 0
    for seed in range(20):
        with make_world(tmp_path / str(seed), answer=noisy, requests_per_tick=40) as world:
            world.draw = random.Random(seed)
            world.acknowledge()
            called_back += not rollout_of(world, config).start(fake_artifact(2)).promoted
    assert called_back <= 8  # at most 4 of 20 are expected, and Fisher's test spends less


def test_a_server_that_cannot_start_it_ends_the_rollout_with_its_words(world: World) -> None:
    world.candidate_state, world.note = "failed", "weights.bin changed on disk"
    outcome = rollout_of(world).start(fake_artifact(2))
    assert outcome.reason == (
        "in the shadow: the server cannot start it: weights.bin changed on disk"
    )
    assert "candidate" not in world.registry.read()


def test_an_engine_that_fails_for_good_in_a_step_ends_the_rollout(world: World) -> None:
    def fail(world: World) -> None:
        if world.seen[-1:] == [("canary", 5)]:
            world.candidate_state, world.note = "failed", "it ended with exit code -9"

    world.on_tick = fail
    outcome = rollout_of(world).start(fake_artifact(2))
    assert not outcome.promoted
    assert "it ended with exit code -9" in outcome.reason
    assert live_of(world) == "1"


def test_a_rollback_by_hand_in_the_middle_ends_the_rollout_and_is_not_undone(
    world: World,
) -> None:
    world.registry.set_live(fake_artifact(3))

    def call_back(world: World) -> None:
        if world.seen[-1:] == [("canary", 20)] and "candidate" in world.registry.read():
            world.registry.roll_back()

    world.on_tick = call_back
    outcome = rollout_of(world).start(fake_artifact(2))
    assert outcome.reason.endswith(CALLED_BACK)
    assert live_of(world) == "1"
    assert "candidate" not in world.registry.read()


def test_a_rollback_by_hand_after_the_promotion_is_not_undone(world: World) -> None:
    def call_back(world: World) -> None:
        if live_of(world) == "2":
            world.registry.roll_back()

    world.on_tick = call_back
    outcome = rollout_of(world).start(fake_artifact(2))
    assert outcome.reason == f"at 100 % of the sessions: {CALLED_BACK}"
    assert live_of(world) == "1"


def test_a_step_without_traffic_is_judged_by_what_has_come_once_its_time_is_over(
    world: World,
) -> None:
    world.requests_per_tick = 0
    begun = world.now
    config = CONFIG.model_copy(update={"step_timeout": "30s"})
    outcome = rollout_of(world, config).start(fake_artifact(2))
    assert outcome.promoted
    assert 4 * 30 <= world.now - begun <= 4 * 30 + 20


def test_without_a_server_the_candidate_is_live_from_the_next_start(tmp_path: Path) -> None:
    with make_world(tmp_path, alive=False) as world:
        assert rollout_of(world).start(fake_artifact(2)).promoted
        assert live_of(world) == "2"
        assert world.seen == []


def test_the_first_model_of_a_name_needs_no_steps(world: World) -> None:
    outcome = rollout_of(world).start(fake_artifact(1))
    assert outcome == Outcome(promoted=False, reason="these weights are live already")


def test_a_candidate_that_takes_the_only_place_is_made_live_and_watched(world: World) -> None:
    world.answer = spoil(finish_reason="error")
    world.send(50)
    outcome = rollout_of(world).start(fake_artifact(2), at_once=True)
    assert world.seen == []
    assert outcome.promoted  # nothing of the old model came after the start to compare with


class Killed(Exception):
    """The process that rolls out is gone."""


def interrupt_at(world: World, moment: int) -> None:
    """Kill the rollout at its n-th wait."""
    ticks = iter(range(10_000))

    def kill(world: World) -> None:
        if next(ticks) == moment:
            raise Killed

    world.on_tick = kill


@pytest.mark.parametrize("moment", range(0, 24, 2))
def test_a_rollout_killed_at_any_wait_is_resumed_to_the_same_end(
    tmp_path: Path, moment: int
) -> None:
    artifacts = {str(fake_artifact(number).path): fake_artifact(number) for number in (1, 2)}
    with make_world(tmp_path) as world:
        world.acknowledge()
        interrupt_at(world, moment)
        try:
            rollout_of(world).start(fake_artifact(2))
        except Killed:
            world.on_tick = lambda world: None
            outcome = rollout_of(world).resume(artifacts.__getitem__)
            assert outcome is not None and outcome.promoted
        assert live_of(world) == "2"
        assert "candidate" not in world.registry.read()
        assert world.seen == [("shadow", 0), ("canary", 5), ("canary", 20)]
        assert rollout_of(world).resume(artifacts.__getitem__) is None


def test_a_rollout_killed_before_its_first_step_begins_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*args: object, **changes: object) -> int:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(world.registry, "set_candidate", die)
        with pytest.raises(Killed):
            rollout_of(world).start(fake_artifact(2))
    outcome = rollout_of(world).resume(lambda path: fake_artifact(2))
    assert outcome is not None and outcome.promoted


def test_a_candidate_that_nobody_rolls_out_is_dropped(world: World) -> None:
    world.registry.set_candidate(fake_artifact(2), phase="canary", share=20)
    assert rollout_of(world).resume(lambda path: fake_artifact(2)) is None
    assert "candidate" not in world.registry.read()
