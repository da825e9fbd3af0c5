"""The checks of prediction: bits per byte of both models on the same sealed documents, in pairs.

Takes: the pledge's sets and two models of one tokenizer. Gives: nats a document, and checks: better
on the target, not worse on each guard, no better on a set than on text just like it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmloop.evaluation.perplexity import bits_per_byte, document_nats
from lmloop.inference.load import LoadedModel
from lmloop.progress import Progress
from lmloop.records import Record
from lmloop.tokens.shards import Shards
from lmloop.tokens.tokenize import encode_records
from lmloop.updating.checks import Check, Measure
from lmloop.updating.pledge import GENERAL, TARGET, TWIN, TWINS
from lmloop.updating.statistics import (
    Change,
    difference_of_changes,
    documents_needed,
    relative_change,
)
from lmloop.upkeep import GateConfig

MEMORISED = 0.01
"""So much more gain on a set than on its twin, beyond chance, is learning by heart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What one set costs both models; all arrays [documents]."""

    name: str
    candidate: NDArray[np.float64]
    """Nats."""
    live: NDArray[np.float64]
    """Nats."""
    raw_bytes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.raw_bytes)

    def change(self, config: GateConfig, *, seed: int) -> Change:
        """The relative change of bits per byte from the live model to the candidate."""
        return relative_change(self.candidate, self.live, confidence=config.confidence, seed=seed)

    def bits(self) -> dict[str, float]:
        """Bits per byte of both."""
        return {
            "candidate": bits_per_byte(self.candidate, self.raw_bytes),
            "live": bits_per_byte(self.live, self.raw_bytes),
        }


def encode_set(records: Sequence[Record], model: LoadedModel) -> Shards:
    """Records as ids with the model's tokenizer and template, laid out as in training."""
    ids = [each for each, _ in encode_records(records, model.template)]
    return Shards(
        tokens=[np.asarray([token for each in ids for token in each], dtype=np.int64)],
        answers=[],
        starts=np.cumsum([0, *map(len, ids)], dtype=np.int64),
        document_bytes=np.asarray([record.raw_bytes for record in records], dtype=np.int64),
    )


def score(
    model: LoadedModel, shards: Shards, *, name: str, progress: Progress
) -> NDArray[np.float64]:
    """Nats of each document, fp64 [documents]; none of an empty set."""
    if not shards.num_documents:
        return np.zeros(0)
    return document_nats(
        model.transformer,
        shards,
        document_id=model.require_tokenizer().document_id,
        context_length=model.config.context_length,
        progress=progress,
        name=name,
    )


def score_sets(
    sets: Mapping[str, Sequence[Record]],
    *,
    candidate: LoadedModel,
    live: LoadedModel,
    progress: Progress,
) -> dict[str, Scores]:
    """Both models' nats on every set; both must have the same tokenizer."""
    scores = {}
    for name, records in sets.items():
        shards = encode_set(records, live)
        scores[name] = Scores(
            name=name,
            candidate=score(candidate, shards, name=f"candidate on {name}", progress=progress),
            live=score(live, shards, name=f"live on {name}", progress=progress),
            raw_bytes=shards.document_bytes,
        )
    return scores


def check_target(config: GateConfig, scores: Scores, *, seed: int) -> Check:
    """Whether the candidate is better on the target: beyond chance, and by `min_gain` at least."""
    unfit = _refuse_unfit(scores, config, check=TARGET)
    if unfit is not None:
        return unfit
    change = scores.change(config, seed=seed)
    needed = documents_needed(change.deviation, config.min_gain, confidence=config.confidence)
    certain, enough = change.high < 0, -change.value >= config.min_gain
    told = f"{_tell(scores, change)}, wanted is a fall of {config.min_gain:.2%} at least"
    if certain and enough:
        reason = f"better on target: {told}"
    elif enough:
        reason = f"no gain on target beyond chance: {told}; {_tell_needed(scores, needed)}"
    else:
        reason = f"no gain on target: {told}"
    return Check(
        name=TARGET,
        passed=certain and enough,
        reason=reason,
        measures=_measure(scores, change, limit=-config.min_gain, needed=needed),
    )


def check_guard(config: GateConfig, scores: Scores, *, seed: int) -> Check:
    """Whether the candidate is no worse on a guard set: the whole interval within `max_loss`."""
    unfit = _refuse_unfit(scores, config, check=name_guard(scores.name))
    if unfit is not None:
        return unfit
    change = scores.change(config, seed=seed)
    needed = documents_needed(change.deviation, config.max_loss, confidence=config.confidence)
    told = f"{_tell(scores, change)}, allowed is a rise of {config.max_loss:.2%}"
    if change.high <= config.max_loss:
        reason = f"no worse on {scores.name}: {told}"
    elif change.value <= config.max_loss:
        reason = f"may be worse on {scores.name}: {told}; {_tell_needed(scores, needed)}"
    else:
        reason = f"worse on {scores.name}: {told}"
    return Check(
        name=name_guard(scores.name),
        passed=change.high <= config.max_loss,
        reason=reason,
        measures=_measure(scores, change, limit=config.max_loss, needed=needed),
    )


