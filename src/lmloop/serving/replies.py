"""What a client gets: OpenAI's answer objects and stream chunks, as plain data.

Takes: texts, finish reasons and counts. Gives: dictionaries, and the bytes of stream events. Chat
and plain completions differ in their choices only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What all objects of one answer share."""

    id: str
    created: int
    """Seconds since the epoch."""
    model: str
    weights: str
    """Version of the weights that answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens that a request took."""

    prompt_tokens: int
    completion_tokens: int

    def describe(self) -> dict[str, int]:
        """OpenAI's object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


class Shape(Protocol):
    """How one endpoint words its answers."""

    @property
    def prefix(self) -> str:
        """Begins the answer's id."""

    @property
    def object(self) -> str:
        """Kind of the whole answer."""

    @property
    def chunk_object(self) -> str:
        """Kind of a stream's chunk."""

    def whole(self, index: int, text: str, finish_reason: str) -> dict[str, Any]:
        """One finished choice."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """What a choice's stream begins with, if anything."""

    def delta(self, index: int, text: str) -> dict[str, Any]:
        """New text of a choice."""

    def final(self, index: int, finish_reason: str) -> dict[str, Any]:
        """The end of a choice."""


class ChatShape:
    """`/v1/chat/completions`."""

    prefix = "chatcmpl-"
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def whole(self, index: int, text: str, finish_reason: str) -> dict[str, Any]:
        """A message of the assistant."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return _choice(index, {"message": message}, finish_reason)

    def opening(self, index: int) -> dict[str, Any]:
        """The role."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return _choice(index, {"delta": delta}, None)

    def delta(self, index: int, text: str) -> dict[str, Any]:
        """New content."""
        return _choice(index, {"delta": {"content": text}}, None)

    def final(self, index: int, finish_reason: str) -> dict[str, Any]:
        """An empty delta with the reason."""
        return _choice(index, {"delta": {}}, finish_reason)


class CompletionShape:
    """`/v1/completions`."""

    prefix = "cmpl-"
    object = "text_completion"
    chunk_object = "text_completion"

    def whole(self, index: int, text: str, finish_reason: str) -> dict[str, Any]:
        """The text that follows the prompt."""
        return _choice(index, {"text": text}, finish_reason)

    def opening(self, index: int) -> None:
        """Nothing: there is no role."""

    def delta(self, index: int, text: str) -> dict[str, Any]:
        """New text."""
        return _choice(index, {"text": text}, None)

    def final(self, index: int, finish_reason: str) -> dict[str, Any]:
        """No text, and the reason."""
        return _choice(index, {"text": ""}, finish_reason)


def _choice(index: int, content: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, **content, "logprobs": None, "finish_reason": finish_reason}


def answer_object(
    head: Head, shape: Shape, *, choices: Sequence[dict[str, Any]], usage: Usage
) -> dict[str, Any]:
    """A whole answer."""
    return {**_envelope(head, shape.object), "choices": list(choices), "usage": usage.describe()}


def chunk_event(head: Head, shape: Shape, choice: dict[str, Any], *, includes_usage: bool) -> bytes:
    """One choice's news as a stream event."""
    chunk = {**_envelope(head, shape.chunk_object), "choices": [choice]}
    return event(chunk | {"usage": None} if includes_usage else chunk)


def usage_event(head: Head, shape: Shape, usage: Usage) -> bytes:
    """The usage as the last chunk of a stream that asked for it."""
    chunk = {**_envelope(head, shape.chunk_object), "choices": [], "usage": usage.describe()}
    return event(chunk)


def event(data: object) -> bytes:
    """A server-sent event; a blank line ends it.

    Escaped to ASCII: clients that split lines the Unicode way would cut at U+2028 and U+0085.
    """
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


def _envelope(head: Head, kind: str) -> dict[str, Any]:
    return {
        "id": head.id,
        "object": kind,
        "created": head.created,
        "model": head.model,
        "system_fingerprint": head.weights,
    }
