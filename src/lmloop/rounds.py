"""One round of the circle: the stages that take what was collected to a judged candidate.

Takes: the live model, and a selection of rated exchanges. Gives: artifacts, each made from those
before it: collected corpus, pledge, updated checkpoint, compressed candidate, verdict. Like the
stages of a recipe, each is found where it is made already.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmloop import stages
from lmloop.errors import UpdateError
from lmloop.pipeline import make
from lmloop.records import Record
from lmloop.stages import STAGES, Inputs, Stage, Workshop
from lmloop.store.artifact import Artifact, ArtifactStore
from lmloop.store.lineage import walk_back
from lmloop.watching import make_figure

if TYPE_CHECKING:
    from lmloop.updating.collect import Selection


@dataclass(frozen=True, slots=True, kw_only=True)
class Parents:
    """What a live model was made from, as far as an update needs it."""

    live: Artifact
    base: Artifact
    """The live model before compression: what the update trains on from."""
    corpus: Artifact
    shards: Artifact


def find_parents(live: Artifact, store: ArtifactStore) -> Parents:
    """Trace a live model back; raise `UpdateError` where a part of its lineage is not on disk."""
    way = list(walk_back(live, store))
    base = next((each for each in way[1:] if each.kind == "checkpoint"), None)
    base = base if live.stage == "compress" else live
    corpus = next((each for each in way if each.stage == "prepare"), None)
    shards = next((each for each in way if each.stage == "tokenize"), None)
    if base is None or corpus is None or shards is None:
        raise UpdateError(
            f"{live} cannot be updated: the text or the checkpoint that it was made from is no "
            "longer on disk; run its recipe again"
        )
    return Parents(live=live, base=base, corpus=corpus, shards=shards)


def learnt_exchanges(live: Artifact, store: ArtifactStore) -> set[str]:
    """What earlier updates of a live model have learnt, as `Member.content`."""
    from lmloop.updating.collect import read_members

    corpora = (each.path for each in walk_back(live, store) if each.stage == "collect")
    return {member.content for path in corpora for member in read_members(path)}


def collect(shop: Workshop, parents: Parents, selection: Selection) -> Artifact:
    """The corpus of a selection, without what the gate will ask."""
    from lmloop.corpus.prepare import fingerprint_sources

    files = [path for path in (shop.recipe.gate.target, *shop.recipe.gate.guards.values()) if path]
    stage = Stage(
        name="collect",
        kind="corpus",
        needs=("prepare",),
        sections=("collect", "gate", "seed"),
        work=partial(_collect, selection),
        numeric=False,
    )
    raw = [
        {"kind": "events", "source": selection.describe(), "fingerprint": selection.fingerprint},
        *fingerprint_sources(files),
    ]
    return make(stage, shop, {"prepare": parents.corpus}, raw=raw)


def pledge(shop: Workshop, parents: Parents, collected: Artifact) -> Artifact:
    """Thresholds and frozen sets, sealed before any training."""
    stage = Stage(
        name="pledge",
        kind="pledge",
        needs=("prepare", "collect"),
        sections=("gate", "seed"),
        work=_pledge,
        numeric=False,
    )
    inputs = {"prepare": parents.corpus, "collect": collected, "live": parents.live}
    return make(stage, shop, inputs)


def update(shop: Workshop, parents: Parents, collected: Artifact, pledged: Artifact) -> Artifact:
    """The checkpoint that has learnt from the collected corpus, and nothing forgotten."""
    stage = Stage(
        name="update",
        kind="checkpoint",
        needs=("base", "collect", "prepare", "pledge"),
        sections=("update", "seed"),
        work=_update,
    )
    inputs = {
        "base": parents.base,
        "collect": collected,
        "prepare": parents.corpus,
        "tokenize": parents.shards,
        "pledge": pledged,
    }
    return make(stage, shop, inputs)


def compress(shop: Workshop, parents: Parents, updated: Artifact) -> Artifact:
    """The candidate as it will be served: rounded where the live model is."""
    if parents.live.stage != "compress":
        return updated
    return make(STAGES["compress"], shop, {"finetune": updated, "tokenize": parents.shards})


def gate(shop: Workshop, *, live: Artifact, candidate: Artifact, pledged: Artifact) -> Artifact:
    """The verdict on a candidate, as a report."""
    stage = Stage(
        name="gate",
        kind="report",
        needs=("live", "candidate", "pledge"),
        sections=("gate", "seed"),
        work=_gate,
    )
    return make(stage, shop, {"live": live, "candidate": candidate, "pledge": pledged})


def _collect(
    selection: Selection, shop: Workshop, inputs: Inputs, folder: Path, run: Path
) -> Mapping[str, Any]:
    from lmloop.updating.collect import write

    return write(
        selection,
        folder,
        against=_gate_sets(shop, inputs["prepare"]),
        hold_out=shop.recipe.gate.target is None,
    )


def _pledge(shop: Workshop, inputs: Inputs, folder: Path, run: Path) -> Mapping[str, Any]:
    from lmloop.corpus.splits import read_split
    from lmloop.updating.pledge import TARGET, TARGET_TWIN, freeze

    collected = inputs["collect"].path
    sets = _gate_sets(shop, inputs["prepare"])
    sets[TARGET_TWIN] = list(read_split(collected, "train"))
    if TARGET not in sets:
        sets[TARGET] = list(read_split(collected, "heldout"))
    return freeze(shop.recipe.gate, sets=sets, folder=folder, sealed=time.time())


def _update(shop: Workshop, inputs: Inputs, folder: Path, run: Path) -> Mapping[str, Any]:
    stages.tune()
    from lmloop.corpus.splits import read_split
    from lmloop.inference.load import load
    from lmloop.tokens.tokenizer import Tokenizer
    from lmloop.updating.forgetting import forgetting_report
    from lmloop.updating.mixture import write_mixture
    from lmloop.updating.pledge import open_pledge
    from lmloop.updating.refresh import refresh

    recipe = shop.recipe
    base = inputs["base"].path
    shards = run / "mixture"
    mixed = write_mixture(
        list(read_split(inputs["collect"].path, "train")),
        partial(read_split, inputs["prepare"].path, "train"),
        tokenizer=Tokenizer.open(base),
        folder=shards,
        passes=recipe.update.passes,
        replay_share=recipe.update.replay_share,
        seed=recipe.seed,
        is_watched=recipe.update.watches_feedback,
    )
    trained = refresh(
        recipe.update,
        base=base,
        shards=shards,
        folder=folder,
        run=run,
        seed=recipe.seed,
        validate=stages.make_validation(shop, inputs["tokenize"].path),
        clock=time.monotonic,
        progress=shop.progress,
        freeze_embedding=recipe.model.freeze_embedding,
        watch=shop.watch,
        figure=make_figure(recipe, "update", inputs["tokenize"], shop.store),
    )
    changes = forgetting_report(
        load(base, verify=False),
        load(folder, verify=False),
        open_pledge(inputs["pledge"], recipe.gate).sets,
        folder=folder,
        confidence=recipe.gate.confidence,
        seed=recipe.seed,
        progress=shop.progress,
    )
    return {**trained, "mixture": mixed, "forgetting": changes}


def _gate(shop: Workshop, inputs: Inputs, folder: Path, run: Path) -> Mapping[str, Any]:
    stages.tune()
    from lmloop.updating.gate import judge

    verdict = judge(
        shop.recipe.gate,
        pledge=inputs["pledge"],
        candidate=inputs["candidate"],
        live=inputs["live"],
        store=shop.store,
        folder=folder,
        seed=shop.recipe.seed,
        progress=shop.progress,
    )
    return verdict.counts()


def _gate_sets(shop: Workshop, corpus: Artifact) -> dict[str, list[Record]]:
    """The sets that are known before anything is collected: general, twin, guards, target file."""
    from lmloop.corpus.splits import read_split
    from lmloop.updating.pledge import GENERAL, TARGET, TWIN, split_heldout

    config = shop.recipe.gate
    general, twin = split_heldout(
        read_split(corpus.path, "heldout"),
        read_split(corpus.path, "validation"),
        max_documents=config.max_documents,
    )
    sets = {GENERAL: general, TWIN: twin}
    named = {TARGET: config.target, **config.guards}
    for name, source in named.items():
        if source is not None:
            sets[name] = _read(shop, source)
    return sets


def _read(shop: Workshop, source: str) -> list[Record]:
    """The records of a file of the gate, cleaned as the corpus was."""
    from lmloop.corpus.clean import clean_record
    from lmloop.corpus.read import read_sources

    cleaned = (
        clean_record(each.record, config=shop.recipe.prepare) for each in read_sources((source,))
    )
    return [each.record for each in cleaned if each.dropped is None]
