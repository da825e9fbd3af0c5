"""Garbage collection: what no model needs goes, oldest first, until the home is small enough.

Takes: a home, and the most bytes that it may hold. Gives: what went. Models that are live, previous
or candidate stay, and so does all that they were made from.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from lmloop.errors import ArtifactError, RegistryError
from lmloop.store.artifact import Artifact, ArtifactStore, sync
from lmloop.store.database import artifacts_table, transaction
from lmloop.store.lineage import find_ancestors
from lmloop.store.registry import (
    Entry,
    Registry,
    find_names,
    newest_generation,
    read_mirror,
)

HIDDEN = ".garbage."
"""How the names of folders begin that wait for their removal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A folder or file of a home, and why it went or stays."""

    path: Path
    what: str
    """Such as `checkpoint 0123456789ab by update`, `draft`, `run`, `cache`."""
    why: str
    """Such as `live of chat`, `chat was made from it`, `no model needs it`."""
    bytes: int
    created: float
    """Seconds since the epoch."""

    def __str__(self) -> str:
        return f"{self.what} ({self.bytes / 1e6:.1f} MB): {self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a collection has come to."""

    removed: tuple[Piece, ...]
    """In the order in which it went, or would go."""
    kept: tuple[Piece, ...]
    """Everything else that has a name, largest first."""
    bytes: int
    """Of the whole home afterwards, its database included."""
    excess: int
    """Bytes by which that is over the bound: what has to stay is too large for it."""

    @property
    def freed(self) -> int:
        """Bytes that went, or would go."""
        return sum(piece.bytes for piece in self.removed)


def collect_garbage(
    home: Path, engine: sa.Engine, *, max_bytes: int | None, dry_run: bool
) -> Collected:
    """Remove what is not needed until the home holds at most `max_bytes`; None: all of it.

    Drafts of killed writers and caches always go. Then go runs that were broken off and artifacts
    that no model was made from, oldest first; then, only where the bound cannot be met otherwise,
    reports on models that stay. With `dry_run` nothing is touched.

    Raises `BusyError` where a stage or a rollout is at work, `RegistryError` where the registry
    cannot be trusted, `ArtifactError` where a model in it is missing: then nothing is removed.
    """
    store = ArtifactStore(home)
    with store.own():
        sorted_out = _sort_out(store, _read_registry(home, engine))
        going = _choose(sorted_out, max_bytes=max_bytes)
        staying = [piece for piece in sorted_out.all() if piece not in going]
        doomed = [] if dry_run else move_away(engine, [piece.path for piece in going])
    # Out of the way as a whole: nobody waits for the slow part, and a kill leaves drafts.
    remove_all(doomed)
    size = sum(piece.bytes for piece in staying)
    return Collected(
        removed=tuple(going),
        kept=tuple(sorted(staying, key=lambda piece: -piece.bytes)),
        bytes=size,
        excess=0 if max_bytes is None else max(0, size - max_bytes),
    )


def _choose(sorted_out: _Sorted, *, max_bytes: int | None) -> list[Piece]:
    """What goes, in its order."""
    going = list(sorted_out.junk)
    left = sum(piece.bytes for piece in sorted_out.all() if piece not in going)
    reports = () if max_bytes is None else sorted_out.reports
    for piece in (*sorted_out.spare, *reports):
        if max_bytes is None or left > max_bytes:
            going.append(piece)
            left -= piece.bytes
    return going


def move_away(engine: sa.Engine, paths: Sequence[Path]) -> list[Path]:
    """Take pieces out of the home and its index; where they wait for their removal."""
    doomed = [hide(path) for path in paths]
    table = artifacts_table
    with transaction(engine) as connection:
        for path in paths:
            connection.execute(table.delete().where(table.c.path == str(path)))
    return doomed


def hide(path: Path) -> Path:
    """Give a folder a name that no reader or writer looks at; a kill leaves it whole or hidden."""
    if path.name.startswith(HIDDEN):
        return path
    hidden = path.with_name(f"{HIDDEN}{os.getpid()}.{path.name.lstrip('.')}")
    remove_all([hidden])
    path.rename(hidden)
    sync(path.parent)
    return hidden


