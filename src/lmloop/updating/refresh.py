"""Training of an update: from the live model's weights, on the mixture, then part of the way back.

Takes: the live model's checkpoint before compression, and the shards of a mixture. Gives: a
checkpoint folder, as every training does, with the journal beside the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lmloop.errors import UpdateError
from lmloop.model.checkpoint import load_config, load_model, save_model
from lmloop.model.transformer import Transformer
from lmloop.progress import Progress
from lmloop.tokens.shards import Shards
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.training.recipes import Validate, finetune
from lmloop.updating.mixture import SPLIT
from lmloop.upkeep import UpdateConfig


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
) -> dict[str, Any]:
    """Train `base` further on what the mixture marks as learnt; write a checkpoint, give counts.

    Without a budget the mixture is read once: so many steps as its rows fill. What comes out is
    averaged with `base`. `run` holds snapshots and journal: an update that was killed goes on from
    there. Raises `UpdateError` where `base` is compressed, and what `finetune` raises.
    """
    if load_config(base).int8:
        raise UpdateError(
            f"{base} holds compressed weights, which cannot be trained: update from the checkpoint "
            "that it was compressed from"
        )
    counts = finetune(
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
    )
    if config.anchor:
        model = _pull_back(folder, base, anchor=config.anchor)
        counts["validation_bits_per_byte"] = validate(model)
    return counts


def _fill_budget(config: UpdateConfig, *, num_tokens: int) -> UpdateConfig:
    """With a budget as it is; else with the steps that read `num_tokens` once."""
    if config.has_budget:
        return config
    return config.model_copy(update={"steps": -(-num_tokens // config.batch_tokens)})


@torch.no_grad()
def _pull_back(folder: Path, base: Path, *, anchor: float) -> Transformer:
    """Replace the weights in `folder` by (1 − anchor) · theirs + anchor · those of `base`.

    Far out and part of the way back forgets less than a shorter way for the same gain. Source:
    Wortsman et al. 2022, Robust fine-tuning of zero-shot models, section 3.
    """
    model, before = load_model(folder), load_model(base, dtype=torch.float32)
    for mine, theirs in zip(model.parameters(), before.parameters(), strict=True):
        mine.copy_(torch.lerp(mine.float(), theirs, anchor))
    tokenizer = Tokenizer.open(folder)
    save_model(model, folder, stop_id=tokenizer.stop_ids[0], document_id=tokenizer.document_id)
    return model
