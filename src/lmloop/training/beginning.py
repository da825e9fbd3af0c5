"""The model that pre-training begins with: a new one, or another's that goes on learning.

Takes: a recipe's sections, the shards that are to be learnt, a base if there is one. Gives: a
`Transformer` in fp32 that can learn them.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from lmloop.errors import TrainingError
from lmloop.inference.load import load
from lmloop.learning import PretrainConfig
from lmloop.model.hardware import free_memory, resident_bytes
from lmloop.model.transformer import Transformer
from lmloop.sections import ModelSection
from lmloop.tokens.shards import Shards
from lmloop.training.bigrams import begin
from lmloop.training.fitting import require_memory
from lmloop.training.memory import plan_memory
from lmloop.training.ranks import Ranks
from lmloop.training.shape import model_config


def make_model(
    config: PretrainConfig,
    shape: ModelSection,
    *,
    shards: Path,
    vocab_size: int,
    source_tokens: int,
    seed: int,
    ranks: Ranks,
) -> Transformer:
    """A new model, begun from `seed` and the text as the recipe says.

    `source_tokens` is the length of the longest rows that an encoder reads, 0 without one. Raises
    `TrainingError`, before anything is made, for a model too large to train.
    """
    sizes = model_config(shape, vocab_size=vocab_size)
    # A model that is cut into pieces has the memory of all ranks.
    free = (free_memory() + resident_bytes()) * (ranks.size if config.is_cut else 1)
    foresee = partial(plan_memory, source_tokens=source_tokens)
    require_memory(sizes, config, free=free, foresee=foresee)
    model = Transformer(sizes)
    begin(model, Shards.open(shards, "train"), start=config.start, seed=seed)
    return model


def open_base(base: Path, shape: ModelSection, *, vocab_size: int) -> Transformer:
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
    unsound = [name for name, each in model.named_parameters() if not each.isfinite().all()]
    if unsound:
        raise TrainingError(
            f"model.base = {base.name!r} has weights that are no numbers, first in {unsound[0]}: "
            "name another model, or fetch this one again"
        )
    return model
