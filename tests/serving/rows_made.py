"""Requests that are over, made up for tests."""

from __future__ import annotations

from typing import Any

from lmloop.serving.consent import Consent, Content
from lmloop.serving.identity import Person
from lmloop.serving.rows import Served, build_request_row
from lmloop.serving.schemas import ChatRequest, CompletionRequest

NUMBERS = {
    "id": "a",
    "created": 1.5,
    "endpoint": "chat",
    "model": "m",
    "weights": "0123456789ab",
    "stream": False,
    "prompt_tokens": 3,
    "completion_tokens": 4,
    "finish_reason": "stop",
    "first_token_seconds": 0.5,
    "total_seconds": 1.0,
    "arm": "live",
    "shadow_of": None,
}


def chat_request(*contents: str) -> ChatRequest:
    messages = [{"role": "user", "content": content} for content in contents or ("hi",)]
    return ChatRequest.model_validate({"model": "m", "messages": messages})


def served(
    request: ChatRequest | CompletionRequest | None = None,
    answer: str = "hello",
    *,
    content: Content = "off",
    given: bool = False,
    measured: bool = False,
    length_stop: bool = False,
    engine_signals: dict[str, Any] | None = None,
    **numbers: Any,
) -> Served:
    return Served(
        request=request or chat_request(),
        answer=answer,
        person=Person(user_hash="u" * 32, session_hash="s" * 32),
        consent=Consent(content=content, given=given),
        numbers={**NUMBERS, **numbers},
        measured=measured,
        length_stop=length_stop,
        engine_signals=engine_signals,
    )


def request_row(**numbers: Any) -> dict[str, Any]:
    """A row of `requests_table` without words or signals."""
    return build_request_row(served(**numbers))
