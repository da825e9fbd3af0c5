"""A rollback: the previous model is live again, and every server says so.

Takes: the registry. Gives: one change of its rows, and how long servers took to follow it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from lmloop.store.events import record_event
from lmloop.store.registry import Registry
from lmloop.store.servers import find_servers

POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledBack:
    """What a rollback has come to."""

    name: str
    generation: int
    fingerprint: str
    """Of the model that is live now."""
    servers: int
    """Servers that have to follow."""
    waiting: int
    """Servers among them that had not followed when the wait ended."""
    seconds: float
    """From the change of the registry to the last server's word."""


def roll_back(
    registry: Registry,
    *,
    timeout: float = 10.0,
    wait: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    wall_clock: Callable[[], float] = time.time,
) -> RolledBack:
    """Make the previous model live and wait, at most `timeout` seconds, for the servers.

    A candidate that was being rolled out is dropped. Raises `RegistryError` where there is no
    previous model.
    """
    started = clock()
    generation = registry.roll_back()
    live = registry.read()["live"]
    data = {"by": "hand", "generation": generation, "live": live.fingerprint}
    record_event(registry.engine, "rollback", name=registry.name, data=data)
    while True:
        servers = find_servers(registry.engine, registry.name, now=wall_clock())
        waiting = [
            each
            for each in servers
            if each["generation"] < generation
            or not live.fingerprint.startswith(each["live"] or "-")
        ]
        if not waiting or clock() - started >= timeout:
            break
        wait(POLL_SECONDS)
    return RolledBack(
        name=registry.name,
        generation=generation,
        fingerprint=live.fingerprint,
        servers=len(servers),
        waiting=len(waiting),
        seconds=clock() - started,
    )
