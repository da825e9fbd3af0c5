"""Garbage collection: what is needed stays whatever the bound, and the rest goes oldest first."""

from __future__ import annotations

import fcntl
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from lmloop.errors import ArtifactError, BusyError, RegistryError
from lmloop.store import garbage
from lmloop.store.artifact import Artifact, ArtifactStore
from lmloop.store.database import (
    aliases_table,
    artifacts_table,
    database_url,
    open_database,
    transaction,
)
from lmloop.store.garbage import Collected, collect_garbage
from lmloop.store.registry import Registry, describe_artifact, mirror_folder

pytestmark = pytest.mark.usefixtures("quick_disk")

SIZE = 10_000
"""Bytes of the one large file of every artifact here."""


@dataclass
class Home:
    """A home with a history, its artifacts by the names that `make` gave them."""

    store: ArtifactStore
    engine: sa.Engine
    made: dict[str, Artifact]

    @property
    def registry(self) -> Registry:
        return Registry(self.engine, "chat", mirror=mirror_folder(self.store.home))

    def make(self, name: str, *, of: str = "checkpoint", made_from: str = "") -> Artifact:
        """An artifact that is younger than those before it."""
        origins = [self.made[each] for each in made_from.split()]
        stage = name.split("-")[0]
        key = f"{len(self.made):016}" * 4
        with self.store.write(stage, key) as draft:
            (draft.path / "weights").write_bytes(name.encode().ljust(SIZE, b"."))
            artifact = draft.finish(
                kind=of,
                name="chat",
                made_from=[{"kind": o.kind, "fingerprint": o.fingerprint} for o in origins],
                settings={},
                counts={},
                code_version="0",
                environment={},
                created=1000.0 + len(self.made),
            )
        self.made[name] = artifact
        return artifact

    def collect(self, max_bytes: int | None = None, *, dry_run: bool = False) -> Collected:
        return collect_garbage(self.store.home, self.engine, max_bytes=max_bytes, dry_run=dry_run)

    def there(self) -> set[str]:
        names = {str(artifact.path): name for name, artifact in self.made.items()}
        return {names[str(artifact.path)] for artifact in self.store.all()}

    def gone(self) -> set[str]:
        return self.made.keys() - self.there()

    def indexed(self) -> set[str]:
        names = {str(artifact.path): name for name, artifact in self.made.items()}
        with self.engine.connect() as connection:
            return {names[path] for path in connection.scalars(sa.select(artifacts_table.c.path))}


def fill(home: Home) -> Home:
    """A model that was updated twice, a candidate, a refused one, and earlier attempts."""
    home.make("prepare-early", of="corpus")
    home.make("tokenize-early", of="shards", made_from="prepare-early")
    home.make("pretrain-early", made_from="tokenize-early")
    home.make("evaluate-early", of="report", made_from="pretrain-early")
    home.make("prepare", of="corpus")
    home.make("tokenize", of="shards", made_from="prepare")
    home.make("finetune", made_from="tokenize")
    home.make("evaluate", of="report", made_from="finetune prepare")
    home.make("compress-0", made_from="finetune tokenize")
    home.make("collect-1", of="corpus", made_from="prepare")
    home.make("update-1", made_from="finetune collect-1 tokenize")
    home.make("compress-1", made_from="update-1")
    home.make("gate-1", of="report", made_from="compress-0 compress-1")
    home.make("collect-2", of="corpus", made_from="prepare")
    home.make("update-2", made_from="update-1 collect-2")
    home.make("update-refused", made_from="update-1 collect-2")
    home.make("gate-refused", of="report", made_from="update-refused")
    rows = [describe_artifact(artifact) for artifact in home.made.values()]
    with transaction(home.engine) as connection:
        connection.execute(artifacts_table.insert(), rows)
    home.registry.set_live(home.made["compress-0"])
    home.registry.set_live(home.made["compress-1"])
    home.registry.set_candidate(home.made["update-2"], phase="canary", share=5)
    return home


@pytest.fixture
def home(tmp_path: Path, store: ArtifactStore) -> Iterator[Home]:
    engine = open_database(database_url(tmp_path))
    yield fill(Home(store, engine, {}))
    engine.dispose()


@pytest.fixture
def any_home(any_engine: sa.Engine, store: ArtifactStore) -> Home:
    return fill(Home(store, any_engine, {}))


NEEDED = {
    *("compress-1", "update-1", "collect-1", "tokenize", "prepare", "finetune"),  # live
    "compress-0",  # previous
    *("update-2", "collect-2"),  # candidate
}
REPORTS = {"evaluate", "gate-1"}
SPARE = ["prepare-early", "tokenize-early", "pretrain-early", "evaluate-early"]
SPARE += ["update-refused", "gate-refused"]


def names(home: Home, collected: Collected) -> list[str]:
    by_path = {artifact.path: name for name, artifact in home.made.items()}
    return [by_path.get(piece.path, piece.path.name) for piece in collected.removed]