def remove_all(paths: Iterable[Path]) -> None:
    """Delete files and folders; what is gone already is no error."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _read_registry(home: Path, engine: sa.Engine) -> list[Entry]:
    """All rows of all names; raises `RegistryError` where they may not be what was written last."""
    copies, unreadable = read_mirror(home)
    remedy = "nothing is removed: `lmloop reindex` mends the registry"
    for reason in unreadable.values():
        raise RegistryError(f"{reason}; {remedy}")
    entries: list[Entry] = []
    for name in sorted({*copies, *find_names(engine)}):
        rows, copied = Registry(engine, name).read(), copies.get(name, {})
        behind = newest_generation(copied) - newest_generation(rows)
        if behind > 0 or (behind == 0 and copied.keys() - rows.keys()):
            raise RegistryError(
                f"the database knows less of {name} than the home ({', '.join(sorted(copied))} of "
                f"generation {newest_generation(copied)}), is it another home's? {remedy}"
            )
        entries += rows.values()
    return entries


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sorted:
    """Everything in a home."""

    kept: list[Piece]
    spare: list[Piece]
    """What may go, oldest first."""
    reports: list[Piece]
    """Reports on models that stay, oldest first."""
    junk: list[Piece]
    """What is of no use to anybody."""

    def all(self) -> list[Piece]:
        return [*self.kept, *self.spare, *self.reports, *self.junk]


def _sort_out(store: ArtifactStore, entries: Sequence[Entry]) -> _Sorted:
    artifacts, damaged = store.scan()
    reasons = _protect(entries, artifacts)
    models = {each.fingerprint for each in artifacts if each.kind == "checkpoint"} & reasons.keys()
    kept, spare, reports, junk = _look_beside(store)
    kept += [_other(path, "damaged artifact", "look at it and remove it") for path in damaged]
    for artifact in artifacts:
        origins = {origin["fingerprint"] for origin in artifact.made_from}
        if artifact.fingerprint in reasons:
            kept.append(_describe(artifact, reasons[artifact.fingerprint]))
        elif artifact.kind == "report" and origins & models:
            reports.append(_describe(artifact, "it tells of a model that stays"))
        else:
            spare.append(_describe(artifact, "no model needs it"))
    return _Sorted(
        kept=kept, spare=sorted(spare, key=_age), reports=sorted(reports, key=_age), junk=junk
    )


def _look_beside(store: ArtifactStore) -> tuple[list[Piece], ...]:
    """What is no artifact, sorted like the artifacts."""
    runs, cache = store.home / "runs", store.home / "cache"
    spare, kept = [], []
    for path in runs.glob("[!.]*"):
        if store.is_free(path.name):
            spare.append(_other(path, "run", "it was broken off"))
        else:
            kept.append(_other(path, "run", "somebody is at it"))
    for path in store.home.iterdir():
        if path not in (store.root, runs, cache) and _measure(path):
            kept.append(_other(path, path.name, "it is no artifact"))
    hidden = [path for folder in (store.root, runs) for path in folder.glob(".*")]
    junk = [_other(path, "draft", "its writer is gone") for path in hidden]
    junk += [_other(path, "cache", "it can be made again") for path in cache.glob("*")]
    return kept, spare, [], junk


def _protect(entries: Sequence[Entry], artifacts: Sequence[Artifact]) -> dict[str, str]:
    """Why each fingerprint has to stay that a row names or that what it names was made from."""
    reasons: dict[str, str] = {}
    models = []
    for entry in entries:
        named = [each for each in artifacts if each.fingerprint == entry.fingerprint]
        if not named:
            raise ArtifactError(
                f"{entry.path}, the {entry.alias} model of {entry.name}, is missing or damaged, so "
                "nobody can tell what it was made from; nothing is removed: put it back, or make "
                "another model live"
            )
        models.append((entry, named[0]))
    for entry, artifact in models:
        for fingerprint in find_ancestors([artifact], artifacts):
            reasons.setdefault(fingerprint, f"{entry.alias} of {entry.name} was made from it")
    for entry, artifact in reversed(models):
        reasons[artifact.fingerprint] = f"{entry.alias} of {entry.name}"
    return reasons


def _describe(artifact: Artifact, why: str) -> Piece:
    return Piece(
        path=artifact.path,
        what=f"{artifact.kind} {artifact.fingerprint[:12]} by {artifact.stage}",
        why=why,
        bytes=_measure(artifact.path),
        created=artifact.created,
    )


def _other(path: Path, what: str, why: str) -> Piece:
    return Piece(path=path, what=what, why=why, bytes=_measure(path), created=path.lstat().st_mtime)


def _age(piece: Piece) -> float:
    return piece.created


def _measure(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(each.lstat().st_size for each in path.rglob("*") if not each.is_dir())
