"""Forgetting: no row and no file has the user's words afterwards, and others keep theirs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa

from lmloop.errors import ArtifactError, BusyError
from lmloop.store.artifact import Artifact, ArtifactStore
from lmloop.store.database import (
    artifacts_table,
    database_url,
    events_table,
    open_database,
    ratings_table,
    requests_table,
    reviews_table,
)
from lmloop.store.events import read_events, read_secret, write_events
from lmloop.store.forget import forget
from lmloop.store.identity import USERS_SECRET, pseudonym
from lmloop.store.registry import index_artifact

from .conftest import count, rating_row, request_row

pytestmark = pytest.mark.usefixtures("quick_disk")

WORDS = "my sister's telephone number"


def say(engine: sa.Engine, user: str | None, *ids: str, model: str = "chat") -> None:
    """Requests of a user, each rated and reviewed."""
    known = None if user is None else pseudonym(read_secret(engine, USERS_SECRET), user)
    rows = []
    for each in ids:
        review = {"request_id": each, "content_sha": "0", "state": "accepted", "decided": 3.0}
        told = {"model": model, "user_hash": known, "prompt": WORDS, "answer": WORDS}
        rows += [
            (requests_table, request_row(each, **told)),
            (ratings_table, rating_row(each, correction=WORDS)),
            (reviews_table, review),
        ]
    write_events(engine, rows)


def make(
    store: ArtifactStore,
    engine: sa.Engine,
    stage: str,
    *,
    kind: str,
    made_from: Sequence[Artifact] = (),
    members: Sequence[tuple[str, str | None]] = (),
    name: str = "chat",
) -> Artifact:
    """An artifact; a collected corpus lists whose exchanges it holds."""
    secret = read_secret(engine, USERS_SECRET)
    lines = [
        {"request_id": each, "user_hash": None if user is None else pseudonym(secret, user)}
        for each, user in members
    ]
    key = f"{len(list(store.root.glob('*'))):016}" * 4
    with store.write(stage, key) as draft:
        (draft.path / "text").write_text(f"{stage} {key}")
        if stage == "collect":
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (draft.path / "members.jsonl").write_text(text)
        made = draft.finish(
            kind=kind,
            name=name,
            made_from=[{"kind": o.kind, "fingerprint": o.fingerprint} for o in made_from],
            settings={},
            counts={},
            code_version="0",
            environment={},
            created=float(key[:16]),
        )
    index_artifact(engine, made)
    return made


def left(engine: sa.Engine, column: sa.Column[str]) -> list[str]:
    with engine.connect() as connection:
        return sorted(connection.scalars(sa.select(column)))


def test_all_rows_of_a_user_go_and_those_of_others_stay(
    any_engine: sa.Engine, store: ArtifactStore
) -> None:
    say(any_engine, "ann", "a1", "a2")
    say(any_engine, "bob", "b1")
    say(any_engine, None, "n1")
    forgotten = forget(store.home, any_engine, "ann")
    assert (forgotten.requests, forgotten.ratings, forgotten.reviews) == (2, 2, 2)
    assert forgotten
    for column in (
        requests_table.c.id,
        ratings_table.c.request_id,
        reviews_table.c.request_id,
    ):
        assert left(any_engine, column) == ["b1", "n1"]
    assert forgotten.lines() == ["2 requests, 2 ratings, 2 reviews deleted"]


def test_unseen_answers_to_the_user_go_as_well(any_engine: sa.Engine, store: ArtifactStore) -> None:
    say(any_engine, "ann", "a1")
    shadow = request_row("s1", arm="shadow", shadow_of="a1", answer=WORDS)
    other = request_row("s2", arm="shadow", shadow_of="b1")
    write_events(any_engine, [(requests_table, shadow), (requests_table, other)])
    assert forget(store.home, any_engine, "ann").requests == 2
    assert left(any_engine, requests_table.c.id) == ["s2"]


@pytest.mark.parametrize("user", ["Ann", "ann ", "", "\ud800"])
def test_of_an_unknown_user_nothing_goes_and_nothing_is_noted(
    any_engine: sa.Engine, store: ArtifactStore, user: str
) -> None:
    say(any_engine, "ann", "a1")
    make(store, any_engine, "collect", kind="corpus", members=[("a1", "ann")])
    forgotten = forget(store.home, any_engine, user)
    assert not forgotten
    assert forgotten.lines() == ["nothing is kept of this user; a name counts letter by letter"]
    assert count(any_engine, requests_table) == count(any_engine, artifacts_table) == 1
    assert count(any_engine, events_table) == 0


def test_corpora_with_the_users_words_go_with_all_that_repeats_them(
    any_engine: sa.Engine, store: ArtifactStore
) -> None:
    say(any_engine, "ann", "a1")
    base = make(store, any_engine, "prepare", kind="corpus")
    live = make(store, any_engine, "finetune", kind="checkpoint", made_from=[base])
    theirs = make(store, any_engine, "collect", kind="corpus", members=[("a1", "ann")])
    others = make(store, any_engine, "collect", kind="corpus", members=[("b1", "bob")])
    pledge = make(store, any_engine, "pledge", kind="pledge", made_from=[base, theirs, live])
    updated = make(
        store, any_engine, "update", kind="checkpoint", made_from=[live, theirs, base, pledge]
    )
    smaller = make(store, any_engine, "compress", kind="checkpoint", made_from=[updated])
    verdict = make(store, any_engine, "gate", kind="report", made_from=[smaller, live, pledge])
    unrelated = make(store, any_engine, "update", kind="checkpoint", made_from=[live, others])
    report = make(store, any_engine, "evaluate", kind="report", made_from=[smaller, base])
    run = store.home / "runs" / "update-0123456789abcdef"
    run.mkdir(parents=True)
    (run / "mixture").write_text(WORDS)

    forgotten = forget(store.home, any_engine, "ann")
    assert forgotten.removed == (theirs, pledge, verdict)
    assert forgotten.learnt == (updated, smaller)
    stay = {artifact.path for artifact in (base, live, others, updated, smaller, unrelated, report)}
    assert {artifact.path for artifact in store.all()} == stay
    assert set(left(any_engine, artifacts_table.c.path)) == set(map(str, stay))
    assert not run.exists()
    lines = forgotten.lines()
    assert f"removed: {theirs}" in lines and f"has learnt from them: {smaller}" in lines
    assert lines[-1].startswith("weights cannot unlearn: train these models again")


def test_a_corpus_is_found_by_the_user_when_the_requests_have_expired(
    any_engine: sa.Engine, store: ArtifactStore
) -> None:
    corpus = make(store, any_engine, "collect", kind="corpus", members=[("old", "ann")])
    forgotten = forget(store.home, any_engine, "ann")
    assert (forgotten.requests, forgotten.removed) == (0, (corpus,))
    assert store.all() == []


def test_a_corpus_without_pseudonyms_is_found_by_its_requests(
    any_engine: sa.Engine, store: ArtifactStore
) -> None:
    say(any_engine, "ann", "a1")
    corpus = make(store, any_engine, "collect", kind="corpus", members=[("a1", None)])
    assert forget(store.home, any_engine, "ann").removed == (corpus,)


def test_the_event_says_what_went_and_not_whose_it_was(
    any_engine: sa.Engine, store: ArtifactStore
) -> None:
    say(any_engine, "ann", "a1", "a2")
    say(any_engine, "ann", "o1", model="other")
    corpus = make(store, any_engine, "collect", kind="corpus", members=[("a1", "ann")])
    forget(store.home, any_engine, "ann")
    (chat,) = read_events(any_engine, name="chat", kinds=["forget"])
    (other,) = read_events(any_engine, name="other", kinds=["forget"])
    assert chat.data == {"requests": 2, "removed": [str(corpus)], "learnt": []}
    assert other.data == {"requests": 1, "removed": [], "learnt": []}
    told = json.dumps([chat.data, other.data])
    assert "ann" not in told
    assert pseudonym(read_secret(any_engine, USERS_SECRET), "ann") not in told


def test_no_file_of_the_home_has_the_words_any_more(tmp_path: Path) -> None:
    engine = open_database(database_url(tmp_path))
    store = ArtifactStore(tmp_path)
    say(engine, "ann", *map(str, range(40)))
    holds = [path.name for path in tmp_path.iterdir() if WORDS.encode() in path.read_bytes()]
    assert holds
    forget(store.home, engine, "ann")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in files if WORDS.encode() in path.read_bytes()] == []
    engine.dispose()


def test_more_requests_than_a_statement_can_name_go_at_once(
    any_engine: sa.Engine, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmloop.store.forget.BATCH", 3)
    say(any_engine, "ann", *(f"a{number}" for number in range(10)))
    forgotten = forget(store.home, any_engine, "ann")
    assert (forgotten.requests, forgotten.ratings, forgotten.reviews) == (10, 10, 10)
    assert count(any_engine, requests_table) == 0


def test_nothing_is_forgotten_beside_a_stage_that_may_be_reading_it(
    any_engine: sa.Engine, store: ArtifactStore
) -> None:
    say(any_engine, "ann", "a1")
    with store.lock("update", "0" * 64), pytest.raises(BusyError):
        forget(store.home, any_engine, "ann")
    assert count(any_engine, requests_table) == 1


@pytest.mark.parametrize("text", [None, "{", "[1]\n", '{"request_id": "a"}\n', '"a"\n'])
def test_a_corpus_that_cannot_be_searched_lets_nothing_be_forgotten(
    any_engine: sa.Engine, store: ArtifactStore, text: str | None
) -> None:
    say(any_engine, "ann", "a1")
    members = make(store, any_engine, "collect", kind="corpus").path / "members.jsonl"
    members.unlink()
    if text is not None:
        members.write_text(text)
    with pytest.raises(ArtifactError, match=r"members\.jsonl cannot be read.*remove .*collect-0"):
        forget(store.home, any_engine, "ann")
    assert count(any_engine, requests_table) == 1


def test_a_damaged_corpus_lets_nothing_be_forgotten_and_other_damage_does(
    any_engine: sa.Engine, store: ArtifactStore
) -> None:
    say(any_engine, "ann", "a1")
    corpus = make(store, any_engine, "collect", kind="corpus")
    shards = make(store, any_engine, "tokenize", kind="shards")
    for artifact in (corpus, shards):
        (artifact.path / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="this may hold words of theirs.*collect-0"):
        forget(store.home, any_engine, "ann")
    assert count(any_engine, requests_table) == 1
    (corpus.path / "manifest.json").unlink()
    (corpus.path / "text").unlink()
    (corpus.path / "members.jsonl").unlink()
    corpus.path.rmdir()
    assert forget(store.home, any_engine, "ann").requests == 1


def test_who_was_killed_behind_the_rows_finds_the_corpora_the_next_time(
    any_engine: sa.Engine, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(any_engine, "ann", "a1")
    corpus = make(store, any_engine, "collect", kind="corpus", members=[("a1", "ann")])
    model = make(store, any_engine, "update", kind="checkpoint", made_from=[corpus])

    def fail(*_: object) -> list[Path]:
        raise OSError("broken")

    monkeypatch.setattr("lmloop.store.forget.move_away", fail)
    with pytest.raises(OSError, match="broken"):
        forget(store.home, any_engine, "ann")
    monkeypatch.undo()
    forgotten = forget(store.home, any_engine, "ann")
    assert (forgotten.requests, forgotten.removed, forgotten.learnt) == (0, (corpus,), (model,))
