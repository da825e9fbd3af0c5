"""Published figures of training on many GPUs, and the shapes that they were measured with.

The figures are torchtitan's (github.com/pytorch/torchtitan), each with the file that it stands in.
Left out are those of context and pipeline parallelism, asynchronous tensor parallelism, checkpoints
of every second layer, and 8 bits with a scale a row, which their authors call unduly slow.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path

from lmloop.model.config import ModelConfig
from lmloop.training.cluster import Cluster, make_cluster
from lmloop.training.foretell import Layout, Step, foretell

FIGURES = Path(__file__).parent / "data" / "torchtitan.csv"

_LLAMA3_8B = ModelConfig(
    vocab_size=128_256,
    num_layers=32,
    hidden_size=4096,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=14_336,
    context_length=8192,
    qk_norm=False,
    tie_embeddings=False,
)
_LLAMA3_70B = replace(
    _LLAMA3_8B, num_layers=80, hidden_size=8192, num_heads=64, intermediate_size=28_672
)
SHAPES = {
    "llama3-1b": replace(
        _LLAMA3_8B,
        num_layers=16,
        hidden_size=2048,
        head_dim=64,
        intermediate_size=8192,
        tie_embeddings=True,
    ),
    "llama3-8b": _LLAMA3_8B,
    "llama3-70b": _LLAMA3_70B,
    "llama3-405b": replace(
        _LLAMA3_8B, num_layers=126, hidden_size=16_384, num_heads=128, intermediate_size=53_248
    ),
    "llama2-13b": replace(
        _LLAMA3_8B,
        vocab_size=32_000,
        num_layers=40,
        hidden_size=5120,
        num_heads=40,
        num_kv_heads=40,
        intermediate_size=13_824,
    ),
    "llama2-70b": replace(_LLAMA3_70B, vocab_size=32_000),
}
"""Source: the published `config.json` of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure, and what it is a figure of."""

    model: str
    gpu: str
    layout: Layout
    tokens_per_gpu: float
    """A second."""
    memory_gib: float | None
    is_fitted: bool
    source: str

    @property
    def config(self) -> ModelConfig:
        """The shape."""
        return SHAPES[self.model]

    @property
    def cluster(self) -> Cluster:
        """What it ran on."""
        return make_cluster(self.gpu, gpus=self.layout.gpus)

    def foretell(self) -> Step:
        """The same from the model of costs."""
        return foretell(self.config, self.cluster, self.layout)


def read_figures() -> list[Figure]:
    """All of them, in the order of the file."""
    with FIGURES.open(newline="") as file:
        return [_parse(row) for row in csv.DictReader(file)]


def _parse(row: dict[str, str]) -> Figure:
    layout = Layout(
        shards=int(row["shards"]),
        tensor_parallel=int(row["tensor_parallel"]),
        rows=int(row["rows"]),
        row_tokens=int(row["row_tokens"]),
        checkpointing=row["checkpointing"],  # type: ignore[arg-type]
        float8=row["float8"] == "yes",
        compiled=row["compiled"] == "yes",
        whole_logits=True,
    )
    return Figure(
        model=row["model"],
        gpu=row["gpu"],
        layout=layout,
        tokens_per_gpu=float(row["tokens_per_gpu"]),
        memory_gib=float(row["memory_gib"]) if row["memory_gib"] else None,
        is_fitted=row["use"] == "fitted",
        source=row["source"],
    )
