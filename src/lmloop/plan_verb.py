"""The verb `plan` on the command line: its options, and the table that it prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from lmloop.errors import RecipeError
from lmloop.options import Home, Recipe, parse_overrides

if TYPE_CHECKING:
    from rich.table import Table

    from lmloop.planning import ClusterPlan
    from lmloop.training.layouts import Trial
    from lmloop.training.plan import Plan

SHOWN = 8
"""Layouts in the table of many GPUs."""


def plan(
    context: typer.Context,
    recipe: Recipe,
    home: Home = None,
    price: Annotated[
        float | None,
        typer.Option(min=0, help="What an hour of this machine costs, or of one GPU of --gpus."),
    ] = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="Foresee the loss as well, from small runs.")
    ] = False,
    fit_seconds: Annotated[
        float, typer.Option(min=1, help="How long --fit trains, in all.")
    ] = 90.0,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="Foretell pre-training on so many GPUs instead.")
    ] = None,
    gpu: Annotated[
        str, typer.Option(help="Kind of --gpus: a100, h100, h100-500w or h200.")
    ] = "h100",
    tensor_parallel: Annotated[
        int | None, typer.Option(min=1, help="GPUs that share each product; tried if not given.")
    ] = None,
    ranks: Annotated[
        int,
        typer.Option(
            min=1, help="Foresee the first of so many processes (torchrun) of this machine."
        ),
    ] = 1,
    tokens: Annotated[
        float | None,
        typer.Option(min=1, help="What a run on --gpus reads; absent: what pretrain.steps says."),
    ] = None,
) -> None:
    """Foresee parameters, memory, time, cost and loss of a recipe."""
    from lmloop.console import make_progress
    from lmloop.planning import plan as foresee
    from lmloop.planning import plan_cluster

    overrides = parse_overrides(context.args)
    if gpus is not None:
        if fit:
            raise RecipeError("--fit trains on this machine, --gpus runs nothing: leave one out")
        made = plan_cluster(
            recipe,
            home=home,
            gpus=gpus,
            gpu=gpu,
            tensor_parallel=tensor_parallel,
            tokens=tokens,
            **overrides,
        )
        show_cluster(made, price=price)
        return
    found = foresee(
        recipe,
        home=home,
        fit=fit,
        fit_seconds=fit_seconds,
        ranks=ranks,
        progress=make_progress() if fit else None,
        **overrides,
    )
    show_plan(found, price=price)


def show_plan(plan: Plan, *, price: float | None = None) -> None:
    """Print what a recipe will cost, at a price an hour where there is one."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    if plan.chosen is not None:
        console.print(f"model = 'auto': {plan.chosen}")
    console.print(
        f"{plan.parameters / 1e6:.2f} M parameters, "
        f"checkpoint {plan.checkpoint_bytes / 1e6:.1f} MB, "
        f"{plan.cache_bytes_per_token / 1e3:.1f} kB of cache a token"
    )
    about = "" if plan.text.is_tokenized else "about "
    console.print(
        f"text {plan.text.bytes / 1e6:.1f} MB, {about}{plan.text.tokens / 1e6:.2f} M tokens"
    )
    console.print(_make_work_table(plan))
    console.print(_make_memory_table(plan))
    for stage in plan.stages:
        if stage.advice:
            console.print(
                f"{stage.stage} is too large for {plan.free_bytes / 1e9:.1f} GB of free memory: "
                f"{', then '.join(stage.advice)}"
            )
    if price is not None:
        console.print(f"cost {plan.cost(price):.2f} at {price:g} an hour")
    if plan.expected is not None:
        expected = plan.expected
        console.print(
            f"expected behind pretrain: {expected.loss:.3f} bits per byte on the validation text, "
            f"with 90 % between {expected.low:.3f} and {expected.high:.3f}"
        )


def show_cluster(plan: ClusterPlan, *, price: float | None = None) -> None:
    """Print the layouts of many GPUs, at a price for an hour of one where there is one."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    gpus = plan.trials[0].step.layout.gpus
    console.print(
        f"{plan.parameters / 1e6:,.2f} M parameters, {plan.tokens / 1e9:,.3g} billion tokens on "
        f"{gpus:,} GPUs, by a cost model: nothing was run"
    )
    console.print("layout: replicas × shards × tensor parallel; rows: micro-batches × rows at once")
    console.print("waits: share of a step in which a GPU waits for others; tokens/s: of each GPU")
    columns = ["layout", "rows", "recompute", "step", "waits", "tokens/s", "MFU", "GB", "days"]
    columns += [] if price is None else ["cost"]
    rows = [_spell_trial(each, plan.tokens, price=price) for each in plan.trials[:SHOWN]]
    console.print(_make_table(columns, rows, is_narrow=True))
    large = sum(not each.fits for each in plan.trials)
    if large:
        console.print(f"too large for a GPU's memory: {large} of {len(plan.trials)} layouts")


def _spell_trial(trial: Trial, tokens: float, *, price: float | None) -> tuple[str, ...]:
    """A row of the table; of what is too large only why."""
    step, layout = trial.step, trial.step.layout
    told = (
        f"{layout.replicas}×{layout.shards}×{layout.tensor_parallel}",
        f"{layout.accumulate}×{layout.rows}",
        layout.checkpointing,
    )
    memory = f"{step.memory / 1e9:,.1f}"
    if not trial.fits:
        return (*told, "too large", "", "", "", memory, "", *([] if price is None else [""]))
    return (
        *told,
        f"{step.seconds.total:,.3g} s",
        f"{step.seconds.exchange / step.seconds.total:.1%}",
        f"{step.tokens_per_gpu:,.0f}",
        f"{step.mfu:.0%}",
        memory,
        f"{step.days(tokens):,.3g}",
        *([] if price is None else [f"{step.cost(tokens, price=price):,.0f}"]),
    )


def _make_work_table(plan: Plan) -> Table:
    columns = ("stage", "time", "steps", "tokens", "epochs", "TFLOP", "tokens/s", "GFLOP/s")
    return _make_table(
        columns,
        [
            (
                stage.stage,
                f"{stage.seconds:,.0f} s",
                f"{stage.steps:,}",
                f"{stage.tokens / 1e6:.2f} M",
                f"{stage.epochs:.2f}",
                f"{stage.flops / 1e12:,.1f}",
                f"{stage.tokens_per_second:,.0f}",
                f"{stage.flops_per_second / 1e9:,.0f}",
            )
            for stage in plan.stages
        ],
    )


def _make_memory_table(plan: Plan) -> Table:
    """A row a part that there is, a column a stage, in MB."""
    rows = [
        (
            name.replace("_", " "),
            *(f"{asdict(each.memory)[name] / 1e6:,.0f}" for each in plan.stages),
        )
        for name in asdict(plan.stages[0].memory)
        if any(asdict(each.memory)[name] for each in plan.stages)
    ]
    told = {
        "peak": "peak of tensors",
        "resident": "peak of process",
        "snapshot": "snapshot on disk",
    }
    for name, words in told.items():
        sizes = (f"{getattr(each.memory, name) / 1e6:,.0f}" for each in plan.stages)
        rows.append((words, *sizes))
    at_once = (f"{each.micro_batch_tokens:,}" for each in plan.stages)
    rows.append(("tokens at once", *at_once))
    return _make_table(("MB", *(each.stage for each in plan.stages)), rows)


def _make_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, is_narrow: bool = False
) -> Table:
    """Drawn with lines, or, where many columns have to pass into 80 characters, without."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0)) if is_narrow else Table()
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    return table
