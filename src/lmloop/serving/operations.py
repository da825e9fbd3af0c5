"""The routes for those who run the server and for the chat page: health, numbers, facts, ratings.

Takes: HTTP requests. Gives: `/health`, `/ready`, `/metrics`, `/info` and `POST /v1/feedback`.
"""

from __future__ import annotations

import asyncio
import logging
import re

import sqlalchemy as sa
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from lmloop.errors import RequestError
from lmloop.serving.access import MAX_BODY_BYTES, read_body
from lmloop.serving.failures import RETRY_SECONDS
from lmloop.serving.metrics import CONTENT_TYPE
from lmloop.serving.schemas import MAX_CHOICES, Feedback, parse_body
from lmloop.serving.service import Service

READING = ["GET", "HEAD"]
_ANSWER_ID = re.compile(r"(chatcmpl|cmpl)-[0-9a-f]{24}")

logger = logging.getLogger(__name__)


def build_operations_routes(service: Service) -> APIRouter:
    """The routes beside OpenAI's."""
    routes = APIRouter()

    @routes.api_route("/health", methods=READING)
    async def health() -> JSONResponse:
        alive = service.router.status != "failed"
        return _report("ok" if alive else "failed", ok=alive)

    @routes.api_route("/ready", methods=READING)
    async def ready() -> JSONResponse:
        status = service.router.status
        return _report(status, ok=status == "ready")

    @routes.api_route("/metrics", methods=READING)
    async def metrics() -> Response:
        return Response(service.metrics.expose(service.router), media_type=CONTENT_TYPE)

    @routes.api_route("/info", methods=READING)
    async def info() -> JSONResponse:
        return JSONResponse(_describe(service))

    @routes.post("/v1/feedback")
    async def feedback(request: Request) -> JSONResponse:
        rating = parse_body(Feedback, await read_body(request))
        await _check_served(service, rating.response_id)
        service.metrics.count_rating(rating.rating)
        service.events.record_rating(
            {
                "request_id": rating.response_id,
                "created": service.wall_clock(),
                "rating": rating.rating,
                "correction": rating.correction,
                "comment": rating.comment,
            }
        )
        return JSONResponse({"response_id": rating.response_id, "rating": rating.rating})

    return routes


def _report(status: str, *, ok: bool) -> JSONResponse:
    headers = {} if ok else {"Retry-After": str(RETRY_SECONDS)}
    return JSONResponse({"status": status}, status_code=200 if ok else 503, headers=headers)


def _describe(service: Service) -> dict[str, object]:
    config, router = service.config, service.router
    ready = router.live.state == "ready"
    return {
        "model": service.model_name,
        "weights": router.live.weights,
        "status": router.status,
        "context_length": router.live.context_length if ready else None,
        "max_tokens": config.max_tokens,
        "limits": {
            "max_running": config.max_running,
            "max_waiting": config.max_waiting,
            "max_choices": MAX_CHOICES,
            "max_body_bytes": MAX_BODY_BYTES,
        },
        "defaults": {
            "temperature": config.temperature,
            "top_p": config.top_p,
            "max_tokens": config.max_tokens,
        },
    }


async def _check_served(service: Service, response_id: str) -> None:
    """Raise `RequestError`: 404 for an answer that was never given, 503 where nobody can tell."""
    try:
        known = _ANSWER_ID.fullmatch(response_id) is not None and await asyncio.to_thread(
            service.events.knows, response_id
        )
    except sa.exc.SQLAlchemyError as error:
        logger.warning("a rating could not be checked: %s", type(error).__name__)
        raise RequestError(
            "Ratings cannot be taken at the moment: try again later.",
            status=503,
            code="database_unavailable",
        ) from error
    if not known:
        raise RequestError(
            "This server gave no answer with this response_id.",
            status=404,
            code="response_not_found",
            param="response_id",
        )
