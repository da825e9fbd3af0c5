"""Heads and inner features cut between ranks that compute one batch together, through DTensor.

Takes: a model, a mesh of those ranks. Gives: attention and feed-forward layers whose first product
makes a rank's own heads or features, and whose second adds up over ranks what those come to.
Source: Shoeybi et al. 2019, Megatron-LM, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from lmloop.errors import TrainingError
from lmloop.model.attention import Attention, CrossAttention
from lmloop.model.config import ModelConfig
from lmloop.model.feed_forward import FeedForward
from lmloop.model.names import fused_rows
from lmloop.model.transformer import Transformer
from lmloop.training.pieces import Split

FIRST = ("mixer.part.qkv", "cross.part.query", "cross.part.kv", "feed_forward.part.up")
"""Layers whose rows are heads or inner features."""
SECOND = ("mixer.part.output", "cross.part.output", "feed_forward.part.down")
"""Layers whose columns are."""
PARTIAL = ("mixer.part.q_norm", "mixer.part.k_norm", "relative.weight")
"""What all have, and of whose gradient each finds the share of its own heads."""


def split_of(name: str) -> Split | None:
    """How a parameter is cut; None: each rank has all of it."""
    layer, _, kind = name.rpartition(".")
    if layer.endswith(FIRST):
        return "rows"
    return "columns" if layer.endswith(SECOND) and kind == "weight" else None


def check_split(config: ModelConfig, ways: int) -> None:
    """Raise `TrainingError` where a model cannot be cut in so many ways."""
    stack: ModelConfig | None = config
    while stack is not None:
        numbers = {
            "num_heads": stack.num_heads,
            "num_kv_heads": stack.num_kv_heads,
            "intermediate_size": stack.intermediate_size,
        }
        for name, number in numbers.items():
            if number % ways:
                raise TrainingError(
                    f"tensor_parallel = {ways} does not divide model.{name} = {number}: "
                    "change one of them"
                )
        mixers = {stack.mixer(layer) for layer in range(stack.num_layers)}
        recurrent = mixers & {"lstm", "gru", "convolution"}
        if stack.experts is not None or recurrent or not stack.projections or stack.learn_beta:
            raise TrainingError(
                f"tensor_parallel = {ways} cuts attention and feed-forward layers, and the model "
                "has experts, other mixers or a learnt beta: leave it out"
            )
        stack = stack.encoder


@torch.no_grad()
def split_tensors(model: Transformer, mesh: DeviceMesh) -> None:
    """Cut the layers of a whole model in place: afterwards each rank has its own heads."""
    ways, place = mesh.size(), mesh.get_local_rank()
    for name, parameter in model.named_parameters():
        if split_of(name) == "rows":
            rows = fused_rows(model.config, name, len(parameter))
            parameter.copy_(_deal(parameter, rows, ways))
    for stack in (model.encoder, model):
        if stack is None:
            continue
        for block in stack.blocks:
            for module in block.modules():
                if isinstance(module, Attention | CrossAttention | FeedForward):
                    parallelize_module(module, mesh, _styles(module))
                if isinstance(module, Attention):
                    module.num_heads //= ways
                    module.num_kv_heads //= ways
        if stack.relative is not None:
            heads = stack.config.num_heads // ways
            stack.relative.register_forward_hook(_own_heads(place * heads, heads))


def _deal(tensor: Tensor, matrices: Sequence[int], ways: int) -> Tensor:
    """Rows so ordered that equal parts of the whole have an equal part of each fused matrix."""
    parts = [matrix.chunk(ways) for matrix in torch.split(tensor, list(matrices))]
    return torch.cat([part[way] for way in range(ways) for part in parts])


def _styles(module: nn.Module) -> dict[str, ParallelStyle]:
    """How each of a module's layers is cut."""
    first, second = ("qkv", "query", "kv", "up"), ("output", "down")
    styles: dict[str, ParallelStyle] = {}
    for name, _ in module.named_children():
        if name in first:
            styles[name] = ColwiseParallel()
        elif name in second:
            styles[name] = RowwiseParallel()
    return styles


def _own_heads(first: int, count: int) -> Callable[..., Tensor]:
    """A hook that keeps this rank's of what the scores of all heads gain, [..., H, T, S]."""

    def keep(module: nn.Module, given: object, output: Tensor) -> Tensor:
        return output.narrow(-3, first, count)

    return keep
