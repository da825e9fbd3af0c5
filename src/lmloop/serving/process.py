"""One engine process of one weights version, and the requests that are under way in it.

Takes: the command that starts a worker (see `lmloop.serving.worker`). Gives: `Generation`s whose
pieces arrive as the engine makes them, and the news at once when the process is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lmloop.errors import LmloopError, RequestError
from lmloop.store.registry import name_weights

if TYPE_CHECKING:
    from lmloop.serving.prompts import Texts

MAX_LINE_BYTES = 1 << 24
"""Longest line of the protocol; one message carries one step's text of a whole batch."""
LAST_WORDS_SECONDS = 1.0
"""How long the rest of a worker's stderr is waited for once it has ended."""
ENGINE_LOST = "engine_lost"
"""Code of the error of requests whose engine is gone."""

Arm = Literal["live", "canary", "shadow"]
"""Why an engine got a request: it is live, it has a share of the sessions, nobody sees it."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """How an engine process is started, and what it may hold."""

    command: tuple[str, ...]
    """Program and arguments of the worker."""
    open_texts: Callable[[], Texts]
    """Opens the tokenizer and chat template that belong to these weights (on a thread)."""
    capacity: int
    """Sequences that may run or wait at once."""
    fingerprint: str = ""
    """Of the weights, as far as it is known before they are loaded."""
    start_seconds: float = 600.0
    """Longest time from start to ready."""
    silence_seconds: float = 60.0
    """Longest time without a sign of life, once ready; then the process is killed."""


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of one sequence; the last one has a `finish_reason` (`stop` or `length`)."""

    index: int
    text: str
    num_tokens: int
    """Tokens of this sequence so far."""
    finish_reason: str | None
    signals: Mapping[str, Any] | None = None
    """What the engine measured of a finished sequence, as the worker tells it."""


class Generation:
    """The sequences of one request: admitted together, iterated for their pieces, closed once.

    `find_refuge` names an engine for so many sequences where this one is lost before anybody has
    seen a piece: all of them begin anew there, so `engine` and `arm` stand from the first piece on.
    """

    def __init__(
        self,
        engine: EngineProcess,
        *,
        count: int,
        arm: Arm = "live",
        find_refuge: Callable[[int], EngineProcess | None] | None = None,
    ) -> None:
        self.engine = engine
        self.arm: Arm = arm
        self._find_refuge = find_refuge
        self._sequences: Sequence[tuple[Sequence[int], Mapping[str, Any]]] = ()
        self._arrivals: asyncio.Queue[Piece | RequestError] = asyncio.Queue()
        self._unread = count
        self._running = set(range(count))
        self._serial = engine.enter(self, count=count)

    def start(self, sequences: Sequence[tuple[Sequence[int], Mapping[str, Any]]]) -> None:
        """Hand token ids and sampling of every sequence to the engine."""
        self._sequences = sequences
        for index in sorted(self._running):
            tokens, sampling = sequences[index]
            self.engine.send(
                {
                    "op": "generate",
                    "id": self._engine_id(index),
                    "tokens": list(tokens),
                    "sampling": dict(sampling),
                }
            )

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> Piece:
        """The next piece of any sequence; raises `RequestError` where the engine fails."""
        if not self._unread:
            raise StopAsyncIteration
        arrival = await self._arrivals.get()
        if isinstance(arrival, RequestError):
            raise arrival
        self._unread -= arrival.finish_reason is not None
        return arrival

    def take(self, index: int, piece: Mapping[str, Any]) -> None:
        """Called by the engine process with what a sequence got in one step."""
        if index not in self._running:
            return
        self._find_refuge = None
        if piece["finish_reason"] is not None:
            self._release(index)
        self._arrivals.put_nowait(
            Piece(
                index,
                piece["text"],
                piece["num_tokens"],
                piece["finish_reason"],
                piece.get("signals"),
            )
        )

    def fail(self, error: RequestError) -> None:
        """End the whole request with an error, or let it begin anew where it may."""
        if error.code == ENGINE_LOST and self._move():
            return
        self._arrivals.put_nowait(error)
        self.close()

    def _move(self) -> bool:
        """Begin anew in the refuge; False where there is none."""
        count = len(self._running)
        refuge = self._find_refuge(count) if self._find_refuge is not None and count else None
        if refuge is None:
            return False
        self.engine.release(self._serial, count=count, finished=True)
        self.engine, self.arm, self._find_refuge = refuge, "live", None
        self._serial = refuge.enter(self, count=count)
        if self._sequences:
            self.start(self._sequences)
        return True

    def close(self) -> None:
        """Cancel what still runs and give its places back; may be called again."""
        for index in sorted(self._running):
            if self._sequences:
                self.engine.send({"op": "cancel", "id": self._engine_id(index)})
            self._release(index)

    def _release(self, index: int) -> None:
        self._running.discard(index)
        self.engine.release(self._serial, finished=not self._running)

    def _engine_id(self, index: int) -> str:
        return f"{self._serial}-{index}"


