"""One request from its admission to its row in the database.

Takes: a checked request. Gives: its pieces one by one, and counts on the way what usage, metrics
and the event need. Closing it, however it ended, writes the event once.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Literal

from lmloop.errors import RequestError
from lmloop.serving.process import Generation, Piece
from lmloop.serving.prompts import Limits, Plan, Planner
from lmloop.serving.replies import Head, Shape, Usage
from lmloop.serving.service import Service

Reason = Literal["stop", "length", "cancelled", "error"]


class Exchange:
    """A request under way."""

    def __init__(
        self,
        service: Service,
        *,
        endpoint: str,
        shape: Shape,
        count: int,
        stream: bool,
        content: str | None,
    ) -> None:
        """Reserve places for `count` sequences; `content` is the prompt where it may be kept.

        Raises `RequestError` where there is no place or no engine.
        """
        self._service = service
        self._endpoint = endpoint
        self._stream = stream
        self._content = content
        self._started = service.clock()
        self._arrived = service.wall_clock()
        self._first_token_seconds: float | None = None
        self._plan: Plan | None = None
        self._answer_tokens = [0] * count
        self._outcome: Reason = "cancelled"
        self._closed = False
        self.count = count
        self.texts: list[list[str]] = [[] for _ in range(count)]
        self.finish_reasons: dict[int, str] = {}
        self._generation: Generation = service.router.admit(count)
        self.head = Head(
            id=shape.prefix + service.make_token(),
            created=int(self._arrived),
            model=service.model_name,
            weights=self._generation.engine.weights or "",
        )

    async def begin(self, planner: Planner) -> None:
        """Turn the request into tokens on a thread, and hand them to the engine."""
        engine = self._generation.engine
        limits = Limits(
            context_length=engine.context_length,
            vocab_size=engine.vocab_size,
            max_tokens=self._service.config.max_tokens,
        )
        self._plan = await asyncio.to_thread(partial(planner, texts=engine.texts, limits=limits))
        self._service.events.remember(self.head.id)
        self._generation.start(self._plan.sequences)

    @property
    def begun(self) -> bool:
        """Whether the engine has been asked."""
        return self._plan is not None

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(
            prompt_tokens=0 if self._plan is None else self._plan.prompt_tokens,
            completion_tokens=sum(self._answer_tokens),
        )

    async def next_piece(self) -> Piece | None:
        """The next piece of any choice, None after the last; `RequestError` if the engine fails."""
        try:
            piece = await anext(self._generation)
        except StopAsyncIteration:
            self._outcome = "length" if "length" in self.finish_reasons.values() else "stop"
            return None
        except RequestError:
            self._outcome = "error"
            raise
        if self._first_token_seconds is None:
            self._first_token_seconds = self._service.clock() - self._started
            self._service.metrics.count_first_token(self._first_token_seconds)
        self._answer_tokens[piece.index] = piece.num_tokens
        self.texts[piece.index].append(piece.text)
        if piece.finish_reason is not None:
            self.finish_reasons[piece.index] = piece.finish_reason
        return piece

    def close(self) -> None:
        """Cancel what still runs; record the request if it was begun. May be called again."""
        self._generation.close()
        if self._closed or not self.begun:
            return
        self._closed = True
        seconds = self._service.clock() - self._started
        usage = self.usage
        self._service.metrics.count_finished(
            self._outcome,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            seconds=seconds,
        )
        self._service.events.record_request(
            {
                "id": self.head.id,
                "created": self._arrived,
                "endpoint": self._endpoint,
                "model": self.head.model,
                "weights": self.head.weights,
                "stream": self._stream,
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "finish_reason": self._outcome,
                "first_token_seconds": self._first_token_seconds,
                "total_seconds": seconds,
                "consent": self._content is not None,
                "prompt": self._content,
                "answer": None if self._content is None else "".join(self.texts[0]),
            }
        )
