"""The engine process: one weights version, fed requests as JSON lines, answering with pieces.

Takes: on stdin `generate` and `cancel`. Gives: on stdout `ready`, then `pieces` once a step,
`error` for one request, `heartbeat` at least once a second; `failed` where it cannot start. The
parent's end of stdin is its own end. The only file of `serving` that needs torch.
"""

from __future__ import annotations

import argparse
import base64
import json
import logging
import os
import queue
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from lmloop.errors import ArtifactError, LmloopError, RequestError, UsageError

if TYPE_CHECKING:
    from lmloop.inference.load import LoadedModel

HEARTBEAT_SECONDS = 0.5
"""Longest silence of an engine that is not inside a step."""
PROBE = "probe"
"""Id of the request that the worker answers itself before it says that it is ready."""
ORPHAN_SECONDS = 5.0
"""How long a step under way may keep a worker alive whose parent is gone."""
MAX_FAILED_STEPS = 3
"""So many in a row, and the engine itself is taken to be broken."""

GENERIC = "The engine could not work on this request; the server's log has the details."

Message = Mapping[str, Any]
logger = logging.getLogger(__name__)


class Signals(Protocol):
    """What the worker tells of `lmloop.inference.signals.Signals`."""

    @property
    def prompt_nats(self) -> float | None:
        """Mean nats a prompt token."""

    @property
    def log_probability(self) -> float:
        """Mean log-probability of the answer's tokens."""

    @property
    def entropy(self) -> float:
        """Mean nats of the distributions that they were chosen from."""

    @property
    def embedding(self) -> Sequence[float]:
        """Where the prompt lies, in numbers that float16 holds."""


class Piece(Protocol):
    """What an engine gives of one request in one step."""

    @property
    def request_id(self) -> str:
        """The id that `Engine.add` was given."""

    @property
    def text(self) -> str:
        """New text, perhaps empty."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer so far."""

    @property
    def finish_reason(self) -> str | None:
        """`stop` or `length` in the last piece."""

    @property
    def signals(self) -> Signals | None:
        """What was measured of the request, in the last piece of an engine that measures."""