class EngineProcess:
    """A worker process from its start to its end."""

    def __init__(self, spec: EngineSpec, *, on_ready: Callable[[], None] | None = None) -> None:
        self.spec = spec
        self.state: Literal["starting", "ready", "ended"] = "starting"
        self.idle = asyncio.Event()
        """Set while nothing is under way."""
        self.idle.set()
        self.was_ready = False
        self.failure = "it ended"
        """Why the process ended, in words."""
        self.permanent = False
        """Whether another start with the same folder would fail the same way."""
        self.weights: str | None = None
        """Version of the weights: the first 12 characters of their fingerprint."""
        self.context_length = 0
        self.vocab_size = 0
        self.in_flight = 0
        self.running = 0
        self.last_heard = time.time()
        self._on_ready = on_ready
        self._texts: Texts | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._generations: dict[int, Generation] = {}
        self._next_serial = 0
        self._last_words = ""

    @property
    def texts(self) -> Texts:
        """Tokenizer and chat template; there once the engine is ready."""
        if self._texts is None:
            raise RuntimeError("the engine is not ready")
        return self._texts

    @property
    def process_id(self) -> int | None:
        """The worker's process id."""
        return None if self._process is None else self._process.pid

    def has_place(self, count: int) -> bool:
        """Whether `count` sequences more can be taken now."""
        return self.state == "ready" and self.in_flight + count <= self.spec.capacity

    def enter(self, generation: Generation, *, count: int) -> int:
        """Reserve places for a generation of `count` sequences; its serial number here."""
        serial = self._next_serial
        self._next_serial += 1
        self._generations[serial] = generation
        self.in_flight += count
        self.idle.clear()
        return serial

    def release(self, serial: int, *, count: int = 1, finished: bool) -> None:
        """Give places back; `finished` ends the generation."""
        self.in_flight -= count
        if finished:
            self._generations.pop(serial, None)
        if not self.in_flight:
            self.idle.set()

    def send(self, message: Mapping[str, Any]) -> None:
        """Write a message to the worker; nothing where it is gone."""
        process = self._process
        if process is None or process.stdin is None or self.state == "ended":
            return
        # Not drained: what can pile up here is bounded by the number of admitted requests.
        process.stdin.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    async def spawn(self) -> None:
        """Start the worker; raises OSError where the system cannot."""
        # A group of its own: Ctrl-C reaches the server alone, which drains first. No session of its
        # own: Linux may share the processor out by sessions, and an engine that only starts would
        # get as much of it as all threads of the one that serves.
        self._process = await asyncio.create_subprocess_exec(
            *self.spec.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=MAX_LINE_BYTES,
            process_group=0,
        )

    async def run(self) -> None:
        """Follow the worker until it has ended; then everything under way fails.

        Cancelling this ends the worker, which has nothing to save.
        """
        process = self._process
        if process is None or process.stdout is None or process.stderr is None:
            raise RuntimeError("spawn() comes first")
        words = asyncio.create_task(self._keep_last_words(process.stderr))
        texts = asyncio.create_task(asyncio.to_thread(self.spec.open_texts))
        texts.add_done_callback(_note_error)
        try:
            await self._follow(process.stdout, texts)
        finally:
            self._end()
            texts.cancel()
            await _finish(asyncio.create_task(_reap(process, words)))
        self._explain(process.returncode)

    async def close(self) -> None:
        """End a worker that `run` never got to follow."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    def abort(self, error: RequestError) -> None:
        """Fail everything under way."""
        for generation in list(self._generations.values()):
            generation.fail(error)

    async def _follow(self, stdout: asyncio.StreamReader, texts: asyncio.Task[Texts]) -> None:
        try:
            while line := await self._read_line(stdout):
                message = json.loads(line)
                if message["op"] == "ready":
                    self._texts = await texts
                self._handle(message)
        except TimeoutError:
            self.failure = "it gave no sign of life and was killed"
        except (ValueError, LookupError, TypeError) as error:
            self.failure = f"it broke the protocol ({error!r})"
        except (LmloopError, OSError) as error:
            self.failure, self.permanent = str(error), True

    async def _read_line(self, stdout: asyncio.StreamReader) -> bytes:
        spec = self.spec
        async with asyncio.timeout(spec.silence_seconds if self.was_ready else spec.start_seconds):
            return await stdout.readline()

    def _handle(self, message: Mapping[str, Any]) -> None:
        self.last_heard = time.time()
        self.running = int(message.get("running", self.running))
        match message["op"]:
            case "pieces":
                for piece in message["pieces"]:
                    generation, index = self._find(piece["id"])
                    if generation is not None:
                        generation.take(index, piece)
            case "error":
                generation, _ = self._find(message["id"])
                if generation is not None:
                    generation.fail(_request_error(message))
            case "ready":
                self.weights = name_weights(str(message["fingerprint"]))
                self.context_length = int(message["context_length"])
                self.vocab_size = int(message["vocab_size"])
                self.state, self.was_ready = "ready", True
                if self._on_ready is not None:
                    self._on_ready()
            case "failed":
                self.failure, self.permanent = str(message["message"]), bool(message["usage"])

    def _find(self, engine_id: str) -> tuple[Generation | None, int]:
        serial, _, index = engine_id.partition("-")
        return self._generations.get(int(serial)), int(index)

    def _end(self) -> None:
        self.state = "ended"
        self.running = 0
        self.abort(
            RequestError(
                "The engine stopped while it worked on this request; a new one is being started. "
                "Send the request again.",
                status=503,
                code=ENGINE_LOST,
            )
        )

    def _explain(self, return_code: int | None) -> None:
        if self.failure == "it ended":
            self.failure = f"it ended with exit code {return_code}"
            if self._last_words:
                self.failure += f": {self._last_words}"

    async def _keep_last_words(self, stderr: asyncio.StreamReader) -> None:
        with contextlib.suppress(ValueError):
            while line := await stderr.readline():
                self._last_words = line.decode("utf-8", "replace").rstrip()[:1000]
                logger.warning("engine: %s", self._last_words)


async def _reap(process: asyncio.subprocess.Process, words: asyncio.Task[None]) -> None:
    """End a process, if it has not ended by itself, and wait for its end and its last words."""
    # Not `process.kill`: it collects the exit code itself, and the event loop then reports 255.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    await process.wait()
    await asyncio.wait({words}, timeout=LAST_WORDS_SECONDS)
    words.cancel()


async def _finish(task: asyncio.Task[None]) -> None:
    """Wait for a short task to its end, even when cancelled meanwhile; then be cancelled."""
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError


def _note_error(task: asyncio.Task[Texts]) -> None:
    """Keep asyncio from complaining where the worker has failed first, for the same reason."""
    if not task.cancelled():
        task.exception()


def _request_error(message: Mapping[str, Any]) -> RequestError:
    return RequestError(
        str(message["message"]),
        status=int(message["status"]),
        code=message["code"],
        param=message["param"],
    )
