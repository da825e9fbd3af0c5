"""The server process: one port, one router, one app, from the first import to the last answer.

Takes: a checkpoint folder, or a name in the registry that is followed. Gives: HTTP until a signal.
The engine's process is started first, because it takes longest; what this process needs is imported
while the engine loads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmloop.config import calm_threads
from lmloop.errors import ServingError
from lmloop.sections import ServeConfig
from lmloop.serving.fleet import Aim
from lmloop.serving.process import EngineSpec
from lmloop.serving.router import Router
from lmloop.serving.watcher import MakeSpec, Watcher, read_aim
from lmloop.store.registry import Entry, Registry

if TYPE_CHECKING:
    import sqlalchemy as sa
    from fastapi import APIRouter

    from lmloop.serving.prompts import Texts
    from lmloop.serving.service import Service

DRAIN_SECONDS = 10.0
"""How long answers under way may take after the first signal."""
BACKLOG = 512
SWITCH_SECONDS = 0.0005
"""Longest that the event loop waits for a thread that measures and writes rows; Python's own 5 ms
would delay every piece of every stream by as much."""

logger = logging.getLogger(__name__)


def serve(
    folder: Path,
    config: ServeConfig,
    *,
    model_name: str,
    database: sa.Engine,
    on_ready: Callable[[str], None],
    registry: Registry | None = None,
    pages: Callable[[], Sequence[APIRouter]] = tuple,
) -> None:
    """Serve a checkpoint folder until SIGTERM or SIGINT; `on_ready` gets the URL.

    With a registry, serve what its rows say instead, and follow them; `folder` then only dates the
    model. `pages` are routers of other stages' pages, asked for while the engine loads.

    The first signal stops taking requests and lets answers finish, the second ends at once. Raises
    `ServingError` where the port is taken or no engine can be started, `RegistryError` and
    `ArtifactError` where the registry's live model cannot be trusted.
    """
    calm_threads()  # the engine's process inherits it
    sys.setswitchinterval(SWITCH_SECONDS)

    def make_spec(entry: Entry) -> EngineSpec:
        return engine_spec(Path(entry.path), config, fingerprint=entry.fingerprint)

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
                registry=registry,
                make_spec=make_spec,
                pages=pages,
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


def engine_spec(folder: Path, config: ServeConfig, *, fingerprint: str = "") -> EngineSpec:
    """How the engine of a checkpoint folder is started; `fingerprint` is that of its weights."""

    def open_texts() -> Texts:
        from lmloop.serving.prompts import Texts

        return Texts.open(folder)

    return EngineSpec(
        # -P: a file in the current folder must not stand in for a module.
        command=(
            *(sys.executable, "-P", "-m", "lmloop.serving.worker", str(folder)),
            *("--max-running", str(config.max_running)),
            *(() if config.signals else ("--no-signals",)),
        ),
        open_texts=open_texts,
        capacity=config.max_running + config.max_waiting,
        fingerprint=fingerprint,
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
    registry: Registry | None = None,
    make_spec: MakeSpec | None = None,
    pages: Callable[[], Sequence[APIRouter]] = tuple,
    signals: Signals | None = None,
) -> None:
    """Serve on a listening socket until a signal, or until no engine can be started.

    Without a registry `spec` is served; with one, what `make_spec` makes of its rows.
    """
    signals = signals or Signals()
    aim = Aim(live=spec)
    if registry is not None and make_spec is not None:
        aim = read_aim(registry, make_spec)
    router = Router(aim.live, name=model_name, swap=config.swap, keep_previous=config.keep_previous)
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
            await router.apply(aim)
            try:
                async with _following(registry, router, make_spec, address=url_of(listener)):
                    await _answer(
                        listener, service=service, pages=pages, on_ready=on_ready, signals=signals
                    )
            finally:
                await service.close()
        finally:
            await router.close()


@contextlib.asynccontextmanager
async def _following(
    registry: Registry | None, router: Router, make_spec: MakeSpec | None, *, address: str
) -> AsyncIterator[None]:
    """Follow the registry, if there is one, as long as the block runs."""
    if registry is None or make_spec is None:
        yield
        return
    watcher = Watcher(registry, router, make_spec=make_spec, address=address)
    following = asyncio.create_task(watcher.run())
    following.add_done_callback(_note_fault)
    try:
        yield
    finally:
        following.cancel()
        await asyncio.wait({following})
        await watcher.close()


def _note_fault(following: asyncio.Task[None]) -> None:
    """A fault of the watcher must not end the server, nor go unseen."""
    if not following.cancelled() and (error := following.exception()) is not None:
        logger.error("the registry is not followed any more", exc_info=error)


async def _answer(
    listener: socket.socket,
    *,
    service: Service,
    pages: Callable[[], Sequence[APIRouter]],
    on_ready: Callable[[str], None],
    signals: Signals,
) -> None:
    from lmloop.serving.app import create_app, create_http_server

    http_server = create_http_server(create_app(service, pages=pages()))
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
