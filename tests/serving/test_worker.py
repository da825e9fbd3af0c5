"""The engine process's side of the protocol."""

from __future__ import annotations

import base64
import json
import math
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmloop.errors import ArtifactError
from lmloop.serving.worker import GENERIC, MAX_FAILED_STEPS, Worker, load_worker, read_messages

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


def test_the_last_piece_alone_carries_the_signals() -> None:
    with working(FakeEngine(max_running=2)) as (inbox, told):
        inbox.generate("a", "endless")
        inbox.generate("b", "x", max_tokens=1)
        told.wait_for(lambda: told.pieces("a") and told.pieces("a")[-1]["finish_reason"])
    *earlier, last = told.pieces("a")
    assert not any("signals" in piece for piece in earlier)
    embedding = np.frombuffer(base64.b64decode(last["signals"].pop("embedding")), dtype="<f2")
    assert embedding.tolist() == [0.5] * 32 + [-0.5] * 32
    assert last["signals"] == {"prompt_nats": 2.0, "log_probability": -1.0, "entropy": 1.5}
    assert told.pieces("b")[-1]["signals"]["prompt_nats"] is None


def test_an_engine_that_measures_nothing_tells_so() -> None:
    with working(FakeEngine(max_running=2, signals=False)) as (inbox, told):
        inbox.generate("a", "endless")
        told.wait_for(lambda: told.pieces("a") and told.pieces("a")[-1]["finish_reason"])
    assert told.pieces("a")[-1]["signals"] is None


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


def spoil(checkpoint: Path, folder: Path, tensor: str, value: float) -> Path:
    """A copy of a checkpoint with one number of one tensor changed."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    weights[tensor].view(-1)[-1] = value
    save_file(weights, folder / "model.safetensors")
    return folder


LAYER = "model.layers.0"


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "tensor",
    [
        "model.embed_tokens.weight",
        "model.norm.weight",
        f"{LAYER}.input_layernorm.weight",
        f"{LAYER}.self_attn.k_proj.weight",
        f"{LAYER}.mlp.down_proj.weight",
    ],
)
def test_weights_that_predict_nothing_finite_are_refused(
    checkpoint: Path, tmp_path: Path, tensor: str, value: float
) -> None:
    folder = spoil(checkpoint, tmp_path / "spoilt", tensor, value)
    told = Told()
    with pytest.raises(ArtifactError, match="spoilt predicts nothing finite") as caught:
        load_worker(folder, max_running=1, signals=False, send=told)
    assert "\n" not in str(caught.value)
    assert told.messages == []


@pytest.mark.parametrize("signals", [True, False])
def test_a_loaded_worker_measures_where_it_is_asked_to(checkpoint: Path, signals: bool) -> None:
    told, inbox = Told(), Inbox()
    worker = load_worker(checkpoint, max_running=1, signals=signals, send=told)
    inbox.generate("a", "a cat", temperature=0.0)
    worker._handle(inbox.get())
    while worker.engine.has_work():
        worker._step()
    found = told.pieces("a")[-1]["signals"]
    assert (found is not None) == signals
    if signals:
        assert found["prompt_nats"] > 0 > found["log_probability"]
        assert len(base64.b64decode(found["embedding"])) == 128
        assert all(math.isfinite(each) for name, each in found.items() if name != "embedding")


def command_of(folder: Path, *flags: str) -> list[str]:
    command = [sys.executable, "-m", "lmloop.serving.worker", str(folder), "--max-running", "2"]
    return [*command, *flags]


def run_worker(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command_of(folder), input=text, capture_output=True, text=True, timeout=60
    )


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--no-signals",)])
def test_the_real_worker_tells_signals_unless_it_is_told_not_to(
    checkpoint: Path, flags: tuple[str, ...]
) -> None:
    sampling = {"max_tokens": 3, "temperature": 0.0}
    request = {"op": "generate", "id": "1-0", "tokens": [5, 6, 7], "sampling": sampling}
    command = command_of(checkpoint, *flags)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        messages = map(json.loads, process.stdout)
        pieces = (piece for message in messages for piece in message.get("pieces", ()))
        last = next(piece for piece in pieces if piece["finish_reason"])
        process.stdin.close()
    assert (last["signals"] is None) == bool(flags)


@pytest.mark.slow
def test_a_folder_with_a_layer_of_nan_is_told_in_one_line(checkpoint: Path, tmp_path: Path) -> None:
    name = f"{LAYER}.mlp.down_proj.weight"
    done = run_worker(spoil(checkpoint, tmp_path / "spoilt", name, math.nan), "")
    failed = json.loads(done.stdout)
    assert (failed["op"], failed["usage"], done.returncode) == ("failed", True, 2)
    assert "predicts nothing finite" in failed["message"]
    assert "Traceback" not in done.stderr


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
