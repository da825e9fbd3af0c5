"""GPUs and their links: rings in seconds, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lmloop.errors import RecipeError
from lmloop.training.cluster import EXCHANGE_SHARE, GPUS, Cluster, make_cluster

H100 = GPUS["h100"]


def test_one_rank_exchanges_nothing() -> None:
    group = make_cluster("h100", gpus=8).group(1)
    assert group.gather_seconds(1e9) == 0.0
    assert group.reduce_seconds(1e9) == 0.0


def test_a_ring_within_a_node_is_as_by_hand() -> None:
    # 8 GB in seven eighths at 0.8 · 450 GB/s; a start of 8.4 µs and seven steps of 3.4 µs.
    seconds = make_cluster("h100", gpus=8).group(8).gather_seconds(8e9)
    assert seconds == pytest.approx(7e9 / 360e9 + 8.4e-6 + 7 * 3.4e-6)


def test_ranks_of_a_node_add_up_their_adapters() -> None:
    cluster = make_cluster("h100", gpus=16)
    assert cluster.group(16).bandwidth == pytest.approx(EXCHANGE_SHARE * 8 * 50e9)
    assert cluster.group(2, stride=8).bandwidth == pytest.approx(EXCHANGE_SHARE * 50e9)
    assert cluster.group(4, stride=4).ranks_per_node == 2


def test_steps_between_nodes_take_their_own_time() -> None:
    # 16 ranks on two nodes: 14 steps within, one between.
    seconds = make_cluster("h100", gpus=16).group(16).gather_seconds(0)
    assert seconds == pytest.approx(8.4e-6 + 14 * 3.4e-6 + 14e-6)


def test_an_all_reduce_is_two_rounds() -> None:
    group = make_cluster("a100", gpus=8).group(8)
    assert group.reduce_seconds(1e9) == 2 * group.gather_seconds(1e9)


@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_more_bandwidth_is_never_slower(ranks: int) -> None:
    faster = replace(H100, link=2 * H100.link, network=2 * H100.network)
    slow, fast = (Cluster(gpu=each, gpus=64).group(ranks) for each in (H100, faster))
    assert fast.gather_seconds(1e9) < slow.gather_seconds(1e9)


@pytest.mark.parametrize("gpus", [0, 12])
def test_broken_nodes_are_refused(gpus: int) -> None:
    with pytest.raises(RecipeError, match=rf"{gpus} GPUs: give 1 to 8, or whole nodes of 8"):
        make_cluster("h100", gpus=gpus)


def test_an_unknown_gpu_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(RecipeError, match="'b42'.*a100, h100, h100-500w, h200"):
        make_cluster("b42", gpus=8)
