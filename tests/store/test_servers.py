"""Which servers count as being there."""

from __future__ import annotations

from pathlib import Path

from lmloop.store.servers import STALE_SECONDS, find_servers

from ..updating.world import NAME, make_world


def test_a_server_is_there_until_it_was_silent_for_too_long(tmp_path: Path) -> None:
    with make_world(tmp_path) as world:
        world.acknowledge()
        found = find_servers(world.engine, NAME, now=world.now + STALE_SECONDS - 1)
        assert [server["live"] for server in found] == ["1" * 12]
        assert find_servers(world.engine, NAME, now=world.now + STALE_SECONDS + 1) == []
        assert find_servers(world.engine, "another", now=world.now) == []
