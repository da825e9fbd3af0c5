"""The way through a recipe: each stage is skipped where its inputs and settings are unchanged.

Takes: a recipe. Gives: artifacts, each made from those before it, and at the end a live model.
Asking for a stage makes what it needs first.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from lmloop.auto import complete
from lmloop.config import database_setting, rank_setting
from lmloop.errors import ArtifactError, CompressionError, PrunedError, RecipeError
from lmloop.progress import Progress, Silent, Watch, unwatched
from lmloop.recipe import Recipe
from lmloop.stages import STAGES, Inputs, Stage, Workshop, find_base, find_vectors
from lmloop.store.artifact import Artifact, artifact_key, open_artifact
from lmloop.store.database import database_url, open_database
from lmloop.store.disk import refuse_full_disk
from lmloop.store.lineage import walk_back
from lmloop.store.registry import Registry, index_artifact, mirror_folder
from lmloop.store.runs import RunLog
from lmloop.tracking.trackers import open_trackers
from lmloop.training.ranks import ALONE, join_ranks
from lmloop.unfinished import begin_run

_MADE, _CALLED = 0.0, 1.0
"""What the first rank says of a stage: that it is made, or that all are to work at it."""


@dataclass(frozen=True, slots=True)
class Made:
    """What a walk through a recipe has come to."""

    artifacts: Mapping[str, Artifact]
    """By stage."""
    live: Artifact | None
    """The model that is served; None where the walk stopped before there was one, and for all ranks
    but the first."""


def open_home(home: Path) -> sa.Engine:
    """The database that goes with a home."""
    return open_database(database_setting() or database_url(home))


def walk(
    recipe: Recipe,
    *,
    home: Path,
    until: str | None,
    progress: Progress,
    watch: Watch = unwatched,
    trial: int | None = None,
) -> Made:
    """Make everything up to the stage `until` (all stages where None), then set the live model.

    Text without conversations is not fine-tuned unless that is what was asked for. A compression
    that would cost too much quality is refused by its stage; with `until` None the walk says so and
    goes on with the uncompressed model. `watch` is told the journal of the stage `until`; a search
    says which `trial` this is. Raises `RecipeError` for a model that does not continue text where
    more is asked for than to pre-train it, `SourceError` or `ArtifactError` where word vectors or
    the model to begin with are missing. In processes that torchrun has started all train together,
    and the first does all else.
    """
    with join_ranks(rank_setting()) as ranks:
        _require_decoder(recipe, until)
        if until not in ("prepare", "tokenize"):
            find_vectors(recipe)
        told = progress if ranks.is_first else Silent()
        recipe = complete(recipe, tell=told.say)
        shop = Workshop(
            recipe=recipe,
            home=home,
            progress=told,
            ranks=ranks,
            watch=watch,
            trial=trial,
        )
        if until != "prepare":
            find_base(recipe, shop.store)
        with shop.store.use(), refuse_full_disk(home):
            return _walk(shop, until)


def _walk(shop: Workshop, until: str | None) -> Made:
    """Make what is asked for: together up to the last stage that trains, the first alone then."""
    made: dict[str, Artifact] = {}
    if until is not None:
        _make_needed(STAGES[until], shop, made, asked=True)
        return Made(made, live=None)
    for stage in STAGES.values():
        if stage.trains:
            _make_needed(stage, shop, made, asked=False)
    if not shop.ranks.is_first:
        return Made(made, live=None)
    shop = replace(shop, ranks=ALONE)
    for stage in STAGES.values():
        try:
            _make_needed(stage, shop, made, asked=False)
        except CompressionError as refusal:
            shop.progress.say(f"not compressed: {refusal}")
    return Made(made, _make_live(made, shop))


def _require_decoder(recipe: Recipe, until: str | None) -> None:
    """What comes after pre-training asks for each next token, and is measured by it."""
    kind = recipe.model.kind
    if kind != "decoder" and until not in ("prepare", "tokenize", "pretrain"):
        raise RecipeError(
            f"model.kind = {kind!r} can be pre-trained only: ask for `lmloop pretrain`, or set "
            "model.kind = 'decoder'"
        )


def _make_live(made: Mapping[str, Artifact], shop: Workshop) -> Artifact:
    """Make the last model live, unless updates have gone on from it; give what is live then."""
    last = made.get("compress", made["finetune"])
    database = open_home(shop.home)
    try:
        registry = Registry(database, shop.recipe.name, mirror=mirror_folder(shop.home))
        entry = registry.read().get("live")
        if entry is not None and entry.path != str(last.path) and Path(entry.path).is_dir():
            live = open_artifact(entry.path)
            ancestors = list(walk_back(live, shop.store))
            updated = any(each.stage == "update" for each in ancestors)
            if updated and made["finetune"] in ancestors:
                shop.progress.say(f"live stays {live}: updates have gone on from this model")
                return live
        registry.set_live(last)
        return last
    finally:
        database.dispose()


def _make_needed(stage: Stage, shop: Workshop, made: dict[str, Artifact], *, asked: bool) -> None:
    """Enter the artifacts of `stage` and of all that it needs into `made`."""
    if stage.name in made:
        return
    for need in stage.needs:
        _make_needed(STAGES[need], replace(shop, watch=unwatched), made, asked=False)
    if stage.name == "finetune" and not asked and not _has_answers(made["tokenize"]):
        shop.progress.say("finetune: the text has no answers to learn from, the base model stays")
        made[stage.name] = made["pretrain"]
    else:
        made[stage.name] = make(stage, shop, {need: made[need] for need in stage.needs})


def _has_answers(shards: Artifact) -> bool:
    return bool(shards.counts["train"]["answer_tokens"])


def make(
    stage: Stage,
    shop: Workshop,
    inputs: Mapping[str, Artifact],
    *,
    raw: Sequence[Mapping[str, str]] = (),
) -> Artifact:
    """The artifact of one stage: found where it is made already, else made.

    `raw` are inputs that are no artifacts (files, events), with kind, source and fingerprint.
    Raises `BusyError` where another process is making the same.
    """
    origins = [*stage.sources(shop.recipe, shop.store), *raw, *map(_origin, inputs.values())]
    key = artifact_key(
        stage.name,
        stage.settings(shop.recipe),
        [origin["fingerprint"] for origin in origins],
    )
    if not shop.ranks.is_first:
        return _follow(stage, shop, inputs, key)
    found = shop.store.find(stage.name, key)
    if found is None:
        with shop.store.lock(stage.name, key):
            # Another process may have finished it between the first look and the lock.
            found = shop.store.find(stage.name, key)
            if found is None:
                return _make(stage, shop, inputs, origins, key)
    shutil.rmtree(shop.home / "runs" / found.path.name, ignore_errors=True)
    shop.progress.say(f"{stage.name}: already made, {found}")
    shop.ranks.agree(_MADE)
    return found


def _follow(stage: Stage, shop: Workshop, inputs: Mapping[str, Artifact], key: str) -> Artifact:
    """Work beside the first rank if it calls, and open what it has made."""
    path = shop.store.path(stage.name, key)
    while shop.ranks.agree(_MADE) == _CALLED:
        stage.work(shop, inputs, path, shop.home / "runs" / path.name)
    found = shop.store.find(stage.name, key)
    if found is None:
        raise ArtifactError(f"{path} is not to be seen here: all ranks need one --home, shared")
    return found


def _make(
    stage: Stage,
    shop: Workshop,
    inputs: Mapping[str, Artifact],
    origins: Sequence[Mapping[str, str]],
    key: str,
) -> Artifact:
    for artifact in inputs.values():
        artifact.verify()
    started = time.time()
    with shop.store.write(stage.name, key) as draft:
        run = shop.home / "runs" / draft.final.name
        if stage.trains and shop.trial is None:
            begin_run(
                run,
                name=shop.recipe.name,
                inputs=[origin["fingerprint"] for origin in origins],
                settings=stage.settings(shop.recipe),
            )
        if stage.trains:
            shop.ranks.agree(_CALLED)
        try:
            counts = _work(stage, shop, inputs, draft.path, run)
        except PrunedError:
            shutil.rmtree(run, ignore_errors=True)
            raise
        stage.release()
        counts["stage_seconds"] = round(time.time() - started, 1)
        made = draft.finish(
            kind=stage.kind,
            name=shop.recipe.name,
            made_from=origins,
            settings=stage.settings(shop.recipe),
            counts=counts,
            code_version=code_version(),
            environment=stage.environment(),
            created=started,
        )
    # What a run kept for resuming is of no more use now that its result is safe. Where a kill
    # comes in between, the next look at the finished artifact removes it.
    shutil.rmtree(run, ignore_errors=True)
    _index(shop, made)
    shop.progress.say(f"{stage.name}: made {made} in {counts['stage_seconds']} s")
    shop.ranks.agree(_MADE)
    return made


def _work(stage: Stage, shop: Workshop, inputs: Inputs, folder: Path, run: Path) -> dict[str, Any]:
    """Do the work of a stage; what it journals goes to the database and trackers as well."""
    log = RunLog(
        partial(open_home, shop.home),
        run=run.name,
        name=shop.recipe.name if shop.trial is None else f"{shop.recipe.name}/{shop.trial}",
        stage=stage.name,
        tell=shop.progress.say,
    )
    names = getattr(getattr(shop.recipe, stage.name, None), "trackers", ())
    with log, open_trackers(names, home=shop.home, run=run.name, name=shop.recipe.name) as track:

        def watch(entry: Mapping[str, Any]) -> None:
            log.write(entry)
            track(entry)
            shop.watch(entry)

        return dict(stage.work(replace(shop, watch=watch), inputs, folder, run))


def _origin(artifact: Artifact) -> dict[str, str]:
    return {"kind": artifact.kind, "fingerprint": artifact.fingerprint}


def _index(shop: Workshop, artifact: Artifact) -> None:
    """Enter an artifact into the index; it is whole without that, and its manifest the truth."""
    database = open_home(shop.home)
    try:
        index_artifact(database, artifact)
    except sa.exc.DBAPIError as error:
        reason = " ".join(str(error.orig).split())
        shop.progress.say(
            f"{artifact.stage}: made, but the database does not take it into its index ({reason}): "
            "`lmloop reindex` will, once that is mended"
        )
    finally:
        database.dispose()


def code_version() -> str:
    """The package's version and a hash over its source files."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return f"{importlib.metadata.version('lmloop')}+{digest.hexdigest()[:12]}"
