"""The door: which requests come in, how large they may be, and what every answer carries.

Takes: each HTTP request. Gives: it to the app, or an error. On a loopback address only this
machine's own names are served (DNS rebinding), pages of other sites are refused (CSRF), bodies are
bounded while they are read, and no fault leaves without OpenAI's error object.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import secrets
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmloop.errors import RequestError
from lmloop.serving.failures import error_response, internal_error
from lmloop.serving.metrics import Metrics

MAX_BODY_BYTES = 2 * 1024 * 1024
MAX_DISCARDED_BYTES = 16 * MAX_BODY_BYTES
"""So much of a body that is too large is still read, so that its sender hears why it is refused."""
BODY_SECONDS = 30.0
"""How long a client may take to send a body."""
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
        "object-src 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

logger = logging.getLogger(__name__)


class Door:
    """ASGI middleware around the whole app."""

    def __init__(self, app: ASGIApp, *, host: str, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._names = LOOPBACK_NAMES | {host.lower()} if is_loopback(host) else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, pass on, and add what every answer carries."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        answer = _Answer(send, request_id=f"req-{secrets.token_hex(12)}")
        try:
            check_origin(Headers(scope=scope), names=self._names)
            await self._app(scope, receive, answer.send)
        except RequestError as error:
            await error_response(error)(scope, receive, answer.send)
        except Exception:
            logger.exception("%s failed", answer.request_id)
            if answer.status is not None:
                raise
            await error_response(internal_error())(scope, receive, answer.send)
        finally:
            self._metrics.count_http(
                handler_of(scope),
                method=scope["method"],
                # 499 is what others log for a client that went away before its answer.
                status=answer.status or 499,
                seconds=time.monotonic() - started,
            )


class _Answer:
    """Adds headers to an answer and remembers its status."""

    def __init__(self, send: Send, *, request_id: str) -> None:
        self._send = send
        self.request_id = request_id
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.request_id
            for name, value in SECURITY_HEADERS.items():
                headers[name] = value
        await self._send(message)


def handler_of(scope: Scope) -> str:
    """The matched route's template: a closed set, unlike the path."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else "unmatched"


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reachable from this machine alone."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host.lower() == "localhost"


def check_origin(headers: Headers, *, names: frozenset[str] | None) -> None:
    """Raise `RequestError` (403) for a Host outside `names`, if given, or a foreign Origin."""
    host = headers.get("host", "")
    if names is not None and _hostname(f"//{host}") not in names:
        raise RequestError(
            "This server answers on this machine only: use http://127.0.0.1 or http://localhost.",
            status=403,
            code="host_not_allowed",
        )
    origin = headers.get("origin")
    if origin is not None and _authority(origin) != host.lower():
        raise RequestError(
            "Pages of other sites may not use this server.", status=403, code="origin_not_allowed"
        )


def _hostname(url: str) -> str | None:
    with contextlib.suppress(ValueError):
        return urlsplit(url).hostname
    return None


def _authority(origin: str) -> str | None:
    """Host and port of an origin; None for `null` and for anything odd."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(origin)
        if parts.scheme in ("http", "https"):
            return parts.netloc.lower()
    return None


async def read_body(request: Request) -> bytes:
    """The body of a JSON request; `RequestError` 415, 413 or 408 where it is not fit to be read."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Browsers send forms and text to foreign sites without asking, JSON they do not.
        raise RequestError(
            "Send the body as JSON, with the header Content-Type: application/json.",
            status=415,
            code="unsupported_media_type",
        )
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _collect(request.receive)
    except TimeoutError:
        raise RequestError(
            f"The body did not arrive within {BODY_SECONDS:.0f} seconds.", status=408
        ) from None


async def _collect(receive: Receive) -> bytes:
    body = bytearray()
    size = 0
    while size <= MAX_DISCARDED_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestError("The client left while it was sending.", status=400)
        size += len(message.get("body", b""))
        if size <= MAX_BODY_BYTES:
            body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    if size > MAX_BODY_BYTES:
        raise RequestError(
            f"The body is larger than {MAX_BODY_BYTES} bytes.", status=413, code="body_too_large"
        )
    return bytes(body)
