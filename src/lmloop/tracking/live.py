"""The page of runs while they go on.

Takes: a function that reads the runs. Gives: a router with the page, its style and script, and its
inside, which the script asks for every other second.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Sequence

import sqlalchemy as sa
from fastapi import APIRouter, Request
from fastapi.responses import Response

from lmloop.errors import DatabaseError, RequestError
from lmloop.store.runs import Run
from lmloop.tracking.page import WEB_FOLDER, choose, render_frame, render_inside

READING = ["GET", "HEAD"]
FRESH_SECONDS = 1.0
"""So long the same runs are given again: they are written no more often."""
ASKED_AGAIN = {"Cache-Control": "no-cache"}
HTML = "text/html; charset=utf-8"
FILES = {"runs.css": "text/css; charset=utf-8", "runs.js": "text/javascript; charset=utf-8"}

logger = logging.getLogger(__name__)


def build_runs_pages(read: Callable[[], Sequence[Run]]) -> APIRouter:
    """The routes of the live page; `read` gives the runs, the newest first."""
    routes = APIRouter()
    newest = _Newest(read)

    @routes.api_route("/", methods=READING)
    async def read_page() -> Response:
        return Response(render_frame(), media_type=HTML, headers=ASKED_AGAIN)

    @routes.api_route("/inside", methods=READING)
    async def read_inside(request: Request) -> Response:
        asked = request.query_params
        choice = choose(asked.getlist("run"), asked.get("axis"))
        runs = await newest.read()
        text = await asyncio.to_thread(render_inside, runs, choice=choice, is_live=True)
        body = text.encode()
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        headers = {**ASKED_AGAIN, "ETag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(body, media_type=HTML, headers=headers)

    @routes.api_route("/{name}", methods=READING)
    async def read_file(name: str) -> Response:
        if name not in FILES:
            raise RequestError("There is no such page here.", status=404, code="not_found")
        body = (WEB_FOLDER / name).read_bytes()
        return Response(body, media_type=FILES[name], headers=ASKED_AGAIN)

    return routes


class _Newest:
    """The runs, read on a thread, one reader at a time, and kept for a moment."""

    def __init__(self, read: Callable[[], Sequence[Run]]) -> None:
        self._read = read
        self._kept: tuple[float, Sequence[Run]] = (float("-inf"), ())
        self._reading = asyncio.Lock()

    async def read(self) -> Sequence[Run]:
        """Raises `RequestError` (503) where the database is away."""
        async with self._reading:
            made, runs = self._kept
            if time.monotonic() - made >= FRESH_SECONDS:
                runs = await asyncio.to_thread(self._ask)
                self._kept = time.monotonic(), runs
            return runs

    def _ask(self) -> Sequence[Run]:
        try:
            return self._read()
        except (sa.exc.SQLAlchemyError, DatabaseError) as error:
            logger.warning("the runs cannot be read: %s", type(error).__name__)
            raise RequestError(
                "The runs cannot be read at the moment: try again later.",
                status=503,
                code="database_unavailable",
            ) from error
