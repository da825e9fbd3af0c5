"""Pre-training and fine-tuning: gather the parts, call the loop, write the checkpoint.

Takes: shards, a shape or a base checkpoint, a recipe's section. Gives: a checkpoint folder that
transformers opens, with the run's journal beside the weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lmloop.errors import CorpusError, TrainingError
from lmloop.model.checkpoint import load_model, save_model
from lmloop.model.config import DecoderConfig
from lmloop.model.cost import count_parameters
from lmloop.model.hardware import fast_dtype
from lmloop.model.init import initialise
from lmloop.model.transformer import Transformer
from lmloop.progress import Progress
from lmloop.sections import FinetuneConfig, ModelSection, PretrainConfig, TrainConfig
from lmloop.tokens.chat import ChatTemplate
from lmloop.tokens.loader import PackedLoader
from lmloop.tokens.shards import Shards
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.training.loop import JOURNAL, TrainResult, train

Validate = Callable[[Transformer], float]


def decoder_config(section: ModelSection, *, vocab_size: int) -> DecoderConfig:
    """The decoder that a recipe describes, for a tokenizer of `vocab_size` entries."""
    return DecoderConfig(vocab_size=vocab_size, **section.model_dump())


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
) -> dict[str, Any]:
    """Train a new model on everything; write a checkpoint into `folder`, give its counts.

    `run` holds snapshots and journal: a run that was killed goes on from there.
    """
    tokenizer = Tokenizer.open(shards)
    model = Transformer(decoder_config(shape, vocab_size=tokenizer.vocab_size))
    initialise(model, seed=seed)
    loader = PackedLoader(
        Shards.open(shards, "train"),
        row_tokens=config.row_tokens,
        document_id=tokenizer.document_id,
        answers_only=False,
        seed=seed,
    )
    result = _train(model, loader, config, run, validate, clock, progress, name="pretrain")
    return _write(model, result, shards, folder, run)


def finetune(
    config: FinetuneConfig,
    *,
    base: Path,
    shards: Path,
    folder: Path,
    run: Path,
    seed: int,
    validate: Validate,
    clock: Callable[[], float],
    progress: Progress,
) -> dict[str, Any]:
    """Train `base` further on the assistant's answers only; see `pretrain`.

    Refuses to start if the stop token lies outside the loss (`TokenizerError`) or if there are no
    answers (`CorpusError`).
    """
    tokenizer = Tokenizer.open(shards)
    ChatTemplate.of(tokenizer).check_stop_is_learnt()
    split = Shards.open(shards, "train")
    if not any(marks.any() for marks in split.answers):
        raise CorpusError(
            "the corpus has no assistant's answers to learn from: fine-tuning needs conversations"
        )
    model = load_model(base, dtype=torch.float32)
    loader = PackedLoader(
        split,
        row_tokens=config.row_tokens,
        document_id=tokenizer.document_id,
        answers_only=True,
        seed=seed + 1,
    )
    result = _train(model, loader, config, run, validate, clock, progress, name="finetune")
    return _write(model, result, shards, folder, run)


def _train(
    model: Transformer,
    loader: PackedLoader,
    config: TrainConfig,
    run: Path,
    validate: Validate,
    clock: Callable[[], float],
    progress: Progress,
    *,
    name: str,
) -> TrainResult:
    asked = config.precision
    model.to(fast_dtype() if asked == "auto" else getattr(torch, asked))
    free = shutil.disk_usage(next(path for path in run.parents if path.exists())).free
    needed = 3 * 12 * count_parameters(model.config)
    if free < needed:
        raise TrainingError(
            f"snapshots need {needed / 1e6:.0f} MB and the disk has {free / 1e6:.0f} MB free: "
            "make room or choose another --home"
        )
    run.mkdir(parents=True, exist_ok=True)
    return train(
        model,
        loader,
        config,
        folder=run,
        validate=validate,
        clock=clock,
        progress=progress,
        name=name,
    )


def _write(
    model: Transformer, result: TrainResult, shards: Path, folder: Path, run: Path
) -> dict[str, Any]:
    tokenizer = Tokenizer.open(shards)
    tokenizer.save(folder)
    save_model(model, folder, stop_id=tokenizer.stop_ids[0], document_id=tokenizer.document_id)
    shutil.copyfile(run / JOURNAL, folder / JOURNAL)
    return asdict(result) | {
        "parameters": count_parameters(model.config),
        "precision": str(model.embedding.weight.dtype).removeprefix("torch."),
    }
