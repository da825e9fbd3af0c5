"""Following the registry: what is taken over or refused, and what the server says of itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from lmloop.errors import ArtifactError, RegistryError
from lmloop.serving import watcher as watcher_module
from lmloop.serving.router import Router
from lmloop.serving.watcher import STALE_SECONDS, Pulse, Watcher, read_aim
from lmloop.store.artifact import Artifact
from lmloop.store.database import aliases_table, open_database, servers_table
from lmloop.store.events import record_event
from lmloop.store.registry import Registry

from .home import NAME, Home
from .test_process import reach


@pytest.fixture
def home(tmp_path: Path) -> Any:
    made = Home(tmp_path)
    yield made
    made.database.dispose()


@pytest.fixture(autouse=True)
def _poll_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher_module, "POLL_SECONDS", 0.02)


@contextlib.asynccontextmanager
async def following(home: Home, **options: Any) -> AsyncIterator[Router]:
    """A router that follows the home's registry."""
    router = Router(read_aim(home.registry, home.make_spec).live, name=NAME)
    await router.start()
    watcher = Watcher(
        home.registry, router, make_spec=home.make_spec, address="http://here", **options
    )
    task = asyncio.create_task(watcher.run())
    try:
        await reach(lambda: home.servers() and router.status == "ready")
        yield router
    finally:
        task.cancel()
        await asyncio.wait({task})
        await watcher.close()
        await router.close()


def run(scenario: Callable[[], Any]) -> None:
    asyncio.run(scenario())


def digits(artifact: Artifact) -> str:
    return artifact.fingerprint[:12]


def test_the_server_follows_every_change_and_says_so(home: Home) -> None:
    a, b = home.make("A"), home.make("B")
    home.registry.set_live(a)

    async def says(**fields: Any) -> None:
        await reach(lambda: fields.items() <= home.server().items())

    async def scenario() -> None:
        async with following(home) as router:
            await says(name=NAME, address="http://here", candidate_state="absent", note=None)
            await says(live=digits(a), candidate=None, generation=1)
            generation = home.registry.set_candidate(b, phase="shadow", share=0)
            await says(candidate=digits(b), candidate_state="ready", generation=generation)
            assert router.mirror(1) is not None
            generation = home.registry.set_candidate(b, phase="canary", share=100)
            await says(generation=generation)
            assert router.admit(1, "anyone").arm == "canary"
            generation = home.registry.promote()
            await says(live=digits(b), candidate_state="absent", generation=generation)
            generation = home.registry.roll_back()
            await says(live=digits(a), generation=generation)
            assert router.starts == 2
        assert home.servers() == []
        assert home.refusals() == []

    run(scenario)


