"""Ancestry: from an artifact back to the raw files and exchanges it was made from, and forth.

Takes: artifacts, whose manifests say what they were made from. Gives: a tree for people to read, or
the set of all that lies before or behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmloop.store.artifact import Artifact, ArtifactStore

LEAVES = {"raw": "raw file", "events": "exchanges with users"}
"""Kinds of input that are no artifacts, and what they are called."""


@dataclass(frozen=True, slots=True)
class Ancestor:
    """One node of the tree: an artifact, or as a leaf a raw source or what users said."""

    label: str
    detail: str
    parents: tuple[Ancestor, ...] = ()

    def __hash__(self) -> int:
        # Of the node alone: a history of many updates has far more paths than nodes.
        return hash((self.label, self.detail))


def trace(artifact: Artifact, store: ArtifactStore) -> Ancestor:
    """The tree above `artifact`; an input that is damaged or no longer on disk ends its branch."""
    known = {each.fingerprint: each for each in store.all()}
    return _trace(artifact, known, {})


def _trace(
    artifact: Artifact, known: Mapping[str, Artifact], traced: dict[str, Ancestor]
) -> Ancestor:
    """The tree above; `traced` has those that were met before, so that each is followed once."""
    # An input of the very same content is not followed: it would be followed for ever.
    traced[artifact.fingerprint] = Ancestor(str(artifact), "the same content")
    parents = []
    for origin in artifact.made_from:
        fingerprint, kind = origin["fingerprint"], origin["kind"]
        if kind in LEAVES:
            detail = f"{LEAVES[kind]}, SHA-256 {fingerprint[:12]}"
            parents.append(Ancestor(origin["source"], detail))
        elif fingerprint in traced:
            parents.append(traced[fingerprint])
        elif fingerprint in known:
            parents.append(_trace(known[fingerprint], known, traced))
        else:
            parents.append(Ancestor(f"{kind} {fingerprint[:12]}", "no longer on disk"))
    found = Ancestor(str(artifact), _summarise(artifact.counts), tuple(parents))
    traced[artifact.fingerprint] = found
    return found


def walk_back(artifact: Artifact, store: ArtifactStore) -> Iterator[Artifact]:
    """The artifact and all on disk that it was made from, nearest first, each once."""
    known = {each.fingerprint: each for each in store.all()}
    waiting, seen = [artifact], {artifact.fingerprint}
    while waiting:
        current = waiting.pop(0)
        yield current
        for origin in current.made_from:
            parent = known.get(origin["fingerprint"])
            if parent is not None and parent.fingerprint not in seen:
                seen.add(parent.fingerprint)
                waiting.append(parent)


def find_ancestors(roots: Iterable[Artifact], artifacts: Sequence[Artifact]) -> set[str]:
    """Fingerprints of `roots` and of all that they were made from, as far as it is known."""
    made_from: dict[str, set[str]] = {}
    for each in (*artifacts, *roots):
        origins = {origin["fingerprint"] for origin in each.made_from}
        made_from.setdefault(each.fingerprint, set()).update(origins)
    return _reach({each.fingerprint for each in roots}, made_from)


def find_descendants(roots: Iterable[Artifact], artifacts: Sequence[Artifact]) -> list[Artifact]:
    """Those of `artifacts` that were made from one of `roots`, in however many steps."""
    start = {each.fingerprint for each in roots}
    made_into: dict[str, set[str]] = {}
    for each in artifacts:
        for origin in each.made_from:
            made_into.setdefault(origin["fingerprint"], set()).add(each.fingerprint)
    reached = _reach(start, made_into) - start
    return [each for each in artifacts if each.fingerprint in reached]


def _reach(start: set[str], steps: Mapping[str, set[str]]) -> set[str]:
    """Everything that can be come to from `start`, itself included."""
    reached, waiting = set(start), list(start)
    while waiting:
        new = steps.get(waiting.pop(), set()) - reached
        reached |= new
        waiting += new
    return reached


def _summarise(counts: Mapping[str, Any]) -> str:
    """The plain numbers of an artifact's counts, in one line."""
    shown = []
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        shown.append(f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:.4g}")
    return ", ".join(shown[:6])
