"""The web application: all routes, the chat page's files, and the door around them.

Takes: a `Service`. Gives: a FastAPI app that does nothing at start-up: who runs it starts the
router first and closes it afterwards (see `lmloop.serving.server`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import uvicorn
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response
from starlette.staticfiles import StaticFiles

from lmloop.serving.access import Door
from lmloop.serving.failures import install_failures
from lmloop.serving.openai import build_openai_routes
from lmloop.serving.operations import READING, build_operations_routes
from lmloop.serving.service import Service

WEB_FOLDER = Path(__file__).parent / "web"
GRACE_SECONDS = 2
"""How long clients may take to read the end of their answers once all are made."""


def create_app(
    service: Service, *, web_folder: Path = WEB_FOLDER, pages: Sequence[APIRouter] = ()
) -> FastAPI:
    """Build the app of one served model; `pages` are the routes of other stages' pages."""
    # No schema pages: theirs load scripts from elsewhere, and docs/serve.md says it better.
    app = FastAPI(
        title="lmloop", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    install_failures(app)
    app.include_router(build_openai_routes(service))
    app.include_router(build_operations_routes(service))
    for page in pages:
        app.include_router(page)
    _add_page(app, web_folder)
    app.add_middleware(Door, host=service.config.host, metrics=service.metrics)
    return app


class HttpServer(uvicorn.Server):
    """uvicorn without signal handlers: whoever runs it drains first and then tells it to exit."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


def create_http_server(app: FastAPI) -> HttpServer:
    """An HTTP server for the app; run it with `serve(sockets=[...])`."""
    return HttpServer(
        uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )


def _add_page(app: FastAPI, folder: Path) -> None:
    """Serve every file of the folder under its name, and index.html as `/`.

    A route a file, not a mount at `/`: a mount would swallow what has to be answered 404 or 405.
    """
    files = StaticFiles(directory=folder)
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        name = path.relative_to(folder).as_posix()
        url = "/" if name == "index.html" else f"/{name}"
        app.add_api_route(url, _serve_file(files, name), methods=READING)


def _serve_file(files: StaticFiles, name: str) -> Callable[[Request], Awaitable[Response]]:
    async def serve_file(request: Request) -> Response:
        response = await files.get_response(name, request.scope)
        # Asked again each time and answered 304: a new version of the page is seen at once.
        response.headers["Cache-Control"] = "no-cache"
        return response

    return serve_file
