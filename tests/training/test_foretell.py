"""The cost model of many GPUs: by hand, by what must grow or fall, against published figures."""

from __future__ import annotations

import statistics
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lmloop.errors import RecipeError
from lmloop.model.config import Experts, ModelConfig
from lmloop.model.cost import count_parameters, training_flops_per_token
from lmloop.training.cluster import GPUS, TRAINING_SHARE, Cluster, make_cluster
from lmloop.training.foretell import Layout, Step, foretell, memory_bytes

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from published import SHAPES, read_figures

SMALL = ModelConfig(
    vocab_size=1000,
    num_layers=2,
    hidden_size=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=128,
    context_length=256,
)
ONE = Layout(shards=1, rows=2, row_tokens=256)
LLAMA, ROWS = SHAPES["llama3-8b"], Layout(shards=8, rows=1, row_tokens=8192)


def on(gpus: int, **changes: object) -> Step:
    layout = replace(ROWS, **changes)  # type: ignore[arg-type]
    return foretell(LLAMA, make_cluster("h100", gpus=gpus), layout)


def test_one_gpu_exchanges_nothing() -> None:
    step = foretell(SMALL, make_cluster("h100", gpus=1), ONE)
    assert step.seconds.exchange == 0.0
    assert step.tokens_per_gpu == pytest.approx(512 / step.seconds.total)


def test_parts_of_a_small_model_are_as_by_hand() -> None:
    step = foretell(SMALL, make_cluster("h100", gpus=1), replace(ONE, checkpointing="none"))
    # A layer: 64·64 + 2·64·32 + 64·64 + 3·64·128 products; the head 64·1000; 3 · 2 · 512 tokens.
    weights = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128) + 64 * 1000
    products = 6 * 512 * weights / (TRAINING_SHARE * GPUS["h100"].products)
    assert step.seconds.products == pytest.approx(products)
    # Half of 4·64·256 a token and layer, once and two and a half times.
    pairs = 512 * 2 * 3.5 * (4 * 64 * 256 / 2)
    assert step.seconds.attention == pytest.approx(pairs / GPUS["h100"].attention)
    assert step.seconds.optimizer == pytest.approx(32 * count_parameters(SMALL) / (0.9 * 3.35e12))


def test_mfu_is_the_share_of_the_peak_without_what_is_made_again() -> None:
    step = on(8)
    flops = training_flops_per_token(LLAMA, row_tokens=8192)
    assert step.mfu == pytest.approx(step.tokens_per_gpu * flops / 989e12)
    assert on(8, checkpointing="full").seconds.products > step.seconds.products
    assert on(8, checkpointing="full").mfu < step.mfu < on(8, checkpointing="none").mfu


def test_days_and_cost_follow_from_the_rate() -> None:
    step = on(8)
    days = 1e9 / (8 * step.tokens_per_gpu) / 86_400
    assert step.days(1e9) == pytest.approx(days)
    assert step.cost(1e9, price=2.0) == pytest.approx(days * 24 * 8 * 2.0)


