"""What the database keeps of a request and of a rating: rows, made on the writer's thread.

Takes: a request that is over. Gives: a row of `requests_table` with its numbers, its signals, and
its words as far as they may be kept; measuring and masking happen here, after the answer.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lmloop.corpus.signals import measure_exchange
from lmloop.serving.consent import Consent, Content, mask
from lmloop.serving.identity import Person
from lmloop.serving.schemas import ChatRequest, CompletionRequest, Feedback
from lmloop.store.events import encode_messages

ENGINE_SIGNALS = ("prompt_nats", "log_probability", "entropy")
"""Numbers that the engine measures (see `lmloop.inference.signals`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A request that is over."""

    request: ChatRequest | CompletionRequest
    answer: str
    """Text of the first choice."""
    person: Person
    consent: Consent
    numbers: Mapping[str, Any]
    """Columns of `requests_table` that are known already."""
    measured: bool
    """Whether its signals are wanted."""
    length_stop: bool
    """Whether the first choice ended at its longest length."""
    engine_signals: Mapping[str, Any] | None
    """What the engine measured of the first choice."""

    @property
    def characters(self) -> int:
        """About the size of this in memory."""
        return len(self.answer) + self.request.characters


def warm_up() -> None:
    """Open what measuring needs: a sixth of a second that the first request need not wait for."""
    measure_exchange([], "This sentence is here to be measured and forgotten.")


def build_request_row(served: Served) -> dict[str, Any]:
    """The row of a request; its words are in it only as its consent says."""
    found = served.engine_signals if served.measured else None
    embedding = None if found is None else found["embedding"]
    return {
        **served.numbers,
        **asdict(served.person),
        "consent": served.consent.given,
        "content": served.consent.content,
        **_keep_words(served),
        "signals": json.dumps(_measure(served)) if served.measured else None,
        "embedding": None if embedding is None else base64.b64decode(embedding),
    }


def build_rating_row(feedback: Feedback, *, created: float, content: Content) -> dict[str, Any]:
    """The row of a rating; correction and comment are masked unless `content` is full."""
    keep = str if content == "full" else mask
    return {
        "request_id": feedback.response_id,
        "created": created,
        "rating": feedback.rating,
        "correction": None if feedback.correction is None else keep(feedback.correction),
        "comment": None if feedback.comment is None else keep(feedback.comment),
    }


def _keep_words(served: Served) -> dict[str, str | None]:
    content = served.consent.content
    if content == "off":
        return {"prompt": None, "answer": None}
    keep = str if content == "full" else mask
    return {
        "prompt": encode_messages(_keep_prompt(served.request, content)),
        "answer": keep(served.answer),
    }


def _keep_prompt(request: ChatRequest | CompletionRequest, content: Content) -> list[Any]:
    keep = str if content == "full" else mask
    if isinstance(request, ChatRequest):
        return [{"role": each.role, "content": keep(each.content)} for each in request.messages]
    # What token ids spell cannot be masked here.
    return [
        keep(each) if isinstance(each, str) else list(each) if content == "full" else None
        for each in request.prompt
    ]


def _measure(served: Served) -> dict[str, Any]:
    """All signals of a request; None stands for what could not be measured."""
    found = served.engine_signals or {}
    return {
        **asdict(measure_exchange(served.request.turns, served.answer)),
        **{name: _finite(found.get(name)) for name in ENGINE_SIGNALS},
        "length_stop": served.length_stop,
    }


def _finite(value: float | None) -> float | None:
    """The number, unless it is one that JSON has no word for."""
    return value if value is not None and math.isfinite(value) else None
