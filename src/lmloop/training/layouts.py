"""Which layouts of a model on many GPUs are worth a try: all that fill them, the fastest first.

Takes: a model's shape, a `Cluster` and the rows of a batch. Gives: foretold steps, those that fit
into the memory before those that do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from lmloop.errors import RecipeError
from lmloop.model.config import ModelConfig
from lmloop.training.cluster import Cluster
from lmloop.training.foretell import Checkpointing, Layout, Step, foretell, memory_bytes

USABLE_SHARE = 0.9
"""Of a GPU's memory, as `memory.usable_bytes` has it: the rest is the driver's, the links' and what
lies between tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One layout."""

    step: Step
    fits: bool
    """Whether its tensors find room."""


def try_layouts(
    config: ModelConfig,
    cluster: Cluster,
    *,
    batch_rows: int,
    row_tokens: int,
    tensor_parallel: int | None = None,
    float8: bool = False,
) -> list[Trial]:
    """Layouts by degree of tensor parallelism, shards and checkpointing, each with its best rows.

    Those that fit come first, the fastest first; behind them those that do not even with one row at
    once, the smallest first. Raises `RecipeError` where the batch cannot be dealt to the GPUs, and
    as `foretell`.
    """
    trials = []
    for base in _list_layouts(config, cluster, row_tokens, tensor_parallel, float8=float8):
        rows, rest = divmod(batch_rows, base.replicas * base.shards)
        if rest or not rows:
            continue
        trials.append(_choose_rows(config, cluster, base, rows=rows))
    if not trials:
        ranks = cluster.gpus // (tensor_parallel or 1)
        raise RecipeError(
            f"a batch of {batch_rows} rows cannot be dealt to {cluster.gpus} GPUs: make "
            f"pretrain.batch_tokens a multiple of {ranks * row_tokens}"
        )
    return sorted(trials, key=_rank)


def _rank(trial: Trial) -> tuple[bool, float]:
    return not trial.fits, -trial.step.tokens_per_gpu if trial.fits else trial.step.memory


def _list_layouts(
    config: ModelConfig,
    cluster: Cluster,
    row_tokens: int,
    tensor_parallel: int | None,
    *,
    float8: bool,
) -> Iterator[Layout]:
    """Shards over all GPUs, over one node, or none."""
    node = min(cluster.gpus, cluster.gpus_per_node)
    powers: Sequence[int] = [2**power for power in range(node.bit_length())]
    asked = powers if tensor_parallel is None else [tensor_parallel]
    degrees = [each for each in asked if cluster.gpus % each == 0]
    if tensor_parallel is None:
        degrees = [each for each in degrees if config.num_kv_heads % each == 0]
    for degree in degrees:
        ranks = cluster.gpus // degree
        near = max(1, node // degree)
        for shards in sorted({ranks, near if ranks % near == 0 else 1, 1}, reverse=True):
            for checkpointing in get_args(Checkpointing):
                yield Layout(
                    shards=shards,
                    replicas=ranks // shards,
                    tensor_parallel=degree,
                    rows=1,
                    row_tokens=row_tokens,
                    checkpointing=checkpointing,
                    float8=float8,
                )


def _choose_rows(config: ModelConfig, cluster: Cluster, base: Layout, *, rows: int) -> Trial:
    """The fastest split of a rank's rows into micro-batches that fit; single rows where none do."""
    room = USABLE_SHARE * cluster.gpu.memory_bytes
    splits = [
        _split(base, rows=rows, at_once=each) for each in range(1, rows + 1) if rows % each == 0
    ]
    fitting = [each for each in splits if memory_bytes(config, each) <= room]
    steps = [foretell(config, cluster, each) for each in fitting or splits[:1]]
    return Trial(step=max(steps, key=lambda step: step.tokens_per_gpu), fits=bool(fitting))


def _split(base: Layout, *, rows: int, at_once: int) -> Layout:
    return replace(base, rows=at_once, accumulate=rows // at_once)
