"""What an update has forgotten: bits per byte before and after it, a held-out set at a time.

Takes: the model before and after, and sets of records that no training has seen. Gives: the same
report as JSON for programs and as Markdown for people.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmloop.inference.load import LoadedModel
from lmloop.progress import Progress
from lmloop.records import Record
from lmloop.store.artifact import write_json
from lmloop.updating.scores import Scores, score_sets
from lmloop.updating.statistics import relative_change

NAME = "forgetting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """One held-out set."""

    name: str
    documents: int
    raw_bytes: int
    before: float | None
    """Bits per byte; None where a document costs what is no number."""
    after: float | None
    change: float | None
    """after / before − 1: above zero is forgotten."""
    interval: tuple[float, float] | None
    """Of the change; None of a single document."""
    worse_documents: int
    """Documents that cost more after than before."""


def forgetting_report(
    before: LoadedModel,
    after: LoadedModel,
    sets: Mapping[str, Sequence[Record]],
    *,
    folder: Path,
    confidence: float,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Write `forgetting.json` and `forgetting.md` into `folder`; give the change by set.

    Both models must have the same tokenizer; documents are drawn again in pairs. An empty set is
    left out.
    """
    scores = score_sets(
        {name: records for name, records in sets.items() if records},
        candidate=after,
        live=before,
        progress=progress,
    )
    found = [_compare(each, confidence=confidence, seed=seed) for each in scores.values()]
    facts = {"before": before.fingerprint, "after": after.fingerprint, "confidence": confidence}
    write_json(folder / f"{NAME}.json", {**facts, "sets": [asdict(each) for each in found]})
    (folder / f"{NAME}.md").write_text(_render(facts, found), encoding="utf-8")
    return {each.name: each.change for each in found}


def _compare(scores: Scores, *, confidence: float, seed: int) -> Retention:
    bits = scores.bits()
    finite = all(map(math.isfinite, bits.values()))
    change = interval = None
    if finite:
        change = bits["candidate"] / bits["live"] - 1
    if finite and len(scores) > 1:
        drawn = relative_change(scores.candidate, scores.live, confidence=confidence, seed=seed)
        interval = (drawn.low, drawn.high)
    return Retention(
        name=scores.name,
        documents=len(scores),
        raw_bytes=int(scores.raw_bytes.sum()),
        before=bits["live"] if finite else None,
        after=bits["candidate"] if finite else None,
        change=change,
        interval=interval,
        worse_documents=int((scores.candidate > scores.live).sum()),
    )


def _render(facts: Mapping[str, Any], found: Sequence[Retention]) -> str:
    lines = [
        "# What the update has forgotten",
        "",
        f"Bits per byte of model {facts['before'][:12]} and of {facts['after'][:12]}, which was "
        f"trained on from it; intervals of {facts['confidence']:.0%}. Above zero is forgotten.",
        "",
        "| held-out set | documents | bytes | before | after | change | dearer documents |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in found:
        cells = (
            each.name,
            f"{each.documents:,}",
            f"{each.raw_bytes:,}",
            *map(_number, (each.before, each.after)),
            _tell_change(each),
            f"{each.worse_documents:,}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def _tell_change(each: Retention) -> str:
    if each.change is None:
        return "not finite"
    if each.interval is None:
        return f"{each.change:+.2%}"
    low, high = each.interval
    return f"{each.change:+.2%} ({low:+.2%} to {high:+.2%})"
