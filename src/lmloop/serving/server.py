"""The server process: one port, one router, one app, from the first import to the last answer.

Takes: a checkpoint folder. Gives: HTTP until a signal. The engine's process is started first,
because it takes longest; what this process needs is imported while the engine loads.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lmloop.config import calm_threads
from lmloop.errors import ServingError
from lmloop.sections import ServeConfig
from lmloop.serving.process import EngineSpec
from lmloop.serving.router import Router

if TYPE_CHECKING:
    import sqlalchemy as sa

    from lmloop.serving.prompts import Texts
    from lmloop.serving.service import Service

DRAIN_SECONDS = 10.0
"""How long answers under way may take after the first signal."""
BACKLOG = 512


def serve(
    folder: Path,
    config: ServeConfig,
    *,
    model_name: str,
    database: sa.Engine,
    on_ready: Callable[[str], None],
) -> None:
    """Serve a checkpoint folder until SIGTERM or SIGINT; `on_ready` gets the URL.

    The first signal stops taking requests and lets answers finish, the second ends at once. Raises
    `ServingError` where the port is taken or no engine can be started.
    """
    calm_threads()  # the engine's process inherits it
    with contextlib.closing(listen(config.host, config.port)) as listener:
        asyncio.run(
            run_server(
                listener,
                spec=engine_spec(folder, config),
                config=config,
                model_name=model_name,
                model_created=int(folder.stat().st_mtime),
                database=database,
                on_ready=on_ready,
            )
        )


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; `ServingError` where there cannot be one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio sets TCP_NODELAY only where it is: without it Nagle's
    # algorithm may hold a token back until the one before it is acknowledged.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ServingError(
            f"cannot listen on {host} port {port} ({error.strerror or error}): "
            "stop what uses it, or choose another port with --port (0 takes a free one)"
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a browser on this machine finds a listening socket."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def engine_spec(folder: Path, config: ServeConfig) -> EngineSpec:
    """How the engine of a checkpoint folder is started."""

    def open_texts() -> Texts:
        from lmloop.serving.prompts import Texts

        return Texts.open(folder)

    return EngineSpec(
        # -P: a file in the current folder must not stand in for a module.
        command=(
            *(sys.executable, "-P", "-m", "lmloop.serving.worker", str(folder)),
            *("--max-running", str(config.max_running)),
        ),
        open_texts=open_texts,
        capacity=config.max_running + config.max_waiting,
    )


class Signals:
    """SIGTERM and SIGINT as two events: leave, and leave at once."""

    def __init__(self) -> None:
        self.leave = asyncio.Event()
        self.leave_now = asyncio.Event()

    def receive(self) -> None:
        """Note one signal."""
        (self.leave_now if self.leave.is_set() else self.leave).set()

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Catch them here; outside the main thread, where they cannot arrive, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self.receive)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)


async def run_server(
    listener: socket.socket,
    *,
    spec: EngineSpec,
    config: ServeConfig,
    model_name: str,
    model_created: int,
    database: sa.Engine,
    on_ready: Callable[[str], None],
    signals: Signals | None = None,
) -> None:
    """Serve on a listening socket until a signal, or until no engine can be started."""
    signals = signals or Signals()
    router = Router(spec)
    with signals.caught():
        await router.start()
        try:
            # Imported here and not above: half a second in which the engine already loads.
            from lmloop.serving.service import open_service

            service = open_service(
                config,
                router=router,
                model_name=model_name,
                model_created=model_created,
                database=database,
            )
            try:
                await _answer(listener, service=service, on_ready=on_ready, signals=signals)
            finally:
                await asyncio.to_thread(service.events.close)
        finally:
            await router.close()


async def _answer(
    listener: socket.socket,
    *,
    service: Service,
    on_ready: Callable[[str], None],
    signals: Signals,
) -> None:
    from lmloop.serving.app import create_app, create_http_server

    http_server = create_http_server(create_app(service))
    serving = asyncio.create_task(http_server.serve(sockets=[listener]))
    watching = asyncio.create_task(_announce(service.router, on_ready, url_of(listener)))
    leaving = asyncio.create_task(signals.leave.wait())
    await asyncio.wait({serving, watching, leaving}, return_when=asyncio.FIRST_COMPLETED)
    if signals.leave.is_set():
        http_server.force_exit = await _drain(service.router, signals)
    http_server.should_exit = True
    leaving.cancel()
    await serving
    if watching.done():
        watching.result()
    watching.cancel()


async def _announce(router: Router, on_ready: Callable[[str], None], url: str) -> None:
    """Tell when the engine is ready; then return only by raising `ServingError`."""
    await router.wait_ready()
    on_ready(url)
    await router.watch()


async def _drain(router: Router, signals: Signals) -> bool:
    """Let answers finish; True where a second signal cut that short."""
    draining = asyncio.create_task(router.drain(DRAIN_SECONDS))
    hurrying = asyncio.create_task(signals.leave_now.wait())
    await asyncio.wait({draining, hurrying}, return_when=asyncio.FIRST_COMPLETED)
    hurried = not draining.done()
    hurrying.cancel()
    draining.cancel()
    if hurried:
        await router.drain(0)
    return hurried
