"""The stages of a recipe: what each one needs, what decides its result, and the work itself.

Takes: a recipe's sections and the artifacts of earlier stages. Gives: files and counts. Heavy
libraries are imported by the stage that uses them, so that a walk over finished work is quick.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmloop.config import calm_threads
from lmloop.errors import SourceError
from lmloop.learning import TaughtConfig
from lmloop.progress import Progress, Watch, unwatched
from lmloop.recipe import Recipe
from lmloop.store.artifact import Artifact, ArtifactStore, hash_file
from lmloop.training.ranks import ALONE, Ranks
from lmloop.watching import make_figure

if TYPE_CHECKING:
    from lmloop.store.bases import Base
    from lmloop.training.figures import Validate

Inputs = Mapping[str, Artifact]
REHEARSAL, OUTSIDE = "rehearsal", "outside"
"""Folders within corpus and shards: text that is not to be forgotten, and text only measured."""
VALIDATION_TOKENS = 32_768
"""Validation tokens read each time while training: enough to see a curve, a second to compute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """What every stage works with."""

    recipe: Recipe
    home: Path
    progress: Progress
    ranks: Ranks = ALONE
    """The processes of this run; stages that train work in all of them."""
    watch: Watch = unwatched
    """Is told each line of the journal of a stage that trains."""
    trial: int | None = None
    """Number of this walk of a search, each of which has settings of its own; None: no search."""

    @property
    def store(self) -> ArtifactStore:
        """Where artifacts lie."""
        return ArtifactStore(self.home)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of the way."""

    name: str
    kind: str
    """Of the artifact that it makes."""
    needs: tuple[str, ...]
    """Stages whose artifacts it reads."""
    sections: tuple[str, ...]
    """Parts of the recipe that decide its result: sections, or keys such as `model.head_dim`."""
    work: Callable[[Workshop, Inputs, Path, Path], Mapping[str, Any]]
    """Writes the artifact's files into the first folder, may keep state in the second; counts."""
    raw: Callable[[Recipe, ArtifactStore], list[dict[str, str]]] | None = None
    """Its inputs that no stage makes, each with kind and fingerprint, and a source if a file."""
    numeric: bool = True
    """Whether its result depends on PyTorch and the processor."""
    trains: bool = False
    """Whether all ranks work at it; at the others the first works alone."""

    def settings(self, recipe: Recipe) -> dict[str, Any]:
        """The parts of the recipe that decide the result."""
        data = recipe.model_dump(mode="json")
        parts: dict[str, Any] = {}
        for part in self.sections:
            section, _, key = part.partition(".")
            value = data[section]
            parts[section] = {**parts.get(section, {}), key: value[key]} if key else value
        return parts

    def sources(self, recipe: Recipe, store: ArtifactStore) -> list[dict[str, str]]:
        """What no stage makes, with fingerprints: text, word vectors, the model to begin with."""
        return [] if self.raw is None else self.raw(recipe, store)

    def release(self) -> None:
        """Hand freed memory back to the system, so that stages' peaks do not add up."""
        if self.numeric:
            from lmloop.model.hardware import release_memory

            release_memory()

    def environment(self) -> dict[str, Any]:
        """What "exact" depends on: versions, and for numeric stages threads and instruction set."""
        own = {"python": platform.python_version(), "machine": platform.machine()}
        if not self.numeric:
            return own
        from lmloop.model.hardware import describe_hardware

        return own | describe_hardware()


def _trace_text(recipe: Recipe, store: ArtifactStore) -> list[dict[str, str]]:
    from lmloop.corpus.prepare import fingerprint_sources

    config = recipe.prepare
    return fingerprint_sources([*config.sources, *config.rehearsal, *config.outside])


def _trace_base(recipe: Recipe, store: ArtifactStore) -> list[dict[str, str]]:
    base = find_base(recipe, store)
    return [] if base is None else [base.origin]


def _trace_beginning(recipe: Recipe, store: ArtifactStore) -> list[dict[str, str]]:
    path = find_vectors(recipe)
    begun = _trace_base(recipe, store) if path is None else [_trace_file(path)]
    return [*begun, *_trace_learning("pretrain", recipe, store)]


def _trace_learning(stage: str, recipe: Recipe, store: ArtifactStore) -> list[dict[str, str]]:
    """The teacher that a stage has, and the journal that it repeats: others make another run."""
    section: TaughtConfig = getattr(recipe, stage)
    teacher, replay = find_teacher(section, store), section.replay
    if replay is not None and not Path(replay).is_file():
        raise SourceError(
            f"{stage}.replay = {replay!r} is no file: name the journal.jsonl of an earlier run"
        )
    repeated = [] if replay is None else [_trace_file(Path(replay))]
    return repeated if teacher is None else [teacher.origin, *repeated]


