"""The model that a recipe begins with or learns from: where it lies, and what it is known by.

Takes: a model's name, a fingerprint, a folder or a `.gguf` file. Gives: what can be opened, and its
entry in an artifact's ancestry. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from lmloop.errors import SourceError
from lmloop.store.artifact import MANIFEST, Artifact, ArtifactStore, hash_file, open_artifact
from lmloop.store.catalogue import find_entry, read_catalogue
from lmloop.store.pull import find_pulled
from lmloop.store.registry import read_mirror


@dataclass(frozen=True, slots=True)
class Base:
    """A model that is made already, on this disk."""

    path: Path
    """Its folder, or its `.gguf` file."""
    origin: dict[str, str]
    """Kind, fingerprint, and of what is no artifact the name as well."""


def find_base(name: str, store: ArtifactStore) -> Base:
    """What `name` means: a folder or file that is there, else weights that were pulled.

    Raises `SourceError` for an unknown name, a file of another kind or a folder without files,
    `ArtifactError` with what to do for weights that were not pulled yet.
    """
    path = Path(name)
    if not path.exists():
        return _base_of(find_pulled(find_entry(name, read_catalogue()), store))
    if (path / MANIFEST).is_file():
        return _base_of(open_artifact(path))
    if path.is_file() and path.suffix != ".gguf":
        raise SourceError(
            f"model.base = {name!r} is no model: name a folder with its config.json, or a .gguf "
            "file"
        )
    files = [path] if path.is_file() else sorted(each for each in path.iterdir() if each.is_file())
    if not files:
        raise SourceError(f"model.base = {name!r} is an empty folder: name one with a model")
    lines = "".join(f"{each.name} {hash_file(each)}\n" for each in files)
    fingerprint = hashlib.sha256(lines.encode()).hexdigest()
    source = path.resolve().name if path.is_absolute() else name
    return Base(_openable(path), {"kind": "raw", "source": source, "fingerprint": fingerprint})


def find_model(name: str, store: ArtifactStore) -> Base:
    """What `name` means where a model of this home may be meant as well.

    A live model goes before an artifact's fingerprint (six digits at least), and that before what
    `find_base` knows; raises as that does.
    """
    if not Path(name).exists():
        live = read_mirror(store.home)[0].get(name, {}).get("live")
        if live is not None:
            return _base_of(open_artifact(live.path))
        found = store.resolve(name) if len(name) >= 6 else None
        if found is not None:
            return _base_of(found)
    return find_base(name, store)


def _base_of(artifact: Artifact) -> Base:
    origin = {"kind": artifact.kind, "fingerprint": artifact.fingerprint}
    return Base(_openable(artifact.path), origin)


def _openable(path: Path) -> Path:
    """The folder, or the one `.gguf` file in it where nothing else says what it is."""
    files = sorted(path.glob("*.gguf")) if path.is_dir() else []
    return files[0] if len(files) == 1 and not (path / "config.json").exists() else path
