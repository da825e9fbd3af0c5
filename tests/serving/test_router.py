"""Admission, restart and drain."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lmloop.errors import RequestError, ServingError
from lmloop.serving.process import EngineSpec, Generation
from lmloop.serving.router import MAX_FAILED_STARTS, Router

from .harness import fake_spec
from .test_process import reach

ENDLESS = (list(b"endless slow"), {"max_tokens": 100_000})


@contextlib.asynccontextmanager
async def routing(spec: EngineSpec, *, ready: bool = True) -> AsyncIterator[Router]:
    router = Router(spec, first_delay_seconds=0.01)
    await router.start()
    try:
        if ready:
            await router.wait_ready()
        yield router
    finally:
        await router.close()


def refusal(router: Router, count: int = 1) -> tuple[int, str | None]:
    with pytest.raises(RequestError) as caught:
        router.admit(count)
    return caught.value.status, caught.value.code


async def consume(generation: Generation) -> None:
    async for _ in generation:
        pass


def test_nothing_is_admitted_before_an_engine_is_ready(tmp_path: Path) -> None:
    async def scenario() -> None:
        gate = tmp_path / "gate"
        async with routing(fake_spec(tmp_path, "--gate", str(gate)), ready=False) as router:
            assert router.status == "loading"
            assert refusal(router) == (503, "loading")
            gate.touch()
            await router.wait_ready()
            assert router.status == "ready"
            router.admit(1).close()

    asyncio.run(scenario())


def test_admission_is_bounded_and_places_come_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with routing(fake_spec(tmp_path, "--max-running", "1", capacity=3)) as router:
            first, second = router.admit(1), router.admit(2)
            assert refusal(router) == (503, "queue_full")
            assert refusal(router, 4) == (400, None)
            first.start([ENDLESS])
            second.start([ENDLESS, ENDLESS])
            await reach(lambda: router.running == 1)
            assert router.waiting == 2
            first.close()
            router.admit(1).close()
            second.close()
            await reach(lambda: router.running == 0)
            assert router.waiting == 0

    asyncio.run(scenario())


def test_a_dead_engine_is_replaced_by_a_new_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with routing(fake_spec(tmp_path)) as router:
            before = router.live
            generation = router.admit(1)
            assert before.process_id is not None
            os.kill(before.process_id, signal.SIGKILL)
            await reach(lambda: router.status == "loading")
            await router.wait_ready()
            assert router.live is not before
            assert router.starts == 2
            # What was admitted before belongs to the dead engine and cannot reach the new one.
            generation.start([ENDLESS])
            with pytest.raises(RequestError):
                await anext(generation)
            assert router.live.in_flight == 0

    asyncio.run(scenario())


def test_an_engine_that_never_gets_ready_is_given_up_after_some_starts(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with routing(fake_spec(tmp_path, "--fail", "crash"), ready=False) as router:
            with pytest.raises(ServingError, match="no room for the weights"):
                await router.wait_ready()
            assert router.starts == MAX_FAILED_STARTS
            assert router.status == "failed"
            assert refusal(router) == (503, "failed")
            with pytest.raises(ServingError):
                await router.watch()

    asyncio.run(scenario())


def test_a_folder_that_is_refused_is_not_tried_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with routing(fake_spec(tmp_path, "--fail", "refuse"), ready=False) as router:
            with pytest.raises(ServingError, match=r"weights\.bin changed on disk"):
                await router.wait_ready()
            assert router.starts == 1

    asyncio.run(scenario())


def test_a_worker_that_does_not_exist_is_a_serving_error(tmp_path: Path) -> None:
    spec = EngineSpec(
        command=(str(tmp_path / "nothing"),),
        open_texts=fake_spec(tmp_path).open_texts,
        capacity=1,
    )

    async def scenario() -> None:
        with pytest.raises(ServingError, match="cannot be started"):
            await Router(spec).start()

    asyncio.run(scenario())


def test_draining_waits_for_what_is_under_way_and_admits_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with routing(fake_spec(tmp_path)) as router:
            generation = router.admit(1)
            generation.start([(list(b"endless slow"), {"max_tokens": 10})])
            draining = asyncio.create_task(router.drain(10))
            await asyncio.sleep(0)
            assert refusal(router) == (503, "draining")
            await consume(generation)
            await asyncio.wait_for(draining, 5)

    asyncio.run(scenario())


def test_draining_ends_what_takes_too_long_with_an_error(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with routing(fake_spec(tmp_path)) as router:
            generation = router.admit(1)
            generation.start([ENDLESS])
            await anext(generation)
            started = time.monotonic()
            await router.drain(0.2)
            assert time.monotonic() - started < 5
            with pytest.raises(RequestError, match="shutting down"):
                await consume(generation)

    asyncio.run(scenario())


def test_closing_ends_the_process(tmp_path: Path) -> None:
    async def scenario() -> int:
        async with routing(fake_spec(tmp_path)) as router:
            assert router.live.process_id is not None
            return router.live.process_id

    process_id = asyncio.run(scenario())
    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)
