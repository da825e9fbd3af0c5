"""A home with artifacts that stand for weights, a registry, and the rows of servers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from lmloop.serving.process import EngineSpec
from lmloop.store.artifact import Artifact, ArtifactStore
from lmloop.store.database import open_database, servers_table
from lmloop.store.events import read_events, record_event
from lmloop.store.registry import Entry, Registry

from .harness import version_spec

NAME = "m"
"""Of the model."""


class Home:
    """Artifacts, a registry and the rows of servers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = open_database(f"sqlite:///{folder / 'home.db'}")
        self.registry = Registry(self.database, NAME)
        self.store = ArtifactStore(folder)

    def make(self, version: str) -> Artifact:
        """Weights that are nothing but their version's name."""
        with self.store.write("update", version * 16) as draft:
            (draft.path / "weights.bin").write_text(version)
            return draft.finish(
                kind="checkpoint",
                name=NAME,
                made_from=(),
                settings={},
                counts={},
                code_version="0",
                environment={},
                created=0.0,
            )

    def make_spec(self, entry: Entry) -> EngineSpec:
        version = Path(entry.path).name[len("update-")]
        gate = self.folder / f"gate-{version}"
        held = ("--gate", str(gate)) if gate.with_suffix(".closed").exists() else ()
        said = ("--fingerprint", entry.fingerprint)
        spec = version_spec(self.folder, version, *said, *held)
        return dataclasses.replace(spec, fingerprint=entry.fingerprint)

    def close_gate(self, version: str) -> None:
        """Engines of this version get ready when the gate is opened, and not before."""
        (self.folder / f"gate-{version}.closed").touch()

    def open_gate(self, version: str) -> None:
        """Let them get ready."""
        (self.folder / f"gate-{version}").touch()

    def servers(self) -> list[dict[str, Any]]:
        with self.database.connect() as connection:
            return [dict(row) for row in connection.execute(sa.select(servers_table)).mappings()]

    def server(self) -> dict[str, Any]:
        (row,) = self.servers()
        return row

    def make_noise(self) -> None:
        """Write something that concerns nobody."""
        record_event(self.database, "noise", name="somebody", data={})

    def refusals(self) -> list[tuple[int, str]]:
        events = read_events(self.database, name=NAME, kinds=["registry.refused"])
        return [(event.data["generation"], event.data["reason"]) for event in events]

    def execute(self, statement: sa.Executable) -> None:
        with self.database.begin() as connection:
            connection.execute(statement)
