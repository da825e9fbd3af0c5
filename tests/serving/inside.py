"""A service in the test's own event loop: its router, its rows, and a client without a socket."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from lmloop.sections import ServeConfig
from lmloop.serving.app import create_app
from lmloop.serving.fleet import Aim
from lmloop.serving.process import EngineSpec
from lmloop.serving.router import Router
from lmloop.serving.service import Service, open_service
from lmloop.store.database import open_database, requests_table

from .harness import MODEL, chat_body, version_spec
from .test_process import reach


@dataclass
class Inside:
    """A running service."""

    service: Service
    database: sa.Engine
    client: httpx.AsyncClient
    live: EngineSpec

    async def chat(self, content: str = "hi", **options: Any) -> httpx.Response:
        headers = options.pop("headers", None)
        body = chat_body(content, **options)
        return await self.client.post("/v1/chat/completions", json=body, headers=headers)

    def rows(self) -> list[dict[str, Any]]:
        """All requests, oldest first."""
        query = sa.select(requests_table).order_by(requests_table.c.created)
        with self.database.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    async def wait_rows(self, count: int) -> list[dict[str, Any]]:
        """All requests, once there are so many."""
        await reach(lambda: len(self.rows()) >= count)
        return self.rows()

    async def aim(self, candidate: EngineSpec | None, *, phase: str, share: int = 0) -> None:
        """Try a candidate, and wait until its engine is ready."""
        router = self.service.router
        await router.apply(
            Aim(live=self.live, candidate=candidate, phase=phase, share=share, generation=7)
        )
        if candidate is not None:
            await reach(lambda: "candidate" in router.engines())
            await reach(lambda: router.engines()["candidate"].state == "ready")


@contextlib.asynccontextmanager
async def inside(folder: Path, **settings: Any) -> AsyncIterator[Inside]:
    """Run a service on the weights `A` until the block ends."""
    database = open_database(f"sqlite:///{folder / 'inside.db'}")
    live = version_spec(folder, "A")
    router = Router(live, name=MODEL, first_delay_seconds=0.01)
    config = ServeConfig(port=0, max_running=4, max_waiting=8, **settings)
    await router.start()
    try:
        service = open_service(
            config, router=router, model_name=MODEL, model_created=1, database=database
        )
        try:
            await router.wait_ready()
            transport = httpx.ASGITransport(app=create_app(service), raise_app_exceptions=False)
            url = "http://localhost"
            async with httpx.AsyncClient(transport=transport, base_url=url, timeout=20) as client:
                yield Inside(service, database, client, live)
        finally:
            await service.close()
    finally:
        await router.close()
        database.dispose()