def test_a_row_changed_by_hand_changes_nothing_and_is_told_once(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = home.make("A"), home.make("B")
    home.registry.set_live(a)
    before = home.registry.read()
    table = aliases_table

    async def scenario() -> None:
        async with following(home) as router:
            change = table.update().values(
                path=str(b.path), fingerprint=b.fingerprint, generation=7
            )
            home.execute(change)
            await reach(lambda: home.server()["note"] is not None)
            assert "changed afterwards" in home.server()["note"]
            await asyncio.sleep(0.2)  # several more polls
            assert (home.server()["live"], home.server()["generation"]) == (digits(a), 1)
            assert router.starts == 1
            assert [number for number, _ in home.refusals()] == [7]
            home.registry.restore(lambda _sound, _broken: before)
            await reach(lambda: home.server()["generation"] == 8)
            assert home.server()["note"] is None
            assert router.starts == 1

    with caplog.at_level(logging.WARNING, "lmloop.serving.watcher"):
        run(scenario)
    mine = [each for each in caplog.records if each.name == "lmloop.serving.watcher"]
    assert len(mine) == 1


def damage(artifact: Artifact) -> None:
    (artifact.path / "weights.bin").write_text("X")


def empty(artifact: Artifact) -> None:
    for path in artifact.path.iterdir():
        path.unlink()


def exchange(artifact: Artifact) -> None:
    """Another whole artifact in its place."""
    home = Home(artifact.path.parent.parent)
    other = home.make("C")
    home.database.dispose()
    for path in other.path.iterdir():
        (artifact.path / path.name).write_bytes(path.read_bytes())


FAULTS: dict[str, tuple[Callable[[Artifact], None], str]] = {
    "damaged": (damage, "changed since it was written"),
    "missing": (empty, "is no finished artifact"),
    "exchanged": (exchange, "and the registry's row"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("alias", ["live", "candidate"])
def test_weights_that_are_not_what_their_row_says_are_refused(
    home: Home, alias: str, fault: str
) -> None:
    a, b = home.make("A"), home.make("B")
    home.registry.set_live(a)
    spoil, reason = FAULTS[fault]
    spoil(b)

    async def scenario() -> None:
        async with following(home) as router:
            if alias == "live":
                generation = home.registry.set_live(b)
            else:
                generation = home.registry.set_candidate(b, phase="canary", share=50)
            await reach(lambda: home.refusals())
            assert [number for number, _ in home.refusals()] == [generation]
            row = home.server()
            assert reason in row["note"]
            assert row["live"] == digits(a)
            if alias == "live":
                assert (row["generation"], row["candidate_state"]) == (1, "absent")
            else:
                told = (generation, digits(b), "failed")
                assert (row["generation"], row["candidate"], row["candidate_state"]) == told
            assert router.starts == 1
            home.registry.set_live(a)
            home.registry.drop_candidate()
            await reach(lambda: home.server()["note"] is None)

    run(scenario)


def test_weights_that_run_are_not_read_again(home: Home) -> None:
    a, b = home.make("A"), home.make("B")
    home.registry.set_live(a)

    async def scenario() -> None:
        async with following(home) as router:
            home.registry.set_live(b)
            await reach(lambda: home.server()["live"] == digits(b))
            damage(a)
            home.registry.roll_back()
            await reach(lambda: home.server()["live"] == digits(a))
            assert router.starts == 2

    run(scenario)


def test_a_database_that_goes_away_is_waited_for(
    home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = home.make("A"), home.make("B")
    home.registry.set_live(a)
    away = False
    real = Registry.generation

    def generation(registry: Registry) -> int:
        if away:
            raise sa.exc.OperationalError("SELECT", {}, OSError("gone"))
        return real(registry)

    monkeypatch.setattr(Registry, "generation", generation)

    async def scenario() -> None:
        nonlocal away
        async with following(home) as router:
            away = True
            home.make_noise()
            await asyncio.sleep(0.2)
            assert router.status == "ready"
            home.registry.engine.dispose()
            away = False
            home.registry.set_live(b)
            await reach(lambda: home.server()["live"] == digits(b))

    with caplog.at_level(logging.WARNING, "lmloop.serving.watcher"):
        run(scenario)
    told = [each.message for each in caplog.records if each.name == "lmloop.serving.watcher"]
    assert told == ["the registry cannot be read: OperationalError"]


def test_the_row_beats_and_those_of_dead_servers_are_swept(home: Home) -> None:
    home.registry.set_live(home.make("A"))
    now = 1000.0

    async def scenario() -> None:
        nonlocal now
        async with following(home, wall_clock=lambda: now):
            assert home.server()["heard"] == 1000.0
            now = 1006.0
            await reach(lambda: home.server()["heard"] == 1006.0)
            dead = {**home.server(), "id": "dead", "heard": now}
            other = {**dead, "id": "other", "name": "another model"}
            home.execute(servers_table.insert().values([dead, other]))
            now += STALE_SECONDS + 1
            await reach(lambda: {row["id"] for row in home.servers()} == {mine(home), "other"})
            now -= 500  # a clock that was set back
            await reach(lambda: row_of(home, mine(home))["heard"] == now)

    run(scenario)


def mine(home: Home) -> str:
    (found,) = (row["id"] for row in home.servers() if row["id"] not in ("dead", "other"))
    return str(found)


def row_of(home: Home, server: str) -> dict[str, Any]:
    (found,) = (row for row in home.servers() if row["id"] == server)
    return found


def test_an_aim_without_a_live_row_is_refused(home: Home) -> None:
    with pytest.raises(RegistryError, match="no live model"):
        read_aim(home.registry, home.make_spec)


def test_the_first_aim_names_what_is_wrong_with_the_live_weights(home: Home) -> None:
    a = home.make("A")
    home.registry.set_live(a)
    damage(a)
    with pytest.raises(ArtifactError, match=r"weights\.bin"):
        read_aim(home.registry, home.make_spec)


def test_an_aim_says_what_the_rows_say(home: Home) -> None:
    a, b, c = (home.make(version) for version in "ABC")
    home.registry.set_live(a)
    home.registry.set_live(b)
    generation = home.registry.set_candidate(c, phase="canary", share=5)
    aim = read_aim(home.registry, home.make_spec)
    assert aim.candidate is not None
    found = (aim.live.fingerprint, aim.candidate.fingerprint, aim.previous)
    assert found == (b.fingerprint, c.fingerprint, a.fingerprint)
    assert (aim.phase, aim.share, aim.refusal) == ("canary", 5, None)
    assert aim.generation == generation


def test_a_pulse_is_felt_after_every_write_and_only_then(home: Home) -> None:
    pulse = Pulse(home.database)
    assert [pulse.has_changed() for _ in range(3)] == [True, False, False]
    for _ in range(3):
        home.make_noise()
        assert [pulse.has_changed() for _ in range(3)] == [True, False, False]
    other = open_database(str(home.database.url))
    record_event(other, "noise", name="somebody", data={})
    other.dispose()
    assert [pulse.has_changed() for _ in range(2)] == [True, False]
    pulse.close()
    assert pulse.has_changed()
    pulse.close()


def test_a_database_of_another_kind_may_always_have_changed() -> None:
    pulse = Pulse(sa.create_mock_engine("postgresql://", lambda *_: None))  # type: ignore[arg-type]
    assert [pulse.has_changed() for _ in range(2)] == [True, True]


def test_a_database_that_cannot_be_asked_may_have_changed(home: Home) -> None:
    broken = sa.create_engine(f"sqlite:///{home.folder / 'no' / 'such.db'}")
    pulse = Pulse(broken)
    assert [pulse.has_changed() for _ in range(2)] == [True, True]
    broken.dispose()
