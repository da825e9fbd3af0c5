"""The registry: what a name means now, what it meant before, and how often it changed."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from lmloop.errors import ArtifactError
from lmloop.store.artifact import Artifact
from lmloop.store.database import artifacts_table, database_url, open_database
from lmloop.store.registry import find_live, get_alias, index_artifact, set_alias

MakeArtifact = Callable[..., Artifact]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    made = open_database(database_url(tmp_path / "home"))
    yield made
    made.dispose()


@pytest.fixture
def artifacts(make_artifact: MakeArtifact) -> list[Artifact]:
    return [make_artifact(text, key=text * 32) for text in ("aa", "bb", "cc")]


def row_of(engine: sa.Engine, alias: str, name: str = "chat") -> dict[str, Any] | None:
    with engine.connect() as connection:
        return get_alias(connection, name, alias)


def fingerprint_of(engine: sa.Engine, alias: str) -> str | None:
    row = row_of(engine, alias)
    return None if row is None else row["fingerprint"]


def test_an_artifact_is_indexed_once_however_often(
    engine: sa.Engine, make_artifact: MakeArtifact
) -> None:
    old = make_artifact("old")
    index_artifact(engine, old)
    index_artifact(engine, old)
    new = make_artifact("new")
    index_artifact(engine, new)
    with engine.connect() as connection:
        rows = connection.execute(sa.select(artifacts_table)).mappings().all()
    assert [row["fingerprint"] for row in rows] == [new.fingerprint]
    assert (rows[0]["kind"], rows[0]["stage"], rows[0]["name"]) == ("corpus", "prepare", "chat")
    assert rows[0]["path"] == str(new.path)


def test_the_first_live_model_has_generation_1_and_nothing_before_it(
    engine: sa.Engine, artifacts: list[Artifact]
) -> None:
    assert row_of(engine, "live") is None
    assert set_alias(engine, "chat", "live", artifacts[0]) == 1
    assert fingerprint_of(engine, "live") == artifacts[0].fingerprint
    assert row_of(engine, "previous") is None


def test_a_new_live_model_makes_the_old_one_previous(
    engine: sa.Engine, artifacts: list[Artifact]
) -> None:
    first, second, third = artifacts
    assert [set_alias(engine, "chat", "live", each) for each in artifacts] == [1, 2, 3]
    assert fingerprint_of(engine, "live") == third.fingerprint
    assert fingerprint_of(engine, "previous") == second.fingerprint
    assert first.fingerprint not in (third.fingerprint, second.fingerprint)


def test_setting_what_is_set_changes_nothing(engine: sa.Engine, artifacts: list[Artifact]) -> None:
    set_alias(engine, "chat", "live", artifacts[0])
    set_alias(engine, "chat", "live", artifacts[1])
    before = row_of(engine, "live"), row_of(engine, "previous")
    assert set_alias(engine, "chat", "live", artifacts[1]) == 2
    assert (row_of(engine, "live"), row_of(engine, "previous")) == before


def test_the_same_place_with_other_content_is_a_new_generation(
    engine: sa.Engine, artifacts: list[Artifact]
) -> None:
    set_alias(engine, "chat", "live", artifacts[0])
    rewritten = dataclasses.replace(artifacts[0], fingerprint="0" * 64)
    assert set_alias(engine, "chat", "live", rewritten) == 2
    assert fingerprint_of(engine, "live") == "0" * 64


def test_going_back_is_a_generation_of_its_own(
    engine: sa.Engine, artifacts: list[Artifact]
) -> None:
    first, second, _ = artifacts
    set_alias(engine, "chat", "live", first)
    set_alias(engine, "chat", "live", second)
    assert set_alias(engine, "chat", "live", first) == 3
    assert fingerprint_of(engine, "live") == first.fingerprint
    assert fingerprint_of(engine, "previous") == second.fingerprint


def test_a_candidate_leaves_live_and_previous_alone(
    engine: sa.Engine, artifacts: list[Artifact]
) -> None:
    set_alias(engine, "chat", "live", artifacts[0])
    assert set_alias(engine, "chat", "candidate", artifacts[1]) == 1
    assert set_alias(engine, "chat", "candidate", artifacts[2]) == 2
    assert fingerprint_of(engine, "live") == artifacts[0].fingerprint
    assert row_of(engine, "previous") is None


def test_names_do_not_touch_each_other(engine: sa.Engine, artifacts: list[Artifact]) -> None:
    set_alias(engine, "chat", "live", artifacts[0])
    assert set_alias(engine, "other", "live", artifacts[1]) == 1
    assert find_live(engine, "chat")["fingerprint"] == artifacts[0].fingerprint
    assert find_live(engine, "other")["fingerprint"] == artifacts[1].fingerprint


def test_without_a_name_the_model_made_live_last_is_meant(
    engine: sa.Engine, artifacts: list[Artifact]
) -> None:
    set_alias(engine, "other", "live", artifacts[1])
    set_alias(engine, "chat", "live", artifacts[0])
    assert find_live(engine, None)["name"] == "chat"
    set_alias(engine, "other", "live", artifacts[2])
    assert find_live(engine, None)["name"] == "other"


def test_a_name_without_live_model_is_told_with_those_that_there_are(
    engine: sa.Engine, artifacts: list[Artifact]
) -> None:
    for name in (None, "chat"):
        with pytest.raises(ArtifactError, match="there is none yet: run a recipe first"):
            find_live(engine, name)
    set_alias(engine, "chat", "live", artifacts[0])
    set_alias(engine, "draft", "candidate", artifacts[1])
    with pytest.raises(ArtifactError, match="no live model called caht; live are: chat$"):
        find_live(engine, "caht")


SET_IN_TURN = """
import sys
from lmloop.store.artifact import open_artifact
from lmloop.store.database import open_database
from lmloop.store.registry import set_alias
engine = open_database(sys.argv[1])
one, other = map(open_artifact, sys.argv[2:])
sys.stdout.write("ready\\n")
sys.stdout.flush()
sys.stdin.readline()
for number in range(100):
    sys.stdout.write(f"{set_alias(engine, 'chat', 'live', (one, other)[number % 2])}\\n")
engine.dispose()
"""


def test_two_processes_never_give_one_generation_to_two_models(
    engine: sa.Engine, artifacts: list[Artifact], tmp_path: Path
) -> None:
    url = database_url(tmp_path / "home")
    pairs = ((artifacts[0], artifacts[1]), (artifacts[1], artifacts[2]))
    setters = [
        subprocess.Popen(
            [sys.executable, "-c", SET_IN_TURN, url, str(one.path), str(other.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for one, other in pairs
    ]
    answers = []
    for setter in setters:
        assert setter.stdout is not None
        assert setter.stdout.readline() == "ready\n"
    for setter in setters:
        assert setter.stdin is not None
        setter.stdin.write("go\n")
        setter.stdin.flush()
    for setter, pair in zip(setters, pairs, strict=True):
        output, errors = setter.communicate(timeout=120)
        assert errors == ""
        answers += [
            (int(line), pair[number % 2].fingerprint)
            for number, line in enumerate(output.splitlines())
        ]
    assert len(answers) == 200
    # A generation that two were told is one model: the second found it set already.
    assert len(set(answers)) == len({generation for generation, _ in answers})
    live = row_of(engine, "live")
    assert live is not None
    assert live["generation"] == max(generation for generation, _ in answers)
