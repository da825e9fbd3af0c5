"""The checks of descent: what a candidate was made from, when, and whether it has seen the test.

Takes: manifests and the pledge's sets. Gives: checks, and which sealed documents stand in text that
only the candidate was trained on. Text that the live model was trained on as well gives neither of
the two an advantage.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lmloop.corpus.decontaminate import Decontaminator
from lmloop.corpus.splits import read_split
from lmloop.progress import Progress
from lmloop.records import Record
from lmloop.store.artifact import Artifact, ArtifactStore
from lmloop.updating.checks import Check, Measure
from lmloop.updating.pledge import KIND, TARGET, TWIN, Pledge
from lmloop.upkeep import GateConfig

TRAINING_TEXT = "train.parquet"
"""The file of a corpus that models are trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Descent:
    """All that an artifact was made from, itself included."""

    artifacts: Mapping[str, Artifact]
    """By fingerprint."""
    missing: tuple[str, ...]
    """Kind and fingerprint of what is not on disk any more."""
    rootless: tuple[str, ...]
    """What holds no training text and does not say what it was made from."""

    @property
    def is_known(self) -> bool:
        """Whether every branch ends in training text that can be read."""
        return not self.missing and not self.rootless

    @property
    def corpora(self) -> dict[str, Artifact]:
        """Artifacts that hold training text."""
        return {
            fingerprint: artifact
            for fingerprint, artifact in self.artifacts.items()
            if TRAINING_TEXT in artifact.files
        }


def trace_descent(artifact: Artifact, store: ArtifactStore) -> Descent:
    """Follow `made_from` to the training text, and to pledges, but no further.

    What a pledge was made from was set aside for testing: it is no training text.
    """
    known = {each.fingerprint: each for each in store.all()}
    found: dict[str, Artifact] = {}
    missing: dict[str, None] = {}
    rootless: list[str] = []
    waiting = [artifact]
    while waiting:
        current = waiting.pop()
        if current.fingerprint in found:
            continue
        found[current.fingerprint] = current
        if _is_leaf(current):
            continue
        if not current.made_from:
            rootless.append(str(current))
        for origin in current.made_from:
            fingerprint = origin["fingerprint"]
            if fingerprint in known:
                waiting.append(known[fingerprint])
            else:
                missing[f"{origin['kind']} {fingerprint[:12]}"] = None
    return Descent(artifacts=found, missing=tuple(missing), rootless=tuple(rootless))


def _is_leaf(artifact: Artifact) -> bool:
    return artifact.kind == KIND or TRAINING_TEXT in artifact.files


def check_lineage(config: GateConfig, descent: Descent, pledge: Pledge) -> Check:
    """Whether the training text is known, and the thresholds were sealed before training began.

    Training began when the first artifact that was made from the pledge did.
    """
    sealed = pledge.artifact
    heirs = [
        each
        for each in descent.artifacts.values()
        if any(origin["fingerprint"] == sealed.fingerprint for origin in each.made_from)
    ]
    began = min((each.created for each in heirs), default=None)
    numbers = {
        "sealed": pledge.sealed,
        "training_began": began,
        "artifacts": len(descent.artifacts),
        "missing": list(descent.missing),
    }
    late = None if began is None else max(pledge.sealed, sealed.created) - began
    if late is not None and late > 0:
        reason = f"thresholds were sealed {late:.0f} s after training began"
        return Check(name="lineage", passed=False, reason=reason, numbers=numbers)
    gap = _find_gap(descent, pledge, began)
    if gap is None:
        reason = (
            f"{len(descent.artifacts)} ancestors known; thresholds sealed {-(late or 0):.0f} s "
            "before training began"
        )
        return Check(name="lineage", passed=True, reason=reason, numbers=numbers)
    if config.require_lineage:
        reason = f"lineage unknown: {gap}"
    else:
        reason = f"lineage unknown, which gate.require_lineage = false allows: {gap}"
    passed = not config.require_lineage
    return Check(name="lineage", passed=passed, reason=reason, numbers=numbers)


