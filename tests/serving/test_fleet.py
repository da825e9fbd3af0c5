"""How the engines change when something else is aimed at, and what goes on meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import pytest

from lmloop.errors import RequestError, ServingError
from lmloop.serving.fleet import MAX_TRIAL_STARTS, NO_TRIAL, Aim
from lmloop.serving.process import EngineProcess, Generation
from lmloop.serving.router import Router

from .harness import fingerprint_of, version_spec
from .test_lane import is_running
from .test_process import reach


class Stage:
    """A router that starts with the weights A, and aims by version names."""

    def __init__(self, folder: Path, router: Router) -> None:
        self.folder, self.router = folder, router
        self.generation = 0
        self.arguments: dict[str, tuple[str, ...]] = {}

    def spec(self, version: str) -> Any:
        return version_spec(self.folder, version, *self.arguments.get(version, ()))

    async def aim(self, live: str, candidate: str | None = None, **fields: Any) -> None:
        self.generation += 1
        previous = fields.pop("previous", None)
        await self.router.apply(
            Aim(
                live=self.spec(live),
                candidate=None if candidate is None else self.spec(candidate),
                previous=None if previous is None else fingerprint_of(previous),
                generation=self.generation,
                **fields,
            )
        )

    def roles(self) -> dict[str, str]:
        """The version in each role, in capitals once it is ready."""
        names = {fingerprint_of(name): name for name in "ABCD"}
        lanes = self.router.fleet.roles
        return {
            role: names[lane.fingerprint] + ("" if lane.state == "ready" else f" {lane.state}")
            for role, lane in lanes.items()
        }

    async def reach(self, **roles: str) -> None:
        async with asyncio.timeout(10):
            while self.roles() != roles:
                await asyncio.sleep(0.005)

    async def words(self, session: str | None = None) -> set[str]:
        """Which version speaks in a new answer."""
        generation = self.router.admit(1, session)
        try:
            generation.start([(list(b"endless"), {"max_tokens": 3})])
            return {piece.text async for piece in generation}
        finally:
            generation.close()

    def begin(self) -> Generation:
        generation = self.router.admit(1)
        generation.start([(list(b"endless slow"), {"max_tokens": 100_000})])
        return generation


@contextlib.asynccontextmanager
async def staged(
    folder: Path, *, swap: Literal["beside", "pause"] = "beside", **options: Any
) -> AsyncIterator[Stage]:
    spec = version_spec(folder, "A")
    router = Router(spec, name="m", swap=swap, first_delay_seconds=0.01, **options)
    await router.start()
    try:
        await router.wait_ready()
        yield Stage(folder, router)
    finally:
        await router.close()


def kill(engine: EngineProcess) -> None:
    assert engine.process_id is not None
    os.kill(engine.process_id, signal.SIGKILL)


def test_a_candidate_starts_beside_and_is_promoted_and_called_back_without_a_start(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with staged(tmp_path) as stage:
            router = stage.router
            await stage.aim("A", "B", phase="shadow")
            assert stage.roles() == {"live": "A", "candidate": "B starting"}
            await stage.reach(live="A", candidate="B")
            assert await stage.words() == {"A "}
            await stage.aim("B", previous="A")
            assert stage.roles() == {"live": "B", "previous": "A"}
            assert await stage.words() == {"B "}
            await stage.aim("A", previous="B")
            assert stage.roles() == {"live": "A", "previous": "B"}
            assert await stage.words() == {"A "}
            assert router.starts == 2
            assert router.describe()["generation"] == stage.generation

    asyncio.run(scenario())


def test_what_is_under_way_ends_with_the_weights_that_began_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with staged(tmp_path, keep_previous=False) as stage:
            old = stage.begin()
            await anext(old)
            process = old.engine.process_id
            await stage.aim("B", previous="A")
            await stage.reach(live="B")
            assert await stage.words() == {"B "}
            assert {(await anext(old)).text for _ in range(30)} == {"A "}
            assert is_running(process)
            old.close()
            await reach(lambda: not is_running(process))
            assert stage.router.starts == 2

    asyncio.run(scenario())


def test_replaced_weights_that_take_too_long_fail_what_they_began(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with staged(tmp_path, keep_previous=False, drain_seconds=0.2) as stage:
            old = stage.begin()
            await anext(old)
            await stage.aim("B")
            with pytest.raises(RequestError, match="were replaced"):
                async for _ in old:
                    pass
            await stage.reach(live="B")

    asyncio.run(scenario())


def test_weights_that_still_drain_are_live_again_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with staged(tmp_path, keep_previous=False) as stage:
            old = stage.begin()
            await anext(old)
            await stage.aim("B", previous="A")
            await stage.reach(live="B")
            await stage.aim("A", previous="B")
            assert stage.roles() == {"live": "A"}
            assert stage.router.starts == 2
            old.close()
            await asyncio.sleep(0.05)
            assert await stage.words() == {"A "}

    asyncio.run(scenario())


def test_a_change_of_the_share_alone_starts_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with staged(tmp_path) as stage:
            await stage.aim("A", "B", phase="canary", share=5)
            await stage.reach(live="A", candidate="B")
            engines = dict(stage.router.engines())
            await stage.aim("A", "B", phase="canary", share=20)
            assert dict(stage.router.engines()) == engines
            assert stage.router.describe()["share"] == 20

    asyncio.run(scenario())


def test_a_dropped_candidate_ends_and_the_next_one_starts(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with staged(tmp_path) as stage:
            await stage.aim("A", "B", phase="canary", share=5)
            await stage.reach(live="A", candidate="B")
            process = stage.router.engines()["candidate"].process_id
            await stage.aim("A", "C", phase="shadow")
            await stage.reach(live="A", candidate="C")
            await reach(lambda: not is_running(process))
            await stage.aim("A")
            assert stage.roles() == {"live": "A"}
            await reach(lambda: len(stage.router.fleet.lanes) == 1)

    asyncio.run(scenario())


def test_a_newer_aim_supersedes_one_that_is_under_way(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with staged(tmp_path, keep_previous=False) as stage:
            stage.arguments["B"] = ("--gate", str(tmp_path / "never"))
            await stage.aim("B", previous="A")
            assert await stage.words() == {"A "}
            assert stage.router.describe()["generation"] == 0
            await stage.aim("C", previous="B")
            await stage.reach(live="C")
            assert stage.router.describe()["generation"] == 2
            await reach(lambda: len(stage.router.fleet.lanes) == 1)

    asyncio.run(scenario())


def test_a_candidate_that_cannot_start_leaves_the_live_weights_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with staged(tmp_path) as stage:
            stage.arguments["B"] = ("--fail", "refuse")
            await stage.aim("A", "B", phase="canary", share=20)
            await reach(lambda: stage.router.describe()["note"] is not None)
            found = stage.router.describe()
            assert found["candidate"] == {"weights": fingerprint_of("B")[:12], "state": "failed"}
            assert found["note"] == "weights.bin changed on disk"
            assert found["generation"] == 1
            for number in range(20):
                assert await stage.words(f"session {number}") == {"A "}
            await stage.aim("A", "B", phase="canary", share=50)
            assert stage.router.starts == 2
            await stage.aim("A")
            stage.arguments.clear()
            await stage.aim("A", "B", phase="canary", share=50)
            await stage.reach(live="A", candidate="B")

    asyncio.run(scenario())


def test_live_weights_that_cannot_start_do_not_replace_those_that_serve(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with staged(tmp_path) as stage:
            stage.arguments["B"] = ("--fail", "refuse")
            await stage.aim("B", previous="A")
            await reach(lambda: stage.router.describe()["note"] is not None)
            found = stage.router.describe()
            assert "weights.bin changed on disk" in found["note"]
            assert found["generation"] == 0
            assert await stage.words() == {"A "}
            kill(stage.router.live)
            await stage.reach(live="A starting")
            await stage.reach(live="A")
            await stage.aim("A", previous="B")
            assert stage.router.describe()["note"] is None
            assert stage.router.describe()["generation"] == 2

    asyncio.run(scenario())


def test_a_candidate_that_keeps_dying_is_given_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with staged(tmp_path) as stage:
            await stage.aim("A", "B", phase="canary", share=99)
            for starts in range(MAX_TRIAL_STARTS):
                await reach(lambda n=starts: stage.router.starts == n + 2)  # type: ignore[misc]
                await stage.reach(live="A", candidate="B")
                kill(stage.router.engines()["candidate"])
                await reach(lambda: stage.roles() != {"live": "A", "candidate": "B"})
            await stage.reach(live="A")
            note = stage.router.describe()["note"]
            assert note.startswith(f"its engine died {MAX_TRIAL_STARTS} times")
            assert await stage.words("any") == {"A "}

    asyncio.run(scenario())


def test_a_killed_standby_is_replaced_so_that_a_rollback_stays_quick(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with staged(tmp_path) as stage:
            await stage.aim("B", previous="A")
            await stage.reach(live="B", previous="A")
            kill(stage.router.engines()["previous"])
            await stage.reach(live="B", previous="A starting")
            await stage.reach(live="B", previous="A")

    asyncio.run(scenario())


def test_the_standby_gives_its_place_to_a_candidate(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with staged(tmp_path) as stage:
            await stage.aim("B", previous="A")
            await stage.reach(live="B", previous="A")
            await stage.aim("B", "C", phase="shadow", previous="A")
            await stage.reach(live="B", candidate="C")
            await reach(lambda: len(stage.router.fleet.lanes) == 2)
            await stage.aim("A", previous="B")  # a rollback now needs a start
            assert await stage.words() == {"B "}
            await stage.reach(live="A", previous="B")

    asyncio.run(scenario())


def test_a_dead_live_engine_does_not_take_the_candidate_along(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with staged(tmp_path) as stage:
            await stage.aim("A", "B", phase="canary", share=20)
            await stage.reach(live="A", candidate="B")
            before = stage.router.engines()["candidate"]
            kill(stage.router.live)
            await stage.reach(live="A starting", candidate="B")
            await stage.reach(live="A", candidate="B")
            assert stage.router.engines()["candidate"] is before

    asyncio.run(scenario())


def test_a_path_that_changed_is_used_at_the_next_start_only(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with staged(tmp_path) as stage:
            stage.arguments["A"] = ("--max-running", "2")
            await stage.aim("A")
            assert stage.router.starts == 1
            kill(stage.router.live)
            await stage.reach(live="A starting")
            await stage.reach(live="A")
            assert stage.router.live.spec.command[-2:] == ("--max-running", "2")

    asyncio.run(scenario())


def test_when_nothing_can_be_started_any_more_the_router_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with staged(tmp_path) as stage:
            stage.arguments = dict.fromkeys("AB", ("--fail", "refuse"))
            await stage.aim("A")
            await stage.aim("B")
            await reach(lambda: stage.router.describe()["note"] is not None)
            stage.router.fleet.live.spec = stage.spec("A")
            kill(stage.router.live)
            with pytest.raises(ServingError, match=r"weights\.bin changed on disk"):
                await asyncio.wait_for(stage.router.watch(), 10)
            assert stage.router.status == "failed"

    asyncio.run(scenario())


def test_a_pause_lets_requests_wait_and_never_runs_two_engines(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with staged(tmp_path, swap="pause") as stage:
            router, old = stage.router, stage.begin()
            await anext(old)
            first = router.live.process_id
            await stage.aim("B", previous="A")
            with pytest.raises(RequestError, match="being started"):
                router.admit(1)
            waiting = asyncio.create_task(router.wait_open())
            await asyncio.sleep(0.05)
            assert (router.status, router.waiting, waiting.done()) == ("loading", 1, False)
            assert is_running(first)
            old.close()
            await asyncio.wait_for(waiting, 10)
            assert not is_running(first)
            assert await stage.words() == {"B "}
            assert stage.roles() == {"live": "B"}
            assert router.describe()["generation"] == 1

    asyncio.run(scenario())


def test_a_pause_goes_back_to_the_old_weights_where_the_new_cannot_start(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with staged(tmp_path, swap="pause") as stage:
            stage.arguments["B"] = ("--fail", "crash")
            await stage.aim("B", previous="A")
            await asyncio.wait_for(stage.router.wait_open(), 15)
            assert await stage.words() == {"A "}
            found = stage.router.describe()
            assert "no room for the weights" in found["note"]
            assert found["generation"] == 0
            await stage.aim("C", previous="B")
            await stage.reach(live="C")
            assert stage.router.describe()["note"] is None

    asyncio.run(scenario())


def test_a_pause_that_is_superseded_ends_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with staged(tmp_path, swap="pause") as stage:
            old = stage.begin()
            await anext(old)
            await stage.aim("B", previous="A")
            await stage.aim("A", previous="B")
            await asyncio.wait_for(stage.router.wait_open(), 1)
            assert stage.router.starts == 1
            assert {(await anext(old)).text for _ in range(5)} == {"A "}
            old.close()

    asyncio.run(scenario())


def test_a_server_that_pauses_tries_no_candidate(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with staged(tmp_path, swap="pause") as stage:
            await stage.aim("A", "B", phase="canary", share=50)
            found = stage.router.describe()
            assert found["candidate"] == {"weights": fingerprint_of("B")[:12], "state": "failed"}
            assert found["note"] == NO_TRIAL
            assert stage.router.starts == 1

    asyncio.run(scenario())


def test_a_wait_for_a_pause_is_bounded_in_time_and_number(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with staged(tmp_path, swap="pause", pause_seconds=0.2) as stage:
            stage.arguments["B"] = ("--gate", str(tmp_path / "gate"))
            await stage.aim("B")
            waits = [asyncio.create_task(stage.router.wait_open()) for _ in range(20)]
            done, _ = await asyncio.wait(waits, timeout=5)
            codes = [task.exception().code for task in done]  # type: ignore[union-attr]
            assert sorted(codes) == ["loading"] * 12 + ["queue_full"] * 8
            (tmp_path / "gate").touch()
            await stage.reach(live="B")
            await stage.router.wait_open()

    asyncio.run(scenario())


def test_leaving_ends_a_pause(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with staged(tmp_path, swap="pause") as stage:
            old = stage.begin()
            await anext(old)
            await stage.aim("B")
            waiting = asyncio.create_task(stage.router.wait_open())
            await asyncio.sleep(0)
            await stage.router.drain(0)
            await asyncio.wait_for(waiting, 1)
            with pytest.raises(RequestError, match="shutting down"):
                stage.router.admit(1)

    asyncio.run(scenario())


def test_a_refused_candidate_is_not_started_and_takes_the_older_one_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with staged(tmp_path) as stage:
            await stage.aim("A", "B", phase="shadow")
            await stage.reach(live="A", candidate="B")
            await stage.aim("A", "C", phase="shadow", refusal="its folder is damaged")
            assert stage.roles() == {"live": "A"}
            found = stage.router.describe()
            assert found["candidate"] == {"weights": fingerprint_of("C")[:12], "state": "failed"}
            assert found["note"] == "its folder is damaged"
            assert stage.router.starts == 2

    asyncio.run(scenario())
