"""Reindexing: what a lost or meddled database is brought back to."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from lmloop.errors import BusyError, RegistryError
from lmloop.store.artifact import Artifact, ArtifactStore
from lmloop.store.database import artifacts_table, events_table, open_database, transaction
from lmloop.store.events import record_event
from lmloop.store.registry import Entry, Registry, index_artifact, mirror_folder
from lmloop.store.reindex import reconcile, reindex

from .conftest import count

pytestmark = pytest.mark.usefixtures("quick_disk")

MakeArtifact = Callable[..., Artifact]


@pytest.fixture
def models(make_artifact: MakeArtifact) -> list[Artifact]:
    return [make_artifact(text, key=text * 32, stage="update") for text in ("aa", "bb", "cc")]


@pytest.fixture
def chat(any_engine: sa.Engine, store: ArtifactStore, models: list[Artifact]) -> Registry:
    """The first model live, the second a candidate, the third of no use."""
    registry = Registry(any_engine, "chat", mirror=mirror_folder(store.home))
    registry.set_live(models[0])
    registry.set_candidate(models[1], phase="canary", share=5)
    return registry


def what(registry: Registry) -> dict[str, str]:
    """The first two characters of the key of what each alias means."""
    return {alias: Path(row.path).name.split("-")[1][:2] for alias, row in registry.read().items()}


def run(engine: sa.Engine, statement: str) -> None:
    with engine.begin() as connection:
        assert connection.exec_driver_sql(statement).rowcount


def indexed(engine: sa.Engine) -> set[tuple[str, str]]:
    with engine.connect() as connection:
        query = sa.select(artifacts_table.c.path, artifacts_table.c.fingerprint)
        return {(row.path, row.fingerprint) for row in connection.execute(query)}


def test_the_index_says_what_lies_on_the_disk(
    any_engine: sa.Engine, store: ArtifactStore, models: list[Artifact], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "other" / "artifacts" / "prepare-0"
    elsewhere.mkdir(parents=True)
    index_artifact(any_engine, replace(models[0], path=elsewhere))
    index_artifact(any_engine, replace(models[0], path=store.root / "update-gone"))
    index_artifact(any_engine, replace(models[1], fingerprint="0" * 64))
    counts = reindex(store.home, any_engine)
    assert counts.artifacts == 3
    here = {(str(model.path), model.fingerprint) for model in models}
    assert indexed(any_engine) == here | {(str(elsewhere), models[0].fingerprint)}


def test_a_damaged_artifact_is_left_out_and_told(
    any_engine: sa.Engine, store: ArtifactStore, models: list[Artifact]
) -> None:
    (models[1].path / "manifest.json").write_text("{")
    (store.root / "update-half").mkdir()
    counts = reindex(store.home, any_engine)
    assert counts.artifacts == 2
    assert (str(models[1].path), models[1].fingerprint) not in indexed(any_engine)
    told = "\n".join(counts.left_out)
    assert str(models[1].path) in told and "update-half is no finished artifact" in told


def test_a_sound_registry_stays_as_it_is(
    any_engine: sa.Engine, chat: Registry, store: ArtifactStore
) -> None:
    before = chat.read()
    counts = reindex(store.home, any_engine)
    assert (counts.restored, counts.given_up, counts.left_out) == ((), (), ())
    assert chat.read() == before


@pytest.mark.parametrize(
    ("statement", "restored"),
    [
        ("UPDATE aliases SET path = '/elsewhere' WHERE alias = 'live'", ("chat/live",)),
        ("UPDATE aliases SET share = 100 WHERE alias = 'candidate'", ("chat/candidate",)),
        ("UPDATE aliases SET seal = NULL", ("chat/live", "chat/candidate")),
        ("DELETE FROM aliases WHERE alias = 'live'", ("chat/live",)),
        ("DELETE FROM aliases WHERE alias = 'candidate'", ("chat/candidate",)),
        ("DELETE FROM aliases", ("chat/live", "chat/candidate")),
        (f"UPDATE secrets SET value = '{'0' * 64}'", ("chat/live", "chat/candidate")),
        ("DELETE FROM secrets", ("chat/live", "chat/candidate")),
    ],
)
def test_rows_that_other_hands_changed_are_what_they_were(
    any_engine: sa.Engine,
    chat: Registry,
    store: ArtifactStore,
    statement: str,
    restored: tuple[str, ...],
) -> None:
    before, generation = what(chat), chat.generation()
    run(any_engine, statement)
    counts = reindex(store.home, any_engine)
    assert set(counts.restored) == set(restored)
    again = Registry(any_engine, "chat")
    assert what(again) == before
    assert again.generation() == generation + 1
    assert again.read()["candidate"].share == 5


def test_a_renamed_row_is_restored_under_its_name_and_given_up_under_the_other(
    any_engine: sa.Engine, chat: Registry, store: ArtifactStore
) -> None:
    before = what(chat)
    run(any_engine, "UPDATE aliases SET name = 'chaf' WHERE alias = 'live'")
    counts = reindex(store.home, any_engine)
    assert (counts.restored, counts.given_up) == (("chat/live",), ("chaf/live",))
    assert what(Registry(any_engine, "chat")) == before
    assert Registry(any_engine, "chaf").read() == {}
    assert sorted(path.name for path in mirror_folder(store.home).iterdir()) == ["chat.json"]


def test_a_lost_database_is_made_again_from_the_home(
    chat: Registry, store: ArtifactStore, tmp_path: Path
) -> None:
    before, generation = what(chat), chat.generation()
    fresh = open_database(f"sqlite:///{tmp_path / 'fresh.db'}")
    counts = reindex(store.home, fresh)
    assert counts.artifacts == 3
    assert counts.restored == ("chat/candidate", "chat/live")
    again = Registry(fresh, "chat")
    assert what(again) == before
    # Servers have seen the generation before: another one tells them to look.
    assert again.generation() == generation + 1
    fresh.dispose()


def test_a_row_changed_by_other_hands_without_a_copy_is_given_up_and_a_run_helps(
    any_engine: sa.Engine, chat: Registry, store: ArtifactStore, models: list[Artifact]
) -> None:
    shutil.rmtree(mirror_folder(store.home))
    run(any_engine, "UPDATE aliases SET seal = NULL WHERE alias = 'live'")
    with pytest.raises(RegistryError, match="chat/live"):
        chat.set_live(models[0])
    assert reindex(store.home, any_engine).given_up == ("chat/live",)
    chat.set_live(models[0])
    assert what(chat) == {"live": "aa", "candidate": "bb"}


KILL_BEFORE_THE_COPY = """
import os, signal, sys
from pathlib import Path
from lmloop.store import registry
from lmloop.store.database import open_database
registry.write_json = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
chat = registry.Registry(open_database(sys.argv[1]), "chat", mirror=Path(sys.argv[2]))
chat.drop_candidate()
"""


def test_a_copy_that_a_kill_left_behind_brings_no_dropped_candidate_back(
    any_url: str, any_engine: sa.Engine, chat: Registry, store: ArtifactStore
) -> None:
    folder = mirror_folder(store.home)
    command = [sys.executable, "-c", KILL_BEFORE_THE_COPY, any_url, str(folder)]
    assert subprocess.run(command, timeout=60).returncode == -signal.SIGKILL
    assert "candidate" in json.loads((folder / "chat.json").read_text())
    assert reindex(store.home, any_engine).restored == ()
    assert what(chat) == {"live": "aa"}
    assert list(json.loads((folder / "chat.json").read_text())) == ["live"]


def test_a_copy_counts_only_where_an_artifact_has_its_content(
    any_engine: sa.Engine, chat: Registry, store: ArtifactStore, models: list[Artifact]
) -> None:
    shutil.rmtree(models[1].path)
    run(any_engine, "UPDATE aliases SET seal = NULL")
    counts = reindex(store.home, any_engine)
    assert counts.restored == ("chat/live",)
    assert counts.given_up == ("chat/candidate",)
    assert counts.left_out == ("chat/candidate: no artifact of this home has its content",)


def test_a_home_that_moved_is_found_again(
    any_engine: sa.Engine, chat: Registry, store: ArtifactStore, tmp_path: Path
) -> None:
    before = what(chat)
    store.home.rename(tmp_path / "moved")
    counts = reindex(tmp_path / "moved", any_engine)
    assert set(counts.restored) == {"chat/live", "chat/candidate"}
    again = Registry(any_engine, "chat")
    assert what(again) == before
    assert all(Path(row.path).is_dir() for row in again.read().values())
    assert counts.left_out == ()
    assert all(path.startswith(str(tmp_path / "moved")) for path, _ in indexed(any_engine))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"live": 3}',
        '{"live": {"name": "chat"}}',
        '{"live": {"nmae": "chat"}}',
        "\xff",
    ],
)
def test_a_copy_that_is_none_is_told_and_written_again(
    any_engine: sa.Engine, chat: Registry, store: ArtifactStore, text: str
) -> None:
    copy = mirror_folder(store.home) / "chat.json"
    copy.write_text(text, encoding="latin-1")
    counts = reindex(store.home, any_engine)
    assert len(counts.left_out) == 1 and str(copy) in counts.left_out[0]
    assert list(json.loads(copy.read_text())) == ["candidate", "live"]


@pytest.mark.parametrize(
    "change", [{"alias": "previous"}, {"name": "other"}, {"generation": "3"}, {"path": 3}]
)
def test_a_copy_whose_rows_contradict_themselves_is_none(
    any_engine: sa.Engine, chat: Registry, store: ArtifactStore, change: dict[str, Any]
) -> None:
    copy = mirror_folder(store.home) / "chat.json"
    data = json.loads(copy.read_text())
    data["live"] |= change
    copy.write_text(json.dumps(data))
    assert "says what no row says" in reindex(store.home, any_engine).left_out[0]


def test_events_are_not_touched(
    any_engine: sa.Engine, chat: Registry, store: ArtifactStore
) -> None:
    record_event(any_engine, "alarm", name="chat", data={})
    reindex(store.home, any_engine)
    assert count(any_engine, events_table) == 1


def test_an_empty_home_is_an_empty_index(any_engine: sa.Engine, store: ArtifactStore) -> None:
    counts = reindex(store.home, any_engine)
    assert counts.artifacts == 0
    assert (counts.restored, counts.given_up, counts.left_out) == ((), (), ())


def test_nothing_is_reindexed_beside_a_working_stage(
    any_engine: sa.Engine, store: ArtifactStore
) -> None:
    with store.lock("update", "0" * 64), pytest.raises(BusyError, match="is at work in"):
        reindex(store.home, any_engine)
    with transaction(any_engine) as connection:
        connection.execute(artifacts_table.delete())
    assert reindex(store.home, any_engine).artifacts == 0


def entry(alias: str, artifact: Artifact, generation: int) -> Entry:
    return Entry(
        name="chat",
        alias=alias,
        fingerprint=artifact.fingerprint,
        path=str(artifact.path),
        generation=generation,
        changed=1.0,
    )


@pytest.mark.parametrize(
    ("rows", "broken", "copies", "expected"),
    [
        # (age, alias → model): as they are told, and what comes of it.
        ((3, {"live": 0}), [], (3, {"live": 0}), {"live": 0}),
        ((3, {"live": 0}), [], (3, {"live": 0, "previous": 1}), {"live": 0, "previous": 1}),
        ((3, {"live": 0}), [], (2, {"live": 1, "candidate": 0}), {"live": 0}),
        ((2, {"live": 0}), [], (3, {"live": 1, "previous": 0}), {"live": 1, "previous": 0}),
        ((3, {"previous": 0}), ["live"], (2, {"live": 1}), {"live": 1, "previous": 0}),
        ((3, {"live": 0}), ["candidate"], (2, {"candidate": 1}), {"live": 0}),
        ((3, {"live": 0}), ["liv"], (3, {"live": 0}), {"live": 0}),
        ((0, {}), ["live"], (0, {}), {}),
        ((0, {}), [], (5, {"live": 2}), {"live": 2}),
    ],
)
def test_the_newer_of_rows_and_copies_is_right(
    models: list[Artifact],
    rows: tuple[int, dict[str, int]],
    broken: list[str],
    copies: tuple[int, dict[str, int]],
    expected: dict[str, int],
) -> None:
    sound, copied = (
        {alias: entry(alias, models[which], age) for alias, which in said.items()}
        for age, said in (rows, copies)
    )
    mended = reconcile(sound, broken, copied, artifacts=models)
    found = {alias: row.fingerprint for alias, row in mended.rows.items()}
    assert found == {alias: models[which].fingerprint for alias, which in expected.items()}
    assert set(mended.given_up) == set(broken) - expected.keys()
    changed = {alias for alias, which in expected.items() if rows[1].get(alias) != which}
    assert set(mended.restored) == changed