def check_memorised(
    config: GateConfig, scores: Mapping[str, Scores], *, known: bool, seed: int
) -> Check:
    """Whether the candidate gains on a set what it does not gain on the set's twin.

    `known` says that the training text is known and was compared: then a twin of `general` that is
    too small to tell is no reason to refuse.
    """
    name = "memorised"
    few = min(len(scores[GENERAL]), len(scores[TWIN]))
    if few < config.min_documents and not known:
        reason = f"neither the training text is known, nor is general's twin large enough: {few}"
        return Check(name=name, passed=False, reason=reason, numbers={"documents": few})
    if not all(_is_finite(each) for each in scores.values()):
        reason = "not finite: a sealed document costs what is no number"
        return Check(name=name, passed=False, reason=reason)
    pairs = [
        (scores[own], scores[twin])
        for own, twin in TWINS.items()
        if twin in scores and min(len(scores[own]), len(scores[twin])) >= config.min_documents
    ]
    changes = [_compare_twins(own, twin, config, seed=seed) for own, twin in pairs]
    told = [
        _tell_twins(own, twin, change) for (own, twin), change in zip(pairs, changes, strict=True)
    ]
    leaked = [
        f"leak: {own.name} was learnt by heart: {line}"
        for (own, _), change, line in zip(pairs, changes, told, strict=True)
        if change.low > 0 and change.value > MEMORISED
    ]
    return Check(
        name=name,
        passed=not leaked,
        reason=leaked[0] if leaked else "; ".join(told) or f"twins too small to tell: {few}",
        measures=tuple(
            Measure(
                what=f"gain on {own.name} above that on its twin",
                value=change.value,
                unit="change",
                low=change.low,
                high=change.high,
                limit=MEMORISED,
                count=change.documents,
                needed=documents_needed(change.deviation, MEMORISED, confidence=config.confidence),
            )
            for (own, _), change in zip(pairs, changes, strict=True)
        ),
    )


def _compare_twins(own: Scores, twin: Scores, config: GateConfig, *, seed: int) -> Change:
    return difference_of_changes(
        (own.candidate, own.live),
        (twin.candidate, twin.live),
        confidence=config.confidence,
        seed=seed,
    )


def _tell_twins(own: Scores, twin: Scores, change: Change) -> str:
    moved = [each.candidate.sum() / each.live.sum() - 1 for each in (own, twin)]
    return (
        f"bits per byte move by {moved[0]:+.2%} on {own.name} and by {moved[1]:+.2%} on its twin, "
        f"{change.value:+.2%} ({change.low:+.2%} to {change.high:+.2%}) more gain, allowed is "
        f"{MEMORISED:.0%}; {len(own)} and {len(twin)} documents"
    )


def name_guard(name: str) -> str:
    """What the check of a guard set is called; a user's set may have the name of another check."""
    return name if name == GENERAL else f"guard {name}"


def _refuse_unfit(scores: Scores, config: GateConfig, *, check: str) -> Check | None:
    """A set that can decide nothing."""
    numbers = {"documents": len(scores), "min_documents": config.min_documents}
    if len(scores) < config.min_documents:
        reason = (
            f"{scores.name} decides nothing: it has {len(scores)} documents and needs "
            f"{config.min_documents}"
        )
        return Check(name=check, passed=False, reason=reason, numbers=numbers)
    if not _is_finite(scores):
        reason = f"not finite: a document of {scores.name} costs what is no number"
        return Check(name=check, passed=False, reason=reason, numbers=numbers)
    return None


def _is_finite(scores: Scores) -> bool:
    return bool(np.isfinite(scores.candidate).all() and np.isfinite(scores.live).all())


def _tell(scores: Scores, change: Change) -> str:
    bits = scores.bits()
    return (
        f"bits per byte {bits['live']:.4f} → {bits['candidate']:.4f}, {change.value:+.2%} "
        f"({change.low:+.2%} to {change.high:+.2%}) on {change.documents} documents"
    )


def _tell_needed(scores: Scores, needed: int | None) -> str:
    if needed is None:
        return "no number of documents shows so small a margin"
    return f"{needed} documents would tell"


def _measure(
    scores: Scores, change: Change, *, limit: float, needed: int | None
) -> tuple[Measure, ...]:
    bits = scores.bits()
    relative = Measure(
        what=f"bits per byte on {scores.name}",
        value=change.value,
        unit="change",
        low=change.low,
        high=change.high,
        limit=limit,
        count=change.documents,
        needed=needed,
    )
    own = (
        Measure(what=f"bits per byte on {scores.name}, {who}", value=bits[who], unit="bits")
        for who in ("live", "candidate")
    )
    return (relative, *own)
