"""What one of many ranks has of a run: its rows of a batch, its numbers of each tensor.

Takes: a recipe's section, how many ranks there are, a model of which the sizes are known. Gives:
the section of one rank, and the numbers and bytes that it holds. Told of the first rank, which has
the most: rows are dealt out rounded up, and it alone keeps the whole weights to measure and save.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from lmloop.learning import TrainConfig
from lmloop.model.config import ModelConfig
from lmloop.model.transformer import Transformer

FULL = 4
"""Bytes of a number in fp32."""


def own_section(section: TrainConfig, ranks: int) -> TrainConfig:
    """The section as one rank runs it: a part of the rows, at most so many of them at once."""
    parts = max(1, ranks // section.tensor_parallel)
    rows = max(1, section.batch_rows // parts)
    at_once = min(section.micro_batch_rows, rows)
    return section.model_copy(
        update={
            "batch_tokens": rows * section.row_tokens,
            "micro_batch_tokens": at_once * section.row_tokens,
        }
    )


def own_config(config: ModelConfig, section: TrainConfig, ranks: int) -> ModelConfig:
    """The shape of what one rank computes: its own heads and inner features."""
    ways = section.tensor_parallel if ranks > 1 else 1
    if ways == 1:
        return config
    return replace(
        config,
        num_heads=config.num_heads // ways,
        num_kv_heads=config.num_kv_heads // ways,
        intermediate_size=config.intermediate_size // ways,
        encoder=None if config.encoder is None else own_config(config.encoder, section, ranks),
    )


def own_numbers(
    parameters: Mapping[str, nn.Parameter], section: TrainConfig, ranks: int
) -> dict[str, int]:
    """How many numbers of each parameter a rank has; all where the model is whole on each."""
    if ranks == 1 or not section.is_cut:
        return {name: each.numel() for name, each in parameters.items()}
    from lmloop.training.tensor_parallel import split_of

    ways, numbers = section.tensor_parallel, {}
    for name, each in parameters.items():
        is_split = ways > 1 and split_of(name) is not None
        rows = len(each) // (ways if is_split and split_of(name) == "rows" else 1)
        columns = each[0].numel() // (ways if is_split and split_of(name) == "columns" else 1)
        numbers[name] = -(-rows // (ranks // ways)) * columns
    return numbers


def together_bytes(model: Transformer, section: TrainConfig, ranks: int) -> int:
    """Weights beside a rank's own: those of a block and the next, of what lies outside, and all."""
    if ranks == 1 or not section.is_cut:
        return 0
    whole = sum(each.nbytes for each in model.parameters())
    stacks = [stack for stack in (model, model.encoder) if stack is not None]
    blocks = [sum(p.nbytes for p in block.parameters()) for s in stacks for block in s.blocks]
    # Tensors that are cut by heads or inner features are not brought together whole.
    brought = (whole - sum(blocks)) + 2 * max(blocks, default=0) // section.tensor_parallel
    return whole + brought


def scattered_bytes(model: Transformer, section: TrainConfig, ranks: int) -> int:
    """Gradients of the largest block before they are dealt out: as they are, and added up in fp32.

    What lies outside the blocks counts as one: its gradients leave last.
    """
    if ranks == 1 or not section.is_cut:
        return 0
    stacks = [stack for stack in (model, model.encoder) if stack is not None]
    blocks = [[p for p in block.parameters()] for s in stacks for block in s.blocks]
    inside = {id(each) for block in blocks for each in block}
    blocks.append([each for each in model.parameters() if id(each) not in inside])
    return max(sum(p.nbytes + FULL * p.numel() for p in block) for block in blocks)
