"""The registry: what a name means now, what it meant before, and how often it changed."""

from __future__ import annotations

import dataclasses
import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from lmloop.errors import ArtifactError, RegistryError
from lmloop.store import registry as registry_module
from lmloop.store.artifact import Artifact
from lmloop.store.database import aliases_table, artifacts_table, transaction
from lmloop.store.registry import Entry, Registry, find_live, index_artifact

pytestmark = pytest.mark.usefixtures("quick_disk")

MakeArtifact = Callable[..., Artifact]


@pytest.fixture
def artifacts(make_artifact: MakeArtifact) -> list[Artifact]:
    return [make_artifact(text, key=text * 32) for text in ("aa", "bb", "cc")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "registry"


@pytest.fixture
def chat(any_engine: sa.Engine, folder: Path) -> Registry:
    return Registry(any_engine, "chat", mirror=folder)


def what(registry: Registry) -> dict[str, str]:
    """Which of `artifacts` each alias means, by the first two characters of its folder's key."""
    rows = registry.read()
    assert {row.generation for row in rows.values()} <= {registry.generation()}
    return {alias: Path(row.path).name.split("-")[1][:2] for alias, row in rows.items()}


def copy_of(folder: Path, name: str = "chat") -> dict[str, Entry]:
    data = json.loads((folder / f"{name}.json").read_text())
    return {alias: Entry(**row) for alias, row in data.items()}


def change(engine: sa.Engine, statement: str, **values: object) -> None:
    """What somebody does who has a shell of the database."""
    with engine.begin() as connection:
        assert connection.execute(sa.text(statement), values).rowcount


def test_an_artifact_is_indexed_once_however_often(
    any_engine: sa.Engine, make_artifact: MakeArtifact
) -> None:
    old = make_artifact("old")
    index_artifact(any_engine, old)
    index_artifact(any_engine, old)
    new = make_artifact("new")
    index_artifact(any_engine, new)
    with any_engine.connect() as connection:
        rows = connection.execute(sa.select(artifacts_table)).mappings().all()
    assert [row["fingerprint"] for row in rows] == [new.fingerprint]
    assert (rows[0]["kind"], rows[0]["stage"], rows[0]["name"]) == ("corpus", "prepare", "chat")
    assert rows[0]["path"] == str(new.path)


def test_the_first_live_model_has_generation_1_and_nothing_before_it(
    chat: Registry, artifacts: list[Artifact]
) -> None:
    assert (chat.generation(), chat.read()) == (0, {})
    assert chat.set_live(artifacts[0]) == 1
    row = chat.read()["live"]
    assert (row.name, row.alias, row.generation) == ("chat", "live", 1)
    assert (row.path, row.fingerprint) == (str(artifacts[0].path), artifacts[0].fingerprint)
    assert (row.phase, row.share) == (None, None)
    assert what(chat) == {"live": "aa"}


def test_a_new_live_model_makes_the_old_one_previous(
    chat: Registry, artifacts: list[Artifact]
) -> None:
    assert [chat.set_live(each) for each in artifacts] == [1, 2, 3]
    assert what(chat) == {"live": "cc", "previous": "bb"}


def test_the_same_place_with_other_content_is_a_new_generation(
    chat: Registry, artifacts: list[Artifact]
) -> None:
    chat.set_live(artifacts[0])
    assert chat.set_live(dataclasses.replace(artifacts[0], fingerprint="0" * 64)) == 2
    rows = chat.read()
    assert rows["live"].fingerprint == "0" * 64
    assert rows["previous"].fingerprint == artifacts[0].fingerprint


def test_going_back_is_a_generation_of_its_own(chat: Registry, artifacts: list[Artifact]) -> None:
    first, second, _ = artifacts
    assert [chat.set_live(each) for each in (first, second, first)] == [1, 2, 3]
    assert what(chat) == {"live": "aa", "previous": "bb"}


def test_a_candidate_goes_through_its_phases_and_leaves_the_others_alone(
    chat: Registry, artifacts: list[Artifact]
) -> None:
    chat.set_live(artifacts[0])
    assert chat.set_candidate(artifacts[1], phase="shadow", share=0) == 2
    assert chat.set_candidate(artifacts[1], phase="canary", share=5) == 3
    assert chat.set_candidate(artifacts[1], phase="canary", share=20) == 4
    row = chat.read()["candidate"]
    assert (row.phase, row.share) == ("canary", 20)
    assert what(chat) == {"live": "aa", "candidate": "bb"}
    assert chat.drop_candidate() == 5
    assert what(chat) == {"live": "aa"}


def test_a_candidate_needs_a_live_model_beside_it(
    chat: Registry, artifacts: list[Artifact]
) -> None:
    with pytest.raises(RegistryError, match="chat has no live model that a candidate"):
        chat.set_candidate(artifacts[1], phase="shadow", share=0)
    assert (chat.generation(), chat.read()) == (0, {})


def test_a_promoted_candidate_is_live_and_the_old_model_previous(
    chat: Registry, artifacts: list[Artifact]
) -> None:
    chat.set_live(artifacts[0])
    with pytest.raises(RegistryError, match="chat has no candidate that could become live"):
        chat.promote()
    chat.set_candidate(artifacts[1], phase="canary", share=20)
    assert chat.promote() == 3
    assert what(chat) == {"live": "bb", "previous": "aa"}
    row = chat.read()["live"]
    assert (row.phase, row.share) == (None, None)


def test_a_rollback_makes_the_previous_model_live_and_a_second_one_undoes_it(
    chat: Registry, artifacts: list[Artifact]
) -> None:
    chat.set_live(artifacts[0])
    with pytest.raises(RegistryError, match="chat has no previous model to roll back to"):
        chat.roll_back()
    chat.set_live(artifacts[1])
    chat.set_candidate(artifacts[2], phase="canary", share=5)
    assert chat.roll_back() == 4
    assert what(chat) == {"live": "aa", "previous": "bb"}
    assert chat.roll_back() == 5
    assert what(chat) == {"live": "bb", "previous": "aa"}


def test_a_candidate_that_is_made_live_is_no_candidate_any_more(
    chat: Registry, artifacts: list[Artifact]
) -> None:
    chat.set_live(artifacts[0])
    chat.set_candidate(artifacts[1], phase="shadow", share=0)
    assert chat.set_live(artifacts[2]) == 3
    assert what(chat) == {"live": "cc", "previous": "aa", "candidate": "bb"}
    assert chat.set_live(artifacts[1]) == 4
    assert what(chat) == {"live": "bb", "previous": "cc"}


def test_promoting_what_is_live_keeps_the_model_before_it(
    chat: Registry, artifacts: list[Artifact]
) -> None:
    chat.set_live(artifacts[0])
    chat.set_live(artifacts[1])
    chat.set_candidate(artifacts[1], phase="shadow", share=0)
    chat.promote()
    assert what(chat) == {"live": "bb", "previous": "aa"}


def test_a_call_that_finds_everything_as_it_wants_it_changes_nothing(
    chat: Registry, artifacts: list[Artifact], any_engine: sa.Engine
) -> None:
    chat.set_live(artifacts[0])
    assert chat.drop_candidate() == 1
    chat.set_live(artifacts[1])
    chat.set_candidate(artifacts[2], phase="shadow", share=0)
    before = chat.read()
    assert chat.set_live(artifacts[1]) == 3
    assert chat.set_candidate(artifacts[2], phase="shadow", share=0) == 3
    assert chat.read() == before


def test_a_row_remembers_when_it_changed_itself(chat: Registry, artifacts: list[Artifact]) -> None:
    chat.set_live(artifacts[0])
    first = chat.read()["live"].changed
    chat.set_candidate(artifacts[1], phase="shadow", share=0)
    assert chat.read()["live"].changed == first
    chat.promote()
    assert chat.read()["live"].changed > first


def test_names_do_not_touch_each_other(
    any_engine: sa.Engine, chat: Registry, artifacts: list[Artifact], folder: Path
) -> None:
    other = Registry(any_engine, "other", mirror=folder)
    assert (chat.set_live(artifacts[0]), other.set_live(artifacts[1])) == (1, 1)
    assert (what(chat), what(other)) == ({"live": "aa"}, {"live": "bb"})
    assert find_live(any_engine, "chat") == chat.read()["live"]
    assert find_live(any_engine, "other") == other.read()["live"]
    assert copy_of(folder, "other") == other.read()


def test_without_a_name_the_model_made_live_last_is_meant(
    any_engine: sa.Engine, chat: Registry, artifacts: list[Artifact]
) -> None:
    other = Registry(any_engine, "other")
    other.set_live(artifacts[1])
    chat.set_live(artifacts[0])
    assert find_live(any_engine, None).name == "chat"
    other.set_live(artifacts[2])
    assert find_live(any_engine, None).name == "other"


def test_a_name_without_live_model_is_told_with_those_that_there_are(
    any_engine: sa.Engine, chat: Registry, artifacts: list[Artifact]
) -> None:
    for name in (None, "chat"):
        with pytest.raises(ArtifactError, match="there is none yet: run a recipe first"):
            find_live(any_engine, name)
    chat.set_live(artifacts[0])
    with pytest.raises(ArtifactError, match="no live model called caht; live are: chat$"):
        find_live(any_engine, "caht")


HANDS = {
    "name": "chaf",
    "alias": "liv",
    "fingerprint": "0" * 64,
    "path": "/elsewhere",
    "generation": 9,
    "changed": 1.0,
    "phase": "canary",
    "share": 100,
    "seal": "0" * 64,
}


@pytest.mark.parametrize("column", HANDS)
def test_a_row_changed_by_other_hands_is_refused_and_named(
    any_engine: sa.Engine, chat: Registry, artifacts: list[Artifact], column: str
) -> None:
    chat.set_live(artifacts[0])
    statement = f"UPDATE aliases SET {column} = :value WHERE alias = 'live'"
    change(any_engine, statement, value=HANDS[column])
    name = HANDS["name"] if column == "name" else "chat"
    alias = HANDS["alias"] if column == "alias" else "live"
    changed = Registry(any_engine, str(name))
    told = f"registry row {name}/{alias} was not written by lmloop .*lmloop reindex"
    for use in (
        changed.read,
        lambda: changed.set_live(artifacts[1]),
        lambda: changed.set_candidate(artifacts[1], phase="shadow", share=0),
        changed.drop_candidate,
        changed.promote,
        changed.roll_back,
    ):
        with pytest.raises(RegistryError, match=told):
            use()
    if column != "alias":
        with pytest.raises(RegistryError, match=told):
            find_live(any_engine, str(name))


@pytest.mark.parametrize("value", [None, "", "é", "0" * 64])
def test_a_row_without_a_seal_of_ours_is_refused(
    any_engine: sa.Engine, chat: Registry, artifacts: list[Artifact], value: str | None
) -> None:
    chat.set_live(artifacts[0])
    change(any_engine, "UPDATE aliases SET seal = :value", value=value)
    with pytest.raises(RegistryError, match="chat/live"):
        chat.read()


def test_a_row_that_other_hands_added_is_refused(
    any_engine: sa.Engine, chat: Registry, artifacts: list[Artifact]
) -> None:
    chat.set_live(artifacts[0])
    change(
        any_engine,
        "INSERT INTO aliases SELECT name, 'candidate', fingerprint, path, generation, changed, "
        "'canary', 100, seal FROM aliases",
    )
    with pytest.raises(RegistryError, match="chat/candidate"):
        chat.read()


def test_an_older_row_that_other_hands_put_back_is_refused_though_its_seal_holds(
    any_engine: sa.Engine, chat: Registry, artifacts: list[Artifact]
) -> None:
    chat.set_live(artifacts[0])
    chat.set_candidate(artifacts[1], phase="shadow", share=0)
    with any_engine.connect() as connection:
        query = sa.select(aliases_table).where(aliases_table.c.alias == "candidate")
        old = dict(connection.execute(query).mappings().one())
    chat.drop_candidate()
    with transaction(any_engine) as connection:
        connection.execute(aliases_table.insert().values(old))
    with pytest.raises(RegistryError, match="chat/candidate"):
        chat.read()


def test_rows_that_a_loose_column_lets_in_are_refused(
    tmp_path: Path, artifacts: list[Artifact]
) -> None:
    # SQLite keeps text and bytes in columns of numbers.
    from lmloop.store.database import database_url, open_database

    engine = open_database(database_url(tmp_path))
    chat = Registry(engine, "chat")
    chat.set_live(artifacts[0])
    for column, value in (("seal", b"\xff"), ("fingerprint", b"\xff"), ("generation", "many")):
        change(engine, f"UPDATE aliases SET {column} = :value", value=value)
        with pytest.raises(RegistryError, match="chat/live"):
            chat.read()
    with pytest.raises(RegistryError, match="chat/generation"):
        chat.generation()
    engine.dispose()


def test_the_copy_says_after_every_change_what_the_rows_say(
    chat: Registry, artifacts: list[Artifact], folder: Path
) -> None:
    steps: tuple[Callable[[], int], ...] = (
        lambda: chat.set_live(artifacts[0]),
        lambda: chat.set_candidate(artifacts[1], phase="canary", share=5),
        chat.promote,
        chat.roll_back,
        chat.drop_candidate,
    )
    for step in steps:
        step()
        assert copy_of(folder) == chat.read()
    assert [path.name for path in folder.iterdir()] == ["chat.json"]


KILL_BEFORE_THE_COPY = """
import os, signal, sys
from lmloop.store import registry
from lmloop.store.artifact import open_artifact
from lmloop.store.database import open_database
from pathlib import Path
registry.write_json = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
engine = open_database(sys.argv[1])
registry.Registry(engine, "chat", mirror=Path(sys.argv[2])).set_live(open_artifact(sys.argv[3]))
"""


def test_a_copy_that_a_kill_left_old_is_written_with_the_next_call(
    any_url: str, chat: Registry, artifacts: list[Artifact], folder: Path
) -> None:
    chat.set_live(artifacts[0])
    command = [sys.executable, "-c", KILL_BEFORE_THE_COPY, any_url, folder, artifacts[1].path]
    assert subprocess.run(command, timeout=60).returncode == -signal.SIGKILL
    assert what(chat) == {"live": "bb", "previous": "aa"}
    assert copy_of(folder)["live"].generation == 1
    chat.drop_candidate()
    assert copy_of(folder) == chat.read()


def test_who_copies_last_copies_what_was_written_last(
    any_engine: sa.Engine,
    chat: Registry,
    artifacts: list[Artifact],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write, others = registry_module.write_json, []

    def be_slow(path: Path, data: object) -> None:
        # Between this one's reading and its writing another one changes the rows and copies them.
        if not others:
            registry = Registry(any_engine, "chat", mirror=folder)
            others.append(threading.Thread(target=registry.set_live, args=(artifacts[1],)))
            others[0].start()
            others[0].join(0.3)
        write(path, data)

    monkeypatch.setattr(registry_module, "write_json", be_slow)
    chat.set_live(artifacts[0])
    others[0].join(10)
    assert what(chat) == {"live": "bb", "previous": "aa"}
    assert copy_of(folder) == chat.read()


def test_a_copy_that_cannot_be_written_is_told_and_the_change_holds(
    chat: Registry,
    artifacts: list[Artifact],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fill(path: Path, data: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(registry_module, "write_json", fill)
    with caplog.at_level(logging.WARNING):
        assert chat.set_live(artifacts[0]) == 1
    assert what(chat) == {"live": "aa"}
    assert "No space left on device" in caplog.text


def test_a_change_that_fails_leaves_rows_and_copy_as_they_were(
    chat: Registry, artifacts: list[Artifact], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat.set_live(artifacts[0])
    before = chat.read()

    def fail(*_: object) -> str:
        raise OSError("broken")

    monkeypatch.setattr(registry_module, "seal", fail)
    with pytest.raises(OSError, match="broken"):
        chat.set_live(artifacts[1])
    monkeypatch.undo()
    assert chat.read() == before == copy_of(folder)


def test_restored_rows_are_sealed_under_a_generation_that_nobody_has_seen(
    any_engine: sa.Engine, chat: Registry, artifacts: list[Artifact], folder: Path
) -> None:
    chat.set_live(artifacts[0])
    chat.set_live(artifacts[1])
    good = chat.read()
    statement = "UPDATE aliases SET path = '/', generation = 7 WHERE alias = 'live'"
    change(any_engine, statement)
    seen: list[tuple[list[str], list[str]]] = []

    def choose(sound: Any, broken: Any) -> dict[str, Entry]:
        seen.append((sorted(sound), list(broken)))
        return {**good, **sound}

    chat.restore(choose)
    assert seen == [(["previous"], ["live"])]
    assert what(chat) == {"live": "bb", "previous": "aa"}
    assert chat.generation() == 8
    assert copy_of(folder) == chat.read()
    chat.restore(choose)
    assert chat.generation() == 8


def test_a_generation_beyond_all_counting_is_not_counted_on(
    any_engine: sa.Engine, chat: Registry, artifacts: list[Artifact]
) -> None:
    chat.set_live(artifacts[0])
    good = chat.read()
    change(any_engine, "UPDATE aliases SET generation = 2147483647")
    chat.restore(lambda sound, broken: good)
    assert (chat.generation(), what(chat)) == (2, {"live": "aa"})


SET_IN_TURN = """
import sys
from pathlib import Path
from lmloop.store.artifact import open_artifact
from lmloop.store.database import open_database
from lmloop.store.registry import Registry
engine = open_database(sys.argv[1])
chat = Registry(engine, "chat", mirror=Path(sys.argv[2]))
one, other = map(open_artifact, sys.argv[3:])
sys.stdout.write("ready\\n")
sys.stdout.flush()
sys.stdin.readline()
for number in range(15):
    sys.stdout.write(f"{chat.set_live((one, other)[number % 2])}\\n")
    chat.set_candidate(other, phase="canary", share=number % 100)
engine.dispose()
"""


@pytest.fixture
def setters(
    any_url: str, chat: Registry, artifacts: list[Artifact], folder: Path
) -> Iterator[list[subprocess.Popen[str]]]:
    pairs = ((artifacts[0], artifacts[1]), (artifacts[1], artifacts[2]))
    command = [sys.executable, "-c", SET_IN_TURN, any_url, str(folder)]
    started = [
        subprocess.Popen(
            [*command, *(str(each.path) for each in pair)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for pair in pairs
    ]
    yield started
    for process in started:
        process.kill()
        process.communicate(timeout=60)


def test_two_processes_lose_no_change_and_share_no_generation(
    chat: Registry,
    artifacts: list[Artifact],
    folder: Path,
    setters: list[subprocess.Popen[str]],
) -> None:
    for setter in setters:
        assert setter.stdout is not None
        assert setter.stdout.readline() == "ready\n"
    for setter in setters:
        assert setter.stdin is not None
        setter.stdin.write("go\n")
        setter.stdin.flush()
    meant: dict[int, set[str]] = {}
    pairs = (("aa", "bb"), ("bb", "cc"))
    for setter, pair in zip(setters, pairs, strict=True):
        output, errors = setter.communicate(timeout=120)
        assert errors == ""
        for number, line in enumerate(output.splitlines()):
            meant.setdefault(int(line), set()).add(pair[number % 2])
    # A generation that two were told is one model: the second found it set already.
    assert all(len(models) == 1 for models in meant.values())
    assert len(meant) >= 15
    assert chat.generation() >= max(meant)
    assert copy_of(folder) == chat.read()