@pytest.mark.parametrize("part", ["link", "network", "memory_bandwidth", "products", "attention"])
@pytest.mark.parametrize("degree", [1, 8])
def test_better_hardware_is_never_slower(part: str, degree: int) -> None:
    layout = replace(ROWS, shards=64 // degree, tensor_parallel=degree)
    better = replace(GPUS["h100"], **{part: 1.5 * getattr(GPUS["h100"], part)})
    slow, fast = (
        foretell(LLAMA, Cluster(gpu=gpu, gpus=64), layout) for gpu in (GPUS["h100"], better)
    )
    assert fast.seconds.total <= slow.seconds.total


def test_each_gpu_does_less_the_more_nodes_there_are() -> None:
    small = SHAPES["llama3-1b"]
    rates = [
        foretell(
            small, make_cluster("h100", gpus=gpus), replace(ROWS, shards=gpus, row_tokens=2048)
        ).tokens_per_gpu
        for gpus in (64, 128, 256, 512, 1024)
    ]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.9 * rates[0]


def test_a_hybrid_of_nodes_gathers_faster_and_reduces_in_return() -> None:
    whole, hybrid = on(512, shards=512), on(512, shards=8, replicas=64)
    assert hybrid.seconds.gather < whole.seconds.gather
    assert hybrid.seconds.reduce > whole.seconds.reduce == 0.0
    assert hybrid.memory > whole.memory


def test_exchange_hides_behind_enough_work() -> None:
    few = on(64, shards=64, row_tokens=64)
    much = on(64, shards=64, row_tokens=8192)
    assert few.seconds.gather > 5 * much.seconds.gather
    assert few.seconds.scatter > 5 * much.seconds.scatter


def test_tensor_parallelism_shares_memory_and_pays_in_exchange() -> None:
    alone, shared = on(64, shards=64), on(64, shards=8, tensor_parallel=8, rows=8)
    assert alone.seconds.tensor_parallel == 0.0
    assert shared.seconds.tensor_parallel > 0.0
    rows = replace(ROWS, shards=64, rows=8)
    assert shared.memory < memory_bytes(LLAMA, rows)
    assert shared.tokens_per_gpu < alone.tokens_per_gpu


def test_checkpointing_spares_memory_in_its_order() -> None:
    sizes = [on(8, checkpointing=each).memory for each in ("full", "selective", "none")]
    assert sizes == sorted(sizes)
    # States of sixteen bytes a parameter lie on eight GPUs.
    assert on(16, shards=16).memory < on(8).memory - 15 * count_parameters(LLAMA) / 16


def test_bytes_of_a_full_checkpoint_are_as_by_hand() -> None:
    small = memory_bytes(SMALL, replace(ONE, checkpointing="full"))
    twice = memory_bytes(replace(SMALL, num_layers=4), replace(ONE, checkpointing="full"))
    grown = count_parameters(replace(SMALL, num_layers=4)) - count_parameters(SMALL)
    # What two more layers read in bf16, and their states and copies. The layer that is made again
    # has its share of input and final norm, which is smaller among four.
    assert twice - small == pytest.approx(2 * 2 * 512 * 64 + 18 * grown, rel=0.02)


def test_figures_that_were_not_fitted_are_foretold() -> None:
    held_out = [each for each in read_figures() if not each.is_fitted]
    errors = sorted(
        abs(each.foretell().tokens_per_gpu / each.tokens_per_gpu - 1) for each in held_out
    )
    assert len(errors) == 20
    assert statistics.median(errors) < 0.06
    assert statistics.mean(errors) < 0.08
    assert errors[-2] < 0.17 < errors[-1] < 0.33


def test_the_constants_are_those_that_their_figures_ask_for() -> None:
    fitted = [each for each in read_figures() if each.is_fitted]
    assert len(fitted) == 2
    for figure in fitted:
        assert figure.foretell().tokens_per_gpu == pytest.approx(figure.tokens_per_gpu, rel=1e-3)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (replace(SMALL, experts=Experts(count=4, active=1, size=8)), {}, "plain decoders only"),
        (replace(SMALL, mixers=("gru", "attention")), {}, "plain decoders only"),
        (SMALL, {"shards": 2}, "1 replicas of 2 shards of 1.*are 2 GPUs, and there are 1"),
    ],
)
def test_what_it_does_not_know_is_refused(
    config: ModelConfig, changes: dict[str, int], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        foretell(config, make_cluster("a100", gpus=1), replace(ONE, **changes))  # type: ignore[arg-type]


def test_heads_and_precisions_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RecipeError, match="2 key heads cannot be dealt to 4"):
        foretell(SMALL, make_cluster("h100", gpus=4), replace(ONE, tensor_parallel=4))
    with pytest.raises(RecipeError, match="no products in 8 bits"):
        foretell(SMALL, make_cluster("a100", gpus=1), replace(ONE, float8=True))
