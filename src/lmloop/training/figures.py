"""What a run looks at on the validation split besides bits per byte.

Takes: a recipe's section, shards, an objective. Gives: functions of a model, on the same rows each
time: its loss, or how often the likeliest token is the right one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lmloop.errors import TrainingError
from lmloop.learning import TrainConfig
from lmloop.model.transformer import Transformer
from lmloop.tokens.arrangement import Arrangement
from lmloop.tokens.loader import PackedLoader
from lmloop.tokens.shards import Shards
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.training.batch import mean_accuracy, mean_loss

Validate = Callable[[Transformer], float]
VALIDATION_TOKENS = 32_768
"""Validation tokens that a figure is measured on."""
_MEASURES = {"loss": mean_loss, "accuracy": mean_accuracy}
_HIGHEST_IS_BEST = {"loss": False, "accuracy": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What early stopping looks at."""

    name: str
    """Of its key in the journal."""
    measure: Validate
    highest_is_best: bool

    def fall(self, value: float) -> float:
        """The value as one of which the lowest is best."""
        return -value if self.highest_is_best else value


def open_figure(
    config: TrainConfig,
    shards: Path,
    *,
    seed: int,
    answers_only: bool,
    arrangement: Arrangement | None,
) -> Figure | None:
    """What a recipe watches instead of its validation; None where it watches that.

    Raises `TrainingError` for a figure of evaluation, which training knows nothing of.
    """
    name = config.patience_metric
    if name == "validation":
        return None
    if name not in _MEASURES:
        raise TrainingError(
            f"patience_metric = {name!r} is a figure of evaluation: hand it over as `figure`, or "
            "take 'validation', 'loss' or 'accuracy'"
        )
    measure = open_measure(
        name,
        config,
        shards,
        seed=seed,
        answers_only=answers_only,
        arrangement=arrangement,
    )
    highest = _HIGHEST_IS_BEST[name]
    return Figure(name=f"validation_{name}", measure=measure, highest_is_best=highest)


def open_measure(
    name: str,
    config: TrainConfig,
    shards: Path,
    *,
    seed: int,
    answers_only: bool,
    arrangement: Arrangement | None,
) -> Validate:
    """`loss` or `accuracy` over what a run learns, on the same rows of the validation split."""
    split = Shards.open(shards, "validation")
    loader = PackedLoader(
        split,
        row_tokens=min(config.row_tokens, max(1, split.num_tokens)),
        document_id=Tokenizer.open(shards).document_id,
        answers_only=answers_only,
        seed=seed,
        arrangement=None if arrangement is None else arrangement.shorten(split.num_tokens),
    )
    rows = min(loader.rows_per_epoch, max(1, VALIDATION_TOKENS // config.row_tokens))
    return partial(_MEASURES[name], loader=loader, rows=rows, rows_at_once=config.batch_rows)
