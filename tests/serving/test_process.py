"""One engine process, from its start to its end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from lmloop.errors import RequestError, TokenizerError
from lmloop.serving.process import EngineProcess, EngineSpec, Generation
from lmloop.serving.prompts import Texts

from .harness import fake_spec, open_fake_texts


@contextlib.asynccontextmanager
async def started(spec: EngineSpec) -> AsyncIterator[EngineProcess]:
    """An engine that is ready, followed in the background."""
    engine = EngineProcess(spec)
    await engine.spawn()
    following = asyncio.create_task(engine.run())
    try:
        await reach(lambda: engine.state == "ready" or following.done())
        yield engine
    finally:
        following.cancel()
        await asyncio.wait({following})


async def reach(condition: Callable[[], Any], *, seconds: float = 15.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def ask(engine: EngineProcess, prompt: str, *, count: int = 1, **sampling: Any) -> Generation:
    generation = Generation(engine, count=count)
    generation.start([(list(prompt.encode()), {"max_tokens": 5, **sampling})] * count)
    return generation


async def end_of(engine: EngineProcess) -> None:
    await reach(lambda: engine.state == "ended")
    # The reason is known once the process has been waited for.
    await reach(lambda: engine.failure != "it ended")


def test_a_ready_engine_says_what_it_serves(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with started(fake_spec(tmp_path)) as engine:
            assert engine.weights == "0123456789ab"
            assert (engine.context_length, engine.vocab_size) == (400, 256)
            assert engine.texts.encode_document("a") == [97]

    asyncio.run(scenario())


def test_all_sequences_of_a_generation_come_to_their_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with started(fake_spec(tmp_path)) as engine:
            generation = ask(engine, "endless", count=3)
            assert engine.in_flight == 3
            pieces = [piece async for piece in generation]
            assert engine.in_flight == 0
            assert engine.idle.is_set()
            for index in range(3):
                mine = [piece for piece in pieces if piece.index == index]
                assert [piece.num_tokens for piece in mine] == [1, 2, 3, 4, 5]
                assert [piece.finish_reason for piece in mine] == [None] * 4 + ["length"]

    asyncio.run(scenario())


def test_closing_a_generation_frees_its_places_and_stops_the_engine(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with started(fake_spec(tmp_path)) as engine:
            generation = ask(engine, "endless slow", count=2, max_tokens=100_000)
            await anext(generation)
            generation.close()
            generation.close()
            assert engine.in_flight == 0
            await reach(lambda: engine.running == 0)

    asyncio.run(scenario())


def test_a_killed_engine_is_noticed_at_once_and_fails_what_is_under_way(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with started(fake_spec(tmp_path)) as engine:
            generation = ask(engine, "endless slow", max_tokens=100_000)
            await anext(generation)
            assert engine.process_id is not None
            killed = time.monotonic()
            os.kill(engine.process_id, signal.SIGKILL)
            with pytest.raises(RequestError) as caught:
                async for _ in generation:
                    pass
            assert time.monotonic() - killed < 1
            assert (caught.value.status, caught.value.code) == (503, "engine_lost")
            assert engine.in_flight == 0
            await end_of(engine)
            assert engine.failure.startswith("it ended with exit code -9")

    asyncio.run(scenario())


def test_an_engine_that_ends_by_itself_leaves_its_last_words(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with started(fake_spec(tmp_path)) as engine:
            generation = ask(engine, "die", max_tokens=9)
            with pytest.raises(RequestError):
                async for _ in generation:
                    pass
            await end_of(engine)
            assert engine.failure == "it ended with exit code 3: last words of the engine"
            assert engine.was_ready
            assert not engine.permanent

    asyncio.run(scenario())


def test_an_engine_without_a_sign_of_life_is_killed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with started(fake_spec(tmp_path, silence_seconds=1.2)) as engine:
            # Heartbeats keep an idle engine alive past the limit.
            await asyncio.sleep(1.5)
            assert engine.state == "ready"
            generation = ask(engine, "hang")
            with pytest.raises(RequestError):
                await anext(generation)
            assert "no sign of life" in engine.failure

    asyncio.run(scenario())


def test_an_engine_that_does_not_get_ready_in_time_is_killed(tmp_path: Path) -> None:
    async def scenario() -> None:
        spec = fake_spec(tmp_path, "--gate", str(tmp_path / "never"), start_seconds=0.5)
        async with started(spec) as engine:
            assert engine.state == "ended"
            assert "no sign of life" in engine.failure

    asyncio.run(scenario())


@pytest.mark.parametrize("line", ["nonsense", '{"op": "pieces"}', '{"op": "ready"}', "[]"])
def test_a_process_that_breaks_the_protocol_is_ended(tmp_path: Path, line: str) -> None:
    async def scenario() -> None:
        command = (sys.executable, "-c", f"print({line!r}, flush=True); input()")
        spec = dataclasses.replace(fake_spec(tmp_path), command=command)
        async with started(spec) as engine:
            assert engine.state == "ended"
            assert "broke the protocol" in engine.failure

    asyncio.run(scenario())


def test_weights_whose_tokenizer_cannot_be_opened_are_given_up_for_good(tmp_path: Path) -> None:
    def open_texts() -> Texts:
        raise TokenizerError("tokenizer.json cannot be read")

    async def scenario() -> None:
        spec = dataclasses.replace(fake_spec(tmp_path), open_texts=open_texts)
        async with started(spec) as engine:
            assert (engine.failure, engine.permanent) == ("tokenizer.json cannot be read", True)

    asyncio.run(scenario())


def test_a_worker_that_refuses_its_folder_says_why(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with started(fake_spec(tmp_path, "--fail", "refuse")) as engine:
            assert (engine.failure, engine.permanent) == ("weights.bin changed on disk", True)
            assert not engine.was_ready

    asyncio.run(scenario())


def test_an_error_of_one_request_leaves_the_others_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with started(fake_spec(tmp_path)) as engine:
            good, refused, faulty = (ask(engine, each) for each in ("endless", "refuse", "fault"))
            with pytest.raises(RequestError, match="this prompt is refused") as caught:
                await anext(refused)
            assert (caught.value.status, caught.value.code) == (400, None)
            assert caught.value.param == "prompt"
            with pytest.raises(RequestError) as caught:
                await anext(faulty)
            assert (caught.value.status, caught.value.code) == (500, "engine_error")
            assert "secret" not in str(caught.value)
            assert [piece.num_tokens async for piece in good] == [1, 2, 3, 4, 5]
            assert engine.in_flight == 0

    asyncio.run(scenario())


def test_texts_are_only_there_when_the_engine_is(tmp_path: Path) -> None:
    engine = EngineProcess(fake_spec(tmp_path))
    with pytest.raises(RuntimeError):
        _ = engine.texts
    assert engine.process_id is None
    assert open_fake_texts().fingerprint == "f" * 64


def test_what_the_engine_measured_comes_with_the_last_piece(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with started(fake_spec(tmp_path)) as engine:
            generation = Generation(engine, count=1)
            first = {"text": "a", "num_tokens": 1, "finish_reason": None}
            last = {"text": "", "num_tokens": 1, "finish_reason": "stop"}
            generation.take(0, first)
            generation.take(0, {**last, "signals": {"entropy": 0.5}})
            signals = [piece.signals async for piece in generation]
            assert signals == [None, {"entropy": 0.5}]

    asyncio.run(scenario())


def test_a_signal_to_the_server_s_group_does_not_reach_the_engine(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with started(fake_spec(tmp_path)) as engine:
            assert engine.process_id is not None
            assert os.getpgid(engine.process_id) == engine.process_id
            assert os.getsid(engine.process_id) == os.getsid(0)

    asyncio.run(scenario())
