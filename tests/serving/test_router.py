"""Admission: places, shares of a candidate, and what happens to a request whose engine is lost."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lmloop.errors import RequestError, ServingError
from lmloop.serving.fleet import Aim
from lmloop.serving.lane import MAX_FAILED_STARTS
from lmloop.serving.process import EngineProcess, EngineSpec, Generation
from lmloop.serving.prompts import Texts
from lmloop.serving.router import Router, falls_under

from .harness import ByteTokenizer, PlainTemplate, fake_spec, fingerprint_of, version_spec
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


SESSIONS = [f"session {number}" for number in range(2000)]


def chosen(share: int, *, candidate: str = "B") -> set[str]:
    """The sessions that go to the candidate at this share."""
    return {
        session
        for session in SESSIONS
        if falls_under(share, name="m", fingerprint=fingerprint_of(candidate), session=session)
    }


@pytest.mark.parametrize("share", [1, 5, 20, 50, 99])
def test_the_candidate_gets_its_share_of_2000_sessions(share: int) -> None:
    expected = len(SESSIONS) * share / 100
    deviation = (expected * (1 - share / 100)) ** 0.5
    assert abs(len(chosen(share)) - expected) < 4 * deviation


def test_none_and_all_are_exact() -> None:
    assert (len(chosen(0)), len(chosen(100))) == (0, len(SESSIONS))


def test_a_growing_share_moves_no_session_back() -> None:
    shares = [chosen(share) for share in (0, 1, 5, 20, 21, 80, 100)]
    assert all(small < large for small, large in zip(shares, shares[1:], strict=False))


def test_each_candidate_gets_other_sessions() -> None:
    both = len(chosen(20) & chosen(20, candidate="C"))
    assert 30 < both < 130  # by chance: 2000 * 0.2 * 0.2 = 80


def test_the_place_of_a_session_stays_what_it_is() -> None:
    # By hand: int(sha256(b"m\0f\0s").hexdigest(), 16) % 10_000 == 8490
    assert not falls_under(84, name="m", fingerprint="f", session="s")
    assert falls_under(85, name="m", fingerprint="f", session="s")
    assert isinstance(falls_under(5, name="m", fingerprint="f", session="\ud800"), bool)


@contextlib.asynccontextmanager
async def trying(
    folder: Path, *, phase: str = "canary", share: int = 50, **changes: Any
) -> AsyncIterator[Router]:
    """A router whose live weights are A and whose candidate is B, both ready."""
    router = Router(version_spec(folder, "A"), name="m", first_delay_seconds=0.01)
    await router.start()
    try:
        await router.wait_ready()
        candidate = dataclasses.replace(version_spec(folder, "B"), **changes)
        live = version_spec(folder, "A")
        await router.apply(Aim(live=live, candidate=candidate, phase=phase, share=share))
        await reach(lambda: router.engines()["candidate"].state == "ready")
        yield router
    finally:
        await router.close()


def kill(engine: EngineProcess) -> None:
    assert engine.process_id is not None
    os.kill(engine.process_id, signal.SIGKILL)


def arm_of(router: Router, session: str | None) -> str:
    generation = router.admit(1, session)
    generation.close()
    return f"{generation.arm} {generation.engine.weights}"


LIVE, CANARY = (
    f"{arm} {fingerprint_of(name)[:12]}" for arm, name in (("live", "A"), ("canary", "B"))
)


def test_sessions_go_where_their_hash_says_and_stay_there(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with trying(tmp_path, share=20) as router:
            mine = chosen(20)
            expected = {name: CANARY if name in mine else LIVE for name in SESSIONS}
            for _ in range(2):
                assert {name: arm_of(router, name) for name in SESSIONS} == expected
            assert arm_of(router, None) == LIVE

    asyncio.run(scenario())


def test_a_full_candidate_fails_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with trying(tmp_path, share=100, capacity=2) as router:
            first = router.admit(2, "one")
            assert first.arm == "canary"
            assert arm_of(router, "one") == LIVE
            first.close()
            assert arm_of(router, "one") == CANARY

    asyncio.run(scenario())


def test_a_dead_candidate_fails_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with trying(tmp_path, share=100) as router:
            kill(router.engines()["candidate"])
            await reach(lambda: arm_of(router, "one") == LIVE)
            await reach(lambda: arm_of(router, "one") == CANARY)

    asyncio.run(scenario())


def test_a_dead_live_engine_leaves_the_candidates_sessions_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with trying(tmp_path) as router:
            (mine, *_), (other, *_) = chosen(50), set(SESSIONS) - chosen(50)
            kill(router.live)
            await reach(lambda: router.status == "loading")
            assert arm_of(router, mine) == CANARY
            with pytest.raises(RequestError, match="being started"):
                router.admit(1, other)

    asyncio.run(scenario())


def test_a_shadow_gets_copies_and_no_session(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with trying(tmp_path, phase="shadow", share=100, capacity=2) as router:
            assert arm_of(router, "one") == LIVE
            copy = router.mirror(2)
            assert copy is not None
            assert (copy.arm, copy.engine) == ("shadow", router.engines()["candidate"])
            assert router.mirror(1) is None
            copy.close()
            kill(copy.engine)
            await reach(lambda: router.mirror(1) is None)
        assert router.mirror(1) is None

    asyncio.run(scenario())


def test_a_canary_gets_no_copies(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with trying(tmp_path) as router:
            assert router.mirror(1) is None

    asyncio.run(scenario())


@pytest.mark.parametrize("begun", [False, True])
def test_a_request_whose_canary_is_lost_before_its_first_piece_is_answered_by_live(
    tmp_path: Path, begun: bool
) -> None:
    async def scenario() -> None:
        async with trying(tmp_path, share=100) as router:
            generation = router.admit(2, "one")
            assert generation.arm == "canary"
            lost = generation.engine
            prompt = (list(b"hang" if begun else b"endless"), {"max_tokens": 3})
            if begun:
                generation.start([prompt, prompt])
            else:
                kill(lost)
                await reach(lambda: generation.arm == "live")
                generation.start([prompt, prompt])
                texts = [piece.text async for piece in generation]
                assert texts == ["A "] * 6
                return
            kill(lost)
            await reach(lambda: generation.arm == "live")
            assert (lost.in_flight, router.live.in_flight) == (0, 2)
            generation.close()
            assert router.live.in_flight == 0

    asyncio.run(scenario())


def test_a_request_that_has_seen_a_piece_of_a_lost_canary_fails(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with trying(tmp_path, share=100) as router:
            generation = router.admit(1, "one")
            generation.start([ENDLESS])
            assert (await anext(generation)).text == "B "
            kill(generation.engine)
            with pytest.raises(RequestError) as caught:
                await asyncio.wait_for(consume(generation), 10)
            assert caught.value.code == "engine_lost"
            assert generation.arm == "canary"
            assert router.live.in_flight == 0

    asyncio.run(scenario())


def test_a_lost_request_is_not_moved_to_weights_that_read_tokens_otherwise(tmp_path: Path) -> None:
    def open_texts() -> Texts:
        return Texts(ByteTokenizer(), PlainTemplate(), fingerprint="another tokenizer")

    async def scenario() -> None:
        async with trying(tmp_path, share=100, open_texts=open_texts) as router:
            generation = router.admit(1, "one")
            kill(generation.engine)
            with pytest.raises(RequestError) as caught:
                await asyncio.wait_for(anext(generation), 10)
            assert caught.value.code == "engine_lost"

    asyncio.run(scenario())


def test_the_router_describes_what_it_serves(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with trying(tmp_path, share=5) as router:
            assert router.describe() == {
                "generation": 0,
                "phase": "canary",
                "share": 5,
                "note": None,
                "live": {"weights": fingerprint_of("A")[:12], "state": "ready"},
                "candidate": {"weights": fingerprint_of("B")[:12], "state": "ready"},
                "previous": None,
            }
            assert sorted(router.engines()) == ["candidate", "live"]

    asyncio.run(scenario())
