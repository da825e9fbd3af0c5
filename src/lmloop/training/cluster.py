"""GPUs and what lies between them: how fast they multiply, and how long they take to exchange.

Takes: the name of a GPU and a count. Gives: a `Cluster`, whose groups of ranks tell the seconds of
a collective. All figures are published or measured by others, but for two constants that
`benchmarks/bench_cluster.py` fits: `TRAINING_SHARE` and `POWER_LIMITED`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lmloop.errors import RecipeError

TRAINING_SHARE = 0.7494
"""Of the best rate of a large matrix product, what the products of a training step reach. Fitted
to one figure: torchtitan, Llama 3 8B on 64 A100."""
POWER_LIMITED = 0.7626
"""Of a 700 W H100's rates, what one with a limit of 500 W reaches. Fitted to one figure:
torchtitan, Llama 3.1 8B on 8 H100 with torch.compile."""
COPY_SHARE = 0.9
"""Of the memory's bandwidth, what a copy reaches: 4.3 of 4.8 TB/s on an H200, measured for the
training benchmark."""
EXCHANGE_SHARE = 0.8
"""Of a link's bandwidth, what collectives reach: 235 of 300 GB/s on 8 A100, 368 of 450 on 8 H200
(rings, 16 GiB). Source: S. Bekman, Machine Learning Engineering, network/README.md."""
START_SECONDS, LINK_SECONDS, NETWORK_SECONDS = 8.4e-6, 3.4e-6, 14e-6
"""Of a ring: its start, a step within a node, a step between nodes. Source: NCCL,
src/graph/tuning.cc, `baseLatencies` and `hwLatencies` of Ring with Simple."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU and its links; rates in FLOP/s, bandwidths in bytes a second in one direction."""

    peak: float
    """Dense bf16 products, by the data sheet: what MFU is a share of."""
    products: float
    """Large bf16 products, as measured: MAMF in Bekman, compute/accelerator/README.md."""
    products_float8: float | None
    """The same in 8 bits; None where there are none."""
    attention: float
    """FlashAttention-2 with 2.5 forwards in a backward, as its authors count."""
    memory_bytes: float
    memory_bandwidth: float
    link: float
    """To the other GPUs of its node."""
    network: float
    """To other nodes, its own share of their adapters."""


_H100_ATTENTION = 0.35 * 989e12
"""Source: Shah et al. 2024, FlashAttention-3, abstract: FlashAttention-2 uses 35 % of an H100."""

GPUS: Mapping[str, Gpu] = MappingProxyType(
    {
        "a100": Gpu(
            peak=312e12,
            products=271.2e12,
            products_float8=None,
            # Middle of 50 to 73 %. Source: Dao 2023, FlashAttention-2, abstract.
            attention=0.615 * 312e12,
            memory_bytes=80e9,
            memory_bandwidth=2.0e12,
            link=300e9,
            network=25e9,  # 200 Gb/s
        ),
        "h100": Gpu(
            peak=989e12,
            products=794.5e12,
            products_float8=1402.6e12,
            attention=_H100_ATTENTION,
            memory_bytes=80e9,
            memory_bandwidth=3.35e12,
            link=450e9,
            network=50e9,  # 400 Gb/s
        ),
        "h100-500w": Gpu(  # as in torchtitan's benchmarks/llama3_h100_202412_torchtitan.md
            peak=989e12,
            products=POWER_LIMITED * 794.5e12,
            products_float8=POWER_LIMITED * 1402.6e12,
            attention=POWER_LIMITED * _H100_ATTENTION,
            memory_bytes=96e9,
            memory_bandwidth=2.4e12,
            link=450e9,
            network=50e9,
        ),
        "h200": Gpu(
            peak=989e12,
            products=794.5e12,
            products_float8=1453.4e12,
            attention=_H100_ATTENTION,
            memory_bytes=141e9,
            memory_bandwidth=4.8e12,
            link=450e9,
            network=50e9,
        ),
    }
)
"""By name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Ranks that exchange; in each node as many of them."""

    ranks: int
    ranks_per_node: int
    bandwidth: float
    """Bytes a second that pass each rank of a ring."""
    link_seconds: float
    network_seconds: float

    def gather_seconds(self, size: float) -> float:
        """An all-gather or a reduce-scatter of `size` bytes in all: one round of a ring.

        Source: NCCL's performance model, src/graph/tuning.cc, and doc/PERFORMANCE.md of nccl-tests.
        """
        if self.ranks == 1:
            return 0.0
        steps, between = self.ranks - 1, -(-self.ranks // self.ranks_per_node) - 1
        latency = START_SECONDS + (steps - between) * self.link_seconds
        latency += between * self.network_seconds
        return latency + size * steps / self.ranks / self.bandwidth

    def reduce_seconds(self, size: float) -> float:
        """An all-reduce of `size` bytes: a reduce-scatter and an all-gather."""
        return 2 * self.gather_seconds(size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Nodes of like GPUs; all nodes reach each other at full bandwidth."""

    gpu: Gpu
    gpus: int
    gpus_per_node: int = 8
    link_seconds: float = LINK_SECONDS
    network_seconds: float = NETWORK_SECONDS

    def group(self, ranks: int, *, stride: int = 1) -> Group:
        """`ranks` ranks, each `stride` GPUs from the next.

        A ring through a node enters by one of its adapters and leaves by another, and there are as
        many rings as adapters: ranks of one node add up their bandwidths to the network.
        """
        together = max(1, min(ranks, self.gpus_per_node // stride))
        inside, between = self.gpu.link, together * self.gpu.network
        bandwidth = inside if ranks <= together else min(inside, between)
        return Group(
            ranks=ranks,
            ranks_per_node=together,
            bandwidth=EXCHANGE_SHARE * bandwidth,
            link_seconds=self.link_seconds,
            network_seconds=self.network_seconds,
        )


def make_cluster(name: str, *, gpus: int) -> Cluster:
    """A cluster of GPUs of that name, eight a node; `RecipeError` where there is none such."""
    if name not in GPUS:
        raise RecipeError(f"no GPU is called {name!r}: take one of {', '.join(GPUS)}")
    if gpus < 1 or (gpus > 8 and gpus % 8):
        raise RecipeError(f"{gpus} GPUs: give 1 to 8, or whole nodes of 8")
    return Cluster(gpu=GPUS[name], gpus=gpus)