def _trace_file(path: Path) -> dict[str, str]:
    name = path.name if path.is_absolute() else str(path)
    return {"kind": "raw", "source": name, "fingerprint": hash_file(path)}


def find_teacher(section: TaughtConfig, store: ArtifactStore) -> Base | None:
    """The model that a stage learns from, if it names one; raises as `lmloop.store.bases` does."""
    if section.teacher is None:
        return None
    from lmloop.store.bases import find_model

    return find_model(section.teacher, store)


def find_base(recipe: Recipe, store: ArtifactStore) -> Base | None:
    """The model that a recipe begins with, if it names one; raises as `lmloop.store.bases` does."""
    if recipe.model.base is None:
        return None
    from lmloop.store.bases import find_base

    return find_base(recipe.model.base, store)


def find_vectors(recipe: Recipe) -> Path | None:
    """The file of word vectors that a recipe names; raise `SourceError` where there is none."""
    if recipe.model.vectors is None:
        return None
    path = Path(recipe.model.vectors)
    if not path.is_file():
        raise SourceError(
            f"model.vectors = {str(path)!r} is no file: name one that `lmloop vectors` wrote, or "
            "another of word2vec's or GloVe's layout"
        )
    return path


def _prepare(shop: Workshop, inputs: Inputs, folder: Path, run: Path) -> Mapping[str, Any]:
    from lmloop.corpus.prepare import prepare

    recipe = shop.recipe
    work = partial(prepare, seed=recipe.seed, progress=shop.progress)
    counts = work(recipe.prepare, folder).counts
    # Of text that is only measured a third is measured.
    thirds = {"heldout_share": 0.34, "validation_share": 0.33}
    for name, changes in ((REHEARSAL, {}), (OUTSIDE, thirds)):
        if sources := getattr(recipe.prepare, name):
            (folder / name).mkdir()
            other = recipe.prepare.model_copy(update={"sources": sources, **changes})
            counts[name] = work(other, folder / name).counts
    return counts


def _tokenize(shop: Workshop, inputs: Inputs, folder: Path, run: Path) -> Mapping[str, Any]:
    from lmloop.corpus.splits import read_split
    from lmloop.tokens.tokenize import tokenize
    from lmloop.tokens.tokenizer import Tokenizer

    recipe, corpus = shop.recipe, inputs["prepare"].path
    work = partial(
        tokenize,
        recipe.tokenize,
        context_length=recipe.model.context_length,
        progress=shop.progress,
    )
    base, tokenizer = find_base(recipe, shop.store), None
    if base is not None:
        from lmloop.inference.load import load_tokenizer

        tokenizer = load_tokenizer(base.path).part_documents()
    counts = work(partial(read_split, corpus), folder, tokenizer=tokenizer)
    for name in _others(corpus):
        (folder / name).mkdir()
        read, tokenizer = partial(read_split, corpus / name), Tokenizer.open(folder)
        counts[name] = work(read, folder / name, tokenizer=tokenizer)
    return counts


def _pretrain(shop: Workshop, inputs: Inputs, folder: Path, run: Path) -> Mapping[str, Any]:
    tune()
    from lmloop.training.recipes import pretrain

    shards, base = inputs["tokenize"].path, find_base(shop.recipe, shop.store)
    teacher = find_teacher(shop.recipe.pretrain, shop.store)
    return pretrain(
        shop.recipe.pretrain,
        shop.recipe.model,
        shards=shards,
        folder=folder,
        run=run,
        seed=shop.recipe.seed,
        validate=make_validation(shop, shards),
        clock=time.monotonic,
        progress=shop.progress,
        base=None if base is None else base.path,
        teacher=None if teacher is None else teacher.path,
        ranks=shop.ranks,
        watch=shop.watch,
        figure=make_figure(shop.recipe, "pretrain", inputs["tokenize"], shop.store),
    )


