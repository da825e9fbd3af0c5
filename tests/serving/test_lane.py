"""One weights version kept alive: restarts, giving up, leaving."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lmloop.errors import RequestError
from lmloop.serving.lane import MAX_FAILED_STARTS, Lane
from lmloop.serving.process import EngineSpec, Generation

from .harness import version_spec
from .test_process import reach

ENDLESS = (list(b"endless slow"), {"max_tokens": 100_000})


@contextlib.asynccontextmanager
async def started(spec: EngineSpec, *, ready: bool = True) -> AsyncIterator[Lane]:
    lane = Lane(spec, on_change=lambda: None, first_delay_seconds=0.01)
    await lane.start()
    try:
        if ready:
            await reach(lambda: lane.state == "ready")
        yield lane
    finally:
        await lane.close()


def begin(lane: Lane) -> Generation:
    generation = Generation(lane.engine, count=1)
    generation.start([ENDLESS])
    return generation


def kill(lane: Lane) -> None:
    assert lane.engine.process_id is not None
    os.kill(lane.engine.process_id, signal.SIGKILL)


def is_running(process_id: int | None) -> bool:
    assert process_id is not None
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_dead_engine_is_replaced_by_one_of_the_same_weights(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with started(version_spec(tmp_path, "A")) as lane:
            first = lane.engine
            kill(lane)
            await reach(lambda: lane.engine is not first and lane.state == "ready")
            assert lane.starts == 2
            assert lane.engine.weights == first.weights
            assert lane.last_end is not None
            assert "exit code -9" in lane.last_end

    asyncio.run(scenario())


def test_the_next_engine_is_started_the_new_way(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with started(version_spec(tmp_path, "A")) as lane:
            lane.spec = dataclasses.replace(lane.spec, capacity=3)
            kill(lane)
            await reach(lambda: lane.starts == 2 and lane.state == "ready")
            assert lane.engine.spec.capacity == 3

    asyncio.run(scenario())


def test_weights_that_never_get_ready_are_given_up_after_some_starts(tmp_path: Path) -> None:
    async def scenario() -> None:
        spec = version_spec(tmp_path, "A", "--fail", "crash")
        async with started(spec, ready=False) as lane:
            await reach(lambda: lane.state == "failed")
            assert lane.starts == MAX_FAILED_STARTS
            assert lane.failure is not None
            assert "no room for the weights" in lane.failure

    asyncio.run(scenario())


def test_weights_that_are_refused_are_given_up_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        spec = version_spec(tmp_path, "A", "--fail", "refuse")
        async with started(spec, ready=False) as lane:
            await reach(lambda: lane.state == "failed")
            assert (lane.starts, lane.failure) == (1, "weights.bin changed on disk")

    asyncio.run(scenario())


def test_a_program_that_cannot_be_started_is_a_failure_and_no_fault(tmp_path: Path) -> None:
    async def scenario() -> None:
        spec = dataclasses.replace(version_spec(tmp_path, "A"), command=(str(tmp_path / "no"),))
        async with started(spec, ready=False) as lane:
            assert lane.state == "failed"
            assert lane.failure is not None
            assert "No such file" in lane.failure

    asyncio.run(scenario())


def test_every_change_is_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        states: list[str] = []
        lane = Lane(
            version_spec(tmp_path, "A"),
            on_change=lambda: states.append(lane.state),
            first_delay_seconds=0.01,
        )
        await lane.start()
        await reach(lambda: states == ["ready"])
        kill(lane)
        await reach(lambda: states == ["ready", "starting", "ready"])
        lane.leave(5)
        await reach(lambda: lane.closed)
        assert states[-1] == "failed"

    asyncio.run(scenario())


def test_a_leaving_lane_finishes_what_it_began_and_ends(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with started(version_spec(tmp_path, "A")) as lane:
            process = lane.engine.process_id
            generation = Generation(lane.engine, count=1)
            generation.start([(list(b"endless slow"), {"max_tokens": 20})])
            lane.leave(10)
            pieces = [piece.text async for piece in generation]
            assert pieces == ["A "] * 20
            await reach(lambda: lane.closed)
            assert not is_running(process)

    asyncio.run(scenario())


def test_what_takes_too_long_fails_when_the_lane_leaves(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with started(version_spec(tmp_path, "A")) as lane:
            generation = begin(lane)
            await anext(generation)
            lane.leave(0.1)
            with pytest.raises(RequestError, match="were replaced") as caught:
                async for _ in generation:
                    pass
            assert caught.value.status == 503
            await reach(lambda: lane.closed)

    asyncio.run(scenario())


def test_a_lane_can_be_called_back_while_it_still_works(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with started(version_spec(tmp_path, "A")) as lane:
            generation = begin(lane)
            await anext(generation)
            lane.leave(60)
            assert lane.leaving
            assert lane.stay()
            assert not lane.leaving
            generation.close()
            await asyncio.sleep(0.05)
            assert lane.state == "ready"
            lane.leave(60)
            await reach(lambda: lane.closed)
            assert not lane.stay()

    asyncio.run(scenario())


def test_an_engine_that_dies_while_it_leaves_is_not_replaced(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with started(version_spec(tmp_path, "A")) as lane:
            generation = begin(lane)
            await anext(generation)
            lane.leave(60)
            await asyncio.sleep(0)
            kill(lane)
            with pytest.raises(RequestError):
                async for _ in generation:
                    pass
            await reach(lambda: lane.closed)
            assert lane.starts == 1

    asyncio.run(scenario())
