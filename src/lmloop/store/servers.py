"""The servers of a model, as they tell of themselves in the database."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from lmloop.store.database import servers_table

STALE_SECONDS = 30.0
"""A server that was not heard of for so long is taken to be gone."""


def find_servers(engine: sa.Engine, name: str, *, now: float) -> list[dict[str, Any]]:
    """Rows of a model's servers that were heard of lately; `now` in seconds since the epoch."""
    table = servers_table
    query = sa.select(table).where(table.c.name == name, table.c.heard > now - STALE_SECONDS)
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]
