"""The verb `plan` as it is typed and printed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lmloop.cli import app
from lmloop.errors import RecipeError
from lmloop.model.config import ModelConfig
from lmloop.plan_verb import show_cluster, show_plan
from lmloop.planning import ClusterPlan
from lmloop.training.cluster import make_cluster
from lmloop.training.foretell import Layout, foretell
from lmloop.training.layouts import Trial
from lmloop.training.memory import Memory
from lmloop.training.plan import Plan, StagePlan, Text
from lmloop.training.scaling import Expected

from .conftest import write_recipe

STAGE = StagePlan(
    stage="pretrain",
    seconds=240.0,
    steps=1234,
    tokens=2_500_000,
    epochs=1.5,
    flops=8e13,
    tokens_per_second=9876.0,
    memory=Memory(
        weights=10_000_000,
        masters=20_000_000,
        optimizer=30_000_000,
        averages=0,
        gathered=0,
        activations=200_000_000,
        loss=40_000_000,
        gradients=10_000_000,
        last_layer=5_000_000,
        update=7_000_000,
        process=450_000_000,
    ),
    micro_batch_tokens=2048,
    advice=(),
)
PLAN = Plan(
    parameters=4_200_000,
    checkpoint_bytes=8_400_000,
    cache_bytes_per_token=4096,
    text=Text(bytes=5_000_000, tokens=1_470_000, answer_tokens=700_000, is_tokenized=False),
    free_bytes=2_000_000_000,
    stages=(STAGE,),
)

SHAPE = ModelConfig(
    vocab_size=1000,
    num_layers=2,
    hidden_size=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=128,
    context_length=256,
)


def show(plan: Plan, capsys: pytest.CaptureFixture[str], *, price: float | None = None) -> str:
    show_plan(plan, price=price)
    return " ".join(capsys.readouterr().out.replace("│", " ").replace("┃", " ").split())


def test_a_plan_is_drawn_as_tables(capsys: pytest.CaptureFixture[str]) -> None:
    written = show(PLAN, capsys)
    for part in (
        "4.20 M parameters, checkpoint 8.4 MB, 4.1 kB of cache a token",
        "text 5.0 MB, about 1.47 M tokens",
        "pretrain 240 s 1,234 2.50 M 1.50 80.0 9,876 316",
        "optimizer 30",
        "process 450",
        "peak of tensors 300",
        "peak of process 750",
        "snapshot on disk 50",
        "tokens at once 2,048",
    ):
        assert part in written
    assert "cost" not in written
    assert "expected" not in written
    assert "too large" not in written
    assert "auto" not in written


def test_price_loss_and_advice_are_told_where_there_are_any(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stage = replace(STAGE, advice=("micro_batch_tokens = 512 needs 90 MB", "no ema needs 80 MB"))
    plan = replace(PLAN, stages=(stage,), expected=Expected(loss=1.5, low=1.4, high=1.61))
    written = show(replace(plan, chosen="2 layers of 128"), capsys, price=3.0)
    assert "model = 'auto': 2 layers of 128" in written
    assert "cost 0.20 at 3 an hour" in written
    assert "expected behind pretrain: 1.500 bits per byte" in written
    assert "with 90 % between 1.400 and 1.610" in written
    assert (
        "pretrain is too large for 2.0 GB of free memory: micro_batch_tokens = 512 needs 90 MB, "
        "then no ema needs 80 MB" in written
    )


def test_the_verb_prints_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmloop.training.plan.CALIBRATION_SECONDS", 0.01)
    arguments = ["plan", str(write_recipe(tmp_path)), "--home", str(tmp_path / "home")]
    done = CliRunner().invoke(app, [*arguments, "--price", "2", "--pretrain.steps=30"])
    assert done.exit_code == 0
    assert " at 2 an hour" in done.stdout
    assert not (tmp_path / "home").exists()


def test_many_gpus_are_a_table_of_layouts(tmp_path: Path) -> None:
    batch = ["--pretrain.batch_tokens=4096", "--pretrain.steps=30"]
    arguments = ["plan", str(write_recipe(tmp_path)), "--gpus", "8", "--tensor-parallel", "1"]
    arguments += ["--home", str(tmp_path / "home"), "--tokens", "2e9", "--price", "2"]
    done = CliRunner().invoke(app, [*arguments, *batch])
    assert done.exit_code == 0, done.output
    assert "2 billion tokens on 8 GPUs, by a cost model: nothing was run" in done.stdout
    for part in ("1×8×1", "8×1×1", "selective", "waits", "cost"):
        assert part in done.stdout


def test_layouts_that_are_too_large_are_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    step = foretell(SHAPE, make_cluster("h100", gpus=8), Layout(shards=8, rows=1, row_tokens=64))
    trials = (Trial(step=step, fits=True), Trial(step=step, fits=False))
    show_cluster(ClusterPlan(parameters=5_000_000, tokens=1e9, trials=trials), price=1.0)
    written = capsys.readouterr().out
    assert "too large for a GPU's memory: 1 of 2 layouts" in written
    assert sum("too large" in line for line in written.splitlines()) == 2


def test_fitting_and_many_gpus_exclude_each_other(tmp_path: Path) -> None:
    arguments = ["plan", str(write_recipe(tmp_path)), "--gpus", "8", "--fit"]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, RecipeError)
    assert "leave one out" in str(done.exception)