class Engine(Protocol):
    """What the worker asks of `lmloop.inference.engine.Engine`."""

    def add(self, request_id: str, tokens: Sequence[int], sampling: Any) -> None:
        """Queue a request; raise where it cannot be run."""

    def cancel(self, request_id: str) -> None:
        """Forget a request; one that is unknown or over is ignored."""

    def step(self) -> Sequence[Piece]:
        """Run one batch."""

    def has_work(self) -> bool:
        """Whether a step would do something."""

    @property
    def num_running(self) -> int:
        """Requests in the batch."""

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a place in it."""


class Worker:
    """Joins an engine to the protocol."""

    def __init__(
        self,
        engine: Engine,
        *,
        make_sampling: Callable[[Mapping[str, Any]], Any],
        send: Callable[[Message], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self.make_sampling = make_sampling
        self.send = send
        self.clock = clock
        self.active: set[str] = set()
        self.failed_steps = 0
        self.last_sent = clock()

    def probe(self, *, context_length: int) -> None:
        """Make real tokens, so that ready means ready; raise if that fails."""
        tokens = probe_tokens(context_length)
        sampling = self.make_sampling({"max_tokens": 2, "temperature": 0.0})
        self.engine.add(PROBE, tokens, sampling)
        while self.engine.has_work():
            self.engine.step()

    def run(self, inbox: queue.Queue[Message | None]) -> None:
        """Serve until the inbox gives None: take what has come, step, tell, and again."""
        while True:
            for message in self._take(inbox):
                if message is None:
                    return
                self._handle(message)
            if self.engine.has_work():
                self._step()
            if self.clock() - self.last_sent >= HEARTBEAT_SECONDS:
                self._tell({"op": "heartbeat"})

    def _take(self, inbox: queue.Queue[Message | None]) -> list[Message | None]:
        """Everything that waits; blocks up to a heartbeat where the engine has nothing to do."""
        messages: list[Message | None] = []
        try:
            if not self.engine.has_work():
                messages.append(inbox.get(timeout=HEARTBEAT_SECONDS))
            while True:
                messages.append(inbox.get_nowait())
        except queue.Empty:
            return messages

    def _handle(self, message: Message) -> None:
        request_id = str(message.get("id"))
        if message.get("op") == "cancel":
            self.engine.cancel(request_id)
            self.active.discard(request_id)
            return
        try:
            sampling = self.make_sampling(message["sampling"])
            self.engine.add(request_id, message["tokens"], sampling)
        except Exception as error:
            self._fail(request_id, error)
        else:
            self.active.add(request_id)

    def _step(self) -> None:
        try:
            pieces = self.engine.step()
        except Exception as error:
            self._give_up_batch(error)
            return
        self.failed_steps = 0
        self.active.difference_update(piece.request_id for piece in pieces if piece.finish_reason)
        if pieces:
            self._tell({"op": "pieces", "pieces": [_describe(piece) for piece in pieces]})

    def _give_up_batch(self, error: Exception) -> None:
        """Fail what was under way: whose fault a failed step was cannot be told.

        An engine that fails again and again ends the process, and the router starts another.
        """
        self.failed_steps += 1
        for request_id in sorted(self.active):
            self.engine.cancel(request_id)
            self._fail(request_id, error)
        self.active.clear()
        if self.failed_steps >= MAX_FAILED_STEPS:
            raise error

    def _fail(self, request_id: str, error: Exception) -> None:
        if not isinstance(error, RequestError):
            logger.error("request %s failed", request_id, exc_info=error)
            error = RequestError(GENERIC, status=500, code="engine_error")
        self._tell(
            {
                "op": "error",
                "id": request_id,
                "message": str(error),
                "status": error.status,
                "code": error.code,
                "param": error.param,
            }
        )

    def _tell(self, message: Message) -> None:
        load = {"running": self.engine.num_running, "waiting": self.engine.num_waiting}
        self.send({**message, **load})
        self.last_sent = self.clock()


def probe_tokens(context_length: int) -> list[int]:
    """A prompt that any model knows, and that leaves room for an answer."""
    return [0] * max(1, min(8, context_length - 2))


def _describe(piece: Piece) -> dict[str, Any]:
    described = {
        "id": piece.request_id,
        "text": piece.text,
        "num_tokens": piece.num_tokens,
        "finish_reason": piece.finish_reason,
    }
    if piece.finish_reason is not None:
        described["signals"] = None if piece.signals is None else _describe_signals(piece.signals)
    return described


def _describe_signals(signals: Signals) -> dict[str, Any]:
    """Numbers as they are; the embedding as base64 of little-endian float16."""
    packed = struct.pack(f"<{len(signals.embedding)}e", *signals.embedding)
    return {
        "prompt_nats": signals.prompt_nats,
        "log_probability": signals.log_probability,
        "entropy": signals.entropy,
        "embedding": base64.b64encode(packed).decode(),
    }


def read_messages(lines: Iterable[bytes], inbox: queue.Queue[Message | None]) -> None:
    """Feed JSON lines into the inbox, then None at their end."""
    for line in lines:
        inbox.put(json.loads(line))
    inbox.put(None)


def reserve_stdout() -> IO[bytes]:
    """Keep the real stdout for the protocol; whatever else prints goes to stderr."""
    protocol = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return protocol


def make_sender(stream: IO[bytes]) -> Callable[[Message], None]:
    """A function that writes a message as one line at once."""

    def send(message: Message) -> None:
        stream.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")
        stream.flush()

    return send


def start_reader(inbox: queue.Queue[Message | None]) -> None:
    """Read stdin on a thread; a step that does not end is cut short once the parent is gone."""
    # A reader of its own: the interpreter must not wait at its end for the lock of sys.stdin.
    lines = open(0, "rb", closefd=False)  # noqa: SIM115

    def read() -> None:
        read_messages(lines, inbox)
        main = threading.main_thread()
        main.join(ORPHAN_SECONDS)
        if main.is_alive():
            os._exit(1)

    threading.Thread(target=read, name="stdin", daemon=True).start()


def load_worker(
    folder: Path, *, max_running: int, signals: bool, send: Callable[[Message], None]
) -> Worker:
    """Load a checkpoint, answer one probe, and send `ready`.

    Raises `ArtifactError` where the weights cannot be read or predict nothing finite.
    """
    from lmloop.inference.engine import Engine
    from lmloop.inference.load import load
    from lmloop.inference.sampling import Sampling

    def make_sampling(fields: Mapping[str, Any]) -> Sampling:
        stop = tuple(fields.get("stop", ()))
        return Sampling(**{**fields, "stop": stop})

    started = time.monotonic()
    model = load(folder)
    _require_finite(model, folder)
    engine = Engine(model, max_running=max_running, signals=signals)
    worker = Worker(engine, make_sampling=make_sampling, send=send)
    worker.probe(context_length=model.config.context_length)
    send(
        {
            "op": "ready",
            "fingerprint": model.fingerprint,
            "context_length": model.config.context_length,
            "vocab_size": model.config.vocab_size,
            "load_seconds": round(time.monotonic() - started, 3),
        }
    )
    return worker


def _require_finite(model: LoadedModel, folder: Path) -> None:
    """Raise `ArtifactError` where a logit of the probe's tokens is NaN or infinite.

    The probe alone would not notice: the most likely of tokens that are all NaN is the first one.
    """
    import torch

    tokens = torch.tensor([probe_tokens(model.config.context_length)])
    if not model(tokens).isfinite().all():
        raise ArtifactError(
            f"{folder} predicts nothing finite: NaN or infinity is among its weights or what they "
            "make of a prompt; make the model again, or serve another."
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the engine process; the exit code is 2 where the folder cannot be served."""
    parser = argparse.ArgumentParser(prog="lmloop.serving.worker")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--max-running", type=int, required=True)
    parser.add_argument("--no-signals", action="store_true", help="measure nothing of requests")
    options = parser.parse_args(arguments)
    send = make_sender(reserve_stdout())
    try:
        worker = load_worker(
            options.folder,
            max_running=options.max_running,
            signals=not options.no_signals,
            send=send,
        )
    except LmloopError as error:
        send({"op": "failed", "message": str(error), "usage": isinstance(error, UsageError)})
        return error.exit_code
    inbox: queue.Queue[Message | None] = queue.Queue()
    start_reader(inbox)
    try:
        worker.run(inbox)
    except BrokenPipeError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
