"""Pre-training and training further: gather the parts, call the loop, write the checkpoint.

Takes: shards, a shape or a base checkpoint, a recipe's section. Gives: a checkpoint folder that
transformers opens, with the run's journal beside the weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lmloop.errors import CorpusError, TrainingError
from lmloop.inference.load import load
from lmloop.learning import PretrainConfig, TrainConfig
from lmloop.model.config import ModelConfig
from lmloop.model.cost import count_parameters
from lmloop.model.hardware import best_device, free_memory, settle_dtype
from lmloop.model.init import initialise
from lmloop.model.transformer import Transformer
from lmloop.progress import Progress, Watch, unwatched
from lmloop.sections import ModelSection
from lmloop.tokens.arrangement import Arrangement, make_arrangement
from lmloop.tokens.chat import ChatTemplate
from lmloop.tokens.loader import PackedLoader
from lmloop.tokens.mixture import Loader, MixedLoader
from lmloop.tokens.shards import Shards
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.tokens.vector_files import load_vectors
from lmloop.training.adapting import adapt, fold
from lmloop.training.batch import mean_loss
from lmloop.training.embeddings import initialise_embedding
from lmloop.training.journal import read_micro_batch
from lmloop.training.loop import JOURNAL, train
from lmloop.training.memory import choose_micro_batch
from lmloop.training.ranks import ALONE, Ranks
from lmloop.training.shape import model_config
from lmloop.weights.checkpoint import load_model, save_model

Validate = Callable[[Transformer], float]
REHEARSAL = "rehearsal"
"""Folder within the shards, of the shards of other text that is not to be forgotten."""
VALIDATION_TOKENS = 32_768
"""Validation tokens that an objective's own loss is measured on."""