def test_all_that_no_model_needs_goes_and_all_that_it_needs_stays(any_home: Home) -> None:
    home = any_home
    collected = home.collect()
    assert home.there() == NEEDED | REPORTS
    assert home.indexed() == NEEDED | REPORTS
    assert names(home, collected) == SPARE
    assert all(piece.bytes >= SIZE for piece in collected.removed)
    assert collected.freed == sum(piece.bytes for piece in collected.removed)
    assert collected.excess == 0
    for name in NEEDED | REPORTS:
        home.made[name].verify()
    assert home.collect().removed == ()


def test_the_bound_is_met_oldest_first_and_no_more_goes_than_it_takes(home: Home) -> None:
    whole = home.collect(10**9, dry_run=True).bytes
    collected = home.collect(whole - 2 * SIZE)
    assert names(home, collected) == SPARE[:2]
    assert collected.bytes <= whole - 2 * SIZE
    assert home.gone() == set(SPARE[:2])


def test_reports_on_models_that_stay_go_only_where_the_bound_needs_it(home: Home) -> None:
    trial = home.collect(dry_run=True)
    assert names(home, trial) == SPARE
    collected = home.collect(trial.bytes - 1)
    assert names(home, collected) == [*SPARE, "evaluate"]
    assert collected.excess == 0


def test_what_must_stay_stays_under_the_smallest_bound_and_is_told_with_its_size(
    home: Home,
) -> None:
    collected = home.collect(0)
    assert home.there() == NEEDED
    assert collected.excess == collected.bytes >= len(NEEDED) * SIZE
    assert sum(piece.bytes for piece in collected.kept) == collected.bytes
    told = {piece.path: piece.why for piece in collected.kept}
    assert told[home.made["compress-1"].path] == "live of chat"
    assert told[home.made["compress-0"].path] == "previous of chat"
    assert told[home.made["update-2"].path] == "candidate of chat"
    assert told[home.made["collect-2"].path] == "candidate of chat was made from it"
    sizes = [piece.bytes for piece in collected.kept]
    assert sizes == sorted(sizes, reverse=True)
    assert "checkpoint" in str(collected.kept[0]) and "MB" in str(collected.kept[0])


def test_a_trial_touches_nothing_and_tells_the_same(home: Home) -> None:
    trial = home.collect(50_000, dry_run=True)
    assert home.gone() == set()
    assert home.indexed() == home.made.keys()
    assert home.collect(50_000).removed == trial.removed


def test_what_was_live_once_goes_when_it_is_neither_live_nor_previous(home: Home) -> None:
    home.registry.promote()
    home.collect()
    assert home.there() == (NEEDED | REPORTS) - {"compress-0"}
    home.registry.roll_back()
    home.collect()
    assert home.there() >= {"compress-1", "update-2"}


def test_every_name_protects_its_own(home: Home) -> None:
    Registry(home.engine, "other").set_live(home.made["pretrain-early"])
    home.collect()
    assert home.there() == NEEDED | REPORTS | set(SPARE[:4])


def test_a_home_without_models_keeps_nothing(any_engine: sa.Engine, store: ArtifactStore) -> None:
    home = Home(store, any_engine, {})
    home.make("prepare", of="corpus")
    assert names(home, home.collect()) == ["prepare"]
    assert home.there() == set()


def test_drafts_runs_and_caches_go(home: Home) -> None:
    root = home.store.home
    leftovers = [
        root / "artifacts" / ".update-0000000000000000.4242",
        root / "artifacts" / ".garbage.4242.prepare-0",
        root / "runs" / "update-0123456789abcdef",
        root / "runs" / ".garbage.1.update-0",
        root / "cache" / "reference",
    ]
    for folder in leftovers:
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"." * SIZE)
    (root / "cache" / "file").write_bytes(b".")
    bound = home.collect(10**9, dry_run=True).bytes
    collected = home.collect(bound)
    assert {piece.path for piece in collected.removed} == {
        *leftovers[:2],
        *leftovers[3:],
        root / "cache" / "file",
    }
    assert home.gone() == set()
    home.collect()
    assert not any(folder.exists() for folder in leftovers)
    assert list((root / "runs").iterdir()) == list((root / "cache").iterdir()) == []
    assert list((root / "artifacts").glob(".*")) == []


def test_the_run_of_a_stage_that_is_held_stays(home: Home) -> None:
    run = home.store.home / "runs" / "update-0123456789abcdef"
    run.mkdir(parents=True)
    (run / "snapshot").write_bytes(b"." * SIZE)
    holder = (home.store.home / "locks" / run.name).open("a")
    fcntl.flock(holder, fcntl.LOCK_EX)
    collected = home.collect()
    assert run.exists()
    assert [piece.why for piece in collected.kept if piece.path == run] == ["somebody is at it"]
    holder.close()
    home.collect()
    assert not run.exists()


def test_a_damaged_artifact_is_left_to_people(home: Home) -> None:
    damaged = home.made["pretrain-early"].path
    (damaged / "manifest.json").write_text("{")
    collected = home.collect()
    assert damaged.exists()
    assert "damaged artifact" in [piece.what for piece in collected.kept]


