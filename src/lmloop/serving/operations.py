"""The routes for those who run the server and for the chat page: health, numbers, facts, ratings.

Takes: HTTP requests. Gives: `/health`, `/ready`, `/metrics`, `/info` and `POST /v1/feedback`.
"""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from lmloop.errors import RequestError
from lmloop.serving.access import MAX_BODY_BYTES, read_body
from lmloop.serving.consent import read_consent
from lmloop.serving.failures import RETRY_SECONDS
from lmloop.serving.metrics import CONTENT_TYPE
from lmloop.serving.ratings import MAX_CHANGES
from lmloop.serving.rows import build_rating_row
from lmloop.serving.schemas import MAX_CHOICES, Feedback, parse_body
from lmloop.serving.service import Service
from lmloop.store.database import ratings_table

READING = ["GET", "HEAD"]


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
        content = read_consent(request.headers, default="redacted").content
        _check_rateable(service, rating.response_id)
        service.metrics.count_rating(rating.rating)
        build = partial(build_rating_row, rating, created=service.wall_clock(), content=content)
        service.events.record(ratings_table, build, characters=rating.characters)
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
        "content": config.content,
        "rollout": router.describe(),
    }


def _check_rateable(service: Service, response_id: str) -> None:
    """Raise `RequestError`: 404 for an answer that was never given, 429 after many ratings of one.

    No database is asked, so that strangers who guess cost nothing.
    """
    if not service.identity.verify(response_id):
        raise RequestError(
            "This server gave no answer with this response_id.",
            status=404,
            code="response_not_found",
            param="response_id",
        )
    if not service.rating_limit.take(response_id):
        raise RequestError(
            f"This answer was rated {MAX_CHANGES} times; what was sent last is kept.",
            status=429,
            code="too_many_ratings",
            param="response_id",
        )
