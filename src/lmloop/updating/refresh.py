"""Training of an update: from the live model's own weights, on the mixture.

Takes: the live model's checkpoint before compression, and the shards of a mixture. Gives: a
checkpoint folder, as every training does, with the journal beside the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmloop.errors import UpdateError
from lmloop.progress import Progress, Watch, unwatched
from lmloop.tokens.shards import Shards
from lmloop.training.figures import Figure, Validate
from lmloop.training.recipes import finetune
from lmloop.updating.mixture import SPLIT
from lmloop.upkeep import UpdateConfig
from lmloop.weights.checkpoint import load_config


def refresh(
    config: UpdateConfig,
    *,
    base: Path,
    shards: Path,
    folder: Path,
    run: Path,
    seed: int,
    validate: Validate,
    clock: Callable[[], float],
    progress: Progress,
    freeze_embedding: bool = False,
    watch: Watch = unwatched,
    figure: Figure | None = None,
) -> dict[str, Any]:
    """Train `base` further on what the mixture marks as learnt; write a checkpoint, give counts.

    Without a budget the mixture is read once: so many steps as its rows fill. `run` holds snapshots
    and journal: an update that was killed goes on from there. Raises `UpdateError` where `base` is
    compressed, and what `finetune` raises.
    """
    if load_config(base).int8:
        raise UpdateError(
            f"{base} holds compressed weights, which cannot be trained: update from the checkpoint "
            "that it was compressed from"
        )
    return finetune(
        _fill_budget(config, num_tokens=Shards.open(shards, SPLIT).num_tokens),
        base=base,
        shards=shards,
        folder=folder,
        run=run,
        seed=seed,
        validate=validate,
        clock=clock,
        progress=progress,
        name="update",
        freeze_embedding=freeze_embedding,
        watch=watch,
        figure=figure,
    )


def _fill_budget(config: UpdateConfig, *, num_tokens: int) -> UpdateConfig:
    """With a budget as it is; else with the steps that read `num_tokens` once."""
    if config.has_budget:
        return config
    return config.model_copy(update={"steps": -(-num_tokens // config.batch_tokens)})
