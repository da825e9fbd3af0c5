"""A world around a rollout: servers that acknowledge and traffic that flows, one tick a wait."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from lmloop.store.artifact import Artifact
from lmloop.store.database import (
    database_url,
    open_database,
    ratings_table,
    requests_table,
    servers_table,
    transaction,
)
from lmloop.store.events import write_events
from lmloop.store.registry import Registry

NAME = "chat"


def fake_artifact(number: int) -> Artifact:
    """An artifact that is only a name: fingerprint `1111…`, `2222…`."""
    return Artifact(
        path=Path(f"/models/{number}"),
        kind="checkpoint",
        stage="update",
        name=NAME,
        key=f"{number}" * 64,
        fingerprint=f"{number}" * 64,
        made_from=(),
        settings={},
        counts={},
        code_version="0",
        environment={},
        created=float(number),
        files={},
    )


def request_row(
    identity: str, created: float, weights: str, arm: str, **changes: Any
) -> dict[str, Any]:
    """A row of `requests_table` for an answer of 20 tokens in a second."""
    return {
        "id": identity,
        "created": created,
        "endpoint": "chat",
        "model": NAME,
        "weights": weights,
        "stream": True,
        "prompt_tokens": 5,
        "completion_tokens": 20,
        "finish_reason": "stop",
        "first_token_seconds": 0.05,
        "total_seconds": 1.0,
        "consent": False,
        "arm": arm,
        "signals": json.dumps({"repetition": 0.0}),
    } | changes


Answer = Callable[[str, random.Random], dict[str, Any]]
"""What the row of a request says, given the weights (first digit) that answered it."""


def healthy(weights: str, draw: random.Random) -> dict[str, Any]:
    """Every version answers alike."""
    return {"completion_tokens": draw.randint(10, 30), "total_seconds": draw.uniform(0.8, 1.2)}


@dataclass
class World:
    """One server and its clients."""

    engine: sa.Engine
    registry: Registry
    answer: Answer = healthy
    requests_per_tick: int = 20
    candidate_state: str = "ready"
    note: str | None = None
    alive: bool = True
    now: float = 1000.0
    served: int = 0
    draw: random.Random = field(default_factory=lambda: random.Random(0))
    on_tick: Callable[[World], None] = lambda world: None
    seen: list[tuple[str, int]] = field(default_factory=list)
    """Phases and shares of candidates, as the server saw them."""

    def clock(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        """The server follows the registry, clients send, a second passes."""
        self.now += 1.0
        self.on_tick(self)
        if self.alive:
            self.acknowledge()
            self.send(self.requests_per_tick)

    def acknowledge(self) -> None:
        entries = self.registry.read()
        candidate = entries.get("candidate")
        if candidate is not None and (candidate.phase, candidate.share) not in self.seen[-1:]:
            self.seen.append((str(candidate.phase), int(candidate.share or 0)))
        row = {
            "id": "server",
            "name": NAME,
            "address": "http://127.0.0.1:1",
            "started": 1.0,
            "heard": self.now,
            "generation": self.registry.generation(),
            "live": entries["live"].fingerprint[:12] if "live" in entries else None,
            "candidate": None if candidate is None else candidate.fingerprint[:12],
            "candidate_state": "absent" if candidate is None else self.candidate_state,
            "note": self.note,
        }
        with transaction(self.engine) as connection:
            connection.execute(servers_table.delete())
            connection.execute(servers_table.insert().values(row))

    def send(self, count: int) -> None:
        """So many sessions, each answered by the arm that its hash falls into."""
        entries = self.registry.read()
        rows: list[tuple[sa.Table, dict[str, Any]]] = []
        candidate = entries.get("candidate")
        for _ in range(count):
            arm, entry = "live", entries["live"]
            if candidate is not None and self.draw.randrange(100) < (candidate.share or 0):
                arm, entry = "canary", candidate
            rows += self._exchange(arm, entry.fingerprint)
            if candidate is not None and candidate.phase == "shadow":
                rows += self._exchange("shadow", candidate.fingerprint)
        write_events(self.engine, rows)

    def _exchange(self, arm: str, fingerprint: str) -> Iterator[tuple[sa.Table, dict[str, Any]]]:
        self.served += 1
        identity = f"request-{self.served}"
        changes = self.answer(fingerprint[:1], self.draw)
        rating = changes.pop("rating", None)
        created = self.now + self.served * 1e-6
        yield requests_table, request_row(identity, created, fingerprint[:12], arm, **changes)
        if rating is not None:
            row = {"request_id": identity, "created": created, "rating": rating}
            yield ratings_table, row


@contextmanager
def make_world(folder: Path, **changes: Any) -> Iterator[World]:
    """A world whose live model is number 1."""
    engine = open_database(database_url(folder))
    try:
        registry = Registry(engine, NAME)
        registry.set_live(fake_artifact(1))
        yield World(engine, registry, **changes)
    finally:
        engine.dispose()
