"""Copies of live requests that a candidate answers and nobody sees."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers

from lmloop.serving import shadow as shadow_module
from lmloop.serving.openai import read_chat
from lmloop.serving.process import EngineSpec
from lmloop.serving.shadow import Shadows

from .harness import fingerprint_of, read_events, version_spec
from .inside import Inside, inside
from .test_process import reach


def spec_b(folder: Path, *arguments: str, capacity: int = 12) -> EngineSpec:
    return version_spec(folder, "B", *arguments, capacity=capacity)


def shadows_of(running: Inside) -> set[asyncio.Task[None]]:
    return running.service.shadows._tasks


def test_a_copy_is_answered_unseen_and_leaves_a_row_beside_the_answers(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with inside(tmp_path) as running:
            await running.aim(spec_b(tmp_path), phase="shadow")
            consent = {"X-Lmloop-Consent": "full", "X-Lmloop-User": "ann"}
            reply = await running.chat("hello you", seed=3, headers=consent)
            answer = reply.json()
            live, copy = sorted(await running.wait_rows(2), key=lambda row: row["arm"])
            assert (live["arm"], live["shadow_of"], live["id"]) == ("live", None, answer["id"])
            assert (copy["arm"], copy["shadow_of"]) == ("shadow", answer["id"])
            assert copy["id"] != live["id"]
            assert running.service.identity.verify(copy["id"])
            assert (live["weights"], copy["weights"]) == (
                *(fingerprint_of("A")[:12], fingerprint_of("B")[:12]),
            )
            said = answer["choices"][0]["message"]["content"]
            assert set(said.split()) == {"A"}
            assert copy["answer"] == said.replace("A", "B")
            assert json.loads(copy["prompt"]) == [{"role": "user", "content": "hello you"}]
            for name in ("user_hash", "session_hash", "content", "consent", "completion_tokens"):
                assert copy[name] == live[name]
            assert live["user_hash"] is not None

    asyncio.run(scenario())


def test_streams_are_copied_too_and_counted_apart(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with inside(tmp_path) as running:
            await running.aim(spec_b(tmp_path), phase="shadow")
            reply = await running.chat("hello", seed=3, stream=True)
            assert read_events(reply.text)[-1] == "[DONE]"
            assert "B" not in reply.text.replace(fingerprint_of("A")[:12], "")
            await running.wait_rows(2)
            page = (await running.client.get("/metrics")).text
            for arm in ("live", "shadow"):
                labels = f'{{arm="{arm}",model="tiny/chat",reason="stop"}}'
                assert f"llm_requests_finished_total{labels} 1.0" in page
            # The tokens that nobody gets are not among those that were given.
            tokens = running.rows()[0]["completion_tokens"]
            assert f'llm_generation_tokens_total{{model="tiny/chat"}} {tokens}.0' in page

    asyncio.run(scenario())


@pytest.mark.parametrize(("phase", "share"), [("canary", 0), ("none", 0)])
def test_outside_its_phase_nothing_is_copied(tmp_path: Path, phase: str, share: int) -> None:
    async def scenario() -> None:
        async with inside(tmp_path) as running:
            await running.aim(spec_b(tmp_path), phase=phase, share=share)
            assert (await running.chat()).status_code == 200
            assert shadows_of(running) == set()
            assert [row["arm"] for row in await running.wait_rows(1)] == ["live"]

    asyncio.run(scenario())


@pytest.mark.parametrize("trouble", ["refuse", "explode", "die"])
def test_whatever_happens_to_a_copy_does_not_reach_the_answer(
    tmp_path: Path, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with inside(tmp_path) as running:
            await running.aim(spec_b(tmp_path), phase="shadow")
            candidate = running.service.router.engines()["candidate"]
            real = candidate.send

            def send(message: Mapping[str, Any]) -> None:
                if message["op"] == "generate":
                    message = {**message, "tokens": list(trouble.encode())}
                real(message)

            monkeypatch.setattr(candidate, "send", send)
            assert (await running.chat(seed=1)).status_code == 200
            rows = {row["arm"]: row for row in await running.wait_rows(2)}
            assert rows["live"]["finish_reason"] == "stop"
            assert rows["shadow"]["finish_reason"] == "error"
            assert candidate.in_flight == 0
            await reach(lambda: not shadows_of(running))
            assert (await running.chat(seed=1)).status_code == 200

    asyncio.run(scenario())


def test_a_candidate_that_cannot_even_begin_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with inside(tmp_path) as running:
            await running.aim(spec_b(tmp_path), phase="shadow")
            candidate = running.service.router.engines()["candidate"]
            monkeypatch.setattr(candidate, "context_length", 3)
            assert (await running.chat()).status_code == 200
            rows = {row["arm"]: row for row in await running.wait_rows(2)}
            assert (rows["shadow"]["finish_reason"], rows["shadow"]["prompt_tokens"]) == (
                "error",
                0,
            )
            assert rows["live"]["finish_reason"] == "stop"
            assert candidate.in_flight == 0

    asyncio.run(scenario())


def test_a_fault_of_ours_in_a_copy_is_logged_and_gives_its_place_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_exchange: object) -> None:
        raise ZeroDivisionError

    async def scenario() -> None:
        async with inside(tmp_path) as running:
            await running.aim(spec_b(tmp_path), phase="shadow")
            monkeypatch.setattr(shadow_module.Exchange, "next_piece", fail)
            await asyncio.wait(await mirrored(running))
            assert running.service.router.engines()["candidate"].in_flight == 0

    asyncio.run(scenario())
    assert "ZeroDivisionError" in caplog.text


async def mirrored(running: Inside) -> set[asyncio.Task[None]]:
    """The copies under way, one more than before."""
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "endless slow"}]})
    call = read_chat(running.service, Headers({}), body.encode())
    running.service.shadows.mirror(running.service, call, live="chatcmpl-live")
    return set(shadows_of(running))


def test_a_slow_copy_holds_up_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with inside(tmp_path) as running:
            await running.aim(spec_b(tmp_path), phase="shadow")
            (copy,) = await mirrored(running)
            started = time.monotonic()
            for seed in range(5):
                assert (await running.chat(seed=seed)).status_code == 200
            assert time.monotonic() - started < 5
            assert not copy.done()

    asyncio.run(scenario())


def test_closing_cancels_the_copies_and_takes_no_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with inside(tmp_path) as running:
            await running.aim(spec_b(tmp_path), phase="shadow")
            candidate = running.service.router.engines()["candidate"]
            for _ in range(3):
                await mirrored(running)
            await reach(lambda: candidate.running == 3)
            copies = await mirrored(running)  # the last of them has not even begun
            await running.service.shadows.close()
            assert len(copies) == 4
            assert all(task.done() for task in copies)
            assert candidate.in_flight == 0
            assert await mirrored(running) == set()
            rows = await running.wait_rows(3)
            assert {row["finish_reason"] for row in rows} == {"cancelled"}

    asyncio.run(scenario())


def test_copies_are_bounded_by_the_candidates_places_and_by_their_own_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with inside(tmp_path) as running:
            await running.aim(spec_b(tmp_path, capacity=2), phase="shadow")
            for expected in (1, 2, 2):
                assert len(await mirrored(running)) == expected
            await running.service.shadows.close()
            candidate = running.service.router.engines()["candidate"]
            assert candidate.in_flight == 0
            monkeypatch.setattr(type(running.service), "shadows", Shadows(max_running=1))
            for expected in (1, 1):
                assert len(await mirrored(running)) == expected
            await running.service.shadows.close()

    asyncio.run(scenario())


def test_a_request_that_is_refused_is_not_copied(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with inside(tmp_path) as running:
            await running.aim(spec_b(tmp_path), phase="shadow")
            assert (await running.chat("a" * 1000)).status_code == 400
            assert shadows_of(running) == set()

    asyncio.run(scenario())
