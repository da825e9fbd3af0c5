"""Forgetting a user: requests, ratings, reviews, and every copy of the words in artifacts.

Takes: the name that a client gave with its requests. Gives: what was deleted, and which models have
learnt from it. Weights cannot unlearn: such a model has to be trained again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from lmloop.errors import ArtifactError
from lmloop.store.artifact import Artifact, ArtifactStore
from lmloop.store.database import requests_table, scrub, transaction
from lmloop.store.events import add_event, read_secret
from lmloop.store.garbage import move_away, remove_all
from lmloop.store.identity import USERS_SECRET, pseudonym
from lmloop.store.lineage import find_descendants
from lmloop.store.retention import delete_requests

COLLECT = "collect"
"""The stage whose corpora hold words of users."""
UPDATE = "update"
"""The stage whose broken-off runs hold them as tokens."""
MEMBERS = "members.jsonl"
"""A line an exchange: `request_id` and `user_hash`."""
BATCH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """What was deleted of a user."""

    requests: int
    ratings: int
    reviews: int
    removed: tuple[Artifact, ...]
    """Collected corpora with words of the user, and what holds the same words in another form."""
    learnt: tuple[Artifact, ...]
    """Checkpoints that were trained on them, and all that were made from those."""

    def __bool__(self) -> bool:
        return bool(self.requests or self.removed)

    def lines(self) -> list[str]:
        """What to tell, a line each."""
        if not self:
            return ["nothing is kept of this user; a name counts letter by letter"]
        told = [f"{self.requests} requests, {self.ratings} ratings, {self.reviews} reviews deleted"]
        told += [f"removed: {artifact}" for artifact in self.removed]
        told += [f"has learnt from them: {artifact}" for artifact in self.learnt]
        if self.learnt:
            told.append("weights cannot unlearn: train these models again, or stop serving them")
        return told


def forget(home: Path, engine: sa.Engine, user: str) -> Forgotten:
    """Delete all that is kept of a user; of an unknown one nothing, and nothing changes.

    Raises `BusyError` where a stage or a rollout is at work, and may be reading the words;
    `ArtifactError` where a collected corpus cannot be searched: then nothing is deleted.
    """
    user_hash = pseudonym(read_secret(engine, USERS_SECRET), user)
    store = ArtifactStore(home)
    with store.own():
        models = _find_requests(engine, user_hash)
        artifacts, damaged = store.scan()
        corpora = [
            artifact
            for artifact in artifacts
            if artifact.stage == COLLECT and _holds(artifact, user_hash, models)
        ]
        for path, reason in damaged.items():
            if path.name.startswith(f"{COLLECT}-"):
                raise ArtifactError(
                    f"nothing is forgotten, this may hold words of theirs: {reason}"
                )
        removed, learnt = _follow(corpora, artifacts)
        forgotten = _delete(engine, models, removed, learnt)
        runs = list((home / "runs").glob(f"{UPDATE}-*")) if removed else []
        # The rows went first: who is killed here finds these again by the user's pseudonym.
        doomed = move_away(engine, [*(each.path for each in removed), *runs])
    remove_all(doomed)
    scrub(engine)
    return forgotten


def _find_requests(engine: sa.Engine, user_hash: str) -> dict[str, str]:
    """Ids of the user's requests, and of unseen answers to them, each with its model's name."""
    table = requests_table
    own = sa.select(table.c.id).where(table.c.user_hash == user_hash)
    query = sa.select(table.c.id, table.c.model).where(
        sa.or_(table.c.user_hash == user_hash, table.c.shadow_of.in_(own))
    )
    with engine.connect() as connection:
        return {row.id: row.model for row in connection.execute(query)}


def _holds(corpus: Artifact, user_hash: str, requests: Mapping[str, str]) -> bool:
    """Whether a collected corpus has an exchange of the user."""
    try:
        lines = (corpus.path / MEMBERS).read_text(encoding="utf-8").splitlines()
        members = [json.loads(line) for line in lines]
        return any(
            member["user_hash"] == user_hash or member["request_id"] in requests
            for member in members
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ArtifactError(
            f"nothing is forgotten: {corpus.path / MEMBERS} cannot be read, and may name exchanges "
            f"of theirs ({type(error).__name__}): remove {corpus.path} and forget again"
        ) from error


def _follow(
    corpora: Sequence[Artifact], artifacts: Sequence[Artifact]
) -> tuple[list[Artifact], list[Artifact]]:
    """The corpora and what repeats their words, and the checkpoints that have learnt them."""
    texts = [artifact for artifact in artifacts if artifact.kind != "checkpoint"]
    removed = [*corpora, *find_descendants(corpora, texts)]
    behind = find_descendants(removed, artifacts)
    return removed, [artifact for artifact in behind if artifact.kind == "checkpoint"]


def _delete(
    engine: sa.Engine,
    requests: Mapping[str, str],
    removed: Sequence[Artifact],
    learnt: Sequence[Artifact],
) -> Forgotten:
    """Delete the rows and note in the same transaction, for every model, that it was done."""
    ids, counts = sorted(requests), [0, 0, 0]
    with transaction(engine) as connection:
        for start in range(0, len(ids), BATCH):
            deleted = delete_requests(connection, ids[start : start + BATCH])
            counts = [sum(both) for both in zip(counts, deleted, strict=True)]
        for name in sorted({*requests.values(), *(artifact.name for artifact in removed)}):
            data = {
                "requests": sum(model == name for model in requests.values()),
                "removed": [str(artifact) for artifact in removed if artifact.name == name],
                "learnt": [str(artifact) for artifact in learnt if artifact.name == name],
            }
            add_event(connection, "forget", name=name, data=data)
    return Forgotten(
        requests=counts[0],
        ratings=counts[1],
        reviews=counts[2],
        removed=tuple(removed),
        learnt=tuple(learnt),
    )
