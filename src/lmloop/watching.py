"""What early stopping watches beyond the text that is learnt: a figure of evaluation.

Takes: a section with `patience_metric`, the tokenized text. Gives: what `training` is handed for
it, which itself knows nothing of evaluation.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from lmloop.errors import CorpusError
from lmloop.learning import TrainConfig
from lmloop.recipe import Recipe
from lmloop.sections import ReportFigure
from lmloop.store.artifact import Artifact, ArtifactStore
from lmloop.store.lineage import walk_back

if TYPE_CHECKING:
    from lmloop.evaluation.probes import Probe
    from lmloop.training.figures import Figure

_ELSEWHERE = "_bits_per_byte"
"""Ends the name of a figure on other text, which the folder of that name within the shards has."""


def make_figure(
    recipe: Recipe, stage: str, shards: Artifact, store: ArtifactStore
) -> Figure | None:
    """The figure of evaluation that a stage watches, on validation splits; None if it has none.

    Raises `CorpusError` where the text has nothing to measure it on.
    """
    section: TrainConfig = getattr(recipe, stage)
    name = section.patience_metric
    if name not in get_args(ReportFigure):
        return None
    from lmloop.corpus.splits import read_split
    from lmloop.evaluation.probes import HIGHEST_IS_BEST, make_probe
    from lmloop.tokens.tokenizer import Tokenizer
    from lmloop.training.figures import Figure

    context = recipe.model.context_length
    if name.endswith(_ELSEWHERE):
        measure = _make_elsewhere(name, shards.path, context_length=context)
    else:
        measure = make_probe(
            name,
            read_split(_find_corpus(name, shards, store), "validation"),
            tokenizer=Tokenizer.open(shards.path),
            context_length=context,
            seed=recipe.seed,
        )
    highest = HIGHEST_IS_BEST.get(name, False)
    return Figure(name=f"validation_{name}", measure=measure, highest_is_best=highest)


def _make_elsewhere(name: str, shards: Path, *, context_length: int) -> Probe:
    """Bits per byte of other text, of as much of it as a report measures."""
    from lmloop.evaluation.perplexity import OTHER_TOKENS, bits_per_byte_of
    from lmloop.tokens.shards import Shards
    from lmloop.tokens.tokenizer import Tokenizer

    folder = name.removesuffix(_ELSEWHERE)
    other = Shards.open(shards / folder, "validation") if (shards / folder).is_dir() else None
    if other is None or not other.num_documents:
        raise CorpusError(
            f"patience_metric = {name!r} is measured on the validation split of prepare.{folder}, "
            "which has no document: name files there, or take 'validation'"
        )
    return partial(
        bits_per_byte_of,
        shards=other,
        document_id=Tokenizer.open(shards).document_id,
        context_length=context_length,
        max_tokens=OTHER_TOKENS,
    )


def _find_corpus(name: str, shards: Artifact, store: ArtifactStore) -> Path:
    """The text that shards were made of."""
    for each in walk_back(shards, store):
        if each.stage == "prepare":
            return each.path
    raise CorpusError(
        f"patience_metric = {name!r} reads the text that {shards} was made of, which is no longer "
        "on disk: run its recipe again"
    )