def pretrain(
    config: PretrainConfig,
    shape: ModelSection,
    *,
    shards: Path,
    folder: Path,
    run: Path,
    seed: int,
    validate: Validate,
    clock: Callable[[], float],
    progress: Progress,
    base: Path | None = None,
    ranks: Ranks = ALONE,
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Train a new model on everything; write a checkpoint into `folder`, give its counts.

    With a `base`, whose tokenizer the shards must have, that model goes on learning instead. `run`
    holds snapshots and journal: a run that was killed goes on from there. `validate` gives
    bits per byte; where the objective makes no model of next tokens, its own loss on the
    validation split stands instead; `watch` is told each line of the journal. Raises
    `TokenizerError` for a special token that is missing, `ArtifactError` and `TrainingError` for
    word vectors or a base that cannot be read or do not fit.
    """
    tokenizer = Tokenizer.open(shards)
    arrangement = make_arrangement(config, tokenizer)
    if arrangement is not None and not config.is_scored_in_bytes:
        validate = _validate_objective(arrangement, config, shards, seed=seed)
    given = {}
    if base is not None:
        model = _open_base(base, shape, vocab_size=tokenizer.vocab_size)
    else:
        model = Transformer(model_config(shape, vocab_size=tokenizer.vocab_size))
        initialise(model, seed=seed)
    if shape.vectors is not None:
        given["words_with_vectors"] = initialise_embedding(
            model.embedding.weight,
            vocabulary=tokenizer.words,
            vectors=load_vectors(shape.vectors),
            freeze=shape.freeze_embedding,
        )
    return given | _make_checkpoint(
        model,
        config,
        shards=shards,
        answers_only=False,
        order_seed=seed,
        folder=folder,
        run=run,
        validate=validate,
        clock=clock,
        progress=progress,
        name="pretrain",
        watch=watch,
        arrangement=arrangement,
        is_scored_in_bytes=config.is_scored_in_bytes,
        ranks=ranks,
    )


def _open_base(base: Path, shape: ModelSection, *, vocab_size: int) -> Transformer:
    """The model in a folder or `.gguf` file; `TrainingError` where it cannot learn this text."""
    model = load(base, dtype=torch.float32).transformer
    config = model.config
    if config.encoder is not None or not config.causal or config.head == "none" or config.int8:
        raise TrainingError(
            f"model.base = {base.name!r} cannot go on learning next tokens: name a decoder whose "
            "weights are not int8"
        )
    if vocab_size > config.vocab_size:
        raise TrainingError(
            f"model.base = {base.name!r} knows {config.vocab_size} ids and its tokenizer makes "
            f"{vocab_size}: name a folder in which both fit"
        )
    if shape.context_length > config.context_length:
        raise TrainingError(
            f"model.context_length = {shape.context_length} is more than the "
            f"{config.context_length} of model.base: lower it"
        )
    return model


def _validate_objective(
    arrangement: Arrangement, config: PretrainConfig, shards: Path, *, seed: int
) -> Validate:
    """The objective's own loss on the same rows of the validation split each time."""
    split = Shards.open(shards, "validation")
    loader = PackedLoader(
        split,
        row_tokens=config.row_tokens,
        document_id=arrangement.document_id,
        answers_only=False,
        seed=seed,
        arrangement=arrangement.shorten(split.num_tokens),
    )
    rows = min(loader.rows_per_epoch, max(1, VALIDATION_TOKENS // config.row_tokens))
    at_once = config.batch_tokens // config.row_tokens
    return partial(mean_loss, loader=loader, rows=rows, rows_at_once=at_once)


def finetune(
    config: TrainConfig,
    *,
    base: Path,
    shards: Path,
    folder: Path,
    run: Path,
    seed: int,
    validate: Validate,
    clock: Callable[[], float],
    progress: Progress,
    name: str = "finetune",
    freeze_embedding: bool = False,
    ranks: Ranks = ALONE,
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Train `base` further on what the shards mark as answers; see `pretrain`.

    `name` is what the progress shows; `freeze_embedding` keeps that matrix as it is. Refuses to
    start if the stop token lies outside the loss (`TokenizerError`) or if there are no answers
    (`CorpusError`).
    """
    ChatTemplate.of(Tokenizer.open(shards)).check_stop_is_learnt()
    if not any(marks.any() for marks in Shards.open(shards, "train").answers):
        raise CorpusError(
            "the corpus has no assistant's answers to learn from: fine-tuning needs conversations"
        )
    model = load_model(base, dtype=torch.float32)
    model.embedding.requires_grad_(not freeze_embedding)
    return _make_checkpoint(
        model,
        config,
        shards=shards,
        answers_only=True,
        order_seed=seed + 1,
        folder=folder,
        run=run,
        validate=validate,
        clock=clock,
        progress=progress,
        name=name,
        ranks=ranks,
        watch=watch,
    )


def _make_checkpoint(
    model: Transformer,
    config: TrainConfig,
    *,
    shards: Path,
    answers_only: bool,
    order_seed: int,
    folder: Path,
    run: Path,
    validate: Validate,
    clock: Callable[[], float],
    progress: Progress,
    name: str,
    watch: Watch,
    arrangement: Arrangement | None = None,
    is_scored_in_bytes: bool = True,
    ranks: Ranks,
) -> dict[str, Any]:
    """Train `model` on the split `train` in an order of its own; write it with its tokenizer.

    Only the first rank writes; the others give no counts.
    """
    tokenizer = Tokenizer.open(shards)
    open_loader = partial(
        PackedLoader,
        row_tokens=config.row_tokens,
        document_id=tokenizer.document_id,
        answers_only=answers_only,
        seed=order_seed,
        arrangement=arrangement,
    )
    own = open_loader(Shards.open(shards, "train"))
    loader: Loader = own
    if isinstance(config, PretrainConfig) and (shards / REHEARSAL).is_dir():
        rehearsed = open_loader(Shards.open(shards / REHEARSAL, "train"))
        loader = MixedLoader(own=own, rehearsed=rehearsed, share=config.rehearsal_share)
    dtype = settle_dtype(config.precision)
    model.to(device=best_device(), dtype=dtype)
    bank = adapt(model, config, seed=order_seed)
    source_tokens = 0 if arrangement is None else arrangement.source_tokens
    config = _settle_micro_batch(
        config,
        model.config,
        run=run,
        source_tokens=source_tokens,
        progress=progress,
        ranks=ranks,
    )
    _require_room(model, run)
    run.mkdir(parents=True, exist_ok=True)
    result = train(
        model,
        loader,
        config,
        folder=run,
        validate=validate,
        clock=clock,
        progress=progress,
        name=name,
        is_scored_in_bytes=is_scored_in_bytes,
        ranks=ranks,
        watch=watch,
    )
    learnt = sum(each.numel() for each in model.parameters() if each.requires_grad)
    if not ranks.is_first:
        return {}
    model.cpu()
    if bank is not None:
        fold(bank, folder)
    tokenizer.save(folder)
    save_model(model, folder, stop_id=tokenizer.stop_ids[0], document_id=tokenizer.document_id)
    shutil.copyfile(run / JOURNAL, folder / JOURNAL)
    told = {key: value for key, value in asdict(result).items() if value is not None}
    return told | {
        "parameters": count_parameters(model.config),
        "learnt_parameters": learnt,
        "ranks": ranks.size,
        "precision": str(model.embedding.weight.dtype).removeprefix("torch."),
    }


def _settle_micro_batch(
    config: TrainConfig,
    shape: ModelConfig,
    *,
    run: Path,
    source_tokens: int,
    progress: Progress,
    ranks: Ranks,
) -> TrainConfig:
    """Let the first rank choose the micro-batch that the recipe leaves open; as before on resuming.

    Where a batch is cut decides how its sums are rounded, so the choice stands in the journal and
    is repeated with it, however much memory is free then.
    """
    if config.micro_batch_tokens != "auto":
        return config
    chosen = read_micro_batch(run / JOURNAL if config.replay is None else Path(config.replay))
    if chosen is None or config.batch_tokens % chosen or chosen % config.row_tokens:
        free = free_memory() // ranks.size
        chosen = choose_micro_batch(shape, config, free=free, source_tokens=source_tokens)
        progress.say(
            f"micro_batch_tokens = {chosen} of {config.batch_tokens}: {free / 1e9:.1f} GB free"
        )
    return config.model_copy(update={"micro_batch_tokens": int(ranks.agree(chosen))})


def _require_room(model: Transformer, run: Path) -> None:
    """Raise `TrainingError` where the disk of `run` cannot hold the snapshots."""
    free = shutil.disk_usage(next(path for path in run.parents if path.exists())).free
    needed = 3 * 12 * sum(each.numel() for each in model.parameters() if each.requires_grad)
    if free < needed:
        raise TrainingError(
            f"snapshots need {needed / 1e6:.0f} MB and the disk has {free / 1e6:.0f} MB free: "
            "make room or choose another --home"
        )
