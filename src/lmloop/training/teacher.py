"""A teacher: a larger model whose chances a smaller one learns, besides the text's own tokens.

Takes: a checkpoint with the student's tokenizer. Gives: a `Lesson` for each batch. The teacher
learns nothing, is in no snapshot, and follows from its file and the batch alone: a run with one
resumes as exactly as any other.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from lmloop.errors import TrainingError
from lmloop.inference.load import load
from lmloop.learning import TaughtConfig
from lmloop.model.config import ModelConfig
from lmloop.model.transformer import Transformer
from lmloop.tokens.loader import Batch
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.training.batch import learnt_states
from lmloop.training.loss import Lesson


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """A model that is asked only, and how much its word counts."""

    model: Transformer
    share: float
    temperature: float

    @torch.no_grad()
    def teach(self, batch: Batch) -> Lesson:
        """What it makes of the places of a batch where the loss counts."""
        return Lesson(
            states=learnt_states(self.model, batch),
            project=self.model.project,
            share=self.share,
            temperature=self.temperature,
        )


def open_teacher(
    path: Path, config: TaughtConfig, student: ModelConfig, *, tokenizer: Tokenizer
) -> Teacher:
    """The teacher of a run in the dtype that this processor computes fastest.

    `tokenizer` is the student's. Raises `TrainingError` where the teacher has another, is another
    kind of model, or sees rows that are shorter than those of the recipe.
    """
    loaded = load(path)
    model, name = loaded.transformer, repr(path.name)
    theirs, ours = (hash_vocabulary(each) for each in (loaded.require_tokenizer(), tokenizer))
    if theirs != ours:
        raise TrainingError(
            f"teacher {name} has the tokenizer {theirs} and the student {ours}: let it learn from "
            "a teacher of this tokenizer, or begin with the teacher's (model.base)"
        )
    kinds = [(each.causal, each.encoder is not None) for each in (model.config, student)]
    if kinds[0] != kinds[1] or model.head is None:
        raise TrainingError(
            f"teacher {name} is another kind of model than the student: name one of its kind that "
            "predicts tokens"
        )
    if model.config.context_length < config.row_tokens:
        raise TrainingError(
            f"teacher {name} sees {model.config.context_length} tokens, and row_tokens is "
            f"{config.row_tokens}: lower row_tokens"
        )
    model.requires_grad_(False)
    return Teacher(
        model=model.eval(), share=config.teacher_share, temperature=config.teacher_temperature
    )


def hash_vocabulary(tokenizer: Tokenizer) -> str:
    """Twelve digits that are alike where every text becomes the same ids."""
    told = tokenizer.definition
    parts = {key: told.get(key) for key in ("model", "added_tokens", "normalizer", "pre_tokenizer")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
