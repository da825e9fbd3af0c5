"""Pages alone on a port, without a model: what other stages show while they work.

Takes: routers. Gives: HTTP until a signal, behind the same door as a served model.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence

from fastapi import APIRouter, FastAPI

from lmloop.serving.access import Door
from lmloop.serving.app import create_http_server
from lmloop.serving.failures import install_failures
from lmloop.serving.metrics import Metrics
from lmloop.serving.server import Signals, listen, url_of


def serve_pages(
    pages: Sequence[APIRouter], *, host: str, port: int, on_ready: Callable[[str], None]
) -> None:
    """Serve routers until SIGTERM or SIGINT; `on_ready` gets the URL.

    On a loopback address only this machine is answered. Raises `ServingError` where the port is
    taken.
    """
    with contextlib.closing(listen(host, port)) as listener:
        asyncio.run(run_pages(listener, pages=pages, host=host, on_ready=on_ready))


async def run_pages(
    listener: socket.socket,
    *,
    pages: Sequence[APIRouter],
    host: str,
    on_ready: Callable[[str], None],
    signals: Signals | None = None,
) -> None:
    """Serve on a listening socket until a signal."""
    signals = signals or Signals()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    install_failures(app)
    for page in pages:
        app.include_router(page)
    app.add_middleware(Door, host=host, metrics=Metrics(model="pages"))
    server = create_http_server(app)
    with signals.caught():
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        leaving = asyncio.create_task(signals.leave.wait())
        # The socket listens already: whoever comes before the server is up waits in its queue.
        on_ready(url_of(listener))
        await asyncio.wait({serving, leaving}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        leaving.cancel()
        await serving
