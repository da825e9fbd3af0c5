"""An adapter that learns in the place of a whole model: hung in before training, folded in after.

Takes: a model and a recipe's section. Gives: a model of which the adapter's parameters alone learn,
are kept in snapshots and averaged; at the end the adapter's two files, and the sum as the weights.
"""

from __future__ import annotations

from pathlib import Path

import torch

from lmloop.learning import TrainConfig
from lmloop.model.nf4 import shrink_to_nf4
from lmloop.model.transformer import Transformer
from lmloop.weights.adapter_files import save_adapter
from lmloop.weights.adapters import ALL_LINEAR, AdapterBank, LoraConfig, make_adapter

FOLDER = "adapter"
"""Of the adapter's files within a checkpoint; and what its parameters' names begin with."""


def adapt(model: Transformer, config: TrainConfig, *, seed: int) -> AdapterBank | None:
    """Freeze `model` and hang a new adapter in, as a part of it; None where none is asked for.

    The adapter is fp32 whatever the model is; with `base_bits` the model's matrices are rounded to
    4 bits first, and it learns beside those (Dettmers et al. 2023, QLoRA). Raises `ArtifactError`
    for a target that the model has not.
    """
    if config.lora_rank is None:
        return None
    if config.base_bits is not None:
        shrink_to_nf4(model)
    asked = LoraConfig(
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        targets=config.lora_targets or ALL_LINEAR,
        dora=config.dora,
    )
    adapter = make_adapter(model, asked, generator=torch.Generator().manual_seed(seed))
    bank = AdapterBank(model, adapter)
    model.add_module(FOLDER, adapter)
    return bank


def held_bytes(model: Transformer) -> int:
    """Bytes of a model's weights as they lie in memory, an adapter that hangs in it included."""
    held = [*model.parameters(), *model.buffers()]
    return sum(each.numel() * each.element_size() for each in held)


def fold(bank: AdapterBank, folder: Path) -> None:
    """Write the adapter into a folder of its own in `folder`, and leave the sum in the model."""
    model, (adapter,) = bank.model, bank.adapters
    (folder / FOLDER).mkdir()
    save_adapter(adapter, folder / FOLDER, model=model)
    delattr(model, FOLDER)
    bank.merge()
