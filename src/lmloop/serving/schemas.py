"""What a client may send, checked whole: a request object, or one error in OpenAI's terms.

Takes: the bytes of a body. Gives: `ChatRequest`, `CompletionRequest` or `Feedback`. Fields that
change nothing are ignored; one that would change the answer and is not supported is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from lmloop.errors import RequestError
from lmloop.records import Turn

MAX_CHOICES = 8
MAX_PROMPTS = 64
MAX_MESSAGES = 4096
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 256
MAX_CORRECTION_CHARACTERS = 20_000
MAX_COMMENT_CHARACTERS = 2_000

NEUTRAL: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "tools": ("[]",),
        "tool_choice": ('"none"', '"auto"'),
        "tool_calls": ("[]",),
        "functions": ("[]",),
        "function_call": ('"none"', '"auto"'),
        "response_format": ('{"type": "text"}',),
        "logprobs": ("false",),
        "top_logprobs": ("0",),
        "prompt_logprobs": ("0",),
        "logit_bias": ("{}",),
        "presence_penalty": ("0", "0.0"),
        "frequency_penalty": ("0", "0.0"),
        "repetition_penalty": ("1", "1.0"),
        "min_p": ("0", "0.0"),
        "min_tokens": ("0",),
        "ignore_eos": ("false",),
        "stop_token_ids": ("[]",),
        "skip_special_tokens": ("true",),
        "best_of": ("1",),
        "echo": ("false",),
        "suffix": ('""',),
        "modalities": ('["text"]',),
        "audio": (),
        "web_search_options": (),
        "chat_template": (),
        "chat_template_kwargs": ("{}",),
        "add_generation_prompt": ("true",),
        "continue_final_message": ("false",),
        "structured_outputs": (),
        "guided_json": (),
        "guided_regex": (),
        "guided_choice": (),
        "guided_grammar": (),
        "grammar": (),
        "json_schema": (),
    }
)
"""Fields that change the answer and are not supported: the only values (as JSON, beside null) that
ask for nothing."""
IGNORED = frozenset(
    {
        *("name", "metadata", "store", "service_tier"),
        *("prompt_cache_key", "prompt_cache_retention", "cache_salt", "priority", "prediction"),
        *("verbosity", "reasoning_effort", "parallel_tool_calls"),
    }
)
"""Fields that are accepted and change nothing."""


class Body(BaseModel):
    """Base of all bodies: exact types, further fields kept apart in `model_extra`."""

    model_config = ConfigDict(
        extra="allow", frozen=True, strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )


def _join_parts(value: object) -> object:
    """Text of a content that may come as a list of text parts."""
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise ValueError("every content part is an object with a type")
        if part["type"] != "text":
            kind = part["type"][:64]
            raise ValueError(f"content parts of type {kind!r} are not supported: send text")
        if not isinstance(part.get("text"), str):
            raise ValueError("a content part of type 'text' has its text as a string")
        texts.append(part["text"])
    return "\n".join(texts)


def _list_stops(value: object) -> object:
    """Stop strings as a tuple; null, "" and [] mean none."""
    if value is None or isinstance(value, str):
        return (value,) if value else ()
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return tuple(each for each in value if each)
    raise ValueError("give a string or a list of strings")


def _list_prompts(value: object) -> object:
    """Prompts as a tuple of strings and tuples of token ids."""
    if isinstance(value, str) or _is_ids(value):
        value = [value]
    if isinstance(value, list) and value and all(isinstance(e, str) or _is_ids(e) for e in value):
        return tuple(each if isinstance(each, str) else tuple(each) for each in value)
    raise ValueError("give a string, a list of strings, token ids, or a list of lists of token ids")


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int for each in value)


class Message(Body):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_join_parts)]


class StreamOptions(Body):
    """What a stream carries besides the answer."""

    include_usage: bool | None = None


class GenerationRequest(Body):
    """What chat and plain completions have in common."""

    model: str = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    stop: Annotated[
        tuple[Annotated[str, Field(max_length=MAX_STOP_CHARACTERS)], ...],
        BeforeValidator(_list_stops),
        Field(max_length=MAX_STOPS),
    ] = ()
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    safety_identifier: str | None = None

    @property
    def choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ChatRequest(GenerationRequest):
    """Body of `POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(default=None, ge=1)

    @property
    def count(self) -> int:
        """Sequences that this request asks for."""
        return self.choices

    @property
    def characters(self) -> int:
        """Size of its texts."""
        return sum(len(each.content) for each in self.messages)

    @property
    def turns(self) -> list[Turn]:
        """The messages as records."""
        return [Turn(each.role, each.content) for each in self.messages]

    @property
    def opening(self) -> str | None:
        """What the user said first: the same in every request of a conversation."""
        return next((each.content for each in self.messages if each.role == "user"), None)


class CompletionRequest(GenerationRequest):
    """Body of `POST /v1/completions`."""

    prompt: Annotated[
        tuple[str | tuple[int, ...], ...],
        BeforeValidator(_list_prompts),
        Field(max_length=MAX_PROMPTS),
    ]

    @property
    def count(self) -> int:
        """Sequences that this request asks for."""
        return self.choices * len(self.prompt)

    @property
    def characters(self) -> int:
        """Size of its prompts, in characters and token ids."""
        return sum(map(len, self.prompt))

    @property
    def turns(self) -> list[Turn]:
        """The first prompt as what a user says; nothing where it is token ids."""
        first = self.prompt[0]
        return [Turn("user", first)] if isinstance(first, str) else []

    @property
    def opening(self) -> None:
        """Nothing: a plain text belongs to no conversation."""


def _check_rating(rating: int) -> int:
    if rating not in (1, -1):
        raise ValueError("give 1, -1 or null")
    return rating


class Feedback(Body):
    """Body of `POST /v1/feedback`; sent again for the same answer it replaces what was sent."""

    response_id: str
    rating: Annotated[int, AfterValidator(_check_rating)] | None = None
    correction: str | None = Field(default=None, max_length=MAX_CORRECTION_CHARACTERS)
    comment: str | None = Field(default=None, max_length=MAX_COMMENT_CHARACTERS)

    @property
    def characters(self) -> int:
        """Size of its texts."""
        return len(self.correction or "") + len(self.comment or "")


AnyBody = TypeVar("AnyBody", bound=Body)


def parse_chat(body: bytes) -> ChatRequest:
    """Read a chat request; raise `RequestError` (400) with the first fault."""
    request = parse_body(ChatRequest, body)
    both = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(both) > 1:
        raise RequestError(
            "max_tokens and max_completion_tokens differ: send one of them.", param="max_tokens"
        )
    for index, message in enumerate(request.messages):
        _refuse_unsupported(message.model_extra or {}, prefix=f"messages.{index}.")
    return _check_generation(request)


def parse_completion(body: bytes) -> CompletionRequest:
    """Read a completion request; raise `RequestError` (400) with the first fault."""
    return _check_generation(parse_body(CompletionRequest, body))


AnyGeneration = TypeVar("AnyGeneration", bound=GenerationRequest)


def _check_generation(request: AnyGeneration) -> AnyGeneration:
    _refuse_unsupported(request.model_extra or {}, prefix="")
    if request.stream_options is not None and not request.stream:
        raise RequestError("stream_options needs stream: true.", param="stream_options")
    return request


def parse_body(model: type[AnyBody], body: bytes) -> AnyBody:
    """Check a body against a model; raise `RequestError` (400) with the first fault."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        raise RequestError(f"The body is not valid JSON: {message}.", code="invalid_json")
    param = ".".join(str(part) for part in first["loc"])[:200]
    if not param:
        raise RequestError("The body has to be a JSON object.", code="invalid_json")
    if first["type"] == "missing":
        raise RequestError(f"{param} is required.", param=param, code="missing_required_parameter")
    raise RequestError(f"{param}: {message}.", param=param, code="invalid_value")


def unknown_fields(request: Body) -> list[str]:
    """Names of fields that were sent and mean nothing here."""
    return sorted(set(request.model_extra or {}) - IGNORED - set(NEUTRAL))


def _refuse_unsupported(extra: Mapping[str, Any], *, prefix: str) -> None:
    for name, value in extra.items():
        if name not in NEUTRAL or value is None or json.dumps(value) in NEUTRAL[name]:
            continue
        allowed = " or ".join(NEUTRAL[name]) or "null"
        raise RequestError(
            f"{prefix}{name} is not supported by this server: leave it out or send {allowed}.",
            param=f"{prefix}{name}",
            code="unsupported_parameter",
        )
