"""What happened, as rows: requests, ratings, and the events of the circle.

Takes: rows of `requests_table` and `ratings_table`; a kind, a model's name and plain data for all
else: alarms, rounds, verdicts, steps of a rollout, rollbacks. Gives: them back in their order.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from lmloop.store.database import events_table, secrets_table, transaction


@dataclass(frozen=True, slots=True)
class Event:
    """Something that was noticed or decided."""

    number: int
    """Grows with every event."""
    created: float
    """Seconds since the epoch."""
    kind: str
    """Such as `alarm`, `gate.refused`, `rollout.step`."""
    name: str
    """The model that it is about."""
    data: Mapping[str, Any]
    """The numbers and reasons."""


def write_events(engine: sa.Engine, rows: Sequence[tuple[sa.Table, Mapping[str, Any]]]) -> None:
    """Write requests and ratings in one transaction; a second row of a key replaces the first."""
    newest = {(table, row[_key(table).name]): row for table, row in rows}
    # Rows of the same columns go to the database in one call: it may be a network away.
    groups: dict[tuple[sa.Table, tuple[str, ...]], list[dict[str, Any]]] = {}
    for (table, _), row in newest.items():
        groups.setdefault((table, tuple(sorted(row))), []).append(dict(row))
    with transaction(engine) as connection:
        for (table, _), group in groups.items():
            key = _key(table)
            old = table.delete().where(key == sa.bindparam("old"))
            connection.execute(old, [{"old": row[key.name]} for row in group])
            connection.execute(table.insert(), group)


def _key(table: sa.Table) -> sa.Column[Any]:
    return next(iter(table.primary_key.columns))


def record_event(engine: sa.Engine, kind: str, *, name: str, data: Mapping[str, Any]) -> None:
    """Write one event of the circle, at this moment."""
    with transaction(engine) as connection:
        add_event(connection, kind, name=name, data=data)


def add_event(connection: sa.Connection, kind: str, *, name: str, data: Mapping[str, Any]) -> None:
    """Write one event together with what else its transaction writes."""
    text = json.dumps(dict(data), ensure_ascii=False)
    row = {"created": time.time(), "kind": kind, "name": name, "data": text}
    connection.execute(events_table.insert().values(row))


def read_events(
    engine: sa.Engine, *, name: str, kinds: Sequence[str] = (), after: int = 0, limit: int = 1000
) -> list[Event]:
    """The newest `limit` events of a model behind number `after`, oldest first.

    `kinds` are full kinds or their first parts (`rollout` means every `rollout.…`); empty: all.
    """
    table = events_table
    query = sa.select(table).where(table.c.name == name, table.c.number > after)
    if kinds:
        parts = (table.c.kind.startswith(f"{kind}.", autoescape=True) for kind in kinds)
        query = query.where(sa.or_(table.c.kind.in_(kinds), *parts))
    query = query.order_by(table.c.number.desc()).limit(limit)
    with engine.connect() as connection:
        rows = connection.execute(query).mappings().all()
    return [Event(**{**row, "data": json.loads(row["data"])}) for row in reversed(rows)]


def read_secret(engine: sa.Engine, name: str) -> bytes:
    """The secret of this database for one purpose, 32 bytes, made when first asked for."""
    table = secrets_table
    query = sa.select(table.c.value).where(table.c.name == name)
    with engine.connect() as reader:
        found = reader.scalar(query)
    if found is None:
        with transaction(engine) as connection:
            found = connection.scalar(query)
            if found is None:
                found = secrets.token_hex(32)
                connection.execute(table.insert().values(name=name, value=found))
    return bytes.fromhex(found)


def encode_messages(messages: object) -> str:
    """Messages as the JSON text that a request's row stores."""
    return json.dumps(messages, ensure_ascii=False)
