"""One request from its admission to its row in the database.

Takes: a checked request. Gives: its pieces one by one, and counts on the way what usage, metrics
and the event need. Closing it, however it ended, writes the event once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from lmloop.errors import RequestError
from lmloop.serving.consent import Consent
from lmloop.serving.identity import Person
from lmloop.serving.process import Generation, Piece
from lmloop.serving.prompts import Limits, Plan, Planner
from lmloop.serving.replies import Head, Shape, Usage
from lmloop.serving.rows import Served, build_request_row
from lmloop.serving.schemas import ChatRequest, CompletionRequest
from lmloop.store.database import requests_table

if TYPE_CHECKING:
    from lmloop.serving.service import Service

Reason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A checked request, who sent it, and what differs between the endpoints."""

    endpoint: str
    shape: Shape
    request: ChatRequest | CompletionRequest
    planner: Planner
    person: Person
    consent: Consent


def admit(service: Service, call: Call) -> Exchange:
    """Reserve places for a request's sequences.

    Raises `RequestError` where there is no place or no engine.
    """
    response_id = service.identity.issue(call.shape.prefix)
    # What belongs to no conversation takes its share of a candidate by itself.
    session = call.person.session_hash or response_id
    generation = service.router.admit(call.request.count, session=session)
    return Exchange(service, call, response_id=response_id, generation=generation)


class Exchange:
    """A request under way."""

    def __init__(
        self,
        service: Service,
        call: Call,
        *,
        response_id: str,
        generation: Generation,
        shadow_of: str | None = None,
    ) -> None:
        """Follow an admitted generation; `shadow_of` is the answer that it is an unseen copy of."""
        self.count = call.request.count
        self.texts: list[list[str]] = [[] for _ in range(self.count)]
        self.finish_reasons: dict[int, str] = {}
        self._service = service
        self._call = call
        self._generation = generation
        self._shadow_of = shadow_of
        self._started = service.clock()
        self._arrived = service.wall_clock()
        self._plan: Plan | None = None
        self._first_token_seconds: float | None = None
        self._last_heard = [0.0] * self.count
        self._answer_tokens = [0] * self.count
        self._engine_signals: Mapping[str, Any] | None = None
        self._outcome: Reason = "cancelled"
        self._closed = False
        self._meet(response_id)

    def _meet(self, response_id: str) -> None:
        """Note which engine answers."""
        self.head = Head(
            id=response_id,
            created=int(self._arrived),
            model=self._service.model_name,
            weights=self._generation.engine.weights or "",
        )
        self._meter = self._service.metrics.of_arm(self._generation.arm)

    async def begin(self) -> None:
        """Turn the request into tokens on a thread, and hand them to the engine."""
        engine = self._generation.engine
        limits = Limits(
            context_length=engine.context_length,
            vocab_size=engine.vocab_size,
            max_tokens=self._service.config.max_tokens,
        )
        plan = partial(self._call.planner, texts=engine.texts, limits=limits)
        try:
            self._plan = await asyncio.to_thread(plan)
        except RequestError:
            self._outcome = "error"
            raise
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
        self._measure(piece)
        self.texts[piece.index].append(piece.text)
        if piece.finish_reason is not None:
            self.finish_reasons[piece.index] = piece.finish_reason
            if piece.index == 0:
                self._engine_signals = piece.signals
        return piece

    def _measure(self, piece: Piece) -> None:
        now = self._service.clock()
        if self._first_token_seconds is None:
            # Until now another engine could take the place of one that was lost.
            self._meet(self.head.id)
            self._first_token_seconds = now - self._started
            self._meter.count_first_token(self._first_token_seconds)
        tokens, self._answer_tokens[piece.index] = (
            self._answer_tokens[piece.index],
            piece.num_tokens,
        )
        if tokens and piece.num_tokens > tokens:
            gap = now - self._last_heard[piece.index]
            self._meter.count_gap(gap / (piece.num_tokens - tokens))
        self._last_heard[piece.index] = now

    def close(self) -> None:
        """Cancel what still runs; record the request if it was begun. May be called again.

        A copy that could not even begin is recorded as well: the candidate failed at it.
        """
        self._generation.close()
        failed = self._shadow_of is not None and self._outcome == "error"
        if self._closed or not (self.begun or failed):
            return
        self._closed = True
        if self._first_token_seconds is None:
            self._meet(self.head.id)
        seconds = self._service.clock() - self._started
        self._meter.count_finished(self._outcome, usage=self.usage, seconds=seconds)
        served = self._describe(seconds)
        self._service.events.record(
            requests_table, partial(build_request_row, served), characters=served.characters
        )

    def _describe(self, seconds: float) -> Served:
        usage = self.usage
        return Served(
            request=self._call.request,
            answer="".join(self.texts[0]),
            person=self._call.person,
            consent=self._call.consent,
            measured=self._service.config.signals,
            length_stop=self.finish_reasons.get(0) == "length",
            engine_signals=self._engine_signals,
            numbers={
                "id": self.head.id,
                "created": self._arrived,
                "endpoint": self._call.endpoint,
                "model": self.head.model,
                "weights": self.head.weights,
                "stream": bool(self._call.request.stream),
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "finish_reason": self._outcome,
                "first_token_seconds": self._first_token_seconds,
                "total_seconds": seconds,
                "arm": self._generation.arm,
                "shadow_of": self._shadow_of,
            },
        )
