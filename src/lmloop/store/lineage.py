"""Ancestry: the tree from an artifact back to the raw files it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmloop.store.artifact import Artifact, ArtifactStore


@dataclass(frozen=True, slots=True)
class Ancestor:
    """One node of the tree: an artifact, or a raw source as a leaf."""

    label: str
    detail: str
    parents: tuple[Ancestor, ...] = ()


def trace(artifact: Artifact, store: ArtifactStore) -> Ancestor:
    """The tree above `artifact`; an input that is no longer on disk ends its branch."""
    known = {each.fingerprint: each for each in store.all()}
    return _trace(artifact, known)


def _trace(artifact: Artifact, known: Mapping[str, Artifact]) -> Ancestor:
    parents = []
    for origin in artifact.made_from:
        fingerprint = origin["fingerprint"]
        if origin["kind"] == "raw":
            parents.append(Ancestor(origin["source"], f"raw file, SHA-256 {fingerprint[:12]}"))
        elif fingerprint in known:
            parents.append(_trace(known[fingerprint], known))
        else:
            parents.append(Ancestor(f"{origin['kind']} {fingerprint[:12]}", "no longer on disk"))
    return Ancestor(str(artifact), _summarise(artifact.counts), tuple(parents))


def _summarise(counts: Mapping[str, Any]) -> str:
    """The plain numbers of an artifact's counts, in one line."""
    shown = []
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        shown.append(f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:.4g}")
    return ", ".join(shown[:6])
