"""The engine process's side of the protocol."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lmloop.serving.worker import GENERIC, MAX_FAILED_STEPS, Worker, read_messages

from .fake_engine import FakeEngine, make_sampling
from .harness import FAKE_ENGINE


class Inbox(queue.Queue[Any]):
    def generate(self, request_id: str, prompt: str, **sampling: Any) -> None:
        tokens = list(prompt.encode())
        fields = {"max_tokens": 5, "stop": [], **sampling}
        self.put({"op": "generate", "id": request_id, "tokens": tokens, "sampling": fields})


class Told:
    """What a worker has sent."""

    def __init__(self) -> None:
        self.messages: list[Mapping[str, Any]] = []
        self.arrived = threading.Condition()

    def __call__(self, message: Mapping[str, Any]) -> None:
        with self.arrived:
            self.messages.append(message)
            self.arrived.notify_all()

    def ops(self) -> list[str]:
        return [message["op"] for message in self.messages]

    def pieces(self, request_id: str) -> list[Mapping[str, Any]]:
        steps = [message["pieces"] for message in self.messages if message["op"] == "pieces"]
        return [piece for step in steps for piece in step if piece["id"] == request_id]

    def wait_for(self, condition: Any) -> None:
        with self.arrived:
            assert self.arrived.wait_for(condition, timeout=10)


@contextmanager
def working(engine: FakeEngine) -> Iterator[tuple[Inbox, Told]]:
    inbox, told = Inbox(), Told()
    worker = Worker(engine, make_sampling=make_sampling, send=told)
    thread = threading.Thread(target=worker.run, args=(inbox,))
    thread.start()
    yield inbox, told
    inbox.put(None)
    thread.join(10)
    assert not thread.is_alive()


def test_a_request_is_answered_piece_by_piece_to_its_last_token() -> None:
    with working(FakeEngine(max_running=2)) as (inbox, told):
        inbox.generate("a", "endless")
        told.wait_for(lambda: told.pieces("a") and told.pieces("a")[-1]["finish_reason"])
    pieces = told.pieces("a")
    assert [piece["num_tokens"] for piece in pieces] == [1, 2, 3, 4, 5]
    assert "".join(piece["text"] for piece in pieces) == "on on on on on "
    assert [piece["finish_reason"] for piece in pieces] == [None] * 4 + ["length"]
    assert told.messages[-1]["running"] == 0


def test_a_new_request_joins_the_batch_between_two_steps() -> None:
    with working(FakeEngine(max_running=2)) as (inbox, told):
        inbox.generate("a", "endless slow", max_tokens=100_000)
        told.wait_for(lambda: len(told.pieces("a")) >= 3)
        inbox.generate("b", "endless")
        told.wait_for(lambda: told.pieces("b"))
        inbox.put({"op": "cancel", "id": "a"})
        told.wait_for(lambda: told.pieces("b")[-1]["finish_reason"])
    together = [m for m in told.messages if m["op"] == "pieces" and len(m["pieces"]) == 2]
    assert together
    assert together[0]["running"] == 2


def test_a_cancelled_request_gets_nothing_more() -> None:
    engine = FakeEngine(max_running=2)
    with working(engine) as (inbox, told):
        inbox.generate("a", "endless slow", max_tokens=100_000)
        told.wait_for(lambda: told.pieces("a"))
        inbox.put({"op": "cancel", "id": "a"})
        inbox.generate("b", "endless")
        told.wait_for(lambda: told.pieces("b") and told.pieces("b")[-1]["finish_reason"])
        assert not engine.has_work()
    assert told.messages[-1]["running"] == 0


def test_a_request_that_cannot_be_added_fails_alone_and_keeps_its_reason_if_it_may_be_told() -> (
    None
):
    with working(FakeEngine(max_running=2)) as (inbox, told):
        inbox.generate("a", "endless")
        inbox.generate("b", "refuse this")
        inbox.generate("c", "a fault of ours")
        inbox.put({"op": "generate", "id": "d"})
        told.wait_for(lambda: told.pieces("a") and told.pieces("a")[-1]["finish_reason"])
    errors = {m["id"]: m for m in told.messages if m["op"] == "error"}
    assert {name: m["status"] for name, m in errors.items()} == {"b": 400, "c": 500, "d": 500}
    assert errors["b"]["message"] == "this prompt is refused"
    assert errors["c"]["message"] == errors["d"]["message"] == GENERIC


def test_a_failed_step_fails_what_is_under_way_and_nothing_else() -> None:
    with working(FakeEngine(max_running=2)) as (inbox, told):
        inbox.generate("a", "explode")
        told.wait_for(lambda: "error" in told.ops())
        inbox.generate("b", "endless")
        told.wait_for(lambda: told.pieces("b") and told.pieces("b")[-1]["finish_reason"])
    assert [m["id"] for m in told.messages if m["op"] == "error"] == ["a"]
    assert "secret" not in json.dumps(told.messages)


def test_an_engine_that_fails_step_after_step_ends_the_worker() -> None:
    inbox, told = Inbox(), Told()
    worker = Worker(FakeEngine(max_running=1), make_sampling=make_sampling, send=told)
    for number in range(MAX_FAILED_STEPS - 1):
        inbox.generate(str(number), "explode")
        worker._handle(inbox.get())
        worker._step()
    inbox.generate("last", "explode")
    with pytest.raises(ArithmeticError):
        worker.run(inbox)
    assert len(told.messages) == MAX_FAILED_STEPS


def test_an_idle_worker_beats_and_does_not_spin() -> None:
    class CountingEngine(FakeEngine):
        asked = 0

        def has_work(self) -> bool:
            self.asked += 1
            return super().has_work()

    engine = CountingEngine(max_running=1)
    started = time.monotonic()
    with working(engine) as (_, told):
        told.wait_for(lambda: told.ops().count("heartbeat") >= 2)
    assert time.monotonic() - started > 0.8
    assert engine.asked < 20


def test_the_probe_makes_real_tokens_in_any_context() -> None:
    for context_length in (2, 512):
        engine, told = FakeEngine(max_running=1), Told()
        worker = Worker(engine, make_sampling=make_sampling, send=told)
        worker.probe(context_length=context_length)
        assert not engine.has_work()
        assert told.messages == []


def test_the_end_of_the_lines_ends_the_inbox() -> None:
    inbox: queue.Queue[Any] = queue.Queue()
    read_messages([b'{"op":"cancel","id":"a"}\n'], inbox)
    assert [inbox.get(), inbox.get()] == [{"op": "cancel", "id": "a"}, None]


def run_worker(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lmloop.serving.worker", str(folder), "--max-running", "2"]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)


@pytest.mark.slow
def test_the_real_worker_says_ready_and_leaves_with_its_parent(checkpoint: Path) -> None:
    done = run_worker(checkpoint, "")
    ready = json.loads(done.stdout)
    assert (ready["op"], ready["context_length"], ready["vocab_size"]) == ("ready", 96, 300)
    assert done.returncode == 0


@pytest.mark.slow
def test_a_folder_that_cannot_be_served_is_told_in_one_line(tmp_path: Path) -> None:
    done = run_worker(tmp_path / "nothing", "")
    failed = json.loads(done.stdout)
    assert (failed["op"], failed["usage"], done.returncode) == ("failed", True, 2)
    assert "nothing" in failed["message"]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_worker_in_an_endless_step_does_not_outlive_its_parent() -> None:
    process = subprocess.Popen(
        [sys.executable, str(FAKE_ENGINE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stdin is not None
        assert process.stderr is not None
        message = {"op": "generate", "id": "1-0", "tokens": list(b"hang"), "sampling": {}}
        process.stdin.write(json.dumps(message).encode() + b"\n")
        process.stdin.flush()
        while b"this step will not end" not in process.stderr.readline():
            pass
        process.stdin.close()
        assert process.wait(20) == 1
