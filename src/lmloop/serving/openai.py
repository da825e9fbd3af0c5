"""OpenAI's interface: the model list, chat and plain completions, streamed and whole.

Takes: HTTP requests. Gives: answers in OpenAI's words; an error before the first token is a plain
HTTP status, one after it an error event that ends the stream without `[DONE]`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers

from lmloop.errors import RequestError
from lmloop.serving.access import read_body
from lmloop.serving.consent import read_consent
from lmloop.serving.exchange import Call, Exchange, admit
from lmloop.serving.failures import error_object, internal_error
from lmloop.serving.process import Piece
from lmloop.serving.prompts import plan_chat, plan_completion
from lmloop.serving.replies import (
    DONE,
    PING,
    ChatShape,
    CompletionShape,
    answer_object,
    chunk_event,
    event,
    usage_event,
)
from lmloop.serving.schemas import parse_chat, parse_completion, unknown_fields
from lmloop.serving.service import Service
from lmloop.serving.streaming import ClientGoneError, EventStream, until_gone

PING_SECONDS = 15.0
"""Longest silence of an open stream."""
IGNORED_HEADER = "x-lmloop-ignored-fields"

logger = logging.getLogger(__name__)


def build_openai_routes(service: Service) -> APIRouter:
    """The routes below `/v1` that OpenAI's clients call."""
    routes = APIRouter()

    @routes.get("/v1/models")
    async def list_models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [_describe_model(service)]})

    @routes.get("/v1/models/{name:path}")
    async def show_model(request: Request) -> JSONResponse:
        service.check_model(request.path_params["name"])
        return JSONResponse(_describe_model(service))

    @routes.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await _answer(service, request, read=read_chat)

    @routes.post("/v1/completions")
    async def complete(request: Request) -> Response:
        return await _answer(service, request, read=read_completion)

    return routes


def _describe_model(service: Service) -> dict[str, Any]:
    return {
        "id": service.model_name,
        "object": "model",
        "created": service.model_created,
        "owned_by": "lmloop",
    }


def read_chat(service: Service, headers: Headers, body: bytes) -> Call:
    """Check a chat request; raises `RequestError` (400)."""
    request = parse_chat(body)
    return Call(
        endpoint="chat",
        shape=ChatShape(),
        request=request,
        planner=partial(plan_chat, request),
        person=service.identity.describe(headers, request),
        consent=read_consent(headers, default=service.config.content),
    )


def read_completion(service: Service, headers: Headers, body: bytes) -> Call:
    """Check a request for a plain completion; raises `RequestError` (400)."""
    request = parse_completion(body)
    return Call(
        endpoint="completions",
        shape=CompletionShape(),
        request=request,
        planner=partial(plan_completion, request),
        person=service.identity.describe(headers, request),
        consent=read_consent(headers, default=service.config.content),
    )


async def _answer(
    service: Service, request: Request, *, read: Callable[[Service, Headers, bytes], Call]
) -> Response:
    """Check, admit, run; the status line waits for the first token."""
    begun = False
    with contextlib.ExitStack() as stack:
        try:
            call = read(service, request.headers, await read_body(request))
            service.check_model(call.request.model)
            await service.router.wait_open()
            exchange = admit(service, call)
            stack.callback(exchange.close)
            await until_gone(request.receive, exchange.begin())
            begun = True
            service.shadows.mirror(service, call, live=exchange.head.id)
            first = await until_gone(request.receive, exchange.next_piece())
            headers = _note_ignored(call)
            if call.request.stream:
                stack.pop_all()
                events = _stream(exchange, call, first)
                return EventStream(events, on_close=exchange.close, headers=headers)
            await until_gone(request.receive, _finish(exchange))
            return JSONResponse(_describe_answer(exchange, call), headers=headers)
        except RequestError as error:
            if not begun:
                service.metrics.count_rejected(error)
            raise
        except ClientGoneError:
            return Response(status_code=499)


def _note_ignored(call: Call) -> dict[str, str]:
    """A header that names fields nobody knows; odd names are left out of it."""
    names = [
        name for name in unknown_fields(call.request) if name.isascii() and name.isidentifier()
    ]
    return {IGNORED_HEADER: ", ".join(name[:64] for name in names[:10])} if names else {}


async def _finish(exchange: Exchange) -> None:
    while await exchange.next_piece() is not None:
        pass


def _describe_answer(exchange: Exchange, call: Call) -> dict[str, Any]:
    choices = [
        call.shape.whole(index, "".join(texts), exchange.finish_reasons[index])
        for index, texts in enumerate(exchange.texts)
    ]
    return answer_object(exchange.head, call.shape, choices=choices, usage=exchange.usage)


async def _stream(
    exchange: Exchange, call: Call, first: Piece | None
) -> AsyncGenerator[bytes, None]:
    """The answer as events; one that fails on the way ends with an error and no `[DONE]`."""
    try:
        async for data in _stream_pieces(exchange, call, first):
            yield data
    except RequestError as error:
        yield event(error_object(error))
    except Exception:
        logger.exception("the stream of %s failed", exchange.head.id)
        yield event(error_object(internal_error()))


async def _stream_pieces(
    exchange: Exchange, call: Call, first: Piece | None
) -> AsyncGenerator[bytes, None]:
    shape, with_usage = call.shape, call.request.includes_usage
    emit = partial(chunk_event, exchange.head, shape, includes_usage=with_usage)
    for index in range(exchange.count):
        if (opening := shape.opening(index)) is not None:
            yield emit(opening)
    piece = first
    while piece is not None:
        if piece.text:
            yield emit(shape.delta(piece.index, piece.text))
        if piece.finish_reason is not None:
            yield emit(shape.final(piece.index, piece.finish_reason))
        while isinstance(news := await _next_or_ping(exchange), bytes):
            yield news
        piece = news
    if with_usage:
        yield usage_event(exchange.head, shape, exchange.usage)
    yield DONE


async def _next_or_ping(exchange: Exchange) -> Piece | bytes | None:
    try:
        async with asyncio.timeout(PING_SECONDS):
            return await exchange.next_piece()
    except TimeoutError:
        return PING
