"""Reindexing: the database says again what the home says.

Takes: the manifests of a home, and the copies of its registry's rows. Gives: a fresh index of its
artifacts, and registry rows that were lost or changed by other hands as they were. Events live in
the database alone and are not touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import sqlalchemy as sa

from lmloop.store.artifact import Artifact, ArtifactStore
from lmloop.store.database import artifacts_table, transaction
from lmloop.store.registry import (
    Entry,
    Registry,
    describe_artifact,
    find_names,
    mirror_folder,
    newest_generation,
    read_mirror,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a reindexing has come to."""

    artifacts: int
    """Artifacts in the index now."""
    restored: tuple[str, ...]
    """Rows of the registry that were written again, as `NAME/ALIAS`."""
    given_up: tuple[str, ...]
    """Rows that were not as lmloop wrote them, and of which there is no copy either."""
    left_out: tuple[str, ...]
    """What could not be read, a line each: damaged artifacts and copies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mended:
    """What the rows of one name should say."""

    rows: Mapping[str, Entry]
    restored: tuple[str, ...]
    """Aliases whose rows said something else, or nothing."""
    given_up: tuple[str, ...]
    lost: tuple[str, ...]
    """Aliases whose artifact is nowhere in the home."""


def reindex(home: Path, engine: sa.Engine) -> Counts:
    """Rebuild the index from the manifests, and mend the registry from its copies.

    A copy counts only where an artifact of this home has the fingerprint that it names. Raises
    `BusyError` where a stage or a rollout is at work.
    """
    store = ArtifactStore(home)
    with store.own():
        artifacts, damaged = store.scan()
        copies, unreadable = read_mirror(home)
        _index_all(engine, artifacts, root=store.root)
        mended = {
            name: _mend(Registry(engine, name, mirror=mirror_folder(home)), copies, artifacts)
            for name in sorted({*copies, *find_names(engine)})
        }
    lost = [
        f"{each}: no artifact of this home has its content" for each in _full_names(mended, "lost")
    ]
    return Counts(
        artifacts=len(artifacts),
        restored=_full_names(mended, "restored"),
        given_up=_full_names(mended, "given_up"),
        left_out=(*damaged.values(), *unreadable.values(), *lost),
    )


def _full_names(mended: Mapping[str, Mended], what: str) -> tuple[str, ...]:
    return tuple(
        f"{name}/{alias}" for name, each in mended.items() for alias in getattr(each, what)
    )


def _index_all(engine: sa.Engine, artifacts: Sequence[Artifact], *, root: Path) -> None:
    """Make the index say what is on disk; rows of other homes stay while their folders are."""
    table = artifacts_table
    with transaction(engine) as connection:
        for path in connection.scalars(sa.select(table.c.path)).all():
            if Path(path).parent == root or not Path(path).is_dir():
                connection.execute(table.delete().where(table.c.path == path))
        if artifacts:
            connection.execute(table.insert(), [describe_artifact(each) for each in artifacts])


def _mend(
    registry: Registry,
    copies: Mapping[str, Mapping[str, Entry]],
    artifacts: Sequence[Artifact],
) -> Mended:
    outcome = []

    def choose(sound: Mapping[str, Entry], broken: Sequence[str]) -> Mapping[str, Entry]:
        copied = copies.get(registry.name, {})
        outcome.append(reconcile(sound, broken, copied, artifacts=artifacts))
        return outcome[-1].rows

    registry.restore(choose)
    return outcome[-1]


def reconcile(
    sound: Mapping[str, Entry],
    broken: Sequence[str],
    copies: Mapping[str, Entry],
    *,
    artifacts: Sequence[Artifact],
) -> Mended:
    """What rows should say, of which `sound` ones are sealed and `broken` ones are not.

    The newer of rows and copies is right: a kill can leave the copies a change behind, and a power
    cut or a lost database the rows. Of equal age, copies stand in for rows that are missing or
    broken. Older copies stand in for broken rows only, since a row that they alone know was dropped
    since; and never for a candidate, which may have been called back.
    """
    found = {alias: _locate(entry, artifacts) for alias, entry in {**copies, **sound}.items()}
    copied = {alias: row for alias in copies if (row := _locate(copies[alias], artifacts))}
    kept = {alias: found[alias] or entry for alias, entry in sound.items()}
    behind = newest_generation(copies) - newest_generation(sound)
    if behind > 0:
        rows = {**copied, **({} if "live" in copied else kept)}
    elif behind == 0:
        rows = {**copied, **kept}
    else:
        stand_in = {each: copied[each] for each in broken if each in copied and each != "candidate"}
        rows = {**stand_in, **kept}
    return Mended(
        rows=rows,
        restored=tuple(each for each in rows if not _says_same(rows[each], sound.get(each))),
        given_up=tuple(each for each in broken if each not in rows),
        lost=tuple(each for each, row in found.items() if row is None),
    )


def _locate(entry: Entry, artifacts: Sequence[Artifact]) -> Entry | None:
    """The row with its artifact's place in this home, wherever the home was before."""
    same = [each for each in artifacts if each.fingerprint == entry.fingerprint]
    at = next((each for each in same if str(each.path) == entry.path), None)
    at = at or next((each for each in same if each.path.name == Path(entry.path).name), None)
    return None if at is None else replace(entry, path=str(at.path))


def _says_same(one: Entry, other: Entry | None) -> bool:
    if other is None:
        return False
    return replace(one, generation=other.generation, changed=other.changed) == other
