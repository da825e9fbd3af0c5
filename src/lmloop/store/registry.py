"""The registry: which artifact a name means, and which of them is live.

Takes: finished artifacts. Gives: rows `name` + `alias` (live, previous, candidate) with a
generation number that a server can watch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from lmloop.errors import ArtifactError
from lmloop.store.artifact import Artifact
from lmloop.store.database import aliases_table, artifacts_table, transaction


def index_artifact(engine: sa.Engine, artifact: Artifact) -> None:
    """Enter an artifact (again) into the index."""
    row = {
        "path": str(artifact.path),
        "fingerprint": artifact.fingerprint,
        "kind": artifact.kind,
        "stage": artifact.stage,
        "name": artifact.name,
        "created": artifact.created,
    }
    with transaction(engine) as connection:
        connection.execute(artifacts_table.delete().where(artifacts_table.c.path == row["path"]))
        connection.execute(artifacts_table.insert().values(row))


def set_alias(engine: sa.Engine, name: str, alias: str, artifact: Artifact) -> int:
    """Point `name`'s `alias` (live, previous, candidate) at an artifact; give the generation.

    Setting what is set already changes nothing. A new `live` makes the old one `previous`.
    """
    with transaction(engine) as connection:
        old = get_alias(connection, name, alias)
        same = {"path": str(artifact.path), "fingerprint": artifact.fingerprint}
        if old is not None and same.items() <= old.items():
            return int(old["generation"])
        if old is not None and alias == "live":
            _write_alias(connection, {**old, "alias": "previous"})
        generation = 1 if old is None else int(old["generation"]) + 1
        _write_alias(
            connection,
            {
                "name": name,
                "alias": alias,
                **same,
                "generation": generation,
                "changed": time.time(),
            },
        )
    return generation


def get_alias(connection: sa.Connection, name: str, alias: str) -> dict[str, Any] | None:
    """The registry row of `name` and `alias`, or None."""
    table = aliases_table
    query = sa.select(table).where(table.c.name == name, table.c.alias == alias)
    row = connection.execute(query).mappings().first()
    return None if row is None else dict(row)


def _write_alias(connection: sa.Connection, row: Mapping[str, Any]) -> None:
    table = aliases_table
    connection.execute(
        table.delete().where(table.c.name == row["name"], table.c.alias == row["alias"])
    )
    connection.execute(table.insert().values(dict(row)))


def find_live(engine: sa.Engine, name: str | None) -> dict[str, Any]:
    """The live model called `name`, or the one made live last.

    Raises `ArtifactError` where there is none, naming those that there are.
    """
    table = aliases_table
    query = sa.select(table).where(table.c.alias == "live").order_by(table.c.changed.desc())
    with engine.connect() as connection:
        rows = [dict(row) for row in connection.execute(query).mappings()]
    for row in rows:
        if name is None or row["name"] == name:
            return row
    known = ", ".join(sorted(row["name"] for row in rows))
    raise ArtifactError(
        f"no live model called {name or '(any)'}; "
        + (f"live are: {known}" if known else "there is none yet: run a recipe first")
    )
