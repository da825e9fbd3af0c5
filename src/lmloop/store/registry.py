"""The registry: which artifact a name means, and which of them is live.

Takes: finished artifacts. Gives: rows `name` + `alias` (live, previous, candidate), each sealed,
under one generation number a name that servers watch.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa

from lmloop.errors import ArtifactError, RegistryError
from lmloop.store.artifact import Artifact, make_folder, write_json
from lmloop.store.database import REGISTRY_SECRET, aliases_table, artifacts_table, transaction
from lmloop.store.events import read_secret
from lmloop.store.seal import is_sealed, seal

Phase = Literal["shadow", "canary"]
ALIASES = ("live", "previous", "candidate")
LARGEST_GENERATION = 2**31 - 1
"""PostgreSQL's largest integer: more than one change a second for sixty years."""

Rows = dict[str, dict[str, Any]]
"""What the rows of a name say, by alias."""
logger = logging.getLogger(__name__)


def name_weights(fingerprint: str) -> str:
    """What a weights version is called on the wire and in rows: 12 digits of its fingerprint."""
    return fingerprint[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row of the registry."""

    name: str
    alias: str
    """live, previous or candidate."""
    fingerprint: str
    path: str
    """Folder of the artifact."""
    generation: int
    """Grows with every change of the name's rows."""
    changed: float
    """Seconds since the epoch."""
    phase: str | None = None
    """Of a candidate: `shadow` (answers unseen) or `canary` (gets a share of the sessions)."""
    share: int | None = None
    """Percent of the sessions that a candidate gets."""


Choose = Callable[[Mapping[str, Entry], Sequence[str]], Mapping[str, Entry]]


def mirror_folder(home: Path) -> Path:
    """Where a home keeps a copy of its registry's rows."""
    return home / "registry"


def read_mirror(home: Path) -> tuple[dict[str, dict[str, Entry]], dict[Path, str]]:
    """The copies of a home's rows by name and alias, and why each unreadable file is none."""
    copies, unreadable = {}, {}
    for path in sorted(mirror_folder(home).glob("[!.]*.json")):
        try:
            copies[path.stem] = _read_copy(path)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            unreadable[path] = f"{path} is no copy of registry rows ({error})"
    return copies, unreadable


def _read_copy(path: Path) -> dict[str, Entry]:
    data = json.loads(path.read_text(encoding="utf-8"))
    rows = {alias: Entry(**row) for alias, row in data.items()}
    for alias, row in rows.items():
        named = (row.name, row.alias) == (path.stem, alias) and alias in ALIASES
        if not (named and _is_counter(row.generation) and _is_text(row.fingerprint, row.path)):
            raise ValueError(f"the row {alias} says what no row says")
    return rows


def find_names(engine: sa.Engine) -> list[str]:
    """The names that have rows."""
    with engine.connect() as connection:
        return list(connection.scalars(sa.select(aliases_table.c.name).distinct().order_by("name")))


def index_artifact(engine: sa.Engine, artifact: Artifact) -> None:
    """Enter an artifact (again) into the index."""
    row = describe_artifact(artifact)
    with transaction(engine) as connection:
        connection.execute(artifacts_table.delete().where(artifacts_table.c.path == row["path"]))
        connection.execute(artifacts_table.insert().values(row))


def describe_artifact(artifact: Artifact) -> dict[str, Any]:
    """An artifact's row in the index."""
    names = ("fingerprint", "kind", "stage", "name", "created")
    return {"path": str(artifact.path), **{name: getattr(artifact, name) for name in names}}


class Registry:
    """The rows of one name, read together and changed together."""

    def __init__(self, engine: sa.Engine, name: str, *, mirror: Path | None = None) -> None:
        """`mirror` is the folder where each change is written as well, for `lmloop reindex`."""
        self.engine = engine
        self.name = name
        self._mirror = mirror
        self._secret = read_secret(engine, REGISTRY_SECRET)

    def read(self) -> dict[str, Entry]:
        """All rows of the name by alias; raises `RegistryError` for one changed by other hands."""
        with self.engine.connect() as connection:
            return self._sound(self._rows(connection))

    def generation(self) -> int:
        """The newest generation of the name; 0 where it has no row. Cheap: made to be polled.

        Seals are not looked at; raises `RegistryError` for what is no number.
        """
        query = sa.select(sa.func.max(aliases_table.c.generation))
        with self.engine.connect() as connection:
            found = connection.scalar(query.where(aliases_table.c.name == self.name))
        if not isinstance(found, int | None):
            raise self._refusal("generation")
        return found or 0

    def set_live(self, artifact: Artifact) -> int:
        """Make an artifact live and what was live `previous`; give the generation.

        Setting what is set already changes nothing. What is live is no candidate any more.
        """

        def edit(rows: Rows) -> None:
            described = _describe(artifact)
            if _is_same(rows.get("candidate"), described):
                del rows["candidate"]
            _replace_live(rows, described)

        return self._change(edit)

    def set_candidate(self, artifact: Artifact, *, phase: Phase, share: int) -> int:
        """Give a candidate its phase and its share of the sessions (percent); the generation.

        Raises `RegistryError` where there is no live model that it could take the place of.
        """

        def edit(rows: Rows) -> None:
            # The live row carries the generation on when the candidate's goes.
            if "live" not in rows:
                raise RegistryError(
                    f"{self.name} has no live model that a candidate could be compared with: "
                    "run its recipe first"
                )
            rows["candidate"] = {**_describe(artifact), "phase": phase, "share": share}

        return self._change(edit)

    def drop_candidate(self) -> int:
        """Take the candidate's row away, if there is one; give the generation."""
        return self._change(lambda rows: rows.pop("candidate", None))

    def promote(self) -> int:
        """Make the candidate live and what was live `previous`; give the generation.

        Raises `RegistryError` where there is no candidate.
        """

        def edit(rows: Rows) -> None:
            if "candidate" not in rows:
                raise RegistryError(
                    f"{self.name} has no candidate that could become live: `lmloop update` makes "
                    "one, and a rollback drops it"
                )
            _replace_live(rows, rows.pop("candidate"))

        return self._change(edit)

    def roll_back(self) -> int:
        """Make the previous model live again, and drop a candidate; give the generation.

        A second call undoes the first. Raises `RegistryError` where there is no previous model.
        """

        def edit(rows: Rows) -> None:
            if "previous" not in rows:
                raise RegistryError(
                    f"{self.name} has no previous model to roll back to: only one was ever live"
                )
            rows.pop("candidate", None)
            _replace_live(rows, rows["previous"])

        return self._change(edit)

    def restore(self, choose: Choose) -> None:
        """Write anew, sealed, what `choose` makes of the sound rows and the aliases of the others.

        What it makes of them is written under a new generation unless all rows say so already.
        """
        with transaction(self.engine) as connection:
            rows = self._rows(connection)
            sound, broken = self._examine(rows)
            chosen = choose(sound, broken)
            if broken or _plain(chosen) != _plain(sound):
                known = [row["generation"] for row in rows]
                known += [entry.generation for entry in chosen.values()]
                newest = max((each for each in known if _is_counter(each)), default=0)
                self._write(connection, sound, _plain(chosen), newest + 1)
        self._copy()

    def _change(self, edit: Callable[[Rows], object]) -> int:
        """Let `edit` change what the rows say; write them, if they changed; the generation."""
        with transaction(self.engine) as connection:
            old = self._sound(self._rows(connection))
            new = _plain(old)
            edit(new)
            generation = newest_generation(old)
            if new != _plain(old):
                generation += 1
                self._write(connection, old, new, generation)
        self._copy()
        return generation

    def _rows(self, connection: sa.Connection) -> list[dict[str, Any]]:
        table = aliases_table
        query = sa.select(table).where(table.c.name == self.name).order_by(table.c.alias)
        return [dict(row) for row in connection.execute(query).mappings()]

    def _write(
        self, connection: sa.Connection, old: Mapping[str, Entry], new: Rows, generation: int
    ) -> None:
        """Replace all rows of the name, under one new generation."""
        table = aliases_table
        connection.execute(table.delete().where(table.c.name == self.name))
        unchanged = _plain(old)
        for alias, row in new.items():
            same = unchanged.get(alias) == row
            entry = Entry(
                name=self.name,
                alias=alias,
                generation=generation,
                changed=old[alias].changed if same else time.time(),
                **row,
            )
            fields = asdict(entry)
            connection.execute(
                table.insert().values({**fields, "seal": seal(self._secret, fields)})
            )

    def _sound(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Entry]:
        """The rows by alias; raises `RegistryError` that names the first changed by other hands."""
        sound, broken = self._examine(rows)
        if broken:
            raise self._refusal(broken[0])
        return sound

    def _examine(self, rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Entry], list[str]]:
        """The rows as lmloop wrote them last, and the aliases of all others."""
        sealed = {}
        for row in rows:
            fields = {name: value for name, value in row.items() if name != "seal"}
            if is_sealed(self._secret, fields, row["seal"]):
                sealed[row["alias"]] = Entry(**fields)
        # Rows of one name are written together: an older one was put back by other hands.
        newest = newest_generation(sealed)
        sound = {alias: each for alias, each in sealed.items() if each.generation == newest}
        return sound, sorted({str(row["alias"]) for row in rows} - sound.keys())

    def _refusal(self, alias: str) -> RegistryError:
        return RegistryError(
            f"the registry row {self.name}/{alias} was not written by lmloop or was changed "
            "afterwards: `lmloop reindex` restores it from the home"
        )

    def _copy(self) -> None:
        """Write the rows beside the artifacts: what a lost database is rebuilt from."""
        if self._mirror is None:
            return
        try:
            make_folder(self._mirror)
            with _hold_folder(self._mirror):
                rows = {alias: asdict(entry) for alias, entry in self.read().items()}
                if rows:  # a name has rows for good: without any there is nothing to tell
                    write_json(self._mirror / f"{self.name}.json", rows)
        except (OSError, ArtifactError) as error:
            # The change itself is safe in the database, and the next one writes the copy again.
            logger.warning(
                "the registry's copy in %s could not be written: %s", self._mirror, error
            )