def _find_gap(descent: Descent, pledge: Pledge, began: float | None) -> str | None:
    if descent.rootless:
        return f"{descent.rootless[0]} does not say what it was made from"
    if descent.missing:
        return f"{descent.missing[0]} is no longer on disk"
    if began is None:
        return f"it was not made under the pledge {pledge.artifact.fingerprint[:12]}"
    return None


def check_overlap(
    descent: Descent, live: Descent, pledge: Pledge, *, confidence: float, progress: Progress
) -> tuple[Check, dict[str, frozenset[int]]]:
    """Whether sealed documents stand in the training text; by set, the numbers of those that do.

    Only text that the live model was not trained on is read. On the target any shared document is
    a leak, unless text like `general` that nothing is judged by shares as much by custom alone; on
    other sets, more shared documents than there.
    """
    new = [each for key, each in descent.corpora.items() if key not in live.corpora]
    against = Decontaminator(pledge.unseen)
    shared: dict[str, set[int]] = {name: set() for name in pledge.unseen}
    examples: dict[str, str] = {}
    for record in _read_training_text(new, progress):
        for name, hit in against.hits(record).items():
            shared[name] |= hit.members
            examples.setdefault(name, hit.shared)
    sizes = against.sizes
    usual = len(shared[TWIN]), sizes[TWIN]
    leaked = {
        name: len(members)
        for name, members in shared.items()
        if name != TWIN
        and _is_leak(name, (len(members), sizes[name]), usual, level=(1 - confidence) / 2)
    }
    told = "; ".join(
        f"{len(members)} of {sizes[name]} {name} documents" for name, members in shared.items()
    )
    if leaked:
        name = min(leaked, key=lambda each: each != TARGET)
        reason = (
            f"leak: {leaked[name]} of {sizes[name]} {name} documents stand in the candidate's "
            f"training text, such as {examples[name]!r}"
        )
    elif not descent.is_known:
        reason = f"of the training text only this much is known: {_count(new)}; there stand {told}"
    else:
        reason = f"in the new training text ({_count(new)}) stand {told}"
    check = Check(
        name="overlap",
        passed=not leaked,
        reason=reason,
        measures=tuple(
            Measure(
                what=f"{name} documents in the training text",
                value=len(members),
                unit="count",
                count=sizes[name],
            )
            for name, members in shared.items()
        ),
        numbers={"corpora": [each.fingerprint for each in new]},
    )
    return check, {name: frozenset(members) for name, members in shared.items()}


def _count(corpora: list[Artifact]) -> str:
    return "1 corpus" if len(corpora) == 1 else f"{len(corpora)} corpora"


def _read_training_text(corpora: list[Artifact], progress: Progress) -> Iterator[Record]:
    with progress.task("compare training text", total=None, unit="records") as task:
        count = 0
        for corpus in corpora:
            for record in read_split(corpus.path, TRAINING_TEXT.removesuffix(".parquet")):
                yield record
                count += 1
                task.update(count)


def _is_leak(name: str, found: tuple[int, int], usual: tuple[int, int], *, level: float) -> bool:
    """Whether `found` shared of so many is more than custom brings about; `usual` is the twin's."""
    if name == TARGET and usual[0] == 0:
        return found[0] > 0
    return found[0] > 0 and _chance_of_share(found, usual) < level


def _chance_of_share(found: tuple[int, int], usual: tuple[int, int]) -> float:
    """Chance that so many or more of the shared documents fall into the first set.

    Source: Fisher 1935, the exact test for a table of two by two, one-sided.
    """
    shared, total = found[0] + usual[0], found[1] + usual[1]
    most = min(shared, found[1])
    ways = sum(
        math.comb(found[1], count) * math.comb(usual[1], shared - count)
        for count in range(found[0], most + 1)
    )
    return ways / math.comb(total, shared)
