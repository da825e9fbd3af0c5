"""The verb `plan` as it is typed and printed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lmloop.cli import app
from lmloop.plan_verb import show_plan
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
        "peak 300",
        "snapshot on disk 50",
        "tokens at once 2,048",
    ):
        assert part in written
    assert "cost" not in written
    assert "expected" not in written
    assert "too large" not in written


def test_price_loss_and_advice_are_told_where_there_are_any(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stage = replace(STAGE, advice=("micro_batch_tokens = 512 needs 90 MB", "no ema needs 80 MB"))
    plan = replace(PLAN, stages=(stage,), expected=Expected(loss=1.5, low=1.4, high=1.61))
    written = show(plan, capsys, price=3.0)
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
