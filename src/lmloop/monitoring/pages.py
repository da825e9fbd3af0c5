"""The monitor as a page of the server.

Takes: the database and a model's name. Gives: a router with `/monitor`, the files of the page, its
data, and a Grafana dashboard over the server's own metrics.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.staticfiles import StaticFiles

from lmloop.errors import RequestError
from lmloop.monitoring.summary import summarise
from lmloop.upkeep import MonitorConfig

WEB_FOLDER = Path(__file__).parent / "web"
PAGE = "monitor.html"
READING = ["GET", "HEAD"]
DEFAULT_MINUTES = 60
MAX_MINUTES = 31 * 24 * 60
FRESH_SECONDS = 2.0
"""So long the same data are given again."""
MAX_SPANS = 8
"""Spans of time whose data are kept."""

logger = logging.getLogger(__name__)


def build_monitor_pages(engine: sa.Engine, *, name: str, config: MonitorConfig) -> APIRouter:
    """The monitor's routes for one model."""
    routes = APIRouter()
    data = _Data(engine, name, config)
    files = StaticFiles(directory=WEB_FOLDER)
    for path in sorted(WEB_FOLDER.iterdir()):
        url = "/monitor" if path.name == PAGE else f"/monitor/{path.name}"
        routes.add_api_route(url, _serve_file(files, path.name), methods=READING)

    @routes.api_route("/monitor/data.json", methods=READING)
    async def read_data(request: Request) -> Response:
        minutes = _read_minutes(request.query_params.get("minutes"))
        headers = {"Cache-Control": "no-store"}
        return JSONResponse(await data.read(seconds=60.0 * minutes), headers=headers)

    return routes


class _Data:
    """Summaries, made on a thread, one at a time, and kept for a moment."""

    def __init__(self, engine: sa.Engine, name: str, config: MonitorConfig) -> None:
        self._engine, self._name, self._config = engine, name, config
        self._kept: dict[float, tuple[float, dict[str, Any]]] = {}
        self._working = asyncio.Lock()

    async def read(self, *, seconds: float) -> dict[str, Any]:
        """The summary of the last `seconds`; `RequestError` (503) where the database is away."""
        async with self._working:
            made, data = self._kept.get(seconds, (float("-inf"), {}))
            if time.monotonic() - made < FRESH_SECONDS:
                return data
            data = await asyncio.to_thread(self._make, seconds)
            if len(self._kept) >= MAX_SPANS:
                self._kept.clear()
            self._kept[seconds] = time.monotonic(), data
            return data

    def _make(self, seconds: float) -> dict[str, Any]:
        try:
            summary = summarise(self._engine, name=self._name, config=self._config, seconds=seconds)
        except sa.exc.SQLAlchemyError as error:
            logger.warning("the monitor cannot read the database: %s", type(error).__name__)
            raise RequestError(
                "The monitor's data cannot be read at the moment: try again later.",
                status=503,
                code="database_unavailable",
            ) from error
        return summary.to_json()


def _read_minutes(text: str | None) -> int:
    if text is None:
        return DEFAULT_MINUTES
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_MINUTES):
        raise RequestError(f"minutes is a whole number from 1 to {MAX_MINUTES}.", param="minutes")
    return int(text)


def _serve_file(files: StaticFiles, name: str) -> Callable[[Request], Awaitable[Response]]:
    async def serve_file(request: Request) -> Response:
        response = await files.get_response(name, request.scope)
        response.headers["Cache-Control"] = "no-cache"
        return response

    return serve_file