def _finetune(shop: Workshop, inputs: Inputs, folder: Path, run: Path) -> Mapping[str, Any]:
    tune()
    from lmloop.training.recipes import finetune

    shards = inputs["tokenize"].path
    teacher = find_teacher(shop.recipe.finetune, shop.store)
    return finetune(
        shop.recipe.finetune,
        base=inputs["pretrain"].path,
        shards=shards,
        folder=folder,
        run=run,
        seed=shop.recipe.seed,
        validate=make_validation(shop, shards),
        clock=time.monotonic,
        progress=shop.progress,
        ranks=shop.ranks,
        freeze_embedding=shop.recipe.model.freeze_embedding,
        teacher=None if teacher is None else teacher.path,
        watch=shop.watch,
        figure=make_figure(shop.recipe, "finetune", inputs["tokenize"], shop.store),
    )


def _evaluate(shop: Workshop, inputs: Inputs, folder: Path, run: Path) -> Mapping[str, Any]:
    tune()
    from lmloop.corpus.splits import read_split
    from lmloop.evaluation.harness import evaluate
    from lmloop.inference.load import load
    from lmloop.tokens.shards import Shards
    from lmloop.training.journal import JOURNAL

    corpus, begun = inputs["prepare"].path, find_base(shop.recipe, shop.store)
    first, tuned = inputs["pretrain"], inputs["finetune"]
    trained = {"pretrain": first, "finetune": tuned}
    if tuned.path == first.path:  # text without answers is not fine-tuned
        del trained["finetune"]
    before = first.path if len(trained) > 1 else None
    before = before if begun is None else begun.path
    shards = inputs["tokenize"].path
    return evaluate(
        shop.recipe.evaluate,
        model=load(tuned.path),
        base=None if before is None else load(before),
        shards=Shards.open(shards, "heldout"),
        others={name: Shards.open(shards / name, "heldout") for name in _others(shards)},
        records=list(read_split(corpus, "heldout")),
        train_records=partial(read_split, corpus, "train"),
        training_logs={stage: artifact.path / JOURNAL for stage, artifact in trained.items()},
        folder=folder,
        seed=shop.recipe.seed,
        progress=shop.progress,
    )


def _compress(shop: Workshop, inputs: Inputs, folder: Path, run: Path) -> Mapping[str, Any]:
    tune()
    from lmloop.compression.quantize import compress
    from lmloop.tokens.shards import Shards

    return compress(
        shop.recipe.compress,
        model_folder=inputs["finetune"].path,
        shards=Shards.open(inputs["tokenize"].path, "heldout"),
        folder=folder,
        progress=shop.progress,
    )


def _others(folder: Path) -> list[str]:
    """What a corpus or shards hold besides the recipe's own text."""
    return [name for name in (REHEARSAL, OUTSIDE) if (folder / name).is_dir()]


def tune() -> None:
    """Set threads and arithmetic of this process for heavy work."""
    calm_threads()
    from lmloop.model.hardware import tune_process

    tune_process()


def make_validation(shop: Workshop, shards: Path) -> Validate:
    """Bits per byte of the validation split's beginning, as a function of the model."""
    from lmloop.evaluation.perplexity import bits_per_byte_of
    from lmloop.tokens.shards import Shards
    from lmloop.tokens.tokenizer import Tokenizer

    return partial(
        bits_per_byte_of,
        shards=Shards.open(shards, "validation"),
        document_id=Tokenizer.open(shards).document_id,
        context_length=shop.recipe.model.context_length,
        max_tokens=VALIDATION_TOKENS,
    )


STAGES: Mapping[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            name="prepare",
            kind="corpus",
            needs=(),
            sections=("prepare", "seed"),
            work=_prepare,
            raw=_trace_text,
            numeric=False,
        ),
        Stage(
            name="tokenize",
            kind="shards",
            needs=("prepare",),
            sections=("tokenize", "model.context_length"),
            work=_tokenize,
            raw=_trace_base,
            numeric=False,
        ),
        Stage(
            name="pretrain",
            kind="checkpoint",
            needs=("tokenize",),
            sections=("model", "pretrain", "seed"),
            work=_pretrain,
            raw=_trace_beginning,
            trains=True,
        ),
        Stage(
            name="finetune",
            kind="checkpoint",
            needs=("pretrain", "tokenize"),
            sections=("finetune", "seed"),
            work=_finetune,
            raw=partial(_trace_learning, "finetune"),
            trains=True,
        ),
        Stage(
            name="evaluate",
            kind="report",
            needs=("finetune", "pretrain", "tokenize", "prepare"),
            sections=("evaluate", "seed"),
            work=_evaluate,
            raw=_trace_base,
        ),
        Stage(
            name="compress",
            kind="checkpoint",
            needs=("finetune", "tokenize"),
            sections=("compress",),
            work=_compress,
        ),
    )
}
"""In the order of the way."""
