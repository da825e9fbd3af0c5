"""Where text lies: the sources of a recipe resolved to files, without importing any package.

Takes: files, folders, globs and `package:NAME/PATH`. Gives: `SourceFile`s in a fixed order,
labelled so that no absolute path ends in an artifact.
"""

from __future__ import annotations

import glob
import hashlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from lmloop.errors import SourceError
from lmloop.store.artifact import hash_file

KNOWN_TYPES = (".txt", ".md", ".json", ".jsonl", ".csv", ".parquet")
PACKAGE_PREFIX = "package:"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One raw file."""

    source: str
    """The source as the recipe writes it; of an absolute path only the last name."""
    path_in_source: str
    """POSIX path below the source's folder; empty where the source is this very file."""
    path: Path
    """Where the file lies on this machine; never written into an artifact."""

    @property
    def named(self) -> bool:
        """Whether the recipe names this very file, so that damage is an error and no skip."""
        return not self.path_in_source

    @property
    def label(self) -> str:
        """How reports and records call the file."""
        if self.named:
            return self.source
        folder = _fixed_part(self.source) if _is_pattern(self.source) else self.source
        return (PurePath(folder) / self.path_in_source).as_posix()


@dataclass(frozen=True, slots=True)
class Source:
    """One entry of `sources`: the files it means, and how many others it has."""

    name: str
    """As in `SourceFile.source`."""
    files: tuple[SourceFile, ...]
    ignored: int
    """Files of other types, and hidden ones, that are left alone."""


def find_sources(sources: Sequence[str]) -> list[Source]:
    """Resolve every source; a file that two of them mean is read once, for the first.

    Raises `SourceError` where one is missing, has no file of a known type, or names another.
    """
    found: list[Source] = []
    seen: set[Path] = set()
    for given in sources:
        try:
            source = _resolve(given)
        except OSError as error:
            raise SourceError(f"source {given} cannot be opened: {error.strerror}") from error
        fresh = [file for file in source.files if file.path.resolve() not in seen]
        seen.update(file.path.resolve() for file in fresh)
        found.append(Source(name=source.name, files=tuple(fresh), ignored=source.ignored))
    return found


def describe_files(source: Source) -> list[dict[str, Any]]:
    """What lineage keeps of each raw file: source, path in it, SHA-256 and size in bytes."""
    try:
        return [
            {
                "source": file.source,
                "path_in_source": file.path_in_source,
                "sha256": hash_file(file.path),
                "bytes": file.path.stat().st_size,
            }
            for file in source.files
        ]
    except OSError as error:
        raise SourceError(f"source {source.name} cannot be read: {error.strerror}") from error


def fingerprint_source(files: Sequence[dict[str, Any]]) -> str:
    """The SHA-256 of a source: its file's, or that of the list of its files' paths and hashes."""
    if len(files) == 1 and not files[0]["path_in_source"]:
        return str(files[0]["sha256"])
    lines = "".join(f"{file['path_in_source']} {file['sha256']}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _resolve(given: str) -> Source:
    if given.startswith(PACKAGE_PREFIX):
        return _resolve_path(given, _locate_in_package(given), name=given)
    path = Path(given)
    name = path.name if path.is_absolute() else given
    if path.exists():
        return _resolve_path(given, path, name=name)
    if _is_pattern(given):
        return _resolve_glob(given)
    raise SourceError(
        f"source {given!r} does not exist: give a file, a folder, a glob or package:NAME/PATH"
    )


def _resolve_path(given: str, path: Path, *, name: str) -> Source:
    if path.is_dir():
        return _collect(given, list(_walk(path)), base=path, name=name)
    if not path.is_file():
        raise SourceError(f"source {given} is neither a file nor a folder")
    if path.suffix.lower() not in KNOWN_TYPES:
        raise SourceError(
            f"source {given} has the type {path.suffix or 'none'}: "
            f"lmloop reads {', '.join(KNOWN_TYPES)}"
        )
    return Source(name=name, files=(SourceFile(name, "", path),), ignored=0)


def _resolve_glob(given: str) -> Source:
    base = Path(_fixed_part(given))
    pattern = PurePath(given).relative_to(base).as_posix()
    try:
        paths = [path for path in base.glob(pattern) if path.is_file()]
    except ValueError as error:
        raise SourceError(f"source {given} is no usable pattern: {error}") from error
    if not paths:
        raise SourceError(f"source {given} matches no file: check the pattern")
    return _collect(given, paths, base=base, name=pattern if base.is_absolute() else given)


def _collect(given: str, paths: list[Path], *, base: Path, name: str) -> Source:
    inner = {path: path.relative_to(base) for path in paths}
    known = [
        path
        for path in sorted(paths, key=lambda path: inner[path].parts)
        if path.suffix.lower() in KNOWN_TYPES and path.is_file() and not _is_hidden(inner[path])
    ]
    if not known:
        raise SourceError(
            f"source {given} has no readable file: lmloop reads {', '.join(KNOWN_TYPES)}"
        )
    files = tuple(SourceFile(name, _readable(inner[path]), path) for path in known)
    return Source(name=name, files=files, ignored=len(paths) - len(known))


def _walk(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        yield from (Path(root) / name for name in names)


def _readable(path: PurePath) -> str:
    """A path as valid Unicode: a name may hold any bytes, an artifact holds UTF-8."""
    return path.as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _is_hidden(path: PurePath) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _is_pattern(text: str) -> bool:
    return not text.startswith(PACKAGE_PREFIX) and glob.has_magic(text)


def _fixed_part(pattern: str) -> str:
    parts = PurePath(pattern).parts
    fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    return str(PurePath(*parts[:fixed]))


def _locate_in_package(given: str) -> Path:
    package, _, inner = given.removeprefix(PACKAGE_PREFIX).partition("/")
    if not package.isidentifier() or not inner or ".." in PurePath(inner).parts:
        raise SourceError(
            f"source {given!r} names no file in a package: write package:NAME/PATH, "
            "NAME being what Python imports"
        )
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise SourceError(
            f"source {given}: the package {package} is not installed: "
            f"pip install {package.replace('_', '-')}"
        )
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    for folder in folders:
        if (folder / inner).exists():
            return folder / inner
    raise SourceError(f"source {given}: the package {package} is installed but has no {inner}")