def test_nothing_is_removed_beside_a_working_stage(home: Home) -> None:
    with home.store.lock("update", "0" * 64), pytest.raises(BusyError, match="is at work in"):
        home.collect()
    with home.store.write("update", "0" * 64), pytest.raises(BusyError, match="is at work in"):
        home.collect(0, dry_run=True)
    with home.store.use(), pytest.raises(BusyError, match="is at work in"):
        home.collect()
    assert home.gone() == set()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE aliases SET path = '/elsewhere' WHERE alias = 'previous'",
        "UPDATE aliases SET fingerprint = '0' WHERE alias = 'candidate'",
        "UPDATE aliases SET name = 'chaf' WHERE alias = 'live'",
        "DELETE FROM aliases WHERE alias = 'previous'",
        "DELETE FROM aliases",
    ],
)
def test_a_registry_that_other_hands_changed_is_no_guide_and_nothing_goes(
    home: Home, statement: str
) -> None:
    with home.engine.begin() as connection:
        connection.exec_driver_sql(statement)
    with pytest.raises(RegistryError, match="lmloop reindex"):
        home.collect(0)
    assert home.gone() == set()


def test_a_database_that_is_not_this_homes_is_no_guide(home: Home, tmp_path: Path) -> None:
    other = open_database(f"sqlite:///{tmp_path / 'other.db'}")
    with pytest.raises(RegistryError, match="the database knows less of chat than the home"):
        collect_garbage(home.store.home, other, max_bytes=0, dry_run=False)
    assert home.gone() == set()
    other.dispose()


def test_an_unreadable_copy_of_the_registry_is_no_guide(home: Home) -> None:
    (mirror_folder(home.store.home) / "chat.json").write_text("{")
    with pytest.raises(RegistryError, match=r"chat\.json is no copy.*nothing is removed"):
        home.collect(0)
    assert home.gone() == set()


@pytest.mark.parametrize("name", ["compress-1", "compress-0", "update-2"])
@pytest.mark.parametrize("damage", [shutil.rmtree, lambda path: (path / "manifest.json").unlink()])
def test_a_model_whose_ancestry_cannot_be_told_lets_nothing_go(
    home: Home, name: str, damage: Callable[[Path], object]
) -> None:
    damage(home.made[name].path)
    before = home.there()
    with pytest.raises(ArtifactError, match="model of chat, is missing or damaged"):
        home.collect(0)
    assert home.there() == before


def test_an_older_copy_of_the_registry_is_no_hindrance(home: Home) -> None:
    copy = mirror_folder(home.store.home) / "chat.json"
    old = copy.read_text()
    home.registry.drop_candidate()
    copy.write_text(old)
    home.collect()
    assert home.there() == (NEEDED | REPORTS) - {"update-2", "collect-2"}


KILLED = """
import os, signal, sys
from pathlib import Path
from lmloop.store import garbage
from lmloop.store.database import open_database
calls = 0
def kill_at(function):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call
for owner, name in ((Path, "rename"), (garbage, "sync"), (os, "unlink"), (os, "rmdir")):
    setattr(owner, name, kill_at(getattr(owner, name)))
engine = open_database(sys.argv[2])
garbage.collect_garbage(Path(sys.argv[1]), engine, max_bytes=None, dry_run=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 3, 7, 12, 13, 14, 15, 20, 30])
def test_a_collection_killed_at_any_step_leaves_whole_artifacts_and_the_next_ends_it(
    any_url: str, any_home: Home, step: int
) -> None:
    home = any_home
    command = [sys.executable, "-c", KILLED, str(home.store.home), any_url, str(step)]
    assert subprocess.run(command, timeout=60).returncode == -signal.SIGKILL
    found, damaged = home.store.scan()
    assert damaged == {}
    for artifact in found:
        artifact.verify()
    assert home.there() >= NEEDED | REPORTS
    home.collect()
    assert home.there() == NEEDED | REPORTS
    assert list(home.store.root.glob(".*")) == []


def test_a_collection_that_fails_half_way_leaves_whole_artifacts(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = []

    def fail_at_third(path: Path) -> Path:
        if len(moved) == 2:
            raise OSError("broken")
        moved.append(path)
        return hide(path)

    hide = garbage.hide
    monkeypatch.setattr(garbage, "hide", fail_at_third)
    with pytest.raises(OSError, match="broken"):
        home.collect()
    monkeypatch.undo()
    assert home.gone() == set(SPARE[:2])
    home.collect()
    assert home.there() == NEEDED | REPORTS


def test_the_slow_part_is_in_nobodys_way(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    remove = garbage.remove_all

    def look(paths: list[Path]) -> None:
        if len(paths) > 1:
            with home.store.lock("update", "0" * 64):
                assert home.there() == NEEDED | REPORTS
        remove(paths)

    monkeypatch.setattr(garbage, "remove_all", look)
    home.collect()


def test_the_registry_is_left_as_it_is(home: Home) -> None:
    before = home.registry.read()
    home.collect(0)
    assert home.registry.read() == before
    with transaction(home.engine) as connection:
        assert len(connection.execute(sa.select(aliases_table)).all()) == 3
    assert [path.name for path in mirror_folder(home.store.home).iterdir()] == ["chat.json"]
