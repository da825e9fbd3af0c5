"""The verb `plan`, from Python: what a recipe will cost and come to, before it is run.

Takes: a recipe. Gives: a `Plan`. Text that is tokenized already is counted, other text is guessed;
`fit` tokenizes it and trains small models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmloop.auto import complete, describe
from lmloop.config import home_directory, load_recipe
from lmloop.errors import RecipeError
from lmloop.pipeline import walk
from lmloop.progress import Progress, Silent
from lmloop.recipe import Recipe
from lmloop.stages import STAGES, Workshop, find_base, find_teacher, make_validation, tune
from lmloop.store.artifact import Artifact, artifact_key

if TYPE_CHECKING:
    from lmloop.learning import TaughtConfig
    from lmloop.model.config import ModelConfig
    from lmloop.store.bases import Base
    from lmloop.training.layouts import Trial
    from lmloop.training.plan import Plan, Text
    from lmloop.training.scaling import Expected

FIT_SECONDS = 90.0


def plan(
    recipe: str | Path,
    *,
    home: str | Path | None = None,
    fit: bool = False,
    fit_seconds: float = FIT_SECONDS,
    progress: Progress | None = None,
    ranks: int = 1,
    **overrides: Any,
) -> Plan:
    """Parameters, memory, tokens, time and money of a recipe, before any work.

    Of so many `ranks` of this machine (torchrun) the first is told: it has the most memory.

    With `fit`, the loss that pre-training should end with as well: prepares and tokenizes the text
    if that is not done yet, and trains small models for `fit_seconds` in all. Raises `RecipeError`
    where the objective is not scored in bits per byte.
    """
    from lmloop.training.plan import make_plan

    read = load_recipe(recipe, overrides)
    checked = complete(read)
    if fit and checked.pretrain.tasks:
        raise RecipeError("--fit foresees one objective, and pretrain.tasks has more: leave it out")
    if fit and not checked.pretrain.is_scored_in_bytes:
        raise RecipeError(
            f"--fit foresees bits per byte, and pretrain.objective = "
            f"{checked.pretrain.objective!r} has none: leave --fit out"
        )
    shop = Workshop(
        recipe=checked,
        home=home_directory(home),
        progress=Silent() if progress is None else progress,
    )
    if fit:
        tune()
        made = walk(checked, home=shop.home, until="tokenize", progress=shop.progress)
        shards: Artifact | None = made.artifacts["tokenize"]
    else:
        shards = find_tokenized(shop)
    vocab_size, text = _read_sizes(checked, shards)
    stages: dict[str, TaughtConfig] = {"pretrain": checked.pretrain}
    if checked.model.kind == "decoder":
        stages |= {"finetune": checked.finetune}
    made_plan = make_plan(
        checked.model,
        vocab_size=vocab_size,
        stages=stages,
        text=text,
        base=_read_shape(find_base(checked, shop.store)),
        teachers=_read_teachers(stages, shop),
        ranks=ranks,
    )
    made_plan = replace(made_plan, chosen=describe(checked) if read.model.auto else None)
    if not fit or shards is None:
        return made_plan
    return replace(made_plan, expected=_fit(shop, shards, made_plan, seconds=fit_seconds))


def _read_shape(model: Base | None) -> ModelConfig | None:
    """The shape of a model that is made already."""
    if model is None:
        return None
    from lmloop.weights.checkpoint import load_config

    if model.path.is_dir():
        return load_config(model.path)
    from lmloop.inference.load import load

    return load(model.path).config


def _read_teachers(stages: Mapping[str, TaughtConfig], shop: Workshop) -> dict[str, ModelConfig]:
    """Shapes of the models that stages learn from, by the stages' names."""
    found = {name: _read_shape(find_teacher(each, shop.store)) for name, each in stages.items()}
    return {name: shape for name, shape in found.items() if shape is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPlan:
    """Pre-training of a recipe on many GPUs."""

    parameters: int
    tokens: float
    """Of the whole run."""
    trials: tuple[Trial, ...]
    """Layouts, the fastest first; behind them those that are too large."""


def plan_cluster(
    recipe: str | Path,
    *,
    gpus: int,
    gpu: str = "h100",
    tensor_parallel: int | None = None,
    tokens: float | None = None,
    home: str | Path | None = None,
    **overrides: Any,
) -> ClusterPlan:
    """How fast a recipe would pre-train on many GPUs, by a cost model; runs nothing.

    `tokens` are those of the whole run: the recipe's `pretrain.steps` batches where it is None.
    Raises `RecipeError` where there are no steps either, for GPUs that are not known, batches that
    cannot be dealt to so many, and models that are no plain decoders.
    """
    from lmloop.model.cost import count_parameters
    from lmloop.training.cluster import make_cluster
    from lmloop.training.layouts import try_layouts
    from lmloop.training.shape import model_config

    checked = load_recipe(recipe, overrides)
    section = checked.pretrain
    if tokens is None and section.steps is None:
        raise RecipeError(
            "many GPUs are planned for a number of tokens, and pretrain.budget is a time: give "
            "--tokens, or pretrain.steps"
        )
    if checked.model.base is not None:
        raise RecipeError("plan foresees new models only: leave model.base out and give the shape")
    if checked.model.auto:
        raise RecipeError(
            "model = 'auto' chooses for this machine, not for --gpus: give a [model] with its shape"
        )
    shop = Workshop(recipe=checked, home=home_directory(home), progress=Silent())
    shards = find_tokenized(shop)
    vocab_size = checked.tokenize.vocab_size if shards is None else _read_sizes(checked, shards)[0]
    config = model_config(checked.model, vocab_size=vocab_size)
    trials = try_layouts(
        config,
        make_cluster(gpu, gpus=gpus),
        batch_rows=section.batch_rows,
        row_tokens=section.row_tokens,
        tensor_parallel=tensor_parallel,
    )
    planned = (section.steps or 0) * section.batch_tokens if tokens is None else tokens
    return ClusterPlan(parameters=count_parameters(config), tokens=planned, trials=tuple(trials))


def find_tokenized(shop: Workshop) -> Artifact | None:
    """The recipe's tokenized text, if it was made before."""
    found: list[Artifact] = []
    for name in ("prepare", "tokenize"):
        stage = STAGES[name]
        origins = [each["fingerprint"] for each in stage.sources(shop.recipe, shop.store)]
        key = artifact_key(
            name, stage.settings(shop.recipe), origins + [each.fingerprint for each in found]
        )
        artifact = shop.store.find(name, key)
        if artifact is None:
            return None
        found = [artifact]
    return found[0]


def _read_sizes(recipe: Recipe, shards: Artifact | None) -> tuple[int, Text]:
    """Size of the vocabulary, and of the text to learn from."""
    from lmloop.training.plan import Text, estimate_text

    if shards is None:
        from lmloop.corpus.read import read_sources

        records = read_sources(recipe.prepare.sources)
        raw_bytes = sum(each.record.raw_bytes for each in records)
        return recipe.tokenize.vocab_size, estimate_text(raw_bytes)
    from lmloop.tokens.shards import Shards
    from lmloop.tokens.tokenizer import Tokenizer

    train, counts = Shards.open(shards.path, "train"), shards.counts["train"]
    text = Text(
        bytes=int(train.document_bytes.sum()),
        tokens=train.num_tokens,
        answer_tokens=int(counts["answer_tokens"]) or train.num_tokens,
        is_tokenized=True,
    )
    return Tokenizer.open(shards.path).vocab_size, text


def _fit(shop: Workshop, shards: Artifact, plan: Plan, *, seconds: float) -> Expected:
    """What the scaling law of small runs says of the recipe's own."""
    from lmloop.tokens.arrangement import make_arrangement
    from lmloop.tokens.loader import PackedLoader
    from lmloop.tokens.shards import Shards
    from lmloop.tokens.tokenizer import Tokenizer
    from lmloop.training.bigrams import begin
    from lmloop.training.pilot import run_pilots
    from lmloop.training.scaling import count_repeated, fit_scaling

    recipe, tokenizer = shop.recipe, Tokenizer.open(shards.path)
    train = Shards.open(shards.path, "train")
    loader = PackedLoader(
        train,
        row_tokens=recipe.pretrain.row_tokens,
        document_id=tokenizer.document_id,
        answers_only=False,
        seed=recipe.seed,
        arrangement=make_arrangement(recipe.pretrain, tokenizer),
    )
    runs = run_pilots(
        recipe.pretrain,
        recipe.model,
        vocab_size=tokenizer.vocab_size,
        loader=loader,
        unique_tokens=plan.text.tokens,
        seconds=seconds,
        begin=partial(begin, shards=train, start=recipe.pretrain.start, seed=recipe.seed),
        validate=make_validation(shop, shards.path),
        progress=shop.progress,
    )
    tokens = count_repeated(plan.stages[0].tokens, unique=plan.text.tokens)
    return fit_scaling(runs).predict(parameters=plan.parameters, tokens=tokens)
