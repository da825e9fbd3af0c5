"""Pre-training and training further: gather the parts, call the loop, write the checkpoint.

Takes: shards, a shape or a base checkpoint, a recipe's section. Gives: a checkpoint folder that
transformers opens, with the run's journal beside the weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from lmloop.errors import CorpusError, DiskFullError
from lmloop.learning import PretrainConfig, TaughtConfig, TrainConfig
from lmloop.model.config import ModelConfig
from lmloop.model.cost import count_parameters
from lmloop.model.hardware import free_memory, resident_bytes, settle_model
from lmloop.model.transformer import Transformer
from lmloop.progress import Progress, Watch, unwatched
from lmloop.sections import ModelSection
from lmloop.store.disk import free_space
from lmloop.tokens.arrangement import Arrangement, make_arrangement
from lmloop.tokens.chat import ChatTemplate
from lmloop.tokens.loader import PackedLoader
from lmloop.tokens.mixture import Loader, MixedLoader
from lmloop.tokens.shards import Shards
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.tokens.vector_files import load_vectors
from lmloop.training.adapting import adapt, fold, held_bytes
from lmloop.training.beginning import make_model, open_base
from lmloop.training.embeddings import initialise_embedding
from lmloop.training.figures import Figure, Validate, open_figure, open_measure
from lmloop.training.fitting import choose_micro_batch, require_memory
from lmloop.training.gauge import make_gauge
from lmloop.training.journal import JOURNAL, read_micro_batch
from lmloop.training.loop import train
from lmloop.training.memory import plan_memory
from lmloop.training.ranks import ALONE, Ranks
from lmloop.training.samples import make_sampler
from lmloop.training.tasks import REHEARSAL, open_tasks
from lmloop.training.teacher import open_teacher
from lmloop.weights.adapters import AdapterBank
from lmloop.weights.checkpoint import load_model, save_model


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
    teacher: Path | None = None,
    ranks: Ranks = ALONE,
    watch: Watch = unwatched,
    figure: Figure | None = None,
) -> dict[str, Any]:
    """Train a new model on everything; write a checkpoint into `folder`, give its counts.

    With a `base`, whose tokenizer the shards must have, that model goes on learning instead; a
    `teacher`, the checkpoint that the recipe names, must have that tokenizer as well. `run` holds
    snapshots and journal: a run that was killed goes on from there. `validate` gives bits per byte;
    where the objective makes no model of next tokens, its own loss on the validation split stands
    instead; `watch` is told each line of the journal; `figure` is what patience looks at where that
    is a figure of evaluation. Raises `TokenizerError` for a special token that is missing,
    `ArtifactError` and `TrainingError` for word vectors, a base or a teacher that cannot be read or
    do not fit, and for a model too large to train.
    """
    tokenizer = Tokenizer.open(shards)
    arrangements = {
        name: make_arrangement(part, tokenizer) for name, part in config.by_task.items()
    }
    if not config.is_scored_in_bytes:
        first = next(iter(arrangements.values()))
        validate = open_measure(
            "loss", config, shards, seed=seed, answers_only=False, arrangement=first
        )
    vocab_size = tokenizer.vocab_size
    if base is not None:
        model = open_base(base, shape, vocab_size=vocab_size)
    else:
        model = make_model(
            config,
            shape,
            shards=shards,
            vocab_size=vocab_size,
            source_tokens=_source_tokens(arrangements),
            seed=seed,
            ranks=ranks,
        )
    given = {}
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
        teacher=teacher,
        watch=watch,
        figure=figure,
        arrangements=arrangements,
        is_scored_in_bytes=config.is_scored_in_bytes,
        ranks=ranks,
    )


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
    teacher: Path | None = None,
    ranks: Ranks = ALONE,
    watch: Watch = unwatched,
    figure: Figure | None = None,
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
    # What this process holds already is a part of what is foretold.
    require_memory(model.config, config, free=free_memory() + resident_bytes())
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
        teacher=teacher,
        ranks=ranks,
        watch=watch,
        figure=figure,
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
    figure: Figure | None,
    teacher: Path | None,
    arrangements: Mapping[str, Arrangement | None] = MappingProxyType({"": None}),
    is_scored_in_bytes: bool = True,
    ranks: Ranks,
) -> dict[str, Any]:
    """Train `model` on the split `train` in an order of its own; write it with its tokenizer.

    Only the first rank writes; the others give no counts.
    """
    tokenizer = Tokenizer.open(shards)
    splits = _open_splits(config, shards)
    loader = _open_loader(
        config,
        shards,
        splits,
        arrangements,
        tokenizer=tokenizer,
        answers_only=answers_only,
        seed=order_seed,
    )
    settle_model(model, config.precision)
    teach = None
    if teacher is not None and isinstance(config, TaughtConfig):
        teach = open_teacher(teacher, config, model.config, tokenizer=tokenizer).teach
    bank = adapt(model, config, seed=order_seed)
    config = _settle_micro_batch(
        config,
        model.config,
        run=run,
        source_tokens=_source_tokens(arrangements),
        progress=progress,
        ranks=ranks,
    )
    figure = figure or open_figure(
        config,
        shards,
        seed=order_seed,
        answers_only=answers_only,
        arrangement=next(iter(arrangements.values())),
    )
    _require_room(model, run)
    sample = make_sampler(config, model.config, tokenizer, is_chat=answers_only)
    gauge = make_gauge(
        model,
        config,
        splits=splits,
        is_of_text=not answers_only and list(arrangements.values()) == [None],
        source_tokens=_source_tokens(arrangements),
        ranks=ranks,
    )
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
        teach=teach,
        figure=figure,
        gauge=gauge,
        sample=sample,
    )
    learnt = sum(each.numel() for each in model.parameters() if each.requires_grad)
    held = held_bytes(model)
    if not ranks.is_first:
        return {}
    _write_checkpoint(model, tokenizer, bank=bank, folder=folder, run=run)
    told = {key: value for key, value in asdict(result).items() if value is not None}
    dtype = str(model.embedding.weight.dtype).removeprefix("torch.")
    return told | {
        "parameters": count_parameters(model.config),
        "learnt_parameters": learnt,
        "weight_bytes": held,
        "ranks": ranks.size,
        "precision": "fp8" if config.precision == "fp8" else dtype,
    }


def _write_checkpoint(
    model: Transformer,
    tokenizer: Tokenizer,
    *,
    bank: AdapterBank | None,
    folder: Path,
    run: Path,
) -> None:
    """Write what was learnt, an adapter merged and beside it, and the journal of the run."""
    model.cpu()
    if bank is not None:
        fold(bank, folder)
    tokenizer.save(folder)
    save_model(model, folder, stop_id=tokenizer.stop_ids[0], document_id=tokenizer.document_id)
    shutil.copyfile(run / JOURNAL, folder / JOURNAL)


def _open_splits(config: TrainConfig, shards: Path) -> list[Shards]:
    """The text that is learnt, and what is rehearsed beside it, if there is any."""
    own = [Shards.open(shards, "train")]
    if not isinstance(config, PretrainConfig) or not (shards / REHEARSAL).is_dir():
        return own
    return [*own, Shards.open(shards / REHEARSAL, "train")]


def _open_loader(
    config: TrainConfig,
    shards: Path,
    splits: Sequence[Shards],
    arrangements: Mapping[str, Arrangement | None],
    *,
    tokenizer: Tokenizer,
    answers_only: bool,
    seed: int,
) -> Loader:
    """The rows of a run: of one objective, with text to rehearse if there is any, or of tasks."""

    def open_one(split: Shards, arrangement: Arrangement | None, seed: int) -> PackedLoader:
        return PackedLoader(
            split,
            row_tokens=config.row_tokens,
            document_id=tokenizer.document_id,
            answers_only=answers_only,
            seed=seed,
            arrangement=arrangement,
        )

    if isinstance(config, PretrainConfig) and config.tasks:
        return open_tasks(config, shards, arrangements, seed=seed, open_loader=open_one)
    (arrangement,) = arrangements.values()
    own, *others = (open_one(split, arrangement, seed) for split in splits)
    if not others or not isinstance(config, PretrainConfig):
        return own
    return MixedLoader(own=own, rehearsed=others[0], share=config.rehearsal_share)


def _source_tokens(arrangements: Mapping[str, Arrangement | None]) -> int:
    """Length of the longest rows that an encoder reads for any objective; 0 without one."""
    return max(0 if each is None else each.source_tokens for each in arrangements.values())


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
        foresee = partial(plan_memory, source_tokens=source_tokens, ranks=ranks.size)
        # What this process holds already is not free any more, and is a part of what is foretold.
        chosen = choose_micro_batch(shape, config, free=free + resident_bytes(), foresee=foresee)
        progress.say(
            f"micro_batch_tokens = {chosen} of {config.batch_tokens}: {free / 1e9:.1f} GB free"
        )
    return config.model_copy(update={"micro_batch_tokens": int(ranks.agree(chosen))})


def _require_room(model: Transformer, run: Path) -> None:
    """Raise `DiskFullError` where the disk of `run` cannot hold the snapshots."""
    free = free_space(run)
    needed = 3 * 12 * sum(each.numel() for each in model.parameters() if each.requires_grad)
    # A run that is resumed has some of them already.
    there = sum(path.stat().st_size for path in run.glob("snapshot-*/*") if path.is_file())
    if free + there < needed:
        raise DiskFullError(
            f"snapshots need {needed / 1e6:.1f} MB and the disk of {run} has {free / 1e6:.1f} MB "
            "free: make room or choose another --home"
        )