def newest_generation(entries: Mapping[str, Entry]) -> int:
    """The newest generation among rows; 0 where there are none."""
    return max((entry.generation for entry in entries.values()), default=0)


def _is_counter(value: object) -> bool:
    """Whether a generation after this one can be written, whatever hands wrote it."""
    return type(value) is int and 0 <= value < LARGEST_GENERATION


def _is_text(*values: object) -> bool:
    return all(isinstance(value, str) for value in values)


@contextlib.contextmanager
def _hold_folder(folder: Path) -> Iterator[None]:
    """Hold a folder for this process: who copies last copies what was written last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _plain(entries: Mapping[str, Entry]) -> Rows:
    """What a row says beside its place and time."""
    names = ("fingerprint", "path", "phase", "share")
    return {
        alias: {name: getattr(entry, name) for name in names} for alias, entry in entries.items()
    }


def _replace_live(rows: Rows, live: Mapping[str, Any]) -> None:
    if _is_same(rows.get("live"), live):
        return
    if "live" in rows:
        rows["previous"] = rows["live"]
    rows["live"] = {**live, "phase": None, "share": None}


def _describe(artifact: Artifact) -> dict[str, Any]:
    return {
        "path": str(artifact.path),
        "fingerprint": artifact.fingerprint,
        "phase": None,
        "share": None,
    }


def _is_same(row: Mapping[str, Any] | None, described: Mapping[str, Any]) -> bool:
    """Whether a row means this artifact at this place."""
    return row is not None and all(row[key] == described[key] for key in ("path", "fingerprint"))


def find_live(engine: sa.Engine, name: str | None) -> Entry:
    """The live model called `name`, or the one made live last.

    Raises `ArtifactError` where there is none, naming those that there are; `RegistryError` where
    its row was changed by other hands.
    """
    table = aliases_table
    query = sa.select(table.c.name).where(table.c.alias == "live").order_by(table.c.changed.desc())
    with engine.connect() as connection:
        names = list(connection.scalars(query))
    for each in names:
        if name is None or each == name:
            found = Registry(engine, each).read().get("live")
            if found is not None:
                return found
    known = ", ".join(sorted(names))
    raise ArtifactError(
        f"no live model called {name or '(any)'}; "
        + (f"live are: {known}" if known else "there is none yet: run a recipe first")
    )
