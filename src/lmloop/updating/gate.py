"""The gate: whether a candidate may take the live model's place, asked as it was sealed.

Takes: a pledge, a candidate, the live model. Gives: a verdict. Every check that can run does run,
so that a refusal tells all of its reasons; they count in the order of `ORDER`: first what explains
the others. A refusal is a result; errors are for what cannot be judged at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lmloop.evaluation.perplexity import CHECKED_TOKENS, bits_per_byte, document_nats
from lmloop.inference.load import LoadedModel, load
from lmloop.progress import Progress
from lmloop.records import Record
from lmloop.store.artifact import Artifact, ArtifactStore
from lmloop.updating.budgets import check_memory, check_speed
from lmloop.updating.checks import (
    Check,
    check_files,
    check_finite,
    check_parity,
    check_tokenizer,
    compare_decoding,
    skip,
)
from lmloop.updating.conduct import (
    GOLDEN_ANSWERS,
    Conduct,
    check_answers,
    check_endings,
    choose_questions,
    compare_answers,
)
from lmloop.updating.origins import check_lineage, check_overlap, trace_descent
from lmloop.updating.pledge import GENERAL, TARGET, TWIN, Pledge, open_pledge
from lmloop.updating.scores import (
    check_guard,
    check_memorised,
    check_target,
    encode_set,
    name_guard,
    score_sets,
)
from lmloop.updating.verdict import Verdict, write_verdict
from lmloop.upkeep import GateConfig

ORDER = ("files", "lineage", "tokenizer", "finite", "overlap", "memorised", "answers")
"""Then the guards, `general` first, then `LAST`.

Text learnt by heart explains a gain, and cut answers explain a loss: they come before. A random
model is worse on everything and answers without end: that it is worse says more. No gain comes
last, since a slower copy gains nothing either.
"""
LAST = ("endings", "speed", "memory", "parity", TARGET)
GREEDY_PROMPTS = 4
"""Held-out openers whose greedy answers are compared with the full forward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """Who is judged, by what, with which means."""

    config: GateConfig
    pledge: Pledge
    candidate: Artifact
    live: Artifact
    store: ArtifactStore
    seed: int
    clock: Callable[[], float]
    progress: Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    """What is measured once the candidate is sound enough."""

    candidate: LoadedModel
    live: LoadedModel
    sets: Mapping[str, Sequence[Record]]
    """The sealed sets without what the candidate was trained on."""
    lineage_known: bool


def judge(
    config: GateConfig,
    *,
    pledge: Artifact,
    candidate: Artifact,
    live: Artifact,
    store: ArtifactStore,
    folder: Path,
    seed: int,
    progress: Progress,
    clock: Callable[[], float] = time.process_time,
) -> Verdict:
    """Ask everything, write the verdict's three files into `folder`, and give it.

    `clock` times decoding, in seconds. Raises `UpdateError` where the thresholds are not those that
    were sealed, `ArtifactError` where pledge or live model are damaged: then nothing is judged.
    """
    case = _Case(
        config=config,
        pledge=open_pledge(pledge, config),
        candidate=candidate,
        live=live,
        store=store,
        seed=seed,
        clock=clock,
        progress=progress,
    )
    found, conduct = _examine(case)
    verdict = Verdict(
        candidate=candidate.fingerprint,
        live=live.fingerprint,
        pledge=pledge.fingerprint,
        sealed=case.pledge.sealed,
        seed=seed,
        checks=_arrange(found, case.pledge),
        pairs=(*conduct.openers, *conduct.golden),
    )
    write_verdict(verdict, folder)
    return verdict


def _examine(case: _Case) -> tuple[list[Check], Conduct]:
    """All checks that can run: those of files and descent, then those of a sound model."""
    case.live.verify()
    live = load(case.live.path, verify=False)
    descent = trace_descent(case.candidate, case.store)
    overlap, shared = check_overlap(
        descent,
        trace_descent(case.live, case.store),
        case.pledge,
        confidence=case.config.confidence,
        progress=case.progress,
    )
    files, model = check_files(case.candidate)
    found = [files, check_lineage(case.config, descent, case.pledge), overlap]
    if model is not None:
        found.append(check_tokenizer(case.candidate.path, case.live.path, (model, live)))
    if model is None or not found[-1].passed:
        return found, Conduct(openers=(), golden=())
    bench = _Bench(
        candidate=model,
        live=live,
        sets=_leave_out(case.pledge, shared) if overlap.passed else case.pledge.sets,
        lineage_known=descent.is_known,
    )
    measured, conduct = _measure(case, bench)
    return [*found, *measured], conduct


