"""How every error looks on the wire: OpenAI's object with all four keys, whatever went wrong.

Takes: a `RequestError`, an unknown path, a wrong method, a fault of ours. Gives: a JSON response;
never HTML, never a traceback, never the default 422.
"""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from lmloop.errors import RequestError

RETRY_SECONDS = 2
"""What `Retry-After` says where trying again makes sense."""
GENERIC = "The server made a mistake; its log has the details under this request's x-request-id."

logger = logging.getLogger(__name__)


def error_object(error: RequestError) -> dict[str, Any]:
    """OpenAI's error object."""
    if error.status >= 500:
        kind = "server_error"
    else:
        kind = {401: "authentication_error", 403: "permission_error"}.get(
            error.status, "invalid_request_error"
        )
    return {
        "error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}
    }


def error_response(error: RequestError) -> JSONResponse:
    """An error as a whole HTTP answer."""
    headers = {}
    if error.status == 503:
        headers["Retry-After"] = str(RETRY_SECONDS)
    elif error.status >= 500:
        # The same request would fail again, and cost twice.
        headers["x-should-retry"] = "false"
    return JSONResponse(error_object(error), status_code=error.status, headers=headers)


def internal_error() -> RequestError:
    """What a client learns of a fault of ours."""
    return RequestError(GENERIC, status=500, code="internal_error")


def install_failures(app: FastAPI) -> None:
    """Answer all errors of an app this way."""
    app.add_exception_handler(RequestError, _answer_request_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)


async def _answer_request_error(_request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestError):
        raise error
    return error_response(error)


async def _answer_http_exception(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise error
    where = f"{request.method} {request.scope['path'][:200]}"
    message, code = {
        404: (f"There is nothing at {where}.", "not_found"),
        405: (f"{where} is not a method of this path.", "method_not_allowed"),
    }.get(error.status_code, (str(error.detail), None))
    response = error_response(RequestError(message, status=error.status_code, code=code))
    response.headers.update(error.headers or {})
    return response


async def _answer_validation_error(_request: Request, error: Exception) -> JSONResponse:
    logger.error("a route declares parameters that are not checked by schemas", exc_info=error)
    return error_response(RequestError("The request cannot be read."))
