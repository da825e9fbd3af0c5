"""An engine process without a model: speaks the worker's protocol and does what a prompt tells it.

Tokens are bytes. The answer to a prompt is a few words drawn with the seed; a prompt that contains
one of the commands below makes trouble instead.
"""

from __future__ import annotations

import argparse
import os
import queue
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmloop.errors import RequestError
from lmloop.serving.worker import Worker, make_sender, reserve_stdout, start_reader

WORDS = ("hello", " world", "\n", " 你好", " \U0001f600", " naïve", " \u2028", '\t"quoted"', " end")
CONTEXT_LENGTH = 400
VOCAB_SIZE = 256


@dataclass(frozen=True)
class FakeSampling:
    """What a request may ask for."""

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True)
class FakeSignals:
    """What a real engine would have measured."""

    prompt_nats: float | None
    log_probability: float
    entropy: float
    embedding: tuple[float, ...]


@dataclass(frozen=True)
class FakePiece:
    """One step of one request."""

    request_id: str
    text: str
    num_tokens: int
    finish_reason: str | None
    signals: FakeSignals | None = None


@dataclass
class FakeRequest:
    """A request under way."""

    prompt: str
    sampling: FakeSampling
    words: list[str] = field(default_factory=list)
    given: int = 0


class FakeEngine:
    """One word a step for up to `max_running` requests."""

    def __init__(self, *, max_running: int, word: str | None = None, signals: bool = True) -> None:
        self.max_running = max_running
        self.signals = signals
        self.vocabulary = WORDS if word is None else (word,)
        self.requests: dict[str, FakeRequest] = {}

    @property
    def num_running(self) -> int:
        return min(len(self.requests), self.max_running)

    @property
    def num_waiting(self) -> int:
        return len(self.requests) - self.num_running

    def has_work(self) -> bool:
        return bool(self.requests)

    def add(self, request_id: str, tokens: Sequence[int], sampling: FakeSampling) -> None:
        prompt = bytes(tokens).decode("utf-8", "replace")
        if "refuse" in prompt:
            raise RequestError("this prompt is refused", param="prompt")
        if "fault" in prompt:
            raise ZeroDivisionError("secret of the engine")
        chance = random.Random(sampling.seed)
        words = [chance.choice(self.vocabulary) for _ in range(chance.randrange(3, 12))]
        if "endless" in prompt:
            words = [self.vocabulary[0] if len(self.vocabulary) == 1 else "on "] * 100_000
        self.requests[request_id] = FakeRequest(prompt, sampling, words)

    def cancel(self, request_id: str) -> None:
        if self.requests.pop(request_id, None) is not None:
            print(f"cancelled {request_id}", file=sys.stderr)

    def step(self) -> list[FakePiece]:
        running = list(self.requests.items())[: self.max_running]
        commands = " ".join(request.prompt for _, request in running)
        if "slow" in commands:
            time.sleep(0.02)
        if "hang" in commands:
            print("this step will not end", file=sys.stderr, flush=True)
            time.sleep(3600)
        if "explode" in commands:
            raise ArithmeticError("secret of the step")
        if "die" in commands and all(request.given >= 2 for _, request in running):
            print("last words of the engine", file=sys.stderr)
            os._exit(3)
        return [self._grow(request_id, request) for request_id, request in running]

    def _grow(self, request_id: str, request: FakeRequest) -> FakePiece:
        if request.given == len(request.words):
            finish, text = "stop", ""
        else:
            text = request.words[request.given]
            request.given += 1
            finish = "length" if request.given == request.sampling.max_tokens else None
        if finish is not None:
            del self.requests[request_id]
        signals = None if finish is None or not self.signals else measure(request)
        return FakePiece(request_id, text, request.given, finish, signals)


def measure(request: FakeRequest) -> FakeSignals:
    """Signals that follow from the prompt: one that says "strange" lies far from all others."""
    strange = "strange" in request.prompt
    near, far = (0.5,) * 32 + (-0.5,) * 32, (2.0,) * 64
    return FakeSignals(
        prompt_nats=6.0 if strange else 2.0 if len(request.prompt) > 1 else None,
        log_probability=-3.0 if strange else -1.0,
        entropy=4.0 if strange else 1.5,
        embedding=far if strange else near,
    )


def make_sampling(fields: Mapping[str, Any]) -> FakeSampling:
    return FakeSampling(**{**fields, "stop": tuple(fields.get("stop", ()))})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--max-running", type=int, default=4)
    parser.add_argument("--no-signals", action="store_true")
    parser.add_argument("--fingerprint", default="0123456789abcdef")
    parser.add_argument("--word", help="the only word of all answers")
    parser.add_argument("--process-ids", type=Path, help="each start adds its process id here")
    parser.add_argument("--gate", type=Path, help="do not get ready before this file exists")
    parser.add_argument("--fail", help="end like this: refuse, crash")
    options = parser.parse_args()
    if options.process_ids is not None:
        with options.process_ids.open("a") as stream:
            stream.write(f"{os.getpid()}\n")
    send = make_sender(reserve_stdout())
    if options.fail == "refuse":
        send({"op": "failed", "message": "weights.bin changed on disk", "usage": True})
        sys.exit(2)
    if options.fail == "crash":
        raise MemoryError("no room for the weights")
    while options.gate is not None and not options.gate.exists():
        time.sleep(0.01)
    worker = Worker(
        FakeEngine(
            max_running=options.max_running, word=options.word, signals=not options.no_signals
        ),
        make_sampling=make_sampling,
        send=send,
    )
    inbox: queue.Queue[Mapping[str, Any] | None] = queue.Queue()
    start_reader(inbox)
    send(
        {
            "op": "ready",
            "fingerprint": options.fingerprint,
            "context_length": CONTEXT_LENGTH,
            "vocab_size": VOCAB_SIZE,
        }
    )
    print("this goes to stderr, not into the protocol")
    worker.run(inbox)


if __name__ == "__main__":
    main()