def _leave_out(pledge: Pledge, shared: Mapping[str, frozenset[int]]) -> dict[str, Sequence[Record]]:
    """The sealed sets without the documents that stand in the candidate's training text."""
    return {
        name: [each for number, each in enumerate(records) if number not in shared.get(name, ())]
        for name, records in pledge.sets.items()
    }


def _measure(case: _Case, bench: _Bench) -> tuple[list[Check], Conduct]:
    """All checks that run the model; only the first where its numbers are none."""
    text = encode_set(case.pledge.sets[GENERAL][:1], bench.live).document(0).tolist()
    finite = check_finite(bench.candidate, text)
    if not finite.passed:
        return [finite], Conduct(openers=(), golden=())
    openers, golden = choose_questions(
        case.config, [*bench.sets[GENERAL], *bench.sets[TWIN]], bench.live
    )
    greedy = [*openers[:GREEDY_PROMPTS], *golden[::GOLDEN_ANSWERS]]
    prompts = [each.tokens for each in greedy] or [text[:1]]
    models = {"candidate": bench.candidate, "live": bench.live}
    conduct = compare_answers(openers, golden, seed=case.seed, progress=case.progress, **models)
    checks = [
        finite,
        check_answers(case.config, conduct, seed=case.seed),
        check_endings(case.config, conduct),
        *_check_scores(case, bench),
        check_speed(case.config, prompts[0], clock=case.clock, progress=case.progress, **models),
        check_memory(case.config, **models),
        _check_parity(case, bench, prompts),
    ]
    return checks, conduct


def _check_scores(case: _Case, bench: _Bench) -> list[Check]:
    """What rests on bits per byte."""
    config, seed = case.config, case.seed
    scores = score_sets(
        bench.sets, candidate=bench.candidate, live=bench.live, progress=case.progress
    )
    return [
        check_memorised(config, scores, known=bench.lineage_known, seed=seed),
        *(check_guard(config, scores[name], seed=seed) for name in case.pledge.guards),
        check_target(config, scores[TARGET], seed=seed),
    ]


def _check_parity(case: _Case, bench: _Bench, prompts: Sequence[Sequence[int]]) -> Check:
    """Both arithmetics on the first held-out documents, and both ways of decoding."""
    shards = encode_set(case.pledge.sets[GENERAL], bench.live)
    exact = load(case.candidate.path, dtype=torch.float32, verify=False)
    values = []
    for model in (bench.candidate, exact):
        nats = document_nats(
            model.transformer,
            shards,
            document_id=model.require_tokenizer().document_id,
            context_length=model.config.context_length,
            max_tokens=CHECKED_TOKENS,
            progress=case.progress,
            name="parity",
        )
        values.append(bits_per_byte(nats, shards.document_bytes[: len(nats)]))
    allowed = case.config.max_parity_difference
    decoding = compare_decoding(bench.candidate, prompts)
    return check_parity(values[0], values[1], decoding, allowed=allowed)


def _arrange(found: Sequence[Check], pledge: Pledge) -> tuple[Check, ...]:
    """All checks in the order of their reasons; those that could not run say because of which."""
    by_name = {check.name: check for check in found}
    guards = sorted(pledge.guards, key=lambda name: name != GENERAL)
    names = (*ORDER, *map(name_guard, guards), *LAST)
    failed = [name for name in names if name in by_name and not by_name[name].passed]
    blockers = [name for name in ("files", "tokenizer", "finite") if name in failed]
    because = f"the check {(blockers or failed)[0]!r} failed" if failed else ""
    return tuple(by_name.get(name) or skip(name, because) for name in names)
